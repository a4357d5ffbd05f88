"""Each cell of the zoo beside its paper's formula, written once more in plain torch under the paper's names."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from common import assert_all_close, gradients, random
from torch import Tensor, relu, sigmoid, tanh
from torch.func import functional_call
from zoo_layers import compiled_cells, every_cell, step_by_step

import fastrnn
from fastrnn import zoo

T, N, I, H = 6, 3, 4, 5


# --- one step (w, x, h, the other states, extra inputs) to the new states; matrices multiply rows from the right ---


def peephole_lstm(w, x, h, c):
    i = sigmoid(x @ w.W_i + h @ w.U_i + w.p_i * c + w.b_i)
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.p_f * c + w.b_f)
    c = f * c + i * tanh(x @ w.W_g + h @ w.U_g + w.b_g)
    o = sigmoid(x @ w.W_o + h @ w.U_o + w.p_o * c + w.b_o)
    return o * tanh(c), c


def coupled_lstm(w, x, h, c):
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.b_f)
    i = 1 - f
    o = sigmoid(x @ w.W_o + h @ w.U_o + w.b_o)
    c = f * c + i * tanh(x @ w.W_g + h @ w.U_g + w.b_g)
    return o * tanh(c), c


def ea_lstm(w, x, h, c, static_gate):
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.b_f)
    g = tanh(x @ w.W_g + h @ w.U_g + w.b_g)
    o = sigmoid(x @ w.W_o + h @ w.U_o + w.b_o)
    c = f * c + static_gate * g
    return o * tanh(c), c


def lstm(w, x, h, c):
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.b_f)
    i = sigmoid(x @ w.W_i + h @ w.U_i + w.b_i)
    o = sigmoid(x @ w.W_o + h @ w.U_o + w.b_o)
    c = f * c + i * tanh(x @ w.W_g + h @ w.U_g + w.b_g)
    return o * tanh(c), c


def gru(w, x, h):
    r = sigmoid(x @ w.W_r + h @ w.U_r + w.b_r)
    z = sigmoid(x @ w.W_z + h @ w.U_z + w.b_z)
    n = tanh(x @ w.W_n + r * (h @ w.U_n) + w.b_n)
    return z * h + (1 - z) * n


def clipped_gru(w, x, h):
    return (torch.clamp(gru(w, x, h), -5, 5),)


def zoneout_lstm(w, x, h, c, zoned_h, zoned_c):
    new_h, new_c = lstm(w, x, h, c)
    return torch.lerp(new_h, h, zoned_h), torch.lerp(new_c, c, zoned_c)


def zoneout_gru(w, x, h, zoned):
    return (torch.lerp(gru(w, x, h), h, zoned),)


def variational_lstm(w, x, masked, c, y, mask):
    """y is an output: masked is what the step before has left of it."""
    y, c = lstm(w, x, masked, c)
    return y * mask, c, y


def variational_gru(w, x, masked, y, mask):
    """What z keeps is y itself."""
    z = sigmoid(x @ w.W_z + masked @ w.U_z + w.b_z)
    y = gru(w, x, masked) + z * (y - masked)
    return y * mask, y


def gru_d(w, x, decayed, y, decay):
    """y is an output: decayed is what the step before has left of it."""
    r = sigmoid(x @ w.W_r + decayed @ w.U_r + w.b_r)
    z = sigmoid(x @ w.W_z + decayed @ w.U_z + w.b_z)
    candidate = tanh(x @ w.W_n + r * (decayed @ w.U_n) + w.b_n)
    y = (1 - z) * decayed + z * candidate
    return decay * y, y


def reset_first_gru(w, x, h, y, z, second):
    """Half of a step: h is y in the first, r y in the second; test_two_products.py has the published step."""
    r = sigmoid(x @ w.W_r + h @ w.U_r + w.b_r)
    first = sigmoid(x @ w.W_z + h @ w.U_z + w.b_z)
    candidate = tanh(x @ w.W_n + h @ w.U_n + w.b_n)
    halves = (r * h, h, first), (z * y + (1 - z) * candidate,) * 2 + (z,)
    return tuple(torch.where(second > 0, b, a) for a, b in zip(*halves, strict=True))


def t_lstm(w, x, h, c, a, f, o, second, decay):
    """Half of a step: h is the LSTM's in the first, c in the second."""
    i = sigmoid(x @ w.W_i + h @ w.U_i + w.b_i)
    g = tanh(x @ w.W_g + h @ w.U_g + w.b_g)
    first = (
        c,
        c,
        i * g,
        sigmoid(x @ w.W_f + h @ w.U_f + w.b_f),
        sigmoid(x @ w.W_o + h @ w.U_o + w.b_o),
    )
    short = tanh(h @ w.U_d + w.b_d)
    new = f * ((c - short) + decay * short) + a
    halves = first, (o * tanh(new), new, a, f, o)
    return tuple(torch.where(second > 0, b, a) for a, b in zip(*halves, strict=True))


