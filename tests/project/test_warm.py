"""tests/warm.py: a warm Python is called, prints and ends as Python does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
sys.path.remove(os.environ["PYTHONPATH"])
here = [sys.path[0], sys.argv, os.getcwd(), sorted(os.environ), sys.stdin.read(), __name__]
print(here, file=sys.stderr)
print(len(sys.path))
sys.exit(3)
"""


@pytest.mark.parametrize(
    "arguments", [["-c", PROGRAM], ["program.py"], ["-m", "program"], ["-u", "-m", "program"]]
)
def test_a_program_cannot_tell_the_difference(warm_python, tmp_path, arguments):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {"PYTHONPATH": str(tmp_path / "packages"), "PATH": os.environ["PATH"], "NAME": "value"}  # fmt: skip
    warm, cold = (
        subprocess.run(
            [python, *arguments, "one", "-2"],
            cwd=tmp_path, env=environment, input="typed", capture_output=True, text=True,
        )
        for python in (warm_python, sys.executable)
    )  # fmt: skip
    assert (warm.returncode, warm.stdout, warm.stderr) == (3, cold.stdout, cold.stderr)


@pytest.mark.parametrize(
    ("code", "status"),
    [("pass", 0), ("1 / 0", 1), ("import os; os.abort()", -signal.SIGABRT)],
)
def test_it_ends_as_the_program_does(warm_python, code, status):
    assert subprocess.run([warm_python, "-c", code], stderr=subprocess.DEVNULL).returncode == status


def test_torch_is_there_and_fastrnn_is_not(warm_python):
    code = "import sys; print(*({'torch', 'torch._dynamo', 'fastrnn'} & sys.modules.keys()))"
    printed = subprocess.check_output([warm_python, "-c", code], text=True)
    assert set(printed.split()) == {"torch", "torch._dynamo"}


def test_a_killed_call_ends_its_program(warm_python):
    code = "import os, time; print(os.getpid()); time.sleep(60)"
    with subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE, text=True) as call:
        program = Path("/proc") / call.stdout.readline().strip()
        assert program.exists()
        call.kill()
    deadline = time.monotonic() + 30
    while program.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_option_that_it_does_not_take_is_named(warm_python):
    done = subprocess.run([warm_python, "-V"], capture_output=True, text=True)
    assert done.returncode == 1 and "-V: a warm Python takes a script, -m or -c" in done.stderr
