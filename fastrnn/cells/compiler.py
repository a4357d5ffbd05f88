"""Kernels of a cell, compiled for a type and an instruction set: when first used, or ahead."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from fastrnn.cells import cache
from fastrnn.cells.compilation import (
    CPP_TYPES,
    Compilable,
    generator,
    in_cache,
    in_folder,
    make_unit,
)
from fastrnn.cells.toolchain import CannotCompile
from fastrnn.library import LOADED_CELLS, LoadedCell, accumulate_dtype

__all__ = ["CannotCompile", "build", "ensure", "load"]

# The instruction sets that a machine's compiler makes code for, csrc/cpu/for_*.h.
INSTRUCTION_SETS = {"x86_64": ("avx512", "avx2", "plain"), "aarch64": ("neon", "plain")}

# A folder of kernels serves training, and may lack these.
_OF_SECOND_ORDER = (
    "\nOr compile the kernels of second derivatives and forward mode elsewhere, by "
    "fastrnn.cells.build(..., second_order=True), and load them"
)

# Why kernels could not be made: a layer that does without them asks again in every call.
_refusals: dict[tuple[object, ...], str] = {}


def ensure(
    cell: Compilable, dtype: torch.dtype, *, second_order: bool = False, projected: bool = False
) -> None:
    """Load a cell's kernels for a type and the instruction set that runs now.

    Unless they are loaded, they are taken from the cache, or compiled.

    Args:
        dtype: float32, float64, bfloat16 or float16.
        second_order: load the kernels of second derivatives and forward mode, too.
        projected: load those of a layer with a projection.

    Raises:
        CannotCompile: there are none, and none can be made here. Later calls say so at once, until
            :func:`build` or :func:`load` has succeeded.
    """
    wanted = LoadedCell(cell.op_name, dtype, second_order, projected)
    if wanted in LOADED_CELLS:
        return
    present = _instruction_set()
    attempt = (present, *wanted)
    if attempt in _refusals:
        raise CannotCompile(_refusals[attempt])
    cell = cell.for_projection() if projected else cell
    try:
        for kernels in _kernel_dtypes(dtype, second_order):
            if not torch.ops.fastrnn.has_cell(cell.op_name, kernels):
                _load_file(in_cache(make_unit(cell, kernels, present)))
    except CannotCompile as error:
        _refusals[attempt] = f"{error}{_OF_SECOND_ORDER if second_order else ''}"
        raise CannotCompile(_refusals[attempt]) from error
    LOADED_CELLS.add(wanted)


def build(
    cell: Compilable,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    folder: str | os.PathLike[str] | None = None,
    *,
    instruction_sets: Sequence[str] | None = None,
    second_order: bool = False,
    projected: bool = False,
) -> list[Path]:
    """Compile a cell ahead of its first use.

    Args:
        cell: what the decorator :func:`fastrnn.cells.cell` made of a function.
        dtypes: float32, float64, bfloat16 or float16.
        folder: where to put the libraries, for instance beside a model; :func:`load` takes them
            from there. None: the cache, where layers find them.
        instruction_sets: "avx512", "avx2", "neon" or "plain"; None: the one that runs now.
        second_order: compile the kernels of second derivatives and forward mode, too.
        projected: compile those of a layer with a projection.

    Returns:
        The libraries' paths, one for each type and instruction set.

    Raises:
        CannotCompile: there is no compiler, or it fails.
        TypeError: an argument is of another kind.
        ValueError: compilers make no such code on this machine.
    """
    _check_kinds(cell, dtypes, instruction_sets)
    possible = INSTRUCTION_SETS.get(platform.machine(), ("plain",))
    chosen = [_instruction_set()] if instruction_sets is None else instruction_sets
    for name in chosen:
        if name not in possible:
            raise ValueError(
                f"fastrnn: instruction_sets has {name!r}, expected some of {', '.join(possible)}"
            )
    cell = cell.for_projection() if projected else cell
    units = [
        make_unit(cell, kernels, instruction_set)
        for dtype in dtypes
        for kernels in _kernel_dtypes(dtype, second_order)
        for instruction_set in chosen
    ]
    if folder is None:
        paths = [in_cache(unit) for unit in units]
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = [in_folder(unit, Path(folder)) for unit in units]
    _refusals.clear()
    return paths


def _check_kinds(cell: object, dtypes: object, instruction_sets: object) -> None:
    if not isinstance(getattr(cell, "op_name", None), str):
        instead = "; give its cell" if hasattr(cell, "cell") else ""
        raise TypeError(
            f"fastrnn: build takes what the decorator fastrnn.cells.cell makes of a function, got "
            f"{type(cell).__name__}{instead}"
        )
    if isinstance(dtypes, torch.dtype) or isinstance(instruction_sets, str):
        name = "dtypes" if isinstance(dtypes, torch.dtype) else "instruction_sets"
        raise TypeError(f"fastrnn: {name} must be a sequence: write a tuple of one, (..., )")
    for dtype in dtypes:  # type: ignore[attr-defined]
        if dtype not in CPP_TYPES or dtype.is_complex:
            raise TypeError(
                f"fastrnn: dtypes has {dtype}, expected float32, float64, bfloat16 or float16"
            )


def load(folder: str | os.PathLike[str]) -> list[str]:
    """Load the compiled cells that :func:`build` has put into a folder.

    They are machine code: call this only for a folder from which you would start a program.

    Args:
        folder: the one that :func:`build` was given.

    Returns:
        The names of the files that fit this machine, this fastrnn and the instruction set that runs
        now. Others may lie beside them.

    Raises:
        FileNotFoundError: the folder holds none.
        RuntimeError: a file is damaged, or none of a cell and type fits.
    """
    paths = sorted(Path(folder).glob("*.so"))
    if not paths:
        raise FileNotFoundError(f"fastrnn: {folder} holds no compiled cell; call build(cell, ...)")
    records = {path: cache.read_record(path) for path in paths}
    misfits = {path: _misfit(record) for path, record in records.items()}
    fitting = [path for path in paths if not misfits[path]]
    provided = {_kernels(records[path]) for path in fitting}
    missing = [path for path in paths if _kernels(records[path]) not in provided]
    if missing:
        reasons = "\n".join(f"  {path.name} {misfits[path]}" for path in missing)
        raise RuntimeError(f"fastrnn: {folder} holds cells that do not fit here:\n{reasons}")
    for path in fitting:
        torch.ops.fastrnn.load_cell(str(path))
    _refusals.clear()
    return [path.name for path in fitting]


def _misfit(record: cache.Record | None) -> str | None:
    """Why a file is not loaded; None if it fits."""
    if record is None:
        return "is damaged, or not of this fastrnn; build it again"
    if record.machine != platform.machine():
        return f"is for {record.machine}, and this machine is {platform.machine()}"
    if (record.layout, record.generator) != (torch.ops.fastrnn.cell_layout(), generator()):
        return "was compiled for another fastrnn; build it again"
    if record.instruction_set != (present := _instruction_set()):
        return f"is for {record.instruction_set}, and {present} runs now; build it for that, too"
    return None


def _kernels(record: cache.Record | None) -> tuple[str, str] | None:
    return record and (record.op_name, record.dtype)


def _instruction_set() -> str:
    return torch.ops.fastrnn.cell_instruction_set()


def _kernel_dtypes(dtype: torch.dtype, second_order: bool) -> list[torch.dtype]:
    """The types whose kernels a layer calls: dual numbers are computed in the wider type."""
    return [dtype, accumulate_dtype(dtype).to_complex()] if second_order else [dtype]


def _load_file(path: Path) -> None:
    try:
        torch.ops.fastrnn.load_cell(str(path))
    except RuntimeError as error:  # of a file system that runs no programs, for instance
        reason = str(error).splitlines()[0]
        raise CannotCompile(f"{path} cannot be loaded ({reason}); {cache.NAME_ANOTHER}") from error
