"""What the build decides and what it says when something is missing; nothing is built here."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from setuptools import Distribution


@pytest.fixture
def setup(monkeypatch):
    for name in ("PATH", "CXX"):  # setup.py changes them for the compilers it starts
        monkeypatch.setenv(name, os.environ.get(name, ""))
    spec = importlib.util.spec_from_file_location("setup", Path(__file__).parents[2] / "setup.py")
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks for its module there.
    monkeypatch.setitem(sys.modules, "setup", module)
    spec.loader.exec_module(module)
    return module


CUDA, NVCC, SOURCES = "13.0", "/usr/local/cuda/bin/nvcc", ["csrc/torch/cuda_scan.cpp"]


@pytest.mark.parametrize(
    ("use_cuda", "torch_cuda", "nvcc", "sources", "expected"),
    [
        ("", CUDA, NVCC, SOURCES, None),
        ("", None, NVCC, SOURCES, "the installed torch is a CPU build"),
        ("", CUDA, None, SOURCES, "nvcc was not found"),
        ("", CUDA, NVCC, [], "this version has no CUDA sources"),
        ("", None, None, SOURCES, "the installed torch is a CPU build, nvcc was not found"),
        ("0", CUDA, NVCC, SOURCES, "USE_CUDA=0"),
        ("0", None, None, [], "USE_CUDA=0"),
        ("1", CUDA, NVCC, SOURCES, None),
    ],
)
def test_cuda_switch(setup, use_cuda, torch_cuda, nvcc, sources, expected):
    assert setup.why_no_cuda(use_cuda, torch_cuda, nvcc, sources) == expected


@pytest.mark.parametrize(
    ("use_cuda", "torch_cuda", "nvcc", "sources", "expected"),
    [
        ("1", None, NVCC, SOURCES, "USE_CUDA=1, but the installed torch is a CPU build"),
        ("1", CUDA, None, SOURCES, "USE_CUDA=1, but nvcc was not found"),
        ("1", CUDA, NVCC, [], "USE_CUDA=1, but this version has no CUDA sources"),
        ("yes", CUDA, NVCC, SOURCES, "USE_CUDA is 'yes', expected 0 or 1"),
    ],
)
def test_cuda_demanded_in_vain(setup, use_cuda, torch_cuda, nvcc, sources, expected):
    with pytest.raises(SystemExit) as stop:
        setup.why_no_cuda(use_cuda, torch_cuda, nvcc, sources)
    assert stop.value.code == f"fastrnn: {expected}"


def test_parts_of_the_toolkit_demanded_in_vain(setup):
    parts = ["cublas_v2.h", "libcublas"]
    expected = "cublas_v2.h was not found, libcublas was not found"
    assert setup.why_no_cuda("", CUDA, NVCC, SOURCES, parts) == expected
    with pytest.raises(SystemExit, match=f"^fastrnn: USE_CUDA=1, but {expected}$"):
        setup.why_no_cuda("1", CUDA, NVCC, SOURCES, parts)


@pytest.mark.parametrize("place", ["CUDA_HOME", "PATH", "wrapper", "wheels", "nowhere"])
def test_toolkit(setup, monkeypatch, tmp_path, place):
    """nvcc lies in its own folder, or behind a script elsewhere; it tells where it is."""
    packages = tmp_path / "site-packages"
    root = packages / "nvidia/cu13" if place == "wheels" else tmp_path / "cuda"
    wheels = packages / "nvidia/cu13"
    for folder in (root / "bin", root / "include/crt", wheels / "include", wheels / "lib"):
        folder.mkdir(parents=True, exist_ok=True)
    for header in ("cuda_runtime_api.h", "crt/host_defines.h"):
        (root / "include" / header).touch()
    (wheels / "lib/libcudart.so.13").touch()
    nvcc = root / "bin/nvcc"
    nvcc.write_text(
        f"#!/bin/sh\necho '#$ _HERE_={root / 'bin'}' >&2\n"
        "printf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\n'\n"
    )
    nvcc.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").symlink_to(nvcc)
    monkeypatch.setenv(
        "PATH", str({"PATH": root, "wrapper": tmp_path}.get(place, packages) / "bin")
    )
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if place == "CUDA_HOME":
        monkeypatch.setenv("CUDA_HOME", str(root))
    if place == "nowhere":
        monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
        assert setup.Toolkit.find(packages) is None
        return
    toolkit = setup.Toolkit.find(packages)
    assert toolkit.root == root
    assert toolkit.missing() == ["cublas_v2.h", "libcublas"]
    (wheels / "include/cublas_v2.h").touch()
    (wheels / "lib/libcublas.so.13").touch()
    assert toolkit.missing() == []
    assert toolkit.library("cublas") == str(wheels / "lib/libcublas.so.13")
    assert setup.Toolkit.find(packages, CUDA).wheels == [wheels]
    assert toolkit.architectures() == "7.5;8.0;8.6;9.0+PTX"
    # A torch of CUDA 12 loads nothing of wheels of 13 beside it.
    if place != "wheels":
        assert setup.Toolkit.find(packages, "12.8").wheels == []


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a compiler")
def test_compiler_version(setup, monkeypatch):
    claim = "c++ -U__clang__ -U__GNUC__ -D__GNUC__="
    monkeypatch.setenv("CXX", claim + "11")
    assert setup.find_compiler() == claim + "11"
    monkeypatch.setenv("CXX", claim + "10")
    with pytest.raises(
        SystemExit, match=r"cannot compile the kernels; g\+\+ >= 11 and clang >= 16 can"
    ):
        setup.find_compiler()


AVX2 = "processor\t: 0\nflags\t\t: fpu fma avx2 f16c\n"
PART_OF_AVX512 = AVX2.replace("f16c", "f16c avx512f")
AVX512 = AVX2.replace("f16c", "f16c avx512f avx512bw avx512dq avx512vl")


@pytest.mark.parametrize(
    ("wanted", "cpuinfo", "expected"),
    [
        pytest.param("best", AVX2, "avx2", id="avx2"),
        pytest.param("best", AVX512, "avx512", id="avx512"),
        pytest.param("best", PART_OF_AVX512, "avx2", id="part-of-avx512"),
        pytest.param("best", "Features\t: fp asimd\n", "neon", id="arm"),
        pytest.param("best", "", "plain", id="unknown"),
        pytest.param("avx512", AVX2, "avx512", id="asked-for"),
    ],
)
def test_one_instruction_set(setup, wanted, cpuinfo, expected):
    assert setup.only_instruction_set(wanted, cpuinfo) == expected


def test_only_an_unknown_instruction_set(setup):
    with pytest.raises(SystemExit, match="FASTRNN_ONLY is 'mmx', expected one of best, avx512, "):
        setup.only_instruction_set("mmx", AVX2)


def test_macros_of_one_instruction_set(setup):
    assert setup.only_macros("avx512", False) == [("FASTRNN_ONLY", "&kAmx,&kAvx512Bf16,&kAvx512")]
    assert setup.only_macros("neon", True) == [
        ("FASTRNN_ONLY", "&kNeon"),
        ("FASTRNN_FLOAT32_ALONE", None),
    ]


def test_sources_of_the_kernels(setup, monkeypatch):
    """A quick build compiles one file of scans, and no build compiles a file twice."""
    monkeypatch.chdir(Path(setup.__file__).parent)
    every = setup.cpu_sources()
    assert (
        len(every)
        == len(set(every))
        == len([*Path("csrc/cpu").glob("*.cpp"), *Path("csrc/stream").glob("*.cpp")])
    )
    scans = [path for path in setup.cpu_sources("avx2", float32_alone=True) if "isa_" in path]
    assert sorted(scans) == ["csrc/cpu/isa_avx2.cpp", "csrc/cpu/isa_avx2_float32.cpp"]
    scans = [path for path in setup.cpu_sources("avx512") if "isa_" in path]
    assert set(scans) == {*map(str, Path("csrc/cpu").glob("isa_avx512*")), "csrc/cpu/isa_amx.cpp"}
    left_out = set(every) - set(setup.cpu_sources(duals=False))
    assert left_out == set(map(str, Path("csrc/cpu").glob("isa_*_duals.cpp")))


needs_tools = pytest.mark.skipif(
    not (shutil.which("c++") and importlib.util.find_spec("ninja")),
    reason="needs a compiler and ninja",
)


@needs_tools
@pytest.mark.parametrize("editable", [False, True])
def test_a_wheel_has_the_headers_that_cells_are_compiled_from(
    setup, monkeypatch, tmp_path, editable
):
    """A checkout has none beside the package, where they would hide csrc; one that is gone goes."""
    root = Path(setup.__file__).parent
    monkeypatch.chdir(root)
    command = Distribution(setup.library()).get_command_obj("build_py")
    command.build_lib, command.editable_mode = str(tmp_path), editable
    stale = tmp_path / "fastrnn/include/cells/gone.h"
    stale.parent.mkdir(parents=True)
    stale.touch()
    command.ensure_finalized()
    command.run()
    shipped = tmp_path / "fastrnn/include"
    if editable:
        assert stale.exists()
        return
    headers = setup.toolchain.cell_headers(shipped)
    assert headers == setup.toolchain.cell_headers(root / "csrc")
    assert {header.parent.name for header in headers} == {"", "cells", "cpu"}
    assert setup.toolchain.cell_layout(shipped) == setup.toolchain.cell_layout(root / "csrc")


def test_the_layout_is_that_of_every_header(setup, tmp_path):
    setup.copy_cell_headers(Path(setup.__file__).parent / "csrc", tmp_path)
    layouts = [setup.toolchain.cell_layout(tmp_path)]
    for header in setup.toolchain.cell_headers(tmp_path):
        with (tmp_path / header).open("a") as file:
            file.write("\n")
        layouts.append(setup.toolchain.cell_layout(tmp_path))
    (tmp_path / "dtypes.h").rename(tmp_path / "types.h")
    layouts.append(setup.toolchain.cell_layout(tmp_path))
    assert len(set(layouts)) == len(layouts) > 20


@needs_tools
def test_the_library_knows_its_layout(setup, monkeypatch):
    monkeypatch.chdir(Path(setup.__file__).parent)
    (module,) = setup.library()["ext_modules"]
    (folder,) = (Path(path) for path in module.include_dirs if path.endswith("build/include"))
    written = (folder / "cell_layout.h").read_text()
    assert written.split()[-1] == f'"{setup.toolchain.cell_layout(Path("csrc"))}"'


@pytest.mark.parametrize("cxx", ["", "clang++-99 -stdlib=libc++"])
def test_no_compiler(setup, monkeypatch, cxx):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(SystemExit, match=r"no C\+\+20 compiler found .* apt-get install g\+\+"):
        setup.find_compiler()


def test_no_torch(setup, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="pip install --no-build-isolation"):
        setup.library()


def test_old_torch(setup, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1\+cpu is too old, expected >= 2\.10"):
        setup.library()


def test_no_ninja(setup, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(SystemExit, match="no ninja found"):
        setup.library()
