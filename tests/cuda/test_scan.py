"""csrc/cuda's kernels and host code, compiled by nvcc and run on the simulator, against float64.

The oracle is the CPU's float64 scan, which has tests of its own against plain torch. Inputs are
rounded to the storage type first, so that what remains is the kernels' own error.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor

from simulator import ToolNotFoundError, toolchain

try:
    toolchain.require()
except ToolNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from fastrnn.ops import CELLS
from simulator import SimulatorFinding
from tools.simulated.case import KINDS, TOLERANCE, WEIGHTS, Case
from tools.simulated.scan import INPUTS, Refused, scratch_bytes

# Without it some tests run a part of their cases, chosen by the parameters.
FULL = bool(os.environ.get("FASTRNN_SIMULATOR_FULL"))


def hash_of(*parameters: object) -> int:
    return zlib.crc32(repr(parameters).encode())


def assert_close(case: Case, actual: dict[str, Tensor]) -> None:
    expected = case.oracle()
    errors = {}
    for name, tensor in actual.items():
        if name in ("gates", "cells"):
            continue
        reference = expected[name]
        scale = max(1e-3, reference.norm().item())
        errors[name] = (tensor.double() - reference).norm().item() / scale
    tolerance = TOLERANCE[case.kind]
    if case.cell == "rnn_relu" and case.kind not in ("float32", "float64"):
        # A value that rounding moves across 0 takes its gradient along, and one gradient alone is that share of all.
        tolerance = 8 * tolerance + actual["y"].numel() ** -0.5
    worst = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not worst, f"relative errors {worst}, tolerance {tolerance}"


def regimes(kind: str, R: int = 0) -> tuple[str, ...]:
    if kind == "float64" or R:
        return ("stepwise",)
    return ("block-resident", "grid-resident", "stepwise")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_regime(cell: str, kind: str, reverse: bool) -> None:
    """The case has lengths with zeros, resets to a state, chunks, and sizes that divide nothing."""
    for regime in regimes(kind):
        case = Case(cell, kind, T=5, N=11, H=21, lengths=[5, 0, 3, 5, 1, 2, 4, 5, 0, 5, 3],
                    resets=True, reset_state=True, reverse=reverse)  # fmt: skip
        results, done = case.run(regime, steps=3)
        assert all(each.plan.startswith(regime) for each in done)
        assert_close(case, results)


# T, N, H divide nothing, and take turns: all of them beside every cell and type would take days.
SHAPES = [(9, 1, 1), (1, 17, 5), (2, 3, 83), (9, 3, 129), (2, 17, 260)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "cell, kind, regime",
    [(cell, kind, regime) for cell in CELLS for kind in KINDS for regime in regimes(kind)],
)
def test_odd_sizes(cell: str, kind: str, regime: str, reverse: bool, device: str, shape: tuple[int, int, int]) -> None:  # fmt: skip
    if not FULL and shape != SHAPES[hash_of(cell, kind, regime, reverse, device) % len(SHAPES)]:
        pytest.skip("in the full sweep")
    T, N, H = shape
    case = Case(cell, kind, T, N, H, reverse=reverse, seed=T * N * H)
    try:
        results, done = case.run(regime, device=device)
    except Refused as why:
        assert regime in str(why)
        return
    assert all(each.plan.startswith(regime) for each in done)
    assert_close(case, results)


@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
@pytest.mark.parametrize("cell", CELLS)
def test_without_lengths_bias_or_saved_gates(cell: str, regime: str) -> None:
    case = Case(cell, "float16", T=4, N=9, H=20, bias=False, recompute=True)
    results, _ = case.run(regime, steps=3)
    assert_close(case, results)


LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"batch_sizes": [4, 3, 3, 1]},
    "jagged": {"offsets": [0, 2, 2, 6, 9]},
    "holes": {"offsets": [0, 3, 4, 8, 11], "lengths": [2, 0, 4, 2]},
}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recomputed_gates(cell: str) -> None:
    case = Case(cell, "float32", T=4, N=5, H=19, lengths=[4, 0, 2, 3, 1], recompute=True)
    results, _ = case.run("block-resident" if cell == "gru" else "stepwise", steps=3)
    assert_close(case, results)


@pytest.mark.parametrize(
    ("cell", "kind", "regime"),
    [
        ("lstm", "float64", "stepwise"),
        ("lstm", "float16", "block-resident"),
        ("lstm", "float16", "grid-resident"),
    ],
)
def test_forward_alone(cell: str, kind: str, regime: str) -> None:
    """Without a gradient to come nothing is saved."""
    case = Case(cell, kind, T=3, N=4, H=9)
    results, _ = case.run(regime, backward=False)
    assert set(results) == {"y", "h_n", "c_n"}
    assert_close(case, results)


@pytest.mark.parametrize("R", [0, 6], ids=["", "projected"])
def test_gradients_of_the_final_states_alone(R: int) -> None:
    case = Case("lstm", "float32", T=3, N=4, H=9, R=R, lengths=[3, 1, 0, 2])
    case.grads |= {"d_y": None, "d_cells": None}
    results, _ = case.run("", steps=2)
    assert_close(case, results)


@pytest.mark.parametrize(
    "cell, kind, regime, R",
    [
        ("gru", "float16", "block-resident", 0),
        ("gru", "float16", "grid-resident", 0),
        ("lstm", "float64", "stepwise", 0),
        ("lstm", "float64", "stepwise", 6),
    ],
    ids=["gru-float16-block", "gru-float16-grid", "lstm-float64", "lstm-float64-projection"],
)
def test_a_gradient_alone(cell: str, kind: str, regime: str, R: int) -> None:
    """What is not wanted is not written, and changes no bit of what is."""
    case = Case(cell, kind, T=3, N=4, H=9, R=R, lengths=[3, 0, 2, 1], resets=True, reset_state=True)
    whole, _ = case.run(regime, steps=2)
    for name in INPUTS:
        if case.inputs[name] is not None:
            results, _ = case.run(regime, steps=2, wanted=[name])
            assert torch.equal(results[f"d_{name}"], whole[f"d_{name}"]), name


@pytest.mark.parametrize(
    "layout",
    [{"lengths": [3, 0, 2, 1, 3, 2]}, {"batch_sizes": [6, 3, 3]}],
    ids=["padded", "packed"],
)
@pytest.mark.parametrize(
    "cell, kind, R",
    [("gru", "float16", 0), ("lstm", "float64", 4)],
    ids=["gru-float16", "lstm-float64-projection"],
)
def test_gradients_of_groups(cell: str, kind: str, R: int, layout: dict[str, Any]) -> None:
    """A weight has a gradient for every third sample together."""
    case = Case(cell, kind, T=3, N=6, H=9, R=R, groups=3, **layout)
    results, _ = case.run("", steps=2)
    assert_close(case, results)


@pytest.mark.parametrize("batch_sizes", [None, [13, 4]], ids=["padded", "packed"])
def test_no_features(batch_sizes: list[int] | None) -> None:
    """An input without features has the product 0."""
    case = Case("gru", "float32", T=2, N=13, H=11, I=0, batch_sizes=batch_sizes)
    results, _ = case.run("")
    assert_close(case, results)


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
@pytest.mark.parametrize(("cell", "kind"), [("gru", "float16")])
def test_one_bias(cell: str, kind: str, regime: str, missing: str) -> None:
    case = Case(cell, kind, T=2, N=3, H=9, recompute=True)
    case.inputs[missing] = None
    results, _ = case.run(regime)
    assert_close(case, results)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_projection(kind: str) -> None:
    case = Case("lstm", kind, T=5, N=11, H=13, R=9, lengths=[5, 2, 0, 4, 1, 5, 3, 5, 2, 4, 5],
                resets=True, reset_state=True)  # fmt: skip
    results, _ = case.run("", steps=2)
    assert_close(case, results)
    with pytest.raises(Refused, match="float64" if kind == "float64" else "projection"):
        case.run("grid-resident")


@pytest.mark.parametrize("kind", ["float16", "float32", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_few_multiprocessors(cell: str, kind: str) -> None:
    """A block of the grid computes all columns, several a thread."""
    case = Case(cell, kind, T=3, N=29, H=30, lengths=[n % 4 for n in range(29)], resets=True)
    results, done = case.run("grid-resident", multiprocessors=2)
    unit_blocks, column_blocks = 2, 1
    plan = f"grid-resident {unit_blocks} {column_blocks} "
    assert all(each.plan.startswith(plan) for each in done)
    assert_close(case, results)


def test_code_for_an_older_gpu() -> None:
    """It has no resident kernels, also where a newer GPU runs it."""
    case = Case("lstm", "float16", T=2, N=3, H=9)
    results, done = case.run("", ptx_version=75)
    assert all(each.plan.startswith("stepwise") for each in done)
    assert_close(case, results)
    with pytest.raises(
        Refused, match="grid-resident: compute capability 75, of the device or of the code"
    ):
        case.run("grid-resident", ptx_version=75)


@pytest.mark.parametrize("error", [720, 801], ids=["too large", "not supported"])
def test_a_refused_cooperative_launch_goes_stepwise(error: int) -> None:
    """The scan that is refused begins again, and later ones do not try."""
    case = Case("gru", "float16", T=4, N=5, H=200, lengths=[4, 1, 3, 4, 0])
    for _ in range(2):
        results, done = case.run("", cooperative_error=error)
        assert all(each.plan.startswith("stepwise") for each in done)
        assert_close(case, results)
    words = "too many blocks in cooperative launch" if error == 720 else "operation not supported"
    expected = f"grid-resident: the driver refused a cooperative launch: {words}"
    assert all(expected in each.refusals for each in done)
    with pytest.raises(Refused, match=expected):
        case.run("grid-resident", cooperative_error=error)
    _, done = case.run("")
    assert all(each.plan.startswith("grid-resident") for each in done)


def test_cuda_is_asked_once() -> None:
    """It is asked once about a device and a kernel, for planning is a part of every call."""
    case = Case("lstm", "float16", T=2, N=3, H=40)
    _, first = case.run("grid-resident", multiprocessors=77)
    assert all(each.report.queries > 0 for each in first)
    _, again = case.run("grid-resident", multiprocessors=77)
    assert [each.report.queries for each in again] == [0, 0]
    _, elsewhere = case.run("grid-resident", multiprocessors=78)
    assert all(each.report.queries > 0 for each in elsewhere)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_projection_of_rows(layout: str) -> None:
    case = Case("lstm", "float32", T=4, N=4, H=21, R=13, **LAYOUTS[layout])
    results, _ = case.run("", steps=3)
    assert_close(case, results)


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_rows(layout: str, regime: str, recompute: bool) -> None:
    """With few steps a chunk, no bit of a sample's own differs from those of a single chunk."""
    case = Case("lstm", "float16", T=4, N=4, H=18, recompute=recompute, **LAYOUTS[layout])
    whole, _ = case.run(regime)
    for steps in (1, 3):
        results, done = case.run(regime, steps=steps)
        assert all(f" {steps} " in each.plan for each in done)
        assert_close(case, results)
        for name in ("y", "h_n", "c_n"):
            assert torch.equal(results[name], whole[name]), name


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("layout", ["step_start", "sample_start"])
def test_scratch_memory_does_not_grow_with_the_sequence(layout: str, backward: bool) -> None:
    sizes = {"T": 0, "N": 8, "I": 64, "H": 768, "R": 768, "groups": 1, "steps": 0}
    pointers = ["x", "c_0", "lengths", layout]
    if backward:  # gates were not saved, which takes more buffers than any other case
        pointers += [f"d_{name}" for name in ("x", *WEIGHTS) if name != "weight_hr"]
    short, long = (
        scratch_bytes("lstm", torch.float16, {**sizes, "T": T}, pointers, backward)
        for T in (4096, 1 << 20)
    )
    assert short == long < 1 << 28


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows(layout: str, regime: str, reverse: bool) -> None:
    """Rows follow each other without padding, or with holes, which are nobody's and hold NaN."""
    case = Case("gru", "float32", T=4, N=4, H=18, reverse=reverse, **LAYOUTS[layout])
    for tensor in (case.inputs["x"], case.grads["d_y"]):
        tensor[case.padding()] = torch.nan
    results, _ = case.run(regime, steps=3)
    assert_close(case, results)


