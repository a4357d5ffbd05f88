"""An exported program of a user's cell runs where the cell's function is not."""

from __future__ import annotations

import subprocess

import pytest
import torch
from written_cells import WRITTEN

import fastrnn
from fastrnn import cells

PROGRAM = """
import sys, torch, fastrnn
program, kernels, given, result = sys.argv[1:]
module, x = torch.export.load(program).module(), torch.load(given)
try:
    module(x)
except RuntimeError as error:
    print(error)
fastrnn.cells.load(kernels)
torch.save(module(x), result)
"""


def test_a_program_runs_elsewhere_with_the_loaded_kernels(tmp_path, warm_python):
    cell = WRITTEN["peephole_lstm"]
    layer, x = fastrnn.Recurrent(cell, 3, 5), torch.randn(4, 2, 3)
    try:
        cells.build(cell, folder=tmp_path / "kernels")
    except cells.CannotCompile as error:
        pytest.skip(str(error))
    program, given, result = (str(tmp_path / name) for name in ("program.pt2", "x.pt", "y.pt"))
    torch.export.save(torch.export.export(layer, (x,)), program)
    torch.save(x, given)
    command = [warm_python, "-c", PROGRAM, program, str(tmp_path / "kernels"), given, result]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (
        f"unknown cell '{cell.op_name}'" in done.stdout and "its library was loaded" in done.stdout
    )
    torch.testing.assert_close(torch.load(result), layer(x), rtol=0, atol=0)
