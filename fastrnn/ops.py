"""scan, one layer in one direction over a whole sequence, with all its derivatives and vmap rules.

Four autograd Functions, each a call or two of the fused kernels, differentiate each other. With F
the scan at inputs p, B(p, g) = J_F(p)^T g its gradient, and u a direction:

* ``_Scan`` is F(p); its gradient is ``_ScanBackward``, its tangent ``_ScanTangent``.
* ``_ScanBackward`` is B(p, g). Second derivatives are symmetric, so the gradient of <u, B(p, g)> in
  p is the tangent of B in the direction u, and in g it is J_F(p) u: both are ``_SecondOrder``.
* ``_ScanTangent`` is J_F(p) u, ``_SecondOrder`` the tangent of B: the kernels run on dual numbers,
  which travel as complex tensors.

A gradient is thus always a node of the graph, in every mode, and what has no rule raises: third
derivatives, and forward mode within forward mode, which torch gets wrong for any Function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.library import (
    CELLS,
    DEVICES,
    DTYPES,
    TENSORS,
    CellFacts,
    ScanWeights,
    accumulate_dtype,
    cpu_instruction_sets,
    gradients_of_arguments,
    scan_backward_arguments,
    setup_scan,
)

__all__ = ["CELLS", "DTYPES", "CellFacts", "ScanWeights", "cpu_instruction_sets", "scan"]

_WEIGHTS = 0b0011111000  # of the bits of `needs`
_GRADS = 4  # of y, h_n, c_n and cells


# --- vmap: the batch joins the samples ------------------------------------------------------------
#
# What an argument or result is: S(equence), M(atrix of states), a weight of rank 1 or 2, L(engths),
# B(atch sizes), O(ffsets), R(esets), G(roups), N(eeds); D(erivative) of a weight; - anything else.
_INPUTS = "SMM22112MM"
_HOST = "LBOR"


def _fold(batch: int, role: str, packed: bool, groups: int, tensor: Tensor, dim: int | None) -> Any:
    """An argument with a batch dimension (None: the same for all) as one for batch * N samples.

    Sample n of batch entry b becomes sample n * batch + b, in group g * batch + b if it was in g.
    """

    def merged(at: int) -> Tensor:
        """The batch dimension moved behind dimension `at`, and both made one."""
        if dim is None:
            tensor_ = tensor.unsqueeze(at + 1)
            shape = (*tensor_.shape[: at + 1], batch, *tensor_.shape[at + 2 :])
            return tensor_.expand(shape).flatten(at, at + 1)
        return tensor.movedim(dim, at + 1).flatten(at, at + 1)

    if role == "S" and tensor.shape == (0,):
        return tensor  # was not saved
    if role == "S":
        return merged(0 if packed else 1)
    if role == "M":
        return merged(0)
    if role == "L":
        return merged(0).contiguous()
    if role == "R":
        return merged(1)
    if role in "12":
        grouped = tensor.dim() - (dim is not None) > int(role)
        if dim is None and not grouped:
            return tensor  # shared
        if not grouped and groups > 0:  # the same for groups that other tensors have
            tensor = tensor.movedim(dim, 0)  # type: ignore[arg-type]
            return tensor.expand(groups, *tensor.shape).flatten(0, 1)
        return merged(0) if grouped else tensor.movedim(dim, 0)  # type: ignore[arg-type]
    if role == "B" and dim is None:
        return tensor * batch
    raise NotImplementedError(
        f"fastrnn: vmap over {'batch_sizes' if role == 'B' else 'jagged input'} is not supported; "
        "pad the input and give lengths="
    )


def _vmap_rule(
    function: Callable[..., Sequence[Tensor]], roles: str, result_roles: str
) -> Callable[..., tuple[tuple[Tensor, ...], tuple[int | None, ...]]]:
    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        batch = info.batch_size
        packed = args[roles.index("B")] is not None
        groups = args[roles.index("G")]
        needs = args[roles.index("N")] if "N" in roles else 0
        in_groups = groups > 0 or needs & _WEIGHTS
        in_groups |= any(r in "12" and d is not None for r, d in zip(roles, in_dims, strict=True))
        new_groups = max(groups, 1) * batch if in_groups else 0
        folded = [
            _fold(batch, role, packed, groups, arg, dim) if isinstance(arg, Tensor) else arg
            for role, arg, dim in zip(roles, args, in_dims, strict=True)
        ]
        folded[roles.index("G")] = new_groups
        results, dims = [], []
        for role, result in zip(result_roles, function(*folded), strict=True):
            dim: int | None = 1 if role == "M" or packed or (role == "D" and groups > 0) else 2
            if role == "D" and groups == 0:
                dim = 0
            if result.shape == (0,):
                dim = None  # not computed
            elif dim:
                result = result.unflatten(dim - 1, (result.size(dim - 1) // batch, batch))
            results.append(result)
            dims.append(dim)
        return tuple(results), tuple(dims)

    return rule


# --- dual numbers ---------------------------------------------------------------------------------


def _dual(value: Tensor | None, tangent: Tensor | None) -> Tensor | None:
    """value + e tangent as a complex tensor; half types are computed in float32."""
    present = value if value is not None else tangent
    if present is None:
        return None
    if present.device.type == "cuda":
        raise NotImplementedError(
            "fastrnn: second derivatives and forward mode have kernels for CPU alone yet; move the "
            "module and its input there, or use torch.nn's module (fastrnn.decelerate)"
        )
    dtype = accumulate_dtype(present.dtype)
    value = torch.zeros_like(present) if value is None else value
    tangent = torch.zeros_like(present) if tangent is None else tangent
    return torch.complex(value.to(dtype), tangent.to(dtype))


def _duals(
    values: Sequence[Tensor | None], tangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    return [_dual(value, tangent) for value, tangent in zip(values, tangents, strict=True)]


def _tangents(results: Iterable[Tensor], dtypes: Iterable[torch.dtype]) -> tuple[Tensor, ...]:
    found = []
    for result, dtype in zip(results, dtypes, strict=True):
        real = result if not result.is_complex() else result.imag
        found.append(real.to(dtype).contiguous())
    return tuple(found)


def _result_dtypes(input: Tensor) -> tuple[torch.dtype, ...]:
    """Of y, h_n, c_n and cells."""
    return (input.dtype, input.dtype, input.dtype, accumulate_dtype(input.dtype))


def _split(args: Sequence[Any], *counts: int) -> list[Any]:
    """The first argument, then so many at a time, then the rest."""
    parts, at = [args[0]], 1
    for count in counts:
        parts.append(args[at : at + count])
        at += count
    return [*parts, args[at:]]


def _sum_groups(
    gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of weights that groups share, which come for each group."""
    return [
        gradient.sum(0)
        if gradient is not None and tensor is not None and gradient.dim() > tensor.dim()
        else gradient
        for gradient, tensor in zip(gradients, inputs, strict=True)
    ]


