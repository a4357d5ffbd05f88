"""torch's transforms of a layer, as users of torch.func and torch.autograd write them.

Each takes a module of torch.nn or fastrnn and tensors, and returns a function that computes once
and returns results by name. Per-sample gradients exist twice: torch.nn's RNN and GRU refuse vmap,
so their users loop over the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from .cases import DOUBLE, JVP, PER_SAMPLE

Results = dict[str, Tensor]
Transform = Callable[[torch.nn.Module, Tensor, Tensor, dict[str, Tensor]], Callable[[], Results]]


def per_sample(
    module: torch.nn.Module, x: Tensor, dy: Tensor, tangents: dict[str, Tensor]
) -> Callable[[], Results]:
    """Every weight's gradient for each sample, (N, ...)."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: Results, x: Tensor, dy: Tensor) -> Tensor:
        return (functional_call(module, weights, (x[:, None],))[0] * dy[:, None]).sum()

    gradients = vmap(grad(loss), in_dims=(None, 1, 1))
    return lambda: gradients(weights, x, dy)


def per_sample_loop(
    module: torch.nn.Module, x: Tensor, dy: Tensor, tangents: dict[str, Tensor]
) -> Callable[[], Results]:
    """Compute per-sample gradients by a loop over the samples."""
    weights = dict(module.named_parameters())

    def run() -> Results:
        gradients = []
        for sample, gradient in zip(x.split(1, 1), dy.split(1, 1), strict=True):
            gradients.append(torch.autograd.grad(module(sample)[0], [*weights.values()], gradient))
        return dict(zip(weights, map(torch.stack, zip(*gradients, strict=True)), strict=True))

    return run


def double_backward(
    module: torch.nn.Module, x: Tensor, dy: Tensor, tangents: dict[str, Tensor]
) -> Callable[[], Results]:
    """Gradients of the input gradient's squared norm, as in a gradient penalty."""
    weights = dict(module.named_parameters())
    x = x.detach().requires_grad_()

    def run() -> Results:
        (dx,) = torch.autograd.grad(module(x)[0], x, dy, create_graph=True)
        gradients = torch.autograd.grad(dx.square().sum(), [*weights.values()])
        return dict(zip(weights, gradients, strict=True))

    return run


def forward_mode(
    module: torch.nn.Module, x: Tensor, dy: Tensor, tangents: dict[str, Tensor]
) -> Callable[[], Results]:
    """The output and its tangent."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    directions = {name: tangents[name] for name in weights}

    def output(weights: Results, x: Tensor) -> Any:
        return functional_call(module, weights, (x,))[0]

    def run() -> Results:
        with torch.no_grad():
            pair = jvp(output, (weights, x), (directions, tangents["input"]))
        return {"output": pair[0], "tangent": pair[1]}

    return run


RUNS: dict[str, Transform] = {PER_SAMPLE: per_sample, DOUBLE: double_backward, JVP: forward_mode}
