"""What a person reads: the table of the programs, the goals, and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import styled_pyplot
from benchmarks.report import markdown_table, number

from .comparison import MODES, SLOWEST, TRAINING, Row, goals, mean_ratio

MODE_COLORS = dict(zip(MODES, ("#d55e00", "#0072b2"), strict=True))
HEADER = [
    "program",
    "package",
    "replaced",
    "left",
    "outputs differ",
    "gradients differ",
    *(f"{mode}, ms" for mode in MODES),
    *(f"{mode} ×" for mode in MODES),
]


def cells(row: Row) -> list[str]:
    first = [row.name, f"{row.package} {row.version or ''}".rstrip()]
    if row.version is None:
        return [*first, "not installed", *[""] * (len(HEADER) - 3)]
    known = [
        ", ".join(f"{name or 'the model'}: {kind}" for name, kind in row.replaced.items()) or "-",
        ", ".join(name or "the model" for name in row.left) or "-",
        *(scientific(value) for value in (row.output_difference, row.gradient_difference)),
    ]
    if row.problem:
        ratios = [row.problem, *[""] * (2 * len(MODES) - 1)]
    else:
        ratios = [milliseconds(row, mode) for mode in MODES]
        ratios += [number(row.ratio(mode)) for mode in MODES]
    return [cell.replace("|", "\\|") for cell in first + known + ratios]


def scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def milliseconds(row: Row, mode: str) -> str:
    """The medians of torch.nn and of fastrnn."""
    return " → ".join(number(times.median * 1e3) for times in row.seconds[mode].values())


def markdown(rows: Sequence[Row], environment: dict[str, str], picture: Path | None) -> str:
    lines = ["# Programs before and after fastrnn.accelerate", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items()]
    lines += [
        "",
        "Times are medians, torch.nn → fastrnn; × is how many times faster the accelerated program "
        "is. Differences are the largest over the largest value; gradients of an accelerated "
        "layer by tensor.",
        "",
        "| | goal | found |",
        "|-|-|-|",
    ]
    lines += [
        f"| {'✓' if goal.met else '✗'} | {goal.text} | {goal.found} |" for goal in goals(rows)
    ]
    slower = [any((row.ratio(mode) or 1) < SLOWEST for mode in MODES) for row in rows]
    lines += ["", markdown_table(HEADER, [cells(row) for row in rows], slower), ""]
    if picture is not None:
        lines += [f"![]({picture.name})", ""]
    reasons = [(row, name, why) for row in rows for name, why in row.left.items()]
    if reasons:
        lines += ["Left as they were:", ""]
        lines += [f"- {row.name}, {name or 'the model'}: {why}" for row, name, why in reasons]
        lines += [""]
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> Path | None:
    """Bars of the ratios, a pair a program, or None where no program was timed."""
    timed = [row for row in rows if row.ratio(TRAINING) is not None]
    if not timed:
        return None
    with styled_pyplot() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.5, 1.2 + 0.42 * len(timed)), layout="constrained")
        for offset, mode in zip((-0.19, 0.19), MODES, strict=True):
            heights = [place + offset for place in range(len(timed))]
            ratios = [row.ratio(mode) for row in timed]
            mean = mean_ratio(timed, mode)
            label = mode if mean is None else f"{mode}, mean {mean:.2f}"
            bars = axes.barh(heights, ratios, height=0.36, color=MODE_COLORS[mode], label=label)
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
        axes.axvline(1, color="#555555", linewidth=1)
        axes.set_yticks(range(len(timed)), [row.name for row in timed])
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("times faster after fastrnn.accelerate")
        figure.legend(loc="outside upper center", ncols=len(MODES))
        figure.savefig(path, bbox_inches="tight")
        pyplot.close(figure)
    return path
