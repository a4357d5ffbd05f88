"""Hyperparameter search: ``python -m fastrnn tune``.

Optuna searches, Ray Tune runs the same space on a cluster; both keep their trials in one Optuna
study, from which tables, pictures and the best configuration are made. Trials are judged by the
loss on a validation part of the training samples. The test samples are used once, at the end.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastrnn.training.errors import Field, UsageError, blaming, first_line, require
from fastrnn.training.loop import Diverged, Trainer, fit
from fastrnn.training.model import DEFAULTS, TUTORIAL, Config, config_for
from fastrnn.training.options import (
    DATA_HELP,
    BlamingParser,
    add_config_options,
    data_name,
    given_options,
    option,
    positive_integer,
    read_toml,
    share,
)
from fastrnn.training.progress import Lines, duration
from fastrnn.training.report import describe
from fastrnn.training.train import print_line

SPACE = Path(__file__).with_name("search_space.toml")
FIXED = {
    *("data", "task", "test", "num_samples", "seq_length"),
    *("validation", "epochs", "seed", "device"),
}
SHOWN = 10  # trials in the closing table
GRACE = 120  # seconds without a sign of life, after which a trial's worker counts as killed
STUDY = "fastrnn"

Space = dict[str, dict[str, Any]]


# --- The space ----------------------------------------------------------------------------------


def read_space(path: Path) -> Space:
    """Read each option's Optuna distribution; every error names the file and the table."""
    distributions = require("optuna.distributions", "tune")
    space: Space = read_toml(path, "--space")
    names = {field.name for field in fields(Config)} - FIXED
    for name, spec in space.items():
        where = f"--space {path}, [{name}]"
        if name not in names:
            raise UsageError(f"{where}: unknown; expected some of {', '.join(sorted(names))}")
        if not isinstance(spec, dict):
            raise UsageError(f"{where}: expected a table with choices, or with low and high")
        numbers = [spec[key] for key in ("low", "high") if key in spec]
        kind = "Categorical"
        if numbers:
            kind = "Int" if all(isinstance(number, int) for number in numbers) else "Float"
        try:
            getattr(distributions, f"{kind}Distribution")(**spec)
        except (TypeError, ValueError) as error:
            text = first_line(error).rpartition("__init__() ")[2]
            raise UsageError(f"{where}: {text}") from error
        # Values go through the checks of the command line.
        parser = BlamingParser(where)
        add_config_options(parser)
        for value in [*spec.get("choices", []), *numbers]:
            argument = [] if value is True else [str(value)]
            if value not in (False, ""):
                parser.parse_args([option(name), *argument])
    if not space:
        raise UsageError(f"--space {path}: there is nothing to search through")
    return space


def suggest(trial: Any, space: Space) -> None:
    """Draw a value of each option, from Optuna's trial or Ray's stand-in for it."""
    layers = 1
    for name, spec in space.items():
        if name == "dropout" and layers == 1 and "num_layers" in space:
            continue
        if "choices" in spec:
            value = trial.suggest_categorical(name, spec["choices"])
        elif all(isinstance(spec[key], int) for key in ("low", "high")):
            value = trial.suggest_int(name, **spec)
        else:
            value = trial.suggest_float(name, **spec)
        if name == "num_layers":
            layers = value


def in_order(space: Space) -> Space:
    """Order the options: the number of layers comes first, since dropout depends on it."""
    return dict(sorted(space.items(), key=lambda item: item[0] != "num_layers"))


def with_batches_of(space: Space, samples: int) -> Space:
    """The space without batches that are larger than the training set."""
    sizes = [size for size in space["batch_size"]["choices"] if size <= samples]
    return {**space, "batch_size": {"choices": sizes or [""]}}


def trial_config(data: str, options: Mapping[str, Any], params: Mapping[str, Any]) -> Config:
    drawn = {name: value for name, value in params.items() if value != ""}
    missing = {name: None for name, value in params.items() if value == ""}
    return config_for(data, **{**options, **drawn, **missing})


