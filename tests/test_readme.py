"""The README's Python and the whole guide run as they stand, from top to bottom, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide.md"


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


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path, monkeypatch, capfd):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") == 6 and len(blocks) == 8
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    names: dict = {"__name__": "guide"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(GUIDE), "exec"), names)
            continue
        assert kind == "sh"
        for line in block.splitlines():
            program, *options = line.split()
            module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program]
            command = [sys.executable, *module, *options]
            subprocess.run(command, check=True, env=environment, timeout=240)
    printed = capfd.readouterr().out
    assert "fastrnn.modules.LSTM" in printed and "3 trials" in printed
    assert names["loss"].isfinite() and (tmp_path / "tuning" / "best.toml").exists()
    assert list((tmp_path / "logs").iterdir()) and list((tmp_path / "run").iterdir())
