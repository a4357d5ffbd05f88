"""minGRU: a GRU whose gates do not see h, so that a step has no matrix product.

    z = σ(W_z x + b_z)
    h' = (1 - z) h + z (W_n x + b_n)

L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, Were RNNs All We Needed?, 2024,
arXiv 2410.01201: the form of the paper's text; that of its appendix in logarithms keeps h positive.

The rows of weight_ih (2H, I) are those of z, n; there is no weight_hh. All start uniform in
±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid

__all__ = ["mingru"]


@cells.cell(input_gates="zn")
def mingru(x, h, s, p):
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * x.n
