"""A trained model in one file: its weights as safetensors, and what else it takes as JSON in there.

The weights have the names of `SequenceModel`, so ``rnn.*`` fits torch.nn's layer of the same sizes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.training.errors import Field, OptionError, blaming, first_line, require
from fastrnn.training.loop import Trainer
from fastrnn.training.model import Architecture, SequenceModel
from fastrnn.training.tasks import CLASSIFICATION, NEXT_STEP, Scaling

FORMAT = "fastrnn-model-1"
KEY = "fastrnn"  # of the JSON text in the metadata of a file


@dataclass(frozen=True)
class Description:
    """What a model takes and gives, in types that JSON has."""

    architecture: Architecture
    features: list[str]  # names, in the order of the input
    classes: list[str]  # names, as in the data, in the order of the output; empty: no classes
    mean: list[float]  # of each feature; what it is scaled by before the model
    std: list[float]
    dtype: str  # of the weights
    data: str  # what was trained on

    @classmethod
    def of(cls, trainer: Trainer) -> Description:
        config, task = trainer.config, trainer.task
        mean, std = task.scaling or Scaling.none(task.input_size)
        return cls(
            Architecture.of(config, task),
            list(task.features),
            list(task.classes),
            mean.tolist(),
            std.tolist(),
            config.dtype,
            config.data,
        )

    @classmethod
    def from_json(cls, text: str) -> Description:
        document = json.loads(text)
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        del document["version"]
        return cls(**{**document, "architecture": Architecture(**document["architecture"])})

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raise ValueError where it does not fit itself or the weights."""
        sizes = self.architecture
        features = {len(self.features), len(self.mean), len(self.std), sizes.input_size}
        classes = sizes.output_size if sizes.kind == CLASSIFICATION else 0
        finite = all(map(math.isfinite, [*self.mean, *self.std]))
        if len(features) > 1 or len(self.classes) != classes or not finite or min(self.std) <= 0:
            raise ValueError("features, classes or scaling of other sizes")
        outputs, units = weights["linear.weight"].size(0), weights["rnn.weight_hh_l0"].size(1)
        if (outputs, units) != (sizes.output_size, sizes.hidden_size):
            raise ValueError("weights of other sizes")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": fastrnn.__version__, **asdict(self)})


class Predictor(nn.Module):
    """A trained model from the data's numbers to an answer in the data's terms."""

    def __init__(self, description: Description, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.kind = description.architecture.kind
        self.dtype: torch.dtype = getattr(torch, description.dtype)
        model = SequenceModel(fastrnn, description.architecture).to(self.dtype)
        model.load_state_dict(weights)
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            values = torch.tensor(getattr(description, name), dtype=torch.float64)
            self.register_buffer(name, values, persistent=False)
        self.eval()

    def forward(self, sequences: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            sequences: (N, T, features), float64, padded, in the units of the data.
            lengths: (N,), integers from 1 to T; not needed for the next step.

        Returns:
            Probabilities (N, classes), or numbers (N, K) as the labels had, or for each step the
            next one, (N, T, features), float64, in the units of the data.
        """
        scaled = (sequences - self.mean) / self.std
        output: Tensor = self.model(scaled.to(self.dtype), lengths)
        if self.kind == CLASSIFICATION:
            return output.softmax(dim=-1)
        return output * self.std + self.mean if self.kind == NEXT_STEP else output


def save_model(path: Path, trainer: Trainer) -> None:
    """Write the model of a trainer; every process calls it, as all of them gather shards."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(trainer.model, options=whole)
    if not trainer.processes.first:
        return
    contents = require("safetensors.torch").save(
        {name: weight.contiguous() for name, weight in weights.items()},
        {KEY: Description.of(trainer).to_json()},
    )
    aside = path.with_name(path.name + ".tmp")
    with blaming(Field("save_model", path)):
        aside.write_bytes(contents)
        os.replace(aside, path)


def load_model(path: Path) -> tuple[Description, Predictor]:
    """Read what `save_model` wrote.

    Raises:
        OptionError: the file cannot be read, or holds something else.
    """
    safetensors = require("safetensors")
    model = Field("model", path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[KEY]
            weights: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = Description.from_json(text)
        description.check(weights)
        return description, Predictor(description, weights)
    except OSError as error:
        raise OptionError(model, first_line(error)) from error
    except Exception as error:  # A damaged file can raise anything.
        raise OptionError(model, "damaged, or no model that was saved by this command") from error
