"""Entity-aware LSTM: what does not change in a sequence decides which units take input.

    f = σ(W_f x + U_f h + b_f)      o = σ(W_o x + U_o h + b_o)
    c' = f c + i tanh(W_g x + U_g h + b_g)
    h' = o tanh(c')

F. Kratzert, D. Klotz, G. Shalev, G. Klambauer, S. Hochreiter and G. Nearing, Towards learning
universal, regional, and local hydrological behaviors via machine learning applied to large-sample
datasets, Hydrology and Earth System Sciences 23, 2019, arXiv 1907.08456.

The extra input ``i`` is the paper's static input gate, σ(W_i x_s + b_i) of a sample's static
features x_s: the sigmoid of a torch.nn.Linear, (N, H), given as (1, N, H) for all steps. The rows
of weight_ih (3H, I) and weight_hh (3H, H) are those of f, g, o. All start uniform in ±1/sqrt(H).
The states are h and c.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["ea_lstm"]


@cells.cell(gates="fgo", states="c", inputs="i")
def ea_lstm(x, h, s, p):
    c = sigmoid(x.f + h.f) * s.c + x.i * tanh(x.g + h.g)
    return sigmoid(x.o + h.o) * tanh(c), {"c": c}
