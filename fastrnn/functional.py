"""RNN, GRU and LSTM on given weights: the computation of the modules without a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks
from fastrnn.layers import run_stack
from fastrnn.layouts import Layout, layout_of
from fastrnn.library import (
    as_op_states,
    from_op_states,
    side_by_side,
    weight_kinds,
)
from fastrnn.ops import CELLS, CellFacts, ScanWeights

if TYPE_CHECKING:
    from fastrnn.cells import Cell

__all__ = ["AllStates", "detach_state", "gru", "lstm", "rnn"]

Hidden: TypeAlias = Tensor | tuple[Tensor, ...]


class AllStates(NamedTuple):
    """The states after every step, of every layer: one entry a layer, laid out as the output.

    Attributes:
        h: hidden states, (T, N, D * R) each; the last is the output.
        c: cell states of an LSTM, (T, N, D * H) each; of a user's cell with several states besides
            h a tuple of such in each layer's place; None without cell states.
    """

    h: tuple[Any, ...]
    c: tuple[Any, ...] | None


class UserCall(NamedTuple):
    """What a call of a user's cell has that others have not."""

    cell: Cell
    extra: Mapping[str, Any] | None  # by the names of the cell's inputs
    numbers: tuple[float, ...]


def detach_state(state: Any) -> Any:
    """A state, or a nest of tuples and lists of them, cut off from the graph that computed it.

    For truncated backpropagation: what one call returned starts the next, and gradients stop there.

    Args:
        state: a tensor, a tuple or list of states, or None, which stays None.

    Returns:
        The same, without a graph; tensors share their memory with those given.

    Raises:
        TypeError: the state, or a part of it, is of another type.

    Example::

        >>> state = None
        >>> for chunk in sequence.split(100):
        ...     output, state = rnn(chunk, fastrnn.detach_state(state))
    """
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, (tuple, list)):
        parts = [detach_state(each) for each in state]
        named = getattr(type(state), "_make", None)  # of a named tuple, which takes field by field
        return named(parts) if named else type(state)(parts)
    if state is None:
        return None
    value = f" {state!r}" if isinstance(state, (int, float, str)) else ""
    raise TypeError(
        f"detach_state: state must be a tensor, a tuple or list of them, or None, "
        f"got {type(state).__name__}{value}"
    )


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    return_all_states: bool = False,
    recompute: bool = False,
    reverse: bool = False,
) -> Any:
    r"""Elman network, :math:`h' = \phi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`, on given weights.

    L is ``num_layers``, D is 2 if ``bidirectional``, else 1. All tensors share one dtype (float32,
    float64, bfloat16 or float16) and device.

    Args:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: initial hidden state (L * D, N, H), (L * D, 1, H) for one that all samples share, or
            (L * D, H) without a batch; None is zero.
        weights: for each layer and direction in turn ``weight_ih`` (H, I or D * H), ``weight_hh``
            (H, H) and, if ``bias``, ``bias_ih`` (H,) and ``bias_hh`` (H,): the order of
            ``torch.nn.RNN.all_weights``, flattened.
        nonlinearity: :math:`\phi`, ``tanh`` or ``relu``.
        num_layers: stacked layers.
        bias: whether ``weights`` holds biases.
        batch_first: input and output have the batch first; states never do.
        dropout: probability of zeroing an element between layers, in training, by a mask that
            depends on a seed from torch's generator, the layer and the element alone.
        training: whether dropout applies.
        bidirectional: run each layer in both directions, outputs side by side.
        lengths: (N,), integers from 0 to T on CPU, in a tensor, list or array. Outputs at steps
            past a sample's length are 0, its final state is that of its last step (of length 0:
            its initial state), and the reverse direction starts there. With CUDA input they may lie
            there, too: then nothing waits to check them, and values outside of [0, T] count as the
            nearest of those.
        reset: bool tensor (T, N), (N, T) if ``batch_first`` or jagged, (T,) without a batch. True
            at the first step of a segment: the forward direction replaces the state before that
            step, the reverse direction the state with which it would leave it for the step before.
            No gradient passes.
        reset_state: what ``reset`` replaces the states of all layers by, in the shapes of ``hx``;
            gradients flow into it. None is zero.
        return_all_states: also return :class:`AllStates`.
        recompute: save no gates for backward, which computes them again: less memory in training
            for a third more arithmetic in it.
        reverse: run the layers' one direction from the last step to the first.

    Returns:
        output (T, N, D * H), laid out as ``input``, and h_n (L * D, N, H); with
        ``return_all_states`` also the states after every step.

    Raises:
        ValueError: input of another rank than 2 or 3 or of another dtype than the weights; a dtype
            without a kernel; lengths outside [0, T], or beside a packed or jagged input; a reset of
            another shape; a reset_state without reset; both ``reverse`` and ``bidirectional``.
        TypeError: input, hx, lengths or reset of another type than said above.
        RuntimeError: sizes, dtypes or devices of hx, reset or weights that do not fit the input.
        NotImplementedError: a device without a kernel.
    """
    checks.check_nonlinearity(nonlinearity)
    return run(
        "RNN", f"rnn_{nonlinearity}", input, hx, weights, num_layers=num_layers, bias=bias,
        batch_first=batch_first, dropout=dropout if training else 0.0, bidirectional=bidirectional,
        lengths=lengths, reset=reset, reset_state=reset_state, return_all_states=return_all_states,
        recompute=recompute, reverse=reverse,
    )  # fmt: skip


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    return_all_states: bool = False,
    recompute: bool = False,
    reverse: bool = False,
) -> Any:
    r"""Gated recurrent unit on given weights.

    :math:`r, z = \sigma(W_i x + b_i + W_h h + b_h)`, each with rows of its own,
    :math:`n = \tanh(W_{in} x + b_{in} + r (W_{hn} h + b_{hn}))`, :math:`h' = (1 - z) n + z h`
    (the formulas of ``torch.nn.GRU``).

    L is ``num_layers``, D is 2 if ``bidirectional``, else 1. All tensors share one dtype (float32,
    float64, bfloat16 or float16) and device.

    Args:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: initial hidden state (L * D, N, H), (L * D, 1, H) for one that all samples share, or
            (L * D, H) without a batch; None is zero.
        weights: for each layer and direction in turn ``weight_ih`` (3 * H, I or D * H),
            ``weight_hh`` (3 * H, H) and, if ``bias``, ``bias_ih`` and ``bias_hh`` (3 * H,), the
            rows of gates r, z, n in turn: the order of ``torch.nn.GRU.all_weights``, flattened.
        num_layers: stacked layers.
        bias: whether ``weights`` holds biases.
        batch_first: input and output have the batch first; states never do.
        dropout: probability of zeroing an element between layers, in training, by a mask that
            depends on a seed from torch's generator, the layer and the element alone.
        training: whether dropout applies.
        bidirectional: run each layer in both directions, outputs side by side.
        lengths: (N,), integers from 0 to T on CPU, in a tensor, list or array. Outputs at steps
            past a sample's length are 0, its final state is that of its last step (of length 0:
            its initial state), and the reverse direction starts there. With CUDA input they may lie
            there, too: then nothing waits to check them, and values outside of [0, T] count as the
            nearest of those.
        reset: bool tensor (T, N), (N, T) if ``batch_first`` or jagged, (T,) without a batch. True
            at the first step of a segment: the forward direction replaces the state before that
            step, the reverse direction the state with which it would leave it for the step before.
            No gradient passes.
        reset_state: what ``reset`` replaces the states of all layers by, in the shapes of ``hx``;
            gradients flow into it. None is zero.
        return_all_states: also return :class:`AllStates`.
        recompute: save no gates for backward, which computes them again: less memory in training
            for a third more arithmetic in it.
        reverse: run the layers' one direction from the last step to the first.

    Returns:
        output (T, N, D * H), laid out as ``input``, and h_n (L * D, N, H); with
        ``return_all_states`` also the states after every step.

    Raises:
        ValueError: input of another rank than 2 or 3 or of another dtype than the weights; a dtype
            without a kernel; lengths outside [0, T], or beside a packed or jagged input; a reset of
            another shape; a reset_state without reset; both ``reverse`` and ``bidirectional``.
        TypeError: input, hx, lengths or reset of another type than said above.
        RuntimeError: sizes, dtypes or devices of hx, reset or weights that do not fit the input.
        NotImplementedError: a device without a kernel.
    """
    return run(
        "GRU", "gru", input, hx, weights, num_layers=num_layers, bias=bias,
        batch_first=batch_first, dropout=dropout if training else 0.0, bidirectional=bidirectional,
        lengths=lengths, reset=reset, reset_state=reset_state, return_all_states=return_all_states,
        recompute=recompute, reverse=reverse,
    )  # fmt: skip


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    projection: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    return_all_states: bool = False,
    recompute: bool = False,
    reverse: bool = False,
) -> Any:
    r"""Long short-term memory on given weights.

    :math:`c' = f c + i g`, :math:`h' = o \tanh(c')`, or :math:`W_{hr} (o \tanh(c'))` with a
    projection (the formulas of ``torch.nn.LSTM``).

    L is ``num_layers``, D is 2 if ``bidirectional``, else 1, R is the projected size, or H.
    All tensors share one dtype (float32, float64, bfloat16 or float16) and device.

    Args:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: a tuple of the initial states h (L * D, N, R) and c (L * D, N, H), with 1 for N if all
            samples share them, without N if the input has none; None is zero.
        weights: for each layer and direction in turn ``weight_ih`` (4 * H, I or D * R),
            ``weight_hh`` (4 * H, R), if ``bias``, ``bias_ih`` and ``bias_hh`` (4 * H,), the rows of
            gates i, f, g, o in turn, and, if ``projection``, ``weight_hr`` (R, H): the order of
            ``torch.nn.LSTM.all_weights``, flattened.
        num_layers: stacked layers.
        bias: whether ``weights`` holds biases.
        batch_first: input and output have the batch first; states never do.
        dropout: probability of zeroing an element between layers, in training, by a mask that
            depends on a seed from torch's generator, the layer and the element alone.
        training: whether dropout applies.
        bidirectional: run each layer in both directions, outputs side by side.
        projection: whether each layer and direction ends with a ``weight_hr``.
        lengths: (N,), integers from 0 to T on CPU, in a tensor, list or array. Outputs at steps
            past a sample's length are 0, its final state is that of its last step (of length 0:
            its initial state), and the reverse direction starts there. With CUDA input they may lie
            there, too: then nothing waits to check them, and values outside of [0, T] count as the
            nearest of those.
        reset: bool tensor (T, N), (N, T) if ``batch_first`` or jagged, (T,) without a batch. True
            at the first step of a segment: the forward direction replaces the state before that
            step, the reverse direction the state with which it would leave it for the step before.
            No gradient passes.
        reset_state: what ``reset`` replaces the states of all layers by, in the shapes of ``hx``;
            gradients flow into it. None is zero.
        return_all_states: also return :class:`AllStates`.
        recompute: save no gates for backward, which computes them again: less memory in training
            for a third more arithmetic in it.
        reverse: run the layers' one direction from the last step to the first.

    Returns:
        output (T, N, D * R), laid out as ``input``, and (h_n, c_n), (L * D, N, R) and
        (L * D, N, H); with ``return_all_states`` also the states after every step.

    Raises:
        ValueError: input of another rank than 2 or 3 or of another dtype than the weights; a dtype
            without a kernel; lengths outside [0, T], or beside a packed or jagged input; a reset of
            another shape; a reset_state without reset; both ``reverse`` and ``bidirectional``.
        TypeError: input, hx, lengths or reset of another type than said above.
        RuntimeError: sizes, dtypes or devices of hx, reset or weights that do not fit the input.
        NotImplementedError: a device without a kernel.
    """
    return run(
        "LSTM", "lstm", input, hx, weights, num_layers=num_layers, bias=bias,
        batch_first=batch_first, dropout=dropout if training else 0.0, bidirectional=bidirectional,
        lengths=lengths, reset=reset, reset_state=reset_state, return_all_states=return_all_states,
        recompute=recompute, reverse=reverse, projection=projection,
    )  # fmt: skip


