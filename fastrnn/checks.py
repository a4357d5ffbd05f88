"""Checks of arguments. An error has torch's type and starts with torch's words, then says more.

Every public entry (modules, cells, ``fastrnn.functional``) calls these functions, the short way of
fastrnn/eager.py where the op's own checks found an error.
"""

from __future__ import annotations

import numbers
import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.ops import DTYPES, ScanWeights


def check_module_arguments(
    *,
    input_size: object,
    hidden_size: object,
    num_layers: object,
    bias: object,
    batch_first: object,
    bidirectional: object,
    dropout: object,
    proj_size: object,
    takes_projection: bool,
) -> None:
    """Check the constructor arguments of RNN, GRU and LSTM."""
    if (
        not isinstance(dropout, numbers.Number)
        or isinstance(dropout, bool)
        or not 0 <= dropout <= 1  # type: ignore[operator]
    ):
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed, got {dropout!r}"
        )
    check_bool("bias", bias)
    check_bool("batch_first", batch_first)
    check_bool("bidirectional", bidirectional)
    _check_positive("input_size", input_size)
    _check_positive("hidden_size", hidden_size)
    if not isinstance(num_layers, SupportsIndex) or operator.index(num_layers) <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers!r}")
    if proj_size and not takes_projection:
        raise ValueError(
            "proj_size argument is only supported for LSTM, not RNN or GRU, "
            f"got proj_size={proj_size!r}"
        )
    if not isinstance(proj_size, SupportsIndex) or operator.index(proj_size) < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections, "
            f"got {proj_size!r}"
        )
    if operator.index(proj_size) >= hidden_size:  # type: ignore[operator]
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got proj_size={proj_size} and "
            f"hidden_size={hidden_size}"
        )
    if dropout > 0 and num_layers == 1:  # type: ignore[operator]
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and num_layers=1",
            stacklevel=4,
        )


def check_cell_arguments(input_size: object, hidden_size: object) -> None:
    """Check the constructor arguments of RNNCell, GRUCell and LSTMCell: any type of integer."""
    for name, size, least in (("input_size", input_size, 0), ("hidden_size", hidden_size, 1)):
        if not isinstance(size, SupportsIndex):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if operator.index(size) < least:
            expected = "be greater than zero" if least else "not be negative"
            raise ValueError(f"{name} must {expected}, got {size}")


def check_nonlinearity(nonlinearity: object) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")


def check_bool(name: str, flag: object) -> None:
    if not isinstance(flag, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__} {flag!r}")


def _check_positive(name: str, size: object) -> None:
    if not isinstance(size, int):
        raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
    if size <= 0:
        raise ValueError(f"{name} must be greater than zero, got {size}")


def check_states(
    name: str, hx: object, has_cell_state: bool, argument: str = "hx"
) -> tuple[Tensor, ...]:
    """An initial or reset state as a tuple of tensors: (h_0,), or (h_0, c_0) for an LSTM."""
    states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
    given = type(hx).__name__
    if isinstance(hx, (tuple, list)):
        given += f" of ({', '.join(type(state).__name__ for state in states)})"
    if has_cell_state and (len(states) != 2 or not isinstance(hx, (tuple, list))):
        raise RuntimeError(
            f"{name}: lstm expects two hidden states, {argument} = (h_0, c_0), got {given}"
        )
    if not all(isinstance(state, Tensor) for state in states) or len(states) != 1 + has_cell_state:
        expected = "a tuple (h_0, c_0) of two tensors" if has_cell_state else "a tensor h_0"
        raise TypeError(f"{name}: {argument} must be {expected}, got {given}")
    return states


def check_input_rank(name: str, input: Tensor) -> None:
    if input.dim() not in (2, 3):
        kind = "D tensor" if name == "RNN" else "D"
        raise ValueError(
            f"{name}: Expected input to be 2D or 3D, got {input.dim()}{kind} instead; "
            f"input has shape {list(input.shape)}"
        )


