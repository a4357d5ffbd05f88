"""Errors that the user can put right; the command line prints them in one line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UsageError(Exception):
    """Something the user can put right; its text is one line that says what and where."""


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def blaming(options: str) -> Iterator[None]:
    """Name the options that asked for more memory, or for another file, than can be had."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        raise UsageError(f"{options}: {first_line(error) or type(error).__name__}") from error


def require(module: str, extra: str = "train") -> Any:
    """Import a module of an optional extra, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise UsageError(f"{missing} is not installed: pip install 'fastrnn[{extra}]'") from error
