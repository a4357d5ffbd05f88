"""The machine that a run was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

from fastrnn.library import cpu_instruction_set


def cpu_in_use(threads: int) -> str:
    """The processor's name, how many threads a run has, and the instruction set of its kernels."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return f"{cpu}, {threads} threads, fastrnn on {cpu_instruction_set()}"
