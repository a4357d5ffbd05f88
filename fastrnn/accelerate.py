"""Swap torch.nn's recurrent modules inside a model for fastrnn's, and back.

A replacement takes over the original's own dictionaries of parameters, hooks and submodules, not
copies: whatever holds a Parameter (an optimizer, a tied layer) or a hook's handle goes on working.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastrnn import modules
from fastrnn.ops import DTYPES

__all__ = ["Report", "accelerate", "decelerate"]

_TORCH_TO_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: modules.RNN,
    nn.GRU: modules.GRU,
    nn.LSTM: modules.LSTM,
    nn.RNNCell: modules.RNNCell,
    nn.GRUCell: modules.GRUCell,
    nn.LSTMCell: modules.LSTMCell,
}
_FAST_TO_TORCH = {fast: slow for slow, fast in _TORCH_TO_FAST.items()}

# Attributes that torch.nn's classes keep for themselves, made anew by their constructors.
_TORCH_CACHES = {"_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights"}


@dataclass
class Report:
    """What :func:`accelerate` or :func:`decelerate` did.

    Attributes:
        replaced: qualified name of each module replaced ("" is the model itself), and its new type.
        left: qualified name of each recurrent module left as it was, and why.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"replaced {name or '(the model)'} by {kind}" for name, kind in self.replaced.items()
        ]
        lines += [f"left {name or '(the model)'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "no recurrent module found"


def accelerate(model: nn.Module, *, report: Report | None = None) -> nn.Module:
    """Replace every torch.nn RNN, GRU, LSTM and cell inside a model by fastrnn's.

    Replacements share the originals' Parameters, hooks, training flag and parametrizations; an
    optimizer made before goes on working. Subclasses of torch.nn's modules are left alone, for they
    may rely on what they override.

    Args:
        model: changed in place. If it is itself a recurrent module, use what is returned.
        report: filled with what was replaced and what was left, with reasons; print it.

    Returns:
        The model, or its replacement.

    Example::

        >>> report = fastrnn.Report()
        >>> model = fastrnn.accelerate(model, report=report)
        >>> print(report)
        replaced encoder.rnn by fastrnn.LSTM
    """
    return _swap(model, _TORCH_TO_FAST, _reason_to_leave, report)


def decelerate(model: nn.Module, *, report: Report | None = None) -> nn.Module:
    """Undo :func:`accelerate`: replace every fastrnn module inside a model by torch.nn's.

    Arguments, results and sharing are those of :func:`accelerate`.
    """
    return _swap(model, _FAST_TO_TORCH, lambda module: None, report)


def _swap(
    model: nn.Module,
    mapping: Mapping[type[nn.Module], type[nn.Module]],
    reason_to_leave: Callable[[nn.Module], str | None],
    report: Report | None,
) -> nn.Module:
    report = Report() if report is None else report
    replacements: dict[nn.Module, nn.Module] = {}
    kinds: tuple[type[nn.Module], ...] = tuple(mapping)
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, kinds):
            continue
        target = mapping.get(_unparametrized_class(module))
        reason = "a subclass, which may rely on what it overrides" if target is None else None
        reason = reason or reason_to_leave(module)
        if reason is not None or target is None:
            report.left[name] = f"{type(module).__qualname__}: {reason}"
            continue
        if module not in replacements:
            replacements[module] = _convert(module, target)
        report.replaced[name] = f"{_package(target)}.{target.__name__}"
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)


def _package(kind: type[nn.Module]) -> str:
    return "fastrnn" if kind in _FAST_TO_TORCH else "torch.nn"


def _reason_to_leave(module: nn.Module) -> str | None:
    weight = module.weight_ih_l0 if hasattr(module, "weight_ih_l0") else module.weight_ih
    assert isinstance(weight, torch.Tensor)
    if weight.device.type not in ("cpu", "meta"):
        return f"fastrnn has no kernel for device '{weight.device}' in this build"
    if weight.dtype not in DTYPES:
        return f"fastrnn has no kernel for {weight.dtype}"
    return None


def _unparametrized_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before torch.nn.utils.parametrize gave it one of its own."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _convert(module: nn.Module, target: type[nn.Module]) -> nn.Module:
    """A module of another class that shares the state of this one."""
    # What decides the number and names of the parameters; everything else comes with the state.
    options = ("num_layers", "bidirectional", "proj_size")
    structure = {name: value for name in options if (value := getattr(module, name, None))}
    new = target(
        module.input_size, module.hidden_size, bias=module.bias, device="meta", **structure
    )
    new.__dict__.update(
        {name: value for name, value in module.__dict__.items() if name not in _TORCH_CACHES}
    )
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(new)
        for name in module.parametrizations:  # type: ignore[union-attr]
            parametrize._inject_property(new, name)
    if isinstance(new, nn.RNNBase):
        new._init_flat_weights()
    return new
