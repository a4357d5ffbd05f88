"""Light GRU: no reset gate, and relu for tanh.

    z = σ(W_z x + U_z h + b_z)
    h' = z h + (1 - z) relu(W_n x + U_n h + b_n)

M. Ravanelli, P. Brakel, M. Omologo and Y. Bengio, Light Gated Recurrent Units for Speech
Recognition, IEEE Transactions on Emerging Topics in Computational Intelligence 2 (2), 2018,
arXiv 1803.10225; here without the paper's batch normalisation of W_z x and W_n x, which keeps h
small: without it, clip gradients.

The rows of weight_ih (2H, I) and weight_hh (2H, H) are those of z, n. All start uniform in
±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import relu, sigmoid

__all__ = ["ligru"]


@cells.cell(gates="zn")
def ligru(x, h, s, p):
    z = sigmoid(x.z + h.z)
    return z * s.h + (1 - z) * relu(x.n + h.n)
