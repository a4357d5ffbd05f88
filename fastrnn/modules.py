"""RNN, GRU, LSTM and their cells: torch.nn's signatures, parameter names and initial values.

They are not subclasses of torch.nn's modules, which ``torch.compile`` refuses by their class.
fastrnn/dropin.py has such, and tells it so, which :func:`fastrnn.accelerate` gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, direct, eager, functional, library, ops, tracing
from fastrnn.layers import is_recorded
from fastrnn.ops import FlatWeights, ScanWeights
from fastrnn.torch_internals import is_eager

Lengths: TypeAlias = Tensor | Sequence[int]
Sequences = TypeVar("Sequences", Tensor, PackedSequence)

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


def _reset_uniform(module: nn.Module, hidden_size: int) -> None:
    """Fill parameters in order with U(-1/sqrt(H), 1/sqrt(H)): torch.nn's values from one seed."""
    bound = 1.0 / math.sqrt(hidden_size)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)


# Names by what decides them: to write them out takes longer than a step.
_FLAT_NAMES: dict[tuple[Any, ...], list[str]] = {}


def weight_names(module: Any) -> list[list[str]]:
    """Parameter names of a module, one list per layer and direction, in torch's order."""
    kinds = weight_kinds(module)
    suffixes = ["", "_reverse"] if module.bidirectional else [""]
    return [
        [f"{kind}_l{layer}{suffix}" for kind in kinds]
        for layer in range(module.num_layers)
        for suffix in suffixes
    ]


def weight_kinds(module: Any) -> list[str]:
    return library.weight_kinds(
        bool(module.bias),
        getattr(module, "proj_size", 0) > 0,
        recurrent=getattr(module, "_recurrent", True),
        vectors=getattr(module, "_vectors", ()),
    )


def flat_weight_names(module: Any) -> list[str]:
    return [name for names in weight_names(module) for name in names]


def all_weight_names(module: Any) -> list[str]:
    """Names of the weights of a layer or a cell, fastrnn's or torch.nn's."""
    if isinstance(module, (RecurrentModule, nn.RNNBase)):
        return flat_weight_names(module)
    return library.weight_kinds(bias=True, projection=False)


