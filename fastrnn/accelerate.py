"""Swap torch.nn's recurrent modules inside a model for fastrnn's, and back.

A module stays the object it is and changes its class, as torch.nn.utils.parametrize does. Whatever
holds the module, a Parameter or a hook of it (an optimizer, a list, a compiled call) stays right.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastrnn import dropin, modules
from fastrnn.library import DEVICES, DTYPES
from fastrnn.recurrent import UserCellModule
from fastrnn.torch_internals import inject_parametrizations

__all__ = [
    "OURS",
    "SUBCLASS",
    "Report",
    "accelerate",
    "decelerate",
    "in_eval_mode",
    "odd_instance",
    "unparametrized_class",
    "unregistered",
]

_Kind: TypeAlias = type[nn.Module]
_CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
_TORCH: tuple[_Kind, ...] = (nn.RNN, nn.GRU, nn.LSTM, *_CELLS)
OURS = (modules.RecurrentModule, modules.CellModule)
_PLAIN: dict[_Kind, _Kind] = {kind: getattr(modules, kind.__name__) for kind in _TORCH}
_DROP_IN: dict[_Kind, _Kind] = {kind: getattr(dropin, kind.__name__) for kind in _TORCH}
_TO_TORCH = {fast: kind for table in (_PLAIN, _DROP_IN) for kind, fast in table.items()}

# Private attributes of torch.nn's classes; _change_class makes them again for torch.nn.
_TORCH_CACHES = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")

# Methods that torch.nn's forward calls and fastrnn's does not.
_TORCH_STEPS = {
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
}
# What a subclass may override: it runs above either forward, or is not called by it.
_FREE = {"forward", "extra_repr", "flatten_parameters", "reset_parameters"}
SUBCLASS = "a subclass, which may rely on what it overrides"

# How a class may make its own copies; what torch's classes do here keeps the layers' class.
_COPYING = ("__deepcopy__", "__setstate__", "__reduce__", "__reduce_ex__")

# The class that a module takes, or why it stays as it is, or None where there is nothing to say.
_Decision: TypeAlias = _Kind | str | None


@dataclass
class Report:
    """What :func:`accelerate` or :func:`decelerate` did.

    Attributes:
        replaced: qualified name of each module replaced ("" is the model itself), and its new type.
        left: qualified name of each recurrent module left as it was, and why; in plain lists and
            dicts, too, with its place there as the name.
        copied: qualified name of each module with replaced ones inside whose class makes its own
            copies, and the method: deep copies and pickles of it may hold torch.nn's layers again.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"replaced {_called(name)} by {kind}" for name, kind in self.replaced.items()]
        lines += [f"left {_called(name)}: {reason}" for name, reason in self.left.items()]
        lines += [
            f"copies of {_called(name)} are made by {method}, perhaps with torch.nn's layers: "
            "accelerate a copy, too"
            for name, method in self.copied.items()
        ]
        return "\n".join(lines) or "no recurrent module found"


def _called(name: str) -> str:
    return name or "(the model)"


def accelerate(
    model: nn.Module,
    *,
    keep_type: bool = True,
    cells: bool = False,
    report: Report | None = None,
) -> nn.Module:
    """Replace every torch.nn RNN, GRU and LSTM inside a model by fastrnn's.

    Each module stays the object it is, with its Parameters, hooks, training flag and
    parametrizations; an optimizer made before goes on working. It becomes an instance of fastrnn's
    class and stays one of torch.nn's. So do subclasses of torch.nn's that override nothing but a
    ``forward`` which calls ``super().forward``. Other subclasses are left alone, for they may rely
    on what they override; so are modules of which a method was replaced, and those in a dtype or on
    a device without a kernel.

    Args:
        model: changed in place; may itself be a recurrent module.
        keep_type: an accelerated module is an instance of torch.nn's class, too. Otherwise it is of
            fastrnn's own, as the constructors make it, and subclasses are left alone.
        cells: also replace RNNCell, GRUCell and LSTMCell. Called once a step they may gain
            little in training.
        report: filled with what was replaced and what was left, with reasons; print it.

    Returns:
        The model.

    Raises:
        TypeError: the model is no module.

    Example::

        >>> report = fastrnn.Report()
        >>> model = fastrnn.accelerate(model, report=report)
        >>> print(report)
        replaced encoder.rnn by fastrnn.LSTM
    """
    return _swap("accelerate", model, lambda module: _faster(module, keep_type, cells), report)


