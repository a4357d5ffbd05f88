"""The error of a cell that cannot be one, with the line of the user's function that says so."""

from __future__ import annotations

import linecache
import sys
from types import FrameType, FunctionType

__all__ = ["CellError", "error_here", "error_in"]

# The language itself, and what calls it back, stand between the user's line and the error.
_BETWEEN = ("fastrnn.cells", "torch", "numpy")


class CellError(ValueError):
    """A cell's function or declaration says what cannot be a cell.

    The message starts with file and line of the user's function and ends with what to write
    instead; ``reason`` is the message without the line.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


def error_here(message: str) -> CellError:
    """An error at the line of the user's function that runs now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_between(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    if frame is None:
        return CellError(message)
    return _error(frame.f_code.co_filename, frame.f_lineno, message)


def error_in(function: FunctionType, message: str) -> CellError:
    """An error of the function as a whole, at the line where it begins."""
    code = function.__code__
    return _error(code.co_filename, code.co_firstlineno, f"{function.__name__}: {message}")


def _is_between(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in _BETWEEN)


def _error(file: str, line: int, message: str) -> CellError:
    source = linecache.getline(file, line).strip()
    located = f"{file}:{line}: {message}" + (f"\n    {source}" if source else "")
    return CellError(located, message)
