"""The short way of a call in eager mode on plain tensors, for which the op checks all there is.

Half of all calls run a single step, whose arithmetic takes a few microseconds. This way asks only
whether it may be taken; what does not fit, and every error, is left to the long way, which has the
words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.direct import need_grad
from fastrnn.layouts import layout_of
from fastrnn.library import PLAIN, as_op_states, from_op_states, side_by_side
from fastrnn.ops import (
    CELLS,
    DTYPES,
    FlatWeights,
    ScanWeights,
    bidirectional_scan_flat,
    may_run_side_by_side,
    rounds,
    scan_flat,
    short_scan,
)
from fastrnn.torch_internals import is_eager

__all__ = [
    "has_kernel",
    "over_layers",
    "plain_states",
    "run_cell",
    "run_layers",
    "run_packed_cell",
    "run_packed_layers",
    "run_stack",
]

_stack = torch.ops.fastrnn.stack.default
_step = torch.ops.fastrnn.step.default
_packed_stack = torch.ops.fastrnn.packed_stack.default
_packed_step = torch.ops.fastrnn.packed_step.default


def has_kernel(input: Tensor) -> bool:
    """Complex tensors, which the op takes for dual numbers, have none."""
    return input.is_cpu and input.dtype in DTYPES


def plain_states(hx: Any, cell_states: int) -> tuple[Tensor, ...] | None:
    """hx as a tuple, empty if it is None; None if it is anything but plain tensors."""
    if hx is None:
        return ()
    if not cell_states:
        return (hx,) if type(hx) in PLAIN else None
    is_nest = type(hx) in (tuple, list) and len(hx) == 1 + cell_states
    if is_nest and PLAIN.issuperset(map(type, hx)):
        return tuple(hx)
    return None


def run_layers(
    cell: str,
    input: Any,
    hx: Any,
    weights: Sequence[Tensor],
    *,
    num_layers: int,
    directions: int,
    batch_first: bool,
    reverse: bool,
    recompute: bool,
    flat: FlatWeights | None = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Any] | None:
    """What :func:`fastrnn.functional.run` returns for these arguments, or None: take that.

    flat says what the weights of a layer and direction of a user's cell are, which has its kernels;
    extra are its extra inputs in its order.
    """
    if not (is_eager() and type(input) in PLAIN and PLAIN.issuperset(map(type, weights))):
        return None
    facts = CELLS[cell]
    states = plain_states(hx, facts.cell_states)
    rank = input.dim()
    if states is None or rank not in (2, 3) or input.is_nested or not has_kernel(input):
        return None
    entries = num_layers * directions
    if any(state.dim() != rank or state.size(0) != entries for state in states):
        return None
    is_time_first = rank == 3 and not batch_first
    finals: Sequence[Tensor]
    extras = _wide_extras(cell, input, batch_first, extra, weights) if extra else ()
    if extras is None:
        return None
    try:
        if not is_time_first:
            input, states, _ = _time_first(rank, input, states, None)
        states = as_op_states(states)
        saves = torch.is_grad_enabled() and need_grad(input, *states, *weights, *extras)
        if saves or extras:
            if not states:
                states = _zero_states(cell, input, weights, entries)
            output, *finals = _layer_by_layer(
                cell, input, states, weights, extras, entries, directions, reverse, recompute, flat,
                saves,
            )  # fmt: skip
        else:
            numbers = (None, flat.numbers) if flat else ()
            output, *finals = _stack(
                cell, input, states, (), weights, num_layers, directions, None, None, None, None,
                reverse, *numbers,
            )  # fmt: skip
    except RuntimeError:
        return None
    finals = from_op_states(finals, facts.cell_states)
    if not is_time_first:
        output, finals = _as_given(rank, output, finals)
    return output, tuple(finals) if facts.has_cell_state else finals[0]


def _time_first(
    rank: int, input: Tensor, states: tuple[Tensor, ...], reset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """What the ops take of an input (T, I) or (N, T, I): the same with (T, N, I)."""
    if rank == 3:
        return input.transpose(0, 1), states, None if reset is None else reset.transpose(0, 1)
    states = tuple(state.unsqueeze(1) for state in states)
    return input.unsqueeze(1), states, None if reset is None else reset.unsqueeze(1)


def _as_given(
    rank: int, output: Tensor, finals: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """The inverse of it, for results."""
    if rank == 3:
        return output.transpose(0, 1), finals
    return output.squeeze(1), [final.squeeze(1) for final in finals]


def run_stack(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    reset_states: Sequence[Tensor],
    weights: Sequence[ScanWeights],
    directions: int,
    schedule: Sequence[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Output and final states of all layers by one op, whatever the schedule; None where the layers
    are called one by one: with gradients, or where something looks at the call."""
    flat = [weight for each in weights for weight in each if weight is not None]
    tensors = (input, *states, *reset_states, *flat)
    if not (is_eager() and PLAIN.issuperset(map(type, tensors)) and has_kernel(input)):
        return None
    if (torch.is_grad_enabled() and need_grad(*tensors)) or rounds(cell, weights[0].weight_ih):
        return None
    output, *finals = _stack(
        cell, input, states, reset_states, flat, len(weights) // directions, directions, *schedule,
        reverse,
    )  # fmt: skip
    return output, tuple(finals)


