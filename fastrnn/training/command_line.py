"""The command line: runs a command, and reports an error or an interrupt."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import fastrnn
from fastrnn.training import export, predict, processes, train, tune
from fastrnn.training.errors import UsageError
from fastrnn.training.options import option

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
NO_READER = 141  # 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line, without usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser_of(program: str) -> Parser:
    """The parser of all commands."""
    about = "Train models of sequences and use them."
    parser = Parser(prog=program, description=about, allow_abbrev=False)
    parser.add_argument(
        "--version", action="version", version=f"fastrnn {fastrnn.__version__}", help="print it"
    )
    commands = parser.add_subparsers(metavar="command", title="commands")
    train.add_commands(commands)
    tune.add_command(commands)
    predict.add_command(commands)
    export.add_command(commands)
    return parser


def run(program: str, argv: Sequence[str] | None) -> int:
    """Run a command and return its exit status. `argv` is None for this process's arguments."""
    parser = parser_of(program)
    spell: Callable[[str], str] = option
    with until_the_reader_leaves():
        try:
            args = parser.parse_args(argv)
            if not hasattr(args, "run"):
                parser.print_help()
                return 0
            spell = getattr(args, "spell", option)
            status: int = args.run(args)
        except UsageError as error:
            if os.environ.get("RANK", "0") != "0":  # the first of several processes prints it
                return 2
            parser.error(error.text(spell))
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            processes.end()
        return status


@contextmanager
def until_the_reader_leaves() -> Iterator[None]:
    """End quietly when nobody reads stdout any more, as after ``| head -1``."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at its end, which would fail, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_READER)
