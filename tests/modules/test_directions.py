"""Training of a bidirectional layer, whose directions are one node of the graph that may run them side by side.

Its numbers are, to the bit, those of a scan for each direction, which is what one thread runs.
"""

from __future__ import annotations

import copy

import pytest
import torch
from common import TOLERANCE, assert_all_close, assert_equal, gradients, told
from pairs import LAYERS, flatten, make_pair
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import cells, eager, ops
from fastrnn.cells import sigmoid, tanh

# T, N, I, H: directions leave a thread idle, share units, share samples, and lie in the lanes.
SIZES = [(90, 1, 40, 40), (40, 2, 20, 150), (60, 30, 12, 24), (40, 70, 4, 8)]
# Of each of these T is 6 and N is 4.
SCHEDULES = ["plain", "lengths", "packed", "jagged", "reset", "reset state", "all states"]
OPTIONS = {
    "plain": {},
    "two layers": {"num_layers": 2, "dropout": 0.3, "batch_first": True},
}


@cells.cell(gates="zn", states="c", vectors="u", inputs=("dt",), initial={"c": 0.5})
def leaky(x, h, s, p):
    c = s.c + x.dt * tanh(x.n + h.n)
    return sigmoid(x.z + h.z) * tanh(c) + p.u * s.h, {"c": c}


@pytest.fixture
def ran(monkeypatch):
    """The names of the ops that training calls, in order; no call is short."""
    names = []
    for name in ("scan", "scan_backward", "bidirectional_scan", "bidirectional_scan_backward"):
        real = getattr(ops, f"_{name}_op")

        def called(*args, name=name, real=real):
            names.append(name)
            return real(*args)

        monkeypatch.setattr(ops, f"_{name}_op", called)
    monkeypatch.setattr(ops.direct, "_MOST_PRODUCTS", 0)
    monkeypatch.setattr(eager, "_MOST_TINY", 0)
    return names


BOTH = ["bidirectional_scan", "bidirectional_scan_backward"]
APART = ["scan", "scan", "scan_backward", "scan_backward"]


def make(name, I=5, H=9, dtype=torch.float32, **options):
    torch.manual_seed(0)
    options = {"bidirectional": True, "dtype": dtype, **options}
    if name == "leaky":
        return fastrnn.Recurrent(leaky, I, H, **options)
    return getattr(fastrnn, name)(I, H, **options)


def normal(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def run(layer, x, *args, **keywords):
    """Results and all gradients of a call; x may hold its leaf in a layout."""
    torch.manual_seed(1)
    results = [t for t in flatten(layer(x, *args, **keywords)) if t.is_floating_point()]
    results = [t.values() if t.is_nested else t for t in results]
    leaves = [
        t for t in flatten([x, args, keywords.get("reset_state")]) if t.is_leaf and t.requires_grad
    ]
    return results + gradients(results, [*leaves, *layer.parameters()])


def on_one_thread(call):
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(2)


def scheduled(schedule, x, layer):
    """An input and keywords of a call with a schedule."""
    lengths = torch.tensor([3, 6, 1, 4])
    reset = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(3)) < 0.3
    if schedule == "lengths":
        return x, {"lengths": lengths}
    if schedule == "packed":
        return pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False), {}
    if schedule == "jagged":
        rows = x.detach() if layer.batch_first else x.detach().transpose(0, 1)
        parts = [row[:length] for row, length in zip(rows, [3, 6, 1, 4], strict=True)]
        return torch.nested.nested_tensor(parts, layout=torch.jagged), {}
    if schedule == "reset":
        return x, {"reset": reset}
    if schedule == "reset state":
        states = [normal(2 * layer.num_layers, 4, 9), normal(2 * layer.num_layers, 4, 9)]
        has_two = isinstance(layer, fastrnn.LSTM)
        return x, {"reset": reset, "reset_state": tuple(states) if has_two else states[0]}
    return x, {"return_all_states": True} if schedule == "all states" else {}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_same_bits_for_every_thread_count(name, dtype, sizes, two_threads, ran):
    T, N, I, H = sizes
    layer, x = make(name, I, H, dtype), normal(T, N, I, dtype=dtype)
    apart = on_one_thread(lambda: run(layer, x))
    assert ran == APART
    for threads in (2, 3, 8):
        ran.clear()
        torch.set_num_threads(threads)
        assert_equal(run(layer, x), apart)
        assert ran == BOTH


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_schedule(name, schedule, options, two_threads, ran):
    layer = make(name, **options)
    shape = (4, 6, 5) if layer.batch_first else (6, 4, 5)
    x, keywords = scheduled(schedule, normal(*shape), layer)
    apart = on_one_thread(lambda: run(layer, x, **keywords))
    layers = layer.num_layers
    assert ran == APART[:2] * layers + APART[2:] * layers
    ran.clear()
    assert_equal(run(layer, x, **keywords), apart)
    assert ran == BOTH[:1] * layers + BOTH[1:] * layers


