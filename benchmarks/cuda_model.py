"""The modelled step time of the CUDA kernels: ``python -m benchmarks.cuda_model``. No GPU is used.

The simulator runs the compiled kernels and counts what a step costs; fixed constants of each GPU
turn the counts into a time. It is a model, not a measurement: max(issue of matrix products,
shared-memory wavefronts, L2 bytes over the bandwidth), then the chain of what waits for what: a
word stored until it is seen, the dependent products of a warp, the barrier, the cell. What is
polled again is left out of the bytes: how often depends on the simulator's schedule, not a GPU's;
for the same reason instructions, which polling adds to, are told but do not count.
Published times of cuDNN and FlashRNN are those of FlashRNN's figure head_dim--lstm.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "simulator"))

from scan import machine  # type: ignore[import-not-found]
from test_scan import Case  # type: ignore[import-not-found]

STEPS = (2, 4)  # what a step costs is the difference: loading weights is not the recurrence's


GPUS = {"H100 SXM": "sm_90", "A100": "sm_80", "RTX 4090": "sm_89"}  # as the simulator names them
# cell, kind, N, H, aim forward and backward on an H100 in us, what is published of others
SHAPES = (
    ("lstm", "float16", 16, 768, 1.0, 2.5, "cuDNN 1.96 forward, about 3 backward"),
    ("lstm", "bfloat16", 16, 768, 1.0, 2.5, "FlashRNN 4.76 forward, 8.5 backward"),
    ("gru", "bfloat16", 64, 512, 1.6, None, ""),
    ("lstm", "tf32", 32, 1024, 4.5, None, ""),
    ("lstm", "float16", 8, 128, None, None, ""),
)


def step_counts(cell: str, kind: str, N: int, H: int, device: str, backward: bool):  # type: ignore[no-untyped-def]
    """Counters of one step: of all blocks, and of the busiest one; and the plan."""
    runs = []
    for steps in STEPS:
        case = Case(cell, kind, T=steps, N=N, H=H, I=1)
        _, done = case.run("", backward=backward, device=device, races=0)
        resident = [
            each
            for each in done[-1].report.launches
            if "grid_" in each.kernel or "block_" in each.kernel
        ]
        runs.append((resident[-1] if resident else None, done[-1].plan))
    (first, _), (second, plan) = runs
    if first is None or second is None:
        return None, None, plan
    apart = STEPS[1] - STEPS[0]

    def difference(a: dict[str, int], b: dict[str, int]) -> dict[str, float]:
        return {name: (b[name] - a[name]) / apart for name in a}

    return difference(first.total, second.total), difference(first.busiest, second.busiest), plan


def row(gpu: str, cell: str, kind: str, N: int, H: int, backward: bool) -> dict[str, object]:
    total, busiest, plan = step_counts(cell, kind, N, H, GPUS[gpu], backward)
    regime, _, _, units, columns, _, dependent, planned = plan.split()
    found: dict[str, object] = {
        "GPU": gpu,
        "shape": f"{cell} {kind} N {N} H {H}",
        "pass": "backward" if backward else "forward",
        "regime": regime,
    }
    if total is None or busiest is None:
        return {**found, "step, us": f"{float(planned):.2f} (launches)"}
    constants = machine(GPUS[gpu])
    products = busiest["mma_half"] / constants.half_fma + busiest["mma_tf32"] / constants.tf32_fma
    wavefronts = busiest["shared_wavefronts"]
    l2_bytes = total["global_load_bytes"] - total["repolled_bytes"]
    l2_bytes += 32 * total["global_store_sectors"]
    l2_us = l2_bytes / (constants.l2_tb_s * 1e6)
    exchange = regime == "grid-resident"
    chain = int(dependent) * constants.mma_cycles
    chain += constants.barrier_cycles + constants.cell_cycles
    chain += constants.poll_cycles * exchange
    us = 1e-3 / constants.clock_ghz
    throughput = max(products * us, wavefronts * us, l2_us)
    return {
        **found,
        "units x columns": f"{units} x {columns}",
        "warp instructions, with polling": f"{busiest['instructions'] / 32:.0f}",
        "wavefronts": f"{wavefronts:.0f}",
        "L2 KB": f"{l2_bytes / 1e3:.0f}",
        "round trips": int(exchange),
        "floor, us": f"{chain * us:.2f}",
        "step, us": f"{throughput + chain * us:.2f}",
    }


def main() -> None:
    rows = []
    for cell, kind, N, H, aim_forward, aim_backward, published in SHAPES:
        for backward, aim in ((False, aim_forward), (True, aim_backward)):
            for gpu in GPUS if aim else list(GPUS)[:1]:
                found = row(gpu, cell, kind, N, H, backward)
                found["aim on H100"] = aim or ""
                found["published (measured)"] = published if not backward else ""
                rows.append(found)
                print(found, flush=True)
    names = list(dict.fromkeys(name for each in rows for name in each))
    lines = ["| " + " | ".join(names) + " |", "|" + "-|" * len(names)]
    lines += ["| " + " | ".join(str(each.get(name, "")) for name in names) + " |" for each in rows]
    report = Path("build/benchmarks/cuda_model.md")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("A model, not a measurement.\n\n" + "\n".join(lines) + "\n")
    print(report.read_text())


if __name__ == "__main__":
    main()
