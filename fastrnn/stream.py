"""Chunk after chunk of a signal through layers that hold their state, without allocating memory.

The calls go to the C functions of csrc/stream/fastrnn_stream.h, which the compiled library has
beside torch's ops; a program without Python links the same functions from a static library.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn import frozen
from fastrnn.accelerate import OURS
from fastrnn.layers import is_recorded
from fastrnn.library import PATH, PLAIN, cpu_instruction_set
from fastrnn.recurrent import UserCellModule
from fastrnn.torch_internals import increment_version, is_transformed

__all__ = ["Stream"]

_Handle = _Floats = ctypes.c_void_p
_Count, _Status = ctypes.c_int64, ctypes.c_int
_library = ctypes.CDLL(PATH)
for _name, _result, *_arguments in (
    ("read", _Handle, ctypes.c_char_p, ctypes.c_size_t, _Count, _Count, ctypes.c_char_p),
    ("close", None, _Handle),
    ("step", _Status, _Handle, _Floats, _Count, _Floats),
    ("reset", _Status, _Handle, _Count),
    ("get_state", _Status, _Handle, _Floats, _Floats),
    ("set_state", _Status, _Handle, _Floats, _Floats),
    ("error", ctypes.c_char_p),
):  # fmt: skip
    _function = getattr(_library, f"fastrnn_stream_{_name}")
    _function.restype, _function.argtypes = _result, _arguments
_step = _library.fastrnn_stream_step

_MAGIC, _VERSION = b"fastrstr", 1
_TYPES = {"": 0, "bfloat16": 1, "int8": 2}
_MOST_STEPS = 64  # at once: more are cut


def _fail(status: int) -> None:
    """Raise what the last call of this thread says."""
    text = _library.fastrnn_stream_error().decode()
    raise RuntimeError(f"{text}; give each thread a Stream" if status == 2 else text)


def _check_values(name: str, tensor: Any) -> None:
    """Refuse what has no float32 values that C can read, and what would lose a derivative."""
    if type(tensor) not in PLAIN:
        raise TypeError(f"Stream: {name} must be a tensor, of no subclass, got {type(tensor)}")
    if tensor.dtype is not torch.float32 or not tensor.is_cpu:
        got = f"{tensor.dtype} on {tensor.device}"
        raise TypeError(f"Stream: {name} must be a float32 tensor on CPU, got {got}")
    if tensor.is_neg():
        raise TypeError(f"Stream: {name} is a view that negates: pass {name}.resolve_neg()")
    if tensor.requires_grad or is_transformed():
        frozen.refuse_derivatives("Stream", tensor)
        if is_recorded():
            raise TypeError("Stream: torch.jit cannot trace a stream; trace its module")


def _buffer(*shape: int) -> Tensor:
    """A tensor that C writes, whatever torch's defaults are and who keeps it for its gradients."""
    with torch.inference_mode(False):
        buffer = torch.empty(shape, dtype=torch.float32, device="cpu")
    if type(buffer) is not Tensor:
        raise TypeError(f"Stream runs on memory, and a mode gives {type(buffer)}")
    return buffer


class _Chunk(NamedTuple):
    """A chunk's shape and where its output lies."""

    shape: tuple[int, ...]  # of the input
    steps: ctypes.c_int64
    place: Tensor  # (steps or more, N, R)
    output: Tensor  # a view of it, laid out as the input


