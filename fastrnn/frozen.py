"""Inference copies of recurrent modules whose weights are packed once.

A call of an ordinary module packs its weights anew, for they may have changed; of a single step
that is most of the work. A frozen module keeps them as the kernels read them, if asked in a shorter
type, and beside them as torch has them: for its state dict, and for graphs that are recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from fastrnn import direct, eager, modules
from fastrnn.accelerate import (
    OURS,
    SUBCLASS,
    Report,
    accelerate,
    in_eval_mode,
    odd_instance,
    unparametrized_class,
    unregistered,
)
from fastrnn.layers import is_recorded
from fastrnn.library import CELLS, cpu_instruction_set
from fastrnn.modules import all_weight_names
from fastrnn.recurrent import UserCellModule
from fastrnn.torch_internals import (
    constant_in_compile,
    current_transform,
    in_forward_mode,
    is_eager,
)

__all__ = ["freeze", "refresh"]

WEIGHT_TYPES = ("float32", "bfloat16", "int8")
_ADVICE = "change the original, then call refresh(original) or freeze it anew"
_version = attrgetter("_version")
_OPTIONS = ("nonlinearity", "batch_first", "reverse")  # that no weight's shape tells


def freeze(
    model: nn.Module, weights: str | None = None, *, report: Report | None = None
) -> nn.Module:
    """An inference copy of a model whose recurrent modules have their weights packed once.

    Each RNN, GRU, LSTM and cell of fastrnn or torch.nn inside the copy is frozen; all else is a
    deep copy in eval mode without gradients. The copy is a snapshot: later changes of the original
    are not seen until :func:`refresh`. Calls have the signature, the results and, in the weights'
    own type, the bits of fastrnn's modules; parametrizations are evaluated once.

    A frozen module takes no part in training: an input that requires grad (where gradients are
    enabled), vmap, jvp, ``train()``, ``load_state_dict`` and moves to another type or device raise;
    so does a call after its weights were assigned, changed in place or replaced by functional_call.
    In a model, such a move or load has by then changed the modules before the frozen one.
    Its state dict, its pickle and what torch.export and torch.jit make of it have the ordinary
    weights, which are packed again when they are loaded; torch.compile calls the packed ones. Under
    autocast it keeps its type.

    Args:
        model: a recurrent module, or a model that contains some; it is not changed.
        weights: the type that products read weights in, of float32 modules. ``bfloat16`` rounds
            them. ``int8`` keeps for each row of a matrix (a gate's unit) a scale, the row's largest
            magnitude divided by 127, and rounds to its multiples; biases stay float32.
            Products with int8 round each sample's activations to 8 bits and sum integers; all
            else is float32. A module of another dtype is left where a type is named, but its own;
            None is each module's own.
        report: filled with what was frozen and what was left, with reasons; print it.

    Returns:
        The copy. A frozen module has a method ``refresh(original)``.

    Raises:
        ValueError: nothing in the model can be frozen; an unknown type; weights that are not finite
            as int8.

    Example::

        >>> actor = fastrnn.freeze(policy)
        >>> action, state = actor(observation, state)
        >>> fastrnn.refresh(actor, policy)  # after a step of the optimizer
    """
    if weights is not None and weights not in WEIGHT_TYPES:
        raise ValueError(f"freeze: weights must be one of {WEIGHT_TYPES} or None, got {weights!r}")
    report = Report() if report is None else report
    swapped = Report()
    with torch.inference_mode(False):  # whose tensors could not be refreshed outside
        copied = copy.deepcopy(model).eval()
        model = accelerate(copied, keep_type=False, cells=True, report=swapped)
        _freeze_inside(model.requires_grad_(False), weights, report)
    report.left.update(swapped.left)
    if not report.replaced:
        raise ValueError(f"freeze: nothing was frozen\n{report}")
    return model


def _freeze_inside(model: nn.Module, weights: str | None, report: Report) -> None:
    report.left.update(unregistered(model, OURS))
    reasons: dict[nn.Module, str | None] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, OURS):
            continue
        if module not in reasons:
            reasons[module] = _freeze_in_place(module, weights)
        reason = reasons[module]
        if reason is None:
            report.replaced[name] = f"fastrnn.frozen.{type(module).__name__}"
        else:
            report.left[name] = f"{type(module).__qualname__}: {reason}"


def refresh(frozen: nn.Module, original: nn.Module) -> None:
    """Give a frozen model the present weights of the model it was made of, packed anew, in place.

    Parameters and buffers outside the recurrent modules are copied, too. All is checked before
    anything changes. No other thread may run the frozen model meanwhile. After ``share_memory()``,
    processes that were forked see the new weights; one that was spawned packs for itself, and must
    call this itself.

    Args:
        frozen: what :func:`freeze` returned.
        original: a model of the same structure, of torch.nn's recurrent modules or fastrnn's.

    Raises:
        TypeError, ValueError: a module, parameter or buffer is missing there, or has another shape;
            a recurrent module has other options; weights that are not finite as int8.
    """
    inside: set[str] = set()
    layers: list[tuple[Frozen, dict[str, Tensor]]] = []
    for name, module in frozen.named_modules():
        if isinstance(module, Frozen):
            part = _part(nn.Module.get_submodule, original, name)
            layers.append((module, module._weights_of(part)))
            inside |= {f"{name}.{own}" if name else own for own in all_weight_names(module)}
    if not layers:
        raise TypeError(f"refresh: {type(frozen).__name__} contains no frozen module")
    others: list[tuple[Tensor, Tensor]] = []
    for name, tensor in _tensors(frozen):
        if name not in inside:
            value = _part(_tensor, original, name)
            _check_shape(name, value, tensor)
            others.append((tensor, value))
    with torch.no_grad():
        for tensor, value in others:
            tensor.copy_(value)
    for module, weights in layers:
        module._take(weights)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, own = name.rpartition(".")
    return getattr(model.get_submodule(owner), own)


def _part(get: Callable[[nn.Module, str], Any], original: nn.Module, name: str) -> Any:
    try:
        return get(original, name)
    except AttributeError as error:
        raise TypeError(f"refresh: the original has no {name}") from error


def _check_shape(name: str, value: Tensor | None, own: Tensor | None) -> None:
    shape, expected = [None if each is None else tuple(each.shape) for each in (value, own)]
    if shape != expected:
        raise ValueError(f"refresh: {name} has shape {shape}, expected {expected}")


def _freeze_in_place(module: nn.Module, weights: str | None) -> str | None:
    """Freeze one of fastrnn's modules; or else why it cannot be."""
    if isinstance(module, Frozen):
        return f"it is frozen; {_ADVICE}"
    if isinstance(module, UserCellModule):
        return "a user's cell, whose weights cannot be packed yet: call it under torch.no_grad()"
    frozen = _FROZEN.get(unparametrized_class(module))
    if frozen is None:
        return SUBCLASS
    odd = odd_instance(module, {"forward"}, set())
    if odd:
        return odd
    if module._forward_pre_hooks:
        return "it has forward pre-hooks, which may compute its weights"
    names = all_weight_names(module)
    with torch.no_grad(), in_eval_mode(module):
        values = [getattr(module, name) for name in names]
    first = values[0]
    if first.device.type != "cpu":
        return f"it is on device '{first.device}', and weights are packed for the CPU alone"
    own = str(first.dtype).removeprefix("torch.")
    if weights not in (None, own) and first.dtype != torch.float32:
        return f"its dtype is {own}, and weights={weights!r} is for float32; None keeps {own}"
    # A parametrized class is shared with the original: parametrize's own way back would change it.
    module._modules.pop("parametrizations", None)
    module._parameters.clear()
    module.__class__ = frozen
    for name, value in zip(names, values, strict=True):
        module.register_buffer(name, None if value is None else value.detach())
    module._has_cell_state = CELLS[module._cell].has_cell_state  # type: ignore[assignment, index]
    module._weight_type = "" if weights in (None, own) else weights  # type: ignore[assignment]
    module._pack()  # type: ignore[operator]
    return None


class Frozen(nn.Module):
    """What all frozen modules share: weights as buffers, and a copy of them as kernels read it."""

    _weight_type: str  # of the packed ones; empty: the module's own
    _has_cell_state: bool
    # What was packed last; no buffer, for torch.export would write it into its file.
    _packed: Tensor
    _packed_for: str  # an instruction set
    _packed_from: tuple[Tensor, ...]
    _packed_versions: list[int]  # autograd's, of these

    def _pack(self: Any) -> None:
        weights = self._weights()
        device = weights[0].device
        if device.type != "cpu":
            raise RuntimeError(
                f"{type(self).__name__} packs its weights for the CPU, and they are on device "
                f"'{device}': load it with map_location='cpu'"
            )
        if self._weight_type == "int8":
            _check_finite(weights)
        with torch.inference_mode(False):
            packed = torch.ops.fastrnn.prepack(*self._pack_arguments(), self._weight_type)
        packed.weight_type = self._weight_type or str(weights[0].dtype).removeprefix("torch.")
        before = self.__dict__.get("_packed")
        if before is not None and before.shape == packed.shape:
            before.copy_(packed)  # a process that was forked after share_memory() reads it, too
        else:
            self._packed = packed
        own = {name: self._buffers[name] for name in all_weight_names(self)}
        self._buffers = {**own, **self._buffers}  # first, in the order of _packed_from
        self._packed_for = cpu_instruction_set()
        self._packed_from = tuple(weights)
        self._packed_versions = [weight._version for weight in weights]

    def _is_current(self, has_versions: bool = True) -> bool:
        """Whether the weights are the tensors that were packed and, where tensors have versions,
        unchanged since."""
        return (
            all(map(is_, self._packed_from, self._buffers.values()))
            and not self._parameters
            and (not has_versions or self._packed_versions == [*map(_version, self._packed_from)])
        )

    def _packed_weights(self, *inputs: Any, all_states: bool = False) -> Tensor:
        name = type(self).__name__
        if all_states and self._weight_type:
            raise NotImplementedError(
                f"{name}: return_all_states with weights={self._weight_type!r}; "
                "freeze in the weights' own type"
            )
        refuse_derivatives(name, *inputs)
        if is_recorded():
            return self._packed
        is_eager = not torch.compiler.is_compiling()
        if not self._is_current(has_versions=is_eager):
            raise RuntimeError(
                f"{name} is a snapshot, and its weights were replaced or changed (by assignment, "
                f"functional_call or in place): {_ADVICE}"
            )
        if is_eager and self._packed_for != cpu_instruction_set():
            self._pack()
        return self._packed

    def refresh(self, original: nn.Module) -> Frozen:
        """Take the present weights of a module like the one this was made of, and pack them.

        Args:
            original: torch.nn's or fastrnn's, of the same sizes; parametrizations are evaluated, as
                in eval mode. Its type and device may be others.

        Returns:
            This module, which is as before if an error is raised.

        Raises:
            TypeError, ValueError: it is another kind of module, or has other options or shapes;
                weights that are not finite as int8.
        """
        self._take(self._weights_of(original))
        return self

    def _weights_of(self, original: nn.Module) -> dict[str, Tensor]:
        """The weights of a module for this one, by name, which is checked to be like it."""
        kind = _UNFROZEN[type(self)].__name__
        kinds = (getattr(modules, kind), getattr(nn, kind))
        options = [
            [getattr(each, option, False) for option in _OPTIONS] for each in (self, original)
        ]
        if not isinstance(original, kinds) or options[0] != options[1]:
            raise TypeError(f"refresh: the original must be a {kind} like {self}, got {original}")
        names = all_weight_names(self)
        with torch.no_grad(), in_eval_mode(original):
            weights = {name: getattr(original, name, None) for name in names}
        own = dict(zip(names, self._packed_from, strict=False))  # biases, which come last, may lack
        for name, weight in weights.items():
            _check_shape(name, weight, own.get(name))
        count = len(all_weight_names(original))
        if count != len(names):
            raise ValueError(f"refresh: the original has {count} weights, expected {len(names)}")
        present = {name: weight for name, weight in weights.items() if weight is not None}
        if self._weight_type == "int8":
            _check_finite(weight.to(own[name].dtype) for name, weight in present.items())
        return present

    def _take(self, weights: dict[str, Tensor]) -> None:
        own = dict(zip(weights, self._packed_from, strict=True))
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)
        self._parameters.clear()  # where an assignment may have put some
        self._buffers.update(own)
        self._pack()

    @property
    def training(self) -> bool:
        """False, whatever the ``train()`` of a model around this one does."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        if mode:
            name = type(self).__name__
            raise RuntimeError(f"{name} is for inference: train the original, then refresh")

    def reset_parameters(self) -> None:
        """Raise."""
        raise RuntimeError(f"{type(self).__name__} is a snapshot: {_ADVICE}")

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", weights={self._weight_type}" * bool(self._weight_type))

    def _apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        probe = self._weights()[0].new_empty(0)
        after = fn(probe)
        if (after.dtype, after.device) != (probe.dtype, probe.device):
            raise RuntimeError(
                f"{type(self).__name__} keeps its type and device: convert or move the original, "
                "and freeze that"
            )
        self._packed = fn(self._packed)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"{type(self).__name__} is a snapshot: load into the original, then call "
            "refresh(original) or freeze it anew"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_packed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with torch.inference_mode(False):  # whose tensors have no versions
            for name, own in self._buffers.items():
                if own is not None and own.is_inference():
                    self._buffers[name] = own.clone()
        self._pack()


def refuse_derivatives(name: str, *values: Any) -> None:
    """Raise rather than lose a gradient, a tangent or a batch of vmap's."""
    tensors = list(_flatten(values))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            f"{name} has no gradients, and an input requires grad: detach it, call under "
            "torch.no_grad(), or use the original"
        )
    if _in_transform():
        raise NotImplementedError(f"{name} has no vmap, grad or jvp: use the original")
    if not _in_forward_mode():
        return
    for tensor in tensors:
        # torch.compile sees no tangents, and would answer for a function of its own.
        if torch.compiler.is_compiling() or forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name} has no tangents: use the original")


