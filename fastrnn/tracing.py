"""What torch.fx and torch.jit must be told of the layers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from fastrnn.torch_internals import without_jit_trace

__all__ = ["fx_leaf", "refuse_script", "scan_in_jit_trace", "untraced"]


# --- torch.fx -------------------------------------------------------------------------------------


def fx_leaf(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The node of a call that torch.fx traces, or None: this is no such call.

    A module of torch.nn is a leaf of a trace for where its class lies; ours becomes one here.
    Arguments that are None or False are the defaults, and left out.
    """
    if torch.compiler.is_compiling():
        return None
    proxy = next((v for v in _flatten([*args, *kwargs.values()]) if isinstance(v, fx.Proxy)), None)
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    if module is tracer.root:
        raise TypeError(
            f"torch.fx cannot look into {type(module).__name__}, which is a leaf of every trace: "
            "trace a model that contains it"
        )
    given = tuple(arg for arg in args if arg is not None)
    named = {name: v for name, v in kwargs.items() if v is not None and v is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, named)


def _flatten(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, (tuple, list)) else (value,)


# --- torch.jit ------------------------------------------------------------------------------------


def refuse_script(
    module: nn.Module, instead: str = "call fastrnn.decelerate(model) first, or use torch.jit.trace"
) -> NoReturn:
    raise RuntimeError(
        f"torch.jit.script cannot compile fastrnn's {type(module).__name__}: {instead}"
    )


def _scan(
    cell: str,
    tensors: list[Tensor],
    present: list[int],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    recompute: bool,
    all_states: bool,
    groups: int,
    rounds_to: str,
    numbers: list[float],
) -> list[Tensor]:
    # Whether gates are saved is asked when the graph runs, not when it is traced: so it serves
    # training and inference, and the check of a trace, without gradients, sees the same graph.
    return torch.ops.fastrnn.scan(
        cell, tensors, present, lengths, batch_sizes, offsets, reset, reverse,
        torch.is_grad_enabled(), recompute, all_states, groups, rounds_to, numbers,
    )  # fmt: skip


@functools.cache
def scan_in_jit_trace() -> Callable[..., list[Tensor]]:
    """The op `scan` without its argument `save`, for torch.jit.trace."""
    return torch.jit.script(_scan)


def untraced() -> contextlib.AbstractContextManager[None]:
    """Within it torch.jit.trace, which takes no op that returns no tensor, sees no op."""
    is_tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return without_jit_trace() if is_tracing else contextlib.nullcontext()
