"""Killed runs end with the weights of an undisturbed one: SIGKILL at random, and in every write."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from fastrnn.__main__ import main
from fastrnn.training import checkpoint
from fastrnn.training.loop import Stopped, Trainer
from fastrnn.training.model import config_for

OPTIONS = "--cell gru --num-layers 2 --dropout 0.3 --num-samples 60 --batch-size 7 --epochs 6"
OPTIONS += " --schedule cosine --clip-grad-norm 1 --validation 0.2 --patience 50"
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
TIMEOUT = 120

spawner = multiprocessing.get_context("forkserver")


def run(folder: str, kill_at: int | None = None) -> None:
    """Start or continue a run in a process of its own; maybe kill it at one of its file operations."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in EVENTS and checkpoint.PREFIX in str(arguments[0]):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at is not None:
        sys.addaudithook(hook)
    sys.exit(
        main(["train", *OPTIONS.split(), "--save-every", "1", "--save", "run", "--resume", "auto"])
    )


def start(folder: Path, *arguments: int) -> multiprocessing.Process:
    process = spawner.Process(target=run, args=(str(folder), *arguments))
    process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    process.join(TIMEOUT)
    assert not process.is_alive()
    return process.exitcode


def result_of(folder: Path) -> dict:
    path, document = checkpoint.read_checkpoint(folder / "run")
    run = document["runs"]["fastrnn"]
    del run["history"]["seconds"]
    dcp_to_torch_save(path, folder / "tensors")
    tensors = torch.load(folder / "tensors", weights_only=True)["fastrnn"]
    for group in tensors["optimizer"]["param_groups"]:
        del group["params"]  # They are names of parameters.
    return {"run": run, "tensors": tensors}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(folder)) == 0
    result = result_of(folder)
    assert result["run"]["step"] == 42 and len(result["run"]["history"]["loss"]) == 6
    return result


def assert_same(folder: Path, undisturbed: dict) -> None:
    torch.testing.assert_close(result_of(folder), undisturbed, rtol=0, atol=0)
    whole = checkpoint.latest(folder / "run")
    assert list((folder / "run").iterdir()) == [whole]  # Nothing half written is left.


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, undisturbed):
    dice, kills, in_write = random.Random(0), 0, 0
    process = start(tmp_path)
    while kills < 24:
        started = time.monotonic()
        at = [p.name for p in (tmp_path / "run").glob("*")] if (tmp_path / "run").exists() else []
        # Wait for progress, else runs of a busy machine would be killed before their first step.
        while process.is_alive() and time.monotonic() - started < TIMEOUT:
            if (tmp_path / "run").exists() and [p.name for p in (tmp_path / "run").glob("*")] != at:
                break
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02))
        process.kill()
        process.join()
        if process.exitcode == 0:  # The run was finished: start once more from nothing.
            assert_same(tmp_path, undisturbed)
            (tmp_path / "run").rename(tmp_path / f"done-{kills}")
        else:
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            in_write += any((tmp_path / "run").glob(f"*{checkpoint.ASIDE}"))
        process = start(tmp_path)
    assert ended(process) == 0
    assert in_write >= 5
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_at_every_file_operation_of_a_write(tmp_path, undisturbed):
    """A few operations later in every run: in the end each kind of operation was the last one once."""
    kills, saved = 0, False
    for kill_at in range(1, 200):
        exit_code = ended(start(tmp_path, kill_at))
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        kills += 1
        assert checkpoint.latest(tmp_path / "run") or not saved  # From then on there is always one.
        saved = checkpoint.latest(tmp_path / "run") is not None
    assert kills >= 20
    assert_same(tmp_path, undisturbed)


def test_sigterm_saves_the_step_and_stops(tmp_path, undisturbed):
    process = start(tmp_path)
    deadline = time.monotonic() + TIMEOUT
    while not checkpoint.latest(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM
    _, document = checkpoint.read_checkpoint(tmp_path / "run")
    assert 0 < document["runs"]["fastrnn"]["step"] < 42
    assert ended(start(tmp_path)) == 0
    assert_same(tmp_path, undisturbed)


def test_what_a_resumed_run_saves_first_is_what_it_read(tmp_path):
    """Within an epoch too, where dropout's generator has gone on."""
    config = config_for("tutorial", num_samples=60, batch_size=7, num_layers=2, dropout=0.3)
    trainer = Trainer(config, "fastrnn")

    def after_step():
        if trainer.step == 3:
            checkpoint.save_checkpoint(tmp_path / "run", [trainer])
            raise Stopped(signal.SIGTERM)

    trainer.after_step = after_step
    with pytest.raises(Stopped):
        trainer.run_epoch()
    saved = result_of(tmp_path)
    path, document = checkpoint.read_checkpoint(tmp_path / "run")
    resumed = Trainer(config, "fastrnn")
    checkpoint.restore(tmp_path / "run", path, document, [resumed])
    checkpoint.save_checkpoint(tmp_path / "run", [resumed])
    assert checkpoint.latest(tmp_path / "run") != path
    torch.testing.assert_close(result_of(tmp_path), saved, rtol=0, atol=0)


def test_another_shape_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("sequence,a,label\n0,1,0\n1,2,1\n")
    command = ["train", "--data", "data.csv", "--batch-size", "2", "--epochs", "1"]
    assert main([*command, "--save", "run"]) == 0
    Path("data.csv").write_text("sequence,a,b,label\n0,1,1,0\n1,2,2,1\n")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--resume", "run", "--epochs", "2"])
    err = capsys.readouterr().err
    assert "--resume run: rnn.weight_ih_l0 is (256, 1) in it, (256, 2) in this model" in err
