"""The data sets of ``python -m fastrnn train``.

Sequences stay padded and carry their lengths: the layers take both, so nothing is sorted or packed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset


class UsageError(Exception):
    """Something the user can put right; its text is one line that says what and where."""


def require(module: str) -> Any:
    """Import a module of the optional extra ``train``, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise UsageError(f"{missing} is not installed: pip install 'fastrnn[train]'") from error


@dataclass(frozen=True)
class Sequences(Dataset["Sequences"]):
    """Labelled sequences, padded to one length; a batch of them is a `Sequences` again."""

    x: Tensor  # (N, T, input_size)
    labels: Tensor  # (N,), int64
    lengths: Tensor | None = None  # (N,), int64, on the CPU; None: all T steps are valid

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: list[int]) -> Sequences:
        lengths = None if self.lengths is None else self.lengths[index]
        return Sequences(self.x[index], self.labels[index], lengths)

    def to(self, device: torch.device, dtype: torch.dtype) -> Sequences:
        return replace(self, x=self.x.to(device, dtype), labels=self.labels.to(device))


@dataclass(frozen=True)
class Task:
    """What to train on, and what to measure the accuracy on."""

    train: Sequences
    test: Sequences
    num_classes: int

    @property
    def held_out(self) -> bool:
        return self.test is not self.train

    @property
    def accuracy_name(self) -> str:
        return "Held-out accuracy" if self.held_out else "Accuracy"

    @property
    def input_size(self) -> int:
        return self.train.x.size(-1)

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        train = self.train.to(device, dtype)
        test = self.test.to(device, dtype) if self.held_out else train
        return replace(self, train=train, test=test)


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
    std, mean = torch.std_mean(torch.cat(train), dim=0)  # of valid training steps only

    def pad(utterances: list[Tensor], labels: Tensor) -> Sequences:
        padded = pad_sequence([(u - mean) / std for u in utterances], batch_first=True)
        return Sequences(padded, labels, torch.tensor([len(u) for u in utterances]))

    return Task(pad(train, train_labels), pad(test, test_labels), num_classes=9)


def _utterances(load: Callable[..., Any], split: str) -> tuple[list[Tensor], Tensor]:
    """The utterances of one split, each (steps, 12), and their speakers, 0 to 8."""
    frames, speakers = load(split=split, return_type="df-list")
    utterances = [torch.tensor(frame.to_numpy()) for frame in frames]
    return utterances, torch.tensor([int(speaker) - 1 for speaker in speakers])
