"""Cells written in Python: what a cell says of itself, its step in torch operations, its text for people, its pickle."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess

import pytest
import torch
from cell_cases import derived, every_cell
from common import TOLERANCE
from torch.autograd import gradcheck, gradgradcheck
from written_cells import FUNCTIONS, WRITTEN, call, random_inputs

import fastrnn
from fastrnn import cells
from fastrnn.cells import Cell, CellError, CellShape, sigmoid, tanh, where

# The language's functions of one value, and torch's.
FUNCTION_PAIRS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "softplus": torch.nn.functional.softplus,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "hard_sigmoid": torch.nn.functional.hardsigmoid,
    "hard_tanh": torch.nn.functional.hardtanh,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "softsign": torch.nn.functional.softsign,
    "elu": torch.nn.functional.elu,
}


def cell_of(function, **declared):
    def of_input(x, h, s, p):
        return function(x)

    return cells.cell(**declared)(of_input)


def step_of(cell, *values):
    return cell.step(torch.cat(values, -1), None, torch.zeros_like(values[0]))[0]


@pytest.mark.parametrize(("name", "of_torch"), FUNCTION_PAIRS.items(), ids=FUNCTION_PAIRS)
def test_functions_are_torchs_on_values_tensors_and_numbers(name, of_torch):
    ours = getattr(cells, name)
    positive = name in ("log", "sqrt")
    x = torch.linspace(0.01 if positive else -30, 30, 601, dtype=torch.float64, requires_grad=True)
    traced = cell_of(lambda x: ours(x.a), input_gates="a")
    expected = of_torch(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    for result in (step_of(traced, x), ours(x)):
        # torch's softplus is x from 20 on, its hard_sigmoid's derivative has a sixth in float32.
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(result.sum(), x)[0], slope, rtol=1e-7, atol=1e-12
        )
    for value in (0.3, 3.0):
        assert ours(value) == pytest.approx(
            of_torch(torch.tensor(value, dtype=torch.float64)).item(), abs=1e-8
        )


@pytest.mark.parametrize("name", FUNCTION_PAIRS)
def test_a_function_of_a_constant_is_a_constant(name):
    cell = cell_of(lambda x: x.a * getattr(cells, name)(x.a * 0 + 0.7), input_gates="a")
    assert step_of(cell, torch.ones(1, dtype=torch.float64)).item() == getattr(cells, name)(0.7)
    assert cell.facts.saved == 0


# Where a derivative has a kink, and a value on either side of it.
KINKS = {
    "relu": (torch.relu, (0.0, -1.0, 1.0)),
    "abs": (torch.abs, (0.0, -1.0, 1.0)),
    "elu": (torch.nn.functional.elu, (0.0, -1e-30, 1e-30)),
    "hard_sigmoid": (torch.nn.functional.hardsigmoid, (-3.0, 3.0, 0.0)),
    "hard_tanh": (torch.nn.functional.hardtanh, (-1.0, 1.0, 0.0)),
}


@pytest.mark.parametrize(("name", "of_torch", "at"), [(k, *v) for k, v in KINKS.items()], ids=KINKS)
def test_derivatives_at_kinks_are_torchs(name, of_torch, at):
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(of_torch(x).sum(), x)
    (gradients,) = derived_of(
        cell_of(lambda x: getattr(cells, name)(x.a), input_gates="a"), x.detach()
    )
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["minimum", "maximum"])
def test_at_a_tie_each_takes_half(name):
    a = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(getattr(torch, name)(a, b).sum(), (a, b))
    cell = cell_of(lambda x: getattr(cells, name)(x.a, x.b), input_gates="ab")
    assert all(map(torch.equal, derived_of(cell, a.detach(), b.detach()), expected))
    assert expected[0][0] == 0.5


def derived_of(cell, *values):
    """The derived gradients of input gates, for a gradient of one."""
    inputs = random_inputs(cell, N=1, H=len(values[0])) | {"gx": torch.cat(values).unsqueeze(0)}
    gradients = derived(cell, inputs, [torch.ones(1, len(values[0]), dtype=torch.float64)])
    return [gradient[0] for gradient in gradients[: len(values)]]


@every_cell
def test_the_step_is_the_function(cell, function):
    inputs = random_inputs(cell)
    new_h, states = cell.step(**inputs)
    expected = call(cell, function, inputs)
    for got, want in zip((new_h, *states), expected, strict=True):
        torch.testing.assert_close(got, want.expand_as(inputs["h"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_step_has_the_dtype_of_its_input(name, dtype):
    cell = WRITTEN[name]
    exact = cell.step(**random_inputs(cell))
    step = cell.step(**random_inputs(cell, dtype=dtype))
    for got, want in zip((step[0], *step[1]), (exact[0], *exact[1]), strict=True):
        assert got.dtype == dtype
        # A step is some operations that each round, of values that are rounded before.
        bound = 8 * TOLERANCE[dtype] * max(1, want.abs().max().item())
        torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["slstm", "peephole_lstm", "with_inputs", "leaky"])
def test_a_step_has_derivatives_of_any_order_and_maps(name):
    cell = WRITTEN[name]
    inputs = random_inputs(cell, N=2, H=2)
    tensors = {k: v for k, v in inputs.items() if k in ("gx", "gh", "h") and v is not None}

    def step(*values):
        new_h, states = cell.step(**inputs | dict(zip(tensors, values, strict=True)))
        return (new_h, *states)

    given = [x.clone().requires_grad_() for x in tensors.values()]
    assert gradcheck(step, given) and gradgradcheck(step, given)
    batched = [torch.stack([x, 2 * x]).detach() for x in given]
    mapped = torch.vmap(step)(*batched)
    for k, each in enumerate(zip(*mapped, strict=True)):
        for got, want in zip(each, step(*(x[k] for x in batched)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_step_compiles_to_one_graph():
    cell = WRITTEN["slstm"]
    inputs = random_inputs(cell)
    compiled = torch.compile(cell.step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**inputs)[0], cell.step(**inputs)[0])


def test_a_cell_says_what_it_declares():
    cell = WRITTEN["slstm"]
    assert (cell.name, cell.gates) == ("slstm", ("input", "forget", "cell", "output"))
    assert (cell.states, cell.initial) == (("c", "n", "m"), {"m": -2.0})
    assert WRITTEN["leaky"].numbers == {"leak": 0.2}
    assert WRITTEN["leaky"].vectors == {"tau": 1.0}
    assert WRITTEN["independent_rnn"].vectors == {"u": (-1.0, 1.0)}
    assert WRITTEN["peephole_lstm"].vectors == dict.fromkeys(("p_i", "p_f", "p_o"))
    with_inputs = WRITTEN["with_inputs"]
    assert (with_inputs.input_gates, with_inputs.recurrent_gates) == (("k", "f"), ("q",))
    assert with_inputs.inputs == ("dt", "mask")
    assert with_inputs.facts == CellShape(2, 1, 0, 0, 2, 0, saved=4)
    assert WRITTEN["lstm"].facts == CellShape(4, 4, 1, 0, 0, 0, saved=4)
    assert WRITTEN["minimal_gru"].facts.recurrent_gates == 0


def leaky_with(alpha, name="leaky", **declared):
    def function(x, h, s, p):
        return s.h + alpha * (tanh(x.a + h.a) - s.h)

    function.__name__ = name
    return cells.cell(gates="a", **declared)(function)


def test_equal_content_has_an_equal_name():
    cell = leaky_with(0.1)
    assert leaky_with(0.1) == cell and hash(leaky_with(0.1)) == hash(cell)
    assert leaky_with(0.1).op_name == cell.op_name
    assert cell.op_name.startswith("leaky_") and cell.op_name.isidentifier()
    others = [leaky_with(0.2), leaky_with(0.1, "other"), WRITTEN["leaky"]]
    assert len({cell.op_name, *(other.op_name for other in others)}) == 4
    assert all(other != cell for other in others)
    # What is before the first step is no matter of the kernels.
    started = leaky_with(0.1, initial={"h": 1.0})
    assert started.op_name == cell.op_name and started != cell


def test_what_is_computed_in_vain_is_no_content():
    @cells.cell(gates="a")
    def rnn(x, h, s, p):
        _ = sigmoid(x.a) * 3
        return tanh(x.a + h.a)

    kept = rnn

    @cells.cell(gates="a")
    def rnn(x, h, s, p):
        return tanh(0 * s.h + (x.a + 0.0 + 1 * h.a) / 1)

    assert rnn == kept


@every_cell
def test_a_pickle_holds_the_formula(cell, function):
    for loaded in (pickle.loads(pickle.dumps(cell)), copy.deepcopy(cell)):
        assert loaded == cell
        assert loaded.op_name == cell.op_name
        assert loaded.source() == cell.source()


def test_a_pickle_needs_no_function_and_names_its_format(monkeypatch, warm_python):
    dumped = pickle.dumps(WRITTEN["lstm"])
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).op_name)"
    done = subprocess.run(
        [warm_python, "-c", program], input=dumped, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == WRITTEN["lstm"].op_name
    monkeypatch.setattr("fastrnn.cells.definition._FORMAT", 2)
    with pytest.raises(
        CellError, match=r"lstm was pickled by another version .*\(format 1, this one reads 2\)"
    ):
        pickle.loads(dumped)


def test_a_cell_prints_its_step_its_derivative_and_what_is_saved():
    assert (
        str(WRITTEN["gru"])
        == """\
