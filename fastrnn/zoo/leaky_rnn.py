"""Leaky integrator: h goes a part of the way to what an RNN would make of it.

    h' = (1 - α) h + α tanh(W_n x + U_n h + b_n)

H. Jaeger, M. Lukoševičius, D. Popovici and U. Siewert, Optimization and applications of echo state
networks with leaky-integrator neurons, Neural Networks 20 (3), 2007: with α for its gain γ, and a
leaking rate a of 1.

The number ``alpha`` is a step of time over the unit's time constant, 0.2 unless it is set. The rows
of weight_ih (H, I) and weight_hh (H, H) are those of n. All start uniform in ±1/sqrt(H). The state
is h.
"""

from fastrnn import cells
from fastrnn.cells import tanh

__all__ = ["leaky_rnn"]


@cells.cell(gates="n", numbers={"alpha": 0.2})
def leaky_rnn(x, h, s, p):
    return (1 - p.alpha) * s.h + p.alpha * tanh(x.n + h.n)
