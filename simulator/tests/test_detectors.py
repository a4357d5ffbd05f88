"""Every detector against a planted bug, and against the bug's right twin, which must stay silent.

The kernels are detectors.cu, where template argument `Right` is the only difference of two twins. Each
case runs under several seeds; silence and finding must hold under all of them.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from simulator import (
    DeviceArray,
    Simulator,
    SimulatorFinding,
    build_host,
    build_kernels,
    simulator,
    toolchain,
)

SOURCE = Path(__file__).with_name("detectors.cu")
SEEDS = range(6)
u32, i32 = np.uint32, np.int32


@pytest.fixture(scope="module")
def sim() -> Simulator:
    sim = simulator()
    sim.set_device("sm_90")
    sim.load(build_kernels(SOURCE))
    return sim


@pytest.fixture(scope="module")
def host(sim: Simulator) -> ctypes.CDLL:
    return sim.load(build_host([SOURCE]))


def ramp(sim: Simulator, n: int) -> DeviceArray:
    return sim.put(np.arange(n, dtype=np.float32))


def sentinels(sim: Simulator, n: int) -> DeviceArray:
    return sim.empty(n, np.uint32).fill(0xFF)


@dataclass
class Case:
    kernel: str
    kind: str  # the finding is of this kind
    grid: int
    block: int
    arguments: Callable[[Simulator], list]
    shared: int = 0
    cooperative: bool = False
    error: int = 0  # the launch of the wrong twin returns it


CASES = [
    Case("bounds", "out of bounds", 2, 64, lambda s: [s.empty(100), i32(100)], error=700),
    Case("shared_bounds", "out of bounds", 1, 64, lambda s: [ramp(s, 64)], shared=256, error=700),
    Case("alignment", "misaligned", 1, 32, lambda s: [ramp(s, 256)], error=716),
    Case("initialised", "uninitialised read", 1, 64, lambda s: [s.empty(64)]),
    Case("shared_race", "race in shared memory", 1, 128, lambda s: [ramp(s, 128)]),
    Case("overwritten", "race in shared memory", 1, 128, lambda s: [ramp(s, 128), i32(4)]),
    Case("warp_race", "race in shared memory", 1, 32, lambda s: [ramp(s, 32)]),
    Case("block_race", "race in global memory", 2, 1, lambda s: [s.put(np.zeros(1, np.int32))]),
    Case("message", "race in global memory", 2, 64, lambda s: [s.put(np.zeros(1, np.uint32)), s.put(np.zeros(64, np.float32)), s.empty(64)]),
    Case("lonely_publisher", "race in global memory", 2, 64, lambda s: [s.put(np.zeros(1, np.uint32)), s.put(np.zeros(64, np.float32)), s.empty(64)]),
    Case("mixed_sizes", "race in global memory", 2, 64, lambda s: [sentinels(s, 64), s.empty(64, np.uint32)], cooperative=True),
    Case("async_copy", "read before cp.async wait", 1, 32, lambda s: [ramp(s, 256)]),
    Case("async_stages", "read before cp.async wait", 1, 32, lambda s: [ramp(s, 512), s.empty(512), i32(4)]),
    Case("divergent_barrier", "divergent barrier", 1, 64, lambda s: [s.empty(64)]),
    Case("two_barriers", "divergent barrier", 1, 64, lambda s: [s.empty(66)], error=719),
    Case("named_barriers", "divergent barrier", 1, 128, lambda s: [s.empty(64)], error=719),
    Case("uneven_loop", "divergent warp instruction", 1, 32, lambda s: [s.empty(32, np.uint32), s.empty(32)]),
    Case("deadlock", "deadlock", 1, 32, lambda s: [s.empty(32)], error=702),
    Case("livelock", "livelock", 1, 32, lambda s: [s.put(np.zeros(1, np.uint32))], error=702),
    Case("vector_livelock", "livelock", 1, 128, lambda s: [s.put(np.ones(4, np.uint32))], error=702),
    Case("endless", "endless loop", 1, 1, lambda s: [s.empty(1, np.uint32), u32(7)], error=702),
    Case("traps", "trap", 1, 32, lambda s: [s.put(np.full(32, -1, np.float32))], error=719),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kernel)
def test_right_twin_is_silent(sim: Simulator, case: Case, seed: int) -> None:
    arguments = case.arguments(sim)
    with sim.watch(schedule_seed=seed, branch_limit=10_000_000):
        error = sim.launch(
            f"{case.kernel}_right",
            case.grid,
            case.block,
            *arguments,
            shared=case.shared,
            cooperative=case.cooperative,
        )
    assert error == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kernel)
def test_planted_bug_is_found(sim: Simulator, case: Case, seed: int) -> None:
    arguments = case.arguments(sim)
    with sim.watch(expect=case.kind, schedule_seed=seed, branch_limit=10_000_000) as report:
        error = sim.launch(
            f"{case.kernel}_wrong",
            case.grid,
            case.block,
            *arguments,
            shared=case.shared,
            cooperative=case.cooperative,
        )
    assert error == case.error
    (finding, *_) = [f for f in report.findings if f.kind == case.kind]
    assert finding.kernel == f"{case.kernel}_wrong"
    if case.kind != "endless loop":  # a branch is no site
        assert finding.source and finding.source_line > 0 and finding.ptx_line > 0


def test_torn_poll_gives_wrong_numbers(sim: Simulator) -> None:
    """No detector knows which words must have arrived; the sentinel shows in the result."""

    def run(twin: str, seed: int) -> np.ndarray:
        out = sim.empty(128)
        slots = sentinels(sim, 256 * 6)
        with sim.watch(schedule_seed=seed):
            assert sim.launch(f"exchange_{twin}", 2, 64, slots, out, i32(6), cooperative=True) == 0
        return out.get()

    h = np.zeros((2, 64), np.float32)
    for _ in range(6):
        sent = h + np.arange(64, dtype=np.float32) + 1
        sums = sent[::-1].reshape(2, 16, 4).sum(-1, dtype=np.float32)
        h = np.repeat(sums, 4, axis=1) * np.float32(0.01)
    for seed in SEEDS:
        np.testing.assert_allclose(run("right", seed), h.ravel(), rtol=1e-6)
    assert sum(not np.isfinite(run("wrong", seed)).all() for seed in SEEDS) >= 3


def test_store_buffer_shows_a_missing_fence(sim: Simulator) -> None:
    """It shows in the numbers, with the race checker off."""

    def is_right(twin: str, seed: int) -> bool:
        flag, data, out = (
            sim.put(np.zeros(1, np.uint32)),
            sim.put(np.zeros(16, np.float32)),
            sim.empty(16),
        )
        with sim.watch(schedule_seed=seed, races=0):
            assert sim.launch(f"reordered_{twin}", 2, 1, flag, data, out, cooperative=True) == 0
        return np.array_equal(out.get(), np.arange(16) + 1)

    right, wrong = ([is_right(twin, seed) for seed in range(20)] for twin in ("right", "wrong"))
    sim.set(races=1)
    assert all(right)
    assert not all(wrong)


def test_use_after_free(sim: Simulator) -> None:
    a, b = ramp(sim, 64), sim.empty(64)
    address = np.uint64(a.address)
    a.free()
    with sim.watch(expect="use after free"):
        assert sim.launch("copy", 1, 64, b, address, i32(64)) == 700


def test_uninitialised_argument(sim: Simulator) -> None:
    a, b = sim.empty(64), sim.empty(64)
    with sim.watch(expect="uninitialised read"):
        assert sim.launch("copy", 1, 64, b, a, i32(64)) == 0
    assert (b.get().view(np.uint8) == 0xCD).all()
    with sim.watch():
        assert sim.launch("copy", 1, 64, b, a.fill(0), i32(64)) == 0


def test_bytes_and_halves_of_a_word_are_no_race(sim: Simulator) -> None:
    a, b = sim.empty(256, np.uint8), sim.empty(256, np.uint16)
    with sim.watch():
        assert sim.launch("neighbours", 1, 256, a, b) == 0
    np.testing.assert_array_equal(a.get(), np.arange(256))
    np.testing.assert_array_equal(b.get(), np.arange(256))


def test_results_of_right_kernels(sim: Simulator) -> None:
    for seed in SEEDS:
        x = ramp(sim, 128)
        with sim.watch(schedule_seed=seed):
            assert sim.launch("overwritten_right", 1, 128, x, i32(5)) == 0
        np.testing.assert_array_equal(x.get(), (np.arange(128) + 5) % 128)
        y = sim.empty(512)
        with sim.watch(schedule_seed=seed):
            assert sim.launch("async_stages_right", 1, 32, ramp(sim, 512), y, i32(4)) == 0
        np.testing.assert_array_equal(
            y.get().reshape(4, 128), np.arange(512).reshape(4, 128)[:, ::-1]
        )


# --- residency


@pytest.fixture
def small_device(sim: Simulator) -> Iterator[int]:
    """Yields how many blocks of 1024 threads the device holds."""
    sim.set_device("sm_75")
    yield 40
    sim.set_device("sm_90")


def test_grid_that_needs_all_blocks_resident(sim: Simulator, small_device: int) -> None:
    with sim.watch() as report:
        assert sim.launch("all_resident", small_device, 1024, sim.put(np.zeros(1, np.uint32))) == 0
    assert report.launches[0].resident == small_device
    with sim.watch(expect="livelock") as report:
        assert (
            sim.launch("all_resident", small_device + 1, 1024, sim.put(np.zeros(1, np.uint32)))
            == 702
        )
    assert "not resident" in report.findings[0].text


def test_cooperative_launch_too_large(sim: Simulator, small_device: int) -> None:
    counter = sim.put(np.zeros(1, np.uint32))
    with sim.watch():
        assert sim.launch("all_resident", small_device + 1, 1024, counter, cooperative=True) == 720
        assert sim.launch("all_resident", small_device, 1024, counter, cooperative=True) == 0


def test_register_table_bounds_residency(sim: Simulator) -> None:
    sim.set_registers({"all_resident": 128})
    with sim.watch():
        assert (
            sim.launch(
                "all_resident", 132 * 2, 256, sim.put(np.zeros(1, np.uint32)), cooperative=True
            )
            == 0
        )
        assert (
            sim.launch(
                "all_resident", 132 * 2 + 1, 256, sim.put(np.zeros(1, np.uint32)), cooperative=True
            )
            == 720
        )
        assert sim.launch("all_resident", 1, 1024, sim.put(np.zeros(1, np.uint32))) == 701
    sim.set_registers({"all_resident": 32})


def test_watchdog(sim: Simulator) -> None:
    """With a clock that runs fast enough the kernel's own watchdog comes first."""
    with sim.watch(expect="trap", round_ns=10**9):
        assert sim.launch("watchdog", 1, 1, sim.put(np.zeros(1, np.uint32))) == 719
    sim.set(round_ns=100)


