"""What holds of every layer, with the zoo's cells: kernels beside the loop of torch operations, transforms, layouts, bits."""

from __future__ import annotations

import contextlib

import pytest
import torch
from common import assert_all_close, assert_equal, gradients
from pairs import flatten
from torch.func import grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zoo_layers import Call, compiled_cells, leaves, make_layer, step_by_step

import fastrnn

T, N, I, H = 5, 4, 3, 6
SMALL = (2, 2)


def with_gradients(call, tensors):
    inputs = leaves(tensors)
    results = call(*inputs)
    return [*results, *gradients(results, inputs)]


def loss_of(call):
    """A function that makes a number of all results, of none linearly."""

    def loss(*tensors):
        return sum((result.sin() * (1 + i)).sum() for i, result in enumerate(call(*tensors)))

    return loss


@compiled_cells
def test_all_derivatives_numerically(name):
    """First and second derivatives in forward and reverse mode, for every input and result."""
    call = Call(make_layer(name, *SMALL), steps=2, batch=2)
    inputs = leaves(call.tensors)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)


def second(call, tensors):
    inputs = leaves(tensors)
    first = torch.autograd.grad(
        loss_of(call)(*inputs), inputs, create_graph=True, materialize_grads=True
    )
    return [*first, *gradients([sum(each.square().sum() for each in first)], inputs)]


def directional(call, tensors):
    return [*jvp(loss_of(call), tuple(tensors), tuple(tensor.flip(0) for tensor in tensors))]


def per_sample(call, tensors):
    """Gradients of every tensor, for three inputs mapped over."""
    x = torch.stack([tensors[0] * scale for scale in (1, 2, 3)])
    dims = (0, *(None,) * (len(tensors) - 1))
    gradient = grad(loss_of(call), argnums=tuple(range(len(tensors))))
    return [*vmap(gradient, in_dims=dims)(x, *tensors[1:])]


@pytest.mark.parametrize("transform", [with_gradients, second, directional, per_sample])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@compiled_cells
def test_kernels_are_the_loop(name, options, transform):
    call = Call(make_layer(name, I, H, **options), T, N)
    with step_by_step():
        expected = transform(call, call.tensors)
    assert_all_close(transform(call, call.tensors), expected, torch.float64)
    assert torch.ops.fastrnn.has_cell(call.layer.cell.op_name, torch.float64)


# The others have vectors, inputs beside x, several states or gates in one product alone.
IN_LANES = {
    "clipped_gru",
    "coupled_lstm",
    "ctrnn",
    "janet",
    "leaky_rnn",
    "ligru",
    "mgu",
    "nas",
    "ugrnn",
}


@compiled_cells
def test_few_units_of_many_samples_are_the_loop(name):
    call = Call(make_layer(name, 3, 2), T, 37)
    with step_by_step():
        expected = with_gradients(call, call.tensors)
    assert_all_close(with_gradients(call, call.tensors), expected, torch.float64)
    x, states, extra, _ = call.apart(call.tensors)
    explanation = fastrnn.explain(call.layer, x, states if states[1:] else states[0], extra=extra)
    assert ("samples in lanes" in str(explanation)) == (name in IN_LANES)


@pytest.mark.parametrize("run", [contextlib.nullcontext, step_by_step], ids=["kernels", "loop"])
@compiled_cells
def test_a_sample_runs_its_own_length(name, run):
    call, lengths = Call(make_layer(name, I, H), T, N), torch.tensor([T, 1, 3, 2])
    with run():
        output, *finals = call(*call.tensors, lengths=lengths)
        for n, length in enumerate(lengths.tolist()):
            sample = slice(n, n + 1)
            own, *own_finals = call(*call.part(slice(length), sample))
            assert_all_close([output[:length, sample]], [own], torch.float64)
            assert_all_close([final[:, sample] for final in finals], own_finals, torch.float64)
            assert not output[length:, n].any()


