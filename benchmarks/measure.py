"""Measures the error against float64 and the time of a case, all contestants taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .cases import Case, Problem
from .limit import Limit
from .peers import FASTRNN, OURSELVES, PEERS, Contestant, Peer, Unsupported, reference
from .rows import Row, Times
from .transforms import Results


@dataclass(frozen=True)
class Effort:
    rounds: int  # turns that everybody gets
    turn: float  # seconds of timed calls in a turn
    most: float  # seconds for a row: rounds are given up beyond that, down to three


FULL = Effort(rounds=9, turn=0.05, most=60.0)
QUICK = Effort(rounds=3, turn=0.02, most=4.0)

# Thread pools spin for a while after a call, which would slow whoever is timed next on these cores.
PAUSE = 0.02


def relative_error(results: Results, expected: Results) -> float:
    """RMS error over RMS value, the mean square over the tensors that were computed."""
    squares = []
    for name, value in results.items():
        want = expected[name]  # may be on a GPU while the peer's value is on CPU
        error = (value.detach().double().cpu() - want.cpu()).square().mean()
        # Where all values are 0 only zeros are right: gradients of W_hh over one step from h_0 = 0.
        squares.append((error / want.square().mean()).item() if error != 0 else 0.0)
    return (sum(squares) / len(squares)) ** 0.5


def host_seconds(run: Callable[[], Any]) -> float:
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def gpu_seconds(run: Callable[[], Any]) -> float:
    """Seconds between two events on the stream, which include the host's time if it is slower."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def take_turns(
    runs: dict[str, Callable[[], Any]],
    rate: Callable[[], float] | None,
    effort: Effort,
    seconds_of: Callable[[Callable[[], Any]], float] = host_seconds,
) -> tuple[dict[str, list[float]], float | None]:
    """Seconds of every call, and the median of `rate`.

    Each turn is a pause, an untimed call, then timed ones.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rates: list[float] = []
    start = time.perf_counter()
    for turn in range(effort.rounds):
        if turn >= 3 and (time.perf_counter() - start) * (turn + 1) / turn > effort.most:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            run = runs[name]
            time.sleep(PAUSE)
            run()
            spent = 0.0
            while spent < effort.turn:
                seconds[name].append(seconds_of(run))
                spent += seconds[name][-1]
            if rate:
                rates.append(rate())
    return seconds, median(rates) if rates else None


def peak_beyond_results(contestant: Contestant) -> int | None:
    """Largest growth of resident memory during a call, less what it returns.

    None where the system does not tell.
    """

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    except OSError:
        return None
    result = contestant.run()
    growth = resident("VmHWM") - before
    returned = contestant.results(result)["output"]
    return max(0, growth - returned.nbytes)  # negative if free memory was reused


class Measurement:
    """Measures rows under the same settings."""

    def __init__(
        self, peers: Sequence[Peer], threads: int, device: str, effort: Effort, limit: Limit | None
    ) -> None:
        self.peers = peers
        self.threads = threads
        self.device = device
        self.effort = effort
        self.limit = limit

    def row(self, case: Case, training: bool) -> Row:
        """Measure a row. Raises what fastrnn raises, or AssertionError if its results are wrong."""
        # Gradients are off around all calls: to turn them off in each would take as long as a step.
        with torch.set_grad_enabled(training):
            return self._row(case, training)

    def _row(self, case: Case, training: bool) -> Row:
        row = Row(case, training)
        problem = Problem(case, self.device)
        contestants: dict[str, Contestant] = {}
        ourselves = [peer for peer in OURSELVES if peer.is_for(case)]
        everybody = [FASTRNN, *self.invited(case), *ourselves]
        expected = reference(problem, training) if case.group != "long" else None
        for peer in everybody:
            try:
                contestant = peer.make(problem, training, self.threads)
                if expected is not None and peer.same_problem:
                    results = contestant.results(contestant.run())
                    row.errors[peer.name] = relative_error(results, expected)
            except Unsupported as why:
                if peer not in OURSELVES:
                    row.absent[peer.name] = str(why)
                continue
            except Exception as error:  # other people's code: the report says why
                if peer.is_ours:
                    raise
                row.absent[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                continue
            if not row.errors.get(peer.name, 0) < peer.tolerance:
                if peer.is_ours:
                    raise AssertionError(
                        f"{row.label}: {peer.name}: error {row.errors[peer.name]:.2g}"
                    )
                row.absent[peer.name] = f"wrong result, error {row.errors.pop(peer.name):.2g}"
                continue
            contestants[peer.name] = contestant
        if case.group == "long" and self.device == "cpu":
            for name, contestant in contestants.items():
                contestant.run()
                peak = peak_beyond_results(contestant)
                if peak is not None:
                    row.extra_bytes[name] = peak
        runs = {name: contestant.run for name, contestant in contestants.items()}
        limit = self.limit
        rate = (lambda: limit.flop_rate(self.threads, case.dtype)) if limit else None
        seconds, row.limit = take_turns(
            runs, rate, self.effort, gpu_seconds if self.device == "cuda" else host_seconds
        )
        row.seconds = {name: Times.of(times) for name, times in seconds.items()}
        return row

    def invited(self, case: Case) -> list[Peer]:
        """The peers to measure. Long scans and sweeps have torch.nn alone, since others compile."""
        if case.group in ("sweep", "long"):
            return [peer for peer in self.peers if peer.name == "torch.nn"]
        return [peer for peer in self.peers if peer.is_for(case)]


def installed(names: Sequence[str]) -> tuple[list[Peer], list[str]]:
    """The chosen peers that are installed, and the names of those that are not."""
    chosen = [peer for peer in PEERS if not names or peer.name in names]
    return [p for p in chosen if p.installed], [p.name for p in chosen if not p.installed]
