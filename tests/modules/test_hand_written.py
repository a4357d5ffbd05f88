"""The guide's code for weights of LSTMs, GRUs and RNNs that models write as loops, beside such loops."""

from __future__ import annotations

import re
from pathlib import Path
from types import FunctionType

import pytest
import torch
from common import random
from torch import nn, sigmoid, tanh

import fastrnn

T, N, I, H = 7, 3, 4, 5
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
HEADING = "## A model that wrote its own LSTM"


@pytest.fixture(scope="module")
def guide() -> dict:
    """What the section's code defines."""
    _, _, section = GUIDE.read_text().partition(f"\n{HEADING}\n")
    section, _, _ = section.partition("\n## ")
    names: dict = {"torch": torch, "nn": nn, "fastrnn": fastrnn}
    for block in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    return names


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return random(shape, torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


def lstm(i, f, g, o, c):
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


# --- a form each: a layer as the guide makes it, and one step (x, h, c) to the new h and c ---


def pair_of_linears(guide, bias=True):
    i2h, h2h = linear(I, 4 * H), linear(H, 4 * H, bias)

    def step(x, h, c):
        i, f, o, g = (i2h(x) + h2h(h)).chunk(4, -1)
        return lstm(i, f, g, o, c)

    return guide["of_pair"](i2h, h2h), step


def pair_with_one_bias(guide):
    return pair_of_linears(guide, bias=False)


def joint_linear(guide):
    joint = linear(I + H, 4 * H)

    def step(x, h, c):
        f, i, o, g = joint(torch.cat([x, h], -1)).chunk(4, -1)
        return lstm(i, f, g, o, c)

    return guide["of_joint"](joint, I, given="fiog"), step


def joint_linear_of_an_rnn(guide):
    joint = linear(I + H, H)
    layer = guide["of_joint"](joint, I, fastrnn.RNN, order="n", given="n")
    return layer, lambda x, h, c: (tanh(joint(torch.cat([x, h], -1))), c)


def matrices_of_gates(guide):
    W = {gate: normal(I, H, seed=k) for k, gate in enumerate("ifog")}
    U = {gate: normal(H, H, seed=k + 4) / 2 for k, gate in enumerate("ifog")}
    b = {gate: normal(H, seed=k + 8) for k, gate in enumerate("ifog")}

    def step(x, h, c):
        return lstm(*(x @ W[gate] + h @ U[gate] + b[gate] for gate in "ifgo"), c)

    return guide["of_gates"](W, U, b), step


def tensorflow_kernel(guide):
    kernel, bias = normal(I + H, 4 * H) / 2, normal(4 * H, seed=1)

    def step(x, h, c):
        i, j, f, o = (torch.cat([x, h], 1) @ kernel + bias).split(H, 1)
        return lstm(i, f + 1.0, j, o, c)

    return guide["of_tensorflow"](kernel, bias), step


def keras_weights(gates, *bias):
    shapes = (I, gates * H), (H, gates * H), (*bias, gates * H)
    return [normal(*shape, seed=k) / 2 for k, shape in enumerate(shapes)]


def keras_lstm(guide):
    kernel, recurrent_kernel, bias = keras_weights(4)

    def step(x, h, c):
        i, f, g, o = (x @ kernel + h @ recurrent_kernel + bias).split(H, 1)
        return lstm(i, f, g, o, c)

    return guide["of_keras_lstm"](kernel, recurrent_kernel, bias), step


def keras_gru_that_resets_after(guide):
    kernel, recurrent_kernel, bias = keras_weights(3, 2)

    def step(x, h, c):
        x_z, x_r, x_n = (x @ kernel + bias[0]).split(H, 1)
        h_z, h_r, h_n = (h @ recurrent_kernel + bias[1]).split(H, 1)
        z = sigmoid(x_z + h_z)
        return z * h + (1 - z) * tanh(x_n + sigmoid(x_r + h_r) * h_n), c

    return guide["of_keras_gru"](kernel, recurrent_kernel, bias), step


def keras_gru_that_resets_first(guide):
    kernel, recurrent_kernel, bias = keras_weights(3)
    layer = guide["of_keras_gru"](kernel, recurrent_kernel, bias)

    def step(x, h, c):
        x_z, x_r, x_n = (x @ kernel + bias).split(H, 1)
        U_z, U_r, U_n = recurrent_kernel.split(H, 1)
        z, r = sigmoid(x_z + h @ U_z), sigmoid(x_r + h @ U_r)
        return z * h + (1 - z) * tanh(x_n + (r * h) @ U_n), c

    return lambda x: (guide["reset_first"](layer, x), None), step


def gru_with_z_turned(guide):
    i2h, h2h = linear(I, 3 * H), linear(H, 3 * H)
    gru = fastrnn.GRU(I, H, dtype=torch.float64)
    guide["fill"](gru, "rzn", "rzn", i2h.weight, h2h.weight, i2h.bias, h2h.bias)

    def step(x, h, c):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = i2h(x).chunk(3, -1), h2h(h).chunk(3, -1)
        z = sigmoid(x_z + h_z)
        return (1 - z) * h + z * tanh(x_n + sigmoid(x_r + h_r) * h_n), c

    return guide["with_z_turned"](gru), step


FORMS = (
    pair_of_linears, pair_with_one_bias, joint_linear, joint_linear_of_an_rnn, matrices_of_gates,
    tensorflow_kernel, keras_lstm, keras_gru_that_resets_after, gru_with_z_turned,
    pytest.param(keras_gru_that_resets_first, marks=pytest.mark.slow),  # a cell to compile
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_layer_of_hand_written_weights_is_the_loop(guide, form):
    torch.manual_seed(0)
    layer, step = form(guide)
    x = normal(T, N, I, seed=20).requires_grad_()
    h, c, outputs = torch.zeros(N, H, dtype=x.dtype), torch.zeros(N, H, dtype=x.dtype), []
    for each in x:
        h, c = step(each, h, c)
        outputs.append(h)
    expected, (actual, _) = torch.stack(outputs), layer(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    slope, expected_slope = (
        torch.autograd.grad(output, x, normal(T, N, H, seed=21))[0] for output in (actual, expected)
    )
    assert slope.abs().max() > 0.1
    torch.testing.assert_close(slope, expected_slope, rtol=0, atol=1e-12)


def test_a_loop_with_one_bias_trains_one(guide):
    layer, _ = pair_with_one_bias(guide)
    assert [name for name, w in layer.named_parameters() if not w.requires_grad] == ["bias_hh_l0"]
    assert not layer.bias_hh_l0.any()


def test_a_cell_takes_the_weights_without_their_layer(guide):
    torch.manual_seed(0)
    layer, step = pair_of_linears(guide)
    cell = fastrnn.LSTMCell(I, H, dtype=torch.float64)
    cell.load_state_dict({k.removesuffix("_l0"): w for k, w in layer.state_dict().items()})
    x, (h, c) = normal(N, I), normal(2, N, H, seed=1)
    for got, want in zip(cell(x, (h, c)), step(x, h, c), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_every_function_of_the_guide_has_a_form(guide):
    defined = {name for name, value in guide.items() if isinstance(value, FunctionType)}
    text = Path(__file__).read_text()
    assert defined == set(re.findall(r'guide\["(\w+)"\]', text))
