"""The command line: runs a command, and reports an error or an interrupt."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from fastrnn.training import processes, train, tune
from fastrnn.training.errors import UsageError
from fastrnn.training.options import option

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line, without usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run(program: str, argv: Sequence[str] | None) -> int:
    """Run a command and return its exit status. `argv` is None for this process's arguments."""
    parser = Parser(prog=program, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="command", required=True)
    train.add_commands(commands)
    tune.add_command(commands)
    try:
        args = parser.parse_args(argv)
        status: int = args.run(args)
    except UsageError as error:
        if os.environ.get("RANK", "0") != "0":  # the first of several processes prints the error
            return 2
        parser.error(error.text(option))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        processes.end()
    return status