def split_weights(
    name: str,
    weights: Sequence[Tensor],
    kinds: Sequence[str],
    facts: CellFacts,
    num_layers: int,
    directions: int,
) -> list[ScanWeights]:
    """A flat list in torch's order as one entry per layer and direction, each of these kinds."""
    entries, each = num_layers * directions, len(kinds)
    checks.check_weight_count(name, len(weights), each, num_layers, directions)
    stack = []
    for entry in range(entries):
        by_kind = dict(zip(kinds, weights[entry * each :], strict=False))
        vectors = {kind: by_kind[kind] for kind in kinds[each - facts.vectors :]}
        if vectors:
            hidden_size = weights[0].size(0) // facts.input_gates
            checks.check_vectors(name, vectors, hidden_size, entry, directions)
        stack.append(scan_weights(by_kind, list(vectors.values()), facts))
    return stack


def scan_weights(
    by_kind: Mapping[str, Tensor], vectors: Sequence[Tensor], facts: CellFacts
) -> ScanWeights:
    """Weights by their kinds, and the vectors of a user's cell, as the ops take them."""
    fields = {kind: by_kind[kind] for kind in ScanWeights._fields if kind in by_kind}
    if vectors:
        fields["vectors"] = side_by_side(vectors)
    if not facts.recurrent_gates:  # An empty matrix says the size of h.
        projection, weight_ih = fields.get("weight_hr"), fields["weight_ih"]
        hidden_size = weight_ih.size(0) // facts.input_gates
        output_size = hidden_size if projection is None else projection.size(0)
        fields["weight_hh"] = weight_ih.new_empty(0, output_size)
    return ScanWeights(**fields)


