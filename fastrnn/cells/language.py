"""The functions of the language: nodes of values of a cell, and torch's functions of tensors.

So the function of a cell, called with tensors, is the formula in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import functional as F

from fastrnn.cells.errors import error_here
from fastrnn.cells.evaluation import apply
from fastrnn.cells.graph import Graph
from fastrnn.cells.values import Condition, Value, as_node

__all__ = [
    "abs", "elu", "exp", "gelu", "hard_sigmoid", "hard_tanh", "log", "maximum", "minimum",
    "relu", "sigmoid", "silu", "softplus", "softsign", "sqrt", "tanh", "where",
]  # fmt: skip

# A value while the cell is traced, a tensor or a number otherwise.
V = TypeVar("V")


def sigmoid(x: V) -> V:
    """1 / (1 + e^-x)"""
    return _call("sigmoid", x)


def tanh(x: V) -> V:
    """The hyperbolic tangent."""
    return _call("tanh", x)


def relu(x: V) -> V:
    """x where it is positive, else 0; its derivative at 0 is 0."""
    return _call("relu", x)


def exp(x: V) -> V:
    """e^x"""
    return _call("exp", x)


def log(x: V) -> V:
    """The natural logarithm."""
    return _call("log", x)


def softplus(x: V) -> V:
    """log(1 + e^x)"""
    return _call("softplus", x)


def sqrt(x: V) -> V:
    """The square root."""
    return _call("sqrt", x)


def abs(x: V) -> V:
    """The magnitude; its derivative at 0 is 0."""
    return _call("abs", x)


def elu(x: V) -> V:
    """x where it is positive, else e^x - 1."""
    return _call("elu", x)


def minimum(a: Any, b: Any) -> Any:
    """The lesser of two; at a tie each takes half of the gradient."""
    return _call("minimum", a, b)


def maximum(a: Any, b: Any) -> Any:
    """The greater of two; at a tie each takes half of the gradient."""
    return _call("maximum", a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition (a comparison of values) holds, else b.

    As in torch, both are computed: where b is not finite, its gradient is no number even if a is
    taken.
    """
    if isinstance(condition, Value):
        raise error_here("where takes a comparison first: write where(v > 0, a, b)")
    if not isinstance(condition, Condition):
        if isinstance(a, Value) or isinstance(b, Value):
            _check_known(condition)
            return a if condition else b
        return _call("select", condition, a, b)
    graph = condition.graph
    return Value(graph, graph.build("select", condition.node, as_node(graph, a), as_node(graph, b)))


def hard_sigmoid(x: V) -> V:
    """0 up to -3, 1 from 3 on, and x / 6 + 1/2 between."""
    return _composed(
        x, _hard_sigmoid, lambda v: where(v <= -3, 0, where(v >= 3, 1, v * (1 / 6) + 0.5))
    )


def hard_tanh(x: V) -> V:
    """-1 up to -1, 1 from 1 on, and x between."""
    return _composed(x, F.hardtanh, lambda v: where(v <= -1, -1, where(v >= 1, 1, v)))


def gelu(x: V) -> V:
    """x times the normal distribution's function at x, exactly."""
    return _composed(x, F.gelu, lambda v: 0.5 * v * (1 + _call("erf", v * math.sqrt(0.5))))


def silu(x: V) -> V:
    """x sigmoid(x)"""
    return _composed(x, F.silu, lambda v: v * sigmoid(v))


def softsign(x: V) -> V:
    """x / (1 + \\|x\\|)"""
    return _composed(x, F.softsign, lambda v: v / (1 + abs(v)))


def _hard_sigmoid(x: Tensor) -> Tensor:
    """F.hardsigmoid, whose derivative of float64 has a sixth in float32."""
    return F.relu6(x + 3) / 6


def _composed(x: Any, of_tensor: Callable[..., Tensor], formula: Callable[[Any], Any]) -> Any:
    """torch's function on a tensor, and its formula in the language on a value or a number."""
    return of_tensor(x) if isinstance(x, Tensor) else formula(x)


def _call(name: str, *args: Any) -> Any:
    for arg in args:
        if isinstance(arg, (Value, Condition)):
            graph: Graph = arg.graph
            return Value(graph, graph.build(name, *(as_node(graph, each) for each in args)))
    like = next((arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()), None)
    return apply(name, args, like)


def _check_known(condition: object) -> None:
    if not isinstance(condition, bool):
        raise error_here(
            f"where takes a comparison of values first, got {type(condition).__name__}: write "
            "where(v > 0, a, b)"
        )