# --- Search -------------------------------------------------------------------------------------


def trial_line(
    number: int, total: int, epochs: int, loss: float, params: Mapping[str, Any], more: str = ""
) -> str:
    """What a finished trial tells."""
    drawn = ", ".join(f"{name} {in_short(value)}" for name, value in params.items())
    return f"trial {number} of {total}: loss {loss:.4f} after {epochs} epochs{more}; {drawn}"


def in_short(value: Any) -> str:
    """A value of an option in a table; an empty one is off."""
    return f"{value:.3g}" if isinstance(value, float) else str(value) or "-"


def run_epochs(config: Config, report: Callable[[int, float], None]) -> float:
    """Train, report the validation loss of each epoch, and return that of the last."""
    trainer = Trainer(config, "fastrnn")
    while not trainer.finished:
        trainer.run_epoch()
        report(trainer.history.epochs, trainer.history.validation_loss[-1])
    return trainer.history.validation_loss[-1]


def search(study: Any, args: argparse.Namespace, space: Space, options: Mapping[str, Any]) -> None:
    """Run trials in this process until the study has the number asked for."""
    optuna = require("optuna", "tune")

    def objective(trial: Any) -> float:
        suggest(trial, space)
        progress = Lines(f"trial {trial.number + 1}", options["epochs"])

        def report(epoch: int, loss: float) -> None:
            trial.report(loss, epoch)
            progress.update(epoch, f"loss {loss:.4f}")
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            return run_epochs(trial_config(args.data, options, trial.params), report)
        except Diverged as error:  # The configuration is poor; the search has not failed.
            raise optuna.TrialPruned from error

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    start, before = time.monotonic(), len(study.get_trials(deepcopy=False, states=states))

    def tell(study: Any, trial: Any) -> None:
        done = len(study.get_trials(deepcopy=False, states=states))
        left = (time.monotonic() - start) / max(1, done - before) * max(0, args.trials - done)
        losses = trial.intermediate_values
        epochs = max(losses, default=0)
        stopped = ", stopped" if trial.state is optuna.trial.TrialState.PRUNED else ""
        line = trial_line(
            done, args.trials, epochs, losses.get(epochs, math.nan), trial.params, stopped
        )
        print_line(f"{line}; {duration(left)} left")

    if before < args.trials:
        enough = optuna.study.MaxTrialsCallback(args.trials, states=states)
        study.optimize(objective, n_trials=args.trials - before, callbacks=[tell, enough])


