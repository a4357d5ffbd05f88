"""Layers of a cell that the user wrote, with all that LSTM has."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, eager, functional, modules, tracing, user_cells
from fastrnn.cells import Cell
from fastrnn.library import PLAIN, register_cell, side_by_side, weight_kinds
from fastrnn.modules import Lengths, as_hx
from fastrnn.ops import FlatWeights
from fastrnn.torch_internals import is_eager

__all__ = ["Recurrent", "RecurrentCell", "UserCellModule"]


class UserCellModule(nn.Module):
    """What layers and cells of a user's cell share: the cell, its vectors and its numbers."""

    cell: Cell
    hidden_size: int
    _op_cell: Cell  # the cell, or what a projection makes of it

    def _take(self, cell: object, projection: bool = False) -> None:
        if not isinstance(cell, Cell):
            raise TypeError(
                f"{type(self).__name__}: cell must be what the decorator fastrnn.cells.cell makes "
                f"of a function, got {type(cell).__name__}"
            )
        self.cell = cell
        self._recurrent, self._vectors = cell.facts.recurrent_gates > 0, tuple(cell.vectors)
        self._op_cell = cell.for_projection() if projection else cell
        register_cell(self._op_cell)

    @property
    def _cell(self) -> str:
        return self._op_cell.op_name

    def _set_numbers(self) -> None:
        for name, value in self.cell.numbers.items():
            setattr(self, name, value)

    def _numbers(self) -> tuple[float, ...]:
        if not self.cell.numbers:
            return ()
        values = {name: getattr(self, name) for name in self.cell.numbers}
        return checks.check_numbers(type(self).__name__, values)

    def _user_call(self, extra: Mapping[str, Any] | None) -> functional.UserCall:
        return functional.UserCall(self.cell, extra, self._numbers())

    def _is_short(self, input: Any) -> bool:
        """Whether a call may take the short way: its kernels are loaded, or can be."""
        if not is_eager():
            return False
        if type(input) not in PLAIN or input.layout is not torch.strided:
            return False
        if not eager.has_kernel(input):
            return False
        return user_cells.why_step_by_step(self._cell, input.dtype, "cpu") is None

    def _initial_states(
        self, input: Tensor, leading: Sequence[int], proj_size: int = 0
    ) -> tuple[Tensor, ...]:
        """The states as the cell declares them; leading are the dimensions before the units."""
        sizes = (proj_size or self.hidden_size, *[self.hidden_size] * len(self.cell.states))
        shapes = [(*leading, size) for size in sizes]
        labels = ("h", *self.cell.states)
        return tuple(functional.initial_states(input, shapes, labels, self._user_call(None)))

    def _in_order(self, extra: Any) -> dict[str, Any] | None:
        """The extra inputs in the cell's order, or None: they are not those that it declares."""
        names = self.cell.inputs
        if extra is None:
            return None if names else {}
        if not isinstance(extra, Mapping) or extra.keys() != set(names):
            return None
        return {name: extra[name] for name in names}

    def _op_weights(
        self, weights: list[Tensor], entries: int, directions: int, projection: bool
    ) -> tuple[list[Tensor], FlatWeights]:
        """The weights of so many layers and directions as the ops take them, and what they are."""
        kinds = _op_kinds(self.bias, projection, bool(self._vectors))
        flat = FlatWeights(kinds, self._numbers(), len(self.cell.inputs))
        if self._recurrent and not self._vectors:
            return weights, flat
        each = len(weights) // entries
        op_weights = []
        for index in range(entries):
            own = weights[index * each : (index + 1) * each - len(self._vectors)]
            vectors = weights[index * each + len(own) : (index + 1) * each]
            if not self._recurrent:  # Matrices without rows say the size of h.
                output_size = own[-1].size(0) if projection else self.hidden_size
                own[1:1] = [own[0].new_empty(0, output_size)]
                own[3:3] = [own[0].new_empty(0)] * bool(self.bias)
            if vectors:
                by_name = dict(zip(self._vectors, vectors, strict=True))
                checks.check_vectors(
                    type(self).__name__, by_name, self.hidden_size, index, directions
                )
                own.append(side_by_side(vectors))
            op_weights += own
        return op_weights, flat

    def reset_parameters(self) -> None:
        """Draw all weights anew: vectors as the cell declares, others from
        U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        declared = self.cell.vectors
        for name, kind in self._kinds_by_name().items():
            value = declared.get(kind)
            low, high = value if isinstance(value, tuple) else (-bound, bound)
            if isinstance(value, float):
                nn.init.constant_(getattr(self, name), value)
            else:
                nn.init.uniform_(getattr(self, name), low, high)

    def _kinds_by_name(self) -> dict[str, str]:
        """What each parameter is, as the cell and torch call it, in torch's order."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> NoReturn:
        tracing.refuse_script(self, "use torch.jit.trace or torch.export")

    def extra_repr(self) -> str:
        numbers = "".join(f", {name}={getattr(self, name)}" for name in self.cell.numbers)
        return f"{self.cell.name}, {super().extra_repr()}{numbers}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        register_cell(self._op_cell)


