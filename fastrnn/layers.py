"""Runs the op over directions and stacked layers, with dropout. It knows no module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import eager, ops
from fastrnn.dropout import draw_seed, dropout_mask
from fastrnn.library import USER_CELLS, apart, side_by_side
from fastrnn.ops import CELLS, Direction, ScanWeights
from fastrnn.torch_internals import is_jit_traced
from fastrnn.user_cells import scan_function

__all__ = ["is_recorded", "run_stack"]


def run_stack(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[ScanWeights],
    *,
    directions: int,
    dropout: float,
    extras: Sequence[Tensor] = (),
    numbers: Sequence[float] = (),
    reset_states: Sequence[Tensor] = (),
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    offsets: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
    all_states: bool = False,
    packed: Tensor | None = None,
    rounds_to: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor], list[list[Tensor]]]:
    """Run L layers of D directions.

    Args:
        cell: the op's name of the cell.
        input: (T, N, I), or (rows, I) when packed or jagged.
        states: h_0 (L * D, N, R) and, for a cell with S cell states (an LSTM has one), c_0
            (L * D, N, S * H).
        weights: L * D entries, the directions of a layer side by side.
        directions: 1 or 2.
        dropout: probability between layers; 0 outside training.
        extras, numbers: those of a user's cell, as for :func:`fastrnn.ops.scan`; all layers read
            the same.
        reset_states: in the shapes of ``states``, or none.
        lengths, batch_sizes, offsets, reset, recompute: as for :func:`fastrnn.ops.scan`.
        reverse: whether the only direction walks backward; for ``directions`` = 1.
        all_states: whether the last two results are wanted.
        packed: the weights as the op ``prepack`` returned them. Where a graph is recorded to be
            kept, or all states are wanted, the ordinary ones are read.
        rounds_to: as for :func:`fastrnn.ops.scan`, of the library's cells; "" with ``packed``.

    Returns:
        output (T, N, D * R) or (rows, D * R), the final states in the shapes of ``states``, and for
        each layer h (T, N, D * R) and the cell states (T, N, D * H) after every step.
    """
    # One seed serves all layers. Without dropout none is drawn, so the generator does not advance.
    seed = draw_seed(input.device) if dropout > 0 and len(weights) > directions else None
    schedule = (lengths, batch_sizes, offsets, reset)
    if packed is not None and not all_states and not is_recorded():
        flat = [weight for each in weights for weight in each if weight is not None]
        output, *finals = torch.ops.fastrnn.stack(
            cell, input, states, reset_states, flat, len(weights) // directions, directions,
            *schedule, reverse, packed,
        )  # fmt: skip
        return output, tuple(finals), [], []
    if seed is None and not all_states and cell not in USER_CELLS:
        results = eager.run_stack(
            cell, input, states, reset_states, weights, directions, schedule, reverse
        )
        if results is not None:
            return *results, [], []
    scan = scan_function(cell, input)
    options: dict[str, Any] = {
        "extras": extras, "numbers": numbers, "lengths": lengths, "batch_sizes": batch_sizes,
        "offsets": offsets, "reset": reset, "recompute": recompute, "all_states": all_states,
    }  # fmt: skip
    if packed is not None:
        rounds_to = ""  # a graph of a frozen layer multiplies as that does
    if rounds_to is not None:
        options["rounds_to"] = rounds_to
    all_h: list[Tensor] = []
    all_c: list[list[Tensor]] = []
    cells: list[Sequence[Tensor]] = []  # of the layer's directions

    def run(indices: Sequence[int], layer_input: Tensor) -> list[tuple[Tensor, ...]]:
        own = [
            Direction(*_of_layer(states, i), weights[i], *_of_layer(reset_states, i))
            for i in indices
        ]
        results = None
        if directions == 2 and scan is ops.scan:
            results = ops.bidirectional_scan(cell, layer_input, own, **options)
        if results is None:
            results = [
                scan(
                    cell, layer_input, each.h_0, each.c_0, each.weights, reset_h=each.reset_h,
                    reset_c=each.reset_c, reverse=reverse or index == 1, **options,
                )
                for index, each in enumerate(own)
            ]  # fmt: skip
        outputs = []
        for y, h_n, c_n, c in results:
            if c is not None:
                cells.append(apart(c.to(y.dtype), CELLS[cell].cell_states))
            finals = (h_n,) if c_n is None else (h_n, c_n)
            outputs.append((y, *(final.unsqueeze(0) for final in finals)))
        return outputs

    def between(layer: int, output: Tensor) -> Tensor:
        if all_states:
            all_h.append(output)
            all_c.append([side_by_side(each) for each in zip(*cells, strict=True)])
        cells.clear()
        if seed is not None and (layer + 1) * directions < len(weights):
            mask = dropout_mask(seed, layer, output.shape, dropout, output.dtype)
            return output * mask
        return output

    output, final_states = eager.over_layers(input, len(weights), directions, run, between)
    return output, final_states, all_h, all_c


def is_recorded() -> bool:
    """Whether torch.export or torch.jit makes a graph that other machines may run."""
    return torch.compiler.is_exporting() or is_jit_traced()


def _of_layer(states: Sequence[Tensor], index: int) -> tuple[Any, Tensor | None]:
    """h and c of one layer and direction, None if absent."""
    present = [state[index] for state in states]
    return (*present, None, None)[0], (*present, None, None)[1]
