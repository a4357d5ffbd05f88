"""Data of the user: FILE.npz, FILE.csv, or a folder with train and test files of these.

NPZ: ``sequences`` (N, T, I) or (N, T), padded; ``lengths`` (N,), optional; ``labels``, optional.
CSV: a row a step, under a header; ``sequence`` says which sequence a row belongs to (its rows
follow each other), ``label``, optional, is the same in all of them, ``step``, optional, grows
within a sequence; each other column is a feature.
Labels that are whole numbers or words are classes, other numbers are regressed; without labels
each step's next one is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.training.csv_file import read_csv
from fastrnn.training.errors import Field, OptionError, UsageError, bad_data, first_line
from fastrnn.training.tasks import (
    CLASSIFICATION,
    NEXT_STEP,
    REGRESSION,
    Recordings,
    Sequences,
    Task,
)


def read_task(path: Path, kind: str | None, test: float | None = None) -> Task:
    """The task of a file, or of a folder with train.npz or train.csv and maybe a test file.

    Where there is no test file, `test` is the share of the sequences to test on, None a fifth.
    """
    if path.is_dir():
        train, held_out = _part(path, "train"), _part(path, "test")
        if train is None:
            raise bad_data(path, "there is no train.npz or train.csv in it")
    else:
        train, held_out = path, None
    if held_out is not None and test is not None:
        raise OptionError(Field("test", test), f"there is {held_out}")
    files = tuple(file for file in (train, held_out) if file is not None)
    return _read_task(files, tuple(map(_state, files)), kind, test)


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)  # Each trainer of a comparison and each trial of a search asks for it.
def _read_task(
    files: tuple[Path, ...], states: object, kind: str | None, share: float | None
) -> Task:
    train, *held_out = files
    task, classes = _task_of_file(train, kind)
    for test in held_out:
        recordings = with_features(test, read_recordings(test), task.features)
        samples, _ = _labelled(test, recordings, task.kind, classes)
        in_test, in_train = samples.labels.shape[1:], task.train.labels.shape[1:]
        if in_test != in_train:
            message = f"{in_test} numbers to predict, {in_train} in {train.name}"
            raise bad_data(test, message)
        return replace(task, test=samples)
    return task.with_test(share)


def read_recordings(path: Path, labels: bool = True) -> Recordings:
    """What a file holds; its labels are not looked at unless asked for."""
    readers: dict[str, Callable[[Path, bool], Recordings]] = {".npz": _read_npz, ".csv": read_csv}
    if path.suffix.lower() not in readers:
        raise bad_data(path, "expected a FILE.npz, a FILE.csv or a folder")
    try:
        return readers[path.suffix.lower()](path, labels)
    except UsageError:
        raise
    except UnicodeDecodeError as error:
        raise bad_data(path, f"its text is not UTF-8: {first_line(error)}") from error
    except Exception as error:  # A damaged file can raise anything.
        text = first_line(error) or type(error).__name__
        raise bad_data(path, f"cannot be read: {text}") from error


def with_features(path: Path, recordings: Recordings, trained: Sequence[str]) -> Recordings:
    """Recordings with the features that a model was trained on, in the order of its training."""
    names = recordings.features
    if names is None:  # NPZ has an order alone.
        if recordings.x.size(-1) != len(trained):
            message = f"{recordings.x.size(-1)} features, the model was trained on {len(trained)}"
            raise bad_data(path, message)
        return recordings
    for name in [*trained, *names]:
        if name not in names:
            raise bad_data(path, f"there is no column {name}, which was trained on")
        if name not in trained:
            raise bad_data(path, f"there is a column {name}, which was not trained on")
    order = [names.index(name) for name in trained]
    return replace(recordings, x=recordings.x[..., order], features=list(trained))


def _task_of_file(path: Path, kind: str | None) -> tuple[Task, list[Any]]:
    """The task that trains and tests on one file, and its classes."""
    recordings = read_recordings(path)
    kind = kind or _kind(recordings.labels)
    samples, classes = _labelled(path, recordings, kind, None)
    features = recordings.features or [f"x{index}" for index in range(samples.x.size(-1))]
    return Task(samples, samples, tuple(features), tuple(map(str, classes)), kind), classes


def _part(folder: Path, part: str) -> Path | None:
    return next((p for p in (folder / f"{part}.npz", folder / f"{part}.csv") if p.is_file()), None)


def _read_npz(path: Path, with_labels: bool) -> Recordings:
    def fail(text: str) -> None:
        raise bad_data(path, text)

    with np.load(path, allow_pickle=False) as file:
        unknown = sorted(set(file.files) - {"sequences", "lengths", "labels"})
        if unknown or "sequences" not in file.files:
            fail(f"arrays {', '.join(sorted(file.files))}; expected sequences, lengths, labels")
        arrays = {}
        for name in file.files:
            try:
                arrays[name] = file[name]
            except ValueError:
                fail(f"{name} is ragged or holds objects; pad it, and give lengths")
    x = arrays["sequences"]
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.dtype.kind not in "fiu" or 0 in x.shape:
        fail(f"sequences is {x.dtype} {x.shape}, expected numbers (N, T, I), none of them 0")
    lengths = arrays.get("lengths", np.full(len(x), x.shape[1]))
    if lengths.shape != (len(x),) or lengths.dtype.kind not in "iu":
        fail(f"lengths is {lengths.dtype} {lengths.shape}, expected integers ({len(x)},)")
    for index in np.flatnonzero((lengths < 1) | (lengths > x.shape[1]))[:1]:
        fail(f"lengths[{index}] is {lengths[index]}, expected 1 to {x.shape[1]}")
    valid = np.arange(x.shape[1]) < lengths[:, None]
    for n, t, i in np.argwhere(valid[..., None] & ~np.isfinite(x))[:1]:
        fail(f"sequences[{n}, {t}, {i}] is {x[n, t, i]}")
    x = np.where(valid[..., None], x, 0)
    labels = arrays.get("labels") if with_labels else None
    if labels is not None and (len(labels) != len(x) or labels.ndim not in (1, 2)):
        fail(f"labels has shape {labels.shape}, expected ({len(x)},) or ({len(x)}, numbers)")
    if labels is not None and (labels.dtype.kind not in "biufU" or labels.size == 0):
        fail(f"labels is {labels.dtype} {labels.shape}, expected numbers or texts")
    if labels is not None and labels.dtype.kind == "f":
        for index in np.argwhere(~np.isfinite(labels))[:1]:
            fail(f"labels{index.tolist()} is {labels[tuple(index)]}")
    return Recordings(
        torch.tensor(x),
        torch.tensor(lengths).long(),
        [str(index) for index in range(len(x))],
        None,
        None if labels is None else labels.tolist(),
    )


def _kind(labels: list[Any] | None) -> str:
    if labels is None:
        return NEXT_STEP
    numbers = all(isinstance(label, (int, float)) for label in labels)
    whole = all(isinstance(label, int) for label in labels)
    listed = any(isinstance(label, list) for label in labels)
    return REGRESSION if listed or (numbers and not whole) else CLASSIFICATION


def _labelled(
    path: Path, recordings: Recordings, kind: str, classes: list[Any] | None
) -> tuple[Sequences, list[Any]]:
    """Samples with labels as the kind of task wants them, and its classes.

    `classes` are those that were trained, None for training samples.
    """
    samples, labels = recordings.sequences, recordings.labels
    if kind == NEXT_STEP:
        for index in recordings.lengths.lt(2).nonzero()[:1, 0].tolist():
            name = recordings.names[index]
            raise bad_data(path, f"sequence {name} has one step and no next one")
        return samples, []
    if labels is None:
        raise bad_data(path, f"there are no labels for {kind}")
    if kind == REGRESSION:
        for index, label in enumerate(labels):
            if isinstance(label, str):
                raise bad_data(path, f"label {index} is {label!r}, expected a number")
        target = torch.tensor(labels, dtype=torch.float64).reshape(len(samples), -1)
        return replace(samples, labels=target), []
    target, classes = _class_numbers(path, labels, classes)
    return replace(samples, labels=target), classes


def _class_numbers(
    path: Path, labels: list[Any], classes: list[Any] | None
) -> tuple[Tensor, list[Any]]:
    """The number of each label's class, and the classes: whole numbers by size, or else words."""
    for index, label in enumerate(labels):
        if isinstance(label, list) or (isinstance(label, float) and not label.is_integer()):
            raise bad_data(path, f"label {index} is {label}, expected a whole number or a word")
    if any(isinstance(label, str) for label in classes or labels):
        labels = [str(label) for label in labels]
    else:
        labels = [label if isinstance(label, str) else int(label) for label in labels]
    trained = sorted(set(labels)) if classes is None else classes
    if len(trained) == 1:
        message = f"every label is {trained[0]}; a classification needs two classes"
        raise bad_data(path, message)
    numbers = {label: number for number, label in enumerate(trained)}
    for index, label in enumerate(labels):
        if label not in numbers:
            raise bad_data(
                path,
                f"label {index} is {label}, none of the {len(trained)} classes that were trained",
            )
    return torch.tensor([numbers[label] for label in labels]), trained
