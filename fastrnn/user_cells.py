"""Whether a user's cell runs in kernels, which are compiled when first used, or step by step."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastrnn import ops, reference
from fastrnn.cells.compiler import CannotCompile
from fastrnn.library import USER_CELLS, has_loaded_kernels
from fastrnn.torch_internals import constant_in_compile

__all__ = ["observed_by", "scan_function", "why_step_by_step"]


def scan_function(cell: str, input: Tensor) -> Callable[..., Any]:
    """:func:`fastrnn.ops.scan`, or the loop of torch operations with the same arguments."""
    if cell not in USER_CELLS:
        return ops.scan
    reason = why_step_by_step(cell, input.dtype, input.device.type)
    return ops.scan if reason is None else _observer or reference.scan


# Calls do not ask again for what could not be compiled.
_BUILD_AGAIN = "\nMend that, then call fastrnn.cells.build(cell), or start again"

# Runs in the place of reference.scan, for fastrnn.explain.
_observer: Callable[..., Any] | None = None


@contextlib.contextmanager
def observed_by(scan: Callable[..., Any]) -> Iterator[None]:
    """Call this where reference.scan would be called; it calls that."""
    global _observer
    before, _observer = _observer, scan
    try:
        yield
    finally:
        _observer = before


# torch.compile, too, takes what there is when it traces.
@constant_in_compile
def why_step_by_step(cell: str, dtype: torch.dtype, device_type: str) -> str | None:
    """Why a user's cell has no kernels here, or None: they are loaded.

    Warns once of a reason, but for tensors without values.
    """
    if device_type == "cpu" and has_loaded_kernels(cell, dtype):
        return None
    advice = ""
    if device_type == "meta":
        return "the meta device has no values"
    if device_type != "cpu":
        reason = f"kernels of users' cells are for CPU alone yet, and the input is on {device_type}"
    else:
        try:
            ops.load_kernels(cell, dtype)
        except CannotCompile as error:
            reason, advice = str(error), _BUILD_AGAIN
        else:
            return None
    _warn_once(cell, reason + advice)
    return reason


@functools.cache
def _warn_once(cell: str, reason: str) -> None:
    warnings.warn(
        f"fastrnn: {USER_CELLS[cell].name} runs as a loop of torch operations, which takes many "
        f"times as long as its kernels: {reason}",
        stacklevel=2,
    )
