"""GRU with zoneout: units keep their state of the step before, by chance.

    r = σ(W_r x + U_r h + b_r)      z = σ(W_z x + U_z h + b_z)
    n = tanh(W_n x + b_n + r (U_n h + d_n))
    h' = k h + (1 - k) (z h + (1 - z) n)

D. Krueger, T. Maharaj, J. Kramár, M. Pezeshki, N. Ballas, N. R. Ke, A. Goyal, Y. Bengio,
A. Courville and C. Pal, Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations, ICLR
2017, arXiv 1606.01305. The paper's GRU resets h before the product, U_n (r h); here r multiplies
the product, as in torch.nn.GRU, so that one product a step is enough.

The extra input ``keep`` is k: in training, a mask (T, N, H) that is 1 with the rate of zoneout,
``torch.rand(T, N, H) < rate`` as floats; in evaluation the rate itself, ``torch.full((N,), rate)``.
The rows of weight_ih (3H, I) and weight_hh (3H, H) are those of r, z, n, as in torch.nn.GRU; d_n is
a part of bias_hh. All start uniform in ±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["zoneout_gru"]


@cells.cell(gates="rzn", inputs=("keep",))
def zoneout_gru(x, h, s, p):
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    return x.keep * s.h + (1 - x.keep) * (z * s.h + (1 - z) * n)
