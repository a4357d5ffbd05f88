"""Short calls of one layer or cell, without gradients, past torch's dispatcher.

The dispatcher takes longer than a step of few units. These calls give Python's tensors as they are
to csrc/torch/direct.cpp, which asks DLPack's C functions what they are; what does not fit is left
to the ops. The interpreter's lock is held meanwhile, so long calls do not come here.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.library import CELLS, PATH, PLAIN

__all__ = ["Cell", "Layer", "cell", "layer"]

# As in csrc/torch/direct.cpp.
_LAYER, _STATES, _BIAS, _REVERSE, _BATCH_FIRST, _PACKED = 1, 2, 4, 8, 16, 32

# Products of inputs and hidden units: 0.2 ms where there are four gates. Beyond that the dispatcher
# takes a fiftieth of a call.
_MOST_PRODUCTS = 1 << 20

_empty_like = torch.empty_like
_is_neg = Tensor.is_neg
_is_profiled = torch._C._autograd._profiler_enabled  # torch exports it as no name of its own

_Pointer, _Object, _Text = ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p
_CAPSULE = b"fastrnn.direct"  # a capsule keeps the address of its name
_library, _python = ctypes.PyDLL(PATH), ctypes.PyDLL(None)


def _declared(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


_capsule_pointer = _declared(_python.PyCapsule_GetPointer, _Pointer, _Object, _Text)
_new_capsule = _declared(_python.PyCapsule_New, _Object, _Pointer, _Text, _Pointer)
_new_function = _declared(_python.PyCFunction_NewEx, _Object, _Pointer, _Object, _Pointer)
_begin = _declared(_library.fastrnn_direct_begin, ctypes.c_int, _Pointer)
_definition = _declared(_library.fastrnn_direct_function, _Pointer, _Text, ctypes.c_int)


class _Python(ctypes.Structure):
    """What the library is handed over."""

    _fields_ = (
        ("tensors", _Pointer),
        ("capsule_pointer", _Pointer),
        ("take_reference", _Pointer),
        ("yes", _Object),
        ("no", _Object),
    )


def _hand_over() -> bool:
    """Whether torch has DLPack's table of C functions, in a version that the library knows."""
    table = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if table is None:
        return False
    functions = (_python.PyCapsule_GetPointer, _python.Py_IncRef)
    addresses = [ctypes.cast(function, _Pointer) for function in functions]
    tensors = _capsule_pointer(table, b"dlpack_exchange_api")
    return bool(_begin(ctypes.byref(_Python(tensors, *addresses, True, False))))


_IS_AVAILABLE = _hand_over()


class _Short:
    """The direct way of a layer's or a cell's calls, with weights as torch has them, two or with
    biases four, or the one tensor that prepack made of them."""

    def __init__(self, cell: str, hidden_size: int, weights: int, options: int) -> None:
        self._has_cell_state = CELLS[cell].has_cell_state
        self._hidden_size = hidden_size
        options |= {1: _PACKED, 2: 0, 4: _BIAS}[weights]
        self._run_from_zero = self._function(cell, options)
        self._run = self._function(cell, options | _STATES)

    @staticmethod
    def _function(cell: str, options: int) -> Callable[..., bool]:
        """The library's function of these options, which returns whether it ran the call."""
        definition = _definition(cell.encode(), options)
        return _new_function(definition, _new_capsule(definition, _CAPSULE, None), None)

    def _states(self, input: Any, hx: Any, weights: Sequence[Tensor]) -> tuple[Any, Any] | None:
        """h and c before a call that may go this way, the input instead of those that are absent;
        or None."""
        h = c = input
        if hx is not None:
            if not self._has_cell_state:
                h = hx
            elif type(hx) in (tuple, list) and len(hx) == 2:
                h, c = hx
            else:
                return None
        may_run = (
            type(input) in PLAIN
            and type(h) in PLAIN
            and type(c) in PLAIN
            and input.numel() * self._hidden_size <= _MOST_PRODUCTS
            and _IS_AVAILABLE
            and not _is_profiled()  # which wants to see an op
            # A view that negates does not hold its values.
            and not (input.is_neg() or h.is_neg() or c.is_neg())
            and (len(weights) == 1 or _are_plain(weights))
        )
        if not may_run or (torch.is_grad_enabled() and _need_grad(input, h, c, *weights)):
            return None
        return h, c


def _are_plain(weights: Sequence[Tensor]) -> bool:
    return PLAIN.issuperset(map(type, weights)) and not any(map(_is_neg, weights))


def _need_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


class Layer(_Short):
    """A layer in one direction."""

    def __init__(
        self, cell: str, hidden_size: int, weights: int, batch_first: bool, reverse: bool
    ) -> None:
        options = _LAYER | _BATCH_FIRST * batch_first | _REVERSE * reverse
        super().__init__(cell, hidden_size, weights, options)
        self.order = batch_first, reverse

    def __call__(self, input: Any, hx: Any, weights: Sequence[Tensor]) -> tuple[Tensor, Any] | None:
        """What a module returns for these arguments, or None: take another way.

        No tracer, transform or mode may look at the call.
        """
        states = self._states(input, hx, weights)
        if states is None:
            return None
        h_0, c_0 = states
        shape = input.shape
        if len(shape) not in (2, 3):
            return None
        is_batch_first = self.order[0] and len(shape) == 3
        steps, *batch = shape[1::-1] if is_batch_first else shape[:-1]
        if hx is not None and h_0.is_contiguous():
            h_n = _empty_like(h_0)  # the library refuses a state of another shape
        else:
            h_n = input.new_empty((1, *batch, self._hidden_size))
        c_n = _empty_like(h_n) if self._has_cell_state else h_n
        y = _empty_like(h_n) if steps == 1 else input.new_empty((steps, *batch, self._hidden_size))
        run = self._run_from_zero if hx is None else self._run
        try:
            if not run(input, h_0, c_0, y, h_n, c_n, *weights):
                return None
        except (BufferError, RuntimeError):  # DLPack cannot describe a tensor
            return None
        if is_batch_first:
            y = y.transpose(0, 1)
        return y, (h_n, c_n) if self._has_cell_state else h_n


class Cell(_Short):
    """A cell."""

    def __init__(self, cell: str, hidden_size: int, weights: int) -> None:
        super().__init__(cell, hidden_size, weights, 0)

    def __call__(self, input: Any, hx: Any, weights: Sequence[Tensor]) -> Any:
        """As :meth:`Layer.__call__`."""
        states = self._states(input, hx, weights)
        if states is None:
            return None
        h_0, c_0 = states
        if hx is not None and h_0.is_contiguous():
            h_n = _empty_like(h_0)
        else:
            h_n = input.new_empty((*input.shape[:-1], self._hidden_size))
        c_n = _empty_like(h_n) if self._has_cell_state else h_n
        run = self._run_from_zero if hx is None else self._run
        try:
            if not run(input, h_0, c_0, h_n, h_n, c_n, *weights):
                return None
        except (BufferError, RuntimeError):
            return None
        return (h_n, c_n) if self._has_cell_state else h_n


layer, cell = functools.cache(Layer), functools.cache(Cell)
