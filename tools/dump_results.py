"""Dumps the results of a fixed list of scans, and compares two dumps bit for bit.

A change that only moves code must leave every bit of every result as it was. Build the code before
it and the code after it, with one torch on one machine, and run:

    python tools/dump_results.py build/before.pt     # in the checkout before the change
    python tools/dump_results.py build/after.pt      # in the one after it
    python tools/dump_results.py --compare build/before.pt build/after.pt

A quick build has float32 alone: dump and compare --only 'float32 .*(first|grouped)'.
The list covers every cell, dtype and instruction set of the machine; one of everything, odd sizes
and several chunks; both directions, lengths, resets, projections, no biases, recomputed gates,
padded, packed and jagged batches, groups; outputs, gradients, derivatives of gradients and of
outputs along a direction. FASTRNN_LIBRARY names another build of the library than the checkout's.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the fastrnn beside this file, whichever one is installed

from fastrnn import cpu_instruction_sets, ops  # noqa: E402
from fastrnn.library import use_cpu_instruction_set  # noqa: E402
from fastrnn.ops import CELLS, ScanWeights  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
THREADS = 2  # rows and units are split, and barriers are crossed


class Sizes(NamedTuple):
    T: int
    N: int
    I: int
    H: int


SIZES = (
    Sizes(1, 1, 1, 1),
    Sizes(0, 3, 2, 4),  # no step
    Sizes(5, 3, 4, 5),
    Sizes(6, 75, 3, 5),  # few units: samples lie in the lanes of vectors
    Sizes(3, 17, 19, 83),  # a tail of every vector, panel and tile
    Sizes(1, 50, 9, 40),  # a single step, whose weights are packed where they are read
    Sizes(2, 2, 140, 40),  # deeper than one slice of a panel
    Sizes(90, 14, 3, 33),  # several chunks of steps
    Sizes(9, 33, 24, 128),
)
SIZES_OF_DUALS = (Sizes(1, 1, 1, 1), Sizes(5, 3, 4, 5), Sizes(3, 17, 19, 83), Sizes(40, 9, 3, 33))
SIZES_OF_GROUPS = (Sizes(4, 3, 5, 7), Sizes(9, 5, 3, 40))
GROUPS = 3

KINDS = (
    "plain", "reverse", "lengths", "reverse lengths", "resets", "reverse resets", "packed",
    "jagged", "no bias", "recompute", "all states", "projection", "reverse resets projection",
)  # fmt: skip


class Problem(NamedTuple):
    """Arguments of a scan in one dtype: tensors that are differentiated, and options."""

    cell: str
    tensors: list[Tensor | None]  # input, h_0, c_0, five weights, reset_h, reset_c
    options: dict[str, Any]

    def present(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor is not None]

    def run(self, present: Sequence[Tensor]) -> list[Tensor]:
        """Outputs that exist, from the tensors that exist."""
        rest = iter(present)
        tensors = [None if tensor is None else next(rest) for tensor in self.tensors]
        x, h, c, *others = tensors
        weights, (reset_h, reset_c) = ScanWeights(*others[:5]), others[5:]
        outputs = ops.scan(
            self.cell, x, h, c, weights, reset_h=reset_h, reset_c=reset_c, **self.options
        )
        return [output for output in outputs if output is not None]


def make_problem(cell: str, kind: str, sizes: Sizes, dtype: torch.dtype) -> Problem:
    """The same numbers for every dtype, rounded to it."""
    T, N, I, H = sizes
    generator = torch.Generator().manual_seed(7)
    R = (H + 2) // 3 if "projection" in kind else H
    rows, has_c = CELLS[cell].input_gates * H, CELLS[cell].has_cell_state

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    x, h, c = normal(T, N, I), normal(N, R), normal(N, H) if has_c else None
    biases = [None if kind == "no bias" else normal(rows, scale=H**-0.5) for _ in range(2)]
    w_ih, w_hh = normal(rows, I, scale=H**-0.5), normal(rows, R, scale=H**-0.5)
    w_hr = normal(R, H, scale=H**-0.5) if "projection" in kind else None
    reset_h, reset_c = normal(N, R), normal(N, H) if has_c else None
    lengths = torch.randint(0, T + 1, (N,), generator=generator)
    reset = torch.rand(T, N, generator=generator) < 0.3

    options: dict[str, Any] = {"reverse": "reverse" in kind}
    if "lengths" in kind or "resets" in kind:
        options["lengths"] = lengths
    if "resets" in kind:
        options["reset"] = reset
    else:
        reset_h = reset_c = None
    if kind == "packed":
        lengths[0] = T
        lengths = lengths.clamp(min=min(1, T)).sort(descending=True).values
        options["batch_sizes"] = torch.tensor([int((lengths > t).sum()) for t in range(T)]).long()
        x = normal(int(lengths.sum()), I)
    if kind == "jagged":
        options["offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        x = normal(int(lengths.sum()), I)
    options["recompute"] = kind == "recompute"
    options["all_states"] = kind == "all states"
    return Problem(cell, [x, h, c, w_ih, w_hh, *biases, w_hr, reset_h, reset_c], options)


def cotangents(outputs: Sequence[Tensor], step: float) -> list[Tensor]:
    """Cosines at multiples of the step: vmap refuses random numbers."""
    return [
        (torch.arange(1, output.numel() + 1, dtype=torch.float64) * step)
        .cos()
        .view(output.shape)
        .to(output.dtype)
        for output in outputs
    ]


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """The gradients of a linear form of the outputs."""
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents(outputs, 1.0), strict=True)
        if output.requires_grad
    ]
    computed = torch.autograd.grad(
        [y for y, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True, **options
    )
    return [
        torch.zeros_like(input) if gradient is None else gradient
        for gradient, input in zip(computed, inputs, strict=True)
    ]


def first_order(problem: Problem) -> list[Tensor]:
    """Outputs without and with what backward needs, and gradients of all inputs."""
    inputs = problem.present()
    with torch.no_grad():
        inference = problem.run(inputs)
    outputs = problem.run(inputs)
    return [*inference, *outputs, *gradients(outputs, inputs)]


def second_order(problem: Problem) -> list[Tensor]:
    """Gradients of gradients, and outputs' derivatives along a direction."""
    inputs = problem.present()
    first = gradients(problem.run(inputs), inputs, create_graph=True)
    directions = tuple(cotangents(inputs, 2.0))
    _, tangents = torch.func.jvp(
        lambda *tensors: tuple(problem.run(tensors)), tuple(t.detach() for t in inputs), directions
    )
    return [*gradients(first, inputs), *tangents]


