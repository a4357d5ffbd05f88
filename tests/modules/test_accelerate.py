"""accelerate and decelerate: what is shared, what is kept, what is left."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
import types
from abc import ABC, abstractmethod
from typing import ClassVar

import pytest
import torch
from common import OurMasks
from pairs import OURS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune

import fastrnn
from fastrnn import dropin
from fastrnn.accelerate import in_eval_mode

KINDS = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")


class UsersLSTM(nn.LSTM):
    def check_forward_args(self, input, hidden, batch_sizes):
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
    assert fastrnn.accelerate(model, cells=True, report=report) is model
    assert report.replaced == {
        "encoder.rnn": "fastrnn.LSTM",
        "stack.0": "fastrnn.GRU",
        "stack.1": "fastrnn.RNN",
        "tied": "fastrnn.RNN",
        "cell": "fastrnn.LSTMCell",
    }
    assert list(report.left) == ["users"]
    assert "UsersLSTM: a subclass, which may rely on what it overrides: check_forward_args" in str(
        report
    )
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


@pytest.mark.parametrize("keep_type", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_model_itself(kind, keep_type):
    original = getattr(nn, kind)(3, 4).eval()
    fast = fastrnn.accelerate(copy.deepcopy(original), keep_type=keep_type, cells=True)
    assert isinstance(fast, getattr(fastrnn, kind))
    assert isinstance(fast, getattr(nn, kind)) is keep_type
    assert type(fast) is getattr(dropin if keep_type else fastrnn, kind)
    assert not fast.training
    assert repr(fast) == repr(original)
    x = torch.randn(5, 3)
    torch.testing.assert_close(fast(x), original(x))
    # Whether a second time changes the class, is a question of keep_type=False alone.
    again = fastrnn.Report()
    assert fastrnn.accelerate(fast, cells=True, report=again) is fast
    assert type(fast) is getattr(dropin if keep_type else fastrnn, kind)
    assert again == fastrnn.Report()
    assert type(fastrnn.accelerate(copy.deepcopy(fast), keep_type=False)) is getattr(fastrnn, kind)
    slow = fastrnn.decelerate(fast)
    assert type(slow) is type(original)
    torch.testing.assert_close(slow(x), original(x))
    # No trace is left of either change of class.
    assert vars(slow).keys() == vars(original).keys()


def test_cells_are_left_unless_asked_for():
    model, report = nn.Sequential(nn.GRUCell(3, 4)), fastrnn.Report()
    fastrnn.accelerate(model, report=report)
    assert type(model[0]) is nn.GRUCell
    assert report.left == {
        "0": "GRUCell: a cell, which may gain little in training; accelerate(model, cells=True) takes it"
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [(None, "an instance, got NoneType"), (nn.LSTM, "an instance, got the class LSTM")],
    ids=["None", "class"],
)
@pytest.mark.parametrize("function", [fastrnn.accelerate, fastrnn.decelerate])
def test_a_model_is_a_module(function, given, words):
    with pytest.raises(TypeError, match=rf"{function.__name__}: model must be a .*{words}"):
        function(given)


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
    assert type(fast) is dropin.GRU
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
    fastrnn.accelerate(model, cells=True, report=report)
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
    model = nn.ModuleList([*(nn.GRU(2, 3) for _ in range(6)), nn.GRUCell(2, 0)])
    model[0].forward = lambda x: x
    del model[1].weight_ih_l0
    model[2].check_forward_args = lambda *args: None
    model[3].reverse = True
    model[4].flatten_parameters = lambda: None  # harmless: fastai sets it
    report = fastrnn.Report()
    fastrnn.accelerate(model, cells=True, report=report)
    assert report.left == {
        "0": "GRU: its forward was replaced",
        "1": "GRU: it has no weight_ih_l0",
        "2": "GRU: its check_forward_args was replaced",
        "3": "GRU: its attribute 'reverse' means something else to fastrnn",
        "6": "GRUCell: it has no hidden units",
    }
    assert list(report.replaced) == ["4", "5"]


def test_a_reversed_layer_is_not_decelerated():
    layer, report = fastrnn.GRU(3, 4, reverse=True), fastrnn.Report()
    x = torch.randn(5, 2, 3)
    expected = layer(x)[0]
    fastrnn.decelerate(layer, report=report)
    assert report.left == {"": "GRU: torch.nn has no reverse=True"}
    assert torch.equal(layer(x)[0], expected)


# --- a user's subclasses ---


class WithLengths(ABC, nn.RNNBase):
    """Overrides forward above whichever of torch.nn's layers, as libraries do."""

    @abstractmethod
    def no_state(self): ...

    def forward(self, x, hx=None, lengths=None):
        if lengths is None:
            return super().forward(x, hx=hx)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return super().forward(packed, hx=hx)


