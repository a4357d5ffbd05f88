"""Minimal gated unit: a GRU with one gate, which forgets and resets.

    f = σ(W_f x + U_f h + b_f)
    h' = (1 - f) h + f tanh(W_n x + b_n + f (U_n h + d_n))

G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou, Minimal Gated Unit for Recurrent Neural Networks,
International Journal of Automation and Computing 13 (3), 2016, arXiv 1603.09420. The paper resets
h before the product, U_n (f h); here f multiplies the product, as r does in torch.nn.GRU, so that
one product a step is enough.

The rows of weight_ih (2H, I) and weight_hh (2H, H) are those of f, n; d_n is a part of bias_hh. All
start uniform in ±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["mgu"]


@cells.cell(gates="fn")
def mgu(x, h, s, p):
    f = sigmoid(x.f + h.f)
    return (1 - f) * s.h + f * tanh(x.n + f * h.n)
