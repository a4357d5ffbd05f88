"""T-LSTM, time-aware: a part of c fades over the gap to the step before. Two steps for one of it.

    d = tanh(U_d c + b_d)           c* = c - d + γ d
    i, f, o = σ(W x + U h + b)      g = tanh(W_g x + U_g h + b_g)
    c' = f c* + i g
    h' = o tanh(c')

I. M. Baytas, C. Xiao, X. Zhang, F. Wang, A. K. Jain and J. Zhou, Patient Subtyping via Time-Aware
LSTM Networks, KDD 2017.

What a product takes must be h: it is h in the first step of two, and c in the second. Each step
multiplies all of weight_hh, so that a step of the LSTM costs twice the products. The extra input
``second`` is 0 in the first step and 1 in the second, (2T, 1) for all samples: ``torch.tensor([0.0,
1.0]).repeat(T)[:, None]``. The extra input ``decay`` is γ, in the paper 1 / log(e + Δ) of the gap
Δ. x and γ come twice, ``x.repeat_interleave(2, 0)``, the output is ``output[1::2]``, and lengths
count twice. Put each layer and direction into a module of its own (docs/cells.md has the reverse
one). The rows of weight_ih (4H, I) are those of i, f, g, o, and those of weight_hh (5H, H) of i, f,
g, o, d. All start uniform in ±1/sqrt(H). The states are h, c, a, f and o, where a is i g; a first
step reads h and c alone.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh, where

__all__ = ["t_lstm"]


@cells.cell(
    gates="ifgo", recurrent_gates="d", states=("c", "a", "f", "o"), inputs=("second", "decay")
)
def t_lstm(x, h, s, p):
    second = x.second > 0
    a = where(second, s.a, sigmoid(x.i + h.i) * tanh(x.g + h.g))
    f = where(second, s.f, sigmoid(x.f + h.f))
    o = where(second, s.o, sigmoid(x.o + h.o))
    d = tanh(h.d)
    new = f * (s.c - d + x.decay * d) + a
    c = where(second, new, s.c)
    return where(second, o * tanh(new), s.c), {"c": c, "a": a, "f": f, "o": o}
