"""A stream's step as C calls it, without Python between: python -m benchmarks.c_stream."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fastrnn import library

from .cases import MODULES
from .machine import cpu_in_use
from .native import compiled

SIZES = (16, 64, 256, 512)
STEPS = 20_000


@cache
def _timer() -> Any:
    function = compiled(Path(__file__).with_suffix(".cpp")).time_steps
    function.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_void_p]
    function.restype = None
    return function


def seconds_of_steps(stream: fastrnn.Stream, x: Tensor, count: int) -> Tensor:
    """Seconds of each of the stream's next steps, all of which take x (N, I); float64."""
    seconds = torch.zeros(count, dtype=torch.float64)
    y = torch.empty(len(x), stream.output_size)
    step = ctypes.cast(ctypes.CDLL(library.PATH).fastrnn_stream_step, ctypes.c_void_p)
    _timer()(step, stream._handle, x.data_ptr(), y.data_ptr(), count, seconds.data_ptr())
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    print(f"{cpu_in_use(threads=1)}; one sample, microseconds a step")
    print(f"{'cell':6}{'I = H':>6}{'median':>9}{'99 %':>9}{'longest':>9}")
    for cell, module in MODULES.items():
        for size in SIZES:
            stream = fastrnn.Stream(getattr(fastrnn, module)(size, size), 1)
            seconds_of_steps(stream, torch.randn(1, size), STEPS // 10)
            seconds = 1e6 * seconds_of_steps(stream, torch.randn(1, size), STEPS)
            told = (seconds.median(), seconds.quantile(0.99), seconds.max())
            print(f"{cell:6}{size:6}" + "".join(f"{each:9.2f}" for each in told))


if __name__ == "__main__":
    main()
