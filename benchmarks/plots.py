"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cases import GATES, TRANSFORMS
from .report import lost, measured
from .rows import FROZEN, OURS, STREAM, Row, Run

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
CELL_COLORS = {"rnn": "#0072b2", "gru": "#009e73", "lstm": "#d55e00"}
PEER_STYLES = {
    "torch.nn": ("o", "#000000"),
    "torch.nn, a loop over samples": ("P", "#000000"),
    "torch.nn without oneDNN": ("v", "#000000"),
    "Opacus": ("X", "#0072b2"),
    "ONNX Runtime": ("s", "#e69f00"),
    "OpenVINO": ("^", "#56b4e9"),
    "JAX": ("D", "#cc79a7"),
    "RTNeural": ("*", "#999999"),
}
OUR_STYLES = {OURS: ("o", "#d55e00"), FROZEN: ("D", "#009e73"), STREAM: ("v", "#0072b2")}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
MODES = ((False, "forward"), (True, "forward + backward"))


@contextmanager
def styled_pyplot() -> Iterator[Any]:
    """pyplot, which draws to files alone and in one style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e5e5",
        "axes.axisbelow": True,
        "font.size": 9,
        "legend.frameon": False,
        "savefig.dpi": 150,
    }
    with pyplot.rc_context(style):
        yield pyplot


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw the pictures that this run has rows for, and return their paths."""
    paths = []
    with styled_pyplot() as pyplot:
        for make in (speedup, transforms, limit, scaling, step):
            name, figure = make.__name__, make(run, pyplot)
            if figure is not None:
                paths.append(folder / f"{name}.png")
                figure.savefig(paths[-1], bbox_inches="tight")
                pyplot.close(figure)
    return paths


def shape_label(row: Row) -> str:
    case = row.case
    return f"T{case.T} N{case.N} I{case.I} H{case.H}"


Place = tuple[str, str]  # cell and shape


def place(row: Row) -> Place:
    return row.case.cell, shape_label(row)


def places(rows: list[Row]) -> dict[Place, float]:
    """The height of chosen_place place on an axis: a gap between cells, the first one on top."""
    heights: dict[Place, float] = {}
    height = 0.0
    for cell in GATES:
        chosen = dict.fromkeys(place(row) for row in rows if row.case.cell == cell)
        for chosen_place in chosen:
            heights[chosen_place] = height
            height -= 1
        height -= 0.8 * bool(chosen)
    return heights


def height(placed: dict[Place, float]) -> float:
    """The height in inches of a figure with a line for each place."""
    return 2 + 0.28 * len(placed)


def label_rows(axes: Any, placed: dict[Place, float]) -> None:
    axes.set_yticks(list(placed.values()), [shape for _, shape in placed])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(min(placed.values()) - 0.7, max(placed.values()) + 1.1)
    for cell, color in CELL_COLORS.items():
        heights = [y for (of, _), y in placed.items() if of == cell]
        if heights:
            axes.annotate(
                cell.upper(),
                (0, max(heights) + 0.62),
                xycoords=axes.get_yaxis_transform(),
                color=color,
                weight="bold",
                va="center",
                fontsize=9,
            )


def speedup(run: Run, pyplot: Any) -> Any:
    """How many times faster than each peer, a line a shape."""
    panels = [(title, run.group("main", training=training)) for training, title in MODES]
    return ratios(run, pyplot, panels)


def transforms(run: Run, pyplot: Any) -> Any:
    """How many times faster than each peer, for each transform."""
    rows = run.group("transforms")
    panels = [(name, [row for row in rows if row.case.transform == name]) for name in TRANSFORMS]
    return ratios(run, pyplot, panels)


