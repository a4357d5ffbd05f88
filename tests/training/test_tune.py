"""`python -m fastrnn tune`: the space, the search, what it leaves behind, killed workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastrnn.__main__ import main
from fastrnn.training import tune
from fastrnn.training.options import read_config

optuna = pytest.importorskip("optuna")

SMALL = "--num-samples 60 --epochs 6 --sampler-seed 0"
SPACE = '[cell]\nchoices = ["rnn", "gru"]\n[num_layers]\nlow = 1\nhigh = 2\n[lr]\nlow = 0.001\nhigh = 0.1\nlog = true\n[dropout]\nlow = 0.0\nhigh = 0.4\n[clip_grad_norm]\nchoices = ["", 1.0]\n'


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text(SPACE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def search(trials, *options):
    command = [
        "tune",
        *SMALL.split(),
        "--space",
        "space.toml",
        "--trials",
        str(trials),
        "--out",
        "out",
        *options,
    ]
    return main(command)


def study():
    return optuna.load_study(study_name=tune.STUDY, storage="sqlite:///out/study.db")


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_search_leaves_table_pictures_and_configuration(pruner, capsys):
    assert search(8, "--pruner", pruner) == 0
    out = capsys.readouterr().out
    assert "8 trials, " in out and "Accuracy: " in out  # The refit prints the accuracy.
    numbers = [int(n) for n in re.findall(r"^trial (\d) of 8: loss \d.* left$", out, re.MULTILINE)]
    assert numbers == list(range(1, 9))
    names = {path.name for path in Path("out").iterdir()}
    pictures = {f"{n}.{s}" for n in ("history", "importances", "parallel") for s in ("png", "html")}
    assert names == pictures | {"study.db", "best.toml"}
    assert all(
        (Path("out") / p).read_bytes()[:4] == b"\x89PNG" for p in pictures if p.endswith("png")
    )

    best = tune.best_trials(study(), 6)[0]
    assert main(["train", "--config", "out/best.toml", "--json"]) == 0
    repeated = json.loads(capsys.readouterr().out)["runs"]["fastrnn"]
    assert repeated["validation_loss"][-1] == best.value
    assert read_config(Path("out/best.toml"))["cell"] == best.params["cell"]


def test_interrupted_search_continues(monkeypatch, capsys):
    original, calls = tune.run_epochs, iter(range(3))

    def interrupted(config, report):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(config, report)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "run_epochs", interrupted)
        assert search(6) == 130
    before = [trial.params for trial in study().trials[:3]]
    assert search(6, "--no-test") == 0
    after = study().trials
    assert [trial.params for trial in after[:3]] == before
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in after) == 6
    assert search(6, "--no-test") == 0 and len(study().trials) == len(
        after
    )  # All trials were there already.
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        search(6, "--seed", "3")
    assert "its trials had another options" in capsys.readouterr().err


def test_a_line_tells_a_trial_and_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(tune.time, "monotonic", iter([0, *range(0, 1000, 7)]).__next__)
    monkeypatch.setattr(tune, "Lines", lambda *arguments: SimpleNamespace(update=lambda *_: None))
    monkeypatch.setattr(tune, "run_epochs", lambda config, report: report(6, 0.25) or 0.25)
    Path("space.toml").write_text('[cell]\nchoices = ["gru"]\n[clip_grad_norm]\nchoices = [""]\n')
    assert search(3, "--no-test", "--pruner", "none") == 0
    trials = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert trials[1] == (
        "trial 2 of 3: loss 0.2500 after 6 epochs; cell gru, clip_grad_norm -; 4 s left"
    )


def test_the_default_space_fits_few_samples(capsys):
    """Its batches of 16 to 64 are nobody's wish where a file has fewer sequences."""
    rows = "".join(f"{n},{n},{n % 2}\n" for n in range(30))
    Path("few.csv").write_text("sequence,a,label\n" + rows)
    command = "tune --data few.csv --trials 2 --epochs 1 --out out --no-test --sampler-seed 0"
    assert main(command.split()) == 0
    assert {trial.params["batch_size"] for trial in study().trials} == {16}
    assert "measured  on 6 others after each epoch" in capsys.readouterr().out
    assert tune.with_batches_of(tune.read_space(tune.SPACE), 9)["batch_size"]["choices"] == [""]


def test_divergence_costs_one_trial(monkeypatch):
    original, calls = tune.run_epochs, iter(range(100))

    def diverging(config, report):
        if next(calls) == 1:
            raise tune.Diverged("step 1")
        return original(config, report)

    monkeypatch.setattr(tune, "run_epochs", diverging)
    assert search(4, "--no-test", "--pruner", "none") == 0
    assert [trial.state.name for trial in study().trials] == [
        "COMPLETE",
        "PRUNED",
        "COMPLETE",
        "COMPLETE",
    ]


def test_default_space_is_valid():
    space = tune.read_space(tune.SPACE)
    asked = {
        "cell",
        "hidden_size",
        "num_layers",
        "lr",
        "batch_size",
        "dropout",
        "clip_grad_norm",
        "schedule",
    }
    assert asked <= space.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[colour]\nchoices = [1]", "[colour]: unknown; expected some of amp, batch_size"),
        ("[epochs]\nlow = 1\nhigh = 2", "[epochs]: unknown"),
        ("[lr]\nlow = 2.0\nhigh = 1.0", "[lr]: "),
        ("[lr]\nlow = -1.0\nhigh = 1.0", "[lr]: argument --lr: '-1.0' is not a positive number"),
        ("[lr]\nlow = 1.0", "[lr]: "),
        ("[cell]\nchoices = ['transformer']", "[cell]: argument --cell: invalid choice"),
        ("lr = 3", "[lr]: expected a table"),
        ("[lr", "--space space.toml: "),
        ("", "nothing to search through"),
    ],
)
def test_bad_space_is_named(text, message, capsys):
    Path("space.toml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        search(2)
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert [path.name for path in Path().iterdir()] == ["space.toml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers: it needs --ray"),
        (["--validation", "0"], "--validation 0: "),
        (["--data", "absent.csv"], "--data: invalid choice: 'absent.csv'"),
        (["--storage", "nonsense://x"], "--storage nonsense://x: "),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        search(2, *options)
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def descendants(process):
    """Directories in /proc of what a process has started, and of what these have."""
    with contextlib.suppress(OSError):  # It may end meanwhile.
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                yield Path("/proc", child)
                yield from descendants(child)


def kill_one_worker(killed):
    """SIGKILL to the first Ray worker of this process that runs a trial."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                name = (path / "cmdline").read_bytes()
                if name.startswith(b"ray::ImplicitFunc.train"):
                    os.kill(int(path.name), signal.SIGKILL)
                    killed.append(name)
                    return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray warns of much.
def test_ray_on_two_workers_one_of_which_is_killed(monkeypatch):
    pytest.importorskip("ray.tune")
    monkeypatch.setenv("PYTHONPATH", str(Path(tune.__file__).parents[2]))
    killed: list = []
    killer = threading.Thread(target=kill_one_worker, args=(killed,))
    killer.start()
    assert (
        search(4, "--ray", "--workers", "2", "--no-test", "--pruner", "none", "--epochs", "60") == 0
    )
    killer.join()
    assert killed
    assert [trial.state.name for trial in study().trials] == ["COMPLETE"] * 4
    assert Path("out/best.toml").exists() and "ray" in sys.modules
