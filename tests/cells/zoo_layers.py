"""Layers of the zoo's cells, their inputs, and how they are called as a function of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from common import random
from pairs import flatten
from torch import Tensor
from torch.func import functional_call

import fastrnn
from fastrnn import user_cells, zoo

# Kernels of one cell and type take seconds to compile: of these two in every run, of all others in a slow one.
# The first has what most cells have, the second no recurrent product.
COMPILED = ("peephole_lstm", "minlstm")

every_cell = pytest.mark.parametrize("name", zoo.__all__)
compiled_cells = pytest.mark.parametrize(
    "name",
    [
        name if name in COMPILED else pytest.param(name, marks=pytest.mark.slow)
        for name in zoo.__all__
    ],
)


@contextlib.contextmanager
def step_by_step() -> Generator[None, None, None]:
    """Layers run as they do where there is no compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_cells, "why_step_by_step", lambda *_, **__: "a test asks for it")
        yield


def make_layer(name: str, *sizes: int, dtype=torch.float64, **options: Any) -> fastrnn.Recurrent:
    torch.manual_seed(0)
    return fastrnn.Recurrent(getattr(zoo, name), *sizes, dtype=dtype, **options)


class Call:
    """A layer as a function of tensors: input, states, extra inputs, parameters.

    Args:
        layer: the layer.
        steps: T.
        batch: N.
    """

    def __init__(self, layer: fastrnn.Recurrent, steps: int, batch: int) -> None:
        self.layer = layer
        generator = torch.Generator().manual_seed(1)
        rows = layer.num_layers * (1 + layer.bidirectional)

        def normal(*shape: int) -> Tensor:
            return random(shape, generator).to(layer.weight_ih_l0)

        names = ("h", *layer.cell.states)
        states = {name: normal(rows, batch, layer.hidden_size) for name in names}
        if "n" in states:  # slstm's n is a sum of exponentials
            states["n"] = states["n"].abs() + 0.5
        x = normal(steps, batch, layer.input_size)
        extra = {name: normal(steps, batch, layer.hidden_size) for name in layer.cell.inputs}
        if "dt" in extra:  # no time is negative
            extra["dt"] = extra["dt"].abs()
        self.tensors = [
            x,
            *states.values(),
            *extra.values(),
            *(parameter.detach() for parameter in layer.parameters()),
        ]

    def __call__(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        """The output, and the last states."""
        x, states, extra, parameters = self.apart(tensors)
        names = [name for name, _ in self.layer.named_parameters()]
        hx = states if len(states) > 1 else states[0]
        results = functional_call(
            self.layer,
            dict(zip(names, parameters, strict=True)),
            (x, hx),
            {"extra": extra, **options},
        )
        return tuple(flatten(results))

    def apart(
        self, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor], tuple[Tensor, ...]]:
        """Input, states, extra inputs by name, and parameters."""
        cell, (x, *rest) = self.layer.cell, tensors
        states, extras = 1 + len(cell.states), len(cell.inputs)
        extra = dict(zip(cell.inputs, rest[states : states + extras], strict=True))
        return x, tuple(rest[:states]), extra, tuple(rest[states + extras :])

    def part(self, steps: slice, samples: slice) -> list[Tensor]:
        """The tensors of some steps and samples."""
        x, states, extra, parameters = self.apart(self.tensors)
        return [
            x[steps, samples],
            *(state[:, samples] for state in states),
            *(each[steps, samples] for each in extra.values()),
            *parameters,
        ]


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]
