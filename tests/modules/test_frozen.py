"""Frozen modules: the results of ordinary ones from weights packed once, and what they refuse."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import re

import pytest
import torch
from common import AVAILABLE_INSTRUCTION_SETS, assert_equal
from pairs import flatten
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, rnn
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import cells, direct, eager, frozen
from fastrnn.library import use_cpu_instruction_set

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
every_layer = pytest.mark.parametrize("name", LAYERS)
every_module = pytest.mark.parametrize("name", LAYERS + CELLS)
every_type = pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])

OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 3, "bias": False},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"batch_first": True},
    "reverse": {"reverse": True},
}


def make(name, I=5, H=19, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return getattr(fastrnn, name)(I, H, dtype=dtype, **options)


def make_state(module, N, dtype=torch.float32):
    """hx of a layer or, where it has no layers, of a cell."""
    rows = ()
    if hasattr(module, "num_layers"):
        rows = (module.num_layers * (1 + module.bidirectional),)
    batch = () if N is None else (N,)
    has_cell_state = type(module).__name__.endswith(("LSTM", "LSTMCell"))
    h = torch.randn(*rows, *batch, getattr(module, "proj_size", 0) or module.hidden_size)
    h = h.to(dtype)
    c = torch.randn(*rows, *batch, module.hidden_size).to(dtype)
    return (h, c) if has_cell_state else h


def assert_same(module, other, *args, **options):
    with torch.no_grad():
        expected, got = module(*args, **options), other(*args, **options)
    leaves = [[t for t in tree_leaves(each) if t is not None] for each in (got, expected)]
    assert_equal(*leaves)


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("H", [5, 19, 40])
@every_layer
def test_bits_of_the_ordinary_module(name, H, options, instruction_set):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        projections = [{}, {"proj_size": 3}] if name == "LSTM" else [{}]
        for projection in projections:
            module = make(name, H=H, dtype=dtype, **options, **projection)
            copied = fastrnn.freeze(module)
            for T, N in ((1, 1), (1, 20), (6, 3), (2, 60), (3, None), (0, 2), (2, 0)):
                shape = (T, 5) if N is None else (T, N, 5)
                x = torch.randn(shape).to(dtype)
                if N is not None and module.batch_first:
                    x = x.transpose(0, 1)
                assert_same(module, copied, x)
                assert_same(module, copied, x, make_state(module, N, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_bits_of_the_ordinary_cell(name, bias, dtype):
    for H in (5, 19, 64):
        module = make(name, H=H, dtype=dtype, bias=bias)
        copied = fastrnn.freeze(module)
        for N in (1, 4, 60, None):
            x = torch.randn(*(() if N is None else (N,)), 5).to(dtype)
            assert_same(module, copied, x)
            assert_same(module, copied, x, make_state(module, N, dtype))


@every_layer
def test_every_argument_of_a_call(name):
    module = make(name, num_layers=2)
    copied = fastrnn.freeze(module)
    x, state, other = torch.randn(6, 3, 5), make_state(module, 3), make_state(module, 3)
    reset = torch.rand(6, 3) < 0.3
    lengths = torch.tensor([6, 0, 4])
    packed = rnn.pack_padded_sequence(x, torch.tensor([4, 6, 1]), enforce_sorted=False)
    ragged = torch.nested.nested_tensor(list(x.unbind(1)), layout=torch.jagged)
    assert_same(module, copied, x, state, lengths=lengths)
    assert_same(module, copied, x, state, reset=reset, reset_state=other)
    assert_same(module, copied, x, state, reset=reset)
    assert_same(module, copied, x[:, 0], reset=reset[:, 0])
    first = make(name, batch_first=True)
    assert_same(first, fastrnn.freeze(first), x.transpose(0, 1), reset=reset.t())
    with torch.no_grad():
        assert torch.equal(copied(packed, state)[0].data, module(packed, state)[0].data)
    assert_same(module, copied, x, state, return_all_states=True)
    assert_same(module, copied, x, make_state(module, 1))
    with torch.no_grad():
        got, expected = copied(ragged, state)[0], module(ragged, state)[0]
    assert torch.equal(got.values(), expected.values())


@every_layer
def test_two_threads_and_a_large_step(name, two_threads):
    module = make(name, I=70, H=300)
    for weights in (None, "bfloat16", "int8"):
        copied = fastrnn.freeze(module, weights)
        x, state = torch.randn(2, 9, 70), make_state(module, 9)
        with torch.no_grad():
            on_two = copied(x, state)
            torch.set_num_threads(1)
            assert_equal(flatten(copied(x, state)), flatten(on_two))
            torch.set_num_threads(2)


@pytest.mark.parametrize("H", [5, 19, 130])
@pytest.mark.parametrize("I", [1, 5, 131])
@every_layer
def test_bfloat16_is_the_module_of_rounded_weights(name, I, H, instruction_set):
    module = make(name, I=I, H=H, num_layers=2)
    copied = fastrnn.freeze(module, "bfloat16")
    rounded = copy.deepcopy(module)
    for weight in rounded.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.bfloat16().float()
    for T, N in ((1, 1), (3, 1), (3, 10)):
        assert_same(rounded, copied, torch.randn(T, N, I), make_state(module, N))


def dequantised(weight):
    """The multiples that int8 keeps of a matrix: each row's largest magnitude is 127 of them."""
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, (weight / scale).round() * scale, 0).float()


