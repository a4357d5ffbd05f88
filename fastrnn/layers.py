"""Directions, stacked layers and dropout over the op. It knows no module and checks nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout

from fastrnn import ops
from fastrnn.ops import ScanWeights

__all__ = ["run_stack"]


def run_stack(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[ScanWeights],
    *,
    directions: int,
    dropout: float,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    recompute: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run L layers of D directions.

    Args:
        cell: the op's name of the cell.
        input: (T, N, I), or (rows, I) when packed.
        states: h_0 (L * D, N, R) and, for an LSTM, c_0 (L * D, N, H).
        weights: L * D entries, the directions of a layer side by side.
        directions: 1 or 2.
        dropout: probability between layers; 0 outside training.
        lengths, batch_sizes, recompute: as for :func:`fastrnn.ops.scan`.

    Returns:
        output (T, N, D * R) or (rows, D * R), and the final states in the shapes of ``states``.
    """
    finals: list[tuple[Tensor, ...]] = []
    for index, weight in enumerate(weights):
        direction = index % directions
        if direction == 0:
            layer_input, outputs = input, []
        h_0, c_0 = states[0][index], states[1][index] if len(states) == 2 else None
        y, h_n, c_n = ops.scan(
            cell,
            layer_input,
            h_0,
            c_0,
            weight,
            lengths=lengths,
            batch_sizes=batch_sizes,
            reverse=direction == 1,
            recompute=recompute,
        )
        outputs.append(y)
        finals.append((h_n,) if c_n is None else (h_n, c_n))
        if direction == directions - 1:
            input = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
            if dropout > 0 and index < len(weights) - 1:
                input = apply_dropout(input, dropout, training=True)
    return input, tuple(torch.stack(final) for final in zip(*finals, strict=True))
