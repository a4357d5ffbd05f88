"""float32 layers where torch is told that products may round their factors to bfloat16."""

import warnings

import pytest
import torch
from common import CELLS, assert_all_close, gradients, leaf, make_scan, present, told

import fastrnn
from fastrnn import ops

BY_PAIRS = ("amx", "avx512_bf16", "neon_bf16")  # the sets that multiply bfloat16


def rounded(tensor):
    """A matrix as products round it; vectors, which are added, stay."""
    return tensor if tensor is None or tensor.dim() == 1 else tensor.bfloat16().to(tensor.dtype)


def layer(cell, sizes, dtype=torch.float32, **options):
    x, h, c, weights = make_scan(cell, sizes, **options)
    return [None if t is None else t.to(dtype) for t in (x, h, c, *weights)]


def run(cell, tensors):
    x, h, c, *weights = tensors
    return present(ops.scan(cell, x, h, c, ops.ScanWeights(*weights)))


@pytest.mark.parametrize("sizes", [(1, 3, 20, 64), (1, 1, 7, 83), (1, 60, 33, 40)])
@pytest.mark.parametrize("cell", CELLS)
def test_one_step_multiplies_rounded_factors(cell, sizes, instruction_set):
    """Later steps round a state that differs in its last bits, which may round to either side."""
    x, h, *others = layer(cell, sizes)
    tensors = [x, rounded(h), *others]  # a GRU adds h itself, too
    exact = run(cell, tensors)
    with told():
        results = run(cell, tensors)
    if instruction_set not in BY_PAIRS:
        assert all(torch.equal(a, b) for a, b in zip(results, exact, strict=True))
        return
    x, h, c, *weights = (t if t is None else t.double() for t in tensors)
    expected = run(cell, [rounded(x), h, c, *map(rounded, weights)])
    assert_all_close(results, expected, torch.float32)
    assert (results[0] - exact[0]).abs().max() > 1e-4


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])
def test_results_and_gradients_are_near(cell, recompute, instruction_set):
    """Not of a kink, on whose other side a rounded sum may lie."""

    def gradients_of(tensors):
        x, h, c, *weights = (leaf(t, torch.float32) for t in tensors)
        results = present(ops.scan(cell, x, h, c, ops.ScanWeights(*weights), recompute=recompute))
        return [*results, *gradients(results, present((x, h, c, *weights)))]

    tensors = layer(cell, (6, 17, 20, 48))
    exact = gradients_of(tensors)
    with told():
        found = gradients_of(tensors)
    for a, b in zip(found, exact, strict=True):
        scale = b.abs().max()
        assert (a - b).abs().max() < 0.03 * scale
        assert torch.equal(a, b) == (instruction_set not in BY_PAIRS)


@pytest.mark.parametrize("sizes", [(5, 9, 6, 64), (5, 9, 6, 20)], ids=["many units", "few units"])
def test_a_sample_does_not_depend_on_its_batch(sizes, instruction_set):
    x, h, c, *weights = layer("lstm", sizes)
    with told():
        together = run("lstm", [x, h, c, *weights])[0]
        alone = [
            run("lstm", [x[:, n : n + 1], h[n : n + 1], c[n : n + 1], *weights])[0] for n in (0, 8)
        ]
    assert torch.equal(together[:, [0, 8]], torch.cat(alone, 1))


@pytest.mark.parametrize("trains", [False, True])
def test_layers_follow(trains, instruction_set):
    model = fastrnn.GRU(12, 48, num_layers=2, bidirectional=True)
    few, x = fastrnn.GRU(12, 20), torch.randn(7, 4, 12)
    with torch.set_grad_enabled(trains):
        exact = model(x)[0]
        with told():
            rounds = model(x)[0]
            of_few = few(x)[0]
        assert torch.equal(few(x)[0], of_few)
    assert torch.equal(rounds, exact) == (instruction_set not in BY_PAIRS)
    assert (rounds - exact).abs().max() < 0.02


def exported(model, x):
    return torch.export.export(model, (x,)).module()


def traced(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(model, (x,), check_trace=False)


def compiled(model, x):
    torch.compiler.reset()
    return torch.compile(model)


def batched(model, x):
    return lambda x: tuple(
        result.flatten(0, 1) for result in torch.func.vmap(model)(x.unflatten(0, (2, 2)))
    )


@pytest.mark.parametrize("way", [exported, traced, compiled])
def test_graphs_of_layers_round(way, instruction_set):
    model, x = fastrnn.LSTM(12, 64), torch.randn(3, 4, 12)
    with torch.no_grad(), told():
        eager = model(x)[0]
        output = way(model, x)(x)[0]
    assert torch.equal(output, eager)
    assert torch.equal(output, model(x)[0]) == (instruction_set not in BY_PAIRS)


@pytest.mark.parametrize("way", [None, exported, traced, batched])
@pytest.mark.parametrize("cell", [fastrnn.RNNCell, fastrnn.GRUCell, fastrnn.LSTMCell])
def test_cells_multiply_in_float32(cell, way):
    """In every way of calling them, of which the short one has no other products."""

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(12, 64)

        def forward(self, x):
            result = self.cell(x)
            return result if isinstance(result, tuple) else (result,)

    model, x = Step(), torch.randn(4, 12)
    with torch.no_grad():
        exact = model(x)
        with told():
            results = (way(model, x) if way else model)(x)
    assert all(torch.equal(a, b) for a, b in zip(results, exact, strict=True))


@pytest.mark.parametrize("way", [None, exported, traced])
def test_frozen_layers_multiply_in_float32(way):
    model, x = fastrnn.LSTM(12, 64), torch.randn(3, 4, 12)
    frozen = fastrnn.freeze(model)
    with torch.no_grad(), told():
        output = (way(frozen, x) if way else frozen)(x)[0]
        (scan,) = fastrnn.explain(frozen, x).scans
    assert torch.equal(output, model(x)[0])
    assert not any("round their factors" in reason for reason in scan.reasons)


def test_a_graph_for_a_gpu_is_exact_on_a_cpu(monkeypatch):
    """It has recorded that a GPU may take TF32, which torch allows unless it is told otherwise."""
    monkeypatch.setattr(ops, "_allowed_rounding", lambda input: "tf32")
    model, x = fastrnn.LSTM(12, 64), torch.randn(3, 4, 12)
    graph = exported(model, x)
    assert torch.equal(graph(x)[0], model(x)[0])


def test_torch_is_asked_as_it_tells():
    """The short form of the question has the answer of the public one."""
    from fastrnn.torch_internals import rounds_to_bfloat16

    for precision in ("ieee", "bf16", "none"):
        with told(precision):
            public = torch.backends.mkldnn.rnn.fp32_precision
            assert rounds_to_bfloat16() == (public == "bf16")


def test_other_types_do_not_round():
    tensors = layer("gru", (4, 3, 5, 64), torch.float64)
    exact = run("gru", tensors)
    with told():
        assert all(torch.equal(a, b) for a, b in zip(run("gru", tensors), exact, strict=True))
