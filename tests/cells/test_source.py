"""The C++ struct of a cell: what those of torch's cells save and compute, and, compiled, what torch computes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_cases import derived
from random_cells import random_cell
from torch import Tensor
from written_cells import WRITTEN, random_inputs, written

from fastrnn import cells

CSRC = Path(__file__).parents[2] / "csrc"


def constants(source):
    """The struct's constants, but for its name."""
    return dict(re.findall(r"constexpr (?:int|bool) (k\w+) = (\w+);", source))


def body(source, function):
    """The statements of one of the struct's functions."""
    text = re.search(rf" {function}\(.*?\) {{\n(.*?)\n  }}", source, re.DOTALL)
    return [line.strip() for line in text[1].splitlines()]


def test_an_lstm_is_the_one_of_the_library():
    source = WRITTEN["lstm"].source()
    assert constants(source) == {
        "kInputGates": "4", "kRecurrentGates": "4", "kCellStates": "1", "kVectors": "0",
        "kExtraInputs": "0", "kNumbers": "0", "kSaved": "4", "kSplitGateGradients": "false",
        "kReadsPreviousH": "false", "kBackwardReadsPreviousH": "false", "kReadsNextH": "false",
    }  # fmt: skip
    assert body(source, "forward") == [
        "const V c = state.c[0];",
        "const V i = math::sigmoid(gx[0] + gh[0]);",
        "const V f = math::sigmoid(gx[1] + gh[1]);",
        "const V g = math::tanh(gx[2] + gh[2]);",
        "const V o = math::sigmoid(gx[3] + gh[3]);",
        "const V new_c = mul_add(f, c, i * g);",
        "saved = {i, f, g, o};",
        "state.c[0] = new_c;",
        "state.h = o * math::tanh(new_c);",
    ]
    assert body(source, "output") == [
        "const auto [i, f, g, o] = saved;",
        "return o * math::tanh(next.c[0]);",
    ]
    assert body(source, "backward") == [
        "const auto [i, f, g, o] = saved;",
        "const V d_h = d_state.h;",
        "const V d_c = d_state.c[0];",
        "const V tanh_c = math::tanh(next.c[0]);",
        "const V d_new_c = mul_add(d_h * o, 1 - tanh_c * tanh_c, d_c);",
        "d_gx = {d_new_c * g * i * (1 - i), d_new_c * previous.c[0] * f * (1 - f), "
        "d_new_c * i * (1 - g * g), d_h * tanh_c * o * (1 - o)};",
        "d_gh = d_gx;",
        "d_state.c[0] = d_new_c * f;",
        "d_state.h = V(0);",
    ]
    assert WRITTEN["lstm"].source(projected=True) == source


def test_a_gru_is_the_one_of_the_library():
    source = WRITTEN["gru"].source()
    expected = {"kSaved": "4", "kSplitGateGradients": "true", "kReadsPreviousH": "true",
                "kBackwardReadsPreviousH": "true", "kReadsNextH": "false", "kCellStates": "0"}  # fmt: skip
    assert expected.items() <= constants(source).items()
    assert body(source, "forward") == [
        "const V h = state.h;",
        "const V r = math::sigmoid(gx[0] + gh[0]);",
        "const V z = math::sigmoid(gx[1] + gh[1]);",
        "const V n = math::tanh(mul_add(r, gh[2], gx[2]));",
        "saved = {r, z, n, gh[2]};",
        "state.h = mul_add(z, h - n, n);",
    ]
    backward = [
        "const auto [r, z, n, gh_n] = saved;",
        "const V d_h = d_state.h;",
        "const V t = 1 - z;",
        "const V d_gx_n = d_h * t * (1 - n * n);",
        "const V d_gx_z = d_h * (previous.h - n) * z * t;",
        "const V d_gx_r = d_gx_n * gh_n * r * (1 - r);",
        "d_gx = {d_gx_r, d_gx_z, d_gx_n};",
        "d_gh = {d_gx_r, d_gx_z, d_gx_n * r};",
        "d_state.h = d_h * z;",
    ]
    assert body(source, "backward") == backward
    # Another way to write the same interpolation has the same derivative.
    assert body(WRITTEN["gru_as_torch_writes_it"].source(), "backward") == backward


@pytest.mark.parametrize(
    ("name", "forward", "gradient"),
    [
        ("rnn_tanh", ["state.h = math::tanh(gx[0] + gh[0]);"], "d_h * (1 - next.h * next.h)"),
        (
            "rnn_relu",
            # A NaN passes, as in torch.
            ["const V t = gx[0] + gh[0];", "state.h = select(t <= V(0), V(0), t);"],
            "select(next.h <= V(0), V(0), d_h)",
        ),
    ],
)
def test_an_rnn_is_the_one_of_the_library(name, forward, gradient):
    source = WRITTEN[name].source()
    expected = {
        "kSaved": "0",
        "kReadsNextH": "true",
        "kSplitGateGradients": "false",
        "kReadsPreviousH": "false",
    }
    assert expected.items() <= constants(source).items()
    assert body(source, "forward") == forward
    assert body(source, "backward") == [
        "const V d_h = d_state.h;", f"d_gx = {{{gradient}}};", "d_gh = d_gx;", "d_state.h = V(0);",
    ]  # fmt: skip
    assert " output(" not in source
    # A projection replaces h, so the value is saved.
    projected = WRITTEN[name].source(projected=True)
    assert {"kSaved": "1", "kReadsNextH": "false"}.items() <= constants(projected).items()
    assert body(projected, "output") == ["const auto [new_h] = saved;", "return new_h;"]
    assert WRITTEN[name].for_projection().op_name != WRITTEN[name].op_name


