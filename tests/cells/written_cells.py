"""Cells that tests share, each for something that it alone has."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastrnn import cells
from fastrnn.cells import Cell, sigmoid, tanh

FUNCTIONS: dict[str, Callable[..., Any]] = {}  # by name of the cell, to run on tensors
WRITTEN: dict[str, Cell] = {}


def written(**declared: Any) -> Callable[[Callable[..., Any]], Cell]:
    def define(function: Callable[..., Any]) -> Cell:
        FUNCTIONS[function.__name__] = function
        return WRITTEN.setdefault(function.__name__, cells.cell(**declared)(function))

    return define


@written(gates="ifgo", states="c")
def lstm(x, h, s, p):
    i = sigmoid(x.i + h.i)
    f = sigmoid(x.f + h.f)
    g = tanh(x.g + h.g)
    o = sigmoid(x.o + h.o)
    c = f * s.c + i * g
    return o * tanh(c), {"c": c}


@written(gates="rzn")
def gru(x, h, s, p):
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    return n + z * (s.h - n)


@written(gates="rzn")
def gru_as_torch_writes_it(x, h, s, p):
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    return (1 - z) * n + z * s.h


@written(gates="a")
def rnn_tanh(x, h, s, p):
    return tanh(x.a + h.a)


@written(gates="a")
def rnn_relu(x, h, s, p):
    return cells.relu(x.a + h.a)


@written(gates="ifgo", states="c", vectors=("p_i", "p_f", "p_o"))
def peephole_lstm(x, h, s, p):
    i = sigmoid(x.i + h.i + p.p_i * s.c)
    f = sigmoid(x.f + h.f + p.p_f * s.c)
    c = f * s.c + i * tanh(x.g + h.g)
    o = sigmoid(x.o + h.o + p.p_o * c)
    return o * tanh(c), {"c": c}


@written(gates=("input", "forget", "cell", "output"), states=("c", "n", "m"), initial={"m": -2.0})
def slstm(x, h, s, p):
    """Stabilised, Beck et al. 2024."""
    forget = cells.log(sigmoid(x.forget + h.forget)) + s.m
    m = cells.maximum(forget, x.input + h.input)
    i, f = cells.exp(x.input + h.input - m), cells.exp(forget - m)
    c = f * s.c + i * tanh(x.cell + h.cell)
    n = f * s.n + i
    return sigmoid(x.output + h.output) * c / (cells.abs(n) + 1), {"c": c, "n": n, "m": m}


@written(gates="abcdefg", states=("u", "v", "w"))
def seven_gates(x, h, s, p):
    a, b = sigmoid(x.a + h.a), tanh(x.b * h.b)
    u = a * s.u + cells.softplus(x.c) * h.c
    v = cells.minimum(s.v, h.d + x.d) + cells.gelu(x.e - h.e)
    w = cells.where(x.f > h.f, s.w * b, cells.silu(x.g + h.g))
    return tanh(u + v) / (1 + w**2), {"u": u, "v": v, "w": w}


@written(input_gates=("z", "n"))
def minimal_gru(x, h, s, p):
    """minGRU, Feng et al. 2024: no recurrent product."""
    z = sigmoid(x.z)
    return s.h + z * (x.n - s.h)


@written(input_gates="a", vectors={"u": (-1.0, 1.0)})
def independent_rnn(x, h, s, p):
    return cells.relu(x.a + p.u * s.h)


@written(gates="a", states="v", vectors={"tau": 1.0}, numbers={"leak": 0.2})
def leaky(x, h, s, p):
    v = s.v + p.leak / p.tau * (x.a + h.a - s.v)
    return cells.hard_tanh(v), {"v": v}


@written(input_gates=("k", "f"), recurrent_gates="q", inputs=("dt", "mask"))
def with_inputs(x, h, s, p):
    decay = cells.exp(-cells.abs(x.dt * x.f))
    return cells.where(x.mask > 0, decay * s.h + tanh(x.k) * cells.softsign(h.q), s.h)


@written(gates="ab", states="c")
def reads_h_twice(x, h, s, p):
    """The new h is a state, too, and the new state is the former h."""
    return cells.elu(x.a + h.a) * sigmoid(x.b + h.b) + s.c**3, {"c": s.h}


@written(gates="a", states="c")
def state_is_output(x, h, s, p):
    c = cells.sqrt(1 + (x.a + h.a) ** 2) - s.c / 3
    return c, {"c": c}


def group(names: tuple[str, ...], values: tuple[Any, ...]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(names, values, strict=True)))


def call(cell: Cell, function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The states after a step by the user's function itself, on tensors."""
    x = group(
        cell.gates + cell.input_gates + cell.inputs,
        (*inputs["gx"].chunk(cell.facts.input_gates, -1), *inputs["extras"]),
    )
    of_h = () if inputs["gh"] is None else inputs["gh"].chunk(cell.facts.recurrent_gates, -1)
    h = group(cell.gates + cell.recurrent_gates, of_h)
    s = group(("h", *cell.states), (inputs["h"], *inputs["states"]))
    p = group((*cell.vectors, *cell.numbers), (*inputs["vectors"], *inputs["numbers"]))
    returned = function(x, h, s, p)
    new_h, states = returned if isinstance(returned, tuple) else (returned, {})
    return (new_h, *(states[name] for name in cell.states))


def random_inputs(
    cell: Cell, N: int = 3, H: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """The arguments of ``cell.step``, normal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    facts = cell.facts
    return {
        "gx": normal(N, facts.input_gates * H),
        "gh": normal(N, facts.recurrent_gates * H) if facts.recurrent_gates else None,
        "h": normal(N, H),
        "states": tuple(normal(N, H) for _ in cell.states),
        "vectors": tuple(normal(H) for _ in cell.vectors),
        "numbers": tuple(cell.numbers.values()),
        "extras": tuple(normal(N, H) for _ in cell.inputs),
    }
