"""The cell that an architecture search found, in the form of tf.contrib.rnn.NASCell.

With a_k = W_k x and m_k = U_k h + b_k for k = 0 to 7:

    c' = tanh(c + tanh(σ(a_0 + m_0) relu(a_1 + m_1))) tanh(σ(a_2 + m_2) + relu(a_3 m_3))
    e = tanh(tanh(a_4 + m_4) σ(a_5 + m_5)) + σ(tanh(a_6 + m_6) + σ(a_7 + m_7))
    h' = tanh(c' tanh(e))

B. Zoph and Q. V. Le, Neural Architecture Search with Reinforcement Learning, ICLR 2017,
arXiv 1611.01578.

The rows of weight_ih (8H, I) and weight_hh (8H, H) are those of a0, a1, a2, a3, a4, a5, a6, a7. All
start uniform in ±1/sqrt(H); bias_ih, which TensorFlow's cell has not, is added to a_k. The states
are h and c.
"""

from fastrnn import cells
from fastrnn.cells import relu, sigmoid, tanh

__all__ = ["nas"]


@cells.cell(gates=("a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"), states="c")
def nas(x, h, s, p):
    inner = tanh(sigmoid(x.a0 + h.a0) * relu(x.a1 + h.a1))
    scale = tanh(sigmoid(x.a2 + h.a2) + relu(x.a3 * h.a3))
    c = tanh(inner + s.c) * scale
    left = tanh(tanh(x.a4 + h.a4) * sigmoid(x.a5 + h.a5))
    right = sigmoid(tanh(x.a6 + h.a6) + sigmoid(x.a7 + h.a7))
    return tanh(c * tanh(left + right)), {"c": c}
