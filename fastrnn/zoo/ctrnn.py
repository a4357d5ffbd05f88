"""Continuous-time RNN of rates: h is the positive part of a current v, which leaks.

    τ dv/dt = -v + W x + U h + b       h = relu(v)

in steps of Euler's method, with α = dt / τ:

    v' = (1 - α) v + α (W x + U h + b)       h' = relu(v')

H. F. Song, G. R. Yang and X.-J. Wang, Training Excitatory-Inhibitory Recurrent Neural Networks for
Cognitive Tasks: A Simple and Flexible Framework, PLoS Computational Biology 12 (2), 2016; here
without noise.

The number ``alpha`` is 0.2 unless it is set. The rows of weight_ih (H, I) and weight_hh (H, H) are
those of v. All start uniform in ±1/sqrt(H). The states are h and v. For units that excite or
inhibit only (Dale's law), give the columns of weight_hh signs, as docs/cells.md shows.
"""

from fastrnn import cells
from fastrnn.cells import relu

__all__ = ["ctrnn"]


@cells.cell(gates="v", states="v", numbers={"alpha": 0.2})
def ctrnn(x, h, s, p):
    v = (1 - p.alpha) * s.v + p.alpha * (x.v + h.v)
    return relu(v), {"v": v}
