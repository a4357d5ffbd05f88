"""The programs, in the order of the table."""

from __future__ import annotations

from . import audio, forecasting, hydrology, language, reinforcement
from .program import Entry

ENTRIES = [
    Entry("darts RNNModel", "darts", forecasting.darts_rnn),
    Entry("darts BlockRNNModel", "darts", forecasting.darts_block_rnn),
    Entry("NeuralForecast LSTM", "neuralforecast", forecasting.neuralforecast_lstm),
    Entry("NeuralForecast GRU", "neuralforecast", forecasting.neuralforecast_gru),
    Entry("GluonTS DeepAR", "gluonts", forecasting.gluonts_deepar),
    Entry("PyTorch Forecasting RNN", "pytorch-forecasting", forecasting.pytorch_forecasting_rnn),
    Entry(
        "PyTorch Forecasting DeepAR", "pytorch-forecasting", forecasting.pytorch_forecasting_deepar
    ),
    Entry("PyTorch Forecasting TFT", "pytorch-forecasting", forecasting.pytorch_forecasting_tft),
    # Forget gates that start open carry rounding over a year of steps: of torch.nn's own outputs,
    # the largest error beside float64 is 1e-4 of the largest value.
    Entry("NeuralHydrology CudaLSTM", "neuralhydrology", hydrology.cuda_lstm, tolerance=1e-3),
    Entry("SpeechBrain CRDNN", "speechbrain", audio.crdnn),
    Entry("SpeechBrain attention decoder", "speechbrain", audio.attention_decoder),
    Entry("SpeechBrain RNNLM", "speechbrain", audio.language_model),
    Entry("Open-Unmix", "openunmix", audio.open_unmix),
    Entry("Stanza tagger", "stanza", language.tagger),
    Entry("TorchRL LSTMModule", "torchrl", reinforcement.torchrl_lstm),
    Entry(
        "TorchRL LSTMModule, accelerate_policy", "torchrl", reinforcement.torchrl_lstm_in_one_call
    ),
    Entry("RecurrentPPO", "sb3-contrib", reinforcement.recurrent_ppo),
    Entry(
        "RecurrentPPO, accelerate_policy", "sb3-contrib", reinforcement.recurrent_ppo_in_one_call
    ),
]
