"""Layers of users' cells: their numbers, and that they have all that LSTM has, in kernels and step by step."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import re
import shutil
import warnings

import pytest
import torch
from common import TOLERANCE, assert_all_close, assert_equal, gradients
from pairs import flatten
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import cells, functional, library, recurrent, user_cells, zoo
from fastrnn.cells import compiler, exp, log, minimum, sigmoid, tanh

T, N, I, H = 6, 4, 5, 9
NEEDS_COMPILER = "kernels of users' cells need a C++ compiler"


@cells.cell(gates="ifgo", states="c")
def written_lstm(x, h, s, p):
    i, f, o = sigmoid(x.i + h.i), sigmoid(x.f + h.f), sigmoid(x.o + h.o)
    c = f * s.c + i * tanh(x.g + h.g)
    return o * tanh(c), {"c": c}


@cells.cell(
    gates="a",
    states=("v", "n"),
    vectors={"tau": 0.5, "gain": None, "shift": (0.25, 0.5)},
    numbers={"alpha": 0.2},
    inputs=("dt", "noise"),
    initial={"v": 0.25, "h": -0.5},
)
def leaky(x, h, s, p):
    v = s.v + x.dt * (tanh(x.a + h.a) - p.tau * s.v) + x.noise
    n = p.alpha * s.n + p.gain * v * s.h
    return tanh(v + n + p.shift), {"v": v, "n": n}


@cells.cell(input_gates="zn", vectors="u")
def without_recurrence(x, h, s, p):
    z = sigmoid(x.z + p.u * s.h)
    return (1 - z) * s.h + z * tanh(x.n)


@cells.cell(gates="z", input_gates="n", recurrent_gates="rq")
def other_gates(x, h, s, p):
    z = sigmoid(x.z + h.z)
    return z * s.h + (1 - z) * tanh(x.n + sigmoid(h.r) * h.q)


CELLS = (written_lstm, leaky, without_recurrence, other_gates)
ALL_CELLS = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


@pytest.fixture(params=["kernels", "step by step"])
def path(request, monkeypatch):
    """Whether cells run in kernels; or as they do where none can be compiled."""
    if request.param == "kernels":
        if not any(map(shutil.which, ("c++", "g++"))):
            pytest.skip(NEEDS_COMPILER)
        yield request.param
        return

    def refuse(*args, **options):
        raise compiler.CannotCompile("a test says so")

    monkeypatch.setattr(compiler, "ensure", refuse)
    monkeypatch.setattr(library, "LOADED_CELLS", set())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*a test says so")
        yield request.param


@pytest.fixture
def kernels():
    if not any(map(shutil.which, ("c++", "g++"))):
        pytest.skip(NEEDS_COMPILER)


@contextlib.contextmanager
def step_by_step():
    """What runs in kernels elsewhere runs as torch operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_cells, "why_step_by_step", lambda *_: "a test compares")
        yield


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(cell, **options):
    torch.manual_seed(0)
    return fastrnn.Recurrent(cell, I, H, **{"dtype": torch.float64, **options})


def make_hx(cell, rows=1, size=H):
    """h and the cell's states, as the layer takes them."""
    states = [
        normal(rows, N, size if k == 0 else H, seed=k + 2) for k in range(1 + len(cell.states))
    ]
    return tuple(states) if cell.states else states[0]


def make_extra(cell):
    return {name: normal(T, N, seed=k + 9).sigmoid() for k, name in enumerate(cell.inputs)} or None


def run(module, x, hx=None, extra=None, **keywords):
    """Results and their gradients with respect to all that has any."""
    leaves = []

    def leaf(value):
        if isinstance(value, PackedSequence):
            return value._replace(data=leaf(value.data))
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    x = leaf(x)
    if hx is not None:
        hx = tuple(map(leaf, hx)) if isinstance(hx, tuple) else leaf(hx)
    if extra is not None:
        keywords["extra"] = {name: leaf(value) for name, value in extra.items()}
    results = flatten(module(x, hx, **keywords))
    return results + gradients(results, leaves + list(module.parameters()))


# --- against fastrnn.LSTM -------------------------------------------------------------------------

LAYERS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "reverse": {"reverse": True},
    "projected": {"proj_size": 4},
    "recompute": {"recompute": True},
    "everything": {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.4, "proj_size": 4},
}  # fmt: skip
LENGTHS = torch.tensor([4, 6, 0, 2])


def schedules(batch_first):
    """Keywords of a call."""
    marks = torch.zeros(T, N, dtype=torch.bool)
    marks[2, 1] = marks[4, :2] = marks[0, 3] = True
    reset = marks.t() if batch_first else marks
    mask = torch.arange(T)[:, None] < LENGTHS
    return {
        "no schedule": {},
        "lengths": {"lengths": LENGTHS},
        "mask": {"mask": mask.t() if batch_first else mask},
        "resets": {"reset": reset, "lengths": LENGTHS},
        "all states": {"return_all_states": True, "lengths": LENGTHS},
    }


@pytest.mark.parametrize("schedule", list(schedules(False)))
@pytest.mark.parametrize("options", LAYERS.values(), ids=list(LAYERS))
def test_lstm_in_the_language_is_lstm(path, options, schedule):
    ours = make(written_lstm, **options)
    torch.manual_seed(0)
    reference = fastrnn.LSTM(I, H, dtype=torch.float64, **options)
    assert list(ours.state_dict()) == list(reference.state_dict())
    assert all(map(torch.equal, ours.parameters(), reference.parameters()))
    batch_first = options.get("batch_first", False)
    keywords = schedules(batch_first)[schedule]
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    hx = make_hx(written_lstm, rows, options.get("proj_size", H))
    if schedule == "resets":
        keywords["reset_state"] = tuple(state + 1 for state in hx)
    x = normal(N, T, I) if batch_first else normal(T, N, I)
    for given in (hx, None):
        torch.manual_seed(5)  # dropout draws from it
        expected = run(reference, x, given, **keywords)
        torch.manual_seed(5)
        assert_all_close(run(ours, x, given, **keywords), expected, torch.float64)


