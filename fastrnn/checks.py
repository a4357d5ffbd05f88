"""Checks of arguments. An error has torch's type and starts with torch's words, then says more.

Every public entry (modules, cells, ``fastrnn.functional``) calls these functions, the short way of
fastrnn/eager.py where the op's own checks found an error.
"""

from __future__ import annotations

import numbers
import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.ops import DTYPES, CellFacts, ScanWeights
from fastrnn.torch_internals import asserts_later, values_are_known


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


LSTM_STATES = ("h_0", "c_0")


def check_states(
    name: str, hx: object, labels: Sequence[str], argument: str = "hx"
) -> tuple[Tensor, ...]:
    """An initial or reset state as a tuple of tensors; labels name its parts."""
    states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
    given = type(hx).__name__
    if isinstance(hx, (tuple, list)):
        given += f" of ({', '.join(type(state).__name__ for state in states)})"
    several, together = len(labels) > 1, f"({', '.join(labels)})"
    if several and (len(states) != len(labels) or not isinstance(hx, (tuple, list))):
        expects = f"the cell has {len(labels)} states"
        if labels == LSTM_STATES:
            expects = "lstm expects two hidden states"
        raise RuntimeError(f"{name}: {expects}, {argument} = {together}, got {given}")
    if not all(isinstance(state, Tensor) for state in states) or len(states) != len(labels):
        expected = f"a tuple {together} of tensors" if several else f"a tensor {labels[0]}"
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
    if len(states) > 1:
        both = "hx and cx" if argument == "hx" and len(states) == 2 else argument
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
    extras: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that states, weights and extra inputs have the input's device and dtype."""
    companions = [("hidden", state) for state in states]
    companions += [("reset_state", state) for state in reset_states]
    companions += [(f"extra[{key!r}]", extra) for key, extra in (extras or {}).items()]
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
                + (f"; call .to({input.dtype})" if kind.startswith("extra") else "")
            )


def check_state_shapes(
    states: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], argument: str
) -> None:
    for index, (state, shape) in enumerate(zip(states, shapes, strict=False)):
        shared = (shape[0], 1, shape[2])  # one state for all samples
        given = tuple(state.shape)
        if given != shape and given != shared:  # not by `in`, as of check_extra_shape
            label = f"{argument}[{index}]" if len(states) > 1 else argument
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


def check_extra(name: str, inputs: Sequence[str], extra: object) -> dict[str, Any]:
    """The inputs that a user's cell declares, by name and in the order it declares them."""
    given = {} if extra is None else extra
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name}: extra must be a dict of tensors by the names of the cell's inputs, "
            f"got {type(extra).__name__}"
        )
    if given.keys() != set(inputs):
        expected = ", ".join(f"{key!r}: tensor" for key in inputs)
        raise ValueError(
            f"{name}: the cell takes " + (f"extra={{{expected}}}" if inputs else "no extra inputs")
            + f", got {list(given) if extra is not None else None}"
        )  # fmt: skip
    for key, value in given.items():
        if not isinstance(value, (Tensor, PackedSequence)):
            raise TypeError(
                f"{name}: extra[{key!r}] must be a tensor or, beside a packed input, a "
                f"PackedSequence, got {type(value).__name__}"
            )
    return {key: given[key] for key in inputs}


def check_dense_extra(name: str, key: str, value: Any, forms: str) -> None:
    """Check that an extra input is a plain tensor; forms are the shapes accepted, in words."""
    if isinstance(value, PackedSequence) or value.is_nested:
        kind = "a PackedSequence" if isinstance(value, PackedSequence) else "a nested tensor"
        raise TypeError(f"{name}: extra[{key!r}] is {kind}, expected a tensor {forms}")


def check_extra_shape(
    name: str, key: str, given: Tensor, wide: Tensor, full: tuple[int, ...], forms: str
) -> None:
    """Check an extra input by what is expanded to its full shape."""
    # torch.compile takes a size and a symbol of its value for equal, but finds none by `in`.
    fits = wide.dim() == len(full) and all(
        size == 1 or size == expected for size, expected in zip(wide.shape, full, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: extra[{key!r}] has shape {list(given.shape)}, expected {forms}")


def check_same_rows(
    name: str, key: str, own: Sequence[Tensor | None], other: Sequence[Tensor | None]
) -> None:
    """Check that an extra input has its rows where the input has them."""
    for a, b in zip(own, other, strict=True):
        known = all(t is None or values_are_known(t) for t in (a, b))
        if a is not b and known and (a is None or b is None or not torch.equal(a, b)):
            raise ValueError(
                f"{name}: extra[{key!r}] has samples of other lengths, or in another order, than "
                "the input"
            )


def check_numbers(name: str, numbers_by_name: Mapping[str, object]) -> tuple[float, ...]:
    """The numbers of a user's cell, which may have been set since the last call."""
    for key, value in numbers_by_name.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{name}: {key} must be a number, got {type(value).__name__}")
    return tuple(map(float, numbers_by_name.values()))  # type: ignore[arg-type]


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
    if values_are_known(valid):
        if starts_again:
            raise ValueError(words)
    elif torch.compiler.is_compiling() or valid.device.type == "cuda":
        asserts_later(~starts_again, words)  # a GPU tells later, and is not waited for
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
    if values_are_known(lengths):
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


def check_vectors(
    name: str, vectors: Mapping[str, Tensor], hidden_size: int, index: int, directions: int
) -> None:
    """Check the vectors of an entry of a stack: side by side, they would take values of others."""
    for kind, vector in vectors.items():
        if vector.shape != (hidden_size,):
            raise RuntimeError(
                f"{name}: {kind}{_entry_label(index, directions)} has shape {list(vector.shape)}, "
                f"expected [{hidden_size}]"
            )


def _entry_label(index: int, directions: int) -> str:
    """The end of the names of an entry's weights."""
    layer, direction = divmod(index, directions)
    return f"_l{layer}" + ("_reverse" if direction else "")


def check_stack(name: str, facts: CellFacts, stack: Sequence[ScanWeights], directions: int) -> None:
    """Check the weights of a stack, one entry per layer and direction."""
    first = stack[0]
    if first.weight_ih.dim() != 2 or first.weight_hh.dim() != 2:
        raise RuntimeError(
            f"{name}: weight_ih_l0 and weight_hh_l0 must have 2 dimensions, got "
            f"{first.weight_ih.dim()} and {first.weight_hh.dim()}"
        )
    R = first.weight_hh.size(1)
    H = first.weight_ih.size(0) // facts.input_gates
    input_rows, recurrent_rows = facts.input_gates * H, facts.recurrent_gates * H
    for index, weights in enumerate(stack):
        label = _entry_label(index, directions)
        columns = first.weight_ih.size(1) if index < directions else R * directions
        shapes = {
            "weight_ih": (input_rows, columns),
            "weight_hh": (recurrent_rows, R),
            "bias_ih": (input_rows,),
            "bias_hh": (recurrent_rows,),
            "weight_hr": (R, H),
        }
        for field, shape in shapes.items():
            tensor = getattr(weights, field)
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
