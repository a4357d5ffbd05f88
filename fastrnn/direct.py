"""Short calls of one layer or cell past torch's dispatcher.

The dispatcher takes longer than a step of few units. These calls give Python's tensors as they are
to csrc/torch/direct.cpp, which asks DLPack's C functions what they are; what does not fit is left
to the ops.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.library import CELLS, PATH, PLAIN, accumulate_dtype, extra_names, weight_kinds
from fastrnn.torch_internals import is_profiled
from fastrnn.weight_sums import SharedWeights

__all__ = ["Scan", "Short", "need_grad", "scan", "short"]

# As in csrc/torch/direct.cpp.
_LAYER, _BATCH_FIRST, _REVERSE, _PACKED, _SAVE, _RECOMPUTE, _ADD = 1, 2, 4, 8, 16, 32, 64

# Products of inputs and hidden units: some milliseconds where there are four gates, of which the
# dispatcher would take less than a hundredth.
_MOST_PRODUCTS = 1 << 24

_empty_like = torch.empty_like
_is_neg = Tensor.is_neg

_Pointer, _Object, _Text = ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p
_CAPSULE = b"fastrnn.direct"  # a capsule keeps the address of its name
_TABLE = b"dlpack_exchange_api"
_library, _python = ctypes.PyDLL(PATH), ctypes.PyDLL(None)


def _declared(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


_is_capsule = _declared(_python.PyCapsule_IsValid, ctypes.c_int, _Object, _Text)
_capsule_pointer = _declared(_python.PyCapsule_GetPointer, _Pointer, _Object, _Text)
_new_capsule = _declared(_python.PyCapsule_New, _Object, _Pointer, _Text, _Pointer)
_new_function = _declared(_python.PyCFunction_NewEx, _Object, _Pointer, _Object, _Pointer)
_begin = _declared(_library.fastrnn_direct_begin, ctypes.c_int, _Pointer)
_of_both = (_Text, ctypes.c_int, ctypes.c_uint)
_forward = _declared(_library.fastrnn_direct_forward, _Pointer, *_of_both)
_backward = _declared(_library.fastrnn_direct_backward, _Pointer, *_of_both, ctypes.c_uint)


class _Python(ctypes.Structure):
    """What the library is handed over."""

    _fields_ = (
        ("tensors", _Pointer),
        ("capsule_pointer", _Pointer),
        ("take_reference", _Pointer),
        ("release_lock", _Pointer),
        ("take_lock", _Pointer),
        ("yes", _Object),
        ("no", _Object),
        ("none", _Object),
    )


def _hand_over() -> bool:
    """Whether torch has DLPack's table of C functions, in a version that the library knows."""
    table = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if not _is_capsule(table, _TABLE):
        return False
    functions = (
        _python.PyCapsule_GetPointer, _python.Py_IncRef, _python.PyEval_SaveThread,
        _python.PyEval_RestoreThread,
    )  # fmt: skip
    addresses = [ctypes.cast(function, _Pointer) for function in functions]
    tensors = _capsule_pointer(table, _TABLE)
    return bool(_begin(ctypes.byref(_Python(tensors, *addresses, True, False, None))))


_IS_AVAILABLE = _hand_over()


@functools.cache
def _present(cell: str, names: tuple[str, ...]) -> int:
    """A bit for each row of the cell's table of tensors that is there."""
    return sum(1 << i for i, info in enumerate(CELLS[cell].tensors) if info.name in names)


def _function(definition: int) -> Callable[..., bool]:
    """A function of the library's, which returns whether it ran the call."""
    return _new_function(definition, _new_capsule(definition, _CAPSULE, None), None)


@functools.cache
def _forward_function(cell: str, options: int, names: tuple[str, ...]) -> Callable[..., bool]:
    return _function(_forward(cell.encode(), options, _present(cell, names)))


@functools.cache
def _backward_function(
    cell: str, options: int, names: tuple[str, ...], needs: tuple[str, ...]
) -> Callable[..., bool]:
    present = _present(cell, names)
    return _function(_backward(cell.encode(), options, present, _present(cell, needs)))


def _hold_values(tensors: Sequence[Tensor]) -> bool:
    """Whether these are tensors of torch's own that hold their values: a view may negate them."""
    return PLAIN.issuperset(map(type, tensors)) and not any(map(_is_neg, tensors))


