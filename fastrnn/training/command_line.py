"""The command line: its commands, and what becomes of an error or an interrupt."""

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
    """Says what is wrong with an option in one line, without the usage text around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run(program: str, argv: Sequence[str] | None) -> int:
    """Run a command; the exit status. `argv` is None for the arguments of this process."""
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
