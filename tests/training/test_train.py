"""`python -m fastrnn train`: data, training, resuming, comparing, and what it says of bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import fastrnn
from fastrnn.__main__ import main
from fastrnn.training import checkpoint, loop, progress, report, tasks
from fastrnn.training import model as models
from fastrnn.training.train import silent

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short warm-ups, and one thread: on a busy machine two would wait for each other."""
    monkeypatch.setattr(loop, "WARM_UP_SECONDS", 1e-9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Callable[[str], dict[str, Any]]:
    """Run ``train --json`` with more options, and read what it prints."""

    def run(options: str = "") -> dict[str, Any]:
        assert main(["train", "--json", *options.split()]) == 0
        parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return parsed

    return run


def small_run(implementation: str = "fastrnn", **options: Any) -> loop.Trainer:
    """Three epochs of a small tutorial task."""
    config = models.config_for("tutorial", **{"num_samples": 60, "epochs": 3, **options})
    trainer = loop.Trainer(config, implementation)
    loop.fit([trainer], silent)
    return trainer


# --- Data ---------------------------------------------------------------------------------------


def test_japanese_vowels_are_complete() -> None:
    task = tasks.japanese_vowels()
    assert (len(task.train), len(task.test), task.input_size) == (270, 370, 12)
    assert task.train.labels.bincount().tolist() == [30] * 9 and task.num_classes == 9
    assert task.test.labels.unique().tolist() == list(range(9))
    assert task.held_out
    lengths = torch.cat([task.train.lengths, task.test.lengths])
    assert (lengths.min(), lengths.max(), lengths.dtype) == (7, 29, torch.int64)


def test_japanese_vowels_are_standardised_by_valid_training_steps() -> None:
    samples = tasks.japanese_vowels().train
    valid = torch.arange(samples.x.size(1)) < samples.lengths[:, None]  # (N, T)
    steps = samples.x[valid]
    torch.testing.assert_close(steps.mean(0), torch.zeros_like(steps[0]))
    torch.testing.assert_close(steps.std(0), torch.ones_like(steps[0]))
    assert not samples.x[~valid].any()


@pytest.mark.parametrize(
    ("module", "options"),
    [("sktime.datasets", "--data japanese-vowels"), ("matplotlib", "--plot loss.png")],
)
def test_missing_extra_is_named(
    module: str,
    options: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks.japanese_vowels.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match="2"):
        main(["train", *options.split()])
    out, err = capsys.readouterr()
    assert re.fullmatch(r"python -m fastrnn: error: .* pip install 'fastrnn\[train\]'\n", err)
    assert out == "" and not list(Path().iterdir())


# --- Training -----------------------------------------------------------------------------------


class TutorialModel(nn.Module):
    """As tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 5, batch_first=True)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return self.linear(output[:, -1, :])


@pytest.mark.parametrize("implementation", models.LAYERS)
def test_default_is_the_tutorial(implementation: str) -> None:
    torch.manual_seed(7)
    x = torch.rand(1000, 10, 1)
    labels = (x.sum(dim=1) > 5).long().squeeze()
    model = TutorialModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    expected = []
    for _ in range(20):
        loss = nn.CrossEntropyLoss()(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    trainer = loop.Trainer(models.config_for("tutorial", seed=7), implementation)
    for _ in range(20):
        trainer.run_epoch()
    assert trainer.config.epochs == 100
    assert trainer.history.loss == pytest.approx(expected, rel=1e-4)
    assert trainer.history.accuracy[-1] == pytest.approx(
        (model(x).argmax(1) == labels).double().mean().item(), abs=0.002
    )


def test_lines_of_the_tutorial(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epochs", "35"]) == 0
    about, lines = capsys.readouterr().out.split("about others\n")
    lines = lines.splitlines()
    names = [line.partition(" ")[0] for line in about.splitlines()]
    assert names == ["data", "features", "task", "trained", "measured"]
    assert [line.partition(":")[0] for line in lines] == [
        "Epoch [10/35], Loss",
        "Epoch [20/35], Loss",
        "Epoch [30/35], Loss",
        "Accuracy",
    ]
    assert all(re.fullmatch(r".*: \d\.\d{4}", line) for line in lines)


def test_japanese_vowels_are_learnt(document: Callable[[str], dict[str, Any]]) -> None:
    result = document("--data japanese-vowels")
    assert result["config"]["cell"] == "lstm"
    assert result["accuracy"] == "Held-out accuracy"
    assert result["runs"]["fastrnn"]["final_accuracy"] >= 0.93


@pytest.mark.parametrize("implementation", models.LAYERS)
@pytest.mark.parametrize("cell", models.CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_never_seen(implementation: str, cell: str, bidirectional: bool) -> None:
    config = models.config_for("japanese-vowels", cell=cell, bidirectional=bidirectional)
    samples = tasks.japanese_vowels().train[list(range(0, 270, 30))].to("cpu", torch.float32)
    padding = torch.arange(samples.x.size(1)) >= samples.lengths[:, None]
    other = replace(samples, x=samples.x.masked_fill(padding[..., None], 1e3))
    model = loop.Trainer(config, implementation).model
    gradients = []
    for batch in (samples, other):
        loss = nn.functional.cross_entropy(model(batch.x, batch.lengths), batch.labels)
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("implementation", models.LAYERS)
@pytest.mark.parametrize("cell", models.CELLS)
def test_classifier_reads_the_last_layer_from_both_ends(implementation: str, cell: str) -> None:
    config = models.config_for(
        "japanese-vowels", cell=cell, num_layers=2, bidirectional=True, hidden_size=3
    )
    model = loop.Trainer(config, implementation).model
    layer: nn.RNNBase = getattr(nn, models.CELLS[cell][0])(
        12, 3, 2, batch_first=True, bidirectional=True, **models.CELLS[cell][1]
    )
    layer.load_state_dict(model.rnn.state_dict())
    x, length = torch.rand(1, 9, 12), 7
    output, _ = layer(x[:, :length])
    ends = torch.cat([output[:, -1, :3], output[:, 0, 3:]], dim=1)
    torch.testing.assert_close(model(x, torch.tensor([length])), model.linear(ends))


@pytest.mark.parametrize(
    "option",
    [
        {"cell": "gru"},
        {"cell": "rnn-relu"},
        {"hidden_size": 6},
        {"bidirectional": True},
        {"batch_size": 25},
        {"lr": 0.02},
        {"clip_grad_norm": 1e-8},
        {"seed": 1},
        {"num_samples": 61},
        {"seq_length": 11},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_option_has_an_effect(option: dict[str, Any]) -> None:
    layers = {"num_layers": 2}
    assert small_run(**layers, **option).history.loss != small_run(**layers).history.loss


def test_more_layers_have_more_weights() -> None:
    weights = {
        name for name, _ in small_run(num_layers=2, dtype="float64").model.named_parameters()
    }
    assert {"rnn.weight_ih_l1", "rnn.bias_hh_l1", "linear.weight"} <= weights


def test_batches_are_shuffled_every_epoch() -> None:
    samples = tasks.Sequences(torch.zeros(60, 1, 1), torch.arange(60))

    def epochs(batch_size: int | None) -> list[list[int]]:
        config = models.config_for("tutorial", batch_size=batch_size)
        sampler = loop.sampler_for(samples, config, loop.Processes())
        batches, orders = loop.loader(samples, sampler), []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            orders.append(torch.cat([batch.labels for batch in batches]).tolist())
        return orders

    in_order = list(range(60))
    first, second = epochs(25)
    assert first != second and in_order not in (first, second)
    assert sorted(first) == sorted(second) == in_order
    assert epochs(None) == [in_order, in_order]


def test_last_batch_counts_by_its_size() -> None:
    """60 samples in batches of 50 and 10, at a learning rate too small to matter."""
    config = {"lr": 1e-12, "dtype": "float64", "epochs": 1}
    by_batches, at_once = small_run(batch_size=50, **config), small_run(**config)
    assert by_batches.history.loss == pytest.approx(at_once.history.loss, rel=1e-8)


# --- Save and resume ----------------------------------------------------------------------------


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = loop.Trainer._train, iter(range(epochs))

    def interrupted(self: loop.Trainer) -> float:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(loop.Trainer, "_train", interrupted)


def learnt(path: str) -> dict[str, Any]:
    """The runs in a checkpoint, their tensors too, apart from the measured times."""
    folder, document = checkpoint.read_checkpoint(Path(path))
    runs: dict[str, Any] = document["runs"]
    for run in runs.values():
        del run["history"]["seconds"]
    dcp_to_torch_save(folder, "whole.tensors")
    tensors = torch.load("whole.tensors", weights_only=True)
    Path("whole.tensors").unlink()
    for run in tensors.values():
        for group in run.get("optimizer", {"param_groups": []})["param_groups"]:
            del group["params"]  # They are names of parameters.
    return {name: {**run, "tensors": tensors[name]} for name, run in runs.items()}


@pytest.mark.parametrize(
    ("options", "epochs_before"),
    [
        ("--num-samples 50 --batch-size 20 --num-layers 2 --dropout 0.3 --cell gru", 3),
        ("--data japanese-vowels --hidden-size 8 --batch-size 90", 2),
        ("--num-samples 50 --compare", 9),  # The warm-ups take at least one each
    ],
)
def test_interrupted_run_continues_to_the_same_bits(
    options: str,
    epochs_before: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "--epochs", "5", *options.split()]
    assert main([*command, "--save", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(epochs_before, patch)
        assert main([*command, "--save", "part"]) == 130
    assert "--resume part" in capsys.readouterr().err
    done = {name: len(run["history"]["loss"]) for name, run in learnt("part").items()}
    assert 0 < sum(done.values()) < 5 * len(done)

    assert main([*command, "--resume", "part", "--save", "part"]) == 0
    torch.testing.assert_close(learnt("part"), learnt("whole"), rtol=0, atol=0)
    assert sorted(path.name for path in Path().iterdir()) == ["part", "whole"]


def test_finished_run_goes_on_to_more_epochs() -> None:
    command = ["train", "--num-samples", "60", "--batch-size", "25"]
    assert main([*command, "--epochs", "6", "--save", "six"]) == 0
    assert main([*command, "--epochs", "4", "--save", "four"]) == 0
    assert main([*command, "--epochs", "6", "--save", "more", "--resume", "four"]) == 0
    torch.testing.assert_close(learnt("more"), learnt("six"), rtol=0, atol=0)


def test_resume_needs_no_other_option(capsys: pytest.CaptureFixture[str]) -> None:
    """What was saved says what to train, and goes on being saved."""
    command = ["train", "--num-samples", "60", "--cell", "gru", "--epochs"]
    assert main([*command, "6", "--save", "six"]) == 0
    assert main([*command, "4", "--save", "run"]) == 0
    assert main(["train", "--resume", "run", "--epochs", "6"]) == 0
    torch.testing.assert_close(learnt("run"), learnt("six"), rtol=0, atol=0)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*command, "1", "--save", "run"])
    assert "--save run: exists; --resume run continues it" in capsys.readouterr().err
    torch.testing.assert_close(learnt("run"), learnt("six"), rtol=0, atol=0)


def contents(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_failed_save_keeps_the_old_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--epochs", "2", "--save", "run"]) == 0
    before = contents("run")
    assert len(list(Path("run").iterdir())) == 1

    def fill_the_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fill_the_disk)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--epochs", "3", "--resume", "run"])
    err = capsys.readouterr().err
    assert "--save run: No space left on device" in err and err.count("\n") == 1
    assert contents("run") == before and list(Path().iterdir()) == [Path("run")]


# --- Comparison ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", models.CELLS)
def test_implementations_agree_in_float64(
    cell: str, document: Callable[[str], dict[str, Any]]
) -> None:
    options = f"--data japanese-vowels --cell {cell} --hidden-size 12 --batch-size 90 --epochs 3"
    comparison = document(f"{options} --compare --dtype float64")["comparison"]
    assert comparison["must_agree"] and not comparison["disagrees"]
    assert comparison["largest_loss_difference"] <= 1e-6
    assert comparison["speed_ratio"] > 0


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("--dtype float64", 1),
        ("--dtype float32", 0),
        ("--dtype float64 --num-layers 2 --dropout 0.5", 0),
    ],
)
def test_disagreement_shows_where_round_off_alone_may_differ(
    options: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong_rnn(*args: Any, **keywords: Any) -> nn.RNN:
        return nn.RNN(*args, **{**keywords, "nonlinearity": "relu"})

    monkeypatch.setitem(models.LAYERS, "fastrnn", SimpleNamespace(RNN=wrong_rnn))
    assert main(["train", "--compare", "--epochs", "3", *options.split()]) == status
    out, err = capsys.readouterr()
    assert ("differ by a relative" in err) == (status == 1)
    assert re.search(r"Training time .* fastrnn \d.* s, torch.nn \d.* s, ratio \d", out)
    assert re.search(r"Largest loss difference: \d\.\de-\d\d relative", out)


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [([1.0, 0.0], [1.0, 0.0], 0.0), ([1.0, 3.0], [1.0, 4.0], 0.25), ([1.0], [math.nan], math.nan)],
)
def test_largest_relative_difference(
    ours: list[float], theirs: list[float], difference: float
) -> None:
    largest = report.largest_relative_difference(ours, theirs)
    assert largest == pytest.approx(difference, nan_ok=True)
    comparison = report.Comparison(1.0, largest, must_agree=True)
    assert comparison.disagrees == (difference != 0)


def test_times_are_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def taking(seconds: float) -> Callable[[loop.Trainer], float]:
        def run(self: loop.Trainer) -> float:
            nonlocal now
            now += seconds
            return 0.5

        return run

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    monkeypatch.setattr(loop.Trainer, "_train", taking(1))
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda self, samples: (0.0, taking(10)(self)))
    assert small_run().history.seconds == [1, 1, 1]


# --- Output -------------------------------------------------------------------------------------


def test_json_has_no_nan() -> None:
    history = report.History([math.nan], [0.5], [1.0])
    result = report.Result(models.config_for("tutorial"), "Accuracy", {"fastrnn": history})
    assert report.as_document(result)["runs"]["fastrnn"]["loss"] == [None]


@pytest.mark.parametrize("options", ["", "--compare"])
def test_plot(options: str) -> None:
    assert main(["train", "--epochs", "3", "--plot", "curves.png", *options.split()]) == 0
    assert Path("curves.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("compared", [False, True])
def test_plot_has_validation_curves(compared: bool) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    names = list(models.LAYERS)[: 1 + compared]
    histories = {
        name: report.History([3.0 + i, 2.0], [0.5, 0.6], [1.0, 1.0], [4.0 + i, 5.0])
        for i, name in enumerate(names)
    }
    loss, accuracy = figure.subplots(1, 2)
    result = report.Result(models.config_for("tutorial"), "Validation accuracy", histories)
    report.plot_curves(loss, accuracy, result)
    curves = {line.get_label(): line.get_ydata().tolist() for line in loss.lines}
    assert curves == {
        **{name: history.loss for name, history in histories.items()},
        **{f"{name}, validation": h.validation_loss for name, h in histories.items()},
    }
    assert loss.get_title() == "Training and validation loss"


def test_lines_of_progress_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the midst of an epoch, too, and with the time that is left."""
    monkeypatch.setattr(progress.time, "monotonic", itertools.count().__next__)
    command = ["train", "--num-samples", "60", "--batch-size", "20", "--epochs", "2"]
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d\.\d{4}", "X", line) for line in lines] == [
        "tutorial, fastrnn: 33%, epoch 1 of 2, loss X, 4 s left",
        "tutorial, fastrnn: 67%, epoch 2 of 2, loss X, 2 s left",
        "tutorial, fastrnn: 100%, epoch 2 of 2, loss X, 0 s left",
    ]
    monkeypatch.setenv("RANK", "1")  # the first of several processes tells for all
    assert main(command) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00 min"), (245, "4:05 min"), (9000, "2:30 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_progress_bar_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--epochs", "10"]
    assert main(command) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command) == 0
    terminal = capsys.readouterr()
    assert "10/10" in terminal.err and terminal.out == plain.out
    monkeypatch.setattr(progress, "find_spec", lambda name: None)  # as if tqdm were not installed
    assert main(command) == 0
    assert capsys.readouterr() == plain


