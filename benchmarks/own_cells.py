"""Cells that a user writes: beside the library's own, a loop of torch operations, and JAX's scan.

python -m benchmarks.own_cells [--quick] [--threads N] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import cells, user_cells, zoo
from fastrnn.cells import Cell

from .cases import SHAPES
from .machine import cpu_in_use
from .measure import FULL, QUICK, Effort, take_turns

T = 64  # steps of the cells of the zoo
KERNELS, LOOP, JAX = "kernels", "torch loop", "JAX"
# Cells and layers of the library by the number of their gates, to compare with.
BUILT_IN: dict[int, Callable[[int, int], nn.Module]] = {
    1: fastrnn.RNN, 3: fastrnn.GRU, 4: fastrnn.LSTM,
}  # fmt: skip


@cells.cell(gates=("a",))
def rnn(x: Any, h: Any, s: Any, p: Any) -> Any:
    return cells.tanh(x.a + h.a)


@cells.cell(gates="rzn")
def gru(x: Any, h: Any, s: Any, p: Any) -> Any:
    r, z = cells.sigmoid(x.r + h.r), cells.sigmoid(x.z + h.z)
    n = cells.tanh(x.n + r * h.n)
    return n + z * (s.h - n)


@cells.cell(gates="ifgo", states="c")
def lstm(x: Any, h: Any, s: Any, p: Any) -> Any:
    i, f = cells.sigmoid(x.i + h.i), cells.sigmoid(x.f + h.f)
    c = f * s.c + i * cells.tanh(x.g + h.g)
    return cells.sigmoid(x.o + h.o) * cells.tanh(c), {"c": c}


WRITTEN_AGAIN = (rnn, gru, lstm)


def zoo_cells() -> list[Cell]:
    return [getattr(zoo, name) for name in zoo.__all__]


def extra_inputs(cell: Cell, N: int, H: int) -> dict[str, Tensor]:
    """Values between 0 and 1 for a sample and unit, which suit a gate as well as a time."""
    return {name: torch.rand(1, N, H) for name in cell.inputs}


def training(layer: nn.Module, x: Tensor, **options: Any) -> Callable[[], Any]:
    """A step of training on the sum of the output."""

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x, **options)[0].sum().backward()

    return run


def inference(layer: nn.Module, x: Tensor, **options: Any) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            layer(x, **options)

    return run


def as_a_loop(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same without kernels: torch operations step by step."""

    def looped() -> None:
        with mock.patch.object(
            user_cells, "why_step_by_step", lambda *_: "a benchmark asks for it"
        ):
            run()

    return looped


def jax_training(
    layer: fastrnn.Recurrent, x: Tensor, extra: dict[str, Tensor]
) -> Callable[[], Any]:
    """The same formula in jax.jit(lax.scan), with the gradients of the weights and of the input."""
    import jax
    from jax import numpy as jnp

    operations: dict[str, Callable[..., Any]] = {
        "add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide,
        "neg": jnp.negative, "lt": jnp.less, "le": jnp.less_equal, "eq": jnp.equal,
        "ne": jnp.not_equal, "select": jnp.where, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh,
        "exp": jnp.exp, "log": jnp.log, "softplus": jax.nn.softplus, "sqrt": jnp.sqrt,
        "abs": jnp.abs, "erf": jax.scipy.special.erf, "relu": jax.nn.relu, "elu": jax.nn.elu,
        "minimum": jnp.minimum, "maximum": jnp.maximum,
    }  # fmt: skip
    cell, facts, numbers = layer.cell, layer.cell.facts, tuple(layer.cell.numbers.values())
    initial = [cell.initial.get(name, 0.0) for name in ("h", *cell.states)]
    weights = {name: jnp.array(p.detach().numpy()) for name, p in layer.named_parameters()}
    extras = [
        jnp.broadcast_to(jnp.array(extra[n].numpy()), (*x.shape[:2], layer.hidden_size))
        for n in cell.inputs
    ]

    def loss(weights: Any, x: Any) -> Any:
        gx = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        vectors = [weights[f"{name}_l0"] for name in cell.vectors]

        def step(states: Any, inputs: Any) -> Any:
            gx, *extras = inputs
            gates = jnp.split(gx, facts.input_gates, -1)
            if facts.recurrent_gates:
                gh = states[0] @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
                gates = [*gates, *jnp.split(gh, facts.recurrent_gates, -1)]
            given = [*gates, *states, *vectors, *numbers, *extras]
            after = cell.program.run(given, lambda op, args: operations[op](*args))
            return tuple(after), after[0]

        shape = (x.shape[1], layer.hidden_size)
        start = tuple(jnp.full(shape, value) for value in initial)
        return jax.lax.scan(step, start, (gx, *extras))[1].sum()

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    given = jnp.array(x.detach().numpy())
    return lambda: jax.block_until_ready(function(weights, given))


def medians(runs: dict[str, Callable[[], Any]], effort: Effort) -> dict[str, float]:
    """Milliseconds, everybody taking turns."""
    seconds, _ = take_turns(runs, None, effort)
    return {name: median(times) * 1e3 for name, times in seconds.items()}


