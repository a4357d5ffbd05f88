"""A cell becomes a library: the source, its key, and the call of the compiler.

Names alone reach the compiler as the user wrote them, and they are checked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from fastrnn.cells import cache, toolchain
from fastrnn.cells.toolchain import CannotCompile, Compiler
from fastrnn.torch_internals import torch_compiler

# Names in C++ (csrc/dtypes.h) of the types that kernels are compiled for. Dual numbers travel in
# complex tensors.
CPP_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.complex64: "Dual<float>",
    torch.complex128: "Dual<double>",
}

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Compilable(Protocol):
    """What the compiler asks of a cell."""

    @property
    def name(self) -> str: ...
    @property
    def op_name(self) -> str: ...
    @property
    def struct_name(self) -> str: ...
    def source(self) -> str: ...
    def for_projection(self) -> Compilable: ...


class Headers(NamedTuple):
    """What cells are compiled from."""

    folder: Path
    layout: str


class Unit(NamedTuple):
    """What one call of the compiler takes, and what its library is."""

    title: str  # for people
    source: str
    record: cache.Record

    def path(self, folder: Path) -> Path:
        """The library's place in a folder, named by all that the compiler's work depends on."""
        parts = (self.source, self.record.layout, toolchain.CXX_FLAGS, *present_compiler())
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        op_name, dtype, instruction_set, *_ = self.record
        return folder / f"{op_name}-{dtype}-{instruction_set}-{key}.so"


def make_unit(cell: Compilable, dtype: torch.dtype, instruction_set: str) -> Unit:
    for name in (cell.op_name, cell.struct_name):
        if not IDENTIFIER.fullmatch(name):
            raise ValueError(f"fastrnn: a cell's name is {name!r}, expected a short identifier")
    source = f"""\
#include "cpu/for_{instruction_set}.h"
#include "cpu/compiled_cell.h"

namespace fastrnn {{
{cell.source()}
}}  // namespace fastrnn

FASTRNN_COMPILED_CELL(fastrnn::{cell.struct_name}, {CPP_TYPES[dtype]})
FASTRNN_END_ISA
"""
    dtype_name = str(dtype).removeprefix("torch.")
    layout = matching_headers().layout
    record = cache.Record(
        cell.op_name, dtype_name, instruction_set, platform.machine(), layout, generator()
    )
    return Unit(f"{cell.name} ({dtype_name}, {instruction_set})", source, record)


@functools.cache
def generator() -> str:
    """A hash of the code that turns a formula into source: it may be mended."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


@functools.cache
def present_headers() -> Headers:
    """Those that came with the installed package, or csrc of the checkout."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "include"
    folder = folder if folder.is_dir() else package.parent / "csrc"
    return Headers(folder, toolchain.cell_layout(folder))


def matching_headers() -> Headers:
    """The present ones, from which the library was built, too.

    Raises:
        CannotCompile: it was built from others.
    """
    headers = present_headers()
    if headers.layout != torch.ops.fastrnn.cell_layout():
        raise CannotCompile(
            f"the library was built from other headers than those in {headers.folder}; "
            "build it again: pip install --no-build-isolation -e ."
        )
    return headers


def present_compiler() -> Compiler:
    """$CXX, or a usual compiler, or else the one that torch.compile uses.

    Raises:
        CannotCompile: there is none that compiles the kernels.
    """
    if sys.platform != "linux":
        raise CannotCompile(f"cells are compiled on Linux alone, and this is {sys.platform}")
    try:
        return _probed(*toolchain.candidates())
    except CannotCompile:
        if (of_torch := _compiler_of_torch()) is None:
            raise
        return _probed(of_torch)


@functools.cache
def _probed(*commands: str) -> Compiler:
    return toolchain.find_compiler(commands)


def _compiler_of_torch() -> str | None:
    """The compiler that a program has set for torch.compile, or that torch.compile installs."""
    # To import what would know takes seconds, so it has to be of use.
    asked = "torch._inductor.config" in sys.modules or "TORCH_INDUCTOR_INSTALL_GXX" in os.environ
    if "CXX" in os.environ or not asked:
        return None
    return torch_compiler()


def in_cache(unit: Unit) -> Path:
    """The library in the user's cache. Of processes that want it, one compiles and others wait."""
    path = unit.path(cache.user_folder())
    if not cache.holds(path, unit.record):
        with cache.locked(path):
            in_folder(unit, path.parent)
    return path


def in_folder(unit: Unit, folder: Path) -> Path:
    """The library in a folder."""
    path = unit.path(folder)
    if not cache.holds(path, unit.record):
        try:
            with _progress(f"fastrnn: compiling {unit.title}"):
                _compile(unit, path)
        except OSError as error:
            raise CannotCompile(f"{unit.title} cannot be compiled: {error}") from error
    return path


def _compile(unit: Unit, path: Path) -> None:
    """Make the library. A source that does not compile is kept beside the library's place."""
    with tempfile.TemporaryDirectory(prefix="fastrnn-") as work:
        source, library = Path(work, "cell.cpp"), Path(work, "cell.so")
        source.write_text(unit.source)
        done = subprocess.run(
            command(source, library),
            env=os.environ | {"LC_ALL": "C"},  # errors in English
            text=True,
            errors="replace",  # paths may be in any encoding
            capture_output=True,
        )
        if done.returncode == 0:
            return cache.write_whole(path, cache.sealed(library.read_bytes(), unit.record))
        kept = shutil.copyfile(source, path.with_suffix(".cpp"))
    reason = toolchain.first_error(done.stderr).replace(str(source), str(kept))
    raise CannotCompile(
        f"the compiler failed for {unit.title}: {reason}\n"
        f"It is called so, with the source that was kept: {shlex.join(command(kept, path))}"
    )


def command(source: Path, library: Path, flags: str = toolchain.CXX_FLAGS) -> list[str]:
    """The call of the compiler that makes a library of cells."""
    return [*compiler_with(flags), "-shared", str(source), "-o", str(library)]


def compiler_with(flags: str) -> list[str]:
    """The compiler with these flags and what a library of cells takes besides."""
    headers = matching_headers()
    return [
        *shlex.split(present_compiler().command),
        *flags.split(),
        "-fPIC",
        f"-I{headers.folder}",
        toolchain.layout_macro(headers.layout),
    ]


@contextlib.contextmanager
def _progress(message: str) -> Iterator[None]:
    """Tell a terminal what takes its time, and then how long it took."""
    if not sys.stderr.isatty():
        yield
        return
    start = time.perf_counter()
    print(message, end=" ... ", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