def test_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for defaults in models.DEFAULTS.values():
        monkeypatch.setitem(defaults, "epochs", 2)
    assert main(["demo", "--plot", "both.png"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    header = rows.index(
        ["task", "cell", "dtype", "epochs", *models.LAYERS, *models.LAYERS, "ratio", "difference"]
    )
    assert [row[:4] for row in rows[header + 1 : -1]] == [
        ["tutorial", "rnn", "float32", "2"],
        ["japanese-vowels", "lstm", "float32", "2"],
        ["tutorial", "rnn", "float64", "2"],
    ]
    assert Path("both.png").read_bytes().startswith(PNG_SIGNATURE)


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: python -m fastrnn ") and err == ""
    assert all(name in out for name in ("train", "demo", "tune", "predict", "export"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastrnn {fastrnn.__version__}\n"


def test_a_reader_may_leave() -> None:
    """As ``head -1`` does; 141 is what shells give for a program that SIGPIPE ended."""
    command = [sys.executable, "-m", "fastrnn", "train", "--num-samples", "60", "--epochs", "9999"]
    root = Path(fastrnn.__file__).parents[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, text=True, **pipes) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline().startswith("data ")
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 141


def test_module_is_a_command(warm_python: str) -> None:
    command = [warm_python, "-m", "fastrnn", "train", "--epochs", "10", "--json"]
    root = Path(fastrnn.__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert len(json.loads(run.stdout)["runs"]["fastrnn"]["loss"]) == 10
    assert run.stderr == ""


# --- Bad input ----------------------------------------------------------------------------------

BAD_OPTIONS = {
    "--data mnist": "--data: invalid choice: 'mnist'",
    "--cell transformer": "--cell: invalid choice: 'transformer'",
    "--hidden-size 0": "--hidden-size: '0' is not an integer from 1",
    "--hidden-size five": "--hidden-size: 'five' is not an integer from 1",
    "--hidden-size 2000000000": "--hidden-size 2000000000, --num-layers 1: ",
    "--num-samples 2000000000 --seq-length 2000000000": "--num-samples 2000000000, --seq-length",
    "--num-layers -1": "--num-layers: '-1' is not",
    "--dropout 1.5 --num-layers 2": "--dropout: '1.5' is not a number from 0 to 1",
    "--dropout 0.5": "--dropout acts between layers",
    "--batch-size 1001": "--batch-size 1001: there are 1000 training samples",
    "--lr 0": "--lr: '0' is not a positive number",
    "--lr nan": "--lr: 'nan' is not a positive number",
    "--lr 1e38": "--lr 1e+38: Adam's first step would be larger than any float32",
    "--test 0.2": "--test: what tutorial is tested on is fixed",
    "--save-model run.pt": "--save-model: 'run.pt' does not end in .safetensors",
    "--clip-grad-norm inf": "--clip-grad-norm: 'inf' is not",
    "--seed -1": "--seed: '-1' is not an integer from 0",
    "--dtype int8": "--dtype: invalid choice: 'int8'",
    "--device abacus": "--device: 'abacus': expected cpu, cuda or cuda:N",
    "--device cuda:99": "--device: 'cuda:99': ",
    "--data japanese-vowels --seq-length 5": "--seq-length: the size of japanese-vowels is fixed",
    "--plot absent/loss.png": "--plot: 'absent/loss.png': there is no folder 'absent'",
    "--plot loss.jpeg": "--plot: 'loss.jpeg' does not end in .png",
    "--save absent/run": "--save: 'absent/run': there is no folder 'absent'",
    "--save .": "--save: '.' is a folder with something else in it",
    "--resume absent": "--resume absent: no such folder",
    "--resume text": "--resume text: no checkpoint in it",
    "--resume cut": "--resume cut: damaged, or no checkpoint",
    "--resume other": "--resume other: damaged, or no checkpoint",
    "--resume good --cell lstm": "--resume good: saved with --cell rnn, not lstm",
    "--resume good --hidden-size 6": "--resume good: saved with --hidden-size 5, not 6",
    "--resume good --epochs 1": "--resume good: saved after 2 epochs, more than --epochs 1",
    "--epoch 3": "unrecognized arguments: --epoch 3",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_input_is_one_line_and_status_2(
    options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--epochs", "2", "--save", "good", "--json"]) == 0
    shutil.copytree("good", "cut")
    for path in Path("cut").rglob("*.distcp"):
        path.write_bytes(path.read_bytes()[:-2000])
    shutil.copytree("good", "other")
    next(Path("other").rglob("run.json")).write_text('{"weights": 3}')
    Path("text").mkdir()
    Path("text/notes").write_text("no checkpoint")
    files = contents(".")
    capsys.readouterr()

    monkeypatch.setattr(loop.Trainer, "run_epoch", lambda self: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--epochs", "5", *options.split()])
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and BAD_OPTIONS[options] in err
    assert err.count("\n") == 1 and err.startswith("python -m fastrnn")
    assert contents(".") == files
