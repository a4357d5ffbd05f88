"""A scan through csrc/cuda's own launch(), on the simulator, from and to torch tensors on CPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.library import CELLS
from simulator import DeviceArray, Report, Simulator, simulator
from simulator.ptx.module import build, build_module
from simulator.ptx.parser import entries, parse, with_entry
from simulator.ptx.translator import kernels, translate_kernel

from .kernels import LAZY, launch_code, ptx

# The file of csrc/cuda for it, and its C++ type.
STORAGE = {
    torch.float16: ("half", "Half"),
    torch.bfloat16: ("bfloat16", "BFloat16"),
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
}
SIZES = ("T", "N", "I", "H", "R", "groups", "steps")
FLAGS_OF_CALL = ("reverse", "tf32", "backward")
# The kernels call the op's input x, and the LSTM has all of the tensors.
OP_NAMES = {info.name if info.name != "input" else "x": info.name for info in CELLS["lstm"].tensors}
INPUTS = tuple(OP_NAMES)
# Users' cells have these, which kernels of a GPU do not take: their pointers are null.
OF_USERS_CELLS = ("vectors", *(f"extra_{i}" for i in range(4)))
TENSORS = (*INPUTS, *OF_USERS_CELLS)
HOST = ("lengths", "step_start", "sample_start", "reset")
SAVED = ("y", "gates", "cells")
FINALS = ("h_n", "c_n")
GRADS = ("d_y", "d_cells", "d_h_n", "d_c_n")
POINTERS = (*TENSORS, *HOST, *SAVED, *FINALS, *GRADS, *(f"d_{name}" for name in TENSORS))


class Call(ctypes.Structure):
    """As scan_host.cu has it."""

    _fields_ = [
        ("cell", ctypes.c_char_p),
        ("regime", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_int32) for name in FLAGS_OF_CALL),
        *((name, ctypes.c_void_p) for name in POINTERS),
    ]


def load_kernels(unit: str) -> None:
    if not LAZY:
        simulator().load(build_module(ptx(unit)))
        return
    lazy.update(dict.fromkeys(entries(ptx(unit)), unit))
    simulator().on_missing_kernel(provide)


lazy: dict[str, str] = {}  # kernel: its unit


def provide(name: str) -> None:
    """Translate a kernel, and load it."""
    if name in lazy:
        module = parse(with_entry(ptx(lazy[name]), name))
        assert not any(variable.space in ("global", "const") for variable in module.variables)
        simulator().load(build([translate_kernel(module, kernels(module)[name])]))


@functools.cache
def host(unit: str, storage: str) -> ctypes.CDLL:
    """A storage type's kernels, and the unchanged host code that launches them."""
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(launch_code, unit, storage)
        load_kernels(unit)
        library = simulator().load(built.result())
    for answer in (library.scan, library.last_plan, library.last_refusals):
        answer.restype = ctypes.c_char_p
    library.scratch_bytes.restype = ctypes.c_int64
    library.last_work.restype, library.modelled_us.restype = StepWork, ctypes.c_double
    return library


class StepWork(ctypes.Structure):
    """What a step of a resident kernel does, as csrc/cuda/model.h has it."""

    _fields_ = [
        (name, ctypes.c_double)
        for name in (
            *(
                "warps",
                "column_tiles",
                "pairs",
                "slots",
                "fma",
                "dependent",
                "shared_bytes",
                "barriers",
            ),
            *("exchanged_bytes", "streamed_bytes", "waves"),
        )
    ]


PRECISIONS = ("float16", "bfloat16", "tf32", "float32", "float64")  # of enum Precision


def modelled_us(work: StepWork, kind: str, device: str) -> float:
    """Microseconds of such a step on a device, by the plan's model."""
    simulator().set_device(device)
    library = host(*STORAGE[torch.float16])
    return library.modelled_us(ctypes.byref(work), PRECISIONS.index(kind))


@dataclass
class Done:
    results: dict[str, Tensor]
    plan: str  # regime, unit and column blocks, units, columns, steps, dependent products, us
    work: StepWork  # of a step, as the plan has it
    report: Report
    refusals: str  # "regime: reason" of each that cannot run it, a line each


class Refused(Exception):
    """launch() threw."""


def put(sim: Simulator, tensor: Tensor) -> DeviceArray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return sim.put(tensor.numpy())


def get(array: DeviceArray, like: Tensor) -> Tensor:
    found = torch.from_numpy(array.get())
    return found.view(torch.bfloat16) if like.dtype == torch.bfloat16 else found


def scan(
    cell: str,
    given: Mapping[str, Tensor | None],
    results: Mapping[str, Tensor],
    *,
    regime: str = "",
    sizes: Mapping[str, int],
    reverse: bool = False,
    tf32: bool = False,
    backward: bool = False,
    device: str = "sm_90",
    **settings: int,
) -> Done:
    """Inputs and what backward reads by name; results as tensors of the shapes and dtypes wanted."""
    x, sim = given["x"], simulator()
    assert x is not None
    library = host(*STORAGE[x.dtype])
    sim.set_device(device)
    arrays: dict[str, DeviceArray] = {}
    for name, tensor in given.items():
        if tensor is not None:
            arrays[name] = put(
                sim, tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
            )
    for name, tensor in results.items():
        dtype: Any = np.int16 if tensor.dtype == torch.bfloat16 else tensor.numpy().dtype
        arrays[name] = sim.empty(tuple(tensor.shape), dtype)
        if name == "y" or (name == "d_x"):
            arrays[name].fill(0)  # what the op hands over: steps that no sample runs are 0
    call = Call(cell.encode(), regime.encode(), *(sizes[name] for name in SIZES))
    call.reverse, call.tf32, call.backward = reverse, tf32, backward
    for name, array in arrays.items():
        setattr(call, name, array.address)
    # Settings outlive a watch.
    usual: dict[str, Any] = {
        "schedule_seed": 0,
        "numeric_seed": 0,
        "races": 1,
        "round_ns": 100,
        "lost_blocks": 0,
    }
    with sim.watch(**usual | settings) as report:
        error = library.scan(ctypes.byref(call))
    if error is not None:
        raise Refused(error.decode())
    return Done(
        {name: get(arrays[name], tensor) for name, tensor in results.items()},
        library.last_plan().decode(),
        library.last_work(),
        report,
        library.last_refusals().decode(),
    )


def scratch_bytes(
    cell: str, dtype: torch.dtype, sizes: Mapping[str, int], pointers: Iterable[str], backward: bool
) -> int:
    """Scratch memory of a scan on an H100 that is given these and not run."""
    simulator().set_device("sm_90")
    call = Call(cell.encode(), b"", *(sizes[name] for name in SIZES), backward=backward)
    for name in pointers:
        setattr(call, name, 256)
    return host(*STORAGE[dtype]).scratch_bytes(ctypes.byref(call))
