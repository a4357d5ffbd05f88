"""What is measured of a public package: a model, a step of its training, an inference call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import fastrnn

SEED = 0


@dataclass(frozen=True)
class Program:
    """A model as its package makes it, with random weights and random inputs.

    Attributes:
        model: what is accelerated.
        train_step: a whole step of training, which leaves gradients in the model's Parameters.
        infer: a call without gradients; returns a Tensor, or lists, tuples, dicts and
            dataclasses of them.
        accelerate: what takes the place of ``fastrnn.accelerate(model, report=report)``.
    """

    model: nn.Module
    train_step: Callable[[], object]
    infer: Callable[[], Any]
    accelerate: Callable[[fastrnn.Report], object] | None = None

    def accelerate_in_place(self) -> fastrnn.Report:
        """Accelerate the model, and return what was done."""
        report = fastrnn.Report()
        if self.accelerate is None:
            fastrnn.accelerate(self.model, report=report)
        else:
            self.accelerate(report)
        return report


@dataclass(frozen=True)
class Entry:
    """A line of the table; the package is imported as ``build`` is called."""

    name: str
    package: str  # as pip calls it
    build: Callable[[], Program]
    tolerance: float = 2e-5  # of the largest value; float32 in another order is 1e-7 to 2e-6

    @property
    def version(self) -> str | None:
        """The package's version, or None if it is not installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def program(self) -> Program:
        """Build it; every time with the same weights and inputs."""
        seed()
        return self.build()


def seed() -> None:
    """Start torch's, NumPy's and Python's random numbers anew."""
    torch.manual_seed(SEED)
    numpy.random.seed(SEED)
    random.seed(SEED)


def supervised(
    model: nn.Module, loss: Callable[[], Tensor], infer: Callable[[], Any] | None = None
) -> Program:
    """A program whose step of training is a loss, its gradient, and a step of Adam.

    Without ``infer``, inference is the loss's forward pass.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def train_step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Program(model, train_step, infer or loss)


def tensors(results: Any, name: str = "output") -> dict[str, Tensor]:
    """The floating-point tensors in a program's results, by their places."""
    if isinstance(results, Tensor):
        told = results.is_floating_point() and results.numel() > 0
        return {name: results.detach().clone()} if told else {}
    if isinstance(results, dict):
        items = list(results.items())
    elif is_dataclass(results):
        items = [(each.name, getattr(results, each.name)) for each in fields(results)]
    elif isinstance(results, (list, tuple)):
        items = list(enumerate(results))
    else:
        return {}
    return {
        place: tensor
        for key, value in items
        for place, tensor in tensors(value, f"{name}[{key!r}]").items()
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


@contextmanager
def without_layers_dropout(model: nn.Module) -> Iterator[None]:
    """A recurrent layer's own dropout is off: from one seed, fastrnn drops other elements."""
    layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    shares = [layer.dropout for layer in layers]
    for layer in layers:
        layer.dropout = 0.0
    try:
        yield
    finally:
        for layer, share in zip(layers, shares, strict=True):
            layer.dropout = share
