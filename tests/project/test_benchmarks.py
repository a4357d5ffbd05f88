"""The benchmark suite: who is measured computes the right thing, and reports say what was found. Nothing is timed."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch

pytest.importorskip("rich")  # the benchmarks draw their tables with it

import fastrnn
from benchmarks import compare, plots, report
from benchmarks.__main__ import GPU_DTYPES, QUICK_GPU_MINUTES, chosen_cases, main, parser
from benchmarks.c_stream import seconds_of_steps
from benchmarks.cases import (
    DOUBLE,
    GATES,
    GPU_GROUPS,
    GROUPS,
    JVP,
    ODD_STEPS,
    PER_SAMPLE,
    PUBLISHED,
    TRANSFORMS,
    Case,
    Problem,
    all_cases,
    drawn_shapes,
)
from benchmarks.crowd import CASES, run_together
from benchmarks.limit import Check
from benchmarks.measure import QUICK as QUICK_EFFORT
from benchmarks.measure import Effort, Measurement, relative_error, take_turns
from benchmarks.peers import (
    FASTRNN,
    OURSELVES,
    PEERS,
    TOLERANCES,
    Contestant,
    Peer,
    Unsupported,
    reference,
)
from benchmarks.rows import FROZEN, OURS, STREAM, Row, Run, Times

SMALL = [
    *(Case("main", cell, 5, 3, 4, 6) for cell in GATES),
    *(
        Case("lengths", cell, 8, 3, 4, 6, lengths=kind)
        for cell in GATES
        for kind in ("padded", "packed")
    ),
    *(Case("stacked", cell, 5, 3, 4, 6, layers=2, bidirectional=True) for cell in GATES),
    Case("bfloat16", "lstm", 5, 3, 4, 6, dtype="bfloat16"),
    *(
        Case("step", cell, T, 3, 4, 6, unit=unit, state=True)
        for cell in GATES
        for T, unit in ((5, "layer"), (1, "cell"), (5, "cell"))
    ),
    *(Case("step", cell, 10, 1, 4, 512, state=True) for cell in GATES),  # in shorter types, too
    *(
        Case("transforms", cell, 5, 3, 4, 6, transform=each)
        for cell in GATES
        for each in TRANSFORMS
    ),
]
# torch.nn raises for these; a later version may not.
TORCH_REFUSES = {("rnn", PER_SAMPLE), ("gru", PER_SAMPLE), ("lstm", JVP)}
EVERYBODY = [FASTRNN, *(peer for peer in OURSELVES if peer.same_problem), *PEERS]
SHORT = {f"{FROZEN} bfloat16", f"{FROZEN} int8"}


@pytest.mark.filterwarnings("ignore")  # peers warn of things of their own
@pytest.mark.parametrize(
    ("peer", "case", "training"),
    [
        (peer, case, training)
        for peer in EVERYBODY
        for case in SMALL
        for training in case.modes
        if peer.is_for(case)
    ],
    ids=lambda each: (getattr(each, "label", "") or getattr(each, "name", str(each))).replace(
        " ", "-"
    ),
)
def test_everyone_computes_the_same(peer, case, training):
    if not peer.installed:
        pytest.skip(f"{peer.name} is not installed: pip install '.[bench]'")
    problem = Problem(case)
    try:
        contestant = peer.make(problem, training, 2)
    except Unsupported as why:
        assert peer.name not in (OURS, "torch.nn"), why
        assert str(why)
        return
    try:
        actual = contestant.results(contestant.run())
    except RuntimeError:
        assert peer.name == "torch.nn" and (case.cell, case.transform) in TORCH_REFUSES
        return
    expected = reference(problem, training)
    if case.transform == PER_SAMPLE:
        assert {name: tensor.shape[0] for name, tensor in actual.items()} == dict.fromkeys(
            problem.weights, 3
        )
    assert set(actual) == (set(expected) if training else {"output"})
    if not peer.same_problem:
        return
    tolerance = TOLERANCES[case.dtype] if case.dtype == "bfloat16" else 2e-6
    error = relative_error(actual, expected)
    assert error < (peer.tolerance if peer.weights else tolerance)
    assert not peer.weights or error > 1e-4  # or else nothing was rounded


ONCE = Effort(rounds=1, turn=1e-9, most=60)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_all_steps_are_another_problem(kind):
    """What lengths cost is measured beside a run over all steps, whose results must differ."""
    case = Case("lengths", "gru", 8, 3, 4, 6, lengths=kind)
    measured = Measurement([], 1, "cpu", ONCE, None).row(case, True)
    assert set(measured.seconds) == {OURS, report.ALL_STEPS}
    assert set(measured.errors) == {OURS} and not measured.absent
    assert report.length_cost(measured) > 0


@pytest.mark.parametrize(
    ("case", "frozen"),
    [
        (Case("step", "gru", 10, 1, 4, 512, state=True), {FROZEN, STREAM, *SHORT}),
        (Case("step", "gru", 10, 2, 4, 512, state=True), {FROZEN, STREAM}),
        (Case("step", "rnn", 1, 1, 4, 6, unit="cell", state=True), {FROZEN}),
        (Case("decoder", "lstm", 3, 2, 4, 6, unit="cell", state=True), {FROZEN}),
        (Case("main", "gru", 10, 1, 4, 512), set()),
    ],
    ids=lambda each: each.label.replace(" ", "-") if isinstance(each, Case) else "",
)
def test_frozen_modules_are_for_inference_over_few_steps(case, frozen):
    measurement = Measurement([], 1, "cpu", ONCE, None)
    forward = measurement.row(case, False)
    assert set(forward.seconds) == set(forward.errors) == {OURS, *frozen}
    assert all(times.count == 1 and times.median > 0 for times in forward.seconds.values())
    training = measurement.row(case, True)
    assert set(training.seconds) == set(training.errors) == {OURS}
    assert not forward.absent and not training.absent  # what is ours is not told as a peer's lack


@pytest.mark.parametrize(
    ("weights", "error", "kept"),
    [
        ("", 0.04, True),
        ("bfloat16", 0.015, True),
        ("bfloat16", 0.03, False),
        ("int8", 0.03, True),
        ("int8", 0.06, False),
    ],
)
@pytest.mark.parametrize("who", ["ours", "a peer"])
def test_errors_are_held_to_what_rounding_explains(who, weights, error, kept, monkeypatch):
    def make(problem, training, threads):
        results = {name: y * (1 + error) for name, y in reference(problem, training).items()}
        return Contestant(lambda: results, lambda returned: returned)

    other = Peer("other", OURS if who == "ours" else "torch", "torch", make, weights=weights)
    monkeypatch.setattr("benchmarks.measure.OURSELVES", [other] if who == "ours" else [])
    measurement = Measurement([] if who == "ours" else [other], 1, "cpu", ONCE, None)
    case = Case("step", "rnn", 10, 1, 4, 512, state=True)
    if who == "ours" and not kept:
        with pytest.raises(AssertionError, match=f"forward: other: error {error}"):
            measurement.row(case, False)
        return
    measured = measurement.row(case, False)
    assert ("other" in measured.seconds) == kept
    assert measured.absent == ({} if kept else {"other": f"wrong result, error {error}"})


def test_flop():
    # 2 FLOP for each of T * N * G * H * (I + H) products; backward doubles them twice.
    assert Case("main", "lstm", 5, 3, 4, 6).flop(False) == 2 * 5 * 3 * 4 * 6 * (4 + 6)
    assert Case("main", "lstm", 5, 3, 4, 6).flop(True) == 6 * 5 * 3 * 4 * 6 * (4 + 6)
    two = Case("stacked", "rnn", 5, 3, 4, 6, layers=2, bidirectional=True)
    assert two.flop(False) == 2 * 5 * 3 * 2 * 6 * ((4 + 6) + (12 + 6))
    assert Case("", "gru", 5, 3, 4, 6, transform=JVP).flop(True) == 6 * 5 * 3 * 3 * 6 * (4 + 6)
    # Without a gradient of the input one pass has the products with W_hh alone.
    assert Case("", "gru", 5, 3, 4, 6, transform=PER_SAMPLE).flop(True) == 2 * 5 * 3 * 3 * 6 * (
        2 * 10 + 6
    )
    assert Case("", "gru", 5, 3, 4, 6, transform=DOUBLE).flop(True) == 2 * 5 * 3 * 3 * 6 * (
        5 * 10 + 6
    )
    short = Case("lengths", "rnn", 8, 3, 4, 6, lengths="padded")
    assert short.flop(False) == 2 * int(short.sample_lengths().sum()) * 6 * 10


def test_cases():
    cases = all_cases()
    assert len(set(cases)) == len(cases)
    assert {case.group for case in cases} == set(GROUPS) == set(report.TITLES)
    for case in cases:
        lengths = case.sample_lengths()
        assert lengths.shape == (case.N,) and lengths.min() >= 1 and lengths.max() <= case.T


def test_steps_that_are_measured():
    steps = [case for case in all_cases() if case.group == "step"]
    assert {case.unit for case in steps if case.T == 1} == {"layer", "cell"}
    for cell in GATES:
        for unit in ("layer", "cell"):
            one = {(c.N, c.I, c.H) for c in steps if (c.cell, c.unit, c.T) == (cell, unit, 1)}
            grid = {(N, H, H) for N in (1, 16, 64) for H in (16, 64, 256, 512)}
            assert one == grid | {*ODD_STEPS}
        ten = {(c.N, c.I, c.H) for c in steps if (c.cell, c.T) == (cell, 10)}
        assert ten >= {(N, H, H) for N in (1, 16) for H in (16, 64, 256)}
        waiting = {(c.T, c.N, c.H) for c in steps if c.cell == cell and c.waits_for_weights}
        assert waiting == {(10, 1, 512), (10, 1, 1024)}
    quick = chosen_cases(parser().parse_args(["--quick", "--shapes", "step", "decoder"]))
    assert {case.N for case in quick if case.group == "step"} == {1, 5, 16}
    assert chosen_cases(parser().parse_args(["--shapes", "step"])) == steps


def test_turns_are_fair():
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    rates = iter(range(100))
    seconds, rate = take_turns(runs, lambda: next(rates), Effort(rounds=3, turn=1e-9, most=60))
    # Each has an untimed call and a timed one, and everybody is first once.
    assert "".join(calls) == "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert rate == 4


def test_relative_error():
    expected = {"output": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    assert relative_error(expected, expected) == 0
    assert relative_error({"output": torch.tensor([3.0, 5.0])}, expected) == pytest.approx(0.2)
    # One step from h_0 = 0 gives W_hh no gradient: zeros are right there, and nothing else is.
    zeros = {"d weight_hh_l0": torch.zeros(2)}
    assert relative_error(zeros, zeros) == 0
    assert relative_error({"d weight_hh_l0": torch.tensor([0.0, 1e-9])}, zeros) == math.inf


def row(name: str, time: float, *, T: int = 10, limit: float = 1e9, **others: float) -> Row:
    generator = random.Random(0)
    seconds = {OURS: time, **others}
    return Row(
        Case("main", name, T, 32, 256, 256),
        False,
        limit,
        {
            who: Times.of([t * generator.uniform(0.999, 1.001) for _ in range(9)])
            for who, t in seconds.items()
        },
    )


def test_times():
    few = Times.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert few == Times(median=3, low=1.5, high=4.5, count=5, p99=pytest.approx(4.96), largest=5)
    assert Times.of([2.0]) == Times(median=2, low=2, high=2, count=1, p99=2, largest=2)
    many = [float(i) for i in range(1, 202)]
    random.Random(0).shuffle(many)
    times = Times.of(many)
    assert (times.median, times.p99, times.largest) == (101, 199, 201)  # 99 % of 200 steps past 1
    each = Row(Case("main", "rnn", 5, 3, 4, 6), False, seconds={OURS: Times(3, 1.5, 4.5, 5)})
    assert each.time() == 3 and each.spread() == 0.5


def test_runs_that_kept_every_time(tmp_path):
    seconds = [3.0, 1.0, 2.0, 5.0]
    run = Run({}, [], [row("rnn", 1.0)])
    run.rows[0].seconds[OURS] = Times.of(seconds)
    run.save(tmp_path / "new.json")
    assert Run.load(tmp_path / "new.json") == run
    old = json.loads((tmp_path / "new.json").read_text())
    old["rows"][0]["seconds"][OURS] = seconds
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert Run.load(tmp_path / "old.json") == run
    assert compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0


def few_steps(cell: str, H: int, **seconds: Times) -> Row:
    names = {"ours": OURS, "frozen": FROZEN, "int8": f"{FROZEN} int8", "torch": "torch.nn"}
    return Row(
        Case("step", cell, 1, 1, H, H, state=True),
        False,
        seconds={names[name]: times for name, times in seconds.items()},
        errors=dict.fromkeys(SHORT, 0.0123),
    )


def test_single_calls_are_told(tmp_path):
    """An older run, without the percentile, has dashes; whoever rounds weights is no best peer."""
    fast, slow = Times(10e-6, 9e-6, 11e-6, 99, 25e-6, 4e-3), Times(2e-5, 2e-5, 2e-5, 9)
    rows = [few_steps("gru", 16, ours=slow, frozen=fast, int8=fast, torch=slow)]
    run = Run({}, ["torch.nn"], rows, rounding=[f"{FROZEN} int8"])
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run
    plain, calls, rounded = (
        (title, dict(zip(header, cells[0], strict=True)), losses)
        for title, header, cells, losses in report.tables(run)
    )
    assert plain[1]["frozen × best peer"] == "2" and plain[1]["× torch.nn"] == "1"
    assert plain[2] == [False]
    assert report.CALLS in calls[0] and f"{FROZEN} int8" not in {**plain[1], **calls[1]}
    assert calls[1][FROZEN] == "10 / 25 / 4000" and calls[1][OURS] == "20 / - / -"
    assert rounded[1][f"{FROZEN} int8"] == "10 / 25 / 4000"
    assert rounded[1]["their errors"] == "1.23%"
    document = json.loads((tmp_path / "run.json").read_text())
    kept = document["rows"][0]["seconds"][FROZEN]
    assert (kept["p99"], kept["largest"]) == (25e-6, 4e-3)
    del document["rounding"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert Run.load(tmp_path / "run.json").rounding == []


def test_picture_of_steps():
    """It has a panel for each cell that was measured, and the lines are the medians against H."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    def times(microseconds: float) -> Times:
        return Times.of([microseconds * 1e-6])

    rows = [
        few_steps("lstm", 64, ours=times(40), frozen=times(20), torch=times(90)),
        few_steps("lstm", 16, ours=times(30), frozen=times(10), torch=times(70)),
        few_steps("rnn", 16, ours=times(5)),
    ]
    others = [replace(rows[0].case, T=10), replace(rows[0].case, N=2)]
    others += [replace(rows[0].case, unit="cell"), replace(rows[0].case, group="main")]
    rows += [Row(case, False, seconds={OURS: times(1)}) for case in others]
    rows.append(Row(rows[0].case, True, seconds={OURS: times(2)}))
    figure = plots.step(Run({}, ["torch.nn"], rows), pyplot)
    drawn = {
        axes.get_title(): {
            line.get_label(): [tuple(map(float, point)) for point in line.get_xydata()]
            for line in axes.lines
            if line.get_xdata().size
        }
        for axes in figure.axes
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [OURS, FROZEN, "torch.nn"]
    scales = {(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes}
    pyplot.close(figure)
    assert list(drawn) == ["RNN", "LSTM"] and scales == {("log", "log")}
    assert drawn["LSTM"] == {
        OURS: [(16, pytest.approx(30)), (64, pytest.approx(40))],
        FROZEN: [(16, pytest.approx(10)), (64, pytest.approx(20))],
        "torch.nn": [(16, pytest.approx(70)), (64, pytest.approx(90))],
    }
    assert drawn["RNN"] == {OURS: [(16, pytest.approx(5))]}
    assert plots.step(Run({}, ["torch.nn"], rows[3:]), pyplot) is None


def test_goals_name_what_falls_short():
    nn = "torch.nn"
    run = Run({}, [nn], [row("rnn", 1.0, **{nn: 0.5}), row("lstm", 1.0, **{nn: 2.0})])
    goals = {goal.text: goal for goal in report.goals(run)}
    best = goals["over the best peer, every row: at least 0.97"]
    assert not best.met and "rnn T10 N32 I256 H256 forward 0.5" in best.found
    assert not goals["rnn over torch.nn, mean: at least 5"].met
    assert goals["lstm over torch.nn, mean: at least 1.5"].met
    share = goals["forward, share of the limit where N·H >= 8192: at least 0.85"]
    flop = 2 * 10 * 32 * 256 * 512
    assert share.met == (flop / 1e9 >= 0.85)
    text = report.markdown(run, ["speedup.png"])
    assert "**rnn** (slower)" in text and "| lstm |" in text and "![](speedup.png)" in text


def test_limit_says_when_it_is_none():
    assert Check(3e9, 16, 1.97).ok and Check(3e9, 16, 0.96).ok
    assert not Check(3e9, 16, 1.8).ok
    assert "too high" in str(Check(3e9, 16, 1.8)) and "too high" not in str(Check(3e9, 16, 1.97))


def test_compare_beside_a_peer(tmp_path, capsys):
    """Of a row that torch.nn took twice the time for, too, only the limit says that it changed."""
    a, b = Run({}, [], [row("rnn", 1.0), row("gru", 1.0)]), Run({}, [], [row("rnn", 2.0)])
    for run, seconds in ((a, 3.0), (b, 6.0)):
        run.rows[0].seconds["torch.nn"] = Times.of([seconds] * 4)
    assert [change.verdict for change in compare.changes(a, b)] == ["slower"]
    assert [change.ratio for change in compare.changes(a, b, "torch.nn")] == [1.0]
    a.rows[0].seconds["torch.nn"] = Times(3.0, 2.0, 4.0, 4)
    assert compare.changes(a, b, "torch.nn")[0].noise == pytest.approx(1 / 3, rel=0.1)
    for name, run in (("a", a), ("b", b)):
        run.save(tmp_path / name)
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert compare.main([*files, "--beside", "torch.nn"]) == 0
    assert "0 faster, 0 slower, 1 within noise" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main([*files, "--beside", "JAX"])
    assert "no row in common with JAX" in capsys.readouterr().err


def test_compare(tmp_path, capsys):
    a = Run({}, [], [row("rnn", 1.0), row("gru", 1.0), row("lstm", 1.0), row("rnn", 1.0, T=7)])
    # The machine was half as free in the second run: twice the time is the same speed.
    b = Run({}, [], [row("rnn", 2.0, limit=5e8), row("gru", 0.5), row("lstm", 1.5)])
    changes = {change.before.case.cell: change for change in compare.changes(a, b)}
    assert {cell: change.verdict for cell, change in changes.items()} == {
        "rnn": "",
        "gru": "faster",
        "lstm": "slower",
    }
    for name, run in (("a", a), ("b", b)):
        run.save(tmp_path / name)
        assert Run.load(tmp_path / name) == run
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert (
        "1 faster, 1 slower, 1 within noise" in printed and "1 rows are in one run only" in printed
    )
    b.rows[0] = Row(b.rows[0].case, False, failed="RuntimeError: no")
    b.save(tmp_path / "b")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "1 faster, 1 slower, 0 within noise" in printed
    assert f"failed in {tmp_path / 'b'}: {b.rows[0].label}" in printed.replace("\n", "")
    (tmp_path / "c").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(tmp_path / "a"), str(tmp_path / "c")])
    assert stopped.value.code == 2
    assert "is no run of these benchmarks" in capsys.readouterr().err


