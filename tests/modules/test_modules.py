"""The modules against torch.nn's: numbers, gradients, parameters and everything a module carries."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
import sys
import typing
import warnings

import numpy as np
import pytest
import torch
from common import DEVICE, TOLERANCE, OurMasks, assert_all_close, assert_equal, gradients
from pairs import LAYERS, OURS, H, I, N, T, flatten, make_inputs, make_pair, run
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import data, direct, eager, functional, library, onnx, ops

CELLS = ("RNNCell", "GRUCell", "LSTMCell")

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "everything": {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.4},
}
CASES = [(name, options) for name in LAYERS for options in OPTIONS.values()]
CASES += [("RNN", {"nonlinearity": "relu", **OPTIONS["everything"]})]
CASES += [("LSTM", {"proj_size": 4, **options}) for options in OPTIONS.values()]
CASE_IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in CASES]


def known_dropout(options):
    """Leave dropout out on a GPU: what cuDNN drops cannot be foreseen."""
    return options if DEVICE == "cpu" else {k: v for k, v in options.items() if k != "dropout"}


@OURS
@pytest.mark.gpu
@pytest.mark.parametrize("with_state", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=CASE_IDS)
def test_matches_torch(name, options, with_state, ours):
    """Dropout gives the same numbers, too, once torch.nn's module drops the same elements."""
    options = known_dropout(options)
    reference, fast = make_pair(name, options, ours=ours)
    x, hx = make_inputs(name, options)
    hx = hx if with_state else None
    with OurMasks(**options):
        expected = run(reference, x, hx)
    assert_all_close(run(fast, x, hx), expected, torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_dtype(name, dtype, batched):
    options = {"num_layers": 2, "bidirectional": True}
    reference, fast = make_pair(name, options, dtype)
    x, hx = make_inputs(name, options, dtype, batched)
    exact = run(reference.double(), x.double(), tree_double(hx))
    actual = run(fast, x, hx)
    assert all(t.dtype == dtype for t in actual)
    assert_all_close(actual, exact, dtype)


def tree_double(hx):
    return tuple(t.double() for t in hx) if isinstance(hx, tuple) else hx.double()


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), CASES, ids=CASE_IDS)
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
def test_packed_sequence(name, options, enforce_sorted):
    options = known_dropout(options)
    reference, fast = make_pair(name, options)
    x, hx = make_inputs(name, options | {"batch_first": True})
    lengths = torch.tensor([7, 5, 2, 2] if enforce_sorted else [2, 7, 1, 5])
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=enforce_sorted)
    for state in (None, hx):
        with OurMasks(**options):
            expected = run(reference, packed, state)
        assert_all_close(run(fast, packed, state), expected, torch.float64)
    assert isinstance(fast(packed)[0], nn.utils.rnn.PackedSequence)
    assert torch.equal(fast(packed)[0].batch_sizes, packed.batch_sizes)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), CASES, ids=CASE_IDS)
def test_lengths_are_packing(name, options):
    """lengths= on a padded batch, in any order, is torch.nn's result on the packed one; the padding does not matter."""
    options = {key: value for key, value in options.items() if key != "dropout"}
    reference, fast = make_pair(name, options)
    x, hx = make_inputs(name, options)
    batch_first = options.get("batch_first", False)
    lengths = torch.tensor([3, 7, 1, 4])
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=batch_first, enforce_sorted=False)
    output, states = reference(packed, hx)
    expected = [
        pad_packed_sequence(output, batch_first=batch_first, total_length=T)[0],
        *flatten(states),
    ]
    time_first = x.transpose(0, 1) if batch_first else x
    padding = torch.arange(T)[:, None] >= lengths
    time_first[padding] = float("nan")
    actual = flatten(fast(x, hx, lengths=lengths))
    assert_all_close(actual, expected, torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_length_zero(name):
    """A sample without steps keeps its initial state and outputs zeros, in both directions."""
    fast = make_pair(name, {"bidirectional": True})[1]
    x, hx = make_inputs(name, {"bidirectional": True})
    output, states = fast(x, hx, lengths=torch.tensor([7, 0, 3, 0]))
    assert output[:, [1, 3]].eq(0).all()
    for final, initial in zip(flatten(states), flatten(hx), strict=True):
        assert torch.equal(final[:, [1, 3]], initial[:, [1, 3]])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(0, N, I), (T, 0, I)], ids=["T = 0", "N = 0"])