def int8_multiples(*shape):
    """Random multiples of 1 / 127 with a 1 in each row, which rounding to int8 keeps."""
    values = torch.randint(-127, 128, shape).float()
    values[..., 0] = 127
    return values / 127


@pytest.mark.parametrize("H", [5, 19, 130])
@pytest.mark.parametrize("I", [1, 5, 131])
@every_layer
def test_int8_is_the_module_of_rounded_weights(name, I, H, instruction_set):
    """Exactly where activations are multiples of 1 / 127, and nearly where they are rounded, too."""
    module = make(name, I=I, H=H)
    with torch.no_grad():
        module.weight_hh_l0[3] = 0  # a row without a scale
        module.weight_ih_l0[2] *= 1e-30
    copied = fastrnn.freeze(module, "int8")
    rounded = copy.deepcopy(module)
    for weight in rounded.parameters():
        if weight.dim() == 2:
            weight.data = dequantised(weight.data)

    def error(x, state):
        results = zip(flatten(copied(x, state)), flatten(rounded(x, state)), strict=True)
        return max((got - expected).abs().max().item() for got, expected in results)

    with torch.no_grad():
        for N in (1, 2, 5):
            h = int8_multiples(1, N, H)
            state = (h, torch.randn(1, N, H)) if name == "LSTM" else h
            assert error(int8_multiples(1, N, I), state) < 1e-6
            assert error(torch.randn(3, N, I), make_state(module, N)) < 0.06


@every_type
@pytest.mark.parametrize("H", [5, 19, 40])
@every_layer
def test_a_sample_does_not_depend_on_its_batch(name, H, weights, instruction_set):
    copied = fastrnn.freeze(make(name, H=H), weights)
    x = torch.randn(3, 70, 5) * torch.logspace(-3, 3, 70)[:, None]
    with torch.no_grad():
        whole, _ = copied(x)
        for n in (0, 33, 69):
            assert torch.equal(copied(x[:, n : n + 1])[0], whole[:, n : n + 1])
        assert torch.equal(copied(x[:, 10:17])[0], whole[:, 10:17])


@every_type
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 1e-42, 0.0])
def test_extreme_activations(value, weights):
    """A sample with a value that is not finite spoils no other; tiny and huge ones stay finite."""
    copied = fastrnn.freeze(make("GRU", H=40), weights)
    x = torch.randn(2, 4, 5)
    with torch.no_grad():
        before = copied(x)[0]
        x[0, 1] = value
        after = copied(x)[0]
    others = [0, 2, 3]
    assert torch.equal(after[:, others], before[:, others])
    assert after[:, 1].isfinite().all() or value != value or abs(value) == float("inf")
    if value != value:
        assert after[:, 1].isnan().all()


# --- a snapshot -----------------------------------------------------------------------------------


@every_module
def test_changes_of_the_original_are_seen_after_a_refresh(name):
    module = make(name)
    copied = fastrnn.freeze(module)
    shape = (3, 5) if name in CELLS else (2, 3, 5)
    x = torch.randn(shape)
    with torch.no_grad():
        before = flatten(copied(x))
        place = copied._packed.data_ptr()
        for weight in module.parameters():
            weight.mul_(0.5)
        assert_equal(flatten(copied(x)), before)
        assert copied.refresh(module) is copied
        assert_same(module, copied, x)
        assert copied._packed.data_ptr() == place
        slow = getattr(nn, name)(5, 19)
        copied.refresh(slow)
        for key, weight in slow.state_dict().items():
            assert torch.equal(copied.state_dict()[key], weight)