def check_state_ranks(states: Sequence[Tensor], batched: bool, argument: str = "hx") -> None:
    """Check that states are 3-D for a batched input and 2-D for an unbatched one."""
    rank = 3 if batched else 2
    if all(state.dim() == rank for state in states):
        return
    kind = "batched 3-D" if batched else "unbatched 2-D"
    ranks = [f"{state.dim()}-D" for state in states]
    if len(states) == 2:
        both = "hx and cx" if argument == "hx" else argument
        raise RuntimeError(
            f"For {kind} input, {both} should also be {rank}-D but got ({', '.join(ranks)}) tensors"
        )
    raise RuntimeError(
        f"For {kind} input, {argument} should also be {rank}-D but got {ranks[0]} tensor"
    )


def check_dtype(input: Tensor, weight: Tensor) -> None:
    if input.dtype != weight.dtype:
        of_model = f", or convert model: model.to({input.dtype})" * (input.dtype in DTYPES)
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}){of_model}"
        )
    if input.dtype not in DTYPES:
        raise ValueError(
            f"fastrnn computes in {', '.join(map(str, DTYPES))}; input and weights have "
            f"dtype {input.dtype}"
        )


def check_input_size(input: Tensor, input_size: int) -> None:
    if input.size(-1) != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, "
            f"got {input.size(-1)}; input has shape {list(input.shape)}"
        )


def check_companions(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    reset_states: Sequence[Tensor] = (),
) -> None:
    """Check that states and weights have the input's device and dtype."""
    companions = [("hidden", state) for state in states]
    companions += [("reset_state", state) for state in reset_states]
    companions += [("parameter", weight) for weight in weights]
    for kind, tensor in companions:
        if tensor.device != input.device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, found input tensor at "
                f"{input.device} and {kind} tensor at {tensor.device}"
            )
        if tensor.dtype != input.dtype:
            raise RuntimeError(
                f"Input and {kind} tensors are not the same dtype, found input tensor with "
                f"{input.dtype} and {kind} tensor with {tensor.dtype}"
            )


def check_state_shapes(
    states: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]], argument: str
) -> None:
    for index, (state, shape) in enumerate(zip(states, shapes, strict=False)):
        shared = (shape[0], 1, shape[2])  # one state for all samples
        if tuple(state.shape) not in (shape, shared):
            label = f"{argument}[{index}]" if len(states) == 2 else argument
            raise RuntimeError(
                f"Expected {label} size {shape}, got {list(state.shape)}: "
                f"{'hx' if argument == 'hidden' else argument} is "
                "(num_layers * num_directions, batch, size), or batch 1 for all samples"
            )


def check_direction(reverse: object, bidirectional: bool) -> None:
    check_bool("reverse", reverse)
    if reverse and bidirectional:
        raise ValueError("reverse=True is for layers of one direction, got bidirectional=True, too")


def check_reset_state(reset: object, reset_state: object) -> None:
    if reset_state is not None and reset is None:
        raise ValueError(
            "reset_state= is what reset= replaces the state by, but reset is None; "
            "the initial state is hx"
        )


def check_reset(reset: object, input: Tensor, shape: tuple[int, ...], name: str) -> None:
    if not isinstance(reset, Tensor):
        raise TypeError(f"{name}: reset must be a bool tensor, got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"{name}: reset must be a bool tensor, got {reset.dtype}")
    if reset.device != input.device:
        raise RuntimeError(
            f"{name}: reset is on {reset.device}, expected input's device {input.device}"
        )
    if tuple(reset.shape) != shape:
        raise ValueError(
            f"{name}: reset must have shape {list(shape)}, a mark for each step of each sample, "
            f"got {list(reset.shape)}"
        )


def _values_are_known(tensor: Tensor) -> bool:
    """Whether a check may read a tensor's values.

    A traced or vmapped tensor has none, and reading from a GPU would wait for it.
    """
    if (
        torch.compiler.is_compiling()
        or isinstance(tensor, FakeTensor)
        or tensor.device.type != "cpu"
    ):
        return False
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):  # grad wraps what a vmap around it has batched
        tensor = functorch.get_unwrapped(tensor)
    return not functorch.is_batchedtensor(tensor)


