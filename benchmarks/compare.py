"""What got faster or slower between two runs: ``python benchmarks/compare.py A.json B.json``.

Runs may come from times when the machine was not equally free: times are scaled by the FMA limit
that each row measured beside them, or by a peer's time in the row, which the same moments slowed
down and whose products wait for memory, too. A row changed when its ratio leaves the noise of both
runs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from rich.console import Console
from rich.table import Table

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rows import NOISE, OURS, Row, Run


@dataclass(frozen=True)
class Change:
    before: Row
    after: Row
    peer: str | None = None  # by whose times they are scaled, instead of the limit

    @property
    def ratio(self) -> float:
        """How many times faster the second run is, each against its own limit or peer."""
        scale = 1.0
        if self.peer:
            scale = self.after.time(self.peer) / self.before.time(self.peer)
        elif self.before.limit and self.after.limit:
            scale = self.before.limit / self.after.limit
        return self.before.time() / self.after.time() * scale

    @property
    def noise(self) -> float:
        names = (OURS, self.peer) if self.peer else (OURS,)
        spreads = [row.spread(name) for row in (self.before, self.after) for name in names]
        return max(NOISE, sum(spreads))

    @property
    def verdict(self) -> str:
        if self.ratio > 1 + self.noise:
            return "faster"
        return "slower" if self.ratio < 1 / (1 + self.noise) else ""


def changes(a: Run, b: Run, peer: str | None = None) -> list[Change]:
    """The changes of rows that both runs have, with that peer if one is named, the largest gain
    first."""
    before, after = (
        {row.label: row for row in run.measured if peer is None or peer in row.seconds}
        for run in (a, b)
    )
    shared = [Change(row, after[label], peer) for label, row in before.items() if label in after]
    return sorted(shared, key=lambda change: -change.ratio)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    parser.add_argument("--beside", metavar="PEER", help="scale by its times, not by the limit")
    args = parser.parse_args(argv)
    try:
        a, b = Run.load(args.a), Run.load(args.b)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    shared = changes(a, b, args.beside)
    if not shared:
        beside = f" with {args.beside}" if args.beside else ""
        parser.error(f"the runs have no row in common{beside}")
    table = Table(title=f"{args.a} -> {args.b}")
    for name in ("row", "ms before", "ms after", "speed", "noise", ""):
        table.add_column(name, justify="left" if name in ("row", "") else "right")
    for change in shared:
        table.add_row(
            change.before.label,
            f"{change.before.time() * 1e3:.3g}",
            f"{change.after.time() * 1e3:.3g}",
            f"{change.ratio:.2f}",
            f"{change.noise:.0%}",
            change.verdict,
            style={"faster": "green", "slower": "red", "": None}[change.verdict],
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    faster = sum(change.verdict == "faster" for change in shared)
    slower = sum(change.verdict == "slower" for change in shared)
    console.print(
        f"{faster} faster, {slower} slower, {len(shared) - faster - slower} within noise; "
        f"mean speed {geometric_mean(change.ratio for change in shared):.3f}"
    )
    only = {row.label for row in a.rows} ^ {row.label for row in b.rows}
    if only:
        console.print(f"{len(only)} rows are in one run only")
    for name, run in ((args.a, a), (args.b, b)):
        for row in run.failed:
            console.print(f"failed in {name}: {row.label}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
