"""Results of a training: histories, their comparison, JSON, pictures, tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrnn.training.errors import Field, blaming, require
from fastrnn.training.model import LAYERS, Config
from fastrnn.training.tasks import NEXT_STEP, REGRESSION, Task

SHOWN = 10  # names in a line
LOSS_TOLERANCE = 1e-6  # relative, in float64: far above round-off, far below a wrong formula
DISAGREEMENT = 1  # exit status


@dataclass
class History:
    """Measurements of a training, one value for each epoch."""

    loss: list[float] = field(default_factory=list)  # mean over the training samples
    # Measured after the epoch, on samples kept apart; RMSE where numbers are predicted.
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # training time, without evaluation
    validation_loss: list[float] = field(default_factory=list)  # empty if no samples are kept apart

    @property
    def epochs(self) -> int:
        return len(self.loss)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """fastrnn beside `torch.nn`."""

    speed_ratio: float  # torch.nn's training time over fastrnn's
    largest_loss_difference: float  # relative to the larger of the two losses
    must_agree: bool

    @property
    def disagrees(self) -> bool:
        agrees = self.largest_loss_difference <= LOSS_TOLERANCE  # False for NaN.
        return self.must_agree and not agrees


@dataclass(frozen=True)
class Result:
    """A finished training: a history for each implementation."""

    config: Config
    accuracy_name: str
    histories: dict[str, History]
    # Measured once at the end, if a validation part was kept apart; else empty.
    test: dict[str, float] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        return self.histories.keys() == LAYERS.keys()

    @property
    def comparison(self) -> Comparison:
        ours, theirs = (self.histories[name] for name in LAYERS)
        return Comparison(
            speed_ratio=theirs.total_seconds / ours.total_seconds,
            largest_loss_difference=largest_relative_difference(ours.loss, theirs.loss),
            must_agree=self.config.reproducible,
        )


def largest_relative_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """NaN if a value is not finite."""
    x, y = torch.tensor([a, b], dtype=torch.float64)
    scale = torch.maximum(x.abs(), y.abs()).clamp(min=sys.float_info.min)
    return float(((x - y).abs() / scale).max())


def summary(result: Result) -> str:
    comparison, where = result.comparison, hardware(result.config)
    times = ", ".join(f"{name} {h.total_seconds:.3f} s" for name, h in result.histories.items())
    return (
        f"Training time ({where}, after warm-up, without evaluation): {times}, "
        f"ratio {comparison.speed_ratio:.2f}\n"
        f"Largest loss difference: {comparison.largest_loss_difference:.1e} relative"
    )


def hardware(config: Config) -> str:
    threads = torch.get_num_threads()
    on_cpu = f"{threads} thread{'s' if threads > 1 else ''}"
    return on_cpu if config.device == "cpu" else config.device


def as_document(result: Result) -> dict[str, Any]:
    """The result in types that JSON has."""
    document: dict[str, Any] = {
        "config": asdict(result.config),
        "threads": torch.get_num_threads(),
        "accuracy": result.accuracy_name,
        "runs": {
            name: {**asdict(h), "final_accuracy": h.accuracy[-1], "total_seconds": h.total_seconds}
            for name, h in result.histories.items()
        },
    }
    if result.test:
        document["test"] = result.test
    if result.compared:
        comparison = result.comparison
        document["comparison"] = {**asdict(comparison), "disagrees": comparison.disagrees}
    finite: dict[str, Any] = without_nan(document)
    return finite


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- What is trained on -------------------------------------------------------------------------


def describe(config: Config, task: Task) -> str:
    """What is trained on and what is measured on what, before it starts."""
    parts = [task.train, *([task.test] if task.held_out else [])]
    parts += [] if task.validation is None else [task.validation]
    steps = torch.cat([part.step_counts for part in parts])
    lengths = sorted({int(steps.min()), int(steps.max())})
    lines = {
        "data": f"{config.data}: {len(steps)} sequences of {' to '.join(map(str, lengths))} steps",
        "features": f"{task.input_size}: {listed(task.features)}",
        "task": describe_task(task, torch.cat([part.labels for part in parts])),
        "trained": f"on {len(task.train)} sequences",
        "measured": describe_measure(task),
    }
    if task.scaling is not None:
        lines["features"] += "; standardised by mean and deviation of training sequences"
    return "\n".join(f"{name:<10}{line}" for name, line in lines.items())


def describe_task(task: Task, labels: Tensor) -> str:
    if task.kind == NEXT_STEP:
        return f"{task.kind}: there are no labels, so each step is predicted from those before it"
    if task.kind == REGRESSION:
        low, high = labels.min().item(), labels.max().item()
        return f"{task.kind} of labels from {low:g} to {high:g}"
    counts = labels.bincount(minlength=task.num_classes).tolist()
    classes = [f"{name} ({count})" for name, count in zip(task.classes, counts, strict=True)]
    return f"{task.kind}, {task.num_classes} classes: {listed(classes)}"


def describe_measure(task: Task) -> str:
    if task.validation is not None:
        end = f", at the end on {len(task.test)} others" if task.held_out else ""
        return f"on {len(task.validation)} others after each epoch{end}"
    if task.held_out:
        return f"on {len(task.test)} others"
    return "on the same sequences: it says nothing about others"


def listed(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    more = ["..."] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more])


# --- Plot ---------------------------------------------------------------------------------------

INK, PALE = "#22303c", "#d9dee3"
# The second line is thin and drawn over the first, so that both are visible if they agree.
LINES: dict[str, dict[str, Any]] = {
    "fastrnn": {"color": "#f0653a", "linewidth": 4},
    "torch.nn": {"color": INK, "linewidth": 1.3, "dashes": (4, 3)},
}
THEME: dict[str, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def plot(path: Path, results: Sequence[Result]) -> None:
    """A table with a row for each result: loss, accuracy, and times if both were trained."""
    matplotlib, figure = require("matplotlib"), require("matplotlib.figure")
    with matplotlib.rc_context(THEME):
        page = figure.Figure(figsize=(13, 4.3 * len(results)), layout="constrained")
        rows = page.subfigures(len(results), 1, squeeze=False)[:, 0]
        for row, result in zip(rows, results, strict=True):
            row.suptitle(headline(result.config), x=0.012, ha="left", fontsize=15, weight="bold")
            loss, accuracy, *times = row.subplots(1, 3 if result.compared else 2)
            plot_curves(loss, accuracy, result)
            if times:
                plot_times(times[0], result)
        with blaming(Field("plot", path)):
            page.savefig(path, dpi=150)  # Without pyplot Agg draws it, which needs no display.


def headline(config: Config) -> str:
    cell = config.cell.upper()
    return f"{config.data}: {cell}, {config.hidden_size} hidden units, {config.dtype}"


def plot_curves(loss: Any, accuracy: Any, result: Result) -> None:
    numbers = "RMSE" in result.accuracy_name
    scale, unit = (1, "") if numbers else (100, " %")
    for name, history in result.histories.items():
        epochs = range(1, history.epochs + 1)
        style = LINES[name] | ({"marker": "o"} if history.epochs == 1 else {})
        loss.plot(epochs, history.loss, label=name, **style)
        if history.validation_loss:
            label = f"{name}, validation"
            loss.plot(epochs, history.validation_loss, label=label, **style, alpha=0.45)
        accuracy.plot(epochs, [scale * value for value in history.accuracy], **style)
    histories = result.histories.values()
    values = [value for h in histories for value in (*h.loss, *h.validation_loss)]
    decades = min(values) > 0 and max(values) > 10 * min(values)
    loss.set(
        ylabel="Mean squared error" if numbers else "Cross-entropy (nats)",
        yscale="log" if decades else "linear",
    )
    validated = any(history.validation_loss for history in histories)
    loss.set_title("Training and validation loss" if validated else "Training loss")
    loss.legend(loc="upper right")
    accuracy.set(ylabel="Root of mean squared error" if numbers else "Classified correctly (%)")
    final = result.histories["fastrnn"].accuracy[-1]
    accuracy.set_title(f"{result.accuracy_name}: {scale * final:.{4 if numbers else 1}f}{unit}")
    for axes in (loss, accuracy):
        axes.set(xlabel="Epoch")
        axes.locator_params(axis="x", integer=True)
        axes.grid(visible=True)


def plot_times(axes: Any, result: Result) -> None:
    names = list(result.histories)
    seconds = [history.total_seconds for history in result.histories.values()]
    bars = axes.barh(names, seconds, height=0.4, color=[LINES[name]["color"] for name in names])
    axes.bar_label(bars, fmt="%.2f s", padding=6)
    axes.set_title(f"Training time: {result.comparison.speed_ratio:.1f} times as fast")
    axes.set_xlabel(f"Seconds on {hardware(result.config)}")
    axes.invert_yaxis()
    axes.margins(x=0.18, y=0.25)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def table(results: Iterable[Result]) -> str:
    """The closing table of the demo."""
    row = "{:<16} {:<5} {:<8} {:>6}  {:>8} {:>8}  {:>8} {:>8}  {:>5}  {:>12}".format
    lines = [
        row("", "", "", "", "accuracy", "", "seconds", "", "speed", "largest loss"),
        row("task", "cell", "dtype", "epochs", *LAYERS, *LAYERS, "ratio", "difference"),
    ]
    for result in results:
        config, comparison = result.config, result.comparison
        histories = [result.histories[name] for name in LAYERS]
        task = (config.data, config.cell, config.dtype, config.epochs)
        accuracy = [f"{history.accuracy[-1]:.4f}" for history in histories]
        seconds = [f"{history.total_seconds:.3f}" for history in histories]
        ratio = f"{comparison.speed_ratio:.2f}"
        difference = f"{comparison.largest_loss_difference:.1e}"
        lines.append(row(*task, *accuracy, *seconds, ratio, difference))
    return "\n".join(lines)


def exit_status(results: Iterable[Result]) -> int:
    """The exit status: a failure if losses differ where only round-off may differ."""
    status = 0
    for result in results:
        if result.compared and result.comparison.disagrees:
            difference = result.comparison.largest_loss_difference
            print(
                f"{result.config.data}: the losses of fastrnn and torch.nn differ by a relative "
                f"{difference:.1e}, more than {LOSS_TOLERANCE:.0e}",
                file=sys.stderr,
            )
            status = DISAGREEMENT
    return status
