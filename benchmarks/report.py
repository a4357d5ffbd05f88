"""What a person reads: the tables, the goals, the Markdown page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import geometric_mean

from rich import box
from rich.table import Table

from .cases import FEW_STEPS, TRANSFORMS
from .rows import FROZEN, NOISE, OURS, STREAM, Row, Run

TITLES = {
    "main": "Every cell at seven shapes",
    "bfloat16": "bfloat16, beside our own float32",
    "lengths": "Variable length: uniform in T/4 .. T",
    "odd": "Odd sizes",
    "drawn": "Twelve shapes drawn at random",
    "step": "Few steps from a given state",
    "decoder": "A cell in a Python loop of 30 steps",
    "stacked": "Two layers; two directions",
    "transforms": "Transforms",
    "long": "Very long sequences",
    "sweep": "Against T, N and H",
    "published": "Shapes that others published times for",
}
ALL_STEPS = "fastrnn, all steps"
FLOAT32 = "fastrnn float32"
LARGE = 8192  # N * H from which on a row is held to a share of the limit


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    size = f"{value:.{digits}g}"
    return f"{float(size):.0f}" if abs(float(size)) >= 10 ** (digits - 1) else size


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def error(row: Row) -> str:
    ours = row.errors.get(OURS)
    theirs = next((e for name, e in row.errors.items() if name.startswith("torch.nn")), None)
    if ours is None:
        return "-"
    return f"{ours:.1e}" if theirs is None else f"{ours:.1e} / {theirs:.1e}"


def length_cost(row: Row) -> float | None:
    """Our time over the share of valid steps of our time without lengths."""
    if ALL_STEPS not in row.seconds:
        return None
    share = row.case.valid_steps / (row.case.T * row.case.N)
    return row.time() / (row.time(ALL_STEPS) * share)


def frozen_ratio(run: Run, row: Row) -> float | None:
    """How many times faster than the best peer our frozen module is."""
    best = row.best_peer(run.peers)
    return row.time(best) / row.time(FROZEN) if best and FROZEN in row.seconds else None


def measured(rows: list[Row], names: list[str]) -> list[str]:
    """Those of the contestants that some row has."""
    return [name for name in names if any(name in row.seconds for row in rows)]


def percent_errors(row: Row, names: list[str]) -> str:
    known = [row.errors.get(name) for name in names]
    return " / ".join("-" if value is None else f"{value:.2%}" for value in known)


def microseconds(row: Row, name: str) -> str:
    """Median, 99th percentile and largest time of a call."""
    if name not in row.seconds:
        return "-"
    times = row.seconds[name]
    values = (times.median, times.p99, times.largest)
    return " / ".join(number(None if value is None else value * 1e6) for value in values)


Column = tuple[str, Callable[[Row], str]]
SIZES: tuple[Column, ...] = (
    ("cell", lambda row: row.case.kind),
    ("T", lambda row: str(row.case.T)),
    ("N", lambda row: str(row.case.N)),
    ("I", lambda row: str(row.case.I)),
    ("H", lambda row: str(row.case.H)),
)
DTYPE: Column = ("dtype", lambda row: row.case.dtype)
MODE: Column = ("mode", lambda row: row.mode)


def columns(run: Run, rows: list[Row]) -> list[Column]:
    chosen: list[Column] = [*SIZES, DTYPE]
    extras = {row.label: variant(row) for row in rows}
    if any(extras.values()):
        chosen.append(("", lambda row: extras[row.label]))
    chosen += [
        MODE,
        ("ms", lambda row: number(row.time() * 1e3)),
        ("GFLOP/s", lambda row: number(row.rate / 1e9)),
        ("of limit", lambda row: percent(row.share)),
    ]
    for name in measured(rows, run.peers):
        chosen.append((f"× {name}", lambda row, name=name: number(row.ratio(name))))  # type: ignore[misc]
    if measured(rows, [FROZEN]):
        chosen.append(("frozen × best peer", lambda row: number(frozen_ratio(run, row))))
    if measured(rows, [FLOAT32]):
        chosen.append(("× our float32", lambda row: number(row.ratio(FLOAT32))))
    if measured(rows, [ALL_STEPS]):
        chosen.append(("cost / valid steps", lambda row: number(length_cost(row))))
    if any(row.extra_bytes for row in rows):
        chosen.append(("MB beyond in and out", memory))
    if any(row.errors for row in rows):
        chosen.append(("error / torch.nn's", error))
    return chosen


def single_calls(rows: list[Row], names: list[str]) -> list[Column]:
    """The times of these contestants' calls, of which the slowest matter, too."""
    optional = [DTYPE] * any(row.case.dtype != "float32" for row in rows)
    calls = [(name, partial(microseconds, name=name)) for name in measured(rows, names)]
    return [*SIZES, *optional, MODE, *calls]


