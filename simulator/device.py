"""Runs compiled CUDA kernels on the CPU and says what is wrong with them.

The engine takes the place of libcudart.so.13, so torch with CUDA must not be in the same process.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .engine import library


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
    """Memory of the simulated device, freed with the object. Passes as a pointer to host code."""

    def __init__(self, engine: Any, shape: tuple[int, ...], dtype: Any):
        self._engine, self.shape, self.dtype = engine, shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.address: int = engine.allocate(self.nbytes)

    def __del__(self) -> None:
        self.free()

    def free(self) -> None:
        if address := getattr(self, "address", 0):  # 0 where the allocation failed
            self.address = 0
            self._engine.free(address)

    @property
    def _as_parameter_(self) -> ctypes.c_void_p:
        """What a ctypes function, of a host library, gets."""
        return ctypes.c_void_p(self.address)

    def put(self, value: np.ndarray) -> "DeviceArray":
        value = np.ascontiguousarray(value, self.dtype)
        if value.shape != self.shape:
            raise ValueError(f"the shape is {value.shape}, expected {self.shape}")
        self._engine.write(self.address, value)
        return self

    def get(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        self._engine.read(self.address, out)
        return out

    def fill(self, byte: int) -> "DeviceArray":
        self._engine.fill(self.address, byte, self.nbytes)
        return self

    @property
    def written(self) -> bool:
        """Whether every byte was written."""
        return self._engine.written(self.address, self.nbytes) == self.nbytes


Argument = DeviceArray | np.generic | bytes


def bytes_of(argument: Argument) -> bytes:
    """A kernel's argument as it lies in memory."""
    if isinstance(argument, DeviceArray):
        return argument.address.to_bytes(8, "little")
    if isinstance(argument, np.generic):
        return argument.tobytes()
    if isinstance(argument, bytes):
        return argument
    raise TypeError(
        f"a kernel's argument is a DeviceArray, a numpy scalar such as np.int32(3), or a struct's "
        f"bytes, not {type(argument).__name__}"
    )


class Simulator:
    """The simulated device, and what happened on it. `engine` is the C++ side, bindings.cpp."""

    def __init__(self) -> None:
        self.engine = library.load()

    def load(self, path: str | Path) -> ctypes.CDLL:
        """A translated module or host code linked against libcudart.so.13. A module must come before
        the host code that launches its kernels."""
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)

    def on_missing_kernel(self, provide: Callable[[str], None]) -> None:
        """Called with the name of a kernel that is launched and was not loaded; loads it, or does not."""
        self.engine.on_missing_kernel(provide)

    def check(self, error: int) -> None:
        """Raises where a launch returned an error."""
        if error != 0:
            raise RuntimeError(
                f"CUDA error {error}: {self.engine.error_text(error)}\n"
                + "\n".join(map(str, self.findings()))
            )

    def set_device(self, architecture: str) -> None:
        """sm_75, sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120; ValueError for another."""
        self.engine.set_device(architecture)

    def set(self, **settings: int) -> None:
        """schedule_seed, numeric_seed (0: exact), races, store_buffer, traffic, round_ns, idle_rounds, branch_limit, lost_blocks;
        multiprocessors, ptx_version (of the code it runs) and cooperative_error (of each cooperative launch), of
        the device until another is set."""
        for name, value in settings.items():
            self.engine.set(name, int(value))

    def set_registers(self, table: dict[str, int]) -> None:
        """ptxas' register counts, by PTX name."""
        for kernel, registers in table.items():
            self.engine.set_registers(kernel, registers)

    def kernels(self) -> list[str]:
        return self.engine.kernels()

    def empty(self, shape: Sequence[int] | int, dtype: Any = np.float32) -> DeviceArray:
        return DeviceArray(self.engine, (shape,) if isinstance(shape, int) else tuple(shape), dtype)

    def put(self, value: np.ndarray) -> DeviceArray:
        return self.empty(value.shape, value.dtype).put(value)

    def launch(self, kernel: str, grid: Sequence[int] | int, block: Sequence[int] | int, *arguments: Argument,
               shared: int = 0, cooperative: bool = False) -> int:  # fmt: skip
        """Launches a kernel by its PTX name. Returns the cudaError_t, which check() takes."""

        def three(extent: Sequence[int] | int) -> tuple[int, ...]:
            extent = (extent,) if isinstance(extent, int) else tuple(extent)
            return (*extent, *[1] * (3 - len(extent)))

        values = [bytes_of(argument) for argument in arguments]
        return self.engine.launch(kernel, three(grid), three(block), values, shared, cooperative)

    def findings(self) -> list[Finding]:
        return [Finding(**finding) for finding in self.engine.findings()]

    def launches(self) -> list[LaunchReport]:
        return [LaunchReport(**launch) for launch in self.engine.launches()]

    @contextlib.contextmanager
    def watch(self, expect: str | None = None, **settings: int) -> Iterator[Report]:
        """Collects what happens inside. Findings raise SimulatorFinding at the end, even over another
        error; with `expect`, one of that kind must have been made and none is raised."""
        self.engine.clear()
        self.set(**settings)
        report = Report()
        try:
            yield report
        finally:
            report.findings = self.findings()
            report.launches = self.launches()
            report.queries = self.engine.queries()
            report.printed = self.engine.take_printed().decode()
            self.engine.clear()
            if expect is None and report.findings:
                raise SimulatorFinding(report.findings)
        if expect is not None and expect not in {f.kind for f in report.findings}:
            made = "\n".join(map(str, report.findings)) or "none"
            raise AssertionError(f"expected a finding of kind {expect!r}, made: {made}")


@functools.cache
def simulator() -> Simulator:
    """The process's only one."""
    return Simulator()
