"""Dropout between layers: its bits against an oracle, and one mask whichever way a layer is run."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from common import DEVICE, TOLERANCE, OurMasks, assert_all_close, gradients
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.dropout import draw_seed, dropout_mask

LAYERS = ("RNN", "GRU", "LSTM")
T, N, I, H = 6, 3, 4, 5


# --- the mask, element by element -----------------------------------------------------------------

# A row is counter, key and result of philox4x32 with 10 rounds; they come from Random123's tests/kat_vectors.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32-10 of counters (n, 4) and a key (2,), as Salmon et al. (2011) write it."""
    a, b, c, d = counter.astype(np.uint64).T
    k0, k1 = key.astype(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = p1 >> np.uint64(32) ^ b ^ k0, p1 & low, p0 >> np.uint64(32) ^ d ^ k1, p0 & low
        k0, k1 = k0 + np.uint64(0x9E3779B9) & low, k1 + np.uint64(0xBB67AE85) & low
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def words(number: int, count: int) -> list[int]:
    return [number >> 32 * i & 0xFFFFFFFF for i in range(count)]


def oracle_mask(seed: int, stream: int, size: int, p: float) -> torch.Tensor:
    """The mask, float64, of one dimension."""
    blocks = [words(block, 2) + words(stream, 2) for block in range((size + 3) // 4)]
    bits = philox(np.array(blocks, dtype=np.uint64), np.array(words(seed, 2), dtype=np.uint64))
    kept = bits.reshape(-1)[:size] >= round(p * 2**32)
    return torch.from_numpy(kept).to(DEVICE).double() / (1 - p)


def test_oracle_gives_the_known_answers():
    for counter, key, expected in KNOWN_ANSWERS:
        rows = [np.array([int(w, 16) for w in text.split()]) for text in (counter, key, expected)]
        assert philox(rows[0][None], rows[1]).tolist() == [rows[2].tolist()]


@pytest.mark.gpu
def test_known_answer_through_the_op():
    """A threshold at a word keeps its element, one above drops it: so all 32 bits are seen."""
    for index, word in enumerate(int(w, 16) for w in KNOWN_ANSWERS[0][2].split()):
        for above in (0, 1):
            p = (word + above) / 2**32
            mask = dropout_mask(torch.tensor(0), 0, (4,), p, torch.float64)
            assert mask[index].item() == (0 if above else 1 / (1 - p))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("seed", "stream"), [(0, 0), (2**63 - 2, 3), (-5, 2**40 + 7), (1 << 33, -1)]
)
def test_mask_against_the_oracle(instruction_set, seed, stream):
    for size, p in [(1, 0.5), (63, 0.1), (64, 0.9), (65, 1 / 3), (4099, 0.25), (70_001, 0.6)]:
        mask = dropout_mask(torch.tensor(seed), stream, (size,), p, torch.float64)
        assert torch.equal(mask, oracle_mask(seed, stream, size, p))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_dtypes_share_their_zeros(dtype):
    p = 0.3
    mask = dropout_mask(torch.tensor(7), 1, (30, 41), p, dtype)
    exact = oracle_mask(7, 1, 30 * 41, p).view(30, 41)
    assert mask.dtype == dtype
    assert torch.equal(mask, (exact != 0).to(dtype) * torch.tensor(1 / (1 - p), dtype=dtype))


@pytest.mark.gpu
def test_a_mask_for_each_seed():
    # They are (2, 3, 2), and not contiguous.
    seeds = torch.arange(24).view(2, 3, 4).transpose(0, 2)[::2]
    masks = dropout_mask(seeds, 2, (5, 7), 0.5, torch.float32)
    assert masks.shape == (2, 3, 2, 5, 7)
    for index in np.ndindex(2, 3, 2):
        assert torch.equal(masks[index], dropout_mask(seeds[index], 2, (5, 7), 0.5, torch.float32))
    assert dropout_mask(seeds[:0], 0, (5,), 0.5, torch.float32).shape == (0, 3, 2, 5)
    assert dropout_mask(seeds, 0, (5, 0), 0.5, torch.float32).shape == (2, 3, 2, 5, 0)
    assert dropout_mask(torch.tensor(0), 0, (), 0.0, torch.float32).item() == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_certain_probabilities(dtype):
    seed = torch.tensor(3)
    for p, value in [(0.0, 1.0), (1.0, 0.0), (1 - 1e-12, 0.0)]:
        mask = dropout_mask(seed, 0, (1000,), p, dtype)
        assert torch.equal(mask, torch.full((1000,), value, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_distribution(p):
    """A million elements are kept with probability 1 - p, without correlation between any neighbours."""
    n = 1 << 20

    def normalised(seed: int, stream: int) -> torch.Tensor:
        kept = dropout_mask(torch.tensor(seed), stream, (n,), p, torch.float64) != 0
        return (kept.double() - (1 - p)) / (p * (1 - p)) ** 0.5

    mask = normalised(0, 0)
    assert abs(mask.mean().item()) < 5 * n**-0.5
    for other in (normalised(0, 1), normalised(1, 0), normalised(1 << 32, 0)):
        assert abs((mask * other).mean().item()) < 5 * n**-0.5
    for lag in (1, 2, 3, 4, 16, 64, 4096):
        assert abs((mask[lag:] * mask[:-lag]).mean().item()) < 5 * (n - lag) ** -0.5


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("seeds", "size"), [(1, 300_007), (3, 70_001), (500, 131)])
def test_every_number_of_threads(set_threads, seeds, size):
    masks = []
    for threads in (1, 2, 3):
        set_threads(threads)
        masks.append(dropout_mask(torch.arange(seeds), 0, (size,), 0.4, torch.float32))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_forked_child():
    script = """
import os, torch
from fastrnn.dropout import dropout_mask
torch.set_num_threads(2)
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
run = lambda: dropout_mask(torch.tensor(1), 0, (300_000,), 0.5, torch.float32)
expected, started = run(), threads() - before
pid = os.fork()
if pid == 0:
    actual = run()
    torch.set_num_threads(1)  # torch.equal would wait for the parent's pool
    os._exit(0 if torch.equal(actual, expected) else 1)
print(started, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert process.stdout == "1 0\n", process.stderr


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nonsense_raises(device):
    seed = torch.tensor(0, device=device)
    for arguments in [
        (seed.int(), 0, (2,), 0.5, torch.float32),
        (seed, 0, (2,), 0.5, torch.int64),
        (seed, 0, (2,), 1.5, torch.float32),
        (seed, 0, (2,), -0.1, torch.float32),
        (seed, 0, (2,), float("nan"), torch.float32),
        (seed, 0, (-2,), 0.5, torch.float32),
    ]:
        with pytest.raises(RuntimeError):
            dropout_mask(*arguments)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_opcheck(dtype):
    for seed in (torch.tensor(5), torch.arange(6).view(2, 3)):
        torch.library.opcheck(torch.ops.fastrnn.dropout_mask, (seed, 1, (4, 7), 0.5, dtype))


# --- multiplying by it ----------------------------------------------------------------------------


def drop(x: torch.Tensor, p: float = 0.5) -> torch.Tensor:
    return x * dropout_mask(draw_seed(x.device), 0, x.shape, p, x.dtype)


def seeded(function, *arguments, seed: int = 1):
    # torch.manual_seed would note the stack for each kind of accelerator, which takes 2 ms.
    torch.default_generator.manual_seed(seed)
    return function(*arguments)


def test_infinity_and_nan_as_torch():
    """Both multiply, so what is dropped of an infinity is NaN."""
    x = torch.tensor([float("inf"), float("nan"), 1.0]).repeat_interleave(50)
    for p in (0.5, 1.0):
        ours, theirs = drop(x, p), nn.functional.dropout(x, p)
        for y in (ours, theirs):
            assert y[50:100].isnan().all()
            assert set(y[100:].tolist()) == ({0.0, 2.0} if p == 0.5 else {0.0})
            infinities, nans = y[:50].isinf(), y[:50].isnan()
            assert (infinities | nans).all()
            assert nans.any()
            assert infinities.any() == (p == 0.5)


def test_vmap():
    x = torch.ones(8, 40)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(drop)(x)
    torch.manual_seed(0)
    same = vmap(drop, randomness="same")(x)
    torch.manual_seed(0)
    assert torch.equal(same, drop(x[0]).expand(8, 40))
    torch.manual_seed(0)
    different = vmap(drop, randomness="different")(x)
    torch.manual_seed(0)
    seeds = torch.randint(0, 2**63 - 1, (8,))
    assert torch.equal(different, dropout_mask(seeds, 0, (40,), 0.5, x.dtype))
    assert len(different.unique(dim=0)) == 8


def test_vmap_over_any_dimension_and_nested():
    seeds = torch.arange(24).view(2, 3, 4)

    def mask(seed: torch.Tensor) -> torch.Tensor:
        return dropout_mask(seed, 1, (5, 6), 0.5, torch.float32)

    expected = mask(seeds)
    for dim in range(3):
        assert torch.equal(vmap(mask, in_dims=dim)(seeds), expected.movedim(dim, 0))
    # The maps go over dimensions 2, 1, 0.
    actual = vmap(vmap(vmap(mask), in_dims=1), in_dims=2)(seeds)
    assert torch.equal(actual, expected.permute(2, 1, 0, 3, 4))


def test_derivatives():
    x, u = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)

    def cubed(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return drop(x) ** 3

    mask = dropout_mask(draw_seed_from(0), 0, x.shape, 0.5, x.dtype)
    slope = 3 * mask**3 * x**2
    torch.testing.assert_close(grad(lambda x: cubed(x).sum())(x), slope)
    torch.testing.assert_close(jvp(cubed, (x,), (u,))[1], slope * u)
    jacobian = jacrev(cubed)(x).reshape(24, 24)
    torch.testing.assert_close(jacobian, torch.diag(slope.reshape(-1)))
    per_sample = vmap(grad(lambda x: cubed(x).sum()), randomness="same")(x)
    row = dropout_mask(draw_seed_from(0), 0, x.shape[1:], 0.5, x.dtype)
    torch.testing.assert_close(per_sample, 3 * row**3 * x**2)
    x.requires_grad_()
    assert torch.autograd.gradcheck(cubed, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cubed, x, check_fwd_over_rev=True)


def draw_seed_from(manual_seed: int) -> torch.Tensor:
    torch.manual_seed(manual_seed)
    return draw_seed(torch.device("cpu"))


class Drop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop(x)


def test_symbolic_shapes():
    rows = torch.export.Dim("rows")
    ways = {
        "make_fx": make_fx(lambda x: drop(x), tracing_mode="symbolic")(torch.ones(4, 6)),
        "export": torch.export.export(
            Drop(), (torch.ones(4, 6),), dynamic_shapes={"x": {0: rows}}
        ).module(),
        "compile": torch.compile(drop, fullgraph=True, backend="aot_eager", dynamic=True),
    }
    for way, traced in ways.items():
        for rows in (4, 9):
            x = torch.ones(rows, 6)
            assert torch.equal(seeded(traced, x), seeded(drop, x)), way


# --- the modules ----------------------------------------------------------------------------------


def make_module(name: str = "LSTM", I: int = I, H: int = H, **options):
    torch.manual_seed(0)
    options = {"num_layers": 2, "dropout": 0.5, "dtype": torch.float64, **options}
    return getattr(fastrnn, name)(I, H, **options), torch.randn(T, N, I, dtype=torch.float64)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_one_by_one(name, bidirectional):
    """The stack is its layers with masks between them: a stream a layer, an element a place in (T, N, D * H)."""
    module, x = make_module(name, num_layers=3, bidirectional=bidirectional)
    expected = x
    seed = draw_seed_from(1)
    for layer in range(3):
        features = expected.shape[-1]
        single = getattr(nn, name)(features, H, bidirectional=bidirectional, dtype=x.dtype)
        weights = {k: v for k, v in module.state_dict().items() if f"_l{layer}" in k}
        single.load_state_dict({k.replace(f"_l{layer}", "_l0"): v for k, v in weights.items()})
        expected = single(expected)[0]
        if layer < 2:
            expected = expected * dropout_mask(seed, layer, expected.shape, 0.5, x.dtype)
    assert_all_close([seeded(module, x)[0]], [expected], x.dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_packed(name):
    module, x = make_module(name)
    reference = fastrnn.decelerate(make_module(name)[0])
    packed = pack_padded_sequence(x, torch.tensor([2, 6, 3]), enforce_sorted=False)
    with OurMasks(dropout=0.5, num_layers=2):
        expected = seeded(reference, packed)[0]
    assert_all_close([seeded(module, packed)[0].data], [expected.data], x.dtype)


def test_reproducible_from_the_generator():
    module, x = make_module()
    first = seeded(module, x)[0]
    assert not torch.equal(first, module(x)[0])  # the generator went on
    assert torch.equal(first, seeded(module, x)[0])
    assert not torch.equal(first, seeded(module, x, seed=2)[0])


def test_nothing_is_drawn_where_nothing_is_dropped():
    cases = {
        "eval mode": (make_module()[0].eval(), False),
        "p = 0": (make_module(dropout=0.0)[0], False),
        "training": (make_module(num_layers=4)[0], True),
    }
    with pytest.warns(UserWarning, match="dropout option"):
        cases["one layer"] = make_module(num_layers=1)[0], False
    x = make_module()[1]
    for what, (module, draws) in cases.items():
        torch.manual_seed(1)
        module(x)
        after = torch.get_rng_state()
        torch.manual_seed(1)
        if draws:
            draw_seed(x.device)  # all layers share one
        assert torch.equal(after, torch.get_rng_state()), what


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_certain_probabilities_as_torch(name, p):
    module, x = make_module(name, dropout=p)
    reference = fastrnn.decelerate(make_module(name, dropout=p)[0])
    results = []
    for layer in (module, reference):
        y = layer(x)[0]
        results.append([y, *gradients([y], list(layer.parameters()))])
    assert_all_close(*results, x.dtype)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoint(name, reentrant):
    """The forward pass that runs again draws the same seed."""
    module, x = make_module(name)
    x.requires_grad_()
    inputs = [x, *module.parameters()]
    results = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        y = seeded(run, x)[0]
        torch.rand(3)  # backward must not depend on later draws
        for tensor in inputs:
            tensor.grad = None
        y.square().sum().backward()
        results.append([y, *(tensor.grad for tensor in inputs)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    # Each weight is moved by itself; the sizes are those of the scan's own numerical derivatives.
    module, x = make_module(name, I=2, H=3)

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        return seeded(lambda: functional_call(module, named, x))[0]

    inputs = (x[:3, :2].clone().requires_grad_(), *module.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_func(name):
    """grad, jacrev and jvp of a module are those of the masks, which each of them draws as a plain call does."""
    module, x = make_module(name)
    weights = dict(module.named_parameters())

    def loss(weights, x):
        return seeded(lambda: functional_call(module, weights, x))[0].square().sum(dim=(0, 2))

    inputs = [*weights.values(), x.requires_grad_()]
    rows = [torch.autograd.grad(value, inputs, retain_graph=True) for value in loss(weights, x)]
    jacobian = [torch.stack(row) for row in zip(*rows, strict=True)]
    plain = {key: value.detach() for key, value in weights.items()}
    x = x.detach()
    actual = grad(lambda weights: loss(weights, x).sum())(plain)
    assert_all_close([actual[k] for k in weights], [j.sum(0) for j in jacobian[:-1]], x.dtype)
    actual = jacrev(loss)(plain, x)
    assert_all_close([actual[k] for k in weights], jacobian[:-1], x.dtype)
    u = torch.randn_like(x)
    actual = jvp(lambda x: loss(plain, x), (x,), (u,))[1]
    assert_all_close([actual], [(jacobian[-1] * u).sum(dim=(1, 2, 3))], x.dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name):
    """vmap of a module: one mask for all samples, or one for each, as randomness= says; without it, an error."""
    module, x = make_module(name)
    weights = {key: value.detach() for key, value in module.named_parameters()}
    samples = torch.stack([x, x, x])

    def loss(weights, x):
        return functional_call(module, weights, x)[0].square().sum()

    def per_sample(**options):
        return seeded(vmap(grad(loss), in_dims=(None, 0), **options), weights, samples)

    with pytest.raises(RuntimeError, match="randomness"):
        per_sample()
    same = per_sample(randomness="same")
    expected = seeded(grad(loss), weights, x)
    for key in weights:
        assert_all_close(list(same[key]), [expected[key]] * 3, x.dtype)
    different = per_sample(randomness="different")
    gradient = different["weight_ih_l1"]
    assert not torch.allclose(gradient[0], gradient[1])
    assert not torch.allclose(gradient[1], gradient[2])
    # Each is what a call with its seed gives.
    seeds = seeded(lambda: torch.randint(0, 2**63 - 1, (3,)))
    for sample, seed in enumerate(seeds):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastrnn.layers.draw_seed", lambda device, seed=seed: seed)
            expected = grad(loss)(weights, x)
        assert_all_close([g[sample] for g in different.values()], [*expected.values()], x.dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_compile(name):
    module, x = make_module(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (T, T + 3):
        x = torch.randn(steps, N, I, dtype=x.dtype, requires_grad=True)
        results = []
        for run in (module, compiled):
            y = seeded(run, x)[0]
            results.append([y, *gradients([y], [x, *module.parameters()])])
        assert_all_close(*results, x.dtype)
        # A call has a seed of its own, not a graph.
        assert not torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    module, x = make_module()
    steps = {"dynamic_shapes": {"input": {0: torch.export.Dim("steps")}}, "strict": strict}
    exported = torch.export.export(module, (x,), **steps).module()
    for input in (x, torch.randn(T + 3, N, I, dtype=x.dtype)):
        assert_all_close([seeded(exported, input)[0]], [seeded(module, input)[0]], x.dtype)


def test_meta():
    module, x = make_module(device="meta")
    assert module(x.to("meta"))[0].shape == (T, N, H)
