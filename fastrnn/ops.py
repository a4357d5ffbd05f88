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

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastrnn import direct
from fastrnn.cells import compiler
from fastrnn.direct import Scan
from fastrnn.library import (
    CELLS,
    DEVICES,
    DTYPES,
    PLAIN,
    SCHEDULE,
    USER_CELLS,
    WEIGHT_RANKS,
    CellFacts,
    ScanBackwardCall,
    ScanCall,
    ScanWeights,
    TensorInfo,
    accumulate_dtype,
    chosen,
    cpu_instruction_sets,
    extra_names,
    halves,
    keep_for_backward,
    named,
    scan_backward_call,
    setup_scan,
    split,
    weight_kinds,
    where_needed,
    with_absent,
    without_absent,
)
from fastrnn.torch_internals import (
    TransformType,
    below_autograd,
    constant_in_compile,
    in_forward_mode,
    in_old_batches,
    is_observed,
    is_old_batch,
    rounds_to_bfloat16,
    transforms,
    without_modes,
)
from fastrnn.tracing import scan_in_jit_trace, untraced
from fastrnn.weight_sums import SharedWeights, same

__all__ = ["CELLS", "DTYPES", "CellFacts", "ScanWeights", "cpu_instruction_sets", "scan"]


# --- vmap: the batch joins the samples ------------------------------------------------------------
#
# The role of an argument or result is that of its tensor in the library's tables, or its name in
# the schedule; "gradient" is that of a weight's gradient, None that of what has no batch dimension.
_Role = str | None


def _fold(
    batch: int, role: _Role, packed: bool, groups: int, tensor: Tensor, dim: int | None
) -> Any:
    """An argument with a batch dimension (None: the same for all) as one for batch * N samples.

    Sample n of batch entry b becomes sample n * batch + b, in group g * batch + b if it was in g.
    """

    def merged(at: int) -> Tensor:
        """The batch dimension moved behind dimension `at`, and both made one."""
        if dim is None:
            moved = tensor.unsqueeze(at + 1)
            moved = moved.expand(*moved.shape[: at + 1], batch, *moved.shape[at + 2 :])
        else:
            moved = tensor.movedim(dim, at + 1)
        # A single sample is flattened to a view of any strides; backward takes dense results alone.
        return moved.flatten(at, at + 1).contiguous()

    if role == "sequence" and tensor.shape == (0,):
        return tensor  # was not saved
    if role == "sequence":
        return merged(0 if packed else 1)
    if role in ("state", "lengths"):
        return merged(0)
    if role == "reset":
        return merged(1)
    if role in WEIGHT_RANKS:
        grouped = tensor.dim() - (dim is not None) > WEIGHT_RANKS[role]
        if dim is None and not grouped:
            return tensor  # shared
        if not grouped and groups > 0:  # the same for groups that other tensors have
            tensor = tensor.movedim(dim, 0)  # type: ignore[arg-type]
            return tensor.expand(groups, *tensor.shape).flatten(0, 1)
        return merged(0) if grouped else tensor.movedim(dim, 0)  # type: ignore[arg-type]
    if role == "batch_sizes" and dim is None:
        return tensor * batch
    unsupported = "batch_sizes" if role == "batch_sizes" else "jagged input"
    raise NotImplementedError(
        f"fastrnn: vmap over {unsupported} is not supported; pad the input and give lengths="
    )


def _roles(table: Sequence[TensorInfo]) -> list[_Role]:
    return [info.role for info in table]


def _gradient_roles(facts: CellFacts) -> list[_Role]:
    return [role if role not in WEIGHT_RANKS else "gradient" for role in _roles(facts.tensors)]


