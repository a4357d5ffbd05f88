"""What there is to know of the CUDA build without a GPU: what is said where there is none, what kernels take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from simulator.cache import cached, digest, version_of
from tools import resources

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["pytest tests", "benchmarks"])
def test_no_gpu_is_said_in_a_line(command):
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--device", "cuda"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2
    (line,) = filter(None, (done.stdout + done.stderr).splitlines())
    assert line.endswith("fastrnn: --device cuda: torch finds no GPU")


def kernel(name: str, **counts: int) -> resources.Kernel:
    usual = {"registers": 96, "local": 0, "shared": 0, "matrix": 8}
    return resources.Kernel("8.0", name, **(usual | counts))


def test_faults_of_kernels():
    assert kernel("grid_forward<Lstm, Half>").faults == []
    assert kernel("grid_forward<Lstm, Half>", matrix=0).faults == ["has no matrix instruction"]
    assert kernel("grid_forward<Lstm, float>", matrix=0).faults == []
    faults = kernel("grid_forward<Gru, Half>", local=16, matrix=0).faults
    assert faults == ["has 16 bytes of local memory", "has no matrix instruction"]
    assert kernel("each<Half>", matrix=0, local=8).faults == []


def test_size_of_a_library():
    one = resources.Contents("_C.abi3.so", 20.04, ["90"], [])
    assert str(one) == "_C.abi3.so, 20.0 MB: code for sm_90; PTX for none" and one.faults == []
    large = resources.Contents("_C.abi3.so", 65, ["80"], ["80"])
    assert large.faults == ["is larger than 64 MB"]


def kept_kernels(archs: list[str]) -> list[resources.Kernel]:
    """resources.kernels(), which takes minutes, kept by a hash of sources, flags and tools."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    makers = [ROOT / "setup.py", Path(resources.__file__)]
    commands = [str(resources.toolkit().root / "bin/nvcc"), resources.tool("cuobjdump")]
    key = digest(
        *archs,
        *map(version_of, commands),
        *(
            part
            for path in sorted(sources)
            for part in (str(path.relative_to(ROOT)), path.read_bytes())
        ),
        *(path.read_bytes() for path in makers),
    )

    def make(path: Path) -> None:
        path.write_text(json.dumps([asdict(kernel) for kernel in resources.kernels(archs)]))

    kept = json.loads(cached(f"{key}-kernels.json", make).read_text())
    return [resources.Kernel(**fields) for fields in kept]


@pytest.mark.slow
def test_resources():
    """No kernel of the shipped sources has a fault on the architectures that CI builds."""
    if resources.toolkit() is None:
        pytest.skip("needs nvcc")
    if not (shutil.which("cuobjdump") or resources.triton_tool("cuobjdump")):
        pytest.skip("needs cuobjdump (pip install triton)")
    kernels = kept_kernels(["8.0", "9.0"])
    assert {k.arch for k in kernels} == {"8.0", "9.0"}
    assert [f"{k.name} {k.arch} {k.faults}" for k in kernels if k.faults] == []
    assert len(re.findall(r"^\| `", resources.table(kernels), re.MULTILINE)) == len(kernels)
