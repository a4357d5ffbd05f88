"""LSTM with peepholes: its gates see the cell state, too.

    i = σ(W_i x + U_i h + p_i c + b_i)        f = σ(W_f x + U_f h + p_f c + b_f)
    c' = f c + i tanh(W_g x + U_g h + b_g)
    o = σ(W_o x + U_o h + p_o c' + b_o)       h' = o tanh(c')

F. A. Gers and J. Schmidhuber, Recurrent Nets that Time and Count, IJCNN 2000; F. A. Gers,
N. N. Schraudolph and J. Schmidhuber, Learning Precise Timing with LSTM Recurrent Networks, Journal
of Machine Learning Research 3, 2002.

The rows of weight_ih (4H, I) and weight_hh (4H, H) are those of i, f, g, o, as in torch.nn.LSTM.
p_i, p_f, p_o (H,) start uniform in ±1/sqrt(H), as weights and biases do. The states are h and c.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["peephole_lstm"]


@cells.cell(gates="ifgo", states="c", vectors=("p_i", "p_f", "p_o"))
def peephole_lstm(x, h, s, p):
    i = sigmoid(x.i + h.i + p.p_i * s.c)
    f = sigmoid(x.f + h.f + p.p_f * s.c)
    c = f * s.c + i * tanh(x.g + h.g)
    o = sigmoid(x.o + h.o + p.p_o * c)
    return o * tanh(c), {"c": c}
