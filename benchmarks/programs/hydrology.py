"""Runoff of rivers: NeuralHydrology's CudaLSTM over a year of days."""

from __future__ import annotations

import torch

from .program import Program, supervised

DAYS, BASINS = 365, 64
FORCINGS = ["prcp", "srad", "tmax", "tmin", "vp"]


def cuda_lstm() -> Program:
    from neuralhydrology.modelzoo.cudalstm import CudaLSTM
    from neuralhydrology.training.loss import MaskedMSELoss
    from neuralhydrology.utils.config import Config

    config = Config(
        {
            "model": "cudalstm",
            "head": "regression",
            "output_activation": "linear",
            "hidden_size": 128,
            "initial_forget_bias": 3,
            "output_dropout": 0.4,
            "dynamic_inputs": FORCINGS,
            "target_variables": ["discharge"],
            "seq_length": DAYS,
            "predict_last_n": 1,
        }
    )
    model = CudaLSTM(config)
    criterion = MaskedMSELoss(config)
    data = {
        "x_d": {name: torch.randn(BASINS, DAYS, 1) for name in FORCINGS},
        "y": torch.randn(BASINS, DAYS, 1),
    }
    return supervised(model, lambda: criterion(model(data), data)[0], lambda: model(data))
