"""TorchRL's LSTMModule and GRUModule: trajectories in a batch are one call, not split and padded.

After :func:`fastrnn.accelerate` they work as they stand, but still cut a batch into trajectories,
pad these, and put them together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchrl.modules
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

import fastrnn
from fastrnn.modules import RecurrentModule

__all__ = ["GRUModule", "LSTMModule", "accelerate_policy"]


def accelerate_policy(policy: nn.Module, *, report: fastrnn.Report | None = None) -> nn.Module:
    """Accelerate a policy's layers, and let its recurrent modules run a batch in one call.

    Each module stays the object it is, with its Parameters, and changes its class to one of this
    module's. Results and gradients are those of TorchRL's.

    Args:
        policy: changed in place; may itself be a TorchRL LSTMModule or GRUModule.
        report: filled with what was replaced and what was left, with reasons; print it.

    Returns:
        The policy.

    Example::

        >>> policy = accelerate_policy(TensorDictSequential(LSTMModule(...), actor))
    """
    fastrnn.accelerate(policy, report=report)
    for module in policy.modules():
        module.__class__ = _IN_ONE_CALL.get(type(module), type(module))
    return policy


class _InOneCall:
    """What is put before a recurrent module's class."""

    @dispatch
    def forward(self: Any, tensordict: TensorDictBase) -> TensorDictBase:
        """Run the layer; in recurrent mode, states are zero where ``is_init`` is true.

        TorchRL's own forward runs one step, a layer of two directions, a graph of torch.compile's,
        and trajectories that start from states other than zero.
        """
        if not self.recurrent_mode or not tensordict.shape or not _has_resets(self._layer):
            return super().forward(tensordict)  # type: ignore[misc]

        def rows(t: Tensor) -> Tensor:  # (N, T, ...), whatever number of dimensions N had
            return t.reshape(-1, *t.shape[tensordict.ndim - 1 :])

        x, is_init = (rows(tensordict[self.in_keys[i]]) for i in (0, -1))
        states = [tensordict.get(key, None) for key in self.in_keys[1:-1]]
        states = [rows(h) for h in states if h is not None]
        starts = is_init.squeeze(-1).clone()
        starts[:, 0] = False  # a batch begins with the states that it has, whatever is_init says
        if any(h.requires_grad or h[starts].any() for h in states):
            return super().forward(tensordict)  # type: ignore[misc]
        hx = tuple(h[:, 0].transpose(0, 1) for h in states)
        output, _, all_states = self._layer(x, hx or None, reset=starts, return_all_states=True)
        ends = starts.roll(-1, 1)
        ends[:, -1] = True
        results = [output, *(_at(ends, layers) for layers in all_states if layers is not None)]
        for key, result in zip(self.out_keys, results, strict=True):
            tensordict.set(key, result.reshape(*tensordict.shape, *result.shape[2:]))
        return tensordict


def _has_resets(layer: nn.Module) -> bool:
    ours = isinstance(layer, RecurrentModule) and not layer.bidirectional
    return ours and not torch.compiler.is_compiling()


def _at(ends: Tensor, states_of_layers: Sequence[Tensor]) -> Tensor:
    """(N, T, L, R): a layer's states (N, T, R) where ends (N, T) is true, and 0 elsewhere."""
    return torch.stack(tuple(states_of_layers), 2).where(ends[..., None, None], 0.0)


class LSTMModule(_InOneCall, torchrl.modules.LSTMModule):
    """TorchRL's LSTMModule whose batches are one call; :func:`accelerate_policy` gives it."""

    @property
    def _layer(self) -> nn.Module:
        return self.lstm


class GRUModule(_InOneCall, torchrl.modules.GRUModule):
    """TorchRL's GRUModule whose batches are one call; :func:`accelerate_policy` gives it."""

    @property
    def _layer(self) -> nn.Module:
        return self.gru


_IN_ONE_CALL: dict[type[nn.Module], type[nn.Module]] = {
    torchrl.modules.LSTMModule: LSTMModule,
    torchrl.modules.GRUModule: GRUModule,
}
