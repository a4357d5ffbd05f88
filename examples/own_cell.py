"""A layer of a formula of one's own: the numbers of its loop of torch operations, from one kernel.

Units send at a rate that tires: the more a unit has sent, the more it takes to make it send. Called
with tensors, the function of the cell is the formula in plain torch, and the loop here calls it so.

Run: python examples/own_cell.py
"""

import time
from types import SimpleNamespace

import torch
from torch.nn.functional import linear

import fastrnn
from fastrnn import cells

T, N, FEATURES, UNITS = 200, 16, 8, 64


def tiring(x, h, s, p):
    v = s.v + p.leak * (x.v + h.v - s.v)
    rate = cells.softplus(v - p.strength * s.tired)
    return rate, {"v": v, "tired": s.tired + p.slow * (rate - s.tired)}


cell = cells.cell(
    gates="v",
    states=("v", "tired"),
    vectors={"strength": (0.0, 2.0)},
    numbers={"leak": 0.2, "slow": 0.05},
)(tiring)
print(cell)  # the formula, the derivative that was found, and what is saved for it

torch.manual_seed(0)
layer = fastrnn.Recurrent(cell, FEATURES, UNITS)
x = torch.randn(T, N, FEATURES)


def loop():
    p = SimpleNamespace(strength=layer.strength_l0, leak=layer.leak, slow=layer.slow)
    h, states, outputs = (
        x.new_zeros(N, UNITS),
        dict.fromkeys(cell.states, x.new_zeros(N, UNITS)),
        [],
    )
    for step in x:
        of_x = SimpleNamespace(v=linear(step, layer.weight_ih_l0, layer.bias_ih_l0))
        of_h = SimpleNamespace(v=linear(h, layer.weight_hh_l0, layer.bias_hh_l0))
        h, states = tiring(of_x, of_h, SimpleNamespace(h=h, **states), p)
        outputs.append(h)
    return torch.stack(outputs)


def gradients(output):
    return torch.autograd.grad(output.square().mean(), [*layer.parameters()])


def milliseconds(forward):
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        gradients(forward())
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def kernel():
    return layer(x)[0]


output, expected = kernel(), loop()  # the first call compiles the cell, or finds it on disk
torch.testing.assert_close(output, expected)
torch.testing.assert_close(gradients(output), gradients(expected))
print("same values and gradients; forward and backward:")
print(f"loop {milliseconds(loop):.1f} ms, kernel {milliseconds(kernel):.1f} ms")