def ltc(w, x, h, dt):
    """The equation that the paper's solver solves: h' = h + dt (f A - (1/τ + f) h')."""
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.b_f)
    of_h = torch.diag_embed(1 + dt * (1 / w.tau + f))  # (N, H, H)
    return (torch.linalg.solve(of_h, h + dt * f * w.A),)


def janet(w, x, h):
    s = x @ w.W_f + h @ w.U_f + w.b_f
    candidate = tanh(x @ w.W_c + h @ w.U_c + w.b_c)
    return (sigmoid(s) * h + (1 - sigmoid(s - 1)) * candidate,)


def mgu(w, x, h):
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.b_f)
    candidate = tanh(x @ w.W_n + f * (h @ w.U_n) + w.b_n)
    return ((1 - f) * h + f * candidate,)


def ligru(w, x, h):
    z = sigmoid(x @ w.W_z + h @ w.U_z + w.b_z)
    candidate = relu(x @ w.W_n + h @ w.U_n + w.b_n)
    return (z * h + (1 - z) * candidate,)


def ugrnn(w, x, h):
    c = tanh(h @ w.U_c + x @ w.W_c + w.b_c)
    g = sigmoid(h @ w.U_g + x @ w.W_g + w.b_g)
    return (g * h + (1 - g) * c,)


def nas(w, x, h, c):
    def splits(name):
        return [getattr(w, f"{name}_a{k}") for k in range(8)]

    inputs = [x @ W for W in splits("W")]
    m = [h @ U + b for U, b in zip(splits("U"), splits("b"), strict=True)]
    first = [
        sigmoid(inputs[0] + m[0]), relu(inputs[1] + m[1]),
        sigmoid(inputs[2] + m[2]), relu(inputs[3] * m[3]),
        tanh(inputs[4] + m[4]), sigmoid(inputs[5] + m[5]),
        tanh(inputs[6] + m[6]), sigmoid(inputs[7] + m[7]),
    ]  # fmt: skip
    second = [
        tanh(first[0] * first[1]), tanh(first[2] + first[3]),
        tanh(first[4] * first[5]), sigmoid(first[6] + first[7]),
    ]  # fmt: skip
    c = tanh(second[0] + c) * second[1]
    return tanh(c * tanh(second[2] + second[3])), c


def slstm(w, x, h, c, n, m):
    """The paper's first form, which has no m: c and n without stabilisation, and 0 for m."""
    c, n = c * m.exp(), n * m.exp()
    i = (x @ w.W_i + h @ w.U_i + w.b_i).exp()
    f = sigmoid(x @ w.W_f + h @ w.U_f + w.b_f)
    z = tanh(x @ w.W_z + h @ w.U_z + w.b_z)
    o = sigmoid(x @ w.W_o + h @ w.U_o + w.b_o)
    c, n = f * c + i * z, f * n + i
    return o * (c / n), c, n, torch.zeros_like(m)


def mingru(w, x, h):
    z = sigmoid(x @ w.W_z + w.b_z)
    return ((1 - z) * h + z * (x @ w.W_n + w.b_n),)


def minlstm(w, x, h):
    f, i = sigmoid(x @ w.W_f + w.b_f), sigmoid(x @ w.W_i + w.b_i)
    return (f / (f + i) * h + i / (f + i) * (x @ w.W_n + w.b_n),)


def sru(w, x, h, c):
    f = sigmoid(x @ w.W_f + w.v_f * c + w.b_f)
    r = sigmoid(x @ w.W_r + w.v_r * c + w.b_r)
    c = f * c + (1 - f) * (x @ w.W_n + w.b_n)
    return r * c + (1 - r) * (x @ w.W_skip + w.b_skip), c


def indrnn(w, x, h):
    return (relu(x @ w.W_n + w.u * h + w.b_n),)


def leaky_rnn(w, x, h):
    return (0.8 * h + 0.2 * tanh(x @ w.W_n + h @ w.U_n + w.b_n),)


