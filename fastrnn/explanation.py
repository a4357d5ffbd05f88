"""Tells which kernel a model runs and why no faster one, as text or as a dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastrnn import functional, reference, user_cells
from fastrnn.layers import run_stack
from fastrnn.layouts import rows_of
from fastrnn.library import (
    CELLS,
    USER_CELLS,
    CellFacts,
    ScanWeights,
    named,
    weight_kinds,
    with_absent,
)
from fastrnn.torch_internals import TorchDispatchMode, op_argument_names

__all__ = ["Explanation", "ScanExplanation", "explain"]

_PACKED_WHERE_READ = "weights are packed where they are read: a single step reads them once"


@dataclass
class ScanExplanation:
    """One layer in one direction, as its kernel ran.

    Attributes:
        cell: ``rnn_tanh``, ``rnn_relu``, ``gru``, ``lstm``, or the name of a user's cell.
        direction: ``forward`` or ``reverse``.
        sizes: T, N, I, H, R (proj_size or H), and how many of the T * N steps were run.
        dtype: of input and weights.
        layout: ``padded``, ``packed`` or ``jagged``.
        kernel: ``units in lanes`` or ``samples in lanes`` of a vector; on a GPU
            ``block-resident``, ``grid-resident`` or ``stepwise``; ``torch operations``, step by
            step, of a user's cell that has no kernels here.
        instruction_set: what the kernel is compiled for; on a GPU its architecture. Empty of torch
            operations, as are the next three.
        threads: how many were asked for, and how they share a step: groups of samples times groups
            of hidden units. Empty on a GPU. (Two directions of a layer, which may run side by side
            on a thread each, follow each other while they are explained.)
        chunk_steps: steps whose input products are computed at once, forward and backward. Empty
            on a GPU.
        plans: on a GPU how each pass, ``forward`` and ``backward``, is cut into blocks, as
            csrc/cuda/plan.h says, with a modelled time of a step in µs. Empty on CPU.
        saved_bytes: kept for backward: input, output, cell states and gates; 0 in inference.
        flop: of the forward products, two for a multiply-add; backward has twice as many.
        reasons: why no faster kernel was chosen.
        weights: of a frozen layer, in which type they are packed once; else empty.
        tuning: what the kernel counts on of this machine, as csrc/cpu/tuning.h says: bytes of a
            thread's share of a forward chunk, bytes of weights that stay in its second-level
            cache, and the modelled cycles of the barrier at which a step's threads meet. Empty on
            a GPU and where samples lie in lanes.
    """

    cell: str
    direction: str
    sizes: dict[str, int]
    dtype: str
    layout: str
    kernel: str
    instruction_set: str
    threads: dict[str, int]
    chunk_steps: dict[str, int]
    saved_bytes: int
    flop: int
    reasons: list[str] = field(default_factory=list)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: str = ""
    tuning: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = " ".join(f"{name} {value}" for name, value in self.sizes.items())
        threads = self.threads
        lines = [
            f"{self.cell} {self.direction}, {self.dtype}, {self.layout}: {sizes}",
            f"kernel: {self.kernel}" + f", {self.instruction_set}" * bool(self.instruction_set),
        ]
        if self.weights:
            lines.append(f"weights: {self.weights}, packed once")
        lines += [
            f"{pass_name}: " + ", ".join(f"{name} {value}" for name, value in plan.items())
            for pass_name, plan in self.plans.items()
        ]
        if threads:
            lines.append(
                f"threads: {threads['asked']}, sharing samples in {threads['sample_groups']} and "
                f"hidden units in {threads['unit_groups']}"
            )
        if self.chunk_steps.get("forward"):
            lines.append(
                f"chunks: {self.chunk_steps['forward']} steps forward, "
                f"{self.chunk_steps['backward']} backward"
            )
        if tuning := self.tuning:
            lines.append(
                f"tuning: forward chunks of {tuning['forward_chunk_bytes'] // 1024} KiB, weights "
                f"up to {tuning['near_bytes'] // 1024} KiB are near, a barrier of "
                f"{tuning['barrier_threads']} threads {tuning['barrier_cycles']} cycles"
            )
        lines += [
            f"saved for backward: {self.saved_bytes:,} bytes",
            f"forward: {self.flop:,} FLOP",
            *(f"- {reason}" for reason in self.reasons),
        ]
        return "\n  ".join(lines)


@dataclass
class Explanation:
    """The result of :func:`explain`; ``str()`` of it is a text for people.

    Attributes:
        scans: one entry for each layer and direction, in the order they ran.
    """

    scans: list[ScanExplanation]

    def as_dict(self) -> dict[str, Any]:
        """The explanation as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, self.scans)) or "no fastrnn layer ran"


