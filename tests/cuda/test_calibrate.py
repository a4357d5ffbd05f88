"""The exchanges of tools/gpu/calibrate.cu end on the simulator: with answers, and where one never comes.

Clocks mean nothing here; that no wait outlasts its patience does. Clusters are not simulated.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from simulator import ToolNotFoundError, toolchain

try:
    toolchain.require()
except ToolNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from simulator import Simulator, build_kernels, simulator

SOURCE = Path(__file__).resolve().parents[2] / "tools/gpu/calibrate.cu"
BLOCKS, LINE_WORDS = 6, 32
i32, i64 = np.int32, np.int64


# A lost block is waited for during 200 ms of %globaltimer. Rounds of 1 ms make them few, and the
# simulator must not call that wait a livelock before.
PATIENT = {"round_ns": 1_000_000, "idle_rounds": 100_000}
USUAL = {"round_ns": 100, "idle_rounds": 200}  # of machine.h


@pytest.fixture(scope="module")
def sim() -> Generator[Simulator, None, None]:
    sim = simulator()
    sim.set_device("sm_90")
    sim.load(build_kernels(SOURCE, flags=["-std=c++20"]))
    yield sim
    sim.set(**USUAL)


def kernel(sim: Simulator, name: str) -> str:
    """The PTX name, in which an unnamed namespace has a number."""
    (mangled,) = (each for each in sim.kernels() if f"{len(name)}{name}" in each)
    return mangled


def exchange(sim: Simulator, name: str, number: int, *, seed: int, blocks: int = BLOCKS) -> float:
    """Clocks of a round trip, 0 where an answer never came."""
    words = sim.put(np.zeros((BLOCKS + 1) * LINE_WORDS, np.uint32))
    clocks = sim.put(np.zeros(1, np.float64))
    with sim.watch(schedule_seed=seed, **PATIENT):
        arguments = words, i32(number), clocks
        sim.check(sim.launch(kernel(sim, name), blocks, 32, *arguments, cooperative=True))
    return float(clocks.get()[0])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("name", "number"), [("ping_pong", 1), ("ping_pong", BLOCKS - 1), ("broadcast", BLOCKS - 1)]
)
def test_every_answer_comes(sim: Simulator, name: str, number: int, seed: int) -> None:
    assert exchange(sim, name, number, seed=seed) > 0


@pytest.mark.parametrize("name", ["ping_pong", "broadcast"])
def test_a_lost_block_is_given_up(sim: Simulator, name: str) -> None:
    """Five blocks wait for a sixth, which does not exist."""
    assert exchange(sim, name, BLOCKS - 1, seed=0, blocks=BLOCKS - 1) == 0


def test_every_pass_reads_every_vector(sim: Simulator) -> None:
    vectors = 1000
    data, sink = sim.put(np.zeros((vectors, 4), np.uint32)), sim.put(np.zeros(1, np.uint32))
    for passes in (1, 3):
        with sim.watch(schedule_seed=0, traffic=1) as report:
            arguments = data, i64(vectors), i32(passes), sink
            sim.check(sim.launch(kernel(sim, "read_all"), 2, 64, *arguments))
        # A sector has 32 bytes, a vector 16.
        assert report.launches[0].total["global_load_sectors"] == passes * vectors / 2
