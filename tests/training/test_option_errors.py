"""Errors of the trainer: they carry fields, whose names the command line alone spells as options."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import pytest

import fastrnn.training
from fastrnn.training import model
from fastrnn.training.command_line import parser_of
from fastrnn.training.errors import Field, OptionError, UsageError, blaming
from fastrnn.training.loop import Trainer
from fastrnn.training.options import option


def commands() -> list[argparse.ArgumentParser]:
    (subparsers,) = parser_of("fastrnn")._subparsers._group_actions
    return list(subparsers.choices.values())


FOLDER = Path(fastrnn.training.__file__).parent
COMMANDS = {"train.py", "tune.py", "predict.py", "export.py"}
SPELLS_OPTIONS = {"command_line.py", "options.py"} | COMMANDS
TRAINER = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in SPELLS_OPTIONS)


@pytest.mark.parametrize(
    ("error", "in_python", "on_command_line"),
    [
        (
            OptionError(Field("batch_size", 9), "there are 4"),
            "batch_size 9: there are 4",
            "--batch-size 9: there are 4",
        ),
        (
            OptionError((Field("fsdp"), Field("amp", "fp16")), "take ", Field("amp", "bf16")),
            "fsdp, amp fp16: take amp bf16",
            "--fsdp, --amp fp16: take --amp bf16",
        ),
        (
            UsageError("a smaller ", Field("clip_grad_norm"), " may help"),
            "a smaller clip_grad_norm may help",
            "a smaller --clip-grad-norm may help",
        ),
        (OptionError(Field("validation", 0), "of 3"), "validation 0: of 3", "--validation 0: of 3"),
    ],
)
def test_a_field_is_spelled_by_whoever_prints_it(error, in_python, on_command_line):
    assert str(error) == in_python and error.text(option) == on_command_line
    again = pickle.loads(pickle.dumps(error))  # Workers hand errors to other processes.
    assert type(again) is type(error) and again.text(option) == on_command_line


def test_callers_from_python_get_a_value_error_that_names_the_field():
    config = model.config_for("tutorial", num_samples=4, batch_size=9)
    with pytest.raises(ValueError, match=r"^batch_size 9: there are 4 training samples$") as raised:
        Trainer(config, "fastrnn")
    assert raised.value.fields == (Field("batch_size", 9),)


def test_blame_has_a_line_where_the_error_has_several():
    sizes = Field("num_samples", 5), Field("seq_length", 6)
    with pytest.raises(OptionError) as raised, blaming(*sizes):
        raise RuntimeError("too large\nmore about it")
    assert str(raised.value) == "num_samples 5, seq_length 6: too large"
    assert raised.value.fields == sizes


@pytest.mark.parametrize("file", TRAINER)
def test_trainer_knows_no_option(file):
    text = (FOLDER / file).read_text()
    assert not re.search(r"--[a-z]", text)


def test_every_field_that_errors_name_is_an_option():
    options = {name for command in commands() for name in command._option_string_actions}
    text = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    names = set(re.findall(r'\bField\("(\w+)"', text))
    assert len(names) > 15
    assert {option(name) for name in names} <= options | {"--model"}  # an argument, no option


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.prog)
def test_every_option_says_what_it_does_and_its_default(command):
    for action in command._actions:
        assert action.help, action.option_strings
        if action.default not in (None, False, argparse.SUPPRESS):
            assert "default: " in action.help, action.option_strings


def test_defaults_in_help_are_those_of_the_configuration():
    texts = {action.dest: action.help for command in commands() for action in command._actions}
    assert texts["on_nan"].endswith("(default: stop)")
    assert texts["hidden_size"].endswith("(default: tutorial 5, japanese-vowels 64, files 64)")
    assert "default" not in texts["patience"]
