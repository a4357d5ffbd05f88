"""The op against the plain-torch oracle: every cell, dtype, instruction set, direction and kind of batch."""

from __future__ import annotations

import pytest
import torch
from common import (
    AVAILABLE_INSTRUCTION_SETS,
    CELLS,
    DEVICE,
    TOLERANCE,
    assert_all_close,
    assert_equal,
    by_name,
    call_scan,
    call_scan_backward,
    gradients,
    leaf,
    make_scan,
    present,
    scan_arguments,
    scan_backward_arguments,
)
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn import ops, reference
from fastrnn.library import SCHEDULE, use_cpu_instruction_set, without_absent
from fastrnn.ops import ScanWeights

# T, N, I, H: one of everything, tails on every side, several chunks, panels and tiles of rows, few units on many samples.
# By H: where a regime of a GPU refuses one, it has run those before.
SIZES = [(1, 1, 1, 1), (5, 3, 4, 5), (6, 75, 3, 5), (37, 14, 3, 33), (3, 17, 19, 83)]
# Weight gradients of two to four rows have a way of their own.
SIZES += [(1, 2, 19, 83), (3, 1, 3, 33), (2, 2, 4, 5)]


def run(function, case, values, dtype, **options):
    """Results and gradients of a scan in dtype, whose values are first rounded to another."""
    cell, (x, h, c, weights) = case
    x, h, c = (leaf(t if t is None else t.to(values), dtype) for t in (x, h, c))
    weights = ScanWeights(*(leaf(t if t is None else t.to(values), dtype) for t in weights))
    results = present(function(cell, x, h, c, weights, **options))
    return results + gradients(results, present([x, h, c, *weights]))


def run_both(cell, sizes, dtype, *, proj_size=0, bias=True, **options):
    """Results and gradients of the op in dtype, and of the oracle in float64 from the same rounded values."""
    case = cell, make_scan(cell, sizes, proj_size=proj_size, bias=bias)
    actual = run(ops.scan, case, dtype, dtype, **options)
    with pytest.MonkeyPatch.context() as patch:
        if cell == "rnn_relu" and dtype.itemsize == 2:
            # A sum near zero may round to the other side of the kink, where the gradient jumps: the op decides.
            outputs = iter(actual[0].flip(0) if options.get("reverse") else actual[0])
            patch.setitem(
                reference.STEPS,
                cell,
                lambda gx, gh, *_: (torch.where(next(outputs) > 0, gx + gh, 0), ()),
            )
        exact = run(reference.scan, case, dtype, torch.float64, **options)
    return actual, exact


