"""A trained model in use: `train --save-model`, `predict`, `export`."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import assert_all_close

import fastrnn
from fastrnn.__main__ import main
from fastrnn.training import csv_file
from fastrnn.training.export import quiet
from fastrnn.training.loop import Trainer, fit
from fastrnn.training.model import config_for
from fastrnn.training.saved_model import KEY, load_model, save_model
from fastrnn.training.train import silent

safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.torch")

ROOT = Path(fastrnn.__file__).parents[1]
MODEL = Path("model.safetensors")
KINDS = ("classification", "regression", "next-step")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_csv(kind, name="data.csv", columns=("a", "b")):
    """20 sequences whose features are far from standard: a near 1e6, b below 1e-3."""
    rng = np.random.default_rng(0)
    with Path(name).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sequence", *columns, *([] if kind == "next-step" else ["label"])])
        for n in range(20):
            label = {"classification": ["down", "up"][n % 2], "regression": n / 8}.get(kind)
            for _ in range(2 + n % 4):
                values = {"a": 1e6 + 10 * rng.normal() + n % 2, "b": 1e-4 * rng.normal()}
                step = [values[column] for column in columns]
                rows.writerow([f"s{n}", *step, *([] if label is None else [label])])


def trained(kind, **options):
    """A trainer after some epochs, whose model is saved."""
    write_csv(kind)
    config = config_for("data.csv", **{"epochs": 3, "hidden_size": 6, "cell": "gru", **options})
    trainer = Trainer(config, "fastrnn")
    fit([trainer], silent)
    save_model(MODEL, trainer)
    return trainer


def predicted(capsys, *options):
    assert main(["predict", str(MODEL), "data.csv", *options]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def answers(rows, prefix=""):
    """The numbers of the columns with a prefix."""
    columns = [name for name in rows[0] if name.startswith(prefix)]
    return torch.tensor([[float(row[name]) for name in columns] for row in rows])


@torch.no_grad()
def by_hand(trainer, x):
    """The trainer's model on one sequence (T, 2) of the file, standardised by hand."""
    mean, std = trainer.task.scaling
    return trainer.model.eval()(((x - mean) / std)[None].to(torch.float32))[0]


# --- The file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "rnn-relu", "gru", "lstm"])
def test_a_file_has_the_weights_and_what_they_need(cell):
    sizes = {"num_layers": 2, "bidirectional": True, "dropout": 0.25}
    trainer = trained("classification", cell=cell, dtype="float64", **sizes)
    description, predictor = load_model(MODEL)
    assert vars(description.architecture) == {
        "kind": "classification",
        "cell": cell,
        "input_size": 2,
        "hidden_size": 6,
        **sizes,
        "output_size": 2,
    }
    assert (description.features, description.classes) == (["a", "b"], ["down", "up"])
    assert (description.mean, description.std) == tuple(t.tolist() for t in trainer.task.scaling)
    assert (description.dtype, description.data) == ("float64", "data.csv")
    saved = trainer.model.state_dict()
    assert predictor.model.state_dict().keys() == saved.keys()
    for name, weight in predictor.model.state_dict().items():
        assert torch.equal(weight, saved[name]), name


