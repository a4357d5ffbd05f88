"""Short calls that go past torch's dispatcher: their bits, and what is left to the ops."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread
from unittest.mock import patch

import pytest
import torch
from common import assert_equal
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import fastrnn
from fastrnn import direct, zoo

pytestmark = pytest.mark.skipif(
    not direct._IS_AVAILABLE, reason="this torch has no table of DLPack's functions"
)
LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
I, H = 5, 19
every_module = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def ran():
    """What the calls answered that were tried this way: whether each went through."""
    answers = []

    def watched(real):
        def call(self, *args):
            results = real(self, *args)
            answers.append(results is not None)
            return results

        return call

    with patch.object(direct.Short, "__call__", watched(direct.Short.__call__)):
        yield answers


def by_ops(function):
    with patch.object(direct, "_IS_AVAILABLE", False):
        return function()


def states_of(name, *sizes):
    h = torch.randn(*sizes, H)
    return (h, torch.randn(*sizes, H)) if "LSTM" in name else h


def assert_same(module, x, hx, ran, went=True):
    """The call gives what the ops give, and went this way or did not."""
    ran.clear()
    got = module(x) if hx is None else module(x, hx)
    assert ran == [went]
    expected = by_ops(lambda: module(x) if hx is None else module(x, hx))
    assert_equal(tree_leaves(got), tree_leaves(expected))
    for one, other in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.parametrize("dtype", fastrnn.ops.DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=["bias", "no bias"])
@every_module
def test_bits_of_the_ops(name, options, dtype, ran):
    module = getattr(fastrnn, name)(I, H, **options).to(dtype)
    for each in (module, fastrnn.freeze(module)):
        for batch in ((), (1,), (4,), (33,)):
            for steps in ((1,), (7,)) if name in LAYERS else ((),):
                x = torch.randn(*steps, *batch, I).to(dtype)
                states = states_of(name, *((1,) if steps else ()), *batch)
                states = tree_map(lambda state: state.to(dtype), states)
                for hx in (None, states):
                    assert_same(each, x, hx, ran)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"reverse": True}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_options_of_layers(name, options, ran):
    module = getattr(fastrnn, name)(I, H, **options)
    for each in (module, fastrnn.freeze(module)):
        for x in (torch.randn(3, 4, I), torch.randn(4, 1, I), torch.randn(1, 4, I)):
            N = x.size(0 if module.batch_first else 1)
            assert_same(each, x, states_of(name, 1, N), ran)
            assert_same(each, x, None, ran)
        assert_same(each, torch.randn(6, I), states_of(name, 1), ran)


def test_a_frozen_layer_whose_order_is_changed(ran):
    module = fastrnn.freeze(fastrnn.GRU(I, H))
    x = torch.randn(3, 4, I)
    expected = module(x)[0]
    module.batch_first = True
    assert_equal([module(x.transpose(0, 1))[0].transpose(0, 1)], [expected])
    assert ran == [True]  # the second call went another way


@every_module
def test_tensors_of_any_strides(name, ran):
    module = getattr(fastrnn, name)(I, H)
    for weight in module.parameters():
        weight.data = weight.data.t().contiguous().t() if weight.dim() == 2 else weight.data
    steps = (3,) if name in LAYERS else ()
    first = (1,) if steps else ()
    wide = torch.randn(*steps, 4, 2 * I)
    hx = states_of(name, *first, 4)
    for x in (wide[..., ::2], torch.randn(*steps, 1, I).expand(*steps, 4, I)):
        assert_same(module, x, hx, ran)
    strided = tree_map(lambda state: state.mT.contiguous().mT, hx)
    assert_same(module, wide[..., :I], strided, ran)


@every_module
def test_what_is_left_to_the_ops(name, ran):
    module = getattr(fastrnn, name)(I, H)
    first, steps = ((1,), (3,)) if name in LAYERS else ((), ())
    x, hx = torch.randn(*steps, 4, I), states_of(name, *first, 4)
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg()
    assert_same(module, negative, hx, ran, went=False)
    assert_same(module, x, tree_map(torch._neg_view, hx), ran, went=False)
    with patch.object(direct, "_MOST_PRODUCTS", x.numel() * H - 1):
        assert_same(module, x, hx, ran, went=False)
    assert_same(module, torch.randn(*steps, 0, I), states_of(name, *first, 0), ran, went=False)
    weight = next(module.parameters())
    weight.data = torch._neg_view(-weight.data)
    assert_same(module, x, hx, ran, went=False)


@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_those_of_the_ops(name):
    module = getattr(fastrnn, name)(I, H)
    x, hx = torch.randn(3, 4, I), states_of(name, 1, 4)
    wrong = [
        (torch.randn(3, 4, I + 1), hx),
        (x, states_of(name, 1, 5)),
        (x, states_of(name, 2, 4)),
        (x.double(), hx),
        (x, tree_map(torch.Tensor.double, hx)),
        (x.to_sparse(), hx),
        (x.to("meta"), hx),
        (x, tree_map(lambda state: state.to("meta"), hx)),
        (x.to(torch.complex64), hx),
        (torch.randn(I), hx),
        (x, "h"),
    ]
    for each in (module, fastrnn.freeze(module)):
        for arguments in wrong:

            def error(arguments=arguments, each=each):
                with pytest.raises(Exception) as caught:
                    each(*arguments)
                return caught.type, str(caught.value)

            assert error() == by_ops(error)


def test_weights_of_another_shape_are_not_read():
    """Their memory would be read beyond its end."""
    module = fastrnn.GRUCell(I, H)
    x, h = torch.randn(4, I), torch.randn(4, H)
    for weight in module.parameters():
        kept, weight.data = weight.data, weight.data[: H - 1].clone()
        with pytest.raises(RuntimeError, match=r"shape|rows|columns"):
            module(x, h)
        weight.data = kept
    module.weight_ih = nn.Parameter(torch.randn(3 * H, I).to_sparse())
    with pytest.raises(RuntimeError):
        module(x, h)


def test_gradients_are_not_lost(ran):
    module = fastrnn.GRUCell(I, H)
    x, h = torch.randn(4, I), torch.randn(4, H)
    with torch.enable_grad():
        assert module(x, h).requires_grad
        module.requires_grad_(False)
        assert module(x.requires_grad_(), h).requires_grad
        assert module(x.detach(), h.requires_grad_()).requires_grad
        assert True not in ran
        assert not module(x.detach(), h.detach()).requires_grad
    assert ran[-1]


def test_a_profiler_sees_the_op(ran):
    module = fastrnn.LSTMCell(I, H)
    with torch.profiler.profile() as profile:
        module(torch.randn(4, I))
    assert "fastrnn::step" in {event.key for event in profile.key_averages()}
    assert ran == [False]


def test_a_copy_on_write_input_keeps_its_values(ran):
    module, x = fastrnn.GRUCell(I, H), torch.randn(4, I)
    lazy = torch._lazy_clone(x)
    assert_same(module, lazy, None, ran)
    assert_equal([lazy], [x])


def test_results_are_ordinary_tensors():
    module, x = fastrnn.LSTM(I, H), torch.randn(1, 4, I)
    y, (h, c) = module(x)
    assert len({result.untyped_storage().data_ptr() for result in (y, h, c)}) == 3
    assert y.resize_(9, 9, 9).shape == (9, 9, 9)
    with torch.inference_mode():
        assert module(x)[0].is_inference()


def test_no_reference_is_lost():
    cell, x = fastrnn.GRUCell(I, H), torch.randn(4, I)
    objects = (True, False, x, *cell.parameters())
    before = [sys.getrefcount(each) for each in objects]
    for _ in range(1000):
        cell(x)
        cell(x[:, :1].expand(4, I), x[:, :1].expand(4, H))
    after = [sys.getrefcount(each) for each in objects]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 100


def test_threads_of_python():
    cell = fastrnn.freeze(fastrnn.LSTMCell(64, 64))
    inputs = [torch.randn(3, 64) for _ in range(8)]
    expected = [cell(x) for x in inputs]

    def run(i):
        return [cell(inputs[i]) for _ in range(300)]

    with ThreadPoolExecutor(8) as pool:
        for results, right in zip(pool.map(run, range(8)), expected, strict=True):
            for result in results:
                assert_equal(tree_leaves(result), tree_leaves(right))


def test_a_long_call_lets_other_threads_run(ran):
    layer, x = fastrnn.freeze(fastrnn.LSTM(64, 64)), torch.randn(2000, 1, 64)
    count, stop, threads = 0, False, torch.get_num_threads()

    def work():
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)  # gives the lock back, for which nobody asks

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    torch.set_num_threads(1)
    worker = Thread(target=work)
    worker.start()
    try:
        run = layer._packed_direct._run_from_zero
        y, h, c = (torch.empty(n, 1, 64) for n in (2000, 1, 1))
        progress = 0
        for _ in range(20):
            before = count
            assert run(x, layer._packed, y, h, c)
            progress += count - before
    finally:
        stop = True
        sys.setswitchinterval(interval)
        worker.join()
        torch.set_num_threads(threads)
    assert progress > 100


def test_torchs_modules_that_were_accelerated(ran):
    model = fastrnn.accelerate(nn.Sequential(nn.LSTM(I, H)))
    model(torch.randn(1, 4, I))
    assert ran == [True]


# --- with gradients -------------------------------------------------------------------------------


@pytest.fixture
def ran_with_gradients():
    """What calls with gradients answered: of each pass, whether it went this way."""
    answers = {"forward": [], "backward": []}

    def watched(name, real):
        def call(self, *args, **options):
            results = real(self, *args, **options)
            answers[name].append(results is not None)
            return results

        return call

    with (
        torch.enable_grad(),
        patch.object(direct.Scan, "forward", watched("forward", direct.Scan.forward)),
        patch.object(direct.Scan, "backward", watched("backward", direct.Scan.backward)),
    ):
        yield answers


def results_and_gradients(module, x, hx, wanted=None):
    """The results of a call, then the gradients of a weighted sum of those that are wanted."""
    results = tree_leaves(module(x, hx))
    wanted = range(len(results)) if wanted is None else wanted
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (results[i] * torch.randn(results[i].shape, generator=generator).to(results[i].dtype)).sum()
        for i in wanted
    )
    states = [] if hx is None else tree_leaves(hx)
    inputs = [t for t in (x, *states, *module.parameters()) if t.requires_grad]
    return results + list(torch.autograd.grad(total, inputs, allow_unused=True))


def leaves(name, x, hx, module):
    x = x.to(next(module.parameters()).dtype).requires_grad_()
    return x, tree_map(lambda state: state.to(x.dtype).requires_grad_(), hx)


@pytest.mark.parametrize("dtype", fastrnn.ops.DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"reverse": True}, {"recompute": True}], ids=str
)
@every_module
def test_gradients_have_the_bits_of_the_ops(name, options, dtype, ran_with_gradients):
    if name in CELLS and not {"bias"}.issuperset(options):
        pytest.skip("an option of layers")
    projections = [{}, {"proj_size": 7}] if name == "LSTM" else [{}]
    for projection in projections:
        module = getattr(fastrnn, name)(I, H, **options, **projection).to(dtype)
        for N in (1, 4, 33):
            for steps in (1, 7) if name in LAYERS else (None,):
                x = torch.randn(N, I) if steps is None else torch.randn(steps, N, I)
                first = () if steps is None else (1,)
                h = torch.randn(*first, N, module.__dict__.get("proj_size") or H)
                hx = (h, torch.randn(*first, N, H)) if "LSTM" in name else h
                x, hx = leaves(name, x, hx, module)
                for wanted in (None, [0]):
                    for seen in ran_with_gradients.values():
                        seen.clear()
                    run = partial(results_and_gradients, module, x, hx, wanted)
                    got = run()
                    assert ran_with_gradients == {"forward": [True], "backward": [True]}
                    assert_equal(got, by_ops(run))


@every_module
def test_only_the_gradients_that_are_needed(name, ran_with_gradients):
    module = getattr(fastrnn, name)(I, H)
    first, steps = ((1,), (3,)) if name in LAYERS else ((), ())
    x, hx = torch.randn(*steps, 4, I), states_of(name, *first, 4)
    for parameter in module.parameters():
        module.requires_grad_(False)
        parameter.requires_grad_()
        got = results_and_gradients(module, x, hx)
        assert_equal(got, by_ops(lambda: results_and_gradients(module, x, hx)))
    module.requires_grad_(False)
    x.requires_grad_()
    got = results_and_gradients(module, x, None)
    assert_equal(got, by_ops(lambda: results_and_gradients(module, x, None)))
    assert ran_with_gradients["backward"] == [True] * 5


@pytest.mark.parametrize("options", [{}, {"recompute": True}], ids=str)
@every_module
def test_derivatives_beyond_the_first(name, options, ran_with_gradients):
    """What a short call's node gives in a graph of its own, by the ops."""
    if options and name in CELLS:
        pytest.skip("an option of layers")
    module = getattr(fastrnn, name)(2, 3, dtype=torch.float64, **options)
    first, steps = ((1,), (3,)) if name in LAYERS else ((), ())
    x = torch.randn(*steps, 2, 2, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(*first, 2, 3, dtype=torch.float64, requires_grad=True)]
    states *= 2 if "LSTM" in name else 1
    weights = list(module.parameters())

    def results(x, *states):
        return tree_leaves(module(x, states if "LSTM" in name else states[0]))

    assert torch.autograd.gradgradcheck(results, (x, *states))
    assert set(ran_with_gradients["forward"]) == {True}
    penalty = torch.autograd.grad(results(x, *states)[0].sum(), x, create_graph=True)[0].square()
    got = torch.autograd.grad(penalty.sum(), weights[:2])
    with patch.object(direct, "_IS_AVAILABLE", False):
        penalty = torch.autograd.grad(results(x, *states)[0].sum(), x, create_graph=True)[0]
        assert_equal(got, torch.autograd.grad(penalty.square().sum(), weights[:2]))
    y = results(x, *states)[0]
    batch = torch.stack([torch.ones_like(y), torch.randn_like(y)])
    got = torch.autograd.grad(y, x, batch, is_grads_batched=True, retain_graph=True)[0]
    for one, grad in zip(got, batch, strict=True):
        expected = torch.autograd.grad(y, x, grad, retain_graph=True)[0]
        torch.testing.assert_close(one, expected)