@pytest.mark.parametrize("layout", ["packed", "unsorted", "jagged", "unbatched"])
@pytest.mark.parametrize("options", [{}, LAYERS["everything"]], ids=["plain", "everything"])
def test_layouts_of_lstm(path, options, layout):
    options = {**options, "dropout": 0.0}
    ours = make(written_lstm, **options)
    reference = fastrnn.LSTM(I, H, dtype=torch.float64, **options)
    reference.load_state_dict(ours.state_dict())
    x, lengths = normal(T, N, I), torch.tensor([2, 6, 1, 4])
    hx = make_hx(written_lstm, options.get("num_layers", 1) * (1 + options.get("bidirectional", False)), options.get("proj_size", H))  # fmt: skip
    if layout == "unbatched":
        assert_all_close(run(ours, x[:, 0], tuple(s[:, 0] for s in hx)), run(reference, x[:, 0], tuple(s[:, 0] for s in hx)), torch.float64)  # fmt: skip
    elif layout == "jagged":
        rows = torch.nested.nested_tensor(
            [x[:length, n] for n, length in enumerate(lengths)], layout=torch.jagged
        )
        results = [flatten(module(rows, hx)) for module in (ours, reference)]
        assert results[0][0].is_nested
        assert_all_close([results[0][0].values(), *results[0][1:]], [results[1][0].values(), *results[1][1:]], torch.float64)  # fmt: skip
        sums = [torch.autograd.grad(sum(r.sum() for r in (ys.values(), *rest)), list(module.parameters())) for module, (ys, *rest) in zip((ours, reference), results, strict=True)]  # fmt: skip
        assert_all_close(*sums, torch.float64)
    else:
        lengths = lengths.sort(descending=True).values if layout == "packed" else lengths
        packed = pack_padded_sequence(x, lengths, enforce_sorted=layout == "packed")
        assert isinstance(ours(packed)[0], PackedSequence)
        assert_all_close(run(ours, packed, hx), run(reference, packed, hx), torch.float64)


# --- against loops that this file writes ----------------------------------------------------------


def leaky_by_hand(module, x, hx, extra):
    h, v, n = (state[0] for state in hx)
    outputs = []
    for t in range(len(x)):
        a = x[t] @ module.weight_ih_l0.T + module.bias_ih_l0
        a = a + h @ module.weight_hh_l0.T + module.bias_hh_l0
        dt, noise = extra["dt"][t, :, None], extra["noise"][t, :, None]
        v = v + dt * (torch.tanh(a) - module.tau_l0 * v) + noise
        n = module.alpha * n + module.gain_l0 * v * h
        h = torch.tanh(v + n + module.shift_l0)
        outputs.append(h)
    return torch.stack(outputs), (h[None], v[None], n[None])


def without_recurrence_by_hand(module, x, hx, extra=None):
    h, outputs = hx[0], []
    for t in range(len(x)):
        x_z, x_n = (x[t] @ module.weight_ih_l0.T + module.bias_ih_l0).split(H, 1)
        z = torch.sigmoid(x_z + module.u_l0 * h)
        h = (1 - z) * h + z * torch.tanh(x_n)
        outputs.append(h)
    return torch.stack(outputs), h[None]


def other_gates_by_hand(module, x, hx, extra=None):
    h, outputs = hx[0], []
    for t in range(len(x)):
        x_z, x_n = (x[t] @ module.weight_ih_l0.T + module.bias_ih_l0).split(H, 1)
        h_z, h_r, h_q = (h @ module.weight_hh_l0.T + module.bias_hh_l0).split(H, 1)
        z = torch.sigmoid(x_z + h_z)
        h = z * h + (1 - z) * torch.tanh(x_n + torch.sigmoid(h_r) * h_q)
        outputs.append(h)
    return torch.stack(outputs), h[None]


class ByHand(nn.Module):
    """A loop with the parameters of a layer."""

    def __init__(self, layer, loop):
        super().__init__()
        self.layer, self.loop = layer, loop

    def forward(self, x, hx, **keywords):
        return self.loop(self.layer, x, hx, **keywords)


BY_HAND = {
    leaky: leaky_by_hand,
    without_recurrence: without_recurrence_by_hand,
    other_gates: other_gates_by_hand,
}


@pytest.mark.parametrize("cell", BY_HAND, ids=lambda cell: cell.name)
def test_matches_a_loop_by_hand(path, cell):
    layer = make(cell)
    call = normal(T, N, I), make_hx(cell), make_extra(cell)
    for alpha in (0.2, 0.7):
        layer.alpha = alpha  # of leaky, changed between calls
        assert_all_close(run(layer, *call), run(ByHand(layer, BY_HAND[cell]), *call), torch.float64)


# --- kernels against steps ------------------------------------------------------------------------

LARGER = {"two layers, both directions": {"num_layers": 2, "bidirectional": True}, "reverse": {"reverse": True, "recompute": True}}  # fmt: skip


@pytest.mark.parametrize("schedule", list(schedules(False)))
@pytest.mark.parametrize("options", LARGER.values(), ids=list(LARGER))
@ALL_CELLS
def test_kernels_are_steps(kernels, cell, options, schedule):
    layer, keywords = make(cell, **options), schedules(False)[schedule]
    rows = 4 if "num_layers" in options else 1
    x, extra = normal(T, N, I), make_extra(cell)
    for hx in (make_hx(cell, rows), None):
        actual = run(layer, x, hx, extra, **keywords)
        with step_by_step():
            expected = run(layer, x, hx, extra, **keywords)
        assert_all_close(actual, expected, torch.float64)