def test_empty_input(name, shape):
    fast = make_pair(name, {"num_layers": 2})[1]
    output, states = fast(torch.zeros(shape, dtype=torch.float64))
    assert output.shape == (*shape[:2], H)
    for state in flatten(states):
        assert torch.equal(state, torch.zeros(2, shape[1], H, dtype=torch.float64))


@pytest.mark.parametrize("name", LAYERS)
def test_layout_of_the_input_does_not_matter(name):
    fast = make_pair(name)[1]
    x, hx = make_inputs(name, {})
    expected = run(fast, x, hx)
    odd = torch.empty(I, N, 2 * T, dtype=x.dtype)[:, :, ::2].permute(2, 1, 0).copy_(x)
    for a, b in zip(flatten(fast(odd, hx)), expected, strict=False):
        assert torch.equal(a, b)
    broadcast = flatten(fast(x, tuple(t[:, :1].expand_as(t) for t in hx) if name == "LSTM" else hx[:, :1].expand_as(hx)))  # fmt: skip
    copied = flatten(fast(x, tuple(t[:, :1].repeat(1, N, 1) for t in hx) if name == "LSTM" else hx[:, :1].repeat(1, N, 1)))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(broadcast, copied, strict=True))


@OURS
@pytest.mark.parametrize(("name", "options"), CASES, ids=CASE_IDS)
def test_same_initial_values_and_names(name, options, ours):
    reference, fast = make_pair(name, options, ours=ours)
    expected, actual = reference.state_dict(), fast.state_dict()
    assert list(expected) == list(actual)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert repr(fast) == repr(reference)
    shapes = [[w.shape for w in weights] for weights in fast.all_weights]
    assert shapes == [[w.shape for w in weights] for weights in reference.all_weights]
    assert fast.flatten_parameters() is None


@OURS
@pytest.mark.parametrize(("name", "options"), CASES, ids=CASE_IDS)
def test_state_dicts_load_both_ways(name, options, ours):
    options = {key: value for key, value in options.items() if key != "dropout"}
    reference, fast = make_pair(name, options, ours=ours)
    x, hx = make_inputs(name, options)
    for module in (reference, fast):
        module.reset_parameters()
    assert not torch.equal(reference.weight_ih_l0, fast.weight_ih_l0)
    fast.load_state_dict(reference.state_dict())
    assert_all_close(run(fast, x, hx), run(reference, x, hx), torch.float64)
    fast.reset_parameters()
    reference.load_state_dict(fast.state_dict())
    assert_all_close(run(fast, x, hx), run(reference, x, hx), torch.float64)


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@OURS
@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_copies(name, copier, ours):
    fast = make_pair(name, ours=ours)[1]
    x = torch.randn(3, I, dtype=torch.float64)
    clone = copier(fast)
    assert all(torch.equal(a, b) for a, b in zip(flatten(clone(x)), flatten(fast(x)), strict=True))
    with torch.no_grad():
        next(clone.parameters()).zero_()
    assert not next(fast.parameters()).eq(0).any()


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_signatures_are_torchs(name):
    """Every documented argument of torch.nn's constructor and forward, under its name."""
    documented = {
        "RNN": "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional",
        "GRU": "input_size hidden_size num_layers bias batch_first dropout bidirectional",
        "LSTM": "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size",
        "RNNCell": "input_size hidden_size bias nonlinearity",
        "GRUCell": "input_size hidden_size bias",
        "LSTMCell": "input_size hidden_size bias",
    }[name].split()
    kind = getattr(fastrnn, name)
    arguments = list(inspect.signature(kind).parameters)
    assert arguments[: len(documented)] == documented
    assert {"device", "dtype"} <= set(arguments)
    expected = list(inspect.signature(getattr(nn, name).forward).parameters)
    assert list(inspect.signature(kind.forward).parameters)[: len(expected)] == expected


PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (fastrnn, functional, data, onnx)
    for name in module.__all__
    if callable(getattr(module, name))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_help_names_every_argument(name):
    """An entry "name: ..." of the docstring is meant, alone or with others before the colon."""
    thing = PUBLIC[name]
    documented = [thing]
    if isinstance(thing, type) and issubclass(thing, nn.Module):
        documented.append(thing.forward)
    text = "\n".join(inspect.getdoc(each) for each in documented)
    entries = re.findall(r"^ +(\w+(?:, \w+)*): ", text, re.MULTILINE)
    named = {word for entry in entries for word in entry.split(", ")}
    arguments = {word for each in documented for word in inspect.signature(each).parameters}
    assert not arguments - {"self"} - named


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads")
@pytest.mark.parametrize("name", LAYERS)
def test_forward_has_types(name):
    """Its results have them, too: two, or with all states three."""
    overloads = typing.get_overloads(getattr(fastrnn, name).forward)
    results = [typing.get_args(typing.get_type_hints(each)["return"]) for each in overloads]
    assert [len(parts) for parts in results] == [2, 3]
    assert results[1][2] is fastrnn.AllStates


