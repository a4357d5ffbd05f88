"""One plain-torch step per cell: the oracle of the tests, readable rather than fast.

Any order of derivative, any transform: it is torch operations all the way down. A user's cell runs
so where it has no kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.layouts import Rows, rows_of
from fastrnn.library import USER_CELLS, accumulate_dtype, apart, side_by_side
from fastrnn.ops import CELLS, ScanWeights

State = tuple[Tensor, Sequence[Tensor]]
# (gx, gh, h, cell states, vectors, numbers, extra inputs) -> (h, cell states) after the step
Step = Callable[..., State]

__all__ = ["STEPS", "scan"]


def _rnn_tanh(gx: Tensor, gh: Tensor, *_: Any) -> State:
    return torch.tanh(gx + gh), ()


def _rnn_relu(gx: Tensor, gh: Tensor, *_: Any) -> State:
    return torch.relu(gx + gh), ()


def _gru(gx: Tensor, gh: Tensor, h: Tensor, *_: Any) -> State:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = gx.chunk(3, -1), gh.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h, ()


def _lstm(gx: Tensor, gh: Tensor, h: Tensor, cells: Sequence[Tensor], *_: Any) -> State:
    i, f, g, o = (gx + gh).chunk(4, -1)
    c = torch.sigmoid(f) * cells[0] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), (c,)


STEPS: dict[str, Step] = {
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
    "gru": _gru,
    "lstm": _lstm,
}


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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """:func:`fastrnn.ops.scan` step by step; torch saves for backward what it does."""
    rows, count = None, input.size(0)
    if batch_sizes is not None or offsets is not None:
        rows = rows_of(count, batch_sizes, offsets, lengths)
        rows = Rows(*(each.to(input.device) for each in rows))
        lengths = rows.lengths
        input, *extras = (each[rows.of_padded] for each in (input, *extras))
    T, dtype = input.size(0), accumulate_dtype(input.dtype)
    running = None if lengths is None else _running(lengths.to(input.device), T)
    if running is not None:
        # Padding that is not finite would be in the gradient of weight_ih, times zero.
        input = torch.where(running, input, 0)
    entering = None if reset is None else _entering(reset, running, reverse)

    step = _step_of(cell, weights, numbers)
    gx = linear(input, weights.weight_ih, weights.bias_ih).to(dtype)
    h, c = h_0, None if c_0 is None else c_0.to(dtype)
    outputs, cells = [h] * T, [c] * T
    for t in reversed(range(T)) if reverse else range(T):
        if entering is not None:
            h, c = _where(entering[t], reset_h, h), _where(entering[t], reset_c, c)
        runs = None if running is None else running[t]
        new_h, new_c = step(gx[t], h, c, [extra[t].to(dtype) for extra in extras], runs)
        if runs is not None:
            new_h, new_c = _where(runs, new_h, h), _where(runs, new_c, c)
        h, c = outputs[t], cells[t] = new_h, new_c

    def sequence(steps: list[Any], like: Tensor) -> Tensor:
        """The values of all steps, laid out as the input, 0 where a sample does not run."""
        padded = torch.stack(steps) if steps else like.new_zeros(0, *like.shape)
        if running is not None:
            padded = torch.where(running, padded, 0)
        return padded if rows is None else _unpadded(padded, rows, count)

    y = sequence(outputs, h)
    if c is None:
        return y, h, None, None
    return y, h, c.to(input.dtype), sequence(cells, c) if all_states else None


def _step_of(cell: str, weights: ScanWeights, numbers: Sequence[float]) -> Callable[..., Any]:
    """A function of gx, h, c, the extra inputs and which samples run a step, or None for all, that
    gives h and c after it."""
    facts = CELLS[cell]
    formula = STEPS[cell] if cell in STEPS else USER_CELLS[cell].step

    def step(
        gx: Tensor, h: Tensor, c: Tensor | None, extras: Sequence[Tensor], runs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        gh = None
        if facts.recurrent_gates:
            gh = linear(h, weights.weight_hh, weights.bias_hh).to(gx.dtype)
        vectors = None if weights.vectors is None else weights.vectors.to(gx.dtype)
        gx, gh, before, c, vectors, *extras = (
            _differentiable_where(runs, each)
            for each in (gx, gh, h.to(gx.dtype), c, vectors, *extras)
        )
        new_h, cells = formula(
            gx, gh, before, apart(c, facts.cell_states), apart(vectors, facts.vectors), numbers,
            extras,
        )  # fmt: skip
        new_h = new_h.to(h.dtype)
        if weights.weight_hr is not None:
            new_h = linear(
                new_h if runs is None else torch.where(runs, new_h, 0), weights.weight_hr
            )
        return new_h, side_by_side(cells) if cells else None

    return step


def _running(lengths: Tensor, T: int) -> Tensor:
    """(T, N, 1): whether a sample runs a step."""
    steps = torch.arange(T, device=lengths.device)
    return (lengths > steps[:, None]).unsqueeze(-1)


def _entering(reset: Tensor, running: Tensor | None, reverse: bool) -> Tensor:
    """(T, N, 1): whether the state is replaced before a step. The reverse walk enters a segment at
    its end, one step before the mark of the next one."""
    marks = reset.unsqueeze(-1)
    if running is not None:
        marks = marks & running
    return torch.cat([marks[1:], torch.zeros_like(marks[:1])]) if reverse else marks


def _where(condition: Tensor, chosen: Tensor | None, other: Tensor | None) -> Any:
    """torch.where, in which no tensor to choose is zero; None of a state that the cell lacks."""
    if other is None:
        return None
    return torch.where(condition, 0 if chosen is None else chosen.to(other.dtype), other)


def _differentiable_where(runs: Tensor | None, value: Tensor | None) -> Any:
    """A tensor that has no gradient where a sample does not run: the gradient of what such a step
    computes is zero, but the derivatives that it meets need not be finite."""
    if runs is None or value is None:
        return value
    return torch.where(runs, value, value.detach())


def _unpadded(padded: Tensor, rows: Rows, count: int) -> Tensor:
    """(T, N, columns) as so many rows, from zeros where a sample does not run."""
    running = _running(rows.lengths, padded.size(0)).squeeze(-1)
    spare = count  # a row for what does not run
    places = torch.where(running, rows.of_padded, spare)
    into = padded.new_zeros(count + 1, padded.size(-1))
    return into.index_copy(0, places.flatten(), padded.flatten(0, 1))[:count]