def _weight_shapes(
    facts: ops.CellFacts, input_size: int, hidden_size: int, output_size: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's weights by their kinds; those of a user's vectors are not here."""
    input_rows, recurrent_rows = (
        gates * hidden_size for gates in (facts.input_gates, facts.recurrent_gates)
    )
    return {
        "weight_ih": (input_rows, input_size),
        "weight_hh": (recurrent_rows, output_size),
        "bias_ih": (input_rows,),
        "bias_hh": (recurrent_rows,),
        "weight_hr": (output_size, hidden_size),
    }


def trains(weights: Sequence[Tensor]) -> bool:
    """Whether a call needs gradients of a module's weights."""
    return torch.is_grad_enabled() and weights[0].requires_grad


def as_hx(states: Sequence[Tensor] | None) -> Tensor | tuple[Tensor, ...] | None:
    """States as modules take and return them: one alone, several in a tuple, None of none."""
    if not states:
        return None
    return states[0] if len(states) == 1 else tuple(states)


class RecurrentModule(nn.Module):
    """The base of RNN, GRU and LSTM: arguments, parameters and their names."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    # These are on the class because an accelerated module's instance lacks them.
    recompute: bool = False
    reverse: bool = False
    # What a user's cell has that others have not.
    _recurrent: bool = True  # whether there is a product of h
    _vectors: tuple[str, ...] = ()

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Any,
        dtype: torch.dtype | None,
        recompute: bool,
        reverse: bool,
    ) -> None:
        nn.Module.__init__(self)  # the next class may be torch.nn's, which makes its own weights
        checks.check_module_arguments(
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dropout=dropout,
            proj_size=proj_size,
            takes_projection=mode in ("LSTM", "Recurrent"),
        )
        checks.check_direction(reverse, bidirectional)
        checks.check_bool("recompute", recompute)
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = int(num_layers)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = int(proj_size)
        self.recompute = recompute
        self.reverse = reverse

        facts, kinds = ops.CELLS[self._cell], weight_kinds(self)
        output_size = self.proj_size or hidden_size
        columns = input_size
        for names in weight_names(self):
            direction = "_reverse" in names[0]
            shapes = _weight_shapes(facts, columns, hidden_size, output_size)
            for kind, name in zip(kinds, names, strict=True):
                shape = shapes.get(kind, (hidden_size,))
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            if direction or not bidirectional:
                columns = output_size * (1 + bidirectional)
        self.reset_parameters()

    @property
    def _cell(self) -> str:
        return self.mode.lower()

    @property
    def _is_single(self) -> bool:
        """Whether this is one layer in one direction, without a projection."""
        return self.num_layers == 1 and not (self.bidirectional or self.proj_size)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights, one list per layer and direction."""
        return [[getattr(self, name) for name in names] for names in weight_names(self)]

    # Names that code written for torch.nn's modules reads and calls; the forward does not.
    __constants__ = nn.RNNBase.__constants__
    check_input = nn.RNNBase.check_input
    check_hidden_size = nn.RNNBase.check_hidden_size
    check_forward_args = nn.RNNBase.check_forward_args
    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size
    permute_hidden = nn.RNNBase.permute_hidden

    @property
    def _all_weights(self) -> list[list[str]]:
        return weight_names(self)

    @property
    def _flat_weights_names(self) -> list[str]:
        return flat_weight_names(self)

    @property
    def _flat_weights(self) -> tuple[Tensor, ...]:
        # In torch.nn's list an entry may be set, and counts. Here that raises.
        return tuple(self._weights())

    def _weights(self) -> list[Tensor]:
        # This is a method because a property would report a missing weight as itself missing.
        parameters = self._parameters
        if torch.compiler.is_compiling():
            names = flat_weight_names(self)
        else:
            key = (
                self.bias, self.proj_size > 0, self.bidirectional, self.num_layers,
                self._recurrent, self._vectors,
            )  # fmt: skip
            names = _FLAT_NAMES.get(key) or _FLAT_NAMES.setdefault(key, flat_weight_names(self))
        return [parameters[n] if n in parameters else getattr(self, n) for n in names]  # type: ignore[misc]

    def _run(
        self,
        input: Any,
        hx: Any,
        lengths: Lengths | None,
        mask: Tensor | None,
        reset: Tensor | None,
        reset_state: Any,
        return_all_states: bool,
        extra: Mapping[str, Any] | None = None,
    ) -> Any:
        """The results of a call: those of the short way if it may be taken."""
        is_plain = lengths is None and mask is None and reset_state is None
        if is_plain and not return_all_states:
            results = self._run_eagerly(input, hx, reset, extra)
            if results is not None:
                return results
        options = {
            "lengths": lengths,
            "mask": mask,
            "reset": reset,
            "reset_state": reset_state,
            "return_all_states": return_all_states,
            "extra": extra,
        }
        leaf = tracing.fx_leaf(self, (input, hx), options)
        if leaf is not None:
            return leaf
        name = self.mode.partition("_")[0]
        if mask is not None:
            lengths = checks.lengths_of_mask(name, mask, input, self.batch_first, lengths)
        return functional.run(
            name,
            self._cell,
            input,
            hx,
            self._weights(),
            num_layers=self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            dropout=self.dropout if self.training else 0.0,
            bidirectional=self.bidirectional,
            lengths=lengths,
            reset=reset,
            reset_state=reset_state,
            return_all_states=return_all_states,
            recompute=self.recompute,
            reverse=self.reverse,
            projection=self.proj_size > 0,
            packed=self._packed_weights(input, hx, reset_state, all_states=return_all_states),
            user=self._user_call(extra),
        )

    def _run_eagerly(self, input: Any, hx: Any, reset: Any, extra: Mapping[str, Any] | None) -> Any:
        """The results of a call without other arguments, or None: take the long way."""
        if reset is not None or (self.training and self.dropout):
            return None
        weights, flat = self._short_weights()
        if ops.rounds(self._cell, weights[0]):
            return None
        if self._is_single and flat is None and not trains(weights) and is_eager():
            short = direct.short(
                self._cell, self.hidden_size, len(weights), True, self.batch_first, self.reverse
            )
            results = short(input, hx, weights)
            if results is not None:
                return results
        return eager.run_layers(
            self._cell,
            input,
            hx,
            weights,
            num_layers=self.num_layers,
            directions=1 + self.bidirectional,
            batch_first=self.batch_first,
            reverse=self.reverse,
            recompute=self.recompute,
            flat=flat,
            extra=extra,
        )

    def _short_weights(self) -> tuple[list[Tensor], FlatWeights | None]:
        """The weights as the short way takes them, and what they are if it cannot know."""
        return self._weights(), None

    def _packed_weights(self, *inputs: Any, all_states: bool = False) -> Tensor | None:
        """For a call with these inputs, the weights that fastrnn.freeze packed."""
        return None

    def _user_call(self, extra: Mapping[str, Any] | None) -> functional.UserCall | None:
        """What a user's cell has in a call besides other cells."""
        return None

    def reset_parameters(self) -> None:
        """Draw all weights anew from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))."""
        _reset_uniform(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Do nothing, for code that calls torch.nn's: kernels take each weight by its pointer."""

    def __prepare_scriptable__(self) -> NoReturn:
        tracing.refuse_script(self)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
            "recompute": False,
            "reverse": False,
        }
        parts += [
            f"{name}={getattr(self, name)}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return ", ".join(parts)


class _HiddenStateModule(RecurrentModule):
    """The base of RNN and GRU, whose state is one tensor."""

    @overload
    def forward(
        self,
        input: Sequences,
        hx: Tensor | None = ...,
        *,
        lengths: Lengths | None = ...,
        mask: Tensor | None = ...,
        reset: Tensor | None = ...,
        reset_state: Tensor | None = ...,
        return_all_states: Literal[False] = ...,
    ) -> tuple[Sequences, Tensor]: ...

    @overload
    def forward(
        self,
        input: Sequences,
        hx: Tensor | None = ...,
        *,
        lengths: Lengths | None = ...,
        mask: Tensor | None = ...,
        reset: Tensor | None = ...,
        reset_state: Tensor | None = ...,
        return_all_states: Literal[True],
    ) -> tuple[Sequences, Tensor, functional.AllStates]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_all_states: bool = False,
    ) -> Any:
        """Run the layers over a sequence; the class's docstring has the shapes.

        Args:
            input: the sequence.
            hx: the state before the first step; None is zero.
            lengths: how many steps each sample has.
            mask: lengths given as a mask, nonzero at valid steps.
            reset: True where a segment starts, and the state is replaced.
            reset_state: what ``reset`` replaces the state by; None is zero.
            return_all_states: also return the states after every step.

        Returns:
            output and h_n, with ``return_all_states`` also a :class:`fastrnn.AllStates`.
        """
        return self._run(input, hx, lengths, mask, reset, reset_state, return_all_states)


class RNN(_HiddenStateModule):
    r"""Elman network, a drop-in for :class:`torch.nn.RNN`.

    :math:`h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})`, :math:`\phi` tanh or relu.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the hidden state, H.
        num_layers: stacked layers, L.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are (N, T, ...) instead of (T, N, ...); states never are.
        dropout: probability of zeroing an element between layers, in training, by a mask that
            depends on a seed from torch's generator, the layer and the element alone.
        bidirectional: a second direction in each layer: D is 2, and 1 without.
        proj_size: must be 0, as in torch.nn: an RNN has no projection.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.
        recompute: save no gates for backward, which computes them again: less memory in training
            (of GRU and LSTM) for a third more arithmetic in it.
        reverse: run the layers' one direction from the last step to the first.

    Parameters are ``weight_ih_l{k}`` (H, I or D * H), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}``
    and ``bias_hh_l{k}`` (H,), with ``_reverse`` appended in the second direction: a state dict
    loads from and into torch.nn's module.

    Shapes:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: (L * D, N, H), with 1 for N if all samples share it, without N if the input has none.
        lengths: (N,), integers on CPU, a tensor, list or array; output is 0 past them, states are
            each sample's last.
        mask: (T, N), (N, T) if ``batch_first``, (T,) without a batch: lengths said by nonzero
            entries, which must be the first steps of each sample.
        reset: (T, N), bool, (N, T) if ``batch_first`` or jagged, (T,) without a batch: True at the
            first step of a segment, before which (in reverse: after which) the state is replaced.
        reset_state: as hx; what the state is replaced by, instead of zeros.
        output: (T, N, D * H), laid out as the input.
        h_n: (L * D, N, H).
        all_states: third with ``return_all_states``: :class:`fastrnn.AllStates`, h of every layer
            and step.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            with torch.nn's type and words, naming the argument.
        NotImplementedError: on a device without a kernel.

    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).

    Example::

        >>> rnn = fastrnn.RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        reverse: bool = False,
    ) -> None:
        checks.check_nonlinearity(nonlinearity)
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, proj_size, device, dtype, recompute, reverse,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class GRU(_HiddenStateModule):
    r"""Gated recurrent unit, a drop-in for :class:`torch.nn.GRU`.

    :math:`r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr})`, z likewise,
    :math:`n = \tanh(W_{in} x + b_{in} + r (W_{hn} h + b_{hn}))`, :math:`h' = (1 - z) n + z h`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the hidden state, H.
        num_layers: stacked layers, L.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are (N, T, ...) instead of (T, N, ...); states never are.
        dropout: probability of zeroing an element between layers, in training, by a mask that
            depends on a seed from torch's generator, the layer and the element alone.
        bidirectional: a second direction in each layer: D is 2, and 1 without.
        proj_size: must be 0, as in torch.nn: a GRU has no projection.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.
        recompute: save no gates for backward, which computes them again: less memory in training
            for a third more arithmetic in it.
        reverse: run the layers' one direction from the last step to the first.

    Parameters are ``weight_ih_l{k}`` (3 * H, I or D * H), ``weight_hh_l{k}`` (3 * H, H),
    ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (3 * H,), the rows of gates r, z, n in turn, with
    ``_reverse`` appended in the second direction: a state dict loads from and into torch.nn's
    module.

    Shapes:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: (L * D, N, H), with 1 for N if all samples share it, without N if the input has none.
        lengths: (N,), integers on CPU, a tensor, list or array; output is 0 past them, states are
            each sample's last.
        mask: (T, N), (N, T) if ``batch_first``, (T,) without a batch: lengths said by nonzero
            entries, which must be the first steps of each sample.
        reset: (T, N), bool, (N, T) if ``batch_first`` or jagged, (T,) without a batch: True at the
            first step of a segment, before which (in reverse: after which) the state is replaced.
        reset_state: as hx; what the state is replaced by, instead of zeros.
        output: (T, N, D * H), laid out as the input.
        h_n: (L * D, N, H).
        all_states: third with ``return_all_states``: :class:`fastrnn.AllStates`, h of every layer
            and step.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            with torch.nn's type and words, naming the argument.
        NotImplementedError: on a device without a kernel.

    Source: K. Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014,
    with the reset gate after the product.

    Example::

        >>> gru = fastrnn.GRU(10, 20, batch_first=True)
        >>> output, h_n = gru(torch.randn(3, 5, 10), lengths=torch.tensor([5, 2, 4]))
        >>> output.shape, h_n.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        reverse: bool = False,
    ) -> None:
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, recompute, reverse,
        )  # fmt: skip


