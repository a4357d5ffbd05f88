"""The machine's limit: multiply-adds a second, measured by a loop that does nothing else."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from .native import compiled

SOURCE = Path(__file__).with_name("limit.cpp")
REACHED = 0.95  # share of clock times width below which the loop is not the limit


@dataclass(frozen=True)
class Check:
    """How much of clock times vector width the loop reaches on one core."""

    clock: float  # Hz
    lanes: int  # floats of a vector
    per_cycle: float  # vectors multiplied and added a cycle

    @property
    def pipes(self) -> int:
        """Multiply-add pipes of the vector's width, from the loop's vectors per cycle."""
        return max(1, round(self.per_cycle))

    @property
    def share(self) -> float:
        return self.per_cycle / self.pipes

    @property
    def ok(self) -> bool:
        return self.share >= REACHED

    def __str__(self) -> str:
        text = (
            f"FMA loop: {self.per_cycle:.2f} vectors of {self.lanes} floats a cycle at "
            f"{self.clock / 1e9:.2f} GHz, {self.share:.0%} of {self.pipes}"
        )
        return text if self.ok else f"{text}: below {REACHED:.0%}, shares of the limit are too high"


class Limit:
    """The loop, compiled for this machine."""

    def __init__(self) -> None:
        self._library = compiled(SOURCE)
        self._library.flop_rate.restype = ctypes.c_double
        self._library.flop_rate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
        self._library.vectors_per_cycle.restype = ctypes.c_double

    def flop_rate(self, threads: int, dtype: str, rounds: int = 2_000_000) -> float:
        """FLOP a second. Half types are measured against float32, which they are computed in."""
        return self._library.flop_rate(threads, 8 if dtype == "float64" else 4, rounds)

    def check(self) -> Check:
        clock = ctypes.c_double()
        per_cycle = self._library.vectors_per_cycle(ctypes.byref(clock))
        return Check(clock.value, self._library.vector_bytes() // 4, per_cycle)