def test_weights_fit_torch_nn():
    trainer = trained("classification", cell="lstm")
    with safetensors.safe_open(MODEL, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layer = torch.nn.LSTM(2, 6, batch_first=True)
    layer.load_state_dict(
        {n.removeprefix("rnn."): w for n, w in weights.items() if n.startswith("rnn.")}
    )
    x = torch.randn(3, 4, 2)
    torch.testing.assert_close(layer(x)[0], trainer.model.rnn(x)[0])


def test_the_best_weights_are_saved():
    trainer = trained("classification", epochs=40, lr=0.5, validation=0.3, patience=3)
    assert trainer.best
    _, predictor = load_model(MODEL)
    for name, weight in predictor.model.state_dict().items():
        assert torch.equal(weight, trainer.best[name])


def test_a_checkpoint_becomes_a_model():
    command = "train --num-samples 60 --epochs 2 --save-model"
    assert main([*command.split(), str(MODEL), "--save", "run"]) == 0
    assert main(["train", "--resume", "run", "--save-model", "again.safetensors"]) == 0
    assert Path("again.safetensors").read_bytes() == MODEL.read_bytes()


@pytest.mark.parametrize(
    "contents",
    [
        b"sequence,a\n0,1\n",
        b"",
        lambda good: good[:-8],
        lambda good: good.replace(b"fastrnn-model-1", b"fastrnn-model-9"),
        lambda good: good.replace(b"rnn.weight_hh_l0", b"rnn.weight_hh_l7"),
        lambda good: good.replace(rb"hidden_size\": 6", rb"hidden_size\": 7"),
    ],
    ids=["text", "empty", "cut", "format", "names", "sizes"],
)
def test_another_file_is_refused(contents, capsys):
    trained("classification")
    good = MODEL.read_bytes()
    changed = contents(good) if callable(contents) else contents
    assert changed != good
    MODEL.write_bytes(changed)
    assert refused(capsys, "predict", str(MODEL), "data.csv") == (
        "python -m fastrnn: error: MODEL model.safetensors: damaged, or no model that was saved "
        "by this command\n"
    )


def refused(capsys, *command):
    with pytest.raises(SystemExit, match="2"):
        main(list(command))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict absent.safetensors data.csv", "MODEL absent.safetensors: No such file"),
        ("predict model.safetensors absent.csv", "DATA absent.csv: cannot be read: "),
        ("predict model.safetensors other.csv", "DATA other.csv: there is no column b, which was"),
        ("predict model.safetensors bad.csv", "DATA bad.csv, line 2, a: 'x' is not a finite"),
        ("predict model.safetensors data.csv --output absent/x.csv", "no folder 'absent'"),
        ("export model.safetensors", "one of the arguments --onnx --aoti is required"),
        ("export model.safetensors --aoti model.so", "'model.so' does not end in .pt2"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    trained("classification")
    Path("other.csv").write_text("sequence,a,label\n0,1,up\n")
    Path("bad.csv").write_text("sequence,a,b\n0,x,1\n")
    assert message in refused(capsys, *arguments.split())


# --- predict ------------------------------------------------------------------------------------


def test_classes_have_their_names_and_probabilities(capsys):
    trainer = trained("classification", epochs=60, lr=0.05)
    rows = predicted(capsys)
    assert [row["sequence"] for row in rows] == [f"s{n}" for n in range(20)]
    assert list(rows[0]) == ["sequence", "label", "p(down)", "p(up)"]
    probabilities = answers(rows, "p(")
    recordings = csv_file.read_csv(Path("data.csv"))
    for n, length in enumerate(recordings.lengths.tolist()):
        expected = by_hand(trainer, recordings.x[n, :length]).softmax(dim=-1)
        assert_all_close([probabilities[n]], [expected], torch.float32)
        assert rows[n]["label"] == ["down", "up"][int(expected.argmax())]
    assert {row["label"] for row in rows} == {"down", "up"}


def test_numbers_are_predicted(capsys):
    trainer = trained("regression")
    rows = predicted(capsys)
    assert list(rows[0]) == ["sequence", "label"]
    recordings = csv_file.read_csv(Path("data.csv"))
    expected = torch.stack(
        [by_hand(trainer, recordings.x[n, :t]) for n, t in enumerate(recordings.lengths.tolist())]
    )
    assert_all_close([answers(rows, "label")], [expected], torch.float32)


def test_next_steps_are_in_the_units_of_the_data(capsys):
    trainer = trained("next-step")
    rows = predicted(capsys)
    assert list(rows[0]) == ["sequence", "step", "a", "b"]
    recordings = csv_file.read_csv(Path("data.csv"))
    lengths = recordings.lengths.tolist()
    assert [(row["sequence"], int(row["step"])) for row in rows] == [
        (f"s{n}", step) for n, t in enumerate(lengths) for step in range(2, t + 2)
    ]
    mean, std = trainer.task.scaling
    expected = torch.cat(
        [by_hand(trainer, recordings.x[n, :t]) * std + mean for n, t in enumerate(lengths)]
    )
    actual = torch.tensor([[float(row[name]) for name in "ab"] for row in rows], dtype=mean.dtype)
    assert (actual[:, 0] - 1e6).abs().max() < 100 and actual[:, 1].abs().max() < 1e-3
    actual, expected = (((t - mean) / std).float() for t in (actual, expected))
    assert_all_close([actual], [expected], torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_columns_in_another_order_change_nothing(kind, capsys):
    trained(kind)
    rows = predicted(capsys, "--batch-size", "20")
    assert_same_rows(predicted(capsys, "--batch-size", "3"), rows)
    assert main(["predict", str(MODEL), "data.csv", "--output", "out.csv"]) == 0
    assert list(csv.DictReader(io.StringIO(Path("out.csv").read_text()))) == predicted(capsys)
    lines = [line.split(",") for line in Path("data.csv").read_text().splitlines()]
    Path("data.csv").write_text("\n".join(f"{b},{a},{name}" for name, a, b, *_ in lines))
    assert_same_rows(predicted(capsys), rows)


def assert_same_rows(actual, expected):
    """The linear layer is torch's, whose sums depend on the batch."""
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == b[name] or float(a[name]) == pytest.approx(float(b[name]), abs=1e-6)


def test_npz_is_predicted_by_its_order(capsys):
    trained("classification")
    rows = predicted(capsys)
    recordings = csv_file.read_csv(Path("data.csv"))
    arrays = {"sequences": recordings.x.numpy(), "lengths": recordings.lengths.numpy()}
    np.savez("data.npz", **arrays)
    assert main(["predict", str(MODEL), "data.npz"]) == 0
    again = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["sequence"] for row in again] == [str(n) for n in range(20)]
    assert torch.equal(answers(again, "p("), answers(rows, "p("))


def test_a_model_of_the_vowels_knows_its_speakers():
    pytest.importorskip("sktime")
    config = config_for("japanese-vowels", epochs=1, hidden_size=4)
    trainer = Trainer(config, "fastrnn")
    save_model(MODEL, trainer)
    description, _ = load_model(MODEL)
    assert description.classes == list("123456789") and len(description.mean) == 12
    assert description.features[0] == "cepstrum1" and description.mean[0] != 0


@pytest.mark.slow
def test_shards_are_gathered():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["--local-addr", "localhost", "-m", "fastrnn", "train", "--fsdp"]
    options = "--num-samples 60 --epochs 3 --dtype float64 --save-model"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = str(ROOT)
    command += [*options.split(), "two.safetensors"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert run.returncode == 0, run.stderr
    assert main(["train", *options.split(), "one.safetensors"]) == 0
    models = [load_model(Path(f"{count}.safetensors"))[1] for count in ("one", "two")]
    for one, two in zip(*(model.model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two)


# --- export -------------------------------------------------------------------------------------


def raw_inputs(kind, T, N):
    generator = torch.Generator().manual_seed(T)
    x = torch.randn(N, T, 2, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([10, 1e-4]) + torch.tensor([1e6, 0])
    return (x,) if kind == "next-step" else (x, torch.arange(N) % T + 1)


def assert_same_answers(actual, predictor, inputs):
    """Next steps are compared in standard deviations, which float32 knew when it predicted them."""
    with torch.inference_mode():
        expected = predictor(*inputs)
    if predictor.kind == "next-step":
        actual, expected = ((t - predictor.mean) / predictor.std for t in (actual, expected))
        actual, expected = actual.float(), expected.float()
    assert_all_close([actual], [expected], torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_takes_the_data_as_it_is(kind, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    trained(kind)
    assert main(["export", str(MODEL), "--onnx", "model.onnx"]) == 0
    assert "model.onnx: sequences (N, T, 2) float64" in capsys.readouterr().out
    description, predictor = load_model(MODEL)
    session = onnxruntime.InferenceSession("model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata[KEY])["classes"] == description.classes
    for T, N in ((5, 4), (1, 1), (9, 2)):
        inputs = raw_inputs(kind, T, N)
        names = [value.name for value in session.get_inputs()]
        feed = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        (actual,) = session.run(None, feed)
        assert_same_answers(torch.from_numpy(actual), predictor, inputs)


def test_onnx_of_float64_weights_has_float32(capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    trained("classification", dtype="float64")
    assert main(["export", str(MODEL), "--onnx", "model.onnx"]) == 0
    _, predictor = load_model(MODEL)
    x, lengths = raw_inputs("classification", 5, 4)
    session = onnxruntime.InferenceSession("model.onnx")
    (actual,) = session.run(None, {"sequences": x.numpy(), "lengths": lengths.numpy()})
    with torch.inference_mode():
        expected = predictor(x, lengths)
    assert expected.dtype == torch.float64
    assert_all_close([torch.from_numpy(actual)], [expected.float()], torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_aoti_takes_the_data_as_it_is(kind):
    trained(kind)
    assert main(["export", str(MODEL), "--aoti", "model.pt2"]) == 0
    description, predictor = load_model(MODEL)
    package = torch._inductor.aoti_load_package("model.pt2")
    assert json.loads(package.get_metadata()[KEY])["features"] == description.features
    for T, N in ((5, 4), (1, 1), (9, 2)):
        inputs = raw_inputs(kind, T, N)
        assert_same_answers(package(*inputs), predictor, inputs)


@pytest.mark.parametrize("change", ["blank", "words", "within a sequence"])
def test_labels_are_not_looked_at(change, capsys):
    trained("classification")
    expected = predicted(capsys)
    rows = list(csv.reader(Path("data.csv").read_text().splitlines()))
    new = {"blank": "", "words": "?"}
    for number, row in enumerate(rows[1:]):
        row[-1] = new.get(change, str(number))
    with Path("data.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert predicted(capsys) == expected


def test_an_output_takes_the_place_of_another_at_the_end(capsys):
    trained("regression")
    output = Path("answers.csv")
    output.write_text("before")
    Path("bad.csv").write_text("sequence,a,b\ns,1,2\nt,1,x\n")
    refused(capsys, "predict", str(MODEL), "bad.csv", "--output", str(output))
    assert output.read_text() == "before"
    assert main(["predict", str(MODEL), "data.csv", "--output", str(output)]) == 0
    assert output.read_text().startswith("sequence,label\n")
    link = Path("link.csv")
    link.symlink_to(output)
    output.write_text("before")
    assert main(["predict", str(MODEL), "data.csv", "--output", str(link)]) == 0
    assert link.is_symlink() and output.read_text().startswith("sequence,label\n")
    assert not list(Path().glob("*.tmp"))
    message = refused(capsys, "predict", str(MODEL), "data.csv", "--output", "/dev/full")
    assert "--output /dev/full: [Errno 28]" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.0]},
        {"std": [1.0, 0.0]},
        {"std": [1.0, float("nan")]},
        {"classes": ["one"]},
        {"features": ["a"]},
    ],
)
def test_a_description_that_does_not_fit_itself_is_refused(changes, capsys):
    trained("classification")
    with safetensors.safe_open(MODEL, framework="pt") as file:
        document = {**json.loads(file.metadata()[KEY]), **changes}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    MODEL.write_bytes(safetensors.torch.save(weights, {KEY: json.dumps(document)}))
    assert "damaged" in refused(capsys, "predict", str(MODEL), "data.csv")


def test_exporting_leaves_logging_as_it_was():
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with quiet():
            pass
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(before)
