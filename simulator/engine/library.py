"""Builds the engine on first use, and loads it.

Three files lie in one folder of the cache: libcudart.so.13, which is the engine behind the
interface of CUDA's runtime; libcublas.so.13; and the engine's Python module, bindings.cpp. The first
two are loaded globally, before anything that was linked against NVIDIA's, and found again by their
names.
"""

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..cache import cache_folder, digest, locked, run, version_of
from ..toolchain import cxx, nvcc, python_includes

HERE = Path(__file__).resolve().parent
RUNTIME = HERE.parent / "runtime"
BINDINGS, CUBLAS = HERE / "bindings.cpp", RUNTIME / "cublas.cpp"
CUDART = [*sorted(set(HERE.glob("*.cpp")) - {BINDINGS}), RUNTIME / "cudart.cpp"]
MODULE = f"bindings{sysconfig.get_config_var('EXT_SUFFIX')}"
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra")


@functools.cache
def toolkit_include() -> Path:
    """The folder of cuda_runtime_api.h. nvcc is asked, since what is on the PATH may be a wrapper."""
    said = subprocess.run(
        [nvcc(), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
    ).stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.M)
    if top:
        for candidate in (Path(top[1]) / "include", Path(top[1]) / "targets/x86_64-linux/include"):
            if (candidate / "cuda_runtime_api.h").exists():
                return candidate.resolve()
    raise FileNotFoundError(f"cuda_runtime_api.h was not found beside {nvcc()}:\n{said}")


def processor() -> str:
    """What the processor can do, since a part is compiled for it alone."""
    cpuinfo = Path("/proc/cpuinfo")
    model = (
        re.search(r"^(flags|Features).*$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    )
    return model[0] if model else ""


@functools.cache
def build() -> Path:
    """The folder of the three libraries, made once for each state of the sources."""
    sources = [*CUDART, CUBLAS, BINDINGS]
    headers = sorted(HERE.glob("*.h"))
    key = digest(
        *(path.read_bytes() for path in [*sources, *headers]),
        *FLAGS,
        *map(str, python_includes()),
        MODULE,
        processor(),
        version_of(cxx()),
    )
    folder = cache_folder() / f"engine-{key}"
    with locked(folder.name):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
                work = Path(temporary) / "engine"
                work.mkdir()
                compile_and_link(sources, work)
                work.rename(folder)
    return folder


def compile_and_link(sources: Sequence[Path], folder: Path) -> None:
    includes = [f"-I{HERE}", f"-isystem{toolkit_include()}"]
    options: dict[Path, list[str]] = {
        CUBLAS: ["-O3", "-march=native"],
        BINDINGS: ["-fvisibility=hidden", *(f"-isystem{path}" for path in python_includes())],
    }

    def compile_unit(source: Path) -> None:
        command: list[str | Path] = [
            cxx(),
            *FLAGS,
            *options.get(source, []),
            *includes,
            "-c",
            source,
        ]
        run([*command, "-o", folder / f"{source.stem}.o"])

    def link(name: str, units: Sequence[Path], *arguments: str | Path) -> None:
        objects = [folder / f"{unit.stem}.o" for unit in units]
        shared = "-Wl,-rpath,$ORIGIN"
        run([cxx(), "-shared", shared, "-o", folder / name, *objects, *arguments])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_unit, sources))
    cudart = folder / "libcudart.so.13"
    link(cudart.name, CUDART, *stand_in(cudart.name, folder))
    link("libcublas.so.13", [CUBLAS], *stand_in("libcublas.so.13", folder), cudart)
    link(MODULE, [BINDINGS], cudart)


def stand_in(name: str, folder: Path) -> list[str]:
    """Linker options. Code linked against NVIDIA's library asks for symbols of this version."""
    versions = folder / f"{name}.map"
    versions.write_text(f"{name} {{ global: *; }};\n")
    return [f"-Wl,-soname,{name},--version-script={versions},-z,defs"]


@functools.cache
def load() -> Any:
    """The engine's Python module, the process's only one."""
    folder = build()
    for name in ("libcudart.so.13", "libcublas.so.13"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    name = f"{__package__}.bindings"
    loader = importlib.machinery.ExtensionFileLoader(name, str(folder / MODULE))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    engine = None
    try:
        engine = importlib.util.module_from_spec(spec)
        loader.exec_module(engine)
    except ImportError:  # linked against another libcudart, it lacks the engine's symbols
        pass
    if engine is None or Path(engine.cudart()).parent != folder:
        raise RuntimeError(
            "a real libcudart.so.13 is in this process already: run the simulator in one without it"
        )
    return engine