def search_with_ray(
    study: Any, args: argparse.Namespace, space: Space, options: Mapping[str, Any]
) -> None:
    """Run the trials on the workers of a Ray cluster, and keep them in the same study."""
    ray, tune = require("ray", "ray"), require("ray.tune", "ray")
    schedulers = require("ray.tune.schedulers", "ray")
    optuna_search = require("ray.tune.search.optuna", "ray").OptunaSearch
    optuna = require("optuna", "tune")
    done = len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]))
    if done >= args.trials:
        return
    data = args.data if args.data in DEFAULTS else str(Path(args.data).resolve())

    def trainable(params: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        try:
            run_epochs(
                trial_config(data, options, params),
                lambda epoch, loss: tune.report({"loss": loss, "epoch": epoch}),
            )
        except Diverged:
            tune.report({"loss": sys.float_info.max, "epoch": options["epochs"]})

    callback: Any = tune.Callback

    class Tell(callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            count = sum(other.is_finished() for other in trials)
            result = trial.last_result
            print_line(
                trial_line(count, args.trials, result["epoch"], result["loss"], trial.config)
            )

    with blaming(Field("ray", args.ray)):
        address = None if args.ray == "local" else args.ray
        try:
            ray.init(address=address, num_cpus=args.workers, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--ray {args.ray}: {first_line(error)}") from error
    scheduler = {
        "median": lambda: schedulers.MedianStoppingRule(time_attr="epoch", grace_period=5),
        "hyperband": lambda: schedulers.ASHAScheduler(time_attr="epoch", max_t=options["epochs"]),
        "none": lambda: None,
    }[args.pruner]()
    searcher = optuna_search(
        space=partial(suggest, space=space),  # a partial, because Ray pickles it
        metric="loss",
        mode="min",
        sampler=study.sampler,
        study_name=STUDY,
        storage=study._storage,
    )
    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=args.trials - done,
            ),
            run_config=tune.RunConfig(
                storage_path=str((args.out / "ray").resolve()),
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[Tell()],
                verbose=0,
            ),
        ).fit()
    finally:
        ray.shutdown()


def open_study(args: argparse.Namespace, space: Space, options: Mapping[str, Any]) -> Any:
    """The study of this search, continued if it is there; its trials must be comparable."""
    optuna = require("optuna", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = args.storage or f"sqlite:///{args.out / 'study.db'}"
    pruner = {
        "median": lambda: optuna.pruners.MedianPruner(n_warmup_steps=5),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=options["epochs"]),
        "none": optuna.pruners.NopPruner,
    }[args.pruner]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback
            storage = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=GRACE // 4,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=retry(max_retry=2),
            )
            study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=args.sampler_seed),
                pruner=pruner,
            )
        except Exception as error:  # SQLAlchemy, a driver or Optuna may raise it.
            raise UsageError(f"--storage {url}: {first_line(error)}") from error
    wanted = {"data": args.data, "space": space, "options": dict(options)}
    for name, value in wanted.items():
        saved = study.user_attrs.get(name, value)
        if saved != value:
            raise UsageError(f"--storage {url}: its trials had another {name}: {saved}")
        study.set_user_attr(name, value)
    return study


# --- Results ------------------------------------------------------------------------------------


def best_trials(study: Any, epochs: int) -> list[Any]:
    """Trials that were trained to the end, the best one first."""
    whole = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name == "COMPLETE" and max(trial.intermediate_values, default=0) == epochs
    ]
    return sorted(whole, key=lambda trial: trial.value)


