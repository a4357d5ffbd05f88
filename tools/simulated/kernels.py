"""csrc/cuda as the simulator takes it: kernels and launch code, of the checkout or of a changed copy."""

import functools
import os
from pathlib import Path

import simulator
from simulator import build_host
from simulator.ptx.module import compile_ptx

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
STAND_INS = Path(simulator.__file__).parent / "runtime/include"
# Copies, of which kernels are translated as they are needed.
KERNELS = Path(os.environ.get("FASTRNN_SIMULATOR_KERNELS", CSRC))
LAUNCH = Path(os.environ.get("FASTRNN_SIMULATOR_LAUNCH", CSRC))
LAZY = "FASTRNN_SIMULATOR_KERNELS" in os.environ


def flags(csrc: Path) -> tuple[str, ...]:
    return ("-std=c++20", "--expt-relaxed-constexpr", f"-I{csrc}", f"-I{STAND_INS}")


@functools.cache
def ptx(unit: str, csrc: Path = KERNELS) -> str:
    """The PTX of a storage type's kernels; names of sources do not tell where the checkout lies."""
    name = Path(csrc.name)
    source = name / "cuda" / f"launch_{unit}.cu"
    return compile_ptx(source, flags=("-O3", *flags(name)), folder=csrc.parent)


def launch_code(unit: str, storage: str) -> Path:
    """The unchanged host code of a storage type, and the boundary for tests."""
    sources = [
        LAUNCH / "cuda" / f"launch_{unit}.cu",
        LAUNCH / "cuda" / "limits.cpp",
        HERE / "scan_host.cu",
    ]
    return build_host(sources, flags=(*flags(LAUNCH), f"-DFASTRNN_STORAGE={storage}"))
