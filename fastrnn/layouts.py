"""Memory layouts of a batch of sequences, and their conversion for the op.

The op takes padded tensors time first. Samples keep the caller's order except in a packed batch,
and no input is sorted or copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks

__all__ = ["Layout", "Rows", "layout_of", "rows_of"]


class Rows(NamedTuple):
    """Where the rows of a packed or jagged input lie in a padded one."""

    sample: Tensor  # (rows,)
    of_padded: Tensor  # (T, N), the row of a step and sample; of one that does not run, any
    lengths: Tensor  # (N,)


def rows_of(
    count: int, batch_sizes: Tensor | None, offsets: Tensor | None, lengths: Tensor | None
) -> Rows:
    """The places of so many rows, from what the op says of a packed or a jagged input."""
    rows = torch.arange(count)
    if batch_sizes is not None:
        ends = batch_sizes.cumsum(0)
        samples = torch.arange(int(batch_sizes[0]) if batch_sizes.numel() else 0)
        starts = ends - batch_sizes
        sample = rows - starts[torch.searchsorted(ends, rows, right=True)]
        of_padded = (starts[:, None] + samples).clamp(max=max(count - 1, 0))
        return Rows(sample, of_padded, (batch_sizes[:, None] > samples).sum(0))
    assert offsets is not None
    lengths = offsets.diff() if lengths is None else lengths
    steps = torch.arange(int(lengths.max()) if lengths.numel() else 0)
    of_padded = (offsets[:-1] + steps[:, None]).clamp(max=max(count - 1, 0))
    # Rows before the first sample and behind the last one run no step, and count to those.
    sample = (torch.searchsorted(offsets, rows, right=True) - 1).clamp(0, max(len(lengths) - 1, 0))
    return Rows(sample, of_padded, lengths)


@dataclass
class Layout:
    """A padded batch, (T, N, I) or (N, T, I), or a single sequence (T, I)."""

    given: Any
    data: Tensor  # (T, N, I), or (rows, I)
    batch: int
    batch_first: bool = False
    batched: bool = True
    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    offsets: Tensor | None = None

    def sequence(self, y: Tensor) -> Any:
        """Convert an output of the op to the caller's layout."""
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def enter(self, state: Tensor) -> Tensor:
        """Convert the caller's state (L * D, N, C) to the op's order of samples."""
        return state

    def leave(self, state: Tensor) -> Tensor:
        """Convert the op's state to the caller's order of samples and rank."""
        return state if self.batched else state.squeeze(1)

    def reset(self, reset: Any, name: str) -> Tensor:
        """Check the caller's marks, and convert them to (T, N)."""
        T, N = self.data.shape[:2]
        shape = (N, T) if self.batch_first else (T, N)
        checks.check_reset(reset, self.data, shape if self.batched else (T,), name)
        if not self.batched:
            return reset.unsqueeze(1)
        return reset.transpose(0, 1) if self.batch_first else reset

    def extra(self, name: str, key: str, value: Any, hidden_size: int) -> Tensor:
        """Convert an extra input to (T, N, H), a view of the caller's tensor.

        The caller's has a rank that says what it is: (T, N, H), or (N, T, H) if batch_first, with 1
        for a size that shares one value; (T, N) or (N, T); (N,). Without a batch N is left out.
        """
        T, N = self.data.shape[:2]
        sizes = {"N": N, "T": T} if self.batch_first else {"T": T, "N": N}
        if not self.batched:
            del sizes["N"]
        full = (*sizes.values(), hidden_size)
        forms = (
            f"({', '.join(sizes)}, H) = {full} with 1 for a size that shares one value, "
            f"({', '.join(sizes)}) or ({'N,' * self.batched})"
        )
        checks.check_dense_extra(name, key, value, forms)
        wide = value
        if wide.dim() == len(sizes) - 1:
            wide = wide.unsqueeze(1 if self.batch_first else 0)
        if wide.dim() == len(sizes):
            wide = wide.unsqueeze(-1)
        checks.check_extra_shape(name, key, value, wide, full, forms)
        if not self.batched:
            wide = wide.unsqueeze(1)
        elif self.batch_first:
            wide = wide.transpose(0, 1)
        return wide.expand(T, N, hidden_size)