class LSTM(RecurrentModule):
    r"""Long short-term memory, a drop-in for :class:`torch.nn.LSTM`.

    The gates :math:`i, f, o = \sigma(\cdot)` and :math:`g = \tanh(\cdot)` are of
    :math:`W_{ih} x + b_{ih} + W_{hh} h + b_{hh}`; :math:`c' = f c + i g`, :math:`h' = o \tanh(c')`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the cell state, H, and of the hidden state without a projection.
        num_layers: stacked layers, L.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are (N, T, ...) instead of (T, N, ...); states never are.
        dropout: probability of zeroing an element between layers, in training, by a mask that
            depends on a seed from torch's generator, the layer and the element alone.
        bidirectional: a second direction in each layer: D is 2, and 1 without.
        proj_size: if positive, :math:`h' = W_{hr} (o \tanh(c'))` has this size, smaller than H.
            R is ``proj_size`` or H.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.
        recompute: save no gates for backward, which computes them again: less memory in training
            for a third more arithmetic in it.
        reverse: run the layers' one direction from the last step to the first.

    Parameters are ``weight_ih_l{k}`` (4 * H, I or D * R), ``weight_hh_l{k}`` (4 * H, R),
    ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (4 * H,), the rows of gates i, f, g, o in turn, and
    ``weight_hr_l{k}`` (R, H) with a projection, with ``_reverse`` appended in the second direction:
    a state dict loads from and into torch.nn's module.

    Shapes:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: a tuple of h_0 (L * D, N, R) and c_0 (L * D, N, H), with 1 for N if all samples share
            them, without N if the input has none.
        lengths: (N,), integers on CPU, a tensor, list or array; output is 0 past them, states are
            each sample's last.
        mask: (T, N), (N, T) if ``batch_first``, (T,) without a batch: lengths said by nonzero
            entries, which must be the first steps of each sample.
        reset: (T, N), bool, (N, T) if ``batch_first`` or jagged, (T,) without a batch: True at the
            first step of a segment, before which (in reverse: after which) the state is replaced.
        reset_state: as hx; what the state is replaced by, instead of zeros.
        output: (T, N, D * R), laid out as the input.
        h_n, c_n: (L * D, N, R) and (L * D, N, H), without N if the input has none.
        all_states: third with ``return_all_states``: :class:`fastrnn.AllStates`, h and c of every
            layer and step.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            with torch.nn's type and words, naming the argument.
        NotImplementedError: on a device without a kernel.

    Source: S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997), with
    forget gates; projection: H. Sak et al., Interspeech 2014.

    Example::

        >>> lstm = fastrnn.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
        reverse: bool = False,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, recompute, reverse,
        )  # fmt: skip

    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    def forward(
        self,
        input: Sequences,
        hx: tuple[Tensor, Tensor] | None = ...,
        *,
        lengths: Lengths | None = ...,
        mask: Tensor | None = ...,
        reset: Tensor | None = ...,
        reset_state: tuple[Tensor, Tensor] | None = ...,
        return_all_states: Literal[False] = ...,
    ) -> tuple[Sequences, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Sequences,
        hx: tuple[Tensor, Tensor] | None = ...,
        *,
        lengths: Lengths | None = ...,
        mask: Tensor | None = ...,
        reset: Tensor | None = ...,
        reset_state: tuple[Tensor, Tensor] | None = ...,
        return_all_states: Literal[True],
    ) -> tuple[Sequences, tuple[Tensor, Tensor], functional.AllStates]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_all_states: bool = False,
    ) -> Any:
        """Run the layers over a sequence; the class's docstring has the shapes.

        Args:
            input: the sequence.
            hx: the states h and c before the first step; None is zero.
            lengths: how many steps each sample has.
            mask: lengths given as a mask, nonzero at valid steps.
            reset: True where a segment starts, and the state is replaced.
            reset_state: what ``reset`` replaces the state by; None is zero.
            return_all_states: also return the states after every step.

        Returns:
            output and (h_n, c_n), with ``return_all_states`` also a :class:`fastrnn.AllStates`.
        """
        return self._run(input, hx, lengths, mask, reset, reset_state, return_all_states)


_CELL_WEIGHTS = library.weight_kinds(bias=True, projection=False)


class CellModule(nn.Module):
    """The base of the cells: one step is a scan over a sequence of length 1."""

    input_size: int
    hidden_size: int
    bias: bool
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    _cell: str  # the op's name
    # As of RecurrentModule.
    _recurrent: bool = True
    _vectors: tuple[str, ...] = ()
    # How error texts name the states.
    _state_labels: ClassVar[Sequence[str]] = ("hidden",)

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any
    ) -> None:
        nn.Module.__init__(self)  # the next class may be torch.nn's, which makes its own weights
        checks.check_cell_arguments(input_size, hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        shapes = _weight_shapes(ops.CELLS[self._cell], input_size, hidden_size, hidden_size)
        kinds = library.weight_kinds(
            bias=True, projection=False, recurrent=self._recurrent, vectors=self._vectors
        )
        for kind in kinds:
            value = torch.empty(shapes.get(kind, (hidden_size,)), device=device, dtype=dtype)
            is_there = bias or kind not in ("bias_ih", "bias_hh")
            self.register_parameter(kind, nn.Parameter(value) if is_there else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))."""
        _reset_uniform(self, self.hidden_size)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")

    def _weights(self) -> list[Tensor]:
        # nn.Module's own way to a parameter takes 0.3 µs.
        own = self._parameters
        weights = [own[n] if n in own else getattr(self, n) for n in _CELL_WEIGHTS]
        return [weight for weight in weights if weight is not None]

    def _packed_weights(self, *inputs: Any) -> Tensor | None:
        """For a call with these inputs, the weights that fastrnn.freeze packed."""
        return None

    def _step_eagerly(self, input: Any, hx: Any) -> Any:
        """The results of a call that nothing looks at, or None: take the long way."""
        cell, weights = self._cell, self._weights()
        if not trains(weights):
            results = direct.short(cell, self.hidden_size, len(weights), False)(input, hx, weights)
            if results is not None:
                return results
        facts = ops.CELLS[cell]
        states = eager.plain_states(hx, facts.cell_states)
        if states is None or not isinstance(input, Tensor):
            return None
        finals = eager.run_cell(cell, input, states, weights)
        return as_hx(finals)

    def _step(self, input: Any, hx: Any) -> Any:
        """The results of a call: h', of an LSTM (h', c')."""
        results = self._step_eagerly(input, hx) if is_eager() else None
        if results is not None:
            return results
        leaf = tracing.fx_leaf(self, (input, hx), {})
        if leaf is not None:
            return leaf
        return as_hx(self._step_with_checks(input, hx))

    def _step_with_checks(self, input: Tensor, hx: Any) -> Sequence[Tensor]:
        cell, name = self._cell, type(self).__name__
        checks.check_cell_input_type(name, input)
        count = 1 + ops.CELLS[cell].has_cell_state
        states = () if hx is None else checks.check_states(name, hx, checks.LSTM_STATES[:count])
        packed = self._packed_weights(input, states)
        input, *rest = functional.autocast(
            [input, *states, *self._weights()], input.device, packed is not None
        )
        states, weights = tuple(rest[: len(states)]), rest[len(states) :]
        checks.check_cell_input(
            name, input, states, (self.input_size, self.hidden_size), self._state_labels
        )
        checks.check_cell_dtype(input, weights[0])
        batched = input.dim() == 2
        if not states:
            states = (input.new_zeros(*input.shape[:-1], self.hidden_size),) * count
        checks.check_companions(input, states, weights)
        if packed is not None and not is_recorded():
            return torch.ops.fastrnn.step(cell, input, states, weights, packed)
        if not batched:
            input, states = input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
        h_0, c_0 = states[0], states[1] if count == 2 else None
        rounds_to = "" if input.is_cpu else None  # every way has the bits of the short one
        _, h_n, c_n, _ = ops.scan(
            cell, input.unsqueeze(0), h_0, c_0, ScanWeights(*weights), rounds_to=rounds_to
        )
        results = (h_n,) if c_n is None else (h_n, c_n)
        return results if batched else tuple(result.squeeze(0) for result in results)

    def __prepare_scriptable__(self) -> NoReturn:
        tracing.refuse_script(self)


