"""What happens to samples that cannot be read: a function of (seed, epoch, id, copy), whoever finds them."""

import dataclasses
import re

import numpy as np
import pytest
from broken_source import BrokenSource
from scipy import stats

from pipelines.batch import BadSample
from pipelines.order import EvaluationOrder, Share, TrainingOrder
from pipelines.policy import Action, Policy, Settled

COUNT, CLASSES = 60, 3
REASON = "only 17 of 300 bytes"


def make_source(broken: list[int], *, known: bool) -> BrokenSource:
    reasons = dict.fromkeys(broken, REASON)
    return BrokenSource(
        class_names=("ant", "bee", "cat"),
        labels_N=np.arange(COUNT) % CLASSES,
        images_NHWC=np.arange(COUNT, dtype=np.uint8).repeat(4).reshape(COUNT, 2, 2, 1),
        bad=reasons if known else {},
        broken=reasons,
    )


def share_of(
    ids: list[int], *, copies: list[int] | None = None, valid: list[bool] | None = None, own: slice | None = None
) -> Share:
    return Share(
        ids_N=np.array(ids),
        copies_N=np.array(copies or [0] * len(ids)),
        positions_N=np.arange(len(ids)),
        valid_N=np.array(valid or [True] * len(ids)),
        own=slice(0, len(ids)) if own is None else own,
    )


def settle(
    share: Share,
    broken: list[int],
    *,
    known: bool,
    action: Action = "replace",
    seed: int = 0,
    epoch: int = 0,
    step: int = 7,
    split: str = "train",
) -> Settled:
    """The share settled, what is bad being known beforehand or found by an executor."""
    policy = Policy(make_source(broken, known=known), split=split, action=action, seed=seed)
    if known:
        return policy.before(share, epoch=epoch, step=step)
    before = policy.before(share, epoch=epoch, step=step)
    assert before.share is share, "nothing is known yet"
    bad = {row: REASON for row, sample_id in enumerate(share.ids_N.tolist()) if sample_id in broken}
    return policy.after(before.share, bad, epoch=epoch, step=step)


KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known_beforehand", "found_by_an_executor"])


@KNOWN
def test_a_share_without_bad_samples_passes_as_it_is(known: bool) -> None:
    share = share_of([3, 4, 5], own=slice(0, 3))
    settled = settle(share, [], known=known)
    assert settled.share is share
    assert settled.met == []


