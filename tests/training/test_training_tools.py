"""The layers inside torch's training tools, beside plain use or torch.nn: outputs, gradients, trained parameters."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from common import OurMasks, assert_all_close, gradients
from pairs import LAYERS, H, I, N, T, flatten, make_inputs, make_pair, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

import fastrnn

DEEP = {"num_layers": 2, "bidirectional": True}
DROPOUT = DEEP | {"dropout": 0.4}


def assert_identical(actual, expected):
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {index}: {(a - b).abs().max()}"


def backward(module, call, x, hx):
    """Results of a call on (x, *states), and the gradients that backward() accumulates."""
    module.zero_grad()
    leaves = [t.detach().clone().requires_grad_() for t in flatten([x, hx])]
    torch.manual_seed(3)
    results = flatten(call(*leaves))
    form = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=form, dtype=y.dtype) for y in results]
    torch.autograd.backward(results, cotangents)
    return [y.detach() for y in results] + [t.grad for t in [*leaves, *module.parameters()]]


def flat_call(module):
    """The module as a function of flat tensors, which torch.utils.checkpoint needs to see gradients."""

    def call(x, *states):
        return tuple(flatten(module(x, states if len(states) == 2 else states[0])))

    return call


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoint(name, use_reentrant, recompute):
    """The second forward draws the first one's dropout masks, and gives its bits."""
    fast = make_pair(name, DROPOUT)[1]
    fast.recompute = recompute
    x, hx = make_inputs(name, DROPOUT)
    call, calls = flat_call(fast), []
    expected = backward(fast, call, x, hx)
    fast.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    actual = backward(
        fast, lambda *tensors: checkpoint(call, *tensors, use_reentrant=use_reentrant), x, hx
    )
    assert calls == [not use_reentrant, True]
    assert_identical(actual, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_through_a_checkpoint(name):
    fast = make_pair(name, DROPOUT)[1]
    x, hx = make_inputs(name, DROPOUT)
    call = flat_call(fast)
    second_derivatives = []
    for wrapped in (call, lambda *tensors: checkpoint(call, *tensors, use_reentrant=False)):
        leaves = [t.clone().requires_grad_() for t in flatten([x, hx])]
        torch.manual_seed(3)
        y = wrapped(*leaves)[0]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        second_derivatives.append(list(torch.autograd.grad(penalty, [*leaves, *fast.parameters()])))
    assert all(gradient.any() for gradient in second_derivatives[0][:2])
    assert_identical(second_derivatives[1], second_derivatives[0])


@pytest.mark.parametrize("name", LAYERS)
def test_checkpoint_keeps_autocast(name):
    """The second forward computes in the first one's dtype, although backward runs outside autocast."""
    fast = make_pair(name, DROPOUT, torch.float32)[1]
    x, hx = make_inputs(name, DROPOUT, torch.float32)
    call = flat_call(fast)
    runs = []
    for wrapped in (call, lambda *tensors: checkpoint(call, *tensors, use_reentrant=False)):

        def under_autocast(*tensors, wrapped=wrapped):
            with torch.autocast("cpu", torch.bfloat16):
                return wrapped(*tensors)

        runs.append(backward(fast, under_autocast, x, hx))
    assert runs[0][0].dtype == torch.bfloat16
    assert_identical(*runs)


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("name", LAYERS)
def test_saved_tensors_on_disk(name, recompute, tmp_path):
    """What is saved goes through the hooks, each tensor once in and once out, and nothing else is kept."""
    fast = make_pair(name, DROPOUT)[1]
    fast.recompute = recompute
    x, hx = make_inputs(name, DROPOUT)
    call = flat_call(fast)
    expected = backward(fast, call, x, hx)
    saved, loaded = [], []

    def pack(tensor):
        path = tmp_path / f"{len(saved)}.pt"
        torch.save(tensor.detach().clone(), path)
        saved.append(path)
        return path

    def unpack(path):
        loaded.append(path)
        return torch.load(path)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        actual = backward(fast, call, x, hx)
    assert_identical(actual, expected)
    assert saved
    assert sorted(loaded) == sorted(saved)

    # The gradients come from what the hooks return.
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, torch.zeros_like):
        emptied = backward(fast, call, x, hx)
    assert_identical(emptied[:2], expected[:2])
    assert not any(torch.equal(a, b) for a, b in zip(emptied[-8:-2], expected[-8:-2], strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_save_on_cpu(name):
    fast = make_pair(name, DROPOUT)[1]
    x, hx = make_inputs(name, DROPOUT)
    call = flat_call(fast)
    expected = backward(fast, call, x, hx)
    with torch.autograd.graph.save_on_cpu():
        actual = backward(fast, call, x, hx)
    assert_identical(actual, expected)


class DropConnect(nn.Module):
    """Drops weights instead of activations (Merity et al., Regularizing and optimizing LSTM language models)."""

    def forward(self, weight):
        return nn.functional.dropout(weight, 0.5, self.training)


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "DropConnect": lambda module, weight: parametrize.register_parametrization(
        module, weight, DropConnect()
    ),
}


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_parametrizations(name, parametrization):
    """Results are those of torch.nn's module with the weights that the parametrization gives; the gradient is chained by hand."""
    reference, fast = make_pair(name, DEEP)
    x, hx = make_inputs(name, DEEP)
    weights = ["weight_hh_l0", "weight_ih_l1_reverse"]
    for weight in weights:
        PARAMETRIZATIONS[parametrization](fast, weight)
    computed = []
    for weight in weights:
        fast.parametrizations[weight].register_forward_hook(lambda *_: computed.append(1))

    # A power iteration and a dropout mask are drawn once a call: this copy draws those of the call below.
    clone = copy.deepcopy(fast)
    torch.manual_seed(3)
    effective = {weight: getattr(clone, weight) for weight in weights}
    with torch.no_grad():
        for weight in weights:
            getattr(reference, weight).copy_(effective[weight])
    computed.clear()

    results = backward(fast, flat_call(fast), x, hx)
    assert len(computed) == len(weights)
    expected = backward(reference, flat_call(reference), x, hx)
    leaves = len(flatten([x, hx])) * 2
    assert_all_close(results[:leaves], expected[:leaves], torch.float64)
    for weight in weights:
        effective[weight].backward(getattr(reference, weight).grad)
    chained = dict(clone.named_parameters())
    for key, parameter in fast.named_parameters():
        wanted = (
            chained[key].grad
            if key.startswith("parametrizations")
            else getattr(reference, key).grad
        )
        assert_all_close([parameter.grad], [wanted], torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_parametrizations_train_and_are_removed(name):
    """The cached weight of a whole step is the layer's; after removal it is an ordinary parameter of the same value."""
    fast = make_pair(name)[1]
    x = make_inputs(name, {})[0]
    parametrizations.weight_norm(fast, "weight_hh_l0")
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    before = fast.weight_hh_l0.detach().clone()
    with parametrize.cached():
        assert fast.weight_hh_l0 is fast.weight_hh_l0
        fast(x)[0].square().sum().backward()
    optimizer.step()
    assert not torch.equal(fast.weight_hh_l0, before)
    expected = fast(x)[0]
    parametrize.remove_parametrizations(fast, "weight_hh_l0")
    assert isinstance(fast.weight_hh_l0, nn.Parameter)
    assert torch.equal(fast(x)[0], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_tied_modules(name):
    """A gradient of shared weights is the sum over their uses; they stay shared in a copy and after a step."""
    torch.manual_seed(0)
    kind = getattr(fastrnn, name)
    first, second = (kind(H, H, dtype=torch.float64) for _ in range(2))
    x = torch.randn(T, N, H, dtype=torch.float64)
    separate = [getattr(nn, name)(H, H, dtype=torch.float64) for _ in range(2)]
    for layer in separate:
        layer.load_state_dict(first.state_dict())
    for key, parameter in first.named_parameters():
        setattr(second, key, parameter)
    tied = nn.ModuleList([first, second])
    assert len(list(tied.parameters())) == 4

    y, expected = first(x)[0], separate[0](x)[0]
    y, expected = second(y)[0], separate[1](expected)[0]
    assert_all_close([y], [expected], torch.float64)
    tied_gradients = gradients([y], list(tied.parameters()))
    apart = gradients([expected], [p for layer in separate for p in layer.parameters()])
    assert_all_close(
        tied_gradients, [a + b for a, b in zip(apart[:4], apart[4:], strict=True)], torch.float64
    )

    clone = copy.deepcopy(tied)
    for model in (tied, clone):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[1](model[0](x)[0])[0].sum().backward()
        optimizer.step()
        assert model[0].weight_hh_l0 is model[1].weight_hh_l0
    assert_identical(clone.parameters(), tied.parameters())


def train(module, x, steps, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        module(x)[0].square().sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_copies_train_on(name, copier):
    """A copy of a module and its optimizer, in the midst of training, goes the same way to the bit, and alone."""
    reference, fast = make_pair(name, DEEP)
    x = make_inputs(name, DEEP)[0]
    optimizer = train(fast, x, 3)
    clone, clone_optimizer = copier((fast, optimizer))
    before = [p.detach().clone() for p in clone.parameters()]
    train(fast, x, 3, optimizer)
    assert_identical(clone.parameters(), before)
    train(clone, x, 3, clone_optimizer)
    assert_identical(clone.parameters(), fast.parameters())
    train(reference, x, 6)
    assert_all_close(list(clone.parameters()), list(reference.parameters()), torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_functional_call(name):
    """Values and gradients of given parameters, some or all; the module's own are left alone."""
    reference, fast = make_pair(name, DEEP)
    x, hx = make_inputs(name, DEEP)
    torch.manual_seed(5)
    reference.reset_parameters()
    some = ["weight_hh_l0", "bias_ih_l1_reverse"]
    for keys in (some, list(reference.state_dict())):
        given = {
            key: reference.get_parameter(key).detach().clone().requires_grad_() for key in keys
        }
        mixed = copy.deepcopy(reference)
        mixed.load_state_dict(fast.state_dict() | {key: t.detach() for key, t in given.items()})
        results = flatten(torch.func.functional_call(fast, given, (x, hx)))
        expected = flatten(mixed(x, hx))
        actual_gradients = gradients(results, [*given.values(), fast.weight_ih_l0])
        expected_gradients = gradients(
            expected, [*map(mixed.get_parameter, given), mixed.weight_ih_l0]
        )
        if keys is not some:
            assert not actual_gradients.pop().any()
            expected_gradients.pop()
        assert_all_close(results + actual_gradients, expected + expected_gradients, torch.float64)


HALF_TYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("name", [*LAYERS, "RNNCell", "GRUCell", "LSTMCell"])
def test_autocast(name, dtype):
    """One rule: input, states and weights are cast, results have the autocast dtype, gradients arrive in float32."""
    fast = make_pair(name, dtype=torch.float32)[1]
    if name.endswith("Cell"):
        x, h, c = (torch.randn(N, size) for size in (I, H, H))
        hx = (h, c) if name == "LSTMCell" else h
    else:
        x, hx = make_inputs(name, {}, torch.float32)

    def call(x, *states):
        with torch.autocast("cpu", dtype):
            return flat_call(fast)(x, *states)

    results = backward(fast, call, x, hx)
    inputs = len(flatten([x, hx])) + len(list(fast.parameters()))
    assert [t.dtype for t in results] == [dtype] * (len(results) - inputs) + [
        torch.float32
    ] * inputs
    exact = make_pair(name, dtype=torch.float32)[0].double()
    # The form whose gradient is taken is rounded as it is in the results' dtype.
    expected = backward_of(exact, x, hx, dtype)
    assert_all_close(results, expected, dtype)
    assert_all_close(backward_in_autocast(fast, x, hx, dtype), results, torch.float64)


def backward_of(module, x, hx, dtype):
    leaves = [t.detach().double().requires_grad_() for t in flatten([x, hx])]
    results = flatten(flat_call(module)(*leaves))
    form = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=form, dtype=dtype).double() for y in results]
    inputs = [*leaves, *module.parameters()]
    return results + list(torch.autograd.grad(results, inputs, cotangents))


def backward_in_autocast(module, x, hx, dtype):
    """The same with backward() called inside the autocast region."""
    with torch.autocast("cpu", dtype):
        return backward(module, flat_call(module), x, hx)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_leaves_float64_alone(name, dtype):
    fast = make_pair(name, DEEP)[1]
    x, hx = make_inputs(name, DEEP)
    expected = run(fast, x, hx)
    with torch.autocast("cpu", dtype):
        actual = run(fast, x, hx)
        with torch.autocast("cpu", enabled=False):
            single = run(fast.float(), x.float(), tree_float(hx))
    assert all(t.dtype == torch.float64 for t in actual)
    assert_identical(actual, expected)
    assert all(t.dtype == torch.float32 for t in single)
    assert_identical(single, run(fast, x.float(), tree_float(hx)))


def tree_float(hx):
    return tuple(t.float() for t in hx) if isinstance(hx, tuple) else hx.float()


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("under_autocast", [True, False], ids=["autocast", "weights"])
def test_cell_state_is_float32(under_autocast, dtype):
    """An integrator of 4096 steps: c grows by i g = 1 / 512 each, less than half a unit of a half type's last place
    once c is large enough, so a c kept in that type stands still there."""
    steps, increment = 4096, 2.0**-9
    fast = fastrnn.LSTM(1, 1)
    with torch.no_grad():
        for weight in fast.parameters():
            weight.zero_()
        # The order is i, f, g, o; sigmoid(30) is 1 in float32.
        fast.bias_ih_l0.copy_(torch.tensor([30.0, 30.0, math.atanh(increment), 0.0]))
    if not under_autocast:
        fast = fast.to(dtype)
    x = torch.zeros(steps, 1, 1, dtype=fast.weight_ih_l0.dtype)
    with torch.autocast("cpu", dtype, enabled=under_autocast):
        y, (_, c_n) = fast(x)
    assert c_n.dtype == y.dtype == dtype
    stalled = torch.zeros((), dtype=dtype)
    for _ in range(steps):
        stalled += increment
    assert stalled <= 4 < 8 * (1 - torch.finfo(dtype).eps)
    assert c_n.item() == pytest.approx(8, rel=torch.finfo(dtype).eps)
    # On the way h_t is tanh(c_t) / 2.
    c_t = torch.arange(1, steps + 1) * increment
    torch.testing.assert_close(y.flatten().float(), c_t.tanh() / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_accumulation(name):
    """Parts of a batch add up to the gradient of the whole; a second backward doubles it, to the bit."""
    reference, fast = make_pair(name, DEEP)
    x = make_inputs(name, DEEP)[0]
    for part in x.split([1, 3], dim=1):
        fast(part)[0].square().sum().backward()
    reference(x)[0].square().sum().backward()
    summed = [p.grad.clone() for p in fast.parameters()]
    assert_all_close(summed, [p.grad for p in reference.parameters()], torch.float64)
    once = [p.grad for p in fast.parameters()]
    fast.zero_grad()
    for _ in range(2):
        fast(x)[0].square().sum().backward()
    assert_identical(once, summed)  # later calls do not write to it
    twice = [p.grad.clone() for p in fast.parameters()]
    fast.zero_grad()
    fast(x)[0].square().sum().backward()
    assert_identical(twice, [2 * p.grad for p in fast.parameters()])


FROZEN = {
    "first layer": lambda key: "_l0" in key,
    "input weights": lambda key: "weight_ih" in key,
    "recurrent weights": lambda key: "weight_hh" in key,
    "biases": lambda key: "bias" in key,
    "all but one": lambda key: key != "bias_hh_l1",
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("name", LAYERS)
def test_frozen_weights_train_as_torchs(name, frozen, training):
    """They do so in eval mode, too, where dropout is off and backward is not."""
    pair = make_pair(name, DROPOUT)
    x = make_inputs(name, DROPOUT)[0]
    for module in pair:
        module.train(training)
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](key))
        torch.manual_seed(3)
        with OurMasks(**DROPOUT):
            train(module, x, 3)
    for (key, a), b in zip(pair[1].named_parameters(), pair[0].parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == FROZEN[frozen](key)
    assert_all_close(list(pair[1].parameters()), list(pair[0].parameters()), torch.float64)
    initial = make_pair(name, DROPOUT)[1]
    for (key, a), b in zip(pair[1].named_parameters(), initial.parameters(), strict=True):
        assert torch.equal(a, b) == FROZEN[frozen](key)


@pytest.mark.parametrize(
    "average",
    [None, swa_utils.get_ema_multi_avg_fn(0.8)],
    ids=["SWA", "EMA"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_averaged_model(name, average):
    averages = []
    for module in make_pair(name, DEEP):
        x, hx = make_inputs(name, DEEP)
        averaged = swa_utils.AveragedModel(module, multi_avg_fn=average)
        optimizer = None
        for _ in range(4):
            optimizer = train(module, x, 1, optimizer)
            averaged.update_parameters(module)
        averages.append(flatten(averaged(x, hx)) + list(averaged.module.parameters()))
        assert not torch.equal(averaged.module.weight_hh_l0, module.weight_hh_l0)
    assert_all_close(averages[1], averages[0], torch.float64)
