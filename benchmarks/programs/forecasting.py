"""Forecasts of time series: darts, NeuralForecast, GluonTS, PyTorch Forecasting.

Each package's own fit trains its model on one batch, which its own loader made. That batch is kept
and measured again and again, so that loaders and training loops take no time.
"""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .program import Program, supervised

HOURS = 400
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def random_walk(steps: int = HOURS) -> Any:
    return torch.randn(steps).cumsum(0).numpy()


def long_frame(series: str, hour: str, value: str, start: str | None = None) -> Any:
    """A pandas frame of eight series, a row an hour: its columns' names, and the first date.

    Without a date hours are numbers.
    """
    import pandas as pd

    hours = range(HOURS) if start is None else pd.date_range(start, periods=HOURS, freq="h")
    return pd.concat(
        [
            pd.DataFrame({series: str(number), hour: hours, value: random_walk()})
            for number in range(8)
        ],
        ignore_index=True,
    )


class Kept:
    """A fit's Lightning trainer and module, its last batch, and its last call of forward."""

    trainer: Any
    module: Any
    batch: Any
    call: tuple[tuple[Any, ...], dict[str, Any]]

    def keep_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = args, kwargs

    def loss(self) -> Any:
        result = self.module.training_step(self.batch, 0)
        return result["loss"] if isinstance(result, dict) else result

    def forward(self) -> Any:
        args, kwargs = self.call
        return self.module(*args, **kwargs)

    def program(self, infer: Callable[[], Any] | None = None) -> Program:
        self.module.trainer = self.trainer  # which some packages detach after fit
        self.trainer.training = True  # and which some ask for the stage
        self.module.log = self.module.log_dict = log_nothing  # Lightning logs in a Trainer alone
        return supervised(self.module, self.loss, infer or self.forward)


def log_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def keeper(callback: type) -> tuple[Kept, Any]:
    """What will be kept, and what keeps it: a callback of the class that a package's fit takes."""
    kept = Kept()

    class Keeper(callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            kept.trainer, kept.module, kept.batch = trainer, module, batch
            self.hook = module.register_forward_pre_hook(kept.keep_call, with_kwargs=True)

        def on_train_batch_end(self, *_: Any) -> None:
            self.hook.remove()

    return kept, Keeper()


def darts_program(name: str, **settings: Any) -> Program:
    from darts import TimeSeries, models
    from pytorch_lightning.callbacks import Callback

    kept, callback = keeper(Callback)
    trainer = {**QUIET, "callbacks": [callback], "limit_train_batches": 1}
    model = getattr(models, name)(
        input_chunk_length=96,
        hidden_dim=64,
        n_epochs=1,
        random_state=0,
        pl_trainer_kwargs=trainer,
        **settings,
    )
    model.fit([TimeSeries.from_values(random_walk()) for _ in range(8)])
    return kept.program()


def darts_rnn() -> Program:
    return darts_program("RNNModel", model="GRU", training_length=120)


def darts_block_rnn() -> Program:
    return darts_program("BlockRNNModel", model="LSTM", output_chunk_length=24, n_rnn_layers=2)


def neuralforecast_program(name: str, **settings: Any) -> Program:
    from neuralforecast import NeuralForecast, models
    from pytorch_lightning.callbacks import Callback

    kept, callback = keeper(Callback)
    model = getattr(models, name)(
        h=24, input_size=72, max_steps=1, callbacks=[callback], **settings, **QUIET
    )
    frame = long_frame("unique_id", "ds", "y", start="2020-01-01")
    NeuralForecast([model], freq="h").fit(frame)
    return kept.program()


def neuralforecast_lstm() -> Program:
    return neuralforecast_program("LSTM")


def neuralforecast_gru() -> Program:
    return neuralforecast_program("GRU")


def gluonts_deepar() -> Program:
    from gluonts.dataset.common import ListDataset
    from gluonts.torch.model.deepar import DeepAREstimator
    from lightning.pytorch.callbacks import Callback

    kept, callback = keeper(Callback)
    series = [{"start": "2020-01-01", "target": random_walk(4 * HOURS)} for _ in range(8)]
    with TemporaryDirectory() as checkpoints:  # which its train writes and reads
        trainer = {
            **QUIET,
            "enable_checkpointing": True,
            "default_root_dir": checkpoints,
            "max_epochs": 1,
            "callbacks": [callback],
        }
        DeepAREstimator(
            freq="h",
            prediction_length=24,
            context_length=72,
            num_batches_per_epoch=1,
            trainer_kwargs=trainer,
        ).train(ListDataset(series, freq="h"))
    network = kept.module.model
    inputs = {name: kept.batch[name] for name in network.describe_inputs().shapes}
    return kept.program(lambda: network(**inputs))


def pytorch_forecasting_program(name: str, **settings: Any) -> Program:
    import pytorch_forecasting
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback

    data = pytorch_forecasting.TimeSeriesDataSet(
        long_frame("series", "hour", "value"),
        time_idx="hour",
        target="value",
        group_ids=["series"],
        max_encoder_length=72,
        max_prediction_length=24,
        time_varying_known_reals=["hour"],
        time_varying_unknown_reals=["value"],
    )
    model = getattr(pytorch_forecasting, name).from_dataset(data, hidden_size=64, **settings)
    kept, callback = keeper(Callback)
    trainer = Trainer(max_epochs=1, limit_train_batches=1, callbacks=[callback], **QUIET)
    trainer.fit(model, data.to_dataloader(train=True, batch_size=64, num_workers=0))
    return kept.program()


def pytorch_forecasting_rnn() -> Program:
    return pytorch_forecasting_program("RecurrentNetwork", rnn_layers=2)


def pytorch_forecasting_deepar() -> Program:
    return pytorch_forecasting_program("DeepAR", rnn_layers=2)


def pytorch_forecasting_tft() -> Program:
    return pytorch_forecasting_program("TemporalFusionTransformer")
