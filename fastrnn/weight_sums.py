"""Steps that follow one another add their weight gradients up in place.

A cell in a Python loop has a node of the graph for each step. Autograd would add up a gradient of
every weight from each of them, which of a few samples takes longer than the steps themselves. Here
steps take the weights from one node before them, add their gradients to the same sums, and this
node hands the sums on.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.torch_internals import engine_will_execute, run_of_engine

__all__ = ["SharedWeights", "same"]

# Sums by the run of the engine that they belong to: a graph may be walked twice, also at a time.
_SumsByRun = dict[int, list[Tensor]]


class SharedWeights:
    """The weights of steps that follow one another, all of which are leaves that need gradients."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = tuple(weights)
        self._state = _state(weights)
        self._sums: _SumsByRun = {}
        #: What the steps take instead of the weights.
        self.tensors: tuple[Tensor, ...] = _Shared.apply(self._sums, *weights)
        self._node = self.tensors[0].grad_fn

    def are(self, weights: Sequence[Tensor]) -> bool:
        """Whether it is these weights, unchanged."""
        return same(self.weights, weights) and self._state == _state(weights)

    def sums(self) -> list[Tensor] | None:
        """What a step's backward adds its weight gradients to, or fills if it is empty; None where
        it returns them: where nobody asks for them, or another engine than autograd's runs it."""
        run = run_of_engine()
        if run < 0 or not engine_will_execute(self._node):
            return None
        return self._sums.setdefault(run, [])


def _state(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """What differs once weights were changed in place or given other memory."""
    return [(weight._version, weight.data_ptr()) for weight in weights]


def same(weights: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether they are the same objects."""
    return len(weights) == len(others) and all(map(operator.is_, weights, others))


class _Shared(torch.autograd.Function):
    """Aliases of the weights; the engine runs its backward after that of all steps."""

    @staticmethod
    def forward(ctx: Any, sums: _SumsByRun, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.sums = sums
        ctx.set_materialize_grads(False)
        # A view that autograd knows would tell of a changed weight in other words than torch.nn's.
        return tuple(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """grads come from steps that did not add to the sums."""
        sums = ctx.sums.pop(run_of_engine(), None) if ctx.sums else None
        if not sums:
            return (None, *grads)
        added = (
            total if grad is None else total + grad for total, grad in zip(sums, grads, strict=True)
        )
        return (None, *added)