@pytest.fixture
def dynamo():
    """torch.compile skips a function for good whose trace raised: it must forget that."""
    yield
    torch._dynamo.reset()


def zeros(module):
    return {name: torch.zeros_like(weight) for name, weight in module.state_dict().items()}


def assign(kind, index):
    def change(module, x):
        name, weight = list(zeros(module).items())[index]
        setattr(module, name, kind(weight))

    return change


def in_place(index):
    return lambda module, x: list(module.buffers())[index].mul_(2)


def call_with_zeros(module, x):
    return torch.func.functional_call(module, zeros(module), (x,))


@pytest.mark.parametrize(
    "change",
    [
        *(assign(kind, index) for kind in (nn.Parameter, torch.Tensor.clone) for index in (0, -1)),
        *(in_place(index) for index in (0, -1)),
    ],
)
@every_module
def test_changes_of_the_copy_are_refused_until_a_refresh(name, change):
    module = make(name)
    copied = fastrnn.freeze(module)
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))
    with torch.no_grad():
        change(copied, x)
        with pytest.raises(RuntimeError, match=r"snapshot.*refresh\(original\)"):
            copied(x)
    assert_same(module, copied.refresh(module), x)
    assert list(copied.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_functional_calls_are_refused(name, compiled, dynamo):
    copied = fastrnn.freeze(make(name))
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))
    call = torch.compile(call_with_zeros, backend="eager") if compiled else call_with_zeros
    with pytest.raises(RuntimeError, match="snapshot"):
        call(copied, x)
    assert_same(make(name), copied, x)


class Model(nn.Module):
    def __init__(self, package):
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.layers = nn.ModuleList([package.GRU(5, 19), package.LSTM(19, 7)])
        self.tied = self.layers[0]
        self.cell = package.RNNCell(7, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x, _ = layer(x)
        return self.norm(self.cell(x[-1]))


@pytest.mark.parametrize("package", [nn, fastrnn], ids=["torch.nn", "fastrnn"])
def test_a_model(package):
    model = Model(package)
    report = fastrnn.Report()
    copied = fastrnn.freeze(model, report=report)
    assert report.replaced == {
        "layers.0": "fastrnn.frozen.FrozenGRU",
        "layers.1": "fastrnn.frozen.FrozenLSTM",
        "tied": "fastrnn.frozen.FrozenGRU",
        "cell": "fastrnn.frozen.FrozenRNNCell",
    }
    assert copied.tied is copied.layers[0] and isinstance(model.layers[0], package.GRU)
    assert not copied.training and model.training
    assert not any(p.requires_grad for p in copied.parameters())
    x = torch.randn(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model.train()
        model(x).square().sum().backward()
        optimizer.step()
        model.eval()
        fastrnn.refresh(copied, model)
        with torch.no_grad():
            torch.testing.assert_close(copied(x), model(x), rtol=1e-5, atol=1e-6)


@every_module
def test_state_dict_has_the_ordinary_weights(name):
    module = make(name)
    copied = fastrnn.freeze(module, "int8")
    assert list(copied.state_dict()) == list(module.state_dict())
    getattr(nn, name)(5, 19).load_state_dict(copied.state_dict())
    for key, weight in module.state_dict().items():
        assert torch.equal(copied.state_dict()[key], weight)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_type
@pytest.mark.parametrize(
    "copies", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "save"],
)  # fmt: skip
def test_copies_pack_again(copies, weights):
    for name in ("LSTM", "GRUCell"):
        copied = fastrnn.freeze(make(name), weights)
        assert bytes(copied._packed[:8]) not in pickle.dumps(
            copied
        )  # which packed weights begin with
        other = copies(copied)
        assert other._packed.data_ptr() != copied._packed.data_ptr()
        x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))
        assert_same(copied, other, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork where threads are
def test_a_forked_process_sees_a_refresh_of_shared_memory():
    module, x = make("GRU"), torch.randn(2, 3, 5)
    copied = fastrnn.freeze(module).share_memory()
    (child_reads, writes), (reads, child_writes) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(child_reads, 1)  # until the refresh
            with torch.no_grad():
                os.write(child_writes, copied(x)[0].numpy().tobytes())
        finally:
            os._exit(0)
    os.close(child_writes)
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.5)
        copied.refresh(module)
        os.write(writes, b"!")
        with os.fdopen(reads, "rb") as pipe:
            assert pipe.read() == module(x)[0].numpy().tobytes()
    os.waitpid(child, 0)
    os.close(child_reads)
    os.close(writes)


