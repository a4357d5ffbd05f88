"""torch.compile: one node a layer and direction, one graph for every T and N, and eager mode's numbers."""

from __future__ import annotations

import contextlib

import pytest
import torch
from common import DEVICE, assert_all_close, gradients, random
from pairs import LAYERS, H, I, flatten, make_pair
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func

import fastrnn

OPTIONS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
# A case is a backend, a layer, options and whether lengths= is given.
CASES = [
    ("aot_eager", name, options, with_lengths)
    for name in LAYERS
    for options in OPTIONS
    for with_lengths in (False, True)
]
CASES += [
    pytest.param("inductor", *case, marks=pytest.mark.slow)
    for case in (*((name, "deep", True) for name in LAYERS), ("RNN", "plain", False))
]
# The first T and N differ from each other, from I, H and the states' rows: sizes that are equal in the first call are
# taken to stay so.
SIZES = [(7, 6), (11, 3), (8, 8), (3, 2)]


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_call(name, options, sizes, with_lengths):
    """Arguments of one call, (x, hx) and keywords."""
    T, N = sizes
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return random(shape, generator).to(DEVICE)

    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = normal(N, T, I) if options.get("batch_first") else normal(T, N, I)
    h = normal(rows, N, H)
    hx = (h, normal(rows, N, H)) if name == "LSTM" else h
    lengths = torch.randint(0, T + 1, (N,), generator=generator, device="cpu").to(DEVICE)
    return (x, hx), {"lengths": lengths} if with_lengths else {}


def run(module, call):
    """Results and the gradients with respect to input, states and weights."""
    arguments, keywords = call
    leaves = [t.clone().requires_grad_() for t in flatten(arguments)]
    x, *states = leaves
    results = flatten(module(x, tuple(states) if len(states) == 2 else states[0], **keywords))
    return results + gradients(results, leaves + list(module.parameters()))


def count_graphs(counter):
    """Graphs that a backend got. One without a node does not count: with dynamic=True, torch begins anew where a float
    of a module (dropout) turns out not to become a tensor."""
    return sum(any("call" in node.op for node in g.graph.nodes) for g in counter.graphs)


@pytest.mark.parametrize(("backend", "name", "options", "with_lengths"), CASES)
def test_one_graph_for_all_sizes(backend, name, options, with_lengths):
    """Compiled once, with fullgraph and dynamic, it gives the numbers of eager mode, forward and backward, for every T and N."""
    options = OPTIONS[options]
    fast = make_pair(name, options)[1]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(fast, backend=counter, fullgraph=True, dynamic=True)
    for sizes in SIZES:
        call = make_call(name, options, sizes, with_lengths)
        assert_all_close(run(compiled, call), run(fast, call), torch.float64)
        assert count_graphs(counter) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_no_second_recompilation_by_default(name):
    """Without dynamic=, torch takes sizes as fixed until one changes: two graphs, whatever comes then."""
    fast = make_pair(name)[1]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fast, backend=counter, fullgraph=True)
    for sizes in SIZES:
        call = make_call(name, {}, sizes, with_lengths=True)
        assert_all_close(run(compiled, call), run(fast, call), torch.float64)
    assert count_graphs(counter) == 2


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_that_comes_after_the_batch_has_changed(name):
    """torch then takes the input's sizes as symbols, and the state's as they are."""
    fast = make_pair(name)[1]
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    compiled(make_call(name, {}, (3, 2), with_lengths=False)[0][0])
    call = make_call(name, {}, (5, 4), with_lengths=False)
    assert_all_close(run(compiled, call), run(fast, call), torch.float64)


GRAD_MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "frozen": contextlib.nullcontext,
}


