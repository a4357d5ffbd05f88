"""fastrnn.data: batches of variable-length sequences, their order, and means over valid steps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import unpack_sequence
from torch.utils.data import DataLoader

import fastrnn
from fastrnn.data import LengthGroupedSampler, collate, length_mask, masked_loss, masked_mean

LENGTHS = [3, 7, 1, 5]


def sequences(*features, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, *features, generator=generator) for n in lengths]


# --- collate ------------------------------------------------------------------------------------


def parts_of(input, lengths, layout, batch_first):
    """The sequences that a batch holds."""
    if layout == "packed":
        return unpack_sequence(input)
    if layout == "jagged":
        return list(input.unbind())
    rows = input if batch_first else input.transpose(0, 1)
    return [row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]


@pytest.mark.parametrize("layout", ["padded", "packed", "jagged"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("features", [(4,), (2, 3)])
def test_batch_holds_the_sequences(layout, batch_first, features):
    given = sequences(*features)
    batch = collate(given, layout=layout, batch_first=batch_first)
    assert batch.target is None and batch.lengths.tolist() == LENGTHS
    for actual, expected in zip(
        parts_of(batch[0], batch[1], layout, batch_first), given, strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("layout", ["padded", "packed", "jagged"])
def test_targets_of_a_sample_and_of_a_step(layout):
    given = sequences(4)
    labels = collate([(x, n) for n, x in enumerate(given)], layout=layout).target
    assert labels.tolist() == [0, 1, 2, 3]
    by_step = collate([(x, x[:, 0]) for x in given], layout=layout)
    for x, y in zip(
        parts_of(by_step.input, by_step.lengths, layout, False),
        parts_of(by_step.target, by_step.lengths, layout, False),
        strict=True,
    ):
        assert torch.equal(x[:, 0], y)


@pytest.mark.parametrize("lengths", [[3, 3], [3, 5]])
def test_targets_are_laid_out_as_the_argument_says(lengths):
    """Whatever lengths a batch happens to have."""
    pairs = [(x, torch.arange(3)) for x in sequences(4, lengths=lengths)]
    assert collate(pairs, targets="sample").target.shape == (2, 3)
    steps = [(x, x[:, 0]) for x, _ in pairs]
    assert collate(steps, targets="step").target.shape == (max(lengths), 2)


def test_targets_that_may_be_of_either_are_refused():
    pairs = [(x, torch.arange(3)) for x in sequences(4, lengths=[3, 3])]
    with pytest.raises(ValueError, match="this batch of 2 have length 3: say targets='step'"):
        collate(pairs)


@pytest.mark.parametrize(
    ("target", "got"),
    [(torch.arange(4), r"shape \(4,\)"), (torch.tensor(1), r"shape \(\)"), (5, "int")],
)
def test_targets_of_steps_are_as_long_as_sequences(target, got):
    x, y = sequences(4, lengths=[3, 5])
    with pytest.raises(
        ValueError, match=f"target 1 must be a tensor with an entry for each of 5 steps, got {got}"
    ):
        collate([(x, x[:, 0]), (y, target)], targets="step")


@pytest.mark.parametrize(
    ("sample", "error", "text"),
    [
        ((torch.zeros(3, 1), 0, 1), ValueError, "sample 0 has 3 items, expected a pair"),
        ((torch.zeros(3, 1),), ValueError, "sample 0 has 1 items, expected a pair"),
        (
            {"x": torch.zeros(3, 1), "y": 0},
            TypeError,
            "sample 0 is a dict, expected a tensor or a pair",
        ),
    ],
    ids=["three", "one", "dict"],
)
def test_samples_are_tensors_or_pairs(sample, error, text):
    with pytest.raises(error, match=text):
        collate([sample])


def test_unknown_targets():
    with pytest.raises(ValueError, match="targets is 'both', expected 'sample', 'step' or None"):
        collate(sequences(2), targets="both")


def test_a_mean_is_of_a_padded_tensor():
    jagged = torch.nested.nested_tensor(sequences(2), layout=torch.jagged)
    with pytest.raises(ValueError, match="input is a nested tensor, expected a padded one"):
        masked_mean(jagged, torch.tensor(LENGTHS))


def test_padding_value():
    batch = collate(sequences(2), padding_value=-7.0)
    past = ~length_mask(batch.lengths, 7)
    assert (batch.input[past] == -7).all() and past.sum() == 4 * 7 - sum(LENGTHS)


def test_a_sequence_without_steps_is_padded():
    batch = collate(sequences(2, lengths=[0, 2]))
    output, _ = fastrnn.GRU(2, 3)(batch.input, lengths=batch.lengths)
    assert not output[:, 0].any() and output[:, 1].all()


def test_layouts_give_one_result():
    gru, given = fastrnn.GRU(4, 5), sequences(4)
    finals = []
    for layout in ("padded", "packed", "jagged"):
        input, lengths, _ = collate(given, layout=layout, batch_first=layout == "jagged")
        keywords = {"lengths": lengths} if layout == "padded" else {}
        gru.batch_first = layout == "jagged"
        finals.append(gru(input, **keywords)[1])
    assert torch.equal(finals[0], finals[1]) and torch.equal(finals[0], finals[2])


@pytest.mark.parametrize(
    ("samples", "keywords", "error", "message"),
    [
        ([], {}, ValueError, "samples is empty"),
        (
            [torch.ones(3, 2), torch.ones(4, 3)],
            {},
            ValueError,
            r"sequence 1 has shape \(4, 3\), expected \(steps, 2\)",
        ),
        ([torch.ones(3, 2), torch.ones(())], {}, ValueError, "sequence 1 has shape"),
        ([([1, 2], 0)], {}, TypeError, "sequence 0 is a list, expected a tensor"),
        ([torch.ones(0, 2)], {"layout": "packed"}, ValueError, "sequence 0 has no steps"),
        ([torch.ones(1, 2)], {"layout": "ragged"}, ValueError, "layout is 'ragged', expected"),
    ],
)
def test_collate_names_what_is_wrong(samples, keywords, error, message):
    with pytest.raises(error, match=message):
        collate(samples, **keywords)


# --- Sampler ------------------------------------------------------------------------------------

MANY = torch.randint(1, 100, (407,), generator=torch.Generator().manual_seed(1))


def padded_steps(batches, lengths):
    return sum(int(lengths[batch].max()) * len(batch) for batch in batches)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_sample_once(shuffle, drop_last):
    sampler = LengthGroupedSampler(MANY, 16, shuffle=shuffle, drop_last=drop_last)
    batches = list(sampler)
    seen = [index for batch in batches for index in batch]
    assert len(batches) == len(sampler) == (25 if drop_last else 26)
    assert len(set(seen)) == len(seen) == (400 if drop_last else 407)
    assert sorted(map(len, batches))[1:] == [16] * (len(batches) - 1)
    assert (seen == list(range(len(seen)))) == (not shuffle)


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = LengthGroupedSampler(MANY, 16, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4) and order(0, 3) != order(1, 3)


def test_similar_lengths_come_together():
    random = torch.randperm(407, generator=torch.Generator().manual_seed(0)).split(16)
    grouped = padded_steps(LengthGroupedSampler(MANY, 16), MANY)
    valid = int(MANY.sum())
    assert grouped - valid < 0.4 * (padded_steps(random, MANY) - valid)


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7])
def test_processes_share_each_batch(num_replicas):
    shares = [
        list(LengthGroupedSampler(MANY, 16, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    for whole, *parts in zip(LengthGroupedSampler(MANY, 16), *shares, strict=True):
        assert sorted(whole) == sorted(index for part in parts for index in part)
        sizes = [len(part) for part in parts]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1


def test_a_resumed_epoch_goes_on_where_it_was():
    sampler = LengthGroupedSampler(MANY, 16)
    whole = list(sampler)
    sampler.set_epoch(0, start=11)
    assert list(sampler) == whole[11:]


def test_with_a_data_loader():
    dataset = [(torch.full((n, 1), float(n)), n) for n in MANY.tolist()]
    sampler = LengthGroupedSampler(MANY, 16, drop_last=True)
    loader = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=partial(collate, batch_first=True)
    )
    batches = list(loader)
    assert len(batches) == 25
    for input, lengths, target in batches:
        assert input.shape == (16, lengths.max(), 1) and torch.equal(lengths, target)
        assert torch.equal(
            masked_mean(input, lengths, batch_first=True).squeeze(1), lengths.float()
        )


@pytest.mark.parametrize(
    ("lengths", "batch_size", "keywords", "message"),
    [
        ([], 1, {}, r"lengths has shape \(0,\)"),
        ([1, -1], 1, {}, "lengths has -1"),
        ([1], 0, {}, "batch_size is 0"),
        ([1] * 4, 4, {"num_replicas": 2, "rank": 2}, "rank is 2, expected 0 to 1"),
        (
            [1] * 9,
            4,
            {"num_replicas": 2, "rank": 0},
            "a batch has 1 samples .* fewer than 2 processes",
        ),
        ([1], 4, {"num_replicas": 2, "rank": 0, "drop_last": True}, "fewer than 2 processes"),
    ],
)
def test_sampler_names_what_is_wrong(lengths, batch_size, keywords, message):
    with pytest.raises(ValueError, match=message):
        LengthGroupedSampler(lengths, batch_size, **keywords)


# --- Masked losses and means --------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_padding_has_no_effect(batch_first, poison):
    given = sequences(3, lengths=[4, 0, 6])
    batch = collate(given, batch_first=batch_first, padding_value=poison)
    x = batch.input.requires_grad_()
    mean = masked_mean(x, batch.lengths, batch_first=batch_first)
    torch.testing.assert_close(mean[0], given[0].mean(0))
    torch.testing.assert_close(mean[2], given[2].mean(0))
    assert not mean[1].any()

    target = torch.zeros(x.shape[:2], dtype=torch.int64)
    keywords = {"batch_first": batch_first, "reduction": "sum"}
    loss = masked_loss(F.cross_entropy, x, target, batch.lengths, **keywords)
    rows = torch.cat(given)
    torch.testing.assert_close(
        loss, F.cross_entropy(rows, torch.zeros(10, dtype=torch.int64), reduction="sum")
    )
    (gradient,) = torch.autograd.grad(loss + mean.sum(), x)
    mask = length_mask(batch.lengths, 6, batch_first=batch_first)
    assert gradient[mask].isfinite().all() and gradient[mask].all(dim=-1).any()
    assert not gradient[~mask].any()


def test_masked_loss_takes_the_same_shapes_for_numbers():
    batch = collate([(x, 2 * x) for x in sequences(3)])
    loss = masked_loss(F.mse_loss, batch.input, batch.target, batch.lengths)
    torch.testing.assert_close(loss, torch.cat(sequences(3)).square().mean())


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((5, 3), [1, 2], r"lengths has shape \(2,\), expected \(3,\)"),
        ((5, 3), [1, 2, 6], "lengths has values outside 0 to 5"),
        ((5, 3), [1, 2, -1], "lengths has values outside 0 to 5"),
        ((5,), [1], "input has shape"),
    ],
)
def test_masks_name_what_is_wrong(shape, lengths, message):
    x, lengths = torch.ones(shape), torch.tensor(lengths)
    with pytest.raises(ValueError, match=message):
        masked_mean(x, lengths)
    with pytest.raises(ValueError, match=message):
        masked_loss(F.mse_loss, x, x, lengths)


def test_masked_loss_wants_the_targets_shape():
    with pytest.raises(ValueError, match=r"target has shape \(5,\), expected the input's \(5, 2\)"):
        masked_loss(F.mse_loss, torch.ones(5, 2), torch.ones(5), torch.tensor([1, 2]))
