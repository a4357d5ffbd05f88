"""unroll beside the loop over steps of CleanRL's agents; this needs no package."""

from __future__ import annotations

import pytest
import torch
from common import assert_all_close
from torch import nn

import fastrnn
from fastrnn.integrations.cleanrl import unroll

T, N, I, H, L = 12, 3, 4, 7, 2
DOUBLE = torch.float64


def loop(rnn, x, done, state):
    """One step after another on torch.nn's layer, the state zeroed where an episode starts."""
    outputs = []
    for step, start in zip(x, done, strict=True):
        keep = (1.0 - start).view(1, -1, 1)
        state = tuple(keep * h for h in state) if isinstance(state, tuple) else keep * state
        output, state = rnn(step.unsqueeze(0), state)
        outputs.append(output)
    return torch.cat(outputs), state


def tensors_of(output, state):
    return [output, *(state if isinstance(state, tuple) else (state,))]


def gradients_of(results, rnn, x):
    weights = [torch.linspace(1, 2, result.numel(), dtype=DOUBLE) for result in results]
    loss = sum((result.flatten() * w).sum() for result, w in zip(results, weights, strict=True))
    return torch.autograd.grad(loss, [x, *rnn.parameters()])


@pytest.mark.parametrize("chance", [0.0, 0.2, 1.0], ids=["no starts", "some", "every step"])
@pytest.mark.parametrize("rows", [False, True], ids=["steps", "rows"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_rollout_is_the_loop_over_its_steps(name, rows, chance):
    torch.manual_seed(0)
    reference = getattr(nn, name)(I, H, num_layers=L, dtype=DOUBLE)
    ours = getattr(fastrnn, name)(I, H, num_layers=L, dtype=DOUBLE)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(T, N, I, dtype=DOUBLE, requires_grad=True)
    done = (torch.rand(T, N) < chance).to(DOUBLE)
    h, c = torch.randn(2, L, N, H, dtype=DOUBLE)
    state = (h, c) if name == "LSTM" else h

    expected = tensors_of(*loop(reference, x, done, state))
    given = (x.flatten(0, 1), done.flatten()) if rows else (x, done)
    output, after = unroll(ours, *given, state)
    assert output.shape == ((T * N, H) if rows else (T, N, H))
    actual = tensors_of(output.view(T, N, H), after)
    assert_all_close(actual, expected, DOUBLE)
    slopes = gradients_of(actual, ours, x), gradients_of(expected, reference, x)
    assert_all_close(*slopes, DOUBLE)


def test_an_accelerated_layer_is_taken():
    rnn = fastrnn.accelerate(nn.GRU(I, H))
    x, state = torch.randn(T, N, I), torch.zeros(1, N, H)
    output, _ = unroll(rnn, x, torch.ones(T, N, dtype=torch.bool), state)
    torch.testing.assert_close(output, torch.cat([rnn(step.unsqueeze(0))[0] for step in x]))


@pytest.mark.parametrize(
    ("rnn", "error", "text"),
    [
        (nn.LSTM(I, H), TypeError, r"got torch.nn.modules.rnn.LSTM.* call fastrnn.accelerate"),
        (fastrnn.GRU(I, H, bidirectional=True), ValueError, "must not have bidirectional=True"),
        (fastrnn.GRU(I, H, batch_first=True), ValueError, "must not have batch_first=True"),
        (fastrnn.GRU(I, H, reverse=True), ValueError, "must not have reverse=True"),
    ],
    ids=["torch.nn", "bidirectional", "batch_first", "reverse"],
)
def test_what_cannot_be_unrolled_is_refused(rnn, error, text):
    with pytest.raises(error, match=text):
        unroll(rnn, torch.randn(T, N, I), torch.zeros(T, N), torch.zeros(1, N, H))


def test_a_state_in_a_list_and_a_graph():
    """As the layers take them; what starts is not asked where a graph is traced."""
    lstm, x = fastrnn.LSTM(I, H), torch.randn(T, N, I)
    state = [torch.randn(1, N, H), torch.randn(1, N, H)]
    done = torch.zeros(T, N)
    done[3, 1] = 1

    def run(x, done):
        return unroll(lstm, x, done, state)[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, done), unroll(lstm, x, done, tuple(state))[0])
