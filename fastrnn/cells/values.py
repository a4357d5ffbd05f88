"""What stands for a value while a cell's function is traced: operators that build nodes.

Whatever cannot be part of a cell (a branch, a loop, an in-place operation, a function of another
package) raises a CellError that names the line and what to write instead.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from fastrnn.cells.errors import error_here
from fastrnn.cells.graph import Graph, Node

__all__ = ["LATER", "Condition", "Value", "as_node", "refuse_later"]

# What a later version may bring, and what it is.
LATER = {
    "layer_norm": "a reduction over units",
    "rms_norm": "a reduction over units",
    "softmax": "a reduction over units",
    "bernoulli": "a random mask",
    "dropout": "a random mask",
    "matmul": "a product with a matrix within the step",
}
# Names that torch, numpy and math have for functions of the language.
_ALSO_CALLED = {
    "absolute": "abs", "fabs": "abs", "max": "maximum", "fmax": "maximum", "min": "minimum",
    "fmin": "minimum", "clamp": "minimum and maximum", "clip": "minimum and maximum",
    "hardsigmoid": "hard_sigmoid", "hardtanh": "hard_tanh",
}  # fmt: skip
_FUNCTIONS = (
    "sigmoid", "tanh", "relu", "exp", "log", "softplus", "sqrt", "abs", "minimum", "maximum",
    "where", "hard_sigmoid", "hard_tanh", "gelu", "silu", "softsign", "elu",
)  # fmt: skip
# numpy's numbers ask for these before Python asks a value.
_NUMPY_OPERATORS = {
    "add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__", "divide": "__rtruediv__",
    "true_divide": "__rtruediv__", "less": "__gt__", "less_equal": "__ge__", "greater": "__lt__",
    "greater_equal": "__le__", "equal": "__eq__", "not_equal": "__ne__",
}  # fmt: skip
# The largest power is three products.
_LARGEST_EXPONENT = 8


def refuse_later(name: str, *_: object, **__: object) -> NoReturn:
    """Refuse a function that the language does not have yet."""
    raise error_here(
        f"{name} comes later: {LATER[name]} is not in the language of cells yet; write the cell of "
        f"element-wise functions ({', '.join(_FUNCTIONS)})"
    )


def _refuse_function(package: str, name: str) -> NoReturn:
    if name in LATER:
        refuse_later(name)
    ours = _ALSO_CALLED.get(name, name)
    if ours in _FUNCTIONS or name in _ALSO_CALLED:
        instead = f"write {ours} of fastrnn.cells"
    else:
        instead = f"the language has {', '.join(_FUNCTIONS)}"
    raise error_here(f"{package}.{name} cannot take a value of a cell: {instead}")


def as_node(graph: Graph, value: object) -> Node:
    """The node of a value or a number."""
    if isinstance(value, Value):
        if value.graph is not graph:
            raise error_here("a value of another cell's function cannot be used here")
        return value.node
    if isinstance(value, Condition):
        raise error_here(
            "a comparison is not a number: write where(condition, 1.0, 0.0) to use it as one"
        )
    if isinstance(value, Tensor):
        raise error_here(
            "a tensor cannot be part of a cell: declare vectors=(name,) for a parameter of one "
            "number a unit, inputs=(name,) for an extra input, numbers={name: value} for a number"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise error_here(
            f"a value of a cell is combined with values and numbers alone, got "
            f"{type(value).__name__}"
        )
    return graph.constant(float(value))


def _refusing(message: str) -> Callable[..., Any]:
    def refuse(self: object, *_: object) -> NoReturn:
        raise error_here(message)

    return refuse


class _Symbol:
    """What values and conditions have in common: neither is known while the function is traced."""

    # numpy's arrays, too, leave an operator to __array_ufunc__.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.node = node

    __bool__ = _refusing(
        "a branch cannot depend on a value, which differs from unit to unit: write "
        "where(condition, a, b); for min and max of two values, minimum and maximum"
    )
    __float__ = __int__ = __index__ = __complex__ = _refusing(
        "a value is not known while the cell is traced, so it has no float: use the functions of "
        "fastrnn.cells instead of those of math and numpy"
    )
    __array__ = _refusing(
        "a value cannot become an array: use the functions of fastrnn.cells instead of numpy's"
    )
    __iter__ = __len__ = __contains__ = _refusing(
        "a loop cannot run over a value, which is one number a unit: loop over Python's numbers, "
        "or over names of gates with getattr(x, name)"
    )
    __getitem__ = __setitem__ = _refusing(
        "a value is one number a unit and has no items: a gate is x.<name>, not a slice"
    )
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _refusing(
        "an in-place operation cannot be part of a cell: write a = a + b instead of a += b"
    )
    __matmul__ = __rmatmul__ = _refusing(
        f"matmul comes later: {LATER['matmul']} is not in the language of cells yet; x.<gate> and "
        "h.<gate> are the products there are; two steps of a layer make a step with two of them "
        "(docs/cells.md)"
    )
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __divmod__ = __round__ = _refusing(
        "the language has +, -, *, / and ** with a small whole number, no remainders or rounding"
    )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_") and name.rstrip("_") in (*_FUNCTIONS, "add", "mul", "sub", "div"):
            raise error_here(f"in-place {name} cannot be part of a cell: write a = a + b")
        if name in LATER:
            refuse_later(name)
        ours = _ALSO_CALLED.get(name, name)
        if ours in _FUNCTIONS:
            instead = f"write {ours}(value)"
        else:
            instead = f"use {ours}" if ours != name else "use operators and functions"
        raise error_here(f"a value has no attribute {name}: {instead} of fastrnn.cells")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> NoReturn:
        for arg in args:
            if isinstance(arg, Tensor):
                as_node(Graph(), arg)  # says what to declare instead
        name = getattr(function, "__name__", str(function))
        _refuse_function("torch", name)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **_: Any) -> Any:
        operator = _NUMPY_OPERATORS.get(function.__name__)
        if operator is None or len(inputs) != 2 or inputs[1] is not self:
            _refuse_function("numpy", function.__name__)
        return getattr(self, operator)(inputs[0])


class Condition(_Symbol):
    """A comparison of two values: what where takes first."""

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refusing(
        "a comparison is not a number: write where(condition, 1.0, 0.0) to use it as one"
    )
    __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = __add__
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __add__
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _refusing(
        "comparisons are not combined: nest them, where(a, where(b, v, w), w) for a and b"
    )


class Value(_Symbol):
    """A number of each unit that is not known yet."""

    def __add__(self, other: object) -> Value:
        return self._build("add", self, other)

    def __radd__(self, other: object) -> Value:
        return self._build("add", other, self)

    def __sub__(self, other: object) -> Value:
        return self._build("sub", self, other)

    def __rsub__(self, other: object) -> Value:
        return self._build("sub", other, self)

    def __mul__(self, other: object) -> Value:
        return self._build("mul", self, other)

    def __rmul__(self, other: object) -> Value:
        return self._build("mul", other, self)

    def __truediv__(self, other: object) -> Value:
        return self._build("div", self, other)

    def __rtruediv__(self, other: object) -> Value:
        return self._build("div", other, self)

    def __neg__(self) -> Value:
        return self._build("neg", self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return self._build("abs", self)

    def __pow__(self, exponent: object) -> Value:
        whole = isinstance(exponent, numbers.Real) and float(exponent).is_integer()
        if not whole or abs(exponent) > _LARGEST_EXPONENT:  # type: ignore[arg-type]
            raise error_here(
                f"a power is a whole number from -{_LARGEST_EXPONENT} to {_LARGEST_EXPONENT}: "
                "write sqrt(v) for v ** 0.5, and exp(y * log(v)) for v ** y"
            )
        power = self._power(abs(int(exponent)))  # type: ignore[call-overload]
        return power if exponent >= 0 else 1 / power  # type: ignore[operator]

    __rpow__ = _refusing("a value cannot be an exponent: write exp(v * log(base))")

    def __lt__(self, other: object) -> Condition:
        return self._compare("lt", self, other)

    def __le__(self, other: object) -> Condition:
        return self._compare("le", self, other)

    def __gt__(self, other: object) -> Condition:
        return self._compare("lt", other, self)

    def __ge__(self, other: object) -> Condition:
        return self._compare("le", other, self)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return self._compare("eq", self, other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return self._compare("ne", self, other)

    def _build(self, op: str, *args: object) -> Value:
        nodes = [as_node(self.graph, arg) for arg in args]
        return Value(self.graph, self.graph.build(op, *nodes))

    def _compare(self, op: str, *args: object) -> Condition:
        return Condition(self.graph, self._build(op, *args).node)

    def _power(self, exponent: int) -> Value:
        """Products of squares: v ** 5 is (v * v) * (v * v) * v."""
        if exponent == 0:
            return Value(self.graph, self.graph.constant(1))
        if exponent == 1:
            return self
        half = self._power(exponent // 2)
        square = half * half
        return square * self if exponent % 2 else square