def decelerate(model: nn.Module, *, report: Report | None = None) -> nn.Module:
    """Undo :func:`accelerate`: replace every fastrnn module inside a model by torch.nn's.

    What torch.nn's forward does not take (``lengths=``) fails at the next call; a layer with
    ``reverse=True`` is left.

    Args:
        model: changed in place; may itself be a recurrent module.
        report: filled with what was replaced and what was left, with reasons; print it.

    Returns:
        The model.

    Raises:
        TypeError: the model is no module.
    """
    return _swap("decelerate", model, _torchs, report)


def _swap(
    caller: str,
    model: nn.Module,
    decide: Callable[[nn.Module], _Decision],
    report: Report | None,
) -> nn.Module:
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{caller}: model must be a torch.nn.Module, an instance, got {given}")
    report = Report() if report is None else report
    report.left.update(unregistered(model, _TORCH if caller == "accelerate" else OURS))
    decisions: dict[nn.Module, _Decision] = {}
    replaced = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in decisions:
            with in_eval_mode(module):
                decision = decisions[module] = decide(module)
                if isinstance(decision, type):
                    _change_class(module, decision)
                    replaced.append(module)
        decision = decisions[module]
        if isinstance(decision, type):
            report.replaced[name] = _name_of(decision)
        elif decision is not None:
            report.left[name] = f"{type(module).__qualname__}: {decision}"
    if caller == "accelerate":
        report.copied.update(_makers_of_copies(model, replaced))
    return model


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """A module whose weights can be read: in training, spectral_norm's change as they are read."""
    parametrized = parametrize.is_parametrized(module)
    training = [each for each in module.modules() if parametrized and each.training]
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
        f"{name}.{attribute}{place}.{inside}".strip(
            "."
        ): f"{type(module).__qualname__}: in a plain "
        "list or dict, which torch.nn does not look into; take a ModuleList or ModuleDict"
        for name, owner in model.named_modules()
        for attribute, value in owner.__dict__.items()
        if not attribute.startswith("_")
        for place, held in _held(value, set())
        for inside, module in held.named_modules()
        if isinstance(module, kinds) and module not in registered
    }