def variant(row: Row) -> str:
    case = row.case
    stack = [
        f"{case.layers} layers" if case.layers > 1 else "",
        "2 directions" * case.bidirectional,
    ]
    return " ".join(filter(None, [*stack, case.lengths]))


def memory(row: Row) -> str:
    return " / ".join(
        number(row.extra_bytes[n] / 1e6) for n in (OURS, "torch.nn") if n in row.extra_bytes
    )


# Title, header, cells, and which rows lose to a peer.
Filled = tuple[str, list[str], list[list[str]], list[bool]]
CALLS = "µs each time, median / 99th percentile / largest"  # a loop of calls counts as one


def tables(run: Run) -> Iterable[Filled]:
    """The tables of every group that was measured."""
    for (group, title), transform in product(TITLES.items(), ("", *TRANSFORMS)):
        rows = [row for row in run.group(group) if row.case.transform == transform]
        if not rows:
            continue
        heading = f"{title}: {transform}" if transform else title
        yield filled(heading, columns(run, rows), rows, [lost(run, row) for row in rows])
        if group in FEW_STEPS:
            chosen = single_calls(rows, [OURS, FROZEN, STREAM, *run.peers])
            yield filled(f"{title}: {CALLS}", chosen, rows)
        if rounding := measured(rows, run.rounding):
            rounded = [row for row in rows if measured([row], rounding)]
            chosen = single_calls(rounded, [FROZEN, *rounding])
            chosen.append(("their errors", partial(percent_errors, names=rounding)))
            yield filled(f"{title}, weights in shorter types: {CALLS}", chosen, rounded)


def filled(
    title: str, chosen: list[Column], rows: list[Row], losses: list[bool] | None = None
) -> Filled:
    return (
        title,
        [name for name, _ in chosen],
        [[text(row) for _, text in chosen] for row in rows],
        losses or [False] * len(rows),
    )


def lost(run: Run, row: Row) -> bool:
    best = row.best_peer(run.peers)
    return best is not None and row.time() > row.time(best) * (1 + NOISE)


def terminal_tables(run: Run) -> Iterable[Table]:
    for title, header, cells, losses in tables(run):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in header:
            left = name in ("cell", "dtype", "mode", "")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for row, loss in zip(cells, losses, strict=True):
            table.add_row(*row, style="red" if loss else None)
        yield table


# --- goals ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    text: str
    found: str
    met: bool


def mean_ratio(run: Run, rows: list[Row], over: str) -> float | None:
    """Geometric mean of the ratio to a peer, or to each row's best one."""
    ratios = []
    for row in rows:
        name = row.best_peer(run.peers) if over == "the best peer" else over
        ratio = row.ratio(name) if name else None
        if ratio is not None:
            ratios.append(ratio)
    return geometric_mean(ratios) if ratios else None


