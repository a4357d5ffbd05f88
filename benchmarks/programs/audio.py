"""Speech and music: SpeechBrain's recognizer, attention decoder and language model; Open-Unmix."""

from __future__ import annotations

import torch
from torch.nn import functional

from .program import Program, supervised


def crdnn() -> Program:
    """The encoder of SpeechBrain's recognizers, with the LSTM that their recipes choose."""
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet.RNN import LSTM

    model = CRDNN(
        input_size=40,
        cnn_channels=[64, 128],
        time_pooling=True,
        rnn_class=LSTM,
        rnn_neurons=256,
        dnn_neurons=256,
    )
    frames = torch.randn(4, 200, 40)
    return supervised(model, lambda: model(frames).square().mean(), lambda: model(frames))


def attention_decoder() -> Program:
    """Cells in a loop, which accelerate leaves as they are."""
    from speechbrain.nnet.RNN import AttentionalRNNDecoder

    model = AttentionalRNNDecoder(
        rnn_type="gru",
        attn_type="location",
        hidden_size=256,
        attn_dim=256,
        num_layers=1,
        enc_dim=256,
        input_size=128,
        channels=10,
        kernel_size=100,
    )
    tokens, encoded, lengths = torch.randn(8, 30, 128), torch.randn(8, 50, 256), torch.ones(8)
    return supervised(
        model,
        lambda: model(tokens, encoded, lengths)[0].square().mean(),
        lambda: model(tokens, encoded, lengths),
    )


def language_model() -> Program:
    from speechbrain.lobes.models.RNNLM import RNNLM

    model = RNNLM(output_neurons=1000, embedding_dim=128, rnn_neurons=512)
    tokens = torch.randint(1000, (16, 61))

    def loss() -> torch.Tensor:
        return functional.cross_entropy(
            model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )

    return supervised(model, loss, lambda: model(tokens))


def open_unmix() -> Program:
    """Two seconds of stereo at the sizes of the published models."""
    from openunmix.model import OpenUnmix

    model = OpenUnmix(nb_bins=2049, max_bin=1487)
    mixture = torch.rand(2, 2, 2049, 86)
    target = mixture * torch.rand_like(mixture)
    return supervised(
        model, lambda: functional.mse_loss(model(mixture), target), lambda: model(mixture)
    )
