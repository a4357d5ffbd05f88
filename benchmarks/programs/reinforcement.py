"""Policies with a memory: TorchRL's LSTMModule and sb3-contrib's RecurrentPPO.

Each has a second row, after ``accelerate_policy`` of fastrnn.integrations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import fastrnn

from .program import Program, supervised


def torchrl_lstm() -> Program:
    """Training on trajectories in which episodes start; inference is a step of acting."""
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    environments, steps, features, hidden = 32, 64, 16, 128
    written = ["y", ("next", "h"), ("next", "c")]
    model = LSTMModule(features, hidden, in_keys=["x", "h", "c"], out_keys=written)

    def batch(*shape: int) -> TensorDict:
        return TensorDict(
            {
                "x": torch.randn(*shape, features),
                "h": torch.zeros(*shape, 1, hidden),
                "c": torch.zeros(*shape, 1, hidden),
                "is_init": torch.rand(*shape, 1) < 0.05,
            },
            shape,
        )

    trajectories, step = batch(environments, steps), batch(environments)

    def loss() -> torch.Tensor:
        with set_recurrent_mode(True):
            return model(trajectories.clone())["y"].square().mean()

    def act() -> list[torch.Tensor]:
        acted = model(step.clone())
        return [acted[key] for key in written]

    return supervised(model, loss, act)


def torchrl_lstm_in_one_call() -> Program:
    from fastrnn.integrations.torchrl import accelerate_policy

    program = torchrl_lstm()
    return replace(
        program, accelerate=lambda report: accelerate_policy(program.model, report=report)
    )


def recurrent_ppo() -> Program:
    """Training is RecurrentPPO.train on a buffer that it filled; inference is a step of acting."""
    return ppo_program(ppo())


def recurrent_ppo_in_one_call() -> Program:
    from fastrnn.integrations.sb3 import accelerate_policy

    algorithm = ppo()

    def accelerate(report: fastrnn.Report) -> None:
        fastrnn.accelerate(algorithm.policy, report=report)
        accelerate_policy(algorithm)

    return replace(ppo_program(algorithm), accelerate=accelerate)


def ppo() -> Any:
    from sb3_contrib import RecurrentPPO

    algorithm = RecurrentPPO(
        "MlpLstmPolicy",
        "CartPole-v1",
        n_steps=256,
        batch_size=128,
        n_epochs=1,
        seed=0,
        device="cpu",
    )
    return algorithm.learn(256)


def ppo_program(algorithm: Any) -> Program:
    policy = algorithm.policy
    observations = torch.randn(32, 4).numpy()
    states = torch.zeros(2, 1, 32, policy.lstm_actor.hidden_size).numpy()

    def act() -> list[torch.Tensor]:
        action, states_after = policy.predict(observations, tuple(states), deterministic=True)
        return [torch.as_tensor(each) for each in (action, *states_after)]

    return Program(policy, algorithm.train, act)
