"""Says what is installed, and with --library what the compiled library runs on.

One fact a line, "name: value"; tools/gpu/run.py reads "compute capability" and "packages". The
driver's word on the GPU comes before the import of torch, which may outlast the time limit where
its files are read for the first time; torch's own word follows and counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

PACKAGES = ("pytest", "numpy", "hypothesis", "expecttest", "mpmath", "rich", "matplotlib", "onnx")


def first_line(*command: str, containing: str = "") -> str:
    """The first line that a program prints, or why there is none."""
    if not shutil.which(command[0]):
        return "not found"
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = [line for line in done.stdout.splitlines() if containing in line]
    return lines[0].strip() if lines else done.stderr.strip()[:200] or "said nothing"


def driver(fact: str) -> str:
    return first_line("nvidia-smi", f"--query-gpu={fact}", "--format=csv,noheader")


def machine() -> Iterator[tuple[str, object]]:
    yield "Python", platform.python_version()
    yield "machine", f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    yield "commit", first_line("git", "describe", "--always", "--dirty")
    yield "nvcc", first_line("nvcc", "--version", containing="release")
    yield "packages", " ".join(name for name in PACKAGES if find_spec(name))
    yield "driver", driver("driver_version")
    yield "compute capability", driver("compute_cap")
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}"
        return
    yield "torch", torch.__version__
    yield "torch's CUDA", torch.version.cuda or "none"
    if not torch.cuda.is_available():
        yield "compute capability", "none that torch can use"
        return
    device = torch.cuda.get_device_properties(0)
    yield "cuDNN", torch.backends.cudnn.version()
    yield (
        "GPU",
        f"{device.name}, {device.multi_processor_count} multiprocessors, "
        f"{device.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} of them",
    )
    yield "compute capability", f"{device.major}.{device.minor}"


def library() -> Iterator[tuple[str, object]]:
    import torch

    import fastrnn
    from fastrnn.library import DEVICES

    if torch.cuda.is_available() and "cuda" not in DEVICES:
        raise SystemExit("fastrnn: there is a GPU, but this library has no CUDA kernels")
    named = os.environ.get("FASTRNN_LIBRARY")
    yield "fastrnn", f"{fastrnn.__version__} in {os.path.dirname(fastrnn.__file__)}"
    yield "library", named or "the one beside it"
    yield "devices", ", ".join(DEVICES)
    yield "instruction sets", ", ".join(fastrnn.cpu_instruction_sets())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", action="store_true", help="import fastrnn instead")
    args = parser.parse_args()
    for name, value in library() if args.library else machine():
        print(f"{name}: {value}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
