"""JANET, just another network: an LSTM that has a forget gate and no other.

    s = W_f x + U_f h + b_f
    h' = σ(s) h + (1 - σ(s - β)) tanh(W_c x + U_c h + b_c)

J. van der Westhuizen and J. Lasenby, The unreasonable effectiveness of the forget gate, 2018,
arXiv 1804.04849.

The number ``beta`` lets a unit take more than it forgets; the default is the paper's 1. The rows of
weight_ih (2H, I) and weight_hh (2H, H) are those of f, c, and start uniform in ±1/sqrt(H); the
paper starts b_f as the logarithm of uniform numbers from 1 to the longest dependency (chrono
initialisation), for which write to bias_ih. The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["janet"]


@cells.cell(gates="fc", numbers={"beta": 1.0})
def janet(x, h, s, p):
    forget = x.f + h.f
    candidate = tanh(x.c + h.c)
    return sigmoid(forget) * s.h + (1 - sigmoid(forget - p.beta)) * candidate