@pytest.fixture
def run_main(tmp_path, capsys, monkeypatch):
    """Runs a quick benchmark into tmp_path; returns the exit code and what was printed."""
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)  # the tests keep their cores
    threads = torch.get_num_threads()

    def run(*arguments: str) -> tuple[int, str]:
        options = ["--quick", "--threads", "1", "--peers", "torch.nn", "--output", str(tmp_path)]
        code = main([*options, *arguments])
        return code, capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_command_line(tmp_path, run_main):
    code, printed = run_main("--cells", "gru", "--shapes", "6,4,3,5")
    assert code == 0
    assert "FMA loop" in printed and "over torch.nn, mean" in printed
    run = Run.load(tmp_path / "results.json")
    assert [(row.case, row.training) for row in run.rows] == [
        (Case("main", "gru", 6, 4, 3, 5), training) for training in (False, True)
    ]
    for each in run.rows:
        assert set(each.seconds) == {OURS, "torch.nn"} and each.limit > 0
        assert each.errors[OURS] < 1e-6
    assert "gru" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "speedup.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "results.json").read_text())["environment"]["CPU"]


def test_few_steps_are_rows_of_their_own(tmp_path, run_main, monkeypatch):
    small = [
        Case("step", "lstm", 1, 1, 4, 6, state=True),
        Case("step", "lstm", 10, 1, 4, 512, state=True),
        Case("step", "lstm", 1, 16, 4, 6, state=True),  # more than a quick run has
    ]
    monkeypatch.setattr("benchmarks.__main__.all_cases", lambda: small)
    int8 = "torch.ao int8"
    code, printed = run_main("--shapes", "step", "--peers", "torch.nn", int8)
    assert code == 0
    run = Run.load(tmp_path / "results.json")
    assert run.peers == ["torch.nn"] and set(run.rounding) == {*SHORT, int8}
    assert [(row.case, row.training) for row in run.rows] == [
        (case, training) for case in small[:2] for training in (False, True)
    ]
    assert set(run.rows[0].seconds) == {OURS, FROZEN, STREAM, "torch.nn"}
    assert set(run.rows[2].seconds) == {OURS, FROZEN, STREAM, "torch.nn", int8, *SHORT}
    for row in run.rows[1::2]:
        assert set(row.seconds) == {OURS, "torch.nn"}
    assert run.rows[3].absent == {int8: "inference only"}
    for times in run.rows[0].seconds.values():
        assert times.low <= times.median <= times.p99 <= times.largest
    text = (tmp_path / "report.md").read_text()
    for read in (text, printed):
        assert read.count(report.CALLS) == 2 and f"- {int8} (lstm; training)" in read
    assert "![](step.png)" in text
    assert (tmp_path / "step.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore")  # torch warns of its slow vmap
