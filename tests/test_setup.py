"""What the build decides and what it says when something is missing; nothing is built here."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def setup(monkeypatch):
    for name in ("PATH", "CXX"):  # setup.py changes them for the compilers it starts
        monkeypatch.setenv(name, os.environ.get(name, ""))
    spec = importlib.util.spec_from_file_location("setup", Path(__file__).parents[1] / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CUDA, NVCC, SOURCES = "13.0", "/usr/local/cuda/bin/nvcc", ["csrc/cuda/scan.cpp"]


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


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a compiler")
def test_compiler_version(setup, monkeypatch):
    claim = "c++ -U__clang__ -U__GNUC__ -D__GNUC__="
    monkeypatch.setenv("CXX", claim + "11")
    assert setup.find_compiler() == claim + "11"
    monkeypatch.setenv("CXX", claim + "10")
    with pytest.raises(SystemExit, match=r"cannot compile the kernels; g\+\+ >= 11 can"):
        setup.find_compiler()


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
