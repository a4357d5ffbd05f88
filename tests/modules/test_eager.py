"""The short way of a call: when it is taken, and that it gives the bits of the long one."""

from __future__ import annotations

import pytest
import torch
from common import assert_equal, gradients
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import eager

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
every_layer = pytest.mark.parametrize("name", LAYERS)

OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"batch_first": True, "bias": False},
    "reverse": {"reverse": True},
    "recompute": {"recompute": True},
}


@pytest.fixture
def long_way(monkeypatch):
    """Calls a function with the short way closed."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(eager, "is_eager", lambda: False)
            return function()

    return call


def make_states(module, N, shared=False):
    """hx for a module, with batch N, 1 for all samples, or without a batch if N is None."""
    L = module.num_layers * (1 + module.bidirectional)
    batch = () if N is None else (1 if shared else N,)
    h = torch.randn(L, *batch, module.proj_size or module.hidden_size)
    return (h, torch.randn(L, *batch, module.hidden_size)) if module.mode == "LSTM" else h


def taken(function, monkeypatch):
    """How many calls a function makes to what the short way calls."""
    count = 0

    def counted(real):
        def call(*args, **options):
            nonlocal count
            count += 1
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("_stack", "_step", "short_scan"):
            patch.setattr(eager, name, counted(getattr(eager, name)))
        function()
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_layer
def test_bits_of_the_long_way(name, options, dtype, long_way):
    projections = [{}, {"proj_size": 3}] if name == "LSTM" else [{}]
    for projection in projections:
        module = getattr(fastrnn, name)(5, 9, **options, **projection).to(dtype)
        for N, shared in ((4, False), (4, True), (None, False)):
            batch = () if N is None else (N,)
            shape = (N, 6, 5) if N and module.batch_first else (6, *batch, 5)
            x = torch.randn(*shape).to(dtype).requires_grad_()
            for hx in (None, make_states(module, N, shared)):
                if isinstance(hx, tuple):
                    hx = tuple(state.to(dtype) for state in hx)
                elif hx is not None:
                    hx = hx.to(dtype)

                def run(x=x, hx=hx, module=module):
                    return tree_leaves(module(x, hx))

                def run_with_gradients(x=x, run=run, module=module):
                    results = run()
                    return results + gradients(results, [x, *module.parameters()])

                assert_equal(run_with_gradients(), long_way(run_with_gradients))
                with torch.no_grad():
                    assert_equal(run(), long_way(run))


@pytest.mark.parametrize("batch", [(4,), (), (0,)], ids=["batched", "unbatched", "empty"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_have_the_bits_of_the_long_way(name, bias, batch, long_way):
    cell = getattr(fastrnn, name)(5, 9, bias=bias)
    x = torch.randn(*batch, 5).requires_grad_()
    h, c = torch.randn(*batch, 9).requires_grad_(), torch.randn(*batch, 9)
    for hx in (None, (h, c) if name == "LSTMCell" else h):

        def run(hx=hx):
            return tree_leaves(cell(x, hx))

        def run_with_gradients(run=run, hx=hx):
            results = run()
            states = [] if hx is None else [h]
            return results + gradients(results, [x, *states, *cell.parameters()])

        assert_equal(run_with_gradients(), long_way(run_with_gradients))
        with torch.no_grad():
            assert_equal(run(), long_way(run))


@every_layer
def test_one_op_a_call_without_gradients(name, monkeypatch):
    module = getattr(fastrnn, name)(5, 9, num_layers=3, bidirectional=True)
    x = torch.randn(6, 4, 5)
    with torch.no_grad():
        assert taken(lambda: module(x), monkeypatch) == 1
        lengths = torch.tensor([6, 0, 3, 2])
        assert taken(lambda: module(x, lengths=lengths), monkeypatch) == 1
        reset = torch.rand(6, 4) < 0.3
        assert taken(lambda: module(x, reset=reset), monkeypatch) == 1
    assert taken(lambda: module(x), monkeypatch) == 6


@pytest.mark.parametrize("kind", ["lengths", "reset", "packed", "jagged"])
@every_layer
def test_schedules_in_one_op(name, kind, long_way):
    module = getattr(fastrnn, name)(5, 9, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(6, 4, 5), torch.tensor([6, 2, 3, 5])
    options = {"lengths": lengths} if kind == "lengths" else {}
    if kind == "reset":
        options = {"reset": torch.rand(6, 4) < 0.3, "reset_state": make_states(module, 4)}
    if kind == "packed":
        x = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    if kind == "jagged":
        rows = [row[:n] for row, n in zip(x.transpose(0, 1), lengths.tolist(), strict=True)]
        x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    hx = make_states(module, 4)

    def run():
        output, state = module(x, hx, **options)
        values = output.data if kind == "packed" else output
        return [values.values() if kind == "jagged" else values, *tree_leaves(state)]

    with torch.no_grad():
        assert_equal(run(), long_way(run))


class Nothing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore")  # torch.jit warns of sizes that it takes as constants
@every_layer
def test_left_to_the_long_way(name, monkeypatch):
    module = getattr(fastrnn, name)(5, 9, num_layers=2, dropout=0.5)
    x = torch.randn(6, 4, 5)

    def within(context):
        with context:
            return taken(lambda: module(x), monkeypatch)

    assert within(Nothing()) == within(Seen()) == 0
    assert within(torch.autocast("cpu", torch.bfloat16)) == 0
    assert taken(lambda: module(x), monkeypatch) == 0  # a mask of dropout lies between the layers
    module.eval()
    assert taken(lambda: module(x), monkeypatch) == 2
    assert taken(lambda: module(x.as_subclass(Subclass)), monkeypatch) == 0
    assert taken(lambda: torch.func.vmap(module)(torch.randn(3, 6, 4, 5)), monkeypatch) == 0
    assert taken(lambda: torch.jit.trace(module, x, check_trace=False), monkeypatch) == 0
    with torch.autograd.forward_ad.dual_level():
        assert taken(lambda: module(x), monkeypatch) == 0


@every_layer
def test_weights_written_through_data_are_seen(name):
    module = getattr(fastrnn, name)(5, 9)
    x = torch.randn(1, 1, 5)
    with torch.no_grad():
        before = module(x)[0]
        module.weight_ih_l0.data.mul_(2)
        assert not torch.equal(module(x)[0], before)
        expected = getattr(nn, name)(5, 9)
        expected.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x)[0], expected(x)[0])


@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives(name):
    cell = getattr(fastrnn, name)(3, 4, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def h(x):
        return tree_leaves(cell(x))[0]

    assert torch.autograd.gradgradcheck(h, x)


@pytest.mark.parametrize("name", CELLS)
def test_no_plain_step_takes_the_long_way(name, monkeypatch):
    """An error on the short way is not shown: the long way would run, slower."""

    def fail(*args):
        raise AssertionError("the long way")

    monkeypatch.setattr(fastrnn.checks, "check_cell_input", fail)
    cell = getattr(fastrnn, name)(5, 9)
    for batch in ((), (1,), (4,), (0,)):
        for training in (False, True):
            with torch.set_grad_enabled(training):
                cell(torch.randn(*batch, 5))
