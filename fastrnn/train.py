"""Train a sequence classifier, with fastrnn alone or beside `torch.nn` from the same seed.

A `Trainer` owns all that its next epoch depends on, its random state too. So a run that was
interrupted continues to the same bits, and two implementations train in one process without
disturbing each other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import fastrnn
from fastrnn.datasets import Sequences, Task, UsageError, japanese_vowels, require, tutorial

LAYERS: dict[str, ModuleType] = {"fastrnn": fastrnn, "torch.nn": nn}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {  # name of the layer's class, its own arguments
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
DTYPES = ("float32", "float64")
TUTORIAL, VOWELS = "tutorial", "japanese-vowels"
DEFAULTS: dict[str, dict[str, Any]] = {
    TUTORIAL: {
        "cell": "rnn",
        "hidden_size": 5,
        "epochs": 100,
        "lr": 0.01,
        "num_samples": 1000,
        "seq_length": 10,
    },
    VOWELS: {
        "cell": "lstm",
        "hidden_size": 64,
        "epochs": 30,
        "lr": 0.005,
        "batch_size": 32,
    },
}

EPOCHS_PER_LINE = 10
WARM_UP_SECONDS = 0.2
LOSS_TOLERANCE = 1e-6  # relative, in float64: far above round-off, far below a wrong formula
CHECKPOINT_FORMAT = "fastrnn-train-1"
DISAGREEMENT = 1  # exit status


# --- What is trained ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that the result depends on."""

    data: str
    cell: str
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    batch_size: int | None = None  # None: all samples at once
    epochs: int
    lr: float
    clip_grad_norm: float | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    num_samples: int = 0  # these two: size of the tutorial's data, 0 for data of a fixed size
    seq_length: int = 0

    @property
    def reproducible(self) -> bool:
        """Whether implementations differ by round-off only: each has its own dropout masks."""
        return self.dtype == "float64" and self.dropout == 0


