"""A cell's function runs once on symbols, and leaves its formula."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn

from fastrnn.cells.declaration import Declaration
from fastrnn.cells.errors import CellError, error_here, error_in
from fastrnn.cells.graph import Graph, Node, reachable
from fastrnn.cells.values import Value, as_node

__all__ = ["Formula", "trace"]


@dataclass(frozen=True)
class Formula:
    """The states after a step as functions of what is before it."""

    nodes: tuple[Node, ...]  # what the states are computed from, in the order of computation
    h: Node
    states: tuple[Node, ...]  # as they are declared

    @property
    def results(self) -> tuple[Node, ...]:
        return (self.h, *self.states)


def trace(function: FunctionType, declaration: Declaration) -> Formula:
    """The formula of a function (x, h, s, p).

    Raises:
        CellError: where the function cannot be one of a cell.
    """
    try:
        inspect.signature(function).bind(*"xhsp")
    except TypeError:
        raise error_in(
            function,
            f"a cell's function takes four arguments, (x, h, s, p), not "
            f"{inspect.signature(function)}",
        ) from None
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise error_in(function, "a cell's function is an ordinary one, without async and yield")
    graph = Graph()
    groups = _groups(declaration)
    returned = function(*(_Group(graph, name, groups[name]) for name in "xhsp"))
    h, states = _results(function, declaration, returned)
    nodes = [_result_node(function, graph, name, value) for name, value in (("h", h), *states)]
    formula = _pruned(nodes)
    _check_used(function, declaration, formula)
    return formula


def _groups(declaration: Declaration) -> dict[str, dict[str, str]]:
    """The names within each argument of the function, and which kind of leaf each is."""
    return {
        "x": {
            **dict.fromkeys(declaration.of_input, "x"),
            **dict.fromkeys(declaration.inputs, "extra"),
        },
        "h": dict.fromkeys(declaration.of_recurrence, "h"),
        "s": dict.fromkeys(("h", *declaration.states), "state"),
        "p": {
            **dict.fromkeys(declaration.vectors, "vector"),
            **dict.fromkeys(declaration.numbers, "number"),
        },
    }


# What to declare for a name of each argument of the function.
_DECLARED_IN = {
    "x": "gates, input_gates or inputs",
    "h": "gates or recurrent_gates",
    "s": "states",
    "p": "vectors or numbers",
}


class _Group:
    """An argument of the function: its attributes are values."""

    _graph: Graph
    _name: str
    _kinds: Mapping[str, str]  # of leaves, by the names there are

    def __init__(self, graph: Graph, name: str, kinds: Mapping[str, str]) -> None:
        vars(self).update(_graph=graph, _name=name, _kinds=kinds)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._kinds:
            return Value(self._graph, self._graph.node(self._kinds[name], value=name))
        raise error_here(f"{self._name}.{name} is not declared: {self._advice(name)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise error_here(
            f"{self._name}.{name} cannot be set: write a variable, and return new states, "
            "return h, {name: value}"
        )

    def __getitem__(self, key: object) -> NoReturn:
        raise error_here(f"{self._name} has names, no items: write {self._name}.<name>")

    __iter__ = __call__ = __getitem__

    def _advice(self, name: str) -> str:
        if close := difflib.get_close_matches(name, self._kinds, 1):
            return f"did you mean {self._name}.{close[0]}?"
        declared = ", ".join(self._kinds) or "nothing"
        advice = f"it has {declared}; declare {name} in {_DECLARED_IN[self._name]}"
        if len(name) > 1 and set(name) <= set(self._kinds):
            advice += f', as ("{name}",), for a string is a tuple of letters'
        return advice


def _results(
    function: FunctionType, declaration: Declaration, returned: object
) -> tuple[object, list[tuple[str, Any]]]:
    """h after the step, and the other states with their names, in the order they are declared."""
    wanted = _wanted(declaration)
    if not isinstance(returned, tuple):
        returned = (returned, {})
    if len(returned) != 2 or not isinstance(returned[1], Mapping):
        kinds = ", ".join(type(part).__name__ for part in returned)
        raise error_in(function, f"it returns ({kinds}): write {wanted}")
    h, states = returned
    if h is None or isinstance(h, Mapping):
        raise error_in(function, f"it does not return h: write {wanted}")
    if "h" in states:
        raise error_in(function, f"it returns h twice, once as a state: write {wanted}")
    for name in states:
        if name not in declaration.states:
            close = difflib.get_close_matches(str(name), declaration.states, 1)
            instead = f"did you mean {close[0]!r}?" if close else "declare it in states"
            raise error_in(function, f"it returns a state {name!r} that is not declared: {instead}")
    for name in declaration.states:
        if name not in states:
            raise error_in(function, f"it does not return the state {name!r}: write {wanted}")
    return h, [(name, states[name]) for name in declaration.states]


def _wanted(declaration: Declaration) -> str:
    if not declaration.states:
        return "return h"
    return "return h, {" + ", ".join(f'"{name}": {name}' for name in declaration.states) + "}"


def _result_node(function: FunctionType, graph: Graph, name: str, value: object) -> Node:
    try:
        return as_node(graph, value)
    except CellError as error:
        raise error_in(
            function, f"the new {name} is no value of the cell: {error.reason}"
        ) from None


def _pruned(results: list[Node]) -> Formula:
    """The formula without what the function computed in vain."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in reachable(results):
        copies[node] = graph.node(node.op, tuple(copies[arg] for arg in node.args), node.value)
    h, *states = (copies[node] for node in results)
    return Formula(tuple(graph.nodes), h, tuple(states))


def _check_used(function: FunctionType, declaration: Declaration, formula: Formula) -> None:
    used = {(node.op, node.value) for node in formula.nodes}
    wanted = (
        *(("x", "x", gate) for gate in declaration.of_input),
        *(("h", "h", gate) for gate in declaration.of_recurrence),
        *(("extra", "x", name) for name in declaration.inputs),
        *(("vector", "p", name) for name in declaration.vectors),
        *(("number", "p", name) for name in declaration.numbers),
    )
    for kind, group, name in wanted:
        if (kind, name) not in used:
            instead = "use it or do not declare it"
            if name in declaration.gates:
                side = "recurrent_gates" if group == "x" else "input_gates"
                instead = f"use it, or declare {name} in {side}"
            raise error_in(function, f"the new states do not depend on {group}.{name}: {instead}")
