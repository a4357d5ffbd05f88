"""CSV files: what is read from them, and what is said of each mistake in them."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrnn.__main__ import main
from fastrnn.training import csv_file, progress
from fastrnn.training.errors import OptionError
from fastrnn.training.files import read_recordings, read_task

pytest.importorskip("pandas")

GOOD = "sequence,a,b,label\n" + "".join(
    f"s{n},{n}.5,{-t},{'up' if n % 2 else 'down'}\n" for n in range(10) for t in range(1 + n % 3)
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text, name="data.csv", encoding="utf-8"):
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_recordings(path)


def assert_same(actual, expected):
    assert torch.equal(actual.x, expected.x) and torch.equal(actual.lengths, expected.lengths)
    assert (actual.names, actual.features, actual.labels) == (
        expected.names,
        expected.features,
        expected.labels,
    )


# --- What is read -------------------------------------------------------------------------------


def test_sequences_are_padded():
    recordings = read(GOOD)
    assert recordings.x.shape == (10, 3, 2) and recordings.x.dtype == torch.float64
    assert recordings.lengths.tolist() == [1 + n % 3 for n in range(10)]
    assert recordings.x[4].tolist() == [[4.5, 0], [4.5, -1], [0, 0]]
    assert recordings.names[:2] == ["s0", "s1"] and recordings.features == ["a", "b"]
    assert recordings.labels == ["down", "up"] * 5


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("label", "Label").replace("sequence", " SEQUENCE "),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.removesuffix("\n"),
        lambda text: "\ufeff" + text,
        lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("n\n", "n,\n"),
    ],
    ids=[
        "case",
        "semicolons",
        "tabs",
        "CRLF",
        "blank-lines",
        "no-last-newline",
        "BOM",
        "quotes",
        "spaces",
        "last-comma",
    ],
)
def test_ways_of_writing_a_file(change):
    assert_same(read(change(GOOD)), read(GOOD, "plain.csv"))


def test_a_step_column_is_no_feature():
    rows = GOOD.splitlines()
    numbered = [f"{row},{number}" for number, row in enumerate(rows[1:])]
    assert_same(read("\n".join([f"{rows[0]},Step", *numbered])), read(GOOD, "plain.csv"))


def test_quoted_text_may_hold_anything():
    text = 'sequence,"a, b","c\nd",label\n"x, 1",1,2,"say ""yes"""\ny,3,4,no\n'
    recordings = read(text)
    assert recordings.features == ["a, b", "c\nd"] and recordings.names == ["x, 1", "y"]
    assert recordings.labels == ['say "yes"', "no"]


@pytest.mark.parametrize("block", [1, 7, 40, 41, 200])
@pytest.mark.parametrize("label", ["down", '"do\nwn"', '"a ""b"",\n"', '5" pipe', '7"'])
def test_blocks_do_not_show(block, label, monkeypatch):
    """Sequences, quotes and lines reach over the ends of blocks; a quote may be a letter."""
    text = GOOD.replace("down", label).replace("up", '"u\np"')
    expected = read(text, "whole.csv")
    monkeypatch.setattr(csv_file, "BLOCK", block)
    assert len(list(csv_file.whole_records(Path("whole.csv"), ","))) > 1
    assert_same(read(text), expected)


# --- Labels -------------------------------------------------------------------------------------


def labelled(*labels):
    rows = (f"{n},{n},{label}\n{n},{n},{label}\n" for n, label in enumerate(labels))
    Path("data.csv").write_text("sequence,a,label\n" + "".join(rows))
    return read_task(Path("data.csv"), None)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ((100000, 100001), ("100000", "100001")),
        ((2, 1, 2), ("1", "2")),
        ((1, -1), ("-1", "1")),
        ((10, 9, "010"), ("9", "10")),
        (("up", "down"), ("down", "up")),
        (("1_0", "1_1"), ("1_0", "1_1")),
        (("1", "x"), ("1", "x")),
        (("none", "some"), ("none", "some")),
    ],
)
def test_classes_are_those_of_the_labels(labels, classes):
    task = labelled(*labels)
    assert task.classes == classes and task.num_classes == len(classes)
    assert set(task.train.labels.tolist()) == set(range(len(classes)))


def test_numbers_are_regressed():
    task = labelled(0.5, 1, "1e3")
    assert task.kind == "regression" and task.train.labels.tolist() == [[0.5], [1], [1000]]


# --- Test samples and scaling -------------------------------------------------------------------