@pytest.mark.parametrize("dtype", [d for d in TOLERANCE if d != torch.float64], ids=str)
def test_every_dtype(path, dtype):
    layer = make(leaky, dtype=dtype)
    x, hx, extra = normal(T, N, I).to(dtype), make_hx(leaky), make_extra(leaky)
    hx = tuple(state.to(dtype) for state in hx)
    extra = {name: value.to(dtype) for name, value in extra.items()}
    actual = run(layer, x, hx, extra)
    assert all(tensor.dtype == dtype for tensor in actual)
    exact = copy.deepcopy(layer).double()
    hx, extra = tuple(s.double() for s in hx), {k: v.double() for k, v in extra.items()}
    expected = run(ByHand(exact, leaky_by_hand), x.double(), hx, extra)
    assert_all_close(actual, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(path, dtype):
    layer = make(leaky, dtype=torch.float32)
    x, extra = normal(T, N, I).float(), {k: v.float() for k, v in make_extra(leaky).items()}
    with torch.autocast("cpu", dtype):
        output, _ = layer(x, extra=extra)
    assert output.dtype == dtype
    assert_all_close([output], [layer(x, extra=extra)[0]], dtype)


# --- states, numbers and vectors ------------------------------------------------------------------


def test_states_begin_as_the_cell_declares(path):
    layer, x, extra = make(leaky), normal(T, N, I), make_extra(leaky)
    shape = (1, N, H)
    start = (torch.full(shape, -0.5), torch.full(shape, 0.25), torch.zeros(shape))
    start = tuple(state.double() for state in start)
    assert_equal(flatten(layer(x, extra=extra)), flatten(layer(x, start, extra=extra)))
    reset = torch.rand(T, N) < 0.5
    assert_equal(
        flatten(layer(x, extra=extra, reset=reset)),
        flatten(layer(x, extra=extra, reset=reset, reset_state=start)),
    )


def test_what_no_kernel_takes_is_refused_by_name(kernels):
    layer = make(leaky)  # it declares where its states start
    with pytest.raises(
        NotImplementedError, match=r"Recurrent: .* torch.sparse_coo: give input.to_dense"
    ):
        layer(normal(T, N, I).to_sparse(), extra=make_extra(leaky))
    step = fastrnn.RecurrentCell(other_gates, I, H, dtype=torch.float64)
    with pytest.raises(ValueError, match="RecurrentCell: Expected input to be 1D or 2D, got 0D"):
        step(torch.tensor(1.0, dtype=torch.float64))


SHORT_OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 2, "bidirectional": True, "bias": False},
    "batch first": {"batch_first": True, "reverse": True},
}


def extras_of(cell, *shape):
    """Extra inputs of a form, other values for each."""
    values = {k: normal(*shape, seed=9 + i).sigmoid() for i, k in enumerate(cell.inputs)}
    return values or None


def assert_same_bits_both_ways(module, x, hx, extra, monkeypatch):
    """The short way, which never comes to functional.run, gives what the long way gives."""
    with monkeypatch.context() as patch:
        patch.setattr(recurrent, "is_eager", lambda: False)
        expected = run(module, x, hx, extra)
    with monkeypatch.context() as patch:
        patch.setattr(functional, "run", None)
        assert_equal(run(module, x, hx, extra), expected)
        with torch.no_grad():
            results = flatten(module(x, hx, **{"extra": extra} if extra else {}))
    assert_equal(results, expected[: len(results)])


@pytest.mark.parametrize("options", SHORT_OPTIONS.values(), ids=SHORT_OPTIONS)
@ALL_CELLS
def test_the_short_way_of_layers_has_the_bits_of_the_long_one(kernels, cell, options, monkeypatch):
    layer = make(cell, **options)
    batched = [(N,), (T, N), (1, N, H), (T, N, 1)]
    if layer.batch_first:
        batched = [(N,), (N, T), (N, 1, H), (N, T, 1)]
    shapes = {(N, T, I) if layer.batch_first else (T, N, I): batched, (T, I): [(), (T,), (1, H)]}
    for shape, forms in shapes.items():
        x, hx = normal(*shape), make_hx(cell, layer.num_layers * (1 + layer.bidirectional))
        if len(shape) == 2:
            hx = tuple(state[:, 0] for state in hx) if cell.states else hx[:, 0]
        for form in forms if cell.inputs else [()]:
            extra = extras_of(cell, *form)
            for given in (hx, None):
                assert_same_bits_both_ways(layer, x, given, extra, monkeypatch)


@ALL_CELLS
def test_the_short_way_of_a_step_has_the_bits_of_the_long_one(kernels, cell, monkeypatch):
    torch.manual_seed(0)
    module = fastrnn.RecurrentCell(cell, I, H, dtype=torch.float64)
    for shape, forms in {(N, I): [(N,), (N, H), (1, 1)], (I,): [(), (H,)]}.items():
        states = tuple(normal(*shape[:-1], H, seed=k) for k in range(1 + len(cell.states)))
        hx = states if cell.states else states[0]
        for form in forms if cell.inputs else [()]:
            extra = extras_of(cell, *form)
            for given in (hx, None):
                assert_same_bits_both_ways(module, normal(*shape), given, extra, monkeypatch)


def test_all_states_are_the_last_ones_of_shorter_sequences(path):
    layer, x = make(leaky, num_layers=2, bidirectional=True), normal(T, N, I)
    extra = make_extra(leaky)
    output, finals, states = layer(x, extra=extra, return_all_states=True)
    assert [len(layer_states) for layer_states in states.c] == [2, 2]
    assert torch.equal(states.h[-1], output)
    every = [(states.h[k], *states.c[k]) for k in range(2)]
    for k, final in enumerate(finals):
        for layer_states, (ahead, back) in zip(every, final.unflatten(0, (2, 2)), strict=True):
            assert torch.equal(layer_states[k][-1, :, :H], ahead)
            assert torch.equal(layer_states[k][0, :, H:], back)


def test_parameters_are_named_and_drawn_as_declared():
    layer = make(leaky, num_layers=2, bidirectional=True, bias=False)
    names = [f"{kind}_l{k}{suffix}" for k in range(2) for suffix in ("", "_reverse") for kind in ("weight_ih", "weight_hh", "tau", "gain", "shift")]  # fmt: skip
    assert list(layer.state_dict()) == names
    assert layer.tau_l1_reverse.shape == (H,)
    for _ in range(2):
        assert layer.tau_l1.eq(0.5).all()
        assert ((layer.shift_l0 >= 0.25) & (layer.shift_l0 <= 0.5)).all()
        assert layer.gain_l0.abs().max() <= H**-0.5
        nn.init.zeros_(layer.tau_l1)
        layer.reset_parameters()
    assert list(make(without_recurrence).state_dict()) == ["weight_ih_l0", "bias_ih_l0", "u_l0"]
    assert {n: tuple(p.shape) for n, p in make(other_gates).named_parameters()} == {
        "weight_ih_l0": (2 * H, I), "weight_hh_l0": (3 * H, H), "bias_ih_l0": (2 * H,), "bias_hh_l0": (3 * H,),
    }  # fmt: skip