def test_transforms_are_rows_of_their_own(tmp_path, run_main, monkeypatch):
    small = [case for case in SMALL if case.group == "transforms"]
    monkeypatch.setattr("benchmarks.__main__.all_cases", lambda: small)
    loop, plain = "torch.nn, a loop over samples", "torch.nn without oneDNN"
    code, printed = run_main("--shapes", "transforms", "--peers", "torch.nn", loop, plain)
    assert code == 0
    rows = Run.load(tmp_path / "results.json").rows
    assert [row.label for row in rows] == [case.label for case in small]
    assert [row.mode for row in rows] == [*TRANSFORMS] * len(GATES)
    text = (tmp_path / "report.md").read_text()
    for each in rows:
        peers = {"torch.nn", loop if each.mode == PER_SAMPLE else plain}
        assert {*each.seconds, *each.absent} == {OURS, *peers}
        assert set(each.absent) <= {"torch.nn", plain}
        # A peer's absence is told wherever the report is read.
        for name, why in each.absent.items():
            assert f"- {name} (" in text and why in text and f"- {name} (" in printed
    assert f"| {JVP} |" in text and f"× {loop}" in text
    assert (tmp_path / "transforms.png").stat().st_size > 10_000


def test_cases_on_a_gpu():
    """Each comes in the types that are quick there, but for those that are drawn as a line a cell."""
    chosen = chosen_cases(parser().parse_args(["--device", "cuda"]))
    dtypes = {"sweep": {"float32"}, "long": {"float32"}, "main": set(GPU_DTYPES)}
    for group, expected in dtypes.items():
        assert {case.dtype for case in chosen if case.group == group} == expected
    assert not {case.transform for case in chosen} & {DOUBLE, JVP}


