"""LSTM with zoneout: units keep their states of the step before, by chance.

    i, f, o = σ(W x + U h + b)      g = tanh(W_g x + U_g h + b_g)
    c̃ = f c + i g
    c' = k_c c + (1 - k_c) c̃
    h' = k_h h + (1 - k_h) o tanh(c̃)

D. Krueger, T. Maharaj, J. Kramár, M. Pezeshki, N. Ballas, N. R. Ke, A. Goyal, Y. Bengio,
A. Courville and C. Pal, Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations, ICLR
2017, arXiv 1606.01305.

The extra inputs ``keep_h`` and ``keep_c`` are k_h and k_c: in training, masks (T, N, H) that are 1
with the rates of zoneout, ``torch.rand(T, N, H) < rate`` as floats; in evaluation the rates
themselves, ``torch.full((N,), rate)``. The rows of weight_ih (4H, I) and weight_hh (4H, H) are
those of i, f, g, o, as in torch.nn.LSTM. All start uniform in ±1/sqrt(H). The states are h and c.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["zoneout_lstm"]


@cells.cell(gates="ifgo", states="c", inputs=("keep_h", "keep_c"))
def zoneout_lstm(x, h, s, p):
    i = sigmoid(x.i + h.i)
    f = sigmoid(x.f + h.f)
    o = sigmoid(x.o + h.o)
    c = f * s.c + i * tanh(x.g + h.g)
    new_h = x.keep_h * s.h + (1 - x.keep_h) * o * tanh(c)
    return new_h, {"c": x.keep_c * s.c + (1 - x.keep_c) * c}
