"""lengths=, reset=, reset_state=, reverse=, every state and every layout, against torch.nn on one sample at a time.

The oracle knows no padding and no marks: it cuts a sample into its segments and runs torch.nn on each.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from common import assert_all_close, assert_equal, gradients
from torch import nn
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import fastrnn
from fastrnn import AllStates, detach_state

pytestmark = pytest.mark.gpu

CELLS = {
    "RNN_TANH": ("RNN", {}),
    "RNN_RELU": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "LSTM_PROJ": ("LSTM", {"proj_size": 3}),
}
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)

STACKS = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "reverse": {"reverse": True},
    "two bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "two reverse": {"num_layers": 2, "reverse": True, "batch_first": True},
}
EVERY_STACK = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
DEEP = STACKS["two bidirectional"]

# T, N, I, H are no round numbers; few units on many samples take another kernel; the units of some go past one vector.
SIZES = [(7, 4, 3, 9), (6, 40, 3, 5), (5, 3, 4, 20), (4, 19, 2, 33)]

EVERYTHING = ("lengths", "reset", "reset_state")
CONTROLS = {
    "lengths": ("lengths",),
    "reset": ("reset",),
    "reset_state": ("reset", "reset_state"),
    "everything": EVERYTHING,
}


class Case:
    """A module of ours, its input, states and sequence control: time first, float64, NaN in the padding."""

    def __init__(
        self, cell, sizes=SIZES[0], stack=None, control=(), least=0, batched=True, **options
    ):
        T, N, I, H = sizes
        self.name, own = CELLS[cell]
        self.options = {**own, **(stack or {}), **options}
        self.batched = batched
        torch.manual_seed(0)
        self.module = self.make_module(I, H)
        rows, R = self.module.num_layers * self.directions, self.module.proj_size or H
        widths = (R, H) if self.name == "LSTM" else (R,)

        def states():
            return tuple(torch.randn(rows, N, width, dtype=torch.float64) for width in widths)

        self.x = torch.randn(T, N, I, dtype=torch.float64)
        self.hx, self.reset_state = states(), states() if "reset_state" in control else ()
        self.lengths = self.reset = None
        if "lengths" in control:
            self.lengths = torch.randint(least, T + 1, (N,))
            self.lengths[:4] = torch.tensor([least, T, 1, T - 1]).clamp(0, T)[:N]
            self.x[torch.arange(T)[:, None] >= self.lengths] = float("nan")
        if "reset" in control:
            self.reset = torch.rand(T, N) < 0.4
            # One sample starts anew at once and at the end, and one never does.
            if N > 1 and T > 0:
                self.reset[[0, T - 1], 1] = True
                self.reset[:, N - 1] = False
        self.require_gradients()

    def make_module(self, I, H, dtype=torch.float64, **options):
        return getattr(fastrnn, self.name)(I, H, dtype=dtype, **(self.options | options))

    @property
    def directions(self):
        return 1 + self.module.bidirectional

    def require_gradients(self):
        for tensor in (self.x, *self.hx, *self.reset_state):
            tensor.requires_grad_()

    def leaves(self):
        """What is differentiated: input, states, reset states, weights."""
        return [self.x, *self.hx, *self.reset_state, *self.module.parameters()]

    def copy(self, values=torch.float64, dtype=torch.float64, **options):
        """A copy on leaves of its own, rounded to the dtype `values`, in another dtype or with other options."""
        case = copy.copy(self)
        sizes = self.module.input_size, self.module.hidden_size
        case.options = self.options | options
        case.module = case.make_module(*sizes, dtype=dtype)
        weights = {name: w.to(values) for name, w in self.module.state_dict().items()}
        case.module.load_state_dict(weights)
        rounded = [t.detach().to(values).to(dtype).clone() for t in self.leaves()]
        case.x, *states = rounded[: 1 + len(self.hx) + len(self.reset_state)]
        case.hx, case.reset_state = tuple(states[: len(self.hx)]), tuple(states[len(self.hx) :])
        case.require_gradients()
        return case

    def turn(self, sequence):
        """Turn (T, N, ...) into the module's layout; for a batch, back, too."""
        if sequence is None:
            return None
        if not self.batched:
            return sequence.squeeze(1)
        return sequence.transpose(0, 1) if self.module.batch_first else sequence

    def state(self, tensors):
        """States as the module takes them."""
        tensors = tuple(tensors if self.batched else (t.squeeze(1) for t in tensors))
        return None if not tensors else tensors if self.name == "LSTM" else tensors[0]

    def run(self, input=None, **options):
        """The module's results as it gives them: on the padded batch, or on another layout of it."""
        control = {"reset": self.turn(self.reset), "reset_state": self.state(self.reset_state)}
        if input is None:
            input = self.turn(self.x)
            control["lengths"] = self.lengths
        return self.module(input, self.state(self.hx), **(control | options))

    def padded(self, **options):
        """The results of run() as one list of tensors, sequences time first."""
        return flatten(self.run(**options), self.turn if self.batched else lambda y: y)

    def rows(self):
        """The samples' steps one sample after another, and offsets: values of a jagged tensor."""
        samples = [self.x[:length, n] for n, length in enumerate(self.lengths.tolist())]
        values = torch.cat([self.x.new_zeros(0, self.x.size(2)), *samples])
        return values, nn.functional.pad(self.lengths.cumsum(0), (1, 0))


