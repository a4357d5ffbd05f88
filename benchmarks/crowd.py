"""Several programs on the same cores: what they reach together, and how long their calls take.

python -m benchmarks.crowd [--processes N] [--threads N] [--seconds S] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

import fastrnn

from .cases import MODULES
from .machine import cpu_in_use

# Each is a cell, T, N, I, H. One sample of many steps waits most often, a batch least.
CASES = (("lstm", 512, 1, 64, 64), ("gru", 128, 32, 128, 128), ("rnn", 100, 1, 256, 256))
CONTESTANTS = {"fastrnn": fastrnn, "torch.nn": nn}


class Calls(NamedTuple):
    """What one process saw."""

    seconds: float
    times: list[float]  # of each call

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds


def call_for(
    contestant: str, case: tuple[Any, ...], threads: int, seconds: float, start: Any, results: Any
) -> None:
    """Call a layer again and again, once all processes are ready."""
    torch.set_num_threads(threads)
    cell, T, N, I, H = case
    layer, x = getattr(CONTESTANTS[contestant], MODULES[cell])(I, H), torch.randn(T, N, I)
    times = []
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        start.wait()
        begin = now = time.perf_counter()
        while now < begin + seconds:
            layer(x)
            before, now = now, time.perf_counter()
            times.append(now - before)
    results.put(Calls(now - begin, times))


def run_together(
    contestant: str, case: tuple[Any, ...], processes: int, threads: int, seconds: float
) -> list[Calls]:
    """What so many processes see that begin at once."""
    context = multiprocessing.get_context("forkserver")
    start, results = context.Barrier(processes), context.Queue()
    arguments = (contestant, case, threads, seconds, start, results)
    team = [context.Process(target=call_for, args=arguments) for _ in range(processes)]
    for process in team:
        process.start()
    seen = [results.get(timeout=60 + 20 * seconds) for _ in team]
    for process in team:
        process.join()
    return seen


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def compare(processes: int, threads: int, seconds: float) -> list[str]:
    lines = [
        f"| layer | T N I H | | calls a second, one process | {processes} processes together | "
        "ratio | median, ms | 99th percentile, ms | over the median |",
        "|-" * 9 + "|",
    ]
    for case in CASES:
        for contestant in CONTESTANTS:
            (alone,) = run_together(contestant, case, 1, threads, seconds)
            crowd = run_together(contestant, case, processes, threads, seconds)
            together = sum(calls.rate for calls in crowd)
            times = [t * 1e3 for calls in crowd for t in calls.times]
            middle, late = median(times), percentile(times, 0.99)
            sizes = " ".join(map(str, case[1:]))
            lines.append(
                f"| {case[0]} | {sizes} | {contestant} | {alone.rate:.0f} | {together:.0f} | "
                f"{together / alone.rate:.2f} | {middle:.2f} | {late:.2f} | {late / middle:.1f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crowd", description=__doc__.splitlines()[0]
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=cores, help="of each process")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    page = [
        "# Several programs on the same cores",
        "",
        f"{cpu_in_use(arguments.threads)} a process, {cores} cores, inference, torch "
        f"{torch.__version__}.",
        "",
        *compare(arguments.processes, arguments.threads, arguments.seconds),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    written = arguments.output / "crowd.md"
    written.write_text("\n".join(page) + "\n")
    print(f"wrote {written}")


if __name__ == "__main__":
    main()
