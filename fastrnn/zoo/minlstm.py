"""minLSTM: an LSTM whose gates do not see h and add up to 1, so that a step has no matrix product.

    f = σ(W_f x + b_f)      i = σ(W_i x + b_i)
    h' = (f h + i (W_n x + b_n)) / (f + i)

L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, Were RNNs All We Needed?, 2024,
arXiv 2410.01201: the form of the paper's text; that of its appendix in logarithms keeps h positive.

The rows of weight_ih (3H, I) are those of f, i, n; there is no weight_hh. All start uniform in
±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid

__all__ = ["minlstm"]


@cells.cell(input_gates="fin")
def minlstm(x, h, s, p):
    f, i = sigmoid(x.f), sigmoid(x.i)
    return (f * s.h + i * x.n) / (f + i)
