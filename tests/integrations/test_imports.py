"""What importing fastrnn does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fastrnn.integrations.cleanrl

PROGRAM = """
import sys
import fastrnn
print([name for name in sys.modules if name.startswith("fastrnn.integrations")])
"""


def test_import_fastrnn_imports_no_integration():
    assert fastrnn.integrations.cleanrl.__name__ in sys.modules
    command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