@OURS
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, options, dtype, batched, ours):
    reference, fast = make_pair(name, options, dtype, ours=ours)
    assert repr(fast) == repr(reference)
    assert list(fast.state_dict()) == list(reference.state_dict())
    x, h, c = (torch.randn((N, size) if batched else (size,)).to(dtype) for size in (I, H, H))
    for hx in (None, (h, c) if name == "LSTMCell" else h):
        exact = run(reference.double(), x.double(), None if hx is None else tree_double(hx))
        assert_all_close(run(fast, x, hx), exact, dtype)


@pytest.mark.parametrize("name", CELLS)
def test_cells_take_any_integers(name):
    """Sizes may be numpy's, and the input may have no features, as torch.nn's cells allow."""
    for sizes in ((np.int64(3), np.int64(4)), (0, 4)):
        reference, fast = make_pair(name, size=sizes)
        x = torch.randn(2, int(sizes[0]), dtype=torch.float64)
        assert_all_close(run(fast, x, None), run(reference, x, None), torch.float64)


def test_layers_take_numpy_counts():
    fast = fastrnn.LSTM(3, 4, num_layers=np.int64(2), proj_size=np.int64(2))
    assert fast(torch.randn(5, 2, 3))[0].shape == (5, 2, 2)


@pytest.mark.parametrize(
    "lengths",
    [
        torch.tensor([[3, 9]] * N)[:, 0],
        torch.tensor(3).expand(N),
        torch.tensor([3] * N, dtype=torch.int32),
        [3] * N,
        (3,) * N,
        np.array([3] * N),
    ],
    ids=["column", "expanded", "int32", "list", "tuple", "array"],
)
def test_lengths_of_any_layout_and_type(lengths):
    fast = make_pair("GRU")[1]
    x = make_inputs("GRU", {})[0]
    expected = fast(x, lengths=torch.tensor([3, 3, 3, 3]))[0]
    assert torch.equal(fast(x, lengths=lengths)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_says_lengths(name, batch_first, dtype):
    options = {"batch_first": batch_first, "bidirectional": True}
    fast = make_pair(name, options)[1]
    x, hx = make_inputs(name, options)
    lengths = torch.tensor([3, 7, 0, 4])
    mask = fastrnn.data.length_mask(lengths, T, batch_first=batch_first).to(dtype)
    expected = flatten(fast(x, hx, lengths=lengths))
    assert all(map(torch.equal, flatten(fast(x, hx, mask=mask)), expected))


@pytest.mark.parametrize("values", ["meta", "fake"])
def test_a_mask_without_values_is_taken(values):
    layer = fastrnn.GRU(I, H, device="meta" if values == "meta" else None)
    x, mask = torch.randn(T, N, I), torch.ones(T, N, dtype=torch.bool)
    if values == "meta":
        assert layer(x.to("meta"), mask=mask.to("meta"))[0].shape == (T, N, H)
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x), mask=mode.from_tensor(mask))[0].shape == (T, N, H)


def test_masks_of_a_batch_of_batches():
    layer, x = fastrnn.GRU(I, H), torch.randn(3, T, N, I)
    lengths = torch.tensor([[3, 7, 0, 4], [1, 1, 7, 2], [7, 7, 7, 7]])
    masks = torch.stack([fastrnn.data.length_mask(each, T) for each in lengths])
    got = torch.func.vmap(lambda x, mask: layer(x, mask=mask)[0])(x, masks)
    expected = torch.stack([layer(a, lengths=b)[0] for a, b in zip(x, lengths, strict=True)])
    assert torch.equal(got, expected)


def test_a_mask_of_one_sequence():
    fast, x = make_pair("GRU")[1], make_inputs("GRU", {}, batched=False)[0]
    mask = torch.arange(T) < 2
    assert torch.equal(fast(x, mask=mask)[1], fast(x[:2])[1])


@OURS
def test_names_that_torch_code_reads(ours):
    for name, options in CASES:
        reference, fast = make_pair(name, options, ours=ours)
        assert fast._all_weights == reference._all_weights
        assert fast._flat_weights_names == reference._flat_weights_names
        assert all(map(torch.equal, fast._flat_weights, reference._flat_weights))
        assert fast.mode == reference.mode


