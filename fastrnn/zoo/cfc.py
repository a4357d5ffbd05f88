"""Closed-form continuous-time network, without a backbone: time decides between two candidates.

    t = σ(dt (W_a x + U_a h + b_a) + W_b x + U_b h + b_b)
    h' = (1 - t) tanh(W_1 x + U_1 h + b_1) + t tanh(W_2 x + U_2 h + b_2)

R. Hasani, M. Lechner, A. Amini, L. Liebenwein, A. Ray, M. Tschaikowski, G. Teschl and D. Rus,
Closed-form continuous-time neural networks, Nature Machine Intelligence 4, 2022, arXiv 2106.13898:
in the form of the authors' programs, where time_a and time_b make the paper's f.

The extra input ``dt`` is the time since the step before, (T, N) for all units of a sample. The rows
of weight_ih (4H, I) and weight_hh (4H, H) are those of ff1, ff2, time_a, time_b. All start uniform
in ±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["cfc"]


@cells.cell(gates=("ff1", "ff2", "time_a", "time_b"), inputs=("dt",))
def cfc(x, h, s, p):
    t = sigmoid(x.dt * (x.time_a + h.time_a) + (x.time_b + h.time_b))
    return (1 - t) * tanh(x.ff1 + h.ff1) + t * tanh(x.ff2 + h.ff2)