class Stream:
    """Layers that run a signal chunk by chunk, with the state held inside.

    A stream is a snapshot of a module's weights, packed once, and runs on the thread that calls it.
    Its output is the module's; but denormal numbers count as zero, for a signal that dies away
    would slow every step. After the first call of a length nothing is allocated, unless an input is
    not contiguous in the order (T, N, I), which is copied: an output lies where the last one lay.

    Args:
        module: an RNN, GRU, LSTM or cell of one direction, fastrnn's, torch.nn's or frozen, float32
            on CPU; parametrizations are evaluated once.
        batch: samples, N, that run side by side.
        weights: ``"bfloat16"`` or ``"int8"``, as for :func:`fastrnn.freeze`; None is float32, or
            what a frozen module has.

    Shapes:
        input: (T, N, I), (N, T, I) if the module is ``batch_first``, or (T, I) where N is 1; T is 1
            or more, for a cell, too.
        output: (T, N, R), laid out as the input.
        state: h (L, N, R) and, of an LSTM, c (L, N, H).

    Raises:
        ValueError: a module of two directions, reversed, of another dtype or device; an input of
            another shape.
        TypeError: something else than a recurrent module; an input or a state that is no plain
            float32 tensor with values in memory.
        RuntimeError: an input or a state that requires grad (where gradients are enabled); another
            thread runs this stream now; backward through a kept output that was overwritten.
        NotImplementedError: vmap, grad, jvp, or a dual tensor.

    Example::

        >>> stream = fastrnn.Stream(fastrnn.LSTM(1, 64, proj_size=1))
        >>> for block in signal.split(128):
        ...     play(stream(block))  # (128, 1)
    """

    def __init__(self, module: Any, batch: int = 1, weights: str | None = None) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"Stream: batch must be a positive integer, got {batch!r}")
        if not isinstance(module, frozen.Frozen):
            module = _frozen_copy(module, weights)
        elif weights is not None and weights != (module._weight_type or "float32"):
            raise ValueError(f"Stream: the module is frozen, with weights={module._weight_type!r}")
        _check(module)
        self._module_repr = str(module)
        self._file = _file_of(module)
        self.batch = batch
        self.batch_first = bool(getattr(module, "batch_first", False))
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.output_size = getattr(module, "proj_size", 0) or module.hidden_size
        self.num_layers = getattr(module, "num_layers", 1)
        self._has_cell_state = module._has_cell_state
        handle = _library.fastrnn_stream_read(
            self._file, len(self._file), batch, _MOST_STEPS, cpu_instruction_set().encode()
        )
        if not handle:
            _fail(1)
        self._handle = _Handle(handle)
        nothing = _buffer(0, batch, self.output_size)
        self._chunk = _Chunk((), _Count(0), nothing, nothing)  # the last

    def __call__(self, input: Tensor, copy: bool = False) -> Tensor:
        """Run a chunk.

        Args:
            input: a chunk, in a shape that the class names.
            copy: return a tensor of its own; otherwise the next call overwrites what this one
                returned.
        """
        _check_values("input", input)
        # They are read at once, for another thread may replace them.
        shape, steps, place, output = self._chunk
        if input.shape != shape or output.requires_grad:
            _, steps, place, output = self._prepare(tuple(input.shape))
        if self.batch_first and input.dim() == 3:
            input = input.transpose(0, 1)
        if not input.is_contiguous():
            input = input.contiguous()
        values = input.data_ptr()
        if not values:
            raise TypeError("Stream: input has no memory, as some tangents of zero: copy it")
        status = _step(self._handle, values, steps, place.data_ptr())
        if status:
            _fail(status)
        increment_version((output,))  # so autograd knows if a kept one was saved
        return output.clone() if copy else output

    def _prepare(self, shape: tuple[int, ...]) -> _Chunk:
        """Check the shape of an input, and make room for its output."""
        batched = len(shape) == 3
        time = 1 if batched and self.batch_first else 0
        expected = (self.batch, self.input_size) if batched else (self.input_size,)
        fits = len(shape) in (2, 3) and (*shape[:time], *shape[time + 1 :]) == expected
        if not fits or shape[time] < 1 or (self.batch > 1 and not batched):
            sizes = ["T >= 1", str(self.batch), str(self.input_size)]
            sizes[:2] = sizes[1::-1] if self.batch_first else sizes[:2]
            raise ValueError(f"Stream: input has shape {shape}, expected ({', '.join(sizes)})")
        steps, place = shape[time], self._chunk.place
        # What a caller wrote into the last output may have made it a node of a graph.
        if steps > place.size(0) or place.requires_grad:
            place = _buffer(steps, self.batch, self.output_size)
        with torch.inference_mode(False):
            output = place[:steps]
            if not batched:
                output = output[:, 0]
            elif self.batch_first:
                output = output.transpose(0, 1)
        self._chunk = chunk = _Chunk(shape, _Count(steps), place, output)
        return chunk

    def reset(self, sample: int | None = None) -> None:
        """Set the state of one sample to zero, or of all."""
        if sample is not None and not 0 <= sample < self.batch:
            raise IndexError(f"Stream: sample is {sample}, expected 0 to {self.batch - 1}")
        if status := _library.fastrnn_stream_reset(self._handle, -1 if sample is None else sample):
            _fail(status)

    @property
    def state(self) -> Any:
        """A copy of h, or of (h, c), in a module's shapes. It can be set, too."""
        h = _buffer(self.num_layers, self.batch, self.output_size)
        c = _buffer(self.num_layers, self.batch, self.hidden_size)
        self._exchange(_library.fastrnn_stream_get_state, h, c)
        return (h, c) if self._has_cell_state else h

    @state.setter
    def state(self, state: Any) -> None:
        if self._has_cell_state and (not isinstance(state, (tuple, list)) or len(state) != 2):
            raise TypeError(f"Stream: the state of an LSTM is a pair (h, c), got {type(state)}")
        parts = tuple(state) if self._has_cell_state else (state,)
        for part in parts:
            _check_values("the state", part)
        sizes = (self.output_size, self.hidden_size)[: 1 + self._has_cell_state]
        shapes = [(self.num_layers, self.batch, size) for size in sizes]
        got = [tuple(part.shape) for part in parts]
        if got != shapes:
            raise ValueError(f"Stream: the state has shapes {got}, expected {shapes}")
        h, *rest = [part.contiguous() for part in parts]
        self._exchange(_library.fastrnn_stream_set_state, h, rest[0] if rest else None)

    def _exchange(self, function: Any, h: Tensor, c: Tensor | None) -> None:
        place = c.data_ptr() if c is not None and self._has_cell_state else None
        if status := function(self._handle, h.data_ptr(), place):
            _fail(status)

    def save(self, path: str | Path) -> None:
        """Write the file that ``fastrnn_stream_open`` of fastrnn_stream.h reads."""
        Path(path).write_bytes(self._file)

    def __repr__(self) -> str:
        return f"Stream({self._module_repr}, batch={self.batch})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "Stream cannot be pickled or copied: make one of the module, and set its state"
        )

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            _library.fastrnn_stream_close(handle)


