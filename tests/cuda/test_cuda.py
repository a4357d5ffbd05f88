"""What there is on a GPU alone: streams, CUDA graphs, threads that share a device, a second device."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from common import DEVICE, assert_all_close, random
from torch import Tensor

import fastrnn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: pytest --device cuda"),
]

T, I, H = 20, 16, 96


def make(device: str = "cuda") -> fastrnn.LSTM:
    torch.manual_seed(0)
    return fastrnn.LSTM(I, H, num_layers=2, device=device, dtype=torch.float16)


def normal(*shape: int, device: str = "cuda", seed: int = 0) -> Tensor:
    drawn = random(shape, torch.Generator("cpu").manual_seed(seed))
    return drawn.to(device, torch.float16)


def step(module: fastrnn.LSTM, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """Results and all gradients."""
    x = x.detach().requires_grad_()
    y, (h_n, c_n) = module(x, lengths=lengths)
    return [y, h_n, c_n, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    """To rounding: every result depends on products of cuBLAS, which may choose another algorithm for a graph,
    a stream or a device."""
    assert_all_close(actual, expected, torch.float16)
    assert all(tensor.isfinite().all() and tensor.abs().max() > 0 for tensor in expected)


def test_in_a_cuda_graph(instruction_set: str) -> None:
    """What is captured runs again with other numbers, lengths among them, which the host never reads."""
    module, x, other = make(), normal(T, 8, I), normal(T, 8, I, seed=1)
    lengths = torch.arange(T - 7, T + 1, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(
        stream
    ):  # what torch and cuBLAS allocate once is there before the capture
        step(module, x, lengths)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = step(module, x, lengths)
    x.copy_(other)
    lengths.copy_(lengths.flip(0) - 3)
    graph.replay()
    assert_same(actual, step(module, other, lengths))


FIRST_USE = """
import torch, fastrnn
torch.manual_seed(0)
module = fastrnn.LSTM(16, 96, device="cuda", dtype=torch.float16)
x = torch.randn(20, 8, 16, device="cuda", dtype=torch.float16)

def step():
    y, _ = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))]

x[0] @ x[0].mT  # cuBLAS makes its handle, which no capture allows
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = step()
graph.replay()
for a, b in zip(captured, step(), strict=True):
    torch.testing.assert_close(a, b, rtol=0, atol=4e-3 * max(1, b.abs().max().item()))
"""


def test_first_use_inside_a_capture(instruction_set: str) -> None:
    """CUDA loads kernels at their first launch, here in a process that has launched none."""
    done = subprocess.run([sys.executable, "-c", FIRST_USE], text=True, capture_output=True)
    if "what FASTRNN_CUDA_REGIME asks for cannot run this" in done.stderr:
        pytest.skip(f"{instruction_set} cannot run this")
    assert done.returncode == 0, done.stderr[-2000:]


# Grids of several streams wait for each other's multiprocessors: a block that never starts ends in a trap.
@pytest.mark.traps
def test_on_the_current_stream(instruction_set: str) -> None:
    module, x, other = make(), normal(T, 8, I), normal(T, 8, I, seed=1)
    expected = step(module, other)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(
            100_000_000
        )  # x has the numbers of `other` long after the host has gone on
        x.copy_(other)
        actual = step(module, x)
    stream.synchronize()
    assert_same(actual, expected)


@pytest.mark.traps
def test_threads_side_by_side(instruction_set: str) -> None:
    """Batches of other sizes, for which the same kernels want other amounts of shared memory."""
    module = make()
    inputs = [normal(T, N, I, seed=N) for N in (1, 8, 40, 64)]
    expected = [step(module, x) for x in inputs]
    torch.cuda.synchronize()

    def run(index: int) -> list[list[Tensor]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            actual = [step(module, inputs[index]) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return actual

    with ThreadPoolExecutor(len(inputs)) as pool:
        for repeats, wanted in zip(pool.map(run, range(len(inputs))), expected, strict=True):
            for actual in repeats:
                assert_same(actual, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_second_device(instruction_set: str) -> None:
    """Not the current one: the tensors say where."""
    actual = step(make("cuda:1"), normal(T, 8, I, device="cuda:1"))
    assert torch.cuda.current_device() == 0
    assert {tensor.device for tensor in actual} == {torch.device("cuda:1")}
    assert_same([tensor.to("cuda:0") for tensor in actual], step(make(), normal(T, 8, I)))
