"""tools/gpu on a machine without a GPU: whatever a part does, the report is whole and the next part runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from common import assert_all_close, gradients, leaf, make_scan, present

from fastrnn.ops import ScanWeights, scan

ROOT = Path(__file__).resolve().parents[2]
# It ignores SIGTERM, as does the process that it starts; both print their numbers.
HANG = (
    f'{sys.executable} -c "import os, signal, time; signal.signal(15, signal.SIG_IGN); '
    "os.fork(); print('waits', os.getpid(), flush=True); time.sleep(60)\""
)
TRAP = f"{sys.executable} -c \"print('CUDA error: unspecified launch failure'); import os; os.abort()\""

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run(python: str, verb: str, folder: Path, *options: str, code: int = 3) -> dict[str, str]:
    """What the report says of each part."""
    done = subprocess.run(
        ["bash", "tools/gpu/run.sh", verb, *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": python,
            "OUT": str(folder),
            "FASTRNN_LIBRARY": library(),
        },
        text=True,
        capture_output=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    rows = re.findall(
        rf"^\| {verb} \| (\S+) \| (.*?) \| [\d.]+ \|$", (folder / "report.md").read_text(), re.M
    )
    return dict(rows)


def library() -> str:
    named = os.environ.get("FASTRNN_LIBRARY")
    return named or str(next((ROOT / "fastrnn").glob("_C*.so")))


@pytest.mark.slow
def test_what_needs_no_gpu_runs_and_the_rest_says_so(tmp_path, warm_python):
    outcomes = run(warm_python, "first", tmp_path)
    assert {name: outcomes[name] for name in ("versions", "import")} == {
        "versions": "passed",
        "import": "passed",
    }
    needs_gpu = [
        *(f"smoke-{regime}" for regime in ("block-resident", "grid-resident", "stepwise")),
        "steps",
        "kernels",
    ]
    assert {outcomes[name] for name in needs_gpu} == {"no GPU; dry run passed"}
    assert outcomes["calibrate-build"] in ("passed", "no GPU, and no nvcc")
    assert outcomes["calibrate"].startswith("no GPU; dry run")
    report = (tmp_path / "report.md").read_text()
    assert (
        f"torch: {torch.__version__}" in report
        and "smoke.py --regime grid-resident --dry-run" in report
    )
    assert not list(tmp_path.rglob("*.part"))


def test_a_part_that_traps_or_hangs_stops_nothing(tmp_path, warm_python):
    options = ["--part", f"smoke-block-resident={TRAP}", "--part", f"smoke-grid-resident={HANG}",
               "--limit", "smoke-grid-resident=1.5", "--part", "smoke-stepwise=no-such-program",
               "--only", "smoke-block-resident", "smoke-grid-resident", "smoke-stepwise", "import"]  # fmt: skip
    begin = time.monotonic()
    outcomes = run(warm_python, "first", tmp_path, *options)
    assert outcomes == {
        "versions": "passed",
        "import": "passed",
        "smoke-block-resident": "killed by SIGABRT, trapped",
        "smoke-grid-resident": "timed out after 2 s",
        "smoke-stepwise": "failed to start",
    }
    assert time.monotonic() - begin < 60  # the hanging part alone would take that
    report = (tmp_path / "report.md").read_text()
    assert "CUDA error: unspecified launch failure" in report
    hanging = re.findall(r"^waits (\d+)$", report, re.M)
    assert len(hanging) == 2 and not any(map(is_running, hanging))
    log = (tmp_path / "first.log").read_text()
    assert log.count("=== killed by SIGABRT") == log.count("=== timed out") == 1


def is_running(process: str) -> bool:
    """A killed process that nobody has waited for yet is a zombie, Z, and runs no more."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_a_process_that_runs_is_seen():
    assert is_running(str(os.getpid())) and not is_running("0")