def ctrnn(w, x, h, v):
    v = 0.8 * v + 0.2 * (h @ w.U_v + x @ w.W_v + w.b_v)
    return relu(v), v


def cfc(w, x, h, dt):
    """One matrix for x and h side by side, as the authors' programs have it."""

    def linear(name):
        matrix = torch.cat([getattr(w, f"W_{name}"), getattr(w, f"U_{name}")])
        return torch.cat([x, h], -1) @ matrix + getattr(w, f"b_{name}")

    interpolation = sigmoid(linear("time_a") * dt + linear("time_b"))
    return (tanh(linear("ff1")) * (1 - interpolation) + interpolation * tanh(linear("ff2")),)


class Published(NamedTuple):
    step: Callable[..., tuple[Tensor, ...]]
    # How much of a gate's bias is that of the input product; it matters where a function takes one product alone.
    of_input: float = 0.25
    comparable: Callable[..., tuple[Tensor, ...]] = lambda *states: states


PUBLISHED = {
    "cfc": Published(cfc),
    "clipped_gru": Published(clipped_gru, of_input=1),
    "coupled_lstm": Published(coupled_lstm),
    "ctrnn": Published(ctrnn),
    "ea_lstm": Published(ea_lstm),
    "gru_d": Published(gru_d, of_input=1),
    "indrnn": Published(indrnn, of_input=1),
    "janet": Published(janet),
    "leaky_rnn": Published(leaky_rnn),
    "ligru": Published(ligru),
    "ltc": Published(ltc),
    "mgu": Published(mgu, of_input=1),
    "mingru": Published(mingru, of_input=1),
    "minlstm": Published(minlstm, of_input=1),
    "nas": Published(nas, of_input=0),
    "peephole_lstm": Published(peephole_lstm),
    "reset_first_gru": Published(reset_first_gru),
    "slstm": Published(slstm, comparable=lambda h, c, n, m: (h, c * m.exp(), n * m.exp())),
    "sru": Published(sru, of_input=1),
    "t_lstm": Published(t_lstm, of_input=0),
    "ugrnn": Published(ugrnn),
    "variational_gru": Published(variational_gru, of_input=1),
    "variational_lstm": Published(variational_lstm),
    "zoneout_gru": Published(zoneout_gru, of_input=1),
    "zoneout_lstm": Published(zoneout_lstm),
}


class Case:
    """Leaves that may be differentiated, under the paper's names, and two ways to run a cell over them."""

    def __init__(self, name: str) -> None:
        self.cell, self.published = getattr(zoo, name), PUBLISHED[name]
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int, positive: bool = False) -> Tensor:
            tensor = random(shape, generator)
            return (tensor.abs() + 0.1 if positive else tensor).requires_grad_()

        gates = dict.fromkeys(self.cell.gates + self.cell.input_gates + self.cell.recurrent_gates)
        weights = {f"W_{gate}": leaf(I, H) for gate in self.cell.gates + self.cell.input_gates}
        weights |= {f"U_{gate}": leaf(H, H) for gate in self.cell.gates + self.cell.recurrent_gates}
        weights |= {f"b_{gate}": leaf(H) for gate in gates}
        # A time constant and a time are positive.
        weights |= {vector: leaf(H, positive=vector == "tau") for vector in self.cell.vectors}
        self.w = SimpleNamespace(**weights)
        self.x = leaf(T, N, I)
        # slstm's n is a sum of exponentials.
        self.hx = [leaf(N, H, positive=state == "n") for state in ("h", *self.cell.states)]
        self.extra = [leaf(T, N, H, positive=each == "dt") for each in self.cell.inputs]
        self.leaves = [self.x, *self.hx, *self.extra, *weights.values()]

    def layer_parameters(self) -> dict[str, Tensor]:
        """Those of a layer, made of the paper's."""
        cell, w = self.cell, vars(self.w)
        of_input, of_recurrence = cell.gates + cell.input_gates, cell.gates + cell.recurrent_gates
        share = self.published.of_input

        def columns(kind: str, gates: tuple[str, ...]) -> Tensor:
            return torch.cat([w[f"{kind}_{gate}"] for gate in gates], -1)

        parameters = {
            "weight_ih_l0": columns("W", of_input).T,
            "bias_ih_l0": share * columns("b", of_input),
            **{f"{vector}_l0": w[vector] for vector in cell.vectors},
        }
        if of_recurrence:
            parameters["weight_hh_l0"] = columns("U", of_recurrence).T
            parameters["bias_hh_l0"] = (1 - share) * columns("b", of_recurrence)
        return parameters

    def as_published(self) -> list[Tensor]:
        states, outputs = self.hx, []
        for x, *extra in zip(self.x, *self.extra, strict=True):
            states = self.published.step(self.w, x, *states, *extra)
            outputs.append(states[0])
        return [torch.stack(outputs), *states]

    def by_steps(self) -> list[Tensor]:
        parameters = self.layer_parameters()
        vectors = [parameters[f"{vector}_l0"] for vector in self.cell.vectors]
        numbers = list(self.cell.numbers.values())
        h, *states = self.hx
        outputs = []
        for x, *extra in zip(self.x, *self.extra, strict=True):
            gx = x @ parameters["weight_ih_l0"].T + parameters["bias_ih_l0"]
            gh = None
            if "weight_hh_l0" in parameters:
                gh = h @ parameters["weight_hh_l0"].T + parameters["bias_hh_l0"]
            h, states = self.cell.step(gx, gh, h, states, vectors, numbers, extra)
            outputs.append(h)
        return [torch.stack(outputs), h, *states]

    def by_layer(self) -> list[Tensor]:
        layer = fastrnn.Recurrent(self.cell, I, H, dtype=torch.float64)
        hx = [state.unsqueeze(0) for state in self.hx]
        extra = dict(zip(self.cell.inputs, self.extra, strict=True))
        arguments = (self.x, tuple(hx) if self.cell.states else hx[0])
        output, finals = functional_call(
            layer, self.layer_parameters(), arguments, {"extra": extra}
        )
        finals = finals if self.cell.states else (finals,)
        return [output, *(final.squeeze(0) for final in finals)]

    def with_gradients(self, results: list[Tensor]) -> list[Tensor]:
        output, *states = results
        compared = [output, *self.published.comparable(*states)]
        return [*compared, *gradients(compared, self.leaves)]


