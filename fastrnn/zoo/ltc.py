"""Liquid time constants: a gate shortens a unit's time constant and pulls it to a level.

    dh/dt = -(1/τ + f) h + f A       f = σ(W x + U h + b)

in steps of the paper's fused solver, which is implicit in what is linear in h:

    h' = (h + dt f A) / (1 + dt (1/τ + f))

R. Hasani, M. Lechner, A. Amini, D. Rus and R. Grosu, Liquid Time-constant Networks, AAAI 2021,
arXiv 2006.04439, equation 3. The paper leaves the activation of f open, with tanh as an example; σ
keeps f positive and the divisor above 1. The authors' program has a sigmoid for each synapse
instead, which is no product with a matrix.

The extra input ``dt`` is the time of a step, (T, N) for all units of a sample. The paper unfolds L
steps for an input: ``layer(x.repeat_interleave(L, 0), extra={"dt": ...})[0][L - 1 :: L]``, with dt
of a step, an Lth of that of the input. The rows of weight_ih (H, I) and weight_hh (H, H) are those
of f. A (H,) starts uniform in ±1/sqrt(H), as weights and biases do; tau (H,), which is τ, starts
at 1 and must stay positive. The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid

__all__ = ["ltc"]


@cells.cell(gates="f", vectors={"A": None, "tau": 1.0}, inputs=("dt",))
def ltc(x, h, s, p):
    f = sigmoid(x.f + h.f)
    return (s.h + x.dt * f * p.A) / (1 + x.dt * (1 / p.tau + f))
