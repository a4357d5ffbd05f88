"""The warning of modules that have moved; a module at a former path re-exports the new one's names.

Such a module is a file of its own, not an entry of a finder: type checkers follow it.
"""

from __future__ import annotations

import warnings


def warn_of_move(former: str, present: str) -> None:
    """Warn at the import statement that names the former path.

    Level 1 is this function, 2 the module at the former path; `warnings` skips the frames of the
    import system in between, so level 3 is the import statement.
    """
    warnings.warn(f"{former} has moved to {present}", DeprecationWarning, stacklevel=3)
