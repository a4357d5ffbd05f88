"""What the CUDA kernels take of a multiprocessor, from the compiled binary: no GPU is needed.

    python tools/resources.py LIBRARY [--output FILE]           of a library built with CUDA
    python tools/resources.py --arch 8.0 9.0 [--output FILE]    compile csrc/cuda for these, and tell

Of each kernel and architecture: registers a thread, bytes of local memory, which are spilled registers and
arrays, static shared memory, and how many matrix instructions its machine code has. Exits with 1 where a
resident kernel has local memory, or one for half types has no matrix instruction, or where a library is
larger than 32 MB an architecture: built for one it must be small enough to be carried to a machine with a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_ARCH = re.compile(r"(?:arch = |\s*code for )sm_(\d+)")
_FUNCTION = re.compile(r"\s*Function (?:: )?(\w+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_RESIDENT = re.compile(r"(block|grid)_(forward|backward)\b")
_MATRIX = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)\b")


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one architecture."""

    arch: str
    name: str  # demangled
    registers: int
    local: int  # bytes of the stack frame: spilled registers and arrays
    shared: int  # bytes, static
    matrix: int  # instructions

    @property
    def faults(self) -> list[str]:
        if not _RESIDENT.match(self.name):
            return []
        faults = []
        if self.local:
            faults.append(f"has {self.local} bytes of local memory")
        if re.search(r"\b(Half|BFloat16)\b", self.name) and not self.matrix and self.arch != "7.5":
            faults.append("has no matrix instruction")
        return faults


def _setup() -> Any:
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["setup"] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


def _site_packages() -> Path:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parents[1] if spec and spec.origin else Path("nowhere")


def toolkit() -> Any:
    return _setup().Toolkit.find(_site_packages())


def triton_tool(name: str) -> str | None:
    """The path of a tool of the triton package, which may be installed or unpacked by `make test`."""
    roots = (_site_packages(), Path(sys.prefix) / "disassembler")
    return shutil.which(
        name, path=os.pathsep.join(str(root / "triton/backends/nvidia/bin") for root in roots)
    )


def tool(name: str) -> str:
    """cuobjdump or nvdisasm, of a CUDA toolkit or of the triton package."""
    path = shutil.which(name) or triton_tool(name)
    if not path:
        raise SystemExit(f"fastrnn: no {name} found. Install it: pip install triton")
    return path


def _run(*command: str) -> str:
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"fastrnn: {' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr


def _demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True)
    plain = [name.replace("(anonymous namespace)::", "") for name in done.stdout.splitlines()]
    plain = [re.sub(r"^void |fastrnn::(cuda::)?", "", name) for name in plain]
    # Without the arguments; in those of a template, "(Precision)0" is a value.
    return [re.sub(r"(?<=>)\(.*$|^(\w+)\(.*$", r"\1", name) for name in plain]