def test_every_cell_has_a_published_formula_and_a_module():
    assert sorted(PUBLISHED) == sorted(zoo.__all__)
    assert all(getattr(zoo, name).name == name for name in zoo.__all__)


@every_cell
def test_a_step_is_the_published_one(name):
    case = Case(name)
    actual = case.with_gradients(case.by_steps())
    assert_all_close(actual, case.with_gradients(case.as_published()), torch.float64)
    assert all(gradient.abs().max() > 1e-3 for gradient in actual[-len(vars(case.w)) :])


@every_cell
def test_a_layer_without_a_compiler_is_the_published_one(name):
    case = Case(name)
    with step_by_step():
        actual = case.with_gradients(case.by_layer())
    assert_all_close(actual, case.with_gradients(case.as_published()), torch.float64)


@compiled_cells
def test_a_compiled_layer_is_the_published_one(name):
    case = Case(name)
    actual = case.with_gradients(case.by_layer())
    assert_all_close(actual, case.with_gradients(case.as_published()), torch.float64)


@pytest.mark.parametrize("drive", [-1000.0, 1000.0])
def test_slstm_neither_overflows_nor_divides_zero_by_zero(drive):
    """The first form of the paper does both: e^1000 is infinite, e^-1000 is 0 in c and in n."""
    cell, zeros = zoo.slstm, torch.zeros(N, 4 * H)
    gx = torch.cat([torch.full((N, H), drive), torch.randn(N, 3 * H)], -1)
    states = [torch.full((N, H), cell.initial.get(state, 0.0)) for state in cell.states]
    h, states = cell.step(gx, zeros, zeros[:, :H], states)
    _, _, z, o = gx.chunk(4, -1)
    torch.testing.assert_close(h, sigmoid(o) * tanh(z))
    h, states = cell.step(gx, zeros, h, states)
    assert all(state.isfinite().all() for state in (h, *states))


# --- whole sequences, where a layer is used in a way of its own ---


def every_output(layer: fastrnn.Recurrent, x: Tensor, hx=None, **extra: Tensor) -> Tensor:
    """The state y after every step, the last that the cell declares."""
    with step_by_step():
        states = layer(x, hx, extra=extra, return_all_states=True)[2].c[0]
    return states[-1] if isinstance(states, tuple) else states


def with_gradient_of_input(output: Tensor, x: Tensor) -> list[Tensor]:
    return [output, *gradients([output], [x])]


