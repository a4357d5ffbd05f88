"""Cells of one's own: a function of one step becomes a fused kernel, derivative and all.

>>> from fastrnn import cells
>>> from fastrnn.cells import sigmoid, tanh
>>>
>>> @cells.cell(gates="ifgo", states="c", vectors=("p_i", "p_f", "p_o"))
... def peephole_lstm(x, h, s, p):
...     i = sigmoid(x.i + h.i + p.p_i * s.c)
...     f = sigmoid(x.f + h.f + p.p_f * s.c)
...     c = f * s.c + i * tanh(x.g + h.g)
...     o = sigmoid(x.o + h.o + p.p_o * c)
...     return o * tanh(c), {"c": c}
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastrnn.cells.compiler import CannotCompile, build, load
from fastrnn.cells.declaration import CellShape
from fastrnn.cells.definition import Cell, cell
from fastrnn.cells.errors import CellError
from fastrnn.cells.language import (
    abs,
    elu,
    exp,
    gelu,
    hard_sigmoid,
    hard_tanh,
    log,
    maximum,
    minimum,
    relu,
    sigmoid,
    silu,
    softplus,
    softsign,
    sqrt,
    tanh,
    where,
)
from fastrnn.cells.values import LATER, refuse_later

__all__ = [
    "CannotCompile",
    "Cell",
    "CellError",
    "CellShape",
    "abs",
    "build",
    "cell",
    "elu",
    "exp",
    "gelu",
    "hard_sigmoid",
    "hard_tanh",
    "load",
    "log",
    "maximum",
    "minimum",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "sqrt",
    "tanh",
    "where",
]


def __getattr__(name: str) -> Callable[..., Any]:
    """A function that comes later can be imported, and says so when it is called."""
    if name in LATER:
        return partial(refuse_later, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