def test_repr_shows_cell_and_numbers():
    layer = make(leaky, num_layers=2)
    layer.alpha = 0.5
    assert repr(layer) == f"Recurrent(leaky, {I}, {H}, num_layers=2, alpha=0.5)"
    assert repr(fastrnn.RecurrentCell(leaky, I, H)) == f"RecurrentCell(leaky, {I}, {H}, alpha=0.2)"


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("kind", ["Recurrent", "RecurrentCell"])
def test_copies(path, kind, copier):
    module = getattr(fastrnn, kind)(leaky, I, H, dtype=torch.float64)
    module.alpha = 0.9
    clone = copier(module)
    extra = {"dt": normal(N), "noise": normal(N)}
    x = normal(N, I) if kind == "RecurrentCell" else normal(T, N, I)
    assert_equal(flatten(clone(x, extra=extra)), flatten(module(x, extra=extra)))
    assert clone.alpha == 0.9


def test_a_projected_layer_keeps_its_cell():
    layer = make(written_lstm, proj_size=4)
    assert layer.cell is written_lstm
    assert pickle.loads(pickle.dumps(layer)).cell == written_lstm


# --- extra inputs ---------------------------------------------------------------------------------

# How an extra input may be given: what it is of one for each step, sample and unit, and the inverse.
EXTRA_SHAPES = {
    "all": (lambda full: full, lambda given: given),
    "steps": (lambda full: full[..., 0], lambda given: given.unsqueeze(-1)),
    "units shared": (lambda full: full[..., :1], lambda given: given),
    "samples": (lambda full: full[0, :, 0], lambda given: given[None, :, None]),
    "samples and units": (lambda full: full[:1], lambda given: given),
}


