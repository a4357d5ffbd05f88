"""Says what is installed, and with --library what the compiled library runs on.

One fact a line, "name: value"; tools/gpu/run.py reads "compute capability" and "packages".
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec

PACKAGES = ("pytest", "numpy", "hypothesis", "expecttest", "mpmath", "rich", "matplotlib", "onnx")


def first_line(*command: str, containing: str = "") -> str:
    """Of what a program prints; why not, where it cannot be asked."""
    if not shutil.which(command[0]):
        return "not found"
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = [line for line in done.stdout.splitlines() if containing in line]
    return lines[0].strip() if lines else done.stderr.strip()[:200] or "said nothing"


def machine() -> dict[str, object]:
    facts: dict[str, object] = {
        "Python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "nvcc": first_line("nvcc", "--version", containing="release"),
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "packages": " ".join(name for name in PACKAGES if find_spec(name)),
    }
    try:
        import torch
    except ImportError as error:
        return facts | {"torch": f"cannot be imported: {error}"}
    facts |= {"torch": torch.__version__, "torch's CUDA": torch.version.cuda or "none"}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        facts |= {
            "cuDNN": torch.backends.cudnn.version(),
            "GPU": f"{device.name}, {device.multi_processor_count} multiprocessors, "
            f"{device.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} of them",
            "compute capability": f"{device.major}.{device.minor}",
        }
    return facts


def library() -> dict[str, object]:
    import torch

    import fastrnn
    from fastrnn.library import DEVICES

    if torch.cuda.is_available() and "cuda" not in DEVICES:
        raise SystemExit("fastrnn: there is a GPU, but this library has no CUDA kernels")
    named = os.environ.get("FASTRNN_LIBRARY")
    return {
        "fastrnn": f"{fastrnn.__version__} in {os.path.dirname(fastrnn.__file__)}",
        "library": named or "the one beside it",
        "devices": ", ".join(DEVICES),
        "instruction sets": ", ".join(fastrnn.cpu_instruction_sets()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", action="store_true", help="import fastrnn instead")
    args = parser.parse_args()
    for name, value in (library() if args.library else machine()).items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
