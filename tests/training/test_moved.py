"""Former import paths of the trainer: they give what the new ones give, and warn of the move."""

from __future__ import annotations

import importlib
import pickle
import sys

import pytest
import torch

from fastrnn.training import tasks

# Former path: the paths that its warning names, and the names that each has now.
MOVED = {
    "fastrnn.train": {
        "fastrnn.training.train": ("add_commands", "run_demo", "run_train", "silent"),
        "fastrnn.training.options": ("add_config_options", "given_options", "read_config"),
    },
    "fastrnn.tune": {
        "fastrnn.training.tune": ("SPACE", "STUDY", "read_space", "run_tune", "search"),
    },
    "fastrnn.files": {
        "fastrnn.training.files": ("read_task",),
    },
    "fastrnn.datasets": {
        "fastrnn.training.tasks": ("KINDS", "Sequences", "Task", "japanese_vowels", "tutorial"),
        "fastrnn.training.errors": ("UsageError", "blaming", "first_line", "require"),
        "fastrnn.training.options": ("option",),
    },
}


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch):
    """The warning comes with the first import only; other tests may have been first."""
    for former in MOVED:
        monkeypatch.delitem(sys.modules, former, raising=False)
        monkeypatch.delattr(former, raising=False)


@pytest.mark.parametrize("former", MOVED)
def test_former_path_gives_what_has_moved(former):
    with pytest.warns(DeprecationWarning, match=f"^{former} has moved to fastrnn") as warned:
        module = importlib.import_module(former)
    assert len(warned) == 1
    for present, names in MOVED[former].items():
        assert present in str(warned[0].message)
        for name in names:
            assert getattr(module, name) is getattr(importlib.import_module(present), name)


@pytest.mark.parametrize(
    "statement",
    [
        "from fastrnn.files import read_task",
        "from fastrnn import files",
        "import fastrnn.files",
        "import fastrnn.files as data_files",
    ],
)
def test_warning_is_of_the_line_that_imports(statement):
    with pytest.warns(DeprecationWarning, match="fastrnn.training.files") as warned:
        exec(compile(statement, "user.py", "exec"), {})
    assert [warning.filename for warning in warned] == ["user.py"]


def test_pickle_of_a_former_path_is_read():
    samples = tasks.Sequences(torch.zeros(2, 3, 1), torch.tensor([0, 1]), torch.tensor([3, 1]))
    saved = pickle.dumps(samples, protocol=0)
    former = saved.replace(b"fastrnn.training.tasks", b"fastrnn.datasets")
    assert former != saved
    with pytest.warns(DeprecationWarning, match="fastrnn.training.tasks"):
        restored = pickle.loads(former)
    assert type(restored) is tasks.Sequences and restored.lengths.tolist() == [3, 1]
