"""Measured rows, and a run of them as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from .cases import Case

OURS = "fastrnn"
FROZEN = "fastrnn frozen"  # our module with its weights packed once
STREAM = "fastrnn stream"  # the same with its state and buffers, called by ctypes
NOISE = 0.03  # two times closer than this are the same


@dataclass(frozen=True)
class Times:
    """A summary of the times of single calls, in seconds."""

    median: float
    low: float  # quartiles
    high: float
    count: int
    p99: float | None = None  # 99th percentile; of less than 100 calls it lies near the largest
    largest: float | None = None  # None in older runs, as is p99

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        several = list(seconds) * (2 if len(seconds) == 1 else 1)  # quantiles wants two
        low, middle, high = quantiles(several, n=4)
        # The other method may put the percentile of few times beyond the largest of them.
        p99 = quantiles(several, n=100, method="inclusive")[-1]
        return cls(middle, low, high, len(seconds), p99, max(seconds))

    @classmethod
    def load(cls, kept: Any) -> Times:
        """Load from JSON, also from older runs, which kept every single time."""
        return cls.of(kept) if isinstance(kept, list) else cls(**kept)


@dataclass
class Row:
    """One case, forward or training, timed for everybody in the same minutes."""

    case: Case
    training: bool
    limit: float | None = None  # FLOP a second of the FMA loop, timed between the turns
    seconds: dict[str, Times] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # RMS against float64, relative
    absent: dict[str, str] = field(default_factory=dict)  # why a peer is not in this row
    extra_bytes: dict[str, int] = field(default_factory=dict)  # peak beyond input and output
    failed: str = ""  # our own error; nothing was timed then

    @property
    def mode(self) -> str:
        return self.case.transform or ("training" if self.training else "forward")

    @property
    def label(self) -> str:
        return self.case.label if self.case.transform else f"{self.case.label} {self.mode}"

    @property
    def flop(self) -> int:
        return self.case.flop(self.training)

    def time(self, name: str = OURS) -> float:
        return self.seconds[name].median

    def spread(self, name: str = OURS) -> float:
        """Half the distance between the quartiles over the median."""
        times = self.seconds[name]
        return (times.high - times.low) / 2 / times.median

    @property
    def rate(self) -> float:
        return self.flop / self.time()

    @property
    def share(self) -> float | None:
        """The rate as a share of the limit."""
        return None if self.limit is None else self.rate / self.limit

    def ratio(self, name: str) -> float | None:
        """How many times faster than a peer we are."""
        return self.time(name) / self.time() if name in self.seconds else None

    def best_peer(self, peers: list[str]) -> str | None:
        return min((name for name in peers if name in self.seconds), key=self.time, default=None)


@dataclass
class Run:
    environment: dict[str, str]
    peers: list[str]  # other people's that round no weights, in the order of the columns
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # labels of rows that time did not allow
    rounding: list[str] = field(default_factory=list)  # ours and others' with weights rounded

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if not row.failed]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.failed]

    def group(self, *names: str, training: bool | None = None) -> list[Row]:
        """The measured rows of these groups."""
        return [
            row
            for row in self.measured
            if row.case.group in names and training in (None, row.training)
        ]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Load a run; raises ValueError if the file is no run of these benchmarks."""
        try:
            document = json.loads(path.read_text())
            rows = []
            for row in document["rows"]:
                seconds = {name: Times.load(kept) for name, kept in row["seconds"].items()}
                rows.append(Row(**{**row, "case": Case(**row["case"]), "seconds": seconds}))
            later = [document.get(name, []) for name in ("left_out", "rounding")]
            return cls(document["environment"], document["peers"], rows, *later)
        except (json.JSONDecodeError, AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no run of these benchmarks: {error!r}") from error
