"""A scan to run on the simulator, beside an oracle: the CPU's float64 scan.

Inputs are rounded to the storage type first, so that what remains is the kernels' own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.library import CELLS, named, without_absent

from .scan import INPUTS, OP_NAMES, SAVED, Done, scan

KINDS: dict[str, tuple[torch.dtype, bool]] = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float64": (torch.float64, False),
}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
# Norm of the error over that of the result: sums of a few hundred rounded factors, a few steps.
TOLERANCE = {"float16": 4e-3, "bfloat16": 5e-2, "float32": 3e-6, "tf32": 3e-3, "float64": 1e-14}


def accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


class Case:
    """A scan's arguments, drawn from a seed."""

    def __init__(
        self,
        cell: str,
        kind: str,
        T: int,
        N: int,
        H: int,
        I: int = 3,
        R: int = 0,
        lengths: list[int] | None = None,
        batch_sizes: list[int] | None = None,
        offsets: list[int] | None = None,
        resets: bool = False,
        reset_state: bool = False,
        bias: bool = True,
        recompute: bool = False,
        reverse: bool = False,
        groups: int = 0,
        seed: int = 0,
    ):
        self.cell, self.kind, self.reverse, self.recompute = cell, kind, reverse, recompute
        self.groups = groups
        self.dtype, self.tf32 = KINDS[kind]
        draw = torch.Generator().manual_seed(seed)
        gates, has_c = CELLS[cell].input_gates, CELLS[cell].has_cell_state
        out = R or H

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=draw, dtype=torch.float64) * scale
            return values.to(self.dtype)

        self.rows = sum(batch_sizes) if batch_sizes else offsets[-1] if offsets else 0
        leading = (self.rows,) if self.rows else (T, N)
        self.leading = leading
        self.sizes = {
            "T": T, "N": N, "I": I, "H": H, "R": out, "groups": groups or 1, "steps": 0,
        }  # fmt: skip
        spread = H**-0.5
        self.inputs: dict[str, Tensor | None] = {
            "x": normal(*leading, I),
            "h_0": normal(N, out, scale=0.5),
            "c_0": normal(N, H, scale=0.5) if has_c else None,
            "weight_ih": normal(gates * H, I, scale=spread),
            "weight_hh": normal(gates * H, out, scale=spread),
            "bias_ih": normal(gates * H, scale=0.3) if bias else None,
            "bias_hh": normal(gates * H, scale=0.3) if bias else None,
            "weight_hr": normal(R, H, scale=spread) if R else None,
            "reset_h": normal(N, out, scale=0.5) if reset_state else None,
            "reset_c": normal(N, H, scale=0.5) if reset_state and has_c else None,
        }
        self.lengths = torch.tensor(lengths) if lengths is not None else None
        self.batch_sizes = torch.tensor(batch_sizes) if batch_sizes else None
        self.offsets = torch.tensor(offsets) if offsets else None
        self.reset = torch.rand(T, N, generator=draw) < 0.4 if resets else None
        self.grads = {
            "d_y": normal(*leading, out),
            "d_h_n": normal(N, out),
            "d_c_n": normal(N, H) if has_c else None,
            "d_cells": normal(*leading, H).to(accumulate(self.dtype)) if has_c else None,
        }

    def oracle(self, active: Tensor | None = None) -> dict[str, Tensor]:
        """Results and gradients in float64. Where ReLU's input is nearly 0, rounding decides whether a
        unit is active, and the gradient jumps: with a computed y as `active`, gradients are of its
        active units, results still of the oracle's own."""

        def wide(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.double()

        facts = CELLS[self.cell]
        lists = without_absent(wide(self.inputs[name]) for name in self.names)
        schedule = (self.lengths, self.batch_sizes, self.offsets, self.reset, self.reverse)
        results = named(facts.results, torch.ops.fastrnn.scan(self.cell, *lists, *schedule, True))
        kept = results | ({} if active is None else {"y": active.double()})
        gradients = torch.ops.fastrnn.scan_backward(
            self.cell, [wide(self.grads[f"d_{result.name}"]) for result in facts.differentiable],
            *lists, *schedule, [kept[result.name] for result in facts.saved_results],
            [True] * len(facts.tensors), self.groups,
        )  # fmt: skip
        return {
            **{name: results[name] for name in ("y", "h_n", "c_n") if name in results},
            **{f"d_{name}": grad for name, grad in zip(self.names, gradients, strict=True)},
        }

    @property
    def names(self) -> list[str]:
        """The cell's tensors, as the kernels call them."""
        of_cell = {info.name for info in CELLS[self.cell].tensors}
        return [name for name in INPUTS if OP_NAMES[name] in of_cell]

    def on_device(self) -> dict[str, Tensor | None]:
        """Lengths and where rows start, as the op makes them of what the user gives."""
        lengths, step_start, sample_start = self.lengths, None, None
        if self.batch_sizes is not None:
            lengths = (self.batch_sizes[:, None] > torch.arange(self.sizes["N"])).sum(0)
            step_start = self.batch_sizes.cumsum(0) - self.batch_sizes
        if self.offsets is not None:
            sample_start = self.offsets[:-1].contiguous()
            lengths = self.offsets.diff() if lengths is None else lengths
        return {
            **self.inputs,
            "lengths": lengths,
            "step_start": step_start,
            "sample_start": sample_start,
            "reset": self.reset,
        }

    def padding(self) -> Tensor:
        """Says of each row whether no sample runs it."""
        if self.offsets is not None:
            unused = torch.ones(self.rows, dtype=torch.bool)
            lengths = self.offsets.diff() if self.lengths is None else self.lengths
            for start, length in zip(self.offsets[:-1], lengths, strict=True):
                unused[start : start + length] = False
            return unused
        if self.lengths is not None:
            return torch.arange(self.sizes["T"])[:, None] >= self.lengths
        return torch.zeros(self.leading, dtype=torch.bool)

    def leading_of(self, name: str) -> tuple[int, ...]:
        """What a gradient's shape has before that of its input."""
        return (self.groups,) if self.groups and name in WEIGHTS else ()

    def run(
        self,
        regime: str,
        steps: int = 0,
        backward: bool = True,
        wanted: Sequence[str] = INPUTS,
        **settings: Any,
    ) -> tuple[dict[str, Tensor], list[Done]]:
        """All results, and the gradients of inputs that are wanted."""
        sizes = {**self.sizes, "steps": steps}
        N, H, out = (self.sizes[name] for name in ("N", "H", "R"))
        inputs, wide, facts = self.on_device(), accumulate(self.dtype), CELLS[self.cell]
        results = {
            "y": torch.empty(*self.leading, out, dtype=self.dtype),
            "h_n": torch.empty(N, out, dtype=self.dtype),
        }
        if (values := facts.saved) and backward and not self.recompute:
            results["gates"] = torch.empty(*self.leading, values * H, dtype=self.dtype)
        if facts.has_cell_state:
            results["c_n"] = torch.empty(N, H, dtype=self.dtype)
            if backward:
                results["cells"] = torch.empty(*self.leading, H, dtype=wide)
        common: dict[str, Any] = {"regime": regime, "sizes": sizes, "reverse": self.reverse}
        common |= {"tf32": self.tf32, **settings}
        forward = scan(self.cell, inputs, results, **common)
        if not backward:
            return forward.results, [forward]
        saved = {name: forward.results[name] for name in SAVED if name in forward.results}
        for name in saved.keys() - {"y"}:  # of steps that no sample runs nothing is said
            saved[name][self.padding()] = torch.nan
        gradients = {
            f"d_{name}": torch.empty(self.leading_of(name) + tensor.shape, dtype=self.dtype)
            for name in wanted
            if (tensor := self.inputs[name]) is not None
        }
        inputs = {**inputs, **saved, **self.grads}
        back = scan(self.cell, inputs, gradients, backward=True, **common)
        return {**forward.results, **back.results}, [forward, back]
