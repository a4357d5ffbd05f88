"""Dropout between layers, from counters: a mask is a function of seed, layer and element alone.

So a mask does not depend on the number of threads, and the same seed gives the same mask again, as
under ``torch.utils.checkpoint``, which restores the generator that the seed is drawn from. The mask
has no derivative; torch multiplies by it, with its own derivatives and vmap rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.library import DTYPES  # the import loads the ops

__all__ = ["draw_seed", "dropout_mask"]


def draw_seed(device: torch.device) -> Tensor:
    """A seed from torch's generator of the device: int64, of no dimensions.

    ``torch.manual_seed`` makes it reproducible. Under ``torch.func.vmap``, ``randomness="same"``
    draws one for all samples and ``"different"`` one for each; the default raises.
    """
    return torch.randint(0, 2**63 - 1, (), device=device)


def dropout_mask(
    seed: Tensor, stream: int, shape: Sequence[int], p: float, dtype: torch.dtype
) -> Tensor:
    """A factor for each element: 0 with probability p, else 1 / (1 - p).

    Args:
        seed: int64, of any shape; each element gives a mask, on the seed's device.
        stream: masks of one seed and different streams are independent.
        shape: of a mask.
        p: 0 to 1, rounded to a multiple of 2**-32.
        dtype: of the result, one of ``fastrnn.ops.DTYPES``; which elements are 0 does not depend on
            it.

    Returns:
        (``*seed.shape, *shape``)

    Raises:
        RuntimeError: for another dtype of seed or result, or p outside of 0 to 1.
    """
    return torch.ops.fastrnn.dropout_mask(seed, stream, shape, p, dtype)


@torch.library.register_fake("fastrnn::dropout_mask")
def _dropout_mask_fake(
    seed: Tensor, stream: int, shape: Sequence[int], p: float, dtype: torch.dtype
) -> Tensor:
    if seed.dtype != torch.int64 or dtype not in DTYPES or not 0 <= p <= 1:
        raise RuntimeError(f"fastrnn: no dropout mask of {dtype} for a {seed.dtype} seed, p = {p}")
    return seed.new_empty((*seed.shape, *shape), dtype=dtype)


@torch.library.register_vmap("fastrnn::dropout_mask")
def _dropout_mask_vmap(
    info: Any, in_dims: Sequence[int | None], seed: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    dim = in_dims[0]
    assert dim is not None
    return dropout_mask(seed.movedim(dim, 0), *rest), 0
