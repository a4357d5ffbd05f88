"""Errors that the user can put right; the command line prints them in one line.

The trainer knows fields of `Config` and names of arguments, but not how the user wrote them. So an
error keeps them as `Field`s, and whoever prints it says how a field's name is spelled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """A field of `Config` or another argument of a training, with its value if the error has it."""

    name: str
    value: object = ""

    def text(self, spell: Callable[[str], str]) -> str:
        name = spell(self.name)
        return name if self.value == "" else f"{name} {self.value}"


class UsageError(Exception):
    """Something the user can put right. Its arguments, texts and fields, make up one line."""

    @property
    def parts(self) -> tuple[str | Field, ...]:
        return self.args

    def text(self, spell: Callable[[str], str] = str) -> str:
        """The line, with each field's name as `spell` writes it; by default as Python has it."""
        return "".join(p.text(spell) if isinstance(p, Field) else p for p in self.parts)

    def __str__(self) -> str:
        return self.text()


class OptionError(UsageError, ValueError):
    """Fields whose values cannot be, or cannot be together.

    Args:
        fields: what is to blame, one field or several.
        message: what is wrong, as texts and as fields that it mentions.

    Example::

        >>> str(OptionError(Field("batch_size", 9), "there are 4 training samples"))
        'batch_size 9: there are 4 training samples'
    """

    def __init__(self, fields: Field | tuple[Field, ...], *message: str | Field) -> None:
        super().__init__(fields, *message)  # the same arguments, so that pickle can repeat the call
        self.fields = fields if isinstance(fields, tuple) else (fields,)
        self.message = message

    @property
    def parts(self) -> tuple[str | Field, ...]:
        blamed = [part for field in self.fields for part in (", ", field)]
        return (*blamed[1:], ": ", *self.message)


def bad_data(where: object, message: str) -> OptionError:
    """An error of the file, the line or the column that `where` names."""
    return OptionError(Field("data", where), message)


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def blaming(*fields: Field) -> Iterator[None]:
    """Name the fields that asked for more memory, or for another file, than can be had."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        raise OptionError(fields, first_line(error) or type(error).__name__) from error


def require(module: str, extra: str = "train") -> Any:
    """Import a module of an optional extra, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise UsageError(f"{missing} is not installed: pip install 'fastrnn[{extra}]'") from error