class RNNCell(CellModule):
    r"""One step of an Elman network, a drop-in for :class:`torch.nn.RNNCell`.

    :math:`h' = \phi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`, :math:`\phi` tanh or relu.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the hidden state, H.
        bias: whether there are ``bias_ih`` and ``bias_hh``; else they are None.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.

    Parameters are ``weight_ih`` (H, I), ``weight_hh`` (H, H), ``bias_ih`` and ``bias_hh``
    (H,): a state dict loads from and into torch.nn's module.

    Shapes:
        input: (N, I), or (I,) without a batch.
        hx: (N, H), without N if the input has none; None is zero.
        result: h' (N, H), without N if the input has none.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            with torch.nn's type and words, naming the argument.
        NotImplementedError: on a device without a kernel.

    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).

    Example::

        >>> cell = fastrnn.RNNCell(10, 20)
        >>> x, h = torch.randn(5, 3, 10), torch.zeros(3, 20)
        >>> for step in x:
        ...     h = cell(step, h)
        >>> h.shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, bias, device, dtype)

    @property
    def _cell(self) -> str:  # type: ignore[override]
        return f"rnn_{self.nonlinearity}"

    def extra_repr(self) -> str:
        suffix = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + suffix

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' (N, H) from input (N, I) and hx (N, H), or without N; hx None is zero."""
        return self._step(input, hx)


