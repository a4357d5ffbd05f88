"""The loop over steps of CleanRL's agents with memory, as one call.

CleanRL is scripts to copy from, so this needs no package: an agent's ``get_states`` calls
:func:`unroll` in the place of its loop, in acting and in training alike.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from fastrnn.modules import RecurrentModule

__all__ = ["unroll"]

State = TypeVar("State", bound="Tensor | tuple[Tensor, Tensor]")


def unroll(rnn: RecurrentModule, x: Tensor, done: Tensor, state: State) -> tuple[Tensor, State]:
    """Run a layer over a rollout; the state is zero before each step at which an episode starts.

    Gradients stop there. L is the layer's ``num_layers``, R the size of its output.

    Args:
        rnn: a :class:`fastrnn.RNN`, :class:`fastrnn.GRU` or :class:`fastrnn.LSTM` of one direction
            with ``batch_first=False``.
        x: (T, N, I), or its rows (T * N, I), N being that of ``state``.
        done: T * N numbers or bools in any shape, step by step; not zero where an episode starts.
        state: before the first step, h (L, N, R), or (h, c) of an LSTM.

    Returns:
        output (T, N, R) or (T * N, R), as ``x``, and the state after the last step.

    Raises:
        TypeError: ``rnn`` is another module; torch.nn's layers have no ``reset=``.
        ValueError: ``rnn`` has two directions, or ``batch_first``.

    Example::

        >>> def get_states(self, x, lstm_state, done):
        ...     return unroll(self.lstm, self.network(x / 255.0), done, lstm_state)
    """
    if not isinstance(rnn, RecurrentModule):
        raise TypeError(
            f"unroll: rnn must be a fastrnn.RNN, GRU or LSTM, got {type(rnn).__module__}."
            f"{type(rnn).__name__}, which has no reset=: call fastrnn.accelerate on the model first"
        )
    for option in ("bidirectional", "batch_first", "reverse"):
        if getattr(rnn, option):
            raise ValueError(f"unroll: rnn must not have {option}=True, for states go on in time")
    samples = (state if isinstance(state, Tensor) else state[0]).size(1)
    steps = x.reshape(-1, samples, x.size(-1))
    starts = done.bool().reshape(-1, samples)
    # Most steps of acting start no episode, and a call without reset= takes less time. To ask a GPU
    # would take longer.
    may_start = torch.compiler.is_compiling() or not starts.is_cpu or bool(starts.any())
    output, state = rnn(steps, state, reset=starts if may_start else None)
    return output.reshape(*x.shape[:-1], -1), state
