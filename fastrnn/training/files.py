"""Data of the user: FILE.npz, FILE.csv, or a folder with train and test files of these.

NPZ: ``sequences`` (N, T, I) or (N, T), padded; ``lengths`` (N,), optional; ``labels``, optional.
CSV: a row a step, under a header; ``sequence`` says which sequence a row belongs to (its rows
follow each other), ``label``, optional, is the same in all of them; each other column is a feature.
Labels that are whole numbers are classes, other numbers are regressed, words are classes by name;
without labels each step's next one is predicted.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastrnn.training.errors import Field, OptionError
from fastrnn.training.tasks import CLASSIFICATION, NEXT_STEP, REGRESSION, Sequences, Task


def bad_data(where: Path | str, message: str) -> OptionError:
    """An error of the file, the line or the column that `where` names."""
    return OptionError(Field("data", where), message)


def read_task(path: Path, kind: str | None) -> Task:
    """The task of a file, or of a folder with train.npz or train.csv and maybe a test file."""
    if not path.is_dir():
        return _task_of_file(path, kind)[0]
    parts = {part: _part(path, part) for part in ("train", "test")}
    if parts["train"] is None:
        raise bad_data(path, "there is no train.npz or train.csv in it")
    task, classes = _task_of_file(parts["train"], kind)
    if parts["test"] is None:
        return task
    test, labels = _read(parts["test"])
    samples, _ = _labelled(parts["test"], test, labels, task.kind, classes)
    for quantity, in_test, in_train in (
        ("features", samples.x.size(-1), task.input_size),
        ("numbers to predict", samples.labels.shape[1:], task.train.labels.shape[1:]),
    ):
        if in_test != in_train:
            message = f"{in_test} {quantity}, {in_train} in {parts['train'].name}"
            raise bad_data(parts["test"], message)
    return replace(task, test=samples)


def _task_of_file(path: Path, kind: str | None) -> tuple[Task, list[Any] | None]:
    """The task that trains and tests on one file, and its classes, None without any."""
    samples, labels = _read(path)
    kind = kind or _kind(labels)
    samples, classes = _labelled(path, samples, labels, kind, None)
    return Task(samples, samples, len(classes or ()), kind), classes


def _part(folder: Path, part: str) -> Path | None:
    return next((p for p in (folder / f"{part}.npz", folder / f"{part}.csv") if p.is_file()), None)


def _read(path: Path) -> tuple[Sequences, list[Any] | None]:
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix not in readers:
        raise bad_data(path, "expected a FILE.npz, a FILE.csv or a folder")
    try:
        return readers[path.suffix](path)
    except OptionError:
        raise
    except Exception as error:  # A damaged file can raise anything.
        text = str(error).partition("\n")[0]
        raise bad_data(path, f"cannot be read: {text or type(error).__name__}") from error


def _read_npz(path: Path) -> tuple[Sequences, list[Any] | None]:
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
    labels = arrays.get("labels")
    if labels is not None and (len(labels) != len(x) or labels.ndim not in (1, 2)):
        fail(f"labels has shape {labels.shape}, expected ({len(x)},) or ({len(x)}, numbers)")
    if labels is not None and labels.dtype.kind == "f":
        for index in np.argwhere(~np.isfinite(labels))[:1]:
            fail(f"labels{index.tolist()} is {labels[tuple(index)]}")
    samples = Sequences(torch.tensor(x), torch.empty(len(x), 0), torch.tensor(lengths).long())
    return samples, None if labels is None else labels.tolist()


def _read_csv(path: Path) -> tuple[Sequences, list[Any] | None]:
    names: list[str] = []  # one a sequence, in the order of the file
    sequences: list[list[list[float]]] = []
    labels: list[str] = []
    with path.open(newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        features = [name for name in header if name not in ("sequence", "label")]
        if "sequence" not in header or not features or len(set(header)) < len(header):
            raise bad_data(
                f"{path}, line 1",
                f"columns {', '.join(header) or 'none'}; expected sequence, features and, at will, "
                f"label, each once",
            )
        for cells in rows:
            where = f"{path}, line {rows.line_num}"
            if len(cells) != len(header):
                raise bad_data(where, f"{len(cells)} fields, expected {len(header)}")
            row = dict(zip(header, cells, strict=True))
            step = [_number(row[name], f"{where}, {name}") for name in features]
            if not names or row["sequence"] != names[-1]:
                if row["sequence"] in names:
                    raise bad_data(where, f"sequence {row['sequence']!r} was over already")
                names.append(row["sequence"])
                sequences.append([])
                labels.append(row.get("label", ""))
            elif row.get("label", "") != labels[-1]:
                raise bad_data(f"{where}, label", f"{row['label']!r}, before it {labels[-1]!r}")
            if "label" in row and not row["label"]:
                raise bad_data(f"{where}, label", "it is empty")
            sequences[-1].append(step)
    if not sequences:
        raise bad_data(path, "there are no rows")
    tensors = [torch.tensor(sequence, dtype=torch.float64) for sequence in sequences]
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    x = pad_sequence(tensors, batch_first=True)
    values = [_value(label) for label in labels] if "label" in header else None
    return Sequences(x, torch.empty(len(x), 0), lengths), values


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise bad_data(where, f"{text!r} is not a finite number")
    return value


def _value(text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _kind(labels: list[Any] | None) -> str:
    if labels is None:
        return NEXT_STEP
    numbers = all(isinstance(label, (int, float)) for label in labels)
    whole = all(isinstance(label, int) for label in labels)
    listed = any(isinstance(label, list) for label in labels)
    return REGRESSION if listed or (numbers and not whole) else CLASSIFICATION


def _classes(labels: list[Any] | None) -> list[Any]:
    """Whole numbers are classes from 0 on; names are sorted."""
    if all(isinstance(label, int) for label in labels or ()):
        return list(range(1 + max(labels or (0,))))
    return sorted(set(map(str, labels or ())))


def _labelled(
    path: Path, samples: Sequences, labels: list[Any] | None, kind: str, classes: list[Any] | None
) -> tuple[Sequences, list[Any] | None]:
    """Samples with labels as the kind of task wants them, and its classes, None without any."""
    if kind == NEXT_STEP:
        assert samples.lengths is not None
        short = samples.lengths.lt(2).nonzero()
        if len(short):
            raise bad_data(path, f"sequence {int(short[0])} has one step and no next one")
        return samples, None
    if labels is None:
        raise bad_data(path, f"there are no labels for {kind}")
    if kind == REGRESSION:
        for index, label in enumerate(labels):
            if isinstance(label, str):
                raise bad_data(path, f"label {index} is {label!r}, expected a number")
        target = torch.tensor(labels, dtype=torch.float64).reshape(len(samples), -1)
        return replace(samples, labels=target), None
    target, classes = _class_numbers(path, labels, classes)
    return replace(samples, labels=target), classes


def _class_numbers(
    path: Path, labels: list[Any], classes: list[Any] | None
) -> tuple[Tensor, list[Any]]:
    for index, label in enumerate(labels):
        if isinstance(label, (float, list)) or (isinstance(label, int) and not 0 <= label < 2**20):
            raise bad_data(path, f"label {index} is {label}, expected 0 to {2**20 - 1}")
    trained = _classes(labels) if classes is None else classes
    if all(isinstance(label, str) for label in trained):
        labels = [str(label) for label in labels]
    numbers = {label: number for number, label in enumerate(trained)}
    for index, label in enumerate(labels):
        if label not in numbers:
            raise bad_data(
                path,
                f"label {index} is {label}, none of the {len(trained)} classes that were trained",
            )
    return torch.tensor([numbers[label] for label in labels]), trained