class Expanding(nn.Module):
    """A layer whose extra input is changed before."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, x, hx, extra):
        return self.layer(x, hx, extra={name: self.change(each) for name, each in extra.items()})


@cells.cell(gates="a", inputs=("dt",))
def gap(x, h, s, p):
    return s.h + x.dt * (tanh(x.a + h.a) - s.h)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("sizes", [(T, N, H), (6, 6, 6)], ids=str)
@pytest.mark.parametrize("shape", EXTRA_SHAPES)
def test_extra_inputs_of_every_shape(path, shape, sizes, batch_first):
    """The rank decides, also where sizes are equal; gradients are sums over what shares a number."""
    steps, batch, units = sizes
    take, expand = EXTRA_SHAPES[shape]
    layer = fastrnn.Recurrent(gap, I, units, batch_first=batch_first, dtype=torch.float64)
    x, given = normal(steps, batch, I), take(normal(*sizes, seed=7)).contiguous()

    def as_laid_out(value):
        return value.transpose(0, 1) if batch_first and value.dim() > 1 else value

    def full(value):
        return as_laid_out(expand(as_laid_out(value)).expand(sizes))

    call = as_laid_out(x), None, {"dt": as_laid_out(given)}
    assert_all_close(run(layer, *call), run(Expanding(layer, full), *call), torch.float64)


@pytest.mark.parametrize("shape", EXTRA_SHAPES)
def test_extra_inputs_without_a_batch(path, shape):
    layer, x = make(gap), normal(T, 1, I)
    given = EXTRA_SHAPES[shape][0](normal(T, 1, H, seed=7))
    alone = given.squeeze(0 if shape == "samples" else 1)
    output, h_n = layer(x[:, 0], extra={"dt": alone})
    assert_equal([output[:, None], h_n[:, None]], layer(x, extra={"dt": given}))


@pytest.mark.parametrize("form", ["as the input", "rows", "one number a row", "samples", "samples and units"])  # fmt: skip
@pytest.mark.parametrize("layout", ["packed", "jagged"])
def test_extra_inputs_of_rows(path, layout, form):
    """They are those of a padded input with lengths."""
    layer, lengths = make(gap), torch.tensor([2, 6, 1, 4])
    x, dt = normal(T, N, I), normal(T, N, H, seed=7)
    if form == "one number a row":
        dt = dt[..., :1].expand(T, N, H)
    if form == "samples":
        dt = dt[:1, :, :1].expand(T, N, H)
    if form == "samples and units":
        dt = dt[:1].expand(T, N, H)

    def rows(values):
        if layout == "packed":
            return pack_padded_sequence(values, lengths, enforce_sorted=False)
        parts = [values[:length, n] for n, length in enumerate(lengths)]
        return torch.nested.nested_tensor(parts, layout=torch.jagged)

    def data(values):
        return values.data if layout == "packed" else values.values()

    laid_out = rows(dt)
    given = {
        "as the input": laid_out,
        "rows": data(laid_out),
        "one number a row": laid_out._replace(data=data(laid_out)[:, 0])
        if layout == "packed"
        else torch.nested.nested_tensor_from_jagged(data(laid_out)[:, 0], laid_out.offsets()),
        "samples": dt[0, :, 0],
        "samples and units": dt[:1],
    }[form]
    input = rows(x)
    if layout == "jagged" and isinstance(given, torch.Tensor) and given.is_nested:
        offsets = input.offsets()  # nested tensors of the same lengths are told apart by these
        given = torch.nested.nested_tensor_from_jagged(given.values(), offsets)
    output, h_n = layer(input, extra={"dt": given})
    expected, expected_h = layer(x, extra={"dt": dt}, lengths=lengths)
    assert_all_close([h_n, data(output)], [expected_h, data(rows(expected))], torch.float64)


def test_padding_has_no_part_in_gradients(path):
    layer, x, extra = make(gap), normal(T, N, I), {"dt": normal(T, N, H)}
    padding = torch.arange(T)[:, None] >= LENGTHS
    expected = run(layer, x, None, extra, lengths=LENGTHS)
    x[padding], extra["dt"][padding] = float("nan"), float("nan")
    assert_equal(run(layer, x, None, extra, lengths=LENGTHS), expected)


@cells.cell(gates="a", vectors={"gain": 1.0}, inputs=("dt",))
def singular(x, h, s, p):
    return tanh(x.a + h.a + p.gain * log(2 - 2 * x.dt))


@cells.cell(gates="a", states="v", vectors={"gain": 1.0}, inputs=("dt",))
def singular_inside(x, h, s, p):
    v = tanh(x.a + h.a) * log(2 - 2 * x.dt) / (1 - s.v)
    return p.gain * v, {"v": v}


@pytest.mark.parametrize("padding", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    ("cell", "options"),
    [(singular, {}), (singular, {"bidirectional": True}), (singular_inside, {"proj_size": 4})],
    ids=["plain", "bidirectional", "projected"],
)
def test_derivatives_of_padding_are_not_met(path, cell, options, padding):
    layer, x, extra = make(cell, **options), normal(T, N, I), make_extra(cell)
    lengths = torch.tensor([6, 0, 3, 1])
    extra["dt"][torch.arange(T)[:, None] >= lengths] = padding
    results = run(layer, x, None, extra, lengths=lengths)
    assert all(result.isfinite().all() for result in results)


@cells.cell(gates="a", numbers={"tau": 1.0, "top": 1.0})
def decaying(x, h, s, p):
    return tanh(x.a + h.a) * exp(-1 / p.tau) + minimum(log(p.top), 1.0)


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (-0.001, 1.0), (1.0, -1.0), (1.0, 0.0)], ids=str)
def test_numbers_that_python_does_not_compute(kernels, numbers):
    layer, x = make(decaying), normal(T, N, I)
    layer.tau, layer.top = numbers
    expected = layer(x)[0]
    with step_by_step():
        torch.testing.assert_close(layer(x)[0], expected, equal_nan=True)


# --- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [True, False], ids=["(N, H)", "(N,)"])
@ALL_CELLS
def test_a_cell_is_a_step_of_a_layer(path, cell, units):
    step, layer = fastrnn.RecurrentCell(cell, I, H, dtype=torch.float64), make(cell)
    layer.load_state_dict({f"{name}_l0": value for name, value in step.state_dict().items()})
    x, extra = normal(1, N, I), {name: normal(N, H, seed=k) for k, name in enumerate(cell.inputs)}
    if not units:
        extra = {name: value[:, 0].contiguous() for name, value in extra.items()}
    hx = make_hx(cell)
    first = tuple(s[0] for s in hx) if cell.states else hx[0]
    in_layer = {name: value[None] if units else value for name, value in extra.items()}
    _, *expected = flatten(layer(x, hx, extra=in_layer))
    assert_equal(flatten(step(x[0], first, extra=extra)), [state[0] for state in expected])
    alone = tuple(s[0] for s in first) if cell.states else first[0]
    extra = {name: value[0] for name, value in extra.items()}
    for a, b in zip(flatten(step(x[0, 0], alone, extra=extra)), expected, strict=True):
        assert_all_close([a], [b[0, 0]], torch.float64)


# --- transforms -----------------------------------------------------------------------------------


def scalar(layer, extra):
    def loss(x, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        results = torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (x,), {"extra": extra}
        )
        return sum(result.sin().sum() for result in flatten(results))

    return loss


@pytest.mark.parametrize("cell", [leaky, without_recurrence], ids=lambda cell: cell.name)
def test_derivatives_of_second_order_and_forward_mode(path, cell):
    layer, extra = make(cell), make_extra(cell)
    loss, inputs = (
        scalar(layer, extra),
        (normal(T, N, I), *(p.detach() for p in layer.parameters())),
    )
    directions = tuple(normal(*each.shape, seed=3) for each in inputs)

    def second(*inputs):
        leaves = [each.clone().requires_grad_() for each in inputs]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        along = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
        return torch.autograd.grad(along, leaves)

    def tangent(*inputs):
        return torch.func.jvp(loss, inputs, directions)[1]

    actual = [*second(*inputs), tangent(*inputs)]
    with step_by_step():
        expected = [*second(*inputs), tangent(*inputs)]
    assert_all_close(actual, expected, torch.float64)


@pytest.mark.parametrize("cell", [leaky, without_recurrence], ids=lambda cell: cell.name)
def test_vmap(path, cell):
    """Over inputs with shared weights, gradients of each sample, and weights of each."""
    layer, extra = make(cell), make_extra(cell)
    parameters = [p.detach() for p in layer.parameters()]
    loss, many = scalar(layer, extra), normal(3, T, N, I)
    many_parameters = [torch.stack([p, p + 0.1, p - 0.2]) for p in parameters]
    gradient = torch.func.grad(loss, argnums=tuple(range(1 + len(parameters))))
    every = (0, *[0] * len(parameters))
    cases = [((0, *[None] * len(parameters)), parameters), (every, many_parameters)]
    for dims, weights in cases:
        for function in (loss, gradient):
            actual = flatten(torch.func.vmap(function, dims)(many, *weights))
            alone = [
                flatten(function(many[k], *(w if d is None else w[k] for w, d in zip(weights, dims[1:], strict=True))))
                for k in range(3)
            ]  # fmt: skip
            expected = [torch.stack(each) for each in zip(*alone, strict=True)]
            assert_all_close(actual, expected, torch.float64)


@pytest.fixture
def fresh_compiler():
    """torch.compile counts what it compiled of a function, and knows which sizes changed."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@ALL_CELLS
def test_compile(path, cell, fresh_compiler):
    layer = make(cell, num_layers=2)
    x, hx, extra = normal(T, N, I), make_hx(cell, 2), make_extra(cell)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    keywords = {"reset": torch.rand(T, N) < 0.3}
    expected = run(layer, x, hx, extra, **keywords)
    assert_all_close(run(compiled, x, hx, extra, **keywords), expected, torch.float64)