class LSTMWithLengths(WithLengths, nn.LSTM):
    def no_state(self):
        return torch.zeros(1)


class Named(nn.GRU):
    """Overrides nothing that a forward calls."""

    def __init__(self, *args, name, **kwargs):
        super().__init__(*args, **kwargs)
        self.name = name

    def extra_repr(self):
        return f"{self.name}, {super().extra_repr()}"


class CallsTorchsForward(nn.GRU):
    def forward(self, input):
        return nn.GRU.forward(self, input)


class HasOurName(nn.GRU):
    def _weights(self):
        return []


@pytest.mark.parametrize(
    "copier",
    [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["itself", "deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LSTMWithLengths(3, 4), "LSTMWithLengths over fastrnn.LSTM"),
        (lambda: Named(3, 4, name="mine"), "Named over fastrnn.GRU"),
    ],
    ids=["overridden forward", "no override"],
)
def test_a_subclass_that_calls_super_runs_ours(make, name, copier):
    module, report = make(), fastrnn.Report()
    kind, text = type(module), repr(module)
    x = torch.randn(5, 2, 3)
    expected = module(x)[0]
    fastrnn.accelerate(module, report=report)
    assert report.replaced == {"": name}
    module = copier(module)
    assert isinstance(module, (kind, nn.RNNBase)) and isinstance(
        module, fastrnn.modules.RecurrentModule
    )
    assert repr(module) == text
    torch.testing.assert_close(module(x)[0], expected)
    assert str(fastrnn.explain(module, x)) != "no fastrnn layer ran"
    again = fastrnn.Report()
    fastrnn.accelerate(module, report=again)
    assert again == fastrnn.Report()
    fastrnn.decelerate(module)
    assert type(module) is kind
    torch.testing.assert_close(module(x)[0], expected)


def test_a_subclass_may_pack_what_it_gives_super():
    module, x, lengths = LSTMWithLengths(3, 4), torch.randn(5, 2, 3), torch.tensor([2, 5])
    expected = module(x, lengths=lengths)
    actual = fastrnn.accelerate(module)(x, lengths=lengths)
    torch.testing.assert_close(actual[0].data, expected[0].data)
    torch.testing.assert_close(actual[1], expected[1])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (UsersLSTM, "a subclass, which may rely on what it overrides: check_forward_args"),
        (HasOurName, "a subclass, which may rely on what it overrides: _weights"),
        (CallsTorchsForward, "a subclass whose forward does not call super().forward"),
    ],
)
def test_other_subclasses_are_left(kind, reason):
    module, report = kind(3, 4), fastrnn.Report()
    fastrnn.accelerate(module, report=report)
    assert type(module) is kind
    assert report.left == {"": f"{kind.__name__}: {reason}"}


def test_subclasses_are_left_where_types_are_not_kept():
    module = fastrnn.accelerate(Named(3, 4, name="mine"), keep_type=False)
    assert type(module) is Named


