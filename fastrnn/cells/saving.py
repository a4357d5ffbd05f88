"""Which values forward saves for backward: as few as possible, by a minimum cut.

Backward reads states before and after the step, parameters and inputs where they are. What depends
on a product of this step is either saved or computed again from what is saved; a transcendental
function is not computed twice, unless it is one of states, parameters and inputs alone, as tanh of
the new c is. The fewest nodes that separate products and such functions from what backward reads
are a minimum cut; where there is a choice, they are the last ones, which leave least to compute.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from fastrnn.cells.graph import Node, reachable

__all__ = ["TRANSCENDENTAL", "choose_saved"]

TRANSCENDENTAL = ("sigmoid", "tanh", "exp", "log", "softplus", "erf", "elu")

# A node is an edge from its entry to its exit, whose capacity is 1 if it can be saved.
_Vertex = tuple[str, int]
_BACKWARD: _Vertex = ("backward", 0)
_PRODUCTS: _Vertex = ("products", 0)
_ENDLESS = float("inf")


def choose_saved(
    formula: Sequence[Node], read: Iterable[Node], free: Iterable[Node]
) -> tuple[Node, ...]:
    """The nodes to save: functions in the order of computation, then products.

    Args:
        formula: the nodes that forward computes.
        read: the nodes that backward reads.
        free: those among all that it can read without saving them.
    """
    free, saveable = set(free), {node for node in formula if not node.is_condition}
    beyond_reach = _beyond_reach(formula, free)
    flow = _Flow()
    for node in set(read) - free:
        flow.connect(_BACKWARD, ("entry", node.index), _ENDLESS)
    for node in reachable(read, free | beyond_reach):
        if node in free:
            continue
        capacity = 1 if node in saveable else _ENDLESS
        flow.connect(("entry", node.index), ("exit", node.index), capacity)
        if node in beyond_reach:
            flow.connect(("exit", node.index), _PRODUCTS, _ENDLESS)
        else:
            for arg in node.args:
                flow.connect(("exit", node.index), ("entry", arg.index), _ENDLESS)
    flow.fill()
    reached = flow.reached()
    saved = [
        node
        for node in formula
        if node not in free
        and ("entry", node.index) in reached
        and ("exit", node.index) not in reached
    ]
    return tuple(sorted(saved, key=lambda node: (not node.args, node.index)))


def _beyond_reach(formula: Sequence[Node], free: set[Node]) -> set[Node]:
    """Products, and transcendental functions of them: what backward does not compute again."""
    products: set[Node] = set()
    of_products: set[Node] = set()
    for node in formula:
        if node.op in ("x", "h"):
            products.add(node)
        if node not in free and (node in products or of_products.intersection(node.args)):
            of_products.add(node)
    return products | {node for node in of_products if node.op in TRANSCENDENTAL}


class _Flow:
    """The greatest flow from backward to products, by shortest augmenting paths."""

    def __init__(self) -> None:
        self._left: dict[_Vertex, dict[_Vertex, float]] = defaultdict(dict)

    def connect(self, start: _Vertex, end: _Vertex, capacity: float) -> None:
        self._left[start][end] = capacity
        self._left[end].setdefault(start, 0)

    def fill(self) -> None:
        while _PRODUCTS in (came_from := self.reached()):
            end = _PRODUCTS
            while end != _BACKWARD:
                start = came_from[end]
                # Each path crosses an edge of capacity 1, for products themselves can be saved.
                self._left[start][end] -= 1
                self._left[end][start] += 1
                end = start

    def reached(self) -> dict[_Vertex, _Vertex]:
        """The vertices that more could flow to, each with the one it would come from."""
        came_from = {_BACKWARD: _BACKWARD}
        waiting = deque([_BACKWARD])
        while waiting:
            start = waiting.popleft()
            for end, left in self._left[start].items():
                if left and end not in came_from:
                    came_from[end] = start
                    waiting.append(end)
        return came_from
