"""The derivative of a formula: reverse mode over its graph, one rule for each operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastrnn.cells.graph import Graph, Node
from fastrnn.cells.language import exp, sigmoid, where
from fastrnn.cells.values import Condition, Value, as_node

__all__ = ["Gradients", "derive"]

# A rule takes the arguments, the result y and its gradient d, and returns the arguments' gradients.
# What it reads decides what is saved: y, where the derivative is a function of the result.
Rule = Callable[..., tuple[Value | float | None, ...]]

_RULES: dict[str, Rule] = {
    "add": lambda a, b, y, d: (d, d),
    "sub": lambda a, b, y, d: (d, -d),
    "neg": lambda a, y, d: (-d,),
    "mul": lambda a, b, y, d: (d * b, d * a),
    "div": lambda a, b, y, d: (d / b, -(d / b * y)),
    "select": lambda condition, a, b, y, d: (None, where(condition, d, 0), where(condition, 0, d)),
    "minimum": lambda a, b, y, d: (_at_least(b, a, d), _at_least(a, b, d)),
    "maximum": lambda a, b, y, d: (_at_least(a, b, d), _at_least(b, a, d)),
    "sigmoid": lambda x, y, d: (d * y * (1 - y),),
    "tanh": lambda x, y, d: (d * (1 - y * y),),
    "exp": lambda x, y, d: (d * y,),
    "log": lambda x, y, d: (d / x,),
    "softplus": lambda x, y, d: (d * sigmoid(x),),
    "sqrt": lambda x, y, d: (0.5 * d / y,),
    "abs": lambda x, y, d: (where(x < 0, -d, where(x > 0, d, 0)),),
    "erf": lambda x, y, d: (2 / math.sqrt(math.pi) * (d * exp(-(x * x))),),
    "relu": lambda x, y, d: (where(y <= 0, 0, d),),
    "elu": lambda x, y, d: (where(y > 0, d, d * (y + 1)),),
}


def _at_least(a: Value, b: Value, d: Value) -> Value:
    """The share in d that a takes for being the greater one; half of it at a tie."""
    result: Value = where(a < b, 0, where(a == b, 0.5 * d, d))
    return result


@dataclass(frozen=True)
class Gradients:
    """The gradients of a formula's nodes, in a graph that goes on after the formula's."""

    of: Mapping[Node, Node]  # by node of the formula; where there is none, it is zero
    seeds: tuple[Node, ...]  # the gradients of the states after the step, which are given
    zero: Node

    def of_leaf(self, op: str, name: str) -> Node:
        return next(
            (grad for node, grad in self.of.items() if (node.op, node.value) == (op, name)),
            self.zero,
        )


def derive(nodes: tuple[Node, ...], results: Mapping[str, Node]) -> Gradients:
    """Gradients of all nodes that depend on a product, a state, a vector or an extra input.

    Args:
        nodes: a formula's, in the order of computation.
        results: the states after the step, by name. A gradient of each is given.
    """
    graph = Graph(nodes)
    differentiable = _differentiable(nodes)
    seeds = {name: graph.node("gradient", value=name) for name in results}
    gradients: dict[Node, Node] = {}
    for name, node in results.items():
        _accumulate(graph, gradients, node, seeds[name])
    for node in reversed(nodes):
        if node.args and node in gradients and node in differentiable:
            for arg, gradient in _shares(graph, node, gradients[node]).items():
                if arg in differentiable:
                    _accumulate(graph, gradients, arg, gradient)
    kept = {node: gradients[node] for node in nodes if node in gradients}
    return Gradients(kept, tuple(seeds.values()), graph.constant(0))


def _differentiable(nodes: tuple[Node, ...]) -> set[Node]:
    found: set[Node] = set()
    for node in nodes:
        if node.op in ("x", "h", "state", "vector", "extra") or found.intersection(node.args):
            found.add(node)
    return found


def _shares(graph: Graph, node: Node, gradient: Node) -> dict[Node, Node]:
    """What each argument gets of the node's gradient; one that stands twice, both shares."""
    symbols = [
        Condition(graph, each) if each.is_condition else Value(graph, each)
        for each in (*node.args, node, gradient)
    ]
    shares: dict[Node, Node] = {}
    for arg, share in zip(node.args, _RULES[node.op](*symbols), strict=True):
        if share is not None:
            _accumulate(graph, shares, arg, as_node(graph, share))
    return shares


def _accumulate(graph: Graph, gradients: dict[Node, Node], node: Node, gradient: Node) -> None:
    if node in gradients:
        gradient = _sum(graph, gradients[node], gradient)
    gradients[node] = gradient


def _sum(graph: Graph, a: Node, b: Node) -> Node:
    """a + b with a common factor taken out: d - d * z is d * (1 - z)."""
    if a.op == "neg" and b.op != "neg":
        a, b = b, a
    sign, positive = ("sub", b.args[0]) if b.op == "neg" else ("add", b)
    of_a, of_b = _factors(graph, a), _factors(graph, positive)
    for factor in of_a:
        if factor in of_b and not factor.is_constant:
            return graph.build("mul", factor, graph.build(sign, of_a[factor], of_b[factor]))
    return graph.build(sign, a, positive)


def _factors(graph: Graph, node: Node) -> dict[Node, Node]:
    """The node's factors, and what is left of it without each."""
    factors = {node: graph.constant(1)}
    if node.op == "mul":
        a, b = node.args
        factors |= {a: b, b: a}
    return factors
