"""An agent with memory: it acts step by step, and learns from a whole rollout in one call.

An environment shows a cue at the first step of an episode, and asks for it some steps later. The
actor is a frozen copy of the policy, whose weights are packed once and not at every step. Training
has the rollout in one call with reset=; then refresh gives the actor what was learned. Beside it
runs the same agent on torch.nn, which has no reset= and takes the steps of a rollout one by one.

Run: python examples/agent.py
"""

import time
from statistics import mean, median

import torch
from torch import nn

import fastrnn

T, UNITS, CUES, ROUNDS, UPDATES = 64, 128, 4, 10, 150


class Recall:
    """N environments with episodes of 4 to 12 steps; the right answer at the last one earns 1."""

    def __init__(self, n: int) -> None:
        self.cues, self.left = torch.zeros(2, n, dtype=torch.long)
        self.step(self.cues)  # no environment has a step left, so that an episode starts in each

    def step(self, answers):
        self.starts = self.left == 0
        rewards = (self.starts & (answers == self.cues)).float()
        self.cues = torch.where(self.starts, torch.randint_like(self.cues, CUES), self.cues)
        self.left = torch.where(self.starts, torch.randint_like(self.left, 3, 12), self.left - 1)
        shown = nn.functional.one_hot(self.cues, CUES) * self.starts.unsqueeze(1)
        self.observations = torch.cat([shown, (self.left == 0).unsqueeze(1)], 1).float()
        return rewards


def clear(state, starts):
    keep = ~starts.unsqueeze(1)
    return tuple(part * keep for part in state) if isinstance(state, tuple) else state * keep


class Policy(nn.Module):
    """Logits of the answers, and a value: act() takes one step, forward() a rollout."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.heads = nn.Linear(UNITS, CUES + 1)

    def act(self, x, state, starts):
        output, state = self.rnn(x.unsqueeze(0), state, reset=starts.unsqueeze(0))
        return self.heads(output[0]), state

    def forward(self, x, state, starts):
        return self.heads(self.rnn(x, state, reset=starts)[0])


class PolicyOfTorch(Policy):
    """The same with a cell, which takes less time for a step than torch.nn's layers do."""

    def step(self, x, state, starts):
        state = self.rnn(x, clear(state, starts))
        return state[0] if isinstance(state, tuple) else state, state

    def act(self, x, state, starts):
        output, state = self.step(x, state, starts)
        return self.heads(output), state

    def forward(self, x, state, starts):
        outputs = []
        for observations, start in zip(x, starts, strict=True):
            output, state = self.step(observations, state, start)
            outputs.append(output)
        return self.heads(torch.stack(outputs))


class Agent:
    def __init__(self, policy: Policy, actor: Policy, state, n: int) -> None:
        self.policy, self.actor, self.state, self.environment = policy, actor, state, Recall(n)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=0.005)

    @torch.inference_mode()
    def act(self):
        """T steps, the state after them, and the median of the actor's times in seconds."""
        state, environment, steps, seconds = self.state, self.environment, [], []
        for _ in range(T):
            x, starts = environment.observations, environment.starts
            begin = time.perf_counter()
            heads, state = self.actor.act(x, state, starts)
            seconds.append(time.perf_counter() - begin)
            answers = heads[:, :CUES].softmax(-1).multinomial(1)
            steps.append((x, starts, answers, environment.step(answers.squeeze(1))))
        return steps, state, median(seconds)

    def learn(self):
        """Microseconds a step of acting, milliseconds an update, mean reward of an episode."""
        steps, state, seconds = self.act()
        # Tensors made outside inference mode are ordinary ones, which autograd may save.
        x, starts, answers, rewards = (torch.stack(parts) for parts in zip(*steps, strict=True))
        state = clear(state, self.environment.starts)
        begin = time.perf_counter()
        heads = self.policy(x, self.state, starts)
        # An answer changes the reward of its own step alone, which is therefore the return.
        advantages = rewards - heads[..., CUES]
        given = heads[..., :CUES].log_softmax(-1).gather(-1, answers).squeeze(-1)
        self.optimizer.zero_grad()
        (advantages.square() - advantages.detach() * given).mean().backward()
        self.optimizer.step()
        if self.actor is not self.policy:
            fastrnn.refresh(self.actor, self.policy)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        self.state = state
        return 1e6 * seconds, milliseconds, (rewards.sum() / x[..., CUES].sum()).item()


def agents(kind: str, n: int) -> tuple[Agent, Agent]:
    """One on torch.nn and one on fastrnn, with the same weights."""
    reference = PolicyOfTorch(getattr(nn, f"{kind}Cell")(CUES + 1, UNITS))
    policy = Policy(getattr(fastrnn, kind)(CUES + 1, UNITS))
    weights = reference.state_dict().values()
    policy.load_state_dict(dict(zip(policy.state_dict(), weights, strict=True)))
    zeros = torch.zeros(1, n, UNITS)
    states = [(h, h) if kind == "LSTM" else h for h in (zeros[0], zeros)]
    actor = fastrnn.freeze(policy)
    return Agent(reference, reference, states[0], n), Agent(policy, actor, states[1], n)


torch.manual_seed(0)
print("        N   acting, microseconds a step   training, milliseconds an update")
print("            torch.nn   fastrnn   ratio    torch.nn   fastrnn   ratio")
for kind in ("GRU", "LSTM"):
    for n in (1, 16):
        pair = agents(kind, n)
        x, starts = torch.randn(T, n, CUES + 1), torch.rand(T, n) < 0.1
        outputs = [agent.policy(x, agent.state, starts) for agent in pair]
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
        rounds = [[agent.learn() for agent in pair] for _ in range(ROUNDS)]
        medians = [[median(each[j][i] for each in rounds) for j in (0, 1)] for i in (0, 1)]
        columns = [f"{a:12.1f}{b:10.1f}{a / b:8.1f}" for a, b in medians]
        print(f"{kind:4}{n:5}", *columns, sep="")

agent = agents("GRU", 16)[1]
rewards = [agent.learn()[2] for _ in range(UPDATES)]
before, after = mean(rewards[:5]), mean(rewards[-5:])
print(f"mean reward of a GRU, N 16: {before:.2f} at first, {after:.2f} after {UPDATES} updates")
assert after > 0.7 > 0.4 > before
