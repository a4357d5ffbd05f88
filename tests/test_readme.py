"""The README's Python runs as it stands, from top to bottom, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's export, of itself
@pytest.mark.filterwarnings("ignore:.*will not be used:UserWarning")  # names for equal sizes
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "replaced 0 by fastrnn.LSTM" in printed
    assert "gru forward, float32, padded: T 100 N 32 I 64 H 128 R 128 steps run 3200" in printed
    assert names["per_sample"]["weight_hh_l0"].shape == (8, 256, 64)
    assert all(w.grad.abs().max() > 0 for w in names["lstm"].parameters())
    x = torch.randn(17, 3, 12)
    torch.testing.assert_close(names["compiled"](x), names["lstm"](x))
    assert (tmp_path / "gru.onnx").stat().st_size > 1000
