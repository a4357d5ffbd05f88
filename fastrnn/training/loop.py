"""The training loop, of one process or of several.

A `Trainer` owns all that its next step depends on, its random state too. So a run that was
interrupted continues to the same bits, and two implementations train in one process without
disturbing each other.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastrnn.data import LengthGroupedSampler
from fastrnn.training.checkpoint import clear, save_checkpoint
from fastrnn.training.errors import (
    Field,
    OptionError,
    UsageError,
    blaming,
    first_line,
    require,
)
from fastrnn.training.model import (
    ADAM_BETA1,
    LAYERS,
    Architecture,
    Config,
    SequenceModel,
    batch_size_of,
    load_task,
    loss_sum,
)
from fastrnn.training.processes import Processes
from fastrnn.training.progress import Progress, progress
from fastrnn.training.report import History, Result
from fastrnn.training.tasks import CLASSIFICATION, Sequences

EPOCHS_PER_LINE = 10
WARM_UP_SECONDS = 0.2
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The scale multiplies fp16 losses. A gradient that is infinite at this one, the smallest normal
# number of fp16, is infinite at every scale.
SMALLEST_SCALE = 2.0**-14
PROGRESS = (
    *("step", "batch", "loss_total", "loss_count", "seconds", "skipped"),
    *("best_loss", "epochs_since_best"),
)

Say = Callable[[str], None]


class Diverged(UsageError):
    """The loss or a gradient is not finite."""


class Stopped(Exception):
    """A signal asked to stop, and the run was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Trainer:
    """One model in training, and all that its next step depends on."""

    def __init__(self, config: Config, implementation: str, processes: Processes | None = None):
        self.config = config
        self.implementation = implementation
        self.processes = processes = processes or Processes(device=config.device)
        self.device = torch.device(processes.device)
        dtype: torch.dtype = getattr(torch, config.dtype)
        torch.manual_seed(config.seed)
        self.task = load_task(config, self.device, dtype)
        sizes = (Field(name, getattr(config, name)) for name in ("hidden_size", "num_layers"))
        with blaming(*sizes):
            architecture = Architecture.of(config, self.task)
            model = SequenceModel(LAYERS[implementation], architecture)
            self.model = model.to(self.device, dtype)
        self.forward = self._distribute()
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, betas=(ADAM_BETA1, 0.999)
        )
        self.sampler = sampler_for(self.task.train, config, processes)
        self.train_batches = loader(self.task.train, self.sampler)
        steps = config.epochs * len(self.sampler)
        self.schedule = {
            "constant": lambda: None,
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps),
            "plateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer),
        }[config.schedule]()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.history = History()
        self.step = 0  # steps of all epochs
        self.batch = self.skipped = 0  # batches of this epoch: all, and those without a step
        self.loss_total = self.loss_count = self.seconds = 0.0  # sums over this epoch
        self.since = 0.0  # perf_counter() when the clock was started last
        self.last: dict[str, float] = {}  # loss, gradient norm and learning rate of the last step
        self.best_loss, self.epochs_since_best = math.inf, 0
        self.best: dict[str, Any] = {}  # weights of the best epoch, kept only with patience
        self.after_step: Callable[[], None] = lambda: None
        if processes.rank:  # Processes have other samples, so they draw other dropout masks.
            torch.manual_seed(config.seed + processes.rank)
        self.random_state = random_state(self.device)

    def _distribute(self) -> nn.Module:
        config = self.config
        if config.compile:
            self.model.compile()
        if config.fsdp:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.model.rnn)
            fully_shard(self.model)
        elif self.processes.world > 1:
            return nn.parallel.DistributedDataParallel(self.model)
        return self.model

    @property
    def epoch(self) -> str:
        """The present one, in words."""
        return f"epoch {self.history.epochs + 1} of {self.config.epochs}"

    @property
    def finished(self) -> bool:
        patience = self.config.patience
        early = patience is not None and self.epochs_since_best >= patience
        return self.history.epochs >= self.config.epochs or early

    def run_epoch(self) -> None:
        set_random_state(self.random_state, self.device)
        self.since = time.perf_counter()
        watched = self._train()
        self.history.seconds.append(self.seconds + time.perf_counter() - self.since)
        self.history.loss.append(watched)
        loss, accuracy = self.evaluate(self.task.measured)
        self.history.accuracy.append(accuracy)
        if self.task.validation is not None:
            watched = loss
            self.history.validation_loss.append(watched)
        if watched < self.best_loss:
            self.best_loss, self.epochs_since_best = watched, 0
            if self.config.patience is not None:
                self.best = {name: w.clone() for name, w in self.model.state_dict().items()}
        else:
            self.epochs_since_best += 1
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(watched)
        self.batch = self.skipped = 0
        self.loss_total = self.loss_count = self.seconds = 0.0
        self.random_state = random_state(self.device)

    def finish(self) -> dict[str, float]:
        """Restore the best weights after early stopping, and measure the test set, once."""
        if self.best and self.finished:
            self.model.load_state_dict(self.best)
        if self.task.validation is None or not self.task.held_out:
            return {}
        loss, accuracy = self.evaluate(self.task.test)
        return {"loss": loss, self.task.accuracy_name.replace("Validation", "Held-out"): accuracy}

    def _train(self) -> float:
        """Train to the end of the epoch, and return its mean loss."""
        self.model.train()
        epoch = self.history.epochs
        self.sampler.set_epoch(epoch, self.batch)
        for batch in self.train_batches:
            self._step(batch)
            self.batch += 1
            self.step += 1
            self.seconds += time.perf_counter() - self.since
            self.random_state = random_state(self.device)
            self.after_step()
            self.since = time.perf_counter()
        if self.skipped == len(self.sampler):
            raise Diverged(f"epoch {epoch + 1}: every step was skipped, no loss is finite")
        return self.loss_total / max(1, self.loss_count)

    def _step(self, batch: Sequences) -> None:
        config, processes = self.config, self.processes
        amp = AMP.get(config.amp or "")
        with torch.autocast(self.device.type, amp) if amp is not None else nullcontext():
            output = self.forward(batch.x, batch.lengths)
        output = output.float() if amp is not None else output
        total, count = loss_sum(self.task.kind, output, batch)
        whole = processes.sum([count])[0]
        self.optimizer.zero_grad()
        # DDP averages gradients over processes, while the loss is a mean over the whole batch.
        self.scaler.scale(total * (processes.world / whole)).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        value = processes.sum([total.item()])[0]
        finite_loss, finite_norm = math.isfinite(value), math.isfinite(norm.item())
        self.last = {"loss": value / whole, "norm": norm.item(), "lr": self._lr()}
        overflow = finite_loss and not finite_norm and self.scaler.is_enabled()
        if not (finite_loss and finite_norm):
            if config.on_nan == "stop" and not (
                overflow and self.scaler.get_scale() >= SMALLEST_SCALE
            ):
                raise Diverged(
                    f"{self._what_is_not_finite(finite_loss)}; a smaller ",
                    *(Field("lr"), ", ", Field("clip_grad_norm"), " or ", Field("on_nan", "skip")),
                    " may help",
                )
            self.skipped += 1
            if self.scaler.is_enabled():
                self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        else:
            if config.clip_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, config.clip_grad_norm, norm)
            if config.clip_grad_value is not None:
                nn.utils.clip_grad_value_(parameters, config.clip_grad_value)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if finite_loss:
            self.loss_total += value
            self.loss_count += whole
        if isinstance(self.schedule, torch.optim.lr_scheduler.CosineAnnealingLR):
            self.schedule.step()

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _what_is_not_finite(self, finite_loss: bool) -> str:
        def finite(gradient: Tensor | None) -> bool:
            if gradient is None:
                return True
            whole = gradient.isfinite().all()
            return bool(whole.full_tensor() if hasattr(whole, "full_tensor") else whole)

        named = list(self.model.named_parameters())
        names = [f"the gradient of {n}" for n, p in named if not finite(p.grad)]
        names = ([] if finite_loss else ["the loss"]) + names
        return (
            f"step {self.step + 1} (epoch {self.history.epochs + 1}): not finite: "
            f"{', '.join(names) or 'the norm of the gradients'}"
        )

    @torch.no_grad()
    def evaluate(self, samples: Sequences) -> tuple[float, float]:
        """The mean loss, and the share classified correctly or the root of the mean square."""
        self.model.eval()
        size = batch_size_of(self.config, samples)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        rank, world = self.processes.rank, self.processes.world
        for start in range(0, len(samples), size):
            # A process without a sample runs the model too, because all of them gather shards.
            batch = samples[list(range(start, min(start + size, len(samples))))[rank::world]]
            output = self.model(batch.x, batch.lengths)
            total, count = loss_sum(self.task.kind, output, batch)
            sums[0] += total
            sums[1] += count
            if self.task.kind == CLASSIFICATION:
                sums[2] += (output.argmax(dim=1) == batch.labels).sum()
        loss, samples_seen, correct = self.processes.sum(sums.tolist())
        loss /= samples_seen
        numbers = self.task.kind != CLASSIFICATION
        return loss, math.sqrt(loss) if numbers else correct / samples_seen

    # The next two methods return what a checkpoint consists of: progress as JSON, and tensors.

    def progress(self) -> dict[str, Any]:
        """The state other than tensors, in types that JSON has."""
        return {
            **{name: getattr(self, name) for name in PROGRESS},
            "history": asdict(self.history),
            "scaler": self.scaler.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "optimized": bool(self.optimizer.state),
            "best": bool(self.best),
        }

    def tensors(self, of: Mapping[str, Any] | None = None, world: int = 0) -> dict[str, Any]:
        """Model, optimizer and generators, to be saved, or to be filled from a checkpoint."""
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
            get_optimizer_state_dict,
        )

        tensors: dict[str, Any] = {"model": get_model_state_dict(self.model)}
        # An optimizer has no state before its first step; get_optimizer_state_dict would make one.
        if self.optimizer.state if of is None else of["optimized"]:
            tensors["optimizer"] = get_optimizer_state_dict(self.model, self.optimizer)
        if self.processes.rank < (world or self.processes.world):
            tensors["random"] = {f"{self.processes.rank}": dict(self.random_state)}
        if of is None and self.best:
            tensors["best"] = self.best
        elif of is not None and of["best"]:
            tensors["best"] = {name: w.clone() for name, w in self.model.state_dict().items()}
        return tensors

    def load(self, progress: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import (
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        set_model_state_dict(self.model, tensors["model"])
        if "optimizer" in tensors:
            set_optimizer_state_dict(self.model, self.optimizer, tensors["optimizer"])
        if "random" in tensors:
            self.random_state = tensors["random"][f"{self.processes.rank}"]
        self.best = tensors.get("best", {})
        for name in PROGRESS:
            setattr(self, name, progress[name])
        self.history = History(**progress["history"])
        self.scaler.load_state_dict(progress["scaler"])
        if self.schedule is not None:
            self.schedule.load_state_dict(progress["schedule"])


def trainers_for(
    config: Config, *, compare: bool, processes: Processes | None = None
) -> list[Trainer]:
    return [Trainer(config, name, processes) for name in (LAYERS if compare else ["fastrnn"])]


def sampler_for(samples: Sequences, config: Config, processes: Processes) -> LengthGroupedSampler:
    """The sampler of training batches. A batch of all samples is not shuffled."""
    size = batch_size_of(config, samples)
    grouped = config.group_by_length and samples.lengths is not None
    lengths = samples.lengths if grouped else torch.zeros(len(samples), dtype=torch.int64)
    shuffle = size < len(samples)
    try:
        return LengthGroupedSampler(
            lengths,  # type: ignore[arg-type]
            size,
            shuffle=shuffle,
            seed=config.seed,
            num_replicas=processes.world,
            rank=processes.rank,
        )
    except ValueError as error:
        raise OptionError(Field("batch_size", size), first_line(error)) from error


def loader(samples: Sequences, sampler: LengthGroupedSampler) -> DataLoader[Sequences]:
    """A loader of batches. It has a generator of its own, so it does not advance torch's."""
    return DataLoader(samples, sampler=sampler, batch_size=None, generator=torch.Generator())


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


@dataclass
class Watch:
    """Saves, logs and stops a run after its steps."""

    trainers: Sequence[Trainer]
    save: Path | None = None
    save_every: int | None = None
    log: Any | None = None
    progress: Progress | None = None
    signal: int = 0

    def after_step(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.update(trainer.step, f"{trainer.epoch}, loss {trainer.last['loss']:.4f}")
        if self.log is not None:
            for name, value in trainer.last.items():
                tag = {"loss": "loss/train", "norm": "gradient_norm", "lr": "learning_rate"}[name]
                self.log.add_scalar(tag, value, trainer.step)
        if self.save is None:
            return
        number = int(max(trainer.processes.sum([self.signal])))
        due = self.save_every is not None and trainer.step % self.save_every == 0
        if number or due:
            save_checkpoint(self.save, self.trainers)
        if number:
            raise Stopped(self.signal or signal.SIGTERM)

    def after_epoch(self, trainer: Trainer) -> None:
        if self.save is not None:
            save_checkpoint(self.save, self.trainers)
        history = trainer.history
        if self.log is not None:
            steps = len(trainer.sampler)
            values = {"accuracy": history.accuracy, "loss/validation": history.validation_loss}
            for tag, epochs in values.items():
                if epochs:
                    self.log.add_scalar(tag, epochs[-1], trainer.step)
            seconds = max(history.seconds[-1], sys.float_info.min)
            self.log.add_scalar("steps_per_second", steps / seconds, trainer.step)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let SIGTERM end a saved run after the current step, with a checkpoint."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number

        if self.save is None:
            yield
            return
        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def fit(
    trainers: Sequence[Trainer],
    say: Say,
    save: Path | None = None,
    *,
    save_every: int | None = None,
    log_dir: Path | None = None,
) -> Result:
    """Train the trainers one after the other, each up to its configured number of epochs.

    A checkpoint is written before the first epoch, to show early whether that works, after every
    epoch, and every `save_every` steps.
    """
    comparing = len(trainers) > 1
    accuracy_name = trainers[0].task.accuracy_name
    test: dict[str, float] = {}
    watch = Watch(trainers, save, save_every)
    with watch.signals():
        if save is not None:
            if trainers[0].processes.first:
                clear(save)
            trainers[0].processes.wait()
            save_checkpoint(save, trainers)
        for trainer in trainers:
            if comparing:
                say(trainer.implementation)
                warm_up(trainer)
            with (
                logging(trainer, log_dir, comparing) as watch.log,
                progress_of(trainer) as shown,
            ):
                watch.progress = shown
                trainer.after_step = partial(watch.after_step, trainer)
                while not trainer.finished:
                    trainer.run_epoch()
                    watch.after_epoch(trainer)
                    report_epoch(trainer, say, shown)
                test_values = trainer.finish()
            if trainer.history.epochs < trainer.config.epochs:
                say(f"Stopped early, after {trainer.history.epochs} epochs")
            say(f"{accuracy_name}: {trainer.history.accuracy[-1]:.4f}")
            for name, value in test_values.items():
                if name != "loss":
                    say(f"{name}: {value:.4f}")
            test = test or test_values
    histories = {trainer.implementation: trainer.history for trainer in trainers}
    return Result(trainers[0].config, accuracy_name, histories, test)


@contextmanager
def logging(trainer: Trainer, log_dir: Path | None, by_name: bool) -> Iterator[Any]:
    """TensorBoard's writer, which drops what a killed run has logged past this step."""
    if log_dir is None or not trainer.processes.first:
        yield None
        return
    tensorboard = require("torch.utils.tensorboard")
    folder = log_dir / trainer.implementation if by_name else log_dir
    with blaming(Field("log_dir", log_dir)):
        writer = tensorboard.SummaryWriter(str(folder), purge_step=trainer.step + 1)
    with writer:
        yield writer


def warm_up(trainer: Trainer) -> None:
    """Train a twin that is thrown away, so that no implementation is timed while it starts up."""
    twin = Trainer(trainer.config, trainer.implementation)
    while twin.history.total_seconds < WARM_UP_SECONDS:
        twin.run_epoch()


def progress_of(trainer: Trainer) -> AbstractContextManager[Progress]:
    """The progress of a training in steps, those of a resumed run included."""
    title = f"{trainer.config.data}, {trainer.implementation}"
    return progress(title, trainer.config.epochs * len(trainer.sampler), trainer.step)


def report_epoch(trainer: Trainer, say: Say, shown: Progress) -> None:
    """Print a line every `EPOCHS_PER_LINE` epochs, above the bar if there is one."""
    epoch, loss = trainer.history.epochs, trainer.history.loss[-1]
    if epoch % EPOCHS_PER_LINE == 0:
        with shown.paused():
            norm = trainer.last.get("norm", math.nan)
            line = f"Epoch [{epoch}/{trainer.config.epochs}], Loss: {loss:.4f}"
            say(f"{line}, gradient norm: {norm:.4f}")
