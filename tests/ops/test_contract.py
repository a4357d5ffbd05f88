"""The numerical contract: which results are the same to the bit, and how exact they are beside torch.nn's."""

from __future__ import annotations

import copy

import pytest
import torch
from common import (
    CELLS,
    assert_equal,
    by_name,
    call_scan,
    call_scan_backward,
    gradients,
    leaf,
    make_scan,
    present,
)
from pairs import flatten
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import ops
from fastrnn.ops import ScanWeights

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# T, N, I, H are such that rows are split among threads, then units, samples lie in the lanes, there are several chunks,
# one sample, one step of few samples (whose weights are not packed ahead) and of many, and steps so small that other
# threads make the input products ahead.
SHAPES = [(7, 70, 20, 64), (9, 3, 5, 300), (40, 9, 24, 40), (11, 90, 3, 5), (130, 16, 8, 70), (60, 1, 16, 130), (1, 20, 9, 33), (1, 70, 140, 40), (300, 1, 140, 40)]  # fmt: skip


def make_leaves(cell, sizes, dtype, proj_size=0):
    """x, h_0, c_0 and weights as leaves."""
    x, h, c, weights = make_scan(cell, sizes, proj_size=proj_size)
    x, h, c = (leaf(t, dtype) for t in (x, h, c))
    return x, h, c, ScanWeights(*(leaf(t, dtype) for t in weights))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_for_every_thread_count(cell, dtype, sizes):
    """Results and all gradients, the weights' too, have the same bits."""
    x, h, c, weights = make_leaves(cell, sizes, dtype)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results = present(ops.scan(cell, x, h, c, weights))
            runs.append(results + gradients(results, present([x, h, c, *weights])))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("freeze", [False, True], ids=["ordinary", "frozen"])