def explain(module: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Run a module once and tell which kernel each of its recurrent layers ran, and why.

    Args:
        module: a fastrnn module, or a model or function that calls some.
        args, kwargs: its input. Gradients count as they would: under ``torch.no_grad()`` nothing
            is saved for backward.

    Returns:
        :class:`Explanation`: print it, or take its ``as_dict()``.

    Example::

        >>> print(fastrnn.explain(fastrnn.GRU(64, 128), torch.randn(100, 32, 64)))
    """
    if not callable(module):
        raise TypeError(f"explain: module must be callable, got {type(module).__name__}")
    listener = _Listener()
    with listener, user_cells.observed_by(listener.run_step_by_step):
        module(*args, **kwargs)
    return Explanation(listener.scans)


class _Listener(TorchDispatchMode):
    """Records every call of the op, below autograd and vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.scans: list[ScanExplanation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        ops = torch.ops.fastrnn
        if func is ops.scan.default:
            self.scans.append(_describe(args, results))
        elif func in (ops.stack.default, ops.step.default):
            self._listen_to_scans_of(_stack_of_step(*args) if func is ops.step.default else args)
        return results

    def run_step_by_step(
        self, cell: str, input: Tensor, h_0: Tensor, c_0: Any, weights: ScanWeights, **options: Any
    ) -> Any:
        """Run and describe a user's cell that has no kernels."""
        weight_storages = {_place(weight) for weight in weights if weight is not None}
        kept: dict[int, int] = {}  # bytes of a storage by its place

        def keep(tensor: Tensor) -> Tensor:
            if _place(tensor) not in weight_storages:
                kept[_place(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results = reference.scan(cell, input, h_0, c_0, weights, **options)
        self.scans.append(_describe_steps(cell, input, weights, options, sum(kept.values())))
        return results

    def _listen_to_scans_of(self, stack: Sequence[Any]) -> None:
        """Describe a call of a frozen module, by the scans that it stands for."""
        cell, input, states, reset_states, weights, layers, directions, *schedule = stack
        lengths, batch_sizes, offsets, reset, reverse, packed = schedule
        before, each = len(self.scans), len(weights) // (layers * directions)
        kinds = weight_kinds(bias=each >= 4, projection=each % 2 == 1)
        with self:
            run_stack(
                cell,
                input,
                states,
                functional.split_weights(cell, weights, kinds, CELLS[cell], layers, directions),
                directions=directions,
                dropout=0.0,
                reset_states=reset_states,
                lengths=lengths,
                batch_sizes=batch_sizes,
                offsets=offsets,
                reset=reset,
                reverse=reverse,
                rounds_to="",
            )
        for scan in self.scans[before:]:
            scan.weights = packed.weight_type
            scan.reasons = [reason for reason in scan.reasons if reason != _PACKED_WHERE_READ]


def _stack_of_step(
    cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], packed: Tensor
) -> tuple[Any, ...]:
    """The arguments of the op `stack` for those of `step`, (N, I) or (I,)."""
    rows = [tensor.reshape(1, -1, tensor.size(-1)) for tensor in (input, *states)]
    return cell, rows[0], rows[1:], (), weights, 1, 1, None, None, None, None, False, packed


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _describe_steps(
    cell: str, input: Tensor, weights: ScanWeights, options: dict[str, Any], saved_bytes: int
) -> ScanExplanation:
    """What ran as torch operations, step by step."""
    schedule = [options.get(name) for name in ("batch_sizes", "offsets", "lengths")]
    if input.dim() == 3:
        (T, N), lengths = input.shape[:2], schedule[2]
    else:
        rows = rows_of(input.size(0), *schedule)
        (T, N), lengths = rows.of_padded.shape, rows.lengths
    facts, R = CELLS[cell], weights.weight_hh.size(1)
    sizes = {
        "T": T,
        "N": N,
        "I": input.size(-1),
        "H": weights.weight_ih.size(0) // facts.input_gates,
        "R": R,
        "steps run": T * N if lengths is None else int(lengths.sum()),
    }
    reason = user_cells.why_step_by_step(cell, input.dtype, input.device.type)
    return ScanExplanation(
        cell=_name(cell),
        direction=_direction(options),
        sizes=sizes,
        dtype=str(input.dtype).removeprefix("torch."),
        layout=_layout(options),
        kernel="torch operations",
        instruction_set="",
        threads={},
        chunk_steps={},
        saved_bytes=saved_bytes,
        flop=_flop(facts, sizes, projected=weights.weight_hr is not None),
        reasons=[f"no kernels: {reason}"],
    )


def _name(cell: str) -> str:
    return USER_CELLS[cell].name if cell in USER_CELLS else cell


def _direction(arguments: dict[str, Any]) -> str:
    return "reverse" if arguments["reverse"] else "forward"


def _layout(arguments: dict[str, Any]) -> str:
    if arguments["batch_sizes"] is not None:
        return "packed"
    return "jagged" if arguments["offsets"] is not None else "padded"


def _flop(facts: CellFacts, sizes: dict[str, int], projected: bool) -> int:
    """The forward products take these, two for a multiply-add."""
    H, I, R = sizes["H"], sizes["I"], sizes["R"]
    products = H * (facts.input_gates * I + facts.recurrent_gates * R) + R * H * projected
    return 2 * products * sizes["steps run"]


def _describe(args: Sequence[Any], results: Sequence[Tensor]) -> ScanExplanation:
    names = op_argument_names(torch.ops.fastrnn.scan.default)
    arguments = dict(zip(names, args, strict=False))
    table = CELLS[arguments["cell"]]
    arguments |= named(
        table.tensors, with_absent(table.tensors, arguments["tensors"], arguments["present"])
    )
    text = torch.ops.fastrnn.scan_choice(*args)
    facts = dict(line.split(": ", 1) for line in text.splitlines())
    number = {key: int(value) for key, value in facts.items() if value.isdigit()}
    plans = _plans(facts)
    sizes = {key: number[key] for key in ("T", "N", "I", "H", "R")}
    sizes["steps run"] = number["rows"]
    input, by_name = arguments["input"], named(table.results, results)
    saved = [by_name[result.name] for result in table.saved_results]
    kept = (input, *saved) if arguments["save"] else ()
    return ScanExplanation(
        cell=_name(arguments["cell"]),
        direction=_direction(arguments),
        sizes=sizes,
        dtype=str(input.dtype).removeprefix("torch."),
        layout=_layout(arguments),
        kernel=facts["kernel"] if not plans else plans["forward"]["regime"],
        instruction_set=facts["instruction_set"],
        threads={} if plans else {
            "asked": number["threads"],
            "sample_groups": number["row_groups"],
            "unit_groups": number["unit_groups"],
        },
        chunk_steps={} if plans else {
            "forward": number["forward_chunk"], "backward": number["backward_chunk"]
        },
        saved_bytes=sum(tensor.nbytes for tensor in kept),
        flop=_flop(table, sizes, projected=arguments.get("weight_hr") is not None),
        reasons=(_gpu_reasons(facts) if plans else _cpu_reasons(facts, number, arguments))
        + _saved_reasons(by_name.get("gates")),
        plans=plans,
        tuning={
            key.removeprefix("tuning_"): value
            for key, value in number.items() if key.startswith("tuning_")
        },
    )  # fmt: skip


def _plans(facts: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Each pass's facts, from keys "pass.name", without its refusals."""
    plans: dict[str, dict[str, Any]] = {}
    for key, value in facts.items():
        pass_name, dot, name = key.partition(".")
        if dot and name != "refused":
            typed = value if name == "regime" else float(value) if "." in value else int(value)
            plans.setdefault(pass_name, {})[name] = typed
    return plans


def _gpu_reasons(facts: dict[str, str]) -> list[str]:
    reasons = []
    if facts["forced"]:
        reasons.append(f"FASTRNN_CUDA_REGIME asks for {facts['forced']}")
    for pass_name in ("forward", "backward"):
        refused = facts.get(f"{pass_name}.refused", "")
        reasons += [f"{pass_name} not {reason}" for reason in refused.split(";") if reason]
    return reasons


def _saved_reasons(saved_gates: Tensor | None) -> list[str]:
    if saved_gates is None or not saved_gates.numel():
        return []
    return [f"gates take {saved_gates.nbytes:,} of the bytes saved; recompute=True keeps none"]


_ROUNDS = "torch.backends.mkldnn.rnn.fp32_precision"
# Other instruction sets add these products to the one that float32 takes.
_FOR_BFLOAT16 = {"avx512": "pairs (avx512_bf16, amx)", "neon": "blocks (neon_bf16)"}


def _cpu_reasons(
    facts: dict[str, str], number: dict[str, int], arguments: dict[str, Any]
) -> list[str]:
    reasons = []
    chosen, dtype = facts["instruction_set"], arguments["input"].dtype
    if facts["asked_for"]:
        reasons.append(f"FASTRNN_CPU_ISA or a program asks for {facts['asked_for']}")
    elif facts["unavailable"]:
        reasons.append(f"this machine does not run {facts['unavailable'].replace(',', ', ')}")
    if chosen in _FOR_BFLOAT16 and dtype != torch.bfloat16:
        reasons.append(
            f"products of {_FOR_BFLOAT16[chosen]} are for bfloat16, and for float32 in layers of "
            f"the library with {number['least_rounded_units']} or more units where {_ROUNDS} says "
            "bf16"
        )
    if number["rounds"]:
        reasons.append(f"products round their factors to bfloat16: {_ROUNDS} says so")
    if facts["not_in_lanes"]:
        reasons.append(f"samples do not lie in the lanes: {facts['not_in_lanes']}")
    if number["forked"]:
        reasons.append("one thread: this is a forked child, in which torch's threads do not exist")
    elif number["threads"] < number["threads_allowed"]:
        reasons.append(
            f"{number['threads']} of {number['threads_allowed']} threads: the work of one more "
            "would not pay for its start"
        )
    if number["leaves_threads"]:
        reasons.append("threads without a part in a step make the input products of the next chunk")
    if not number["packs"] and facts["not_in_lanes"]:
        reasons.append(_PACKED_WHERE_READ)
    return reasons
