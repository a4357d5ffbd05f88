"""A scan through csrc/cuda's own launch(), on the simulator, from and to torch tensors on CPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from module import build_module, compile_ptx
from simulator import DeviceArray, Report, Simulator, build_host, simulator
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}", f"-I{HERE / 'include'}")
DTYPES = {
    torch.float16: ("e", "half"),
    torch.bfloat16: ("b", "bfloat16"),
    torch.float32: ("f", "float"),
    torch.float64: ("d", "double"),
}
SIZES = ("T", "N", "I", "H", "R", "groups", "rows", "steps")
FLAGS_OF_CALL = ("reverse", "tf32", "bias", "backward")
INPUTS = (
    "x", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "reset_h", "reset_c",
)  # fmt: skip
HOST = ("lengths", "step_start", "sample_start", "reset")
SAVED = ("y", "gates", "cells")
FINALS = ("h_n", "c_n")
GRADS = ("d_y", "d_cells", "d_h_n", "d_c_n")
POINTERS = (*INPUTS, *HOST, *SAVED, *FINALS, *GRADS, *(f"d_{name}" for name in INPUTS))


class Call(ctypes.Structure):
    """As scan_host.cu has it."""

    _fields_ = [
        ("cell", ctypes.c_char_p),
        ("regime", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_int32) for name in FLAGS_OF_CALL),
        *((name, ctypes.c_void_p) for name in POINTERS),
    ]


@functools.cache
def kernels(unit: str) -> Path:
    """The kernels of a storage type, translated."""
    return build_module(ptx(unit))


@functools.cache
def ptx(unit: str) -> str:
    return compile_ptx(CSRC / "cuda" / f"launch_{unit}.cu", flags=FLAGS)


@functools.cache
def host() -> ctypes.CDLL:
    """All kernels, and the unchanged host code that launches them."""
    units = [unit for _, unit in DTYPES.values()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ptx, units))
    sim = simulator()
    for unit in units:
        sim.load(kernels(unit))
    sources = [
        *(CSRC / "cuda" / f"launch_{unit}.cu" for unit in units),
        CSRC / "cuda" / "limits.cpp",
        Path(__file__).with_name("scan_host.cu"),
    ]
    library = sim.load(build_host(sources, flags=FLAGS))
    library.scan.restype = library.last_plan.restype = ctypes.c_char_p
    return library


@dataclass
class Done:
    results: dict[str, Tensor]
    plan: str  # regime, unit and column blocks, units, columns, steps, dependent products, us
    report: Report


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
    library, sim = host(), simulator()
    sim.set_device(device)
    x = given["x"]
    assert x is not None
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
    call.bias = given.get("bias_ih") is not None
    for name, array in arrays.items():
        setattr(call, name, array.address)
    exact = {"schedule_seed": 0, "numeric_seed": 0, "races": 1}  # settings outlive a watch
    with sim.watch(**exact | settings) as report:
        error = library.scan(ctypes.c_char(DTYPES[x.dtype][0].encode()), ctypes.byref(call))
    if error is not None:
        raise Refused(error.decode())
    return Done(
        {name: get(arrays[name], tensor) for name, tensor in results.items()},
        library.last_plan().decode(),
        report,
    )
