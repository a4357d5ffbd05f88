"""Cells with two products in a step: two steps of a layer are one of the published formula, over whole sequences."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from common import assert_all_close, gradients, random
from torch import Tensor, relu, sigmoid, tanh
from torch.nn.functional import linear
from zoo_layers import step_by_step

import fastrnn
from fastrnn import cells, zoo

T, N, I, H = 6, 3, 4, 5
CELLS_PAGE = Path(__file__).parents[2] / "docs" / "cells.md"


@cells.cell(gates="rzn", states="yz", inputs=("second", "decay"))
def published_gru_d(x, h, s, p):
    """The state y that the second step leaves is decayed over the gap to the next."""
    second = x.second > 0
    z = cells.where(second, s.z, cells.sigmoid(x.z + h.z))
    y = cells.where(second, (1 - z) * s.y + z * cells.tanh(x.n + h.n), s.h)
    reset = cells.sigmoid(x.r + h.r) * s.h
    return cells.where(second, x.decay * y, reset), {"y": y, "z": z}


def of_the_page() -> SimpleNamespace:
    """What the page's section on two products defines."""
    section = re.search(r"^## Two products.*?(?=^## )", CELLS_PAGE.read_text(), re.M | re.S)[0]
    [block] = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    names = {"torch": torch, "fastrnn": fastrnn, "cells": cells}
    exec(compile(block, str(CELLS_PAGE), "exec"), names)
    return SimpleNamespace(**names)


# --- the published formulas, one step: weights as a layer has them, W (G H, I) and U (G H, H) ---


def reset_first(w, x, h):
    r, z, n = linear(x, w.W, w.b).chunk(3, -1)
    U_r, U_z, U_n = w.U.chunk(3)
    r, z = sigmoid(r + linear(h, U_r)), sigmoid(z + linear(h, U_z))
    return z, tanh(n + linear(r * h, U_n))


def cho(w, x, h):
    z, candidate = reset_first(w, x, h)
    return (z * h + (1 - z) * candidate,)


def lfads(w, x, h):
    return (cho(w, x, h)[0].clamp(-0.5, 0.5),)


def gru_d(w, x, h, gamma):
    h = gamma * h
    z, candidate = reset_first(w, x, h)
    return ((1 - z) * h + z * candidate,)


def t_lstm(w, x, h, c, gamma):
    *of_h, U_d = w.U.chunk(5)
    *b, b_d = w.b.chunk(5)
    short = tanh(linear(c, U_d, b_d))
    c = (c - short) + gamma * short
    i, f, g, o = linear(x, w.W, torch.cat(b)).add(linear(h, torch.cat(of_h))).chunk(4, -1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def next_decay(gamma: Tensor) -> Tensor:
    return torch.cat([gamma[1:], torch.ones_like(gamma[:1])])


every_run = pytest.mark.parametrize(
    "run", [step_by_step, pytest.param(contextlib.nullcontext, marks=pytest.mark.slow)],
    ids=["loop", "kernels"],
)  # fmt: skip


@every_run
@pytest.mark.parametrize("name", ["cho", "lfads", "gru_d", "t_lstm"])
def test_two_steps_of_a_layer_are_one_of_the_formula(name, run):
    cell, published = {
        "cho": (zoo.reset_first_gru, cho),
        "lfads": (of_the_page().lfads_gru, lfads),
        "gru_d": (published_gru_d, gru_d),
        "t_lstm": (zoo.t_lstm, t_lstm),
    }[name]
    torch.manual_seed(0)
    layer = fastrnn.Recurrent(cell, I, H, dtype=torch.float64)
    with torch.no_grad():
        layer.bias_ih_l0.zero_()
        layer.weight_hh_l0.mul_(3)  # the reset counts
    if name == "lfads":
        layer.bound = 0.5
    generator = torch.Generator().manual_seed(0)
    x = random((T, N, I), generator).requires_grad_()
    gamma = torch.exp(-relu(random((T, N, H), generator))).requires_grad_()
    starts = [
        random((N, H), generator).requires_grad_() for _ in range(2 if name == "t_lstm" else 1)
    ]

    w = SimpleNamespace(W=layer.weight_ih_l0, U=layer.weight_hh_l0, b=layer.bias_hh_l0)
    states, outputs = starts, []
    for step in range(T):
        decay = (gamma[step],) if name in ("gru_d", "t_lstm") else ()
        states = published(w, x[step], *states, *decay)
        outputs.append(states[0])
    leaves = [x, gamma, *starts, w.W, w.U, w.b]
    expected = [torch.stack(outputs), *states]
    expected += gradients(expected, leaves)

    extra = {"second": torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(T)[:, None]}
    if "decay" in cell.inputs:
        decay = next_decay(gamma) if name == "gru_d" else gamma
        extra["decay"] = decay.repeat_interleave(2, 0)
    h, *others = starts
    if name == "gru_d":
        h = gamma[0] * h
    unread = [torch.full_like(h, 7.0)] * (len(cell.states) - len(others))
    hx = tuple(state.unsqueeze(0) for state in (h, *others, *unread))
    with run():
        output, last, every = layer(
            x.repeat_interleave(2, 0), hx, extra=extra, return_all_states=True
        )
    last = [last[k].squeeze(0) for k in range(len(states))]
    if name == "gru_d":
        output = every.c[0][0]
        last = [output[-1]]
    actual = [output[1::2], *last]
    actual += gradients(actual, leaves)
    assert_all_close(actual, expected, torch.float64)


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_and_resets_count_steps_of_the_layer(reverse):
    torch.manual_seed(0)
    layer = fastrnn.Recurrent(zoo.reset_first_gru, I, H, reverse=reverse, dtype=torch.float64)
    w = SimpleNamespace(
        W=layer.weight_ih_l0, U=layer.weight_hh_l0, b=layer.bias_ih_l0 + layer.bias_hh_l0
    )
    x = random((T, N, I), torch.Generator().manual_seed(0))
    lengths, reset = torch.tensor([T, 2, 5]), torch.zeros(T, N, dtype=torch.bool)
    reset[3, 0] = True
    expected = torch.zeros(T, N, H, dtype=torch.float64)
    for n, length in enumerate(lengths.tolist()):
        h = torch.zeros(1, H, dtype=torch.float64)
        for step in reversed(range(length)) if reverse else range(length):
            if reset[step, n] and not reverse:
                h = torch.zeros_like(h)
            (h,) = cho(w, x[step, n : n + 1], h)
            expected[step, n] = h[0]
            if reset[step, n] and reverse:  # the state that would leave the segment
                h = torch.zeros_like(h)
    turns = torch.tensor([1.0, 0.0] if reverse else [0.0, 1.0], dtype=torch.float64)
    marks = torch.zeros(2 * T, N, dtype=torch.bool)
    marks[::2] = reset
    with step_by_step():
        output, _ = layer(
            x.repeat_interleave(2, 0),
            extra={"second": turns.repeat(T)[:, None]},
            lengths=2 * lengths,
            reset=marks,
        )
    assert_all_close([output[0 if reverse else 1 :: 2]], [expected], torch.float64)
