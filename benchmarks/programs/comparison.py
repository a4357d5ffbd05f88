"""A program before and after fastrnn.accelerate: the differences, and times taken in turns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Effort, take_turns
from benchmarks.report import Goal
from benchmarks.rows import OURS, Times

from .program import Entry, Program, gradients, seed, tensors, without_layers_dropout

BEFORE = "torch.nn"
TRAINING, INFERENCE = "training", "inference"
MODES = (TRAINING, INFERENCE)

SLOWEST = 0.97  # of torch.nn's speed, what no program may fall below
FASTER = 1.6  # the mean in training, where something was replaced

FULL = Effort(rounds=15, turn=0.2, most=60.0)
QUICK = Effort(rounds=7, turn=0.1, most=10.0)


class WrongResult(Exception):
    """An accelerated program's outputs or gradients are not those of the program before."""


@dataclass
class Row:
    """One program. Without a version its package is not installed; with a problem it failed."""

    name: str
    package: str
    version: str | None = None
    replaced: dict[str, str] = field(default_factory=dict)  # as in fastrnn.Report
    left: dict[str, str] = field(default_factory=dict)
    output_difference: float | None = None  # largest, over the largest value
    gradient_difference: float | None = None
    seconds: dict[str, dict[str, Times]] = field(
        default_factory=dict
    )  # by mode, then by contestant
    problem: str = ""

    @property
    def works(self) -> bool:
        return self.version is not None and not self.problem

    def ratio(self, mode: str) -> float | None:
        """How many times faster the accelerated program is, or None if it was not timed."""
        times = self.seconds.get(mode)
        return times[BEFORE].median / times[OURS].median if times else None


def difference(results: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference over the largest expected value, over all tensors.

    Raises:
        WrongResult: there are none, or they have other names or shapes, or are not finite.
    """
    if not expected:
        raise WrongResult("nothing to compare")
    if results.keys() != expected.keys():
        raise WrongResult(f"only one of the two has {sorted(results.keys() ^ expected.keys())}")
    for name, want in expected.items():
        got = results[name]
        if got.shape != want.shape:
            raise WrongResult(f"{name} has shape {tuple(got.shape)}, before {tuple(want.shape)}")
        for who, tensor in ((BEFORE, want), (OURS, got)):
            if not tensor.isfinite().all():
                raise WrongResult(f"{name} of {who} is not finite")
    worst = max((results[name] - want).abs().max().item() for name, want in expected.items())
    largest = max(want.abs().max().item() for want in expected.values())
    if largest == 0:
        raise WrongResult("all values are 0, which tells nothing")
    return worst / largest


def gradient_difference(
    results: dict[str, Tensor], expected: dict[str, Tensor], replaced: Collection[str]
) -> float:
    """The difference over all gradients, and of each one of the replaced layers by itself.

    A policy's recurrent weights may have a millionth of the largest gradient, which would hide any
    error. Other layers' may be rounding alone, as a bias's before a normalization is.
    """
    found = [difference(results, expected)]
    for name, want in expected.items():
        layer, _, _ = name.rpartition(".")
        if layer in replaced and want.any():
            found.append(difference({name: results[name]}, {name: want}))
    return max(found)


def compare(entry: Entry, effort: Effort) -> Row:
    """Measure a program; what goes wrong in it is the row's problem."""
    row = Row(entry.name, entry.package, entry.version)
    if row.version is None:
        return row
    try:
        before, after = entry.program(), entry.program()
        report = after.accelerate_in_place()
        row.replaced, row.left = report.replaced, report.left
        row.output_difference = difference(outputs_of(after), outputs_of(before))
        require("outputs", row.output_difference, entry.tolerance)
        row.gradient_difference = gradient_difference(
            gradients_of(after), gradients_of(before), row.replaced
        )
        require("gradients", row.gradient_difference, entry.tolerance)
        for mode in MODES:
            row.seconds[mode] = timed({BEFORE: before, OURS: after}, mode, effort)
    except Exception as error:  # other people's code: the other programs are measured all the same
        row.problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return row


def require(what: str, found: float, tolerance: float) -> None:
    """Raises WrongResult if results differ by more than rounding."""
    if found > tolerance:
        raise WrongResult(f"{what} differ by {found:.2g} of the largest")


def outputs_of(program: Program) -> dict[str, Tensor]:
    seed()
    program.model.eval()
    with torch.no_grad():
        return tensors(program.infer())


def gradients_of(program: Program) -> dict[str, Tensor]:
    """The gradients that a step of training leaves."""
    seed()
    program.model.train()
    with without_layers_dropout(program.model):
        program.train_step()
    return gradients(program.model)


def timed(programs: dict[str, Program], mode: str, effort: Effort) -> dict[str, Times]:
    for program in programs.values():
        program.model.train(mode == TRAINING)
    runs = {
        who: program.train_step if mode == TRAINING else program.infer
        for who, program in programs.items()
    }
    with torch.set_grad_enabled(mode == TRAINING):
        seconds, _ = take_turns(runs, None, effort)
    return {who: Times.of(times) for who, times in seconds.items()}


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What accelerate should reach over the programs that are installed."""
    installed = [row for row in rows if row.version is not None]
    works = sum(row.works for row in installed)
    reached = [
        Goal(
            "every program works after accelerate",
            f"{works} of {len(installed)}",
            works == len(installed),
        )
    ]
    ratios = {
        f"{row.name}, {mode}": ratio
        for row in installed
        for mode in MODES
        if (ratio := row.ratio(mode)) is not None
    }
    if ratios:
        slowest = min(ratios, key=lambda name: ratios[name])
        reached.append(
            Goal(
                f"none slower than {SLOWEST} of torch.nn",
                f"{ratios[slowest]:.2f} ({slowest})",
                ratios[slowest] >= SLOWEST,
            )
        )
    mean = mean_ratio(rows, TRAINING)
    if mean is not None:
        reached.append(
            Goal(
                f"training where something was replaced, geometric mean: at least {FASTER}",
                f"{mean:.2f}",
                mean >= FASTER,
            )
        )
    return reached


def mean_ratio(rows: Sequence[Row], mode: str) -> float | None:
    """The geometric mean over the programs in which something was replaced."""
    ratios = [ratio for row in rows if row.replaced and (ratio := row.ratio(mode)) is not None]
    return geometric_mean(ratios) if ratios else None


def as_document(rows: Sequence[Row], environment: dict[str, str]) -> dict[str, Any]:
    """What the JSON file holds."""
    return {"environment": environment, "rows": [asdict(row) for row in rows]}
