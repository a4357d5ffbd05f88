"""torch.nn's module and ours with the same weights, and how both are run."""

from __future__ import annotations

import pytest
import torch
from common import DEVICE, gradients, random
from torch import nn

import fastrnn
from fastrnn import dropin

LAYERS = ("RNN", "GRU", "LSTM")
I, H, T, N = 5, 9, 7, 4


# Our classes as constructors give them, and as accelerate does.
OURS = pytest.mark.parametrize("ours", [fastrnn, dropin], ids=["fastrnn", "accelerated"])


def make_pair(name, options=None, dtype=torch.float64, size=(I, H), ours=fastrnn):
    """torch.nn's module and ours, each made from the same seed."""
    pair = []
    for package in (nn, ours):
        torch.manual_seed(0)
        module = getattr(package, name)(*size, dtype=dtype, **(options or {}))
        pair.append(module.to(DEVICE))
    return pair


def flatten(results):
    """Tensors of nested tuples and PackedSequences, in order; None has none."""
    if results is None:
        return []
    if isinstance(results, torch.Tensor):
        return [results]
    if isinstance(results, nn.utils.rnn.PackedSequence):
        return [results.data]
    return [tensor for result in results for tensor in flatten(result)]


def make_inputs(name, options, dtype=torch.float64, batched=True):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        shape = shape if batched else (shape[0], shape[2])
        return random(shape, generator).to(DEVICE, dtype)

    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = normal(N, T, I) if options.get("batch_first") and batched else normal(T, N, I)
    h = normal(rows, N, options.get("proj_size", H))
    return x, (h, normal(rows, N, H)) if name == "LSTM" else h


def run(module, x, hx, seed=3):
    """Results and gradients with respect to input, states and weights."""
    leaves = [
        t.detach().clone().requires_grad_() for t in flatten([x] + ([] if hx is None else [hx]))
    ]
    x = x._replace(data=leaves[0]) if hasattr(x, "batch_sizes") else leaves[0]
    if hx is not None:
        hx = tuple(leaves[1:]) if isinstance(hx, tuple) else leaves[1]
    torch.manual_seed(seed)
    results = flatten(module(x, hx))
    return results + gradients(results, leaves + list(module.parameters()))
