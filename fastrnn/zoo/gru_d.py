"""GRU-D, for values that are missing: the state decays over the time between two observations.

    d = γ y, what the steps before left
    r = σ(W_r x + U_r d + b_r)      z = σ(W_z x + U_z d + b_z)
    n = tanh(W_n x + b_n + r (U_n d + e_n))
    y' = (1 - z) d + z n

Z. Che, S. Purushotham, K. Cho, D. Sontag and Y. Liu, Recurrent Neural Networks for Multivariate
Time Series with Missing Values, Scientific Reports 8, 2018, arXiv 1606.01865. The paper resets d
before the product, U_n (r d); here r multiplies the product, as in torch.nn.GRU and in programs
that put GRU-D's decay before its cell, so that one product a step is enough; docs/cells.md tells
how to take two.

What a product takes must be h: it is d of the next step, and the state ``y`` is the GRU's output,
``layer(x, extra=..., return_all_states=True)[2].c[0]`` after all steps. The extra input ``decay``
(T, N, H) is γ of the step after, 1 at the last: ``torch.cat([g[1:], ones])``, where g is
exp(-relu(W_γ δ + b_γ)) and δ (T, N, I) the time since a value was last seen. x is the values, the
missing ones decayed to their mean, beside the mask of those that are seen, (T, N, 2I). Where y does
not start at zero, give h decayed by g[0]. Put each layer and direction into a module of its own, as
a second layer would take d for its input; with ``reverse=True`` the step after is the one before in
time, so that ``decay`` is ``torch.cat([ones, g[:-1]])`` of gaps that way. The rows of weight_ih
(3H, 2I) and weight_hh (3H, H) are those of r, z, n; e_n is a part of bias_hh. All start uniform in
±1/sqrt(H). The states are h and y.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh

__all__ = ["gru_d"]


@cells.cell(gates="rzn", states="y", inputs=("decay",))
def gru_d(x, h, s, p):
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    y = (1 - z) * s.h + z * n
    return x.decay * y, {"y": y}