def run_in_child(copied, x, pipe):
    with torch.no_grad():
        output = copied(x)[0].numpy().tobytes()
    pipe.send((output, copied.weight_hh_l0.is_shared(), copied._packed.is_shared()))


@pytest.mark.slow  # The child imports torch.
def test_a_spawned_process_packs_for_itself():
    module, x = make("GRU"), torch.randn(2, 3, 5)
    copied = fastrnn.freeze(module).share_memory()
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_in_child, args=(copied, x, theirs))
    process.start()
    output, shares_weights, shares_packed = ours.recv()
    process.join()
    assert output == module(x)[0].detach().numpy().tobytes()
    assert shares_weights and not shares_packed and copied._packed.is_shared()


@every_layer
def test_another_instruction_set_packs_again(name):
    if len(AVAILABLE_INSTRUCTION_SETS) < 2:
        pytest.skip("this machine runs one instruction set")
    module = make(name, H=40)
    copied, x = fastrnn.freeze(module), torch.randn(2, 3, 5)
    with torch.no_grad():
        copied(x)
        for chosen in reversed(AVAILABLE_INSTRUCTION_SETS):
            use_cpu_instruction_set(chosen)
            try:
                assert_same(module, copied, x)
                assert copied._packed_for == chosen
            finally:
                use_cpu_instruction_set(None)


def test_parametrized_weights_are_evaluated_once():
    module = parametrizations.weight_norm(make("LSTM"), "weight_hh_l0")
    copied = fastrnn.freeze(module)
    assert type(copied) is frozen.FrozenLSTM and "parametrizations" not in repr(copied)
    x = torch.randn(4, 3, 5)
    assert_same(module, copied, x)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(3)
    assert_same(module, copied.refresh(module), x)


@pytest.mark.parametrize("swap", [None, fastrnn.accelerate, fastrnn.freeze])
def test_evaluating_a_parametrization_does_not_change_it(swap):
    """In training, spectral_norm changes its vectors whenever the weight is read."""
    module = parametrizations.spectral_norm(make("LSTM"), "weight_hh_l0").train()
    before = copy.deepcopy(module.state_dict())
    copied = fastrnn.freeze(module)
    if swap is None:
        copied.refresh(module)
    else:
        swap(module)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(each.training for each in module.modules())
    assert_same(copy.deepcopy(module).eval(), copied, torch.randn(4, 3, 5))


@pytest.mark.parametrize("made", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen_in", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("refreshed_in", [torch.inference_mode, torch.enable_grad])
def test_inference_mode_makes_no_difference(made, frozen_in, refreshed_in):
    with made():
        model, other = (nn.Sequential(nn.Linear(5, 5), make("GRU")) for _ in range(2))
    with frozen_in():
        copied = fastrnn.freeze(model)
    assert not any(t.is_inference() for t in [*copied.parameters(), *copied.buffers()])
    with refreshed_in():
        fastrnn.refresh(copied, other)
    x = torch.randn(2, 3, 5)
    with torch.no_grad():
        assert_equal(flatten(copied(x)), flatten(other(x)))


def test_buffers_of_the_users_are_kept_and_refreshed():
    module, x = make("GRU"), torch.randn(2, 3, 5)
    module.register_buffer("scale", torch.ones(2))
    copied = fastrnn.freeze(module)
    assert_same(module, copied, x)
    module.scale.mul_(3)
    fastrnn.refresh(copied, module)
    assert torch.equal(copied.scale, module.scale)
    assert_same(module, copied, x)


def test_autocast_changes_nothing():
    copied, x = fastrnn.freeze(make("GRU")), torch.randn(2, 3, 5)
    cell = fastrnn.freeze(make("GRUCell"))
    with torch.no_grad():
        expected, step = copied(x)[0], cell(x[0])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(copied(x)[0], expected)
            assert torch.equal(copied(x.bfloat16().float())[0].float(), copied(x.bfloat16())[0])
            assert torch.equal(cell(x[0]), step)


def test_the_short_way_is_taken(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("the long way")

    copied, cell = fastrnn.freeze(make("LSTM")), fastrnn.freeze(make("LSTMCell"))
    monkeypatch.setattr(frozen.Frozen, "_packed_weights", fail)
    x = torch.randn(2, 3, 5)
    copied(x)
    copied(x[:, 0])
    copied(x, make_state(copied, 3))
    copied(x, reset=torch.rand(2, 3) < 0.5)
    copied(x[:, 0], reset=torch.rand(2) < 0.5)
    cell(x[0], make_state(cell, 3))
    cell(x[0, 0])


@every_module
def test_one_packed_op_a_call(name, monkeypatch):
    copied, calls = fastrnn.freeze(make(name)), []

    def counted(op, real):
        return lambda *args: (calls.append(op), real(*args))[1]

    for op in ("_stack", "_step", "_packed_stack", "_packed_step"):
        monkeypatch.setattr(eager, op, counted(op, getattr(eager, op)))
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))
    copied(x)
    assert not calls  # a short call goes past the ops
    monkeypatch.setattr(direct, "_MOST_PRODUCTS", 0)
    copied(x)
    assert calls == ["_packed_step" if name in CELLS else "_packed_stack"]