def test_relu_cell():
    reference, fast = make_pair("RNNCell", {"nonlinearity": "relu"})
    assert repr(fast) == repr(reference)
    x, h = torch.randn(N, I, dtype=torch.float64), torch.randn(N, H, dtype=torch.float64)
    assert_all_close(run(fast, x, h), run(reference, x, h), torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_backward_in_eval_mode(name):
    reference, fast = make_pair(name, {"num_layers": 2, "dropout": 0.5})
    x, hx = make_inputs(name, {"num_layers": 2})
    assert_all_close(run(fast.eval(), x, hx), run(reference.eval(), x, hx), torch.float64)


@OURS
@pytest.mark.parametrize("name", LAYERS)
def test_frozen_weights(name, ours):
    """Frozen weights get no gradient, and those that are not get the same as before."""
    fast = make_pair(name, {"num_layers": 2}, ours=ours)[1]
    x = make_inputs(name, {})[0].requires_grad_()
    expected = torch.autograd.grad(fast(x)[0].sum(), [x, fast.weight_hh_l1])
    fast.requires_grad_(False)
    fast.weight_hh_l1.requires_grad_(True)
    fast(x)[0].sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(fast.weight_hh_l1.grad, expected[1])
    assert fast.weight_ih_l0.grad is None
    fast.requires_grad_(False)
    assert not fast(x.detach())[0].requires_grad


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_saved_for_inference(name):
    fast = make_pair(name)[1]
    x = make_inputs(name, {})[0]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with torch.no_grad():
            fast(x)
        fast.requires_grad_(False)
        fast(x)
        assert not saved
        fast.requires_grad_(True)
        fast(x)
        assert saved


@pytest.mark.parametrize("name", LAYERS)
def test_only_what_is_needed_is_saved_and_computed(name, monkeypatch):
    """The op itself is asked for no more: nothing is left to autograd to drop afterwards."""
    asked = []
    fast = make_pair(name)[1]
    names = [info.name for info in library.CELLS[fast._cell].tensors]
    schema = torch.ops.fastrnn.scan_backward.default._schema
    needs_at = [argument.name for argument in schema.arguments].index("needs")
    x = make_inputs(name, {})[0]

    def spy(module, op, what):
        real = getattr(module, op)

        def called(*args):
            asked.append(what(args))
            return real(*args)

        monkeypatch.setattr(module, op, called)

    monkeypatch.setattr(direct, "_MOST_PRODUCTS", 0)
    spy(eager, "_stack", lambda args: "without gradients")
    spy(ops, "_scan_op", lambda args: ("save", args[8]))
    spy(
        ops,
        "_scan_backward_op",
        lambda args: [name for name, need in zip(names, args[needs_at], strict=True) if need],
    )
    with torch.no_grad():
        fast(x)
    fast.weight_ih_l0.requires_grad_(False)
    fast(x)[0].sum().backward()
    fast.requires_grad_(False)
    fast(x)
    needed = ["weight_hh", "bias_ih", "bias_hh"]
    assert asked == ["without gradients", ("save", True), needed, "without gradients"]


@OURS
@pytest.mark.parametrize("name", LAYERS)
def test_func_grad(name, ours):
    reference, fast = make_pair(name, ours=ours)
    x = make_inputs(name, {})[0]
    input_gradients = [torch.func.grad(lambda x, m=m: m(x)[0].sum())(x) for m in (reference, fast)]
    torch.testing.assert_close(*input_gradients)


@OURS
@pytest.mark.filterwarnings("ignore")  # torch warns of what it deprecates in itself
@pytest.mark.parametrize("way", ["compile", "export"])
@pytest.mark.parametrize(("name", "options"), [("GRU", {}), ("LSTM", OPTIONS["bidirectional"])])
def test_traced_modules_train(name, options, way, ours):
    """A compiled or exported module is one graph, and has the gradients of eager mode."""
    reference, fast = make_pair(name, options, ours=ours)
    x = make_inputs(name, options)[0]
    torch._dynamo.reset()
    if way == "compile":
        traced = torch.compile(fast, backend="aot_eager", fullgraph=True)
    else:
        traced = torch.export.export(fast, (x,)).module()
    assert_all_close(run_traced(traced, x), run_traced(reference, x), torch.float64)


def run_traced(module, x):
    results = flatten(module(x))
    return results + gradients(results, list(module.parameters()))


@OURS
@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name, ours):
    fast = getattr(ours, name)(I, H, num_layers=2, bidirectional=True, device="meta")
    output, states = fast(torch.empty(T, N, I, device="meta"))
    assert output.device.type == "meta"
    assert output.shape == (T, N, 2 * H)
    assert all(state.shape == (4, N, H) for state in flatten(states))
    output.sum().backward()
    assert fast.weight_hh_l0.grad.shape == fast.weight_hh_l0.shape