def closing_table(study: Any, epochs: int) -> str:
    best = best_trials(study, epochs)
    count = len([trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()])
    names = sorted({name for trial in best for name in trial.params})
    rows = [["trial", "loss", *names]]
    for trial in best[:SHOWN]:
        cells = [in_short(trial.params.get(name, "")) for name in names]
        rows.append([str(trial.number), f"{trial.value:.4f}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"{count} trials, {len(best)} trained to the end; the best:", *lines])


def draw(study: Any, folder: Path) -> None:
    """History, importances and parallel coordinates, as PNG and HTML: Optuna's own."""
    optuna, plotly = require("optuna", "tune"), require("plotly.io", "tune")
    require("matplotlib").use("agg")
    kinds = {
        "history": "optimization_history",
        "importances": "param_importances",
        "parallel": "parallel_coordinate",
    }
    for name, kind in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The plots are experimental, and trials may differ.
            try:
                interactive = getattr(optuna.visualization, f"plot_{kind}")(study)
                picture = getattr(optuna.visualization.matplotlib, f"plot_{kind}")(study)
            except (ValueError, RuntimeError) as error:  # Few trials tell no importances.
                print_line(f"{name}: not drawn: {first_line(error)}")
                continue
            plotly.write_html(interactive, folder / f"{name}.html", include_plotlyjs="cdn")
            picture.figure.set_size_inches(12, 6)
            picture.figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
    require("matplotlib.pyplot").close("all")


def write_config(path: Path, config: Config) -> None:
    """The options for `train --config`; those that are off are left out."""
    default = {field.name: field.default for field in fields(Config)}
    changed = {n: v for n, v in asdict(config).items() if v is not None and v != default[n]}
    if config.data not in DEFAULTS:
        changed["data"] = str(Path(config.data).resolve())
    path.write_text(require("tomli_w", "tune").dumps(changed))


# --- Command line -------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `tune` to the command line."""
    about = "search for the best hyperparameters, judged on a part of the training samples"
    tune = commands.add_parser("tune", help=about, description=about, allow_abbrev=False)
    tune.set_defaults(run=run_tune)
    tune.add_argument(
        "--data", type=data_name, default=TUTORIAL, metavar="NAME|FILE|FOLDER", help=DATA_HELP
    )
    tune.add_argument("--config", type=Path, metavar="FILE.toml", help="options of every trial")
    tune.add_argument(
        "--space",
        type=Path,
        default=SPACE,
        metavar="FILE.toml",
        help=f"what to search through (default: {SPACE.name} of this package)",
    )
    tune.add_argument(
        "--trials",
        type=positive_integer,
        default=50,
        metavar="N",
        help="in all, those of an interrupted search included (default: %(default)s)",
    )
    tune.add_argument(
        "--pruner",
        choices=("median", "hyperband", "none"),
        default="median",
        help="what stops poor trials early (default: %(default)s)",
    )
    tune.add_argument(
        "--out",
        type=Path,
        default=Path("tuning"),
        metavar="FOLDER",
        help="for the study, pictures and best.toml (default: %(default)s)",
    )
    tune.add_argument(
        "--storage",
        metavar="URL",
        help="database that keeps the trials (default: SQLite, study.db in --out)",
    )
    tune.add_argument(
        "--sampler-seed",
        type=int,
        metavar="N",
        help="of the search (default: another one each time)",
    )
    tune.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run the trials on Ray Tune, at this address or here (default: in this process)",
    )
    tune.add_argument(
        "--workers", type=positive_integer, metavar="N", help="of a local Ray (default: one a core)"
    )
    tune.add_argument(
        "--no-test", action="store_true", help="leave the test samples for later: no last training"
    )
    add_config_options(tune, FIXED - {"data", "validation"})
    tune.add_argument(
        "--validation",
        type=share,
        default=0.25,
        metavar="P",
        help="share of the training samples that trials are judged on (default: %(default)s)",
    )


def run_tune(args: argparse.Namespace) -> int:
    space = in_order(read_space(args.space))
    if args.workers is not None and args.ray is None:
        raise UsageError("--workers: it needs --ray; or start the command again beside this one")
    if args.validation == 0:
        raise UsageError("--validation 0: trials are judged by it")
    options = {name: value for name, value in given_options(args).items() if name != "data"}
    for name in space:
        options.pop(name, None)
    base = config_for(args.data, **options)
    options["epochs"] = base.epochs
    task = Trainer(replace(base, batch_size=None), "fastrnn").task
    if args.space == SPACE:
        space = with_batches_of(space, len(task.train))
    for batch_size in space.get("batch_size", {}).get("choices", []):
        Trainer(config_for(args.data, **{**options, "batch_size": batch_size or None}), "fastrnn")
    with blaming(Field("out", args.out)):
        args.out.mkdir(parents=True, exist_ok=True)
    study = open_study(args, space, options)
    print_line(describe(base, task))
    (search if args.ray is None else search_with_ray)(study, args, space, options)
    best = best_trials(study, base.epochs)
    if not best:
        raise UsageError(f"--trials {args.trials}: none was trained to its end")
    print_line(closing_table(study, base.epochs))
    draw(study, args.out)
    config = trial_config(args.data, options, best[0].params)
    write_config(args.out / "best.toml", config)
    print_line(f"Best configuration: {args.out / 'best.toml'}; pictures beside it")
    if not args.no_test:
        final = trial_config(args.data, {**options, "validation": 0.0}, best[0].params)
        print_line("Trained with it on all training samples:")
        fit([Trainer(final, "fastrnn")], print_line)
    return 0
