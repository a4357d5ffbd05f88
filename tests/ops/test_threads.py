"""Threads: torch.set_num_threads rules, several callers at once, forked children, DataLoader workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from common import gradients, leaf, make_scan, present

import fastrnn
from fastrnn import ops
from fastrnn.ops import ScanWeights


def test_calls_from_several_threads(two_threads):
    """Units split among threads, rows split among threads: both with barriers or chunks of their own."""
    cases = [("lstm", (30, 8, 12, 40)), ("rnn_tanh", (20, 2, 64, 256)), ("gru", (8, 64, 3, 5))]
    leaves = {
        cell: [leaf(t, torch.float32) for t in (*case[:3], *case[3])]
        for cell, sizes in cases
        for case in [make_scan(cell, sizes)]
    }

    def run(cell) -> list[torch.Tensor]:
        tensors = leaves[cell]
        y = present(ops.scan(cell, *tensors[:3], ScanWeights(*tensors[3:])))
        return y + gradients(y, present(tensors))

    expected, wrong, runs = {cell: run(cell) for cell in leaves}, [], []

    def worker() -> None:
        for _ in range(6):
            for cell in leaves:
                runs.append(cell)
                if not all(
                    torch.equal(a, b) for a, b in zip(run(cell), expected[cell], strict=True)
                ):
                    wrong.append(cell)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 4 * 6 * len(cases)
    assert not wrong


def threads_used(code: str, threads: int) -> int:
    """Threads of a fresh process after code ran with torch.set_num_threads(threads)."""
    script = f"""
import os, torch, fastrnn
torch.set_num_threads({threads})
before = len(os.listdir("/proc/self/task"))
{code}
print(len(os.listdir("/proc/self/task")) - before)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_set_num_threads_rules(threads):
    code = "with torch.no_grad(): fastrnn.LSTM(64, 256)(torch.randn(30, 64, 64))"
    assert threads_used(code, threads) == threads - 1
    tiny = "with torch.no_grad(): fastrnn.LSTM(2, 3)(torch.randn(2, 1, 2))"
    # A fork and join would cost more than the work.
    assert threads_used(tiny, threads) == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("call", ["y = layer(x)[0]", "layer(x)[0].sum().backward()"])
def test_directions_run_side_by_side(call):
    """Each direction of this layer is too small for two threads."""
    for bidirectional in (False, True):
        layer = f"fastrnn.RNN(64, 64, bidirectional={bidirectional})"
        grad = "backward" in call
        code = (
            f"torch.set_grad_enabled({grad}); layer, x = {layer}, torch.randn(100, 1, 64); {call}"
        )
        assert threads_used(code, 2) == bidirectional


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child():
    """The pool of OpenMP does not survive a fork: a child that used it would wait for ever."""
    script = """
import os, torch, fastrnn
torch.set_num_threads(2)
torch.manual_seed(0)
module, x, dy = fastrnn.GRU(64, 128), torch.randn(20, 32, 64), torch.randn(20, 32, 128)

def run():
    y = module(x)[0]
    return threads(), y, *torch.autograd.grad(y, module.parameters(), dy)

def threads():
    return len(os.listdir("/proc/self/task"))

expected = run()
pid = os.fork()
if pid == 0:
    count, *actual = run()
    torch.set_num_threads(1)  # torch.equal would wait for the parent's pool
    same = all(torch.equal(a, b) for a, b in zip(actual, expected[1:], strict=True))
    os._exit(0 if same and count == 1 < expected[0] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert process.stdout == "0\n", process.stderr


class Encoded(torch.utils.data.Dataset):
    """Items that a layer computes, in the process that asks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = fastrnn.LSTM(16, 64)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.randn(40, 16, 16, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            return self.module(x)[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(two_threads, start):
    data = Encoded()
    # From here on the parent's pool is running.
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, num_workers=2, multiprocessing_context=start, timeout=60
    )
    assert torch.equal(torch.cat(list(loader)), expected)
