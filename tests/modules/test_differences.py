"""What docs/differences.md says of our layers beside torch.nn's. Where a test fails for the better, mend the page, too."""

from __future__ import annotations

import pytest
import torch
from pairs import flatten
from torch import nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils._pytree import tree_map

import fastrnn


@pytest.fixture
def layer() -> fastrnn.LSTM:
    return fastrnn.LSTM(3, 4)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 2, 3)


def test_one_seed_gives_the_same_initial_values():
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4, num_layers=2)
    torch.manual_seed(0)
    ours = fastrnn.LSTM(3, 4, num_layers=2)
    for (name, w), (other_name, v) in zip(
        theirs.named_parameters(), ours.named_parameters(), strict=True
    ):
        assert name == other_name and torch.equal(w, v)


def test_only_accelerated_layers_are_instances_of_torch_nn(layer):
    assert not isinstance(layer, nn.LSTM)
    assert isinstance(fastrnn.accelerate(nn.LSTM(3, 4)), nn.LSTM)


def test_forward_of_torch_nn_does_not_take_our_layer(layer, x):
    with pytest.raises(AttributeError):
        nn.LSTM.forward(layer, x)


def test_flat_weights_are_read_only(layer):
    assert len(layer._flat_weights) == 4
    with pytest.raises(AttributeError):
        layer._flat_weights = []
    with pytest.raises(TypeError):
        layer._flat_weights[1] = layer.weight_hh_l0


def test_states_of_one_sample_are_shared_by_all(layer, x):
    shared = (torch.randn(1, 1, 4), torch.randn(1, 1, 4))
    expanded = tuple(state.expand(1, 2, 4).contiguous() for state in shared)
    assert torch.equal(layer(x, shared)[0], layer(x, expanded)[0])
    with pytest.raises(RuntimeError):
        nn.LSTM(3, 4)(x, shared)


def test_types_without_a_kernel(layer, x):
    with pytest.raises(ValueError, match="complex64"):
        fastrnn.LSTM(3, 4, dtype=torch.complex64)(x.to(torch.complex64))


class LooksLikeATensor:
    """Has __torch_function__, and is no tensor."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


def test_what_is_no_tensor_is_refused(layer):
    with pytest.raises(
        TypeError, match="input must be a Tensor or a PackedSequence, got LooksLikeATensor"
    ):
        layer(LooksLikeATensor())


def test_expanded_weights_are_refused(x):
    layer = fastrnn.LSTM(3, 4, batch_first=True)
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle"):
        call_for_per_sample_grads(layer, batch_size=5)(x)


def test_every_cell_follows_autocast():
    x = torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("RNNCell", "GRUCell", "LSTMCell"):
            ours, theirs = (flatten(getattr(package, name)(3, 4)(x)) for package in (fastrnn, nn))
            assert {state.dtype for state in ours} == {torch.bfloat16}
            kept = torch.bfloat16 if name == "RNNCell" else torch.float32
            assert {state.dtype for state in theirs} == {kept}


MADE = {
    "input": lambda made: {"input": made(5, 2, 3)},
    "state": lambda made: {"hx": (made(1, 2, 4), made(1, 2, 4))},
    "lengths": lambda made: {"lengths": made(2).long() + 5},
    "reset": lambda made: {"reset": made(5, 2) > 0},
}


@pytest.mark.parametrize("arguments", MADE.values(), ids=list(MADE))
def test_what_inference_mode_made_may_train(layer, x, arguments):
    """torch.nn's layers take it where they run through oneDNN."""
    with torch.inference_mode():
        made = arguments(torch.zeros)
    output = layer(**({"input": x} | made))[0]
    (slope,) = torch.autograd.grad(output.sum(), layer.weight_hh_l0)
    clones = {name: tree_map(torch.clone, value) for name, value in made.items()}
    expected = torch.autograd.grad(layer(**({"input": x} | clones))[0].sum(), layer.weight_hh_l0)
    assert torch.equal(slope, expected[0])
