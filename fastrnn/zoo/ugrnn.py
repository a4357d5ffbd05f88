"""Update gate RNN: a gate decides whether a unit keeps its state or computes a new one.

    g = σ(W_g x + U_g h + b_g)
    h' = g h + (1 - g) tanh(W_c x + U_c h + b_c)

J. Collins, J. Sohl-Dickstein and D. Sussillo, Capacity and Trainability in Recurrent Neural
Networks, ICLR 2017, arXiv 1611.09913.

The rows of weight_ih (2H, I) and weight_hh (2H, H) are those of g, c. All start uniform in
±1/sqrt(H); a b_g of 1 lets units keep more at first. The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["ugrnn"]


@cells.cell(gates="gc")
def ugrnn(x, h, s, p):
    g = sigmoid(x.g + h.g)
    return g * s.h + (1 - g) * tanh(x.c + h.c)
