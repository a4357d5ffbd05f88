"""The derivative that is found for a cell, evaluated by torch from what backward may read, is autograd's."""

from __future__ import annotations

import pytest
import torch
from cell_cases import derived, every_cell
from common import TOLERANCE
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from written_cells import call, random_inputs

from fastrnn import cells


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