class SequenceClassifier(nn.Module):
    """The final state of a recurrent layer into a linear layer, whichever library has the layer."""

    def __init__(self, layers: ModuleType, config: Config, task: Task) -> None:
        super().__init__()
        class_name, arguments = CELLS[config.cell]
        self.num_directions = 2 if config.bidirectional else 1
        self.rnn = getattr(layers, class_name)(
            task.input_size,
            config.hidden_size,
            num_layers=config.num_layers,
            batch_first=True,
            dropout=config.dropout,
            bidirectional=config.bidirectional,
            **arguments,
        )
        self.linear = nn.Linear(self.num_directions * config.hidden_size, task.num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        last_layer = final_states(self.rnn, x, lengths)[-self.num_directions :]
        logits: Tensor = self.linear(last_layer.transpose(0, 1).flatten(start_dim=1))
        return logits  # (N, num_classes)


def final_states(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> Tensor:
    """h_n of every layer and direction, each sample's at its own last step.

    Variable lengths are all that the implementations differ in. `torch.nn` gets a packed batch, and
    its outputs stay packed: nobody reads them, and unpacking would only cost it time.
    """
    if lengths is None:
        _, state = layer(x)
    elif isinstance(layer, nn.RNNBase):
        _, state = layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    else:
        _, state = layer(x, lengths=lengths)
    h_n: Tensor = state[0] if isinstance(state, tuple) else state  # LSTM: (h_n, c_n)
    return h_n  # (num_layers * num_directions, N, hidden_size)


def load_task(config: Config, device: torch.device, dtype: torch.dtype) -> Task:
    if config.data == VOWELS:
        task = japanese_vowels().to(device, dtype)
    else:
        num_samples, seq_length = config.num_samples, config.seq_length
        with blaming(f"--num-samples {num_samples}, --seq-length {seq_length}"):
            task = tutorial(num_samples, seq_length).to(device, dtype)
    num_train = len(task.train)
    if config.batch_size is not None and config.batch_size > num_train:
        raise UsageError(
            f"--batch-size {config.batch_size}: there are {num_train} training samples"
        )
    return task


# --- Results ------------------------------------------------------------------------------------


@dataclass
class History:
    """One value an epoch."""

    loss: list[float] = field(default_factory=list)  # mean over the training samples
    accuracy: list[float] = field(default_factory=list)  # on the test samples, after the epoch
    seconds: list[float] = field(default_factory=list)  # of training alone

    @property
    def epochs(self) -> int:
        return len(self.loss)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """fastrnn beside `torch.nn`."""

    speed_ratio: float  # torch.nn's training time over fastrnn's
    largest_loss_difference: float  # relative to the larger of the two losses
    must_agree: bool

    @property
    def disagrees(self) -> bool:
        agrees = self.largest_loss_difference <= LOSS_TOLERANCE  # NaN does not
        return self.must_agree and not agrees


@dataclass(frozen=True)
class Result:
    """A finished training: a history for each implementation."""

    config: Config
    accuracy_name: str
    histories: dict[str, History]

    @property
    def compared(self) -> bool:
        return self.histories.keys() == LAYERS.keys()

    @property
    def comparison(self) -> Comparison:
        ours, theirs = (self.histories[name] for name in LAYERS)
        return Comparison(
            speed_ratio=theirs.total_seconds / ours.total_seconds,
            largest_loss_difference=largest_relative_difference(ours.loss, theirs.loss),
            must_agree=self.config.reproducible,
        )


def largest_relative_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """NaN if a value is not finite."""
    x, y = torch.tensor([a, b], dtype=torch.float64)
    scale = torch.maximum(x.abs(), y.abs()).clamp(min=sys.float_info.min)
    return float(((x - y).abs() / scale).max())


def summary(result: Result) -> str:
    comparison, where = result.comparison, hardware(result.config)
    times = ", ".join(f"{name} {h.total_seconds:.3f} s" for name, h in result.histories.items())
    return (
        f"Training time ({where}, after warm-up, without evaluation): {times}, "
        f"ratio {comparison.speed_ratio:.2f}\n"
        f"Largest loss difference: {comparison.largest_loss_difference:.1e} relative"
    )


def hardware(config: Config) -> str:
    threads = torch.get_num_threads()
    on_cpu = f"{threads} thread{'s' if threads > 1 else ''}"
    return on_cpu if config.device == "cpu" else config.device


def as_document(result: Result) -> dict[str, Any]:
    """The result as JSON has it."""
    document: dict[str, Any] = {
        "config": asdict(result.config),
        "threads": torch.get_num_threads(),
        "accuracy": result.accuracy_name,
        "runs": {
            name: {**asdict(h), "final_accuracy": h.accuracy[-1], "total_seconds": h.total_seconds}
            for name, h in result.histories.items()
        },
    }
    if result.compared:
        comparison = result.comparison
        document["comparison"] = {**asdict(comparison), "disagrees": comparison.disagrees}
    finite: dict[str, Any] = without_nan(document)
    return finite


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Training -----------------------------------------------------------------------------------


class Trainer:
    """One model in training, and all that its next epoch depends on."""

    def __init__(self, config: Config, implementation: str) -> None:
        self.config = config
        self.implementation = implementation
        self.device = torch.device(config.device)
        dtype: torch.dtype = getattr(torch, config.dtype)
        torch.manual_seed(config.seed)
        self.task = load_task(config, self.device, dtype)
        with blaming(f"--hidden-size {config.hidden_size}, --num-layers {config.num_layers}"):
            model = SequenceClassifier(LAYERS[implementation], config, self.task)
            self.model = model.to(self.device, dtype)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.shuffle = torch.Generator().manual_seed(config.seed)
        self.train_batches = batches(self.task.train, config.batch_size, self.shuffle)
        self.test_batches = batches(self.task.test, config.batch_size)
        self.history = History()
        self.random_state = random_state(self.device)

    def run_epoch(self) -> None:
        set_random_state(self.random_state, self.device)
        start = time.perf_counter()
        loss = self._train()
        self.history.seconds.append(time.perf_counter() - start)
        self.history.loss.append(loss)
        self.history.accuracy.append(self._accuracy())
        self.random_state = random_state(self.device)

    def _train(self) -> float:
        """One pass over the training samples; the mean loss. Reading it waits for the device."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.train_batches:
            loss = cross_entropy(self.model(batch.x, batch.lengths), batch.labels)
            self.optimizer.zero_grad()
            loss.backward()
            if self.config.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
            self.optimizer.step()
            total += loss.detach().double() * len(batch)
        return total.item() / len(self.task.train)

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in self.test_batches:
            correct += (self.model(batch.x, batch.lengths).argmax(dim=1) == batch.labels).sum()
        return correct.item() / len(self.task.test)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.shuffle.get_state(),
            "random_state": self.random_state,
            "history": asdict(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shuffle.set_state(state["shuffle"])
        self.random_state = state["random_state"]
        self.history = History(**state["history"])


def trainers_for(config: Config, *, compare: bool) -> list[Trainer]:
    return [Trainer(config, name) for name in (LAYERS if compare else ["fastrnn"])]


def batches(
    samples: Sequences, batch_size: int | None, shuffle: torch.Generator | None = None
) -> DataLoader[Sequences]:
    """Batches, each taken by one index. A full batch is not shuffled: it stays the same batch."""
    size = len(samples) if batch_size is None else batch_size
    if shuffle is None or size == len(samples):
        order: SequentialSampler | RandomSampler = SequentialSampler(samples)
    else:
        order = RandomSampler(samples, generator=shuffle)
    by_index = BatchSampler(order, size, drop_last=False)
    return DataLoader(samples, sampler=by_index, batch_size=None, generator=shuffle)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of the generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


Say = Callable[[str], None]


def fit(trainers: Sequence[Trainer], say: Say, save: Path | None = None) -> Result:
    """Train one after the other, each up to its configured number of epochs.

    The file is written before the first epoch too, which proves that it can be, and after every
    epoch, so that an interruption at any moment loses one epoch at most.
    """
    comparing = len(trainers) > 1
    accuracy_name = trainers[0].task.accuracy_name
    if save is not None:
        save_checkpoint(save, trainers)
    for trainer in trainers:
        if comparing:
            say(trainer.implementation)
            warm_up(trainer)
        with progress_bar(trainer) as bar:
            while trainer.history.epochs < trainer.config.epochs:
                trainer.run_epoch()
                if save is not None:
                    save_checkpoint(save, trainers)
                report_epoch(trainer, say, bar)
        say(f"{accuracy_name}: {trainer.history.accuracy[-1]:.4f}")
    histories = {trainer.implementation: trainer.history for trainer in trainers}
    return Result(trainers[0].config, accuracy_name, histories)


def warm_up(trainer: Trainer) -> None:
    """Train a twin that is thrown away, so that no implementation is timed while it starts up."""
    twin = Trainer(trainer.config, trainer.implementation)
    while twin.history.total_seconds < WARM_UP_SECONDS:
        twin.run_epoch()


def progress_bar(trainer: Trainer) -> AbstractContextManager[Any]:
    """A bar on a terminal, None elsewhere and where tqdm is not installed."""
    if not sys.stderr.isatty() or find_spec("tqdm") is None:
        return nullcontext()
    bar: AbstractContextManager[Any] = require("tqdm").tqdm(
        total=trainer.config.epochs,
        initial=trainer.history.epochs,
        desc=f"{trainer.config.data}, {trainer.implementation}",
        leave=False,
    )
    return bar


def report_epoch(trainer: Trainer, say: Say, bar: Any | None) -> None:
    """A line now and then, above the bar if there is one."""
    epoch, loss = trainer.history.epochs, trainer.history.loss[-1]
    if bar is not None:
        bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{trainer.history.accuracy[-1]:.4f}")
        bar.update()
    if epoch % EPOCHS_PER_LINE == 0:
        with nullcontext() if bar is None else bar.external_write_mode():
            say(f"Epoch [{epoch}/{trainer.config.epochs}], Loss: {loss:.4f}")


# --- Checkpoints --------------------------------------------------------------------------------


def save_checkpoint(path: Path, trainers: Sequence[Trainer]) -> None:
    """Replace the file as a whole: whoever opens it finds the old one or the new one."""
    document = {
        "format": CHECKPOINT_FORMAT,
        "config": asdict(trainers[0].config),
        "runs": {trainer.implementation: trainer.state_dict() for trainer in trainers},
    }
    temporary = path.with_name(path.name + ".tmp")
    with blaming(f"--save {path}"):
        try:
            torch.save(document, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"--resume {path}: no such file")
    try:
        document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if document["format"] == CHECKPOINT_FORMAT:
            return document
        raise UsageError(f"its format is {document['format']}, not {CHECKPOINT_FORMAT}")
    except UsageError as error:
        raise UsageError(f"--resume {path}: {error}") from error
    except Exception as error:  # a damaged file can raise anything
        raise UsageError(f"--resume {path}: damaged, or no checkpoint of this command") from error


def resumed_config(path: Path, document: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """The saved options. Only more epochs may be asked for: others would not give the result of an
    uninterrupted run."""
    saved = document["config"]
    for name, wanted in given.items():
        if name != "epochs" and saved[name] != wanted:
            raise UsageError(
                f"--resume {path}: saved with {option(name)} {saved[name]}, not {wanted}"
            )
    config = Config(**{**saved, **given})
    done = max(len(run["history"]["loss"]) for run in document["runs"].values())
    if done > config.epochs:
        raise UsageError(
            f"--resume {path}: saved after {done} epochs, more than --epochs {config.epochs}"
        )
    return config


def restore(path: Path, document: Mapping[str, Any], trainers: Sequence[Trainer]) -> None:
    """Continue where the file's runs stopped; a trainer whose run it does not have starts anew."""
    try:
        for trainer in trainers:
            if trainer.implementation in document["runs"]:
                trainer.load_state_dict(document["runs"][trainer.implementation])
    except Exception as error:  # a damaged file can raise anything
        raise UsageError(f"--resume {path}: damaged, or no checkpoint of this command") from error


# --- Plot ---------------------------------------------------------------------------------------

INK, PALE = "#22303c", "#d9dee3"
LINES: dict[str, dict[str, Any]] = {  # the second is thin and lies on the first: both are seen
    "fastrnn": {"color": "#f0653a", "linewidth": 4},
    "torch.nn": {"color": INK, "linewidth": 1.3, "dashes": (4, 3)},
}
THEME: dict[str, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def plot(path: Path, results: Sequence[Result]) -> None:
    """One row a result: loss, accuracy and, where two implementations were trained, their times."""
    matplotlib, figure = require("matplotlib"), require("matplotlib.figure")
    with matplotlib.rc_context(THEME):
        page = figure.Figure(figsize=(13, 4.3 * len(results)), layout="constrained")
        rows = page.subfigures(len(results), 1, squeeze=False)[:, 0]
        for row, result in zip(rows, results, strict=True):
            row.suptitle(headline(result.config), x=0.012, ha="left", fontsize=15, weight="bold")
            loss, accuracy, *times = row.subplots(1, 3 if result.compared else 2)
            plot_curves(loss, accuracy, result)
            if times:
                plot_times(times[0], result)
        with blaming(f"--plot {path}"):
            page.savefig(path, dpi=150)  # without pyplot: Agg draws it, no display is needed


def headline(config: Config) -> str:
    cell = config.cell.upper()
    return f"{config.data}: {cell}, {config.hidden_size} hidden units, {config.dtype}"


def plot_curves(loss: Any, accuracy: Any, result: Result) -> None:
    for name, history in result.histories.items():
        epochs = range(1, history.epochs + 1)
        style = LINES[name] | ({"marker": "o"} if history.epochs == 1 else {})
        loss.plot(epochs, history.loss, label=name, **style)
        accuracy.plot(epochs, [100 * share for share in history.accuracy], **style)
    values = [value for history in result.histories.values() for value in history.loss]
    decades = min(values) > 0 and max(values) > 10 * min(values)
    loss.set(ylabel="Cross-entropy (nats)", yscale="log" if decades else "linear")
    loss.set_title("Training loss")
    loss.legend(loc="upper right")
    accuracy.set(ylabel="Classified correctly (%)")
    final = result.histories["fastrnn"].accuracy[-1]
    accuracy.set_title(f"{result.accuracy_name}: {100 * final:.1f} %")
    for axes in (loss, accuracy):
        axes.set(xlabel="Epoch")
        axes.locator_params(axis="x", integer=True)
        axes.grid(visible=True)


def plot_times(axes: Any, result: Result) -> None:
    names = list(result.histories)
    seconds = [history.total_seconds for history in result.histories.values()]
    bars = axes.barh(names, seconds, height=0.4, color=[LINES[name]["color"] for name in names])
    axes.bar_label(bars, fmt="%.2f s", padding=6)
    axes.set_title(f"Training time: {result.comparison.speed_ratio:.1f} times as fast")
    axes.set_xlabel(f"Seconds on {hardware(result.config)}")
    axes.invert_yaxis()
    axes.margins(x=0.18, y=0.25)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


# --- Command line -------------------------------------------------------------------------------


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def blaming(options: str) -> Iterator[None]:
    """Name the options that asked for more memory, or for another file, than can be had."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        raise UsageError(f"{options}: {first_line(error) or type(error).__name__}") from error


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
probability = checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def device_name(text: str) -> str:
    try:
        if text.partition(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError("expected cpu, cuda or cuda:N")
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA raises the latter
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


def picture_file(text: str) -> Path:
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    require("matplotlib")
    return output_file(text)


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `train` and `demo` to the command line."""
    about = "train a sequence classifier"
    train = commands.add_parser("train", help=about, description=about, allow_abbrev=False)
    train.set_defaults(run=run_train)
    train.add_argument(
        "--data", choices=DEFAULTS, default=argparse.SUPPRESS, help=f"default: {TUTORIAL}"
    )
    add_config_options(train)
    train.add_argument("--compare", action="store_true", help="train with torch.nn as well")
    train.add_argument("--save", type=output_file, metavar="FILE", help="checkpoint, every epoch")
    train.add_argument(
        "--resume", type=Path, metavar="FILE", help="continue a saved run, and save it there"
    )
    train.add_argument("--plot", type=picture_file, metavar="FILE.png", help="loss, accuracy, time")
    train.add_argument("--json", action="store_true", help="print one JSON document, nothing else")

    about = "train on both data sets, with fastrnn and with torch.nn"
    demo = commands.add_parser("demo", help=about, description=about, allow_abbrev=False)
    demo.set_defaults(run=run_demo)
    demo.add_argument("--plot", type=picture_file, metavar="FILE.png", default="demo.png")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `Config`; one not given is absent, its default is the data's."""

    def add(name: str, about: str, **keywords: Any) -> None:
        by_data = [f"{data} {own[name]}" for data, own in DEFAULTS.items() if name in own]
        if by_data:
            about += f" (default: {', '.join(by_data)})"
        parser.add_argument(option(name), default=argparse.SUPPRESS, help=about, **keywords)

    add("cell", "kind of recurrent layer", choices=CELLS)
    add("hidden_size", "units of a layer", type=positive_integer, metavar="N")
    add("num_layers", "stacked layers", type=positive_integer, metavar="N")
    add("bidirectional", "read the sequences from both ends", action="store_true")
    add("dropout", "probability, between stacked layers", type=probability, metavar="P")
    add(
        "batch_size",
        "samples of a batch; without it all at once",
        type=positive_integer,
        metavar="N",
    )
    add("epochs", "passes over the training samples", type=positive_integer, metavar="N")
    add("lr", "learning rate of Adam", type=positive_number, metavar="X")
    add("clip_grad_norm", "upper limit of the gradient's norm", type=positive_number, metavar="X")
    add("device", "cpu, cuda or cuda:N", type=device_name)
    add("dtype", "of data and weights", choices=DTYPES)
    add("seed", "of data, weights, order of samples and dropout", type=seed_number, metavar="N")
    add("num_samples", "size of the data", type=positive_integer, metavar="N")
    add("seq_length", "time steps of the data", type=positive_integer, metavar="N")


def config_for(data: str, **given: Any) -> Config:
    """The data set's defaults, but for what was given."""
    for name in ("num_samples", "seq_length"):
        if name in given and name not in DEFAULTS[data]:
            raise UsageError(f"{option(name)}: the size of {data} is fixed")
    config = Config(data=data, **{**DEFAULTS[data], **given})
    if config.dropout > 0 and config.num_layers == 1:
        raise UsageError("--dropout acts between layers: it needs --num-layers 2 or more")
    return config


def run_train(args: argparse.Namespace) -> int:
    names = {f.name for f in fields(Config)}
    given = {name: value for name, value in vars(args).items() if name in names}
    save: Path | None = args.save
    if args.resume is None:
        config = config_for(**{"data": TUTORIAL, **given})
        if save is not None and save.exists():
            raise UsageError(f"--save {save}: exists; --resume {save} continues it")
        trainers = trainers_for(config, compare=args.compare)
    else:
        document = read_checkpoint(args.resume)
        config = resumed_config(args.resume, document, given)
        trainers = trainers_for(config, compare=args.compare or len(document["runs"]) > 1)
        restore(args.resume, document, trainers)
        save = save or args.resume
    try:
        result = fit(trainers, silent if args.json else print_line, save)
    except KeyboardInterrupt:
        if save is not None:
            print(f"interrupted: --resume {save} continues", file=sys.stderr)
        raise
    if args.json:
        print(json.dumps(as_document(result), allow_nan=False))
    elif result.compared:
        print(summary(result))
    if args.plot is not None:
        plot(args.plot, [result])
    return exit_status([result])


def run_demo(args: argparse.Namespace) -> int:
    """Both data sets, and the tutorial once more in the precision where the losses must agree."""
    shown = [config_for(data) for data in DEFAULTS]
    results = []
    for config in [*shown, config_for(TUTORIAL, dtype="float64")]:
        print_line(f"Training on {config.data} in {config.dtype}, with fastrnn and with torch.nn")
        results.append(fit(trainers_for(config, compare=True), silent))
    print(table(results))
    plot(args.plot, results[: len(shown)])
    print(f"Curves: {args.plot}")
    return exit_status(results)


def table(results: Iterable[Result]) -> str:
    """The closing table of the demo."""
    row = "{:<16} {:<5} {:<8} {:>6}  {:>8} {:>8}  {:>8} {:>8}  {:>5}  {:>12}".format
    lines = [
        row("", "", "", "", "accuracy", "", "seconds", "", "speed", "largest loss"),
        row("task", "cell", "dtype", "epochs", *LAYERS, *LAYERS, "ratio", "difference"),
    ]
    for result in results:
        config, comparison = result.config, result.comparison
        histories = [result.histories[name] for name in LAYERS]
        task = (config.data, config.cell, config.dtype, config.epochs)
        accuracy = [f"{history.accuracy[-1]:.4f}" for history in histories]
        seconds = [f"{history.total_seconds:.3f}" for history in histories]
        ratio = f"{comparison.speed_ratio:.2f}"
        difference = f"{comparison.largest_loss_difference:.1e}"
        lines.append(row(*task, *accuracy, *seconds, ratio, difference))
    return "\n".join(lines)


def print_line(text: str) -> None:
    print(text, flush=True)  # a reader at the other end of a pipe sees it at once


def silent(text: str) -> None:
    """Say nothing."""


def exit_status(results: Iterable[Result]) -> int:
    """Where round-off alone may differ, more than that is a failure."""
    status = 0
    for result in results:
        if result.compared and result.comparison.disagrees:
            difference = result.comparison.largest_loss_difference
            print(
                f"{result.config.data}: the losses of fastrnn and torch.nn differ by a relative "
                f"{difference:.1e}, more than {LOSS_TOLERANCE:.0e}",
                file=sys.stderr,
            )
            status = DISAGREEMENT
    return status
