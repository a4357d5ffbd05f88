"""What training does besides: several processes, logs, schedules, stops, data of the user."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrnn
from fastrnn.__main__ import main
from fastrnn.training import loop
from fastrnn.training.files import read_task
from fastrnn.training.model import config_for
from fastrnn.training.train import silent

ROOT = Path(fastrnn.__file__).parents[1]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(data="tutorial", **options):
    small = {"num_samples": 60, "epochs": 4} if data == "tutorial" else {"epochs": 4}
    trainer = loop.Trainer(config_for(data, **{**small, **options}), "fastrnn")
    loop.fit([trainer], silent)
    return trainer


def refused(capsys, *command):
    """The line that a command says of bad input."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(list(command))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sorted(Path().rglob("*")) == before
    return err


# --- Several processes --------------------------------------------------------------------------


def torchrun(python, *options, processes=2):
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "--local-addr",
        "localhost",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
        "PYTHON_EXEC": python,  # of the processes that it starts
    }
    command += ["-m", "fastrnn", "train", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("way", [[], ["--fsdp"]], ids=["DDP", "FSDP2"])
def test_two_processes_are_one(way, capsys, warm_python):
    options = [
        "--data",
        "japanese-vowels",
        "--epochs",
        "3",
        "--hidden-size",
        "9",
        "--batch-size",
        "80",
        "--dtype",
        "float64",
        "--json",
    ]
    options += ["--clip-grad-norm", "0.5", "--group-by-length", "--schedule", "cosine"]
    assert main(["train", *options]) == 0
    one = json.loads(capsys.readouterr().out)["runs"]["fastrnn"]
    run = torchrun(warm_python, *options, *way, "--save", "run", "--save-every", "2")
    assert run.returncode == 0, run.stderr
    two = json.loads(run.stdout)["runs"]["fastrnn"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-10)
    assert two["accuracy"] == one["accuracy"]
    # What two processes saved, one goes on with.
    if not way:
        assert main(["train", "--resume", "run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["runs"]["fastrnn"]["loss"] == two["loss"]


def test_more_processes_than_samples(warm_python):
    run = torchrun(warm_python, "--num-samples", "1")
    assert run.returncode != 0
    assert "a batch has 1 samples" in run.stderr and "fewer than 2 processes" in run.stderr


# --- Logs, schedules, stops ---------------------------------------------------------------------


def test_tensorboard_reads_the_scalars():
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    options = "--num-samples 60 --batch-size 20 --epochs 4 --validation 0.2 --schedule cosine"
    assert main(["train", *options.split(), "--log-dir", "logs", "--json"]) == 0
    events = event_accumulator.EventAccumulator("logs")
    events.Reload()
    by_epoch = {"accuracy", "loss/validation", "steps_per_second"}
    by_step = {"loss/train", "gradient_norm", "learning_rate"}
    assert set(events.Tags()["scalars"]) == by_epoch | by_step
    scalars = {tag: events.Scalars(tag) for tag in by_epoch | by_step}
    assert {len(scalars[tag]) for tag in by_step} == {12} and {
        len(scalars[tag]) for tag in by_epoch
    } == {4}
    trainer = loop.Trainer(
        config_for(
            "tutorial", num_samples=60, batch_size=20, epochs=4, validation=0.2, schedule="cosine"
        ),
        "fastrnn",
    )
    loop.fit([trainer], silent)
    assert [e.value for e in scalars["accuracy"]] == pytest.approx(trainer.history.accuracy)
    assert [e.value for e in scalars["loss/validation"]] == pytest.approx(
        trainer.history.validation_loss
    )
    assert [e.step for e in scalars["gradient_norm"]] == list(range(1, 13))
    rates = [0.01 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert [e.value for e in scalars["learning_rate"]] == pytest.approx(rates)
    assert min(e.value for e in scalars["steps_per_second"]) > 0


def test_plateau_lowers_the_learning_rate():
    """At a learning rate this small no loss is better than the first by a ten-thousandth."""
    constant, plateau = (trained(lr=1e-12, epochs=14, schedule=s) for s in ("constant", "plateau"))
    assert constant.optimizer.param_groups[0]["lr"] == 1e-12
    assert plateau.optimizer.param_groups[0]["lr"] == pytest.approx(1e-13)


def test_patience_stops_and_keeps_the_best_weights():
    trainer = trained(epochs=200, lr=0.5, validation=0.3, patience=5)
    losses = trainer.history.validation_loss
    assert len(losses) < 200 and len(losses) == losses.index(min(losses)) + 6
    assert trainer.evaluate(trainer.task.validation)[0] == pytest.approx(min(losses))


def test_validation_samples_are_not_trained_on():
    trainer = trained("japanese-vowels", validation=0.2, epochs=1)
    task = trainer.task
    assert (len(task.train), len(task.validation), len(task.test)) == (216, 54, 370)
    assert task.validation.labels.bincount().tolist() == [6] * 9
    rows = [{tuple(x.flatten().tolist()) for x in part.x} for part in (task.train, task.validation)]
    assert not rows[0] & rows[1]


def test_clip_by_value():
    trainer = trained(clip_grad_value=1e-9)
    assert max(p.grad.abs().max() for p in trainer.model.parameters()) <= 1e-9
    assert trainer.last["norm"] > 1e-6  # The norm before clipping.


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns(amp):
    exact, mixed = trained(epochs=40), trained(epochs=40, amp=amp)
    assert mixed.history.loss[-1] == pytest.approx(exact.history.loss[-1], rel=0.05)
    assert mixed.history.loss != exact.history.loss
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_is_the_same():
    assert trained(compile=True).history.loss == pytest.approx(trained().history.loss, rel=1e-4)


class Poisoned(loop.Trainer):
    """One sample of one batch is not finite."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.task.train.x[7, 3] = math.nan


def test_not_finite_stops_with_step_and_names(monkeypatch, capsys):
    monkeypatch.setattr("fastrnn.training.loop.Trainer._train", poisoned(loop.Trainer._train))
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--num-samples", "60", "--batch-size", "20", "--epochs", "4"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "step 4 (epoch 2): not finite: the loss, the gradient of rnn.weight_ih_l0," in err


def poisoned(original):
    def train(self):
        if self.history.epochs == 1:
            self.task.train.x[:] = math.nan
        return original(self)

    return train


def test_not_finite_is_skipped():
    config = config_for("tutorial", num_samples=60, batch_size=20, epochs=4, on_nan="skip")
    trainer = Poisoned(config, "fastrnn")
    loop.fit([trainer], silent)
    assert all(math.isfinite(loss) for loss in trainer.history.loss)
    assert all(w.isfinite().all() for w in trainer.model.parameters())
    with pytest.raises(loop.Diverged, match="epoch 1: every step was skipped"):
        loop.fit(
            [Poisoned(config_for("tutorial", num_samples=60, epochs=1, on_nan="skip"), "fastrnn")],
            silent,
        )


# --- Data of the user ---------------------------------------------------------------------------

CSV = "sequence,a,b,label\n" + "".join(
    f"{n},{n + t},{t},{{}}\n" for n in range(8) for t in range(2 + n % 3)
)


def csv_with(label):
    lines = CSV.splitlines()
    Path("data.csv").write_text(
        "\n".join([lines[0], *(row.format(label(int(row[0]))) for row in lines[1:])])
    )


@pytest.mark.parametrize(
    ("label", "kind", "outputs"),
    [
        (lambda n: n % 2, "classification", 2),
        (lambda n: n / 3, "regression", 1),
        (lambda n: "ab"[n % 2], "classification", 2),
    ],
)
def test_csv(label, kind, outputs):
    csv_with(label)
    trainer = trained("data.csv", batch_size=4, validation=0.25)
    task = trainer.task
    assert (task.kind, task.output_size, task.input_size) == (kind, outputs, 2)
    parts = (task.train, task.validation, task.test)
    assert [len(part) for part in parts] == [6, 1, 1]
    assert torch.cat([part.lengths for part in parts]).bincount().tolist() == [0, 0, 3, 3, 2]
    assert trainer.history.loss[-1] < trainer.history.loss[0]


def test_npz_next_step_is_masked():
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(10, 7, 3)), rng.integers(2, 8, 10)
    np.savez("a.npz", sequences=x, lengths=lengths)
    x[np.arange(7) >= lengths[:, None]] = np.nan  # Padding is never read.
    np.savez("b.npz", sequences=x, lengths=lengths)
    a, b = (trained(f, batch_size=5, dtype="float64") for f in ("a.npz", "b.npz"))
    assert a.task.kind == "next-step" and a.history.loss == b.history.loss
    samples = a.task.train
    a.model.eval()
    output = a.model(samples.x, samples.lengths)
    wanted = torch.cat(
        [
            (output[n, : t - 1] - samples.x[n, 1:t]).square().mean(1)
            for n, t in enumerate(samples.lengths.tolist())
        ]
    )
    assert a.evaluate(samples)[0] == pytest.approx(wanted.mean().item())


def test_folder_has_a_test_set(capsys):
    Path("mine").mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 8)):
        labels = np.arange(count) % 2
        np.savez(
            f"mine/{part}.npz",
            sequences=rng.normal(size=(count, 6)) + labels[:, None] * 4,
            labels=labels,
        )
    assert main(["train", "--data", "mine", "--batch-size", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["accuracy"] == "Held-out accuracy"
        and result["runs"]["fastrnn"]["final_accuracy"] == 1
    )


X = np.zeros((4, 5, 2))
BAD_NPZ = {
    "labels[2] is nan": {"sequences": X, "labels": [0.5, 1, math.nan, 2]},
    "every label is 3; a classification needs two classes": {"sequences": X, "labels": [3] * 4},
    "lengths[3] is 0, expected 1 to 5": {"sequences": X, "lengths": [1, 2, 3, 0]},
    "lengths[0] is 6, expected 1 to 5": {"sequences": X, "lengths": [6, 2, 3, 1]},
    "sequences[1, 2, 0] is inf": {
        "sequences": np.where(np.arange(40).reshape(4, 5, 2) == 14, np.inf, 0)
    },
    "lengths is float64": {"sequences": X, "lengths": [1.0, 1, 1, 1]},
    "labels has shape (3,)": {"sequences": X, "labels": [1, 2, 3]},
    "sequences is float64 (4, 0, 2)": {"sequences": X[:, :0]},
    "arrays labels; expected sequences": {"labels": [1]},
    "sequences is ragged": {"sequences": np.array([[1], [1, 2]], dtype=object)},
}


@pytest.mark.parametrize("message", BAD_NPZ)
def test_bad_file_is_named_with_its_place(message, capsys):
    np.savez("data.npz", **BAD_NPZ[message])
    err = refused(capsys, "train", "--data", "data.npz", "--batch-size", "1", "--save", "run")
    assert "--data data.npz" in err and message in err


def test_a_batch_is_never_larger_than_a_file(capsys):
    """Nobody asked for the 32 samples of a batch that files have."""
    csv_with(lambda n: n % 2)
    trainer = trained("data.csv")
    assert [len(batch) for batch in trainer.train_batches] == [7]
    err = refused(capsys, "train", "--data", "data.csv", "--batch-size", "8")
    assert "--batch-size 8: there are 7 training samples" in err


def test_what_is_measured_on_what_is_said_first(capsys):
    csv_with(lambda n: "ab"[n % 2])
    assert main(["train", "--data", "data.csv", "--validation", "0.3", "--epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "data      data.csv: 8 sequences of 2 to 4 steps",
        "features  2: a, b; standardised by mean and deviation of training sequences",
        "task      classification, 2 classes: a (4), b (4)",
        "trained   on 5 sequences",
        "measured  on 2 others after each epoch, at the end on 1 others",
    ]
    assert [line.partition(":")[0] for line in lines[5:]] == [
        "Validation accuracy",
        "Held-out accuracy",
    ]


def test_a_folder_with_test_samples_has_no_share_of_them(capsys):
    Path("mine").mkdir()
    for part in ("train", "test"):
        np.savez(f"mine/{part}.npz", sequences=X, labels=[0, 1, 0, 1])
    err = refused(capsys, "train", "--data", "mine", "--test", "0.5")
    assert "--test 0.5: there is mine/test.npz" in err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("sequence,b,label", "there is no column a, which was trained on"),
        ("sequence,b,a,c,label", "there is a column c, which was not trained on"),
    ],
)
def test_columns_of_the_test_file_are_those_of_the_training(columns, message, capsys):
    Path("mine").mkdir()
    Path("mine/train.csv").write_text("sequence,a,b,label\n0,1,2,x\n1,3,4,y\n")
    numbers = ",1" * (columns.count(",") - 1)
    Path("mine/test.csv").write_text(f"{columns}\n0{numbers},x\n1{numbers},y\n")
    assert message in refused(capsys, "train", "--data", "mine")


def test_columns_of_the_test_file_may_have_another_order():
    Path("mine").mkdir()
    Path("mine/train.csv").write_text("sequence,a,b,label\n0,1,2,x\n1,3,4,y\n")
    Path("mine/test.csv").write_text("label,b,a,sequence\ny,20,10,0\n")
    task = read_task(Path("mine"), None)
    assert task.test.x.tolist() == [[[10, 20]]] and task.test.labels.tolist() == [1]


def test_test_labels_are_among_the_trained(capsys):
    Path("mine").mkdir()
    np.savez("mine/train.npz", sequences=X, labels=[0, 1, 0, 1])
    np.savez("mine/test.npz", sequences=X, labels=[0, 1, 2, 1])
    err = refused(capsys, "train", "--data", "mine", "--batch-size", "2")
    assert "test.npz: label 2 is 2, none of the 2 classes that were trained" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data text.npz", "--data text.npz: cannot be read"),
        ("--data notes.txt", "--data notes.txt: expected a FILE.npz"),
        ("--data .", "there is no train.npz or train.csv in it"),
        ("--task regression", "--task: tutorial is a classification"),
        ("--config space.toml", "--config space.toml: unrecognized arguments: --colour red"),
        ("--config absent.toml", "--config absent.toml: "),
        ("--fsdp", "--fsdp: it needs torchrun"),
        ("--amp bf16 --dtype float64", "--amp bf16: the weights are float32"),
        ("--save-every 3", "--save-every: it needs --save"),
        ("--resume auto", "--resume auto: it needs --save"),
        ("--validation 0.0001", "--validation 0.0001: 0 of 1000 training samples"),
    ],
)
def test_bad_options(options, message, capsys):
    for name in ("text.npz", "notes.txt"):
        Path(name).write_text("words")
    Path("space.toml").write_text('colour = "red"')
    assert message in refused(capsys, "train", *options.split())
