"""What is kept for backward, and what a call needs beyond its results, in bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fastrnn

T, N, I, H = 32, 8, 48, 64
SEQUENCE = T * N * 4  # a float32 column has so many bytes


def saved_bytes(module: torch.nn.Module) -> int:
    """The bytes that autograd keeps besides weights; views of one storage count once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(T, N, I, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(x)
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del output
    return sum(kept.values())


# Gates and cell states are the columns beside input and output. The states before the first and after the last step
# are small.
GATES = {"RNN": 0, "GRU": 4 * H, "LSTM": 4 * H}
CELL_STATES = {"RNN": 0, "GRU": 0, "LSTM": H}
SMALL = 8 * N * H * 4


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_saved_for_backward(name, recompute):
    torch.manual_seed(0)
    ours = saved_bytes(getattr(fastrnn, name)(I, H, recompute=recompute))
    columns = I + H + CELL_STATES[name] + (0 if recompute else GATES[name])
    assert SEQUENCE * columns <= ours <= SEQUENCE * columns + SMALL
    theirs = saved_bytes(getattr(torch.nn, name)(I, H))
    assert ours <= theirs


def peak_growth(module: str, sizes: tuple[int, int, int, int]) -> int:
    """Largest resident memory of a fresh process during a call, beyond what it held before, in bytes."""
    script = f"""
import torch, fastrnn
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

T, N, I, H = {sizes}
torch.set_num_threads(2)
module, x = {module}(I, H), torch.randn(T, N, I)
with torch.no_grad():
    module(x[:2])
    open("/proc/self/clear_refs", "w").write("5")  # the peak is now what is resident
    before = peak()
    y = module(x)
print(peak() - before)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_inference_needs_its_output_and_a_constant(name):
    """No temporary grows with T: (T * N, G * H) would be 128 MB for an LSTM here, the output is 32 MB."""
    sizes = (2048, 32, 16, 128)
    output = 2048 * 32 * 128 * 4
    assert peak_growth(f"fastrnn.{name}", sizes) <= output + (8 << 20)