def autocast(
    tensors: Sequence[Tensor], device: torch.device, to_weights: bool = False
) -> list[Tensor]:
    """Input, states and weights in the autocast dtype, where autocast is on; or else in that of the
    weights, the last ones."""
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return list(tensors)
    dtype = tensors[-1].dtype if to_weights else torch.get_autocast_dtype(device.type)
    return [
        t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    ]


def run(
    name: str,
    cell: str,
    input: Tensor | PackedSequence,
    hx: Hidden | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    lengths: Tensor | Sequence[int] | None,
    reset: Tensor | None,
    reset_state: Hidden | None,
    return_all_states: bool,
    recompute: bool,
    reverse: bool,
    projection: bool = False,
    packed: Tensor | None = None,
    user: UserCall | None = None,
) -> Any:
    """Any layout in, the op's (T, N, I) or rows inside, the same layout out.

    name is the layer's in messages, cell the op's; packed are the weights of a frozen module as the
    op `prepack` returned them; user is what a user's cell has besides.
    """
    facts, directions = CELLS[cell], 2 if bidirectional else 1
    checks.check_input_type(name, input, lengths)
    weights = checks.weight_list(name, weights)
    checks.check_direction(reverse, bidirectional)
    checks.check_bool("recompute", recompute)
    checks.check_reset_state(reset, reset_state)
    labels = state_labels(facts, user)
    count = len(labels)
    states = () if hx is None else checks.check_states(name, hx, labels)
    initial = len(states)
    if reset_state is not None:
        states += checks.check_states(name, reset_state, labels, "reset_state")

    data = input.data if isinstance(input, PackedSequence) else input
    values = data.values() if data.is_nested else data
    values, *rest = autocast([values, *states, *weights], values.device, packed is not None)
    states, weights = tuple(rest[: len(states)]), rest[len(states) :]
    layout = layout_of(name, input, values, batch_first, lengths)
    if not isinstance(input, PackedSequence):
        checks.check_state_ranks(states[:initial], layout.batched)
        checks.check_state_ranks(states[initial:], layout.batched, "reset_state")

    vectors = user.cell.vectors if user else ()
    recurrent = facts.recurrent_gates > 0
    kinds = weight_kinds(bias, projection, recurrent=recurrent, vectors=vectors)
    stack = split_weights(name, weights, kinds, facts, num_layers, directions)
    checks.check_stack(name, facts, stack, directions)
    first = stack[0]
    hidden_size, output_size = first.weight_ih.size(0) // facts.input_gates, first.weight_hh.size(1)
    shapes = [
        (num_layers * directions, layout.batch, size)
        for size in (output_size, *[hidden_size] * facts.cell_states)
    ]
    checks.check_dtype(values, first.weight_ih)
    checks.check_input_size(values, first.weight_ih.size(1))
    if not layout.batched:
        states = tuple(state.unsqueeze(1) for state in states)
    if hx is None:
        states = (*initial_states(values, shapes, labels, user), *states)
    else:
        checks.check_state_shapes(states[:count], shapes, "hidden")
    if reset is not None and reset_state is None and user and user.cell.initial:
        states = (*states, *initial_states(values, shapes, labels, user))
    checks.check_state_shapes(states[count:], shapes, "reset_state")
    extras = extra_inputs(name, layout, hidden_size, user)
    by_name = dict(zip(user.cell.inputs if user else (), extras, strict=True))
    checks.check_companions(values, states[:count], weights, states[count:], by_name)
    states = tuple(
        layout.enter(state if state.shape == shape else state.expand(shape))
        for state, shape in zip(states, shapes * 2, strict=False)
    )
    output, finals, all_h, all_c = run_stack(
        cell,
        layout.data,
        as_op_states(states[:count]),
        stack,
        directions=directions,
        dropout=dropout,
        extras=extras,
        numbers=user.numbers if user else (),
        reset_states=as_op_states(states[count:]) if len(states) > count else (),
        lengths=layout.lengths,
        batch_sizes=layout.batch_sizes,
        offsets=layout.offsets,
        reset=None if reset is None else layout.reset(reset, name),
        reverse=reverse,
        recompute=recompute,
        all_states=return_all_states,
        packed=packed,
    )
    finals = tuple(layout.leave(state) for state in from_op_states(finals, facts.cell_states))
    results = layout.sequence(output), finals if facts.has_cell_state else finals[0]
    if not return_all_states:
        return results
    of_layers = [tuple(map(layout.sequence, cells)) for cells in all_c]
    every_c = tuple(cells[0] if len(cells) == 1 else cells for cells in of_layers)
    every_h = tuple(map(layout.sequence, all_h))
    return *results, AllStates(every_h, every_c if facts.has_cell_state else None)


def state_labels(facts: CellFacts, user: UserCall | None) -> tuple[str, ...]:
    """Names of h and the cell states, for messages."""
    return ("h", *user.cell.states) if user else checks.LSTM_STATES[: 1 + facts.cell_states]


def initial_states(
    values: Tensor, shapes: Sequence[Sequence[int]], labels: Sequence[str], user: UserCall | None
) -> list[Tensor]:
    """What states are before the first step where the caller gives none."""
    initial = user.cell.initial if user else {}
    return [
        values.new_full(shape, initial[name]) if name in initial else values.new_zeros(shape)
        for name, shape in zip(labels, shapes, strict=True)
    ]


def extra_inputs(
    name: str, layout: Layout, hidden_size: int, user: UserCall | None
) -> list[Tensor]:
    """The inputs of a user's cell besides x, in its order, as the op takes them."""
    if user is None:
        return []
    by_name = checks.check_extra(name, user.cell.inputs, user.extra)
    extras = [layout.extra(name, key, value, hidden_size) for key, value in by_name.items()]
    return autocast(extras, layout.data.device)