def test_compiled_sizes_may_be_known_of_one_input_alone(path, fresh_compiler):
    for cell, steps in ((next(cell for cell in CELLS if not cell.inputs), T - 1), (leaky, T)):
        layer, x, extra = make(cell), normal(steps, N, I), make_extra(cell)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert_all_close(run(compiled, x, None, extra), run(layer, x, None, extra), torch.float64)


def test_compiled_numbers_may_change(path, fresh_compiler):
    layer, x, extra = make(leaky), normal(T, N, I), make_extra(leaky)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for alpha in (0.2, 0.6, 0.9):
        layer.alpha = alpha
        assert_all_close(run(compiled, x, None, extra), run(layer, x, None, extra), torch.float64)


@ALL_CELLS
def test_export(path, cell):
    layer, x, extra = make(cell), normal(T, N, I), make_extra(cell)
    library.LOADED_CELLS.clear()  # as where the export is the first to ask for kernels
    program = torch.export.export(layer, (x,), {"extra": extra})
    ours = {node.target for node in program.graph.nodes if "fastrnn" in str(node.target)}
    assert ours == ({torch.ops.fastrnn.scan.default} if path == "kernels" else set())
    expected = flatten(layer(x, extra=extra))
    assert_all_close(flatten(program.module()(x, extra=extra)), expected, torch.float64)


@pytest.mark.filterwarnings("ignore")  # of the tracer, of every size it meets
@ALL_CELLS
def test_jit_trace(path, cell):
    layer, x, extra = make(cell), normal(T, N, I), make_extra(cell)
    expected = flatten(layer(x, extra=extra))

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, *values):
            extra = dict(zip(cell.inputs, values, strict=True)) or None
            return self.layer(x, extra=extra)[0]

    values = list((extra or {}).values())
    library.LOADED_CELLS.clear()  # as where the trace is the first to ask for kernels
    traced = torch.jit.trace(Wrapped(), (x, *values))
    assert_all_close([traced(x, *values)], expected[:1], torch.float64)


TRACERS = {
    "jit.trace": lambda layer, x: torch.jit.trace(layer, (x,)),
    "compile": lambda layer, x: torch.compile(layer, backend="eager", fullgraph=True),
    "export": lambda layer, x: torch.export.export(layer, (x,), strict=True).module(),
}


@pytest.mark.filterwarnings("ignore")  # of the tracers, and of the loop
@pytest.mark.parametrize("tracer", TRACERS.values(), ids=list(TRACERS))
def test_a_tracer_may_be_the_first_to_call_without_a_compiler(tracer, monkeypatch):
    def refuse(unit):
        raise compiler.CannotCompile("a test says so")

    monkeypatch.setattr(compiler, "in_cache", refuse)
    monkeypatch.setattr(compiler, "_refusals", {})
    number = len(library.USER_CELLS)  # makes a cell that no other test has called

    @cells.cell(gates="a")
    def unknown(x, h, s, p):
        return tanh(x.a + number * h.a)

    layer, x = make(unknown), normal(T, N, I)
    assert_all_close(flatten(tracer(layer, x)(x)), flatten(layer(x)), torch.float64)


def test_fx_sees_a_leaf(path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(gap)

        def forward(self, x, dt):
            return self.layer(x, extra={"dt": dt})[0]

    model, x, dt = Model(), normal(T, N, I), normal(T, N)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer"]
    assert_equal([traced(x, dt)], [model(x, dt)])


def test_meta():
    layer = make(leaky, device="meta")
    x, extra = torch.empty(T, N, I, dtype=torch.float64, device="meta"), make_extra(leaky)
    output, states = layer(x, extra={name: value.to("meta") for name, value in extra.items()})
    assert output.shape == (T, N, H)
    assert [state.shape for state in states] == [(1, N, H)] * 3


# --- where there are no kernels, and who says so --------------------------------------------------


def test_a_loop_warns_once_and_says_why(monkeypatch):
    def refuse(*args, **options):
        raise compiler.CannotCompile("no compiler is installed")

    monkeypatch.setattr(compiler, "ensure", refuse)
    monkeypatch.setattr(library, "LOADED_CELLS", set())
    user_cells._warn_once.cache_clear()
    layer, x = make(without_recurrence), normal(T, N, I)
    text = (
        "fastrnn: without_recurrence runs as a loop of torch operations.*no compiler is installed\n"
        r"Mend that, then call fastrnn\.cells\.build\(cell\), or start again$"
    )
    with pytest.warns(UserWarning, match=text) as record:
        layer(x)
        layer(x)
    assert len(record) == 1
    user_cells._warn_once.cache_clear()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_explain(path, packed):
    layer, x = make(without_recurrence, bidirectional=True), normal(T, N, I)
    lengths = torch.tensor([6, 5, 3, 2])
    input = pack_padded_sequence(x, lengths) if packed else x
    explanation = fastrnn.explain(layer, input, lengths=None if packed else lengths)
    forward, reverse = explanation.scans
    assert (forward.cell, forward.direction, reverse.direction) == ("without_recurrence", "forward", "reverse")  # fmt: skip
    assert forward.sizes == {"T": T, "N": N, "I": I, "H": H, "R": H, "steps run": 16}
    assert forward.layout == ("packed" if packed else "padded")
    assert forward.flop == 2 * 16 * 2 * H * I
    assert forward.saved_bytes > 0
    if path == "kernels":
        assert forward.kernel == "units in lanes"
        assert forward.instruction_set in str(explanation)
    else:
        assert forward.kernel == "torch operations"
        assert "no kernels: a test says so" in forward.reasons
    with torch.no_grad():
        assert fastrnn.explain(layer, x).scans[0].saved_bytes == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (fastrnn.freeze, ValueError, "Recurrent: a user's cell, whose weights cannot be packed"),
        (fastrnn.Stream, TypeError, "Stream: Recurrent has a user's cell, gap, and streams"),
        (
            torch.jit.script,
            RuntimeError,
            "torch.jit.script cannot compile fastrnn's Recurrent: use torch.jit.trace or torch.export",
        ),
    ],
    ids=["freeze", "Stream", "script"],
)
def test_refused_by_name(call, error, text):
    with pytest.raises(error, match=text):
        call(make(gap))