def flatten(results, sequence=lambda y: y):
    """Output, final states, then h and c of every layer; `sequence` is applied to all but the final states."""
    output, finals, *rest = results
    flat = [sequence(output), *([finals] if isinstance(finals, torch.Tensor) else finals)]
    for every in rest:
        assert isinstance(every, AllStates)
        flat += [sequence(y) for y in (*every.h, *(every.c or ()))]
    return flat


# --- the oracle -----------------------------------------------------------------------------------


def torch_layers(case):
    """Yield a one-layer torch.nn module for each layer and direction, with the same weights."""
    module = case.module
    given = {
        name: case.options[name] for name in ("nonlinearity", "proj_size") if name in case.options
    }
    for weights in module.all_weights:
        layer = getattr(nn, case.name)(
            weights[0].size(1), module.hidden_size, dtype=torch.float64, **given
        )
        for parameter, weight in zip(layer.parameters(), weights, strict=True):
            parameter.data.copy_(weight.detach())
        yield layer


def walk(layer, x, state, marks, replacement, backwards, stepwise):
    """One sample (steps, I) through one layer: h and c of its steps, and the final state.

    It goes segment by segment, or step by step, which is how torch.nn tells every c.
    """
    cuts = [t for t in range(len(x)) if t == 0 or stepwise or marks[t]] + [len(x)]
    pieces = list(itertools.pairwise(cuts))
    hs, cs = [], []
    for first, end in reversed(pieces) if backwards else pieces:
        # The mark stands between this piece and the one walked before.
        mark = end if backwards else first
        if mark < len(x) and marks[mark]:
            state = replacement
        steps = x[first:end].flip(0) if backwards else x[first:end]
        y, new = layer(steps, tuple(state) if len(state) == 2 else state[0])
        state = [new] if isinstance(new, torch.Tensor) else list(new)
        hs.append(y.flip(0) if backwards else y)
        cs.append(state[-1])
    if backwards:
        hs, cs = hs[::-1], cs[::-1]
    return torch.cat(hs) if hs else None, torch.cat(cs) if cs else None, state


