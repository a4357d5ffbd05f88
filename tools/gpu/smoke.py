"""Every cell and type in one regime, forward and backward, against float64 on CPU.

Run one regime a process: a kernel that traps takes the whole CUDA context along. With --simulator
the compiled kernels run on the simulator instead. Prints a line a case; a case that the regime
refuses is told with the reason and is no failure. Exits with 1 where a result is wrong or a case
fails otherwise; only a lost CUDA context ends the process before its last case.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

REGIMES = ("block-resident", "grid-resident", "stepwise")
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
TYPES = ("float32", "tf32", "float16", "bfloat16", "float64")
UNITS = (33, 200)  # H: within a block's registers, and beyond; neither fills its tiles
T, N, I = 3, 9, 5


@dataclass(frozen=True)
class Case:
    regime: str
    cell: str
    kind: str
    H: int

    def __str__(self) -> str:
        return f"{self.regime} {self.cell} {self.kind} T {T} N {N} H {self.H}"


class Refused(Exception):
    """The regime cannot run a case; the text says why."""


def relu_outputs(active: Tensor, leaves: Sequence[Tensor | None]) -> list[Tensor]:
    """y and h_n of a ReLU network, in whose step t the units `active[t]` pass their input on.

    Where that input is nearly 0, rounding decides which units are active, and one of thousands
    moves the gradients by more than their tolerance. So they are compared for the same units;
    the results are not, or a unit that is wrongly silent would hide.

    Args:
        active: [T, N, H], booleans.
        leaves: input, h_0, c_0 (None) and the weights of a network without a projection.
    """
    import torch

    input, h, _, weight_ih, weight_hh, bias_ih, bias_hh, *_ = leaves
    steps = []
    for x, passes in zip(input, active, strict=True):
        h = (x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh) * passes
        steps.append(h)
    return [torch.stack(steps), h]


def on_gpu(case: Case) -> float:
    """The largest error of results and gradients over what the type allows."""
    import torch
    from common import TOLERANCE, gradients, leaf, make_scan, present

    from fastrnn.ops import ScanWeights, scan

    os.environ["FASTRNN_CUDA_REGIME"] = case.regime
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if case.kind == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    dtype = torch.float32 if case.kind == "tf32" else getattr(torch, case.kind)
    # TF32 has as many bits of mantissa as float16.
    tolerance = TOLERANCE[torch.float16 if case.kind == "tf32" else dtype]

    def run(to: torch.dtype, device: str, active: Tensor | None = None) -> list[Tensor]:
        input, h_0, c_0, weights = make_scan(case.cell, (T, N, I, case.H))
        rounded = [
            None if tensor is None else tensor.to(dtype) for tensor in (input, h_0, c_0, *weights)
        ]
        leaves = [None if tensor is None else leaf(tensor.to(device), to) for tensor in rounded]
        results = present(scan(case.cell, *leaves[:3], ScanWeights(*leaves[3:])))
        differentiated = results if active is None else relu_outputs(active, leaves)
        return [*results, *gradients(differentiated, present(leaves))]

    try:
        computed = run(dtype, "cuda")
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "what FASTRNN_CUDA_REGIME asks for cannot run this" in str(error):
            raise Refused(str(error).split(": ", 2)[-1].strip().splitlines()[0]) from None
        raise
    active = computed[0].cpu() > 0 if case.cell == "rnn_relu" else None
    expected = run(torch.float64, "cpu", active)
    errors = [
        (a.double().cpu() - b).norm().item() / max(1e-3, b.norm().item())
        for a, b in zip(computed, expected, strict=True)
    ]
    return worst(errors) / tolerance


def on_simulator(case: Case) -> float:
    from tools.simulated import case as simulated
    from tools.simulated.scan import Refused as RefusedByPlan

    inputs = simulated.Case(case.cell, case.kind, T=T, N=N, H=case.H, I=I)
    try:
        computed, _ = inputs.run(case.regime)
    except RefusedByPlan as why:
        raise Refused(str(why).splitlines()[0]) from None
    expected = inputs.oracle(computed["y"] if case.cell == "rnn_relu" else None)
    errors = [
        (tensor.double() - expected[name]).norm().item() / max(1e-3, expected[name].norm().item())
        for name, tensor in computed.items()
        if name in expected
    ]
    return worst(errors) / simulated.TOLERANCE[case.kind]


def worst(errors: list[float]) -> float:
    """The largest error; NaN counts as infinite."""
    return max(error if error == error else float("inf") for error in errors)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for regime, H, kind, cell in itertools.product(args.regime, args.units, args.types, args.cells):
        yield Case(regime, cell, kind, H)


def check(case: Case, error_of: Callable[[Case], float]) -> str:
    begin = time.perf_counter()
    try:
        error = error_of(case)
    except Refused as why:
        return f"refused  {case}: {why}"
    except Exception as error:
        if "CUDA error" in str(error):  # the context is lost, and every later case with it
            raise
        text = str(error).strip() or repr(error)
        return f"FAILED   {case}: {type(error).__name__}: {text.splitlines()[0]}"
    verdict = "ok      " if error <= 1 else "WRONG   "
    seconds = time.perf_counter() - begin
    return f"{verdict} {case}: error {error:.2g} of the tolerance, {seconds:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--regime", nargs="+", choices=REGIMES, default=REGIMES)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--units", nargs="+", type=int, default=UNITS, metavar="H")
    parser.add_argument("--simulator", action="store_true", help="instead of a GPU")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    args = parser.parse_args()
    chosen = list(cases(args))
    if args.dry_run:
        print("\n".join(map(str, chosen)))
        return 0
    lines = []
    for case in chosen:
        lines.append(check(case, on_simulator if args.simulator else on_gpu))
        print(lines[-1], flush=True)
    counts = {
        word: sum(line.startswith(word) for line in lines)
        for word in ("ok", "refused", "WRONG", "FAILED")
    }
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 1 if counts["WRONG"] or counts["FAILED"] or not counts["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