@pytest.mark.parametrize(
    "run", [step_by_step, pytest.param(contextlib.nullcontext, marks=pytest.mark.slow)],
    ids=["loop", "kernels"],
)  # fmt: skip
@pytest.mark.parametrize("bound", [0.4, 1.0, 5.0])
def test_clipped_gru_is_torch_nns_with_a_clamp(bound, run):
    torch.manual_seed(0)
    cell = torch.nn.GRUCell(I, H, dtype=torch.float64)
    layer = fastrnn.Recurrent(zoo.clipped_gru, I, H, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": w for name, w in cell.state_dict().items()})
    layer.bound = bound
    generator = torch.Generator().manual_seed(0)
    x = random((T, N, I), generator).requires_grad_()
    h = start = 10 * random((N, H), generator)
    outputs = []
    for step in x:
        h = cell(step, h).clamp(-bound, bound)
        outputs.append(h)
    with run():
        actual, _ = layer(x, start.unsqueeze(0))
    assert (actual.detach().abs() == bound).any()
    expected = with_gradient_of_input(torch.stack(outputs), x)
    assert_all_close(with_gradient_of_input(actual, x), expected, torch.float64)


def test_clipped_gru_passes_the_gradient_of_a_tie():
    gates = torch.tensor([[0.0, 50.0, 0.0]], dtype=torch.float64)  # z is 1 in float64
    h = torch.tensor([[5.0]], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros_like(gates)
    after, _ = zoo.clipped_gru.step(gates, zeros, h, numbers=[5.0])
    assert after.item() == 5
    assert torch.autograd.grad(after, h)[0].item() == 1


def test_zoneout_at_its_rate_is_the_mean_of_its_masks():
    """What evaluation takes: one step is linear in the masks."""
    torch.manual_seed(0)
    layer = fastrnn.Recurrent(zoo.zoneout_lstm, I, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, hx = random((1, 1, I), generator), tuple(random((2, 1, 1, 2), generator))
    rates, mean = {"keep_h": 0.25, "keep_c": 0.5}, torch.zeros(2, 2, dtype=torch.float64)
    with step_by_step(), torch.no_grad():
        for bits in itertools.product((0.0, 1.0), repeat=4):
            masks = torch.tensor(bits, dtype=torch.float64).view(2, 1, 1, 2)
            extra = dict(zip(rates, masks, strict=True))
            chances = [torch.where(mask > 0, rates[name], 1 - rates[name]).prod()
                       for name, mask in extra.items()]  # fmt: skip
            states = layer(x, hx, extra=extra)[1]
            mean += chances[0] * chances[1] * torch.cat(states).view(2, 2)
        extra = {name: torch.full((1,), rate, dtype=torch.float64) for name, rate in rates.items()}
        at_rate = torch.cat(layer(x, hx, extra=extra)[1]).view(2, 2)
    torch.testing.assert_close(at_rate, mean)


def test_variational_lstm_drops_what_products_see_and_no_output():
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(I, H, dtype=torch.float64)
    layer = fastrnn.Recurrent(zoo.variational_lstm, I, H, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": w for name, w in cell.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    x = random((T, N, I), generator).requires_grad_()
    mask = (torch.rand(N, H, generator=generator) < 0.7).double() / 0.7
    y, c = random((2, N, H), generator)
    hx = tuple(state.unsqueeze(0) for state in (mask * y, c, y))
    outputs = []
    for step in x:
        y, c = cell(step, (mask * y, c))
        outputs.append(y)
    expected = with_gradient_of_input(torch.stack(outputs), x)
    actual = every_output(layer, x, hx, mask=mask.unsqueeze(0))
    assert_all_close(with_gradient_of_input(actual, x), expected, torch.float64)


def test_variational_gru_drops_what_products_see_and_nothing_that_is_kept():
    torch.manual_seed(0)
    layer = fastrnn.Recurrent(zoo.variational_gru, I, H, dtype=torch.float64)
    w = dict(layer.named_parameters())
    generator = torch.Generator().manual_seed(0)
    x = random((T, N, I), generator).requires_grad_()
    mask = (torch.rand(N, H, generator=generator) < 0.7).double() / 0.7
    y = random((N, H), generator)
    hx = tuple(state.unsqueeze(0) for state in (mask * y, y))
    outputs = []
    for step in x:
        of_x = torch.nn.functional.linear(step, w["weight_ih_l0"], w["bias_ih_l0"])
        of_y = torch.nn.functional.linear(mask * y, w["weight_hh_l0"], w["bias_hh_l0"])
        r, z = sigmoid(of_x + of_y).chunk(3, -1)[:2]
        y = z * y + (1 - z) * tanh(of_x[:, 2 * H :] + r * of_y[:, 2 * H :])
        outputs.append(y)
    expected = with_gradient_of_input(torch.stack(outputs), x)
    actual = every_output(layer, x, hx, mask=mask.unsqueeze(0))
    assert_all_close(with_gradient_of_input(actual, x), expected, torch.float64)


def test_gru_d_decays_before_its_products():
    """The paper's z is 1 less torch.nn.GRU's: its rows have the other sign."""
    torch.manual_seed(0)
    cell = torch.nn.GRUCell(I, H, dtype=torch.float64)
    layer = fastrnn.Recurrent(zoo.gru_d, I, H, dtype=torch.float64)
    for name, w in cell.state_dict().items():
        r, z, n = w.chunk(3)
        layer.get_parameter(f"{name}_l0").data.copy_(torch.cat([r, -z, n]))
    generator = torch.Generator().manual_seed(0)
    x = random((T, N, I), generator).requires_grad_()
    gamma = torch.exp(-relu(random((T, N, H), generator)))
    y = start = random((N, H), generator)
    outputs = []
    for step, decay in zip(x, gamma, strict=True):
        y = cell(step, decay * y)
        outputs.append(y)
    expected = with_gradient_of_input(torch.stack(outputs), x)
    hx = tuple(state.unsqueeze(0) for state in (gamma[0] * start, start))
    decay = torch.cat([gamma[1:], torch.ones_like(gamma[:1])])
    actual = every_output(layer, x, hx, decay=decay)
    assert_all_close(with_gradient_of_input(actual, x), expected, torch.float64)


def test_ltc_unfolds_by_repeated_inputs():
    """Many short steps of a constant input follow the paper's differential equation."""
    torch.manual_seed(0)
    layer = fastrnn.Recurrent(zoo.ltc, I, H, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, start = random((2, N, I), generator), random((1, N, H), generator)

    def after(unfolds: int, time: float) -> Tensor:
        dt = torch.full((N,), time / unfolds, dtype=torch.float64)
        with step_by_step():
            return layer(x.repeat_interleave(unfolds, 0), start, extra={"dt": dt})[0][
                unfolds - 1 :: unfolds
            ]

    with torch.no_grad():
        f = sigmoid(
            torch.nn.functional.linear(x[0], layer.weight_ih_l0, layer.bias_ih_l0)
            + torch.nn.functional.linear(start[0], layer.weight_hh_l0, layer.bias_hh_l0)
        )
        slope = -(1 / layer.tau_l0 + f) * start[0] + f * layer.A_l0
        torch.testing.assert_close((after(1, 1e-6)[0] - start[0]) / 1e-6, slope, rtol=0, atol=1e-5)
        coarse, fine, finest = (after(unfolds, 1.0) for unfolds in (50, 100, 200))
    # The solver is of first order: half of the step leaves half of the error.
    assert ((coarse - fine) / (fine - finest)).sub(2).abs().median() < 0.1


@every_cell
def test_a_page_says_shapes_and_states(name):
    cell = getattr(zoo, name)
    page = " ".join(importlib.import_module(f"fastrnn.zoo.{name}").__doc__.split())
    rows = ", ".join(cell.gates or cell.input_gates)
    assert f"are those of {rows}" in page
    *others, last = ("h", *cell.states)
    states = f"states are {', '.join(others)} and {last}" if others else "state is h"
    assert f"The {states}" in page
    assert all(name in page for name in (*cell.vectors, *cell.numbers, *cell.inputs))
    assert re.search(r"\b(19|20)\d\d\b", page)


def test_importing_fastrnn_leaves_the_zoo(warm_python):
    program = (
        "import sys, fastrnn; assert not [m for m in sys.modules if 'zoo' in m]; import fastrnn.zoo"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    subprocess.run([warm_python, "-c", program], check=True, env=environment)


def test_the_zoo_is_imported_when_it_is_first_used(warm_python):
    program = "import sys, fastrnn; print('fastrnn.zoo' in sys.modules, fastrnn.zoo.mgu.name)"
    done = subprocess.run([warm_python, "-c", program], check=True, text=True, capture_output=True)
    assert done.stdout == "False mgu\n"
    with pytest.raises(AttributeError, match="module 'fastrnn' has no attribute 'aquarium'"):
        _ = fastrnn.aquarium