class GRUCell(CellModule):
    r"""One step of a gated recurrent unit, a drop-in for :class:`torch.nn.GRUCell`.

    :math:`r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr})`, z likewise,
    :math:`n = \tanh(W_{in} x + b_{in} + r (W_{hn} h + b_{hn}))`, :math:`h' = (1 - z) n + z h`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the hidden state, H.
        bias: whether there are ``bias_ih`` and ``bias_hh``; else they are None.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.

    Parameters are ``weight_ih`` (3 * H, I), ``weight_hh`` (3 * H, H), ``bias_ih`` and ``bias_hh``
    (3 * H,), the rows of gates r, z, n in turn: a state dict loads from and into torch.nn's module.

    Shapes:
        input: (N, I), or (I,) without a batch.
        hx: (N, H), without N if the input has none; None is zero.
        result: h' (N, H), without N if the input has none.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            with torch.nn's type and words, naming the argument.
        NotImplementedError: on a device without a kernel.

    Source: K. Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014,
    with the reset gate after the product.

    Example::

        >>> cell = fastrnn.GRUCell(10, 20)
        >>> x, h = torch.randn(5, 3, 10), torch.zeros(3, 20)
        >>> for step in x:
        ...     h = cell(step, h)
        >>> h.shape
        torch.Size([3, 20])
    """

    _cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' (N, H) from input (N, I) and hx (N, H), or without N; hx None is zero."""
        return self._step(input, hx)


