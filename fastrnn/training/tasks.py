"""What is trained on: sequences, their split and scaling, and the data sets that come along.

Sequences stay padded and carry their lengths: the layers take both, so nothing is sorted or packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from fastrnn.data import length_mask
from fastrnn.training.errors import Field, OptionError, require

CLASSIFICATION, REGRESSION, NEXT_STEP = KINDS = ("classification", "regression", "next-step")
TEST_SHARE = 0.2  # of a file's sequences, unless the user says how many
TEST_SEED = 0  # The test sequences are the same for every seed, so that none is ever trained on.


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

    @property
    def step_counts(self) -> Tensor:
        """(N,), int64: the valid steps of each sequence."""
        return torch.full((len(self),), self.x.size(1)) if self.lengths is None else self.lengths

    @property
    def valid(self) -> Tensor:
        """(N, T), bool: which steps are not padding."""
        return length_mask(self.step_counts, self.x.size(1), batch_first=True)

    def to(self, device: torch.device, dtype: torch.dtype) -> Sequences:
        labels = self.labels.to(device, dtype if self.labels.is_floating_point() else None)
        return replace(self, x=self.x.to(device, dtype), labels=labels)


@dataclass(frozen=True)
class Recordings:
    """What a file holds: N sequences, and what it says of them."""

    x: Tensor  # (N, T, I), padded
    lengths: Tensor  # (N,), int64
    names: list[str]  # of the sequences
    features: list[str] | None  # names; None: the file has none
    labels: list[Any] | None  # int, float, str or a list of numbers each; None: the file has none

    @property
    def sequences(self) -> Sequences:
        """Without labels."""
        return Sequences(self.x, torch.empty(len(self.x), 0), self.lengths)


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature, (input_size,), float64."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, samples: Sequences) -> Scaling:
        """Those of the valid steps; a feature that does not vary keeps its unit."""
        steps = samples.x[samples.valid].double()
        std, mean = torch.std_mean(steps, dim=0, correction=min(1, len(steps) - 1))
        return cls(mean, std.where(std > 1e-12 * mean.abs(), 1))  # 1e-12: above round-off

    @classmethod
    def none(cls, input_size: int) -> Scaling:
        ones = torch.ones(input_size, dtype=torch.float64)
        return cls(torch.zeros_like(ones), ones)

    def apply(self, samples: Sequences) -> Sequences:
        """Samples in standard deviations from the mean; padding is 0."""
        scaled = (samples.x - self.mean).div_(self.std)  # in place: files may be large
        return replace(samples, x=scaled.masked_fill_(~samples.valid[..., None], 0))


@dataclass(frozen=True)
class Task:
    """Samples for training, and samples for measuring the accuracy."""

    train: Sequences
    test: Sequences
    features: tuple[str, ...]  # names, input_size of them
    classes: tuple[str, ...] = ()  # names, by the numbers that labels have
    kind: str = CLASSIFICATION
    validation: Sequences | None = None
    scaling: Scaling | None = None  # what the samples were scaled by; None: they are as given

    @property
    def num_classes(self) -> int:
        return len(self.classes)

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
        kept, apart = self._split(share, seed)
        if not apart or not kept:
            message = f"{len(apart)} of {len(self.train)} training samples"
            raise OptionError(Field("validation", share), message)
        train = self.train[kept]
        test = self.test if self.held_out else train
        return replace(self, train=train, test=test, validation=self.train[apart])

    def with_test(self, share: float | None) -> Task:
        """Keep a share of the samples for testing; None: a fifth, or none where they are few."""
        kept, apart = self._split(TEST_SHARE if share is None else share, TEST_SEED)
        if share and not apart:
            raise OptionError(Field("test", share), f"0 of {len(self.train)} sequences")
        if not apart:
            return self
        return replace(self, train=self.train[kept], test=self.train[apart])

    def _split(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Indices to keep and to take apart; every class that is taken from is also kept."""
        count, labels = len(self.train), self.train.labels
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        marks = (torch.arange(count + 1, dtype=torch.float64) * share).floor().diff() > 0
        if self.kind == CLASSIFICATION:
            order = order[labels[order].argsort(stable=True)]
            marks &= torch.isin(labels[order], labels[order[~marks]])
        return order[~marks].sort()[0].tolist(), order[marks].sort()[0].tolist()

    def standardised(self) -> Task:
        """Every part in standard deviations from the mean of the training samples."""
        scaling = Scaling.of(self.train)
        for name, std in zip(self.features, scaling.std.tolist(), strict=True):
            if not math.isfinite(std):
                raise OptionError(Field("data"), f"{name} has numbers too large to be squared")
        train = scaling.apply(self.train)
        test = scaling.apply(self.test) if self.held_out else train
        validation = None if self.validation is None else scaling.apply(self.validation)
        return replace(self, train=train, test=test, validation=validation, scaling=scaling)


def tutorial(num_samples: int, seq_length: int) -> Task:
    """Uniform noise; the class says whether its sum over time exceeds half the sequence's length.

    Drawn from torch's default generator and measured on its own training data, as a tutorial does.
    """
    x = torch.rand(num_samples, seq_length, 1, dtype=torch.float32)
    labels = (x.sum(dim=1) > seq_length / 2).long().squeeze(1)
    samples = Sequences(x, labels)
    return Task(samples, samples, features=("x",), classes=("below", "above"))


@cache
def japanese_vowels() -> Task:
    """Nine speakers saying /ae/: 270 + 370 utterances of 12 cepstrum coefficients, 7 to 29 steps.

    M. Kudo, J. Toyama, M. Shimbo: Multidimensional curve classification using passing-through
    regions. Pattern Recognition Letters 20 (1999). The files come with the package ``sktime``.
    """
    load = require("sktime.datasets").load_japanese_vowels
    features = tuple(f"cepstrum{number}" for number in range(1, 13))
    speakers = tuple(str(number) for number in range(1, 10))
    task = Task(_utterances(load, "train"), _utterances(load, "test"), features, speakers)
    return task.standardised()


def _utterances(load: Callable[..., Any], split: str) -> Sequences:
    """The utterances of one split, (N, T, 12), and their speakers, 0 to 8."""
    frames, speakers = load(split=split, return_type="df-list")
    utterances = [torch.tensor(frame.to_numpy()) for frame in frames]
    labels = torch.tensor([int(speaker) - 1 for speaker in speakers])
    lengths = torch.tensor([len(utterance) for utterance in utterances])
    return Sequences(pad_sequence(utterances, batch_first=True), labels, lengths)