def over_layers(
    input: Tensor,
    entries: int,
    directions: int,
    run: Callable[[Sequence[int], Tensor], Sequence[Sequence[Tensor]]],
    between: Callable[[int, Tensor], Tensor] = lambda layer, output: output,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of stacked layers and their final states, one below the other.

    run(indices of a layer's directions, input) gives the output and the final states
    (1, N, columns) of each; between(layer, output of all directions) what the next layer takes.
    """
    finals: list[Sequence[Tensor]] = []
    for first in range(0, entries, directions):
        outputs = []
        for y, *final in run(range(first, first + directions), input):
            outputs.append(y)
            finals.append(final)
        input = between(first // directions, side_by_side(outputs))
    if entries == 1:
        return input, tuple(finals[0])
    return input, tuple(map(torch.cat, zip(*finals, strict=True)))


def _zero_states(
    cell: str, input: Tensor, weights: Sequence[Tensor], *leading: int
) -> tuple[Tensor, ...]:
    """h and c before a call without states; leading are dimensions before the samples."""
    facts = CELLS[cell]
    H, R = weights[0].size(0) // facts.input_gates, weights[1].size(1)
    sizes = (R, facts.cell_states * H)[: 1 + facts.has_cell_state]
    return tuple(input.new_zeros(*leading, input.size(-2), size) for size in sizes)


def _wide_extras(
    cell: str,
    input: Tensor,
    batch_first: bool,
    extra: Mapping[str, Any],
    weights: Sequence[Tensor],
) -> list[Tensor] | None:
    """The extra inputs of layers, (T, N, H) each, or None: they do not fit."""
    if not PLAIN.issuperset(map(type, extra.values())):
        return None
    H = weights[0].size(0) // CELLS[cell].input_gates
    try:
        layout = layout_of("", input, input, batch_first, None)
        return [layout.extra("", name, value, H) for name, value in extra.items()]
    except (RuntimeError, TypeError, ValueError):
        return None


def _layer_by_layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    extras: Sequence[Tensor],
    entries: int,
    directions: int,
    reverse: bool,
    recompute: bool,
    flat: FlatWeights | None,
    saves: bool,
) -> list[Tensor]:
    """What the op `stack` returns, layer by layer, by a node of the graph for each direction or for
    both if backward is to come."""
    each = len(weights) // entries
    own_weights = [[*weights[i * each : (i + 1) * each], *extras] for i in range(entries)]
    flags = (recompute, flat)

    def run_one(index: int, layer_input: Tensor) -> Sequence[Tensor]:
        own_states = states
        if entries > 1:
            own_states = [state.narrow(0, index, 1) for state in states]
        others = (own_weights[index], reverse or index % directions == 1, *flags, saves)
        results = short_scan(cell, layer_input, own_states, True, *others)
        if results is not None:
            return results
        y, *finals = scan_flat(cell, layer_input, [h.squeeze(0) for h in own_states], *others)
        return y, *(final.unsqueeze(0) for final in finals)

    def run(indices: Sequence[int], layer_input: Tensor) -> Sequence[Sequence[Tensor]]:
        own = [own_weights[index] for index in indices]
        if directions == 1 or not saves or not _are_a_pair(cell, layer_input, own, recompute):
            return [run_one(index, layer_input) for index in indices]
        own_states = [[state[index] for state in states] for index in indices]
        results = bidirectional_scan_flat(cell, layer_input, own_states, own, flat)
        return [(y, *(final.unsqueeze(0) for final in finals)) for y, *finals in results]

    output, finals = over_layers(input, entries, directions, run)
    return [output, *finals]


# Products of inputs and hidden units: up to so many two short calls take less than a longer one.
_MOST_TINY = 1 << 17


def _are_a_pair(
    cell: str, input: Tensor, weights: Sequence[Sequence[Tensor]], recompute: bool
) -> bool:
    """Whether the directions of a layer, each with these weights, train as one node."""
    weight_ih, weight_hh = weights[0][:2]
    if input.numel() * weight_ih.size(0) <= _MOST_TINY * CELLS[cell].input_gates:
        return False
    is_trained = input.requires_grad or all(need_grad(*own) for own in weights)
    return is_trained and may_run_side_by_side(input, weight_hh, recompute)


def run_cell(
    cell: str,
    input: Any,
    states: tuple[Any, ...],
    weights: Sequence[Tensor],
    flat: FlatWeights | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Sequence[Tensor] | None:
    """h' and the other states after one step, where :func:`is_eager` says so, or None: take the
    long way. flat and extra are as of :func:`run_layers` in a single step."""
    if not PLAIN.issuperset(map(type, (input, *states, *weights))):
        return None
    if not has_kernel(input):
        return None
    cell_states = CELLS[cell].cell_states
    try:
        states = as_op_states(states)
        extras: list[Tensor] = []
        if extra:
            wide = _wide_extras(cell, input.unsqueeze(0), False, extra, weights)
            if wide is None:
                return None
            extras = [value.squeeze(0) for value in wide]
        saves = torch.is_grad_enabled() and need_grad(input, *states, *weights, *extras)
        if not saves and not extras:
            numbers = (None, flat.numbers) if flat else ()
            return from_op_states(_step(cell, input, states, weights, *numbers), cell_states)
        batched = input.dim() == 2
        if any(state.shape[:-1] != input.shape[:-1] for state in states):
            return None
        if not batched:
            input, states = input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
        if not states:
            states = _zero_states(cell, input, weights)
        others = (False, False, flat, saves)
        finals = short_scan(cell, input, states, False, [*weights, *extras], *others)
        if finals is None:
            given = [*weights, *(value.unsqueeze(0) for value in extras)]
            _, *finals = scan_flat(cell, input.unsqueeze(0), states, given, *others)
    except (IndexError, RuntimeError):
        return None
    finals = finals if batched else [final.squeeze(0) for final in finals]
    return from_op_states(finals, cell_states)


def run_packed_layers(
    packed: Tensor,
    input: Any,
    hx: Any,
    reset: Any,
    has_cell_state: bool,
    batch_first: bool,
    reverse: bool,
) -> tuple[Tensor, Any] | None:
    """As :func:`run_layers`, of a frozen module, where :func:`is_eager` says so."""
    if type(input) not in PLAIN or input.is_nested:
        return None
    states = plain_states(hx, has_cell_state)
    if states is None or (torch.is_grad_enabled() and need_grad(input, *states)):
        return None
    rank = input.dim()
    if rank not in (2, 3):
        return None
    if reset is not None and (type(reset) is not Tensor or reset.dim() != rank - 1):
        return None
    is_time_first = rank == 3 and not batch_first
    try:
        if not is_time_first:
            input, states, reset = _time_first(rank, input, states, reset)
        h_0, c_0 = (*states, None, None)[:2]
        output, h_n, c_n = _packed_stack(input, h_0, c_0, packed, reset, reverse)
    except (IndexError, RuntimeError):
        return None
    finals: Sequence[Tensor] = (h_n, c_n) if has_cell_state else (h_n,)
    if not is_time_first:
        output, finals = _as_given(rank, output, finals)
    return output, tuple(finals) if has_cell_state else finals[0]


def run_packed_cell(
    packed: Tensor, input: Any, states: Sequence[Any]
) -> tuple[Tensor, Tensor] | None:
    """As :func:`run_cell`, of a frozen cell, where :func:`is_eager` says so."""
    if type(input) not in PLAIN or not PLAIN.issuperset(map(type, states)):
        return None
    if torch.is_grad_enabled() and need_grad(input, *states):
        return None
    h, c = (*states, None, None)[:2]
    try:
        return _packed_step(input, h, c, packed)
    except RuntimeError:
        return None
