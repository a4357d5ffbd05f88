"""What the tests of cells share: the kernels' headers, read once for all cells that are compiled."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from fastrnn.cells import cache, compilation, toolchain
from fastrnn.cells.toolchain import CannotCompile

PRECOMPILED = Path(__file__).parents[2] / "build" / "precompiled"


def precompiled_headers(instruction_set: str) -> Path:
    """A folder before the headers' own, in which g++ finds them as it has read them.

    Half of a cell's compilation is to read them. g++ takes them only for the same flags.
    """
    reader = [*compilation.compiler_with(toolchain.CXX_FLAGS), "-x", "c++-header"]
    key = [*reader, *compilation.present_compiler(), compilation.matching_headers().layout]
    folder = PRECOMPILED / hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    read = folder / "cpu" / f"for_{instruction_set}.h.gch"
    read.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(read):
        if not read.exists():
            aside, headers = read.with_suffix(".new"), folder / f"{instruction_set}.h"
            headers.write_text(
                f'#include "cpu/for_{instruction_set}.h"\n#include "cpu/compiled_cell.h"\n'
            )
            subprocess.run([*reader, str(headers), "-o", str(aside)], check=True)
            aside.replace(read)
    return folder


@pytest.fixture(scope="session", autouse=True)
def headers_are_read_once() -> Generator[None, None, None]:
    compile_alone: Callable[[compilation.Unit, Path], None] = compilation._compile
    command, headers = compilation.command, compilation.present_headers()

    def compile_with_headers(unit: compilation.Unit, path: Path) -> None:
        if compilation.present_headers() != headers:  # those of a test
            return compile_alone(unit, path)
        with pytest.MonkeyPatch.context() as patch:
            # A test's own compiler may be none.
            with contextlib.suppress(CannotCompile, OSError, subprocess.CalledProcessError):
                folder = precompiled_headers(unit.record.instruction_set)
                flags = f"{toolchain.CXX_FLAGS} -I{folder}"
                patch.setattr(compilation, "command", lambda *files: command(*files, flags))
            compile_alone(unit, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "_compile", compile_with_headers)
        yield
