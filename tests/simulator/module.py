"""A .cu file on its way to the CPU: nvcc -> PTX -> C++ -> one shared library a module.

Each kernel is compiled alone and kept by a hash of everything that went into it, so a change to one
kernel of twenty costs one compilation, and a second run of the tests costs none. The cache lies in
$FASTRNN_SIMULATOR_CACHE, else among the temporary files; files appear in it whole, by renaming, so
that test processes may share it, and a lock lets one of them make each.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolchain
import translate as translator

HERE = Path(__file__).parent

# -O2 runs no faster, -O0 pays where a kernel runs once; contraction would round once where PTX rounds twice.
CXX_FLAGS = (
    "-std=c++20",
    f"-O{os.environ.get('FASTRNN_SIMULATOR_OPTIMIZE', '1')}",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fPIC",
    "-w",
)
HEADERS = ("engine.h", "instructions.h", "intrinsics.h")


class BuildError(RuntimeError):
    pass


@functools.cache
def cxx_flags() -> tuple[str, ...]:
    """With the processor's fused multiply-add, where it has one: else each fma is a call."""
    cpuinfo = Path("/proc/cpuinfo")
    has_fma = cpuinfo.exists() and bool(
        re.search(r"\bfma\b.*\bavx2\b|\bavx2\b.*\bfma\b", cpuinfo.read_text())
    )
    return (*CXX_FLAGS, "-mfma", "-mavx2") if has_fma else CXX_FLAGS


def cache_folder() -> Path:
    named = os.environ.get("FASTRNN_SIMULATOR_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / "fastrnn-simulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:24]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time makes a file: workers that need the same kernel compile it once.

    The system frees the lock of a process that dies. The lock's own file stays, for whoever waits.
    """
    with open(cache_folder() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """The file of that name in the cache, made at a temporary path first if it is missing."""
    path = cache_folder() / name
    if path.exists():
        return path
    with locked(name):
        if not path.exists():  # another process may have made it meanwhile
            with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
                unfinished = Path(temporary) / name
                make(unfinished)
                unfinished.replace(path)
    return path


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


@functools.cache
def _version(command: str) -> str:
    return run([command, "--version"])


def compile_ptx(source: Path | str, arch: str = "compute_80", flags: Iterable[str] = ()) -> str:
    """PTX of a .cu file, with the lines of the source."""
    nvcc = toolchain.nvcc()
    command: list[str | Path] = [nvcc, "-ptx", "-lineinfo", f"-arch={arch}", "-std=c++17", *flags]
    # The preprocessed text holds every header that matters.
    text = run([*command[:1], "-E", *command[2:], source])
    key = digest(text, _version(str(nvcc)), *map(str, command))
    return cached(f"{key}.ptx", lambda path: run([*command, source, "-o", path])).read_text()


def translate(ptx_text: str) -> dict[str, str]:
    """Name of each kernel: its C++; the module's variables under the empty name."""
    return translator.translate(ptx_text)


@functools.cache
def _headers() -> str:
    return digest(*((HERE / name).read_bytes() for name in HEADERS))


def build_object(cpp: str) -> Path:
    """One translation unit, compiled."""
    cxx, flags = toolchain.cxx(), cxx_flags()
    key = digest(cpp, _headers(), _version(cxx), *flags)

    def make(path: Path) -> None:
        source = path.with_suffix(".cpp")
        source.write_text(cpp)
        run([cxx, *flags, "-I", HERE, "-c", source, "-o", path])

    return cached(f"{key}.o", make)


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
    return build(translate(ptx_text).values())


def build_source(source: Path | str, arch: str = "compute_80", flags: Iterable[str] = ()) -> Path:
    return build_module(compile_ptx(source, arch, flags))
