"""A cell's backward step as the engine runs it: what is saved, what is read, what comes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastrnn.cells.declaration import Declaration
from fastrnn.cells.derivative import Gradients, derive
from fastrnn.cells.graph import Node, reachable
from fastrnn.cells.saving import choose_saved
from fastrnn.cells.tracing import Formula

__all__ = ["Backward", "plan_backward"]


@dataclass(frozen=True)
class Backward:
    """What backward computes, and from what."""

    gradients: Gradients
    saved: tuple[Node, ...]
    inputs: tuple[Node, ...]  # all nodes that it reads: saved, leaves, states after the step
    d_gx: tuple[Node, ...]
    d_gh: tuple[Node, ...]
    d_h: Node  # of h before the step, without what flows through gh
    d_states: tuple[Node, ...]
    d_vectors: tuple[Node, ...]
    d_inputs: tuple[Node, ...]
    reads_previous_h: bool
    reads_next_h: bool
    has_output: bool  # whether h after the step can be computed from what backward reads

    @property
    def splits_gates(self) -> bool:
        """Whether the gradients of the two products differ."""
        return self.d_gx != self.d_gh

    @property
    def results(self) -> tuple[Node, ...]:
        states = (self.d_h, *self.d_states)
        return (*self.d_gx, *self.d_gh, *states, *self.d_vectors, *self.d_inputs)


def plan_backward(declaration: Declaration, formula: Formula, projected: bool) -> Backward:
    """Choose what is saved.

    Args:
        declaration: of the cell.
        formula: of the cell.
        projected: whether a projection replaces h after the step, which is then computed again.
    """
    states = dict(zip(("h", *declaration.states), formula.results, strict=True))
    gradients = derive(formula.nodes, states)

    def of(op: str, names: Iterable[str]) -> tuple[Node, ...]:
        return tuple(gradients.of_leaf(op, name) for name in names)

    d_gx, d_gh = of("x", declaration.of_input), of("h", declaration.of_recurrence)
    d_h, *d_states = of("state", states)
    d_vectors, d_inputs = of("vector", declaration.vectors), of("extra", declaration.inputs)
    results = (*d_gx, *d_gh, d_h, *d_states, *d_vectors, *d_inputs)

    free = {node for node in reachable(results) if not node.args and node.op not in ("x", "h")}
    free |= {node for node in formula.nodes if node.op in ("state", "vector", "extra", "number")}
    free |= {*formula.states} if projected else {*formula.results}
    read = _read_by_gradients(results) | ({formula.h} if projected else set())
    saved = choose_saved(formula.nodes, read, free)
    inputs = _ends(read, {*saved, *free})
    # A state beside h is read as such, even where h is the same value.
    reads_next_h = bool(formula.h.args) and formula.h in inputs - {*saved, *formula.states}
    for_output = _ends([formula.h], {*saved, *free} - ({formula.h} - {*saved, *formula.states}))
    reads_previous_h = any(_is_h(node) for node in inputs)
    return Backward(
        gradients,
        saved,
        tuple(sorted(inputs | {*gradients.seeds}, key=lambda node: node.index)),
        d_gx,
        d_gh,
        d_h,
        tuple(d_states),
        d_vectors,
        d_inputs,
        reads_previous_h,
        reads_next_h,
        has_output=not any(
            (node.op in ("x", "h") and node not in saved) or (_is_h(node) and not reads_previous_h)
            for node in for_output
        ),
    )


def _is_h(node: Node) -> bool:
    return (node.op, node.value) == ("state", "h")


def _read_by_gradients(results: Iterable[Node]) -> set[Node]:
    """The nodes without a gradient that those with one are computed from."""
    with_gradient: set[Node] = set()
    read: set[Node] = set()
    for node in reachable(results):
        if node.op == "gradient" or with_gradient.intersection(node.args):
            with_gradient.add(node)
            read.update(arg for arg in node.args if arg not in with_gradient)
    return read | (set(results) - with_gradient)


def _ends(roots: Iterable[Node], known: set[Node]) -> set[Node]:
    """What a computation of the roots begins with: known nodes and leaves, but for constants."""
    return {
        node
        for node in reachable(roots, known)
        if (node in known or not node.args) and not node.is_constant
    }
