"""RNN, GRU and LSTM on given weights: the computation of the modules without a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks
from fastrnn.layers import run_stack
from fastrnn.ops import CELLS, ScanWeights

__all__ = ["gru", "lstm", "rnn"]

Hidden: TypeAlias = Tensor | tuple[Tensor, Tensor]

_NAMES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}


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
    lengths: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Any, Tensor]:
    r"""Elman network, :math:`h' = \phi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`, on given weights.

    L is ``num_layers``, D is 2 if ``bidirectional``, else 1. All tensors share one dtype (float32,
    float64, bfloat16 or float16) and device.

    Args:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, or a PackedSequence.
        hx: initial hidden state (L * D, N, H), or (L * D, H) without a batch; None is zero.
        weights: for each layer and direction in turn ``weight_ih`` (H, I or D * H), ``weight_hh``
            (H, H) and, if ``bias``, ``bias_ih`` (H,) and ``bias_hh`` (H,): the order of
            ``torch.nn.RNN.all_weights``, flattened.
        nonlinearity: :math:`\phi`, ``tanh`` or ``relu``.
        num_layers: stacked layers.
        bias: whether ``weights`` holds biases.
        batch_first: input and output have the batch first; states never do.
        dropout: probability of zeroing an element between layers, in training.
        training: whether dropout applies.
        bidirectional: run each layer in both directions, outputs side by side.
        lengths: integer tensor (N,) on CPU. Outputs at steps past a sample's length are 0, its
            final state is that of its last step, and the reverse direction starts there.
        recompute: save no gates for backward, which computes them again: less memory in training
            for a third more arithmetic in it.

    Returns:
        output (T, N, D * H), laid out as ``input``, and h_n (L * D, N, H).

    Raises:
        ValueError: input of another rank than 2 or 3 or of another dtype than the weights; a dtype
            without a kernel; lengths outside [0, T], or beside a PackedSequence.
        TypeError: input, hx or lengths of another type than said above.
        RuntimeError: sizes, dtypes or devices of hx or weights that do not fit the input.
        NotImplementedError: a device without a kernel.
    """
    checks.check_nonlinearity(nonlinearity)
    return _run(
        f"rnn_{nonlinearity}", input, hx, weights, num_layers, bias, batch_first, dropout,
        training, bidirectional, lengths, recompute,
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
    lengths: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Any, Tensor]:
    r"""Gated recurrent unit on given weights; arguments and results as :func:`rnn`.

    :math:`r, z = \sigma(W_i x + b_i + W_h h + b_h)`, each with rows of its own,
    :math:`n = \tanh(W_{in} x + b_{in} + r (W_{hn} h + b_{hn}))`, :math:`h' = (1 - z) n + z h`
    (the formulas of ``torch.nn.GRU``). ``weight_ih`` is (3 * H, I), gates r, z, n; others likewise.
    """
    return _run(
        "gru", input, hx, weights, num_layers, bias, batch_first, dropout, training,
        bidirectional, lengths, recompute,
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
    lengths: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Any, tuple[Tensor, Tensor]]:
    r"""Long short-term memory on given weights; arguments as :func:`rnn`.

    :math:`c' = f c + i g`, :math:`h' = o \tanh(c')`, or :math:`W_{hr} (o \tanh(c'))` with a
    projection (the formulas of ``torch.nn.LSTM``). ``weight_ih`` is (4 * H, I), gates i, f, g, o;
    others likewise.

    Args:
        hx: (h_0, c_0), of shapes (L * D, N, R) and (L * D, N, H); R is the projected size, or H.
        projection: each layer and direction ends with a ``weight_hr`` (R, H).

    Returns:
        output (T, N, D * R), and (h_n, c_n) in the shapes of ``hx``.
    """
    return _run(
        "lstm", input, hx, weights, num_layers, bias, batch_first, dropout, training,
        bidirectional, lengths, recompute, projection,
    )  # fmt: skip


def _split_weights(
    name: str, weights: Sequence[Tensor], fields: Sequence[bool], num_layers: int, directions: int
) -> list[ScanWeights]:
    """A flat list in torch's order as one entry per layer and direction, each of these fields."""
    each = sum(fields)
    checks.check_weight_count(name, len(weights), each, num_layers, directions)
    rest = iter(weights)
    return [
        ScanWeights(*(next(rest) if has else None for has in fields))  # type: ignore[arg-type]
        for _ in range(num_layers * directions)
    ]


def autocast(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Input, states and weights in the autocast dtype, where autocast is on."""
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device.type)
    return [
        t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    ]


def _run(
    cell: str,
    input: Tensor | PackedSequence,
    hx: Hidden | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
    lengths: Tensor | None,
    recompute: bool,
    projection: bool = False,
) -> tuple[Any, Any]:
    """Any layout in, the op's (T, N, I) or packed rows inside, the same layout out."""
    name, facts, directions = _NAMES[cell], CELLS[cell], 2 if bidirectional else 1
    checks.check_input_type(name, input, lengths)
    states = () if hx is None else checks.check_states(name, hx, facts.has_cell_state)

    packed = input if isinstance(input, PackedSequence) else None
    data = packed.data if packed is not None else input
    assert isinstance(data, Tensor)
    data, *rest = autocast([data, *states, *weights], data.device)
    states, weights = tuple(rest[: len(states)]), rest[len(states) :]

    batched = True
    if packed is None:
        checks.check_input_rank(name, data)
        batched = data.dim() == 3
        if states:
            checks.check_state_ranks(name, states, batched)
        if not batched:
            data, states = data.unsqueeze(1), tuple(state.unsqueeze(1) for state in states)
        elif batch_first:
            data = data.transpose(0, 1)

    fields = (True, True, bias, bias, projection)
    stack = _split_weights(name, weights, fields, num_layers, directions)
    checks.check_stack(name, facts.gates, stack, directions)
    first = stack[0]
    hidden_size, output_size = first.weight_hh.size(0) // facts.gates, first.weight_hh.size(1)
    batch = data.size(1) if packed is None else int(packed.batch_sizes[0])
    rows = num_layers * directions
    shapes = [(rows, batch, output_size), (rows, batch, hidden_size)][: 1 + facts.has_cell_state]

    checks.check_dtype(data, first.weight_ih)
    checks.check_input_size(data, first.weight_ih.size(1))
    if lengths is not None:
        checks.check_lengths(lengths, data, data.size(0), batch)
        lengths = lengths.to(torch.int64).contiguous()
    if states:
        checks.check_state_shapes(states, shapes)
    else:
        states = tuple(data.new_zeros(shape) for shape in shapes)
    checks.check_companions(data, states, weights)

    if packed is not None and packed.sorted_indices is not None:
        states = tuple(state.index_select(1, packed.sorted_indices) for state in states)
    output, finals = run_stack(
        cell,
        data,
        states,
        stack,
        directions=directions,
        dropout=dropout if training else 0.0,
        lengths=lengths,
        batch_sizes=None if packed is None else packed.batch_sizes,
        recompute=recompute,
    )

    if packed is not None:
        if packed.unsorted_indices is not None:
            finals = tuple(state.index_select(1, packed.unsorted_indices) for state in finals)
        result: Any = PackedSequence(
            output, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
    elif not batched:
        result, finals = output.squeeze(1), tuple(state.squeeze(1) for state in finals)
    else:
        result = output.transpose(0, 1) if batch_first else output
    return result, finals if facts.has_cell_state else finals[0]