def grouped(problem: Problem) -> list[Tensor]:
    """Gradients of a loss of each group, for weights that all groups share and for their own."""
    inputs = [tensor.detach() for tensor in problem.present()]
    x, states, weights = inputs[0], *split_weights(problem, inputs)
    count = len(states)

    def loss(x: Tensor, *rest: Tensor) -> Tensor:
        outputs = problem.run([x, *rest])
        pairs = zip(outputs, cotangents(outputs, 1.0), strict=True)
        return torch.stack([(output * cotangent).sum() for output, cotangent in pairs]).sum()

    arguments = tuple(range(1 + count + len(weights)))
    many = [torch.stack([t * (1 + g / 8) for g in range(GROUPS)]) for t in (x, *states)]
    own = [torch.stack([t * (1 + g / 8) for g in range(GROUPS)]) for t in weights]
    derivative = torch.func.grad(loss, argnums=arguments)
    shared = torch.func.vmap(derivative, in_dims=(0,) * (1 + count) + (None,) * len(weights))
    return [*shared(*many, *weights), *torch.func.vmap(derivative)(*many, *own)]


def split_weights(problem: Problem, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The states of a problem without resets, then its weights."""
    count = 2 if CELLS[problem.cell].has_cell_state else 1
    return inputs[1 : 1 + count], inputs[1 + count :]


Function = Callable[[Problem], list[Tensor]]


def cases() -> Iterator[tuple[str, str, Sizes, torch.dtype, Function]]:
    """Cell, kind, sizes and dtype of every scan, and what is computed of it."""
    for cell, kind in itertools.product(CELLS, KINDS):
        if "projection" in kind and cell != "lstm":
            continue
        for sizes, dtype in itertools.product(SIZES, DTYPES):
            yield cell, kind, sizes, dtype, first_order
        if kind in ("recompute", "all states"):
            continue
        for sizes, dtype in itertools.product(SIZES_OF_DUALS, DTYPES[:2]):
            yield cell, kind, sizes, dtype, second_order
    for cell, sizes, dtype in itertools.product(CELLS, SIZES_OF_GROUPS, DTYPES):
        yield cell, "plain", sizes, dtype, grouped


def dump(path: Path, only: re.Pattern[str]) -> None:
    torch.set_num_threads(THREADS)
    results: dict[str, list[Tensor]] = {}
    for instruction_set in cpu_instruction_sets():
        use_cpu_instruction_set(instruction_set)
        for cell, kind, sizes, dtype, function in cases():
            shape = "-".join(f"{name}{size}" for name, size in sizes._asdict().items())
            words = (instruction_set, cell, str(dtype).removeprefix("torch."), kind, shape)
            name = f"{' '.join(words)} {function.__name__}"
            if only.search(name):
                tensors = function(make_problem(cell, kind, sizes, dtype))
                results[name] = [tensor.detach() for tensor in tensors]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"torch": str(torch.__version__), "results": results}, path)
    total = sum(len(tensors) for tensors in results.values())
    print(f"{path}: {len(results)} scans, {total} tensors, {', '.join(cpu_instruction_sets())}")


def difference(before: Tensor, after: Tensor) -> str | None:
    """What differs, or None where every bit is the same; a NaN is equal to itself alone."""
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return f"{before.dtype} {list(before.shape)} became {after.dtype} {list(after.shape)}"
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[before.dtype.itemsize]
    differ = before.contiguous().view(integer) != after.contiguous().view(integer)
    if not differ.any():
        return None
    index = differ.nonzero()[0].tolist()
    was, now = before[tuple(index)].item(), after[tuple(index)].item()
    largest = (before.double() - after.double()).abs().max().item()
    return (
        f"{int(differ.sum())} of {differ.numel()} values, the first at {index}: "
        f"{was!r} became {now!r}; the largest difference is {largest:.3g}"
    )


def compare(before: Path, after: Path, only: re.Pattern[str]) -> int:
    """The exit status: 0 where all bits are the same."""
    left, right = (torch.load(path) for path in (before, after))
    if left["torch"] != right["torch"]:
        print(f"{left['torch']} and {right['torch']}: dumps of one torch can be compared")
        return 2
    left, right = (
        {name: tensors for name, tensors in each["results"].items() if only.search(name)}
        for each in (left, right)
    )
    lines = [f"only in {before}: {name}" for name in left.keys() - right.keys()]
    lines += [f"only in {after}: {name}" for name in right.keys() - left.keys()]
    for name in (name for name in left if name in right):
        if len(left[name]) != len(right[name]):
            lines.append(f"{name}: {len(left[name])} tensors became {len(right[name])}")
            continue
        for index, pair in enumerate(zip(left[name], right[name], strict=True)):
            if text := difference(*pair):
                lines.append(f"{name}, tensor {index}: {text}")
    print("\n".join(lines[:40]))
    if len(lines) > 40:
        print(f"... and {len(lines) - 40} more")
    tensors = sum(len(tensors) for tensors in left.values())
    verdict = f"{len(lines)} differences" if lines else "the same bits"
    print(f"{len(left)} scans, {tensors} tensors: {verdict}")
    return int(bool(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path, nargs="?", help="the file to write")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument(
        "--only",
        type=re.compile,
        default=re.compile(""),
        metavar="PATTERN",
        help="scans in whose name it is found: 'avx2 lstm float32 packed T5-N3-I4-H5 first_order'",
    )
    arguments = parser.parse_args()
    if (arguments.dump is None) == (arguments.compare is None):
        parser.error("expected a file to write, or --compare and two files")
    if arguments.compare:
        return compare(*arguments.compare, arguments.only)
    dump(arguments.dump, arguments.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
