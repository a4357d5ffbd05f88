"""TorchRL's recurrent modules on fastrnn's layers, beside themselves on torch.nn's."""

from __future__ import annotations

import copy

import pytest
import torch

import fastrnn

pytest.importorskip("torchrl")

import torchrl.modules
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.envs.libs.gym import GymEnv
from torchrl.modules import set_recurrent_mode

from fastrnn.integrations.torchrl import accelerate_policy

B, T, I, H = 3, 9, 4, 5
STATES = {"LSTM": ["h", "c"], "GRU": ["h"]}
WAYS = {"accelerate": fastrnn.accelerate, "accelerate_policy": accelerate_policy}
OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 2, "bias": False},
    "two directions": {"bidirectional": True},
}

every_module = pytest.mark.parametrize("name", STATES)
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def make(name, features=I, **options):
    torch.manual_seed(0)
    states = STATES[name]
    return getattr(torchrl.modules, f"{name}Module")(
        features, H, in_keys=["x", *states], out_keys=["y", *(("next", s) for s in states)], **options
    )  # fmt: skip


def make_batch(name, *, shape=(B, T), chance=0.3, states=1, stale=False):
    """A batch in which episodes start, with states of zero there unless they are stale."""
    is_init = torch.rand(*shape, 1) < chance
    parts = {s: torch.randn(*shape, states, H) for s in STATES[name]}
    for h in parts.values() if not stale else ():
        h[is_init.squeeze(-1)] = 0.0
    return TensorDict({"x": torch.randn(*shape, I), "is_init": is_init, **parts}, shape)


def results_of(module, batch):
    """What a module writes in recurrent mode, and gradients of its parameters."""
    with set_recurrent_mode(True):
        written = module(batch.clone())
    results = [written[key] for key in module.out_keys]
    loss = sum((k + 1) * result.sin().sum() for k, result in enumerate(results))
    return results + list(torch.autograd.grad(loss, list(module.parameters())))


def assert_same_results(module, reference, batch):
    torch.testing.assert_close(results_of(module, batch), results_of(reference, batch))


def record_calls(layer, calls):
    """Whether a layer was given reset=, for every call."""
    layer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append("reset" in kwargs), with_kwargs=True
    )


@every_way
@every_module
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("chance", [0.0, 0.3], ids=["one trajectory", "many"])
def test_a_batch_with_resets(chance, options, name, way):
    reference = make(name, **options)
    module = way(copy.deepcopy(reference))
    states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    assert_same_results(module, reference, make_batch(name, chance=chance, states=states))


@every_module
@pytest.mark.parametrize("shape", [(T,), (2, B, T)], ids=["T", "2-B-T"])
def test_batches_of_other_ranks(shape, name):
    reference = make(name)
    assert_same_results(
        accelerate_policy(copy.deepcopy(reference)), reference, make_batch(name, shape=shape)
    )


@every_module
def test_a_batch_without_states_starts_from_zero(name):
    reference = make(name)
    batch = make_batch(name).exclude(*STATES[name])
    assert_same_results(accelerate_policy(copy.deepcopy(reference)), reference, batch)


@every_module
def test_states_that_are_not_zero_at_a_start_are_used(name):
    """TorchRL reads them, as where a policy without a primer has collected the batch."""
    reference, batch, calls = make(name), make_batch(name, stale=True), []
    module = accelerate_policy(copy.deepcopy(reference))
    record_calls(getattr(module, name.lower()), calls)
    assert_same_results(module, reference, batch)
    assert calls == [False]


@every_module
def test_states_with_gradients_get_them(name):
    reference, batch, gradients = make(name), make_batch(name, chance=0.0), []
    batch["is_init"][:, 4] = True
    h = torch.zeros(B, T, 1, H, requires_grad=True)
    for key in STATES[name]:
        batch[key] = h
    for each in (reference, accelerate_policy(copy.deepcopy(reference))):
        with set_recurrent_mode(True):
            written = each(batch.clone(recurse=False))
        gradients += torch.autograd.grad(written["y"].sum(), h)
        assert gradients[-1][:, 4].abs().max() > 1e-3
    torch.testing.assert_close(*gradients)


@every_module
def test_a_batch_is_one_call_with_reset(name):
    calls, module = [], accelerate_policy(make(name))
    record_calls(getattr(module, name.lower()), calls)
    results_of(module, make_batch(name))
    assert calls == [True]


@pytest.mark.filterwarnings("ignore")  # torch's compiler, of itself
@every_module
def test_compiled_modules_run_torchrls_graph(name):
    reference = make(name, recurrent_backend="scan")
    module = accelerate_policy(copy.deepcopy(reference))
    batch = make_batch(name)
    torch._dynamo.reset()
    with set_recurrent_mode(True):
        expected = reference(batch.clone())
        actual = torch.compile(module, backend="eager")(batch.clone())
    torch.testing.assert_close(actual["y"], expected["y"])


@every_way
@every_module
def test_acting_and_training_on_what_was_collected(name, way):
    reference = make(name, features=4)
    rollouts = []
    for module in (reference, way(copy.deepcopy(reference))):
        torch.manual_seed(0)
        head = TensorDictModule(torch.nn.Linear(H, 2), ["y"], ["logits"])
        choice = TensorDictModule(
            lambda logits: torch.nn.functional.one_hot(logits.argmax(-1), 2), ["logits"], ["action"]
        )
        rename = TensorDictModule(lambda x: x, ["observation"], ["x"])
        policy = TensorDictSequential(rename, module, head, choice)
        env = TransformedEnv(GymEnv("CartPole-v1", device="cpu"), InitTracker())
        env.append_transform(module.make_tensordict_primer())
        env.set_seed(0)
        collector = Collector(env, policy, frames_per_batch=60, total_frames=60)
        rollouts += list(collector)
        collector.shutdown()
    torch.testing.assert_close(*(batch["logits"] for batch in rollouts))
    assert rollouts[0]["is_init"].sum() > 1  # episodes end inside
    batch = rollouts[0].select("x", "is_init", *STATES[name])
    assert_same_results(module, reference, batch)
