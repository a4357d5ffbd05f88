"""``python -m fastrnn predict``: the answers of a trained model, as CSV."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from fastrnn.training.errors import Field, OptionError, blaming, first_line
from fastrnn.training.files import read_recordings, with_features
from fastrnn.training.options import option, output_file, positive_integer
from fastrnn.training.progress import Lines
from fastrnn.training.saved_model import Description, load_model
from fastrnn.training.tasks import CLASSIFICATION, NEXT_STEP

BATCH = 256  # sequences


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `predict` to the command line."""
    about = "what a saved model says of sequences, as CSV"
    more = (
        "One row a sequence: its class and the probability of each class, or the predicted "
        "numbers. Where the next step was trained, one row a step: what it is predicted to be, "
        "from the second step to the one after the last."
    )
    predict = commands.add_parser(
        "predict", help=about, description=f"{about}. {more}", allow_abbrev=False
    )
    predict.set_defaults(run=run_predict, spell=spell)
    predict.add_argument("model", type=Path, metavar="MODEL", help="what train --save-model wrote")
    predict.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="FILE.csv or FILE.npz with the features of the training; labels are not looked at",
    )
    predict.add_argument(
        "--output", type=output_file, metavar="FILE.csv", help="write there (default: to stdout)"
    )
    predict.add_argument(
        "--batch-size",
        type=positive_integer,
        default=BATCH,
        metavar="N",
        help="sequences at once (default: %(default)s)",
    )


def spell(name: str) -> str:
    """How the user wrote an argument: these two have no option."""
    return name.upper() if name in ("model", "data") else option(name)


def run_predict(args: argparse.Namespace) -> int:
    description, predictor = load_model(args.model)
    recordings = with_features(
        args.data, read_recordings(args.data, labels=False), description.features
    )
    count, size = len(recordings.names), args.batch_size
    outputs: int = predictor.model.linear.out_features
    progress = Lines(f"predicting {args.data}", count)
    with opened(args.output) as file, torch.inference_mode():
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header(description, outputs))
        for start in range(0, count, size):
            lengths = recordings.lengths[start : start + size]
            x = recordings.x[start : start + size, : int(lengths.max())]
            answers = predictor(x.double(), lengths)
            names = recordings.names[start : start + size]
            for name, answer, length in zip(names, answers, lengths.tolist(), strict=True):
                rows.writerows(rows_of(description, name, answer, length))
            progress.update(start + len(names))
    return 0


@contextmanager
def opened(path: Path | None) -> Iterator[TextIO]:
    """The file to write, which takes the place of a former one at the end; or stdout."""
    if path is None:
        yield sys.stdout
        return
    # A name in /dev may be that of an open file, which is not to be replaced.
    is_open = path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file())
    target = path if is_open else path.resolve()  # a link stays one
    aside = path if is_open else target.with_name(target.name + ".tmp")
    with blaming(Field("output", path)):
        file = aside.open("w", newline="", encoding="utf-8")
    try:
        with file:
            yield file
        if not is_open:
            os.replace(aside, target)
    except OSError as error:
        raise OptionError(Field("output", path), first_line(error)) from error
    finally:
        if not is_open:
            aside.unlink(missing_ok=True)


def header(description: Description, outputs: int) -> list[str]:
    kind = description.architecture.kind
    if kind == CLASSIFICATION:
        return ["sequence", "label", *(f"p({name})" for name in description.classes)]
    if kind == NEXT_STEP:
        return ["sequence", "step", *description.features]
    numbers = [f"label{index}" for index in range(outputs)]
    return ["sequence", *(numbers if outputs > 1 else ["label"])]


def rows_of(
    description: Description, name: str, answer: Tensor, length: int
) -> Iterator[list[object]]:
    """The rows of a sequence; `answer` is (classes,), (K,) or (T, features)."""
    kind = description.architecture.kind
    if kind == NEXT_STEP:
        for step, predicted in enumerate(answer[:length], 2):
            yield [name, step, *written(predicted)]
        return
    label = [description.classes[int(answer.argmax())]] if kind == CLASSIFICATION else []
    yield [name, *label, *written(answer)]


def written(numbers: Tensor) -> list[str]:
    """Numbers with the digits that their type holds."""
    digits = 15 if numbers.dtype == torch.float64 else 7
    return [f"{number:.{digits}g}" for number in numbers.tolist()]
