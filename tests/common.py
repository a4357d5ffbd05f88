"""What the tests share: one tolerance table, the instruction sets of this machine, and cases to run."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastrnn import cpu_instruction_sets, ops
from fastrnn.dropout import draw_seed, dropout_mask
from fastrnn.library import SCHEDULE, named, without_absent
from fastrnn.ops import ScanWeights

CELLS = tuple(ops.CELLS)

# conftest.py sets it to what --device says, before a test is imported.
DEVICE = "cpu"

# These are the sets of the builds for all architectures; tests of those that the machine lacks are listed as skipped.
INSTRUCTION_SETS = ("amx", "avx512_bf16", "avx512", "avx2", "neon_bf16", "neon", "plain")
AVAILABLE_INSTRUCTION_SETS = cpu_instruction_sets()

# The largest error is relative to the largest magnitude in a tensor (at least 1). Element by element, it would ask
# more of a sum that nearly cancels than its dtype can give.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal float64 on CPU, so that every device under test gets the same."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def make_scan(
    cell: str,
    sizes: tuple[int, int, int, int],
    *,
    proj_size: int = 0,
    bias: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None, ScanWeights]:
    """Random float64 input, h_0, c_0 and weights of a scan of sizes (T, N, I, H), on the device under test."""
    T, N, I, H = sizes
    generator = torch.Generator().manual_seed(seed)
    R, rows = proj_size or H, ops.CELLS[cell].input_gates * H

    def normal(*shape: int) -> Tensor:
        return random(shape, generator).to(DEVICE)

    def weight(*shape: int) -> Tensor:
        return normal(*shape) * H**-0.5

    weights = ScanWeights(
        weight(rows, I),
        weight(rows, R),
        weight(rows) if bias else None,
        weight(rows) if bias else None,
        weight(R, H) if proj_size else None,
    )
    c_0 = normal(N, H) if ops.CELLS[cell].has_cell_state else None
    return normal(T, N, I), normal(N, R), c_0, weights


# --- direct calls of the ops, whose lists are given and returned by name ---

Named = Mapping[str, Tensor | None]
NO_SCHEDULE: Named = MappingProxyType({})


def by_name(cell: str, *tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Name input, h_0, c_0, the weights and more, given as make_scan returns them; leave out those the cell lacks."""
    names = ["input", "h_0", "c_0", *ScanWeights._fields, "reset_h", "reset_c"]
    given = dict(zip(names, tensors, strict=False))
    return {info.name: given.get(info.name) for info in ops.CELLS[cell].tensors}


def scan_arguments(
    cell: str,
    tensors: Named,
    schedule: Named = NO_SCHEDULE,
    *,
    reverse: bool = False,
    save: bool = True,
) -> tuple[Any, ...]:
    host = [schedule.get(name) for name in SCHEDULE]
    return (cell, *without_absent(tensors.values()), *host, reverse, save)


def call_scan(
    cell: str, *lists: Named, reverse: bool = False, save: bool = True, **options: Any
) -> dict[str, Tensor]:
    arguments = scan_arguments(cell, *lists, reverse=reverse, save=save)
    return named(ops.CELLS[cell].results, torch.ops.fastrnn.scan(*arguments, **options))


def scan_backward_arguments(
    cell: str,
    grads: Named,
    tensors: Named,
    results: Mapping[str, Tensor],
    schedule: Named = NO_SCHEDULE,
    *,
    reverse: bool = False,
    needs: Iterable[str] | None = None,
) -> tuple[Any, ...]:
    """Gradients are for all tensors, or for those that `needs` names."""
    facts = ops.CELLS[cell]
    wanted = tensors.keys() if needs is None else set(needs)
    return (
        cell,
        [grads.get(result.name) for result in facts.differentiable],
        *without_absent(tensors.values()),
        *(schedule.get(name) for name in SCHEDULE),
        reverse,
        [results[result.name] for result in facts.saved_results],
        [info.name in wanted for info in facts.tensors],
    )


def call_scan_backward(
    cell: str, *lists: Any, groups: int = 0, **options: Any
) -> dict[str, Tensor]:
    arguments = scan_backward_arguments(cell, *lists, **options)
    gradients = torch.ops.fastrnn.scan_backward(*arguments, groups=groups)
    return named(ops.CELLS[cell].tensors, gradients)


def leaf(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A leaf in another dtype that requires its gradient."""
    return None if tensor is None else tensor.detach().to(dtype).clone().requires_grad_()


def present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of a random linear form of the outputs, the same form for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    cotangents = [random(output.shape, generator).to(output) for output in outputs]
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
    gradients_or_none = torch.autograd.grad(
        [y for y, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True
    )
    return [
        torch.zeros_like(input) if gradient is None else gradient
        for gradient, input in zip(gradients_or_none, inputs, strict=True)
    ]


@contextlib.contextmanager
def without_cudnn() -> Generator[None, None, None]:
    """Run torch.nn on torch's own kernels: cuDNN's have no gradient in eval mode, and fail from 65,536 steps on."""
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)  # torch.testing freezes torch.backends.cudnn.enabled
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(before)


@contextlib.contextmanager
def told(precision: str = "bf16") -> Generator[None, None, None]:
    """Tell torch what recurrent layers on a CPU may round the factors of float32 products to."""
    flags = torch.backends.mkldnn.rnn
    before = flags.fp32_precision
    flags.fp32_precision = precision
    try:
        yield
    finally:
        flags.fp32_precision = before


class OurMasks(TorchDispatchMode):
    """Under it a torch.nn module drops what ours drops from the same state of the generator."""

    def __init__(self, dropout: float = 0, num_layers: int = 1, **_: Any) -> None:
        super().__init__()
        self.dropout, self.masks = dropout, num_layers - 1
        self.seed, self.layer = None, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if func is not torch.ops.aten.bernoulli_.float:
            return func(*args, **(kwargs or {}))
        if self.layer == 0:  # the seed so far is another call's
            self.seed = draw_seed(args[0].device)
        mask = dropout_mask(self.seed, self.layer, args[0].shape, self.dropout, args[0].dtype)
        self.layer = (self.layer + 1) % self.masks
        return args[0].copy_(mask != 0)


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """The bits are the same; on a GPU the numbers, as cuBLAS sums in another order for another number of rows."""
    if DEVICE != "cpu":
        return assert_all_close(actual, expected, torch.float64)
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {index} of {len(actual)}: {(a - b).abs().max()}"


def assert_all_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype
) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        finite = b[b.isfinite()].abs()
        scale = max(1.0, finite.max().item() if finite.numel() else 0.0)
        torch.testing.assert_close(
            a.double().cpu(),
            b.double().cpu(),
            rtol=0,
            atol=TOLERANCE[dtype] * scale,
            equal_nan=True,
            msg=lambda text, index=index: f"tensor {index} of {len(actual)}: {text}",
        )
