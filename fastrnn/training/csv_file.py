"""Reading FILE.csv: a row a step, under a header.

pandas parses blocks of rows, whose columns are checked as a whole. Only when a check fails is
the file read again, line by line, for the number and the text of the line to blame.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fastrnn.training.errors import bad_data, require
from fastrnn.training.progress import Lines
from fastrnn.training.tasks import Recordings

SEQUENCE, STEP, LABEL = ROLES = ("sequence", "step", "label")
BEYOND = ""  # a column that takes what a row has too many; the header's have names
TEXTS = (SEQUENCE, LABEL, BEYOND)
DELIMITERS = ",;\t|"
BLOCK = 1 << 22  # bytes that are parsed at once
MISSING = {"nan", "na", "n/a", "null", "none", "?", "-"}  # labels that are missing among numbers


@dataclass(frozen=True)
class Header:
    """The names of the columns, those of `ROLES` in lower case, and what stands between two."""

    names: list[str]
    delimiter: str
    line: int  # where it stands: blank lines may be before it

    @property
    def features(self) -> list[str]:
        return [name for name in self.names if name not in ROLES]


def read_csv(path: Path, labels: bool = True) -> Recordings:
    """Read the sequences of a file, and their labels unless nobody asks for them.

    Raises:
        OptionError: what is wrong with the file, with the line and the column.
    """
    pandas = require("pandas")
    header = read_header(path)
    table = _Table(path, header, labels and LABEL in header.names)
    # A row that is longer than the first line would lose its end: no row may reach this column.
    columns = [*header.names, BEYOND]
    first_line = header.delimiter.join(map(str, range(len(columns)))).encode() + b"\n"
    texts = {str(columns.index(name)): "category" for name in TEXTS if name in columns}
    progress = Lines(f"reading {path}", path.stat().st_size)
    done = 0
    try:
        for block in whole_records(path, header.delimiter):
            rows = pandas.read_csv(
                io.BytesIO(first_line + block),
                sep=header.delimiter,
                skiprows=None if done else range(1, 1 + header.line),
                dtype=texts,
                na_filter=False,  # Empty cells and words stay texts, which the checks then find.
                skipinitialspace=True,
                float_precision="high",
                low_memory=False,  # Otherwise a column may have several types within a block.
            )
            if len(rows):
                table.append(rows.set_axis(columns, axis=1))
            done += len(block)
            progress.update(done)
    except pandas.errors.ParserError as error:
        raise table.unreadable() from error
    return table.recordings()


def whole_records(path: Path, delimiter: str) -> Iterator[bytes]:
    """The file in blocks that end where a record does."""
    rest = b""
    # A cell in quotes, which are doubled inside, from its opening quote on; within another cell a
    # quote is a letter. The last group is empty where the cell goes on behind the data.
    quoted = re.compile(rb'(?:\A|[\n%b]) *("[^"]*(?:""[^"]*)*("?))' % re.escape(delimiter).encode())
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while more := file.read(BLOCK):
            data = rest + more
            end = _end_of_records(data, quoted)
            if end:
                yield data[:end]
            rest = data[end:]
    if rest:
        yield rest


def _end_of_records(data: bytes, quoted: re.Pattern[bytes]) -> int:
    """Where the last record ends: at a newline that is in no quoted cell; 0: there is none."""
    end = data.rfind(b"\n")
    cells = quoted.finditer(data) if b'"' in data else ()
    for last in deque(cells, maxlen=1):
        if not last[2] or end < last.end(1):  # the newline may lie within it
            end = data.rfind(b"\n", 0, last.start(1))
    return end + 1


def records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the number of the line that it starts in."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        line = 1
        try:
            for cells in reader:
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise bad_data(f"{path}, line {line}", f"{error}; is a quote missing?") from error


def read_header(path: Path) -> Header:
    """The header, by the delimiter that gives it the most columns."""
    firsts = {delimiter: next(records(path, delimiter), None) for delimiter in DELIMITERS}
    delimiter = max(firsts, key=lambda delimiter: len((firsts[delimiter] or (0, []))[1]))
    first = firsts[delimiter]
    if first is None:
        raise bad_data(path, "the file is empty")
    line, cells = first
    names = [cell.strip() for cell in cells]
    names = [name.casefold() if name.casefold() in ROLES else name for name in names]
    _check_names(names, f"{path}, line {line}")
    return Header(names, delimiter, line)


def _check_names(names: list[str], where: str) -> None:
    if all(re.fullmatch(r"[-+.\deE]*\d", name) for name in names):
        raise bad_data(where, "numbers; expected a header with the columns' names")
    for number, name in enumerate(names, 1):
        if not name:
            raise bad_data(where, f"column {number} has no name")
        first = 1 + names.index(name)
        if first < number:
            raise bad_data(where, f"columns {first} and {number} are both {name}")
    if SEQUENCE not in names or not set(names).difference(ROLES):
        expected = "sequence, features and, at will, label and step"
        raise bad_data(where, f"columns {', '.join(names)}; expected {expected}")


class _Table:
    """The rows read so far, and the checks of each further block of them."""

    def __init__(self, path: Path, header: Header, labelled: bool) -> None:
        self.path, self.header, self.labelled = path, header, labelled
        self.rows = 0
        self.steps: list[Any] = []  # of each block the features, (rows, I), float64
        self.starts: list[Any] = []  # of each block the first rows of sequences, counted from row 0
        self.names: list[str] = []  # of the sequences
        self.labels: list[str] = []  # of the sequences, if there are labels
        self.last: dict[str, Any] = dict.fromkeys(ROLES)  # the row before this block

    def append(self, block: Any) -> None:
        """Check a block of rows and keep it."""
        faults = _Faults()
        faults.note(block[BEYOND].to_numpy() != "", BEYOND, lambda row: "it is not empty")
        sequence, before = self._with_before(SEQUENCE, _texts(block, SEQUENCE, faults))
        starts = sequence != before
        first = np.flatnonzero(starts)
        columns = [_numbers(block, name, faults) for name in self.header.features]
        self.steps.append(np.stack(columns, axis=1))
        if STEP in self.header.names:
            step, before = self._with_before(STEP, _numbers(block, STEP, faults))
            faults.note(~starts & ~(step > before), STEP, _unlike(step, before, "{:g} after {:g}"))
        if self.labelled:
            label, before = self._with_before(LABEL, _texts(block, LABEL, faults))
            faults.note(
                ~starts & (label != before), LABEL, _unlike(label, before, "{!r}, before it {!r}")
            )
            self.labels += label[first].tolist()
        if faults:
            self._blame(*min(faults, key=lambda fault: fault[0]))
        self.names += sequence[first].tolist()
        self.starts.append(self.rows + first)
        self.rows += len(block)

    def recordings(self) -> Recordings:
        if not self.rows:
            raise bad_data(self.path, "there are no rows")
        starts = np.concatenate(self.starts)
        self._check_names(starts)
        lengths = np.diff(starts, append=self.rows)
        return Recordings(
            self._padded(lengths),
            torch.from_numpy(lengths),
            self.names,
            self.header.features,
            typed_labels(self.path, self.names, self.labels) if self.labelled else None,
        )

    def _check_names(self, starts: Any) -> None:
        """No sequence starts twice."""
        seen: set[str] = set()
        for name, start in zip(self.names, starts, strict=True):
            if name in seen:
                self._blame(start - self.rows, SEQUENCE, f"{name!r} was over already")
            seen.add(name)

    def _padded(self, lengths: Any) -> Tensor:
        """The steps as (N, T, I); each block is given up as soon as it is copied."""
        valid = np.arange(lengths.max()) < lengths[:, None]  # (N, T)
        places = np.flatnonzero(valid)
        x = np.zeros((valid.size, len(self.header.features)))
        self.steps.reverse()
        while self.steps:
            block = self.steps.pop()
            x[places[: len(block)]] = block
            places = places[len(block) :]
        return torch.from_numpy(x.reshape(*valid.shape, -1))

    def _with_before(self, name: str, column: Any) -> tuple[Any, Any]:
        """A column, and for each row the value of the row before it."""
        before = np.concatenate([np.array([self.last[name]], column.dtype), column[:-1]])
        self.last[name] = column[-1]
        return column, before

    def _blame(self, row: int, name: str, message: str) -> NoReturn:
        """Raise an error of a cell of a row, counted in this block, or of the row's length.

        A cell is empty, too, where a row is too short.
        """
        index = 1 + self.rows + row  # The header is a record, too.
        line, cells = next(islice(records(self.path, self.header.delimiter), index, None))
        self._check_count(line, cells)
        raise bad_data(f"{self.path}, line {line}, {name}", message)

    def _check_count(self, line: int, cells: list[str]) -> None:
        expected = len(self.header.names)
        if len(cells) != expected:
            hint = "; is a quote missing?" if any("\n" in cell for cell in cells) else ""
            count = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
            message = f"{count}, expected {expected}{hint}"
            raise bad_data(f"{self.path}, line {line}", message)

    def unreadable(self) -> Exception:
        """The error of a file that pandas cannot cut into rows."""
        for line, cells in records(self.path, self.header.delimiter):
            self._check_count(line, cells)
        return bad_data(f"{self.path}, line {line}", "a quote is missing after it")


class _Faults(list[tuple[int, str, str]]):
    """What is wrong with a block: row, column and message, the first of each check."""

    def note(self, wrong: Any, column: str, message: Callable[[int], str]) -> None:
        """Keep the first row that is wrong, (rows,), bool."""
        for row in np.flatnonzero(wrong)[:1].tolist():
            self.append((row, column, message(row)))


def _unlike(column: Any, before: Any, words: str) -> Callable[[int], str]:
    """A message that shows a row's value and the one before it."""
    return lambda row: words.format(column[row], before[row])


