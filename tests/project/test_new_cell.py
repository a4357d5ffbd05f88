"""A new cell is one file in csrc/cells and its name in csrc/dispatch.h: the test adds one to a copy of the sources."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Two gates is a number that no cell of the library has: a panel then holds two vectors of units.
MGU = """
// Minimal gated unit, gates f, n: n = tanh(gx_n + f * gh_n), h' = (1 - f) * n + f * h.
#pragma once

#include "cells/cell.h"
#include "cells/math.h"

namespace fastrnn {

struct Mgu : PlainCell<2, false> {
  static constexpr std::string_view kName = "mgu";
  static constexpr int kSaved = 3;  // f, n, gh_n
  static constexpr bool kSplitGateGradients = true;  // f multiplies d gh_n alone
  static constexpr bool kReadsPreviousH = true;
  static constexpr bool kBackwardReadsPreviousH = true;
  static constexpr bool kReadsNextH = false;

  template <class V>
  FASTRNN_FN static void forward(const std::array<V, 2>& gx, const std::array<V, 2>& gh, State<V>& state,
                                 std::array<V, 3>& saved) {
    const V f = math::sigmoid(gx[0] + gh[0]);
    const V n = math::tanh(mul_add(f, gh[1], gx[1]));
    state.h = mul_add(f, state.h - n, n);
    saved = {f, n, gh[1]};
  }

  template <class V>
  FASTRNN_FN static void backward(const std::array<V, 3>& saved, const State<V>& prev, const State<V>&,
                                  State<V>& d_state, std::array<V, 2>& d_gx, std::array<V, 2>& d_gh) {
    const auto [f, n, gh_n] = saved;
    const V dh = d_state.h;
    const V d_n = dh * (1 - f) * (1 - n * n);
    d_gx = {mul_add(d_n, gh_n, dh * (prev.h - n)) * f * (1 - f), d_n};
    d_gh = {d_gx[0], d_n * f};
    d_state.h = dh * f;
  }
};

}  // namespace fastrnn
"""

# Few units with many samples lie in the lanes of vectors; 83 units leave a tail in the last panel; 6,000 rows take
# several chunks.
COMPARISON = """
import torch
from fastrnn import ops, reference

def mgu(gx, gh, h, *_):
    (x_f, x_n), (h_f, h_n) = gx.chunk(2, -1), gh.chunk(2, -1)
    f = torch.sigmoid(x_f + h_f)
    n = torch.tanh(x_n + f * h_n)
    return (1 - f) * n + f * h, ()

reference.STEPS["mgu"] = mgu
generator = torch.Generator().manual_seed(0)

def run(scan, tensors, dtype, **options):
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    x, h, *weights = leaves
    y, h_n, *_ = scan("mgu", x, h, None, ops.ScanWeights(*weights), **options)
    loss = (y * torch.arange(y.numel()).view_as(y).cos()).sum() + h_n.sum()
    return [y, h_n, *torch.autograd.grad(loss, leaves)]

def normal(*shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)

assert ops.CELLS["mgu"][:7] == (2, 2, 0, 0, 0, 0, 3), ops.CELLS
for T, N, I, H in ((5, 3, 4, 5), (6, 75, 3, 5), (3, 17, 19, 83), (1, 50, 9, 40), (60, 100, 3, 33)):
    shapes = (2 * H, I), (2 * H, H), (2 * H,), (2 * H,)
    tensors = [normal(T, N, I), normal(N, H), *(normal(*shape) * H**-0.5 for shape in shapes)]
    lengths = torch.randint(0, T + 1, (N,), generator=generator)
    for reverse in (False, True):
        options = {"lengths": lengths, "reverse": reverse}
        expected = run(reference.scan, tensors, torch.float64, **options)
        for recompute in (False, True):
            actual = run(ops.scan, tensors, torch.float32, **options, recompute=recompute)
            for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
                error = (a.double() - b).abs().max().item() / max(1.0, b.abs().max().item())
                assert error < 1e-5, (T, N, I, H, reverse, recompute, index, error)
"""


def test_a_new_cell_is_one_file_and_one_name(tmp_path: Path) -> None:
    if shutil.which(shlex.split(os.environ.get("CXX", "c++"))[0]) is None:
        pytest.skip("needs a C++ compiler")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copyfile(ROOT / "setup.py", tmp_path / "setup.py")
    # What the compiler optimizes differs in no result, and takes half of its time.
    toolchain = Path("fastrnn/cells/toolchain.py")
    flags = (ROOT / toolchain).read_text()
    assert "-O3" in flags
    (tmp_path / toolchain).parent.mkdir(parents=True)
    (tmp_path / toolchain).write_text(flags.replace("-O3", "-O0"))
    (tmp_path / "csrc/cells/mgu.h").write_text(MGU)
    cells = tmp_path / "csrc/dispatch.h"
    text = cells.read_text()
    include, end_of_list = '#include "cells/lstm.h"\n', ", Lstm>;"
    assert include in text and end_of_list in text
    text = text.replace(include, f'{include}#include "cells/mgu.h"\n')
    cells.write_text(text.replace(end_of_list, ", Lstm, Mgu>;"))

    # One instruction set in float32 is what compiles within a minute.
    environment = os.environ | {"FASTRNN_ONLY": "best,float32", "USE_CUDA": "0"}
    environment.pop("FASTRNN_SANITIZE", None)
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", "built"]
    done = subprocess.run(build, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    environment["FASTRNN_LIBRARY"] = str(tmp_path / "built/fastrnn/_C.abi3.so")
    environment.pop("FASTRNN_CPU_ISA", None)
    compare = [sys.executable, "-c", COMPARISON]
    done = subprocess.run(compare, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
