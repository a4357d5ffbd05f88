"""Every script of examples/ runs as it stands and prints what it promises."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRINTED = {
    "accelerate_model": "replaced encoder by fastrnn.GRU",
    "agent": "acting, microseconds a step   training, milliseconds an update",
    "episodes": "same values and gradients",
    "own_cell": "same values and gradients; forward and backward:",
    "variable_lengths": "accuracy on 200 new waves: ",
}


def run(python: str, script: Path, folder: Path) -> str:
    """What the script prints; it raises where its own assertions fail."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test():
    assert [script.stem for script in EXAMPLES] == sorted(PRINTED)


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(script, tmp_path, warm_python):
    assert PRINTED[script.stem] in run(warm_python, script, tmp_path)


@pytest.mark.slow
def test_the_example_of_variable_lengths_learns(tmp_path, warm_python):
    printed = run(warm_python, ROOT / "examples" / "variable_lengths.py", tmp_path)
    assert float(printed.split(": ")[1]) > 0.9