@every_module
def test_tensors_of_any_strides_have_gradients(name, ran_with_gradients):
    module = getattr(fastrnn, name)(I, H)
    for weight in module.parameters():
        weight.data = weight.data.t().contiguous().t() if weight.dim() == 2 else weight.data
    steps, first = ((3,), (1,)) if name in LAYERS else ((), ())
    x = torch.randn(*steps, 4, 2 * I)[..., ::2]
    hx = tree_map(lambda state: state.mT.contiguous().mT, states_of(name, *first, 4))
    x, hx = x.requires_grad_(), tree_map(torch.Tensor.requires_grad_, hx)

    def run():
        y = tree_leaves(module(x, hx))[0]
        grad = torch.randn(y.size(-1), generator=torch.Generator().manual_seed(0)).expand_as(y)
        inputs = [x, *tree_leaves(hx), *module.parameters()]
        return [y, *torch.autograd.grad(y, inputs, grad)]

    got = run()
    assert ran_with_gradients == {"forward": [True], "backward": [True]}
    assert_equal(got, by_ops(run))


def test_a_gradient_that_fits_no_memory_takes_the_op(ran_with_gradients):
    module, x = fastrnn.GRUCell(I, H), torch.randn(4, I)
    h = module(x)
    expected = torch.autograd.grad(h, module.weight_ih, torch.ones(4, H), retain_graph=True)
    negative = torch._neg_view(-torch.ones(4, H))
    got = torch.autograd.grad(h, module.weight_ih, negative)
    assert_equal(got, expected)
    assert ran_with_gradients["backward"] == [True, False]


