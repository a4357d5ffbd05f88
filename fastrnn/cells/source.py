"""A cell as the C++ struct that the engine's kernels are made of (csrc/cells/cell.h).

What the user wrote reaches the compiler as names alone, which were checked to be identifiers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fastrnn.cells.declaration import Declaration
from fastrnn.cells.graph import Node
from fastrnn.cells.steps import Backward
from fastrnn.cells.tracing import Formula
from fastrnn.cells.writing import Names, Writer, formula_names, gradient_names, number

__all__ = ["struct"]

# Names that a statement of a cell's functions must not hide, nor a macro replace. Macros are in
# upper case, and names of statements in lower.
_TAKEN = {
    "errno",
    "gx", "gh", "extra", "state", "saved", "previous", "next", "d_state", "d_gx", "d_gh", "d_extra",
    "math", "mul_add", "select", "std", "fastrnn", "forward", "backward", "output",
}  # fmt: skip


class _CppWriter(Writer):
    repeating = ("relu", "elu")

    def statement(self, node: Node, name: str, text: str) -> str:
        return f"const {'auto' if node.is_condition else 'V'} {name} = {text};"

    def literal(self, node: Node) -> str:
        text = number(node)
        return text if text.lstrip("-").isdigit() else self.constant(node)

    def constant(self, node: Node) -> str:
        text = number(node)
        return f"V({text})" if text.lstrip("-").isdigit() else f"math::constant<V>({text})"

    def function(self, op: str) -> str:
        return op if op == "select" else f"math::{op}"

    def fused(self, node: Node) -> str | None:
        if node.op == "add":
            a, b = node.args
            if self.is_product(a):
                return self.call("mul_add", (*a.args, b))
            if self.is_product(b):
                return self.call("mul_add", (*b.args, a))
        if node.op == "relu":
            x = self(node.args[0])
            return f"select({x} <= V(0), V(0), {x})"  # a NaN passes, as in torch
        if node.op == "elu":
            x = self(node.args[0])
            return f"select(V(0) < {x}, {x}, math::exp({x}) - 1)"
        return None


def struct(declaration: Declaration, formula: Formula, backward: Backward, name: str) -> str:
    """The text of the struct of that name."""
    writer = _StructWriter(declaration, formula, backward, name)
    parts = [writer.constants(), writer.forward()]
    if backward.has_output:
        parts.append(writer.output())
    parts.append(writer.backward())
    return f"struct {name} {{\n{''.join(parts)}}};\n"


class _StructWriter:
    def __init__(
        self, declaration: Declaration, formula: Formula, backward: Backward, name: str
    ) -> None:
        self._declaration = declaration
        self._formula = formula
        self._plan = backward
        self._name = name
        self._names = {
            node: name.lower() for node, name in formula_names(declaration, formula).items()
        }
        self._places = {
            **_places("x", declaration.of_input, "gx"),
            **_places("h", declaration.of_recurrence, "gh"),
            **_places("vector", declaration.vectors, "extra.vectors"),
            **_places("number", declaration.numbers, "extra.numbers"),
            **_places("extra", declaration.inputs, "extra.inputs"),
        }
        self._fields = {"h": "h"} | {name: f"c[{k}]" for k, name in enumerate(declaration.states)}

    def constants(self) -> str:
        declaration, plan = self._declaration, self._plan
        counts = {
            "InputGates": len(declaration.of_input),
            "RecurrentGates": len(declaration.of_recurrence),
            "CellStates": len(declaration.states),
            "Vectors": len(declaration.vectors),
            "ExtraInputs": len(declaration.inputs),
            "Numbers": len(declaration.numbers),
            "Saved": len(plan.saved),
        }
        flags = {
            "SplitGateGradients": plan.splits_gates,
            "ReadsPreviousH": any(_is_leaf(node, "state", "h") for node in self._formula.nodes),
            "BackwardReadsPreviousH": plan.reads_previous_h,
            "ReadsNextH": plan.reads_next_h,
        }
        lines = [
            f'static constexpr std::string_view kName = "{self._name}";',
            *(f"static constexpr int k{name} = {count};" for name, count in counts.items()),
            *(f"static constexpr bool k{name} = {str(on).lower()};" for name, on in flags.items()),
        ]
        return _indented(lines)

    def forward(self) -> str:
        formula, names = self._formula, Names(_TAKEN)
        before = {
            node: names.fresh(str(node.value).lower())
            for node in formula.nodes
            if node.op == "state"
        }
        given = self._leaves(formula.nodes) | before
        results = (*self._plan.saved, *formula.states, formula.h)
        writer = _CppWriter(given, results, self._names, names)
        lines = [
            # The state is overwritten in place, so what is read of it is read first.
            *(f"const V {name} = state.{self._field(node)};" for node, name in before.items()),
            *writer.statements,
            *_filled("saved", map(writer, self._plan.saved)),
            *(f"state.c[{k}] = {writer(node)};" for k, node in enumerate(formula.states)),
            f"state.h = {writer(formula.h)};",
        ]
        return self._function("void", "forward", lines, [
            (f"const {self._array('InputGates')}&", "gx"),
            (f"const {self._array('RecurrentGates')}&", "gh"),
            self._extras,
            (f"{self._state}&", "state"),
            (f"{self._array('Saved')}&", "saved"),
        ])  # fmt: skip

    def output(self) -> str:
        """h after the step from what backward reads, where a projection has replaced it."""
        names = Names(_TAKEN)
        given = self._read_by_backward(names, with_h=False)
        writer = _CppWriter(given, [self._formula.h], self._names, names)
        lines = [*writer.statements, f"return {writer(self._formula.h)};"]
        return self._function("V", "output", self._unpacked(given, lines), self._reading)

    def backward(self) -> str:
        plan, names = self._plan, Names(_TAKEN)
        given = self._read_by_backward(names, with_h=plan.reads_next_h)
        seeds = {
            node: names.fresh(f"d_{node.value}".lower())
            for node in plan.inputs
            if node.op == "gradient"
        }
        of_recurrence = plan.d_gh if plan.splits_gates else ()
        others = (*plan.d_vectors, *plan.d_inputs, *plan.d_states, plan.d_h)
        suggested = self._names | gradient_names(plan, self._names)
        writer = _CppWriter(given | seeds, (*plan.d_gx, *of_recurrence, *others), suggested, names)
        lines = [
            *(f"const V {name} = d_state.{self._field(node)};" for node, name in seeds.items()),
            *writer.statements,
            *_filled("d_gx", map(writer, plan.d_gx)),
            *(["d_gh = d_gx;"] if not plan.splits_gates else []),
            *_filled("d_gh", map(writer, of_recurrence)),
            *_filled("d_extra.vectors", map(writer, plan.d_vectors)),
            *_filled("d_extra.inputs", map(writer, plan.d_inputs)),
            *(f"d_state.c[{k}] = {writer(node)};" for k, node in enumerate(plan.d_states)),
            f"d_state.h = {writer(plan.d_h)};",
        ]
        return self._function("void", "backward", self._unpacked(given, lines), [
            *self._reading,
            (f"{self._state}&", "d_state"),
            (f"{self._array('InputGates')}&", "d_gx"),
            (f"{self._array('RecurrentGates')}&", "d_gh"),
            (f"ExtraGradients<V, {self._name}>&", "d_extra"),
        ])  # fmt: skip

    @property
    def _state(self) -> str:
        return f"State<V, {max(1, len(self._declaration.states))}>"

    @property
    def _extras(self) -> tuple[str, str]:
        return f"const Extras<V, {self._name}>&", "extra"

    @property
    def _reading(self) -> list[tuple[str, str]]:
        """The parameters that backward reads from."""
        return [
            (f"const {self._array('Saved')}&", "saved"),
            self._extras,
            (f"const {self._state}&", "previous"),
            (f"const {self._state}&", "next"),
        ]

    def _array(self, count: str) -> str:
        return f"std::array<V, k{count}>"

    def _field(self, node: Node) -> str:
        return self._fields[str(node.value)]

    def _leaves(self, nodes: Iterable[Node]) -> dict[Node, str]:
        return {
            node: self._places[node.op, str(node.value)]
            for node in nodes
            if (node.op, node.value) in self._places
        }

    def _read_by_backward(self, names: Names, with_h: bool) -> dict[Node, str]:
        """The texts of what backward may read.

        Args:
            names: where the names of saved values come from.
            with_h: whether h after the step is there to read.
        """
        formula, saved = self._formula, self._plan.saved
        given = self._leaves(formula.nodes)
        for node in formula.nodes:
            if node.op == "state":
                given[node] = f"previous.{self._field(node)}"
        if with_h:
            given.setdefault(formula.h, "next.h")
        for k, node in enumerate(formula.states):
            if node.args:
                given[node] = f"next.c[{k}]"
        for node in saved:
            suggested = f"g{node.op}_{node.value}" if not node.args else self._names.get(node, "t")
            given[node] = names.fresh(suggested.lower())
        return given

    def _unpacked(self, given: Mapping[Node, str], lines: Sequence[str]) -> list[str]:
        """The lines after the one that unpacks what is saved, if they use any of it."""
        names = [given[node] for node in self._plan.saved]
        used = any(_mentions(line, name) for name in names for line in lines)
        return [f"const auto [{', '.join(names)}] = saved;", *lines] if used else [*lines]

    def _function(
        self, result: str, name: str, lines: Sequence[str], parameters: Sequence[tuple[str, str]]
    ) -> str:
        """A function whose unused parameters have no names, as compilers want it."""
        body = "\n".join(lines)
        declared = ",\n".join(
            f"    {kind} {parameter}" if _mentions(body, parameter) else f"    {kind}"
            for kind, parameter in parameters
        )
        head = f"template <class V>\nFASTRNN_FN static {result} {name}(\n{declared}) {{"
        return "\n" + _indented([*head.splitlines(), *(f"  {line}" for line in lines), "}"])


def _mentions(text: str, name: str) -> bool:
    """Whether a text has the name, and not as a field of something."""
    return re.search(rf"(?<!\.)\b{name}\b", text) is not None


def _places(op: str, names: Iterable[str], array: str) -> dict[tuple[str, str], str]:
    return {(op, name): f"{array}[{k}]" for k, name in enumerate(names)}


def _is_leaf(node: Node, op: str, name: str) -> bool:
    return (node.op, node.value) == (op, name)


def _filled(array: str, values: Iterable[str]) -> list[str]:
    """The statement that fills an array, unless it is empty."""
    elements = ", ".join(values)
    return [f"{array} = {{{elements}}};"] if elements else []


def _indented(lines: Iterable[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)
