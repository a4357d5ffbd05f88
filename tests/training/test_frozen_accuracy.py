"""What bfloat16 and int8 weights cost a trained model in accuracy."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn.training.loop import Trainer
from fastrnn.training.model import config_for


@pytest.fixture(scope="module", params=["RNN", "GRU", "LSTM"])
def classifier(request):
    """A trainer after some epochs on the utterances of nine speakers, 370 of them held out."""
    config = config_for("japanese-vowels", cell=request.param.lower(), epochs=15, hidden_size=64)
    trainer = Trainer(config, "fastrnn")
    for _ in range(config.epochs):
        trainer.run_epoch()
    return trainer


def accuracy(trainer, model):
    trained, trainer.model = trainer.model, model
    with torch.no_grad():
        _, share = trainer.evaluate(trainer.task.test)
    trainer.model = trained
    return share


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_classifier_keeps_its_accuracy(classifier, weights):
    before = accuracy(classifier, classifier.model)
    after = accuracy(classifier, fastrnn.freeze(classifier.model, weights))
    assert before > 0.9
    assert abs(after - before) <= 0.005


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_predictor_keeps_its_error(name):
    """The next value of sums of two sines: the mean squared error grows by less than 1 %."""
    torch.manual_seed(0)
    time = torch.arange(60.0)[:, None]
    waves = [torch.sin(time * (0.2 + torch.rand(200)) + 6 * torch.rand(200)) for _ in range(2)]
    x = sum(waves).unsqueeze(-1)
    model = torch.nn.ModuleList([getattr(fastrnn, name)(1, 64), torch.nn.Linear(64, 1)])
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def error(model):
        layer, readout = model
        return (readout(layer(x[:-1])[0]) - x[1:]).square().mean()

    for _ in range(60):
        optimizer.zero_grad()
        loss = error(model)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        before = error(model).item()
        assert before < 0.1 * x.var().item()
        for weights in ("bfloat16", "int8"):
            assert error(fastrnn.freeze(model, weights)).item() <= 1.01 * before