def test_projections_and_states(two_threads, ran):
    layer, x = make("LSTM", proj_size=4, num_layers=2), normal(6, 4, 5)
    hx = normal(4, 4, 4), normal(4, 4, 9)
    apart = on_one_thread(lambda: run(layer, x, hx))
    ran.clear()
    assert_equal(run(layer, x, hx), apart)
    assert ran == BOTH[:1] * 2 + BOTH[1:] * 2


@pytest.mark.parametrize(
    "keywords", [{}, {"lengths": torch.tensor([3, 6, 1, 4])}], ids=["plain", "lengths"]
)
def test_cells_of_ones_own(keywords, two_threads, ran):
    layer, x, extra = make("leaky"), normal(6, 4, 5), {"dt": torch.rand(6, 4)}
    apart = on_one_thread(lambda: run(layer, x, extra=extra, **keywords))
    ran.clear()
    assert_equal(run(layer, x, extra=extra, **keywords), apart)
    assert ran == BOTH


def test_rounded_products(two_threads, ran):
    """They follow torch's setting as a scan does."""
    layer, x = make("GRU", 20, 40), normal(30, 4, 20)
    exact = run(layer, x)
    with told():
        apart = on_one_thread(lambda: run(layer, x))
        ran.clear()
        both, rounds = run(layer, x), ops.rounds("gru", layer.weight_ih_l0)
    assert ran == BOTH
    assert_equal(both, apart)
    assert rounds == (not torch.equal(both[0], exact[0]))


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(name, with_lengths, two_threads, ran):
    layer = make(name, 2, 3, torch.float64)
    x = normal(3, 2, 2, dtype=torch.float64)
    keywords = {"lengths": torch.tensor([3, 2])} if with_lengths else {}
    assert torch.autograd.gradcheck(lambda x: layer(x, **keywords)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, **keywords)[0], x)
    assert set(ran) == set(BOTH)


@pytest.mark.parametrize("name", LAYERS)
def test_like_torch(name, two_threads, ran):
    """Beside torch.nn's module, a batch of gradients, and one that is a negated view."""
    reference, layer = make_pair(name, {"bidirectional": True})
    x = normal(6, 4, 5, dtype=torch.float64)
    wanted = [x, *layer.parameters()], [x, *reference.parameters()]
    outputs = layer(x)[0], reference(x)[0]
    cotangents = torch.randn(3, *outputs[0].shape, dtype=torch.float64)
    negated = torch.randn(outputs[0].shape, dtype=torch.complex128).conj().imag
    assert negated.is_neg()
    for options, grad in (
        ({}, cotangents[0]),
        ({"is_grads_batched": True}, cotangents),
        ({}, negated),
    ):
        actual, expected = (
            torch.autograd.grad(y, leaves, grad, retain_graph=True, **options)
            for y, leaves in zip(outputs, wanted, strict=True)
        )
        assert_all_close(actual, expected, torch.float64)
    assert ran[:2] == BOTH


