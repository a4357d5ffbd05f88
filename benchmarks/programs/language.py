"""Text: Stanza's part-of-speech tagger, with the sizes of its own command line."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .program import Program, supervised

SIZES = {"word": 5000, "char": 100, "upos": 18, "xpos": 50, "feats": 40}
SENTENCES, LONGEST_SENTENCE, LONGEST_WORD = 16, 40, 12


def tagger() -> Program:
    from stanza.models.pos.model import Tagger
    from stanza.models.tagger import build_argparse

    options = vars(build_argparse().parse_args(["--no_pretrain"]))
    # A vocabulary is asked for its length alone.
    model = Tagger(options, {name: range(size) for name, size in SIZES.items()})
    for weight in model.parameters():
        if not weight.any():  # a classifier of zeros passes no gradient on
            nn.init.normal_(weight, std=0.1)
    # Words of all sentences are one batch, the longest ones first, as are the sentences.
    sentence_lengths = descending(SENTENCES, LONGEST_SENTENCE)
    word_lengths = descending(sum(sentence_lengths), LONGEST_WORD)
    shape = (SENTENCES, sentence_lengths[0])
    words = torch.randint(1, SIZES["word"], shape)
    characters = torch.randint(1, SIZES["char"], (len(word_lengths), word_lengths[0]))
    places = torch.randperm(len(word_lengths)).tolist()
    tags = [torch.randint(1, SIZES[name], shape) for name in model.tag_names]

    def run() -> Any:
        return model(
            words, None, characters, None, tags, None, places, sentence_lengths, word_lengths, None
        )

    def loss_and_tags() -> list[torch.Tensor]:
        loss, predicted = run()
        return [loss, *(each.float() for each in predicted)]

    return supervised(model, lambda: run()[0], loss_and_tags)


def descending(count: int, longest: int) -> list[int]:
    """Lengths from 1 on, of which the first is the longest."""
    lengths = torch.randint(1, longest + 1, (count,)).sort(descending=True).values.tolist()
    return [longest, *lengths[1:]]