# --- graphs ---------------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell"])
def test_compiled_in_one_graph(name, weights):
    copied = fastrnn.freeze(make(name), weights)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    for N in (3, 4):
        assert_same(copied, compiled, torch.randn((N, 5) if name in CELLS else (2, N, 5)))


@pytest.mark.filterwarnings("ignore")  # The tracer warns of every check.
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_recorded_graphs_have_the_ordinary_weights(name):
    module = make(name)
    copied = fastrnn.freeze(module, "int8")
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))
    program = torch.export.export(copied, (x,))
    ops = {str(node.target) for node in program.graph.nodes if "fastrnn" in str(node.target)}
    assert ops == {"fastrnn.scan.default"}
    assert "_packed" not in program.state_dict
    for strict in (True, False):
        assert not torch.export.export(copied, (x,), strict=strict).constants
    assert_same(module, program.module(), x)
    with torch.no_grad():
        traced = torch.jit.trace(copied, (x,), check_trace=False)
    assert "packed" not in str(traced.inlined_graph)
    assert_same(module, traced, x)


# --- what is refused ------------------------------------------------------------------------------


@every_module
def test_gradients_are_refused_and_not_lost(name):
    copied = fastrnn.freeze(make(name))
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))
    state = make_state(copied, 3)
    needing = [t.clone().requires_grad_() for t in flatten([state])]
    needing = needing[0] if len(needing) == 1 else tuple(needing)
    for args in ((x.clone().requires_grad_(),), (x, needing)):
        with pytest.raises(RuntimeError, match="requires grad"):
            copied(*args)
        with torch.no_grad():
            copied(*args)
        with torch.inference_mode():
            copied(*args)
    if name in LAYERS:
        with pytest.raises(RuntimeError, match="requires grad"):
            copied(x.clone().requires_grad_(), lengths=torch.tensor([2, 1, 2]))
        packed = rnn.pack_sequence([x[:, 0].clone().requires_grad_()])
        with pytest.raises(RuntimeError, match="requires grad"):
            copied(packed)


@every_module
def test_transforms_are_refused(name):
    copied = fastrnn.freeze(make(name))
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))

    def first(x):
        return flatten(copied(x))[0]

    with pytest.raises(NotImplementedError, match="vmap"):
        torch.vmap(first)(torch.stack([x, x]))
    with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|requires grad"):
        torch.func.jvp(first, (x,), (x,))
    with pytest.raises((NotImplementedError, RuntimeError), match=r"grad"):
        torch.func.grad(lambda x: first(x).sum())(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="tangents"):
            copied(dual)
        copied(x)


def jvp(function, x):
    return torch.func.jvp(function, (x,), (x,))[1]


def dual(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x))).tangent


def grad(function, x):
    return torch.func.grad(lambda x: function(x).sum())(x)


def vmap(function, x):
    return torch.vmap(function)(torch.stack([x, x]))


@pytest.mark.parametrize("outside", [False, True], ids=["within", "around"])
@pytest.mark.parametrize("transform", [jvp, dual, grad, vmap])
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_transforms_are_refused_in_compiled_functions(name, transform, outside, dynamo):
    copied = fastrnn.freeze(make(name))
    x = torch.randn((3, 5) if name in CELLS else (2, 3, 5))

    def first(x):
        return flatten(copied(x))[0]

    def compiled(function):
        return torch.compile(function, backend="aot_eager")

    with pytest.raises((NotImplementedError, RuntimeError), match=f"Frozen{name} has no"):
        if outside:
            transform(compiled(first), x)
        else:
            compiled(lambda x: transform(first, x))(x)


