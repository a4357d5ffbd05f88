"""The compiled library: what it knows of cells, and its ops as torch's tracers see them.

A bare op has a fake kernel and an autograd formula, for torch.export and whoever trains what it
made. Everybody else goes through :func:`fastrnn.ops.scan`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CELLS", "DTYPES", "CellFacts", "ScanWeights", "cpu_instruction_sets"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load_library() -> None:
    """Load the compiled ops, or the build of them that FASTRNN_LIBRARY names."""
    override = os.environ.get("FASTRNN_LIBRARY")
    if override:
        torch.ops.load_library(override)
        return
    built = sorted(Path(__file__).parent.glob("_C*.so"))
    if not built:
        raise ImportError(
            "fastrnn: the compiled library fastrnn/_C*.so is missing. "
            "Build it: pip install --no-build-isolation -e ."
        )
    torch.ops.load_library(str(built[0]))


_load_library()


class CellFacts(NamedTuple):
    """What csrc/cells/ says of a cell."""

    gates: int  # rows of the weights for each hidden unit
    saved: int  # values a unit and step saves for backward, beside h and c
    has_cell_state: bool


CELLS = {
    name: CellFacts(*torch.ops.fastrnn.cell_facts(name))
    for name in torch.ops.fastrnn.cells().split(",")
}


class ScanWeights(NamedTuple):
    """Weights of one layer in one direction, G gates of H units, R = proj_size or H."""

    weight_ih: Tensor  # [G * H, I]
    weight_hh: Tensor  # [G * H, R]
    bias_ih: Tensor | None = None  # [G * H]
    bias_hh: Tensor | None = None  # [G * H]
    weight_hr: Tensor | None = None  # [R, H]


# The types of devices the ops run on; on meta they compute shapes.
DEVICES = ("cpu", "meta") + ("cuda",) * torch._C._dispatch_has_kernel_for_dispatch_key(
    "fastrnn::scan", "CUDA"
)


def cpu_instruction_sets() -> list[str]:
    """Instruction sets the CPU kernels can use on this machine, best first.

    The first is used unless the environment variable ``FASTRNN_CPU_ISA`` names another.
    """
    return torch.ops.fastrnn.cpu_instruction_sets().split(",")


def _check_one_device(input: Tensor, tensors: Iterable[Tensor | None]) -> None:
    """One tensor on the meta device is enough for the dispatcher to compute nothing."""
    for tensor in tensors:
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"fastrnn: a tensor is on {tensor.device}, expected input's device {input.device}"
            )


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What cell states are kept in."""
    return torch.float32 if dtype.itemsize == 2 else dtype


# The op's tensors that may need a gradient: input, h_0, c_0, five weights, reset_h, reset_c.
TENSORS = 10


@torch.library.register_fake("fastrnn::scan")
def _scan_fake(  # type: ignore[no-untyped-def]
    cell, input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c,
    lengths, batch_sizes, offsets, reset, reverse, save, recompute=False, all_states=False,
    groups=0, tf32=False,
):  # fmt: skip
    tensors = (h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c, reset)
    _check_one_device(input, tensors)
    gates, saved, has_cell_state = CELLS[cell]
    hidden_size, output_size = weight_ih.size(-2) // gates, weight_hh.size(-1)
    steps = input.shape[:-1]
    y = input.new_empty(*steps, output_size)
    c_n = torch.empty_like(c_0) if has_cell_state else input.new_empty(0)
    saved_gates, saved_cells = input.new_empty(0), input.new_empty(0)
    if save and saved and not recompute:
        saved_gates = input.new_empty(*steps, saved * hidden_size)
    if has_cell_state:
        shape = (*steps, hidden_size) if save or all_states else (0,)
        saved_cells = input.new_empty(shape, dtype=accumulate_dtype(input.dtype))
    h_n = input.new_empty(h_0.shape)
    return y, h_n, c_n, saved_gates, saved_cells


@torch.library.register_fake("fastrnn::scan_backward")
def _scan_backward_fake(  # type: ignore[no-untyped-def]
    cell, grad_y, grad_h_n, grad_c_n, grad_cells, input, h_0, c_0, weight_ih, weight_hh, bias_ih,
    bias_hh, weight_hr, reset_h, reset_c, lengths, batch_sizes, offsets, reset, reverse, y, gates,
    cells, needs, groups=0, tf32=False,
):  # fmt: skip
    inputs = (
        input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c
    )  # fmt: skip
    grads = (grad_y, grad_h_n, grad_c_n, grad_cells)
    _check_one_device(input, (*inputs, *grads, reset, y, gates, cells))
    ranks = (None, None, None, 2, 2, 1, 1, 2, None, None)
    results = []
    for bit, (tensor, rank) in enumerate(zip(inputs, ranks, strict=True)):
        if tensor is None or not needs >> bit & 1:
            results.append(input.new_empty(0))
        elif rank is None or groups == 0:
            results.append(input.new_empty(tensor.shape))
        else:
            results.append(input.new_empty(groups, *tensor.shape[-rank:]))
    return tuple(results)


def setup_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what differentiates a scan; inputs are the op's arguments."""
    cell, *tensors, reverse, save, _, all_states, groups, tf32 = inputs
    y, _, _, gates, cells = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, gates, cells)
    ctx.cell, ctx.reverse, ctx.save, ctx.groups, ctx.tf32 = cell, reverse, save, groups, tf32
    ctx.all_states = all_states and CELLS[cell].has_cell_state


def scan_backward_arguments(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """The arguments of scan_backward, from what was kept and the gradients of a scan's results."""
    if not ctx.save:
        raise RuntimeError("fastrnn: this graph was traced without gradients (torch.no_grad)")
    needs = sum(1 << bit for bit, need in enumerate(ctx.needs_input_grad[1 : 1 + TENSORS]) if need)
    *tensors, y, gates, cells = ctx.saved_tensors
    grad_y, grad_h_n, grad_c_n, _, grad_cells = grads
    if not CELLS[ctx.cell].has_cell_state:
        grad_c_n = None  # of a c_n without elements; some tracers make one up
    return (
        ctx.cell, grad_y, grad_h_n, grad_c_n, grad_cells if ctx.all_states else None, *tensors,
        ctx.reverse, y, gates, cells, needs, ctx.groups, ctx.tf32,
    )  # fmt: skip


def gradients_of_arguments(
    ctx: Any, gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """A gradient or None for every argument of the op, from those of its first tensors."""
    wanted = ctx.needs_input_grad[1 : 1 + TENSORS]
    found = (grad if need else None for grad, need in zip(gradients, wanted, strict=True))
    rest = len(ctx.needs_input_grad) - 1 - TENSORS
    return (None, *found, *(None,) * rest)


def _differentiate_bare_scan(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.groups:
        raise NotImplementedError("fastrnn: the bare op with groups has no gradient; use ops.scan")
    gradients = torch.ops.fastrnn.scan_backward(*scan_backward_arguments(ctx, grads))
    return gradients_of_arguments(ctx, gradients)


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "fastrnn: torch cannot differentiate the gradient of a compiled or exported function; take "
        "second derivatives in eager mode, or compile the function that takes them"
    )


torch.library.register_autograd(
    "fastrnn::scan",
    _differentiate_bare_scan,
    setup_context=lambda ctx, inputs, output: setup_scan(ctx, inputs, output),
)
torch.library.register_autograd("fastrnn::scan_backward", _refuse_second_derivative)
