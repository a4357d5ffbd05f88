"""Per-sample gradients beside those of Opacus' own layers, and training with PrivacyEngine."""

from __future__ import annotations

import copy

import pytest
import torch
from common import assert_all_close
from torch import nn

import fastrnn

pytest.importorskip("opacus")

from opacus import GradSampleModule, PrivacyEngine, layers
from opacus.validators.errors import UnsupportedModuleError

from fastrnn.integrations.opacus import prepare

# Opacus may be there for the benchmarks, too, and then runs where warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
]

T, N, I, H = 5, 4, 3, 6
OPTIONS = {
    "plain": {},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}

every_layer = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
every_layout = pytest.mark.parametrize("batch_first", [True, False], ids=["NTI", "TNI"])


def state_of(name, layers_and_directions=1):
    h, c = torch.randn(2, layers_and_directions, N, H)
    return (h, c) if name == "LSTM" else h


def tensors_of(results):
    output, state = results
    return [output, *(state if isinstance(state, tuple) else (state,))]


def sample_gradients(module, call):
    """grad_sample of each parameter by name, the loss reading the output and all final states."""
    wrapped = GradSampleModule(module, loss_reduction="sum")
    results = tensors_of(call(wrapped))
    sum((k + 1) * result.sin().sum() for k, result in enumerate(results)).backward()
    parameters = module.state_dict(keep_vars=True)
    return results, {name: p.grad_sample for name, p in parameters.items() if p.requires_grad}


@every_layout
@every_layer
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sample_gradients_are_those_of_opacus_layers(options, name, batch_first):
    torch.manual_seed(0)
    private = getattr(layers, f"DP{name}")(I, H, batch_first=batch_first, **options)
    module = getattr(nn, name)(I, H, batch_first=batch_first, **options)
    module.load_state_dict(private.state_dict())
    assert prepare(module) is module and isinstance(module, getattr(nn, name))
    x = torch.randn((N, T, I) if batch_first else (T, N, I))
    hx = state_of(name, module.num_layers * (1 + module.bidirectional))
    expected, actual = (sample_gradients(m, lambda m: m(x, hx)) for m in (private, module))
    assert_all_close(actual[0], expected[0], torch.float32)
    assert actual[1].keys() == expected[1].keys() == dict(module.named_parameters()).keys()
    pairs = [(actual[1][key], expected[1][key]) for key in actual[1]]
    assert_all_close(*zip(*pairs, strict=True), torch.float32)


@every_layout
@every_layer
def test_lengths_and_projection_are_those_of_each_sample_alone(name, batch_first):
    options = {"proj_size": 2} if name == "LSTM" else {}
    torch.manual_seed(0)
    alone = getattr(fastrnn, name)(I, H, batch_first=batch_first, **options)
    alone.weight_ih_l0.requires_grad_(False)
    module = prepare(copy.deepcopy(alone))
    x, lengths = torch.randn((N, T, I) if batch_first else (T, N, I)), torch.tensor([5, 1, 3, 0])
    _, actual = sample_gradients(module, lambda m: m(x, lengths=lengths.tolist()))
    assert actual.keys() == dict(alone.named_parameters()).keys() - {"weight_ih_l0"}
    time = int(batch_first)
    for n in range(N):
        alone.zero_grad()
        results = tensors_of(alone(x.narrow(1 - time, n, 1), lengths=lengths[n : n + 1]))
        sum((k + 1) * result.sin().sum() for k, result in enumerate(results)).backward()
        expected = [alone.get_parameter(key).grad for key in actual]
        assert_all_close([gradient[n] for gradient in actual.values()], expected, torch.float32)


class UsersLSTM(nn.LSTM):
    pass


@pytest.mark.parametrize(
    "layer",
    [UsersLSTM(I, H), nn.utils.parametrizations.weight_norm(fastrnn.GRU(I, H), "weight_hh_l0")],
    ids=["subclass", "parametrized"],
)
def test_layers_of_other_classes_are_refused(layer):
    model = nn.ModuleDict({"first": nn.GRU(I, H), "second": layer})
    with pytest.raises(TypeError, match=f"second is a {type(layer).__name__}"):
        prepare(model)
    assert model["first"](torch.randn(T, I))[0].shape == (T, H)


class Classifier(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.rnn = nn.LSTM(I, H, batch_first=True, **options)
        self.head = nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[1][0][-1])


def make_private(model, expected_batch=16, noise=0.0):
    x = torch.randn(64, T, I)
    data = torch.utils.data.TensorDataset(x, (x.sum((1, 2)) > 0).long())
    loader = torch.utils.data.DataLoader(data, batch_size=expected_batch)
    return PrivacyEngine().make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=2.0), data_loader=loader,
        noise_multiplier=noise, max_grad_norm=1.0,
    )  # fmt: skip


def loss_of_epochs(model, optimizer, loader, epochs):
    losses = []
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_privacy_engine_trains_an_accelerated_model():
    torch.manual_seed(0)
    model = fastrnn.accelerate(Classifier())
    before = model.rnn.weight_hh_l0.clone()
    losses = loss_of_epochs(*make_private(prepare(model)), epochs=20)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert not torch.equal(model.rnn.weight_hh_l0, before)
    plain = Classifier()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, T, I)
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.filterwarnings("ignore:Optimal order:UserWarning")
def test_a_batch_that_sampling_left_empty():
    torch.manual_seed(0)
    model, optimizer, _ = make_private(prepare(Classifier()), noise=1.0)
    loss = nn.functional.cross_entropy(model(torch.randn(0, T, I)), torch.zeros(0).long())
    loss.nan_to_num().backward()
    assert model._module.rnn.weight_hh_l0.grad_sample.shape == (0, 4 * H, H)
    optimizer.step()


def test_a_prepared_model_is_copied_and_pickled(tmp_path):
    model = prepare(Classifier())
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(3, T, I)
    for copied in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert type(copied.rnn) is type(model.rnn)
        assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (fastrnn.accelerate(Classifier()), "call fastrnn.integrations.opacus.prepare"),
        (nn.Sequential(fastrnn.GRU(I, H)), "call fastrnn.integrations.opacus.prepare"),
        (prepare(Classifier(num_layers=2, dropout=0.5)), "need dropout=0, got 0.5"),
    ],
    ids=["accelerated", "ours", "dropout"],
)
def test_make_private_refuses_what_would_be_wrong(model, text):
    with pytest.raises(UnsupportedModuleError, match=text):
        make_private(model)


@pytest.mark.parametrize(
    "x",
    [nn.utils.rnn.pack_sequence([torch.randn(T, I)]), torch.randn(T, I)],
    ids=["packed", "one sequence"],
)
def test_other_layouts_are_refused(x):
    with pytest.raises(NotImplementedError, match="need a padded batch of three dimensions"):
        prepare(nn.GRU(I, H))(x)
