"""Independently recurrent network: a unit sees its own h and no other's.

    h' = relu(W_n x + u h + b_n)

S. Li, W. Li, C. Cook, C. Zhu and Y. Gao, Independently Recurrent Neural Network (IndRNN): Building
A Longer and Deeper RNN, CVPR 2018, arXiv 1803.04831.

The rows of weight_ih (H, I) are those of n; there is no weight_hh. u (H,) starts uniform between 0
and 1, the others in ±1/sqrt(H). The paper bounds its magnitude, for T steps multiply a gradient by
u^T: clamp it after each step of the optimizer. The state is h.
"""

from fastrnn import cells
from fastrnn.cells import relu

__all__ = ["indrnn"]


@cells.cell(input_gates="n", vectors={"u": (0.0, 1.0)})
def indrnn(x, h, s, p):
    return relu(x.n + p.u * s.h)