def _frozen_copy(module: nn.Module, weights: str | None) -> Any:
    if not isinstance(module, (*OURS, nn.RNNBase, nn.RNNCellBase)):
        raise TypeError(f"Stream: expected an RNN, GRU, LSTM or cell, got {type(module).__name__}")
    if isinstance(module, UserCellModule):
        raise TypeError(
            f"Stream: {type(module).__name__} has a user's cell, {module.cell.name}, and streams "
            "run RNN, GRU and LSTM alone; call the module on each chunk, with the state it "
            "returned, under torch.no_grad()"
        )
    return frozen.freeze(module, weights)


def _check(module: Any) -> None:
    if getattr(module, "bidirectional", False):
        raise ValueError(
            "Stream: the second direction begins at the signal's end, which is to come"
        )
    if getattr(module, "reverse", False):
        raise ValueError("Stream: a reversed layer begins at the signal's end, which is to come")
    dtype = module._weights()[0].dtype
    if dtype != torch.float32:
        raise ValueError(f"Stream: the module is {dtype}, expected torch.float32")


def _file_of(module: Any) -> bytes:
    """The file of a stream, whose layout csrc/stream/model_file.h has."""
    weights = [weight.contiguous() for weight in module._weights()]
    rest = struct.pack(
        "<16s4i3q",
        module._cell.encode(),
        getattr(module, "num_layers", 1),
        _TYPES[module._weight_type],
        bool(module.bias),
        getattr(module, "proj_size", 0) > 0,
        module.input_size,
        module.hidden_size,
        getattr(module, "proj_size", 0) or module.hidden_size,
    )
    rest += b"".join(ctypes.string_at(weight.data_ptr(), weight.nbytes) for weight in weights)
    return struct.pack("<8s2I", _MAGIC, _VERSION, zlib.crc32(rest)) + rest
