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

from simulator import toolchain
from simulator.cache import cached, digest, version_of
from tools import resources
from tools.simulated import kernels
from tools.simulated.kernels import CSRC

ROOT = Path(__file__).parents[2]
CONDITION = re.compile(r"__CUDA_ARCH__\b.*")


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


def assembled(arch: str, folder: Path) -> list[resources.Kernel]:
    """The kernels for one architecture, from the PTX that the simulator runs, too.

    It is made for 8.0, and no source has other code for a later architecture.
    """
    asked = {line for path in CSRC.rglob("*.*") for line in CONDITION.findall(path.read_text())}
    assert asked == {"__CUDA_ARCH__ >= 800"}
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    for i, source in enumerate(sources):
        if source.stem.startswith("launch_"):
            sources[i] = folder / f"{source.stem}.ptx"
            text = kernels.ptx(source.stem.removeprefix("launch_"), CSRC)
            target = f".target sm_{arch.replace('.', '')}"
            sources[i].write_text(re.sub(r"(?m)^\.target sm_80$", target, text))
    return resources.kernels([arch], sources)


def kept_kernels(archs: list[str]) -> list[resources.Kernel]:
    """The kernels for some architectures, which take minutes, kept by a hash of sources, flags and tools."""
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    makers = [ROOT / "setup.py", Path(kernels.__file__), Path(resources.__file__)]
    assembler = str(resources.toolkit().root / "bin/nvcc")
    commands = [str(toolchain.nvcc()), assembler, resources.tool("cuobjdump")]
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
        made = [kernel for arch in archs for kernel in assembled(arch, path.parent)]
        path.write_text(json.dumps([asdict(kernel) for kernel in made]))

    kept = json.loads(cached(f"{key}-kernels.json", make).read_text())
    return [resources.Kernel(**fields) for fields in kept]


@pytest.mark.slow
def test_resources():
    """No kernel of the shipped sources has a fault on the architectures that CI builds."""
    if resources.toolkit() is None:
        pytest.skip("needs nvcc")
    if not (shutil.which("cuobjdump") or resources.triton_tool("cuobjdump")):
        pytest.skip("needs cuobjdump (pip install triton)")
    found = kept_kernels(["8.0", "9.0"])
    assert {k.arch for k in found} == {"8.0", "9.0"}
    assert [f"{k.name} {k.arch} {k.faults}" for k in found if k.faults] == []
    assert len(re.findall(r"^\| `", resources.table(found), re.MULTILINE)) == len(found)