def make_options(kind: str, T: int, N: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    options = {}
    if kind != "plain":
        options["lengths"] = torch.randint(0, T + 1, (N,), generator=generator, device="cpu")
    if kind == "resets":
        options["reset"] = (torch.rand(T, N, generator=generator, device="cpu") < 0.3).to(DEVICE)
    return options


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("kind", ["plain", "lengths", "resets"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_matches_oracle(instruction_set, cell, dtype, kind, reverse):
    for sizes in SIZES:
        options = make_options(kind, *sizes[:2])
        actual, expected = run_both(cell, sizes, dtype, reverse=reverse, **options)
        assert_all_close(actual, expected, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", ["plain", "lengths", "resets"])
def test_projection(instruction_set, dtype, kind):
    sizes = (11, 7, 3, 20)
    for reverse in (False, True):
        options = make_options(kind, *sizes[:2])
        actual, expected = run_both("lstm", sizes, dtype, proj_size=6, reverse=reverse, **options)
        assert_all_close(actual, expected, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_without_bias(cell):
    actual, expected = run_both(cell, (4, 3, 5, 6), torch.float64, bias=False)
    assert_all_close(actual, expected, torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_tf32_is_as_torch_is_told(cell, monkeypatch):
    """Rounded factors of 11 bits on a GPU, as those of float16; the CPU does not look."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    actual, expected = run_both(cell, (5, 17, 20, 64), torch.float32)
    assert_all_close(actual, expected, torch.float16 if DEVICE == "cuda" else torch.float32)


def in_wider_layer(weight, H, wide):
    """A weight of a layer with H units as one of a layer whose further units have zeros alone."""
    if weight is None:
        return None
    columns = wide - H if weight.dim() > 1 and weight.size(1) == H else 0
    further = (0, columns, 0, wide - H) if weight.dim() > 1 else (0, wide - H)
    return torch.cat([pad(gate, further) for gate in weight.split(H)])


@pytest.mark.parametrize("N", [1, 2, 20])
@pytest.mark.parametrize("H", [17, 20, 25, 29, 38, 44, 47])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_units_that_fill_no_vector(cell, H, N, dtype, instruction_set):
    """Their gates share vectors, and have the bits that they have in vectors of their own."""
    T, I, wide = 3, 37, 48
    x, h, c, weights = make_scan(cell, (T, N, I, H))
    case = [None if t is None else t.to(dtype) for t in (x, h, c, *weights)]
    x, h, c, *weights = case
    narrow = present(ops.scan(cell, x, h, c, ScanWeights(*weights)))
    h, c = (t if t is None else pad(t, (0, wide - H)) for t in (h, c))
    weights = [in_wider_layer(weight, H, wide) for weight in weights]
    full = present(ops.scan(cell, x, h, c, ScanWeights(*weights)))
    assert_equal(narrow, [result[..., :H] for result in full])


def packed_case(cell, lengths=(9, 7, 7, 2, 1), columns=3):
    x, h, c, weights = make_scan(cell, (lengths[0], len(lengths), columns, 20))
    lengths = torch.tensor(lengths)
    return x, h, c, weights, lengths, pack_padded_sequence(x, lengths.cpu())


# Rows of whole vectors are read and written where they lie if they follow each other at one distance. Walked from its
# end, a packed batch may have a step of one row first, and then steps of one, two or more.
PACKED = {
    "odd": ((9, 7, 7, 2, 1), 3),
    "whole vectors": ((9, 7, 7, 2, 1), 16),
    "one row, then two": ((2, 1), 16),
    "one row, then three": ((2, 1, 1), 16),
    "one, two, four": ((3, 2, 1, 1), 16),
    "one, three, four": ((5, 3, 3, 2), 16),
    "one sample": ((5,), 16),
    "no other lengths": ((3, 3), 16),
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_is_padded(cell, reverse, case):
    """The same bits from a packed batch and a padded one with lengths, in results and gradients."""
    x, h, c, weights, lengths, packed = packed_case(cell, *case)
    packed_x, padded_x = packed.data.clone().requires_grad_(), x.clone().requires_grad_()
    w1, w2 = (
        ScanWeights(*(leaf(t, t.dtype) if t is not None else t for t in weights)) for _ in "12"
    )
    y, *states = present(
        ops.scan(cell, packed_x, h, c, w1, batch_sizes=packed.batch_sizes, reverse=reverse)
    )
    y = pad_packed_sequence(packed._replace(data=y), total_length=len(x))[0]
    expected = present(ops.scan(cell, padded_x, h, c, w2, lengths=lengths, reverse=reverse))
    assert_equal([y, *states], expected)
    actual = gradients([y, *states], [packed_x, *present(w1)])
    expected = gradients(expected, [padded_x, *present(w2)])
    expected[0] = pack_padded_sequence(expected[0], lengths.cpu()).data
    assert_equal(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_any_strides(cell):
    """Transposed, sliced, expanded and reversed-layout tensors give the bits of contiguous ones."""
    x, h, c, weights = make_scan(cell, (6, 4, 5, 9))

    def strided(t: torch.Tensor | None) -> torch.Tensor | None:
        if t is None:
            return None
        wide = t.new_full([2 * size for size in t.shape], float("nan"))
        view = wide.permute(*reversed(range(t.dim())))[
            tuple(slice(0, s) for s in reversed(t.shape))
        ]
        view.copy_(t.permute(*reversed(range(t.dim()))))
        return view.permute(*reversed(range(t.dim()))).requires_grad_()

    plain = [leaf(t, torch.float64) for t in (x, h, c, *weights)]
    odd = [strided(t) for t in (x, h, c, *weights)]
    results = []
    for tensors in (plain, odd):
        y = present(ops.scan(cell, *tensors[:3], ScanWeights(*tensors[3:])))
        # .sum() hands an expanded gradient with stride 0 to backward.
        loss = sum(t.sum() for t in y)
        results.append(y + list(torch.autograd.grad(loss, present(tensors))))
    assert_equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (3, 0, 2, 4), (0, 0, 2, 4)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_empty(cell, sizes):
    """No steps: final states are the initial ones. No samples: empty results. Gradients in both."""
    actual, expected = run_both(cell, sizes, torch.float64)
    assert_all_close(actual, expected, torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_non_finite_values_stay_in_their_sample(instruction_set, cell):
    x, h, c, weights = make_scan(cell, (4, 5, 3, 7))
    for n, value in ((1, float("nan")), (3, float("inf"))):
        x[1, n, 0] = value
    y = ops.scan(cell, x, h, c, weights)[0]
    expected = reference.scan(cell, x, h, c, weights)[0]
    assert y[:, [0, 2, 4]].isfinite().all()
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("weight", [1.0, 0.7, 1.3e-3, 300.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_round_as_torch_does(instruction_set, dtype, weight):
    """Every value of the type, times a weight, in one ReLU step: the product is rounded once."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    weights = ScanWeights(torch.full((1, 1), weight, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
    zeros = torch.zeros(x.numel(), 1, dtype=dtype)
    y = ops.scan("rnn_relu", x.reshape(1, -1, 1), zeros, None, weights)[0].flatten()
    expected = torch.relu(x.float() * weights.weight_ih.item()).to(dtype)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_within_two_ulp(instruction_set, function, dtype):
    """tanh as an Elman step without weights, the sigmoid as z of a GRU step from h = 1, n = 0."""
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(20000, generator=generator, dtype=torch.float64) * 260 - 130
    special = [0.0, 1.0, 20.0, 88.0, 104.0, 746.0, float("inf"), info.tiny, info.eps, info.max]
    values = torch.cat([2.0**exponents, torch.linspace(0, 120, 20001, dtype=torch.float64)])
    values = torch.cat([values, torch.tensor(special, dtype=torch.float64)])
    values = torch.cat([values, -values, torch.tensor([float("nan")], dtype=torch.float64)]).to(
        dtype
    )
    x = values.reshape(1, -1, 1)
    zeros = torch.zeros(values.numel(), 1, dtype=dtype)
    if function is torch.tanh:
        weights = ScanWeights(torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
        actual = ops.scan("rnn_tanh", x, zeros, None, weights)[0].flatten()
    else:
        weight_ih = torch.tensor([[0.0], [1.0], [0.0]], dtype=dtype)
        weights = ScanWeights(weight_ih, torch.zeros(3, 1, dtype=dtype))
        x = torch.where(x.isinf(), x.sign() * 1e5, x)  # infinity * 0 is NaN in the other gates
        actual = ops.scan("gru", x, zeros + 1, None, weights)[0].flatten()
    import mpmath

    mpmath.mp.dps = 40
    exact = {
        torch.tanh: mpmath.tanh,
        torch.sigmoid: lambda v: 1 / (1 + mpmath.exp(-v)),
    }[function]
    sample = torch.randperm(values.numel() - 1, generator=generator)[:4000]
    sample = torch.cat([sample, torch.arange(values.numel() - 1)[-30:]])
    for index in sample.tolist():
        value, got = x.flatten()[index].item(), actual[index].item()
        want = (
            exact(mpmath.mpf(value)) if abs(value) < 1e6 else function(torch.tensor(value)).item()
        )
        rounded = torch.tensor(float(want), dtype=dtype)
        up = torch.nextafter(rounded.abs(), torch.tensor(float("inf"), dtype=dtype))
        ulp = (up - rounded.abs()).item() or info.smallest_normal * info.eps
        assert abs(got - want) <= 2 * ulp, (value, got, float(want))
    assert actual[-1].isnan()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["plain", "lengths", "resets"])
def test_gradcheck(cell, kind):
    T, N = 4, 3
    x, h, c, weights = make_scan(cell, (T, N, 2, 3), proj_size=2 if cell == "lstm" else 0)
    inputs = [t.requires_grad_() for t in present([x, h, c, *weights])]
    options = make_options(kind, T, N)

    def function(*tensors):
        tensors = list(tensors)
        x, h = tensors[:2]
        c = tensors[2] if cell == "lstm" else None
        weights = ScanWeights(*tensors[3 if cell == "lstm" else 2 :])
        return tuple(present(ops.scan(cell, x, h, c, weights, reverse=kind != "plain", **options)))

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_frozen_inputs_cost_no_work(cell):
    """Only gradients that are asked for are computed, and they are the same bits as among all."""
    x, h, c, weights = make_scan(cell, (5, 4, 3, 8))
    tensors = by_name(cell, x, h, c, *weights)
    results = call_scan(cell, tensors)
    grads = {"y": torch.randn_like(results["y"])}
    everything = call_scan_backward(cell, grads, tensors, results)
    for name, tensor in tensors.items():
        alone = call_scan_backward(cell, grads, tensors, results, needs=[name])
        assert [n for n, t in alone.items() if t.numel()] == ([] if tensor is None else [name])
        assert torch.equal(alone[name], everything[name])
    assert sum(t.numel() > 0 for t in everything.values()) == len(present(tensors.values()))


# What can be wrong with a direct call of the op: (name of the change, arguments changed, text of the error).
NONSENSE = [
    ("cell", {"cell": "perceptron"}, "unknown cell"),
    ("rank", {"input": torch.zeros(4, 3)}, "input has 2 dimensions"),
    ("rank of h_0", {"h_0": torch.zeros(3)}, "h_0 has 1 dimensions"),
    ("batch", {"h_0": torch.zeros(2, 5)}, "h_0 has shape"),
    ("c_0", {"c_0": torch.zeros(3, 6)}, "c_0 has shape"),
    ("no c_0", {"c_0": None}, "c_0 is absent"),
    ("input size", {"input": torch.zeros(4, 3, 3)}, "weight_ih has shape"),
    ("gate rows", {"weight_ih": torch.zeros(19, 2)}, "positive multiple of 4"),
    ("no gate rows", {"weight_ih": torch.zeros(0, 2)}, "positive multiple of 4"),
    ("weight_hh", {"weight_hh": torch.zeros(16, 5)}, "weight_hh has shape"),
    ("no columns", {"weight_hh": torch.zeros(20, 0), "h_0": torch.zeros(3, 0)}, "no columns"),
    ("columns", {"weight_hh": torch.zeros(20, 4), "h_0": torch.zeros(3, 4)}, "expected hidden_size"),
    ("bias", {"bias_ih": torch.zeros(5)}, "bias_ih has shape"),
    ("projection", {"weight_hr": torch.zeros(4, 5)}, "weight_hr has shape"),
    ("dtype", {"h_0": torch.zeros(3, 5, dtype=torch.float64)}, "h_0 has dtype"),
    ("integers", {name: torch.zeros(shape, dtype=torch.int64) for name, shape in
                  {"input": (4, 3, 2), "h_0": (3, 5), "c_0": (3, 5), "weight_ih": (20, 2),
                   "weight_hh": (20, 5), "bias_ih": (20,), "bias_hh": (20,)}.items()}, "no kernel for dtype|has dtype"),
    ("sparse", {"h_0": torch.zeros(3, 5).to_sparse()}, "SparseCPU"),
    ("lengths dtype", {"lengths": torch.ones(3)}, "lengths must be"),
    ("lengths shape", {"lengths": torch.ones(4, dtype=torch.int64)}, "lengths has shape"),
    ("length beyond T", {"lengths": torch.tensor([1, 5, 2])}, r"lengths\[1\] is 5"),
    ("negative length", {"lengths": torch.tensor([1, 2, -1])}, r"lengths\[2\] is -1"),
    ("packed rank", {"batch_sizes": torch.tensor([3, 3])}, "input has 3 dimensions"),
    ("packed sum", {"input": torch.zeros(7, 2), "batch_sizes": torch.tensor([3, 3])}, "sum to 6"),
    ("packed order", {"input": torch.zeros(5, 2), "batch_sizes": torch.tensor([2, 3])}, "expected 1 to 2"),
    ("packed zero", {"input": torch.zeros(3, 2), "batch_sizes": torch.tensor([3, 0])}, "expected 1 to 3"),
    ("packed overflow", {"input": torch.zeros(4, 2), "batch_sizes": torch.tensor([4])}, "expected 1 to 3"),
    ("reset shape", {"reset": torch.zeros(3, 4, dtype=torch.bool)}, "reset has shape"),
    ("reset dtype", {"reset": torch.zeros(4, 3)}, "reset has dtype"),
    ("reset state", {"reset_h": torch.zeros(2, 5)}, "reset_h has shape"),
    ("jagged and packed", {"input": torch.zeros(3, 2), "offsets": torch.arange(4), "batch_sizes": torch.tensor([3])}, "exclude each other"),
    ("offsets shape", {"input": torch.zeros(7, 2), "offsets": torch.arange(3)}, "offsets has shape"),
    ("offsets beyond", {"input": torch.zeros(7, 2), "offsets": torch.tensor([0, 2, 3, 8])}, "span rows 0 to 8"),
    ("offsets before", {"input": torch.zeros(7, 2), "offsets": torch.tensor([-1, 2, 3, 7])}, "span rows -1 to 7"),
    ("offsets order", {"input": torch.zeros(7, 2), "offsets": torch.tensor([0, 3, 2, 7])}, "sample 1 has -1 rows"),
    ("jagged length", {"input": torch.zeros(7, 2), "offsets": torch.tensor([0, 2, 3, 7]), "lengths": torch.tensor([2, 2, 1])}, "sample 1 has 1 rows and length 2"),
    ("groups", {"groups": 2}, "3 samples are no multiple of 2 groups"),
    ("negative groups", {"groups": -1}, "no multiple of -1"),
    ("grouped weights", {"groups": 3, "weight_ih": torch.zeros(2, 20, 2)}, "weight_ih has shape"),
    ("weights of no group", {"weight_ih": torch.zeros(3, 20, 2)}, "2 dimensions"),
    ("jagged groups", {"groups": 3, "input": torch.zeros(7, 2), "offsets": torch.tensor([0, 2, 3, 7])}, "cannot be split"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"), [row[1:] for row in NONSENSE], ids=[r[0] for r in NONSENSE]
)
def test_nonsense_is_an_error(change, text):
    schedule = dict.fromkeys(SCHEDULE)
    options = {"cell": "lstm", "groups": 0}
    tensors = by_name(
        "lstm",
        torch.zeros(4, 3, 2),
        torch.zeros(3, 5),
        torch.zeros(3, 5),
        torch.zeros(20, 2),
        torch.zeros(20, 5),
        torch.zeros(20),
        torch.zeros(20),
    )

    def lists(change):
        """The tensors, and the arguments of both ops beside lists, with a change."""
        changed_tensors = [change.get(name, tensor) for name, tensor in tensors.items()]
        return (
            dict(zip(("tensors", "present"), without_absent(changed_tensors), strict=True)),
            {name: change.get(name, value) for name, value in (schedule | options).items()},
        )

    good, arguments = lists({})
    bad, changed = lists(change)
    assert len(change) == sum(
        name in change for name in (*tensors, *schedule, *options)
    )  # nothing is misspelt
    results = torch.ops.fastrnn.scan(reverse=False, save=True, **good, **arguments)
    with pytest.raises((RuntimeError, NotImplementedError), match=text):
        torch.ops.fastrnn.scan(reverse=False, save=True, **bad, **changed)
    saved = {"y": results[0], "gates": results[3], "cells": results[4]}
    grads = {
        "grad_y": torch.zeros_like(results[0]),
        "grad_h_n": None,
        "grad_c_n": None,
        "grad_cells": None,
    }

    def backward(tensors, arguments, change):
        torch.ops.fastrnn.scan_backward(
            grads=[change.get(name, grad) for name, grad in grads.items()],
            reverse=False,
            saved=[change.get(name, tensor) for name, tensor in saved.items()],
            needs=[True] * len(ops.CELLS["lstm"].tensors),
            **tensors,
            **arguments,
        )

    backward(good, arguments, {})
    with pytest.raises((RuntimeError, NotImplementedError), match=text):
        backward(bad, changed, {})
    for name in (*saved, *grads):
        for nonsense in (torch.zeros(1), torch.zeros(4, 3, 5, dtype=torch.int32)):
            with pytest.raises(RuntimeError, match=name):
                backward(good, arguments, {name: nonsense})


def test_lists_of_a_wrong_length_are_errors():
    """Another cell's lists, or those of another version, are refused with the names expected."""
    tensors = by_name(
        "gru", *make_scan("gru", (2, 3, 4, 5))[:3], *make_scan("gru", (2, 3, 4, 5))[3]
    )
    results = call_scan("gru", tensors)
    names = "input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, reset_h"
    arguments = list(scan_arguments("gru", tensors))
    with pytest.raises(RuntimeError, match="tensors has 5 entries, present 6"):
        torch.ops.fastrnn.scan("gru", arguments[1][1:], *arguments[2:])
    for wrong in ([0, 1, 2, 3, 4, 7], [0, 1, 2, 3, 5, 4]):
        with pytest.raises(RuntimeError, match="present must have increasing indices below 7"):
            torch.ops.fastrnn.scan("gru", arguments[1], wrong, *arguments[3:])
    arguments = scan_backward_arguments("gru", {"y": results["y"]}, tensors, results)
    for at, name, expected in (
        (1, "grads", "y, h_n"),
        (9, "saved", "y, gates"),
        (10, "needs", names),
    ):
        wrong = [*arguments[:at], arguments[at][1:], *arguments[at + 1 :]]
        with pytest.raises(RuntimeError, match=f"{name} has .* entries, expected .*: {expected}"):
            torch.ops.fastrnn.scan_backward(*wrong)
    with pytest.raises(RuntimeError, match="gru has no c_0"):
        ops.scan(
            "gru",
            tensors["input"],
            tensors["h_0"],
            tensors["h_0"],
            make_scan("gru", (2, 3, 4, 5))[3],
        )


def test_impossible_sizes_are_errors():
    """Expanded tensors make any size free: no product of sizes may overflow, no loop run for hours."""
    z = torch.zeros

    def forward(x: torch.Tensor, h: torch.Tensor, weight_ih: torch.Tensor) -> None:
        call_scan("rnn_tanh", by_name("rnn_tanh", x, h, None, weight_ih, z(1, 1)), save=False)

    for size in (2**25, 2**58 + 1, 2**60):
        with pytest.raises(RuntimeError, match="is more than"):
            forward(z(0, 0, 1).expand(0, 0, size), z(0, 1), z(1, 1).expand(1, size))
        with pytest.raises(RuntimeError, match="is more than"):
            forward(z(0, 1, 1).expand(0, size, 1), z(1, 1).expand(size, 1), z(1, 1))
    with pytest.raises(RuntimeError, match="steps are more than"):
        forward(z(1, 0, 1).expand(2**41, 0, 1), z(0, 1), z(1, 1))
    forward(z(1, 0, 1).expand(2**40, 0, 1), z(0, 1), z(1, 1))  # nothing to do, and at once


def test_freed_storage_is_an_error():
    x, h, c, weights = make_scan("gru", (2, 3, 4, 5))
    weights.weight_hh.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage was freed"):
        ops.scan("gru", x, h, c, weights)


def test_backward_leaves_copy_on_write_tensors_shared():
    x, h, c, weights = make_scan("lstm", (2, 3, 4, 5))
    tensors = by_name("lstm", x, h, c, *weights)
    results = call_scan("lstm", tensors)
    grads = {"y": results["y"]}
    lazy = {name: torch._lazy_clone(results[name]) for name in ("y", "gates", "cells")}
    call_scan_backward("lstm", grads, tensors, lazy)
    assert all(torch._C._is_cow_tensor(tensor) for tensor in lazy.values())


def test_one_meta_tensor_is_an_error():
    """The dispatcher would take the fake kernel and return uninitialised memory."""
    x, h, c, weights = make_scan("gru", (2, 3, 4, 5))
    with pytest.raises(RuntimeError, match="expected input's device"):
        ops.scan("gru", x, h, c, weights._replace(weight_hh=weights.weight_hh.to("meta")))


def test_unknown_instruction_set(monkeypatch):
    with pytest.raises(RuntimeError, match="asks for 'mmx'"):
        use_cpu_instruction_set("mmx")
    monkeypatch.setenv("FASTRNN_CPU_ISA", "mmx")
    use_cpu_instruction_set(None)  # what the environment says counts again
    x, h, c, weights = make_scan("gru", (1, 1, 1, 1))
    expected = ",".join(AVAILABLE_INSTRUCTION_SETS)
    with pytest.raises(
        RuntimeError, match=f"FASTRNN_CPU_ISA .* asks for 'mmx', expected one of {expected}"
    ):
        ops.scan("gru", x, h, c, weights)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["padded", "packed", "jagged", "groups"])
@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
def test_fake_kernels_tell_the_truth(cell, layout, save):
    """Shapes, dtypes and strides on the meta device are those of the real results."""
    x, h, c, weights = make_scan(cell, (4, 3, 2, 5), proj_size=3 if cell == "lstm" else 0)
    batch_sizes = torch.tensor([3, 2]) if layout == "packed" else None
    offsets = torch.tensor([0, 2, 2, 5]) if layout == "jagged" else None
    groups = 3 if layout == "groups" else 0
    if layout in ("packed", "jagged"):
        x = x.flatten(0, 1)[:5]
    if groups:
        weights = weights._replace(weight_ih=weights.weight_ih.expand(groups, -1, -1))
    tensors = by_name(cell, x, h, c, *weights, h, c)
    schedule = {"batch_sizes": batch_sizes, "offsets": offsets}

    def on_meta(named):
        return {name: None if t is None else t.to("meta") for name, t in named.items()}

    options = {"save": save, "all_states": not save, "groups": groups}
    real = call_scan(cell, tensors, schedule, **options)
    fake = call_scan(cell, on_meta(tensors), schedule, **options)
    pairs = [(real[name], fake[name]) for name in real]
    if save:
        grads = {"y": torch.zeros_like(real["y"])}
        options = {"needs": set(tensors) - {"h_0", "weight_ih", "bias_hh"}, "groups": groups}
        real = call_scan_backward(cell, grads, tensors, real, schedule, **options)
        fake = call_scan_backward(
            cell, on_meta(grads), on_meta(tensors), on_meta(fake), schedule, **options
        )
        pairs += [(real[name], fake[name]) for name in real]
    for a, b in pairs:
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        assert b.device.type == "meta"
