"""RNN, GRU and LSTM layers for PyTorch whose whole sequence runs in one fused kernel.

Drop-in replacements for torch.nn's: the same signatures, parameter names and numbers.
"""

from fastrnn import cells, data, functional, onnx
from fastrnn.accelerate import Report, accelerate, decelerate
from fastrnn.explanation import Explanation, ScanExplanation, explain
from fastrnn.frozen import freeze, refresh
from fastrnn.functional import AllStates, detach_state
from fastrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.ops import cpu_instruction_sets
from fastrnn.recurrent import Recurrent, RecurrentCell
from fastrnn.stream import Stream


def __getattr__(name: str) -> object:
    if name != "zoo":  # which is imported when it is first used: its cells are traced then
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return importlib.import_module("fastrnn.zoo")


__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AllStates",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "Report",
    "ScanExplanation",
    "Stream",
    "accelerate",
    "cells",
    "cpu_instruction_sets",
    "data",
    "decelerate",
    "detach_state",
    "explain",
    "freeze",
    "functional",
    "onnx",
    "refresh",
]