def spread(ratios: Sequence[float]) -> str:
    return f"geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}"


def compare_with_built_in(effort: Effort) -> list[str]:
    """The library's cells, written again, at the shapes of the benchmark."""
    lines = [
        "| cell | T | N | I | H | mode | built in, ms | written, ms | built in / written |",
        "|-" * 9 + "|",
    ]
    ratios = []
    for cell in WRITTEN_AGAIN:
        for steps, N, I, H in SHAPES:
            x = torch.randn(steps, N, I, requires_grad=True)
            layers = {
                "built in": BUILT_IN[cell.facts.input_gates](I, H),
                "written": fastrnn.Recurrent(cell, I, H),
            }
            for mode, made in (("forward", inference), ("training", training)):
                times = medians({name: made(layer, x) for name, layer in layers.items()}, effort)
                ratios.append(times["built in"] / times["written"])
                lines.append(
                    f"| {cell.name} | {steps} | {N} | {I} | {H} | {mode} | {times['built in']:.3f} "
                    f"| {times['written']:.3f} | {ratios[-1]:.2f} |"
                )
                print(lines[-1], flush=True)
    return [*lines, "", f"Built in over written: {spread(ratios)}."]


def compare_zoo(effort: Effort, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Training of the zoo beside a loop and JAX, and the rate beside that of a built-in cell."""
    has_jax = util.find_spec("jax") is not None
    head = "| cell | N | H | ms | x torch loop | x JAX | GFLOP/s | of the nearest built in |"
    lines = [head, "|-" * 8 + "|"]
    against_loop: dict[int, list[float]] = {}
    against_jax: list[float] = []
    for cell in zoo_cells():
        gates = max(cell.facts.input_gates, cell.facts.recurrent_gates)
        nearest = min(BUILT_IN, key=lambda count: abs(count - gates))
        for N, H in sizes:
            x = torch.randn(T, N, H, requires_grad=True)
            layer, extra = fastrnn.Recurrent(cell, H, H), extra_inputs(cell, N, H)
            options = {"extra": extra} if extra else {}
            kernels = training(layer, x, **options)
            runs = {
                KERNELS: kernels,
                LOOP: as_a_loop(kernels),
                "built in": training(BUILT_IN[nearest](H, H), x),
            }
            if has_jax:
                runs[JAX] = jax_training(layer, x, extra)
            times = medians(runs, effort)
            products = cell.facts.input_gates + cell.facts.recurrent_gates
            rate = 6e-6 * T * N * H * H * products / times[KERNELS]
            rate_built_in = 6e-6 * T * N * H * H * 2 * nearest / times["built in"]
            against_loop.setdefault(H, []).append(times[LOOP] / times[KERNELS])
            jax = times[JAX] / times[KERNELS] if has_jax else None
            against_jax += [jax] if jax else []
            lines.append(
                f"| {cell.name} | {N} | {H} | {times[KERNELS]:.2f} | {against_loop[H][-1]:.1f} | "
                f"{f'{jax:.2f}' if jax else '-'} | {rate:.0f} | {rate / rate_built_in:.0%} |"
            )
            print(lines[-1], flush=True)
    lines.append("")
    lines += [f"H {H}, over the loop: {spread(ratios)}." for H, ratios in against_loop.items()]
    if against_jax:
        lines.append(f"Over JAX: {spread(against_jax)}.")
    return lines


FIRST_USE = """
import time, torch, fastrnn
from benchmarks.own_cells import lstm
start = time.perf_counter()
fastrnn.Recurrent(lstm, 4, 4)(torch.randn(2, 2, 4))[0].sum().backward()
print(time.perf_counter() - start)
"""


def time_first_use() -> list[str]:
    """Seconds until a cell's first gradient, in a fresh process on one core."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"FASTRNN_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", FIRST_USE]
        for _ in range(4):
            done = subprocess.run(
                command, env=environment, check=True, text=True, capture_output=True
            )
            seconds.append(float(done.stdout))
    compiled, *cached = seconds
    return [
        f"Forward and backward: {compiled:.1f} s compiled, {median(cached):.3f} s from the cache."
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.own_cells", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="short turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    effort = QUICK if arguments.quick else FULL
    page = [
        "# Cells that a user writes",
        "",
        f"{cpu_in_use(arguments.threads)}, torch {torch.__version__}. Medians.",
        *("", "## First use", ""), *time_first_use(),
        *("", "## The library's cells, written again", ""), *compare_with_built_in(effort),
        *("", f"## The zoo, T {T}, training", ""),
        *compare_zoo(effort, [(N, H) for H in (128, 512) for N in (16, 1)]),
    ]  # fmt: skip
    arguments.output.mkdir(parents=True, exist_ok=True)
    written = arguments.output / "own_cells.md"
    written.write_text("\n".join(page) + "\n")
    print("\n".join(line for line in page if not line.startswith("|")))
    print(f"wrote {written}")


if __name__ == "__main__":
    main()
