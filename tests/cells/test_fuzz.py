"""Random cells: kernels, the loop of torch operations and finite differences agree."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from random_cells import random_cell

from fastrnn import ops, reference
from fastrnn.cells import compilation, toolchain
from fastrnn.library import register_cell
from fastrnn.ops import ScanWeights

# `make test-full` draws 2,000. A call of the compiler takes ten, as it reads the same headers for each.
CELLS = int(os.environ.get("FASTRNN_FUZZ_CELLS", "20"))
CELLS_OF_A_UNIT = 10
SIZES = ((4, 3, 2, 5), (3, 7, 5, 19))  # T, N, I, H


def load_kernels(cells, folder):
    """Compile the float64 kernels of some cells to one library, and load it."""
    source, library = folder / "cells.cpp", folder / "cells.so"
    kernels = ", ".join(f"(compiled_cell<{cell.struct_name}, double>())" for cell in cells)
    source.write_text(
        f'#include "cpu/for_{torch.ops.fastrnn.cell_instruction_set()}.h"\n'
        '#include "cpu/compiled_cell.h"\n'
        "namespace fastrnn {\n" + "\n".join(cell.source() for cell in cells) + "\n}\n"
        f"FASTRNN_COMPILED_CELLS({kernels})\nFASTRNN_END_ISA\n"
    )
    command = compilation.command(source, library, toolchain.CXX_FLAGS.replace("-O3", "-O1"))
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for cell in cells:
        register_cell(cell)
    torch.ops.fastrnn.load_cell(str(library))


def draw_tensors(cell, sizes, generator):
    """The tensors of a scan by name, and its extra inputs."""
    T, N, I, H = sizes
    facts = cell.facts

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    gates, recurrent = facts.input_gates * H, facts.recurrent_gates * H
    tensors = {
        "input": normal(T, N, I),
        "h_0": normal(N, H, scale=0.5),
        "c_0": normal(N, facts.cell_states * H) if facts.cell_states else None,
        "weight_ih": normal(gates, I, scale=I**-0.5),
        "weight_hh": normal(recurrent, H, scale=H**-0.5),
        "bias_ih": normal(gates, scale=0.1),
        "bias_hh": normal(recurrent, scale=0.1),
        "vectors": normal(facts.vectors * H) if facts.vectors else None,
    }
    return tensors, [normal(T, N, H) for _ in range(facts.extra_inputs)]


class Loss:
    """A weighted sum of a scan's results, as a function of all its tensors."""

    def __init__(self, cell, sizes, seed):
        generator = torch.Generator().manual_seed(seed)
        self.cell = cell
        given, extras = draw_tensors(cell, sizes, generator)
        self.names = [name for name, tensor in given.items() if tensor is not None]
        self.leaves = [given[name] for name in self.names] + extras
        self.direction = [
            torch.randn(leaf.shape, generator=generator).double() for leaf in self.leaves
        ]
        self.options = {
            "lengths": torch.randint(1, sizes[0] + 1, (sizes[1],), generator=generator),
            "reverse": bool(seed % 2),
        }

    def __call__(self, scan, leaves):
        named = dict(zip(self.names, leaves, strict=False))
        data = [named.pop(name, None) for name in ("input", "h_0", "c_0")]
        y, h_n, c_n, _ = scan(
            self.cell.op_name, *data, ScanWeights(**named), extras=leaves[len(self.names) :],
            numbers=tuple(self.cell.numbers.values()), **self.options,
        )  # fmt: skip
        results = torch.cat([r.flatten() for r in (y, h_n, c_n) if r is not None])
        return results @ torch.arange(results.numel()).double().cos()

    def gradients(self, scan):
        leaves = [leaf.clone().requires_grad_() for leaf in self.leaves]
        loss = self(scan, leaves)
        return loss, torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)

    def along_direction(self, scan, step):
        """The central difference along the direction."""
        ahead, behind = (
            self(
                scan,
                [
                    leaf + sign * step * d
                    for leaf, d in zip(self.leaves, self.direction, strict=True)
                ],
            )
            for sign in (1, -1)
        )
        return (ahead - behind) / (2 * step)


def compare(cell, loss):
    def said(text):
        return f"{cell}\n{text}"

    value, gradients = loss.gradients(ops.scan)
    expected, expected_gradients = loss.gradients(reference.scan)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10, msg=said)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-9, msg=said)
    slope = sum((g * d).sum() for g, d in zip(gradients, loss.direction, strict=True))
    close = {"rtol": 1e-4, "atol": 1e-5}
    difference = loss.along_direction(ops.scan, 1e-6)
    if not torch.isclose(difference, slope, **close):
        # A kink of maximum, abs or relu may lie within that step, and then beyond a smaller one.
        difference = loss.along_direction(ops.scan, 3e-8)
    torch.testing.assert_close(difference, slope, **close, msg=said)


@pytest.mark.parametrize("first", range(0, CELLS, CELLS_OF_A_UNIT))
def test_kernels_agree_with_the_loop_and_with_differences(first, tmp_path):
    try:
        compilation.present_compiler()
    except toolchain.CannotCompile as error:
        pytest.skip(str(error))
    seeds = range(first, min(first + CELLS_OF_A_UNIT, CELLS))
    cells = [random_cell(1000 + seed)[0] for seed in seeds]
    load_kernels(cells, tmp_path)
    for seed, cell in zip(seeds, cells, strict=True):
        compare(cell, Loss(cell, SIZES[seed % len(SIZES)], seed))