@written(gates=("V", "errno", "gx", "NAN", "math"), states=("saved", "STATE"), vectors=("mul_add",))
def names_that_cpp_has(x, h, s, p):
    total = cells.tanh(x.V + h.V) * cells.sigmoid(x.errno + h.errno) + cells.exp(x.NAN * h.NAN)
    total = total * cells.tanh(x.math - h.math) + cells.softplus(x.gx + h.gx) * p.mul_add
    return total * s.saved, {"saved": total + s.STATE, "STATE": s.saved * 0.5}


# Numbers for V, the headers' functions over them, and a function that runs one step of one unit.
HARNESS = """
#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#define FASTRNN_FN
namespace fastrnn {
template <class V, int n> struct State { V h; std::array<V, n> c; };
template <class V, class C> struct Extras {
  std::array<V, C::kVectors> vectors;
  std::array<V, C::kExtraInputs> inputs;
  std::array<V, C::kNumbers> numbers;
};
template <class V, class C> struct ExtraGradients {
  std::array<V, C::kVectors> vectors;
  std::array<V, C::kExtraInputs> inputs;
};
inline double mul_add(double a, double b, double c) { return a * b + c; }
inline double select(bool condition, double a, double b) { return condition ? a : b; }
namespace math {
template <class V> V constant(double x) { return V(x); }
inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
inline double minimum(double a, double b) { return std::min(a, b); }
inline double maximum(double a, double b) { return std::max(a, b); }
using std::abs, std::erf, std::exp, std::log, std::sqrt, std::tanh;
}  // namespace math

template <class C>
void run(const double* in, double* out) {
  constexpr int n = std::max(1, C::kCellStates);
  auto take = [&](auto& array) { for (auto& x : array) x = *in++; };
  auto give = [&](const auto& array) { for (double x : array) *out++ = x; };
  std::array<double, C::kInputGates> gx, d_gx;
  std::array<double, C::kRecurrentGates> gh, d_gh;
  std::array<double, C::kCellStates> c, d_c;
  Extras<double, C> extra;
  ExtraGradients<double, C> d_extra;
  State<double, n> before{}, d_state{};
  take(gx), take(gh);
  before.h = *in++;
  take(c), take(extra.vectors), take(extra.numbers), take(extra.inputs);
  d_state.h = *in++;
  take(d_c);
  std::copy(c.begin(), c.end(), before.c.begin());
  std::copy(d_c.begin(), d_c.end(), d_state.c.begin());
  State<double, n> after = before;
  std::array<double, C::kSaved> saved;
  C::forward(gx, gh, extra, after, saved);
  *out++ = after.h;
  out = std::copy_n(after.c.begin(), C::kCellStates, out);
  if constexpr (!C::kBackwardReadsPreviousH) before.h = NAN;
  if constexpr (requires { C::output(saved, extra, before, after); }) {
    const double h = after.h;
    after.h = NAN;
    *out++ = C::output(saved, extra, before, after);
    if constexpr (C::kReadsNextH) after.h = h;
  } else {
    *out++ = after.h;
  }
  C::backward(saved, extra, before, after, d_state, d_gx, d_gh, d_extra);
  give(d_gx), give(d_gh);
  *out++ = d_state.h;
  out = std::copy_n(d_state.c.begin(), C::kCellStates, out);
  give(d_extra.vectors), give(d_extra.inputs);
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_compiled_structs_compute_what_torch_computes(tmp_path):
    tried = [*WRITTEN.values(), *(random_cell(seed)[0] for seed in range(20))]
    tried += [
        cell.for_projection() for cell in tried if "ReadsPreviousH = true" not in cell.source()
    ]
    tried = list(dict.fromkeys(tried))
    exported = "".join(
        f'extern "C" void run_{cell.op_name}(const double* in, double* out) '
        f"{{ fastrnn::run<fastrnn::{cell.struct_name}>(in, out); }}\n"
        for cell in tried
    )
    file, library = tmp_path / "cells.cpp", tmp_path / "cells.so"
    file.write_text(HARNESS + "".join(cell.source() for cell in tried) + "}\n" + exported)
    command = ["c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(file)], check=True)
    loaded = ctypes.CDLL(str(library))
    for cell in tried:
        inputs = random_inputs(cell, N=1, H=1)
        seeds = [
            torch.full((1, 1), 0.5 + k, dtype=torch.float64) for k in range(1 + len(cell.states))
        ]
        new_h, states = cell.step(**inputs)
        expected = [new_h, *states, new_h, *derived(cell, inputs, seeds)]
        parts = (inputs["gx"], inputs["gh"], inputs["h"], *inputs["states"], *inputs["vectors"],
                 *inputs["numbers"], *inputs["extras"], *seeds)  # fmt: skip
        given = np.array([x for part in parts if part is not None for x in flat(part)])
        got = np.full(len(expected), np.nan)
        run = getattr(loaded, f"run_{cell.op_name}")
        run(given.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p))
        want = np.array([x for part in expected for x in flat(part)])
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12, err_msg=cell.source())


def flat(part):
    return part.flatten().tolist() if isinstance(part, Tensor) else [part]