def goals(run: Run) -> list[Goal]:
    """What the kernels should reach, where this run measured it."""
    reached: list[Goal] = []

    def at_least(text: str, value: float | None, goal: float, show: Callable[[float], str]) -> None:
        if value is not None:
            reached.append(Goal(f"{text}: at least {show(goal)}", show(value), value >= goal))

    def worst(
        text: str, rows: list[Row], value: Callable[[Row], float | None], goal: float
    ) -> None:
        """Every row below a goal is named."""
        known = [(v, row) for row in rows if (v := value(row)) is not None]
        if not known:
            return
        below = sorted((v, row.label) for v, row in known if v < goal)
        names = ", ".join(f"{label} {number(v, 2)}" for v, label in below)
        reached.append(
            Goal(
                f"{text}: at least {number(goal, 2)}",
                f"all {len(known)} rows"
                if not below
                else f"{len(below)} of {len(known)} below: {names}",
                not below,
            )
        )

    main = run.group("main")
    worst("over the best peer, every row", main, lambda row: best_ratio(run, row), 1 - NOISE)
    for cell, goal in (("rnn", 5.0), ("gru", 5.0), ("lstm", 1.5)):
        rows = [row for row in main if row.case.cell == cell]
        at_least(f"{cell} over torch.nn, mean", mean_ratio(run, rows, "torch.nn"), goal, number)
    for training, goal in ((False, 1.5), (True, 2.0)):
        rows = run.group("main", training=training)
        mode = "training" if training else "forward"
        at_least(
            f"{mode} over the best peer, mean", mean_ratio(run, rows, "the best peer"), goal, number
        )
    for training, goal in ((False, 0.85), (True, 0.80)):
        rows = [r for r in run.group("main", training=training) if r.case.N * r.case.H >= LARGE]
        mode = "training" if training else "forward"
        worst(f"{mode}, share of the limit where N·H >= {LARGE}", rows, lambda row: row.share, goal)
    worst("bfloat16 over our float32", run.group("bfloat16"), lambda row: row.ratio(FLOAT32), 1.6)
    worst(
        "variable length, share of valid steps over share of time",
        run.group("lengths"),
        lambda row: None if (cost := length_cost(row)) is None else 1 / cost,
        1 / 1.1,
    )
    for cell in ("rnn", "gru", "lstm"):
        rows = [row for row in run.group("long") if row.case.cell == cell]
        if len(rows) > 1:
            steps = [row.time() / row.case.T for row in rows]
            ratio = steps[0] / steps[-1]
            text = f"{cell}, time of a step at T {rows[0].case.T} over T {rows[-1].case.T}"
            at_least(text, ratio, 0.9, number)
    return reached


def best_ratio(run: Run, row: Row) -> float | None:
    best = row.best_peer(run.peers)
    return row.ratio(best) if best else None


def absences(run: Run) -> list[str]:
    """The peers that are absent from rows, and why."""
    missing: dict[tuple[str, str], list[Row]] = {}
    for row in run.measured:
        for name, why in row.absent.items():
            missing.setdefault((name, why), []).append(row)
    said = []
    for (name, why), rows in sorted(missing.items()):
        cells = ", ".join(dict.fromkeys(row.case.cell for row in rows))
        modes = ", ".join(dict.fromkeys(row.mode for row in rows))
        said.append(f"{name} ({cells}; {modes}): {why}")
    return said


def left_out(run: Run) -> list[str]:
    """One line of the rows that were left out for lack of time, if any."""
    return [f"left out for lack of time: {'; '.join(run.left_out)}"] if run.left_out else []


# --- Markdown -------------------------------------------------------------------------------------


def markdown_table(header: list[str], cells: list[list[str]], losses: list[bool]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "-|" * len(header)]
    for row, loss in zip(cells, losses, strict=True):
        lines.append(
            "| " + " | ".join([f"**{row[0]}** (slower)" if loss else row[0], *row[1:]]) + " |"
        )
    return "\n".join(lines)


def write_part(page: Path, part: str) -> None:
    """Put a part, which starts with a heading "# ...", in the place of an earlier one so headed.

    The tests on a GPU and the measurements there share a page.
    """
    heading = part.splitlines()[0]
    there = re.split(r"^(?=# )", page.read_text(), flags=re.MULTILINE) if page.exists() else []
    kept = [each for each in there if each.strip() and each.splitlines()[0] != heading]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(f"{each.rstrip()}\n" for each in [*kept, part]))


def markdown(run: Run, plots: list[str]) -> str:
    parts = ["# fastrnn beside its peers", ""]
    parts += [f"- {name}: {value}" for name, value in run.environment.items()]
    parts += ["", "Times are medians; × is how many times faster than a peer fastrnn is.", ""]
    if run.failed:
        parts += ["## Failed", ""]
        parts += [f"- {row.label}: {' '.join(row.failed.split())}" for row in run.failed] + [""]
    if reached := goals(run):
        parts += ["## Goals", "", "| | goal | found |", "|-|-|-|"]
        parts += [f"| {'✓' if g.met else '✗'} | {g.text} | {g.found} |" for g in reached] + [""]
    parts += [f"![]({name})\n" for name in plots]
    for title, header, cells, losses in tables(run):
        parts += [f"## {title}", "", markdown_table(header, cells, losses), ""]
    if missing := [*absences(run), *left_out(run)]:
        parts += ["## Not in a row", ""] + [f"- {each}" for each in missing] + [""]
    return "\n".join(parts)
