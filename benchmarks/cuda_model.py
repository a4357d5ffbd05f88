"""The modelled step time of the CUDA kernels: ``python -m benchmarks.cuda_model``. No GPU is used.

A model, not a measurement. The simulator runs the compiled kernels and counts what a step does:
warp instructions (as many as the machine code of sm_90 has for the simulator's PTX), wavefronts of
shared memory, words exchanged and bytes streamed. csrc/cuda/model.h turns the counts into a time by
adding what follows each other. Beside it stands the time that the plan predicts without running
anything, which chooses among the kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import PUBLISHED, Published
from .step_counts import Step, StepWork, a_step, modelled_us

GPUS = {"H100": "sm_90", "A100": "sm_80", "RTX 4090": "sm_89"}  # as the simulator names them


def counted(step: Step) -> StepWork:
    """The plan's estimate of a step, with what was counted in the place of what was estimated."""
    work = StepWork.from_buffer_copy(step.work)
    work.slots = step.slots
    work.shared_bytes = step.shared_bytes
    work.exchanged_bytes = step.exchanged_bytes if work.exchanged_bytes else 0
    work.streamed_bytes = step.streamed_bytes
    return work


def row(gpu: str, shape: Published, backward: bool) -> dict[str, str]:
    """A row of the table: a shape and pass on a GPU."""
    kind = shape.dtype
    step = a_step(shape.cell, kind, shape.N, shape.H, "", backward, GPUS[gpu])
    plan = step.plan if isinstance(step, Step) else step
    regime, _, _, units, columns, *_, planned = plan.split()
    cells = {
        "shape": f"{shape.cell} {kind} N {shape.N} H {shape.H}",
        "pass": "backward" if backward else "forward",
        "GPU": gpu,
        "regime": regime,
        "planned, µs": f"{float(planned):.2f}",
        "published, µs": "" if backward or not shape.microseconds
        else f"{shape.microseconds} ({shape.source})",
    }  # fmt: skip
    if not isinstance(step, Step):
        return cells | {"step, µs": f"{float(planned):.1f}"}
    work = counted(step)
    return cells | {
        "units x columns": f"{units} x {columns}",
        "warp instructions": f"{work.slots:.0f}",
        "wavefronts": f"{work.shared_bytes / 128:.0f}",
        "exchanged KB": f"{work.exchanged_bytes / 1e3:.0f}",
        "streamed KB": f"{work.streamed_bytes / 1e3:.0f}",
        "step, µs": f"{modelled_us(work, kind, GPUS[gpu]):.2f}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_model", description=__doc__)
    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=list(GPUS))
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/cuda_model.md"))
    args = parser.parse_args(argv)
    rows = []
    for shape in PUBLISHED:
        for backward in (False, True):
            for gpu in args.gpus:
                rows.append(row(gpu, shape, backward))
                print(rows[-1], flush=True)
    names = list(dict.fromkeys(name for cells in rows for name in cells))
    lines = ["| " + " | ".join(names) + " |", "|" + "-|" * len(names)]
    lines += ["| " + " | ".join(cells.get(name, "") for name in names) + " |" for cells in rows]
    page = "\n".join(["A model, not a measurement.", "", *lines, ""])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
