"""Command line: ``python -m benchmarks.programs --help``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

import fastrnn
from benchmarks.machine import cpu_in_use

from . import report
from .catalog import ENTRIES
from .comparison import FULL, QUICK, Row, as_document, compare, goals


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.programs",
        description="Programs from public packages, before and after fastrnn.accelerate.",
    )
    options.add_argument("--quick", action="store_true", help="short turns")
    options.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="programs whose name or package contains one of these; all: "
        + ", ".join(entry.name for entry in ENTRIES),
    )
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--output", type=Path, default=Path("build/benchmarks/programs"))
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    available = len(os.sched_getaffinity(0))
    if not 1 <= args.threads <= available:
        parser().error(f"--threads {args.threads}: this process may use 1 to {available}")
    asked = [part.lower() for part in args.only or [""]]
    chosen = [
        entry
        for entry in ENTRIES
        if any(part in f"{entry.name} {entry.package}".lower() for part in asked)
    ]
    if not chosen:
        parser().error(f"--only {' '.join(args.only)}: no program has such a name")
    torch.set_num_threads(args.threads)
    environment = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "CPU": cpu_in_use(args.threads),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"fastrnn {fastrnn.__version__}",
    }
    args.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for entry in chosen:
        rows.append(compare(entry, QUICK if args.quick else FULL))
        print(" | ".join(report.cells(rows[-1])), flush=True)
        # An interrupted run keeps what it measured.
        document = json.dumps(as_document(rows, environment), indent=1)
        (args.output / "results.json").write_text(document + "\n")
    picture = report.draw(rows, args.output / "programs.png")
    page = args.output / "report.md"
    page.write_text(report.markdown(rows, environment, picture))
    for goal in goals(rows):
        print(f"{'met    ' if goal.met else 'not met'} {goal.text}: {goal.found}")
    print(f"wrote {page}")
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
