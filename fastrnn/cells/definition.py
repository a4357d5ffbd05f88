"""The decorator that makes a cell of a function, and the cell with all that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any

from torch import Tensor

from fastrnn.cells.declaration import CellShape, Declaration, Initial, Names, declare
from fastrnn.cells.errors import CellError, error_in
from fastrnn.cells.evaluation import Program
from fastrnn.cells.graph import Graph, Node
from fastrnn.cells.printing import description
from fastrnn.cells.source import struct
from fastrnn.cells.steps import Backward, plan_backward
from fastrnn.cells.tracing import Formula, trace

__all__ = ["Cell", "cell"]

# Rises when a pickle of a former version could no longer be read.
_FORMAT = 1


def cell(
    function: object = None,
    /,
    *,
    gates: Names = (),
    input_gates: Names = (),
    recurrent_gates: Names = (),
    states: Names = (),
    vectors: Names | Mapping[str, Initial] = (),
    numbers: Mapping[str, float] | None = None,
    inputs: Names = (),
    initial: Mapping[str, float] | None = None,
) -> Callable[[Callable[..., Any]], Cell]:
    """Make a cell of a function of one step.

    The function (x, h, s, p) is called once, on symbols. ``x.<gate>`` is the input product of a
    gate with its bias, ``h.<gate>`` the recurrent product with its bias, ``s.<state>`` a state
    before the step (``s.h`` is the hidden state), ``p.<vector>`` a parameter of one number a unit,
    ``p.<number>`` a number, ``x.<input>`` an extra input. It returns the new h and a dict of the
    other new states, or h alone where there are none. Its values take ``+ - * /``, comparisons,
    ``**`` with a small whole number, and the functions of ``fastrnn.cells``.

    A string is a tuple of one-letter names.

    Args:
        gates: gates with both products; at most 16 on each side, with those that follow.
        input_gates: gates with the product of x alone, after ``gates`` in weight_ih.
        recurrent_gates: gates with the product of h alone, after ``gates`` in weight_hh.
        states: the states beside h, at most 8.
        vectors: parameters of one number a unit, at most 16: names, or a dict of names and initial
            values, each a number, a range (low, high), or None for +-1 / sqrt(hidden_size).
        numbers: numbers that a module can change without compiling again, and their defaults.
        inputs: inputs of one number a unit and step beside x, at most 4.
        initial: what a state is before the first step, where it is not zero.

    Raises:
        CellError: where declaration or function cannot be a cell's.

    Example:
        >>> @cells.cell(gates="fn")
        ... def minimal_gated_unit(x, h, s, p):
        ...     f = cells.sigmoid(x.f + h.f)
        ...     n = cells.tanh(x.n + f * h.n)
        ...     return n + f * (s.h - n)
    """

    if function is not None:
        message = "cell takes what the cell declares: write @cells.cell(gates=..., states=...)"
        if isinstance(function, FunctionType):
            raise error_in(function, message)
        raise CellError(message)

    def define(function: Callable[..., Any]) -> Cell:
        if not isinstance(function, FunctionType):
            raise CellError(
                f"a cell is made of a function, def my_cell(x, h, s, p), not of a "
                f"{type(function).__name__}"
            )
        try:
            declaration = declare(
                function.__name__,
                gates=gates,
                input_gates=input_gates,
                recurrent_gates=recurrent_gates,
                states=states,
                vectors=vectors,
                numbers={} if numbers is None else numbers,
                inputs=inputs,
                initial={} if initial is None else initial,
            )
        except ValueError as error:
            raise error_in(function, str(error)) from None
        return Cell(declaration, trace(function, declaration))

    return define


class Cell:
    """One step of a recurrence: what it declares, its formula, and the derivative that follows.

    Cells of the same content are equal. A pickle holds the formula, not the function it came from.
    """

    def __init__(self, declaration: Declaration, formula: Formula, projected: bool = False) -> None:
        self._declaration = declaration
        self._formula = formula
        self._projected = projected

    @property
    def name(self) -> str:
        return self._declaration.name

    @property
    def gates(self) -> tuple[str, ...]:
        return self._declaration.gates

    @property
    def input_gates(self) -> tuple[str, ...]:
        return self._declaration.input_gates

    @property
    def recurrent_gates(self) -> tuple[str, ...]:
        return self._declaration.recurrent_gates

    @property
    def states(self) -> tuple[str, ...]:
        return self._declaration.states

    @property
    def inputs(self) -> tuple[str, ...]:
        return self._declaration.inputs

    @property
    def vectors(self) -> dict[str, Initial]:
        return dict(self._declaration.vectors)

    @property
    def numbers(self) -> dict[str, float]:
        return dict(self._declaration.numbers)

    @property
    def initial(self) -> dict[str, float]:
        return dict(self._declaration.initial)

    @cached_property
    def op_name(self) -> str:
        """The name by which the operators know the cell: equal for equal names and formulas."""
        content = json.dumps([_FORMAT, self._names(), self._rows(), self._projected])
        return f"{self.name}_{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    @cached_property
    def is_plain(self) -> bool:
        """Whether it has the tensors of a built-in cell: its calls may go as theirs."""
        facts = self.facts
        others = facts.vectors + facts.extra_inputs + facts.numbers
        return facts.recurrent_gates > 0 and facts.cell_states <= 1 and others == 0

    @property
    def struct_name(self) -> str:
        """The name of the C++ struct."""
        return self.op_name

    @cached_property
    def facts(self) -> CellShape:
        """How many of each kind it has."""
        declaration = self._declaration
        return CellShape(
            len(declaration.of_input),
            len(declaration.of_recurrence),
            len(declaration.states),
            len(declaration.vectors),
            len(declaration.inputs),
            len(declaration.numbers),
            len(self._backward.saved),
        )

    def step(
        self,
        gx: Tensor,
        gh: Tensor | None,
        h: Tensor,
        states: Sequence[Tensor] = (),
        vectors: Sequence[Tensor] = (),
        numbers: Sequence[float] = (),
        extras: Sequence[Tensor] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step in torch operations, differentiable to any order.

        Args:
            gx: (..., input gates * H), the products of the input with their bias.
            gh: (..., recurrent gates * H), or None without recurrent gates.
            h: (..., H), the hidden state before the step.
            states: the states beside h, each (..., H).
            vectors: parameters of one number a unit, each (H,).
            numbers: in the order of ``numbers``.
            extras: the extra inputs, each (..., H) or what broadcasts to it.

        Returns:
            h after the step and a tuple of the other states, each (..., H) in the dtype of gx.
        """
        of_input = gx.chunk(self.facts.input_gates, -1)
        of_recurrence = () if gh is None else gh.chunk(self.facts.recurrent_gates, -1)
        given: tuple[Any, ...] = (
            *of_input,
            *of_recurrence,
            h,
            *states,
            *vectors,
            *numbers,
            *extras,
        )
        like = of_input[0]
        after = [_filled(value, like) for value in self.program(given, like)]
        return after[0], tuple(after[1:])

    def for_projection(self) -> Cell:
        """The cell whose h a projection may replace: backward does not read h after the step.

        Returns:
            this cell, if it is one already; else one that saves what h is computed from.

        Raises:
            CellError: if the function reads s.h, which has fewer numbers than there are units then.
        """
        if any((node.op, node.value) == ("state", "h") for node in self._formula.nodes):
            raise CellError(
                f"{self.name} reads s.h, so its h cannot be projected: a projection leaves less "
                "numbers than there are units; leave out proj_size"
            )
        if self._backward.has_output and not self._backward.reads_next_h:
            return self
        return Cell(self._declaration, self._formula, projected=True)

    def source(self, projected: bool = False) -> str:
        """The C++ struct that the kernels are made of.

        Args:
            projected: that of :meth:`for_projection`.
        """
        if projected:
            return self.for_projection().source()
        return struct(self._declaration, self._formula, self._backward, self.struct_name)

    @cached_property
    def _backward(self) -> Backward:
        return plan_backward(self._declaration, self._formula, self._projected)

    @cached_property
    def program(self) -> Program:
        """The step as operations: from what :meth:`step` takes, each gate by itself, to the states
        after it."""
        names = self._declaration
        leaves = (
            *(("x", gate) for gate in names.of_input),
            *(("h", gate) for gate in names.of_recurrence),
            *(("state", name) for name in ("h", *names.states)),
            *(("vector", name) for name in names.vectors),
            *(("number", name) for name in names.numbers),
            *(("extra", name) for name in names.inputs),
        )
        graph = Graph(self._formula.nodes)
        inputs = [graph.node(op, value=name) for op, name in leaves]
        return Program(inputs, self._formula.results)

    def _names(self) -> list[Any]:
        names = self._declaration
        lists = (
            names.gates, names.input_gates, names.recurrent_gates, names.states, names.inputs,
            names.vectors, names.numbers,
        )  # fmt: skip
        return [list(each) for each in lists]

    def _rows(self) -> list[Any]:
        """The formula as nested lists: a node a row, and the places of the results."""
        rows = [
            [node.op, [arg.index for arg in node.args], node.value] for node in self._formula.nodes
        ]
        return [rows, [node.index for node in self._formula.results]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (_FORMAT, vars(self._declaration), self._rows(), self._projected)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cell):
            return NotImplemented
        return self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.op_name)

    def __repr__(self) -> str:
        return f"<fastrnn cell {self.op_name}>"

    def __str__(self) -> str:
        return description(self._declaration, self._formula, self._backward)


def _filled(value: Any, like: Tensor) -> Tensor:
    """A result that does not depend on the samples, with a value for each."""
    if isinstance(value, Tensor):
        return value.expand_as(like)
    return like.new_full(like.shape, value)


def _restore(format: int, declared: dict[str, Any], rows: list[Any], projected: bool) -> Cell:
    """The cell of a pickle."""
    if format != _FORMAT:
        raise CellError(
            f"the cell {declared['name']} was pickled by another version of fastrnn (format "
            f"{format}, this one reads {_FORMAT}): define it again and save it with this version"
        )
    graph = Graph()
    nodes: list[Node] = []
    for op, args, value in rows[0]:
        nodes.append(graph.node(op, tuple(nodes[arg] for arg in args), value))
    h, *states = (nodes[place] for place in rows[1])
    return Cell(Declaration(**declared), Formula(tuple(nodes), h, tuple(states)), projected)
