"""GRU whose state is clipped to a range, in the form of torch.nn.GRU.

    r = σ(W_r x + U_r h + b_r)      z = σ(W_z x + U_z h + b_z)
    n = tanh(W_n x + b_n + r (U_n h + d_n))
    h' = clip(z h + (1 - z) n, -β, β)

C. Pandarinath et al., Inferring single-trial neural population dynamics using sequential
auto-encoders, Nature Methods 15, 2018 (LFADS), whose programs clip the state of their GRUs. Theirs
reset h before the product, U_n (r h), as the paper does; here r multiplies the product, so that one
product a step is enough. docs/cells.md shows theirs, which takes two.

The number ``bound`` is β, 5 unless it is set. The rows of weight_ih (3H, I) and weight_hh (3H, H)
are those of r, z, n, as in torch.nn.GRU, whose state dict fits; d_n is a part of bias_hh. All start
uniform in ±1/sqrt(H). The state is h.
"""

from fastrnn import cells
from fastrnn.cells import sigmoid, tanh, where

__all__ = ["clipped_gru"]


@cells.cell(gates="rzn", numbers={"bound": 5.0})
def clipped_gru(x, h, s, p):
    r = sigmoid(x.r + h.r)
    z = sigmoid(x.z + h.z)
    n = tanh(x.n + r * h.n)
    new = z * s.h + (1 - z) * n
    # A unit that z holds at the bound ties in each step: its gradient passes whole here, as through
    # torch.clamp, where minimum and maximum would pass half.
    return where(new > p.bound, p.bound, where(new < -p.bound, -p.bound, new))
