"""Options that `train` and `tune` share: one a field of `Config`, its type, TOML files of them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Container
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastrnn.training.checkpoint import PREFIX
from fastrnn.training.errors import UsageError, first_line, require
from fastrnn.training.loop import AMP
from fastrnn.training.model import (
    CELLS,
    DEFAULTS,
    DTYPES,
    FILE_BATCH,
    FILE_DEFAULTS,
    TUTORIAL,
    Config,
)
from fastrnn.training.tasks import KINDS, TEST_SHARE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA_HELP = f"{', '.join(DEFAULTS)}, FILE.npz, FILE.csv or a folder (default: {TUTORIAL})"
SCHEDULES = ("constant", "cosine", "plateau")


def option(name: str) -> str:
    """How the command line spells a field: ``--batch-size`` for ``batch_size``."""
    return "--" + name.replace("_", "-")


def checked(
    convert: Callable[[str], Any], valid: Callable[[Any], bool], expected: str
) -> Callable[[str], Any]:
    """A type for argparse: a converted value, or what was expected of it."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not valid(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return parse


positive_integer = checked(int, lambda value: 1 <= value < 2**31, "an integer from 1 to 2147483647")
seed_number = checked(int, lambda value: 0 <= value < 2**63, "an integer from 0 to 2^63 - 1")
positive_number = checked(float, lambda value: 0 < value < math.inf, "a positive number")
share = checked(float, lambda value: 0 <= value < 1, "a number from 0 to 1, not 1")
probability = checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def device_name(text: str) -> str:
    try:
        if text.partition(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError("expected cpu, cuda or cuda:N")
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:  # A torch without CUDA raises the latter.
        raise argparse.ArgumentTypeError(f"{text!r}: {first_line(error)}") from error
    return text


def output_file(text: str) -> Path:
    """A file that can be written later, as far as can be told without writing it."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r}: its folder is not writable")
    return path


def checkpoint_folder(text: str) -> Path:
    """A folder of checkpoints that exists or can be made."""
    path = Path(text)
    if path.is_dir() and any(path.iterdir()) and not any(path.glob(f"{PREFIX}*")):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder with something else in it")
    if path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is a file, expected a folder")
    return path if path.is_dir() else output_file(text)


def data_name(text: str) -> str:
    if text not in DEFAULTS and not Path(text).exists():
        known = ", ".join(DEFAULTS)
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {known}, or a FILE.npz, FILE.csv or folder)"
        )
    return text


def file_ending(
    suffix: str, package: str | None = None, extra: str = "train"
) -> Callable[[str], Path]:
    """A type for argparse: an output file of a format that a package of an extra writes."""

    def parse(text: str) -> Path:
        if Path(text).suffix != suffix:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
        if package is not None:
            require(package, extra)
        return output_file(text)

    return parse


picture_file = file_ending(".png", "matplotlib")


def default_of(name: str) -> str:
    """What the help text says of a field of `Config` that is not given; empty if it is off."""
    by_data = {**DEFAULTS, "files": FILE_DEFAULTS}
    values = [f"{data} {own[name]}" for data, own in by_data.items() if name in own]
    if not values and (value := getattr(Config, name, None)) not in (None, False):
        values = [str(value)]
    return f" (default: {', '.join(values)})" if values else ""


def add_config_options(
    parser: argparse.ArgumentParser, names: Container[str] | None = None
) -> None:
    """An option for each field of `Config`, or for some of them.

    One not given is absent: its default is the data's.
    """

    def add(name: str, about: str, **keywords: Any) -> None:
        if names is None or name in names:
            about += default_of(name)
            parser.add_argument(option(name), default=argparse.SUPPRESS, help=about, **keywords)

    add("cell", "kind of recurrent layer", choices=CELLS)
    add("hidden_size", "units of a layer", type=positive_integer, metavar="N")
    add("num_layers", "stacked layers", type=positive_integer, metavar="N")
    add("bidirectional", "read the sequences from both ends", action="store_true")
    add("dropout", "probability, between stacked layers", type=probability, metavar="P")
    add(
        "batch_size",
        f"samples of a batch; without it all at once, of a file at most {FILE_BATCH}",
        type=positive_integer,
        metavar="N",
    )
    add("epochs", "passes over the training samples", type=positive_integer, metavar="N")
    add("lr", "learning rate of Adam", type=positive_number, metavar="X")
    add("clip_grad_norm", "upper limit of the gradient's norm", type=positive_number, metavar="X")
    add(
        "clip_grad_value",
        "upper limit of each entry of the gradient",
        type=positive_number,
        metavar="X",
    )
    add("on_nan", "what to do when loss or gradient is not finite", choices=("stop", "skip"))
    add("schedule", "of the learning rate; plateau: of the watched loss", choices=SCHEDULES)
    add(
        "patience",
        "stop after N epochs without a better loss (--validation's, if any); keep the best weights",
        type=positive_integer,
        metavar="N",
    )
    add("validation", "share of the training samples to measure on", type=share, metavar="P")
    add(
        "test",
        f"share of a file's sequences to test on; without it {TEST_SHARE}, or none of a few",
        type=share,
        metavar="P",
    )
    add("group_by_length", "batches of similar lengths", action="store_true")
    add("amp", "mixed precision", choices=AMP)
    add("compile", "torch.compile", action="store_true")
    add("fsdp", "shard weights over the processes of torchrun (FSDP2)", action="store_true")
    add("task", "of your own data (default: what its labels suggest)", choices=KINDS)
    add("device", "cpu, cuda or cuda:N", type=device_name)
    add("dtype", "of data and weights", choices=DTYPES)
    add("seed", "of data, weights, order of samples and dropout", type=seed_number, metavar="N")
    add("num_samples", "size of the data", type=positive_integer, metavar="N")
    add("seq_length", "time steps of the data", type=positive_integer, metavar="N")


def read_toml(path: Path, option: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path}: {first_line(error)}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Options from a TOML file, each checked as on the command line."""
    options = read_toml(path, "--config")
    parser = BlamingParser(f"--config {path}")
    parser.add_argument("--data", type=data_name)
    add_config_options(parser)
    arguments = []
    for name, value in options.items():
        if value is not False:
            arguments += [option(name)] + ([] if value is True else [str(value)])
    return vars(parser.parse_args(arguments))


class BlamingParser(argparse.ArgumentParser):
    """A parser whose errors name the file."""

    def __init__(self, where: str) -> None:
        super().__init__(allow_abbrev=False, add_help=False)
        self.where = where

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.where}: {message}")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the command line, then those of the file that it does not override."""
    options = {} if args.config is None else read_config(args.config)
    names = {f.name for f in fields(Config)}
    options.update({name: value for name, value in vars(args).items() if name in names})
    return options
