"""Memory layouts of a batch of sequences, and their conversion for the op.

The op takes padded tensors time first. Samples keep the caller's order except in a packed batch,
and no input is sorted or copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks

__all__ = ["Layout", "layout_of"]


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


class PackedLayout(Layout):
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


class JaggedLayout(Layout):
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