def _may_run(input: Tensor, hidden_size: int) -> bool:
    """Whether a call is short, and no profiler wants to see an op."""
    return input.numel() * hidden_size <= _MOST_PRODUCTS and _IS_AVAILABLE and not is_profiled()


def _empty(like: Tensor) -> Tensor:
    """Dense memory for a tensor of that shape."""
    return _empty_like(like) if like.is_contiguous() else like.new_empty(like.shape)


def _call(function: Callable[..., bool], *tensors: Tensor | None) -> bool:
    try:
        return function(*tensors)
    except (BufferError, RuntimeError):  # DLPack cannot describe a tensor
        return False


# --- without gradients ----------------------------------------------------------------------------


class Short:
    """Calls without gradients of a layer in one direction, or of a cell: of the library's own, or
    of a user's that takes the same tensors.

    Its weights are those of torch, two or with biases four, or the one tensor that prepack made of
    them.
    """

    def __init__(
        self,
        cell: str,
        hidden_size: int,
        weights: int,
        is_layer: bool,
        batch_first: bool = False,
        reverse: bool = False,
    ) -> None:
        self.order = batch_first, reverse
        self._has_cell_state = CELLS[cell].has_cell_state
        self._hidden_size, self._is_layer = hidden_size, is_layer
        options = _LAYER * is_layer | _BATCH_FIRST * batch_first | _REVERSE * reverse
        options |= _PACKED * (weights == 1)
        states = ("h_0", "c_0")[: 1 + self._has_cell_state]
        kinds = () if weights == 1 else tuple(weight_kinds(weights == 4, projection=False))
        self._run = _forward_function(cell, options, ("input", *states, *kinds))
        self._run_from_zero = _forward_function(cell, options, ("input", *kinds))

    # It is one function, since each further one of Python takes a tenth of a step of few units.
    def __call__(self, input: Any, hx: Any, weights: Sequence[Tensor]) -> Any:
        """What a module returns for these arguments, or None: take another way.

        No tracer, transform or mode may look at the call.
        """
        if not (type(input) in PLAIN and _may_run(input, self._hidden_size)) or input.is_neg():
            return None
        states: tuple[Any, ...] = ()
        if hx is not None and not self._has_cell_state:
            states = (hx,)
        elif hx is not None:
            if type(hx) not in (tuple, list) or len(hx) != 2:
                return None
            states = tuple(hx)
        for state in states:
            if type(state) not in PLAIN or state.is_neg():
                return None
        if len(weights) > 1 and not _hold_values(weights):
            return None
        if torch.is_grad_enabled() and need_grad(input, *states, *weights):
            return None
        rank = input.dim()
        if self._is_layer and rank not in (2, 3):
            return None
        is_batch_first = self.order[0] and rank == 3
        # A state of another shape than its final one the library refuses.
        h_n = _empty(states[0]) if states else self._empty_state(input)
        finals = (h_n, _empty_like(h_n)) if self._has_cell_state else (h_n,)
        results = finals
        if self._is_layer:
            steps = input.size(1 if is_batch_first else 0)
            y = _empty_like(h_n) if steps == 1 else input.new_empty((steps, *h_n.shape[1:]))
            results = (y, *finals)
        run = self._run if states else self._run_from_zero
        if not _call(run, input, *states, *weights, *results):
            return None
        state = finals if self._has_cell_state else h_n
        if not self._is_layer:
            return state
        return y.transpose(0, 1) if is_batch_first else y, state

    def _empty_state(self, input: Tensor) -> Tensor:
        batch: tuple[int, ...] = input.shape[:-1]
        if self._is_layer:
            batch = batch[:1] if self.order[0] else batch[1:]
            batch = (1, *batch) if input.dim() == 3 else (1,)
        return input.new_empty((*batch, self._hidden_size))


def need_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


short = functools.cache(Short)


# --- any cell, with and without gradients ---------------------------------------------------------


