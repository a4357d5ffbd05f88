"""Counts a step of the resident CUDA kernels: ``python -m benchmarks.step_counts``. No GPU is used.

How many warp instructions a block issues in a step decides its time as much as its products do.
The simulator runs the kernels' PTX and counts instructions, without those of polls that came too
early, whose number depends on the simulator's schedule; the machine code of sm_90 tells how many
instructions the assembler made of the loop over steps. The product of both, over a few sizes, gives
three coefficients a kernel, written to csrc/cuda/step_counts.h: a warp, a tile of columns, and a
pair of k-steps that a warp multiplies.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.ptx.parser import entries, with_entry
from tools import resources
from tools.simulated.case import Case
from tools.simulated.kernels import ptx
from tools.simulated.scan import StepWork, modelled_us

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["Step", "StepWork", "a_step", "modelled_us"]

HEADER = ROOT / "csrc/cuda/step_counts.h"
STEPS = (2, 4)  # a step costs half of what two more steps cost: loading weights is not a step's
COLUMNS = 8  # samples a tile
WORST_FIT = 0.1  # relative error of a count that the coefficients may leave
RESIDENT = re.compile("(grid|block)_(for|back)ward")
PRECISIONS = {"float16": "kHalf", "tf32": "kTf32", "float32": "kFloat"}
CELLS = {1: "rnn_tanh", 3: "gru", 4: "lstm"}  # by gates


@dataclass(frozen=True)
class Kernel:
    """A resident kernel: what the plan tells apart."""

    regime: str
    backward: bool
    kind: str
    gates: int
    units: int = 16  # of a block's tile rows

    @property
    def forced(self) -> str:
        """The regime, as FASTRNN_CUDA_REGIME names it."""
        return self.regime + f"/{self.units}" * (self.regime == "grid-resident")

    def sizes(self) -> list[tuple[int, int, int]]:
        """N, H and multiprocessors of scans that this kernel runs."""
        if self.regime == "block-resident":
            return [(COLUMNS, H, 132) for H in self.block_units()]
        most = self.most_grid_units()
        return [
            (COLUMNS * tiles, H, H // self.units)
            for H, tiles in ((64, 1), (most // 2, 1), (most, 1), (128, 2), (128, 4))
        ]

    def most_grid_units(self) -> int:
        """A large hidden size whose weights fit the registers of a grid's blocks."""
        if self.kind == "float32":
            return 256
        if self.kind == "tf32":
            return 384 if self.backward and self.gates > 1 else 512
        return 768

    def block_units(self) -> tuple[int, ...]:
        """Hidden sizes whose weights fit a block's registers."""
        if self.kind == "float32":
            return (16, 32) if self.gates > 1 else (16, 32, 64)
        if self.kind == "tf32":
            return (16, 32, 48) if self.gates > 1 else (16, 64, 128)
        return (16, 48, 64) if self.backward and self.gates > 1 else (16, 64, 128)

    def row(self, coefficients: np.ndarray) -> str:
        """The kernel's row of the table in C++."""
        regime = "kBlockResident" if self.regime == "block-resident" else "kGridResident"
        direction = "kBackward" if self.backward else "kForward"
        numbers = ", ".join(f"{number:.0f}" for number in coefficients)
        return (
            f"    {{Regime::{regime}, Direction::{direction}, Precision::{PRECISIONS[self.kind]}, "
            f"{self.gates}, {self.units}, {numbers}}},"
        )


def all_kernels() -> Iterator[Kernel]:
    for regime, backward, kind, gates in itertools.product(
        ("block-resident", "grid-resident"), (False, True), PRECISIONS, CELLS
    ):
        yield Kernel(regime, backward, kind, gates)
    for kind in PRECISIONS:
        yield Kernel("grid-resident", False, kind, gates=4, units=8)


# --- what the assembler made of a loop ------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One of PTX or of machine code, as far as it decides what runs after it."""

    label: str  # of its place; "" if nothing jumps there
    opcode: str  # "" of a label that stands alone
    target: str = ""  # the label it jumps to
    always: bool = False  # nothing falls through it: a jump or an exit that is not predicated


def reachable(start: int, edges: Sequence[Sequence[int]]) -> set[int]:
    """The places that a walk along the edges meets after `start`."""
    seen: set[int] = set()
    waiting = list(edges[start])
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            waiting += edges[place]
    return seen


def loop_length(code: Sequence[Instruction], barrier: str) -> int:
    """Instructions for each barrier of the loop that holds some.

    The loop is what lies on a way from a barrier back to it, wherever the compiler put it.
    """
    places = {instruction.label: place for place, instruction in enumerate(code)}
    after: list[list[int]] = [[] for _ in code]
    before: list[list[int]] = [[] for _ in code]
    for place, instruction in enumerate(code):
        nexts = [places[instruction.target]] if instruction.target else []
        if not instruction.always and place + 1 < len(code):
            nexts.append(place + 1)
        for following in nexts:
            after[place].append(following)
            before[following].append(place)
    for place, instruction in enumerate(code):
        if instruction.opcode.startswith(barrier):
            loop = reachable(place, after) & reachable(place, before)
            opcodes = [code[member].opcode for member in loop]
            if place in loop:
                barriers = sum(opcode.startswith(barrier) for opcode in opcodes)
                return sum(map(bool, opcodes)) // barriers
    raise ValueError("no loop holds a barrier")


