"""Simple recurrent unit: a light recurrence, and a highway for the input; no product of h.

    f = σ(W_f x + v_f c + b_f)      r = σ(W_r x + v_r c + b_r)
    c' = f c + (1 - f) W_n x
    h' = r c' + (1 - r) W_skip x

T. Lei, Y. Zhang, S. I. Wang, H. Dai and Y. Artzi, Simple Recurrent Units for Highly Parallelizable
Recurrence, EMNLP 2018, arXiv 1709.02755. Where I = H the paper's highway is x times a number:
W_skip, the identity times it.

The rows of weight_ih (4H, I) are those of n, f, r, skip; there is no weight_hh. v_f and v_r (H,)
start uniform in ±1/sqrt(H), as weights and biases do; the paper has no biases of n and skip, which
are zero once set to zero and not trained. The states are h and c.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid

__all__ = ["sru"]


@cells.cell(input_gates=("n", "f", "r", "skip"), states="c", vectors=("v_f", "v_r"))
def sru(x, h, s, p):
    f = sigmoid(x.f + p.v_f * s.c)
    r = sigmoid(x.r + p.v_r * s.c)
    c = f * s.c + (1 - f) * x.n
    return r * c + (1 - r) * x.skip, {"c": c}
