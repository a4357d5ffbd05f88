"""ONNX export: each scan becomes ONNX's own RNN, GRU or LSTM node.

ONNX orders gates differently. They are reordered in the graph, not in the stored weights, so that
weights which a model computes (weight_norm) export as well; runtimes fold it when they load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fastrnn.library import CELLS, USER_CELLS, named, with_absent

__all__ = ["translation_table"]


class _Node(NamedTuple):
    """The ONNX operator for a cell."""

    op_type: str
    order: tuple[int, ...]  # torch's index of each of ONNX's gates
    attributes: dict[str, Any]


_NODES = {
    "rnn_tanh": _Node("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": _Node("RNN", (0,), {"activations": ["Relu"]}),
    "gru": _Node("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # r, z, n -> z, r, n
    "lstm": _Node("LSTM", (0, 3, 1, 2), {}),  # i, f, g, o -> i, o, f, c
}

# Arguments of the op that ONNX's nodes cannot express, by the names that users know.
_UNSUPPORTED = {
    "weight_hr": "proj_size (weight_hr)",
    "reset": "reset=",
    "reset_h": "reset_state= (reset_h)",
    "reset_c": "reset_state= (reset_c)",
    "batch_sizes": "PackedSequence (give a padded batch and lengths=)",
    "offsets": "jagged tensor (give a padded batch and lengths=)",
}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    r"""The table by which ``torch.onnx.export(..., dynamo=True)`` translates this package's op.

    Each layer and direction becomes one RNN, GRU or LSTM node as opset 14 defines them, ``lengths``
    its ``sequence_lens``; a single cell becomes a node with one step. Batch and time can be
    dynamic. Y (T, 1, N, H), Y_h and Y_c (1, N, H) are the layer's y, h_n and c_n.

    float32, float64 and float16 export. ONNX Runtime 1.32 runs float32 and, in float32, float16 on
    CPU, but not float64. At T = 0 without lengths its final states are 0, not the initial ones.
    OpenVINO 2026.4 ignores ``sequence_lens`` on CPU, silently, unless batch and time are static.

    Returns:
        A table for the argument ``custom_translation_table``.

    Raises:
        ImportError: where onnxscript, which ``torch.onnx.export`` needs, is not installed.
        torch.onnx.errors.OnnxExporterError: from ``torch.onnx.export``, with a line "fastrnn: ..."
            in its summary, for what the nodes lack: proj_size, ``reset`` and ``reset_state``,
            PackedSequence and jagged input, cell states of all steps, bfloat16.

    Example::

        >>> rnn = fastrnn.LSTM(10, 20, batch_first=True).eval()
        >>> x, lengths = torch.randn(3, 5, 10), torch.tensor([5, 2, 4])
        >>> N, T = torch.export.Dim("N"), torch.export.Dim("T")
        >>> torch.onnx.export(
        ...     rnn, (x,), "lstm.onnx", kwargs={"lengths": lengths}, dynamo=True,
        ...     dynamic_shapes={"input": {0: N, 1: T}, "lengths": {0: N}},
        ...     custom_translation_table=fastrnn.onnx.translation_table(),
        ... )
    """
    try:
        from onnxscript import ir, opset18
    except ImportError as error:
        raise ImportError(
            "fastrnn: ONNX export needs onnxscript: pip install onnx onnxscript"
        ) from error
    target = torch.ops.fastrnn.scan.default
    names = [argument.name for argument in target._schema.arguments]

    def scan(*args: Any, **kwargs: Any) -> list[Any]:
        arguments = dict(zip(names, args, strict=False)) | kwargs
        table = CELLS[arguments["cell"]].tensors
        tensors = with_absent(table, arguments.pop("tensors"), arguments.pop("present"))
        return _translate(opset18, ir, **arguments, **named(table, tensors))

    return {target: scan}


def _translate(
    op: Any,
    ir: Any,
    *,
    cell: str,
    input: Any,
    h_0: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any,
    bias_hh: Any,
    c_0: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    save: bool = False,
    recompute: bool = False,
    all_states: bool = False,
    groups: int = 0,
    rounds_to: str = "",
    numbers: Sequence[float] = (),
    **others: Any,
) -> list[Any]:
    """Translate one call of the op, by the names of its schema and table, to the cell's results.

    Any argument that ONNX cannot express is an error, also one that the op gains later. ``save``
    and ``recompute`` concern only backward, ``numbers`` only users' cells, and the runtime decides
    how it multiplies, whatever ``rounds_to`` allows.
    """
    unsupported = [
        _UNSUPPORTED.get(name, name) for name, value in others.items() if value is not None
    ]
    if all_states and c_0 is not None:
        unsupported.append("cell states of all steps (return_all_states=True)")
    if groups:
        unsupported.append("weights in groups (vmap)")
    if (bias_ih is None) != (bias_hh is None):
        unsupported.append("bias_ih without bias_hh, or the reverse")
    if input.dtype == ir.DataType.BFLOAT16:
        unsupported.append("bfloat16 that a runtime has (export model.float())")
    if cell not in _NODES:
        unsupported.append(f"cell {cell}")
    if unsupported:
        words = f"fastrnn: ONNX's RNN, GRU and LSTM nodes have no {' and no '.join(unsupported)}"
        if cell in USER_CELLS:
            words += ": export a module that calls module.cell.step, torch operations, in a loop"
        raise NotImplementedError(words)

    op_type, order, attributes = _NODES[cell]
    gates, hidden_size = len(order), int(weight_hh.shape[0]) // len(order)

    def reorder(weight: Any) -> Any:  # [G * H, columns] or [G * H] -> [G, H * columns] or [G, H]
        rows = op.Reshape(weight, [gates, -1])
        return rows if gates == 1 else op.Gather(rows, list(order), axis=0)

    def with_direction(weight: Any) -> Any:  # [G * H, columns] -> [1, G * H, columns]
        return op.Reshape(reorder(weight), [1, gates * hidden_size, -1])

    bias = sequence_lens = None
    if bias_ih is not None:
        both = op.Concat(reorder(bias_ih), reorder(bias_hh), axis=0)  # [2 * G, H]
        bias = op.Reshape(both, [1, -1])
    if lengths is not None:
        sequence_lens = op.Cast(lengths, to=ir.DataType.INT32)
    states = [state for state in (h_0, c_0) if state is not None]
    y, *finals = getattr(op, op_type)(
        input,
        with_direction(weight_ih),
        with_direction(weight_hh),
        bias,
        sequence_lens,
        *(op.Unsqueeze(state, [0]) for state in states),
        hidden_size=hidden_size,
        direction="reverse" if reverse else "forward",
        **attributes,
    )
    finals = [op.Squeeze(final, [0]) for final in finals]
    if lengths is not None:
        # A sample without steps keeps its state. ONNX does not say so, and runtimes return zeros.
        runs = op.Unsqueeze(op.Greater(lengths, 0), [1])
        finals = [op.Where(runs, *pair) for pair in zip(finals, states, strict=True)]
    # No module reads these results; a model that did would be invalid, since no node makes them.
    nothing = [ir.Value() for _ in CELLS[cell].results[1 + len(finals) :]]
    return [op.Squeeze(y, [1]), *finals, *nothing]
