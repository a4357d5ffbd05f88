"""A rollout in which episodes end and start anew: one call with reset=, no loop over steps.

Reinforcement learning collects T steps of N environments. Where an episode starts, the recurrent
state must start, too. Libraries loop over the steps for that; here the kernel does it.

Run: python examples/episodes.py
"""

import time

import torch

import fastrnn

T, N, FEATURES, UNITS = 128, 8, 16, 64

torch.manual_seed(0)
observations = torch.randn(T, N, FEATURES)
starts = torch.rand(T, N) < 0.05  # True at the first step of an episode
state = (torch.randn(1, N, UNITS), torch.randn(1, N, UNITS))  # from the rollout before
policy = fastrnn.LSTM(FEATURES, UNITS)


def loop(rnn, state):
    """What has to be done without reset=: clear the state, take one step, T times."""
    outputs = []
    for x, start in zip(observations, starts, strict=True):
        state = tuple(part * ~start.unsqueeze(1) for part in state)
        output, state = rnn(x.unsqueeze(0), state)
        outputs.append(output)
    return torch.cat(outputs), state


def gradient(output):
    policy.zero_grad()
    output.square().mean().backward()
    return policy.weight_hh_l0.grad.clone()


begin = time.perf_counter()
expected, _ = loop(policy, state)
slope_of_loop = gradient(expected)
middle = time.perf_counter()
output, state = policy(observations, state, reset=starts)
slope = gradient(output)
end = time.perf_counter()

torch.testing.assert_close(output, expected)
torch.testing.assert_close(slope, slope_of_loop)
print(f"{starts.sum()} episodes start in {T} steps of {N} environments; same values and gradients")
print(f"loop {1e3 * (middle - begin):.1f} ms, one call {1e3 * (end - middle):.1f} ms")
