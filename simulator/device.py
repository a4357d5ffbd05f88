"""Runs compiled CUDA kernels on the CPU and says what is wrong with them.

The engine is one library that takes the place of libcudart.so.13; a second one takes that of
libcublas.so.13. Both are loaded globally, before anything that was linked against the real ones,
and found again by their names. So torch with CUDA must not be in the same process.

    sim = simulator()
    sim.load(build_kernels("scan.cu"))            # translated
    host = sim.load(build_host(["scan.cu"]))      # nvcc's, unchanged
    with sim.watch(schedule_seed=3) as report:
        host.run(sim.put(x), ...)
    report.launches[0].total["mma"]               # any finding was raised at the end of the block
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cache import cache_folder, cached, digest, locked, run
from .ptx.module import build_source
from .toolchain import cxx, nvcc

HERE = Path(__file__).resolve().parent
CUDART = [*sorted((HERE / "engine").glob("*.cpp")), HERE / "runtime/cudart.cpp"]
CUBLAS = HERE / "runtime/cublas.cpp"


@functools.cache
def toolkit_include() -> Path:
    """The folder of cuda_runtime_api.h. nvcc is asked, since what is on the PATH may be a wrapper."""
    said = subprocess.run(
        [nvcc(), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
    ).stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.M)
    if top:
        for candidate in (Path(top[1]) / "include", Path(top[1]) / "targets/x86_64-linux/include"):
            if (candidate / "cuda_runtime_api.h").exists():
                return candidate.resolve()
    raise FileNotFoundError(f"cuda_runtime_api.h was not found beside {nvcc()}:\n{said}")


@functools.cache
def build() -> Path:
    """The folder with libcudart.so.13 and libcublas.so.13, built once for each state of the sources."""
    flags = ["-std=c++20", "-O2", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra"]
    sources = [*CUDART, CUBLAS]
    headers = sorted((HERE / "engine").glob("*.h"))
    cpuinfo = Path("/proc/cpuinfo")
    model = (
        re.search(r"^(flags|Features).*$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    )
    key = digest(
        *(path.read_bytes() for path in [*sources, *headers]),
        *flags,
        model[0] if model else "",
        cxx(),
    )
    folder = cache_folder() / f"engine-{key}"
    with locked(folder.name):
        if not folder.exists():
            build_engine(sources, flags, folder)
    return folder


def build_engine(sources: Sequence[Path], flags: Sequence[str], folder: Path) -> None:
    """Compile and link in a temporary folder, which then takes its name."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        work = Path(temporary) / "engine"
        work.mkdir()

        def compile_unit(source: Path) -> None:
            more = ["-O3", "-march=native"] if source == CUBLAS else []
            command: list[str | Path] = [
                cxx(),
                *flags,
                *more,
                "-I",
                HERE / "engine",
                "-isystem",
                toolkit_include(),
                "-c",
                source,
            ]
            run([*command, "-o", work / f"{source.stem}.o"])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_unit, sources))
        for name, units in (("libcudart.so.13", CUDART), ("libcublas.so.13", [CUBLAS])):
            # Code linked against NVIDIA's library asks for symbols of this version.
            (work / "version.map").write_text(f"{name} {{ global: *; }};\n")
            linker = (
                f"-Wl,-soname,{name},--version-script={work / 'version.map'},-z,defs,-rpath,$ORIGIN"
            )
            engine = [] if name == "libcudart.so.13" else [work / "libcudart.so.13"]
            objects = [work / f"{unit.stem}.o" for unit in units]
            run([cxx(), "-shared", linker, "-o", work / name, *objects, *engine])
        work.rename(folder)


def build_kernels(source: Path | str, arch: str = "compute_80", flags: Sequence[str] = ()) -> Path:
    """The kernels of a .cu file, translated: a module for Simulator.load."""
    return build_source(source, arch, flags)


def build_host(
    sources: Sequence[Path | str], arch: str = "compute_80", flags: Sequence[str] = ()
) -> Path:
    """The host code of .cu files as nvcc compiles it, linked against the stand-ins."""
    base: list[str | Path] = [nvcc(), "-std=c++17", f"-arch={arch}", *flags]
    texts = [run([*base, "-E", source]) for source in sources]
    stand_ins = [build() / "libcudart.so.13", build() / "libcublas.so.13"]
    key = digest(*texts, *map(str, base), str(build()))

    def make(path: Path) -> None:
        link = ["-Xcompiler", "-fPIC", "-shared", "-cudart", "none"]
        run([*base, *link, *sources, "-o", path, *(f"-Xlinker={library}" for library in stand_ins)])

    return cached(f"{key}-host.so", make)