gru(x, h, s, p)
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    new_h = n + z * (s.h - n)
saved for backward: r, z, n, h.n (16 bytes a unit and step in float32)
backward, from the gradients dh of the new states:
    t = 1 - z
    d_x.n = dh * t * (1 - n * n)
    d_x.z = dh * (s.h - n) * z * t
    d_x.r = d_x.n * h.n * r * (1 - r)
    d_h.r = d_x.r
    d_h.z = d_x.z
    d_h.n = d_x.n * r
    d_s.h = dh * z"""
    )
    assert "saved for backward: nothing (0 bytes" in str(WRITTEN["rnn_tanh"])
    assert "d_p.p_i = d_x.i * s.c" in str(WRITTEN["peephole_lstm"])
    assert repr(WRITTEN["gru"]) == f"<fastrnn cell {WRITTEN['gru'].op_name}>"


# A formula of v = x.a and w = x.b, and its text.
FOLDED = {
    "zero": (lambda v, w: v + 0 * w + w - 0.0, "x.a + x.b"),
    "one": (lambda v, w: 1 * v * (w / 1), "x.a * x.b"),
    "signs": (lambda v, w: -v - (-w) + v * -1, "x.b - x.a - x.a"),
    "twice": (lambda v, w: (v + v) * w, "2 * (x.a * x.b)"),
    "constants": (lambda v, w: 3 * (2 * v) + w * math.pi * 0, "6 * x.a"),
    "quotient": (lambda v, w: (v + w) / 4, "0.25 * (x.a + x.b)"),
    "constants beyond float32": (lambda v, w: 1e30 * (1e30 * v), "1e+30 * (1e+30 * x.a)"),
    "a large power of two": (lambda v, w: v * 2.0**60 * w, "t * x.b"),
    "powers": (lambda v, w: v**1 * w**0 + w**2, "x.a + x.b * x.b"),
    "negative power": (lambda v, w: w + v**-1, "x.b + 1 / x.a"),
    "same branches": (lambda v, w: where(v > 0, w, w) + v, "x.b + x.a"),
    "known branch": (lambda v, w: where(v * 0 > 1, v, w), "x.b"),
    "brackets": (lambda v, w: v - (w + v) * (v / (w * v)), "x.a - (x.b + x.a) * (x.a / (x.b * x.a))"),
    "branches": (lambda v, w: where(v >= -1, v, -w), "where(-1 <= x.a, x.a, -x.b)"),
}  # fmt: skip


@pytest.mark.parametrize(("formula", "text"), FOLDED.values(), ids=FOLDED)
def test_constants_zeros_and_ones_are_folded(formula, text):
    @cells.cell(input_gates="ab", states="c")
    def folded(x, h, s, p):
        return formula(x.a, x.b), {"c": x.a - x.b}

    assert f"    new_h = {text}\n" in str(folded)


def test_an_expression_is_computed_once():
    cell = cell_of(
        lambda x: tanh(x.a + x.b) * tanh(x.b + x.a) + sigmoid(x.a + x.b), input_gates="ab"
    )
    assert str(cell).partition("saved")[0].count("tanh(") == 1


def test_plain_numbers_choose_a_branch_while_the_cell_is_traced():
    def chosen(known):
        return cell_of(lambda x: where(known, tanh(x.a), x.a * 2), input_gates="a")

    assert "tanh" in str(chosen(True)) and "tanh" not in str(chosen(False))


def test_numbers_of_numpy_and_torch_are_constants():
    numpy = pytest.importorskip("numpy")
    made = [cell_of(lambda x, k=k: k * x.a + x.a / k, input_gates="a")
            for k in (0.5, numpy.float64(0.5), numpy.float32(0.5))]  # fmt: skip
    assert len({cell.op_name for cell in made}) == 1


def test_the_package_has_cells():
    assert fastrnn.cells is cells
    assert isinstance(WRITTEN["lstm"], Cell) and callable(FUNCTIONS["lstm"])
    assert not hasattr(cells, "conv")
