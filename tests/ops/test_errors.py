"""Bad input: torch.nn's type of error, its words, and which argument was wrong. Each row is tried on torch.nn, too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.torch_version import TorchVersion

import fastrnn

LAYERS = ("RNN", "GRU", "LSTM")
ALL_CELLS = ("RNNCell", "GRUCell", "LSTMCell")


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


def state(name, *shape, **options):
    """An initial state of that shape, twice for an LSTM."""
    return (zeros(*shape, **options),) * 2 if name.startswith("LSTM") else zeros(*shape, **options)


# What is wrong, constructor arguments, type of the error, its text (a regular expression).
CONSTRUCTOR = [
    ("hidden_size zero", (3, 0), {}, ValueError, "hidden_size must be greater than zero"),
    ("hidden_size negative", (3, -2), {}, ValueError, "hidden_size must be greater than zero"),
    ("hidden_size float", (3, 4.0), {}, TypeError, "hidden_size should be of type int, got: float"),
    ("input_size zero", (0, 4), {}, ValueError, "input_size must be greater than zero"),
    ("input_size text", ("3", 4), {}, TypeError, "input_size should be of type int, got: str"),
    ("num_layers zero", (3, 4, 0), {}, ValueError, "num_layers must be greater than zero"),
    ("bias int", (3, 4), {"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    ("batch_first int", (3, 4), {"batch_first": 0}, TypeError, "batch_first should be of type bool"),
    ("dropout above 1", (3, 4, 2), {"dropout": 1.5}, ValueError, r"dropout should be a number in range \[0, 1\]"),
    ("dropout negative", (3, 4, 2), {"dropout": -0.1}, ValueError, r"dropout should be a number in range \[0, 1\]"),
    ("dropout bool", (3, 4, 2), {"dropout": True}, ValueError, r"dropout should be a number in range \[0, 1\]"),
]  # fmt: skip

CONSTRUCTOR_ONE = [
    ("LSTM", (3, 4), {"proj_size": 4}, ValueError, "proj_size has to be smaller than hidden_size"),
    (
        "LSTM",
        (3, 4),
        {"proj_size": -1},
        ValueError,
        "proj_size should be a positive integer or zero",
    ),
    ("GRU", (3, 4), {"proj_size": 2}, ValueError, "proj_size argument is only supported for LSTM"),
    ("RNN", (3, 4), {"proj_size": 2}, ValueError, "proj_size argument is only supported for LSTM"),
    ("RNN", (3, 4), {"nonlinearity": "gelu"}, ValueError, "Unknown nonlinearity 'gelu'"),
]

# What is wrong, input shape and options, shape and options of the state or None, type of the error, its text.
FORWARD = [
    ("1-D input", (3,), {}, None, {}, ValueError, "Expected input to be 2D or 3D, got 1D"),
    ("4-D input", (1, 2, 3, 3), {}, None, {}, ValueError, "Expected input to be 2D or 3D, got 4D"),
    ("input size", (5, 2, 4), {}, None, {}, RuntimeError,
     r"input.size\(-1\) must be equal to input_size. Expected 3, got 4"),
    ("input size, unbatched", (5, 4), {}, None, {}, RuntimeError,
     r"input.size\(-1\) must be equal to input_size. Expected 3, got 4"),
    ("input dtype", (5, 2, 3), {"dtype": torch.float64}, None, {}, ValueError,
     r"RNN input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)"),
    ("integer input", (5, 2, 3), {"dtype": torch.int64}, None, {}, ValueError,
     r"RNN input dtype \(torch.int64\) does not match weight dtype"),
    ("batch of the state", (5, 2, 3), {}, (1, 3, 4), {}, RuntimeError,
     r"Expected hidden.*size \(1, 2, 4\), got \[1, 3, 4\]"),
    ("size of the state", (5, 2, 3), {}, (1, 2, 5), {}, RuntimeError,
     r"Expected hidden.*size \(1, 2, 4\), got \[1, 2, 5\]"),
    ("layers of the state", (5, 2, 3), {}, (2, 2, 4), {}, RuntimeError,
     r"Expected hidden.*size \(1, 2, 4\), got \[2, 2, 4\]"),
    ("rank of the state", (5, 2, 3), {}, (2, 4), {}, RuntimeError, "For batched 3-D input, hx"),
    ("rank of the state, unbatched", (5, 3), {}, (1, 2, 4), {}, RuntimeError, "For unbatched 2-D input, hx"),
    ("dtype of the state", (5, 2, 3), {}, (1, 2, 4), {"dtype": torch.float64}, RuntimeError, "not the same dtype|mat1 and mat2 must have the same dtype|unsupported data type"),
    ("device of the state", (5, 2, 3), {}, (1, 2, 4), {"device": "meta"}, RuntimeError,
     "at the same device|is on meta"),
    ("device of the input", (5, 2, 3), {"device": "meta"}, None, {}, RuntimeError,
     "at the same device|is on meta|on meta"),
]  # fmt: skip

# For the cells, with input_size 10 and hidden_size 20.
CELL_FORWARD = [
    ("3-D input", (2, 3, 10), None, {}, ValueError, "Expected input to be 1D or 2D, got 3D instead"),
    ("3-D state", (3, 10), (1, 3, 20), {}, ValueError, "to be 1D or 2D, got 3D instead"),
    ("input size", (3, 11), (3, 20), {}, RuntimeError, "input has inconsistent input_size: got 11 expected 10"),
    ("hidden size", (3, 10), (3, 21), {}, RuntimeError, "hidden0 has inconsistent hidden_size: got 21, expected 20"),
    ("batch", (3, 10), (5, 20), {}, RuntimeError, "Input batch size 3 doesn't match hidden0 batch size 5"),
    ("dtype of the state", (3, 10), (3, 20), {"dtype": torch.float64}, RuntimeError, "dtype"),
    ("dtype of the input", (3, 10), None, {"dtype": torch.float64}, RuntimeError, "mat1 and mat2 must have the same dtype"),
]  # fmt: skip

# torch.nn's own words are those of torch 2.13; older versions check less.
RECENT = TorchVersion(torch.__version__) >= (2, 13)
PACKAGES = pytest.mark.parametrize(
    "package",
    [pytest.param(nn, marks=pytest.mark.skipif(not RECENT, reason="torch < 2.13")), fastrnn],
    ids=["torch.nn", "fastrnn"],
)


def ids(rows):
    return [row[0] for row in rows]


@PACKAGES
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("row", CONSTRUCTOR, ids=ids(CONSTRUCTOR))
def test_constructor(package, name, row):
    _, args, options, error, text = row
    with pytest.raises(error, match=text):
        getattr(package, name)(*args, **options)


@PACKAGES
@pytest.mark.parametrize(("name", "args", "options", "error", "text"), CONSTRUCTOR_ONE)
def test_constructor_of_one(package, name, args, options, error, text):
    with pytest.raises(error, match=text):
        getattr(package, name)(*args, **options)


@PACKAGES
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("row", FORWARD, ids=ids(FORWARD))
def test_forward(package, name, row):
    _, shape, options, state_shape, state_options, error, text = row
    module = getattr(package, name)(3, 4)
    hx = None if state_shape is None else state(name, *state_shape, **state_options)
    with pytest.raises(error, match=text):
        module(zeros(*shape, **options), hx)


@PACKAGES
@pytest.mark.parametrize("name", ALL_CELLS)
@pytest.mark.parametrize("row", CELL_FORWARD, ids=ids(CELL_FORWARD))
def test_cell_forward(package, name, row):
    _, shape, state_shape, options, error, text = row
    cell = getattr(package, name)(10, 20)
    with pytest.raises(error, match=text):
        if state_shape is None:
            cell(zeros(*shape, **options))
        else:
            cell(zeros(*shape), state(name, *state_shape, **options))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch.nn's, on its way to the error
@PACKAGES
@pytest.mark.parametrize("wrong", ["tensor", "triple", "single"])
def test_lstm_wants_two_states(package, wrong):
    hx = {"tensor": zeros(1, 2, 4), "triple": (zeros(1, 2, 4),) * 3, "single": (zeros(1, 2, 4),)}[
        wrong
    ]
    text = "expects two hidden states" if package is fastrnn or wrong == "triple" else ""
    with pytest.raises((RuntimeError, IndexError), match=text):
        package.LSTM(3, 4)(zeros(5, 2, 3), hx)


# Where torch.nn fails by accident (AttributeError, or not at all), ours says what is wrong.
OURS = [
    ("tuple for a GRU", lambda: fastrnn.GRU(3, 4)(zeros(5, 2, 3), (zeros(1, 2, 4),) * 2), TypeError,
     "GRU: hx must be a tensor h_0, got tuple"),
    ("tuple for a GRUCell", lambda: fastrnn.GRUCell(3, 4)(zeros(2, 3), (zeros(2, 4),) * 2), TypeError,
     "GRUCell: hx must be a tensor h_0"),
    ("tensor for an LSTMCell", lambda: fastrnn.LSTMCell(3, 4)(zeros(2, 3), zeros(2, 4)), RuntimeError,
     "expects two hidden states"),
    ("list as input", lambda: fastrnn.RNN(3, 4)([[1.0, 2.0, 3.0]]), TypeError,
     "RNN: input must be a Tensor or a PackedSequence, got list"),
    ("array as state", lambda: fastrnn.RNN(3, 4)(zeros(5, 2, 3), zeros(1, 2, 4).numpy()), TypeError,
     "hx must be a tensor h_0, got ndarray"),
    ("hidden_size of a cell", lambda: fastrnn.GRUCell(3, 0), ValueError, "hidden_size must be greater than zero"),
    ("None for a cell", lambda: fastrnn.GRUCell(3, 4)(None), TypeError, "GRUCell: input must be a Tensor, got NoneType"),
    ("array for a cell", lambda: fastrnn.LSTMCell(3, 4)(zeros(2, 3).numpy()), TypeError,
     "LSTMCell: input must be a Tensor, got ndarray"),
    ("sparse input", lambda: fastrnn.GRU(3, 4)(zeros(5, 2, 3).to_sparse()), NotImplementedError,
     r"GRU: there is no kernel for an input of layout torch\.sparse_coo: give input\.to_dense\(\)"),
    ("sparse input of a cell", lambda: fastrnn.RNNCell(3, 4)(zeros(2, 3).to_sparse()), NotImplementedError,
     r"RNNCell: there is no kernel for an input of layout torch\.sparse_coo"),
    ("integers cannot be a model's type", lambda: fastrnn.GRU(3, 4)(zeros(5, 2, 3, dtype=torch.int64)), ValueError,
     r"Convert input: input\.to\(torch\.float32\)$"),
    ("recompute text", lambda: fastrnn.RNN(3, 4, recompute="yes"), TypeError,
     "recompute should be of type bool, got: str 'yes'"),
    ("recompute int in functional", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 4)], bias=False, recompute=1), TypeError,
     "recompute should be of type bool, got: int 1"),
    ("weights by name", lambda: fastrnn.functional.gru(
        zeros(5, 2, 3), None, dict(fastrnn.GRU(3, 4).named_parameters())), TypeError,
     r"GRU: weights must be a list of tensors in the order of list\(layer\.parameters\(\)\), got dict$"),
    ("weights that are arrays", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3).numpy(), zeros(4, 4)], bias=False), TypeError,
     r"RNN: weights must be a list of tensors .*, got list of \(ndarray, Tensor\)"),
    ("no weights at all", lambda: fastrnn.functional.rnn(zeros(5, 2, 3), None, None), TypeError,
     r"RNN: weights must be a list of tensors .*, got NoneType$"),
    ("detach_state of a dict", lambda: fastrnn.detach_state({"h": zeros(2)}), TypeError,
     "detach_state: state must be a tensor, a tuple or list of them, or None, got dict$"),
    ("nonlinearity of a cell", lambda: fastrnn.RNNCell(3, 4, nonlinearity="gelu"), ValueError,
     "Unknown nonlinearity 'gelu'"),
    ("complex weights", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3, dtype=torch.complex64), None,
        [zeros(4, 3, dtype=torch.complex64), zeros(4, 4, dtype=torch.complex64)], bias=False), ValueError,
     "fastrnn computes in torch.float32.* have dtype torch.complex64"),
    ("bidirectional int", lambda: fastrnn.RNN(3, 4, bidirectional=2), TypeError,
     "bidirectional should be of type bool, got: int"),
    ("tensor as reset_state of an LSTM", lambda: fastrnn.LSTM(3, 4)(
        zeros(5, 2, 3), reset=marks(5, 2), reset_state=zeros(1, 2, 4)), RuntimeError,
     r"LSTM: lstm expects two hidden states, reset_state = \(h_0, c_0\), got Tensor$"),
    ("tuple as reset_state of a GRU", lambda: fastrnn.GRU(3, 4)(
        zeros(5, 2, 3), reset=marks(5, 2), reset_state=(zeros(1, 2, 4),) * 2), TypeError,
     r"GRU: reset_state must be a tensor h_0, got tuple of \(Tensor, Tensor\)"),
    ("number as reset_state", lambda: fastrnn.RNN(3, 4)(
        zeros(5, 2, 3), reset=marks(5, 2), reset_state=0.0), TypeError,
     "RNN: reset_state must be a tensor h_0, got float"),
    ("size of one reset_state", lambda: fastrnn.LSTM(3, 4, proj_size=2)(
        zeros(5, 2, 3), reset=marks(5, 2), reset_state=(zeros(1, 2, 2), zeros(1, 2, 5))), RuntimeError,
     r"Expected reset_state\[1\] size \(1, 2, 4\), got \[1, 2, 5\]"),
    ("reverse and bidirectional", lambda: fastrnn.LSTM(3, 4, reverse=True, bidirectional=True), ValueError,
     "reverse=True is for layers of one direction, got bidirectional=True, too"),
    ("reverse and bidirectional in functional", lambda: fastrnn.functional.gru(
        zeros(5, 2, 3), None, [zeros(12, 3), zeros(12, 4)] * 2, bias=False, reverse=True, bidirectional=True), ValueError,
     "reverse=True is for layers of one direction, got bidirectional=True, too"),
    ("reverse int", lambda: fastrnn.RNN(3, 4, reverse=1), TypeError, "reverse should be of type bool, got: int 1"),
    ("reverse text in functional", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 4)], bias=False, reverse="yes"), TypeError,
     "reverse should be of type bool, got: str 'yes'"),
    ("detach_state of a number", lambda: fastrnn.detach_state(3), TypeError,
     "detach_state: state must be a tensor, a tuple or list of them, or None, got int 3"),
    ("detach_state of a number in a tuple", lambda: fastrnn.detach_state((zeros(2), 0.5)), TypeError,
     "detach_state: state must be .*, got float 0.5"),
    ("layers of the weights", lambda: fastrnn.functional.gru(
        zeros(5, 2, 3), None, [zeros(12, 3), zeros(12, 4)], num_layers=2, bias=False), RuntimeError,
     r"got 2 weights, expected 2 for each of num_layers \* num_directions = 2"),
    ("shape of a weight", lambda: fastrnn.functional.gru(
        zeros(5, 2, 3), None, [zeros(12, 3), zeros(12, 4), zeros(12), zeros(9)]), RuntimeError,
     r"bias_hh_l0 has shape \[9\], expected \[12\]"),
    ("weights of a second layer", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 4), zeros(4, 3), zeros(4, 4)], num_layers=2, bias=False),
     RuntimeError, r"weight_ih_l1 has shape \[4, 3\], expected \[4, 4\]"),
    ("columns of weight_hh", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 5)], bias=False), RuntimeError,
     "weight_hh_l0 has 5 columns, expected hidden_size = 4"),
    ("dtype of one weight", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3), zeros(4, 4, dtype=torch.float64)], bias=False), RuntimeError,
     "Input and parameter tensors are not the same dtype"),
    ("odd number of weights", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4, 3)], bias=False), RuntimeError, "got . weights"),
    ("no weights", lambda: fastrnn.functional.rnn(zeros(5, 2, 3), None, []), RuntimeError, "got . weights"),
    ("rank of a weight", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3), None, [zeros(4), zeros(4, 4)], bias=False), RuntimeError, "must have 2 dimensions"),
]  # fmt: skip


def marks(*shape, **options):
    return zeros(*shape, dtype=torch.bool, **options)


def packed():
    return pack_padded_sequence(zeros(5, 2, 3), torch.tensor([5, 2]))


def nested(*shape, layout=torch.jagged):
    """A nested tensor of 5 and 2 steps, each of that shape."""
    return torch.nested.nested_tensor([zeros(5, *shape), zeros(2, *shape)], layout=layout)


def states(*shape, **options):
    """For a module of a name, a state of that shape."""
    return lambda name: state(name, *shape, **options)


# What is wrong, the module's options, input, keyword arguments, type of the error, its text with {name} for the module's.
SEQUENCE_CONTROL = [
    ("negative length", {}, zeros(5, 2, 3), {"lengths": torch.tensor([3, -1])}, ValueError,
     r"^lengths\[1\] is -1, expected 0 <= length <= T = 5"),
    ("length beyond T", {}, zeros(5, 2, 3), {"lengths": torch.tensor([5, 6])}, ValueError,
     r"^lengths\[1\] is 6, expected 0 <= length <= T = 5"),
    ("length beyond T, batch first", {"batch_first": True}, zeros(2, 5, 3), {"lengths": torch.tensor([6, 5])}, ValueError,
     r"^lengths\[0\] is 6, expected 0 <= length <= T = 5"),
    ("length beyond T, unbatched", {}, zeros(5, 3), {"lengths": torch.tensor(6)}, ValueError,
     r"^lengths\[0\] is 6, expected 0 <= length <= T = 5"),
    ("lengths text", {}, zeros(5, 2, 3), {"lengths": "5, 2"}, TypeError,
     "^lengths must be a tensor, a list or an array of N integers, got str"),
    ("lengths a list of floats", {}, zeros(5, 2, 3), {"lengths": [5.0, 2.0]}, TypeError,
     "^lengths must be an integer tensor on cpu, got torch.float32 on cpu"),
    ("mask with a hole", {}, zeros(5, 2, 3), {"mask": torch.tensor([[1, 1], [0, 1], [1, 1], [0, 0], [0, 0]])}, ValueError,
     "^{name}: mask marks a step after one that it leaves out; .* give lengths=, and reset="),
    ("mask that starts late, batch first", {"batch_first": True}, zeros(2, 5, 3), {"mask": torch.eye(5)[:2]}, ValueError,
     "^{name}: mask marks a step after one that it leaves out"),
    ("shape of the mask", {}, zeros(5, 2, 3), {"mask": torch.ones(2, 5)}, ValueError,
     r"^{name}: mask must have shape \[5, 2\], the input's without features, got \[2, 5\]"),
    ("mask no tensor", {}, zeros(5, 2, 3), {"mask": [[1, 1]] * 5}, TypeError, "^{name}: mask must be a tensor, got list"),
    ("mask and lengths", {}, zeros(5, 2, 3), {"mask": torch.ones(5, 2), "lengths": torch.tensor([5, 5])}, ValueError,
     "^{name}: mask= and lengths= say the same"),
    ("mask of a packed input", {}, packed(), {"mask": torch.ones(5, 2)}, ValueError,
     "^{name}: mask= goes with a padded input, got PackedSequence"),
    ("lengths float", {}, zeros(5, 2, 3), {"lengths": torch.ones(2)}, TypeError,
     "^lengths must be an integer tensor on cpu, got torch.float32 on cpu"),
    ("lengths bool", {}, zeros(5, 2, 3), {"lengths": marks(2)}, TypeError,
     "^lengths must be an integer tensor on cpu, got torch.bool on cpu"),
    ("lengths 2-D", {}, zeros(5, 2, 3), {"lengths": torch.tensor([[5, 2]])}, ValueError,
     r"^lengths must have shape \(2,\), one per sample, got \[1, 2\]"),
    ("lengths 0-D", {}, zeros(5, 2, 3), {"lengths": torch.tensor(5)}, ValueError,
     r"^lengths must have shape \(2,\), one per sample, got \[\]"),
    ("two lengths, unbatched", {}, zeros(5, 3), {"lengths": torch.tensor([5, 2])}, ValueError,
     r"^lengths must have shape \(1,\), one per sample, got \[2\]"),
    ("lengths on meta", {}, zeros(5, 2, 3), {"lengths": zeros(2, dtype=torch.int64, device="meta")}, TypeError,
     "^lengths must be an integer tensor on cpu, got torch.int64 on meta"),
    ("lengths int", {}, zeros(5, 2, 3), {"lengths": 5}, ValueError,
     r"^lengths must have shape \(2,\), one per sample, got \[\]"),
    ("reset shape", {}, zeros(5, 2, 3), {"reset": marks(2, 5)}, ValueError,
     r"^{name}: reset must have shape \[5, 2\], a mark for each step of each sample, got \[2, 5\]"),
    ("reset shape, batch first", {"batch_first": True}, zeros(2, 5, 3), {"reset": marks(5, 2)}, ValueError,
     r"^{name}: reset must have shape \[2, 5\].*, got \[5, 2\]"),
    ("reset shape, unbatched", {}, zeros(5, 3), {"reset": marks(5, 1)}, ValueError,
     r"^{name}: reset must have shape \[5\].*, got \[5, 1\]"),
    ("reset shape, packed", {}, packed(), {"reset": marks(2, 5)}, ValueError,
     r"^{name}: reset must have shape \[5, 2\].*, got \[2, 5\]"),
    ("reset shape, jagged", {}, nested(3), {"reset": marks(5, 2)}, ValueError,
     r"^{name}: reset must have shape \[2, 5\].*, got \[5, 2\]"),
    ("reset integers", {}, zeros(5, 2, 3), {"reset": zeros(5, 2, dtype=torch.int64)}, TypeError,
     "^{name}: reset must be a bool tensor, got torch.int64"),
    ("reset list", {}, zeros(5, 2, 3), {"reset": [True] * 5}, TypeError,
     "^{name}: reset must be a bool tensor, got list"),
    ("reset on meta", {}, zeros(5, 2, 3), {"reset": marks(5, 2, device="meta")}, RuntimeError,
     "^{name}: reset is on meta, expected input's device cpu"),
    ("reset_state alone", {}, zeros(5, 2, 3), {"reset_state": states(1, 2, 4)}, ValueError,
     "^reset_state= is what reset= replaces the state by, but reset is None"),
    ("reset_state batch", {}, zeros(5, 2, 3), {"reset": marks(5, 2), "reset_state": states(1, 3, 4)}, RuntimeError,
     r"^Expected reset_state.* size \(1, 2, 4\), got \[1, 3, 4\]: reset_state is \(num_layers"),
    ("reset_state layers", {"num_layers": 2}, zeros(5, 2, 3), {"reset": marks(5, 2), "reset_state": states(1, 2, 4)}, RuntimeError,
     r"^Expected reset_state.* size \(2, 2, 4\), got \[1, 2, 4\]"),
    ("reset_state rank", {}, zeros(5, 2, 3), {"reset": marks(5, 2), "reset_state": states(2, 4)}, RuntimeError,
     "^For batched 3-D input, reset_state should also be 3-D but got .*2-D"),
    ("reset_state rank, unbatched", {}, zeros(5, 3), {"reset": marks(5), "reset_state": states(1, 1, 4)}, RuntimeError,
     "^For unbatched 2-D input, reset_state should also be 2-D but got .*3-D"),
    ("reset_state rank, packed", {}, packed(), {"reset": marks(5, 2), "reset_state": states(2, 4)}, RuntimeError,
     r"^Expected reset_state.* size \(1, 2, 4\), got \[2, 4\]"),
    ("reset_state dtype", {}, zeros(5, 2, 3), {"reset": marks(5, 2), "reset_state": states(1, 2, 4, dtype=torch.float64)}, RuntimeError,
     "^Input and reset_state tensors are not the same dtype, .* torch.float32 and reset_state tensor with torch.float64"),
    ("lengths and packed", {}, packed(), {"lengths": torch.tensor([5, 2])}, ValueError,
     "^{name}: lengths= goes with a padded input; a PackedSequence carries its own"),
    ("lengths and jagged", {}, nested(3), {"lengths": torch.tensor([5, 2])}, ValueError,
     "^{name}: lengths= goes with a padded input; a nested tensor carries its own"),
    ("nested 2-D", {}, nested(), {}, ValueError,
     r"^{name}: a nested input must be \(N, \*, input_size\), .*, got \[2, j\d+\]"),
    ("nested 4-D", {}, nested(3, 2), {}, ValueError,
     r"^{name}: a nested input must be \(N, \*, input_size\), .*, got \[2, j\d+, 3, 2\]"),
    ("nested, transposed", {}, nested(3).transpose(1, 2), {}, ValueError,
     r"^{name}: a nested input must be \(N, \*, input_size\), .*, got \[2, 3, j\d+\]"),
    ("nested, input size", {}, nested(4), {}, RuntimeError,
     r"^input.size\(-1\) must be equal to input_size. Expected 3, got 4"),
]  # fmt: skip


@pytest.fixture
def nothing_computed(monkeypatch):
    from fastrnn import ops

    monkeypatch.setattr(ops, "scan", lambda *_, **__: pytest.fail("computed before the error"))


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize("with_state", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("row", SEQUENCE_CONTROL, ids=ids(SEQUENCE_CONTROL))
def test_sequence_control(name, row, with_state):
    _, options, input, control, error, text = row
    module = getattr(fastrnn, name)(3, 4, **options)
    control = {key: value(name) if callable(value) else value for key, value in control.items()}
    batch = () if isinstance(input, torch.Tensor) and input.dim() == 2 else (2,)
    hx = state(name, module.num_layers, *batch, 4) if with_state else None
    with pytest.raises(error, match=text.replace("{name}", name)):
        module(input, hx, **control)


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(("call", "error", "text"), [row[1:] for row in OURS], ids=ids(OURS))
def test_ours(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize("name", LAYERS)
def test_nested_of_another_layout(name):
    with pytest.raises(
        ValueError,
        match=f"^{name}: input is a nested tensor of layout torch.strided, expected torch.jagged",
    ):
        getattr(fastrnn, name)(3, 4)(nested(3, layout=torch.strided))


def test_device_without_a_kernel(monkeypatch):
    """A device this build has no kernel for is named. (Stood in for: the fake device only has a type.)"""
    from fastrnn import ops

    class Elsewhere:
        device = torch.device("mps")

    with pytest.raises(NotImplementedError, match="no kernel for device 'mps'"):
        ops.scan("gru", Elsewhere(), None, None, ops.ScanWeights(None, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/nowhere/fastrnn.so", __file__], ids=["missing", "no library"])
def test_a_library_that_cannot_be_loaded_is_named_with_its_variable(path):
    run = subprocess.run(
        [sys.executable, "-c", "import fastrnn"],
        env={**os.environ, "FASTRNN_LIBRARY": path},
        capture_output=True,
        text=True,
    )
    assert f"OSError: fastrnn: FASTRNN_LIBRARY={path}: " in run.stderr


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own
def test_a_mask_is_checked_in_a_graph():
    torch._dynamo.reset()
    gru, x = fastrnn.GRU(3, 4), torch.randn(5, 2, 3)
    compiled = torch.compile(
        lambda x, mask: gru(x, mask=mask)[0], fullgraph=True, backend="aot_eager"
    )
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0], [0, 0]])
    assert torch.equal(compiled(x, mask), gru(x, lengths=[3, 2])[0])
    with pytest.raises(RuntimeError, match="GRU: mask marks a step after one that it leaves out"):
        compiled(x, 1 - mask)
