"""What is trained: its configuration, the model, and the losses of the three kinds of task."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.data import length_mask
from fastrnn.training.errors import Field, OptionError, UsageError, blaming
from fastrnn.training.files import read_task
from fastrnn.training.tasks import (
    CLASSIFICATION,
    NEXT_STEP,
    Sequences,
    Task,
    japanese_vowels,
    tutorial,
)

LAYERS: dict[str, ModuleType] = {"fastrnn": fastrnn, "torch.nn": nn}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {  # name of the layer's class, its own arguments
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
DTYPES = ("float32", "float64")
TUTORIAL, VOWELS = "tutorial", "japanese-vowels"
DEFAULTS: dict[str, dict[str, Any]] = {
    TUTORIAL: {
        "cell": "rnn",
        "hidden_size": 5,
        "epochs": 100,
        "lr": 0.01,
        "num_samples": 1000,
        "seq_length": 10,
    },
    VOWELS: {
        "cell": "lstm",
        "hidden_size": 64,
        "epochs": 30,
        "lr": 0.005,
        "batch_size": 32,
    },
}
# A file may hold fewer samples than a batch, and says so by no size at all: see batch_size_of.
FILE_DEFAULTS = {name: value for name, value in DEFAULTS[VOWELS].items() if name != "batch_size"}
FILE_BATCH = 32
ADAM_BETA1 = 0.9


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that the result depends on."""

    data: str
    cell: str
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    batch_size: int | None = None  # None: all samples at once, but of a file at most FILE_BATCH
    epochs: int
    lr: float
    clip_grad_norm: float | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    validation: float = 0.0  # share of the training samples that is kept apart to choose by
    group_by_length: bool = False
    clip_grad_value: float | None = None
    on_nan: str = "stop"
    schedule: str = "constant"
    patience: int | None = None
    amp: str | None = None
    compile: bool = False
    fsdp: bool = False
    test: float | None = None  # share of a file's sequences to test on; None: a fifth, if many
    task: str | None = None  # kind of the user's data; None: what its labels suggest
    num_samples: int = 0  # This and the next are the tutorial's size, 0 for data of a fixed size.
    seq_length: int = 0

    @property
    def reproducible(self) -> bool:
        """Whether implementations differ by round-off only: each has its own dropout masks."""
        return self.dtype == "float64" and self.dropout == 0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The kind of a model's task and its sizes: all that its weights' shapes depend on."""

    kind: str
    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dropout: float
    output_size: int

    @classmethod
    def of(cls, config: Config, task: Task) -> Architecture:
        own = (field.name for field in fields(cls) if hasattr(config, field.name))
        return cls(
            **{name: getattr(config, name) for name in own},
            kind=task.kind,
            input_size=task.input_size,
            output_size=task.output_size,
        )


class SequenceModel(nn.Module):
    """A recurrent layer of either library, then a linear layer.

    The linear layer takes the final states, or every step if the task is to predict the next one.
    """

    def __init__(self, layers: ModuleType, architecture: Architecture) -> None:
        super().__init__()
        class_name, arguments = CELLS[architecture.cell]
        self.kind = architecture.kind
        self.num_directions = 2 if architecture.bidirectional else 1
        self.rnn = getattr(layers, class_name)(
            architecture.input_size,
            architecture.hidden_size,
            num_layers=architecture.num_layers,
            batch_first=True,
            dropout=architecture.dropout,
            bidirectional=architecture.bidirectional,
            **arguments,
        )
        size = self.num_directions * architecture.hidden_size
        self.linear = nn.Linear(size, architecture.output_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.kind == NEXT_STEP:
            steps: Tensor = self.linear(self.rnn(x)[0])
            return steps  # (N, T, input_size)
        last_layer = final_states(self.rnn, x, lengths)[-self.num_directions :]
        logits: Tensor = self.linear(last_layer.transpose(0, 1).flatten(start_dim=1))
        return logits  # (N, num_classes), or (N, targets)


def final_states(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> Tensor:
    """h_n of every layer and direction, each sample's at its own last step.

    Variable lengths are all that the implementations differ in. `torch.nn` gets a packed batch, and
    its outputs stay packed: nobody reads them, and unpacking would only cost it time.
    """
    if lengths is None:
        _, state = layer(x)
    elif isinstance(layer, nn.RNNBase):
        _, state = layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    else:
        _, state = layer(x, lengths=lengths)
    h_n: Tensor = state[0] if isinstance(state, tuple) else state  # LSTM: (h_n, c_n)
    return h_n  # (num_layers * num_directions, N, hidden_size)


def load_task(config: Config, device: torch.device, dtype: torch.dtype) -> Task:
    num_samples, seq_length = config.num_samples, config.seq_length
    if config.data == VOWELS:
        task = japanese_vowels()
    elif config.data == TUTORIAL:
        with blaming(Field("num_samples", num_samples), Field("seq_length", seq_length)):
            task = tutorial(num_samples, seq_length)
    else:
        task = read_task(Path(config.data), config.task, config.test)
    if task.kind == NEXT_STEP and config.bidirectional:
        raise OptionError(Field("bidirectional"), "the next step is predicted from the past alone")
    if config.validation > 0:
        task = task.with_validation(config.validation, config.seed)
    num_train = len(task.train)
    if config.batch_size is not None and config.batch_size > num_train:
        batch_size = Field("batch_size", config.batch_size)
        raise OptionError(batch_size, f"there are {num_train} training samples")
    if config.data not in DEFAULTS:
        task = task.standardised()
    with blaming(Field("data", config.data)):
        return task.to(device, dtype)


def batch_size_of(config: Config, samples: Sequences) -> int:
    """The size of a batch of these samples."""
    most = len(samples) if config.data in DEFAULTS else min(FILE_BATCH, len(samples))
    return config.batch_size or most


def loss_sum(kind: str, output: Tensor, batch: Sequences) -> tuple[Tensor, int]:
    """The sum of the losses, and the number of samples or predicted steps in it."""
    if kind == NEXT_STEP:
        output, target = output[:, :-1], batch.x[:, 1:]
        if batch.lengths is not None:
            mask = length_mask(
                batch.lengths.to(output.device) - 1, output.size(1), batch_first=True
            )
            output, target = output[mask], target[mask]
        output, target = output.flatten(0, -2), target.flatten(0, -2)
    else:
        target = batch.labels
    if kind == CLASSIFICATION:
        return cross_entropy(output, target, reduction="sum"), len(target)
    return mse_loss(output, target, reduction="sum") / output.size(-1), len(target)


def config_for(data: str, **options: Any) -> Config:
    """A configuration from options; absent ones take the data set's defaults."""
    defaults = DEFAULTS.get(data, FILE_DEFAULTS)
    if "task" in options and data in DEFAULTS:
        raise OptionError(Field("task"), f"{data} is a classification")
    for name in ("num_samples", "seq_length"):
        if name in options and name not in defaults:
            raise OptionError(Field(name), f"the size of {data} is fixed")
    if "test" in options and data in DEFAULTS:
        raise OptionError(Field("test"), f"what {data} is tested on is fixed")
    config = Config(data=data, **{**defaults, **options})
    if config.dropout > 0 and config.num_layers == 1:
        raise UsageError(
            Field("dropout"), " acts between layers: it needs ", Field("num_layers", 2), " or more"
        )
    if config.lr / (1 - ADAM_BETA1) > torch.finfo(getattr(torch, config.dtype)).max:
        message = f"Adam's first step would be larger than any {config.dtype}"
        raise OptionError(Field("lr", config.lr), message)
    if config.amp is not None and config.dtype != "float32":
        dtype = Field("dtype", config.dtype)
        raise OptionError(Field("amp", config.amp), "the weights are float32, not ", dtype)
    if config.fsdp and config.amp == "fp16":
        raise OptionError(
            (Field("fsdp"), Field("amp", "fp16")),
            "shards cannot agree on a loss scale; take ",
            Field("amp", "bf16"),
        )
    return config
