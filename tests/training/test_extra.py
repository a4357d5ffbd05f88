"""Without the packages of extras: the library needs torch alone, a command names the extra it needs."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fastrnn

ROOT = Path(fastrnn.__file__).parents[1]

# Runs before the code under test: packages of other distributions are as if they were not installed.
BLOCKER = """
import json, sys

class Blocker:
    blocked = frozenset(json.loads(sys.argv.pop(1)))

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker)
"""
COMMAND = "import runpy; runpy.run_module('fastrnn', run_name='__main__', alter_sys=True)"
TRAIN_A_LAYER = """
import torch, fastrnn
x = torch.randn(5, 3, 4, requires_grad=True)
output, _ = fastrnn.LSTM(4, 6)(x, lengths=torch.tensor([5, 2, 3]))
output.sum().backward()
assert output.shape == (5, 3, 6) and x.grad.abs().sum() > 0
"""


def torch_and_its_dependencies() -> set[str]:
    """Names of distributions, as torch's metadata lists them."""
    known, wanted = set(), ["torch"]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in known:
            continue
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # torch needs it on other systems only.
            continue
        known.add(name)
        requirements = map(Requirement, lines)
        wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate()]
    return known


def all_but_torch() -> list[str]:
    """Top-level packages of all installed distributions but torch, what it needs, and fastrnn."""
    kept = torch_and_its_dependencies() | {"fastrnn"}
    return sorted(
        package
        for package, distributions in importlib.metadata.packages_distributions().items()
        if not kept.intersection(map(canonicalize_name, distributions))
    )


def run_without(packages: list[str], code: str, *arguments: str) -> subprocess.CompletedProcess:
    # torch warns that there is no numpy while it is imported, before any code of fastrnn runs.
    quiet = ["-W", "ignore:Failed to initialize NumPy:UserWarning"]
    command = [sys.executable, *quiet, "-c", BLOCKER + code, json.dumps(packages), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


def test_library_needs_torch_alone():
    blocked = all_but_torch()
    assert {"numpy", "pytest"} <= set(blocked) and "torch" not in blocked
    result = run_without(blocked, TRAIN_A_LAYER)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        (None, "train"),
        (None, "demo"),
        ("numpy", "train"),
        ("numpy", "demo"),
        ("matplotlib", "demo"),
        ("matplotlib", "train --plot loss.png"),
        ("sktime", "demo"),
        ("sktime", "train --data japanese-vowels"),
        ("tensorboard", "train --log-dir logs"),
        ("pandas", "train --data {csv}"),
        ("safetensors", "train --save-model run.safetensors"),
        ("safetensors", "predict run.safetensors {csv}"),
    ],
)
def test_command_names_the_extra(missing, options, tmp_path):
    (tmp_path / "data.csv").write_text("sequence,a\n0,1\n0,2\n")
    arguments = options.format(csv=tmp_path / "data.csv").split()
    result = run_without([missing] if missing else all_but_torch(), COMMAND, *arguments)
    name = missing or r"\w+"
    message = (
        rf"python -m fastrnn: error: {name} is not installed: pip install 'fastrnn\[train\]'\n"
    )
    assert re.fullmatch(message, result.stderr), result.stderr
    assert (result.returncode, result.stdout) == (2, "")


def test_each_extra_has_what_its_commands_import():
    """From the metadata that pyproject.toml gives: numpy left the dependencies for these extras."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'dependencies = ["torch>=2.10"]' in text
    for extra in ("train", "test", "bench"):
        block = re.search(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        assert '"numpy"' in block[1]
