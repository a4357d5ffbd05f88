"""Classify sequences of different lengths: which of two waves is it?

Run: python examples/variable_lengths.py
"""

import math
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader

import fastrnn
from fastrnn.data import LengthGroupedSampler, collate


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.GRU(1, 16, batch_first=True)
        self.linear = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        _, h_n = self.rnn(x, lengths=lengths)  # h_n is each sequence's own last state
        return self.linear(h_n[-1])


def wave(length: int, label: int) -> torch.Tensor:
    """A noisy wave (length, 1) with a period of 8 steps, or of 5."""
    steps = torch.arange(length) + 10 * torch.rand(())
    x = torch.sin(2 * math.pi * steps / (8, 5)[label]) + 0.3 * torch.randn(length)
    return x.unsqueeze(1)


torch.manual_seed(0)
samples = [(wave(n, i % 2), i % 2) for i, n in enumerate(torch.randint(20, 60, (300,)).tolist())]
sampler = LengthGroupedSampler([len(x) for x, _ in samples], batch_size=32)
loader = DataLoader(samples, batch_sampler=sampler, collate_fn=partial(collate, batch_first=True))

model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(15):
    sampler.set_epoch(epoch)
    for x, lengths, labels in loader:
        loss = nn.functional.cross_entropy(model(x, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

x, lengths, labels = collate([(wave(40, i % 2), i % 2) for i in range(200)], batch_first=True)
with torch.no_grad():
    accuracy = (model(x, lengths).argmax(-1) == labels).float().mean()
print(f"accuracy on 200 new waves: {accuracy:.3f}")
