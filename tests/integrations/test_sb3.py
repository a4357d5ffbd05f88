"""RecurrentPPO's policy with one call for a batch of sequences, beside the policy as it was."""

from __future__ import annotations

import copy

import pytest
import torch

import fastrnn

pytest.importorskip("sb3_contrib")

import gymnasium
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

from fastrnn.integrations.sb3 import accelerate_policy

OPTIONS = {
    "two": {},
    "one": {"enable_critic_lstm": False},
    "shared, stacked": {"shared_lstm": True, "enable_critic_lstm": False, "n_lstm_layers": 2},
}


def make(**policy):
    policy = {"lstm_hidden_size": 16, **policy}
    return RecurrentPPO(
        "MlpLstmPolicy", "CartPole-v1", n_steps=32, batch_size=16, n_epochs=2, seed=0,
        policy_kwargs=policy, device="cpu",
    )  # fmt: skip


def sequences(policy, samples=3, steps=5):
    """Rows of observations and actions, sample by sample; states, and where episodes start."""
    rows = samples * steps
    h, c = torch.randn(2, policy.lstm_hidden_state_shape[0], samples, 16)
    states = type("States", (), {"pi": (h, c), "vf": (c, h)})
    starts = torch.zeros(samples, steps)
    starts[0, 0] = starts[1, 3] = starts[2, 1] = 1.0
    return torch.randn(rows, 4), torch.randint(2, (rows,)), states, starts.flatten()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients_are_those_of_the_loop(options):
    model = make(**options)
    reference = copy.deepcopy(model.policy)
    parameters = list(model.policy.parameters())
    assert accelerate_policy(model) is model
    assert all(p is q for p, q in zip(model.policy.parameters(), parameters, strict=True))
    batch = sequences(reference)
    results = []
    for policy in (reference, model.policy):
        evaluated = policy.evaluate_actions(*batch)
        sum(result.sin().sum() for result in evaluated).backward()
        results.append([*evaluated, *(p.grad for p in policy.parameters())])
    torch.testing.assert_close(*results)


def test_a_step_of_acting_is_that_of_the_loop():
    model = make()
    reference = copy.deepcopy(model.policy)
    accelerate_policy(model)
    observations = torch.randn(2, 4).numpy()
    states = torch.randn(2, 1, 2, 16).numpy()
    for start in (0, 1):
        arguments = (observations, tuple(states), torch.tensor([0, start]).numpy())
        (action, after), (expected, expected_after) = (
            policy.predict(*arguments, deterministic=True)
            for policy in (model.policy, reference)
        )  # fmt: skip
        assert (action == expected).all()
        torch.testing.assert_close(after, expected_after)


def test_a_batch_is_one_call_of_each_layer():
    model = accelerate_policy(make())
    calls = []
    for lstm in (model.policy.lstm_actor, model.policy.lstm_critic):
        lstm.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    model.policy.evaluate_actions(*sequences(model.policy))
    assert calls == [(5, 3, 4)] * 2


def test_learns_and_is_saved_with_its_class(tmp_path):
    model = accelerate_policy(accelerate_policy(make()))  # the second call changes nothing
    weights = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    assert any(not torch.equal(w, weights[name]) for name, w in model.policy.state_dict().items())
    model.save(tmp_path / "model")

    loaded = RecurrentPPO.load(tmp_path / "model", env=gymnasium.make("CartPole-v1"))
    assert isinstance(loaded.policy, RecurrentActorCriticPolicy)
    assert isinstance(loaded.policy.lstm_actor, fastrnn.LSTM)
    batch = sequences(model.policy)
    calls = []
    loaded.policy.lstm_actor.register_forward_hook(lambda *call: calls.append(1))
    results = [each.policy.evaluate_actions(*batch) for each in (loaded, model)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert len(calls) == 1
    loaded.learn(32)
