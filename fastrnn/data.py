"""Sequences of different length in mini-batches: collate them, group them, average their losses.

torch's own `DataLoader` does the rest. Padding never reaches a result here: valid steps are
selected, not multiplied by a mask, so that even NaN in the padding has no effect on gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence
from torch.utils.data import Sampler, default_collate

__all__ = ["Batch", "LengthGroupedSampler", "collate", "length_mask", "masked_loss", "masked_mean"]

Layout = Literal["padded", "packed", "jagged"]
Targets = Literal["sample", "step"]


class Batch(NamedTuple):
    """What :func:`collate` returns.

    Attributes:
        input: the sequences, in the layout that was asked for.
        lengths: (N,), int64, on the CPU.
        target: the targets; None for samples without.
    """

    input: Tensor | PackedSequence
    lengths: Tensor
    target: Any = None


def collate(
    samples: Sequence[Any],
    *,
    layout: Layout = "padded",
    batch_first: bool = False,
    padding_value: float = 0.0,
    targets: Targets | None = None,
) -> Batch:
    """Make a batch of variable-length sequences: a ``collate_fn`` for a DataLoader.

    Args:
        samples: N sequences, each a tensor (T_i, ...) of one dtype, or N pairs (sequence, target).
        layout: of the batch's input. ``"padded"``: a tensor (T, N, ...), T the longest length, for
            ``layer(input, lengths=lengths)``. ``"packed"``: a PackedSequence, not sorted by the
            caller. ``"jagged"``: a nested tensor ``(N, *, ...)``.
        batch_first: padded tensors are (N, T, ...).
        padding_value: what padded tensors hold past each length.
        targets: what targets are of. ``"step"``: each has an entry a step, (T_i, ...), and they are
            laid out as their sequences are. ``"sample"``: they go to
            :func:`torch.utils.data.default_collate`. None: of steps where each has as many entries
            as steps, and it would be an accident if they were of samples.

    Returns:
        A :class:`Batch` (input, lengths, target); target is None for samples without.

    Raises:
        ValueError: no samples; samples that are no pairs; a sequence without steps where packed or
            jagged layouts have no place for it; sequences that differ in more than their length;
            targets of steps that are not as long as their sequences; ``targets`` is None, and all
            sequences and targets have one length, so that either may be meant.
        TypeError: a sequence that is not a tensor; samples that are dicts.

    Example::

        >>> loader = DataLoader(pairs, 32, collate_fn=partial(collate, batch_first=True))
        >>> for input, lengths, target in loader:
        ...     output, _ = rnn(input, lengths=lengths)
    """
    if layout not in ("padded", "packed", "jagged"):
        raise ValueError(f"layout is {layout!r}, expected 'padded', 'packed' or 'jagged'")
    if targets not in ("sample", "step", None):
        raise ValueError(f"targets is {targets!r}, expected 'sample', 'step' or None")
    if not samples:
        raise ValueError("samples is empty, expected at least one sequence")
    paired = not isinstance(samples[0], Tensor)
    if paired:
        _check_pairs(samples)
    sequences = [sample[0] for sample in samples] if paired else list(samples)
    _check_sequences(sequences, layout)
    lengths = torch.tensor([len(sequence) for sequence in sequences])

    def lay_out(tensors: list[Tensor]) -> Tensor | PackedSequence:
        if layout == "packed":
            return pack_sequence(tensors, enforce_sorted=False)
        if layout == "jagged":
            return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)
        return pad_sequence(tensors, batch_first=batch_first, padding_value=padding_value)

    if not paired:
        return Batch(lay_out(sequences), lengths)
    given = [sample[1] for sample in samples]
    by_step = _are_of_steps(given, lengths.tolist(), targets)
    return Batch(lay_out(sequences), lengths, lay_out(given) if by_step else default_collate(given))


def _are_of_steps(given: list[Any], lengths: list[int], targets: Targets | None) -> bool:
    """Whether targets have an entry a step."""
    counts = [len(t) if isinstance(t, Tensor) and t.dim() > 0 else None for t in given]
    if targets == "step" and counts != lengths:
        index = next(
            i for i, pair in enumerate(zip(counts, lengths, strict=True)) if len({*pair}) > 1
        )
        raise ValueError(
            f"target {index} must be a tensor with an entry for each of {lengths[index]} steps, "
            f"got {_described(given[index])}"
        )
    if targets is None and counts == lengths and len(set(lengths)) == 1:
        raise ValueError(
            f"all sequences and all targets of this batch of {len(lengths)} have length "
            f"{lengths[0]}: say targets='step' if a target has an entry a step, or 'sample'"
        )
    return targets == "step" or (targets is None and counts == lengths)


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_pairs(samples: Sequence[Any]) -> None:
    for index, sample in enumerate(samples):
        if isinstance(sample, Mapping):
            raise TypeError(
                f"sample {index} is a {type(sample).__name__}, expected a tensor or a pair: give "
                "collate_fn=lambda samples: collate([(s['input'], s['target']) for s in samples])"
            )
        if not isinstance(sample, (str, Tensor)) and len(sample) != 2:
            raise ValueError(
                f"sample {index} has {len(sample)} items, expected a pair (sequence, target); the "
                "target may be a tuple or a dict"
            )


def _check_sequences(sequences: list[Any], layout: Layout) -> None:
    for index, sequence in enumerate(sequences):
        if not isinstance(sequence, Tensor):
            kind = type(sequence).__name__
            raise TypeError(f"sequence {index} is a {kind}, expected a tensor (steps, ...)")
        features = sequences[0].shape[1:]
        if sequence.dim() == 0 or sequence.shape[1:] != features:
            raise ValueError(
                f"sequence {index} has shape {tuple(sequence.shape)}, "
                f"expected (steps, {', '.join(map(str, features))})"
            )
        if len(sequence) == 0 and layout == "packed":
            raise ValueError(f"sequence {index} has no steps, which a PackedSequence cannot hold")


class LengthGroupedSampler(Sampler[list[int]]):
    """A batch sampler that puts sequences of similar length together, so that little is padded.

    In every epoch samples are shuffled, sorted by length inside windows of many batches, cut into
    batches, and the batches shuffled. The order follows from seed and epoch alone, whatever the
    number of processes: each takes every ``num_replicas``-th sample of every batch, so that all of
    them together see what one process would. Sequences of one length are thus merely shuffled.

    Args:
        lengths: (N,), integers: the length of each sample.
        batch_size: samples of a batch, of all processes together.
        shuffle: otherwise samples keep their order and are not grouped.
        seed: of the order; the same in every process.
        drop_last: leave the last batch out where it is not full.
        num_replicas: number of processes; by default that of the default process group, or 1.
        rank: number of this process; by default its rank there, or 0.

    Raises:
        ValueError: a length below 0, no samples, batch_size below 1, a rank that is none of
            num_replicas, or a batch with fewer samples than there are processes.

    Example::

        >>> sampler = LengthGroupedSampler(lengths, 32)
        >>> loader = DataLoader(samples, batch_sampler=sampler, collate_fn=collate)
        >>> for epoch in range(10):
        ...     sampler.set_epoch(epoch)
        ...     for batch in loader: ...
    """

    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        self.num_replicas, self.rank = num_replicas, rank
        self.epoch = self.start = 0
        self._check()

    def _check(self) -> None:
        if self.lengths.dim() != 1 or len(self.lengths) == 0:
            raise ValueError(f"lengths has shape {tuple(self.lengths.shape)}, expected (N,), N > 0")
        if self.lengths.min() < 0:
            raise ValueError(f"lengths has {int(self.lengths.min())}, expected at least 0")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1")
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"rank is {self.rank}, expected 0 to {self.num_replicas - 1}")
        full, rest = divmod(len(self.lengths), self.batch_size)
        smallest = rest if rest and not (self.drop_last and full) else self.batch_size
        if smallest < self.num_replicas:
            raise ValueError(
                f"a batch has {smallest} samples (N = {len(self.lengths)}, batch_size = "
                f"{self.batch_size}), fewer than {self.num_replicas} processes"
            )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order of an epoch, and the batch that it starts with (in a resumed run)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The number of batches of an epoch, the same in every process."""
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full if rest == 0 or (self.drop_last and full) else full + 1

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches()[self.start :]:
            yield batch[self.rank :: self.num_replicas].tolist()

    def _batches(self) -> list[Tensor]:
        """The epoch's batches before they are divided among processes."""
        count = len(self.lengths)
        if not self.shuffle:
            return list(torch.arange(count).split(self.batch_size))[: len(self)]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(count, generator=generator)
        # At most a quarter of the batches is sorted at once, so that neighbours change by epoch.
        window = self.batch_size * max(1, min(50, len(self) // 4))
        windows = [part[self.lengths[part].argsort(stable=True)] for part in order.split(window)]
        batches = list(torch.cat(windows).split(self.batch_size))[: len(self)]
        shuffled = torch.randperm(len(batches), generator=generator)
        return [batches[index] for index in shuffled.tolist()]


def length_mask(lengths: Tensor, size: int, *, batch_first: bool = False) -> Tensor:
    """A bool mask, True at valid steps.

    Args:
        lengths: (N,), integers, on any device.
        size: steps of the mask, T.
        batch_first: the mask is (N, T).

    Returns:
        (T, N), or (N, T) if batch_first, on the device of ``lengths``.
    """
    mask = torch.arange(size, device=lengths.device) < lengths[:, None]  # (N, T)
    return mask if batch_first else mask.T


def masked_mean(input: Tensor, lengths: Tensor, *, batch_first: bool = False) -> Tensor:
    """The mean of each sample over its valid steps.

    Args:
        input: (T, N, ...), or (N, T, ...) if batch_first; a floating point dtype.
        lengths: (N,), integers from 0 to T, on any device.
        batch_first: the input has the batch first.

    Returns:
        (N, ...); zeros for a sample of length 0.

    Raises:
        ValueError: lengths that do not fit the input.
    """
    mask = _mask_of(input, lengths, batch_first).reshape(*input.shape[:2], *[1] * (input.dim() - 2))
    time = 1 if batch_first else 0
    total = input.where(mask, 0).sum(dim=time)
    return total / mask.sum(dim=time).clamp(min=1)


def masked_loss(
    loss: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    lengths: Tensor,
    *,
    batch_first: bool = False,
    **arguments: Any,
) -> Tensor:
    """A loss of torch over valid steps only.

    Args:
        loss: such as :func:`torch.nn.functional.cross_entropy`. It gets valid steps alone, (V, ...)
            of both tensors, V the sum of the lengths.
        input: (T, N, ...), or (N, T, ...) if batch_first: predictions, classes last.
        target: (T, N, ...) or (N, T, ...) likewise.
        lengths: (N,), integers from 0 to T, on any device.
        batch_first: input and target have the batch first.
        arguments: handed on to the loss, such as ``reduction="sum"``.

    Returns:
        What the loss returns: by default a mean over all valid steps.

    Raises:
        ValueError: lengths or a target that do not fit the input.

    Example::

        >>> masked_loss(F.cross_entropy, logits, labels, lengths, label_smoothing=0.1)
    """
    if input.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, "
            f"expected the input's {tuple(input.shape[:2])} first"
        )
    mask = _mask_of(input, lengths, batch_first)
    return loss(input[mask], target[mask], **arguments)


def _mask_of(input: Tensor, lengths: Tensor, batch_first: bool) -> Tensor:
    if input.is_nested:
        raise ValueError(
            "input is a nested tensor, expected a padded one: input.to_padded_tensor(0.0), with "
            "batch_first=True"
        )
    if input.dim() < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}, expected time and batch first")
    N, T = input.shape[:2] if batch_first else input.shape[1::-1]
    if lengths.shape != (N,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected ({N},)")
    if lengths.device.type == "cpu" and N and not 0 <= int(lengths.min()) <= lengths.max() <= T:
        raise ValueError(f"lengths has values outside 0 to {T}")
    return length_mask(lengths.to(input.device), T, batch_first=batch_first)
