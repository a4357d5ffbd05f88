"""Swap torch.nn's recurrent modules inside a model for fastrnn's, and back.

A module stays the object it is and changes its class, as torch.nn.utils.parametrize does. Whatever
holds the module, a Parameter or a hook of it (an optimizer, a list, a compiled call) stays right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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
        left: qualified name of each recurrent module left as it was, and why; in plain lists and
            dicts, too, with its place there as the name.
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
    report.left.update(unregistered(model, kinds))
    reasons: dict[nn.Module, str | None] = {}
    for name, module in candidates:
        if module not in reasons:
            with in_eval_mode(module):
                reasons[module] = _swap_class(module, mapping, reason_to_leave)
        reason = reasons[module]
        if reason is None:
            kind = _unparametrized_class(module)
            package = "fastrnn" if kind in _FAST_TO_TORCH else "torch.nn"
            report.replaced[name] = f"{package}.{kind.__name__}"
        else:
            report.left[name] = f"{type(module).__qualname__}: {reason}"
    return model


def _swap_class(
    module: nn.Module,
    mapping: Mapping[type[nn.Module], type[nn.Module]],
    reason_to_leave: Callable[[nn.Module], str | None],
) -> str | None:
    """Change a module's class, or say why not."""
    target = mapping.get(_unparametrized_class(module))
    if target is None:
        return "a subclass, which may rely on what it overrides"
    reason = _odd_instance(module) or reason_to_leave(module)
    if reason is None:
        _change_class(module, target)
    return reason


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """A module whose weights can be read: in training, spectral_norm's change as they are read."""
    training = [each for each in module.modules() if each.training]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True


def unregistered(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, str]:
    """Where a model holds modules of these kinds in lists and dicts, and why they are left."""
    registered = set(model.modules())
    return {
        f"{name}.{place}.{inside}".strip("."): f"{type(module).__qualname__}: in a plain list or "
        "dict, which torch.nn does not look into; take a ModuleList or ModuleDict"
        for name, owner in model.named_modules()
        for attribute, value in owner.__dict__.items()
        for place, held in _held(attribute, value)
        for inside, module in held.named_modules()
        if isinstance(module, kinds) and module not in registered
    }


def _held(place: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside lists, tuples and dicts."""
    if isinstance(value, nn.Module):
        yield place, value
    elif isinstance(value, (list, tuple, Mapping)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in items:
            yield from _held(f"{place}[{key!r}]", each)


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