class Scan:
    """Both passes of a layer in one direction or of a cell, with a batch.

    A layer's sequences are (T, N, columns) and its states (1, N, columns); of a cell both are
    (N, columns). tensors are the input, the states before it, the weights and the extra inputs, as
    the op takes them.
    """

    def __init__(
        self,
        cell: str,
        kinds: tuple[str, ...],
        numbers: tuple[float, ...],
        extras: int,
        is_layer: bool,
        reverse: bool,
        recompute: bool,
    ) -> None:
        """kinds: what the weights are; extras: how many extra inputs there are."""
        self.cell, self.kinds, self.numbers, self.extras = cell, kinds, numbers, extras
        self.is_layer, self.reverse, self.recompute = is_layer, reverse, recompute
        self._facts = facts = CELLS[cell]
        before = ("input", *("h_0", "c_0")[: 1 + facts.has_cell_state])
        self.names = (*before, *kinds, *extra_names(extras))
        self._weights = slice(len(before), len(before) + len(kinds))
        self._options = _LAYER * is_layer | _REVERSE * reverse | _RECOMPUTE * recompute
        self._run_unsaved = _forward_function(cell, self._options, self.names)
        self._run = _forward_function(cell, self._options | _SAVE, self.names)
        # By what is needed, and whether weight gradients are added.
        self._run_backward: dict[tuple[tuple[bool, ...], bool], Callable[..., bool]] = {}
        self._of_numbers = (torch.tensor(numbers, dtype=torch.float64),) if numbers else ()

    def forward(
        self, input: Tensor, *others: Tensor, saves: bool = True
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
        """The results that a caller sees, of a layer y and of both the final states, and what
        backward reads of them all if it is saved; or None: take the op."""
        facts, h_0, weight_ih = self._facts, others[0], others[1 + self._facts.has_cell_state]
        hidden_size = weight_ih.size(0) // facts.input_gates
        if not _may_run(input, hidden_size) or not _hold_values((input, *others)):
            return None
        finals = tuple(map(_empty, others[: 1 + facts.has_cell_state]))
        leading = input.shape[:-1]
        y = finals[0]
        if self.is_layer:
            y = _empty_like(y) if leading[0] == 1 else input.new_empty((*leading, h_0.size(-1)))
        kept: tuple[Tensor, ...] = ()
        if saves and facts.saved and not self.recompute:
            kept = (input.new_empty((*leading, facts.saved * hidden_size)),)
        if saves and facts.has_cell_state:
            dtype = accumulate_dtype(input.dtype)
            kept += (input.new_empty((*leading, finals[1].size(-1)), dtype=dtype),)
        seen = (y, *finals) if self.is_layer else finals
        run = self._run if saves else self._run_unsaved
        if not _call(run, input, *others, *self._of_numbers, *seen, *kept):
            return None
        return seen, (y, *kept)

    def backward(
        self,
        grads: Sequence[Tensor | None],
        tensors: Sequence[Tensor],
        saved: Sequence[Tensor],
        needs: tuple[bool, ...],
        shared: SharedWeights | None,
    ) -> list[Tensor | None] | None:
        """The gradients of tensors that are needed, from those of what forward's caller saw; or
        None: take the op. Those of shared weights go to their sums."""
        weights = self._weights
        sums = None if shared is None else shared.sums()
        adds = bool(sums)
        fresh = needs
        if adds:
            fresh = (*needs[: weights.start], *(False,) * len(self.kinds), *needs[weights.stop :])
        gradients = [
            _empty(tensor) if need else None for tensor, need in zip(tensors, fresh, strict=True)
        ]
        if sums:
            gradients[weights] = sums
        run = self._run_backward.get((needs, adds)) or self._make_backward(needs, adds)
        if not self.is_layer:
            grads = (None, *grads)  # of y
        if self._facts.has_cell_state:
            grads = (*grads, None)  # of the cell states
        given = [grad for grad in grads if grad is not None]
        if not _hold_values(given):
            return None
        out = [gradient for gradient in gradients if gradient is not None]
        if not _call(run, *grads, *tensors, *self._of_numbers, *saved, *out):
            return None
        if sums is not None:
            sums[:] = gradients[weights]  # type: ignore[assignment]
            gradients[weights] = [None] * len(self.kinds)
        return gradients

    def _make_backward(self, needs: tuple[bool, ...], adds: bool) -> Callable[..., bool]:
        needed = tuple(name for name, need in zip(self.names, needs, strict=True) if need)
        options = self._options | _ADD * adds
        run = _backward_function(self.cell, options, self.names, needed)
        self._run_backward[needs, adds] = run
        return run


scan = functools.lru_cache(maxsize=1024)(Scan)  # numbers may be others in every call