def _texts(block: Any, name: str, faults: _Faults) -> Any:
    """A column of texts, none of which may be empty."""
    column = block[name].cat
    texts = np.array([text.strip() for text in column.categories], dtype=object)[column.codes]
    faults.note(texts == "", name, lambda row: "it is empty")
    return texts


def _numbers(block: Any, name: str, faults: _Faults) -> Any:
    """A column of numbers, all of which must be finite."""
    column = block[name]
    if column.dtype.kind in "iuf":
        numbers = column.to_numpy(dtype=np.float64)
    else:  # pandas found something that is no number.
        numbers = np.array([_number(str(cell)) for cell in column])
    faults.note(~np.isfinite(numbers), name, lambda row: _not_finite(str(column.iloc[row])))
    return numbers


def _number(text: str) -> float:
    """The number that a text is, as pandas reads it; NaN if it is none."""
    try:
        return float("nan" if "_" in text else text)
    except ValueError:
        return float("nan")


def _not_finite(cell: str) -> str:
    if not cell:
        return "it is empty"
    hint = "; numbers have a decimal point and no separators" if "," in cell else ""
    return f"{cell!r} is not a finite number{hint}"


def typed_labels(path: Path, names: list[str], texts: list[str]) -> list[Any]:
    """Labels as integers if all of them are, or else as numbers, or else as the words they are.

    A word beside numbers is a class of its own where the numbers may be classes, too.
    """
    if all(re.fullmatch(r"[-+]?\d+", text) for text in texts):
        return [int(text) for text in texts]
    values = {text: _number(text) for text in texts}
    numbers = [value for value in values.values() if math.isfinite(value)]
    if len(numbers) == len(values):
        return [values[text] for text in texts]
    measured = any(not number.is_integer() for number in numbers)
    for name, text in zip(names, texts, strict=True):
        missing = numbers and text.casefold() in MISSING
        if not math.isfinite(values[text]) and (measured or missing):
            where = f"{path}, label of sequence {name}"
            raise bad_data(where, f"{text!r} is no number, while others are, as {numbers[0]:g}")
    return texts