def lengths_tensor(lengths: object) -> Tensor:
    """Lengths that came as a tensor, a list or an array."""
    if isinstance(lengths, Tensor):
        return lengths
    try:
        return torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "lengths must be a tensor, a list or an array of N integers, "
            f"got {type(lengths).__name__}"
        ) from error


def lengths_of_mask(
    name: str, mask: object, input: object, batch_first: bool, lengths: object
) -> Tensor:
    """The lengths (N,) of samples whose valid steps a mask marks, (T, N) or (N, T)."""
    if lengths is not None:
        raise ValueError(f"{name}: mask= and lengths= say the same: give one")
    if not isinstance(input, Tensor) or input.is_nested:
        raise ValueError(f"{name}: mask= goes with a padded input, got {type(input).__name__}")
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: mask must be a tensor, got {type(mask).__name__}")
    if mask.shape != input.shape[:-1]:
        raise ValueError(
            f"{name}: mask must have shape {list(input.shape[:-1])}, the input's without features, "
            f"got {list(mask.shape)}"
        )
    valid = mask != 0
    time = 1 if batch_first and input.dim() == 3 else 0
    starts_again = (valid.to(torch.int8).diff(dim=time) > 0).any()
    words = (
        f"{name}: mask marks a step after one that it leaves out; it can say lengths alone, the "
        "first steps of each sample: give lengths=, and reset= where an episode starts inside"
    )
    if _values_are_known(valid):
        if starts_again:
            raise ValueError(words)
    elif torch.compiler.is_compiling() or valid.device.type == "cuda":
        torch._assert_async(~starts_again, words)  # a GPU tells later, and is not waited for
    return valid.sum(dim=time)


def check_lengths(lengths: Tensor, input: Tensor, batched: bool) -> None:
    steps, batch = input.shape[:2]
    on_device = "" if input.device.type == "cpu" else f" or {input.device}"
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    known = lengths.device.type == "cpu" or lengths.device == input.device
    if lengths.dtype not in integers or not known:
        raise TypeError(
            f"lengths must be an integer tensor on cpu{on_device}, got {lengths.dtype} on "
            f"{lengths.device}"
        )
    if tuple(lengths.shape) != (batch,) and (batched or lengths.dim() > 0):
        raise ValueError(
            f"lengths must have shape ({batch},), one per sample, got {list(lengths.shape)}"
        )
    if _values_are_known(lengths):
        outside = ((lengths < 0) | (lengths > steps)).reshape(-1).nonzero()
        if outside.numel():
            n = int(outside[0])
            raise ValueError(
                f"lengths[{n}] is {int(lengths.reshape(-1)[n])}, "
                f"expected 0 <= length <= T = {steps}"
            )


def check_input_type(name: str, input: object, lengths: object) -> None:
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError(
                f"{name}: lengths= goes with a padded input; a PackedSequence carries its own"
            )
    elif not isinstance(input, Tensor):
        raise TypeError(
            f"{name}: input must be a Tensor or a PackedSequence, got {type(input).__name__}"
        )
    elif input.is_nested:
        if input.layout != torch.jagged:
            raise ValueError(
                f"{name}: input is a nested tensor of layout {input.layout}, expected "
                "torch.jagged, as torch.nested.nested_tensor(..., layout=torch.jagged) makes it"
            )
        if lengths is not None:
            raise ValueError(
                f"{name}: lengths= goes with a padded input; a nested tensor carries its own"
            )
        if input.dim() != 3 or input._ragged_idx != 1:  # type: ignore[attr-defined]
            raise ValueError(
                f"{name}: a nested input must be (N, *, input_size), its second dimension of any "
                f"length, got {list(input.shape)}"
            )
    else:
        _check_strided(name, input)


