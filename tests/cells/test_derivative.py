"""The derivative that is found for a cell, evaluated by torch from what backward may read, is autograd's."""

from __future__ import annotations

import pytest
import torch
from common import TOLERANCE
from random_cells import random_cell
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from written_cells import FUNCTIONS, WRITTEN, call, random_inputs

from fastrnn import cells
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


def differentiated(cell, function, inputs, seeds):
    """The same gradients by autograd through the user's function."""
    flat, spec = tree_flatten(inputs)
    flat = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in flat]
    inputs = tree_unflatten(flat, spec)
    # Vectors and extra inputs get a gradient for each row.
    rows = {
        kind: tuple(x.expand_as(inputs["h"]).clone() for x in inputs[kind])
        for kind in ("vectors", "extras")
    }
    leaves = [
        inputs["gx"],
        inputs["gh"],
        inputs["h"],
        *inputs["states"],
        *rows["vectors"],
        *rows["extras"],
    ]
    outputs = [y.expand_as(inputs["h"]) for y in call(cell, function, inputs | rows)]
    present = [x for x in leaves if x is not None]
    pairs = [(y, seed) for y, seed in zip(outputs, seeds, strict=True) if y.requires_grad]
    outputs, seeds = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(outputs, present, seeds, materialize_grads=True)
    gx, *others = gradients
    gh = others.pop(0).chunk(cell.facts.recurrent_gates, -1) if inputs["gh"] is not None else ()
    return [*gx.chunk(cell.facts.input_gates, -1), *gh, *others]


def assert_derivative(cell, function, inputs):
    generator = torch.Generator().manual_seed(1)
    seeds = [
        torch.randn(inputs["h"].shape, generator=generator, dtype=torch.float64)
        for _ in ("h", *cell.states)
    ]
    expected = differentiated(cell, function, inputs, seeds)
    for got, want in zip(derived(cell, inputs, seeds), expected, strict=True):
        bound = TOLERANCE[torch.float64] * max(1, want.abs().max().item())
        torch.testing.assert_close(got, want, rtol=0, atol=bound)


@every_cell
def test_the_derivative_is_autograds(cell, function):
    assert_derivative(cell, function, random_inputs(cell, N=7, H=9))


@every_cell
def test_a_projected_cell_computes_h_without_reading_it(cell, function):
    if any((node.op, node.value) == ("state", "h") for node in cell._formula.nodes):
        with pytest.raises(cells.CellError, match=r"reads s\.h, so its h cannot be projected"):
            cell.for_projection()
        return
    projected = cell.for_projection()
    assert projected.for_projection() is projected
    assert projected._backward.has_output and not projected._backward.reads_next_h
    assert_derivative(projected, function, random_inputs(cell))
