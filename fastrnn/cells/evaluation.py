"""A cell's graph as torch operations: any order of derivative, any transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.cells.graph import OPERATORS, SCALAR, Node, reachable

__all__ = ["Program", "apply"]

# torch's softplus is the identity from a threshold on; this one is past the last place of float64.
_SOFTPLUS_THRESHOLD = 40.0


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=_SOFTPLUS_THRESHOLD)


def _select(condition: Tensor | bool, a: Tensor, b: Tensor) -> Tensor:
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


_TENSOR: dict[str, Callable[..., Tensor]] = {
    **OPERATORS,
    "select": _select,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "softplus": _softplus,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "erf": torch.erf,
    "relu": torch.relu,
    "elu": F.elu,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
}
# These take no number beside a tensor, or lose its dtype.
_TENSORS_ALONE = ("select", "minimum", "maximum")


def apply(op: str, args: Sequence[Any], like: Tensor | None) -> Any:
    """An operation on tensors and numbers; numbers alone give a number, or a tensor where Python
    raises an error: kernels have inf or NaN there.

    Args:
        op: an operation of the graph.
        args: its arguments.
        like: the dtype and the device of numbers that have to be tensors.
    """
    if not any(isinstance(arg, Tensor) for arg in args):
        try:
            return SCALAR[op](*args)
        except (ArithmeticError, ValueError):
            args = [_full(arg, like) for arg in args]
    if op in _TENSORS_ALONE:
        args = [arg if isinstance(arg, (Tensor, bool)) else _full(arg, like) for arg in args]
    return _TENSOR[op](*args)


def _full(value: float, like: Tensor | None) -> Tensor:
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    return torch.full((), value, dtype=dtype, device=device)


class Program:
    """The operations between some nodes and others, each once, in order.

    Args:
        inputs: nodes whose values a call is given.
        outputs: nodes whose values it returns.

    Raises:
        KeyError: for a leaf that is neither a constant nor among the inputs.
    """

    def __init__(self, inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
        known = set(inputs)
        computed = [node for node in reachable(outputs, inputs) if node not in known]
        constants = [node for node in computed if node.is_constant]
        steps = [node for node in computed if not node.is_constant]
        place = {node: i for i, node in enumerate((*inputs, *constants, *steps))}
        for node in steps:
            if not node.args:
                raise KeyError(f"{node.op} {node.value} is not among the inputs")
        self._constants = [node.value for node in constants]
        self._steps = [(node.op, tuple(place[arg] for arg in node.args)) for node in steps]
        self._outputs = tuple(place[node] for node in outputs)

    def __call__(self, inputs: Sequence[Tensor | float], like: Tensor) -> list[Any]:
        """The outputs' values.

        Args:
            inputs: a value for each input of the program, in its order.
            like: a tensor of the dtype and on the device of the results.
        """
        return self.run(inputs, lambda op, args: apply(op, args, like))

    def run(self, inputs: Sequence[Any], operation: Callable[[str, list[Any]], Any]) -> list[Any]:
        """The outputs' values in another library's numbers.

        Args:
            inputs: as of a call.
            operation: the value of an operation of the graph on its arguments' values.
        """
        values: list[Any] = [*inputs, *self._constants]
        for op, places in self._steps:
            values.append(operation(op, [values[place] for place in places]))
        return [values[place] for place in self._outputs]