class LSTMCell(CellModule):
    r"""One step of a long short-term memory, a drop-in for :class:`torch.nn.LSTMCell`.

    The gates :math:`i, f, o = \sigma(\cdot)` and :math:`g = \tanh(\cdot)` are of
    :math:`W_{ih} x + b_{ih} + W_{hh} h + b_{hh}`; :math:`c' = f c + i g`, :math:`h' = o \tanh(c')`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of h and c, H.
        bias: whether there are ``bias_ih`` and ``bias_hh``; else they are None.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.

    Parameters are ``weight_ih`` (4 * H, I), ``weight_hh`` (4 * H, H), ``bias_ih`` and ``bias_hh``
    (4 * H,), the rows of gates i, f, g, o in turn: a state dict loads from and into torch.nn's
    module.

    Shapes:
        input: (N, I), or (I,) without a batch.
        hx: a tuple of h and c, (N, H) each, without N if the input has none; None is zero.
        results: a tuple of h' and c', (N, H) each, without N if the input has none.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            with torch.nn's type and words, naming the argument.
        NotImplementedError: on a device without a kernel.

    Source: S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997), with
    forget gates.

    Example::

        >>> cell = fastrnn.LSTMCell(10, 20)
        >>> x, states = torch.randn(5, 3, 10), None
        >>> for step in x:
        ...     states = cell(step, states)
        >>> states[0].shape, states[1].shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    _cell = "lstm"
    _state_labels = ("hx[0]", "hx[1]")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(h', c') (N, H) from input (N, I) and hx = (h, c), or without N; hx None is zero."""
        return self._step(input, hx)
