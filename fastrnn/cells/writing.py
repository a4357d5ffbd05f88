"""Expressions as text, with few brackets, and names for what is used twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fastrnn.cells.declaration import Declaration
from fastrnn.cells.graph import Node, reachable
from fastrnn.cells.saving import TRANSCENDENTAL
from fastrnn.cells.steps import Backward
from fastrnn.cells.tracing import Formula

__all__ = ["Names", "Writer", "formula_names", "gradient_names", "number"]

_CONDITION, _SUM, _PRODUCT, _SIGN, _ATOM = range(5)
# How strongly an operator binds, and how strongly its left and right sides must. Rounding depends
# on brackets, so a + (b + c) keeps them.
_OPERATORS = {
    "add": ("+", _SUM, _SUM, _PRODUCT),
    "sub": ("-", _SUM, _SUM, _PRODUCT),
    "mul": ("*", _PRODUCT, _PRODUCT, _SIGN),
    "div": ("/", _PRODUCT, _PRODUCT, _SIGN),
    "lt": ("<", _CONDITION, _SUM, _SUM),
    "le": ("<=", _CONDITION, _SUM, _SUM),
    "eq": ("==", _CONDITION, _SUM, _SUM),
    "ne": ("!=", _CONDITION, _SUM, _SUM),
}


class Names:
    """Names of a function, each given out once."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def fresh(self, suggested: str) -> str:
        name, count = suggested, 1
        while name in self._taken:
            count += 1
            name = f"{suggested}_{count}"
        self._taken.add(name)
        return name


class Writer:
    """Statements that compute some nodes from others, as people write them.

    Args:
        given: the text of nodes that are there.
        results: the nodes to compute.
        suggested: names for nodes that get a statement of their own, as those used twice do.
        names: where those names come from.
    """

    # These functions' text has their argument twice.
    repeating: tuple[str, ...] = ()

    def __init__(
        self,
        given: Mapping[Node, str],
        results: Sequence[Node],
        suggested: Mapping[Node, str],
        names: Names,
    ) -> None:
        self._text = dict(given)
        self.statements: list[str] = []
        computed = [node for node in reachable(results, given) if node.args and node not in given]
        uses = Counter(results)
        for node in computed:
            uses.update(node.args * (2 if node.op in self.repeating else 1))
        for node in computed:
            if uses[node] > 1:
                text = self._operation(node)[0]
                self._text[node] = names.fresh(suggested.get(node, "t"))
                self.statements.append(self.statement(node, self._text[node], text))

    def __call__(self, node: Node) -> str:
        """The text of a node: its name if it has one, else its expression."""
        return self._expression(node, _CONDITION)

    def statement(self, node: Node, name: str, text: str) -> str:
        return f"{name} = {text}"

    def literal(self, node: Node) -> str:
        """A constant that is an operand of + - * /."""
        return number(node)

    def constant(self, node: Node) -> str:
        """A constant by itself, as an argument or a result."""
        return number(node)

    def function(self, op: str) -> str:
        """The name of an operation's function."""
        return "where" if op == "select" else op

    def call(self, function: str, args: Sequence[Node]) -> str:
        return f"{function}({', '.join(map(self, args))})"

    def fused(self, node: Node) -> str | None:
        """An operation that has another form than its operator's."""
        return None

    def is_product(self, node: Node) -> bool:
        """Whether the node is a product within a larger expression."""
        return node.op == "mul" and node not in self._text

    def _expression(self, node: Node, least: int) -> str:
        if node in self._text:
            return self._text[node]
        if node.is_constant:
            return self.constant(node)
        text, binds = self._operation(node)
        return text if binds >= least else f"({text})"

    def _operation(self, node: Node) -> tuple[str, int]:
        if (fused := self.fused(node)) is not None:
            return fused, _ATOM
        if node.op == "neg":
            return f"-{self._expression(node.args[0], _SIGN)}", _SIGN
        if node.op in _OPERATORS:
            symbol, binds, *sides = _OPERATORS[node.op]
            left, right = (
                self._operand(arg, least, node) for arg, least in zip(node.args, sides, strict=True)
            )
            return f"{left} {symbol} {right}", binds
        return self.call(self.function(node.op), node.args), _ATOM

    def _operand(self, node: Node, least: int, of: Node) -> str:
        if node.is_constant:
            text = self.constant(node) if of.is_condition else self.literal(node)
            signed = text.startswith("-") and of.args[1] is node and not of.is_condition
            return f"({text})" if signed else text
        return self._expression(node, least)


def number(node: Node) -> str:
    """The shortest text of a constant that reads back as the same double."""
    value = node.value
    assert isinstance(value, float)
    whole = value.is_integer() and abs(value) < 2**24
    return str(int(value)) if whole else repr(value)


def formula_names(declaration: Declaration, formula: Formula) -> dict[Node, str]:
    """Names as one would write them.

    A function is called by the gate that its argument adds to others, or by what it is a function
    of; a new state by the state.
    """
    names = {node: f"new_{name}" for name, node in _states_after(declaration, formula)}
    gates: dict[Node, set[str]] = {}
    unnamed: Counter[str] = Counter()
    for node in formula.nodes:
        parts = (gates[arg] for arg in node.args if arg.op not in TRANSCENDENTAL)
        gates[node] = {str(node.value)} if node.op in ("x", "h") else set[str]().union(*parts)
        if node.op in TRANSCENDENTAL and node not in names:
            unnamed[node.op] += 1
            other = f"{node.op}_{unnamed[node.op]}"
            names[node] = _function_name(node, gates[node], names) or other
    return names


def gradient_names(backward: Backward, names: Mapping[Node, str]) -> dict[Node, str]:
    """Names of gradients, by those of the formula; d_gx_i is that of the product gx of a gate i."""
    of = backward.gradients.of
    products = {node: f"g{node.op}_{node.value}" for node in of if node.op in ("h", "x")}
    named = {**names, **products}
    return {of[node]: f"d_{named[node]}" for node in reversed(list(of)) if node in named}


def _states_after(declaration: Declaration, formula: Formula) -> Iterable[tuple[str, Node]]:
    return zip(("h", *declaration.states), formula.results, strict=True)


def _function_name(node: Node, gates: set[str], names: Mapping[Node, str]) -> str | None:
    if len(gates) == 1 and not gates.intersection(names.values()):
        return next(iter(gates))
    (arg,) = node.args
    return f"{node.op}_{names[arg].removeprefix('new_')}" if arg in names else None
