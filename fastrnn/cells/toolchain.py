"""What kernels are compiled with, the library's as well as those of a user's cell.

setup.py loads this file by its path, before fastrnn is built: it imports neither torch nor fastrnn.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CXX_FLAGS = "-std=c++20 -O3 -fno-math-errno -fvisibility=hidden -Wall -Wextra -Werror=return-type"
# gcc's own headers of intrinsics say "undefined" by reading what nothing wrote. Clang does not know
# the warning.
CXX_FLAGS += " -Wno-maybe-uninitialized -Wno-unknown-warning-option"
# The compiler fuses no multiply-adds on its own, so every path gives the same bits. No debug
# information: Python's own flags ask for it, and the library would be seven times as large.
CXX_FLAGS += " -ffp-contract=off -g0"

# Asks for a version too: older ones take -std=c++20 but know only a part of it. The last line tells
# the version.
COMPILER_PROBE = """
#include <concepts>
#if defined(__clang__)
#if __clang_major__ < 16
#error this is an older one
#endif
#elif __GNUC__ < 11
#error this is an older one
#endif
__VERSION__
"""


class CannotCompile(RuntimeError):
    """Nothing can be compiled here; the message says why, and what to do."""


class Compiler(NamedTuple):
    """A C++20 compiler that takes the kernels."""

    command: str  # as $CXX has it, which may contain arguments
    path: str
    version: str


def candidates() -> list[str]:
    """The commands that may be a compiler: $CXX, or the usual ones."""
    cxx = os.environ.get("CXX")
    return [cxx] if cxx else ["c++", "g++", "clang++"]


def find_compiler(commands: Sequence[str]) -> Compiler:
    """The first of the commands that is installed and compiles the kernels.

    Raises:
        CannotCompile: none does.
    """
    paths = {command: shutil.which(shlex.split(command)[0]) for command in commands}
    installed = {command: path for command, path in paths.items() if path}
    if not installed:
        raise CannotCompile(
            f"no C++20 compiler found (looked for {', '.join(commands)}). "
            "Install one: apt-get install g++"
        )
    refusals = []
    for command, path in installed.items():
        probe = [*shlex.split(command), "-std=c++20", "-E", "-P", "-x", "c++", "-"]
        done = subprocess.run(probe, input=COMPILER_PROBE, text=True, capture_output=True)
        if done.returncode == 0:
            return Compiler(command, path, done.stdout.split("\n")[-2].strip('"'))
        reason = re.sub("^.*error:? ", "", first_error(done.stderr))
        refusals.append(
            f"{command} cannot compile the kernels; g++ >= 11 and clang >= 16 can ({reason})"
        )
    raise CannotCompile(
        f"{'; '.join(refusals)}. Install one (apt-get install g++) and name it in CXX"
    )


def first_error(output: str) -> str:
    """The line of a compiler's output that tells best what is wrong."""
    lines = output.splitlines() or ["it says nothing"]
    return next((line for line in lines if "error:" in line), lines[0])


def cell_headers(root: Path) -> list[Path]:
    """What a cell is compiled from, as paths below csrc or a copy of it: no torch, no CUDA."""
    found = [path for folder in ("", "cells", "cpu") for path in (root / folder).glob("*.h")]
    return sorted(path.relative_to(root) for path in found)


def cell_layout(root: Path) -> str:
    """A hash of those headers: a library of kernels and one of a cell fit if theirs are equal."""
    digest = hashlib.sha256()
    for path in cell_headers(root):
        content = (root / path).read_bytes()
        digest.update(f"{path.as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def layout_macro(layout: str) -> str:
    """The flag that tells a library the layout that it is compiled for."""
    return f'-DFASTRNN_CELL_LAYOUT="{layout}"'
