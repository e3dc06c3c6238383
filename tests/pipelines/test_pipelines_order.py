"""Which samples each step takes: exact at every world size."""

import hashlib
import re

import numpy as np
import pytest
from scipy import stats

from pipelines.counter import Stream, random_bits
from pipelines.order import EvaluationOrder, Share, TrainingOrder, Weighting, epoch_permutation
from pipelines.sampling import draw_sequence, expectations

WORLD_SIZES = [1, 2, 3, 7, 8]


def training_orders(
    world_size: int, *, num_samples: int = 1797, batch: int = 168, seed: int = 0
) -> list[TrainingOrder]:
    return [
        TrainingOrder(num_samples, global_batch_size=batch, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


def test_an_epoch_is_a_permutation_sorted_by_the_random_bits_of_each_id() -> None:
    permutation = epoch_permutation(1797, seed=3, epoch=5)
    bits = [int(random_bits(3, Stream.ORDER, 5, sample_id)) for sample_id in range(1797)]
    assert permutation.tolist() == sorted(range(1797), key=lambda sample_id: bits[sample_id])
    assert sorted(permutation) == list(range(1797))


def test_epochs_and_seeds_shuffle_differently_and_the_same_ones_equally() -> None:
    shuffles = [epoch_permutation(100, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(shuffle) for shuffle in shuffles}) == 4
    epoch_permutation.cache_clear()
    assert epoch_permutation(100, seed=0, epoch=1).tolist() == shuffles[1]


def test_every_sample_is_at_every_place_equally_often() -> None:
    shuffles = np.stack([epoch_permutation(8, seed=0, epoch=epoch) for epoch in range(4000)])
    counts = np.stack([np.bincount(shuffles[:, place], minlength=8) for place in range(8)])
    # rows and columns of the table sum to 4000: (8 - 1)^2 degrees of freedom
    statistic = ((counts - 500) ** 2 / 500).sum() * 7 / 8
    assert stats.chi2.sf(statistic, df=49) > 1e-3


def test_the_shared_permutation_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(10, seed=0, epoch=0)[0] = 1


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_ranks_together_take_what_one_process_takes(world_size: int) -> None:
    (alone,) = training_orders(1)
    ranks = training_orders(world_size)
    assert {order.steps_per_epoch for order in ranks} == {alone.steps_per_epoch} == {10}
    for epoch in (0, 3):
        for step in range(10):
            shares = [order.share(step, epoch=epoch) for order in ranks]
            assert {len(share.ids_N) for share in shares} == {168 // world_size}
            assert all(share.valid_N.all() for share in shares)
            together = np.concatenate([share.ids_N for share in shares])
            assert together.tolist() == alone.share(step, epoch=epoch).ids_N.tolist()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_epoch_takes_each_sample_at_most_once_and_leaves_out_what_it_says(world_size: int) -> None:
    ranks = training_orders(world_size)
    taken = np.concatenate([order.share(step, epoch=0).ids_N for step in range(10) for order in ranks])
    assert len(taken) == len(set(taken.tolist())) == 1680
    assert {order.num_left_out for order in ranks} == {1797 - 1680}
    assert {order.samples_per_step for order in ranks} == {168}


def test_each_epoch_leaves_out_other_samples() -> None:
    (order,) = training_orders(1)
    left_out = []
    for epoch in (0, 1):
        taken = np.concatenate([order.share(step, epoch=epoch).ids_N for step in range(10)])
        left_out.append(set(range(1797)) - set(taken.tolist()))
    assert [len(one) for one in left_out] == [117, 117]
    assert len(left_out[0] & left_out[1]) < 30  # 117 * 117 / 1797 = 7.6 are expected


def test_a_batch_that_divides_the_data_leaves_nothing_out() -> None:
    order = TrainingOrder(60, global_batch_size=20, seed=0, rank=0, world_size=1)
    assert (order.steps_per_epoch, order.num_left_out) == (3, 0)


def test_a_batch_larger_than_the_data_is_refused_with_the_largest_that_works() -> None:
    wanted = "global_batch_size=61 is more than the 60 training images; use at most 60."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        TrainingOrder(60, global_batch_size=61, seed=0, rank=0, world_size=1)
    assert TrainingOrder(60, global_batch_size=60, seed=0, rank=0, world_size=1).steps_per_epoch == 1


def test_a_batch_that_the_ranks_cannot_share_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"global_batch_size=20 is not divisible by world_size=3"):
        TrainingOrder(60, global_batch_size=20, seed=0, rank=0, world_size=3)


def test_the_order_of_plan_version_1_is_what_it_was_when_it_was_set() -> None:
    order = TrainingOrder(1797, global_batch_size=168, seed=3, rank=1, world_size=3)
    digest = hashlib.sha256()
    for epoch in (0, 3):
        for step in range(10):
            digest.update(order.share(step, epoch=epoch).ids_N.tobytes())
    assert digest.hexdigest() == "5940ca645d16ffb5d5515747e2b71855e0d48f33c7d94ef9bd587cdacf7e7889"
    assert order.share(2, epoch=3).ids_N[:8].tolist() == [1003, 554, 575, 48, 300, 470, 113, 247]


# --- repeated augmentation


def repeated(num_repeats: int, *, batch: int = 24, rank: int = 0, world_size: int = 1) -> TrainingOrder:
    return TrainingOrder(
        100, global_batch_size=batch, seed=0, rank=rank, world_size=world_size, num_repeats=num_repeats
    )


@pytest.mark.parametrize("num_repeats", [1, 2, 3, 4, 8, 24])
def test_each_sample_of_a_global_batch_stands_there_as_often_as_asked_as_copies_0_1_and_so_on(
    num_repeats: int,
) -> None:
    order = repeated(num_repeats)
    assert (order.steps_per_epoch, order.samples_per_step) == (4, 24)
    for step in range(4):
        share = order.share(step, epoch=1)
        met: dict[int, list[int]] = {}
        for sample_id, copy in zip(share.ids_N.tolist(), share.copies_N.tolist(), strict=True):
            met.setdefault(sample_id, []).append(copy)
        assert list(met.values()) == [list(range(num_repeats))] * (24 // num_repeats)


@pytest.mark.parametrize("num_repeats", [1, 2, 3])
def test_an_epoch_of_repeats_keeps_its_steps_and_meets_its_part_of_the_permutation_in_order(num_repeats: int) -> None:
    order = repeated(num_repeats)
    num_different = 24 // num_repeats
    met = np.concatenate([order.share(step, epoch=2).ids_N[:num_different] for step in range(4)])
    assert met.tolist() == epoch_permutation(100, seed=0, epoch=2)[: 4 * num_different].tolist()
    assert order.num_left_out == 100 - 4 * num_different


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_repeats_as_one_process_has_them(world_size: int) -> None:
    alone = repeated(2)
    for step in range(4):
        shares = [repeated(2, rank=rank, world_size=world_size).share(step, epoch=0) for rank in range(world_size)]
        wanted = alone.share(step, epoch=0)
        for name in ("ids_N", "copies_N", "positions_N"):
            together = np.concatenate([getattr(share, name) for share in shares])
            assert together.tolist() == getattr(wanted, name).tolist()


@pytest.mark.parametrize(("num_repeats", "batch"), [(2, 24), (3, 24), (4, 24), (6, 24), (2, 4)])
def test_no_pair_holds_the_same_sample_twice_where_the_different_ones_are_even_in_number(
    num_repeats: int, batch: int
) -> None:
    assert batch // num_repeats % 2 == 0
    order = repeated(num_repeats, batch=batch)
    for step in range(order.steps_per_epoch):
        pairs = order.share(step, epoch=0).ids_N.reshape(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all()


def test_repeats_that_do_not_divide_the_batch_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"global_batch_size=24 is not divisible by num_repeats=5; use 20\."):
        repeated(5)


# --- weights

LABELS = np.repeat([0, 1, 2], [70, 25, 5])
WEIGHTING = Weighting(LABELS, 1 / np.bincount(LABELS)[LABELS])


def weighted(*, rank: int = 0, world_size: int = 1, **options: int) -> TrainingOrder:
    return TrainingOrder(
        100, global_batch_size=24, seed=3, rank=rank, world_size=world_size, weighting=WEIGHTING, **options
    )


def test_a_weighted_epoch_takes_the_draws_in_order_with_their_copies() -> None:
    order = weighted()
    assert (order.steps_per_epoch, order.num_left_out) == (4, 4)
    for epoch in (0, 1):
        wanted = draw_sequence(LABELS, expectations(WEIGHTING.weights_N), seed=3, epoch=epoch)
        shares = [order.share(step, epoch=epoch) for step in range(4)]
        assert np.concatenate([share.ids_N for share in shares]).tolist() == wanted.ids_N[:96].tolist()
        assert wanted.copies_N is not None
        assert np.concatenate([share.copies_N for share in shares]).tolist() == wanted.copies_N[:96].tolist()
        assert np.concatenate([share.positions_N for share in shares]).tolist() == list(range(96))


@pytest.mark.parametrize("num_repeats", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_weighted_draws_as_one_process_has_them(world_size: int, num_repeats: int) -> None:
    alone = weighted(num_repeats=num_repeats)
    for epoch, step in ((0, 0), (0, 3), (2, 1)):  # in any order: a resumed run begins anywhere
        shares = [
            weighted(rank=rank, world_size=world_size, num_repeats=num_repeats).share(step, epoch=epoch)
            for rank in range(world_size)
        ]
        wanted = alone.share(step, epoch=epoch)
        for name in ("ids_N", "copies_N", "positions_N"):
            together = np.concatenate([getattr(share, name) for share in shares])
            assert together.tolist() == getattr(wanted, name).tolist()


@pytest.mark.parametrize("num_repeats", [1, 2, 4])
def test_no_copy_of_a_sample_comes_twice_in_a_weighted_epoch(num_repeats: int) -> None:
    order = weighted(num_repeats=num_repeats)
    shares = [order.share(step, epoch=0) for step in range(4)]
    met = [pair for share in shares for pair in zip(share.ids_N.tolist(), share.copies_N.tolist(), strict=True)]
    assert len(set(met)) == len(met) == 96
    assert max(copy for _, copy in met) >= num_repeats


# --- whole pairs


def paired(batch: int, *, rank: int, world_size: int, in_pairs: bool = True) -> TrainingOrder:
    return TrainingOrder(100, global_batch_size=batch, seed=0, rank=rank, world_size=world_size, in_pairs=in_pairs)


@pytest.mark.parametrize(("batch", "world_size"), [(6, 1), (6, 2), (6, 3), (6, 6), (30, 2), (30, 10), (14, 7)])
def test_a_share_is_widened_to_whole_pairs_and_says_which_rows_are_its_own(batch: int, world_size: int) -> None:
    whole = paired(batch, rank=0, world_size=1).share(2, epoch=1)
    size_per_rank = batch // world_size
    for rank in range(world_size):
        share = paired(batch, rank=rank, world_size=world_size).share(2, epoch=1)
        narrow = paired(batch, rank=rank, world_size=world_size, in_pairs=False).share(2, epoch=1)
        for name in ("ids_N", "copies_N", "positions_N", "valid_N"):
            assert getattr(share, name)[share.own].tolist() == getattr(narrow, name).tolist()
        assert len(share.ids_N) % 2 == 0
        assert size_per_rank <= len(share.ids_N) <= size_per_rank + 2
        assert (share.positions_N[0] % 2, share.positions_N[-1] % 2) == (0, 1)
        rows = share.positions_N - 2 * batch
        assert share.ids_N.tolist() == whole.ids_N[rows].tolist(), "partners are those of the whole batch"


def test_positions_count_on_from_step_to_step_and_pairs_never_straddle_two_steps() -> None:
    order = paired(6, rank=0, world_size=1)
    positions = np.concatenate([order.share(step, epoch=0).positions_N for step in range(3)])
    assert positions.tolist() == list(range(18))


def test_without_mixing_a_share_is_all_its_own() -> None:
    share = paired(30, rank=3, world_size=10, in_pairs=False).share(0, epoch=0)
    assert share.positions_N.tolist() == [9, 10, 11]
    assert share.positions_N[share.own].tolist() == [9, 10, 11]


def test_an_evaluation_share_has_first_copies_its_positions_and_is_all_its_own() -> None:
    share = EvaluationOrder(10, batch_size_per_rank=4, rank=1, world_size=2).share(1, epoch=0)
    assert isinstance(share, Share)
    assert share.positions_N.tolist() == [12, 13, 14, 15]
    assert share.copies_N.tolist() == [0] * 4
    assert share.valid_N[share.own].tolist() == [False] * 4


def evaluation_batches(num_samples: int, batch_size: int, world_size: int) -> list[tuple[list[int], list[bool]]]:
    """The batches of all ranks in the order step 0 rank 0, step 0 rank 1, ...: ids and which are valid."""
    ranks = [
        EvaluationOrder(num_samples, batch_size_per_rank=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({order.steps_per_epoch for order in ranks}) == 1, "all ranks must take the same number of steps"
    shares = [order.share(step, epoch=0) for step in range(ranks[0].steps_per_epoch) for order in ranks]
    return [(share.ids_N.tolist(), share.valid_N.tolist()) for share in shares]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("num_samples", "batch_size"), [(1, 4), (7, 4), (64, 8), (65, 8), (360, 256), (1797, 32)])
def test_evaluation_counts_every_sample_exactly_once(num_samples: int, batch_size: int, world_size: int) -> None:
    batches = evaluation_batches(num_samples, batch_size, world_size)
    counted = [one for ids, valid in batches for one, is_valid in zip(ids, valid, strict=True) if is_valid]
    assert counted == list(range(num_samples))
    assert all(len(ids) == batch_size and min(ids) >= 0 and max(ids) < num_samples for ids, _ in batches)
    assert len(batches) == -(-num_samples // (batch_size * world_size)) * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("num_samples", "batch_size"), [(7, 4), (65, 8), (1797, 32)])
def test_evaluation_batches_hold_the_same_samples_at_every_world_size(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    alone = evaluation_batches(num_samples, batch_size, 1)
    ranks = evaluation_batches(num_samples, batch_size, world_size)
    assert ranks[: len(alone)] == alone
    assert not any(any(valid) for _, valid in ranks[len(alone) :])


def test_evaluation_is_the_same_in_every_epoch_and_leaves_nothing_out() -> None:
    order = EvaluationOrder(10, batch_size_per_rank=4, rank=0, world_size=1)
    assert order.num_left_out == 0
    assert order.share(1, epoch=0).ids_N.tolist() == order.share(1, epoch=9).ids_N.tolist() == [4, 5, 6, 7]
