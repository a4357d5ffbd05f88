"""RTNeural, a C++ library for layers in audio: compiled where a checkout of it is.

The environment variable RTNEURAL names its folder; its own copy of Eigen does the products.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import weakref
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .native import compiled

SOURCE = Path(__file__).with_suffix(".cpp")


def checkout() -> Path | None:
    """The folder of RTNeural, or None where none is named."""
    named = os.environ.get("RTNEURAL")
    return Path(named).resolve() if named else None


def version() -> str:
    folder = checkout()
    assert folder is not None
    found = re.search(
        r"project\(RTNeural VERSION ([\d.]+)", (folder / "CMakeLists.txt").read_text()
    )
    return found[1] if found else "unknown"


@cache
def library(folder: Path) -> ctypes.CDLL:
    alignment = 32  # bytes, of AVX
    includes = [f"-I{folder / each}" for each in ("", "modules/Eigen", "modules/json")]
    options = ["-DRTNEURAL_USE_EIGEN=1", f"-DRTNEURAL_DEFAULT_ALIGNMENT={alignment}", *includes]
    functions = compiled(SOURCE, *options)
    functions.rtneural_make.restype = ctypes.c_void_p
    functions.rtneural_make.argtypes = [ctypes.c_bool, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
    functions.rtneural_run.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    functions.rtneural_free.argtypes = [ctypes.c_void_p]
    return functions


class Layer:
    """A GRU or LSTM of one layer and sample, which keeps its state from call to call."""

    def __init__(self, module: torch.nn.RNNBase) -> None:
        folder = checkout()
        assert folder is not None
        self._functions = library(folder)
        weights = json.dumps({name: w.tolist() for name, w in module.state_dict().items()})
        is_lstm = isinstance(module, torch.nn.LSTM)
        sizes = module.input_size, module.hidden_size
        self._layer = self._functions.rtneural_make(is_lstm, *sizes, weights.encode())
        weakref.finalize(self, self._functions.rtneural_free, self._layer)
        self._hidden_size = module.hidden_size

    def __call__(self, x: Tensor) -> Tensor:
        """Run (T, I) to (T, H), both float32."""
        y = x.new_empty(x.shape[0], self._hidden_size)
        self._functions.rtneural_run(self._layer, x.data_ptr(), x.shape[0], y.data_ptr())
        return y