def test_what_changes_between_the_passes_is_noticed():
    module, x = fastrnn.GRUCell(I, H), torch.randn(4, I)
    with torch.enable_grad():
        h = module(x, torch.randn(4, H))
        h.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            h.sum().backward()


# The first has what built-in cells have; the others have an extra input, no recurrent product, and states that begin
# elsewhere.
users_cells = pytest.mark.parametrize("cell", ["leaky_rnn", "cfc", "minlstm", "slstm"])


@pytest.mark.parametrize("kind", ["Recurrent", "RecurrentCell"])
@users_cells
def test_users_cells_go_this_way(cell, kind, ran_with_gradients):
    cell = getattr(zoo, cell)
    module = getattr(fastrnn, kind)(cell, I, H)
    steps = (7,) if kind == "Recurrent" else ()
    x = torch.randn(*steps, 4, I, requires_grad=True)
    extra = {name: torch.rand(*steps, 4, 1, requires_grad=True) for name in cell.inputs}
    called = partial(module, extra=extra) if extra else module

    def run():
        results = tree_leaves(called(x))
        total = sum(result.sin().sum() for result in results)
        inputs = [x, *extra.values(), *module.parameters()]
        return [*results, *torch.autograd.grad(total, inputs)]

    got = run()
    assert ran_with_gradients == {"forward": [True], "backward": [True]}
    assert_equal(got, by_ops(run))
    with torch.no_grad():
        results = tree_leaves(called(x))
    assert_equal(results, got[: len(results)])


@pytest.mark.parametrize("kind", ["Recurrent", "RecurrentCell"])
@users_cells
def test_second_derivatives_of_users_cells(cell, kind, ran_with_gradients):
    cell = getattr(zoo, cell)
    module = getattr(fastrnn, kind)(cell, 2, 3, dtype=torch.float64)
    steps = (3,) if kind == "Recurrent" else ()
    x = torch.randn(*steps, 2, 2, dtype=torch.float64, requires_grad=True)
    extra = [torch.rand(*steps, 2, 1, dtype=torch.float64, requires_grad=True)] * len(cell.inputs)

    def results(x, *extra):
        given = {"extra": dict(zip(cell.inputs, extra, strict=True))} if extra else {}
        return tree_leaves(module(x, **given))

    assert torch.autograd.gradgradcheck(results, (x, *extra))
    assert set(ran_with_gradients["forward"]) == {True}
