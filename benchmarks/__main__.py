"""Command line: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastrnn

from . import report
from .cases import DOUBLE, GATES, GPU_GROUPS, GROUPS, JVP, QUICK, Case, all_cases
from .limit import Limit
from .machine import cpu_in_use, keep_pages, memory_in_use
from .measure import FULL, Measurement, installed
from .measure import QUICK as QUICK_EFFORT
from .peers import OURSELVES, PEERS
from .rows import Row, Run

DTYPES = ("float32", "float64", "bfloat16", "float16")
GPU_DTYPES = ("float32", "bfloat16", "float16")  # of each case, on a GPU
QUICK_GPU_MINUTES = 5.0  # time on a GPU is often borrowed
# torch.nn's backward over a million steps takes minutes; time is linear by then.
LONGEST_TRAINING = 10_000


def sizes(text: str) -> tuple[int, int, int, int]:
    """T,N,I,H as four numbers."""
    try:
        T, N, I, H = (int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not T,N,I,H or a name of shapes") from None
    if min(T, N, I, H) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: sizes are at least 1")
    return T, N, I, H


def shapes(text: str) -> str | tuple[int, int, int, int]:
    return text if text in GROUPS else sizes(text)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Correctness and speed beside torch.nn and, where installed, other runtimes.",
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="short turns; without --shapes, three shapes a cell; of step, one sample and odd ones",
    )
    options.add_argument("--cells", nargs="+", choices=list(GATES), default=list(GATES))
    options.add_argument(
        "--shapes",
        nargs="+",
        type=shapes,
        metavar="NAME|T,N,I,H",
        help=f"{', '.join(GROUPS)}, or sizes; default: all names, {', '.join(GPU_GROUPS)} "
        "on a GPU alone",
    )
    options.add_argument(
        "--minutes",
        type=float,
        help="begin no row after so many; what is left out is told. Default: "
        f"{QUICK_GPU_MINUTES:g} with --quick on a GPU, else no limit",
    )
    options.add_argument("--dtype", choices=DTYPES, help="instead of each case's own")
    options.add_argument(
        "--peers",
        nargs="+",
        choices=[peer.name for peer in PEERS],
        default=[],
        metavar="PEER",
        help=f"{', '.join(repr(peer.name) for peer in PEERS)}; default: all that are installed",
    )
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument(
        "--output", type=Path, help="folder; default: build/benchmarks, of a GPU build/gpu"
    )
    return options


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    """The cases to measure, the most telling ones first."""
    cases = [case for case in all_cases() if case.cell in args.cells]
    if args.shapes:
        named = [case for case in cases if case.group in args.shapes]
        named = [case for case in named if case.is_quick or not args.quick]
        given = [shape for shape in args.shapes if not isinstance(shape, str)]
        cases = named + [Case("main", cell, *shape) for cell in args.cells for shape in given]
    else:
        published = [case for case in cases if case.group in GPU_GROUPS]
        cases = [case for case in cases if case.group not in GPU_GROUPS]
        if args.quick:
            cases = [c for c in cases if c.group == "main" and (c.T, c.N, c.I, c.H) in QUICK]
        if args.device == "cuda":
            cases = published + cases
    if args.device == "cuda":  # second derivatives and forward mode run on CPU only
        cases = [case for case in cases if case.transform not in (DOUBLE, JVP)]
    return list(dict.fromkeys(each for case in cases for each in in_dtypes(case, args)))


def in_dtypes(case: Case, args: argparse.Namespace) -> list[Case]:
    """A case in the type asked for; otherwise, on a GPU, in each type that is fast there."""
    if args.dtype:
        return [replace(case, dtype=args.dtype)]
    if args.device == "cpu" or case.group in GPU_GROUPS:
        return [case]
    # The scaling plot has one line for each cell, so these cases run in one type.
    dtypes = GPU_DTYPES[:1] if case.group in ("sweep", "long") else GPU_DTYPES
    return [replace(case, dtype=dtype) for dtype in dtypes]


def environment(args: argparse.Namespace, limit: Limit | None) -> dict[str, str]:
    packages = {peer.distribution: peer.version for peer in PEERS if peer.installed}
    versions = [f"{name} {version}" for name, version in packages.items()]
    versions = [f"Python {platform.python_version()}", f"fastrnn {fastrnn.__version__}", *versions]
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "CPU": cpu_in_use(args.threads),
        "memory": memory_in_use(),
        "versions": ", ".join(versions),
    }
    if args.device == "cuda":
        facts["GPU"] = torch.cuda.get_device_name()
    if limit:
        facts["limit"] = str(limit.check())
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    available = len(os.sched_getaffinity(0))
    if not 1 <= args.threads <= available:
        parser().error(f"--threads {args.threads}: this process may use 1 to {available}")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("fastrnn: --device cuda: torch finds no GPU", file=sys.stderr)
        return 2
    if args.minutes is None and args.quick and args.device == "cuda":
        args.minutes = QUICK_GPU_MINUTES
    deadline = time.monotonic() + 60 * args.minutes if args.minutes is not None else float("inf")
    args.output = args.output or Path("build/gpu" if args.device == "cuda" else "build/benchmarks")
    # The affinity also limits thread pools whose size cannot be set.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.set_num_threads(args.threads)

    console = Console(width=None if sys.stdout.isatty() else 200)
    peers, missing = installed(args.peers)
    if missing:
        console.print(f"not installed: {', '.join(missing)} (pip install '.[bench]')", markup=False)
    cases = chosen_cases(args)
    modes = [
        (case, training)
        for case in cases
        for training in case.modes
        if not training or case.T <= LONGEST_TRAINING
    ]
    limit = Limit() if args.device == "cpu" else None
    run = Run(
        environment(args, limit),
        [peer.name for peer in peers if not peer.weights],
        rounding=[peer.name for peer in (*OURSELVES, *peers) if peer.weights],
    )
    for name, value in run.environment.items():
        console.print(f"{name}: {value}", highlight=False)
    measurement = Measurement(
        peers, args.threads, args.device, QUICK_EFFORT if args.quick else FULL, limit
    )
    args.output.mkdir(parents=True, exist_ok=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=len(modes))
        for case, training in modes:
            bar.update(task, description=Row(case, training).label)
            if time.monotonic() >= deadline:
                run.left_out.append(Row(case, training).label)
                run.save(args.output / "results.json")
                continue
            try:
                run.rows.append(measurement.row(case, training))
            except Exception as error:  # ours: the other rows are measured all the same
                run.rows.append(Row(case, training, failed=f"{type(error).__name__}: {error}"))
                console.print_exception()
                console.print(f"[bold red]FAILED[/] {run.rows[-1].label}", highlight=False)
            run.save(args.output / "results.json")  # an interrupted run keeps what it measured
            bar.advance(task)
        bar.update(task, description="done")

    for table in report.terminal_tables(run):
        console.print(table)
    for absence in [*report.absences(run), *report.left_out(run)]:
        console.print("-", absence, markup=False, highlight=False)
    for goal in report.goals(run):
        verdict = "[green]met    [/]" if goal.met else "[red]not met[/]"
        console.print(f"{verdict} {goal.text}: {goal.found}", highlight=False)
    from .plots import draw

    pictures = draw(run, args.output)
    page = args.output / "report.md"
    report.write_part(page, report.markdown(run, [path.name for path in pictures]))
    console.print(
        f"wrote {', '.join(str(p) for p in [args.output / 'results.json', page, *pictures])}"
    )
    for row in run.failed:
        console.print(f"[bold red]FAILED[/] {row.label}: ", end="")
        console.print(row.failed, markup=False, highlight=False)
    return 1 if run.failed else 0


if __name__ == "__main__":
    keep_pages()
    sys.exit(main())
