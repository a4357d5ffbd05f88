"""Random cells, for tests and fuzzers: the same seed gives the same cell.

A function draws its formula whenever it is called, so that it can run on tensors, too. All values
stay finite, and with random inputs no value meets a kink.
"""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Sequence
from typing import Any

from fastrnn import cells
from fastrnn.cells import Cell

__all__ = ["random_cell"]

UNARY: tuple[Callable[[Any], Any], ...] = (
    cells.sigmoid, cells.tanh, cells.relu, cells.softplus, cells.abs, cells.hard_sigmoid,
    cells.hard_tanh, cells.gelu, cells.silu, cells.softsign, cells.elu,
    lambda v: cells.exp(-v * v), lambda v: cells.log(1.5 + v * v), lambda v: cells.sqrt(0.5 + v**2),
    lambda v: 1 - v, lambda v: -v, lambda v: 0.3 * v + 0.1,
)  # fmt: skip
BINARY: tuple[Callable[[Any, Any], Any], ...] = (
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / (1 + cells.abs(b)),
    cells.minimum, cells.maximum, lambda a, b: cells.where(a > b, a, b * b),
    lambda a, b: cells.where(a <= 0.25, b, a), lambda a, b: b + cells.sigmoid(a) * (a - b),
)  # fmt: skip


def random_cell(seed: int) -> tuple[Cell, Callable[..., Any]]:
    """A cell of random gates, states, parameters and formula, and its function."""
    draw = random.Random(seed)

    def names(prefix: str, least: int, most: int) -> tuple[str, ...]:
        return tuple(f"{prefix}{k}" for k in range(draw.randint(least, most)))

    gates = names("g", 0, 4)
    declared = {
        "gates": gates,
        "input_gates": names("i", 0 if gates else 1, 2),
        "recurrent_gates": names("r", 0, 2),
        "states": names("c", 0, 3),
        "vectors": names("p", 0, 2),
        "numbers": dict.fromkeys(names("alpha", 0, 2), draw.uniform(-1, 1)),
        "inputs": names("dt", 0, 2),
    }
    formula = _formula(declared, draw.randrange(2**32), operations=draw.randint(2, 14))
    function = types.FunctionType(
        formula.__code__, globals(), f"random_{seed}", closure=formula.__closure__
    )
    return cells.cell(**declared)(function), function


def _formula(declared: dict[str, Any], seed: int, operations: int) -> types.FunctionType:
    def formula(x: Any, h: Any, s: Any, p: Any) -> Any:
        draw = random.Random(seed)
        leaves = [
            *(getattr(x, n) for kind in ("gates", "input_gates", "inputs") for n in declared[kind]),
            *(getattr(h, n) for kind in ("gates", "recurrent_gates") for n in declared[kind]),
            *(getattr(s, n) for n in declared["states"]),
            *(getattr(p, n) for kind in ("vectors", "numbers") for n in declared[kind]),
            *([s.h] if draw.random() < 0.5 else []),
        ]
        computed = _compute(draw, leaves, operations)
        # Each leaf reaches h, and each state depends on a gate.
        total = leaves[0]
        for leaf in leaves[1:]:
            total = total + draw.choice((0.5, -1.0, 1.0)) * leaf
        states = {n: cells.tanh(total) * draw.choice(computed) for n in declared["states"]}
        new_h = cells.sigmoid(total) * draw.choice(computed) + draw.choice(computed)
        return (new_h, states) if states else new_h

    return formula


def _compute(draw: random.Random, leaves: Sequence[Any], operations: int) -> list[Any]:
    """Values of random operations, each on what was there before it."""
    pool = list(leaves)
    for _ in range(operations):
        if draw.random() < 0.5:
            value = draw.choice(UNARY)(draw.choice(pool))
        else:
            value = draw.choice(BINARY)(draw.choice(pool), draw.choice(pool))
        # Products of products would leave the range of a test's tolerance.
        pool.append(cells.tanh(value) if draw.random() < 0.3 else value)
    return pool[len(leaves) :]