def test_only_what_is_needed_is_computed(two_threads, ran, monkeypatch):
    layer, x = make("GRU"), normal(6, 4, 5).detach()
    layer.requires_grad_(False)
    layer.bias_ih_l0.requires_grad_()
    layer.weight_hh_l0_reverse.requires_grad_()
    asked, real = [], ops._bidirectional_scan_backward_op
    schema = torch.ops.fastrnn.bidirectional_scan_backward.default._schema
    needs_at = [argument.name for argument in schema.arguments].index("needs")

    def called(*args):
        asked.append(args[needs_at])
        return real(*args)

    monkeypatch.setattr(ops, "_bidirectional_scan_backward_op", called)
    layer(x)[0].sum().backward()
    names = [info.name for info in ops.CELLS["gru"].tensors]
    (needs,) = asked
    needed = [name for name, need in zip(names * 2, needs, strict=True) if need]
    assert needed == ["weight_hh", "bias_ih"]  # the reverse direction comes first
    expected = copy.deepcopy(layer)
    expected.zero_grad()
    on_one_thread(lambda: expected(x)[0].sum().backward())
    assert torch.equal(layer.weight_hh_l0_reverse.grad, expected.weight_hh_l0_reverse.grad)
    assert torch.equal(layer.bias_ih_l0.grad, expected.bias_ih_l0.grad)
    assert layer.weight_hh_l0.grad is None


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("case", ["one is frozen", "recompute", "large weights"])
def test_apart_where_both_would_not_pay(case, with_lengths, two_threads, ran):
    """A frozen direction saves and computes nothing, what recomputes saves little at once, and large weights are
    shared by two threads."""
    layer = make("GRU", 5, 1000 if case == "large weights" else 9, recompute=case == "recompute")
    x = normal(6, 4, 5).detach()
    if case == "one is frozen":
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_("reverse" in name)
    keywords = {"lengths": torch.tensor([3, 6, 1, 4])} if with_lengths else {}
    layer(x, **keywords)[0].sum().backward()
    assert not set(BOTH) & set(ran)
    assert ran.count("scan_backward") == 1 + (case != "one is frozen")


def skip(layer, x):
    z = x * 1
    return layer(z)[0] + torch.cat([z, z], -1)


def shared(layer, x):
    """Both directions of both layers have one weight_hh and one pair of biases."""
    first, _, third, _ = layer.all_weights
    weights = [*first] * 2 + [third[0], *first[1:]] * 2
    return fastrnn.functional.lstm(x, None, weights, num_layers=2, bidirectional=True)[0]


def all_states(layer, x):
    return torch.cat(layer(x, return_all_states=True)[2].h, -1)


@pytest.mark.parametrize("call", [skip, shared, all_states], ids=lambda call: call.__name__)
def test_gradients_add_up_in_the_same_order(call, two_threads, ran):
    """Where a tensor's gradient has three parts, their order decides its bits."""
    layer, x = make("LSTM", 9, 9, num_layers=1 if call is skip else 2), normal(6, 4, 9)
    leaves = [x, *layer.parameters()]

    def run_call():
        y = call(layer, x)
        return [y, *gradients([y], leaves)]

    apart = on_one_thread(run_call)
    ran.clear()
    assert_equal(run_call(), apart)
    assert set(ran) == set(BOTH)


@pytest.mark.parametrize("threads", [(1, 2), (2, 1)], ids=str)
def test_a_checkpoint_may_run_again_on_other_threads(threads, two_threads, ran):
    """Both ways save the same tensors in the same order, which torch.utils.checkpoint counts."""
    layer, x, lengths = make("LSTM"), normal(6, 4, 5), torch.tensor([3, 6, 1, 4])
    expected = run(layer, x, lengths=lengths)
    torch.set_num_threads(threads[0])
    y = checkpoint(lambda x: layer(x, lengths=lengths)[0], x, use_reentrant=False)
    torch.set_num_threads(threads[1])
    (actual,) = gradients([y], [x])
    assert torch.equal(y, expected[0])
    y = layer(x, lengths=lengths)[0]
    assert torch.equal(actual, gradients([y], [x])[0])


@pytest.mark.parametrize("direction", ["", "_reverse"])
def test_errors_keep_their_words(direction, two_threads):
    """What is thrown on a thread of its own arrives."""
    layer, x = make("RNN", 64, 64), normal(100, 1, 64)
    y = layer(x)[0]
    getattr(layer, "weight_hh_l0" + direction).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="a tensor has no data: its storage was freed"):
        y.sum().backward()