@every_module
def test_what_would_change_the_snapshot_is_refused(name):
    module = make(name)
    copied = fastrnn.freeze(module)
    with pytest.raises(RuntimeError, match="inference"):
        copied.train()
    assert copied.eval() is copied and copied.train(False) is copied
    with pytest.raises(RuntimeError, match="load into the original"):
        copied.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match="snapshot"):
        copied.reset_parameters()
    for change in (copied.double, copied.half, lambda: copied.to("meta")):
        with pytest.raises(RuntimeError, match="keeps its type and device"):
            change()
    assert copied.float() is copied and copied.to("cpu") is copied
    model = nn.Sequential(nn.Linear(1, 1), copied)
    with pytest.raises(RuntimeError, match="inference"):
        model.train()
    with pytest.raises(RuntimeError, match="load into the original"):
        model.load_state_dict(model.state_dict())


class KeepsItsMode(nn.Module):
    """A model whose train() does not look into its modules."""

    def __init__(self):
        super().__init__()
        self.rnn = make("GRU", num_layers=2, dropout=0.5)

    def train(self, mode=True):
        self.training = mode
        return self

    def forward(self, x):
        return self.rnn(x, return_all_states=True)[:2]


def test_frozen_layers_are_never_in_training():
    model = KeepsItsMode()
    copied, x = fastrnn.freeze(model), torch.randn(2, 3, 5)
    copied.train()
    assert copied.training and not copied.rnn.training
    model.rnn.eval()
    assert_same(model, copied, x)
    with pytest.raises(RuntimeError, match="inference"):
        copied.rnn.training = True


class Hidden(nn.Module):
    def __init__(self, package):
        super().__init__()
        self.seen = package.GRU(5, 19)
        self.layers = [package.GRU(5, 19), {"cell": nn.Sequential(package.RNNCell(5, 6))}]
        self.again = (self.seen,)


@pytest.mark.parametrize("package", [nn, fastrnn], ids=["torch.nn", "fastrnn"])
def test_modules_in_plain_lists_are_reported(package):
    model, report = Hidden(package), fastrnn.Report()
    fastrnn.freeze(model, report=report)
    assert list(report.replaced) == ["seen"]
    assert list(report.left) == ["layers[0]", "layers[1]['cell'].0"]
    assert "in a plain list or dict" in report.left["layers[0]"]
    swap = fastrnn.accelerate if package is nn else fastrnn.decelerate
    swapped = fastrnn.Report()
    swap(nn.Sequential(model), report=swapped)
    assert list(swapped.left) == ["0.layers[0]", "0.layers[1]['cell'].0"]


def test_other_devices_are_named_when_a_module_is_loaded():
    file = io.BytesIO()
    torch.save(fastrnn.freeze(make("GRU")), file)
    file.seek(0)
    with pytest.raises(RuntimeError, match="map_location='cpu'"):
        torch.load(file, map_location="meta", weights_only=False)


class Subclass(fastrnn.GRU):
    pass


def with_a_hook():
    module = make("GRU")
    module.register_forward_pre_hook(lambda module, args: None)
    return module


def with_its_own_forward():
    module = make("GRU")
    module.forward = lambda x: x
    return module


@pytest.mark.parametrize(
    ("module", "weights", "message"),
    [
        (lambda: nn.Linear(2, 2), None, "nothing was frozen"),
        (lambda: Subclass(5, 6), None, "a subclass"),
        (with_a_hook, None, "pre-hooks"),
        (with_its_own_forward, None, "forward was replaced"),
        (lambda: make("GRU", dtype=torch.float64), "float32", "its dtype is float64"),
        (lambda: make("GRU", dtype=torch.float64), "int8", "its dtype is float64"),
        (lambda: fastrnn.GRU(5, 6, device="meta"), None, "device 'meta'"),
        (lambda: fastrnn.freeze(make("GRU")), None, "it is frozen"),
        (lambda: make("GRU"), "int4", "weights must be one of"),
    ],
)
def test_what_cannot_be_frozen_is_named(module, weights, message):
    with pytest.raises(ValueError, match=message):
        fastrnn.freeze(module(), weights)


def test_own_dtypes_are_served():
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        module = make("GRU", dtype=dtype)
        own = str(dtype).removeprefix("torch.")
        x = torch.randn(2, 3, 5).to(dtype)
        assert_same(module, fastrnn.freeze(module), x)
        if own == "bfloat16":
            assert_same(module, fastrnn.freeze(module, own), x)


def test_int8_refuses_weights_that_are_not_finite():
    module = make("LSTM")
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = float("inf")
    with pytest.raises(ValueError, match="finite"):
        fastrnn.freeze(module, "int8")


