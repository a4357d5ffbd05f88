"""Fixtures of the tests, and the device they run on.

``--device cuda`` runs the tests marked ``gpu`` there: the same tests, with tensors on common.py's DEVICE.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
from collections.abc import Generator
from pathlib import Path

import common
import pytest
import torch
import warm
from common import AVAILABLE_INSTRUCTION_SETS, INSTRUCTION_SETS

from fastrnn.library import use_cpu_instruction_set

# Children of the start method forkserver have torch imported already: they start at once, and no thread of this process
# is lost in a fork. A process has one such server, for all tests.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    [
        "fastrnn.training.command_line",
        "torch._dynamo",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.checkpoint.state_dict_loader",
        "torch.distributed.checkpoint.state_dict_saver",
        "torch.distributed.fsdp",
    ]
)

REGIMES = ("automatic", "block-resident", "grid-resident", "stepwise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda")
    parser.addoption(
        "--foreign-versions",
        action="store_true",
        help="packages have versions that we did not pin: their warnings are no errors, fastrnn's are; "
        "--device cuda implies it",
    )


def pytest_configure(config: pytest.Config) -> None:
    common.DEVICE = config.getoption("--device")
    if common.DEVICE == "cuda" or config.getoption("--foreign-versions"):
        for line in ("default", "error:::fastrnn"):  # the last one that matches counts
            config.addinivalue_line("filterwarnings", line)
    if common.DEVICE == "cuda" and config.getoption("numprocesses", None):
        pytest.exit("fastrnn: --device cuda runs in one process: leave -n out", returncode=2)
    if common.DEVICE == "cpu":
        # As many workers as cores share the machine. A test about threads asks for them itself.
        os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start read it
        # A package of AOTInductor runs a few times here: to optimize its host code takes longer.
        os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"
        torch.set_num_threads(1)
        # The workers are a crowd, in which scans on several threads would soon run on one.
        os.environ["FASTRNN_KEEP_THREADS"] = "1"
    if common.DEVICE == "cuda":
        if not torch.cuda.is_available():
            pytest.exit("fastrnn: --device cuda: torch finds no GPU", returncode=2)
        # The tolerance of float32 is that of its products; TF32 has a test of its own.
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if common.DEVICE != "cpu":
        others = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("gpu")]

    # A test that traps comes last: pyproject.toml says why. A slow one comes first, for a worker that
    # starts it when the others have nothing left lets them wait.
    def rank(item: pytest.Item) -> tuple[bool, bool]:
        traps, slow = (item.get_closest_marker(name) for name in ("traps", "slow"))
        return traps is not None, slow is None

    items.sort(key=rank)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "instruction_set" in metafunc.fixturenames:
        sets = INSTRUCTION_SETS if common.DEVICE == "cpu" else REGIMES
        metafunc.parametrize("instruction_set", sets, indirect=True)


@pytest.fixture(autouse=True)
def default_device() -> Generator[None, None, None]:
    """On a GPU, tensors and modules are made there by tests that do not say where."""
    with torch.device("cuda") if common.DEVICE == "cuda" else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def warm_python() -> Generator[str, None, None]:
    """An executable in the place of Python's, for programs that import torch: it has done so."""
    with warm.python() as executable:
        yield executable


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set, or on a GPU a regime; a test is skipped if it cannot run."""
    if common.DEVICE == "cuda":
        if request.param != "automatic":
            monkeypatch.setenv("FASTRNN_CUDA_REGIME", request.param)
        return request.param
    if request.param not in AVAILABLE_INSTRUCTION_SETS:
        pytest.skip(f"this machine cannot run {request.param}")
    use_cpu_instruction_set(request.param)
    request.addfinalizer(lambda: use_cpu_instruction_set(None))
    return request.param


@pytest.fixture
def two_threads() -> Generator[None, None, None]:
    """torch has two threads for a whole test, and scans that are large enough run on both."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_cudnn() -> Generator[None, None, None]:
    """torch.nn uses no cuDNN for a whole test."""
    with common.without_cudnn():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    except RuntimeError as error:
        if "what FASTRNN_CUDA_REGIME asks for cannot run this" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if common.DEVICE != "cuda":
        return
    if importlib.util.find_spec("rich") is None:
        terminalreporter.write_line("no build/gpu/report.md: it needs the package rich")
        return
    from benchmarks.report import write_part

    kinds = ("passed", "failed", "error", "skipped")
    by_kind = {kind: terminalreporter.stats.get(kind, []) for kind in kinds}
    chosen = terminalreporter.config.option.keyword
    lines = [
        f"# Tests on a GPU, -k {chosen!r}" if chosen else "# Tests on a GPU",
        "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: "
        + ", ".join(f"{len(reports)} {kind}" for kind, reports in by_kind.items()),
        "",
        *(f"- {kind}: `{r.nodeid}`" for kind in ("failed", "error") for r in by_kind[kind]),
    ]
    write_part(Path("build/gpu/report.md"), "\n".join(lines))
