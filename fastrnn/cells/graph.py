"""Expressions over one unit's values, each held once: what a cell's function leaves.

A node stands behind its arguments in the graph, so that the order of nodes is the order in which
the function computes them, and no walk needs recursion. Building a node folds constants, zeros and
ones, and moves signs and small powers of two outwards, where they meet others; no result is rounded
in another way but the product of two constants.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastrnn.cells.errors import error_here

__all__ = ["COMPARISONS", "LEAVES", "OPERATORS", "SCALAR", "Graph", "Node", "reachable"]

# What a node without arguments stands for: an input product, a recurrent product, a state before
# the step, a parameter of one number a unit, a number of the module, an extra input, a constant,
# and the gradient of a state after the step.
LEAVES = ("x", "h", "state", "vector", "number", "extra", "constant", "gradient")


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * x))


# These are the same on numbers and on tensors.
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
}
# Each operation on Python's numbers: constants are folded by it.
SCALAR: dict[str, Callable[..., float]] = {
    **OPERATORS,
    "select": lambda condition, a, b: a if condition else b,
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "exp": math.exp,
    "log": math.log,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "sqrt": math.sqrt,
    "abs": abs,
    "erf": math.erf,
    "relu": lambda x: 0.0 if x <= 0 else x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "minimum": min,
    "maximum": max,
}
COMPARISONS = ("lt", "le", "eq", "ne")
_COMMUTATIVE = ("add", "mul", "eq", "ne", "minimum", "maximum")


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on other nodes, or a leaf: a constant's value, or a name."""

    index: int  # its place in the graph
    op: str
    args: tuple[Node, ...] = ()
    value: float | bool | str | None = None

    @property
    def is_constant(self) -> bool:
        return self.op == "constant"

    @property
    def is_condition(self) -> bool:
        return self.op in COMPARISONS

    def is_number(self, value: float) -> bool:
        return self.is_constant and self.value == value

    @property
    def is_small_power_of_two(self) -> bool:
        """Whether it is a constant by which products are exact, and moves a value's exponent
        little: a product that takes it later leaves float32's range hardly sooner."""
        if not isinstance(self.value, float):
            return False
        mantissa, exponent = math.frexp(self.value)
        return abs(mantissa) == 0.5 and -8 < exponent - 1 < 8

    def __repr__(self) -> str:
        within = [repr(self.value)] if self.op in LEAVES else [f"%{a.index}" for a in self.args]
        return f"%{self.index} = {self.op}({', '.join(within)})"


class Graph:
    """Nodes of one cell, in the order they were made; the methods return the node that exists."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.nodes = list(nodes)
        self._known = {_key(node.op, node.args, node.value): node for node in self.nodes}

    def node(
        self, op: str, args: tuple[Node, ...] = (), value: float | bool | str | None = None
    ) -> Node:
        """The node as it is, nothing folded."""
        key = _key(op, args, value)
        if key not in self._known:
            self._known[key] = Node(len(self.nodes), op, args, value)
            self.nodes.append(self._known[key])
        return self._known[key]

    def constant(self, value: float | bool) -> Node:
        if not math.isfinite(value):
            raise error_here(f"a constant of a cell is a finite number, got {value}")
        return self.node("constant", value=value if isinstance(value, bool) else float(value))

    def build(self, op: str, *args: Node) -> Node:
        """The operation on the arguments, or a simpler node of the same value."""
        if all(arg.is_constant for arg in args):
            return self.constant(self._fold(op, [arg.value for arg in args]))
        simplify = getattr(self, f"_{op}", None)
        return self.node(op, args) if simplify is None else simplify(*args)

    def _fold(self, op: str, values: Sequence[float | bool | str | None]) -> float:
        try:
            return SCALAR[op](*values)
        except (ArithmeticError, ValueError):
            given = ", ".join(map(str, values))
            raise error_here(f"{op} of the constants {given} is no finite number") from None

    def _add(self, a: Node, b: Node) -> Node:
        if a.is_number(0):
            return b
        if b.is_number(0):
            return a
        if b.op == "neg":
            return self.build("sub", a, b.args[0])
        if a.op == "neg":
            return self.build("sub", b, a.args[0])
        if a is b:
            return self.build("mul", self.constant(2), a)
        return self.node("add", (a, b))

    def _sub(self, a: Node, b: Node) -> Node:
        if b.is_number(0):
            return a
        if a.is_number(0):
            return self.build("neg", b)
        if b.op == "neg":
            return self.build("add", a, b.args[0])
        if a.op == "neg":
            return self.build("neg", self.build("add", a.args[0], b))
        return self.node("sub", (a, b))

    def _neg(self, a: Node) -> Node:
        return a.args[0] if a.op == "neg" else self.node("neg", (a,))

    def _mul(self, a: Node, b: Node) -> Node:
        if b.is_constant:
            a, b = b, a
        if a.is_number(0) or b.is_number(0):
            return self.constant(0)
        if a.is_number(1):
            return b
        if a.is_number(-1):
            return self.build("neg", b)
        for factor, other in ((a, b), (b, a)):
            if factor.op == "neg":
                return self.build("neg", self.build("mul", factor.args[0], other))
        if a.is_constant and b.op == "mul" and b.args[0].is_constant:
            product = self.build("mul", a, b.args[0])
            if _is_moderate(product):
                return self.build("mul", product, b.args[1])
        for factor, other in ((a, b), (b, a)):
            if (
                factor.op == "mul"
                and factor.args[0].is_small_power_of_two
                and not other.is_constant
            ):
                rest = self.build("mul", factor.args[1], other)
                return self.build("mul", factor.args[0], rest)
        return self.node("mul", (a, b))

    def _div(self, a: Node, b: Node) -> Node:
        if b.is_number(0):
            raise error_here("a value is divided by the constant 0")
        if a.is_number(0) or b.is_number(1):
            return a
        # The reciprocal of a power of two is a number, and a product is faster than a quotient.
        if b.is_small_power_of_two:
            return self.build("mul", self.build("div", self.constant(1), b), a)
        if a.op == "mul" and a.args[0].is_small_power_of_two:
            return self.build("mul", a.args[0], self.build("div", a.args[1], b))
        if a.op == "neg":
            return self.build("neg", self.build("div", a.args[0], b))
        return self.node("div", (a, b))

    def _select(self, condition: Node, a: Node, b: Node) -> Node:
        if a is b:
            return a
        if condition.is_constant:
            return a if condition.value else b
        return self.node("select", (condition, a, b))


def _is_moderate(constant: Node) -> bool:
    """Whether a constant is far from the ends of float32's range, in which kernels hold it."""
    return isinstance(constant.value, float) and 1e-30 < abs(constant.value) < 1e30


def _key(
    op: str, args: tuple[Node, ...], value: float | bool | str | None
) -> tuple[str, tuple[int, ...], str]:
    indices = [arg.index for arg in args]
    # 1.0, 1 and True are equal, and are not the same constants.
    return op, tuple(sorted(indices) if op in _COMMUTATIVE else indices), repr(value)


def reachable(roots: Iterable[Node], stops: Iterable[Node] = ()) -> list[Node]:
    """The nodes that the roots are computed from, in the graph's order, none beyond the stops."""
    ends, found, waiting = set(stops), set(roots), list(roots)
    while waiting:
        node = waiting.pop()
        if node not in ends:
            waiting += [arg for arg in node.args if arg not in found]
            found.update(node.args)
    return sorted(found, key=lambda node: node.index)