# --- counters


@pytest.mark.parametrize(
    ("stride", "conflicts"), [(1, 0), (2, 1), (3, 0), (4, 3), (32, 31), (33, 0)]
)
def test_bank_conflicts_and_sectors(sim: Simulator, stride: int, conflicts: int) -> None:
    x = ramp(sim, 64 * stride)
    with sim.watch() as report:
        assert sim.launch("strided", 1, 64, x, i32(stride), shared=256 * stride) == 0
    total = report.launches[0].total
    assert total["shared_requests"] == 4  # two warps have a store and a load each
    assert total["shared_conflicts"] == 4 * conflicts
    assert total["shared_wavefronts"] == 4 * (1 + conflicts)
    assert total["global_load_bytes"] == total["global_store_bytes"] == 64 * 4
    assert total["global_requests"] == 4
    sectors = len({(i * stride * 4) // 32 for i in range(64)})
    assert total["global_load_sectors"] == total["global_store_sectors"] == sectors
    assert total["barriers"] == 64


def test_wide_accesses_go_by_quarter_warps(sim: Simulator) -> None:
    x = ramp(sim, 256)
    with sim.watch() as report:
        assert sim.launch("wide", 1, 64, x, shared=1024) == 0
    total = report.launches[0].total
    assert total["shared_requests"] == 4
    assert total["shared_wavefronts"] == 16
    assert total["shared_conflicts"] == 0
    assert total["global_load_sectors"] == 32


def test_busiest_block(sim: Simulator) -> None:
    with sim.watch() as report:
        assert sim.launch("copy", 3, 64, sim.empty(100), ramp(sim, 100), i32(100)) == 0
    launch = report.launches[0]
    assert launch.total["global_loads"] == 100
    assert launch.busiest["global_loads"] == 64


# --- the runtime's stand-in


def test_host_code_runs_unchanged(sim: Simulator, host: ctypes.CDLL) -> None:
    a, b = ramp(sim, 1000), sim.empty(1000)
    with sim.watch() as report:
        assert host.host_copy(b, a, 1000) == 0
    np.testing.assert_array_equal(b.get(), np.arange(1000))
    assert report.launches[0].grid == (8, 1, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_grid_barrier(sim: Simulator, host: ctypes.CDLL, seed: int) -> None:
    x = ramp(sim, 256)
    with sim.watch(schedule_seed=seed):
        assert host.host_grid_barrier(x, 3, 4, 64) == 0
    np.testing.assert_array_equal(x.get(), (np.arange(256) + 3) % 256 + 3)


def test_occupancy_and_attributes(sim: Simulator, host: ctypes.CDLL) -> None:
    blocks, sms, shared = ctypes.c_int32(), ctypes.c_int32(), ctypes.c_size_t()

    def occupancy(threads: int, dynamic: int) -> int:
        error = host.host_occupancy(threads, dynamic, ctypes.byref(blocks))
        return blocks.value if error == 0 else -error

    table = {
        "sm_75": (40, 64),
        "sm_80": (108, 163),
        "sm_86": (82, 99),
        "sm_89": (128, 99),
        "sm_90": (132, 227),
    }
    for architecture, (count, kilobytes) in table.items():
        sim.set_device(architecture)
        assert host.host_properties(ctypes.byref(sms), ctypes.byref(shared)) == 0
        assert (sms.value, shared.value) == (count, kilobytes * 1024)
        assert host.host_attribute(16) == count  # 16 is cudaDevAttrMultiProcessorCount
        assert occupancy(256, kilobytes * 1024) == 1
        assert occupancy(256, kilobytes * 1024 + 1) == -1
    assert occupancy(1024, 0) == 2
    assert occupancy(32, 0) == 32
    assert occupancy(256, 100 * 1024) == 2


def test_copies_are_checked(sim: Simulator) -> None:
    a = ramp(sim, 10)
    with sim.watch(expect="out of bounds"), pytest.raises(RuntimeError, match="CUDA error 1"):
        sim.engine.fill(a.address, 0, 41)


# --- the stand-in of cuBLAS

HALF, BFLOAT16, FLOAT, DOUBLE = 2, 14, 0, 1
COMPUTE_32F, COMPUTE_PEDANTIC, COMPUTE_64F, COMPUTE_TF32 = 68, 69, 70, 77


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def encode(x: np.ndarray, kind: int) -> np.ndarray:
    if kind == BFLOAT16:
        return to_bfloat16(x)
    return x.astype({HALF: np.float16, FLOAT: np.float32, DOUBLE: np.float64}[kind])


def decode(x: np.ndarray, kind: int) -> np.ndarray:
    if kind == BFLOAT16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def round_tf32(x: np.ndarray) -> np.ndarray:
    return (
        ((x.astype(np.float32).view(np.uint32) + 0x1000) & 0xFFFFE000)
        .view(np.float32)
        .astype(np.float64)
    )


@pytest.fixture(scope="module")
def cublas(sim: Simulator) -> ctypes.CDLL:
    """The stand-in, found by its name as host code finds it."""
    return ctypes.CDLL("libcublas.so.13")


@pytest.fixture(scope="module")
def handle(cublas: ctypes.CDLL) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    assert cublas.cublasCreate_v2(ctypes.byref(handle)) == 0
    return handle


@pytest.mark.parametrize("ops", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize(
    ("kind", "out", "compute", "tolerance"),
    [
        (HALF, HALF, COMPUTE_32F, 1e-3),
        (HALF, FLOAT, COMPUTE_32F, 1e-6),
        (BFLOAT16, BFLOAT16, COMPUTE_32F, 8e-3),
        (BFLOAT16, FLOAT, COMPUTE_32F, 1e-6),
        (FLOAT, FLOAT, COMPUTE_32F, 1e-6),
        (FLOAT, FLOAT, COMPUTE_PEDANTIC, 1e-6),
        (FLOAT, FLOAT, COMPUTE_TF32, 1e-6),
        (DOUBLE, DOUBLE, COMPUTE_64F, 1e-14),
    ],
)
def test_gemm(
    sim: Simulator,
    cublas: ctypes.CDLL,
    handle: ctypes.c_void_p,
    ops: str,
    beta: float,
    kind: int,
    out: int,
    compute: int,
    tolerance: float,
) -> None:
    rng = np.random.default_rng(0)
    m, n, k, batch = 37, 21, 50, 2

    def operand(rows: int, columns: int, op: str) -> tuple[DeviceArray, np.ndarray, int]:
        shape = (rows, columns) if op == "N" else (columns, rows)
        ld = shape[0] + 3
        stored = encode(rng.standard_normal((batch, shape[1], ld)), kind)  # it is column-major
        value = decode(stored, kind)[:, :, : shape[0]].transpose(0, 2, 1)
        if compute == COMPUTE_TF32:
            value = round_tf32(value)
        return sim.put(stored), value if op == "N" else value.transpose(0, 2, 1), ld

    a, a_value, lda = operand(m, k, ops[0])
    b, b_value, ldb = operand(k, n, ops[1])
    ldc = m + 5
    before = encode(rng.standard_normal((batch, n, ldc)), out)
    c = sim.put(before) if beta else sim.empty((batch, n, ldc), before.dtype)
    scalar = ctypes.c_double if compute == COMPUTE_64F else ctypes.c_float
    code = {"N": 0, "T": 1}
    with sim.watch():
        status = cublas.cublasGemmStridedBatchedEx(
            handle, code[ops[0]], code[ops[1]], m, n, k, ctypes.byref(scalar(1.5)),
            a, kind, lda, ctypes.c_longlong(a.shape[1] * lda), b, kind, ldb, ctypes.c_longlong(b.shape[1] * ldb),
            ctypes.byref(scalar(beta)), c, out, ldc, ctypes.c_longlong(n * ldc), batch, compute, -1,
        )  # fmt: skip
    assert status == 0
    got = decode(c.get(), out)[:, :, :m].transpose(0, 2, 1)
    expected = 1.5 * a_value @ b_value + (
        beta * decode(before, out)[:, :, :m].transpose(0, 2, 1) if beta else 0
    )
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * 10)
    assert beta or not c.written  # the rows between m and ldc stay as they were


def sgemm(
    cublas: ctypes.CDLL,
    handle: ctypes.c_void_p,
    a: DeviceArray,
    b: DeviceArray,
    c: DeviceArray,
    n: int,
    ld: int,
) -> int:
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    return cublas.cublasSgemm_v2(
        handle, 0, 0, n, n, n, ctypes.byref(one), a, ld, b, ld, ctypes.byref(zero), c, ld
    )


def test_gemm_refuses_what_cublas_refuses(
    sim: Simulator, cublas: ctypes.CDLL, handle: ctypes.c_void_p
) -> None:
    a, b, c = ramp(sim, 256), ramp(sim, 256), sim.empty(256)
    with sim.watch():
        assert sgemm(cublas, handle, a, b, c, 16, 15) == 7
        assert sgemm(cublas, handle, a, b, c, 16, 16) == 0


def test_gemm_checks_its_operands(
    sim: Simulator, cublas: ctypes.CDLL, handle: ctypes.c_void_p
) -> None:
    a, b, c = ramp(sim, 256), sim.empty(256), sim.empty(255)
    with sim.watch(expect="uninitialised read"):
        sgemm(cublas, handle, a, b, sim.empty(256), 16, 16)
    with sim.watch(expect="out of bounds"):
        assert sgemm(cublas, handle, a, a, c, 16, 16) == 7
    square = ramp(sim, 256)
    for left, right in ((square, a), (a, square)):
        with sim.watch(expect="overlap"):
            assert sgemm(cublas, handle, left, right, square, 16, 16) == 7


def test_errors_of_use_raise(sim: Simulator) -> None:
    x = ramp(sim, 4)
    with pytest.raises(ValueError, match="no device of architecture sm_1"):
        sim.set_device("sm_1")
    with pytest.raises(ValueError, match="no setting seed"):
        sim.set(seed=1)
    with pytest.raises(KeyError, match=r"no kernel absent; there are .*copy"):
        sim.launch("absent", 1, 1)
    with pytest.raises(
        TypeError, match=r"copy takes parameters of \[8, 8, 4\] bytes, got \[8, 8, 8\]"
    ):
        sim.launch("copy", 1, 1, x, x, np.int64(4))
    with pytest.raises(TypeError, match="a numpy scalar such as"):
        sim.launch("copy", 1, 1, x, x, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the shape is \(5,\), expected \(4,\)"):
        x.put(np.zeros(5))


def test_a_real_runtime_in_the_process_is_refused() -> None:
    """Host code would find it first, and ask for a GPU."""
    real = toolchain.nvcc().parents[1] / "lib/libcudart.so.13"
    if not real.exists():
        pytest.skip(f"there is no {real}")
    program = (
        f"import ctypes; ctypes.CDLL({str(real)!r}, mode=ctypes.RTLD_GLOBAL)\n"
        "from simulator import simulator; simulator()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
    )
    assert "a real libcudart.so.13 is in this process already" in done.stderr


def test_findings_raise_with_a_readable_text(sim: Simulator) -> None:
    with (
        pytest.raises(
            SimulatorFinding,
            match=r"(?s)out of bounds.*byte 400 of a block of 400.*detectors\.cu:\d+",
        ),
        sim.watch(),
    ):
        sim.launch("bounds_wrong", 2, 64, sim.empty(100), i32(100))
