"""torch.fx and torch.jit see our modules as they see torch.nn's."""

from __future__ import annotations

import pytest
import torch
from common import assert_all_close, gradients
from pairs import LAYERS, OURS, flatten
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import prepare_fx

import fastrnn


class Model(nn.Module):
    """A layer with a state and a keyword, and a cell with and without a state."""

    def __init__(self, ours):
        super().__init__()
        self.rnn = ours.LSTM(3, 4)
        self.cell = ours.LSTMCell(4, 4)

    def forward(self, x, state):
        output, (h_n, _) = self.rnn(x, hx=(state, state))
        h, c = self.cell(output[-1])
        h, c = self.cell(output[-1], (h, c))
        return h + c + h_n[-1]


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 2, 3), torch.randn(1, 2, 4)


@OURS
def test_modules_are_leaves_of_an_fx_trace(ours, inputs):
    model = Model(ours)
    traced = torch.fx.symbolic_trace(model)
    kinds = [node.op for node in traced.graph.nodes]
    assert kinds.count("call_module") == 3 and "get_attr" not in kinds
    assert torch.equal(traced(*inputs), model(*inputs))


class WithLengths(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = fastrnn.GRU(3, 4)

    def forward(self, x, lengths):
        return self.rnn(x, lengths=lengths, return_all_states=True)[0]


def test_a_leaf_keeps_our_keywords():
    model, x, lengths = WithLengths(), torch.randn(5, 2, 3), torch.tensor([2, 5])
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x, lengths), model(x, lengths))


def test_a_layer_alone_cannot_be_traced_by_fx():
    with pytest.raises(TypeError, match=r"torch\.fx cannot look into GRU, which is a leaf"):
        torch.fx.symbolic_trace(fastrnn.GRU(3, 4))


@pytest.mark.filterwarnings("ignore")  # torch.ao's own
@OURS
def test_quantization_prepares_a_model_around_our_modules(ours, inputs):
    model = Model(ours).eval()
    prepared = prepare_fx(model, get_default_qconfig_mapping(), inputs)
    assert type(prepared.rnn) is ours.LSTM
    torch.testing.assert_close(prepared(*inputs), model(*inputs))


@pytest.mark.filterwarnings("ignore")  # torch.ao's own
@OURS
def test_dynamic_quantization_leaves_our_layers(ours, inputs):
    quantized = quantize_dynamic(Model(ours), {nn.LSTM})
    assert type(quantized.rnn) is ours.LSTM


@pytest.mark.filterwarnings("ignore")  # of the tracer, of every size it meets
@pytest.mark.parametrize("with_gradients", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("name", LAYERS)
@OURS
def test_a_trace_of_jit_serves_training_and_inference(ours, name, with_gradients, tmp_path):
    layer = getattr(ours, name)(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(layer, (torch.randn(5, 2, 3, dtype=torch.float64),))
    traced.save(tmp_path / "traced.pt")
    x = torch.randn(7, 3, 3, dtype=torch.float64)  # of other sizes
    expected = with_gradients_of(layer, x)
    for module in (traced, torch.jit.load(tmp_path / "traced.pt")):
        assert_all_close(with_gradients_of(module, x), expected, torch.float64)
        with torch.no_grad():
            assert_all_close(flatten(module(x)), flatten(layer(x)), torch.float64)


def with_gradients_of(module, x):
    results = flatten(module(x))
    weights = dict(module.named_parameters())
    return results + gradients(results, [weights[name] for name in sorted(weights)])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make", [lambda p: p.LSTM(3, 4), lambda p: p.GRUCell(3, 4)], ids=["LSTM", "GRUCell"]
)
@OURS
def test_script_says_what_to_do(ours, make):
    with pytest.raises(RuntimeError, match=r"call fastrnn\.decelerate\(model\) first"):
        torch.jit.script(nn.Sequential(make(ours)))
