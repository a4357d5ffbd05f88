"""Opacus: per-sample gradients of fastrnn's layers, from one fused backward for all samples.

Opacus' hooks see a module's positional arguments, which must be tensors, and the gradient of its
first result alone. So what they see of a private layer is a call within its call, whose one result
is the output and the final states side by side: no gradient passes them by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.validators import register_module_validator
from opacus.validators.errors import (
    IllegalModuleConfigurationError,
    ShouldReplaceModuleError,
    UnsupportedModuleError,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastrnn
from fastrnn import dropin
from fastrnn.checks import LSTM_STATES, check_states, lengths_tensor
from fastrnn.modules import RecurrentModule

__all__ = ["GRU", "LSTM", "RNN", "prepare"]


def prepare(model: nn.Module, *, report: fastrnn.Report | None = None) -> nn.Module:
    """Make the recurrent layers of a model ready for Opacus' ``PrivacyEngine``.

    torch.nn's layers are accelerated; then every RNN, GRU and LSTM of fastrnn becomes one of this
    module's. Each stays the object it is, with its Parameters and their names. Call it before
    ``make_private`` or ``GradSampleModule``, and leave their ``batch_first`` at its default, True;
    a layer's own ``batch_first`` may be either.

    Args:
        model: changed in place; may itself be a layer.
        report: filled with what was replaced and what was left, with reasons; print it.

    Returns:
        The model.

    Raises:
        TypeError: a layer of fastrnn is a subclass, parametrized or frozen.

    Example::

        >>> model = prepare(Classifier())
        >>> model, optimizer, loader = PrivacyEngine().make_private(
        ...     module=model, optimizer=optimizer, data_loader=loader,
        ...     noise_multiplier=1.0, max_grad_norm=1.0,
        ... )
    """
    fastrnn.accelerate(model, report=report)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, RecurrentModule)}
    for name, layer in layers.items():
        if type(layer) not in _PRIVATE and not isinstance(layer, _Private):
            raise TypeError(
                f"prepare: {name or 'the model'} is a {type(layer).__qualname__}; per-sample "
                "gradients need a layer as torch.nn or fastrnn makes it"
            )
    for layer in layers.values():
        layer.__class__ = _PRIVATE.get(type(layer), type(layer))
    return model


class _Private(RecurrentModule):
    """What is put before a layer's class."""

    def __call__(self, input: Tensor, hx: Any = None, *, lengths: Any = None) -> Any:
        """Arguments and results of the layer's forward.

        Raises:
            NotImplementedError: the input is packed, jagged or a single sequence.
        """
        if not isinstance(input, Tensor) or input.is_nested or input.dim() != 3:
            raise NotImplementedError(
                f"{type(self).__name__}: per-sample gradients need a padded batch of three "
                f"dimensions, got {type(input).__name__}: pad sequences and give lengths="
            )
        x = self._samples_first(input)
        N, T = x.shape[:2]
        directions, has_cell_state = 1 + self.bidirectional, self.mode == "LSTM"
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 1 + has_cell_state]
        shapes = [(T, directions * sizes[0]), *((self.num_layers * directions, n) for n in sizes)]
        lengths = torch.full((N,), T) if lengths is None else lengths_tensor(lengths)
        if hx is None:
            states = [x.new_zeros(N, *shape) for shape in shapes[1:]]
        else:
            labels = LSTM_STATES[: 1 + has_cell_state]
            states = [h.transpose(0, 1) for h in check_states(self.mode, hx, labels)]
            states = [h.expand(N, *shape) for h, shape in zip(states, shapes[1:], strict=True)]
        rows = super().__call__(x, lengths, *states)
        parts = rows.split([count * size for count, size in shapes], 1)
        output, *finals = (p.unflatten(1, shape) for p, shape in zip(parts, shapes, strict=True))
        finals = [h.transpose(0, 1) for h in finals]
        return self._samples_first(output), tuple(finals) if has_cell_state else finals[0]

    def forward(self, x: Tensor, lengths: Tensor, *states: Tensor) -> Tensor:
        """Output and final states as rows (N, C), from x (N, T, I) and states (N, L * D, R)."""
        hx = tuple(h.transpose(0, 1) for h in states)
        output, finals = super().forward(self._samples_first(x), hx, lengths=lengths)
        finals = finals if isinstance(finals, tuple) else (finals,)
        parts = [self._samples_first(output), *(h.transpose(0, 1) for h in finals)]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def _samples_first(self, sequence: Tensor) -> Tensor:
        """From the layer's layout to (N, T, C), or back."""
        return sequence if self.batch_first else sequence.transpose(0, 1)


