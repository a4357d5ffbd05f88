"""LSTM whose input gate is what the forget gate leaves: CIFG, the coupled input and forget gate.

    f = σ(W_f x + U_f h + b_f)      o = σ(W_o x + U_o h + b_o)
    c' = f c + (1 - f) tanh(W_g x + U_g h + b_g)
    h' = o tanh(c')

K. Greff, R. K. Srivastava, J. Koutník, B. R. Steunebrink and J. Schmidhuber, LSTM: A Search Space
Odyssey, IEEE Transactions on Neural Networks and Learning Systems 28 (10), 2017, arXiv 1503.04069;
here without the peepholes that all variants of the paper but one have.

The rows of weight_ih (3H, I) and weight_hh (3H, H) are those of f, g, o. All start uniform in
±1/sqrt(H). The states are h and c.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["coupled_lstm"]


@cells.cell(gates="fgo", states="c")
def coupled_lstm(x, h, s, p):
    f = sigmoid(x.f + h.f)
    c = f * s.c + (1 - f) * tanh(x.g + h.g)
    return sigmoid(x.o + h.o) * tanh(c), {"c": c}
