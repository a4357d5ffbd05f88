"""Steps that follow one another share the sums of their weight gradients."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
import torch._dynamo.compiled_autograd
from common import assert_equal
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import direct, zoo
from fastrnn.weight_sums import SharedWeights

pytestmark = pytest.mark.skipif(
    not direct._IS_AVAILABLE, reason="this torch has no table of DLPack's functions"
)
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
every_cell = pytest.mark.parametrize("name", CELLS)
STEPS, N, I, H = 5, 3, 6, 19


@pytest.fixture
def chains():
    """The shared weights that calls made."""
    made = []
    real = SharedWeights.__init__

    def watched(self, weights):
        real(self, weights)
        made.append(self)

    with patch.object(SharedWeights, "__init__", watched):
        yield made


def unroll(cell, x, state=None):
    """h of every step."""
    outputs = []
    for step in x:
        state = cell(step) if state is None else cell(step, state)
        outputs.append(tree_leaves(state)[0])
    return outputs


def gradients(cell, x, loss=lambda outputs: torch.stack(outputs).square().sum()):
    return torch.autograd.grad(loss(unroll(cell, x)), [x, *cell.parameters()])


def by_ops(function):
    with patch.object(direct, "_IS_AVAILABLE", False):
        return function()


def problem(name, dtype=torch.float32, batch=(N,), hidden_size=H):
    torch.manual_seed(0)
    cell = getattr(fastrnn, name)(I, hidden_size).to(dtype)
    return cell, torch.randn(STEPS, *batch, I).to(dtype).requires_grad_()


@pytest.mark.parametrize("hidden_size", [H, 32], ids=["odd", "whole vectors"])
@pytest.mark.parametrize("batch", [(), (1,), (N,), (70,)], ids=str)
@pytest.mark.parametrize("dtype", fastrnn.ops.DTYPES, ids=str)
@every_cell
def test_the_gradients_of_a_loop(name, dtype, batch, hidden_size, chains):
    cell, x = problem(name, dtype, batch, hidden_size)
    got = gradients(cell, x)
    assert len(chains) == (1 if batch else 0)
    expected = by_ops(lambda: gradients(cell, x))
    assert len(chains) == (1 if batch else 0)
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6}.get(dtype, 3e-2)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_layer_that_is_called_step_by_step(name, chains):
    module = getattr(fastrnn, name)(I, H)
    x = torch.randn(STEPS, 2, N, I, requires_grad=True)

    def run():
        outputs, state = [], None
        for steps in x:
            y, state = module(steps, state)
            outputs.append(y)
        return torch.autograd.grad(torch.cat(outputs).square().sum(), [x, *module.parameters()])

    got = run()
    assert len(chains) == 1
    torch.testing.assert_close(got, by_ops(run), rtol=2e-6, atol=2e-6)


def test_a_cell_of_the_users(chains):
    cell = fastrnn.RecurrentCell(zoo.ugrnn, I, H)
    x = torch.randn(STEPS, N, I, requires_grad=True)
    got = gradients(cell, x)
    assert len(chains) == 1
    torch.testing.assert_close(got, by_ops(lambda: gradients(cell, x)), rtol=2e-6, atol=2e-6)


def test_a_cell_with_extra_inputs(chains):
    """They come behind the weights, and have gradients of their own in each step."""
    cell = fastrnn.RecurrentCell(zoo.zoneout_lstm, I, H)
    x = torch.randn(STEPS, N, I, requires_grad=True)
    keep = {name: torch.rand(STEPS, N, H, requires_grad=True) for name in zoo.zoneout_lstm.inputs}

    def run():
        state, outputs = None, []
        for t in range(STEPS):
            state = cell(x[t], state, extra={name: value[t] for name, value in keep.items()})
            outputs.append(state[0])
        inputs = [x, *keep.values(), *cell.parameters()]
        return torch.autograd.grad(torch.stack(outputs).square().sum(), inputs)

    got = run()
    assert len(chains) == 1
    torch.testing.assert_close(got, by_ops(run), rtol=2e-6, atol=2e-6)


def test_gradients_add_up_in_grad(chains):
    cell, x = problem("GRUCell")
    expected = gradients(cell, x)
    for _ in range(2):
        torch.stack(unroll(cell, x)).square().sum().backward()
    assert len(chains) == 3
    for each, tensor in zip(expected, [x, *cell.parameters()], strict=True):
        torch.testing.assert_close(tensor.grad, 2 * each)


def test_a_graph_may_be_walked_twice_and_in_part(chains):
    cell, x = problem("LSTMCell")
    weights = list(cell.parameters())
    outputs = unroll(cell, x)
    loss, other = torch.stack(outputs).square().sum(), outputs[2].sum()
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert torch.autograd.grad(loss, [x], retain_graph=True)[0].abs().sum() > 0
    part = torch.autograd.grad(other, weights, retain_graph=True)
    one = torch.autograd.grad(loss, weights[1], retain_graph=True)
    assert_equal(torch.autograd.grad(loss, weights), first)
    assert not chains[0]._sums
    assert_equal(one, [first[1]])
    cell, x = problem("LSTMCell")
    expected = by_ops(lambda: gradients(cell, x, lambda outputs: outputs[2].sum())[1:])
    torch.testing.assert_close(part, expected)


def test_threads_walk_one_graph():
    cell, x = problem("GRUCell")
    loss = torch.stack(unroll(cell, x)).square().sum()

    def walk(_):
        return torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True)

    expected = walk(0)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(walk, range(100)):
            assert_equal(got, expected)


@every_cell
def test_derivatives_beyond_the_first(name):
    cell, x = problem(name, torch.float64)
    weights = list(cell.parameters())

    def penalty():
        loss = torch.stack(unroll(cell, x)).square().sum()
        first = torch.autograd.grad(loss, [x, *weights], create_graph=True)
        total = loss + sum(gradient.square().sum() for gradient in first)
        return torch.autograd.grad(total, [x, *weights])

    torch.testing.assert_close(penalty(), by_ops(penalty))


def test_batched_gradients():
    cell, x = problem("GRUCell")
    y = torch.stack(unroll(cell, x))
    directions = torch.randn(4, *y.shape)
    weights = list(cell.parameters())
    got = torch.autograd.grad(y, weights, directions, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, weights, d, retain_graph=True) for d in directions]
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*each, strict=True))))


def test_branches_share_their_trunk(chains):
    cell, x = problem("RNNCell")

    def loss():
        trunk = unroll(cell, x)[-1]
        ends = [unroll(cell, sign * x, trunk)[-1] for sign in (1, -1)]
        return torch.stack(ends).square().sum()

    got = torch.autograd.grad(loss(), [x, *cell.parameters()])
    assert len(chains) == 1
    expected = by_ops(lambda: torch.autograd.grad(loss(), [x, *cell.parameters()]))
    torch.testing.assert_close(got, expected)


def test_weights_that_change_between_steps(chains):
    cell, x = problem("GRUCell")
    h = cell(x[1], cell(x[0]))
    with torch.no_grad():
        cell.weight_hh.mul_(0.5)
    outputs = unroll(cell, x[2:], h)
    assert len(chains) == 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs[-1].sum().backward()
    torch.manual_seed(0)
    other = fastrnn.GRUCell(I, H)
    outputs = [*unroll(cell, x[:2]), *unroll(other, x[2:], cell(x[0]))]
    given = [*cell.parameters(), *other.parameters()]
    got = torch.autograd.grad(torch.stack(outputs).sum(), given)
    assert all(gradient.abs().sum() > 0 for gradient in got)


def test_a_frozen_weight_has_no_gradient(chains):
    cell, x = problem("LSTMCell")
    cell.bias_ih.requires_grad_(False)
    torch.stack(unroll(cell, x)).square().sum().backward()
    assert not chains and cell.bias_ih.grad is None
    expected = by_ops(
        lambda: torch.autograd.grad(torch.stack(unroll(cell, x)).square().sum(), cell.weight_hh)
    )
    torch.testing.assert_close([cell.weight_hh.grad], list(expected))


def test_weights_that_are_frozen_for_a_step(chains):
    def run():
        cell, x = problem("GRUCell")
        h = unroll(cell, x[:2])[-1]
        cell.requires_grad_(False)
        h = cell(x[2], h)
        cell.requires_grad_(True)
        return torch.autograd.grad(cell(x[3], h).square().sum(), [x, *cell.parameters()])

    got = run()
    assert len(chains) == 1
    torch.testing.assert_close(got, by_ops(run))


def test_weights_whose_memory_is_replaced_between_steps(chains):
    cell, x = problem("GRUCell")
    h = unroll(cell, x[:2])[-1]
    for weight in cell.parameters():
        weight.data = 0.5 * weight.data
    end = h.detach().requires_grad_()
    expected = by_ops(lambda: torch.autograd.grad(cell(x[2], end).sum(), end))
    h.retain_grad()
    cell(x[2], h).sum().backward()
    torch.testing.assert_close([h.grad], list(expected))
    assert len(chains) == 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["as it is", "eager"])
def test_compiled_autograd(backend):
    def run():
        cell, x = problem("GRUCell")
        loss = torch.stack(unroll(cell, x)).square().sum()
        how = torch.compile(backend=backend) if backend == "eager" else lambda graph: graph
        with torch._dynamo.compiled_autograd._enable(how):
            loss.backward()
        return [x.grad, *(weight.grad for weight in cell.parameters())]

    torch.testing.assert_close(run(), by_ops(run))


def test_computed_weights_live_no_longer_than_their_graph(chains):
    cell, x = problem("GRUCell")
    computed = {name: 2 * weight for name, weight in cell.named_parameters()}
    kept = weakref.ref(computed["weight_hh"])
    h = torch.func.functional_call(cell, computed, x[0])
    h = torch.func.functional_call(cell, computed, (x[1], h))
    del computed
    h.sum().backward()
    assert not chains and kept() is None


def test_hooks_see_one_gradient(chains):
    cell, x = problem("GRUCell")
    seen = []
    cell.weight_hh.register_hook(lambda gradient: seen.append(gradient.clone()))
    torch.stack(unroll(cell, x)).square().sum().backward()
    assert len(chains) == 1
    assert_equal(seen, [cell.weight_hh.grad])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant):
    cell, x = problem("LSTMCell")

    def half(steps, *state):
        for step in steps:
            state = cell(step, state or None)
        return state

    def run():
        state = checkpoint(half, x[:3], use_reentrant=use_reentrant)
        state = checkpoint(half, x[3:], *state, use_reentrant=use_reentrant)
        h = state[0].square().sum()
        cell.zero_grad()
        h.backward()
        return [weight.grad.clone() for weight in cell.parameters()]

    torch.testing.assert_close(run(), by_ops(run))


def test_a_graph_is_freed():
    cell, x = problem("LSTMCell")
    outputs = unroll(cell, x)
    node = weakref.ref(outputs[-1].grad_fn)
    saved = weakref.ref(outputs[0])
    gc.disable()
    try:
        torch.stack(outputs).sum().backward()
        del outputs
        assert node() is None and saved() is None
    finally:
        gc.enable()
