"""Microseconds a step, beside torch.nn's modules: the slope between two lengths under graph replay.

A CUDA graph leaves the host out, and the slope what a call costs once: what remains is a step of
the recurrence with its share of the input product and, in training, of the gradients' products.
Rows run in a child process, the most telling first; if one traps or hangs, the child is started
again at the next row.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LENGTHS = (64, 320)  # T, whose difference is divided by: both within a chunk of most shapes
REPLAYS = 20
ROW_SECONDS = 25.0  # a row that takes longer hangs


@dataclass(frozen=True)
class Shape:
    cell: str
    N: int
    H: int
    kind: str
    training: bool
    published: str = field(default="", compare=False)

    def __str__(self) -> str:
        mode = "training" if self.training else "forward"
        return f"{self.cell} {self.kind} N {self.N} H {self.H} {mode}"


def shapes() -> list[Shape]:
    """What others published first, then a grid of sizes."""
    from benchmarks.cases import PUBLISHED

    rows = []
    for shape in PUBLISHED:
        source = f"{shape.microseconds} ({shape.source})" if shape.microseconds else ""
        rows += [
            Shape(shape.cell, shape.N, shape.H, shape.dtype, training, "" if training else source)
            for training in (False, True)
        ]
    rows += [
        Shape(cell, N, H, kind, training)
        for kind in ("float16", "tf32", "bfloat16")
        for H in (128, 512, 1024)
        for N in (16, 64, 128)
        for cell in ("lstm", "gru")
        for training in (False, True)
    ]
    return list(dict.fromkeys(rows))


# --- in the child: torch --------------------------------------------------------------------------


def calls(shape: Shape, package: Any, T: int) -> tuple[Any, Callable[[], Any]]:
    """A module, and a call of it over T steps; in training with all gradients."""
    import torch

    dtype = torch.float32 if shape.kind == "tf32" else getattr(torch, shape.kind)
    torch.manual_seed(0)
    module = getattr(package, shape.cell.upper())(shape.H, shape.H, device="cuda", dtype=dtype)
    x = torch.randn(T, shape.N, shape.H, device="cuda", dtype=dtype, requires_grad=shape.training)
    dy = torch.randn(T, shape.N, shape.H, device="cuda", dtype=dtype)

    def forward() -> Any:
        with torch.no_grad():
            return module(x)

    def train() -> Any:
        y, _ = module(x)
        return torch.autograd.grad(y, [x, *module.parameters()], dy)

    return module, train if shape.training else forward


def replay_us(call: Callable[[], Any]) -> float:
    """Median microseconds of a captured call."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is loaded or allocated once, before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return median(times)


def step_us(shape: Shape, package: Any) -> float:
    short, long = (replay_us(calls(shape, package, T)[1]) for T in LENGTHS)
    return (long - short) / (LENGTHS[1] - LENGTHS[0])


def regime(shape: Shape) -> str:
    """The regime of each pass, as fastrnn.explain tells."""
    import fastrnn

    _, call = calls(shape, fastrnn, LENGTHS[1])
    plans = fastrnn.explain(call).scans[0].plans
    return ", ".join(
        f"{plan['regime']} ({plan['step_us']:.2f} modelled)" for plan in plans.values()
    )


def measure(shape: Shape) -> dict[str, Any]:
    import torch

    import fastrnn

    torch.backends.cudnn.rnn.fp32_precision = "tf32" if shape.kind == "tf32" else "ieee"
    facts: dict[str, Any] = {"regime": regime(shape), "fastrnn": step_us(shape, fastrnn)}
    try:
        facts["torch.nn"] = step_us(shape, torch.nn)
    except RuntimeError as error:
        if "CUDA error" in str(error):
            raise
        facts["torch.nn failed"] = str(error).splitlines()[0][:120]
    return facts


def work(first: int) -> int:
    """Measure rows from the first one on; a JSON line each."""
    for number, shape in list(enumerate(shapes()))[first:]:
        print(json.dumps({"begin": number}), flush=True)
        try:
            facts = measure(shape)
        except Exception as error:  # told as the row's result, and the context may be lost
            print(
                json.dumps({"row": number, "failed": str(error).splitlines()[0][:200]}), flush=True
            )
            if "CUDA" in str(error) or "CUBLAS" in str(error):
                return 1
            continue
        print(json.dumps({"row": number, **facts}), flush=True)
    return 0


# --- in the parent --------------------------------------------------------------------------------


def lines_of(process: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
    """What a child says, until it ends, hangs or time is up."""
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    pending = b""
    while True:
        patience = min(ROW_SECONDS, deadline - time.monotonic())
        if patience <= 0 or not selector.select(patience):
            return
        piece = process.stdout.read()
        if not piece:
            return
        *whole, pending = (pending + piece).split(b"\n")
        for line in whole:
            if line.startswith(b"{"):
                yield json.loads(line)
            else:
                print(line.decode(errors="replace"), flush=True)


def line(shape: Shape, facts: dict[str, Any]) -> str:
    if "failed" in facts:
        return f"FAILED  {shape}: {facts['failed']}"
    text = f"{shape}: {facts['fastrnn']:.2f} µs a step, {facts['regime']}"
    if "torch.nn" in facts:
        text += (
            f"; torch.nn {facts['torch.nn']:.2f} µs, {facts['torch.nn'] / facts['fastrnn']:.2f} ×"
        )
    else:
        text += f"; torch.nn: {facts['torch.nn failed']}"
    return text + (f"; published {shape.published}" if shape.published else "")


def watch(seconds: float) -> int:
    rows, deadline = shapes(), time.monotonic() + seconds
    next_row, failures = 0, 0
    while next_row < len(rows) and time.monotonic() < deadline:
        command = [sys.executable, __file__, "--work", str(next_row)]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        )
        begun, done = next_row, next_row - 1
        for facts in lines_of(child, deadline):
            if "begin" in facts:
                begun = facts["begin"]
                continue
            done = facts["row"]
            failures += "failed" in facts
            print(line(rows[done], facts), flush=True)
        child.kill()
        code = child.wait()
        if done < begun and time.monotonic() < deadline:
            failures += 1
            print(f"FAILED  {rows[begun]}: its process ended with {code} or hung", flush=True)
            done = begun
        next_row = done + 1
        if code == 0:
            break
    if next_row < len(rows):
        print(f"left out for lack of time: {'; '.join(map(str, rows[next_row:]))}")
    return 1 if failures or next_row == 0 else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=90, help="for all rows together")
    parser.add_argument("--dry-run", action="store_true", help="say which rows there are")
    parser.add_argument(
        "--once", type=int, metavar="ROW", help="call one row's module, for a profiler"
    )
    parser.add_argument("--work", type=int, metavar="ROW", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run:
        print("\n".join(map(str, shapes())))
        return 0
    if args.work is not None:
        return work(args.work)
    if args.once is not None:
        import torch

        import fastrnn

        _, call = calls(shapes()[args.once], fastrnn, LENGTHS[1])
        call()
        torch.cuda.synchronize()
        return 0
    return watch(args.seconds)


if __name__ == "__main__":
    sys.exit(main())