def test_a_fifth_is_kept_for_testing_of_each_class():
    task = labelled(*(["up"] * 50 + ["down"] * 25))
    assert task.held_out and (len(task.train), len(task.test)) == (60, 15)
    assert task.test.labels.bincount().tolist() == [5, 10]
    numbers = [set(part.x[:, 0, 0].tolist()) for part in (task.train, task.test)]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 75


def test_few_sequences_are_not_split():
    assert not labelled(*"abab").held_out


def test_a_class_is_not_tested_alone():
    task = labelled(*"aaaaabcdef")
    assert set(task.train.labels.tolist()) == set(range(6))


@pytest.mark.parametrize(("share", "sizes"), [(0, (10, 10)), (0.5, (5, 5)), (0.3, (7, 3))])
def test_share_for_testing(share, sizes):
    read(GOOD)
    task = read_task(Path("data.csv"), "classification", share)
    assert (len(task.train), len(task.test)) == sizes
    with pytest.raises(OptionError, match=r"^test 0\.01: 0 of 10 sequences$"):
        read_task(Path("data.csv"), None, 0.01)


def test_training_steps_have_mean_0_and_deviation_1():
    rng = np.random.default_rng(0)
    rows = "".join(
        f"{n},{1e9 + v},{1e-3 * v},7\n" for n in range(20) for v in rng.normal(size=2 + n % 5)
    )
    read("sequence,a,b,constant\n" + rows)
    task = read_task(Path("data.csv"), None)
    scaled = task.standardised()
    steps = scaled.train.x[scaled.train.valid]
    torch.testing.assert_close(
        steps.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(steps.std(0)[:2], torch.ones(2, dtype=torch.float64))
    assert not scaled.train.x[~scaled.train.valid].any() and not steps[:, 2].any()
    raw = task.test.x[0, 0]
    torch.testing.assert_close(scaled.test.x[0, 0] * scaled.scaling.std + scaled.scaling.mean, raw)


# --- Mistakes -----------------------------------------------------------------------------------

HEAD = "sequence,step,a,label\n"
MISTAKES = {
    "data.csv: the file is empty": "",
    "data.csv: there are no rows": HEAD,
    "data.csv, line 1: numbers; expected a header": "0,0,1.5,1\n0,1,1.5,1\n",
    "line 1: column 1 has no name": "," + HEAD + "0,0,0,1.5,1\n",
    "line 1: columns 3 and 4 are both a": "sequence,step,a,a\n0,0,1,2\n",
    "line 1: columns 2 and 3 are both label": "sequence,label,Label,a\n0,0,1,2\n",
    "line 1: columns id, a, label; expected sequence, features": "id,a,label\n0,1,2\n",
    "line 1: columns sequence, label; expected sequence, features": "sequence,label\n0,1\n",
    "line 3: 3 fields, expected 4": HEAD + "0,0,1.5,1\n0,1,1.5\n",
    "line 3: 1 field, expected 4": HEAD + "0,0,1.5,1\n0;1;1.5;1\n",
    "line 3: 5 fields, expected 4": HEAD + "0,0,1.5,1\n0,1,1.5,1,0\n",
    "line 2: 5 fields, expected 4": HEAD + "0,0,1.5,1,9\n0,1,1.5,1\n",
    "line 4: 7 fields, expected 4": HEAD + "0,0,1.5,1\n\n0,1,1.5,1,2,3,4\n",
    "line 2, a: it is empty": HEAD + "0,0,,1\n",
    "line 3, a: 'NA' is not a finite number": HEAD + "0,0,1,1\n0,1,NA,1\n",
    "line 3, a: 'nan' is not a finite number": HEAD + "0,0,1,1\n0,1,nan,1\n",
    "line 2, a: 'inf' is not a finite number": HEAD + "0,0,inf,1\n",
    "line 2, a: 'True' is not a finite number": HEAD + "0,0,True,1\n",
    "line 2, a: '2026-11-28' is not a finite number": HEAD + "0,0,2026-11-28,1\n",
    "line 2, a: '1,5' is not a finite number; numbers have a decimal point": HEAD.replace(",", ";")
    + "0;0;1,5;1\n",
    "line 2, sequence: it is empty": HEAD + ",0,1,1\n",
    "line 4, sequence: '0' was over already": HEAD + "0,0,1,1\n1,0,1,1\n0,1,1,1\n",
    "line 3, step: 1 after 2": HEAD + "0,2,1,1\n0,1,1,1\n",
    "line 3, step: 2 after 2": HEAD + "0,2,1,1\n0,2,1,1\n",
    "line 2, step: 'first' is not": HEAD + "0,first,1,1\n",
    "line 2, label: it is empty": HEAD + "0,0,1,\n",
    "line 3, label: '2', before it '1'": HEAD + "0,0,1,1\n0,1,1,2\n",
    "label of sequence 1: 'NA' is no number, while others are, as 0.5": HEAD
    + "0,0,1,0.5\n1,0,1,NA\n",
    "label of sequence 1: 'nan' is no number, while others are, as 3": HEAD
    + "0,0,1,3\n1,0,1,nan\n",
    "every label is up; a classification needs two classes": HEAD + "0,0,1,up\n1,0,1,up\n",
    "sequence x has one step and no next one": "sequence,a\nx,1\ny,1\ny,2\n",
    "line 3: a quote is missing after it": HEAD + '0,0,1,1\n1,0,1,"up\n2,0,1,down\n',
    "line 3: 2 fields, expected 4; is a quote missing?": HEAD + '0,0,1,1\n1,"0,1,up\n2,0,1,down\n',
    "its text is not UTF-8": (HEAD + "0,0,1,gr\xfcn\n").encode("latin-1"),
    "data.csv: its text is not UTF-8: ": HEAD.encode("utf-16"),
    "a has numbers too large to be squared": HEAD + "0,0,1e308,1\n1,0,1,2\n",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named_with_its_place(message, capsys):
    text = MISTAKES[message]
    Path("data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data", "data.csv"])
    out, err = capsys.readouterr()
    assert message in err and err.startswith("python -m fastrnn: error: --data")
    assert out == "" and err.count("\n") == 1


def test_the_first_of_several_mistakes_is_named():
    rows = ["0,2,1,up", "0,1,1,up", "1,0,x,up", "1,1,1,down", ",0,1,", "2,0,1,up,9"]
    for start, message in (
        (0, "line 3, step: 1 after 2"),
        (2, "line 2, a: 'x' is not a finite number"),
        (3, "line 3, sequence: it is empty"),
        (5, "line 2: 5 fields"),
    ):
        with pytest.raises(OptionError, match=message):
            read(HEAD + "\n".join(rows[start:]))


@pytest.mark.parametrize("row", [0, 1, 2, 15])
def test_a_row_that_is_too_long_is_found_wherever_blocks_end(row, monkeypatch):
    """pandas itself cuts off what the first row of a block has too many."""
    lines = GOOD.splitlines()
    lines[1 + row] += ",9"
    for block in (1, 30, 50, 1 << 20):
        monkeypatch.setattr(csv_file, "BLOCK", block)
        with pytest.raises(OptionError, match=f"line {2 + row}: 5 fields, expected 4"):
            read("\n".join(lines), f"{block}.csv")


# --- Large files --------------------------------------------------------------------------------


def test_progress_is_told(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setattr(csv_file, "BLOCK", 100)
    read(GOOD)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert all(re.fullmatch(r"reading data\.csv: \d+%, 0 s left", line) for line in lines)


def large_file(sequences):
    row = "{n},0.12345678,-1.23456789,12.3456789,{c}\n" * 5
    with Path("large.csv").open("w") as file:
        file.write("sequence,a,b,c,label\n")
        file.writelines(row.format(n=n, c=n % 3) for n in range(sequences))
    return Path("large.csv")


def test_reading_is_linear_in_the_number_of_sequences():
    seconds = []
    for count in (10_000, 40_000):
        path = large_file(count)
        start = time.process_time()
        assert len(read_recordings(path).names) == count
        seconds.append(time.process_time() - start)
    assert seconds[1] < 10 * seconds[0]  # 4 times the work; it was 16 times when it was quadratic


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_reading_takes_thrice_the_file_at_most():
    read(GOOD)  # pandas is there before it is measured.
    path = large_file(500_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_task(path, None).standardised()
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert added < 3 * path.stat().st_size


@pytest.mark.parametrize("before", ["\n\n", "\r\n", "  \n\n"])
def test_blank_lines_before_the_header_are_skipped(before):
    assert_same(read(f"{before}sequence,x\na,1\na,2\n"), read("sequence,x\na,1\na,2\n"))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([b"cat", b"dog"]),
        np.array([1j, 2j]),
        np.zeros(2, "datetime64[s]"),
        np.zeros((2, 0)),
    ],
    ids=lambda labels: labels.dtype.name,
)
def test_labels_of_an_npz_are_numbers_or_texts(labels):
    np.savez("data.npz", sequences=np.ones((2, 3, 1)), labels=labels)
    with pytest.raises(OptionError, match=re.escape(f"labels is {labels.dtype} ")):
        read_task(Path("data.npz"), None)