def _wanted(ctx: Any, first: int) -> int:
    """The bits of `needs` for the inputs that start at an argument."""
    flags = ctx.needs_input_grad[first : first + TENSORS]
    return sum(1 << bit for bit, flag in enumerate(flags) if flag)


def _below_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """Call an op whose gradient is not the op's affair: the way through its own formulas takes as
    long as a short scan."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


# --- the Functions --------------------------------------------------------------------------------
#
# Each reads ctx.saved_tensors once: torch.utils.checkpoint gives them out once, and hooks that
# fetch them from afar would fetch them twice.


class _Scan(torch.autograd.Function):
    """y, h_n, c_n, gates, cells, from the op's arguments."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _below_autograd(torch.ops.fastrnn.scan, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        setup_scan(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1 : 1 + TENSORS + len(_HOST)])
        _, _, c_n, gates, cells = output
        ctx.has_cell_state = CELLS[ctx.cell].has_cell_state
        fixed = [gates] if ctx.all_states else [gates, cells]
        ctx.mark_non_differentiable(*fixed, *([] if ctx.has_cell_state else [c_n]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments = scan_backward_arguments(ctx, grads)
        inputs = arguments[1 + _GRADS : 1 + _GRADS + TENSORS]
        gradients = _ScanBackward.apply(*arguments)
        return gradients_of_arguments(ctx, _sum_groups(gradients, inputs))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, lengths, batch_sizes, offsets, reset = ctx.saved_tensors
        y, h_n, c_n, cells = _ScanTangent.apply(
            ctx.cell, *tensors, *tangents[1 : 1 + TENSORS], lengths, batch_sizes, offsets, reset,
            ctx.reverse, ctx.all_states, ctx.groups,
        )  # fmt: skip
        return y, h_n, c_n if ctx.has_cell_state else None, None, cells if ctx.all_states else None

    vmap: Any  # set below, as it calls the Function


class _ScanBackward(torch.autograd.Function):
    """Gradients of a scan's ten tensors, from the arguments of scan_backward."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _below_autograd(torch.ops.fastrnn.scan_backward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, grads, tensors, rest = _split(inputs, _GRADS, TENSORS + len(_HOST))
        ctx.reverse, _, _, _, ctx.needs, ctx.groups, _ = rest
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *tensors)
        ctx.save_for_forward(*grads, *tensors)
        absent = [result for bit, result in enumerate(output) if not ctx.needs >> bit & 1]
        ctx.mark_non_differentiable(*absent)

    @staticmethod
    def second_order(
        ctx: Any,
        saved: Sequence[Tensor | None],
        grad_tangents: Sequence[Tensor | None],
        tangents: Sequence[Tensor | None],
        needs: int,
    ) -> tuple[Tensor, ...]:
        grads, inputs, host = saved[:_GRADS], saved[_GRADS : _GRADS + TENSORS], saved[-len(_HOST) :]
        return _SecondOrder.apply(
            ctx.cell, *grads, *grad_tangents, *inputs, *tangents, *host, ctx.reverse, needs,
            ctx.groups,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = _wanted(ctx, 1 + _GRADS)
        saved = ctx.saved_tensors
        results = _ScanBackward.second_order(ctx, saved, (None,) * _GRADS, cotangents, needs)
        of_inputs = _sum_groups(results[:TENSORS], saved[_GRADS : _GRADS + TENSORS])
        found = [*results[TENSORS:], *of_inputs]
        wanted = ctx.needs_input_grad[1 : 1 + len(found)]
        rest = len(ctx.needs_input_grad) - 1 - len(found)
        chosen = (g if need else None for g, need in zip(found, wanted, strict=True))
        return (None, *chosen, *(None,) * rest)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        _, grad_tangents, input_tangents, _ = _split(tangents, _GRADS, TENSORS)
        results = _ScanBackward.second_order(
            ctx, ctx.saved_tensors, grad_tangents, input_tangents, ctx.needs
        )
        return tuple(
            result if ctx.needs >> bit & 1 else None for bit, result in enumerate(results[:TENSORS])
        )

    vmap: Any


class _ScanTangent(torch.autograd.Function):
    """Tangents of y, h_n, c_n and cells, from the cell, ten tensors, ten tangents, the host's
    tensors, reverse, all_states and groups."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        cell, inputs, tangents, host, (reverse, all_states, groups) = _split(
            args, TENSORS, TENSORS, len(_HOST)
        )
        y, h_n, c_n, _, cells = torch.ops.fastrnn.scan(
            cell, *_duals(inputs, tangents), *host, reverse, False, False, all_states, groups
        )
        return _tangents((y, h_n, c_n, cells), _result_dtypes(inputs[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, tensors, (ctx.reverse, _, ctx.groups) = _split(inputs, 2 * TENSORS + len(_HOST))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(result for result in output if result.shape == (0,)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, tangents, host = saved[:TENSORS], saved[TENSORS : 2 * TENSORS], saved[2 * TENSORS :]
        y, _, _, gates, cells = _Scan.apply(
            ctx.cell, *inputs, *host, ctx.reverse, True, False, False, ctx.groups, False
        )
        of_tangents = _ScanBackward.apply(
            ctx.cell, *grads, *inputs, *host, ctx.reverse, y, gates, cells,
            _wanted(ctx, 1 + TENSORS), ctx.groups, False,
        )  # fmt: skip
        of_inputs = _SecondOrder.apply(
            ctx.cell, *grads, *(None,) * _GRADS, *inputs, *tangents, *host, ctx.reverse,
            _wanted(ctx, 1), ctx.groups,
        )[:TENSORS]  # fmt: skip
        found = [*_sum_groups(of_inputs, inputs), *_sum_groups(of_tangents, tangents)]
        wanted = ctx.needs_input_grad[1 : 1 + len(found)]
        chosen = (g if need else None for g, need in zip(found, wanted, strict=True))
        return (None, *chosen, *(None,) * (len(_HOST) + 3))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        _refuse_nested_forward_mode()

    vmap: Any


class _SecondOrder(torch.autograd.Function):
    """Tangents of the ten gradients, then of y, h_n, c_n and cells; from the cell, four gradients
    and their tangents, ten tensors and theirs, the host's tensors, reverse, needs and groups."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        cell, grads, grad_tangents, inputs, tangents, host, (reverse, needs, groups) = _split(
            args, _GRADS, _GRADS, TENSORS, TENSORS, len(_HOST)
        )
        duals = _duals(inputs, tangents)
        dual_grads = _duals(grads, grad_tangents)
        y, h_n, c_n, gates, cells = torch.ops.fastrnn.scan(
            cell, *duals, *host, reverse, True, False, True, groups
        )
        gradients = torch.ops.fastrnn.scan_backward(
            cell, *dual_grads, *duals, *host, reverse, y, gates, cells, needs, groups
        )
        return (
            *_tangents(gradients, (inputs[0].dtype,) * TENSORS),
            *_tangents((y, h_n, c_n, cells), _result_dtypes(inputs[0])),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "fastrnn: third derivatives are not supported; torch.nn's modules have some "
            "(fastrnn.decelerate)"
        )

    backward = jvp = refuse
    vmap: Any


_SCAN_ROLES = f"-{_INPUTS}{_HOST}----G-"
_BACKWARD_ROLES = f"-SMMS{_INPUTS}{_HOST}-SSSNG-"
_TANGENT_ROLES = f"-{_INPUTS * 2}{_HOST}--G"
_SECOND_ROLES = f"-SMMSSMMS{_INPUTS * 2}{_HOST}-NG"
_GRADIENT_ROLES = "SMMDDDDDMM"
_Scan.vmap = staticmethod(_vmap_rule(_Scan.apply, _SCAN_ROLES, "SMMSS"))
_ScanBackward.vmap = staticmethod(_vmap_rule(_ScanBackward.apply, _BACKWARD_ROLES, _GRADIENT_ROLES))
_ScanTangent.vmap = staticmethod(_vmap_rule(_ScanTangent.apply, _TANGENT_ROLES, "SMMS"))
_SecondOrder.vmap = staticmethod(
    _vmap_rule(_SecondOrder.apply, _SECOND_ROLES, f"{_GRADIENT_ROLES}SMMS")
)


def _refuse_nested_forward_mode() -> None:
    raise NotImplementedError(
        "fastrnn: torch computes forward mode within forward mode (jvp of jvp, jacfwd of jacfwd) "
        "wrongly through any autograd.Function; take one of the two in reverse mode (jacrev, grad)"
    )


# --- the way in -----------------------------------------------------------------------------------


def _transforms() -> list[Any]:
    """The torch.func transforms around this call, outermost first."""
    return [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]


def _in_graph(*args: Any) -> tuple[Tensor, ...]:
    """What torch.compile takes as one node, without looking inside."""
    return _Scan.apply(*args)


def _allow_in_graph() -> None:
    torch._dynamo.allow_in_graph(_in_graph)


# torch.compile calls such a function while it traces. Asking for it that late keeps
# `import fastrnn` from importing torch._dynamo, which takes longer than torch itself.
_allow_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _tf32_allowed() -> bool:
    """What nn.RNN, nn.GRU and nn.LSTM follow on a GPU. (``allow_tf32`` raises after mixed use.)"""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]


# torch.compile, too, takes the setting as it is when it traces.
_tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def scan(
    cell: str,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: ScanWeights,
    *,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    offsets: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
    all_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run one layer in one direction over a whole sequence.

    Args:
        cell: a name in ``CELLS``.
        input: (T, N, I), or (rows, I) when packed or jagged, in a dtype of ``DTYPES``.
        h_0: (N, R), the initial hidden state.
        c_0: (N, H), the initial cell state of an LSTM, else None.
        weights: of this layer and direction.
        reset_h, reset_c: as h_0 and c_0, what a reset replaces the state by; zeros without it.
        lengths: (N,) int64 on CPU, the steps of each sample; all T without it. Of a padded input on
            a GPU also there, where values outside of [0, T] count as the nearest of those.
        batch_sizes: (T,) int64 on CPU, as in a PackedSequence: the input is packed.
        offsets: (N + 1,) int64 on CPU, as in a jagged tensor: rows offsets[n] to offsets[n + 1] of
            the input are sample n, of which lengths[n] are steps.
        reset: (T, N) bool; True at the first step of a segment, before which the state is replaced.
        reverse: walk from the last step to the first.
        recompute: save no gates for backward, which computes them again: a third more arithmetic,
            and of what is saved only input, output and cell states remain.
        all_states: also return the cell state after every step.

    Returns:
        y (T, N, R) or (rows, R), 0 at steps a sample does not run; h_n (N, R); c_n (N, H) or None;
        with ``all_states``, c of every step (T, N, H) or (rows, H), float32 for half types, else
        None.

    Raises:
        NotImplementedError: on a device without a kernel; for a derivative there is no rule for.
        RuntimeError: where shapes, dtypes or devices do not fit.
    """
    if input.device.type not in DEVICES:
        here = " and ".join(device for device in DEVICES if device != "meta")
        raise NotImplementedError(
            f"fastrnn has no kernel for device '{input.device}' in this build, only for {here}; "
            "move the module and its input, or use torch.nn's module there"
        )
    tensors = (input, h_0, c_0, *weights, reset_h, reset_c)
    arguments = (cell, *tensors, lengths, batch_sizes, offsets, reset, reverse)
    has_cell_state = CELLS[cell].has_cell_state
    all_states = all_states and has_cell_state
    tf32 = input.device.type == "cuda" and input.dtype == torch.float32 and _tf32_allowed()
    grad = torch.is_grad_enabled()
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        results = torch.ops.fastrnn.scan(*arguments, grad, recompute, all_states, 0, tf32)
    elif torch.compiler.is_compiling():
        _allow_in_graph()
        results = _in_graph(*arguments, grad, recompute, all_states, 0, tf32)
    elif transforms := _transforms():
        kind = torch._C._functorch.TransformType
        if transforms.count(kind.Jvp) > 1:
            _refuse_nested_forward_mode()
        save = grad or kind.Grad in transforms
        results = _Scan.apply(*arguments, save, recompute, all_states, 0, tf32)
    elif torch.autograd.forward_ad._current_level >= 0 or (
        grad and any(t is not None and t.requires_grad for t in tensors)
    ):
        results = _Scan.apply(*arguments, grad, recompute, all_states, 0, tf32)
    else:
        results = _below_autograd(
            torch.ops.fastrnn.scan, *arguments, False, recompute, all_states, 0, tf32
        )
    y, h_n, c_n, _, cells = results
    return y, h_n, c_n if has_cell_state else None, cells if all_states else None