def test_published_shapes_come_first_on_a_gpu_and_not_at_all_on_cpu():
    on_gpu = chosen_cases(parser().parse_args(["--device", "cuda", "--quick"]))
    assert on_gpu[: len(PUBLISHED)] == [shape.case for shape in PUBLISHED]
    assert len(on_gpu) > len(PUBLISHED)
    on_cpu = chosen_cases(parser().parse_args([]))
    assert not {case.group for case in on_cpu} & set(GPU_GROUPS)
    assert chosen_cases(parser().parse_args(["--shapes", *GPU_GROUPS])) == [
        s.case for s in PUBLISHED
    ]
    # A row takes QUICK.most seconds, its peers' first calls apart: five minutes hold the published ones.
    assert 2 * len(PUBLISHED) * QUICK_EFFORT.most < 60 * QUICK_GPU_MINUTES


def test_rows_that_time_does_not_allow_are_told(tmp_path, run_main):
    code, printed = run_main("--cells", "gru", "--shapes", "6,4,3,5", "--minutes", "0")
    assert code == 0
    run = Run.load(tmp_path / "results.json")
    assert run.rows == []
    assert run.left_out == ["gru T6 N4 I3 H5 forward", "gru T6 N4 I3 H5 training"]
    said = f"left out for lack of time: {'; '.join(run.left_out)}"
    assert said in printed
    assert said in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("wrong", [False, True], ids=["an error", "wrong results"])