@pytest.mark.parametrize("run", [contextlib.nullcontext, step_by_step], ids=["kernels", "loop"])
@compiled_cells
def test_a_packed_batch_is_a_padded_one(name, run):
    call, lengths = Call(make_layer(name, I, H), T, N), torch.tensor([T, 1, 3, 2])
    x, states, extra, _ = call.apart(call.tensors)
    hx = states if len(states) > 1 else states[0]
    packed = {
        key: pack_padded_sequence(value, lengths, enforce_sorted=False)
        for key, value in {"x": x, **extra}.items()
    }
    with run(), torch.no_grad():
        rows, finals = call.layer(packed.pop("x"), hx, extra=packed)
        expected = call(*call.tensors, lengths=lengths)
    results = [pad_packed_sequence(rows)[0], *flatten(finals)]
    if run is step_by_step:  # torch's products of fewer rows may sum in another order
        assert_all_close(results, expected, torch.float64)
    else:
        assert_equal(results, expected)


@pytest.mark.parametrize("run", [contextlib.nullcontext, step_by_step], ids=["kernels", "loop"])
@compiled_cells
def test_a_reset_starts_anew(name, run):
    call, reset = Call(make_layer(name, I, H), T, N), torch.zeros(T, N, dtype=torch.bool)
    reset[2, 1:] = True
    with run():
        output = call(*call.tensors, reset=reset)[0]
        x, _, extra, _ = call.apart(call.part(slice(2, None), slice(1, None)))
        segment = call.layer(x, extra=extra)[0]
        whole = call(*call.tensors)[0]
    assert_all_close([output[2:, 1:], output[:, :1]], [segment, whole[:, :1]], torch.float64)
    assert (output[2:, 1:] - whole[2:, 1:]).abs().max() > 1e-3


@compiled_cells
def test_graphs_hold_the_whole_layer(name):
    """torch.compile without a break in the graph, and torch.export."""
    layer = make_layer(name, I, H)
    call = Call(layer, T, N)
    x, _, extra, _ = call.apart(call.tensors)
    expected = layer(x, extra=extra)[0]
    torch._dynamo.reset()  # of what other layers left, it takes eight and no more
    actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, extra=extra)[0]
    exported = torch.export.export(layer, (x,), {"extra": extra}).module()
    assert_equal([actual, exported(x, extra=extra)[0]], [expected, expected])
    weights = [*layer.parameters()]
    assert_all_close(gradients([actual], weights), gradients([expected], weights), torch.float64)


@compiled_cells
def test_bits_depend_on_no_number_of_threads(name, two_threads):
    call = Call(make_layer(name, 8, 64, dtype=torch.float32), 9, 37)
    on_two = with_gradients(call, call.tensors)
    torch.set_num_threads(1)
    assert_equal(with_gradients(call, call.tensors), on_two)


@compiled_cells
def test_bits_of_a_sample_depend_on_no_other(name):
    call = Call(make_layer(name, 8, 64, dtype=torch.float32), 9, 37)
    sample = slice(20, 21)
    batch, own = leaves(call.tensors), leaves(call.part(slice(None), sample))
    results, own_results = call(*batch), call(*own)
    assert_equal(own_results, [result[:, sample] for result in results])
    slope, own_slope = (
        torch.autograd.grad(sum(each.square().sum() for each in of), tensors[0])[0]
        for of, tensors in ((results, batch), (own_results, own))
    )
    assert_equal([own_slope], [slope[:, sample]])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(pytest.param(t, marks=pytest.mark.slow) for t in (torch.bfloat16, torch.float16)),
    ],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
@compiled_cells
def test_the_error_is_that_of_the_type(name, dtype):
    exact, call = (Call(make_layer(name, I, H, dtype=t), 20, N) for t in (torch.float64, dtype))
    with step_by_step():
        expected = with_gradients(exact, [tensor.double() for tensor in call.tensors])
    assert_all_close(with_gradients(call, call.tensors), expected, dtype)
