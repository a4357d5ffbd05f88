"""Programs before and after accelerate: what is measured works, and what is wrong is found out."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastrnn

pytest.importorskip("rich")  # benchmarks.report draws its tables with it

from benchmarks.measure import Effort
from benchmarks.programs.__main__ import main
from benchmarks.programs.catalog import ENTRIES
from benchmarks.programs.comparison import (
    BEFORE,
    MODES,
    Row,
    WrongResult,
    compare,
    difference,
    goals,
    gradient_difference,
)
from benchmarks.programs.program import Entry, supervised, tensors, without_layers_dropout
from benchmarks.rows import OURS, Times

ONCE = Effort(rounds=1, turn=1e-9, most=60)
ROOT = Path(__file__).parents[2]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        # Its own dropout drops other elements after accelerate.
        self.rnn = nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return {"scores": self.head(self.rnn(x)[0])}


def works():
    model, x = Tagger(), torch.randn(2, 5, 3)
    return supervised(model, lambda: model(x)["scores"].square().sum(), lambda: model(x))


def after_accelerate(spoil):
    """A program that works until it is accelerated, and what then happens to its model."""

    def build():
        program = works()

        def accelerate(report):
            fastrnn.accelerate(program.model, report=report)
            spoil(program.model)

        return replace(program, accelerate=accelerate)

    return build


def without_head(model):
    del model.head


def other_weight(model):
    with torch.no_grad():
        model.rnn.weight_ih_l1.mul_(1.1)


def other_gradient(model):
    model.rnn.weight_hh_l0.register_hook(lambda gradient: 1.1 * gradient)


def no_gradient(model):
    model.rnn.weight_hh_l0.requires_grad_(False)


WORKS = Entry("works", "torch", works)
RAISES = Entry("raises", "torch", after_accelerate(without_head))
WRONG = Entry("wrong", "torch", after_accelerate(other_weight))
MISSING = Entry("missing", "fastrnn-no-such-package", works)


def test_a_program_that_works():
    row = compare(WORKS, ONCE)
    assert row.works and row.version == torch.__version__
    assert row.replaced == {"rnn": "fastrnn.LSTM"} and not row.left
    assert row.output_difference < 1e-6 and row.gradient_difference < 1e-6
    for mode in MODES:
        times = row.seconds[mode]
        assert list(times) == [BEFORE, OURS]
        assert row.ratio(mode) == times[BEFORE].median / times[OURS].median > 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_head, "AttributeError: "),
        (other_weight, "WrongResult: outputs differ by "),
        (other_gradient, "WrongResult: gradients differ by "),
        (no_gradient, "WrongResult: only one of the two has ['rnn.weight_hh_l0']"),
    ],
)
def test_a_program_that_accelerate_breaks(spoil, said):
    row = compare(Entry("broken", "torch", after_accelerate(spoil)), ONCE)
    assert row.problem.startswith(said)
    assert not row.works and not row.seconds


def test_an_error_in_small_gradients_is_found():
    expected = {"head.weight": torch.tensor([1e6]), "rnn.weight_hh_l0": torch.tensor([1.0, 2.0])}
    results = {**expected, "rnn.weight_hh_l0": torch.tensor([1.0, 3.0])}
    assert difference(results, expected) == 1e-6
    assert gradient_difference(results, expected, ["rnn"]) == 0.5
    assert gradient_difference(results, expected, ["other"]) == 1e-6
    # One step from h_0 = 0 gives W_hh no gradient.
    expected["rnn.weight_hh_l0"] = torch.zeros(2)
    assert gradient_difference(expected, expected, ["rnn"]) == 0


def test_a_program_may_round_more():
    wrong = Entry("wrong", "torch", after_accelerate(other_weight), tolerance=0.5)
    assert compare(wrong, ONCE).works


def test_a_missing_package_is_no_problem():
    row = compare(MISSING, ONCE)
    assert row == Row("missing", "fastrnn-no-such-package")
    assert not row.works


ONES = {"output": torch.ones(2)}


@pytest.mark.parametrize(
    ("results", "expected", "said"),
    [
        ({}, {}, "nothing to compare"),
        ({"other": torch.ones(2)}, ONES, "only one of the two has ['other', 'output']"),
        ({"output": torch.ones(1)}, ONES, "output has shape (1,), before (2,)"),
        ({"output": torch.tensor([1.0, math.nan])}, ONES, "output of fastrnn is not finite"),
        (ONES, {"output": torch.tensor([1.0, math.inf])}, "output of torch.nn is not finite"),
        ({"output": torch.zeros(2)}, {"output": torch.zeros(2)}, "all values are 0"),
    ],
)
def test_what_cannot_be_compared(results, expected, said):
    with pytest.raises(WrongResult, match=re.escape(said)):
        difference(results, expected)


def test_a_difference_is_relative_to_the_largest_value():
    expected = {"large": torch.tensor([4.0, -8.0]), "small": torch.tensor([1.0])}
    results = {"large": torch.tensor([4.0, -8.0]), "small": torch.tensor([2.0])}
    assert difference(results, expected) == 1 / 8
    assert difference(expected, expected) == 0


@dataclass(slots=True)
class Output:
    scores: torch.Tensor
    state: tuple[torch.Tensor, None]


def test_tensors_of_results():
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = tensors([Output(one, (two, None)), {"h": three, "labels": torch.arange(3)}])
    assert {place: tensor.numel() for place, tensor in found.items()} == {
        "output[0]['scores']": 1,
        "output[0]['state'][0]": 2,
        "output[1]['h']": 3,
    }


def test_a_layers_dropout_comes_back():
    model = Tagger()
    with without_layers_dropout(model):
        assert model.rnn.dropout == 0
    assert model.rnn.dropout == 0.5


def timed_row(name, training, inference, replaced=True):
    """A row in which torch.nn took so many times as long."""
    seconds = {
        mode: {BEFORE: Times.of([ratio]), OURS: Times.of([1.0])}
        for mode, ratio in zip(MODES, (training, inference), strict=True)
    }
    return Row(
        name, "torch", "2", {"rnn": "fastrnn.LSTM"} if replaced else {}, {}, 0.0, 0.0, seconds
    )


def test_goals():
    rows = [timed_row("a", 1.0, 0.98), timed_row("b", 4.0, 1.0), timed_row("c", 0.99, 1.0, False)]
    missing = Row("missing", "no-such-package")
    found = [(goal.found, goal.met) for goal in goals([*rows, missing])]
    # What has nothing replaced is not in the mean.
    assert found == [("3 of 3", True), ("0.98 (a, inference)", True), ("2.00", True)]
    rows = [timed_row("a", 1.5, 0.96), Row("b", "torch", "2", problem="ValueError: no")]
    found = [(goal.found, goal.met) for goal in goals(rows)]
    assert found == [("1 of 2", False), ("0.96 (a, inference)", False), ("1.50", False)]


@pytest.fixture
def run_main(tmp_path, capsys, monkeypatch):
    """Runs some programs quickly into tmp_path; returns the exit code and what was printed."""
    threads = torch.get_num_threads()

    def run(entries, *arguments):
        monkeypatch.setattr("benchmarks.programs.__main__.ENTRIES", entries)
        monkeypatch.setattr("benchmarks.programs.__main__.QUICK", ONCE)
        return main(["--quick", "--output", str(tmp_path), *arguments]), capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_every_program_has_its_row(tmp_path, run_main):
    code, printed = run_main([RAISES, WRONG, MISSING, WORKS])
    assert code == 1
    assert "not met every program works after accelerate: 1 of 3" in printed
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["environment"]["CPU"]
    problems = {row["name"]: row["problem"].partition(":")[0] for row in document["rows"]}
    assert problems == {
        "raises": "AttributeError",
        "wrong": "WrongResult",
        "missing": "",
        "works": "",
    }
    assert [bool(row["seconds"]) for row in document["rows"]] == [False, False, False, True]
    page = (tmp_path / "report.md").read_text()
    assert "| missing | fastrnn-no-such-package | not installed |" in page
    assert "WrongResult: outputs differ by" in page and "rnn: fastrnn.LSTM" in page
    assert "![](programs.png)" in page
    assert (tmp_path / "programs.png").stat().st_size > 5_000


def test_without_a_program_that_works_there_is_no_picture(tmp_path, run_main):
    code, _ = run_main([WORKS, MISSING], "--only", "no-SUCH")
    assert code == 0
    assert "![](" not in (tmp_path / "report.md").read_text()
    assert [row["name"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]] == [
        "missing"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "mamba"], "--only mamba: no program has such a name"),
        (["--threads", "0"], "--threads 0: this process may use 1 to"),
    ],
)
def test_bad_options(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_extra_installs_what_is_measured():
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    extra = re.search(r"^programs = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    installed = set(re.findall(r'"([\w-]+)', extra[1]))
    assert {entry.package for entry in ENTRIES} == installed - {"rich", "matplotlib"}
