"""One plain-torch step per cell: the oracle of the tests, readable rather than fast.

Any order of derivative, any transform: it is torch operations all the way down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn.ops import CELLS, ScanWeights

State = tuple[Tensor, Tensor | None]
Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], State]

__all__ = ["STEPS", "scan"]


def _rnn_tanh(gx: Tensor, gh: Tensor, h: Tensor, c: Tensor | None) -> State:
    return torch.tanh(gx + gh), None


def _rnn_relu(gx: Tensor, gh: Tensor, h: Tensor, c: Tensor | None) -> State:
    return torch.relu(gx + gh), None


def _gru(gx: Tensor, gh: Tensor, h: Tensor, c: Tensor | None) -> State:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = gx.chunk(3, -1), gh.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h, None


def _lstm(gx: Tensor, gh: Tensor, h: Tensor, c: Tensor | None) -> State:
    i, f, g, o = (gx + gh).chunk(4, -1)
    assert c is not None
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


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
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    all_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """:func:`fastrnn.ops.scan` on padded input, step by step."""
    step, (T, N, _) = STEPS[cell], input.shape
    h, c = h_0, c_0
    lengths = None if lengths is None else lengths.to(input.device)
    outputs = [input.new_zeros(N, weights.weight_hh.size(1))] * T
    cells = [input.new_zeros(N, weights.weight_ih.size(0) // CELLS[cell].gates)] * T
    for t in reversed(range(T)) if reverse else range(T):
        running = torch.ones(N, 1, dtype=torch.bool, device=input.device)
        if lengths is not None:
            running = (lengths > t).unsqueeze(1)
        mark = t + 1 if reverse else t
        if reset is not None and mark < T:
            entering = reset[mark].unsqueeze(1)
            if lengths is not None:
                entering = entering & (lengths > mark).unsqueeze(1)
            h = torch.where(entering, 0 if reset_h is None else reset_h, h)
            if c is not None:
                c = torch.where(entering, 0 if reset_c is None else reset_c, c)
        gx = torch.nn.functional.linear(input[t], weights.weight_ih, weights.bias_ih)
        gh = torch.nn.functional.linear(h, weights.weight_hh, weights.bias_hh)
        new_h, new_c = step(gx, gh, h, c)
        if weights.weight_hr is not None:
            new_h = new_h @ weights.weight_hr.T
        h = torch.where(running, new_h, h)
        c = None if new_c is None or c is None else torch.where(running, new_c, c)
        outputs[t] = torch.where(running, h, 0)
        if c is not None:
            cells[t] = torch.where(running, c, 0)
    y = torch.stack(outputs) if T else input.new_empty(0, N, weights.weight_hh.size(1))
    return y, h, c, torch.stack(cells) if all_states and c is not None and T else None
