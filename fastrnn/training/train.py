"""``python -m fastrnn train`` and ``demo``: their options, and what they do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from fastrnn.training.checkpoint import latest, read_checkpoint, restore, resumed_config
from fastrnn.training.errors import UsageError, require
from fastrnn.training.loop import Stopped, fit, trainers_for
from fastrnn.training.model import DEFAULTS, TUTORIAL, config_for
from fastrnn.training.options import (
    DATA_HELP,
    add_config_options,
    checkpoint_folder,
    data_name,
    file_ending,
    given_options,
    picture_file,
    positive_integer,
)
from fastrnn.training.processes import Processes
from fastrnn.training.report import as_document, describe, exit_status, plot, summary, table
from fastrnn.training.saved_model import save_model

PLOT_HELP = "draw loss, accuracy and, beside torch.nn, time"


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `train` and `demo` to the command line."""
    about = "train a model of sequences: classification, regression, next-step prediction"
    train = commands.add_parser("train", help=about, description=about, allow_abbrev=False)
    train.set_defaults(run=run_train)
    train.add_argument(
        "--data",
        type=data_name,
        default=argparse.SUPPRESS,
        metavar="NAME|FILE|FOLDER",
        help=DATA_HELP,
    )
    add_config_options(train)
    train.add_argument("--compare", action="store_true", help="train with torch.nn as well")
    train.add_argument("--config", type=Path, metavar="FILE.toml", help="options, as tune writes")
    train.add_argument(
        "--save", type=checkpoint_folder, metavar="FOLDER", help="checkpoints: epochs, SIGTERM"
    )
    train.add_argument(
        "--save-every", type=positive_integer, metavar="N", help="checkpoints every N steps too"
    )
    train.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER|auto",
        help="continue a saved run, and save it there; auto: what --save has, if it has any",
    )
    train.add_argument(
        "--save-model",
        type=file_ending(".safetensors", "safetensors"),
        metavar="FILE.safetensors",
        help="the trained model, for predict and export",
    )
    train.add_argument(
        "--log-dir", type=Path, metavar="FOLDER", help="scalars for TensorBoard, from every step"
    )
    train.add_argument("--plot", type=picture_file, metavar="FILE.png", help=PLOT_HELP)
    train.add_argument("--json", action="store_true", help="print one JSON document, nothing else")

    about = "train on both data sets, with fastrnn and with torch.nn"
    demo = commands.add_parser("demo", help=about, description=about, allow_abbrev=False)
    demo.set_defaults(run=run_demo)
    demo.add_argument(
        "--plot",
        type=picture_file,
        metavar="FILE.png",
        default="demo.png",
        help=f"{PLOT_HELP} (default: %(default)s)",
    )


def run_train(args: argparse.Namespace) -> int:
    options = given_options(args)
    save: Path | None = args.save
    resume: Path | None = args.resume
    if args.save_every is not None and save is None and resume is None:
        raise UsageError("--save-every: it needs --save")
    if args.log_dir is not None:
        require("torch.utils.tensorboard")
    if resume == Path("auto"):
        if save is None:
            raise UsageError("--resume auto: it needs --save")
        resume = save if latest(save) else None
    document: dict[str, Any] = {"runs": {}}
    if resume is None:
        config = config_for(**{"data": TUTORIAL, **options})
        if save is not None and latest(save):
            raise UsageError(f"--save {save}: exists; --resume {save} continues it")
    else:
        path, document = read_checkpoint(resume)
        config = resumed_config(resume, document, options)
        save = save or resume
    compare = args.compare or len(document["runs"]) > 1
    if config.fsdp and "WORLD_SIZE" not in os.environ:
        raise UsageError("--fsdp: it needs torchrun --nproc-per-node N -m fastrnn train ...")
    processes = Processes.start(config.device, always=config.fsdp)
    if compare and processes.world > 1:
        raise UsageError("--compare: it times one process, not several")
    trainers = trainers_for(config, compare=compare, processes=processes)
    if resume is not None:
        restore(resume, path, document, trainers)
    say = silent if args.json or not processes.first else print_line
    say(describe(config, trainers[0].task))
    try:
        result = fit(trainers, say, save, save_every=args.save_every, log_dir=args.log_dir)
    except (KeyboardInterrupt, Stopped) as stop:
        if save is not None and processes.first:
            print(f"interrupted: --resume {save} continues", file=sys.stderr)
        if isinstance(stop, Stopped):
            return 128 + stop.number  # as shells have it
        raise
    if args.save_model is not None:
        save_model(args.save_model, trainers[0])
    if not processes.first:
        return 0
    if args.json:
        print(json.dumps(as_document(result), allow_nan=False))
    elif result.compared:
        print(summary(result))
    if args.plot is not None:
        plot(args.plot, [result])
    return exit_status([result])


def run_demo(args: argparse.Namespace) -> int:
    """Run both data sets, then the tutorial in a precision in which the losses must agree."""
    require("sktime.datasets")  # The second data set needs it: say so before training.
    shown = [config_for(data) for data in DEFAULTS]
    results = []
    for config in [*shown, config_for(TUTORIAL, dtype="float64")]:
        print_line(f"Training on {config.data} in {config.dtype}, with fastrnn and with torch.nn")
        results.append(fit(trainers_for(config, compare=True), silent))
    print(table(results))
    plot(args.plot, results[: len(shown)])
    print(f"Curves: {args.plot}")
    return exit_status(results)


def print_line(text: str) -> None:
    print(text, flush=True)  # flushed, so that the reader of a pipe sees it at once


def silent(text: str) -> None:
    """Say nothing."""