@KNOWN
def test_raise_names_the_file_the_reason_and_the_ways_out(known: bool) -> None:
    wanted = (
        "image 4: only 17 of 300 bytes. Repair or remove it, or go on without: --data.on_bad_sample replace "
        "(in training), --data.on_bad_eval_sample exclude (in evaluation)."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        settle(share_of([3, 4, 5]), [4], known=known, action="raise")


@KNOWN
def test_a_replacement_is_of_the_same_class_readable_and_described(known: bool) -> None:
    ids, broken = list(range(24)), [4, 9, 23]
    share = share_of(ids)
    settled = settle(share, broken, known=known, epoch=2, step=5)
    made = settled.share
    assert [place for place in range(24) if made.ids_N[place] != ids[place]] == broken
    assert (made.ids_N % CLASSES == share.ids_N % CLASSES).all()
    assert not set(made.ids_N.tolist()) & set(broken)
    assert made.valid_N.all()
    assert made.positions_N.tolist() == share.positions_N.tolist()
    untouched = [place for place in range(24) if place not in broken]
    assert (made.copies_N[untouched] == 0).all()
    assert settled.met == [
        BadSample(
            split="train",
            epoch=2,
            step=5,
            sample_id=place,
            name=f"image {place}",
            reason=REASON,
            replaced_by=int(made.ids_N[place]),
            replaced_by_name=f"image {made.ids_N[place]}",
        )
        for place in broken
    ]


def test_a_replacement_is_drawn_as_a_copy_that_no_order_counts_up_to() -> None:
    copies = settle(share_of([0, 1, 2]), [0, 1, 2], known=True).share.copies_N
    assert copies.min() >= 2**20
    assert len(set(copies.tolist())) == 3


def test_it_does_not_matter_who_found_the_bad_samples_nor_in_which_share_they_lie() -> None:
    ids, broken = list(range(COUNT)), [0, 3, 4, 17, 58]
    whole = {known: settle(share_of(ids), broken, known=known, seed=3, epoch=4) for known in (True, False)}
    assert whole[True].met == whole[False].met
    for one, other in zip(whole[True].share[:4], whole[False].share[:4], strict=True):
        assert np.array_equal(one, other)
    for known in (True, False):
        for sample_id in broken:  # alone, with nothing met before
            alone = settle(share_of([sample_id]), broken, known=known, seed=3, epoch=4).share
            assert alone.ids_N[0] == whole[True].share.ids_N[sample_id]
            assert alone.copies_N[0] == whole[True].share.copies_N[sample_id]


def test_seed_epoch_and_copy_each_choose_another_replacement() -> None:
    def chosen(*, copy: int = 0, **key: int) -> list[int]:
        ids = list(range(0, COUNT, CLASSES))[:10]
        return settle(share_of(ids, copies=[copy] * 10), ids, known=True, **key).share.ids_N.tolist()

    first = chosen()
    assert chosen() == first
    for other in (chosen(seed=1), chosen(epoch=1), chosen(copy=1)):
        assert sum(one == two for one, two in zip(first, other, strict=True)) <= 4, "by chance 1 of 10 stays"


def test_every_readable_sample_of_the_class_replaces_equally_often() -> None:
    source = make_source([1], known=True)
    policy = Policy(source, split="train", action="replace", seed=0)
    share = share_of([1], own=slice(0, 1))
    chosen = [int(policy.before(share, epoch=epoch, step=0).share.ids_N[0]) for epoch in range(1900)]
    counts = np.bincount(chosen, minlength=COUNT)[4::CLASSES]  # 19 of 20 are readable
    assert counts.sum() == 1900
    assert stats.chisquare(counts).pvalue > 1e-3


@KNOWN
def test_a_replacement_that_is_bad_in_its_turn_is_passed_over(known: bool) -> None:
    members = list(range(1, COUNT, CLASSES))
    settled = settle(share_of(members), members[:-4], known=known)
    assert set(settled.share.ids_N.tolist()) <= set(members[-4:])
    assert len(set(settled.share.ids_N[:-4].tolist())) > 1


@KNOWN
def test_the_only_readable_image_of_a_class_is_always_found(known: bool) -> None:
    members = list(range(1, COUNT, CLASSES))
    for epoch in range(20):
        settled = settle(share_of(members), members[:-1], known=known, epoch=epoch)
        assert settled.share.ids_N.tolist() == [members[-1]] * len(members)


def test_a_bad_replacement_that_nobody_has_met_yet_is_found_by_reading_it() -> None:
    members = list(range(1, COUNT, CLASSES))
    source = make_source(members[:-1], known=False)
    policy = Policy(source, split="train", action="replace", seed=0)
    settled = policy.after(share_of([1], own=slice(0, 1)), {0: REASON}, epoch=0, step=0)
    assert settled.share.ids_N.tolist() == [members[-1]]
    assert [bad.sample_id for bad in settled.met] == [1], "only what stood in the share is told"


@KNOWN
def test_an_image_of_weight_0_replaces_nothing(known: bool) -> None:
    weights_N = (np.arange(COUNT) >= 57).astype(np.float64)
    source = dataclasses.replace(make_source([1], known=known), weights_N=weights_N)
    policy = Policy(source, split="train", action="replace", seed=0)
    for epoch in range(20):
        settled = policy.after(share_of([1], own=slice(0, 1)), {0: REASON}, epoch=epoch, step=0)
        assert settled.share.ids_N.tolist() == [58], "the one bee of a weight above 0"
    policy = Policy(dataclasses.replace(source, weights_N=0 * weights_N), split="train", action="replace", seed=0)
    with pytest.raises(ValueError, match="no other image of its class 'bee', of a weight above 0, can be read"):
        policy.after(share_of([1], own=slice(0, 1)), {0: REASON}, epoch=0, step=0)


@KNOWN
def test_a_class_without_any_readable_image_is_named(known: bool) -> None:
    broken = list(range(1, COUNT, CLASSES))
    wanted = f"image 4: {REASON}; and no other image of its class 'bee' can be read. Repair the class, or remove it."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        settle(share_of([0, 4]), broken, known=known)


@KNOWN
def test_rows_of_other_ranks_are_replaced_alike_but_told_by_their_own_rank_alone(known: bool) -> None:
    ids, broken = [6, 7, 8, 9], [6, 8, 9]
    whole = settle(share_of(ids), broken, known=known)
    told = []
    for own in (slice(0, 3), slice(3, 4)):
        settled = settle(share_of(ids, own=own), broken, known=known)
        assert settled.share.ids_N.tolist() == whole.share.ids_N.tolist()
        told += settled.met
    assert told == whole.met
    assert len(told) == 3


@KNOWN
@pytest.mark.parametrize("action", ["raise", "exclude"])
def test_rows_that_only_fill_up_are_never_told_nor_a_reason_to_stop(known: bool, action: Action) -> None:
    share = share_of([58, 59, 59, 59], valid=[True, True, False, False])
    if action == "raise":
        share = share_of([58, 58, 59, 59], valid=[True, True, False, False])
    settled = settle(share, [59], known=known, action=action, split="val")
    assert settled.share.valid_N.tolist() == [True, action == "raise", False, False]
    assert [bad.sample_id for bad in settled.met] == [59] * (action == "exclude")
    assert 59 not in settled.share.ids_N


@KNOWN
def test_exclude_leaves_samples_uncounted_and_puts_readable_ones_on_their_rows(known: bool) -> None:
    broken = [0, 1, 5]
    settled = settle(share_of([4, 5, 6]), broken, known=known, action="exclude", split="val", step=2)
    assert settled.share.valid_N.tolist() == [True, False, True]
    assert settled.share.ids_N[[0, 2]].tolist() == [4, 6]
    assert int(settled.share.ids_N[1]) not in ([5] if not known else broken)
    (met,) = settled.met
    assert (met.split, met.sample_id, met.reason) == ("val", 5, REASON)
    assert (met.replaced_by, met.replaced_by_name) == (None, None)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_evaluation_tells_each_bad_sample_once_over_all_ranks(world_size: int) -> None:
    broken = [0, 31, 59]  # the last fills up, too
    source = make_source(broken, known=True)
    met, counted = [], []
    for rank in range(world_size):
        policy = Policy(source, split="test", action="exclude", seed=0)
        order = EvaluationOrder(COUNT, batch_size_per_rank=8, rank=rank, world_size=world_size)
        for step in range(order.steps_per_epoch):
            settled = policy.before(order.share(step, epoch=0), epoch=0, step=step)
            met += [bad.sample_id for bad in settled.met]
            counted += settled.share.ids_N[settled.share.valid_N].tolist()
    assert sorted(met) == broken
    assert sorted(counted + met) == list(range(COUNT))


@pytest.mark.parametrize("world_size", [1, 2, 6])
def test_ranks_agree_on_the_replacements_in_widened_shares(world_size: int) -> None:
    source = make_source([2, 3, 5, 7, 11, 13], known=True)
    joined, told = [], []
    for rank in range(world_size):
        policy = Policy(source, split="train", action="replace", seed=1)
        order = TrainingOrder(COUNT, global_batch_size=30, seed=1, rank=rank, world_size=world_size, in_pairs=True)
        share = order.share(1, epoch=3)
        settled = policy.before(share, epoch=3, step=1)
        joined.append((settled.share.ids_N[share.own], settled.share.copies_N[share.own]))
        told += settled.met
    ids, copies = (np.concatenate(parts).tolist() for parts in zip(*joined, strict=True))
    alone = Policy(source, split="train", action="replace", seed=1)
    order = TrainingOrder(COUNT, global_batch_size=30, seed=1, rank=0, world_size=1)
    wanted = alone.before(order.share(1, epoch=3), epoch=3, step=1)
    assert (ids, copies) == (wanted.share.ids_N.tolist(), wanted.share.copies_N.tolist())
    assert told == wanted.met


def test_the_order_in_which_samples_are_met_changes_no_replacement() -> None:
    source = make_source([0, 3, 6, 9], known=False)
    found = []
    for ids in ([0, 3, 6, 9], [9, 6, 3, 0], [6, 0, 9, 3]):
        policy = Policy(source, split="train", action="replace", seed=0)
        chosen = {}
        for sample_id in ids:
            settled = policy.after(share_of([sample_id], own=slice(0, 1)), {0: REASON}, epoch=0, step=0)
            chosen[sample_id] = int(settled.share.ids_N[0])
        found.append(chosen)
    assert found[0] == found[1] == found[2]


def test_what_is_known_of_a_source_is_left_as_it_is() -> None:
    source = make_source([3], known=True)
    policy = Policy(source, split="train", action="replace", seed=0)
    policy.after(share_of([6], own=slice(0, 1)), {0: REASON}, epoch=0, step=0)
    assert dataclasses.asdict(source)["bad"] == {3: REASON}