# torch.compile asks these as it traces, when it has entered the transforms of what it traces.
@constant_in_compile
def _in_transform() -> bool:
    return current_transform() is not None


@constant_in_compile
def _in_forward_mode() -> bool:
    return in_forward_mode()


def _check_finite(weights: Iterable[Tensor]) -> None:
    if not all(weight.isfinite().all() for weight in weights):
        raise ValueError("fastrnn: int8 cannot hold weights that are not finite")


def _flatten(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _flatten(each)


class _FrozenLayers(Frozen):
    """A frozen RNN, GRU or LSTM."""

    def _pack_arguments(self: Any) -> tuple[Any, ...]:
        return self._cell, self._weights(), self.num_layers, 1 + self.bidirectional

    def _pack(self: Any) -> None:
        super()._pack()
        options = (self._cell, self.hidden_size, 1, True, self.batch_first, self.reverse)
        self._packed_direct = direct.short(*options) if self._is_single else None

    def _run_eagerly(self: Any, input: Any, hx: Any, reset: Any, extra: Any) -> Any:
        if not (is_eager() and self._is_current()):
            return None
        short = self._packed_direct
        if reset is None and short and short.order == (self.batch_first, self.reverse):
            results = short(input, hx, (self._packed,))
            if results is not None:
                return results
        return eager.run_packed_layers(
            self._packed, input, hx, reset, self._has_cell_state, self.batch_first, self.reverse
        )


class _FrozenCell(Frozen):
    """A frozen cell."""

    def _pack_arguments(self: Any) -> tuple[Any, ...]:
        return self._cell, self._weights(), 1, 1

    def _step_eagerly(self: Any, input: Any, hx: Any) -> Any:
        if not self._is_current():
            return None
        short = direct.short(self._cell, self.hidden_size, 1, False)
        results = short(input, hx, (self._packed,))
        if results is not None:
            return results
        states = eager.plain_states(hx, self._has_cell_state)
        if states is None:
            return None
        finals = eager.run_packed_cell(self._packed, input, states)
        return finals and modules.as_hx(finals[: 1 + self._has_cell_state])


class FrozenRNN(_FrozenLayers, modules.RNN):
    """:class:`fastrnn.RNN` with packed weights; :func:`fastrnn.freeze` makes it."""


class FrozenGRU(_FrozenLayers, modules.GRU):
    """:class:`fastrnn.GRU` with packed weights; :func:`fastrnn.freeze` makes it."""


class FrozenLSTM(_FrozenLayers, modules.LSTM):
    """:class:`fastrnn.LSTM` with packed weights; :func:`fastrnn.freeze` makes it."""


class FrozenRNNCell(_FrozenCell, modules.RNNCell):
    """:class:`fastrnn.RNNCell` with packed weights; :func:`fastrnn.freeze` makes it."""


class FrozenGRUCell(_FrozenCell, modules.GRUCell):
    """:class:`fastrnn.GRUCell` with packed weights; :func:`fastrnn.freeze` makes it."""


class FrozenLSTMCell(_FrozenCell, modules.LSTMCell):
    """:class:`fastrnn.LSTMCell` with packed weights; :func:`fastrnn.freeze` makes it."""


_FROZEN: dict[type[nn.Module], type[Frozen]] = {
    modules.RNN: FrozenRNN,
    modules.GRU: FrozenGRU,
    modules.LSTM: FrozenLSTM,
    modules.RNNCell: FrozenRNNCell,
    modules.GRUCell: FrozenGRUCell,
    modules.LSTMCell: FrozenLSTMCell,
}
_UNFROZEN = {frozen: kind for kind, frozen in _FROZEN.items()}
