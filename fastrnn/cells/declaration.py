"""What a cell declares beside its function: names and initial values, each checked once."""

from __future__ import annotations

import keyword
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

__all__ = ["CellShape", "Declaration", "Initial", "Names", "declare"]

# The initial value of a vector: a number, the range of a uniform distribution, or torch's
# +-1 / sqrt(hidden_size).
Initial = float | tuple[float, float] | None
Names = str | Iterable[str]

MOST = {"gates a side": 16, "states": 8, "vectors": 16, "inputs": 4}
# Names of a recurrent module's own attributes and of arguments beside the cell's.
_OF_MODULES = {
    "all_weights", "batch_first", "bias", "bidirectional", "cell", "check_forward_args",
    "check_hidden_size", "check_input", "device", "dropout", "dtype", "extra",
    "flatten_parameters", "get_expected_hidden_size", "hidden_size", "hx", "input", "input_size",
    "lengths", "mask", "mode", "num_layers", "permute_hidden", "proj_size", "recompute", "reset",
    "reset_parameters", "reset_state", "return_all_states", "reverse", "self", "weight_ih",
    "weight_hh", "weight_hr", "bias_ih", "bias_hh",
}  # fmt: skip
_OF_A_LAYER = re.compile(r".*_l\d+(_reverse)?")  # the end of a parameter's name
# Words of C++ that Python lets pass.
_OF_CPP = {
    "alignas", "alignof", "and_eq", "asm", "auto", "bitand", "bitor", "bool", "case", "catch",
    "char", "char16_t", "char32_t", "char8_t", "co_await", "co_return", "co_yield", "compl",
    "concept", "const", "const_cast", "consteval", "constexpr", "constinit", "decltype",
    "default", "delete", "do", "double", "dynamic_cast", "enum", "explicit", "export", "extern",
    "false", "float", "friend", "goto", "inline", "int", "long", "mutable", "namespace", "new",
    "noexcept", "not_eq", "nullptr", "operator", "or_eq", "private", "protected", "public",
    "register", "reinterpret_cast", "requires", "short", "signed", "sizeof", "static",
    "static_assert", "static_cast", "struct", "switch", "template", "this", "thread_local",
    "throw", "true", "typedef", "typeid", "typename", "union", "unsigned", "using", "virtual",
    "void", "volatile", "wchar_t", "xor", "xor_eq",
}  # fmt: skip


class CellShape(NamedTuple):
    """How many of each kind a cell has: all that the operators know of it.

    Attributes:
        input_gates: rows of weight_ih a unit.
        recurrent_gates: rows of weight_hh a unit; 0 without a recurrent product.
        cell_states: states beside h.
        vectors: parameters of one number a unit.
        extra_inputs: inputs beside x.
        numbers: numbers that a module can change.
        saved: values a unit and step that backward needs, beside the states.
    """

    input_gates: int
    recurrent_gates: int
    cell_states: int
    vectors: int
    extra_inputs: int
    numbers: int
    saved: int


@dataclass(frozen=True)
class Declaration:
    """The names that a cell's function may use."""

    name: str
    gates: tuple[str, ...] = ()
    input_gates: tuple[str, ...] = ()
    recurrent_gates: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    vectors: Mapping[str, Initial] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_input(self) -> tuple[str, ...]:
        """The gates of the input product, in the order of the rows of weight_ih."""
        return self.gates + self.input_gates

    @property
    def of_recurrence(self) -> tuple[str, ...]:
        """The gates of the recurrent product, in the order of the rows of weight_hh."""
        return self.gates + self.recurrent_gates


def declare(
    name: str,
    *,
    gates: Names,
    input_gates: Names,
    recurrent_gates: Names,
    states: Names,
    vectors: Names | Mapping[str, Initial],
    numbers: Mapping[str, float],
    inputs: Names,
    initial: Mapping[str, float],
) -> Declaration:
    """A declaration of what the arguments say.

    Raises:
        ValueError: saying what is wrong, and what to write instead.
    """
    _check_name("the cell", name)
    if not isinstance(vectors, Mapping):
        vectors = dict.fromkeys(_names("vectors", vectors))
    declaration = Declaration(
        name,
        _names("gates", gates),
        _names("input_gates", input_gates),
        _names("recurrent_gates", recurrent_gates),
        _names("states", states),
        _names("inputs", inputs),
        {name: _initial(name, value) for name, value in vectors.items()},
        _floats("numbers", numbers),
        _floats("initial", initial),
    )
    _check_apart(declaration)
    _check_counts(declaration)
    return declaration


def _names(what: str, given: Names) -> tuple[str, ...]:
    if not isinstance(given, Iterable):
        raise ValueError(
            f"{what} is a string of letters or a tuple of names, got {type(given).__name__}"
        )
    names = tuple(given)
    for name in names:
        _check_name(what, name)
    return names


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise ValueError(f"{what}: a name is a string, got {name!r}")
    if name == "<lambda>":
        raise ValueError("a lambda has no name: write def my_cell(x, h, s, p)")
    if not (name.isascii() and name.isidentifier()) or name.startswith("_") or "__" in name:
        raise ValueError(
            f"{what}: {name!r} is no name of a cell's part: write letters, digits and single "
            "underscores, a letter first"
        )
    if any(keyword.iskeyword(word) or word in _OF_CPP for word in (name, name.lower())):
        raise ValueError(f"{what}: {name!r} is a word of Python or C++: write another name")


def _floats(what: str, given: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} is a dict of names and numbers, got {type(given).__name__}")
    for name, value in given.items():
        _check_name(what, name)
        if not _is_number(value):
            raise ValueError(f"{what}: {name} is a finite number, got {value!r}")
    return {name: float(value) for name, value in given.items()}


def _initial(name: str, given: object) -> Initial:
    _check_name("vectors", name)
    if given is None:
        return None
    if _is_number(given):
        return float(given)  # type: ignore[arg-type]
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(map(_is_number, given)):
        low, high = map(float, given)
        if low <= high:
            return low, high
    raise ValueError(
        f"vectors: the initial value of {name} is a number, a range (low, high), or None for "
        f"+-1/sqrt(hidden_size), got {given!r}"
    )


def _is_number(value: object) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def _check_apart(declaration: Declaration) -> None:
    """No two parts that the function reaches by the same argument have the same name."""
    of_x = declaration.of_input + declaration.recurrent_gates + declaration.inputs
    of_p = (*declaration.vectors, *declaration.numbers)
    for names in (of_x, declaration.states, of_p):
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is declared twice: write another name for one of them")
    if "h" in declaration.states:
        raise ValueError("states: every cell has h, as s.h: declare the states beside it alone")
    for name in of_p:
        of_module = name in _OF_MODULES or hasattr(nn.Module, name) or name == "training"
        if of_module or _OF_A_LAYER.fullmatch(name):
            raise ValueError(f"{name!r} is an attribute of modules: write another name")
    for name in declaration.initial:
        if name not in ("h", *declaration.states):
            raise ValueError(f"initial: {name!r} is no state: declare it in states")


def _check_counts(declaration: Declaration) -> None:
    counts = {
        "gates a side": max(len(declaration.of_input), len(declaration.of_recurrence)),
        "states": len(declaration.states),
        "vectors": len(declaration.vectors),
        "inputs": len(declaration.inputs),
    }
    for what, count in counts.items():
        if count > MOST[what]:
            raise ValueError(f"a cell has at most {MOST[what]} {what}, got {count}")
    if not declaration.of_input:
        raise ValueError("a cell reads x by one gate at least: declare gates or input_gates")