def ptx_loop(text: str) -> int:
    """Instructions in the loop over steps of one kernel's PTX."""
    code = []
    for line in text.splitlines():
        line = line.split("//")[0].strip()
        if label := re.fullmatch(r"(\$\w+):", line):
            code.append(Instruction(label[1], ""))
        elif opcode := re.match(r"(@!?%\w+\s+)?([a-z][\w.]*)\b.*;", line):
            jump = re.search(r"\bbra(?:\.uni)?\s+(\$\w+);", line)
            always = not opcode[1] and bool(re.match(r"(bra|ret|exit)\b", opcode[2]))
            code.append(Instruction("", opcode[2], jump[1] if jump else "", always))
    return loop_length(code, "bar.sync")


def sass_loops(text: str) -> dict[str, int]:
    """Instructions in each resident kernel's loop, by mangled name, from cuobjdump -sass."""
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        if function := re.match(r"\s*Function : (\w+)", line):
            code = functions.setdefault(function[1], [])
        elif parts := re.match(
            r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line
        ):
            address, predicate, opcode, operands = parts.groups()
            jump = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
            conditional = predicate or re.search(r"\bU?P\d", operands) or opcode.startswith("BRA.")
            always = not conditional and opcode in ("BRA", "EXIT")
            target = jump[1].lstrip("0") if jump else ""
            code.append(Instruction(address.lstrip("0"), opcode, target, always))
    return {name: loop_length(c, "BAR") for name, c in functions.items() if RESIDENT.search(name)}


@functools.cache
def assembled() -> dict[str, float]:
    """Instructions of sm_90 for one of PTX in the loop over steps, by the kernel's mangled name."""
    ratios = {}
    for unit in ("half", "bfloat16", "float"):
        source = ROOT / "csrc/cuda" / f"launch_{unit}.cu"
        with tempfile.TemporaryDirectory() as folder:
            cubin = resources.compile_cubin(source, "9.0", Path(folder))
            machine_code = sass_loops(resources.machine_code(cubin))
        for name in entries(ptx(unit)):
            if name in machine_code:
                ratios[name] = machine_code[name] / ptx_loop(with_entry(ptx(unit), name))
    return ratios


# --- what the simulator counted -------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What one step of a resident kernel did, of all blocks, and what its plan says."""

    kernel: str  # mangled
    blocks: int
    counters: dict[str, float]
    plan: str
    work: StepWork  # as the plan estimates it

    @property
    def slots(self) -> float:
        """Warp instructions of a block, without those of polls that came too early."""
        ptx_instructions = self.counters["instructions"] - self.counters["polling"]
        return ptx_instructions / 32 / self.blocks * assembled()[self.kernel]

    @property
    def shared_bytes(self) -> float:
        """Bytes of a block; a wavefront moves at most 128, and takes as long for fewer."""
        return 128 * self.counters["shared_wavefronts"] / self.blocks

    @property
    def exchanged_bytes(self) -> float:
        """Words of others that all blocks read, each once: a strong load asks for 16 bytes."""
        return 16 * self.counters["polls"] - self.counters["repolled_bytes"]

    @property
    def streamed_bytes(self) -> float:
        """All else between the blocks and memory, words that were sent included."""
        loads = self.counters["global_load_bytes"] - 16 * self.counters["polls"]
        return loads + self.counters["global_store_bytes"]


def a_step(
    cell: str, kind: str, N: int, H: int, regime: str, backward: bool, device: str, **settings: Any
) -> Step | str:
    """One step; where no resident kernel runs it, its plan."""
    launches: list[Any] = []
    done: Any = None
    for steps in STEPS:
        case = Case(cell, kind, T=steps, N=N, H=H, I=1)
        _, runs = case.run(regime, backward=backward, device=device, races=0, **settings)
        done = runs[-1]
        launches.append(
            [launch for launch in done.report.launches if RESIDENT.search(launch.kernel)]
        )
    if not all(launches):
        return done.plan
    first, second = (each[-1] for each in launches)
    apart = STEPS[1] - STEPS[0]
    counters = {name: (second.total[name] - first.total[name]) / apart for name in first.total}
    return Step(second.kernel, math.prod(second.grid), counters, done.plan, done.work)


def coefficients(kernel: Kernel) -> tuple[np.ndarray, float]:
    """The numbers of a kernel's row, and the worst relative error that they leave."""
    features, slots = [], []
    for N, H, multiprocessors in kernel.sizes():
        cell = CELLS[kernel.gates]
        step = a_step(
            cell, kernel.kind, N, H, kernel.forced, kernel.backward, "sm_90",
            multiprocessors=multiprocessors,
        )  # fmt: skip
        assert isinstance(step, Step), step
        features.append([step.work.warps, step.work.column_tiles, step.work.pairs])
        slots.append(step.slots)
    a = np.array(features)
    solution = np.linalg.lstsq(a, np.array(slots), rcond=None)[0]
    return solution, float(np.abs(a @ solution / slots - 1).max())


def main() -> int:
    """Write the table; rows that came out are printed as they do."""
    rows, worst = [], 0.0
    for kernel in all_kernels():
        numbers, error = coefficients(kernel)
        rows.append(kernel.row(numbers))
        worst = max(worst, error)
        print(f"{rows[-1].strip()}  // within {error:.1%}", flush=True)
    if worst > WORST_FIT:
        print(f"fastrnn: a count differs by {worst:.1%} from what its row says", file=sys.stderr)
        return 1
    text = HEADER.read_text()
    table = re.compile(r"(kStepCounts\[\] = {\n).*?(^};)", re.DOTALL | re.MULTILINE)
    HEADER.write_text(table.sub(lambda match: match[1] + "\n".join(rows) + "\n" + match[2], text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
