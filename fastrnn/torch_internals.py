"""Modules and functions that this package takes of torch and that torch may change without a word.

tests/project/test_torch_internals.py sees to it that no other file does; private attributes of
torch's objects are left to those who have the objects. A torch that has changed one of these names
fails with it at ``import fastrnn``, or where it is first used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = [
    "TorchDispatchMode",
    "TransformType",
    "allow_in_compile",
    "asserts_later",
    "below_autograd",
    "constant_in_compile",
    "current_transform",
    "engine_will_execute",
    "in_forward_mode",
    "in_old_batches",
    "increment_version",
    "inject_parametrizations",
    "is_eager",
    "is_jit_traced",
    "is_observed",
    "is_old_batch",
    "is_profiled",
    "is_transformed",
    "op_argument_names",
    "op_has_kernel",
    "rounds_to_bfloat16",
    "run_of_engine",
    "torch_compiler",
    "transforms",
    "values_are_known",
    "without_jit_trace",
    "without_modes",
]

Function = TypeVar("Function", bound=Callable[..., Any])

# --- who looks at a call --------------------------------------------------------------------------

#: The innermost torch.func transform around a call, or None.
current_transform = torch._C._functorch.peek_interpreter_stack
#: Whether a profiler wants to see ops.
is_profiled = torch._C._autograd._profiler_enabled

_is_compiling = torch.compiler.is_compiling
_tracing_state = torch._C._get_tracing_state
_count_dispatch_modes = torch._C._len_torch_dispatch_stack
_count_function_modes = torch._C._len_torch_function_stack


def in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def is_jit_traced() -> bool:
    return _tracing_state() is not None


def is_transformed() -> bool:
    """Whether torch.jit, a transform or forward mode looks at this call."""
    return (
        _tracing_state() is not None
        or current_transform() is not None
        or forward_ad._current_level >= 0
    )


def is_observed() -> bool:
    """Whether a tracer, transform or mode looks at this call.

    It asks what :func:`is_transformed` asks, less the 0.1 µs of a call.
    """
    return bool(
        _is_compiling()
        or _tracing_state() is not None
        or current_transform() is not None
        or forward_ad._current_level >= 0
        or _count_dispatch_modes()
        or _count_function_modes()
    )


def is_eager() -> bool:
    """Whether nothing looks at this call, and autocast does not change its tensors."""
    return not (is_observed() or torch.is_autocast_enabled("cpu"))


def transforms() -> list[Any]:
    """The TransformType of each torch.func transform around this call, outermost first."""
    return [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]


def without_modes() -> contextlib.AbstractContextManager[Any]:
    """Within it no mode of torch's dispatcher sees an op. To leave no mode would take 30 µs."""
    modes = _count_dispatch_modes() or torch._ops._len_torch_dispatch_stack_pre_dispatch()
    return _disable_current_modes() if modes else contextlib.nullcontext()


@contextlib.contextmanager
def without_jit_trace() -> Iterator[None]:
    """Within it torch.jit.trace sees no op."""
    trace, set_trace = torch._C._get_tracing_state(), torch._C._set_tracing_state  # type: ignore[attr-defined]
    set_trace(None)
    try:
        yield
    finally:
        set_trace(trace)


# --- tensors --------------------------------------------------------------------------------------

#: torch.autograd.graph's function of that name, less 0.1 µs.
increment_version = torch._C._increment_version


def values_are_known(tensor: Tensor) -> bool:
    """Whether a check may read a tensor's values.

    A traced or vmapped tensor has none, and reading from a GPU would wait for it.
    """
    if _is_compiling() or isinstance(tensor, FakeTensor) or tensor.device.type != "cpu":
        return False
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):  # grad wraps what a vmap around it has batched
        tensor = functorch.get_unwrapped(tensor)
    return not functorch.is_batchedtensor(tensor)


def asserts_later(condition: Tensor, words: str) -> None:
    """Let a condition be found false when its value is there: by a GPU, or in a compiled graph."""
    torch._assert_async(condition, words)


# --- autograd -------------------------------------------------------------------------------------

#: Whether the run of autograd's engine that asks will come to a node.
engine_will_execute = torch._C._will_engine_execute_node
#: A number for the engine's run that asks, -1 outside one.
run_of_engine = torch._C._current_graph_task_id


def below_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """Call an op whose gradient is not the op's affair: the way through its own formulas takes as
    long as a short scan."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def is_old_batch(tensor: Tensor | None) -> bool:
    """Whether ``torch.autograd.grad(is_grads_batched=True)`` made a batch, in a form of its own."""
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


def in_old_batches(
    function: Callable[..., dict[int, Tensor]], batched: Sequence[Tensor]
) -> dict[int, Tensor]:
    """What a function gives for such batches, which come to it as torch.func's."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # The size, the third argument, is for tensors without this batch.
    entries = [torch._remove_batch_dim(tensor, level, 0, 0) for tensor in batched]
    results = torch.func.vmap(function)(*entries)
    return {key: torch._add_batch_dim(result, 0, level) for key, result in results.items()}


# --- ops ------------------------------------------------------------------------------------------


def op_has_kernel(op: str, key: str) -> bool:
    """Whether an op has a kernel of its own for a key of torch's dispatcher."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)


def op_argument_names(op: Any) -> list[str]:
    return [argument.name for argument in op._schema.arguments]


# --- modules --------------------------------------------------------------------------------------


def inject_parametrizations(module: nn.Module, names: Iterable[str]) -> None:
    """Give a module, whose class was changed, the class and properties that parametrized it."""
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)


# --- torch.compile --------------------------------------------------------------------------------


def constant_in_compile(function: Function) -> Function:
    """torch.compile calls such a function while it traces, and takes what it returns as it is."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_compile
def rounds_to_bfloat16() -> bool:
    """Whether products of float32 may round their factors in recurrent layers on a CPU.

    It is what torch.backends.mkldnn.rnn.fp32_precision tells in eight times as long.
    """
    return torch._C._get_fp32_precision_getter("mkldnn", "rnn") == "bf16"


def torch_compiler() -> str | None:
    """The C++ compiler that torch.compile takes, installing it if it is told to; None without."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return None


def allow_in_compile(kind: type[nn.Module]) -> None:
    """Let torch.compile take modules of a class that torch.nn's recurrent layers are a base of.

    It refuses all of those, unless ``torch._dynamo.config.allow_rnn`` is set; which stays as it is
    for torch.nn's own, as torch cannot train them compiled. torch.compile is not loaded for this,
    which takes longer than to load torch.
    """

    def patch(builder: Any) -> None:
        # Another torch may lack the name; every optimizer loads this module, and must go on.
        wrap = getattr(getattr(builder, "VariableBuilder", None), "wrap_module", None)
        if wrap is None:
            return

        @functools.wraps(wrap)
        def wrap_module(self: Any, value: nn.Module) -> Any:
            if not isinstance(value, kind):
                return wrap(self, value)
            with torch._dynamo.config.patch(allow_rnn=True):
                return wrap(self, value)

        builder.VariableBuilder.wrap_module = wrap_module

    name = "torch._dynamo.variables.builder"
    if name in sys.modules:
        patch(sys.modules[name])
    else:
        sys.meta_path.insert(0, _WhenLoaded(name, patch))


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Calls a function with a module once somebody loads that."""

    def __init__(self, name: str, call: Callable[[types.ModuleType], None]) -> None:
        self.name, self.call = name, call

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_call(module: types.ModuleType) -> None:
                load(module)
                self.call(module)

            spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec
