"""A .cu file on its way to the CPU: nvcc -> PTX -> C++ -> one shared library a module.

Each kernel is compiled alone and cached, so a change to one kernel of twenty costs one compilation,
and a second run of the tests costs none.
"""

import functools
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import toolchain
from ..cache import cached, digest, run, version_of
from . import translator

ENGINE = Path(__file__).resolve().parents[1] / "engine"

# -O2 runs no faster, -O0 pays where a kernel runs once; contraction would round once where PTX rounds twice.
CXX_FLAGS = (
    "-std=c++20",
    f"-O{os.environ.get('SIMULATOR_OPTIMIZE', '1')}",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fPIC",
    "-w",
)
HEADERS = ("engine.h", "instructions.h", "intrinsics.h")


@functools.cache
def cxx_flags() -> tuple[str, ...]:
    """With the processor's fused multiply-add, where it has one: else each fma is a call."""
    cpuinfo = Path("/proc/cpuinfo")
    has_fma = cpuinfo.exists() and bool(
        re.search(r"\bfma\b.*\bavx2\b|\bavx2\b.*\bfma\b", cpuinfo.read_text())
    )
    return (*CXX_FLAGS, "-mfma", "-mavx2") if has_fma else CXX_FLAGS


def compile_ptx(
    source: Path | str,
    arch: str = "compute_80",
    flags: Iterable[str] = (),
    folder: Path | None = None,
) -> str:
    """PTX of a .cu file, with the lines of the source.

    With a folder, source and flags name files from there, and the PTX does, too: equal copies of a
    folder share it, wherever they lie.
    """
    nvcc = toolchain.nvcc()
    command: list[str | Path] = [nvcc, "-ptx", "-lineinfo", f"-arch={arch}", "-std=c++17", *flags]
    # The preprocessed text holds every header that matters.
    text = run([*command[:1], "-E", *command[2:], source], folder)
    key = digest(text, version_of(str(nvcc)), *map(str, command))

    def make(path: Path) -> None:
        run([*command, source, "-o", path], folder)
        if folder:  # nvcc names files from the root, whatever it was given
            path.write_text(path.read_text().replace(f"{folder.resolve()}/", ""))

    return cached(f"{key}.ptx", make).read_text()


@functools.cache
def _headers() -> str:
    return digest(*((ENGINE / name).read_bytes() for name in HEADERS))


@functools.cache
def _translator() -> str:
    return digest(*(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))


@functools.cache
def _compiler() -> str:
    """Whatever an object depends on besides its own text."""
    return digest(_headers(), version_of(toolchain.cxx()), *cxx_flags())


@functools.cache
def precompiled_header() -> Path:
    """The folder of the header that every kernel includes: to read it takes g++ longer than most kernels.

    A compiler that knows no .gch finds nothing in the folder, and takes the next one.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        header = ENGINE / "instructions.h"
        target = folder / f"{header.name}.gch"
        run([toolchain.cxx(), *cxx_flags(), "-x", "c++-header", header, "-o", target])

    return cached(f"{_compiler()}-headers", make)


def build_object(cpp: str) -> Path:
    """One translation unit, compiled."""

    def make(path: Path) -> None:
        source = path.with_suffix(".cpp")
        source.write_text(cpp)
        includes = ("-I", precompiled_header(), "-I", ENGINE)
        run([toolchain.cxx(), *cxx_flags(), *includes, "-c", source, "-o", path])

    return cached(f"{digest(cpp, _compiler())}.o", make)


def build(units: Iterable[str], jobs: int | None = None) -> Path:
    """The units of one module as a shared library; the engine's symbols are found when it is loaded."""
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        objects = list(pool.map(build_object, units))
    key = digest(*(o.name for o in objects))
    return cached(
        f"{key}.so",
        lambda path: run([toolchain.cxx(), "-shared", *objects, "-o", path]),
    )


def build_module(ptx_text: str) -> Path:
    """A module's shared library. Its PTX is translated once, which takes seconds for a large one."""
    key = digest(ptx_text, _translator(), _compiler())
    return cached(
        f"{key}-module.so",
        lambda path: path.hardlink_to(build(translator.translate(ptx_text).values())),
    )


def build_source(source: Path | str, arch: str = "compute_80", flags: Iterable[str] = ()) -> Path:
    return build_module(compile_ptx(source, arch, flags))