def _held(value: Any, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside lists, tuples and dicts, and their places; `seen` are those walked."""
    if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
        return
    seen.add(id(value))
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, nn.Module):
            yield f"[{key!r}]", each
        elif isinstance(each, (dict, list, tuple)):
            for place, module in _held(each, seen):
                yield f"[{key!r}]{place}", module


def _name_of(kind: _Kind) -> str:
    user = vars(kind).get(dropin.USER_CLASS)
    if user is not None:
        return f"{user.__qualname__} over {_name_of(kind.__bases__[-1])}"
    if kind in _TO_TORCH:
        return f"fastrnn.{kind.__name__}"
    return f"torch.nn.{kind.__name__}" if kind in _TORCH else kind.__qualname__


def _faster(module: nn.Module, keep_type: bool, cells: bool) -> _Decision:
    if isinstance(module, torch.jit.ScriptModule):
        compiled = getattr(module, "original_name", "") in {kind.__name__ for kind in _TORCH}
        return "torch.jit compiled it; accelerate the model it was made of" if compiled else None
    kind = unparametrized_class(module)
    if isinstance(module, OURS):
        made_plain = not keep_type and kind in _DROP_IN.values()
        return _PLAIN[_TO_TORCH[kind]] if made_plain else None
    base = next((each for each in _TORCH if isinstance(module, each)), None)
    if base is None:
        return None
    if base in _CELLS and not cells:
        return "a cell, which may gain little in training; accelerate(model, cells=True) takes it"
    target = _faster_class(kind, base, keep_type)
    if not isinstance(target, type):
        return target
    methods = {"forward", *_TORCH_STEPS}
    taken = _names_of_ours(base) - set(_TORCH_CACHES)
    return odd_instance(module, methods, taken) or _without_kernel(module) or target


def _faster_class(kind: _Kind, base: _Kind, keep_type: bool) -> _Decision:
    """For torch.nn's class, the base, or a user's subclass of it."""
    if kind is base:
        return (_DROP_IN if keep_type else _PLAIN)[base]
    if not keep_type:
        return SUBCLASS
    return _odd_class(kind, base) or dropin.subclass_over(kind, _DROP_IN[base])


def _torchs(module: nn.Module) -> _Decision:
    if not isinstance(module, OURS):
        return None
    if isinstance(module, UserCellModule):
        return "torch.nn has no cell of the user's: write a loop over module.cell.step"
    kind = unparametrized_class(module)
    target = vars(kind).get(dropin.USER_CLASS) or _TO_TORCH.get(kind)
    if target is None:
        return SUBCLASS
    if getattr(module, "reverse", False):
        return "torch.nn has no reverse=True"
    return odd_instance(module, {"forward"}, set()) or target


def unparametrized_class(module: nn.Module) -> _Kind:
    """The class of a module before torch.nn.utils.parametrize replaced it by a subclass."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _names_of_ours(base: _Kind) -> set[str]:
    """The attributes that a class of ours has above torch.nn's, but for those that are free."""
    above = _above(_DROP_IN[base], base)
    return {name for kind in above for name in vars(kind) if not name.startswith("__")} - _FREE


def _above(kind: _Kind, base: _Kind) -> tuple[type, ...]:
    return kind.__mro__[: kind.__mro__.index(base)]


def _odd_class(kind: _Kind, base: _Kind) -> str | None:
    """Why fastrnn's forward cannot run below a subclass of torch.nn's, or None."""
    defined = {name for each in _above(kind, base) for name in vars(each)}
    if "__init_subclass__" in defined or type(kind) not in (type, ABCMeta):
        return "a subclass whose class runs code of its own where a class is made of it"
    relied_on = sorted(defined & (_TORCH_STEPS | _names_of_ours(base)))
    if relied_on:
        return f"{SUBCLASS}: {', '.join(relied_on)}"
    for each in _above(kind, base):
        forward = vars(each).get("forward")
        names = getattr(getattr(forward, "__code__", None), "co_names", ())
        if forward is not None and not {"super", "forward"}.issubset(names):
            return "a subclass whose forward does not call super().forward"
    return None


def odd_instance(module: nn.Module, methods: set[str], taken: set[str]) -> str | None:
    """Why this instance differs from others of its class, or None.

    Methods are those that must be the class's; taken are names that mean something to fastrnn.
    """
    replaced = sorted(methods & vars(module).keys())
    if replaced:
        return f"its {replaced[0]} was replaced"
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    if own & taken:
        return f"its attribute {min(own & taken)!r} means something else to fastrnn"
    missing = [name for name in modules.all_weight_names(module) if not hasattr(module, name)]
    return f"it has no {missing[0]}" if missing else None


def _without_kernel(module: nn.Module) -> str | None:
    weight = getattr(module, modules.all_weight_names(module)[0])
    if module.hidden_size == 0:
        return "it has no hidden units"
    if weight.device.type not in DEVICES:
        return f"fastrnn has no kernel for device '{weight.device}' in this build"
    if weight.dtype not in DTYPES:
        return f"fastrnn has no kernel for {weight.dtype}"
    return None


def _makers_of_copies(model: nn.Module, replaced: list[nn.Module]) -> Iterator[tuple[str, str]]:
    """Modules around replaced ones whose classes, not torch's, make their own copies."""
    for name, module in model.named_modules():
        kind = type(module)
        for method in _COPYING:
            owner = next((each for each in kind.__mro__ if method in vars(each)), object)
            if owner.__module__.partition(".")[0] in ("builtins", "torch") or module in replaced:
                continue
            if any(part in replaced for part in module.modules()):
                yield name, f"{kind.__qualname__}.{method}"
                break


def _change_class(module: nn.Module, target: _Kind) -> None:
    parametrized: list[str] = []
    if parametrize.is_parametrized(module):
        parametrized = list(module.parametrizations)  # type: ignore[arg-type]
    has_caches = isinstance(module, nn.RNNBase)
    if not issubclass(target, nn.RNNBase):
        for name in _TORCH_CACHES:
            module.__dict__.pop(name, None)
    module.__class__ = target
    if isinstance(module, nn.RNNBase) and not has_caches:
        module._all_weights = modules.weight_names(module)
        module._flat_weights_names = modules.flat_weight_names(module)
    if parametrized:
        inject_parametrizations(module, parametrized)
    if not isinstance(module, nn.RNNBase):
        return
    if parametrized or not has_caches:
        # The list keeps what a parametrization computed; of that, with a graph, there is no copy.
        with torch.no_grad():
            module._init_flat_weights()
    else:
        module.flatten_parameters()  # which cuDNN wants, and an accelerated layer does not do
