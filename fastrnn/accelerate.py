"""Swap torch.nn's recurrent modules inside a model for fastrnn's, and back.

A module stays the object it is and changes its class, as torch.nn.utils.parametrize does. Whatever
holds the module, a Parameter or a hook of it (an optimizer, a list, a compiled call) stays right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from fastrnn import modules
from fastrnn.library import DEVICES, DTYPES

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

# Private attributes of torch.nn's classes; _change_class makes them again for torch.nn.
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

    Each module stays the object it is, with its Parameters, hooks, training flag and
    parametrizations; an optimizer made before goes on working. Subclasses of torch.nn's modules are
    left alone, for they may rely on what they override; so are modules whose ``forward`` was
    replaced, and those in a dtype or on a device without a kernel.

    Args:
        model: changed in place; may itself be a recurrent module.
        report: filled with what was replaced and what was left, with reasons; print it.

    Returns:
        The model.

    Example::

        >>> report = fastrnn.Report()
        >>> model = fastrnn.accelerate(model, report=report)
        >>> print(report)
        replaced encoder.rnn by fastrnn.LSTM
    """
    return _swap(model, _TORCH_TO_FAST, _reason_to_leave, report)


def decelerate(model: nn.Module, *, report: Report | None = None) -> nn.Module:
    """Undo :func:`accelerate`: replace every fastrnn module inside a model by torch.nn's.

    Arguments and results are those of :func:`accelerate`. What torch.nn's forward does not take
    (``lengths=``) fails at the next call.
    """
    return _swap(model, _FAST_TO_TORCH, lambda module: None, report)


def _swap(
    model: nn.Module,
    mapping: Mapping[type[nn.Module], type[nn.Module]],
    reason_to_leave: Callable[[nn.Module], str | None],
    report: Report | None,
) -> nn.Module:
    report = Report() if report is None else report
    kinds: tuple[type[nn.Module], ...] = tuple(mapping)
    candidates = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds)
    ]
    reasons: dict[nn.Module, str | None] = {}
    for name, module in candidates:
        if module not in reasons:
            target = mapping.get(_unparametrized_class(module))
            if target is None:
                reasons[module] = "a subclass, which may rely on what it overrides"
            else:
                reasons[module] = _odd_instance(module) or reason_to_leave(module)
            if target is not None and reasons[module] is None:
                _change_class(module, target)
        reason = reasons[module]
        if reason is None:
            kind = _unparametrized_class(module)
            package = "fastrnn" if kind in _FAST_TO_TORCH else "torch.nn"
            report.replaced[name] = f"{package}.{kind.__name__}"
        else:
            report.left[name] = f"{type(module).__qualname__}: {reason}"
    return model


def _unparametrized_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before torch.nn.utils.parametrize replaced it by a subclass."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _odd_instance(module: nn.Module) -> str | None:
    """Why this instance differs from others of its class, or None."""
    if "forward" in module.__dict__:
        return "its forward was replaced"
    missing = [name for name in modules.all_weight_names(module) if not hasattr(module, name)]
    return f"it has no {missing[0]}" if missing else None


def _reason_to_leave(module: nn.Module) -> str | None:
    weight = getattr(module, modules.all_weight_names(module)[0])
    if weight.device.type not in DEVICES:
        return f"fastrnn has no kernel for device '{weight.device}' in this build"
    if weight.dtype not in DTYPES:
        return f"fastrnn has no kernel for {weight.dtype}"
    return None


def _change_class(module: nn.Module, target: type[nn.Module]) -> None:
    parametrized: list[str] = []
    if parametrize.is_parametrized(module):
        parametrized = list(module.parametrizations)  # type: ignore[arg-type]
    for name in _TORCH_CACHES:
        module.__dict__.pop(name, None)
    module.__class__ = target
    if isinstance(module, nn.RNNBase):
        module._all_weights = modules.weight_names(module)
        module._flat_weights_names = modules.flat_weight_names(module)
    if parametrized:
        parametrize._inject_new_class(module)
        for name in parametrized:
            parametrize._inject_property(module, name)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