def test_accelerate_and_decelerate_leave_it():
    model = nn.Sequential(make(gap))
    report = fastrnn.Report()
    assert type(fastrnn.decelerate(model, report=report)[0]) is fastrnn.Recurrent
    assert report.left == {"0": "Recurrent: torch.nn has no cell of the user's: write a loop over module.cell.step"}  # fmt: skip
    assert type(fastrnn.accelerate(model, keep_type=False)[0]) is fastrnn.Recurrent


# --- errors ---------------------------------------------------------------------------------------

ERRORS = {
    "cell": (lambda: fastrnn.Recurrent(tanh, I, H), TypeError, "cell must be what the decorator fastrnn.cells.cell makes of a function, got function"),
    "projection": (lambda: make(gap, proj_size=4), ValueError, "gap reads s.h, so its h cannot be projected"),
    "no extra": (lambda: make(gap)(normal(T, N, I)), ValueError, "Recurrent: the cell takes extra={'dt': tensor}, got None"),
    "unknown extra": (lambda: make(gap)(normal(T, N, I), extra={"time": normal(T, N)}), ValueError, "extra={'dt': tensor}, got ['time']"),
    "extra of a cell without": (lambda: make(written_lstm)(normal(T, N, I), extra={"dt": normal(T, N)}), ValueError, "the cell takes no extra inputs, got ['dt']"),
    "no dict": (lambda: make(gap)(normal(T, N, I), extra=normal(T, N)), TypeError, "extra must be a dict of tensors by the names of the cell's inputs, got Tensor"),
    "no tensor": (lambda: make(gap)(normal(T, N, I), extra={"dt": 0.5}), TypeError, "extra['dt'] must be a tensor or, beside a packed input, a PackedSequence, got float"),
    "shape": (lambda: make(gap)(normal(T, N, I), extra={"dt": normal(N, H)}), ValueError, "extra['dt'] has shape [4, 9], expected (T, N, H) = (6, 4, 9) with 1 for a size that shares one value, (T, N) or (N,)"),
    "shape, batch first": (lambda: make(gap, batch_first=True)(normal(N, T, I), extra={"dt": normal(T, N)}), ValueError, "extra['dt'] has shape [6, 4], expected (N, T, H) = (4, 6, 9)"),
    "shape without a batch": (lambda: make(gap)(normal(T, I), extra={"dt": normal(T, N, H)}), ValueError, "extra['dt'] has shape [6, 4, 9], expected (T, H) = (6, 9)"),
    "packed beside padded": (lambda: make(gap)(normal(T, N, I), extra={"dt": pack_padded_sequence(normal(T, N), torch.tensor([6] * N))}), TypeError, "extra['dt'] is a PackedSequence, expected a tensor (T, N, H)"),
    "other packing": (lambda: make(gap)(pack_padded_sequence(normal(T, N, I), torch.tensor([6] * N)), extra={"dt": pack_padded_sequence(normal(T, N), torch.tensor([6, 5, 4, 3]))}), ValueError, "extra['dt'] has samples of other lengths, or in another order, than the input"),
    "rows": (lambda: make(gap)(pack_padded_sequence(normal(T, N, I), torch.tensor([6] * N)), extra={"dt": normal(T, H)}), ValueError, "extra['dt'] has shape [6, 9], expected laid out as the input, of (rows, H) = (24, 9)"),
    "dtype": (lambda: make(gap)(normal(T, N, I), extra={"dt": normal(T, N).float()}), RuntimeError, "Input and extra['dt'] tensors are not the same dtype, found input tensor with torch.float64 and extra['dt'] tensor with torch.float32; call .to(torch.float64)"),
    "states": (lambda: make(leaky)(normal(T, N, I), make_hx(written_lstm), extra=make_extra(leaky)), RuntimeError, "the cell has 3 states, hx = (h, v, n), got tuple of (Tensor, Tensor)"),
    "state": (lambda: make(gap)(normal(T, N, I), 1.0, extra={"dt": normal(T, N)}), TypeError, "hx must be a tensor h, got float"),
    "size of a state": (lambda: make(leaky)(normal(T, N, I), (*make_hx(leaky)[:2], normal(1, N, 3)), extra=make_extra(leaky)), RuntimeError, "Expected hidden[2] size (1, 4, 9), got [1, 4, 3]"),
    "size of a cell's state": (lambda: fastrnn.RecurrentCell(gap, I, H)(torch.zeros(N, I), torch.zeros(N, 3), extra={"dt": torch.zeros(N)}), RuntimeError, "hidden0 has inconsistent hidden_size: got 3, expected 9"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), ERRORS.values(), ids=list(ERRORS))
