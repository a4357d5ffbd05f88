"""The machine that a run was measured on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from fastrnn.library import cpu_instruction_set

# glibc hands freed pages back to the system, and the next call takes them again, one by one. What
# that costs differs tenfold between machines, and from call to call where others use the memory.
KEPT_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**31)}


def keep_pages() -> None:
    """Start this program anew with a malloc that keeps freed pages, for all who are measured;
    nothing where the environment sets one of its thresholds."""
    if sys.platform == "linux" and not KEPT_PAGES.keys() & os.environ.keys():
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **KEPT_PAGES})


def memory_in_use() -> str:
    """What malloc does with freed pages, as the environment says."""
    said = [f"{name}={os.environ[name]}" for name in KEPT_PAGES if name in os.environ]
    return " ".join(said) or "malloc's own thresholds"


def cpu_in_use(threads: int) -> str:
    """The processor's name, how many threads a run has, and the instruction set of its kernels."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return f"{cpu}, {threads} threads, fastrnn on {cpu_instruction_set()}"
