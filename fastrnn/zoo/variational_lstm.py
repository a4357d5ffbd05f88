"""LSTM with recurrent dropout: the recurrent products see h through a mask, one for a sequence.

    i, f, o = σ(W x + U (m y) + b)      g = tanh(W_g x + U_g (m y) + b_g)
    c' = f c + i g
    y' = o tanh(c')

Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in Recurrent Neural
Networks, NIPS 2016, arXiv 1512.05287, with one mask for the four gates; so does Keras's
recurrent_dropout where its LSTM takes one product for all gates.

What a product takes must be h: it is m y, and the state ``y`` is the LSTM's output,
``layer(x, extra=..., return_all_states=True)[2].c[0][1]`` after all steps. The extra input ``mask``
is m, (1, N, H): 0 with the rate p of dropout, else 1 / (1 - p), in training, and 1 in evaluation.
Where h does not start at zero, give it masked. Put each layer into a module of its own, as a second
one would take m y for its input. The rows of weight_ih (4H, I) and weight_hh (4H, H) are those of
i, f, g, o, as in torch.nn.LSTM. All start uniform in ±1/sqrt(H). The states are h, c and y.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["variational_lstm"]


@cells.cell(gates="ifgo", states="cy", inputs=("mask",))
def variational_lstm(x, h, s, p):
    c = sigmoid(x.f + h.f) * s.c + sigmoid(x.i + h.i) * tanh(x.g + h.g)
    y = sigmoid(x.o + h.o) * tanh(c)
    return x.mask * y, {"c": c, "y": y}