class RNN(_Private, fastrnn.RNN):  # type: ignore[misc]
    """:class:`fastrnn.RNN` with per-sample gradients for Opacus; :func:`prepare` gives it."""


class GRU(_Private, fastrnn.GRU):  # type: ignore[misc]
    """:class:`fastrnn.GRU` with per-sample gradients for Opacus; :func:`prepare` gives it."""


class LSTM(_Private, fastrnn.LSTM):  # type: ignore[misc]
    """:class:`fastrnn.LSTM` with per-sample gradients for Opacus; :func:`prepare` gives it."""


class AcceleratedRNN(_Private, dropin.RNN):  # type: ignore[misc]
    """The same of an accelerated layer, which stays a :class:`torch.nn.RNN`."""


class AcceleratedGRU(_Private, dropin.GRU):  # type: ignore[misc]
    """The same of an accelerated layer, which stays a :class:`torch.nn.GRU`."""


class AcceleratedLSTM(_Private, dropin.LSTM):  # type: ignore[misc]
    """The same of an accelerated layer, which stays a :class:`torch.nn.LSTM`."""


_PRIVATE: dict[type[RecurrentModule], type[RecurrentModule]] = {
    fastrnn.RNN: RNN,
    fastrnn.GRU: GRU,
    fastrnn.LSTM: LSTM,
    dropin.RNN: AcceleratedRNN,
    dropin.GRU: AcceleratedGRU,
    dropin.LSTM: AcceleratedLSTM,
}


class _Forward(nn.Module):
    """A layer's forward without the hooks of its call."""

    def __init__(self, layer: _Private) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer.forward(*inputs)


@register_grad_sampler(list(_PRIVATE.values()))
def per_sample_gradients(
    layer: _Private, inputs: Sequence[Tensor], slopes: Tensor
) -> dict[nn.Parameter, Tensor]:
    """For each parameter its gradients (N, ...), from forward's arguments and result's slopes."""
    if len(slopes) == 0:  # a batch that Poisson sampling left empty
        return {p: p.new_zeros(0, *p.shape) for p in layer.parameters()}
    forward = _Forward(layer)

    def loss(weights: dict[str, Tensor], slope: Tensor, *batch_of_one: Tensor) -> Tensor:
        (result,) = functional_call(forward, weights, batch_of_one)
        return (result * slope).sum()

    weights = {name: p.detach() for name, p in forward.named_parameters() if p.requires_grad}
    mapped = (slopes, *(t.unsqueeze(1) for t in inputs))
    gradients = vmap(grad(loss), (None, *(0 for _ in mapped)))(weights, *mapped)
    return {forward.get_parameter(name): gradient for name, gradient in gradients.items()}


@register_module_validator(list(_PRIVATE))
def refuse_unprepared(layer: nn.Module) -> list[UnsupportedModuleError]:
    """PrivacyEngine asks this of layers that prepare has not seen."""
    return [
        ShouldReplaceModuleError(
            f"{type(layer).__name__}: call fastrnn.integrations.opacus.prepare on the model first"
        )
    ]


@register_module_validator(list(_PRIVATE.values()))
def refuse_dropout(layer: _Private) -> list[UnsupportedModuleError]:
    """The gradients come from a second forward, which would drop other elements."""
    if layer.num_layers == 1 or layer.dropout == 0:
        return []
    return [
        IllegalModuleConfigurationError(
            f"{type(layer).__name__}: per-sample gradients need dropout=0, got {layer.dropout}: "
            "put a torch.nn.Dropout after the layer instead"
        )
    ]
