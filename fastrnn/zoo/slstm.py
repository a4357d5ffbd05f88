"""sLSTM of the xLSTM family, with one head: exponential input gates, stabilised.

    i = W_i x + U_i h + b_i        f = log σ(W_f x + U_f h + b_f)
    m' = max(i, f + m)
    n' = e^(f + m - m') n + e^(i - m')
    c' = e^(f + m - m') c + e^(i - m') tanh(W_z x + U_z h + b_z)
    h' = σ(W_o x + U_o h + b_o) c' / n'

M. Beck, K. Pöppel, M. Spanring, A. Auer, O. Prudnikova, M. Kopp, G. Klambauer, J. Brandstetter and
S. Hochreiter, xLSTM: Extended Long Short-Term Memory, NeurIPS 2024, arXiv 2405.04517: the forget
gate is the sigmoid, of the two that the paper names; several heads are blocks of U, which the
language does not have yet.

The rows of weight_ih (4H, I) and weight_hh (4H, H) are those of i, f, z, o. All start uniform in
±1/sqrt(H). The states are h, c, n and m. c e^m and n e^m are what c and n would be without
stabilisation; m starts at -10000, the logarithm of nothing, so that the first step divides by its
own input gate however small.
"""

from fastrnn import cells
from fastrnn.cells import exp, maximum, sigmoid, softplus, tanh

__all__ = ["slstm"]


@cells.cell(gates="ifzo", states="cnm", initial={"m": -1e4})
def slstm(x, h, s, p):
    i = x.i + h.i
    kept = s.m - softplus(-(x.f + h.f))  # log σ(v) = -softplus(-v)
    m = maximum(i, kept)
    keep, take = exp(kept - m), exp(i - m)
    c = keep * s.c + take * tanh(x.z + h.z)
    n = keep * s.n + take
    return sigmoid(x.o + h.o) * c / n, {"c": c, "n": n, "m": m}
