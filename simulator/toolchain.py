"""Where nvcc and its companions are.

The pip wheels of CUDA 13 (nvidia-cuda-nvcc, -crt, -cccl, -runtime, nvidia-nvvm) lie together in
site-packages/nvidia/cu13 and need no installed toolkit, so they come before the PATH; $NVCC comes
before both.
"""

import functools
import importlib.util
import os
import shutil
import site
import sys
import sysconfig
from pathlib import Path


class ToolNotFoundError(RuntimeError):
    pass


def _wheel_roots() -> list[Path]:
    packages = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    return [Path(p) / "nvidia" / "cu13" for p in packages if p]


@functools.cache
def nvcc() -> Path:
    """The CUDA compiler; its folder also holds ptxas, cuobjdump and the like."""
    if named := os.environ.get("NVCC"):
        return Path(named)
    for root in _wheel_roots():
        if (candidate := root / "bin" / "nvcc").exists():
            return candidate
    if on_path := shutil.which("nvcc"):
        return Path(on_path)
    usual = Path("/usr/local/cuda/bin/nvcc")
    if usual.exists():
        return usual
    raise ToolNotFoundError(
        "nvcc was not found: set $NVCC, or pip install nvidia-cuda-nvcc nvidia-cuda-crt "
        "nvidia-cuda-cccl nvidia-cuda-runtime nvidia-nvvm (13.0)"
    )


def tool(name: str) -> Path:
    """A companion of nvcc, e.g. "ptxas"."""
    beside = nvcc().with_name(name)
    if beside.exists():
        return beside
    if on_path := shutil.which(name):
        return Path(on_path)
    raise ToolNotFoundError(f"{name} was found neither beside {nvcc()} nor on the PATH")


@functools.cache
def cxx() -> str:
    """The host's C++ compiler, which builds the translated kernels."""
    for candidate in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if candidate and shutil.which(candidate):
            return candidate
    raise ToolNotFoundError("a C++ compiler was not found: set $CXX")


def python_includes() -> tuple[Path, ...]:
    """The folders of Python.h and of pybind11's headers, for the engine's Python module."""
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        raise ToolNotFoundError(f"{python}/Python.h was not found: apt-get install python3-dev")
    if importlib.util.find_spec("pybind11") is None:
        raise ToolNotFoundError("pybind11 was not found: pip install pybind11")
    import pybind11

    return python, Path(pybind11.get_include())


def require() -> None:
    """Raises ToolNotFoundError, with what to install, where the simulator lacks a tool."""
    nvcc()
    cxx()
    python_includes()
