"""Which tests a run has: without packages that only tests and extras use, and in which order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Packages that fastrnn itself does without.
OPTIONAL = (
    "expecttest", "hypothesis", "lightning", "matplotlib", "onnx", "onnxruntime", "onnxscript",
    "opacus", "optuna", "pandas", "plotly", "ray", "rich", "safetensors", "sb3_contrib", "sklearn",
    "sktime", "tensorboard", "tomli_w", "torchrl", "tqdm",
)  # fmt: skip

# A pytest plugin, for the child process alone.
WITHOUT_PACKAGES = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {OPTIONAL!r} else find_spec(name, path, target)

PathFinder.find_spec = find_others
"""


def collect(*arguments: str, plugins: Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "pytest", "--collect-only", "-q", *arguments],
        cwd=ROOT,
        # Installed plugins are packages, too: hypothesis brings one.
        env={**os.environ, "PYTHONPATH": str(plugins), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        text=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_a_missing_package_skips_its_files_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "without_packages.py").write_text(WITHOUT_PACKAGES)
    # A warm Python has imported one of the packages, for torch._dynamo does.
    done = collect("-p", "without_packages", "tests", plugins=tmp_path, python=sys.executable)
    assert done.returncode == 0, done.stdout[-3000:]
    skipped = re.findall(
        r"^SKIPPED \[1\] (tests/[\w/]+\.py):\d+: (.*No module named.*)$", done.stdout, re.MULTILINE
    )
    packages = {
        "tests/integrations/test_lightning.py": "lightning",
        "tests/integrations/test_opacus.py": "opacus",
        "tests/integrations/test_sb3.py": "sb3_contrib",
        "tests/integrations/test_torchrl.py": "torchrl",
        "tests/modules/test_module_db.py": "expecttest",
        "tests/transforms/test_onnx.py": "onnx",
        "tests/project/test_benchmarks.py": "rich",
        "tests/project/test_programs.py": "rich",
        "tests/training/test_csv.py": "pandas",
        "tests/training/test_predict.py": "safetensors",
        "tests/training/test_tune.py": "optuna",
    }
    reasons = dict(skipped)
    assert reasons.keys() == packages.keys()
    for file, package in packages.items():
        assert f"No module named '{package}'" in reasons[file], reasons[file]


def identifiers(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_what_may_trap_runs_last_and_can_be_left_out(tmp_path: Path, warm_python: str) -> None:
    files = ("tests/cuda/test_cuda.py", "tests/ops/test_threads.py")

    def collected_with(*options: str) -> list[str]:
        return identifiers(collect(*files, *options, plugins=tmp_path, python=warm_python))

    collected = collected_with()
    trapping = collected_with("-m", "traps")
    assert {re.sub(r".*::(\w+).*", r"\1", test) for test in trapping} == {
        "test_on_the_current_stream",
        "test_threads_side_by_side",
    }
    assert collected[-len(trapping) :] == trapping
    assert collected_with("-m", "not traps") + trapping == collected


WARNING_TESTS = """
import pytest

@pytest.mark.parametrize("module", ["fastrnn.ops", "numpy"])
def test_warns(module):
    exec("import warnings; warnings.warn('old')", {"__name__": module})
"""


@pytest.mark.parametrize(
    ("options", "failing"),
    [((), ["fastrnn.ops", "numpy"]), (("--foreign-versions",), ["fastrnn.ops"])],
    ids=["pinned", "foreign"],
)
def test_warnings_of_other_packages_are_errors_where_we_pin_them(
    tmp_path: Path, warm_python: str, options: tuple[str, ...], failing: list[str]
) -> None:
    test = tmp_path / "test_warns.py"
    test.write_text(WARNING_TESTS)
    command = [warm_python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "conftest"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *options, str(test)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        text=True,
        capture_output=True,
    )
    assert re.findall(r"^FAILED .*test_warns\[(.*?)\]", done.stdout, re.MULTILINE) == failing
