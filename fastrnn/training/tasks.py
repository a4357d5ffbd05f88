"""The data sets of ``python -m fastrnn train``.

Sequences stay padded and carry their lengths: the layers take both, so nothing is sorted or packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from fastrnn.training.errors import Field, OptionError, require

CLASSIFICATION, REGRESSION, NEXT_STEP = KINDS = ("classification", "regression", "next-step")


@dataclass(frozen=True)
class Sequences(Dataset["Sequences"]):
    """Labelled sequences, padded to one length; a batch of them is a `Sequences` again."""

    x: Tensor  # (N, T, input_size)
    labels: Tensor  # (N,), int64: classes; (N, K): numbers; (N, 0): each step's next one
    lengths: Tensor | None = None  # (N,), int64, on the CPU; None: all T steps are valid

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: list[int]) -> Sequences:
        lengths = None if self.lengths is None else self.lengths[index]
        return Sequences(self.x[index], self.labels[index], lengths)

    def to(self, device: torch.device, dtype: torch.dtype) -> Sequences:
        labels = self.labels.to(device, dtype if self.labels.is_floating_point() else None)
        return replace(self, x=self.x.to(device, dtype), labels=labels)


@dataclass(frozen=True)
class Task:
    """Samples for training, and samples for measuring the accuracy."""

    train: Sequences
    test: Sequences
    num_classes: int = 0
    kind: str = CLASSIFICATION
    validation: Sequences | None = None

    @property
    def held_out(self) -> bool:
        return self.test is not self.train

    @property
    def measured(self) -> Sequences:
        """The samples for the accuracy after each epoch: validation samples if there are any."""
        return self.test if self.validation is None else self.validation

    @property
    def accuracy_name(self) -> str:
        name = "accuracy" if self.kind == CLASSIFICATION else "RMSE"
        if self.validation is not None:
            return f"Validation {name}"
        return f"Held-out {name}" if self.held_out else name[0].upper() + name[1:]

    @property
    def output_size(self) -> int:
        if self.kind == NEXT_STEP:
            return self.input_size
        return self.num_classes if self.kind == CLASSIFICATION else self.train.labels.size(1)

    @property
    def input_size(self) -> int:
        return self.train.x.size(-1)

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        train = self.train.to(device, dtype)
        test = self.test.to(device, dtype) if self.held_out else train
        validation = None if self.validation is None else self.validation.to(device, dtype)
        return replace(self, train=train, test=test, validation=validation)

    def with_validation(self, share: float, seed: int) -> Task:
        """Keep a share of the training samples apart, of each class alike."""
        count = len(self.train)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        if self.train.labels.dim() == 1:
            order = order[self.train.labels[order].argsort(stable=True)]
        marks = (torch.arange(count + 1, dtype=torch.float64) * share).floor().diff() > 0
        apart, kept = order[marks].sort()[0].tolist(), order[~marks].sort()[0].tolist()
        if not apart or not kept:
            message = f"{len(apart)} of {count} training samples"
            raise OptionError(Field("validation", share), message)
        train = self.train[kept]
        test = self.test if self.held_out else train
        return replace(self, train=train, test=test, validation=self.train[apart])


def tutorial(num_samples: int, seq_length: int) -> Task:
    """Uniform noise; the class says whether its sum over time exceeds half the sequence's length.

    Drawn from torch's default generator and measured on its own training data, as a tutorial does.
    """
    x = torch.rand(num_samples, seq_length, 1, dtype=torch.float32)
    labels = (x.sum(dim=1) > seq_length / 2).long().squeeze(1)
    samples = Sequences(x, labels)
    return Task(train=samples, test=samples, num_classes=2)


@cache
def japanese_vowels() -> Task:
    """Nine speakers saying /ae/: 270 + 370 utterances of 12 cepstrum coefficients, 7 to 29 steps.

    M. Kudo, J. Toyama, M. Shimbo: Multidimensional curve classification using passing-through
    regions. Pattern Recognition Letters 20 (1999). The files come with the package ``sktime``.
    """
    load = require("sktime.datasets").load_japanese_vowels
    train, train_labels = _utterances(load, "train")
    test, test_labels = _utterances(load, "test")
    std, mean = torch.std_mean(
        torch.cat(train), dim=0
    )  # over valid training steps, without padding

    def pad(utterances: list[Tensor], labels: Tensor) -> Sequences:
        padded = pad_sequence([(u - mean) / std for u in utterances], batch_first=True)
        return Sequences(padded, labels, torch.tensor([len(u) for u in utterances]))

    return Task(pad(train, train_labels), pad(test, test_labels), num_classes=9)


def _utterances(load: Callable[..., Any], split: str) -> tuple[list[Tensor], Tensor]:
    """The utterances of one split, each (steps, 12), and their speakers, 0 to 8."""
    frames, speakers = load(split=split, return_type="df-list")
    utterances = [torch.tensor(frame.to_numpy()) for frame in frames]
    return utterances, torch.tensor([int(speaker) - 1 for speaker in speakers])
