"""GRU with recurrent dropout: the recurrent products see y through a mask, one for a sequence.

    r = σ(W_r x + U_r (m y) + b_r)      z = σ(W_z x + U_z (m y) + b_z)
    n = tanh(W_n x + b_n + r (U_n (m y) + d_n))
    y' = z y + (1 - z) n

Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in Recurrent Neural
Networks, NIPS 2016, arXiv 1512.05287, with one mask for the three gates, and in the form of
torch.nn.GRU, where r multiplies the product. What a unit keeps of its y has no mask.

What a product takes must be h: it is m y, and the state ``y`` is the GRU's output,
``layer(x, extra=..., return_all_states=True)[2].c[0]`` after all steps. The extra input ``mask`` is
m, (1, N, H): 0 with the rate p of dropout, else 1 / (1 - p), in training, and 1 in evaluation.
Where y does not start at zero, give h masked. Put each layer into a module of its own, as a second
one would take m y for its input. The rows of weight_ih (3H, I) and weight_hh (3H, H) are those of
r, z, n, as in torch.nn.GRU; d_n is a part of bias_hh. All start uniform in ±1/sqrt(H). The states
are h and y.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["variational_gru"]


@cells.cell(gates="rzn", states="y", inputs=("mask",))
def variational_gru(x, h, s, p):
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    y = z * s.y + (1 - z) * n
    return x.mask * y, {"y": y}