def _check_strided(name: str, input: Tensor) -> None:
    if input.layout != torch.strided:
        raise NotImplementedError(
            f"{name}: there is no kernel for an input of layout {input.layout}: give "
            "input.to_dense()"
        )


def weight_list(name: str, weights: object) -> list[Tensor]:
    """The weights given to a function, which must be tensors."""
    listed: list[Any] = list(weights) if isinstance(weights, Iterable) else [weights]
    if all(isinstance(weight, Tensor) for weight in listed):
        return listed
    given = type(weights).__name__
    if isinstance(weights, (tuple, list)):
        given += f" of ({', '.join(type(weight).__name__ for weight in listed)})"
    raise TypeError(
        f"{name}: weights must be a list of tensors in the order of list(layer.parameters()), "
        f"got {given}"
    )


def check_weight_count(name: str, given: int, each: int, num_layers: int, directions: int) -> None:
    expected = each * num_layers * directions
    if given != expected:
        raise RuntimeError(
            f"{name}: got {given} weights, expected {each} for each of num_layers * num_directions "
            f"= {num_layers * directions}"
        )


def check_stack(name: str, gates: int, stack: Sequence[ScanWeights], directions: int) -> None:
    """Check the weights of a stack, one entry per layer and direction."""
    first = stack[0]
    if first.weight_ih.dim() != 2 or first.weight_hh.dim() != 2:
        raise RuntimeError(
            f"{name}: weight_ih_l0 and weight_hh_l0 must have 2 dimensions, got "
            f"{first.weight_ih.dim()} and {first.weight_hh.dim()}"
        )
    rows, R = first.weight_hh.shape
    H = rows // gates
    for index, weights in enumerate(stack):
        layer, direction = divmod(index, directions)
        label = f"_l{layer}" + ("_reverse" if direction else "")
        columns = first.weight_ih.size(1) if layer == 0 else R * directions
        shapes = ((gates * H, columns), (gates * H, R), (gates * H,), (gates * H,), (R, H))
        for field, tensor, shape in zip(weights._fields, weights, shapes, strict=True):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise RuntimeError(
                    f"{name}: {field}{label} has shape {list(tensor.shape)}, expected {list(shape)}"
                )
        if weights.weight_hr is None and R != H:
            raise RuntimeError(
                f"{name}: weight_hh{label} has {R} columns, expected hidden_size = {H}"
            )


def check_cell_input_type(name: str, input: object) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a Tensor, got {type(input).__name__}")
    _check_strided(name, input)


def check_cell_dtype(input: Tensor, weight: Tensor) -> None:
    """Check dtypes for a cell: torch.nn's cells raise another error than its layers."""
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {input.dtype} (input) and "
            f"{weight.dtype} (weights)"
        )
    check_dtype(input, weight)


def check_cell_input(
    name: str,
    input: Tensor,
    states: Sequence[Tensor],
    sizes: tuple[int, int],
    labels: Sequence[str],
) -> None:
    """Check the input and states of a cell; sizes are (input_size, hidden_size)."""
    input_size, hidden_size = sizes
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for state, label in zip(states, labels, strict=False):
        if state.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {label} to be 1D or 2D, got {state.dim()}D instead")
    if input.size(-1) != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {input_size}"
        )
    for index, state in enumerate(states):
        if state.size(-1) != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.size(-1)}, "
                f"expected {hidden_size}"
            )
        if state.shape[:-1] != input.shape[:-1]:
            batches = [tensor.size(0) if tensor.dim() == 2 else 1 for tensor in (input, state)]
            raise RuntimeError(
                f"Input batch size {batches[0]} doesn't match hidden{index} batch size "
                f"{batches[1]}: input has shape {list(input.shape)}, hidden{index} "
                f"{list(state.shape)}"
            )
