"""Runs compiled CUDA kernels on a CPU and says what is wrong with them; README.md shows how."""

from .cache import BuildError
from .device import (
    DeviceArray,
    Finding,
    LaunchReport,
    Report,
    Simulator,
    SimulatorFinding,
    simulator,
)
from .ptx.module import build_source as build_kernels
from .runtime.host import build_host
from .toolchain import ToolNotFoundError

__all__ = [
    "BuildError",
    "DeviceArray",
    "Finding",
    "LaunchReport",
    "Report",
    "Simulator",
    "SimulatorFinding",
    "ToolNotFoundError",
    "build_host",
    "build_kernels",
    "simulator",
]
