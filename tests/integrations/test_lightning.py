"""The callback in a Trainer's fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn

pytest.importorskip("lightning")

import pytorch_lightning
from lightning import pytorch

from fastrnn.integrations.lightning import Accelerate

# These two packages are one under two names, of which programs import either.
PACKAGES = {"lightning": pytorch, "pytorch_lightning": pytorch_lightning}


def make_module(package, late=False):
    class Classifier(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.rnn = None if late else nn.GRU(3, 5, batch_first=True)
            self.head = nn.Linear(5, 2)

        def configure_model(self):
            self.rnn = self.rnn or nn.GRU(3, 5, batch_first=True)

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.cross_entropy(self.head(self.rnn(x)[0][:, -1]), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def fit(package, tmp_path, module, *callbacks):
    data = torch.utils.data.TensorDataset(torch.randn(8, 6, 3), torch.arange(8) % 2)
    trainer = package.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=list(callbacks), logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    return trainer


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_fit_trains_what_it_would_have_trained(package, tmp_path):
    results = []
    for callbacks in ([], [Accelerate()]):
        torch.manual_seed(0)
        module = make_module(package)
        fit(package, tmp_path, module, *callbacks)
        results.append(module.state_dict())
    assert isinstance(module.rnn, fastrnn.GRU)
    assert callbacks[0].report.replaced == {"rnn": "fastrnn.GRU"}
    torch.testing.assert_close(*results)


def test_layers_made_by_configure_model_are_found(tmp_path):
    accelerate, module = Accelerate(), make_module(pytorch, late=True)
    assert accelerate.report.replaced == {}
    trainer = fit(pytorch, tmp_path, module, accelerate)
    assert accelerate.report.replaced == {"rnn": "fastrnn.GRU"}
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    plain = nn.GRU(3, 5, batch_first=True)
    plain.load_state_dict(
        {key.removeprefix("rnn."): w for key, w in saved.items() if key.startswith("rnn.")}
    )
    assert torch.equal(plain.weight_hh_l0, module.rnn.weight_hh_l0)
