"""The cells that tests run over, and the derivative of one by what its backward step may read."""

from __future__ import annotations

import pytest
import torch
from random_cells import random_cell
from torch import Tensor
from written_cells import FUNCTIONS, WRITTEN

from fastrnn.cells.evaluation import Program

RANDOM = {f"random_{seed}": random_cell(seed) for seed in range(60)}
CASES = {name: (cell, FUNCTIONS[name]) for name, cell in WRITTEN.items()} | RANDOM
every_cell = pytest.mark.parametrize(("cell", "function"), CASES.values(), ids=CASES)


def leaf_values(cell, inputs):
    """The value of each leaf of the cell's formula."""
    names = {
        "x": cell.gates + cell.input_gates,
        "h": cell.gates + cell.recurrent_gates,
        "state": ("h", *cell.states),
        "vector": tuple(cell.vectors),
        "number": tuple(cell.numbers),
        "extra": cell.inputs,
    }
    values = {
        "x": inputs["gx"].chunk(cell.facts.input_gates, -1),
        "h": () if inputs["gh"] is None else inputs["gh"].chunk(cell.facts.recurrent_gates, -1),
        "state": (inputs["h"], *inputs["states"]),
        "vector": inputs["vectors"],
        "number": inputs["numbers"],
        "extra": inputs["extras"],
    }
    return {
        (op, name): value for op in names for name, value in zip(names[op], values[op], strict=True)
    }


def derived(cell, inputs, seeds):
    """Gradients of gx, gh, h, states, vectors and extras, by what forward saves and backward reads."""
    plan, formula = cell._backward, cell._formula
    leaves = [node for node in formula.nodes if not node.args and not node.is_constant]
    values = leaf_values(cell, inputs)
    like = inputs["h"]
    given = [values[node.op, node.value] for node in leaves]
    known = dict(zip(plan.saved, Program(leaves, plan.saved)(given, like), strict=True))
    after = Program(leaves, formula.results)(given, like)
    known |= {
        node: value for node, value in zip(formula.states, after[1:], strict=True) if node.args
    }
    if plan.reads_next_h:
        known.setdefault(formula.h, after[0])
    # Products that were not saved are not there.
    known |= {n: values[n.op, n.value] for n in leaves if n.op not in ("x", "h")}
    known |= dict(zip(plan.gradients.seeds, seeds, strict=True))
    results = Program(list(known), plan.results)(list(known.values()), like)
    results = [r if isinstance(r, Tensor) else torch.full_like(like, r) for r in results]
    return [each.expand_as(like) for each in results]