def oracle(case, return_all_states=False):
    """What case.padded() and case.leaves() are to be, by torch.nn on each sample alone."""
    T, N = case.x.shape[:2]
    layers = list(torch_layers(case))
    R, H = case.hx[0].size(-1), case.hx[-1].size(-1)
    zeros = tuple(torch.zeros_like(t) for t in case.hx)
    samples = []
    for n in range(N):
        length = T if case.lengths is None else int(case.lengths[n])
        marks = [False] * length if case.reset is None else case.reset[:length, n].tolist()
        x, finals, all_h, all_c = case.x[:length, n], [], [], []
        for index, layer in enumerate(layers):
            if index % case.directions == 0:
                sides, cells, input = [], [], x
            start, replacement = (
                [t[index : index + 1, n] for t in states]
                for states in (case.hx, case.reset_state or zeros)
            )
            backwards = case.module.reverse or index % case.directions == 1
            h, c, final = walk(
                layer, input, start, marks, replacement, backwards, return_all_states
            )
            sides.append(case.x.new_zeros(0, R) if h is None else h)
            cells.append(case.x.new_zeros(0, H) if c is None else c)
            finals.append(final)
            if len(sides) == case.directions:
                x = torch.cat(sides, 1)
                all_h.append(x)
                all_c.append(torch.cat(cells, 1) if return_all_states else x)
        every = [x] + (all_h + all_c * (case.name == "LSTM") if return_all_states else [])
        every = [nn.functional.pad(y, (0, 0, 0, T - length)) for y in every]
        samples.append((every, [torch.cat(kind) for kind in zip(*finals, strict=True)]))
    sequences, finals = (
        [torch.stack(kind, 1) for kind in zip(*part, strict=True)]
        for part in zip(*samples, strict=True)
    )
    results = [sequences[0], *finals, *sequences[1:]]
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    return results, [case.x, *case.hx, *case.reset_state, *weights]


def assert_is_the_oracle(case, **options):
    expected, leaves = oracle(case, **options)
    actual = case.padded(**options)
    assert [t.shape for t in actual] == [t.shape for t in expected]
    assert_all_close(
        actual + gradients(actual, case.leaves()),
        expected + gradients(expected, leaves),
        torch.float64,
    )


# --- lengths and resets ---------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
@EVERY_STACK
@EVERY_CELL
def test_matches_torch_sample_by_sample(cell, stack, control):
    assert_is_the_oracle(Case(cell, SIZES[0], stack, control))


@pytest.mark.parametrize("stack", ["one layer", "reverse", "two bidirectional"])
@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
@EVERY_CELL
def test_at_every_size(cell, sizes, stack):
    assert_is_the_oracle(Case(cell, sizes, STACKS[stack], EVERYTHING))


@pytest.mark.parametrize("length", [torch.tensor(4), torch.tensor([4]), torch.tensor(0)], ids=repr)
@EVERY_STACK
@EVERY_CELL
def test_one_sequence_without_a_batch(cell, stack, length):
    """reset is (T,), reset_state (L * D, H), lengths a number or (1,)."""
    case = Case(cell, (6, 1, 3, 5), stack, ("reset", "reset_state"), batched=False)
    case.lengths = length.reshape(1)
    expected, leaves = oracle(case)
    case.lengths = length
    actual = case.padded()
    assert actual[0].dim() == 2 and all(t.dim() == 2 for t in actual)
    expected = [t.squeeze(1) for t in expected]
    assert_all_close(
        actual + gradients(actual, case.leaves()),
        expected + gradients(expected, leaves),
        torch.float64,
    )