@pytest.mark.parametrize("sizes", [(90, 1, 40, 40), (40, 2, 20, 200), (9, 70, 8, 20)], ids=str)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_directions_have_the_same_bits_for_every_thread_count(name, sizes, freeze):
    """Without gradients they may run side by side."""
    T, N, I, H = sizes
    torch.manual_seed(0)
    module = getattr(fastrnn, name)(I, H, num_layers=2, bidirectional=True)
    module = fastrnn.freeze(module) if freeze else module
    x, reset = torch.randn(T, N, I), torch.rand(T, N) < 0.1
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            with torch.no_grad():
                runs.append(flatten(module(x, reset=reset)))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert_equal(run, runs[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("separate", [False, True], ids=["shared weights", "own weights"])
def test_groups_have_the_same_bits_for_every_thread_count(cell, separate):
    x, h, c, weights = make_scan(cell, (30, 12, 5, 40))
    groups = 6
    if separate:
        scales = torch.arange(1.0, groups + 1, dtype=x.dtype)
        weights = ScanWeights(*(
            None if w is None else scales.reshape(-1, *(1,) * w.dim()) * w for w in weights
        ))  # fmt: skip
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            tensors = by_name(cell, x, h, c, *weights)
            results = call_scan(cell, tensors, groups=groups)
            grads = {"y": results["y"]}
            gradients = call_scan_backward(cell, grads, tensors, results, groups=groups)
            runs.append([*results.values(), *gradients.values()])
    finally:
        torch.set_num_threads(before)
    assert gradients["weight_hh"].shape == (groups, weights.weight_hh.size(-2), 40)
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            assert torch.equal(a, b)


def per_sample(cell, x, h, c, weights, **options):
    """y, final states and gradients of x and the initial states, of each the part that belongs to a sample."""
    results = present(ops.scan(cell, x, h, c, weights, **options))
    y = results[0]
    # The upstream gradient of an element depends on its step, sample and column alone.
    steps = torch.arange(y.size(0)).reshape(-1, 1, 1)
    columns = torch.arange(y.size(-1))
    dy = torch.cos(steps + 3.0 * columns).expand_as(y).to(y.dtype)
    states = [
        torch.sin(torch.arange(s.size(1)) + 1.0 * i).expand_as(s).to(y.dtype)
        for i, s in enumerate(results[1:])
    ]
    return results + list(torch.autograd.grad(results, present([x, h, c]), [dy, *states]))


def select(tensors, index, length=None):
    """Sample `index` of x or y (T, N, columns) and of states (N, columns)."""
    return [
        t[:length, index : index + 1] if t.dim() == 3 else t[index : index + 1] for t in tensors
    ]


@pytest.mark.parametrize("sizes", [s for s in SHAPES if s[1] > 1], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sample_does_not_depend_on_its_batch(instruction_set, cell, dtype, sizes):
    """Alone, in the batch, padded and packed, y, states, dx, dh_0 and dc_0 have the same bits."""
    T, N = sizes[:2]
    x, h, c, weights = make_leaves(cell, sizes, dtype)
    batch = per_sample(cell, x, h, c, weights)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    lengths[0] = T
    padded = per_sample(cell, x, h, c, weights, lengths=lengths)
    for n in {0, N // 2, N - 1}:
        states = (leaf(t, dtype) for t in select(present([h, c]), n))
        alone_h, alone_c = next(states), next(states, None)
        for run, length in ((batch, T), (padded, int(lengths[n]))):
            alone_x = leaf(x[:length, n : n + 1], dtype)
            alone = per_sample(cell, alone_x, alone_h, alone_c, weights)
            for a, b in zip(alone, select(run, n, length), strict=True):
                assert torch.equal(a, b)

    order = lengths.sort(descending=True).indices
    packed = pack_padded_sequence(x.detach()[:, order], lengths[order])
    rows = packed.data.requires_grad_()
    sorted_h, sorted_c = (None if t is None else leaf(t[order], dtype) for t in (h, c))
    results = present(
        ops.scan(cell, rows, sorted_h, sorted_c, weights, batch_sizes=packed.batch_sizes)
    )
    y = pad_packed_sequence(packed._replace(data=results[0]), total_length=T)[0]
    for a, b in zip([y, *results[1:]], padded, strict=False):
        assert torch.equal(a, b[:, order] if b.dim() == 3 else b[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recomputed_gates_give_the_same_gradients(instruction_set, cell, dtype):
    """They are the same to the bit where h is saved as it was computed; a half type saves it rounded."""
    for sizes in [(5, 3, 4, 17), (37, 14, 3, 33), (6, 75, 3, 5)]:
        T, N = sizes[:2]
        options = {
            "lengths": torch.arange(N) % (T + 1),
            "reset": torch.arange(T * N).reshape(T, N) % 5 == 0,
        }
        runs = []
        for recompute in (False, True):
            x, h, c, weights = make_leaves(cell, sizes, dtype)
            results = present(ops.scan(cell, x, h, c, weights, recompute=recompute, **options))
            runs.append(results + gradients(results, present([x, h, c, *weights])))
        exact = dtype in (torch.float32, torch.float64) and sizes[3] > 5
        for a, b in zip(*runs, strict=True):
            if exact:
                assert torch.equal(a, b)
            else:
                eps = torch.finfo(dtype).eps
                assert (a - b).abs().max() <= 8 * eps * max(1, b.abs().max())


# T, N, I, H are such that one long chain of additions would lose to torch.nn's blocked sums; some are a plain batch.
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("LSTM", (1000, 4, 16, 32)),
        ("RNN", (5, 8, 64, 1500)),
        ("GRU", (2, 5000, 3, 8)),
        ("RNN", (60, 32, 64, 64)),
        ("GRU", (60, 32, 64, 64)),
        ("LSTM", (60, 32, 64, 64)),
        ("RNN", (10, 1000, 1, 5)),
    ],
    ids=str,
)
def test_error_next_to_torch(name, sizes):
    """The RMS error against float64 is at most 1.2 times torch.nn's, in results and gradients."""
    T, N, I, H = sizes
    torch.manual_seed(0)
    reference = getattr(torch.nn, name)(I, H)
    fast = fastrnn.accelerate(copy.deepcopy(reference))
    exact = copy.deepcopy(reference).double()
    x = torch.randn(T, N, I)

    def run(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = module(x)[0]
        return [y, *gradients([y], [x, *module.parameters()])]

    def rms(actual: list[torch.Tensor]) -> list[float]:
        pairs = zip(actual, expected, strict=True)
        return [(a.double() - b).square().mean().sqrt().item() for a, b in pairs]

    expected = run(exact, x.double())
    for ours, theirs in zip(rms(run(fast, x)), rms(run(reference, x)), strict=True):
        assert ours <= 1.2 * theirs
