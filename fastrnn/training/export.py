"""``python -m fastrnn export``: a trained model for ONNX Runtime, or for C++ by AOTInductor.

The scaling of the features is a part of what is exported. It runs in float64, as it did for the
training: a feature may be large and its deviation small.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fastrnn.training.errors import Field, blaming
from fastrnn.training.options import file_ending
from fastrnn.training.predict import spell
from fastrnn.training.saved_model import KEY, Description, Predictor, load_model
from fastrnn.training.tasks import CLASSIFICATION, NEXT_STEP
from fastrnn.training.train import print_line

INPUTS = ("sequences", "lengths")


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `export` to the command line."""
    about = "make an ONNX model or an AOTInductor package of a saved model"
    more = (
        "It takes sequences (N, T, features), float64, padded, in the units of the data, and "
        "their lengths (N,), int64; where the next step was trained, sequences alone. It gives "
        "what predict gives: probabilities of classes (N, classes), numbers (N, K), or for each "
        "step the next one (N, T, features)."
    )
    export = commands.add_parser(
        "export", help=about, description=f"{about}. {more}", allow_abbrev=False
    )
    export.set_defaults(run=run_export, spell=spell)
    export.add_argument("model", type=Path, metavar="MODEL", help="what train --save-model wrote")
    targets = export.add_mutually_exclusive_group(required=True)
    targets.add_argument(
        "--onnx",
        type=file_ending(".onnx", "onnxscript", "onnx"),
        metavar="FILE.onnx",
        help="for ONNX runtimes, with float32 weights, as they have no others",
    )
    targets.add_argument(
        "--aoti",
        type=file_ending(".pt2"),
        metavar="FILE.pt2",
        help="for C++ or Python with torch and fastrnn's library, compiled for this machine's CPU",
    )


def run_export(args: argparse.Namespace) -> int:
    description, predictor = load_model(args.model)
    name, path, export = ("onnx", args.onnx, to_onnx) if args.onnx else ("aoti", args.aoti, to_aoti)
    with blaming(Field(name, path)), quiet():
        export(path, description, predictor)
    print_line(f"{path}: {signature(description)}")
    return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters warn of: themselves, and packages that they do without."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def example(predictor: Predictor) -> tuple[tuple[Tensor, ...], list[dict[int, Any]]]:
    """Arguments to trace with, and which of their sizes are free: N and T."""
    N, T = torch.export.Dim("N"), torch.export.Dim("T")
    sequences = torch.zeros(2, 3, len(predictor.mean), dtype=torch.float64)
    if predictor.kind == NEXT_STEP:
        return (sequences,), [{0: N, 1: T}]
    return (sequences, torch.tensor([3, 2])), [{0: N, 1: T}, {0: N}]


def to_onnx(path: Path, description: Description, predictor: Predictor) -> None:
    predictor.model.float()
    predictor.dtype = torch.float32
    arguments, sizes = example(predictor)
    program = torch.onnx.export(
        predictor,
        arguments,
        dynamo=True,
        dynamic_shapes=sizes,
        input_names=list(INPUTS[: len(arguments)]),
        output_names=[output_name(description)],
        custom_translation_table=fastrnn.onnx.translation_table(),
        verbose=False,
    )
    assert program is not None  # None comes of the exporter without dynamo alone.
    program.model.metadata_props[KEY] = description.to_json()
    program.save(path, external_data=False)


def to_aoti(path: Path, description: Description, predictor: Predictor) -> None:
    arguments, sizes = example(predictor)
    exported = torch.export.export(predictor, arguments, dynamic_shapes=sizes)
    torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": {KEY: description.to_json()}},
    )


def output_name(description: Description) -> str:
    kind = description.architecture.kind
    names = {CLASSIFICATION: "probabilities", NEXT_STEP: "next_steps"}
    return names.get(kind, "numbers")


def signature(description: Description) -> str:
    """The inputs and the output in a line."""
    features = len(description.features)
    sequences = f"sequences (N, T, {features}) float64"
    if description.architecture.kind == NEXT_STEP:
        return f"{sequences} -> next_steps (N, T, {features}) float64"
    outputs = description.architecture.output_size
    return f"{sequences}, lengths (N,) int64 -> {output_name(description)} (N, {outputs})"