def test_all_states_of_a_shorter_type_are_refused():
    with pytest.raises(NotImplementedError, match="return_all_states"):
        fastrnn.freeze(make("LSTM"), "int8")(torch.randn(2, 3, 5), return_all_states=True)


@pytest.mark.parametrize(
    ("original", "error", "message"),
    [
        (lambda: make("GRU"), TypeError, "must be a LSTM"),
        (lambda: make("LSTM", H=20), ValueError, "weight_ih_l0 has shape"),
        (lambda: make("LSTM", num_layers=2), ValueError, "has 8 weights, expected 4"),
        (lambda: make("LSTM", bias=False), ValueError, "bias_ih_l0 has shape None"),
    ],
)
def test_refresh_names_what_does_not_fit(original, error, message):
    copied = fastrnn.freeze(make("LSTM"))
    with pytest.raises(error, match=message):
        copied.refresh(original())


@pytest.mark.parametrize("option", ["reverse", "batch_first"])
def test_refresh_refuses_other_options(option):
    for own in (False, True):
        copied = fastrnn.freeze(make("GRU", **{option: own}))
        with pytest.raises(TypeError, match=f"{option}=True"):
            copied.refresh(make("GRU", **{option: not own}))


class Pair(nn.Module):
    def __init__(self, last=3, value=0.0):
        super().__init__()
        self.first, self.second = make("GRU"), make("LSTM")
        self.last = nn.Parameter(torch.full((last,), value))
        self.linear = nn.Linear(2, 2)


def broken(change):
    model = Pair(value=7.0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
        change(model)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model, "last", nn.Parameter(torch.ones(1))), "last has shape"),
        (lambda model: delattr(model, "linear"), "has no linear"),
        (lambda model: setattr(model, "second", make("LSTM", H=20)), "has shape"),
        (lambda model: model.second.weight_hh_l0[0, 0].fill_(torch.nan), "not finite"),
        (lambda model: model.second.double().weight_hh_l0[0, 0].fill_(1e300), "not finite"),
    ],
)
def test_a_refused_refresh_changes_nothing(change, message):
    copied = fastrnn.freeze(Pair(), "int8")
    before = copy.deepcopy(copied.state_dict())
    x = torch.randn(2, 3, 5)
    with torch.no_grad():
        output = copied.second(x)[0]
        with pytest.raises((TypeError, ValueError), match=message):
            fastrnn.refresh(copied, broken(change))
        assert torch.equal(copied.second(x)[0], output)
    after = copied.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_refresh_of_models_names_what_does_not_fit():
    copied = fastrnn.freeze(nn.Sequential(make("GRU"), nn.Identity()))
    with pytest.raises(TypeError, match="has no 0"):
        fastrnn.refresh(copied, nn.Sequential())
    with pytest.raises(TypeError, match="no frozen module"):
        fastrnn.refresh(nn.Linear(1, 1), nn.Linear(1, 1))
    other = fastrnn.freeze(make("RNN"))
    with pytest.raises(TypeError, match="must be a RNN"):
        other.refresh(make("RNN", nonlinearity="relu"))


def test_errors_are_those_of_the_ordinary_module():
    module = make("LSTM")
    copied = fastrnn.freeze(module)
    x = torch.randn(2, 3, 5)
    calls = [
        lambda m: m(torch.randn(2, 3, 6)),
        lambda m: m(x.double()),
        lambda m: m(x, (torch.randn(1, 4, 19), torch.randn(1, 4, 19))),
        lambda m: m(x, (torch.randn(2, 3, 19), torch.randn(2, 3, 19))),
        lambda m: m(x, torch.randn(1, 3, 19)),
        lambda m: m(x[:, 0], (torch.randn(1, 3, 19), torch.randn(1, 3, 19))),
        lambda m: m(torch.randn(5)),
        lambda m: m(x, reset=torch.zeros(3, 2, dtype=torch.bool)),
        lambda m: m(x, reset=torch.zeros(2, 3)),
        lambda m: m(x[:, 0], reset=torch.zeros(2, 1, dtype=torch.bool)),
    ]
    for call in calls:
        with pytest.raises(Exception) as expected:
            call(module)
        with pytest.raises(expected.type) as got:
            call(copied)
        assert str(got.value) == str(expected.value)