class MakesItsCopies(nn.Module):
    """Its copies are made by the constructor, as those of some language models."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4)

    def __getstate__(self):
        return {"weights": self.state_dict()}

    def __setstate__(self, state):
        self.__init__()
        self.load_state_dict(state["weights"])


def test_modules_that_make_their_own_copies_are_reported():
    model, report = (
        nn.ModuleDict({"lm": MakesItsCopies(), "head": nn.Linear(4, 2)}),
        fastrnn.Report(),
    )
    fastrnn.accelerate(model, report=report)
    assert type(copy.deepcopy(model)["lm"].rnn) is nn.LSTM
    assert report.copied == {"lm": "MakesItsCopies.__setstate__"}
    assert "copies of lm are made by MakesItsCopies.__setstate__" in str(report)
    # What torch makes copies of, keeps the class.
    model, report = torch.fx.symbolic_trace(nn.Sequential(nn.GRU(3, 4))), fastrnn.Report()
    fastrnn.accelerate(model, report=report)
    assert list(report.replaced) == ["0"] and not report.copied


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_by_jit_are_left():
    report = fastrnn.Report()
    model = nn.ModuleList([torch.jit.script(nn.Sequential(nn.LSTM(3, 4)))])
    fastrnn.accelerate(model, report=report)
    reason = "torch.jit compiled it; accelerate the model it was made of"
    assert report.left == {"0.0": f"RecursiveScriptModule: {reason}"}


# --- the layers that are torch.nn's, too ---


def torchs_list_is_used(layer, x):
    """Whether a list of weights that somebody set counts, as in torch.nn."""
    expected = nn.GRU.forward(layer, x)[0]
    torch.testing.assert_close(layer(x)[0], expected)
    return expected


def test_weights_that_are_put_into_torchs_list_count():
    layer, x = fastrnn.accelerate(nn.GRU(3, 4)), torch.randn(5, 2, 3)
    before = torchs_list_is_used(layer, x)
    layer._flat_weights[1] = torch.randn(12, 4)
    changed = torchs_list_is_used(layer, x)
    layer._flat_weights = [torch.randn_like(weight) for weight in layer._flat_weights]
    assert not torch.equal(torchs_list_is_used(layer, x), changed)
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.clone())
    torchs_list_is_used(layer, x)
    layer.to(torch.float32)  # makes the list anew
    torch.testing.assert_close(torchs_list_is_used(layer, x), before)


def pruned(layer):
    prune.random_unstructured(layer, "weight_hh_l0", 0.5)
    prune.remove(layer, "weight_hh_l0")
    return layer


def with_dropped_weights(layer):
    """As AWD-LSTM: a weight is computed anew for each call."""
    raw = layer.weight_hh_l0
    del layer._parameters["weight_hh_l0"]
    layer.register_parameter("weight_hh_l0_raw", raw)
    layer.register_forward_pre_hook(
        lambda m, _: setattr(m, "weight_hh_l0", m.weight_hh_l0_raw * 0.5)
    )
    return layer


def with_other_weights(layer):
    weights = {name: weight * 2 for name, weight in layer.named_parameters()}
    return lambda x: torch.func.functional_call(layer, weights, (x,))


def with_assigned_state(layer):
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True)
    return layer


def remade_from_meta(layer):
    state = layer.state_dict()
    layer.to("meta").to_empty(device="cpu").load_state_dict(state)
    return layer


UTILITIES = [
    pruned,
    with_dropped_weights,
    with_other_weights,
    with_assigned_state,
    remade_from_meta,
    lambda layer: parametrizations.orthogonal(layer, "weight_hh_l0").eval(),
    lambda layer: copy.deepcopy(parametrizations.weight_norm(layer, "weight_hh_l0")),
    lambda layer: torch.optim.swa_utils.AveragedModel(layer),
    lambda layer: nn.DataParallel(layer),
]


@pytest.mark.parametrize("utility", UTILITIES, ids=lambda u: u.__name__)
def test_utilities_of_torch(utility):
    """What takes a torch.nn layer takes an accelerated one, with the same result."""
    results = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        layer = nn.LSTM(3, 4, num_layers=2, dtype=torch.float64)
        if accelerated:
            fastrnn.accelerate(layer)
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        torch.manual_seed(1)
        used = utility(layer)
        for _ in range(2):  # a second call finds what the first left
            results.append(used(x)[0])
    for theirs, ours in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_are_flattened_for_torch_nn_alone(monkeypatch):
    """As cuDNN wants them; an accelerated layer that moves to a GPU leaves them where they are."""
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(type(self)))
    layer = fastrnn.accelerate(nn.LSTM(3, 4))
    flattened.clear()
    fastrnn.decelerate(layer.double())
    assert flattened == [nn.LSTM]


@OURS
def test_checks_by_torchs_names_are_there(ours):
    theirs, layer = nn.LSTM(3, 4, proj_size=2), ours.LSTM(3, 4, proj_size=2)
    x, h, c = torch.randn(5, 2, 3), torch.randn(1, 2, 2), torch.randn(1, 2, 4)
    assert layer.__constants__ == theirs.__constants__
    assert layer.get_expected_hidden_size(x, None) == (1, 2, 2)
    assert layer.get_expected_cell_size(x, None) == (1, 2, 4)
    layer.check_forward_args(x, (h, c), None)
    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        layer.check_input(torch.randn(5, 2, 7), None)
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        layer.check_hidden_size(h, (1, 3, 2))
    assert ours.GRU(3, 4, 2).get_expected_hidden_size(x, None) == (2, 2, 4)
    order = torch.tensor([1, 0])
    assert torch.equal(ours.GRU(3, 4).permute_hidden(h, order), h[:, [1, 0]])
    assert torch.equal(layer.permute_hidden((h, c), order)[0], h[:, [1, 0]])
    assert [len(weights) for weights in layer.all_weights] == [5]


def test_made_by_its_own_class():
    """Code that makes another module of the same kind gets one that runs."""
    layer = fastrnn.accelerate(nn.LSTM(3, 4))
    another = type(layer)(5, 6, num_layers=2, reverse=True)
    assert repr(another) == "LSTM(5, 6, num_layers=2, reverse=True)"
    x = torch.randn(7, 2, 5)
    torch.manual_seed(0)
    another.reset_parameters()
    torch.manual_seed(0)
    expected = fastrnn.LSTM(5, 6, num_layers=2, reverse=True)
    assert torch.equal(another(x)[0], expected(x)[0])
    cell = type(fastrnn.accelerate(nn.RNNCell(3, 4), cells=True))(5, 6, nonlinearity="relu")
    assert cell(x[0]).shape == (2, 6)


def says_its_type(layer, x):
    return layer(x)[0] * (2 if isinstance(layer, nn.LSTM) else 3)


def test_compiled_code_sees_the_same_type():
    torch._dynamo.reset()
    layer, x = fastrnn.accelerate(nn.LSTM(3, 4)), torch.randn(5, 2, 3)
    compiled = torch.compile(says_its_type, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(layer, x), layer(x)[0] * 2)


COMPILES = """
import torch
from torch import nn
{before}
import fastrnn
import sys
layer, x = fastrnn.accelerate(nn.LSTM(3, 4)), torch.randn(5, 2, 3)
assert ("torch._dynamo" in sys.modules) == {loaded}
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
compiled(x)[0].sum().backward()
assert not torch._dynamo.config.allow_rnn
theirs = torch.compile(nn.Sequential(nn.LSTM(3, 4)), backend="aot_eager")
theirs(x)[0].sum().backward()  # torch cannot train it in a graph, and must not try
"""


@pytest.mark.parametrize("before", ["", "import torch._dynamo"], ids=["later", "before"])
def test_compile_may_be_loaded_before_and_later(before):
    """Only ours are let into a graph; torch.compile is not loaded for it."""
    program = COMPILES.format(before=before, loaded=bool(before))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


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


class UsersMapping(dict):
    def items(self):
        raise ValueError("a value that is missing")


def test_attributes_that_are_no_plain_containers_are_not_walked():
    """What a configuration or an open file does where it is walked is its own affair."""
    model = nn.Sequential(nn.LSTM(2, 3))
    model.settings = types.MappingProxyType(UsersMapping())
    model.itself = {}
    model.itself["again"] = model.itself
    object.__setattr__(model[0], "parent", model)
    report = fastrnn.Report()
    fastrnn.accelerate(model, report=report)
    assert report.replaced.keys() == {"0"} and not report.left


def test_a_class_that_runs_code_where_it_is_subclassed_is_left():
    class Registered(nn.LSTM):
        names: ClassVar[list[str]] = []

        def __init_subclass__(cls, *, name):
            cls.names.append(name)

    class Meta(type):
        pass

    class OfAnother(nn.GRU, metaclass=Meta):
        pass

    report = fastrnn.Report()
    model = nn.ModuleList([nn.LSTM(2, 3), Registered(2, 3), OfAnother(2, 3)])
    fastrnn.accelerate(model, report=report)
    assert report.replaced.keys() == {"0"} and report.left.keys() == {"1", "2"}
    assert all("runs code of its own" in reason for reason in report.left.values())
    assert Registered.names == []


def test_a_torch_without_the_name_that_is_patched_goes_on():
    """Every optimizer loads torch.compile's modules."""
    code = (
        "import torch, torch._dynamo.variables.builder as builder\n"
        "del builder.VariableBuilder.wrap_module\n"
        "import fastrnn\n"
        "model = fastrnn.accelerate(torch.nn.LSTM(2, 3))\n"
        "torch.optim.Adam(model.parameters())\n"
        "print(model(torch.zeros(1, 1, 2))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[1, 1, 3]" in done.stdout


def test_only_parametrized_modules_leave_training_while_they_are_read():
    class Watched(nn.LSTM):
        @property
        def training(self):
            return self.__dict__.get("_mode", True)

        @training.setter
        def training(self, mode):
            seen.append(mode)
            self.__dict__["_mode"] = mode

    seen: list[bool] = []
    watched = Watched(2, 3)
    seen.clear()
    with in_eval_mode(watched):
        assert watched.training
    assert seen == []