def counter_names() -> list[str]:
    """The names of engine.h's enum Counter, in order."""
    text = re.search(
        r"enum class Counter[^{]*{(.*?)};", (HERE / "engine/engine.h").read_text(), re.S
    )
    assert text
    body = re.sub(r"//[^\n]*", "", text[1])
    return [name.strip() for name in body.split(",") if name.strip() and name.strip() != "count"]


@dataclass
class Finding:
    kind: str
    text: str
    kernel: str
    source: str
    source_line: int
    ptx_line: int
    instruction: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    count: int

    def __str__(self) -> str:
        where = f"{Path(self.source).name}:{self.source_line}, " if self.source else ""
        line = f"PTX line {self.ptx_line}: " if self.ptx_line else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return (
            f"{self.kind}{times}: {self.text}\n"
            f"    in {self.kernel}, block {self.block} thread {self.thread}, {where}{line}{self.instruction}"
        )


class SimulatorFinding(AssertionError):
    def __init__(self, findings: list[Finding]):
        super().__init__("\n".join(map(str, findings)))
        self.findings = findings


@dataclass
class LaunchReport:
    """A launch, or a product: kernel cublas..., grid (m, n, k), block (batch, 1, 1)."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    resident: int
    total: dict[str, int]
    busiest: dict[str, int]  # block, counter by counter


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list)
    launches: list[LaunchReport] = field(default_factory=list)
    printed: str = ""
    queries: int = 0  # of the host about devices and kernels, cudaGetDevice aside

    def total(self, counter: str) -> int:
        return sum(launch.total[counter] for launch in self.launches)


class DeviceArray:
    """Memory of the simulated device, freed with the object. Passes as a pointer to ctypes functions."""

    def __init__(self, sim: "Simulator", shape: tuple[int, ...], dtype: Any):
        self._sim, self.shape, self.dtype = sim, shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        pointer = ctypes.c_void_p()
        sim.check(
            sim.cudart.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(self.nbytes, 1)))
        )
        assert pointer.value is not None
        self.address: int = pointer.value
        self._as_parameter_ = pointer

    def __del__(self) -> None:
        self.free()

    def free(self) -> None:
        if getattr(self, "address", 0):
            self._sim.cudart.cudaFree(ctypes.c_void_p(self.address))
            self.address = 0

    def put(self, value: np.ndarray) -> "DeviceArray":
        value = np.ascontiguousarray(value, self.dtype)
        assert value.shape == self.shape, f"{value.shape}, expected {self.shape}"
        size = ctypes.c_size_t(self.nbytes)
        self._sim.check(
            self._sim.cudart.cudaMemcpy(
                ctypes.c_void_p(self.address), value.ctypes.data_as(ctypes.c_void_p), size, 1
            )
        )
        return self

    def get(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        size = ctypes.c_size_t(self.nbytes)
        self._sim.check(
            self._sim.cudart.cudaMemcpy(
                out.ctypes.data_as(ctypes.c_void_p), ctypes.c_void_p(self.address), size, 2
            )
        )
        return out

    def fill(self, byte: int) -> "DeviceArray":
        self._sim.check(
            self._sim.cudart.cudaMemset(
                ctypes.c_void_p(self.address), byte, ctypes.c_size_t(self.nbytes)
            )
        )
        return self

    @property
    def written(self) -> bool:
        """Whether every byte was."""
        return (
            self._sim.library.simulator_written(
                ctypes.c_uint64(self.address), ctypes.c_uint64(self.nbytes)
            )
            == self.nbytes
        )


class Simulator:
    def __init__(self) -> None:
        folder = build()
        self.library = ctypes.CDLL(str(folder / "libcudart.so.13"), mode=ctypes.RTLD_GLOBAL)
        self.cublas = ctypes.CDLL(str(folder / "libcublas.so.13"), mode=ctypes.RTLD_GLOBAL)
        try:
            self.library.simulator_handshake.restype = ctypes.c_char_p
        except AttributeError:
            raise RuntimeError(
                "a real libcudart.so.13 is in this process already: run the simulator in one without it"
            ) from None
        assert self.library.simulator_handshake() == b"simulator"
        self.cudart = self.library
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        for name in ("written", "queries"):
            getattr(self.library, f"simulator_{name}").restype = ctypes.c_uint64
        for name in ("findings", "launches", "printed", "kernels"):
            getattr(self.library, f"simulator_{name}").restype = ctypes.c_char_p
        self._counters = counter_names()

    def load(self, library: str | Path) -> ctypes.CDLL:
        """A translated module or host code linked against libcudart.so.13. A module must come before
        the host code that launches its kernels."""
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)

    def on_missing_kernel(self, provide: Callable[[str], None]) -> None:
        """Called with the name of a kernel that is launched and was not loaded; loads it, or does not."""
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
        self._provide = prototype(lambda name: provide(name.decode()))  # kept as long as the engine
        self.library.simulator_on_missing_kernel(self._provide)

    def check(self, error: int) -> None:
        if error != 0:
            raise RuntimeError(
                f"CUDA error {error}: {self.cudart.cudaGetErrorString(error).decode()}\n"
                + "\n".join(map(str, self.findings()))
            )

    def set_device(self, architecture: str) -> None:
        """sm_75, sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120."""
        if self.library.simulator_set_device(architecture.encode()) != 0:
            raise ValueError(f"no device of architecture {architecture}")

    def set(self, **settings: int) -> None:
        """schedule_seed, numeric_seed (0: exact), races, store_buffer, traffic, round_ns, idle_rounds, branch_limit, lost_blocks;
        multiprocessors, ptx_version (of the code it runs) and cooperative_error (of each cooperative launch), of
        the device until another is set."""
        for name, value in settings.items():
            if self.library.simulator_set(name.encode(), ctypes.c_uint64(int(value))) != 0:
                raise ValueError(f"no setting {name}")

    def set_registers(self, table: dict[str, int]) -> None:
        """ptxas' register counts, by PTX name."""
        for kernel, registers in table.items():
            self.library.simulator_set_registers(kernel.encode(), registers)

    def kernels(self) -> list[str]:
        return json.loads(self.library.simulator_kernels())

    def empty(self, shape: Sequence[int] | int, dtype: Any = np.float32) -> DeviceArray:
        return DeviceArray(self, (shape,) if isinstance(shape, int) else tuple(shape), dtype)

    def put(self, value: np.ndarray) -> DeviceArray:
        return self.empty(value.shape, value.dtype).put(value)

    def launch(self, kernel: str, grid: Sequence[int] | int, block: Sequence[int] | int, *arguments: Any,
               shared: int = 0, cooperative: bool = False) -> int:  # fmt: skip
        """Launches a kernel by its PTX name; ctypes values, DeviceArrays, or bytes of a struct. Returns the cudaError_t."""

        def three(v: Sequence[int] | int) -> Any:
            v = (v,) if isinstance(v, int) else tuple(v)
            return (ctypes.c_uint32 * 3)(*v, *[1] * (3 - len(v)))

        sizes = (ctypes.c_uint32 * 64)()
        n = self.library.simulator_param_bytes(kernel.encode(), sizes, 64)
        if n < 0:
            raise KeyError(f"no kernel {kernel}; there are {self.kernels()}")
        values = [ctypes.c_void_p(a.address) if isinstance(a, DeviceArray)
                  else ctypes.create_string_buffer(a, len(a)) if isinstance(a, bytes) else a for a in arguments]  # fmt: skip
        given = [ctypes.sizeof(v) for v in values]
        if given != list(sizes[:n]):
            raise TypeError(f"{kernel} takes parameters of {list(sizes[:n])} bytes, got {given}")
        pointers = (ctypes.c_void_p * (len(values) + 1))(*[ctypes.addressof(v) for v in values])
        return self.library.simulator_launch(
            kernel.encode(), three(grid), three(block), shared, int(cooperative), pointers
        )

    def findings(self) -> list[Finding]:
        return [
            Finding(**{**f, "block": tuple(f["block"]), "thread": tuple(f["thread"])})
            for f in json.loads(self.library.simulator_findings())
        ]

    def launches(self) -> list[LaunchReport]:
        def named(values: list[int]) -> dict[str, int]:
            return dict(zip(self._counters, values, strict=True))

        return [
            LaunchReport(
                r["kernel"],
                tuple(r["grid"]),
                tuple(r["block"]),
                r["resident"],
                named(r["total"]),
                named(r["busiest"]),
            )
            for r in json.loads(self.library.simulator_launches())
        ]

    @contextlib.contextmanager
    def watch(self, expect: str | None = None, **settings: int) -> Iterator[Report]:
        """Collects what happens inside. Findings raise SimulatorFinding at the end, even over another
        error; with `expect`, one of that kind must have been made and none is raised."""
        self.library.simulator_clear()
        self.library.cudaGetLastError()
        self.set(**settings)
        report = Report()
        try:
            yield report
        finally:
            report.findings = self.findings()
            report.launches = self.launches()
            report.queries = self.library.simulator_queries()
            report.printed = self.library.simulator_printed().decode()
            self.library.simulator_clear()
            if expect is None and report.findings:
                raise SimulatorFinding(report.findings)
        if expect is not None and expect not in {f.kind for f in report.findings}:
            made = "\n".join(map(str, report.findings)) or "none"
            raise AssertionError(f"expected a finding of kind {expect!r}, made: {made}")


@functools.cache
def simulator() -> Simulator:
    """The process's only one."""
    return Simulator()
