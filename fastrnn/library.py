"""The compiled library: what it knows of cells, and its ops as torch's tracers see them.

Every op has a fake kernel. `scan` and its gradient have autograd formulas, too, for torch.export
and whoever trains what it made; other calls with gradients go through :func:`fastrnn.ops.scan`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn.torch_internals import op_has_kernel

if TYPE_CHECKING:
    from fastrnn.cells import Cell

__all__ = ["CELLS", "DTYPES", "CellFacts", "ScanWeights", "cpu_instruction_sets", "register_cell"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

PLAIN = frozenset({Tensor, nn.Parameter})  # the types of tensors that are no subclass


def _load_library() -> str:
    """Load the compiled ops, or those that FASTRNN_LIBRARY names, and return the file's path."""
    override = os.environ.get("FASTRNN_LIBRARY")
    if override:
        try:
            torch.ops.load_library(override)
        except OSError as error:
            raise OSError(f"fastrnn: FASTRNN_LIBRARY={override}: {error}") from error
        return override
    built = sorted(Path(__file__).parent.glob("_C*.so"))
    if not built:
        raise ImportError(
            "fastrnn: the compiled library fastrnn/_C*.so is missing. "
            "Build it: pip install --no-build-isolation -e ."
        )
    torch.ops.load_library(str(built[0]))
    return str(built[0])


PATH = _load_library()


WEIGHT_RANKS = {"matrix": 2, "vector": 1}  # dimensions of the weights of a role, without groups


class TensorInfo(NamedTuple):
    """A row of the tables in csrc/torch/arguments.h."""

    name: str
    role: str  # "sequence", "state", "matrix" or "vector": the last two are weights
    differentiable: bool

    @property
    def weight_rank(self) -> int | None:
        """Dimensions of a weight without groups; None of another tensor."""
        return WEIGHT_RANKS.get(self.role)


class CellFacts(NamedTuple):
    """What the library says of a cell (csrc/cells/) and of the ops' lists for it.

    The numbers are counts for each hidden unit, in the order of the op `cell_facts`.
    """

    input_gates: int  # rows of weight_ih
    recurrent_gates: int  # rows of weight_hh, which may have none
    cell_states: int  # states besides h, side by side in what the op calls c
    vectors: int  # parameters of one number a unit
    extra_inputs: int  # inputs of one number a unit and step, besides the one of the products
    numbers: int  # given with each call
    saved: int  # values a unit and step saves for backward, besides the states
    tensors: tuple[TensorInfo, ...]  # which may have a gradient
    results: tuple[TensorInfo, ...]
    differentiable: tuple[TensorInfo, ...]  # the results that may have a gradient
    saved_results: tuple[TensorInfo, ...]  # the results that backward reads
    differentiable_at: tuple[int, ...]  # their indices among the results
    saved_at: tuple[int, ...]

    @property
    def has_cell_state(self) -> bool:
        return self.cell_states > 0


def _read_table(text: str) -> tuple[TensorInfo, ...]:
    rows = (row.split() for row in text.split(","))
    return tuple(TensorInfo(name, role, not constant) for name, role, *constant in rows)


def _cell_facts(cell: str) -> CellFacts:
    counts: list[int] = torch.ops.fastrnn.cell_facts(cell)
    tensors, results = map(_read_table, torch.ops.fastrnn.cell_tensors(cell))
    differentiable_at = tuple(i for i, result in enumerate(results) if result.differentiable)
    saved_at = tuple(i for i, result in enumerate(results) if result.role == "sequence")
    return CellFacts(
        **dict(zip(CellFacts._fields, counts, strict=False)),
        tensors=tensors,
        results=results,
        differentiable=tuple(results[i] for i in differentiable_at),
        saved_results=tuple(results[i] for i in saved_at),
        differentiable_at=differentiable_at,
        saved_at=saved_at,
    )


class _KnownCells(dict[str, CellFacts]):
    def __missing__(self, cell: str) -> CellFacts:
        """The facts of a cell that a loaded library brought; the op has the words for others."""
        self[cell] = _cell_facts(cell)
        return self[cell]


CELLS = _KnownCells((name, _cell_facts(name)) for name in torch.ops.fastrnn.cells().split(","))
USER_CELLS: dict[str, Cell] = {}  # by the ops' names, which are in CELLS, too


def register_cell(cell: Cell) -> None:
    """Let the ops take a user's cell by its ``op_name``: cells of one name have one content."""
    if cell.op_name not in USER_CELLS:
        torch.ops.fastrnn.register_cell(cell.op_name, list(cell.facts), _has_output(cell))
        _ = cell.program  # torch.compile cannot trace how a cached property is made
        USER_CELLS[cell.op_name] = cell