class Recurrent(UserCellModule, modules.RecurrentModule):
    r"""Layers of a cell that the user wrote with :func:`fastrnn.cells.cell`.

    The cell's kernels are compiled when a type is first used, and kept on disk; where they cannot
    be, and on a GPU, a loop of torch operations gives the same results, after a warning that says
    why.

    Args:
        cell: what the decorator :func:`fastrnn.cells.cell` made of a function.
        input_size: features of the input, I.
        hidden_size: units, H.
        num_layers: stacked layers, L, of the same cell.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: input, extra inputs and output are (N, T, ...) instead of (T, N, ...); states
            never are.
        dropout: probability of zeroing an element between layers, in training.
        bidirectional: a second direction in each layer: D is 2, and 1 without.
        proj_size: if positive, what the cell returns as h is multiplied by ``weight_hr``, to this
            size, smaller than H; for cells that do not read ``s.h``. R is ``proj_size`` or H.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.
        recompute: save less for backward, which computes it again; the loop of torch operations
            takes no heed of it.
        reverse: run the layers' one direction from the last step to the first.

    Parameters are ``weight_ih_l{k}`` (Gx * H, I or D * R), ``weight_hh_l{k}`` (Gh * H, R),
    ``bias_ih_l{k}`` and ``bias_hh_l{k}`` as torch.nn has them, Gx gates of the input product and Gh
    of the recurrent one in the order that the cell declares them (without recurrent gates, there is
    no ``weight_hh`` and no ``bias_hh``), ``weight_hr_l{k}`` (R, H) with a projection, and
    ``<vector>_l{k}`` (H,) for each vector of the cell; with ``_reverse`` appended in the second
    direction. The cell's numbers are attributes, which may be set between calls; they are not in
    the state_dict, and torch.compile compiles for each new value, up to
    ``torch._dynamo.config.recompile_limit`` of them.

    What torch.export and torch.jit make of it call the kernels by the cell's name. Where such a
    program is loaded, the cell must have been given to a Recurrent, and its kernels be loaded, by a
    call of that or by ``fastrnn.cells.compiler.load``.

    Shapes:
        input: (T, N, I), (N, T, I) if ``batch_first``, (T, I) without a batch, a PackedSequence, or
            a jagged nested tensor ``(N, *, I)``.
        hx: h (L * D, N, R), of a cell with states a tuple of h and each state (L * D, N, H) in the
            order that it declares them; with 1 for N if all samples share it, without N if the
            input has none. None is what the cell declares as ``initial``, else zero.
        extra: a tensor for each input that the cell declares, by name; all layers read the same.
            Its rank says what it is, never its sizes: (T, N, H), with 1 for a size that shares one
            value; (T, N), one for all units; (N,), one for all steps and units. So one for each
            sample and unit is (1, N, H). With ``batch_first`` T and N change places; without a
            batch N is left out. Beside a PackedSequence it is one, too, of (rows, H) or (rows,), or
            its data (rows, H); beside a jagged tensor it is one, ``(N, *, H)`` or ``(N, *)``, or
            its values (rows, H); for samples (N,) or (1, N, H) beside both.
        lengths: (N,), integers on CPU, a tensor, list or array; output is 0 past them, states are
            each sample's last.
        mask: (T, N), (N, T) if ``batch_first``, (T,) without a batch: lengths said by nonzero
            entries, which must be the first steps of each sample.
        reset: (T, N), bool, (N, T) if ``batch_first`` or jagged, (T,) without a batch: True at the
            first step of a segment, before which (in reverse: after which) the states are replaced.
        reset_state: as hx; what the states are replaced by. None is what they start with where hx
            is None.
        output: (T, N, D * R), laid out as the input.
        last: second, the last states, as hx.
        all_states: third with ``return_all_states``: :class:`fastrnn.AllStates`, the states of
            every layer and step.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes, devices or options do not fit,
            naming the argument; of those :class:`fastrnn.cells.CellError` for a projection of a
            cell that reads ``s.h``.

    Example::

        >>> @cells.cell(gates="z", input_gates="n")
        ... def light_gru(x, h, s, p):
        ...     z = cells.sigmoid(x.z + h.z)
        ...     return z * s.h + (1 - z) * cells.relu(x.n)
        >>> layer = fastrnn.Recurrent(light_gru, 10, 20, num_layers=2)
        >>> output, h_n = layer(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        reverse: bool = False,
    ) -> None:
        self._take(cell, projection=bool(proj_size))
        super().__init__(
            "Recurrent", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device, dtype, recompute, reverse,
        )  # fmt: skip
        self._set_numbers()

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, ...] | None = None,
        *,
        extra: Mapping[str, Tensor | PackedSequence] | None = None,
        lengths: Lengths | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | tuple[Tensor, ...] | None = None,
        return_all_states: bool = False,
    ) -> Any:
        """Run the layers over a sequence; the class's docstring has the shapes.

        Args:
            input: the sequence.
            hx: h, or a tuple of h and the cell's states, before the first step; None is what the
                cell declares as ``initial``, else zero.
            extra: a tensor for each input that the cell declares, by name.
            lengths: how many steps each sample has.
            mask: lengths given as a mask, nonzero at valid steps.
            reset: True where a segment starts, and the states are replaced.
            reset_state: what ``reset`` replaces the states by; None is what they start with where
                hx is None.
            return_all_states: also return the states after every step.

        Returns:
            output and the last states, as hx; with ``return_all_states`` also a
            :class:`fastrnn.AllStates`.
        """
        return self._run(input, hx, lengths, mask, reset, reset_state, return_all_states, extra)

    def _run_eagerly(self, input: Any, hx: Any, reset: Any, extra: Any) -> Any:
        if not self._is_short(input) or (extra := self._in_order(extra)) is None:
            return None
        if hx is None and self.cell.initial and input.dim() in (2, 3) and not input.is_nested:
            batch = () if input.dim() == 2 else (input.size(0 if self.batch_first else 1),)
            entries = self.num_layers * (1 + self.bidirectional)
            hx = as_hx(self._initial_states(input, (entries, *batch), self.proj_size))
        return super()._run_eagerly(input, hx, reset, extra)

    def _short_weights(self) -> tuple[list[Tensor], FlatWeights | None]:
        weights = self._weights()
        if self.cell.is_plain:
            return weights, None
        directions = 1 + self.bidirectional
        entries = self.num_layers * directions
        return self._op_weights(weights, entries, directions, self.proj_size > 0)

    def _kinds_by_name(self) -> dict[str, str]:
        return {
            name: kind
            for names in modules.weight_names(self)
            for name, kind in zip(names, modules.weight_kinds(self), strict=True)
        }


class RecurrentCell(UserCellModule, modules.CellModule):  # type: ignore[override]
    """One step of a cell that the user wrote with :func:`fastrnn.cells.cell`.

    Args:
        cell: what the decorator :func:`fastrnn.cells.cell` made of a function.
        input_size: features of the input, I.
        hidden_size: units, H.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.

    Parameters are ``weight_ih`` (Gx * H, I), ``weight_hh`` (Gh * H, H), ``bias_ih`` (Gx * H,) and
    ``bias_hh`` (Gh * H,), Gx gates of the input product and Gh of the recurrent one in the order
    that the cell declares them (without recurrent gates, there is no ``weight_hh`` and no
    ``bias_hh``), and a vector (H,) by its name for each vector of the cell. The cell's numbers are
    attributes, which may be set between calls.

    Shapes:
        input: (N, I), or (I,) without a batch.
        hx: h, or a tuple of h and each state in the order that the cell declares them, (N, H) each,
            without N if the input has none. None is what the cell declares as ``initial``, else
            zero.
        extra: a tensor for each input that the cell declares, by name: (N, H), with 1 for a size
            that shares one value, or (N,); without N if the input has none.
        results: as hx, after the step.

    Raises:
        ValueError, TypeError, RuntimeError: where sizes, dtypes or devices do not fit, naming the
            argument.

    Example::

        >>> cell = fastrnn.RecurrentCell(fastrnn.zoo.peephole_lstm, 10, 20)
        >>> x, states = torch.randn(5, 3, 10), None
        >>> for step in x:
        ...     states = cell(step, states)
        >>> states[0].shape, states[1].shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._take(cell)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._set_numbers()

    def forward(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, ...] | None = None,
        *,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """h, or a tuple of h and the cell's states, after a step.

        Args:
            input: (N, I), or (I,) without a batch.
            hx: h, or a tuple of h and the states, (N, H) each; None is what the cell declares as
                ``initial``, else zero.
            extra: a tensor for each input that the cell declares, by name: (N, H), with 1 for a
                size that shares one value, or (N,); without N if the input has none.
        """
        states = eager.plain_states(hx, len(self.cell.states))
        in_order = self._in_order(extra)
        if states is not None and in_order is not None and self._is_short(input):
            if hx is None and self.cell.initial:
                states = self._initial_states(input, input.shape[:-1])
                hx = as_hx(states)
            if self.cell.is_plain:
                results = self._step_eagerly(input, hx)
            else:
                weights, flat = self._op_weights(self._weights(), 1, 1, False)
                steps = {name: _first_step(value, input) for name, value in in_order.items()}
                results = as_hx(eager.run_cell(self._cell, input, states, weights, flat, steps))
            if results is not None:
                return results
        leaf = tracing.fx_leaf(self, (input, hx), {"extra": extra})
        if leaf is not None:
            return leaf
        name, labels = type(self).__name__, ("h", *self.cell.states)
        checks.check_cell_input_type(name, input)
        states = () if hx is None else checks.check_states(name, hx, labels)
        checks.check_cell_input(name, input, states, (self.input_size, self.hidden_size), labels)
        given = checks.check_extra(name, self.cell.inputs, extra)
        _, last = functional.run(
            name,
            self._cell,
            input.unsqueeze(0),
            as_hx([state.unsqueeze(0) for state in states]),
            self._weights(),
            num_layers=1,
            bias=self.bias,
            batch_first=False,
            dropout=0.0,
            bidirectional=False,
            lengths=None,
            reset=None,
            reset_state=None,
            return_all_states=False,
            recompute=False,
            reverse=False,
            user=self._user_call({key: _first_step(value, input) for key, value in given.items()}),
        )
        last = last if isinstance(last, tuple) else (last,)
        return as_hx([final.squeeze(0) for final in last])

    def _kinds_by_name(self) -> dict[str, str]:
        return {kind: kind for kind in modules.weight_kinds(self)}

    def _weights(self) -> list[Tensor]:
        return [getattr(self, kind) for kind in modules.weight_kinds(self)]


@functools.cache
def _op_kinds(bias: bool, projection: bool, vectors: bool) -> tuple[str, ...]:
    """What a layer's weights are as the ops take them."""
    return tuple(weight_kinds(bias, projection, vectors=["vectors"] * vectors))


def _first_step(extra: Any, input: Tensor) -> Any:
    """An extra input of a cell as that of a sequence of one step."""
    has_units = isinstance(extra, Tensor) and extra.dim() == input.dim()
    return extra.unsqueeze(0) if has_units else extra