@pytest.mark.parametrize("name", [*LAYERS, *(f"{name}Cell" for name in LAYERS)])
def test_initial_values_may_be_skipped(name):
    """skip_init refuses torch.nn's own layers, whose signature hides the argument device."""
    fast = torch.nn.utils.skip_init(getattr(fastrnn, name), I, H)
    weights = getattr(torch.nn, name)(I, H).state_dict()
    fast.load_state_dict(weights)
    assert all(torch.equal(fast.state_dict()[key], value) for key, value in weights.items())
    x = torch.zeros(N, I)
    expected = getattr(fastrnn, name)(I, H)
    expected.load_state_dict(weights)
    assert all(map(torch.equal, flatten(fast(x)), flatten(expected(x))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_casts_inputs_and_weights(name, dtype):
    fast = make_pair(name, dtype=torch.float32)[1]
    x, hx = make_inputs(name, {}, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        results = flatten(fast(x, hx))
    assert all(t.dtype == dtype for t in results)
    exact = [t.to(dtype) for t in flatten(fast(x, hx))]
    assert_all_close(results, exact, dtype)
    results[0].sum().backward()
    assert fast.weight_hh_l0.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert all(t.dtype == torch.float64 for t in flatten(fast.double()(x.double())))


@pytest.mark.parametrize("name", LAYERS)
def test_functional_on_given_weights(name):
    reference = make_pair(name, {"num_layers": 2, "bidirectional": True})[0]
    x, hx = make_inputs(name, {"num_layers": 2, "bidirectional": True})
    function = getattr(fastrnn.functional, name.lower())
    weights = [w for weights in reference.all_weights for w in weights]
    actual = function(x, hx, weights, num_layers=2, bidirectional=True)
    assert_all_close(flatten(actual), flatten(reference(x, hx)), torch.float64)


def test_dropout_on_one_layer_warns_as_torch_does():
    for package in (nn, fastrnn):
        with pytest.warns(
            UserWarning, match="dropout option adds dropout after all but last"
        ) as record:
            package.LSTM(2, 3, dropout=0.5)
        assert record[0].filename == __file__ or package is nn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.LSTM(2, 3, num_layers=2, dropout=0.5)


@OURS
def test_weights_may_be_any_tensors(ours):
    """Tied, transposed and sliced weights need no flattening and give no warning."""
    fast, tied = make_pair("GRU", {"num_layers": 2}, size=(H, H), ours=ours)[1], None
    tied = copy.deepcopy(fast)
    tied.weight_ih_l1 = tied.weight_hh_l0
    fast.weight_ih_l1.data.copy_(fast.weight_hh_l0)
    x = torch.randn(T, N, H, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(tied(x)[0], fast(x)[0])
    odd = nn.Parameter(torch.empty(H, 3 * H, dtype=torch.float64).t().copy_(fast.weight_hh_l0))
    expected = fast(x)[0]
    fast.weight_hh_l0 = odd
    assert torch.equal(fast(x)[0], expected)


def test_unsorted_pack_sequence_keeps_its_order():
    fast = make_pair("GRU")[1]
    sequences = [torch.randn(length, I, dtype=torch.float64) for length in (2, 5, 3)]
    output, h_n = fast(pack_sequence(sequences, enforce_sorted=False))
    for n, sequence in enumerate(sequences):
        alone, h_alone = fast(sequence)
        assert torch.equal(output.unsorted_indices, torch.tensor([2, 0, 1]))
        padded = pad_packed_sequence(output)[0]
        assert torch.equal(padded[: len(sequence), n], alone)
        assert torch.equal(h_n[:, n], h_alone)


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_that_negates_is_resolved(name, monkeypatch):
    """The dispatcher does so in every list but one that may have a None in it."""
    monkeypatch.setattr(direct, "_IS_AVAILABLE", False)
    fast = make_pair(name)[1]
    y = fast(make_inputs(name, {})[0])[0]
    inputs = list(fast.parameters())
    grad = torch.ones_like(y)
    expected = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    for create_graph in (False, True):
        got = torch.autograd.grad(
            y, inputs, torch._neg_view(-grad), retain_graph=True, create_graph=create_graph
        )
        assert_equal([g.detach() for g in got], expected)