class RowsLayout(Layout):
    """What packed and jagged inputs share: their data are rows of samples."""

    def extra(self, name: str, key: str, value: Any, hidden_size: int) -> Tensor:
        """Convert an extra input to (rows, H).

        The caller's is laid out as the input is, (rows,) or (rows, H) inside; or a plain tensor of
        such rows (rows, H); or, by its rank, one for each sample, (N,) or (1, N, H). In (rows, H)
        and (1, N, H), 1 for H is one value for all units.
        """
        full = (self.data.size(0), hidden_size)
        forms = (
            f"laid out as the input, of (rows, H) = {full}, (rows, 1) or (rows,), or for samples "
            f"(N,) = ({self.batch},) or (1, N, H)"
        )
        rows = self.rows_of_extra(name, key, value, forms)
        if rows is not None:
            wide = rows.unsqueeze(-1) if rows.dim() == 1 else rows
            checks.check_extra_shape(name, key, rows, wide, full, forms)
            return wide.expand(full)
        checks.check_dense_extra(name, key, value, forms)
        if value.dim() == 2:
            checks.check_extra_shape(name, key, value, value, full, forms)
            return value.expand(full)
        wide = value.reshape(1, -1, 1) if value.dim() == 1 else value
        checks.check_extra_shape(name, key, value, wide, (1, self.batch, hidden_size), forms)
        of_samples = self.enter(wide.expand(1, self.batch, wide.size(-1))).squeeze(0)
        sample = rows_of(full[0], self.batch_sizes, self.offsets, self.lengths).sample
        return of_samples.index_select(0, sample.to(of_samples.device)).expand(full)

    def rows_of_extra(self, name: str, key: str, value: Any, forms: str) -> Tensor | None:
        """The rows of an extra input laid out as the input; None of a plain tensor."""
        raise NotImplementedError


class PackedLayout(RowsLayout):
    """A PackedSequence: rows are ordered by step, samples by length."""

    given: PackedSequence

    def sequence(self, y: Tensor) -> PackedSequence:
        return PackedSequence(
            y, self.given.batch_sizes, self.given.sorted_indices, self.given.unsorted_indices
        )

    def enter(self, state: Tensor) -> Tensor:
        order = self.given.sorted_indices
        return state if order is None else state.index_select(1, order)

    def leave(self, state: Tensor) -> Tensor:
        order = self.given.unsorted_indices
        return state if order is None else state.index_select(1, order)

    def reset(self, reset: Any, name: str) -> Tensor:
        """Convert marks (T, N), or (N, T) if batch_first, in the caller's order of samples."""
        T = self.given.batch_sizes.size(0)
        shape = (self.batch, T) if self.batch_first else (T, self.batch)
        checks.check_reset(reset, self.data, shape, name)
        return self.enter(reset.transpose(0, 1) if self.batch_first else reset)

    def rows_of_extra(self, name: str, key: str, value: Any, forms: str) -> Tensor | None:
        if not isinstance(value, PackedSequence):
            return None
        own = (self.given.batch_sizes, self.given.sorted_indices)
        checks.check_same_rows(name, key, own, (value.batch_sizes, value.sorted_indices))
        return value.data


class JaggedLayout(RowsLayout):
    """A jagged nested tensor (N, *, I): rows are ordered by sample.

    Its offsets tell how many steps there are. Reading them from a GPU waits for the GPU.
    """

    def sequence(self, y: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(
            y, self.given.offsets(), lengths=self.given.lengths()
        )

    def reset(self, reset: Any, name: str) -> Tensor:
        """Convert marks (N, T), T the longest length; marks past a sample's end do not count."""
        longest = self.lengths if self.lengths is not None else self.offsets.diff()  # type: ignore[union-attr]
        T = int(longest.max()) if self.batch else 0
        checks.check_reset(reset, self.data, (self.batch, T), name)
        return reset.transpose(0, 1)

    def rows_of_extra(self, name: str, key: str, value: Any, forms: str) -> Tensor | None:
        if isinstance(value, PackedSequence) or not value.is_nested:
            return None
        own = (self.given.offsets(), self.given.lengths())
        checks.check_same_rows(name, key, own, (value.offsets(), value.lengths()))
        return value.values()


def layout_of(name: str, input: Any, data: Tensor, batch_first: bool, lengths: Any) -> Layout:
    """The layout of an input; data are its values, cast where autocast asks for it."""
    if isinstance(input, PackedSequence):
        batch = int(input.batch_sizes[0])
        return PackedLayout(input, data, batch, batch_first, batch_sizes=input.batch_sizes)
    if input.is_nested:
        offsets, lengths = input.offsets(), input.lengths()
        return JaggedLayout(
            input,
            data,
            offsets.size(0) - 1,
            lengths=None if lengths is None else lengths.cpu(),
            offsets=offsets.cpu(),
        )
    checks.check_input_rank(name, data)
    batched = data.dim() == 3
    if not batched:
        data = data.unsqueeze(1)
    elif batch_first:
        data = data.transpose(0, 1)
    if lengths is not None:
        lengths = checks.lengths_tensor(lengths)
        checks.check_lengths(lengths, data, batched)
        lengths = lengths.reshape(-1).to(torch.int64).contiguous()
    return Layout(input, data, data.size(1), batch_first and batched, batched, lengths)
