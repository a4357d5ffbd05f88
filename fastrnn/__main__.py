"""Command line: ``python -m fastrnn <command>``.

The commands need the packages of the extra ``train``, the library needs torch alone. So this module
imports nothing of them by itself, and names the extra where one of its packages is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

PROGRAM = "python -m fastrnn"
USAGE = 2  # exit status, as argparse has it


def main(argv: Sequence[str] | None = None) -> int:
    try:
        from fastrnn.training.command_line import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "fastrnn":  # the installation is broken; no extra would help
            raise
        hint = f"{package} is not installed: pip install 'fastrnn[train]'"
        print(f"{PROGRAM}: error: {hint}", file=sys.stderr)
        return USAGE
    return run(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
