"""Data parallel on two processes (gloo, CPU): what one process computes on the whole batch.

Two processes are started once and run every case; each test looks at one.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest
import torch
from common import assert_all_close
from torch import nn

import fastrnn

WORLD = 2
# It is in seconds, for a machine that may have much else to do.
TIMEOUT = 240
T, N, I, H = 9, 6, 5, 8
LENGTHS = [9, 1, 4, 7, 0, 5]
LAYERS = {
    "LSTM": {"num_layers": 2, "bidirectional": True},
    "GRU": {},
}
CASES = [
    (way, name, with_lengths)
    for way in ("DDP", "DDP of compiled", "compiled DDP", "FSDP2")
    for name in LAYERS
    for with_lengths in (False, True)
]


class Tagger(nn.Module):
    def __init__(self, name):
        super().__init__()
        options = LAYERS[name]
        self.rnn = getattr(fastrnn, name)(I, H, batch_first=True, dtype=torch.float64, **options)
        width = H * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3, dtype=torch.float64)

    def forward(self, x, lengths=None):
        output, states = self.rnn(x, lengths=lengths)
        h_n = states[0] if isinstance(states, tuple) else states
        return self.head(output), h_n.transpose(0, 1)


def make_problem(name, with_lengths):
    torch.manual_seed(0)
    return (
        Tagger(name),
        torch.randn(N, T, I, dtype=torch.float64),
        torch.tensor(LENGTHS) if with_lengths else None,
    )


def train(model, x, lengths, samples):
    """Two steps on some samples: the gradients of both, and what the parameters become.

    The loss is the mean over a process's samples, so its mean over equal processes is that of the whole batch.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lengths = None if lengths is None else lengths[samples]
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        scores, h_n = model(x[samples], lengths=lengths)
        (scores.square().sum() + h_n.sum()).div(scores.size(0)).backward()
        gradients += [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return gradients + [p.detach().clone() for p in model.parameters()]


def distribute(way, model):
    # They are imported here, for the parent has no use for them, and importing takes long.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    if way == "DDP":
        return DistributedDataParallel(model)
    if way == "DDP of compiled":
        return DistributedDataParallel(torch.compile(model, backend="aot_eager", fullgraph=True))
    if way == "compiled DDP":
        return torch.compile(DistributedDataParallel(model), backend="aot_eager")
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.rnn, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def run_case(rank, case):
    way, name, with_lengths = case
    torch._dynamo.reset()
    model, x, lengths = make_problem(name, with_lengths)
    samples = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    model = distribute(way, model)
    tensors = train(model, x, lengths, samples)
    return [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors], [
        tuple(t.to_local().shape) if hasattr(t, "to_local") else tuple(t.shape) for t in tensors
    ]


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks for the host by its name
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",  # a file needs no free port
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=TIMEOUT),
    )
    results = {case: run_case(rank, case) for case in CASES}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """For each process, what each case gave."""
    folder = tmp_path_factory.mktemp("distributed")
    processes = torch.multiprocessing.start_processes(
        worker, (str(folder),), nprocs=WORLD, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + TIMEOUT
    try:
        while not processes.join(timeout=max(0, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the processes did not end in {TIMEOUT} seconds")
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_processes_are_one(case, results):
    model, x, lengths = make_problem(*case[1:])
    expected = train(model, x, lengths, slice(None))
    for rank in range(WORLD):
        actual, shapes = results[rank][case]
        assert_all_close(actual, expected, torch.float64)
        # FSDP2 keeps half of each parameter (all split well), DDP all of it.
        full = [tuple(t.shape) for t in expected]
        assert (shapes == full) == (case[0] != "FSDP2")


def test_a_process_has_seen_its_half_only():
    """The test above would fail for processes that do not exchange gradients."""
    model, x, lengths = make_problem("GRU", True)
    whole = train(model, x, lengths, slice(None))
    half = train(make_problem("GRU", True)[0], x, lengths, slice(0, N // WORLD))
    with pytest.raises(AssertionError):
        assert_all_close(half, whole, torch.float64)
