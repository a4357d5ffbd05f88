"""sb3-contrib's RecurrentPPO: a batch in which episodes start is one call, not a loop of steps."""

from __future__ import annotations

from typing import Any

from sb3_contrib import RecurrentPPO
from torch import Tensor, nn

import fastrnn
from fastrnn.integrations.cleanrl import unroll

__all__ = ["accelerate_policy"]


class _Unrolled:
    """What is put before a recurrent policy's class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fastrnn.accelerate(self)  # type: ignore[arg-type]

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The layer's outputs (N * T, R), sample by sample as ``features``, and its last states."""
        samples = lstm_states[0].size(1)
        x = features.reshape(samples, -1, lstm.input_size).transpose(0, 1)
        starts = episode_starts.reshape(samples, -1).transpose(0, 1)
        output, states = unroll(lstm, x, starts, lstm_states)  # type: ignore[arg-type]
        return output.transpose(0, 1).flatten(0, 1), states


def accelerate_policy(model: RecurrentPPO) -> RecurrentPPO:
    """Let a model's policy run each batch of sequences in one call with ``reset=``.

    The policy stays the object it is, with its Parameters and optimizer, and changes its class to a
    subclass; the model saves that with itself, so a loaded one need not be accelerated again.
    Loading needs fastrnn then.

    Args:
        model: changed in place.

    Returns:
        The model.

    Raises:
        TypeError: at a policy's call, if its layer is a subclass that accelerate leaves alone.

    Example::

        >>> model = accelerate_policy(RecurrentPPO("MlpLstmPolicy", "CartPole-v1"))
        >>> model.learn(100_000)
    """
    kind = type(model.policy)
    if not issubclass(kind, _Unrolled):
        kind = type(kind.__name__, (_Unrolled, kind), {})
        model.policy_class = model.policy.__class__ = kind
    fastrnn.accelerate(model.policy)
    return model