def _has_output(cell: Cell) -> bool:
    """Whether the cell's kernels give h before a projection."""
    try:
        return cell.for_projection() == cell
    except ValueError:  # it reads h
        return False


# The tensors of the op beside its lists, which say how long sequences are and where they are reset.
SCHEDULE = ("lengths", "batch_sizes", "offsets", "reset")


def named(table: Sequence[TensorInfo], values: Iterable[Any]) -> dict[str, Any]:
    """The values of one of the op's lists by the names in its table."""
    return {info.name: value for info, value in zip(table, values, strict=True)}


def chosen(results: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """The results of a scan at these indices, which :class:`CellFacts` has."""
    return [results[index] for index in indices]


class ScanWeights(NamedTuple):
    """Weights of one layer in one direction, G gates of H units, R = proj_size or H.

    A user's cell may have other numbers of gates in weight_ih and in weight_hh, which may be empty.
    """

    weight_ih: Tensor  # [G * H, I]
    weight_hh: Tensor  # [G * H, R]
    bias_ih: Tensor | None = None  # [G * H]
    bias_hh: Tensor | None = None  # [G * H]
    weight_hr: Tensor | None = None  # [R, H]
    vectors: Tensor | None = None  # [V * H], those of a user's cell, one after the other


def weight_kinds(
    bias: bool, projection: bool, *, recurrent: bool = True, vectors: Iterable[str] = ()
) -> list[str]:
    """Names of the weights of a layer in one direction, in torch's order; then a cell's vectors."""
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bias
    kinds = [kind for kind in kinds if recurrent or not kind.endswith("_hh")]
    return [*kinds, *["weight_hr"] * projection, *vectors]


def extra_names(count: int) -> list[str]:
    """Names of the first extra inputs in the library's table."""
    return [f"extra_{index}" for index in range(count)]


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Tensors as one, along the last dimension: so the ops take states, vectors and directions."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def apart(joined: Tensor | None, count: int) -> Sequence[Tensor]:
    """The inverse of :func:`side_by_side`; nothing of None."""
    if joined is None:
        return ()
    return (joined,) if count == 1 else joined.chunk(count, dim=-1)


def as_op_states(states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """h and the cell states as the ops take them: h, and c with all others; none of none."""
    h, cells = tuple(states[:1]), states[1:]
    return (*h, side_by_side(cells)) if cells else h


def from_op_states(states: Sequence[Tensor], cell_states: int) -> tuple[Tensor, ...]:
    """The inverse of :func:`as_op_states`, of a cell with so many states beside h."""
    h, *c = states
    return (h, *(state for joined in c for state in apart(joined, cell_states)))


# The types of devices the ops run on; on meta they compute shapes.
DEVICES = ("cpu", "meta") + ("cuda",) * op_has_kernel("fastrnn::scan", "CUDA")


def cpu_instruction_sets() -> list[str]:
    """Instruction sets the CPU kernels can use on this machine, best first.

    The first is used unless the environment variable ``FASTRNN_CPU_ISA`` names another before the
    first call, or :func:`fastrnn.library.use_cpu_instruction_set` does later.
    """
    return torch.ops.fastrnn.cpu_instruction_sets().split(",")


def cpu_instruction_set() -> str:
    """The instruction set whose kernels run now."""
    return torch.ops.fastrnn.cpu_instruction_set()


# What cells.compiler.ensure has found loaded for the instruction set that runs now.
LOADED_CELLS: set[LoadedCell] = set()


class LoadedCell(NamedTuple):
    """The kernels of a user's cell for a type."""

    op_name: str
    dtype: torch.dtype
    second_order: bool = False
    projected: bool = False


def has_loaded_kernels(op_name: str, dtype: torch.dtype) -> bool:
    return LoadedCell(op_name, dtype) in LOADED_CELLS


def use_cpu_instruction_set(name: str | None) -> None:
    """Run the kernels of this instruction set from now on; None: as the environment says.

    Raises:
        RuntimeError: this machine or this build does not have it.
    """
    torch.ops.fastrnn.use_cpu_instruction_set(name or "")
    LOADED_CELLS.clear()


def _check_one_device(input: Tensor, tensors: Iterable[Tensor | None]) -> None:
    """One tensor on the meta device is enough for the dispatcher to compute nothing."""
    for tensor in tensors:
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"fastrnn: a tensor is on {tensor.device}, expected input's device {input.device}"
            )


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What cell states are kept in."""
    return torch.float32 if dtype.itemsize == 2 else dtype


@torch.library.register_fake("fastrnn::scan")
def _scan_fake(  # type: ignore[no-untyped-def]
    cell, tensors, present, lengths, batch_sizes, offsets, reset, reverse, save, recompute=False,
    all_states=False, groups=0, rounds_to="", numbers=(),
):  # fmt: skip
    facts = CELLS[cell]
    given = named(facts.tensors, with_absent(facts.tensors, tensors, present))
    input = given["input"]
    _check_one_device(input, (*tensors, reset))
    hidden_size = given["weight_ih"].size(-2) // facts.input_gates
    state_size = facts.cell_states * hidden_size
    output_size = given["weight_hh"].size(-1)
    columns = {
        "y": output_size,
        "h_n": output_size,
        "c_n": state_size,
        "gates": facts.saved * hidden_size if save and not recompute else None,
        "cells": state_size if save or all_states else None,
    }
    results = []
    for result in facts.results:
        rows = input.shape[:-1] if result.role == "sequence" else given["h_0"].shape[:1]
        dtype = accumulate_dtype(input.dtype) if result.name == "cells" else input.dtype
        width = columns[result.name]
        shape = (0,) if width is None else (*rows, width)
        results.append(input.new_empty(shape, dtype=dtype))
    return results


@torch.library.register_fake("fastrnn::scan_backward")
def _scan_backward_fake(  # type: ignore[no-untyped-def]
    cell, grads, tensors, present, lengths, batch_sizes, offsets, reset, reverse, saved, needs,
    groups=0, rounds_to="", numbers=(),
):  # fmt: skip
    table = CELLS[cell].tensors
    input = tensors[0]
    _check_one_device(input, (*tensors, *grads, reset, *saved))
    gradients = []
    for info, tensor, needed in zip(
        table, with_absent(table, tensors, present), needs, strict=True
    ):
        if tensor is None or not needed:
            gradients.append(input.new_empty(0))
        elif info.weight_rank is None or groups == 0:
            gradients.append(input.new_empty(tensor.shape))
        else:
            gradients.append(input.new_empty(groups, *tensor.shape[-info.weight_rank :]))
    return gradients


# The ops `stack` and `step` are traced for frozen modules alone: weights have no gradients, and the
# cells are the library's.
@torch.library.register_fake("fastrnn::stack")
def _stack_fake(  # type: ignore[no-untyped-def]
    cell, input, states, reset_states, weights, layers, directions, lengths, batch_sizes, offsets,
    reset, reverse, packed=None, numbers=(),
):  # fmt: skip
    _check_one_device(input, (*states, *reset_states, *weights, reset, packed))
    rows, output_size = weights[1].shape
    sizes = (output_size, rows // CELLS[cell].recurrent_gates)[: 1 + CELLS[cell].cell_states]
    samples = states[0].size(1) if states else input.size(1)
    return [
        input.new_empty(*input.shape[:-1], directions * output_size),
        *(input.new_empty(layers * directions, samples, size) for size in sizes),
    ]


@torch.library.register_fake("fastrnn::step")
def _step_fake(  # type: ignore[no-untyped-def]
    cell, input, states, weights, packed=None, numbers=(),
):  # fmt: skip
    _check_one_device(input, (*states, *weights, packed))
    shape = (*input.shape[:-1], weights[1].size(1))
    return [input.new_empty(shape) for _ in range(1 + CELLS[cell].cell_states)]


class ScanCall(NamedTuple):
    """What the op `scan` takes besides tensors, in its order."""

    cell: str
    present: Sequence[int]  # the places of the tensors that are there, in the cell's table
    reverse: bool
    save: bool
    recompute: bool
    all_states: bool
    groups: int
    rounds_to: str
    numbers: Sequence[float]


class ScanBackwardCall(NamedTuple):
    """What the op `scan_backward` takes, in its order."""

    cell: str
    grads: Sequence[Tensor | None]
    tensors: Sequence[Tensor]
    present: Sequence[int]
    lengths: Tensor | None
    batch_sizes: Tensor | None
    offsets: Tensor | None
    reset: Tensor | None
    reverse: bool
    saved: Sequence[Tensor]
    needs: Sequence[bool]
    groups: int
    rounds_to: str
    numbers: Sequence[float]

    def beside(self, other: ScanBackwardCall) -> ScanBackwardCall:
        """The call of the op of both directions, whose lists have the other's entries behind."""
        return self._replace(
            grads=[*self.grads, *other.grads],
            tensors=[*self.tensors, *other.tensors],
            saved=[*self.saved, *other.saved],
            needs=[*self.needs, *other.needs],
        )


def setup_scan(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    """Keep what differentiates a scan; inputs are the op's arguments."""
    cell, tensors, present, *others = inputs
    schedule, flags = split(others, len(SCHEDULE))
    keep_for_backward(ctx, ScanCall(cell, present, *flags), [((*schedule, *tensors), output)])


def keep_for_backward(
    ctx: Any,
    call: ScanCall,
    scans: Iterable[tuple[Sequence[Tensor | None], Sequence[Tensor]]],
) -> None:
    """Keep the call, and of each scan the schedule with the cell's tensors behind it, and what it
    saved of its results."""
    ctx.call = call
    ctx.set_materialize_grads(False)
    saved_at = CELLS[call.cell].saved_at
    ctx.save_for_backward(
        *(kept for given, results in scans for kept in (*given, *chosen(results, saved_at)))
    )


def scan_backward_call(
    call: ScanCall,
    kept: Sequence[Any],
    grads: Sequence[Tensor | None],
    of_tensors: Sequence[bool],
) -> ScanBackwardCall:
    """From a call, what was kept of it, the gradients of its results and for which of the tensors
    that are there gradients are needed."""
    if not call.save:
        raise RuntimeError("fastrnn: this graph was traced without gradients (torch.no_grad)")
    facts = CELLS[call.cell]
    schedule, tensors, saved = split(kept, len(SCHEDULE), len(call.present))
    # torch's dispatcher resolves a view that negates everywhere but in a list that may have a None.
    of_results = [
        grad if grad is None else grad.resolve_neg()
        for grad in chosen(grads, facts.differentiable_at)
    ]
    if facts.has_cell_state and not call.all_states:
        of_results[-1] = None  # of the cell states, which the caller does not see
    needs = [bool(need) for need in with_absent(facts.tensors, of_tensors, call.present)]
    return ScanBackwardCall._make((
        call.cell, of_results, tensors, call.present, *schedule, call.reverse, saved, needs,
        call.groups, call.rounds_to, call.numbers,
    ))  # fmt: skip


def halves(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """What an op of both directions has for each: one's entries lie behind the other's."""
    middle = len(values) // 2
    return values[:middle], values[middle:]


def without_absent(tensors: Iterable[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """As the ops take a cell's tensors: those that are there, and the index of each in the table.

    Autograd overlooks a list with a None in it, and the tracer of torch.jit takes no list of bools.
    """
    present = [(index, tensor) for index, tensor in enumerate(tensors) if tensor is not None]
    return [tensor for _, tensor in present], [index for index, _ in present]


def with_absent(
    table: Sequence[TensorInfo], tensors: Iterable[Any], present: Iterable[int]
) -> list[Any]:
    """The inverse of :func:`without_absent`."""
    values: list[Any] = [None] * len(table)
    for index, tensor in zip(present, tensors, strict=True):
        values[index] = tensor
    return values


def split(values: Sequence[Any], *counts: int) -> list[Sequence[Any]]:
    """So many values at a time, then the rest."""
    parts, at = [], 0
    for count in counts:
        parts.append(values[at : at + count])
        at += count
    return [*parts, values[at:]]


def where_needed(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """Ops return empty tensors for gradients that are not needed, autograd wants None."""
    return [grad if need else None for grad, need in zip(gradients, needs, strict=True)]


def _differentiate_bare_scan(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    if ctx.call.groups:
        raise NotImplementedError("fastrnn: the bare op with groups has no gradient; use ops.scan")
    of_tensors = ctx.needs_input_grad[1]
    call = scan_backward_call(ctx.call, ctx.saved_tensors, grads, of_tensors)
    results = torch.ops.fastrnn.scan_backward(*call)
    gradients = chosen(results, ctx.call.present)
    others = len(ctx.needs_input_grad) - 2
    return (None, where_needed(gradients, of_tensors), *(None,) * others)


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "fastrnn: torch cannot differentiate the gradient of a compiled or exported function; take "
        "second derivatives in eager mode, or compile the function that takes them"
    )


torch.library.register_autograd(
    "fastrnn::scan",
    _differentiate_bare_scan,
    setup_context=lambda ctx, inputs, output: setup_scan(ctx, inputs, output),
)
torch.library.register_autograd("fastrnn::scan_backward", _refuse_second_derivative)