def test_a_failing_row_of_ours(wrong, tmp_path, run_main, monkeypatch):
    def make(problem, training, threads):
        if not training:
            return FASTRNN.make(problem, training, threads)
        if not wrong:
            raise RuntimeError("[no] such\nkernel")
        contestant = FASTRNN.make(problem, training, threads)
        return replace(contestant, results=lambda returned: {"output": torch.ones(6, 4, 5)})

    monkeypatch.setattr("benchmarks.measure.FASTRNN", replace(FASTRNN, make=make))
    code, printed = run_main("--cells", "gru", "rnn", "--shapes", "6,4,3,5")
    assert code == 1
    run = Run.load(tmp_path / "results.json")
    assert [row.training for row in run.rows] == [False, True] * 2  # the others were measured
    assert [row.training for row in run.measured] == [False] * 2
    assert [row.training for row in run.failed] == [True] * 2
    assert ("error" if wrong else "RuntimeError: [no] such\nkernel") in run.failed[0].failed
    text = (tmp_path / "report.md").read_text()
    assert "## Failed" in text
    for each in run.failed:
        assert f"FAILED {each.label}: {each.failed}" in printed
        assert f"- {each.label}: {each.failed.replace(chr(10), ' ')}" in text
    assert text.count("| 6 | 4 | 3 | 5 | float32 | forward |") == 2
    assert "| training |" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "1,2,3"], "'1,2,3' is not T,N,I,H"),
        (["--shapes", "0,2,3,4"], "sizes are at least 1"),
        (["--threads", "0"], "--threads 0"),
        (["--cells", "mamba"], "invalid choice"),
    ],
)
def test_bad_options(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_shapes_are_drawn_within_bounds_and_again():
    shapes = drawn_shapes(50)
    assert shapes == drawn_shapes(50) != drawn_shapes(50, seed=1)
    least, most = (list(map(f, zip(*shapes, strict=True))) for f in (min, max))
    assert all(a >= b for a, b in zip(least, (10, 1, 4, 10), strict=True))
    assert all(a <= b for a, b in zip(most, (1000, 300, 700, 800), strict=True))
    assert all(Case("", "lstm", *shape).flop(training=False) <= 1e11 for shape in shapes)


def test_steps_of_a_stream_are_timed_in_c():
    module = fastrnn.LSTM(5, 7)
    stream, other = fastrnn.Stream(module, 2), fastrnn.Stream(module, 2)
    x = torch.randn(2, 5)
    seconds = seconds_of_steps(stream, x, 50)
    assert len(seconds) == 50 and seconds.min() > 0
    for _ in range(50):
        other(x[None])
    assert all(map(torch.equal, stream.state, other.state))


def test_a_crowd_is_told_by_each_of_its_processes():
    crowd = run_together("fastrnn", CASES[-1], processes=2, threads=1, seconds=0.05)
    assert len(crowd) == 2
    assert all(calls.seconds >= 0.05 and calls.rate > 1 for calls in crowd)
    assert all(sum(calls.times) == pytest.approx(calls.seconds) for calls in crowd)
