"""accelerate and decelerate: what is shared, what is kept, what is left."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from common import OurMasks
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import fastrnn

KINDS = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")


class UsersLSTM(nn.LSTM):
    pass


class Model(nn.Module):
    """A nested model with a list, a cell, a tied module and a user's subclass."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"rnn": nn.LSTM(3, 4, num_layers=2, bidirectional=True, dropout=0.3)}
        )
        self.stack = nn.ModuleList([nn.GRU(8, 5, bias=False), nn.RNN(5, 5, nonlinearity="relu")])
        self.tied = self.stack[1]
        self.cell = nn.LSTMCell(5, 6)
        self.users = UsersLSTM(6, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        x = self.encoder["rnn"](x)[0]
        for layer in (*self.stack, self.tied):
            x = layer(x)[0]
        h, _ = self.cell(x[-1])
        return self.head(self.users(h.unsqueeze(0))[0])


def test_nested_model():
    torch.manual_seed(0)
    model, x = Model().double(), torch.randn(7, 2, 3, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = copy.deepcopy(model)
    torch.manual_seed(1)
    with OurMasks(dropout=0.3, num_layers=2):
        expected = reference(x)
    report = fastrnn.Report()
    assert fastrnn.accelerate(model, report=report) is model
    assert report.replaced == {
        "encoder.rnn": "fastrnn.LSTM",
        "stack.0": "fastrnn.GRU",
        "stack.1": "fastrnn.RNN",
        "tied": "fastrnn.RNN",
        "cell": "fastrnn.LSTMCell",
    }
    assert list(report.left) == ["users"]
    assert "UsersLSTM: a subclass" in str(report)
    assert model.tied is model.stack[1]
    assert isinstance(model.tied, fastrnn.RNN)
    assert type(model.users) is UsersLSTM
    assert all(p is parameters[name] for name, p in model.named_parameters())

    torch.manual_seed(1)
    actual = model(x)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    # The optimizer was made before, and moves the weights that the replacement computes with.
    optimizer.step()
    assert not torch.equal(model(x), actual)

    back = fastrnn.Report()
    fastrnn.decelerate(model, report=back)
    assert back.replaced["encoder.rnn"] == "torch.nn.LSTM"
    assert type(model.encoder["rnn"]) is nn.LSTM
    assert all(p is parameters[name] for name, p in model.named_parameters())
    reference.load_state_dict(model.state_dict())
    for m in (model, reference):
        m.eval()
    torch.testing.assert_close(model(x), reference(x))


@pytest.mark.parametrize("kind", KINDS)
def test_model_itself(kind):
    original = getattr(nn, kind)(3, 4).eval()
    fast = fastrnn.accelerate(copy.deepcopy(original))
    assert type(fast) is getattr(fastrnn, kind)
    assert not fast.training
    assert repr(fast) == repr(original)
    x = torch.randn(5, 3)
    torch.testing.assert_close(fast(x), original(x))
    assert fastrnn.accelerate(fast) is fast
    slow = fastrnn.decelerate(fast)
    assert type(slow) is type(original)
    torch.testing.assert_close(slow(x), original(x))
    # No trace is left of either change of class.
    assert vars(slow).keys() == vars(original).keys()


def test_hooks_and_attributes_are_kept():
    model = nn.Sequential(nn.GRU(3, 4))
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].note = "kept"
    fastrnn.accelerate(model)
    assert model[0].note == "kept"
    x = torch.randn(2, 1, 3, requires_grad=True)
    model(x)[0].sum().backward()
    assert calls == ["before", "forward", "backward"]
    handle.remove()  # a handle from before still works
    model(x)
    assert calls == ["before", "forward", "backward", "before"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "utility", [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.spectral_norm]
)
def test_parametrized_weights(utility):
    torch.manual_seed(0)
    original = nn.LSTM(3, 4)
    utility(original, "weight_hh_l0")
    names = [name for name, _ in original.named_parameters()]
    x = torch.randn(5, 2, 3)
    original.eval()
    expected = original(x)[0]
    fast = fastrnn.accelerate(original)
    assert isinstance(fast, fastrnn.LSTM)
    assert [name for name, _ in fast.named_parameters()] == names
    torch.testing.assert_close(fast(x)[0], expected)
    fast(x)[0].sum().backward()
    assert all(p.grad is not None for p in fast.parameters())
    back = fastrnn.decelerate(fast)
    assert isinstance(back, nn.LSTM)
    torch.testing.assert_close(back(x)[0], expected)


def test_parametrization_can_be_removed_from_the_replacement():
    fast = fastrnn.accelerate(parametrizations.weight_norm(nn.GRU(3, 4), "weight_ih_l0"))
    x = torch.randn(5, 2, 3)
    expected = fast(x)[0]
    nn.utils.parametrize.remove_parametrizations(fast, "weight_ih_l0")
    assert type(fast) is fastrnn.GRU
    torch.testing.assert_close(fast(x)[0], expected)


def test_what_has_no_kernel_is_left(monkeypatch):
    module = importlib.import_module("fastrnn.accelerate")
    monkeypatch.setattr(module, "DTYPES", (torch.float64,))
    report = fastrnn.Report()
    model = fastrnn.accelerate(nn.Sequential(nn.GRU(2, 3)), report=report)
    assert type(model[0]) is nn.GRU
    assert report.left == {"0": "GRU: fastrnn has no kernel for torch.float32"}


@pytest.mark.parametrize("built_with_cuda", [False, True], ids=["cpu build", "cuda build"])
def test_the_build_decides_which_devices_have_a_kernel(monkeypatch, without_cudnn, built_with_cuda):
    module = importlib.import_module("fastrnn.accelerate")
    monkeypatch.setattr(module, "DEVICES", ("cpu", "meta") + ("cuda",) * built_with_cuda)
    # nn.init.uniform_ would draw on the GPU.
    monkeypatch.setattr(nn.init, "uniform_", lambda tensor, *_: tensor)
    report = fastrnn.Report()
    with FakeTensorMode():  # it needs no GPU
        model = nn.Sequential(nn.LSTM(2, 3, device="cuda"), nn.GRUCell(2, 3, device="cuda"))
    fastrnn.accelerate(model, report=report)
    if built_with_cuda:
        assert report.replaced == {"0": "fastrnn.LSTM", "1": "fastrnn.GRUCell"}
    else:
        reason = "fastrnn has no kernel for device 'cuda:0' in this build"
        assert report.left == {"0": f"LSTM: {reason}", "1": f"GRUCell: {reason}"}


@pytest.mark.gpu
def test_on_the_device():
    """What accelerate replaced runs on the device, forward and backward, as torch.nn's did."""
    torch.manual_seed(0)
    original = nn.Sequential(nn.LSTM(3, 4, num_layers=2)).double()
    fast, x = copy.deepcopy(original), torch.randn(5, 2, 3, dtype=torch.float64)
    report = fastrnn.Report()
    fastrnn.accelerate(fast, report=report)
    assert report.replaced == {"0": "fastrnn.LSTM"}
    for model in (original, fast):
        model(x)[0].square().sum().backward()
    torch.testing.assert_close(fast(x)[0], original(x)[0])
    for ours, theirs in zip(fast.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_whoever_holds_the_module_sees_the_change():
    """Lists and load hooks hold the module, not its name in the model."""
    model = nn.Sequential(nn.LSTM(3, 4, num_layers=2, dropout=0.9))
    held, seen = [model[0]], []
    model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    fastrnn.accelerate(model)
    model.eval()
    x = torch.randn(5, 2, 3)
    expected = model(x)[0]
    assert torch.equal(held[0](x)[0], expected)
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]


def test_compiled_before():
    module = nn.GRU(3, 4, num_layers=2, dropout=0.9)
    module.compile(backend="eager")
    fastrnn.accelerate(module).eval()
    x = torch.randn(5, 2, 3)
    assert torch.equal(module(x)[0], module(x)[0])
    torch.testing.assert_close(module(x)[0], fastrnn.decelerate(module)(x)[0])


def test_odd_instances_are_left():
    model = nn.ModuleList([nn.GRU(2, 3), nn.GRU(2, 3), nn.GRU(2, 3)])
    model[0].forward = lambda x: x
    del model[1].weight_ih_l0
    report = fastrnn.Report()
    fastrnn.accelerate(model, report=report)
    assert report.left == {
        "0": "GRU: its forward was replaced",
        "1": "GRU: it has no weight_ih_l0",
    }
    assert list(report.replaced) == ["2"]


def test_mode_decides_as_in_torch():
    """Modules pickled by old torch have no nonlinearity."""
    module, x = nn.RNN(3, 4, nonlinearity="relu"), torch.randn(5, 2, 3)
    expected = module(x)[0]
    del module.nonlinearity
    torch.testing.assert_close(fastrnn.accelerate(module)(x)[0], expected)


def test_nothing_to_do():
    report = fastrnn.Report()
    model = nn.Sequential(nn.Linear(2, 2))
    assert fastrnn.accelerate(model, report=report) is model
    assert str(report) == "no recurrent module found"