def test_the_users_path_of_packages_is_kept_and_braces_are_no_words(
    tmp_path, monkeypatch, warm_python
):
    (tmp_path / "known_by_path.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = f"{warm_python} -c 'import known_by_path, fastrnn; print({{1: 2}})'"
    outcomes = run(
        warm_python, "first", tmp_path, "--only", "import", "--part", f"import={command}"
    )
    assert outcomes["import"] == "passed"
    assert "\n{1: 2}\n" in (tmp_path / "report.md").read_text()


def test_a_gpu_is_known_by_its_driver_where_torch_takes_too_long(tmp_path, warm_python):
    """What the versions printed before their limit counts, and torch's word where it came."""
    smi = "compute capability: 9.0"
    runner = load_tool("run")
    assert runner.look([smi]) == runner.Machine(True, "9.0", frozenset())
    assert not runner.look([smi, "compute capability: none that torch can use"]).gpu
    assert not runner.look(["compute capability: not found"]).gpu
    late = f"{sys.executable} -c \"import time; print('{smi}', flush=True); time.sleep(60)\""
    options = ["--part", f"versions={late}", "--limit", "versions=2",
               "--part", "smoke-stepwise=true", "--only", "smoke-stepwise"]  # fmt: skip
    outcomes = run(
        warm_python, "first", tmp_path, *options, code=1
    )  # 3 would say that there is no GPU
    assert outcomes == {"versions": "timed out after 2 s", "smoke-stepwise": "passed"}


@pytest.mark.parametrize(("text", "code"), [("one bad case", 1), ("CUDA error: trap", None)])
def test_a_case_that_raises_leaves_the_others_but_for_a_lost_context(
    monkeypatch, capsys, text, code
):
    smoke = load_tool("smoke")

    def error_of(case):
        if case.cell == "gru":
            raise RuntimeError(text)
        return 0.5

    monkeypatch.setattr(smoke, "on_gpu", error_of)
    arguments = ["smoke.py", "--regime", "stepwise", "--types", "float32", "--units", "33"]
    monkeypatch.setattr(sys, "argv", arguments)
    if code is None:
        with pytest.raises(RuntimeError, match="CUDA error"):
            smoke.main()
        return
    assert smoke.main() == code
    printed = capsys.readouterr().out
    assert "FAILED   stepwise gru float32 T 3 N 9 H 33: RuntimeError: one bad case" in printed
    assert "3 ok, 0 refused, 0 WRONG, 1 FAILED" in printed


def test_relu_is_differentiated_for_the_units_that_were_active():
    """The tool's relu agrees with the op on the op's own active units; another set of units has other gradients."""
    smoke = load_tool("smoke")
    input, h_0, c_0, weights = make_scan("rnn_relu", (3, 9, 5, 33))
    leaves = [leaf(tensor, torch.float64) for tensor in (input, h_0, c_0, *weights)]
    results = present(scan("rnn_relu", *leaves[:3], ScanWeights(*leaves[3:])))
    active = results[0] > 0
    outputs = smoke.relu_outputs(active, leaves)
    assert_all_close(outputs, results, torch.float64)
    expected = gradients(results, present(leaves))
    assert_all_close(gradients(outputs, present(leaves)), expected, torch.float64)
    active[0, 0, 0] ^= True
    flipped = gradients(smoke.relu_outputs(active, leaves), present(leaves))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(flipped, expected, strict=True))


def test_verbs_share_a_report_and_no_part_runs_out_of_time(tmp_path, warm_python):
    outcomes = run(warm_python, "first", tmp_path, "--only", "import", "--minutes", "0.0001")
    assert outcomes == {"versions": "left out: no time", "import": "left out: no time"}
    run(warm_python, "profile", tmp_path, "--only", "versions")
    report = (tmp_path / "report.md").read_text()
    assert "| first | import |" in report and "| profile | versions |" in report
    kept = json.loads((tmp_path / "outcomes.json").read_text())
    assert [outcome["verb"] for outcome in kept] == ["first", "first", "profile"]


def test_a_network_is_not_needed(tmp_path):
    """The parts run in a namespace without one, where the machine allows that."""
    inside = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this machine makes no network namespaces")
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(tmp_path),
        "FASTRNN_LIBRARY": library(),
    }
    command = [*inside, "bash", "tools/gpu/run.sh", "first", "--only", "import"]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "| first | import | passed |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "smoke=3"], "no part 'smoke' in first"),
        (["--limit", "import=soon"], "could not convert string to float"),
        (["--part", "import"], "'import' is not NAME=VALUE"),
    ],
)
def test_wrong_options(tmp_path, options, said):
    done = subprocess.run(
        [sys.executable, "tools/gpu/run.py", "first", *options],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and said in done.stderr


def load_tool(name: str):
    """A script of tools/gpu as a module; what it adds to the path of modules is taken off again."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", ROOT / "tools/gpu" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name], before = tool, list(sys.path)  # dataclasses look their module up
    spec.loader.exec_module(tool)
    sys.path[:] = before
    return tool


def parts_of(verb: str) -> list:
    return list(load_tool("run").PARTS[verb]())


def test_limits_fit_the_time(monkeypatch):
    """With a library built beforehand all of `first` fits nine minutes, whatever its parts do."""
    monkeypatch.setenv("FASTRNN_LIBRARY", "built")
    assert sum(part.limit for part in parts_of("first")) <= 9 * 60
    names = [part.name for part in parts_of("tests")]
    assert names[-1] == "traps" and names[-2] == "streams"
    assert {"memcheck-grid-resident", "racecheck-block-resident", "suite-modules"} <= set(names)


def test_the_shapes_that_others_published_come_first(warm_python):
    done = subprocess.run(
        [warm_python, "tools/gpu/steps.py", "--dry-run"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["lstm float16 N 16 H 768 forward", "lstm float16 N 16 H 768 training"]
    assert (
        "gru bfloat16 N 64 H 512 forward" in lines[:14]
        and "lstm tf32 N 32 H 1024 training" in lines[:14]
    )
    assert len(lines) == len(set(lines)) > 60
