"""What cannot be a cell is refused at its line of the user's function, with what to write instead."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch

import fastrnn
from fastrnn import cells
from fastrnn.cells import CellError, sigmoid, tanh, where

SUM = {"gates": "i"}
WITH_C = {"gates": "i", "states": "c"}


def mistake(declared, message):
    """A function with one wrong line, which it marks, and the message."""

    def register(function):
        MISTAKES[function.__name__] = (declared, function, message)
        return function

    return register


MISTAKES = {}


@mistake(SUM, r"a branch cannot depend on a value.*where\(condition, a, b\)")
def branch_on_a_comparison(x, h, s, p):
    if x.i > 0:  # wrong
        return x.i + h.i
    return h.i


@mistake(SUM, r"a branch cannot depend on a value")
def branch_on_a_value(x, h, s, p):
    return x.i or h.i  # wrong


@mistake(SUM, r"minimum and maximum")
def pythons_max(x, h, s, p):
    return max(x.i, h.i)  # wrong


@mistake(SUM, r"write a = a \+ b instead of a \+= b")
def in_place_operator(x, h, s, p):
    total = x.i
    total += h.i  # wrong
    return total


@mistake(SUM, r"in-place add_ cannot be part of a cell")
def in_place_method(x, h, s, p):
    return x.i.add_(h.i)  # wrong


@mistake(SUM, r"has no attribute sigmoid: write sigmoid\(value\)")
def method_of_tensors(x, h, s, p):
    return (x.i + h.i).sigmoid()  # wrong


@mistake(WITH_C, r"s\.c cannot be set: .*return h, \{name: value\}")
def state_is_set(x, h, s, p):
    s.c = x.i + h.i  # wrong
    return s.c, {}


@mistake(SUM, r"torch\.tanh cannot take a value of a cell: write tanh of fastrnn\.cells")
def torch_function(x, h, s, p):
    return torch.tanh(x.i + h.i)  # wrong


@mistake(SUM, r"a value has no attribute clamp: use minimum and maximum of fastrnn\.cells")
def clamp_method(x, h, s, p):
    return (x.i + h.i).clamp(0)  # wrong


@mistake(SUM, r"a value has no attribute max: write maximum\(value\)")
def max_method(x, h, s, p):
    return (x.i + h.i).max()  # wrong


@mistake(SUM, r"torch\.clamp cannot .*: write minimum and maximum of fastrnn\.cells")
def torch_clamp(x, h, s, p):
    return torch.clamp(x.i + h.i, 0)  # wrong


@mistake(SUM, r"torch\.sin cannot .*: the language has sigmoid, tanh")
def function_that_is_not_there(x, h, s, p):
    return torch.sin(x.i + h.i)  # wrong


@mistake(SUM, r"numpy\.tanh cannot take a value of a cell: write tanh of fastrnn\.cells")
def numpy_function(x, h, s, p):
    return np.tanh(x.i + h.i)  # wrong


@mistake(SUM, r"no float: use the functions of fastrnn\.cells instead of those of math")
def function_of_math(x, h, s, p):
    return math.exp(x.i + h.i)  # wrong


@mistake(SUM, r"no float")
def float_of_a_value(x, h, s, p):
    return x.i + float(h.i)  # wrong


@mistake(SUM, r"a loop cannot run over a value")
def loop_over_a_value(x, h, s, p):
    return sum(x.i)  # wrong


@mistake(SUM, r"a value is one number a unit and has no items")
def slice_of_a_value(x, h, s, p):
    return x.i[..., 0] + h.i  # wrong


@mistake({"gates": ("input", "forget")}, r"x\.imput is not declared: did you mean x\.input\?")
def misspelled_gate(x, h, s, p):
    return x.imput + h.forget  # wrong


@mistake(
    {"gates": "gate"}, r'x\.gate is not declared: .*as \("gate",\), for a string is a tuple of'
)
def string_for_a_name(x, h, s, p):
    return x.gate + h.gate  # wrong


@mistake(SUM, r"p\.tau is not declared: it has nothing; declare tau in vectors or numbers")
def undeclared_parameter(x, h, s, p):
    return p.tau * (x.i + h.i)  # wrong


@mistake(SUM, r"x has names, no items: write x\.<name>")
def gate_by_index(x, h, s, p):
    return x[0] + h.i  # wrong


@mistake(SUM, r"a comparison is not a number: write where\(condition, 1\.0, 0\.0\)")
def comparison_as_a_number(x, h, s, p):
    return (x.i > 0) * h.i  # wrong


@mistake(SUM, r"a comparison is not a number")
def comparison_as_an_argument(x, h, s, p):
    return tanh(x.i > h.i)  # wrong


@mistake(SUM, r"comparisons are not combined: nest them")
def comparisons_combined(x, h, s, p):
    return where((x.i > 0) & (h.i > 0), x.i, h.i)  # wrong


@mistake(SUM, r"where takes a comparison first")
def where_of_a_value(x, h, s, p):
    return where(x.i, h.i, 0)  # wrong


@mistake(SUM, r"a tensor cannot be part of a cell: declare vectors")
def tensor_as_a_factor(x, h, s, p):
    return x.i * torch.ones(3) + h.i  # wrong


@mistake(SUM, r"a tensor cannot be part of a cell: declare vectors")
def tensor_on_the_left(x, h, s, p):
    return torch.ones(3) * x.i + h.i  # wrong


@mistake(SUM, r"combined with values and numbers alone, got str")
def text_as_a_term(x, h, s, p):
    return x.i + "h"  # wrong


@mistake(SUM, r"a power is a whole number from -8 to 8: write sqrt\(v\)")
def power_of_a_half(x, h, s, p):
    return (x.i + h.i) ** 0.5  # wrong


@mistake(SUM, r"a value cannot be an exponent: write exp\(v \* log\(base\)\)")
def value_as_an_exponent(x, h, s, p):
    return 2 ** (x.i + h.i)  # wrong


@mistake(SUM, r"a constant of a cell is a finite number, got inf")
def infinite_constant(x, h, s, p):
    return x.i + h.i + math.inf  # wrong


@mistake(SUM, r"divided by the constant 0")
def quotient_by_zero(x, h, s, p):
    return (x.i + h.i) / 0  # wrong


@mistake(SUM, r"layer_norm comes later: a reduction over units")
def layer_norm(x, h, s, p):
    return cells.layer_norm(x.i) + h.i  # wrong


@mistake(SUM, r"softmax comes later: a reduction over units")
def torch_softmax(x, h, s, p):
    return torch.softmax(x.i, -1) + h.i  # wrong


@mistake(SUM, r"bernoulli comes later: a random mask")
def bernoulli(x, h, s, p):
    return torch.bernoulli(x.i) + h.i  # wrong


@mistake(SUM, r"matmul comes later: a product with a matrix within the step")
def matrix_product(x, h, s, p):
    return x.i @ h.i  # wrong


@pytest.mark.parametrize(("declared", "function", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_line_that_cannot_be_traced_is_named(declared, function, message):
    lines, first = inspect.getsourcelines(function)
    (wrong,) = (k for k, line in enumerate(lines) if "# wrong" in line)
    with pytest.raises(CellError, match=message) as error:
        cells.cell(**declared)(function)
    said = str(error.value)
    assert said.startswith(f"{__file__}:{first + wrong}: ")
    assert said.endswith(lines[wrong].strip())


def returns(value):
    """A function with gates i and states c that returns what `value` makes of the sum."""

    def my_cell(x, h, s, p):
        return value(x.i + h.i)

    return my_cell


# What is declared, what is returned of v, the message.
RESULTS = {
    "state missing": (WITH_C, lambda v: v, r"does not return the state 'c': write return h, \{\"c\": c\}"),
    "state unknown": (WITH_C, lambda v: (v, {"c": v, "d": v}), r"a state 'd' that is not declared: declare it in"),
    "state misspelled": ({"gates": "i", "states": ("cell",)}, lambda v: (v, {"cel": v}), r"did you mean 'cell'\?"),
    "h twice": (WITH_C, lambda v: (v, {"c": v, "h": v}), r"returns h twice"),
    "h missing": (WITH_C, lambda v: {"c": v}, r"does not return h: write return h, "),
    "nothing": (SUM, lambda v: None, r"does not return h: write return h"),
    "state in a list": (WITH_C, lambda v: (v, [v]), r"it returns \(Value, list\): write return h, "),
    "three results": (WITH_C, lambda v: (v, v, v), r"it returns \(Value, Value, Value\): write"),
    "h is a comparison": (SUM, lambda v: v > 0, r"the new h is no value of the cell: .*a comparison is not"),
    "h is text": (SUM, lambda v: "h", r"the new h is no value of the cell: a value [a-z ,]* got str"),
    "gate not used": ({"gates": "ij"}, lambda v: v, r"do not depend on x\.j: use it, or declare j in recurrent_gates"),
    "gate folded away": ({"gates": "i", "numbers": {"a": 1.0}}, lambda v: v, r"do not depend on p\.a: use it or do not"),
    "h.gate not used": ({"gates": "i", "recurrent_gates": "r"}, lambda v: v, r"do not depend on h\.r: use it or do"),
}  # fmt: skip


@pytest.mark.parametrize(("declared", "value", "message"), RESULTS.values(), ids=RESULTS)
def test_what_the_function_returns_is_checked(declared, value, message):
    function = returns(value)
    line = function.__code__.co_firstlineno
    with pytest.raises(CellError, match=f"^{re.escape(__file__)}:{line}: my_cell: .*{message}"):
        cells.cell(**declared)(function)


# What is declared, the message.
DECLARATIONS = {
    "no identifier": ({"gates": ("in put",)}, r"gates: 'in put' is no name of a cell's part"),
    "underscore first": ({"gates": "i", "vectors": ("_u",)}, r"vectors: '_u' is no name"),
    "two underscores": ({"gates": "i", "states": ("c__d",)}, r"states: 'c__d' is no name"),
    "not ASCII": ({"gates": ("σ",)}, r"gates: 'σ' is no name"),
    "word of C++": ({"gates": ("float",)}, r"gates: 'float' is a word of Python or C\+\+"),
    "word of C++ in capitals": ({"gates": "i", "states": ("New",)}, r"states: 'New' is a word of Python or C\+\+"),
    "literal of C++": ({"gates": "i", "states": ("true",)}, r"states: 'true' is a word of Python or C\+\+"),
    "name of a parameter": ({"gates": "i", "numbers": {"tau_l0": 1.0}}, r"'tau_l0' is an attribute of modules"),
    "word of Python": ({"gates": ("lambda",)}, r"gates: 'lambda' is a word of Python or C\+\+"),
    "a number as a name": ({"gates": (1,)}, r"gates: a name is a string, got 1"),
    "no names": ({"gates": 4}, r"gates is a string of letters or a tuple of names, got int"),
    "same gate twice": ({"gates": "ii"}, r"'i' is declared twice"),
    "gate and input": ({"gates": "i", "inputs": "i"}, r"'i' is declared twice"),
    "vector and number": ({"gates": "i", "vectors": "u", "numbers": {"u": 1}}, r"'u' is declared twice"),
    "h as a state": ({"gates": "i", "states": "h"}, r"every cell has h, as s\.h"),
    "name of a module's": ({"gates": "i", "numbers": {"hidden_size": 1}}, r"'hidden_size' is an attribute of modules"),
    "name of nn.Module's": ({"gates": "i", "vectors": ("forward",)}, r"'forward' is an attribute of modules"),
    "too many gates": ({"gates": tuple(f"g{k}" for k in range(17))}, r"at most 16 gates a side, got 17"),
    "too many recurrent": ({"gates": "i", "recurrent_gates": tuple(f"g{k}" for k in range(16))}, r"got 17"),
    "too many inputs": ({"gates": "i", "inputs": "abcde"}, r"at most 4 inputs, got 5"),
    "too many states": ({"gates": "i", "states": "abcdefgjk"}, r"at most 8 states, got 9"),
    "no gate of x": ({"recurrent_gates": "i"}, r"reads x by one gate at least"),
    "vector's text": ({"gates": "i", "vectors": {"u": "ones"}}, r"the initial value of u is a number, a range"),
    "vector's range": ({"gates": "i", "vectors": {"u": (1.0, 0.0)}}, r"the initial value of u is a number, a range"),
    "vector's tensor": ({"gates": "i", "vectors": {"u": torch.ones(3)}}, r"the initial value of u is a number"),
    "number's text": ({"gates": "i", "numbers": {"a": "0.1"}}, r"numbers: a is a finite number, got '0\.1'"),
    "number's bool": ({"gates": "i", "numbers": {"a": True}}, r"numbers: a is a finite number, got True"),
    "numbers without values": ({"gates": "i", "numbers": ("a",)}, r"numbers is a dict of names and numbers, got tuple"),
    "initial of no state": ({"gates": "i", "initial": {"c": 1.0}}, r"initial: 'c' is no state"),
    "initial not finite": ({"gates": "i", "initial": {"h": math.nan}}, r"initial: h is a finite number, got nan"),
}  # fmt: skip


@pytest.mark.parametrize(("declared", "message"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_what_is_declared_is_checked(declared, message):
    with pytest.raises(CellError, match=f"^{re.escape(__file__)}:.* my_cell: .*{message}"):
        cells.cell(**declared)(returns(lambda v: v))


def test_no_attribute_or_argument_of_a_layer_is_a_number():
    step = cells.cell(gates="i")(returns(lambda v: v))
    names = {"training"}
    for module in (fastrnn.Recurrent(step, 2, 3), fastrnn.RecurrentCell(step, 2, 3)):
        names |= {name for name in dir(module) if not name.startswith("_")}
        for function in (type(module).__init__, type(module).forward):
            names |= set(inspect.signature(function).parameters)
    for name in names:
        with pytest.raises(
            CellError, match=f"'{name}' is (an attribute of modules|a word of Python)"
        ):
            cells.cell(gates="i", numbers={name: 0.5})(returns(lambda v: v))


def test_the_function_is_one_with_a_name_and_four_arguments():
    with pytest.raises(CellError, match=r"takes four arguments, \(x, h, s, p\), not \(x, h, s\)"):
        cells.cell(gates="i")(three_arguments)
    with pytest.raises(CellError, match="a lambda has no name: write def my_cell"):
        cells.cell(gates="i")(lambda x, h, s, p: x.i + h.i)
    with pytest.raises(CellError, match=r"is made of a function, .* not of a type"):
        cells.cell(gates="i")(dict)
    with pytest.raises(
        CellError,
        match=rf"{re.escape(__file__)}:\d+: three_arguments: .* write @cells.cell\(gates=",
    ):
        cells.cell(three_arguments)
    with pytest.raises(CellError, match="cell takes what the cell declares"):
        cells.cell(dict)
    for function in (awaited, yielding):
        with pytest.raises(CellError, match="is an ordinary one, without async and yield"):
            cells.cell(gates="i")(function)


def three_arguments(x, h, s):
    return x.i + h.i


async def awaited(x, h, s, p):
    return x.i + h.i


def yielding(x, h, s, p):
    yield x.i + h.i


def test_a_value_of_another_cell_is_refused():
    kept = []

    @cells.cell(gates="i")
    def keeper(x, h, s, p):
        kept.append(x.i)
        return x.i + h.i

    with pytest.raises(CellError, match="a value of another cell's function cannot be used here"):
        cells.cell(gates="i")(returns(lambda v: sigmoid(v + kept[0])))


def test_an_error_of_the_users_own_stays_what_it_is():
    with pytest.raises(KeyError, match="mine"):
        cells.cell(gates="i")(returns(lambda v: {}["mine"]))
