"""GRU that resets h before the product, in two steps of the layer for one of the GRU.

    r = σ(W_r x + U_r y + b_r)      z = σ(W_z x + U_z y + b_z)
    y' = z y + (1 - z) tanh(W_n x + U_n (r y) + b_n)

K. Cho, B. van Merriënboer, C. Gulcehre, D. Bahdanau, F. Bougares, H. Schwenk and Y. Bengio,
Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, EMNLP
2014, arXiv 1406.1078, with the biases that Keras's GRU has with reset_after=False.

What a product takes must be h: it is y in the first step of two, and r y in the second. Each step
multiplies all of weight_hh, so that a step of the GRU costs twice the products. The extra input
``second`` is 0 in the first step and 1 in the second, (2T, 1) for all samples: ``torch.tensor([0.0,
1.0]).repeat(T)[:, None]``. x comes twice, ``x.repeat_interleave(2, 0)``, the output is
``output[1::2]``, and lengths count twice. Put each layer and direction into a module of its own
(docs/cells.md has the reverse one). The rows of weight_ih (3H, I) and weight_hh (3H, H) are those
of r, z, n. All start uniform in ±1/sqrt(H). The states are h, y and z; a first step reads h alone.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh, where

__all__ = ["reset_first_gru"]


@cells.cell(gates="rzn", states="yz", inputs=("second",))
def reset_first_gru(x, h, s, p):
    z = where(x.second > 0, s.z, sigmoid(x.z + h.z))
    reset = sigmoid(x.r + h.r) * s.h
    new = z * s.y + (1 - z) * tanh(x.n + h.n)
    y = where(x.second > 0, new, s.h)
    return where(x.second > 0, new, reset), {"y": y, "z": z}