def test_errors(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


@pytest.mark.parametrize("value", ["0.5", True, None, torch.tensor(0.5)], ids=repr)
def test_a_number_is_a_number(value):
    layer = make(leaky)
    layer.alpha = value
    with pytest.raises(TypeError, match="Recurrent: alpha must be a number, got"):
        layer(normal(T, N, I), extra=make_extra(leaky))


@cells.cell(gates="a")
def written_rnn(x, h, s, p):
    return tanh(x.a + h.a)


@cells.cell(gates="rzn")
def written_gru(x, h, s, p):
    r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    return n + z * (s.h - n)


@pytest.mark.parametrize(
    "cell, built_in",
    [(written_rnn, fastrnn.RNN), (written_gru, fastrnn.GRU), (written_lstm, fastrnn.LSTM)],
    ids=["rnn", "gru", "lstm"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_units_lie_beside_each_other_in_the_bits_of_built_in_cells(
    kernels, cell, built_in, dtype
):
    few, samples = 5, 37
    layer = fastrnn.Recurrent(cell, 3, few, num_layers=2, dtype=dtype)
    expected = built_in(3, few, num_layers=2, dtype=dtype)
    expected.load_state_dict(layer.state_dict())
    x = normal(T, samples, 3).to(dtype)
    states = [normal(2, samples, few, seed=k).to(dtype) for k in range(1 + len(cell.states))]
    hx = tuple(states) if cell.states else states[0]
    assert "samples in lanes" in str(fastrnn.explain(layer, x))
    schedule = {
        "lengths": torch.arange(samples) % (T + 1),
        "reset": torch.rand(T, samples) < 0.2,
        "reset_state": tuple(state + 1 for state in states) if cell.states else hx + 1,
    }
    for keywords in ({}, schedule):
        assert_equal(run(layer, x, hx, **keywords), run(expected, x, hx, **keywords))


@cells.cell(gates="a", states="c")
def reading_both(x, h, s, p):
    h = tanh(x.a + h.a + s.c)
    return h, {"c": exp(-h) * sigmoid(s.c)}


def test_few_units_whose_gradient_takes_h_and_c(path):
    layer = fastrnn.Recurrent(reading_both, 3, 5, dtype=torch.float64)
    x, hx = normal(T, 21, 3), (normal(1, 21, 5), normal(1, 21, 5, seed=2))
    kernels = run(layer, x, hx)
    with step_by_step():
        assert_all_close(kernels, run(layer, x, hx), torch.float64)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_units_that_wait_for_none_have_the_same_bits_for_all_threads(
    kernels, two_threads, samples, reverse
):
    torch.set_num_threads(2 * samples)
    steps, units = 1000, 96  # more than a chunk of steps
    layer = fastrnn.Recurrent(without_recurrence, units, units, reverse=reverse)
    x, hx = torch.randn(steps, samples, units), torch.randn(1, samples, units)
    shape = f"sharing samples in {samples} and hidden units in 2"
    assert shape in str(fastrnn.explain(layer, x))
    schedule = {
        "lengths": steps - 70 * torch.arange(samples),
        "reset": torch.rand(steps, samples) < 0.1,
        "reset_state": hx + 1,
    }
    calls = [{}, {"lengths": schedule["lengths"]}, schedule]
    results = [run(layer, x, hx, **keywords) for keywords in calls]
    torch.set_num_threads(1)
    for keywords, expected in zip(calls, results, strict=True):
        assert_equal(run(layer, x, hx, **keywords), expected)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "cell", [written_lstm, without_recurrence, other_gates, "three states"], ids=str
)
def test_the_short_way_of_a_step(kernels, monkeypatch, cell, grad, batched):
    if cell == "three states":

        @cells.cell(gates="a", states="uv", vectors=("gain", "shift"), numbers={"rate": 0.5})
        def cell(x, h, s, p):
            u = s.u + p.rate * tanh(x.a + h.a)
            return p.gain * u * s.h + p.shift, {"u": u, "v": s.v * u}

    step = fastrnn.RecurrentCell(cell, I, H, dtype=torch.float64)
    states = [normal(N, H, seed=k) for k in range(1 + len(cell.states))]
    x = normal(N, I)
    if not batched:
        x, states = x[0], [state[0] for state in states]
    hx = tuple(states) if cell.states else states[0]

    def results():
        if grad:
            return run(step, x, hx) + run(step, x)
        with torch.no_grad():
            return [*flatten(step(x, hx)), *flatten(step(x))]

    with monkeypatch.context() as patch:
        patch.setattr(functional, "run", None)  # the long way
        short = results()
    with step_by_step():
        assert_all_close(short, results(), torch.float64)


def test_samples_are_shared_where_no_step_waits_for_another(kernels, two_threads):
    layer, x = fastrnn.Recurrent(zoo.mingru, 64, 64), torch.randn(50, 8, 64)
    assert "sharing samples in 2" in str(fastrnn.explain(layer, x))


@cells.cell(gates="a", vectors=("gain", "shift"))
def shifted(x, h, s, p):
    return p.gain * tanh(x.a + h.a) + p.shift


def unequal_vectors(module, suffix):
    """The module, with vectors whose sizes are wrong and have the right sum."""
    for name, size in (("gain", H - 1), ("shift", H + 1)):
        setattr(module, name + suffix, nn.Parameter(normal(size)))
    return module


UNEQUAL = {
    "layer": lambda: unequal_vectors(make(shifted), "_l0")(normal(T, N, I)),
    "layer, the long way": lambda: unequal_vectors(make(shifted), "_l0")(normal(T, N, I), lengths=LENGTHS),
    "reverse": lambda: unequal_vectors(make(shifted, bidirectional=True), "_l0_reverse")(normal(T, N, I)),
    "one step": lambda: unequal_vectors(fastrnn.RecurrentCell(shifted, I, H, dtype=torch.float64), "")(normal(N, I)),
}  # fmt: skip


@pytest.mark.parametrize("call", UNEQUAL.values(), ids=list(UNEQUAL))
def test_each_vector_has_a_value_for_each_unit(path, call):
    with pytest.raises(RuntimeError, match=r"gain_l0(_reverse)? has shape \[8\], expected \[9\]"):
        call()


CLANG = next(filter(shutil.which, ("clang++", *(f"clang++-{n}" for n in range(24, 15, -1)))), None)


@pytest.mark.skipif(CLANG is None, reason="needs clang")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_clang_gives_the_same_bits(kernels, monkeypatch, tmp_path, dtype):
    def made_with(compiler):
        monkeypatch.setenv("CXX", compiler)
        monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / compiler))

        def formula(x, h, s, p):
            c = s.c + p.u * tanh(x.a + h.a) - minimum(s.h, x.b)
            return sigmoid(c) * exp(-x.b), {"c": c}

        formula.__name__ = "of_clang" if compiler == CLANG else "of_gcc"  # else it is one cell
        cell = cells.cell(gates="a", input_gates="b", states="c", vectors="u")(formula)
        layer = make(cell, dtype=dtype)
        results = run(layer, normal(T, N, I).to(dtype))
        assert list((tmp_path / compiler).glob("*.so"))
        return results

    assert_equal(made_with(CLANG), made_with("g++"))