def ratios(run: Run, pyplot: Any, titled: list[tuple[str, list[Row]]]) -> Any:
    """A panel for each title that has rows, a line a shape."""
    titled = [(title, rows) for title, rows in titled if rows]
    if not titled or not run.peers:
        return None
    placed = places([row for _, rows in titled for row in rows])
    figure, panels = pyplot.subplots(
        1,
        len(titled),
        figsize=(1 + 4.5 * len(titled), height(placed)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, rows) in zip(panels[0], titled, strict=True):
        axes.axvline(1, color="#999999", linewidth=1)
        for row in rows:
            y = placed[place(row)]
            known = [ratio for name in run.peers if (ratio := row.ratio(name)) is not None]
            color = "#cc0000" if lost(run, row) else "#bbbbbb"
            if known:
                axes.plot([1, max(known)], [y, y], color="#dddddd", linewidth=2, zorder=1)
                axes.plot([min(known)], [y], marker="|", markersize=12, color=color, zorder=1)
        for name in run.peers:
            marker, color = PEER_STYLES.get(name, ("x", "#666666"))
            points = [(row.ratio(name), placed[place(row)]) for row in rows if name in row.seconds]
            if points:
                axes.scatter(
                    *zip(*points, strict=True),
                    marker=marker,
                    s=26,
                    color=color,
                    label=name,
                    zorder=2,
                )
        axes.set_xscale("log")
        shown = [0.5, 20, *(r for row in rows for name in run.peers if (r := row.ratio(name)))]
        ticks = [tick for tick in TICKS if min(shown) <= tick <= max(shown)]
        axes.set_xticks(ticks, ["½" if tick == 0.5 else str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", visible=False)
        axes.set_title(title, weight="bold")
        axes.set_xlabel("times faster than")
        label_rows(axes, placed)
    handles = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def limit(run: Run, pyplot: Any) -> Any:
    """Share of the machine's multiply-add limit."""
    rows = [row for row in run.group("main") if row.share is not None]
    if not rows:
        return None
    placed = places(rows)
    figure, axes = pyplot.subplots(figsize=(7.5, height(placed)), layout="constrained")
    for row in rows:
        y = placed[place(row)] + (-0.2 if row.training else 0.2)
        alpha = 0.45 if row.training else 1
        axes.barh(y, row.share, height=0.38, color=CELL_COLORS[row.case.cell], alpha=alpha)
    axes.barh(0, 0, color="#555555", label="forward")
    axes.barh(0, 0, color="#555555", alpha=0.45, label="forward + backward")
    axes.set_xlim(0, 1)
    axes.set_xticks([i / 10 for i in range(0, 11, 2)], [f"{i * 10}%" for i in range(0, 11, 2)])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("of the FMA limit measured in the same run")
    label_rows(axes, placed)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.06), ncols=2)
    return figure


def scaling(run: Run, pyplot: Any) -> Any:
    """Time against T, N and H, beside torch.nn."""
    rows = run.group("sweep")
    if not rows:
        return None
    figure, panels = pyplot.subplots(2, 3, figsize=(11, 6.5), sharey="row", layout="constrained")
    sweeps = (
        ("T", "time steps T (N 32, I = H = 128)", {"N": 32, "I": 128, "H": 128}),
        ("N", "samples N (T 64, I = H = 128)", {"T": 64, "I": 128, "H": 128}),
        ("H", "units H = I (T 64, N 32)", {"T": 64, "N": 32}),
    )
    for line, (training, mode) in zip(panels, MODES, strict=True):
        for axes, (size, title, fixed) in zip(line, sweeps, strict=True):
            swept = [row for row in rows if fixed.items() <= vars(row.case).items()]
            for cell, color in CELL_COLORS.items():
                chosen = [
                    row for row in swept if row.training == training and row.case.cell == cell
                ]
                chosen.sort(key=lambda row: (row.case.T, row.case.N, row.case.H))
                for name, look in (("fastrnn", "o-"), ("torch.nn", "o:")):
                    times_against(
                        axes,
                        chosen,
                        size,
                        name,
                        1e3,
                        look,
                        color=color,
                        fillstyle="full" if name == "fastrnn" else "none",
                        label=f"{cell.upper()}, {name}",
                    )
            sizes_along(axes, swept, size)
            if training:
                axes.set_xlabel(title)
        line[0].set_ylabel(f"{mode}, ms")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    return figure


def times_against(
    axes: Any, rows: list[Row], size: str, name: str, units: float, look: str, **style: Any
) -> None:
    """A line of somebody's times, in so many units a second, against T, N or H."""
    known = [row for row in rows if name in row.seconds]
    axes.plot(
        [getattr(row.case, size) for row in known],
        [row.time(name) * units for row in known],
        look,
        markersize=3,
        **style,
    )


def sizes_along(axes: Any, rows: list[Row], size: str) -> None:
    """Logarithmic axes with a tick for each of these rows' sizes."""
    values = sorted({getattr(row.case, size) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_yscale("log")


def step(run: Run, pyplot: Any) -> Any:
    """Latency of a layer's single step of one sample against H, a panel a cell."""
    rows = [
        row
        for row in run.group("step", training=False)
        if (row.case.unit, row.case.T, row.case.N) == ("layer", 1, 1)
    ]
    cells = [cell for cell in GATES if any(row.case.cell == cell for row in rows)]
    if not cells:
        return None
    figure, panels = pyplot.subplots(
        1,
        len(cells),
        figsize=(1 + 3.3 * len(cells), 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, cell in zip(panels[0], cells, strict=True):
        chosen = sorted((row for row in rows if row.case.cell == cell), key=lambda row: row.case.H)
        for name in measured(rows, [OURS, FROZEN, STREAM, "torch.nn", "ONNX Runtime", "RTNeural"]):
            marker, color = (OUR_STYLES | PEER_STYLES)[name]
            times_against(axes, chosen, "H", name, 1e6, f"{marker}-", color=color, label=name)
        sizes_along(axes, chosen, "H")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(cell.upper(), weight="bold")
        axes.set_xlabel("units H = I (T 1, N 1)")
    panels[0][0].set_ylabel("forward, µs")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    return figure