@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
@pytest.mark.parametrize("kind", ["float16", "float32", "tf32"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_nonfinite_values_stay_in_their_sample(cell: str, kind: str, regime: str) -> None:
    """NaN, infinities and the exchange's own bit pattern, in x and h_0, hang nothing, and no other sample
    sees them. NaN in padding is not seen at all."""
    case = Case(cell, kind, T=3, N=6, H=17, lengths=[3, 3, 3, 3, 2, 3])
    clean, _ = case.run(regime)
    x, h_0 = case.inputs["x"], case.inputs["h_0"]
    assert x is not None and h_0 is not None
    x[1, 0], h_0[1], x[0, 2], h_0[3, 5] = torch.nan, torch.inf, -torch.inf, torch.nan
    bits = torch.int16 if case.dtype.itemsize == 2 else torch.int32
    h_0.view(bits)[3] = -1  # all its bits are ones
    x[2, 4] = torch.nan  # it lies past its sample's length
    results, _ = case.run(regime)
    for name in ("y", "d_x"):
        for n in (4, 5):
            assert torch.equal(results[name][:, n], clean[name][:, n]), (name, n)
    assert results["y"][1:, 0].isnan().all() and results["y"][0, 3].isnan().all()
    assert results["h_n"][1].isnan().all() or not results["h_n"][1].isinf().any()


@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_nonfinite_weights_reach_no_sample_that_waits(cell: str, kind: str, regime: str) -> None:
    """0 * NaN is NaN, but what does not run multiplies nothing: states and gradients pass it as they are."""
    case = Case(cell, kind, T=3, N=5, H=9, lengths=[3, 0, 1, 0, 2])
    for name in ("weight_hh", "weight_ih"):
        case.inputs[name][:] = torch.nan
    results, _ = case.run(regime)
    for name, given in (("h_n", "h_0"), ("d_h_0", "d_h_n"), ("c_n", "c_0"), ("d_c_0", "d_c_n")):
        source = case.grads if given in case.grads else case.inputs
        if source.get(given) is not None:
            assert torch.equal(results[name][[1, 3]], source[given][[1, 3]]), name
    assert results["h_n"][[0, 2, 4]].isnan().all() and results["d_h_0"][[0, 2, 4]].isnan().all()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("regime", ["block-resident", "grid-resident", "stepwise"])
def test_padding_is_not_read(regime: str, reverse: bool) -> None:
    """NaN past a length, in x and in the gradient of y, changes no bit of any result; nor does a state
    of NaN that enters no step, but in its own sample's final state."""
    case = Case("gru", "float16", T=4, N=5, H=9, lengths=[4, 0, 2, 3, 1], resets=True, reverse=reverse)  # fmt: skip
    clean, _ = case.run(regime, steps=3)
    for tensor in (case.inputs["x"], case.grads["d_y"]):
        tensor[case.padding()] = torch.nan
    case.inputs["h_0"][1] = clean["h_n"][1] = torch.nan
    results, _ = case.run(regime, steps=3)
    for name in results.keys() - {"gates"}:
        torch.testing.assert_close(results[name], clean[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_the_watchdog(kind: str) -> None:
    """A wait that is long is no error, one without end is: a lost block's words never come."""
    case = Case("lstm", kind, T=3, N=3, H=40)
    results, _ = case.run("grid-resident", round_ns=2 << 20)
    assert_close(case, results)
    with pytest.raises(SimulatorFinding, match="trap"):
        case.run("grid-resident", round_ns=200 << 20, lost_blocks=1)


@pytest.mark.parametrize("regime", ["block-resident", "grid-resident"])
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_schedules_do_not_change_a_bit(kind: str, regime: str) -> None:
    case = Case("lstm", kind, T=3, N=9, H=30, lengths=[3, 1, 2, 3, 3, 0, 3, 3, 2])
    first, _ = case.run(regime, schedule_seed=1)
    for seed in range(2, 5):
        again, _ = case.run(regime, schedule_seed=seed)
        for name, tensor in first.items():
            if name not in ("gates", "cells"):
                assert torch.equal(tensor, again[name]), (name, seed)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["float16", "tf32"])
def test_approximations_within_their_bounds(kind: str, seed: int) -> None:
    """Special functions as inexact as PTX allows, and sums of products in any order."""
    case = Case("lstm", kind, T=4, N=5, H=24)
    results, _ = case.run("block-resident", numeric_seed=seed)
    assert_close(case, results)
