"""The cases to measure, and the tensors of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random

import torch
from torch import Tensor

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
MODULES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
PER_SAMPLE = "per-sample gradients"  # of the weights
DOUBLE = "double backward"  # of the input gradient's squared norm, to the weights
JVP = "jvp"  # in a direction of input and weights
TRANSFORMS = (PER_SAMPLE, DOUBLE, JVP)


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input: T steps, N samples, I features, H units."""

    group: str
    cell: str
    T: int
    N: int
    I: int
    H: int
    dtype: str = "float32"
    layers: int = 1
    bidirectional: bool = False
    lengths: str = (
        ""  # "padded": uniform in T/4..T with lengths=; "packed": the same as a PackedSequence
    )
    transform: str = ""  # of TRANSFORMS, instead of forward and training
    unit: str = "layer"  # or "cell": a cell that a Python loop calls for each step
    state: bool = False  # whether an initial state is given

    @property
    def label(self) -> str:
        extras = [
            self.dtype if self.dtype != "float32" else "",
            f"{self.layers} layers" if self.layers > 1 else "",
            "bidirectional" if self.bidirectional else "",
            self.lengths,
            self.transform,
        ]
        return " ".join(
            [
                self.kind,
                f"T{self.T} N{self.N} I{self.I} H{self.H}",
                *filter(None, extras),
            ]
        )

    @property
    def kind(self) -> str:
        return self.cell + " cell" * (self.unit == "cell")

    @property
    def modes(self) -> tuple[bool, ...]:
        """Whether to train, for each row of this case."""
        return (True,) if self.transform else (False, True)

    @property
    def waits_for_weights(self) -> bool:
        """Whether weights in shorter types are measured: for one sample a step reads each once."""
        wide = self.N == 1 and self.T == 10 and self.H >= 512
        return self.group == "step" and self.unit == "layer" and self.dtype == "float32" and wide

    @property
    def is_quick(self) -> bool:
        """Whether a quick run of its group has it."""
        sizes = (self.N, self.I, self.H)
        return self.group != "step" or self.N == 1 or sizes in ODD_STEPS

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def module(self, package: object, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The layer of this case from ``torch.nn`` or ``fastrnn``, always with the same weights."""
        torch.manual_seed(0)
        make = getattr(package, MODULES[self.cell])
        module = make(self.I, self.H, num_layers=self.layers, bidirectional=self.bidirectional)
        if self.unit == "cell":
            layer, module = module, getattr(package, f"{MODULES[self.cell]}Cell")(self.I, self.H)
            state = {name.removesuffix("_l0"): w for name, w in layer.state_dict().items()}
            module.load_state_dict(state)
        return module.to(dtype or self.torch_dtype)

    def flop(self, training: bool) -> int:
        """FLOP of the matrix products over valid steps that the mathematics needs."""
        directions = 1 + self.bidirectional
        inner = (self.layers - 1) * directions * self.H + self.layers * self.H
        # A pass multiplies all weights by activations, gradients or tangents; an inner one leaves
        # out the products with the input, where no gradient of the input is asked for.
        a_pass = directions * GATES[self.cell] * self.H * (self.I + inner)
        inner_pass = directions * GATES[self.cell] * self.H * inner
        products = {
            # Forward; gradients of activations; of weights, the same for each sample as for all.
            PER_SAMPLE: 2 * a_pass + inner_pass,
            # Forward and the input's gradient; then the derivatives of the latter by its incoming
            # gradients and by the weights, and what flows on through forward: gradients of
            # activations and of weights.
            DOUBLE: 5 * a_pass + inner_pass,
            # Forward, and the product rule's two terms.
            JVP: 3 * a_pass,
            # Forward; where training, gradients of activations and of weights.
            "": (3 if training else 1) * a_pass,
        }[self.transform]
        return 2 * products * self.valid_steps

    @property
    def valid_steps(self) -> int:
        return int(self.sample_lengths().sum())

    def sample_lengths(self) -> Tensor:
        if not self.lengths:
            return torch.full((self.N,), self.T)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.T // 4, self.T + 1, (self.N,), generator=generator)


@dataclass(frozen=True)
class Problem:
    """A case with its tensors in float64, which each contestant casts to its own type."""

    case: Case
    device: str = "cpu"
    weights: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        state = replace(self.case, unit="layer").module(torch.nn).state_dict()
        object.__setattr__(self, "weights", {name: w.double() for name, w in state.items()})

    @cached_property
    def x(self) -> Tensor:
        """(T, N, I), 0 past each sample's length."""
        case = self.case
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(case.T, case.N, case.I, generator=generator)
        return (x.to(case.torch_dtype) * self.mask).double()

    @cached_property
    def states(self) -> list[Tensor]:
        """h_0 and, of an LSTM, c_0, (layers * directions, N, H); none where none is given."""
        case = self.case
        generator = torch.Generator().manual_seed(4)
        shape = (case.layers * (1 + case.bidirectional), case.N, case.H)
        return [
            torch.randn(shape, generator=generator).to(case.torch_dtype).double()
            for _ in range(case.state * (1 + (case.cell == "lstm")))
        ]

    @cached_property
    def dy(self) -> Tensor:
        """The gradient of the output, (T, N, directions * H), 0 past each sample's length."""
        case = self.case
        generator = torch.Generator().manual_seed(2)
        dy = torch.randn(case.T, case.N, (1 + case.bidirectional) * case.H, generator=generator)
        return (dy.to(case.torch_dtype) * self.mask).double()

    @cached_property
    def tangents(self) -> dict[str, Tensor]:
        """A direction to differentiate in: of the input, and of the weights by name."""
        case = self.case
        generator = torch.Generator().manual_seed(3)

        def like(tensor: Tensor, scale: float) -> Tensor:
            random = torch.randn(tensor.shape, generator=generator) * scale
            return random.to(case.torch_dtype).double()

        weights = {name: like(w, case.H**-0.5) for name, w in self.weights.items()}
        return {"input": like(self.x, 1) * self.mask, **weights}

    @cached_property
    def lengths(self) -> Tensor:
        return self.case.sample_lengths()

    @cached_property
    def mask(self) -> Tensor:
        steps = torch.arange(self.case.T)[:, None]
        return (steps < self.lengths).unsqueeze(-1).float()


Shape = tuple[int, int, int, int]  # T, N, I, H

# Shapes for which every peer's time has been published.
SHAPES = (
    (10, 1000, 1, 5),
    (512, 1, 64, 64),
    (128, 1, 256, 256),
    (128, 32, 128, 128),
    (256, 64, 256, 256),
    (100, 64, 512, 512),
    (50, 16, 1024, 1024),
)
# Who measured what is published for GPUs.
FLASHRNN = "FlashRNN's figure head_dim--lstm.svg, H100"
CUDNN = "cuDNN, github.com/pytorch/pytorch/pull/62143, GPU not named"


@dataclass(frozen=True)
class Published:
    """A shape on a GPU, and what others measured of a step of its forward pass."""

    cell: str
    N: int
    H: int
    dtype: str = "float16"  # or tf32
    microseconds: float | None = None
    source: str = ""

    @property
    def case(self) -> Case:
        """With as many features as units."""
        dtype = "float32" if self.dtype == "tf32" else self.dtype
        return Case("published", self.cell, 512, self.N, self.H, self.H, dtype)


PUBLISHED = (
    Published("lstm", 16, 768, microseconds=1.96, source=f"cuDNN in {FLASHRNN}"),
    Published("lstm", 16, 768, "bfloat16", 4.76, FLASHRNN),
    Published("lstm", 16, 128, microseconds=2.6, source=CUDNN),
    Published("lstm", 12, 192, microseconds=13.6, source=CUDNN),
    Published("lstm", 6, 40, microseconds=0.66, source=CUDNN),
    Published("gru", 64, 512, "bfloat16"),
    Published("lstm", 32, 1024, "tf32"),
)
# Sizes (N, I, H) of few steps: an agent's, a stream's, a batch of agents', and odd ones.
ODD_STEPS = ((16, 64, 128), (5, 83, 83))
STEPS = {  # by T
    1: (*((N, H, H) for N in (1, 16, 64) for H in (16, 64, 256, 512)), *ODD_STEPS),
    10: (
        *((1, H, H) for H in (16, 64, 256, 512, 1024)),
        *((16, H, H) for H in (16, 64, 256)),
        *ODD_STEPS,
    ),
}
FEW_STEPS = ("step", "decoder")  # groups of which somebody waits for every single call
LONG = (10_000, 100_000, 1_000_000)
LARGE = tuple(shape for shape in SHAPES if shape[1] * shape[3] >= 8192)


def drawn_shapes(count: int, seed: int = 0, most_flop: float = 1e11) -> list[Shape]:
    """Shapes that nobody tuned for: each size is drawn evenly by its logarithm.

    Left out are those whose LSTM takes more than most_flop forward: with all peers they would take
    minutes a row.
    """
    random = Random(seed)

    def size(least: int, most: int) -> int:
        return round(math.exp(random.uniform(math.log(least), math.log(most))))

    shapes: list[Shape] = []
    while len(shapes) < count:
        shape = (size(10, 1000), size(1, 300), size(4, 700), size(10, 800))
        if Case("drawn", "lstm", *shape).flop(training=False) <= most_flop:
            shapes.append(shape)
    return shapes


def all_cases() -> list[Case]:
    cells = tuple(GATES)
    cases = [Case("main", cell, *shape) for cell in cells for shape in SHAPES]
    cases += [Case("bfloat16", cell, *shape, dtype="bfloat16") for cell in cells for shape in LARGE]
    cases += [
        Case("lengths", cell, T, 32, 128, 128, lengths=kind)
        for cell in cells
        for T in (50, 200, 1000)
        for kind in ("padded", "packed")
    ]
    cases += [Case("odd", cell, 100, 7, 19, 83) for cell in cells]
    cases += [Case("drawn", cell, *shape) for cell in cells for shape in drawn_shapes(12)]
    cases += [
        Case("step", cell, T, *sizes, unit=unit, state=True)
        for cell in cells
        for T, unit in ((1, "layer"), (1, "cell"), (10, "layer"))
        for sizes in STEPS[T]
    ]
    cases += [
        Case("decoder", cell, 30, *sizes, unit="cell", state=True)
        for cell in cells
        for sizes in ((1, 128, 128), (16, 128, 128), (64, 256, 256))
    ]
    cases += [Case("stacked", cell, 100, 32, 64, 128, layers=2) for cell in cells]
    cases += [Case("stacked", cell, 100, 32, 64, 128, bidirectional=True) for cell in cells]
    cases += [
        Case("transforms", cell, *shape, transform=transform)
        for transform in TRANSFORMS
        for cell in cells
        for shape in ((64, 32, 64, 128), (32, 64, 32, 64))
    ]
    cases += [
        Case("long", cell, T, 1, 64, 64) for cell in cells for T in (10_000, 100_000, 1_000_000)
    ]
    cases += [each.case for each in PUBLISHED]
    for cell in cells:
        sweeps = [(T, 32, 128, 128) for T in (8, 32, 128, 512, 2048)]
        sweeps += [(64, N, 128, 128) for N in (1, 4, 16, 64, 256, 1024)]
        sweeps += [(64, 32, H, H) for H in (8, 16, 32, 64, 128, 256, 512, 1024)]
        cases += [Case("sweep", cell, *sizes) for sizes in dict.fromkeys(sweeps)]
    return cases


GROUPS = tuple(dict.fromkeys(case.group for case in all_cases()))
GPU_GROUPS = ("published",)  # on CPU only where they are asked for by name
QUICK = (
    SHAPES[0],
    SHAPES[1],
    SHAPES[3],
)  # lanes over samples, one sample, panels
