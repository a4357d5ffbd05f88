"""C++ beside the benchmarks, compiled for this machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def compiled(source: Path, *options: str) -> ctypes.CDLL:
    """A library of one file, with all that this machine's compiler makes of it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    flags = ["-O3", "-march=native", "-std=c++20", "-pthread", "-shared", "-fPIC", *options]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, source.with_suffix(".so").name)
        subprocess.run([compiler, *flags, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))
