"""fastrnn's modules as subclasses of torch.nn's, so that isinstance says what it said before.

:func:`fastrnn.accelerate` gives a module one of these classes. Its private state stays torch.nn's:
the list of weights, what keeps that right, and the checks that code calls by name. All else, the
forward before all, is fastrnn's.
"""

from __future__ import annotations

import operator
import types
from typing import Any

from torch import Tensor, nn

from fastrnn import modules
from fastrnn.torch_internals import allow_in_compile

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


allow_in_compile(modules.RecurrentModule)
