"""Checkpoints: a folder of them, each written aside and put in place by one rename.

After the first save a complete checkpoint always exists, even after a kill: checkpoints are
numbered, so that a new one does not take the place of an old one. torch.distributed.checkpoint
writes the tensors, so that several processes write and read their shards; a JSON file beside them
has the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.training.errors import Field, OptionError, blaming
from fastrnn.training.model import Config

if TYPE_CHECKING:
    from fastrnn.training.loop import Trainer

FORMAT = "fastrnn-train-3"
DOCUMENT = "run.json"
PREFIX, ASIDE = "checkpoint-", ".tmp"


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder."""
    return max(folder.glob(f"{PREFIX}*[0-9]"), default=None) if folder.is_dir() else None


def clear(folder: Path) -> None:
    """Remove checkpoints that a killed run left unfinished."""
    for unfinished in folder.glob(f"{PREFIX}*{ASIDE}"):
        shutil.rmtree(unfinished)


def save_checkpoint(folder: Path, trainers: Sequence[Trainer]) -> None:
    """Write a checkpoint of all processes, and then remove the ones before it."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    processes = trainers[0].processes
    before = latest(folder) if processes.first else None
    number = 0 if before is None else int(before.name.removeprefix(PREFIX)) + 1
    name = f"{PREFIX}{int(processes.sum([number])[0]):09d}"
    path, aside = folder / name, folder / (name + ASIDE)
    document = {
        "format": FORMAT,
        "config": vars(trainers[0].config),
        "processes": processes.world,
        "runs": {trainer.implementation: trainer.progress() for trainer in trainers},
    }
    with blaming(Field("save", folder)):
        try:
            if processes.first:
                aside.mkdir(parents=True, exist_ok=True)
            processes.wait()
            tensors = {trainer.implementation: trainer.tensors() for trainer in trainers}
            with warnings.catch_warnings():  # torch warns that one process saves without others
                warnings.simplefilter("ignore")
                save(tensors, checkpoint_id=aside, no_dist=processes.world == 1)
            if processes.first:
                with (aside / DOCUMENT).open("w") as file:
                    json.dump(document, file)
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(path)
                _sync(folder)
                for other in folder.glob(f"{PREFIX}*"):
                    if other != path:
                        _remove(other)
        except BaseException as error:
            if processes.first:
                shutil.rmtree(aside, ignore_errors=True)
            if isinstance(
                error, CheckpointException
            ):  # a BaseException whose cause is an Exception
                raise OSError(str(next(iter(error.failures.values()))[0])) from error
            raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    """Rename a checkpoint before its removal, so that a half removed one does not count as one."""
    if not checkpoint.name.endswith(ASIDE):
        checkpoint = checkpoint.rename(checkpoint.with_name(checkpoint.name + ASIDE))
    shutil.rmtree(checkpoint)


def read_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint, and the document in it that describes the run."""
    path = latest(folder)
    if path is None:
        message = "no checkpoint in it" if folder.exists() else "no such folder"
        raise OptionError(Field("resume", folder), message)
    try:
        document: dict[str, Any] = json.loads((path / DOCUMENT).read_text())
        if document["format"] == FORMAT:
            return path, document
    except Exception as error:  # A damaged file can raise anything.
        raise damaged(folder) from error
    message = f"its format is {document['format']}, not {FORMAT}"
    raise OptionError(Field("resume", folder), message)


def damaged(folder: Path) -> OptionError:
    return OptionError(Field("resume", folder), "damaged, or no checkpoint of this command")


def resumed_config(path: Path, document: Mapping[str, Any], options: Mapping[str, Any]) -> Config:
    """The saved configuration, with the user's options where a resumed run may differ.

    It may have more epochs. Any other change would not give the result of an uninterrupted run.
    """
    saved = document["config"]
    for name, wanted in options.items():
        fixed = name != "epochs" or saved["schedule"] == "cosine"
        if fixed and saved[name] != wanted:
            kept = Field(name, saved[name])
            raise OptionError(Field("resume", path), "saved with ", kept, f", not {wanted}")
    try:
        config = Config(**{**saved, **options})
        done = max(len(run["history"]["loss"]) for run in document["runs"].values())
    except Exception as error:
        raise damaged(path) from error
    if done > config.epochs:
        epochs = Field("epochs", config.epochs)
        raise OptionError(Field("resume", path), f"saved after {done} epochs, more than ", epochs)
    return config


def restore(
    folder: Path, path: Path, document: Mapping[str, Any], trainers: Sequence[Trainer]
) -> None:
    """Continue where the runs stopped; a trainer without a saved run starts anew."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    saved = [trainer for trainer in trainers if trainer.implementation in document["runs"]]
    try:
        metadata = FileSystemReader(path).read_metadata().state_dict_metadata
        tensors = {}
        for trainer in saved:
            run = document["runs"][trainer.implementation]
            tensors[trainer.implementation] = trainer.tensors(of=run, world=document["processes"])
        for trainer in saved:
            for name, tensor in tensors[trainer.implementation]["model"].items():
                stored: Any = metadata[f"{trainer.implementation}.model.{name}"]
                if stored.size != tensor.shape:
                    shapes = f"{tuple(stored.size)} in it, {tuple(tensor.shape)} in this model"
                    raise OptionError(Field("resume", folder), f"{name} is {shapes}")
        with warnings.catch_warnings():  # torch warns that one process loads without others
            warnings.simplefilter("ignore")
            load(tensors, checkpoint_id=path, no_dist=trainers[0].processes.world == 1)
        for trainer in saved:
            trainer.load(document["runs"][trainer.implementation], tensors[trainer.implementation])
    except OptionError:
        raise
    except (Exception, CheckpointException) as error:  # A damaged file can raise anything.
        raise damaged(folder) from error
