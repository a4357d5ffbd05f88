"""Bad input: torch.nn's type of error, its words, and which argument was wrong. Each row is tried on torch.nn, too."""

from __future__ import annotations

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
    ("nonlinearity of a cell", lambda: fastrnn.RNNCell(3, 4, nonlinearity="gelu"), ValueError,
     "Unknown nonlinearity 'gelu'"),
    ("complex weights", lambda: fastrnn.functional.rnn(
        zeros(5, 2, 3, dtype=torch.complex64), None,
        [zeros(4, 3, dtype=torch.complex64), zeros(4, 4, dtype=torch.complex64)], bias=False), ValueError,
     "fastrnn computes in torch.float32.* have dtype torch.complex64"),
    ("lengths dtype", lambda: fastrnn.RNN(3, 4)(zeros(5, 2, 3), lengths=torch.ones(2)), TypeError,
     "lengths must be an integer tensor on cpu, got torch.float32"),
    ("lengths on meta", lambda: fastrnn.RNN(3, 4)(
        zeros(5, 2, 3), lengths=zeros(2, dtype=torch.int64, device="meta")), TypeError,
     "lengths must be an integer tensor on cpu, got torch.int64 on meta"),
    ("bidirectional int", lambda: fastrnn.RNN(3, 4, bidirectional=2), TypeError,
     "bidirectional should be of type bool, got: int"),
    ("lengths list", lambda: fastrnn.RNN(3, 4)(zeros(5, 2, 3), lengths=[1, 2]), TypeError,
     "lengths must be a tensor"),
    ("lengths shape", lambda: fastrnn.RNN(3, 4)(zeros(5, 2, 3), lengths=torch.tensor([1, 2, 3])), ValueError,
     r"lengths must have shape \(2,\), one per sample, got \[3\]"),
    ("length beyond T", lambda: fastrnn.RNN(3, 4)(zeros(5, 2, 3), lengths=torch.tensor([1, 6])), ValueError,
     r"lengths\[1\] is 6, expected 0 <= length <= T = 5"),
    ("negative length", lambda: fastrnn.RNN(3, 4)(zeros(5, 2, 3), lengths=torch.tensor([-1, 5])), ValueError,
     r"lengths\[0\] is -1"),
    ("lengths and packed", lambda: fastrnn.RNN(3, 4)(
        pack_padded_sequence(zeros(5, 2, 3), torch.tensor([5, 2])), lengths=torch.tensor([5, 2])), ValueError,
     "a PackedSequence carries its own"),
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


@pytest.mark.parametrize(("call", "error", "text"), [row[1:] for row in OURS], ids=ids(OURS))
def test_ours(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_device_without_a_kernel(monkeypatch):
    """A device this build has no kernel for is named. (Stood in for: the fake device only has a type.)"""
    from fastrnn import ops

    class Elsewhere:
        device = torch.device("mps")

    with pytest.raises(NotImplementedError, match="no kernel for device 'mps'"):
        ops.scan("gru", Elsewhere(), None, None, ops.ScanWeights(None, None))  # type: ignore[arg-type]
