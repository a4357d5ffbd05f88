"""The op in Python: the library, fake kernels and autograd. One call is one layer in one direction.

In eager mode autograd lives outside the op, in a ``torch.autograd.Function`` whose backward is a
second Function: so the gradient is itself a node of the graph, and a gradient of it cannot be
silently wrong. The bare op has the same formulas, for whoever traces it (compile, export).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CELLS", "DTYPES", "CellFacts", "ScanWeights", "cpu_instruction_sets", "scan"]

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


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("fastrnn::scan")
def _scan_fake(  # type: ignore[no-untyped-def]
    cell, input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
    lengths, batch_sizes, reset, reverse, save, recompute=False,
):  # fmt: skip
    tensors = (h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset)
    _check_one_device(input, tensors)
    gates, saved, has_cell_state = CELLS[cell]
    hidden_size, output_size = weight_ih.size(0) // gates, weight_hh.size(1)
    steps = input.shape[:-1]
    y = input.new_empty(*steps, output_size)
    c_n = torch.empty_like(c_0) if has_cell_state else input.new_empty(0)
    saved_gates = saved_cells = input.new_empty(0)
    if save and saved and not recompute:
        saved_gates = input.new_empty(steps.numel(), saved * hidden_size)
    if has_cell_state:
        shape = (steps.numel(), hidden_size) if save else (0,)
        saved_cells = input.new_empty(shape, dtype=_accumulate_dtype(input.dtype))
    h_n = input.new_empty(h_0.shape)
    return y, h_n, c_n, saved_gates, saved_cells


@torch.library.register_fake("fastrnn::scan_backward")
def _scan_backward_fake(  # type: ignore[no-untyped-def]
    cell, grad_y, grad_h_n, grad_c_n, input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
    weight_hr, lengths, batch_sizes, reset, reverse, y, gates, cells, needs,
):  # fmt: skip
    inputs = (input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    _check_one_device(input, (*inputs, grad_y, grad_h_n, grad_c_n, reset, y, gates, cells))
    return tuple(
        input.new_empty(tensor.shape if tensor is not None and needs >> bit & 1 else (0,))
        for bit, tensor in enumerate(inputs)
    )


# Autograd. The arguments are the op's: cell, eight tensors that may need a gradient, then the rest.
_TENSORS = slice(1, 9)


def _setup_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, *tensors, lengths, batch_sizes, reset, reverse, save, _ = inputs
    y, _, _, gates, cells = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, lengths, batch_sizes, reset, y, gates, cells)
    ctx.cell, ctx.reverse, ctx.save = cell, reverse, save


def _differentiate_scan(
    backward: Callable[..., tuple[Tensor, ...]], ctx: Any, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of the op's arguments; ``backward`` is scan_backward in one form or the other."""
    if not ctx.save:
        raise RuntimeError("fastrnn: this graph was traced without gradients (torch.no_grad)")
    wanted = ctx.needs_input_grad[_TENSORS]
    needs = sum(1 << bit for bit, need in enumerate(wanted) if need)
    *tensors, lengths, batch_sizes, reset, y, gates, cells = ctx.saved_tensors
    grad_y, grad_h_n, grad_c_n = grads[:3]
    if not CELLS[ctx.cell].has_cell_state:
        grad_c_n = None  # of a c_n without elements; some tracers make one up
    gradients = backward(
        ctx.cell, grad_y, grad_h_n, grad_c_n, *tensors, lengths, batch_sizes, reset, ctx.reverse,
        y, gates, cells, needs,
    )  # fmt: skip
    found = (grad if need else None for grad, need in zip(gradients, wanted, strict=True))
    return (None, *found, None, None, None, None, None, None)


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "fastrnn: derivatives of gradients (double backward, create_graph=True) are not "
        "supported yet; use torch.nn's module here (fastrnn.decelerate)"
    )


def _refuse_transform(ctx: Any, *grad_inputs: Any) -> Any:
    raise NotImplementedError(
        "fastrnn: vmap and forward-mode AD (jvp) are not supported yet; use torch.nn's module here "
        "(fastrnn.decelerate)"
    )


class _Scan(torch.autograd.Function):
    vmap = staticmethod(_refuse_transform)
    jvp = staticmethod(_refuse_transform)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return torch.ops.fastrnn.scan(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _setup_scan(ctx, inputs, output)
        _, _, c_n, gates, cells = output
        fixed = (gates, cells) if CELLS[ctx.cell].has_cell_state else (c_n, gates, cells)
        ctx.mark_non_differentiable(*fixed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate_scan(_ScanBackward.apply, ctx, grads)


class _ScanBackward(torch.autograd.Function):
    vmap = staticmethod(_refuse_transform)
    jvp = staticmethod(_refuse_transform)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return torch.ops.fastrnn.scan_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(_refuse_second_derivative)


torch.library.register_autograd(
    "fastrnn::scan",
    lambda ctx, *grads: _differentiate_scan(torch.ops.fastrnn.scan_backward, ctx, grads),
    setup_context=lambda ctx, inputs, output: _setup_scan(ctx, inputs, output),
)
torch.library.register_autograd("fastrnn::scan_backward", _refuse_second_derivative)


def _may_be_differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a derivative may be taken through this call.

    Under torch.func and forward-mode AD a tensor does not tell: these take the Function, which
    raises where it has no rule, rather than the op, through which a tangent is lost in silence.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    grad_enabled = torch.is_grad_enabled()
    vmap = torch._C._functorch.TransformType.Vmap
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if any(grad_enabled or level.key() != vmap for level in levels):
        return True
    return grad_enabled and any(t is not None and t.requires_grad for t in tensors)


def scan(
    cell: str,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: ScanWeights,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer in one direction over a whole sequence.

    Args:
        cell: a name in ``CELLS``.
        input: (T, N, I), or (rows, I) when packed, in a dtype of ``DTYPES``.
        h_0: (N, R), the initial hidden state.
        c_0: (N, H), the initial cell state of an LSTM, else None.
        weights: of this layer and direction.
        lengths: (N,) int64 on CPU, the steps of each sample; all T without it.
        batch_sizes: (T,) int64 on CPU, as in a PackedSequence: the input is packed.
        reset: (T, N) bool; True at the first step of a segment, before which the state is zeroed.
        reverse: walk from the last step to the first.
        recompute: save no gates for backward, which computes them again: a third more arithmetic,
            and of what is saved only input, output and cell states remain.

    Returns:
        y (T, N, R) or (rows, R), 0 at steps a sample does not run; h_n (N, R); c_n (N, H) or None.

    Raises:
        NotImplementedError: on a device without a kernel.
        RuntimeError: where shapes, dtypes or devices do not fit.
    """
    if input.device.type not in ("cpu", "meta"):
        raise NotImplementedError(
            f"fastrnn has no kernel for device '{input.device}' in this build, only for cpu; "
            "move the module and its input, or use torch.nn's module there"
        )
    tensors = (input, h_0, c_0, *weights)
    arguments = (cell, *tensors, lengths, batch_sizes, reset, reverse)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        if torch.autograd.forward_ad._current_level >= 0:
            _refuse_transform(None)
        results = torch.ops.fastrnn.scan(*arguments, torch.is_grad_enabled(), recompute)
    elif _may_be_differentiated(tensors):
        results = _Scan.apply(*arguments, True, recompute)
    else:
        results = torch.ops.fastrnn.scan(*arguments, False, recompute)
    y, h_n, c_n = results[:3]
    return y, h_n, c_n if CELLS[cell].has_cell_state else None