def test_freed_graph(two_threads, ran):
    """A second backward pass, and one past a tensor changed in place, raise as torch's own nodes do."""
    layer, x = make("GRU"), normal(6, 4, 5)
    y = layer(x)[0]
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    y = layer(x)[0]
    with torch.no_grad():
        layer.weight_hh_l0_reverse.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_hooks_that_pack(two_threads, ran):
    """What is saved passes through hooks, and comes back by them."""
    layer, x, packed = make("LSTM"), normal(6, 4, 5), []

    def pack(tensor):
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        actual = run(layer, x)
    assert ran == BOTH
    assert packed
    assert_equal(actual, on_one_thread(lambda: run(layer, x)))


class Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
def test_a_scan_follows_the_other_where_something_looks(with_lengths, two_threads, ran):
    layer, x = make("GRU"), normal(6, 4, 5)
    keywords = {"lengths": torch.tensor([3, 6, 1, 4])} if with_lengths else {}
    apart = on_one_thread(lambda: run(layer, x, **keywords))
    ran.clear()
    with Mode():
        assert_equal(run(layer, x, **keywords), apart)
    y = layer(x.as_subclass(Subclass), **keywords)[0]
    assert torch.equal(y, apart[0])
    assert torch.equal(torch.func.vjp(lambda x: layer(x, **keywords)[0], x)[0], apart[0])
    assert not set(BOTH) & set(ran)


def test_autocast(two_threads, ran):
    layer, x = make("LSTM"), normal(6, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        apart = on_one_thread(lambda: run(layer, x))
        ran.clear()
        both = run(layer, x)
    assert ran == BOTH
    assert both[0].dtype == torch.bfloat16
    assert_equal(both, apart)


def test_tiny_calls_stay_short(two_threads, ran, monkeypatch):
    """Two short calls take less than one of both directions."""
    monkeypatch.undo()
    layer, taken = make("RNN", 64, 64), []
    real = ops._bidirectional_scan_op
    monkeypatch.setattr(
        ops, "_bidirectional_scan_op", lambda *args: taken.append(args) or real(*args)
    )
    layer(normal(16, 1, 64))
    assert not taken
    layer(normal(100, 1, 64))
    assert len(taken) == 1


@pytest.mark.parametrize("other", ["dtype", "sizes"])
def test_directions_are_of_one_layer(other):
    H, dtype = (3, torch.float64) if other == "dtype" else (4, torch.float32)
    first = [torch.randn(4, 2, 3), torch.randn(2, 3), torch.randn(3, 3), torch.randn(3, 3)]
    second = [torch.randn(*s, dtype=dtype) for s in ((4, 2, 3), (2, H), (H, 3), (H, H))]
    with pytest.raises(RuntimeError, match="expected the same sizes and dtype for both directions"):
        torch.ops.fastrnn.bidirectional_scan(
            "rnn_tanh", [*first, *second], [0, 1, 2, 3], *(None,) * 4, False, True
        )


@pytest.mark.parametrize("list_name", ["tensors", "saved", "grads", "needs"])
def test_lists_have_both(list_name):
    cell, N, H = "rnn_tanh", 2, 3
    tensors = [torch.randn(4, N, H), torch.randn(N, H), torch.randn(H, H), torch.randn(H, H)] * 2
    present, schedule = [0, 1, 2, 3], (None,) * 4
    facts = ops.CELLS[cell]
    results = torch.ops.fastrnn.bidirectional_scan(cell, tensors, present, *schedule, False, True)
    saved = [
        results[i] for i in (*facts.saved_at, *(len(facts.results) + i for i in facts.saved_at))
    ]
    lists = {
        "grads": [results[0], None] * 2,
        "tensors": tensors,
        "saved": saved,
        "needs": [True] * 2 * len(facts.tensors),
    }
    lists[list_name] = lists[list_name][:-1]
    words = f"{list_name} has {len(lists[list_name])} entries, expected as many for each of 2 directions"
    with pytest.raises(RuntimeError, match=words):
        torch.ops.fastrnn.bidirectional_scan_backward(
            cell, lists["grads"], lists["tensors"], present, *schedule, False, lists["saved"], lists["needs"],
        )  # fmt: skip
