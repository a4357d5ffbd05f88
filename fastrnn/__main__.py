"""Command line: ``python -m fastrnn <command>``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastrnn.training import command_line, processes, tune
from fastrnn.training.errors import UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line, without the usage text around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m fastrnn", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="command", required=True)
    command_line.add_commands(commands)
    tune.add_command(commands)
    try:
        args = parser.parse_args(argv)
        status: int = args.run(args)
    except UsageError as error:
        if os.environ.get("RANK", "0") != "0":  # of several processes, the first says it
            return 2
        parser.error(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        processes.end()
    return status


if __name__ == "__main__":
    sys.exit(main())