def test_the_op_refuses_what_is_no_packed_weights():
    ops = torch.ops.fastrnn
    module = make("GRU")
    x, packed = torch.randn(2, 3, 5), fastrnn.freeze(module)._packed
    wrong = {
        "another dtype": packed.float(),
        "too short": packed[:-64].clone(),
        "empty": packed[:0].clone(),
        "no magic": torch.zeros_like(packed),
        "every second": packed.repeat_interleave(2)[::2],
        "between cache lines": torch.cat([packed[:1], packed])[1:],
    }
    for each in wrong.values():
        with pytest.raises(RuntimeError, match="packed must"):
            ops.packed_stack(x, None, None, each, None, False)
    with pytest.raises(RuntimeError, match="another cell"):
        ops.stack("lstm", x, [], [], [], 1, 1, None, None, None, None, False, packed)
    with pytest.raises(RuntimeError, match="other layers"):
        ops.stack("gru", x, [], [], [], 2, 1, None, None, None, None, False, packed)
    with pytest.raises(RuntimeError, match="dtype"):
        ops.packed_stack(x.double(), None, None, packed, None, False)
    with pytest.raises(RuntimeError, match="features"):
        ops.packed_stack(torch.randn(2, 3, 4), None, None, packed, None, False)
    with pytest.raises(RuntimeError, match="no projection"):
        projected = make("LSTM", proj_size=3)
        ops.packed_step(torch.randn(3, 5), None, None, fastrnn.freeze(projected)._packed)
    with pytest.raises(RuntimeError, match="one layer"):
        deep = fastrnn.freeze(make("GRU", num_layers=2))
        ops.packed_step(torch.randn(3, 5), None, None, deep._packed)
    for h, c in [(None, torch.zeros(1, 3, 19)), (torch.zeros(1, 3, 19), torch.zeros(1, 3, 19))]:
        with pytest.raises(RuntimeError, match="the cell has none"):
            ops.packed_stack(x, h, c, packed, None, False)
    with pytest.raises(RuntimeError, match="expected fewer"):
        weights = [torch.randn(16, 5), torch.randn(16, 4), torch.randn(4, 4)]
        ops.prepack("lstm", weights, 1, 1, "")
    with pytest.raises(RuntimeError, match="float32 weights"):
        ops.prepack("gru", [w.double() for w in module.parameters()], 1, 1, "int8")
    with pytest.raises(RuntimeError, match="shape"):
        ops.prepack("gru", [*list(module.parameters())[:3], torch.randn(3)], 1, 1, "")


def test_a_forged_header_of_packed_weights_is_refused():
    """Or changes nothing: where samples lie in lanes, weights of every type take as many bytes and are read alike."""
    x, packed = torch.randn(2, 3, 5), fastrnn.freeze(make("GRU", num_layers=2))._packed
    run = functools.partial(torch.ops.fastrnn.packed_stack, x, None, None)
    expected = run(packed, None, False)
    names_end, type_at = 104, 16  # of the header's fields
    for at in range(names_end):
        for value in {0x01, 0x7F, 0xFF} - {int(packed[at])}:
            forged = packed.clone()
            forged[at] = value
            try:
                results = run(forged, None, False)
            except RuntimeError as error:
                assert re.search(r"packed|cell|features|dtype", str(error))
            else:
                assert at == type_at
                assert_equal(results, expected)


def test_a_forged_header_of_a_users_cell_is_refused():
    @cells.cell(gates="a")
    def u(x, h, s, p):
        return x.a + h.a

    layer = fastrnn.Recurrent(u, 5, 19)  # its op knows the cell; there are no kernels
    packed = fastrnn.freeze(make("RNN"))._packed.clone()
    at, name = bytes(packed.tolist()).index(b"rnn_tanh"), layer.cell.op_name.encode()
    packed[at : at + 16] = torch.tensor(list(name.ljust(16, b"\0")), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=f"packed for another cell than {layer.cell.op_name}"):
        torch.ops.fastrnn.packed_stack(torch.randn(2, 3, 5), None, None, packed, None, False)


@pytest.mark.parametrize("name", ["LSTM", "RNNCell"])
def test_repr_says_the_type(name):
    assert str(fastrnn.freeze(make(name), "int8")) == f"Frozen{name}(5, 19, weights=int8)"
    assert str(fastrnn.freeze(make(name))) == f"Frozen{name}(5, 19)"


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_made_under_inference_mode(copier):
    copied, x = fastrnn.freeze(make("LSTM")), torch.randn(2, 3, 5)
    with torch.inference_mode():
        again = copier(copied)
    assert torch.equal(again(x)[0], copied(x)[0])
    again.refresh(make("LSTM"))