def _set_vmap_rule(
    function: type[torch.autograd.Function],
    roles: Callable[[CellFacts], tuple[list[_Role], list[_Role]]],
    needs_weights: Callable[[Sequence[Any], CellFacts], bool] = lambda args, facts: False,
) -> None:
    """Let a Function, whose first argument is the cell, have a vmap rule.

    Roles gives those of the arguments and of the results; "groups" is a role, too. Where gradients
    of weights are computed, each batch entry has its own: needs_weights tells from the arguments.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        batch, facts = info.batch_size, CELLS[args[0]]
        argument_roles, result_roles = roles(facts)
        packed = args[argument_roles.index("batch_sizes")] is not None
        groups = args[argument_roles.index("groups")]
        in_groups = groups > 0 or needs_weights(args, facts)
        in_groups |= any(
            role in WEIGHT_RANKS and dim is not None
            for role, dim in zip(argument_roles, in_dims, strict=True)
        )
        folded = [
            _fold(batch, role, packed, groups, arg, dim) if isinstance(arg, Tensor) else arg
            for role, arg, dim in zip(argument_roles, args, in_dims, strict=True)
        ]
        folded[argument_roles.index("groups")] = max(groups, 1) * batch if in_groups else 0
        results, dims = [], []
        for role, result in zip(result_roles, function.apply(*folded), strict=True):
            dim: int | None = 1 if role == "state" or packed else 2
            if role == "gradient":
                dim = 1 if groups > 0 else 0
            if result.shape == (0,):
                dim = None  # not computed
            elif dim:
                result = result.unflatten(dim - 1, (result.size(dim - 1) // batch, batch))
            results.append(result)
            dims.append(dim)
        return tuple(results), tuple(dims)

    function.vmap = staticmethod(rule)  # type: ignore[method-assign]


def _with_batched_grads(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Let a Function's backward take the batches of ``torch.autograd.grad(is_grads_batched=True)``.

    They come in the form that was before torch.func, whose vmap knows no rule of a Function.
    """

    @functools.wraps(backward)
    def taking_batches(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            return backward(ctx, *grads)
        batched = [i for i, grad in enumerate(grads) if is_old_batch(grad)]
        if not batched:
            return backward(ctx, *grads)

        def of_one(*some: Tensor) -> dict[int, Tensor]:
            every = list(grads)
            for index, grad in zip(batched, some, strict=True):
                every[index] = grad
            return {i: g for i, g in enumerate(backward(ctx, *every)) if g is not None}

        gradients = in_old_batches(of_one, [grads[i] for i in batched])  # type: ignore[misc]
        return tuple(gradients.get(i) for i in range(len(ctx.needs_input_grad)))

    return taking_batches


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


def load_kernels(cell: str, dtype: torch.dtype, *, second_order: bool = False) -> None:
    """Load a user's cell's kernels; those on dual numbers are kernels of their own.

    Raises:
        CannotCompile: there are none, and none can be made here.
    """
    if cell not in USER_CELLS:
        return
    # Else torch.export and torch.jit.trace write into a graph what is asked here.
    with untraced(), without_modes():
        compiler.ensure(USER_CELLS[cell], dtype, second_order=second_order)


def _tangents(results: Iterable[Tensor], dtypes: Iterable[torch.dtype]) -> tuple[Tensor, ...]:
    tangents = []
    for result, dtype in zip(results, dtypes, strict=True):
        real = result if not result.is_complex() else result.imag
        tangents.append(real.to(dtype).contiguous())
    return tuple(tangents)


def _result_dtypes(facts: CellFacts, input: Tensor) -> list[torch.dtype]:
    """The dtypes of the differentiable results."""
    return [
        accumulate_dtype(input.dtype) if result.name == "cells" else input.dtype
        for result in facts.differentiable
    ]


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


_scan_op = torch.ops.fastrnn.scan.default
_scan_backward_op = torch.ops.fastrnn.scan_backward.default
_bidirectional_scan_op = torch.ops.fastrnn.bidirectional_scan.default
_bidirectional_scan_backward_op = torch.ops.fastrnn.bidirectional_scan_backward.default


def _run(
    op: Any, call: ScanCall, schedule: Sequence[Tensor | None], tensors: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The results of a forward op, in eager mode."""
    cell, present, *flags = call
    return below_autograd(op, cell, tensors, present, *schedule, *flags)


# --- the Functions --------------------------------------------------------------------------------
#
# Autograd ignores tensors inside lists, so the lists of the ops lie flat in the Functions'
# arguments; the cell, which is always the first, says how long they are.
#
# Each reads ctx.saved_tensors once: torch.utils.checkpoint gives them out once, and hooks that
# fetch them from afar would fetch them twice.


class _Scan(torch.autograd.Function):
    """The results of scan, from the cell, its tensors, the schedule and scan's other arguments."""

    @staticmethod
    def op_arguments(args: Sequence[Any]) -> tuple[Any, ...]:
        tensors, others = split(args[1:], len(CELLS[args[0]].tensors))
        return (args[0], *without_absent(tensors), *others)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(below_autograd(torch.ops.fastrnn.scan, *_Scan.op_arguments(args)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        setup_scan(ctx, _Scan.op_arguments(inputs), output)
        ctx.save_for_forward(*inputs[1 : 1 + len(CELLS[ctx.call.cell].tensors) + len(SCHEDULE)])
        _Scan.mark_constants(ctx, output)

    @staticmethod
    def mark_constants(ctx: Any, results: Sequence[Tensor]) -> None:
        facts = CELLS[ctx.call.cell]
        seen, each = facts.differentiable_at, len(facts.results)
        if facts.has_cell_state and not ctx.call.all_states:
            seen = seen[:-1]  # the cell states are the last
        ctx.mark_non_differentiable(*[r for i, r in enumerate(results) if i % each not in seen])

    @staticmethod
    @_with_batched_grads
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs, others = split(ctx.needs_input_grad[1:], len(CELLS[ctx.call.cell].tensors))
        of_tensors = chosen(needs, ctx.call.present)
        call = scan_backward_call(ctx.call, ctx.saved_tensors, grads, of_tensors)
        gradients = where_needed(_Scan.gradients_in_graph(call), needs)
        return (None, *gradients, *(None,) * len(others))

    @staticmethod
    def gradients_in_graph(call: ScanBackwardCall) -> list[Tensor | None]:
        """The gradients of all of the cell's tensors, as a node of the graph."""
        tensors = with_absent(CELLS[call.cell].tensors, call.tensors, call.present)
        gradients = _ScanBackward.apply(
            call.cell, *call.grads, *tensors, call.lengths, call.batch_sizes, call.offsets,
            call.reset, call.reverse, *call.saved, tuple(call.needs), call.groups, call.rounds_to,
            call.numbers,
        )  # fmt: skip
        return _sum_groups(gradients, tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        call = ctx.call
        facts = CELLS[call.cell]
        tensors, schedule = split(ctx.saved_tensors, len(facts.tensors))
        of_results = _ScanTangent.apply(
            call.cell, *tensors, *tangents[1 : 1 + len(tensors)], *schedule, call.reverse,
            call.all_states, call.groups, call.numbers,
        )  # fmt: skip
        by_name = named(facts.differentiable, of_results)
        if not call.all_states:
            by_name["cells"] = None
        return tuple(by_name.get(result.name) for result in facts.results)

    vmap: Any  # set below, as it calls the Function


class _EagerScan(torch.autograd.Function):
    """_Scan outside of every transform: the results of scan from a ScanCall, the schedule and the
    tensors that are there.

    Half of a step is what Python does for it: each argument takes time, so absent tensors are none,
    and a Function in torch's newer style, with setup_context, would look up its signature.
    """

    @staticmethod
    def forward(ctx: Any, call: ScanCall, *tensors: Any) -> tuple[Tensor, ...]:
        schedule, there = split(tensors, len(SCHEDULE))
        results = _run(_scan_op, call, schedule, there)
        keep_for_backward(ctx, call, [(tensors, results)])
        _Scan.mark_constants(ctx, results)
        return tuple(results)

    @staticmethod
    @_with_batched_grads
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # With create_graph the gradient is a node of the graph.
        others, needs = split(ctx.needs_input_grad, 1 + len(SCHEDULE))
        call = scan_backward_call(ctx.call, ctx.saved_tensors, grads, needs)
        if _is_in_graph():
            gradients = _Scan.gradients_in_graph(call)
        else:
            gradients = below_autograd(_scan_backward_op, *call)
        return (*(None,) * len(others), *where_needed(chosen(gradients, ctx.call.present), needs))


class _EagerBidirectionalScan(torch.autograd.Function):
    """_EagerScan of both directions of a layer, by an op that may run them side by side: from the
    ScanCall of the reverse one, the schedule, and the tensors of both, the reverse one's first.

    It does what the nodes of two scans do, the forward one's first, and their gradients add up in
    the same order: that of the reverse one, which autograd runs first, comes first.
    """

    @staticmethod
    def forward(ctx: Any, call: ScanCall, *tensors: Any) -> tuple[Tensor, ...]:
        schedule, there = split(tensors, len(SCHEDULE))
        results = _run(_bidirectional_scan_op, call, schedule, there)
        given = [(*schedule, *own) for own in halves(there)]
        scans = list(zip(given, halves(results), strict=True))
        keep_for_backward(ctx, call, reversed(scans))
        _Scan.mark_constants(ctx, results)
        return tuple(results)

    @staticmethod
    @_with_batched_grads
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        others, needs = split(ctx.needs_input_grad, 1 + len(SCHEDULE))
        forward, reverse = halves(ctx.saved_tensors)
        of_scans = zip((reverse, forward), halves(grads), halves(needs), strict=True)
        calls = (ctx.call, ctx.call._replace(reverse=False))
        first, second = (
            scan_backward_call(call, *of_scan)
            for call, of_scan in zip(calls, of_scans, strict=True)
        )
        gradients: Sequence[Sequence[Any]]
        if _is_in_graph():
            gradients = _Scan.gradients_in_graph(first), _Scan.gradients_in_graph(second)
        else:
            op = _bidirectional_scan_backward_op
            gradients = halves(below_autograd(op, *first.beside(second)))
        of_tensors = [g for each in gradients for g in chosen(each, ctx.call.present)]
        return (*(None,) * len(others), *where_needed(of_tensors, needs))


def _is_in_graph() -> bool:
    """Whether a gradient that is computed now may be differentiated, or is traced."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or bool(transforms())


class _ShortCall(NamedTuple):
    """A short scan that was run."""

    scan: Scan
    weights: Sequence[Tensor]  # if they can be shared; others would live as long as a result
    shared: SharedWeights | None  # that the weights were taken from

    def shared_with_next(self, weights: Sequence[Tensor]) -> SharedWeights | None:
        """What a step takes these weights from that begins with this call's final state."""
        if self.shared is not None and self.shared.are(weights):
            return self.shared
        return SharedWeights(weights) if same(self.weights, weights) else None


class _ShortScan(torch.autograd.Function):
    """A short scan whose results are there already: its node of the graph."""

    @staticmethod
    def forward(ctx: Any, call: _ShortCall, results: tuple[Any, Any], *tensors: Tensor) -> Any:
        ctx.call = call
        ctx.set_materialize_grads(False)
        seen, saved = results
        ctx.save_for_backward(*tensors, *saved)
        return seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if _is_in_graph():
            return _ShortScan.backward_in_graph(ctx, *grads)
        call, needs = ctx.call, ctx.needs_input_grad[2:]
        tensors, saved = split(ctx.saved_tensors, len(needs))
        # Compiled autograd comes with a node of its own, and adds up what nodes return.
        is_own = type(ctx) is _SHORT_NODE
        shared = call.shared if is_own else None
        gradients = call.scan.backward(grads, tensors, saved, needs, shared)
        if gradients is None:
            return _ShortScan.backward_in_graph(ctx, *grads)
        return (None, None, *gradients)

    @staticmethod
    @_with_batched_grads
    def backward_in_graph(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradients as a node of the graph, by the ops, which take all of a cell's sequences
        with a dimension of time, and a layer's states without one of layers."""
        scan, needs = ctx.call.scan, ctx.needs_input_grad[2:]
        tensors, saved = split(ctx.saved_tensors, len(needs))
        facts = CELLS[scan.cell]
        table = [info for info in facts.tensors if info.name in scan.names]
        role = "state" if scan.is_layer else "sequence"
        change, back = (
            (Tensor.squeeze, Tensor.unsqueeze)
            if scan.is_layer
            else (Tensor.unsqueeze, Tensor.squeeze)
        )

        def changed(infos: Sequence[TensorInfo], values: Sequence[Any], how: Any) -> list[Any]:
            return [
                how(value, 0) if info.role == role and value is not None else value
                for info, value in zip(infos, values, strict=True)
            ]

        resolved = [grad if grad is None else grad.resolve_neg() for grad in grads]
        resolved = resolved if scan.is_layer else [None, *resolved]
        resolved = [*resolved, None] if facts.has_cell_state else resolved
        kept = [info for info in facts.saved_results if info.differentiable or not scan.recompute]
        of_saved = changed(kept, saved, change)
        if scan.recompute and facts.saved:
            of_saved[1:1] = [saved[0].new_empty(0)]  # in place of the gates
        there = changed(table, tensors, change)
        flat = FlatWeights(scan.kinds, scan.numbers, scan.extras)
        call = _plain_call(scan.cell, flat, scan.reverse, scan.recompute)
        needed = [bool(need) for need in with_absent(facts.tensors, needs, call.present)]
        gradients = _Scan.gradients_in_graph(
            ScanBackwardCall._make((
                scan.cell, changed(facts.differentiable, resolved, change), there, call.present,
                *_NO_SCHEDULE, scan.reverse, of_saved, needed, 0, "", scan.numbers,
            ))
        )  # fmt: skip
        of_tensors = where_needed(chosen(gradients, call.present), needs)
        return (None, None, *changed(table, of_tensors, back))


class _ScanBackward(torch.autograd.Function):
    """Gradients of a scan's tensors, from the arguments of scan_backward."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        cell, *others = args
        facts = CELLS[cell]
        grads, tensors, (*schedule, reverse), saved, (needs, *others) = split(
            others, len(facts.differentiable), len(facts.tensors), len(SCHEDULE) + 1,
            len(facts.saved_results),
        )  # fmt: skip
        return tuple(
            below_autograd(
                torch.ops.fastrnn.scan_backward,
                *(cell, list(grads), *without_absent(tensors), *schedule, reverse),
                *(list(saved), list(needs), *others),
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, *others = inputs
        facts = CELLS[ctx.cell]
        kept, (ctx.reverse, *_, ctx.needs, ctx.groups, _, ctx.numbers) = split(
            others, len(facts.differentiable) + len(facts.tensors) + len(SCHEDULE)
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)
        absent = [result for result, need in zip(output, ctx.needs, strict=True) if not need]
        ctx.mark_non_differentiable(*absent)

    @staticmethod
    def second_order(
        ctx: Any,
        saved: Sequence[Tensor | None],
        grad_tangents: Sequence[Tensor | None],
        tangents: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        facts = CELLS[ctx.cell]
        grads, tensors, schedule = split(saved, len(facts.differentiable), len(facts.tensors))
        return _SecondOrder.apply(
            ctx.cell, *grads, *grad_tangents, *tensors, *tangents, *schedule, ctx.reverse,
            tuple(needs), ctx.groups, ctx.numbers,
        )  # fmt: skip

    @staticmethod
    @_with_batched_grads
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        facts = CELLS[ctx.cell]
        grads_count, count = len(facts.differentiable), len(facts.tensors)
        needs_grads, needs, others = split(ctx.needs_input_grad[1:], grads_count, count)
        saved = ctx.saved_tensors
        no_tangents = (None,) * grads_count
        results = _ScanBackward.second_order(ctx, saved, no_tangents, cotangents, needs)
        of_tensors, of_grads = split(results, count)
        of_tensors = _sum_groups(of_tensors, saved[grads_count : grads_count + count])
        return (
            None, *where_needed(of_grads, needs_grads), *where_needed(of_tensors, needs),
            *(None,) * len(others),
        )  # fmt: skip

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        facts = CELLS[ctx.cell]
        grad_tangents, tensor_tangents, _ = split(
            tangents[1:], len(facts.differentiable), len(facts.tensors)
        )
        results = _ScanBackward.second_order(
            ctx, ctx.saved_tensors, grad_tangents, tensor_tangents, ctx.needs
        )
        return tuple(where_needed(results[: len(facts.tensors)], ctx.needs))

    vmap: Any


class _ScanTangent(torch.autograd.Function):
    """Tangents of the differentiable results, from the cell, its tensors, their tangents, the
    schedule, reverse, all_states, groups and the cell's numbers."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        cell, *others = args
        facts = CELLS[cell]
        count = len(facts.tensors)
        tensors, tangents, schedule, (reverse, all_states, groups, numbers) = split(
            others, count, count, len(SCHEDULE)
        )
        load_kernels(cell, tensors[0].dtype, second_order=True)
        results = torch.ops.fastrnn.scan(
            cell,
            *without_absent(_duals(tensors, tangents)),
            *schedule,
            reverse,
            save=False,
            all_states=all_states,
            groups=groups,
            numbers=numbers,
        )
        return _tangents(
            chosen(results, facts.differentiable_at), _result_dtypes(facts, tensors[0])
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, *kept, ctx.reverse, _, ctx.groups, ctx.numbers = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(*(result for result in output if result.shape == (0,)))

    @staticmethod
    @_with_batched_grads
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        facts = CELLS[ctx.cell]
        count = len(facts.tensors)
        tensors, tangents, schedule = split(ctx.saved_tensors, count, count)
        needs, needs_tangents, others = split(ctx.needs_input_grad[1:], count, count)
        results = _Scan.apply(
            ctx.cell, *tensors, *schedule, ctx.reverse, True, False, False, ctx.groups, "",
            ctx.numbers,
        )  # fmt: skip
        of_tangents = _ScanBackward.apply(
            ctx.cell, *grads, *tensors, *schedule, ctx.reverse,
            *chosen(results, facts.saved_at), tuple(needs_tangents), ctx.groups, "",
            ctx.numbers,
        )  # fmt: skip
        of_tensors = _SecondOrder.apply(
            ctx.cell, *grads, *(None,) * len(grads), *tensors, *tangents, *schedule, ctx.reverse,
            tuple(needs), ctx.groups, ctx.numbers,
        )[:count]  # fmt: skip
        return (
            None, *where_needed(_sum_groups(of_tensors, tensors), needs),
            *where_needed(_sum_groups(of_tangents, tangents), needs_tangents),
            *(None,) * len(others),
        )  # fmt: skip

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        _refuse_nested_forward_mode()

    vmap: Any


class _SecondOrder(torch.autograd.Function):
    """Tangents of the gradients of a scan's tensors, then of its differentiable results; from the
    cell, the results' gradients and their tangents, the tensors and theirs, the schedule, reverse,
    needs, groups and the cell's numbers."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        cell, *others = args
        facts = CELLS[cell]
        grads_count, count = len(facts.differentiable), len(facts.tensors)
        grads, grad_tangents, tensors, tangents, schedule, flags = split(
            others, grads_count, grads_count, count, count, len(SCHEDULE)
        )
        reverse, needs, groups, numbers = flags
        load_kernels(cell, tensors[0].dtype, second_order=True)
        duals = without_absent(_duals(tensors, tangents))
        results = torch.ops.fastrnn.scan(
            cell, *duals, *schedule, reverse, save=True, all_states=True, groups=groups,
            numbers=numbers,
        )  # fmt: skip
        gradients = torch.ops.fastrnn.scan_backward(
            cell, _duals(grads, grad_tangents), *duals, *schedule, reverse,
            chosen(results, facts.saved_at), list(needs), groups, numbers=numbers,
        )  # fmt: skip
        dtype = tensors[0].dtype
        return (
            *_tangents(gradients, [dtype] * count),
            *_tangents(
                chosen(results, facts.differentiable_at),
                _result_dtypes(facts, tensors[0]),
            ),
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


def _needs_weights(at: int) -> Callable[[Sequence[Any], CellFacts], bool]:
    """Whether `needs`, the argument at an index from the end, has a weight."""
    return lambda args, facts: any(
        need and info.weight_rank is not None
        for need, info in zip(args[at], facts.tensors, strict=True)
    )


def _scan_roles(facts: CellFacts) -> tuple[list[_Role], list[_Role]]:
    flags = [None] * 4
    arguments = [None, *_roles(facts.tensors), *SCHEDULE, *flags, "groups", None, None]
    return arguments, _roles(facts.results)


def _backward_roles(facts: CellFacts) -> tuple[list[_Role], list[_Role]]:
    grads, saved = _roles(facts.differentiable), _roles(facts.saved_results)
    arguments = [None, *grads, *_roles(facts.tensors), *SCHEDULE, None, *saved]
    return [*arguments, None, "groups", None, None], _gradient_roles(facts)


def _tangent_roles(facts: CellFacts) -> tuple[list[_Role], list[_Role]]:
    arguments = [None, *_roles(facts.tensors) * 2, *SCHEDULE, None, None, "groups", None]
    return arguments, _roles(facts.differentiable)


def _second_order_roles(facts: CellFacts) -> tuple[list[_Role], list[_Role]]:
    grads = _roles(facts.differentiable)
    tensors = _roles(facts.tensors) * 2
    arguments = [None, *grads * 2, *tensors, *SCHEDULE, None, None, "groups", None]
    return arguments, [*_gradient_roles(facts), *grads]


_set_vmap_rule(_Scan, _scan_roles)
_set_vmap_rule(_ScanBackward, _backward_roles, _needs_weights(-4))
_set_vmap_rule(_ScanTangent, _tangent_roles)
_set_vmap_rule(_SecondOrder, _second_order_roles, _needs_weights(-3))


def _refuse_nested_forward_mode() -> None:
    raise NotImplementedError(
        "fastrnn: torch computes forward mode within forward mode (jvp of jvp, jacfwd of jacfwd) "
        "wrongly through any autograd.Function; take one of the two in reverse mode (jacrev, grad)"
    )


# --- the way in -----------------------------------------------------------------------------------


def _in_graph(*args: Any) -> tuple[Tensor, ...]:
    """What torch.compile takes as one node, without looking inside."""
    return _Scan.apply(*args)


# To ask for it as late as this keeps `import fastrnn` from importing torch._dynamo, which takes
# longer than torch itself.
@constant_in_compile
def _allow_in_graph() -> None:
    torch.compiler.allow_in_graph(_in_graph)


def _savable(tensor: Tensor | None) -> Tensor | None:
    """Autograd saves no tensor that was made under inference_mode, but a copy of it."""
    return tensor if tensor is None or not tensor.is_inference() else tensor.clone()


# torch.compile, too, takes the setting as it is when it traces.
@constant_in_compile
def _tf32_allowed() -> bool:
    """What nn.RNN, nn.GRU and nn.LSTM follow on a GPU. (``allow_tf32`` raises after mixed use.)"""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _allowed_rounding(input: Tensor) -> str:
    """What products of float32 may round their factors to where the input is; empty: nothing."""
    if input.dtype != torch.float32:
        return ""
    if input.device.type == "cuda":
        return "tf32" if _tf32_allowed() else ""
    return "bf16" if rounds_to_bfloat16() else ""


def rounds(cell: str, weight_ih: Tensor) -> bool:
    """Whether a layer on this CPU rounds the factors of its products."""
    if not rounds_to_bfloat16() or weight_ih.dtype != torch.float32 or cell in USER_CELLS:
        return False
    return _cpu_rounds(cell, weight_ih.size(0) // CELLS[cell].input_gates)


@constant_in_compile
def _cpu_rounds(cell: str, hidden_size: int) -> bool:
    with untraced():
        return torch.ops.fastrnn.cpu_rounds(cell, hidden_size)


class Direction(NamedTuple):
    """What a direction of a layer has of its own, as :func:`scan` takes it."""

    h_0: Tensor
    c_0: Tensor | None
    weights: ScanWeights
    reset_h: Tensor | None = None
    reset_c: Tensor | None = None


ScanResults: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def scan(
    cell: str,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: ScanWeights,
    *,
    extras: Sequence[Tensor] = (),
    numbers: Sequence[float] = (),
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    offsets: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
    all_states: bool = False,
    rounds_to: str | None = None,
) -> ScanResults:
    """Run one layer in one direction over a whole sequence.

    Args:
        cell: a name in ``CELLS``; a user's cell has S states besides h, an LSTM 1.
        input: (T, N, I), or (rows, I) when packed or jagged, in a dtype of ``DTYPES``.
        h_0: (N, R), the initial hidden state.
        c_0: (N, S * H), the initial cell states side by side, None without such.
        weights: of this layer and direction.
        extras: the extra inputs of a user's cell, (T, N, H) or (rows, H) each, of any strides.
        numbers: those of a user's cell.
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
        rounds_to: what products of float32 may round their factors to: ``"tf32"`` on a GPU,
            ``"bf16"`` on a CPU, ``""`` nothing; None is what torch's settings allow.

    Returns:
        y (T, N, R) or (rows, R), 0 at steps a sample does not run; h_n (N, R); c_n (N, S * H) or
        None; with ``all_states``, c of every step (T, N, S * H) or (rows, S * H), float32 for half
        types, else None.

    Raises:
        NotImplementedError: on a device without a kernel; for a derivative there is no rule for.
        RuntimeError: where shapes, dtypes or devices do not fit.
    """
    tensors = _in_table(cell, input, Direction(h_0, c_0, weights, reset_h, reset_c), extras)
    facts = CELLS[cell]
    all_states = all_states and facts.has_cell_state
    if rounds_to is None:
        rounds_to = _allowed_rounding(input)
    grad = torch.is_grad_enabled()
    schedule = (lengths, batch_sizes, offsets, reset)

    def flags(save: bool) -> tuple[Any, ...]:
        return (reverse, save, recompute, all_states, 0, rounds_to, numbers)

    def function_arguments(save: bool) -> tuple[Any, ...]:
        return (cell, *tensors, *schedule, *flags(save))

    def op_arguments(save: bool) -> tuple[Any, ...]:
        return (cell, *without_absent(tensors), *schedule, *flags(save))

    results: Sequence[Tensor]
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        lists = without_absent(tensors)
        results = scan_in_jit_trace()(
            cell, *lists, *schedule, reverse, recompute, all_states, 0, rounds_to, list(numbers)
        )
    elif torch.compiler.is_exporting():
        results = torch.ops.fastrnn.scan(*op_arguments(grad))
    elif torch.compiler.is_compiling():
        _allow_in_graph()
        results = _in_graph(*function_arguments(grad))
    elif around := transforms():
        if around.count(TransformType.Jvp) > 1:
            _refuse_nested_forward_mode()
        results = _Scan.apply(*function_arguments(grad or TransformType.Grad in around))
    elif in_forward_mode():
        results = _Scan.apply(*function_arguments(grad))
    elif grad and any(t is not None and t.requires_grad for t in tensors):
        there, present = without_absent(tensors)
        call = ScanCall(cell, present, *flags(True))
        results = _EagerScan.apply(call, *map(_savable, (*schedule, *there)))
    else:
        results = below_autograd(torch.ops.fastrnn.scan, *op_arguments(False))
    return _seen_of(facts, results, all_states)


def _in_table(
    cell: str, input: Tensor, own: Direction, extras: Sequence[Tensor]
) -> list[Tensor | None]:
    """The tensors of a scan in the order of the cell's table."""
    if input.device.type not in DEVICES:
        here = " and ".join(device for device in DEVICES if device != "meta")
        raise NotImplementedError(
            f"fastrnn has no kernel for device '{input.device}' in this build, only for {here}; "
            "move the module and its input, or use torch.nn's module there"
        )
    by_name = {
        "input": input, **own._asdict(), **own.weights._asdict(),
        **dict(zip(extra_names(len(extras)), extras, strict=True)),
    }  # fmt: skip
    del by_name["weights"]
    tensors = [by_name.pop(info.name, None) for info in CELLS[cell].tensors]
    for name, tensor in by_name.items():
        if tensor is not None:
            raise RuntimeError(f"fastrnn: {cell} has no {name}")
    return tensors


def _seen_of(facts: CellFacts, results: Sequence[Tensor], all_states: bool) -> ScanResults:
    """What a scan's caller sees of its results."""
    of = named(facts.results, results)
    return of["y"], of["h_n"], of.get("c_n"), of["cells"] if all_states else None


def bidirectional_scan(
    cell: str, input: Tensor, directions: Sequence[Direction], **options: Any
) -> list[ScanResults] | None:
    """:func:`scan` of a layer's forward and of its reverse direction by one node of the graph,
    whose op runs them side by side, on a thread each, where that suits them.

    Args:
        cell, input: as for :func:`scan`.
        directions: what each has of its own, the forward one first.
        options: what :func:`scan` takes by name, but ``reverse`` and what a direction has.

    Returns:
        what :func:`scan` returns, for each direction; or None where a scan follows the other: where
        :func:`may_run_side_by_side` says no, something looks at the call, or no gradient of a
        direction is needed.
    """
    if is_observed() or not torch.is_grad_enabled():
        return None
    recompute, extras = options.get("recompute", False), options.get("extras", ())
    if not may_run_side_by_side(input, directions[0].weights.weight_hh, recompute):
        return None
    (there, present), (more, of_more) = (
        without_absent(_in_table(cell, input, own, extras)) for own in directions
    )
    is_plain = PLAIN.issuperset(map(type, (*there, *more))) and present == of_more
    if not (is_plain and direct.need_grad(*there) and direct.need_grad(*more)):
        return None
    facts, rounds_to = CELLS[cell], options.get("rounds_to")
    if rounds_to is None:
        rounds_to = _allowed_rounding(input)
    all_states = options.get("all_states", False) and facts.has_cell_state
    numbers = options.get("numbers", ())
    call = ScanCall(cell, present, True, True, recompute, all_states, 0, rounds_to, numbers)
    schedule = [options.get(name) for name in SCHEDULE]
    tensors = map(_savable, (*schedule, *more, *there))
    results = _EagerBidirectionalScan.apply(call, *tensors)
    return [_seen_of(facts, each, all_states) for each in reversed(halves(results))]


def may_run_side_by_side(input: Tensor, weight_hh: Tensor, recompute: bool) -> bool:
    """Whether training may run both directions of a layer at once; for eager mode.

    There must be a thread for each, and a core's cache for the recurrent weights of each. All that
    both save lives until both have used it, which who recomputes gates would not want.
    """
    is_near = weight_hh.nbytes <= _near_bytes()
    return input.is_cpu and is_near and not recompute and torch.get_num_threads() > 1


@functools.cache
def _near_bytes() -> int:
    return torch.ops.fastrnn.cpu_near_bytes()


class FlatWeights(NamedTuple):
    """The weights of a layer and direction that are there, in the order of :class:`ScanWeights`,
    and what a user's cell has besides."""

    kinds: tuple[str, ...]
    numbers: tuple[float, ...] = ()
    extras: int = 0  # inputs beside x, which follow the weights


def scan_flat(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    reverse: bool,
    recompute: bool,
    flat: FlatWeights | None = None,
    saves: bool = True,
) -> Sequence[Tensor]:
    """:func:`scan` without a question, where nothing transforms the call; a node of the graph if
    it saves for backward.

    flat says what the weights are, with the extra inputs behind them; None: those of the library's
    cells, by their count. Returns y, h_n and, of a cell with states besides h, c_n.
    """
    call = _plain_call(cell, flat or _flat_weights(len(weights)), reverse, recompute)
    tensors = (input, *states, *weights)
    if saves:
        results = _EagerScan.apply(call, *_NO_SCHEDULE, *tensors)
    else:
        results = _run(_scan_op, call._replace(save=False), _NO_SCHEDULE, tensors)
    return results[: 2 + CELLS[cell].has_cell_state]


def bidirectional_scan_flat(
    cell: str,
    input: Tensor,
    states: Sequence[Sequence[Tensor]],
    weights: Sequence[Sequence[Tensor]],
    flat: FlatWeights | None = None,
) -> list[Sequence[Tensor]]:
    """As :func:`bidirectional_scan`, where :func:`scan_flat` may be called and saves; states and
    weights are those of each direction, the forward one first."""
    call = _plain_call(cell, flat or _flat_weights(len(weights[0])), True, False)
    forward, reverse = ((input, *h, *w) for h, w in zip(states, weights, strict=True))
    results = _EagerBidirectionalScan.apply(call, *_NO_SCHEDULE, *reverse, *forward)
    return [each[: 2 + CELLS[cell].has_cell_state] for each in reversed(halves(results))]


def short_scan(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    is_layer: bool,
    weights: Sequence[Tensor],
    reverse: bool,
    recompute: bool,
    flat: FlatWeights | None = None,
    saves: bool = True,
) -> Sequence[Tensor] | None:
    """As :func:`scan_flat` past torch's dispatcher, or None: the call does not fit. Of a cell,
    input (N, I), extra inputs (N, H) and the final states alone; of a layer, states (1, N,
    columns)."""
    flat = flat or _flat_weights(len(weights))
    scan = direct.scan(cell, *flat, is_layer, reverse, recompute)
    results = scan.forward(input, *states, *weights, saves=saves)
    if results is None:
        return None
    if not saves:
        return results[0]
    extras: Sequence[Tensor] = ()
    if flat.extras:
        weights, extras = split(weights, len(flat.kinds))
    before: Any = states[0].grad_fn
    goes_on = type(before) is _SHORT_NODE
    can_share = all(weight.requires_grad and weight.is_leaf for weight in weights)
    shared: SharedWeights | None = None
    if can_share and goes_on:
        shared = before.call.shared_with_next(weights)
    taken = weights if shared is None else shared.tensors
    call = _ShortCall(scan, tuple(weights) if can_share else (), shared)
    return _apply_short_scan(call, results, input, *states, *taken, *extras)


_SHORT_NODE = _ShortScan._backward_cls  # the type of its nodes
# What Function.apply calls where no transform is active, past 2 µs of its looking for one.
_apply_short_scan = super(torch.autograd.Function, _ShortScan).apply


_NO_SCHEDULE = (None,) * len(SCHEDULE)


@functools.cache
def _flat_weights(count: int) -> FlatWeights:
    return FlatWeights(tuple(weight_kinds(bias=count >= 4, projection=count % 2 == 1)))


@functools.lru_cache(maxsize=1024)  # numbers may be others in every call
def _plain_call(cell: str, weights: FlatWeights, reverse: bool, recompute: bool) -> ScanCall:
    """A call with these weights, given states and nothing else."""
    given = {"input", "h_0", "c_0", *weights.kinds, *extra_names(weights.extras)}
    present = [index for index, info in enumerate(CELLS[cell].tensors) if info.name in given]
    return ScanCall(cell, present, reverse, True, recompute, False, 0, "", weights.numbers)
