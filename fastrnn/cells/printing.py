"""A cell for people: its step, the derivative that was found, and what is saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastrnn.cells.declaration import Declaration
from fastrnn.cells.graph import Node
from fastrnn.cells.steps import Backward
from fastrnn.cells.tracing import Formula
from fastrnn.cells.writing import Names, Writer, formula_names, gradient_names

__all__ = ["description"]

_GROUPS = {"x": "x", "extra": "x", "h": "h", "state": "s", "vector": "p", "number": "p"}
_BYTES_OF_FLOAT = 4


def description(declaration: Declaration, formula: Formula, backward: Backward) -> str:
    """Forward, backward, and what is saved, as text of several lines."""
    names = formula_names(declaration, formula)
    after = dict(zip((*declaration.states, "h"), (*formula.states, formula.h), strict=True))
    leaves = {node: _leaf(node) for node in (*formula.nodes, *backward.inputs) if not node.args}
    leaves = {node: text for node, text in leaves.items() if not node.is_constant}
    forward = Writer(leaves, (*backward.saved, *after.values()), names, Names())

    given = leaves | {node: f"new_{name}" for name, node in after.items() if node.args}
    given |= {node: forward(node) for node in backward.saved}
    results = {
        **_parts("d_x", declaration.of_input, backward.d_gx),
        **_parts("d_h", declaration.of_recurrence, backward.d_gh),
        **_parts("d_p", declaration.vectors, backward.d_vectors),
        **_parts("d_x", declaration.inputs, backward.d_inputs),
        **_parts("d_s", ("h", *declaration.states), (backward.d_h, *backward.d_states)),
    }
    suggested = names | gradient_names(backward, names)
    suggested |= {node: name for name, node in reversed(results.items())}
    derived = Writer(given, tuple(results.values()), suggested, Names(given.values()))
    saved = ", ".join(map(forward, backward.saved)) or "nothing"
    seeds = ", ".join(map(_leaf, backward.gradients.seeds))
    size = len(backward.saved) * _BYTES_OF_FLOAT
    return "\n".join(
        (
            f"{declaration.name}(x, h, s, p)",
            *_lines(forward.statements),
            *_lines(_definitions(forward, {f"new_{name}": node for name, node in after.items()})),
            f"saved for backward: {saved} ({size} bytes a unit and step in float32)",
            f"backward, from the gradients {seeds} of the new states:",
            *_lines(derived.statements),
            *_lines(_definitions(derived, results)),
        )
    )


def _leaf(node: Node) -> str:
    if node.op == "gradient":
        return f"d{node.value}"
    return f"{_GROUPS[node.op]}.{node.value}" if node.op in _GROUPS else str(node.value)


def _parts(group: str, names: Iterable[str], nodes: Iterable[Node]) -> dict[str, Node]:
    return {f"{group}.{name}": node for name, node in zip(names, nodes, strict=True)}


def _definitions(writer: Writer, named: Mapping[str, Node]) -> Iterable[str]:
    """What has a statement of that name already needs no other."""
    texts = {name: writer(node) for name, node in named.items()}
    return (f"{name} = {text}" for name, text in texts.items() if name != text)


def _lines(texts: Iterable[str]) -> Iterable[str]:
    return (f"    {text}" for text in texts)