# These are all the modes that torch.compile has.
@pytest.mark.parametrize("mode", torch._inductor.list_mode_options())
def test_modes(mode):
    """Inductor's modes give the numbers of eager mode, of an accelerated layer among others."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(I, I), torch.nn.LSTM(I, H))
    fastrnn.accelerate(model)

    inputs = [torch.randn(5, 3, I, requires_grad=True), *model.parameters()]
    expected, _ = model(inputs[0])
    actual, _ = torch.compile(model, mode=mode, fullgraph=True)(inputs[0])
    assert_all_close([actual], [expected], torch.float32)
    assert_all_close(*(gradients([y], inputs) for y in (actual, expected)), torch.float32)


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_inference(name, mode):
    fast = make_pair(name, OPTIONS["deep"])[1]
    fast.requires_grad_(mode != "frozen")
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    for sizes in SIZES:
        arguments, keywords = make_call(name, OPTIONS["deep"], sizes, with_lengths=True)
        with GRAD_MODES[mode]():
            actual = flatten(compiled(*arguments, **keywords))
        assert not any(t.requires_grad for t in actual)
        assert_all_close(actual, flatten(fast(*arguments, **keywords)), torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_autocast(name, dtype):
    fast = make_pair(name, dtype=torch.float32)[1]
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    (x, hx), _ = make_call(name, {}, SIZES[0], with_lengths=False)
    call = (x.float(), tuple(t.float() for t in hx) if name == "LSTM" else hx.float()), {}
    with torch.autocast(DEVICE, dtype):
        actual, expected = run(compiled, call), run(fast, call)
    assert actual[0].dtype == dtype
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    assert_all_close(actual, expected, torch.float32)


def test_dropout():
    """The masks of eager mode from the same seed, where the backend draws as eager mode does."""
    options = {"num_layers": 3, "dropout": 0.4}
    fast = make_pair("LSTM", options)[1]
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    call = make_call("LSTM", options, SIZES[0], with_lengths=True)
    runs = []
    for module in (fast, compiled):
        torch.manual_seed(3)
        runs.append(run(module, call))
    assert_all_close(*reversed(runs), torch.float64)
    assert not torch.equal(runs[0][0], fast.eval()(*call[0], **call[1])[0])


def capture(name, options, sizes, with_lengths, dynamic):
    """Node targets of the forward and the backward graph, as a backend gets them."""
    graphs = []

    def keep(graph, example_inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op != "output"])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    fast = make_pair(name, options)[1]
    compiled = torch.compile(fast, backend=backend, fullgraph=True, dynamic=dynamic)
    call = make_call(name, options, sizes, with_lengths)
    assert_all_close(run(compiled, call), run(fast, call), torch.float64)
    forward, backward = graphs
    return forward, backward


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize(
    ("layers", "directions", "dynamic"), [(1, 1, False), (3, 1, True), (2, 2, True)]
)
@pytest.mark.parametrize("name", LAYERS)
def test_one_node_a_layer_and_direction(name, layers, directions, dynamic, with_lengths):
    options = {"num_layers": layers, "bidirectional": directions == 2}
    forward, backward = capture(name, options, SIZES[0], with_lengths, dynamic)
    assert [forward.count("fastrnn.scan.default"), backward.count("fastrnn.scan_backward.default")] == [layers * directions] * 2  # fmt: skip
    assert "fastrnn.scan_backward.default" not in forward
    assert "fastrnn.scan.default" not in backward


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_do_not_grow_with_time(name):
    """What a backend has to compile is the same for 8 steps and for 512."""
    options = OPTIONS["deep"]
    short, long = (capture(name, options, (T, 3), True, dynamic=False) for T in (8, 512))
    assert short == long


@pytest.mark.parametrize("name", LAYERS)
def test_torch_refuses_its_own(name):
    """torch.nn's layers are never in a graph: fullgraph raises, and without it nothing is compiled."""
    reference, fast = make_pair(name)
    (x, hx), _ = make_call(name, {}, SIZES[0], with_lengths=False)

    def model(rnn):
        return lambda x, hx: rnn(x.sin(), hx)[0].cos()

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model(reference), backend="aot_eager", fullgraph=True)(x, hx)
    torch._dynamo.reset()
    graphs = []
    for rnn in (reference, fast):
        counter = CompileCounterWithBackend("aot_eager")
        actual = torch.compile(model(rnn), backend=counter)(x, hx)
        assert_all_close([actual], [model(rnn)(x, hx)], torch.float64)
        graphs.append(count_graphs(counter))
    assert graphs == [0, 1]


@pytest.mark.parametrize("name", LAYERS)
def test_functional(name):
    """The functions on given weights, the hidden state carried on as in truncated backpropagation."""
    fast = make_pair(name)[1]
    function = getattr(fastrnn.functional, name.lower())
    (x, hx), _ = make_call(name, {}, SIZES[0], with_lengths=False)

    def two_chunks(x, hx, *weights):
        first, second = x[:4], x[4:]
        y, hx = function(first, hx, weights)
        z, hx = function(second, hx, weights)
        return torch.cat([y, z]), hx

    weights = list(fast.parameters())
    compiled = torch.compile(two_chunks, backend="aot_eager", fullgraph=True, dynamic=True)
    runs = []
    for call in (compiled, two_chunks, lambda x, hx, *w: function(x, hx, w)):
        results = flatten(call(x, hx, *weights))
        runs.append(results + gradients(results, weights))
    assert_all_close(runs[0], runs[1], torch.float64)
    assert_all_close(runs[0], runs[2], torch.float64)