@EVERY_CELL
def test_functional(cell):
    case = Case(cell, stack=DEEP, control=EVERYTHING)
    options = {k: v for k, v in case.options.items() if k != "proj_size"}
    function = getattr(fastrnn.functional, case.name.lower())
    actual = function(
        case.turn(case.x), case.state(case.hx), list(case.module.parameters()),
        lengths=case.lengths, reset=case.turn(case.reset), reset_state=case.state(case.reset_state),
        return_all_states=True, **options, **({"projection": True} if case.module.proj_size else {}),
    )  # fmt: skip
    assert_equal(flatten(actual, case.turn), case.padded(return_all_states=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@EVERY_CELL
def test_every_dtype(cell, dtype):
    case = Case(cell, stack=DEEP, control=EVERYTHING)
    exact, fast = case.copy(values=dtype), case.copy(values=dtype, dtype=dtype)
    expected, leaves = oracle(exact, return_all_states=True)
    actual = fast.padded(return_all_states=True)
    assert all(t.dtype == dtype for t in actual)
    assert_all_close(actual, expected, dtype)
    if cell == "RNN_RELU" and dtype.itemsize == 2:
        return  # a sum near zero may round to the other side of the kink, where the gradient jumps
    assert_all_close(gradients(actual, fast.leaves()), gradients(expected, leaves), dtype)


@pytest.mark.parametrize("stack", [{}, {"reverse": True}], ids=["forward", "reverse"])
@EVERY_CELL
def test_nothing_passes_a_reset(cell, stack):
    """No value passes, be it NaN or infinity, and no gradient; the first mark cuts off hx in one direction."""
    case = Case(cell, (6, 2, 3, 5), stack, ("reset",))
    case.reset[:] = False
    case.reset[[0, 3]] = True
    before, after = (slice(3, 6), slice(0, 3)) if stack else (slice(0, 3), slice(3, 6))
    clean = case.padded()
    final = clean[1:]
    dx = torch.autograd.grad([clean[0][after].sum(), *(t.sum() for t in final)], case.x)[0]
    assert dx[before].eq(0).all() and dx[after].ne(0).any()
    of_hx = torch.autograd.grad(case.padded()[0].sum(), case.hx)
    assert all(g.ne(0).any() == bool(stack) for g in of_hx)
    with torch.no_grad():
        for value in (float("nan"), float("inf")):
            case.x[before] = value
            for t in case.hx:
                t.fill_(value)
            dirty = case.padded()
            assert_equal([dirty[0][after], *dirty[1:]], [clean[0][after], *clean[1:]])
            assert not torch.equal(dirty[0][before], clean[0][before])


# --- packed and jagged batches --------------------------------------------------------------------


def assert_is_the_padded_batch(case, results, sequence):
    """Results and gradients of input and states have the padded batch's bits; those of weights differ by rounding, as samples lie in another order.

    `sequence` makes (T, N, C) of a sequence of the results.
    """
    expected, actual = case.padded(return_all_states=True), flatten(results, sequence)
    assert_equal(actual, expected)
    actual_gradients = gradients(actual, case.leaves())
    expected_gradients = gradients(expected, case.leaves())
    weights = len(list(case.module.parameters()))
    assert_equal(actual_gradients[:-weights], expected_gradients[:-weights])
    assert_all_close(actual_gradients[-weights:], expected_gradients[-weights:], torch.float64)


@EVERY_STACK
@EVERY_CELL
def test_packed_is_padded(cell, stack):
    """Lengths need no order; reset and states are in the order of the caller's samples."""
    case = Case(cell, stack=stack, control=EVERYTHING, least=1)
    T = len(case.x)
    packed = pack_padded_sequence(case.x, case.lengths.cpu(), enforce_sorted=False)
    results = case.run(packed, return_all_states=True)
    for sequence in (results[0], *results[2].h, *(results[2].c or ())):
        for one, other in zip(sequence[1:], packed[1:], strict=True):
            assert torch.equal(one, other)
    assert_is_the_padded_batch(case, results, lambda y: pad_packed_sequence(y, total_length=T)[0])


def from_jagged(case, y):
    """A jagged tensor as (T, N, C)."""
    return pad_sequence([nn.functional.pad(s, (0, 0, 0, len(case.x) - len(s))) for s in y.unbind()])


def nested(case):
    return nested_tensor_from_jagged(*case.rows())


def nested_with_holes(case):
    """A row of NaN before and after each sample."""
    rows, offsets = [], [1]
    for n, length in enumerate(case.lengths.tolist()):
        hole = torch.full_like(case.x[:1, n], float("nan"))
        rows += [hole, case.x[:length, n], hole]
        offsets.append(offsets[-1] + length + 2)
    offsets[-1] -= 1
    return nested_tensor_from_jagged(torch.cat(rows), torch.tensor(offsets), lengths=case.lengths)


def nested_by_narrow(case):
    """A view of a padded batch, each sample from another step on."""
    starts = torch.arange(len(case.lengths)).flip(0)
    batch = torch.full(
        (len(starts), len(case.x) + len(starts), case.x.size(2)), float("nan"), dtype=case.x.dtype
    )
    for n, (start, length) in enumerate(zip(starts.tolist(), case.lengths.tolist(), strict=True)):
        batch[n, start : start + length] = case.x[:length, n]
    return torch.nested.narrow(batch, 1, starts, case.lengths, layout=torch.jagged)


@pytest.mark.parametrize("make", [nested, nested_with_holes, nested_by_narrow])
@EVERY_STACK
@EVERY_CELL
def test_jagged_is_padded(cell, stack, make):
    """Input and results are jagged; reset is (N, T) of the longest sample, whatever batch_first; results go with tensors of the input's shape."""
    case = Case(cell, stack=stack, control=EVERYTHING)
    input = make(case)
    assert (input.lengths() is None) == (make is nested)
    results = case.run(input, reset=case.reset.T, return_all_states=True)
    for sequence in (results[0], *results[2].h, *(results[2].c or ())):
        assert sequence.layout == torch.jagged and sequence.shape[:2] == input.shape[:2]
        assert sequence.offsets() is input.offsets()
        assert (sequence.lengths() is None) == (make is nested)
        values = torch.randn_like(sequence.values())
        other = nested_tensor_from_jagged(values, input.offsets(), lengths=input.lengths())
        assert torch.equal((sequence + other).values(), sequence.values() + values)
    assert_is_the_padded_batch(case, results, lambda y: from_jagged(case, y))


@EVERY_CELL
def test_gradients_reach_the_leaves_of_a_nested_tensor(cell):
    """Leaves are a nested tensor, its values, or the tensors that it was made of."""
    case = Case(cell, control=("lengths",))
    samples = [case.x[:length, n].detach() for n, length in enumerate(case.lengths.tolist())]
    expected = torch.autograd.grad(case.padded()[0].sum(), case.x)[0]
    expected = [expected[:length, n] for n, length in enumerate(case.lengths.tolist())]

    leaf = torch.nested.nested_tensor(samples, layout=torch.jagged, requires_grad=True)
    case.run(leaf)[0].sum().backward()
    assert_equal(leaf.grad.unbind(), expected)

    offsets = nn.functional.pad(case.lengths.cumsum(0), (1, 0))
    values = torch.cat(samples).requires_grad_()
    (case.run(nested_tensor_from_jagged(values, offsets))[0] * 1.0).values().sum().backward()
    assert_equal([values.grad], [torch.cat(expected)])

    leaves = [sample.clone().requires_grad_() for sample in samples]
    case.run(torch.nested.as_nested_tensor(leaves, layout=torch.jagged))[0].sum().backward()
    assert_equal([sample.grad for sample in leaves], expected)


@EVERY_CELL
def test_jagged_layers_follow_each_other(cell):
    """A nested output is a nested input, and pointwise operations go between."""
    case = Case(cell, control=("lengths",))
    first = case.module
    second = case.make_module(case.hx[0].size(-1), 6)
    expected = second(first(case.x, lengths=case.lengths)[0].tanh(), lengths=case.lengths)
    actual = second(first(nested(case))[0].tanh())
    assert_equal(flatten(actual, lambda y: from_jagged(case, y)), flatten(expected))


# --- every state ----------------------------------------------------------------------------------


@EVERY_STACK
@EVERY_CELL
def test_every_state(cell, stack):
    """h and c of every layer and step, 0 past a length, with gradients through both."""
    case = Case(cell, stack=stack, control=EVERYTHING)
    assert_is_the_oracle(case, return_all_states=True)
    output, _, states = case.run(return_all_states=True)
    assert torch.equal(states.h[-1], output)
    assert len(states.h) == case.module.num_layers
    assert (states.c is None) == (case.name != "LSTM")
    past = torch.arange(len(case.x))[:, None] >= case.lengths
    for sequence in (*states.h, *(states.c or ())):
        assert case.turn(sequence)[past].eq(0).all()
    assert_equal(flatten((output, ())), flatten((case.run()[0], ())))


@pytest.mark.parametrize("name", ["LSTM", "LSTM_PROJ"])
def test_gradients_through_the_cell_states_alone(name):
    case = Case(name, stack=DEEP, control=EVERYTHING)
    expected, leaves = oracle(case, return_all_states=True)
    actual = case.padded(return_all_states=True)
    layers = case.module.num_layers
    assert_all_close(
        gradients(actual[-layers:], case.leaves()),
        gradients(expected[-layers:], leaves),
        torch.float64,
    )


@EVERY_CELL
def test_every_state_without_a_batch(cell):
    case = Case(cell, (6, 1, 3, 5), DEEP, ("reset",), batched=False)
    expected = [t.squeeze(1) for t in oracle(case, return_all_states=True)[0]]
    assert_all_close(case.padded(return_all_states=True), expected, torch.float64)


@EVERY_CELL
def test_inner_states_are_those_before_dropout(cell):
    case = Case(cell, control=EVERYTHING, num_layers=2, dropout=0.5)
    torch.manual_seed(1)
    with_dropout = case.run(return_all_states=True)[2]
    case.module.eval()
    without = case.run(return_all_states=True)[2]
    assert torch.equal(with_dropout.h[0], without.h[0])
    assert not torch.equal(with_dropout.h[1], without.h[1])


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [{}, DEEP], ids=["one layer", "two bidirectional"])
@EVERY_CELL
def test_states_that_all_samples_share(cell, stack):
    """Parameters (L * D, 1, H) give the bits of the repeated states, and get the sum of their gradients."""
    case = Case(cell, stack=stack, control=EVERYTHING)
    N = case.x.size(1)
    shared = [nn.Parameter(t[:, :1].detach().clone()) for t in (*case.hx, *case.reset_state)]
    count = len(case.hx)
    repeated = [t.detach().repeat(1, N, 1).requires_grad_() for t in shared]
    results = []
    for tensors in (shared, repeated):
        case.hx, case.reset_state = tensors[:count], tensors[count:]
        results.append(case.padded())
    assert_equal(*results)
    summed = [g.sum(1, keepdim=True) for g in gradients(results[1], repeated)]
    assert_all_close(gradients(results[0], shared), summed, torch.float64)
    assert all(g.ne(0).any() for g in summed)


@EVERY_CELL
def test_a_learnable_initial_state_is_trained(cell):
    case = Case(cell)
    case.hx = [nn.Parameter(torch.zeros_like(t[:, :1])) for t in case.hx]
    optimizer = torch.optim.SGD(case.hx, lr=0.1)
    losses = []
    for _ in range(3):
        loss = (case.padded()[0] - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@EVERY_STACK
@EVERY_CELL
def test_no_steps(cell, stack):
    """With T = 0 the output is empty; the final states are the initial ones, and so are the gradients."""
    case = Case(cell, (0, 3, 3, 5), stack, EVERYTHING)
    output, *rest = case.padded(return_all_states=True)
    count = len(case.hx)
    assert output.shape == (0, 3, case.hx[0].size(-1) * case.directions)
    assert_equal(rest[:count], case.hx)
    assert all(t.size(0) == 0 for t in rest[count:])
    cotangents = [torch.randn_like(t) for t in case.hx]
    state_gradients = torch.autograd.grad(rest[:count], case.hx, cotangents)
    assert_equal(state_gradients, cotangents)


@EVERY_STACK
@EVERY_CELL
def test_no_samples(cell, stack):
    case = Case(cell, (4, 0, 3, 5), stack, EVERYTHING)
    results = case.padded(return_all_states=True)
    assert results[0].shape == (4, 0, case.hx[0].size(-1) * case.directions)
    assert_equal(results[1 : 1 + len(case.hx)], case.hx)
    leaf_gradients = gradients(results, case.leaves())
    assert [g.shape for g in leaf_gradients] == [t.shape for t in case.leaves()]
    assert all(g.eq(0).all() for g in leaf_gradients)


@pytest.mark.parametrize("samples", [0, 3])
@EVERY_CELL
def test_no_rows_in_a_jagged_batch(cell, samples):
    case = Case(cell, (0, samples, 3, 5), DEEP, EVERYTHING)
    results = case.run(
        nested(case), reset=torch.zeros(samples, 0, dtype=torch.bool), return_all_states=True
    )
    flat = flatten(results)
    assert flat[0].size(0) == samples and flat[0].values().shape == (0, 2 * case.hx[0].size(-1))
    assert_equal(flat[1 : 1 + len(case.hx)], case.hx)
    assert_equal(
        torch.autograd.grad(sum(t.sum() for t in flat[1 : 1 + len(case.hx)]), case.hx),
        [torch.ones_like(t) for t in case.hx],
    )


@EVERY_CELL
def test_seventy_thousand_steps(cell, without_cudnn):
    """More than 65,535 steps give torch.nn's results, and the gradients of ten calls one after another."""
    case = Case(cell, (70_000, 1, 1, 4))
    with torch.no_grad():
        (layer,) = torch_layers(case)
        assert_all_close(case.padded(), flatten(layer(case.x, case.state(case.hx))), torch.float64)
    outputs, state = [], case.state(case.hx)
    for chunk in case.x.split(7_000):
        output, state = case.module(chunk, state)
        outputs.append(output)
    wanted = gradients(flatten((torch.cat(outputs), state)), case.leaves())
    assert_all_close(gradients(case.padded(), case.leaves()), wanted, torch.float64)


@EVERY_STACK
@EVERY_CELL
def test_recompute(cell, stack):
    """Results have the same bits; gradients differ by rounding."""
    case = Case(cell, stack=stack, control=EVERYTHING)
    again = case.copy(recompute=True)
    assert again.module.recompute
    expected, actual = (each.padded(return_all_states=True) for each in (case, again))
    assert_equal(actual, expected)
    assert_all_close(
        gradients(actual, again.leaves()), gradients(expected, case.leaves()), torch.float64
    )


@pytest.mark.parametrize("truncate", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize(
    "stack", [{}, {"num_layers": 2, "batch_first": True}], ids=["one layer", "two"]
)
@EVERY_CELL
def test_states_carried_between_chunks(cell, stack, truncate):
    """The results have one call's bits; detached, no gradient passes from one chunk to the one before."""
    case = Case(cell, stack=stack, control=("reset", "reset_state"))
    case.reset[1:, 0] = False  # this sample's gradients would pass
    time = 1 if case.module.batch_first else 0
    cuts = [3, 1, 3]
    inputs = case.turn(case.x).split(cuts, time)
    marks = case.turn(case.reset).split(cuts, time)
    outputs, state = [], case.state(case.hx)
    for input, reset in zip(inputs, marks, strict=True):
        if truncate:
            state = detach_state(state)
        output, state = case.module(
            input, state, reset=reset, reset_state=case.state(case.reset_state)
        )
        outputs.append(output)
    carried = flatten((torch.cat(outputs, time), state), case.turn)
    expected = case.padded()
    assert_equal(carried, expected)
    if truncate:
        dx = torch.autograd.grad(outputs[2].sum(), case.x, retain_graph=True)[0]
        assert dx[:4].eq(0).all() and dx[4:].ne(0).any()
        assert torch.autograd.grad(carried[0].sum(), case.hx, allow_unused=True)[0] is None
    else:
        carried_gradients = gradients(carried, case.leaves())
        expected_gradients = gradients(expected, case.leaves())
        assert_all_close(carried_gradients, expected_gradients, torch.float64)


def test_detach_state():
    """Any nest of tuples and lists, named tuples too, stays of its kind."""
    h = torch.ones(2, requires_grad=True) * 2
    assert detach_state(None) is None
    assert not detach_state(h).requires_grad
    nest = detach_state([(h, h), None, AllStates((h,), None)])
    assert isinstance(nest, list) and isinstance(nest[0], tuple) and nest[1] is None
    assert isinstance(nest[2], AllStates) and nest[2].c is None
    assert not any(t.requires_grad for t in (*nest[0], *nest[2].h))
    assert detach_state(h).data_ptr() == h.data_ptr()
