"""Each header of csrc compiles alone; which folder includes or imports which."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from tools import resources

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HEADERS = sorted(str(path.relative_to(CSRC)) for path in CSRC.rglob("*.h"))
DEVICE_HEADERS = sorted(str(path.relative_to(CSRC)) for path in CSRC.rglob("*.cuh"))


def compile_alone(command: list[str], header: str, folder: Path, suffix: str) -> None:
    source = folder / f"alone{suffix}"
    source.write_text(f'#include "{header}"\n')
    done = subprocess.run([*command, f"-I{CSRC}", str(source)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_compiles_alone(header: str, tmp_path: Path) -> None:
    if header.endswith("for_neon.h") and os.uname().machine != "aarch64":
        pytest.skip("arm_neon.h is a header of Arm's compilers")
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", "-fsyntax-only"]
    if header.startswith("cpu/") and not header.startswith("cpu/for_"):
        command.append("-DFASTRNN_ISA=plain")  # a kernel header is compiled for a named set
    if header.startswith("torch/"):
        command += [f"-isystem{path}" for path in include_paths()]
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    text = (CSRC / header).read_text()
    if "FASTRNN_CELL_LAYOUT" in text:
        command.append('-DFASTRNN_CELL_LAYOUT="alone"')  # the compiler of a cell says it
    if header.startswith(("cuda/", "torch/cuda")) or "cublas" in text:
        kit = resources.toolkit()
        if kit is None:
            pytest.skip("needs CUDA's headers")
        command += [f"-isystem{path}" for path in kit.includes()] + ["-DUSE_CUDA"]
        command.append(f"-I{ROOT}/simulator/runtime/include")
    compile_alone(command, header, tmp_path, ".cpp")


@pytest.mark.parametrize("header", DEVICE_HEADERS)
def test_a_device_header_compiles_alone(header: str, tmp_path: Path) -> None:
    kit = resources.toolkit()
    if kit is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", "-ptx", "-O0"]
    includes = [f"-I{path}" for path in kit.includes()]
    command = [str(kit.root / "bin/nvcc"), *flags, *includes, "-o", str(tmp_path / "alone.ptx")]
    command.append(f"-I{ROOT}/simulator/runtime/include")
    compile_alone(command, header, tmp_path, ".cu")


def test_only_one_folder_includes_torch() -> None:
    includes = re.compile(r"#include <torch/")
    folders = {
        path.relative_to(CSRC).parts[0]
        for path in CSRC.rglob("*.*")
        if includes.search(path.read_text())
    }
    assert folders == {"torch"}


def imported(path: Path) -> set[str]:
    """The names of the top-level modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [
        node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    ]
    return {module.partition(".")[0] for module in modules}


# Test files are modules of their folder: common, or test_scan.
TESTS = {"tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
FORBIDDEN = {
    "benchmarks": TESTS,
    "tools/simulated": TESTS | {"benchmarks"},
    "simulator": TESTS | {"fastrnn", "tools", "benchmarks"},
    # pytest puts a test's own folder on the path alone, so another test may not be there.
    "tests": {name for name in TESTS if name.startswith("test_")},
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_what_it_may(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    imports = {str(path): imported(path) & FORBIDDEN[folder] for path in files}
    assert not {path: names for path, names in imports.items() if names}


def test_the_simulator_knows_no_fastrnn() -> None:
    files = [path for path in (ROOT / "simulator").rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix != ".pyc"]
    assert not [path for path in texts if b"fastrnn" in path.read_bytes().lower()]
