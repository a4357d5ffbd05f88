"""fastrnn's modules as subclasses of torch.nn's, so that isinstance says what it said before.

:func:`fastrnn.accelerate` gives a module one of these classes. Its private state stays torch.nn's:
the list of weights, what keeps that right, and the checks that code calls by name. Only the forward
is fastrnn's. Whoever imports this module, and be it pickle, holds such layers or will; so here
torch.compile is told to take them.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import operator
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastrnn import modules

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "subclass_over"]


class _Layer(modules.RecurrentModule):
    """What the layers below have of torch.nn's, and not of fastrnn's."""

    # torch.nn sets these on the instance; fastrnn's layers have properties by their names.
    _all_weights: Any = ()
    _flat_weights_names: Any = ()
    _flat_weights: Any = ()
    _flat_weight_refs: Any = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all_weights = modules.weight_names(self)
        self._flat_weights_names = modules.flat_weight_names(self)
        self._init_flat_weights()  # type: ignore[operator]

    def _weights(self) -> list[Tensor]:
        """The weights by their names; or torch.nn's list, where somebody put others into it."""
        weights, listed = super()._weights(), self._flat_weights
        if all(map(operator.is_, weights, listed)):
            return weights
        # The list is older than the names where a functional call or a parametrization set those.
        refs = self._flat_weight_refs
        current = len(refs) == len(weights) and all(
            ref is not None and ref() is weight for ref, weight in zip(refs, weights, strict=True)
        )
        return listed if current else weights


class RNN(_Layer, modules.RNN, nn.RNN):  # type: ignore[misc]
    """A :class:`fastrnn.RNN` that is a :class:`torch.nn.RNN`."""


class GRU(_Layer, modules.GRU, nn.GRU):  # type: ignore[misc]
    """A :class:`fastrnn.GRU` that is a :class:`torch.nn.GRU`."""


class LSTM(_Layer, modules.LSTM, nn.LSTM):  # type: ignore[misc]
    """A :class:`fastrnn.LSTM` that is a :class:`torch.nn.LSTM`."""


class RNNCell(modules.RNNCell, nn.RNNCell):  # type: ignore[misc]
    """A :class:`fastrnn.RNNCell` that is a :class:`torch.nn.RNNCell`."""


class GRUCell(modules.GRUCell, nn.GRUCell):  # type: ignore[misc]
    """A :class:`fastrnn.GRUCell` that is a :class:`torch.nn.GRUCell`."""


class LSTMCell(modules.LSTMCell, nn.LSTMCell):  # type: ignore[misc]
    """A :class:`fastrnn.LSTMCell` that is a :class:`torch.nn.LSTMCell`."""


# The attribute by which such a class names the user's.
USER_CLASS = "_user_class"


_made: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def subclass_over(kind: type[nn.Module], layer: type[nn.Module]) -> type[nn.Module]:
    """A user's subclass of torch.nn's layer whose ``super().forward`` is the given class's."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"], namespace["__qualname__"] = kind.__module__, kind.__qualname__
        namespace[USER_CLASS] = kind
        namespace["__reduce_ex__"] = _reduce

    if (kind, layer) not in _made:
        _made[kind, layer] = types.new_class(kind.__name__, (kind, layer), exec_body=fill)
    return _made[kind, layer]


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    kind = type(self)
    return _new_over, kind.__bases__, self.__getstate__()


def _new_over(kind: type[nn.Module], layer: type[nn.Module]) -> nn.Module:
    """An instance without state, for pickle, which finds no class by the name of such a one."""
    made = subclass_over(kind, layer)
    return made.__new__(made)


def _let_dynamo_take_layers(builder: Any) -> None:
    """Let torch.compile take these layers. It refuses every instance of torch.nn's, unless
    ``config.allow_rnn`` is set; which stays as it is for those that are torch.nn's alone, as
    torch cannot train them compiled."""
    refuse = builder.VariableBuilder.wrap_module

    @functools.wraps(refuse)
    def wrap_module(self: Any, value: nn.Module) -> Any:
        if not isinstance(value, modules.RecurrentModule):
            return refuse(self, value)
        with builder.config.patch(allow_rnn=True):
            return refuse(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Calls a function with a module once somebody loads that."""

    def __init__(self, name: str, call: Callable[[types.ModuleType], None]) -> None:
        self.name, self.call = name, call

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_call(module: types.ModuleType) -> None:
                load(module)
                self.call(module)

            spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


# torch.compile loads it, later than this: to load it here would take longer than to load torch.
_BUILDER = "torch._dynamo.variables.builder"
if _BUILDER in sys.modules:
    _let_dynamo_take_layers(sys.modules[_BUILDER])
else:
    sys.meta_path.insert(0, _WhenLoaded(_BUILDER, _let_dynamo_take_layers))
