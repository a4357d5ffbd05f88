"""Swap the recurrent layers of a model that exists, compare, and swap back.

Run: python examples/accelerate_model.py
"""

import time

import torch
from torch import nn

import fastrnn


class Tagger(nn.Module):
    """A model as one finds it: it knows nothing of fastrnn."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 32)
        self.encoder = nn.GRU(32, 64, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens))[0])


def milliseconds(call) -> float:
    call()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


torch.manual_seed(0)
model = Tagger()
optimizer = torch.optim.Adam(model.parameters())  # stays right: the parameters are the same objects
tokens = torch.randint(1000, (16, 50))


def step():
    optimizer.zero_grad()
    model(tokens).logsumexp(-1).mean().backward()


expected, before = model(tokens), milliseconds(step)

report = fastrnn.Report()
fastrnn.accelerate(model, report=report)
print(report)
after = milliseconds(step)
torch.testing.assert_close(model(tokens), expected)
print(f"forward and backward: torch.nn {before:.1f} ms, fastrnn {after:.1f} ms")
print(fastrnn.explain(model, tokens))

fastrnn.decelerate(model)
torch.testing.assert_close(model(tokens), expected)