def _disassembled(binary: Path, arch: str, what: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Lines of what cuobjdump tells, each with the architecture and the function that it is of."""
    name = ""
    for line in _run(tool("cuobjdump"), what, str(binary)).splitlines():
        if match := _ARCH.match(line):
            arch = dotted(match[1])
        elif match := _FUNCTION.match(line):
            name = match[1]
        yield (arch, name), line


def kernels_of(binary: Path, arch: str = "") -> list[Kernel]:
    """The kernels of a library for several architectures, or of a cubin for one."""
    usage = {
        key: [int(value) for value in match.groups()]
        for key, line in _disassembled(binary, arch, "-res-usage")
        if (match := _USAGE.search(line))
    }
    code = _disassembled(binary, arch, "-sass")
    matrix = Counter(key for key, line in code if _MATRIX.search(line))
    plain = _demangle([name for _, name in usage])
    return [
        Kernel(key[0], name, registers, stack + local, shared, matrix[key])
        for name, (key, (registers, stack, shared, local)) in zip(plain, usage.items(), strict=True)
    ]


def dotted(arch: str) -> str:
    """9.0 of 90."""
    return f"{arch[:-1]}.{arch[-1]}"


def compile_cubin(source: Path, arch: str, folder: Path) -> Path:
    """The kernels of a source, in CUDA or PTX, compiled for one architecture."""
    kit = toolkit()
    cubin = folder / f"{source.stem}-{arch}.cubin"
    includes = [f"-isystem={path}" for path in kit.includes()]
    if "cublas_v2.h" in kit.missing():  # kernels do without cuBLAS; its header is included
        includes.append(f"-I{ROOT / 'simulator/runtime/include'}")
    _run(
        str(kit.root / "bin/nvcc"), *_setup().NVCC_FLAGS.split(), *includes, f"-I{ROOT / 'csrc'}",
        "-cubin", f"-arch=sm_{arch.replace('.', '')}", "-o", str(cubin), str(source),
    )  # fmt: skip
    return cubin


def machine_code(cubin: Path) -> str:
    """Every instruction of every kernel, as cuobjdump prints it."""
    return _run(tool("cuobjdump"), "-sass", str(cubin))


def kernels(archs: Sequence[str], sources: Sequence[Path] = ()) -> list[Kernel]:
    """The kernels of sources, of all in csrc/cuda by default, for each architecture."""
    sources = sources or sorted((ROOT / "csrc/cuda").glob("*.cu"))
    jobs = [(source, arch) for source in sources for arch in archs]
    workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:

        def kernels_of_job(job: tuple[Path, str]) -> list[Kernel]:
            return kernels_of(compile_cubin(*job, Path(folder)), job[1])

        return [kernel for part in pool.map(kernels_of_job, jobs) for kernel in part]


def table(compiled: list[Kernel]) -> str:
    lines = [
        "| kernel | sm | registers | local | shared | matrix instructions |",
        "|-|-|-|-|-|-|",
    ]
    for k in sorted(compiled, key=lambda k: (k.name, float(k.arch))):
        lines.append(
            f"| `{k.name}` | {k.arch} | {k.registers} | {k.local} | {k.shared} | {k.matrix} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Contents:
    """How large a library is, and the architectures that it has machine code and PTX for."""

    name: str
    megabytes: float
    code: list[str]
    ptx: list[str]

    def __str__(self) -> str:
        code, ptx = (
            ", ".join(f"sm_{arch}" for arch in archs) or "none" for archs in (self.code, self.ptx)
        )
        return f"{self.name}, {self.megabytes:.1f} MB: code for {code}; PTX for {ptx}"

    @property
    def faults(self) -> list[str]:
        most = 32 * (len(self.code) + len(self.ptx))
        return [f"is larger than {most} MB"] if self.megabytes > most else []


def contents(library: Path) -> Contents:
    def architectures(flag: str) -> list[str]:
        said = _run(tool("cuobjdump"), flag, str(library))
        return sorted(set(re.findall(r"sm_(\d+)", said)), key=int)

    size = library.stat().st_size / 1e6
    return Contents(library.name, size, architectures("--list-elf"), architectures("--list-ptx"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("library", nargs="?", type=Path)
    what.add_argument("--arch", nargs="+", metavar="X.Y", help="compile for these")
    parser.add_argument("--output", type=Path, help="also write the table there")
    args = parser.parse_args()
    if args.library:
        compiled = kernels_of(args.library)
    elif toolkit():
        compiled = kernels(args.arch)
    else:
        print("fastrnn: nvcc was not found, which compiles the kernels", file=sys.stderr)
        return 2
    print(table(compiled))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(table(compiled) + "\n")
    faults = [f"{k.name} on {k.arch} {fault}" for k in compiled for fault in k.faults]
    if args.library:
        whole = contents(args.library)
        print(whole)
        faults += [f"{whole.name} {fault}" for fault in whole.faults]
    for fault in faults:
        print("FAULT:", fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
