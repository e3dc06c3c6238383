"""The loader: a position is (epoch, samples consumed), whoever continues it; bad samples are mended on the way."""

import itertools
import json
import re
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from broken_source import BrokenSource
from executor_builders import EXECUTORS, Setting

from pipelines.batch import BadSample, Batch, Mix
from pipelines.effects import Effects, EffectSettings, Erasing, Mixing, draw_effects, draw_mix
from pipelines.execution import Executor
from pipelines.geometry import carry_out, carry_out_plan
from pipelines.loader import Draw, Part, PlannedLoader
from pipelines.order import EvaluationOrder, Order, Share, TrainingOrder
from pipelines.parallel import RowPool
from pipelines.plan import PLAN_VERSION, Augmentation, Fit, Plan, plan_evaluation, plan_training
from pipelines.policy import Action, Policy
from pipelines.source import ArraySource
from pipelines.tail import Tail
from pipelines.transfer import Transfer

NUM_SAMPLES, GLOBAL_BATCH, STEPS = 50, 12, 4  # 2 samples left out of each epoch
SIZE = 12
FIT = Fit("crop", 1.0)
AUGMENTATION = Augmentation(crop="pad", pad_px=3, flip="random")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
CPU = torch.device("cpu")
REASON = "only 17 of 300 bytes"
NAMES = ["reference_0_workers", "reference_2_workers", "resident", "threads_2", "processes_2"]


def make_source(*, seed: int = 0, broken: list[int] | None = None, known: bool = True) -> BrokenSource:
    """50 images of three classes; those in `broken` cannot be read, and it may be known beforehand."""
    rng = np.random.default_rng(seed)
    reasons = dict.fromkeys(broken or [], REASON)
    return BrokenSource(
        class_names=("a", "b", "c"),
        labels_N=rng.integers(0, 3, NUM_SAMPLES),
        images_NHWC=rng.integers(0, 256, (NUM_SAMPLES, SIZE, SIZE, 3), dtype=np.uint8),
        broken=reasons,
        bad=reasons if known else {},
    )


def build_executor(name: str, source: ArraySource) -> Executor:
    return EXECUTORS[name](source, Setting(size_px=SIZE, windows="stored"))


def join(
    source: ArraySource,
    *,
    order: Order,
    draw: Draw,
    executor: str,
    action: Action,
    seed: int = 1,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    dtype: torch.dtype = torch.float32,
    max_bad_frac: float = 0.5,
    own_pipeline: str | None = None,
) -> PlannedLoader:
    return PlannedLoader(
        source.labels_N,
        order=order,
        draw=draw,
        executor=build_executor(executor, source),
        policy=Policy(source, split="train", action=action, seed=seed),
        repair=partial(carry_out_plan, source=source, channels=3, interpolation="bilinear"),
        transfer=Transfer(CPU),
        tail=Tail(mean=mean, std=std, device=CPU, dtype=dtype, pool=RowPool(1)),
        seed=seed,
        fingerprint=source.fingerprint(),
        max_bad_frac=max_bad_frac,
        device=CPU,
        own_pipeline=own_pipeline,
    )


def build_loader(
    source: ArraySource,
    *,
    executor: str = "reference_0_workers",
    rank: int = 0,
    world_size: int = 1,
    seed: int = 1,
    global_batch_size: int = GLOBAL_BATCH,
    settings: EffectSettings = EffectSettings(),  # noqa: B008  # frozen
    num_repeats: int = 1,
    num_views: int = 1,
    action: Action = "raise",
    max_bad_frac: float = 0.5,
    own_pipeline: str | None = None,
) -> PlannedLoader:
    def draw_plan(share: Share, epoch: int, step: int) -> Plan:
        return plan_training(
            share.ids_N,
            copies_N=share.copies_N,
            sizes_N2=source.sizes_N2[share.ids_N],
            fit=FIT,
            augmentation=AUGMENTATION,
            seed=seed,
            epoch=epoch,
            size_px=SIZE,
            num_views=num_views,
        )

    def draw(plan: Plan, share: Share, epoch: int, step: int) -> Effects:
        return draw_effects(
            plan, copies_B=share.copies_N, positions_B=share.positions_N, settings=settings, seed=seed, epoch=epoch
        )

    order = TrainingOrder(
        NUM_SAMPLES,
        global_batch_size=global_batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        num_repeats=num_repeats,
        in_pairs=settings.mixes,
    )
    return join(
        source,
        order=order,
        draw=Draw(draw_plan, draw),
        executor=executor,
        action=action,
        seed=seed,
        max_bad_frac=max_bad_frac,
        own_pipeline=own_pipeline,
    )


class Seen(NamedTuple):
    """A global batch, the shares of all ranks joined; pixels (N, V, C, H, W), V views."""

    ids: list[int]
    labels: list[int]
    pixels: torch.Tensor
    mix: list[tuple[int, float]]


def endless(loader: PlannedLoader) -> itertools.chain[Batch]:
    return itertools.chain.from_iterable(iter(loader) for _ in itertools.count())


def take(ranks: list[PlannedLoader], count: int) -> list[Seen]:
    """The next `count` global batches, over the ends of epochs."""
    streams = [endless(loader) for loader in ranks]
    seen = []
    for _ in range(count):
        shares = [next(stream) for stream in streams]
        seen.append(
            Seen(
                ids=[sample_id for share in shares for sample_id in share.ids_N.tolist()],
                labels=[label for share in shares for label in share.labels_N.tolist()],
                pixels=torch.cat([torch.stack(share.inputs, dim=1) for share in shares]),
                mix=[pair for share in shares if share.mix for pair in pairs_of(share.mix)],
            )
        )
    return seen


def pairs_of(mix: Mix) -> list[tuple[int, float]]:
    return list(zip(mix.partner_labels_N.tolist(), mix.weight_N.tolist(), strict=True))


def assert_same(left: list[Seen], right: list[Seen]) -> None:
    assert [one.ids for one in left] == [one.ids for one in right]
    assert [one.labels for one in left] == [one.labels for one in right]
    assert [one.mix for one in left] == [one.mix for one in right]
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(left, right, strict=True))


def test_a_batch_holds_normalised_pixels_labels_and_ids_of_its_plan() -> None:
    source = make_source()
    (batch,) = itertools.islice(build_loader(source), 1)
    ids = batch.ids_N.numpy()
    assert batch.labels_N.tolist() == source.labels_N[ids].tolist()
    assert batch.valid_N.tolist() == [True] * GLOBAL_BATCH
    assert batch.mix is None
    (images,) = batch.inputs
    assert images.shape == (GLOBAL_BATCH, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    plan = plan_training(
        ids,
        copies_N=np.zeros_like(ids),
        sizes_N2=source.sizes_N2[ids],
        fit=FIT,
        augmentation=AUGMENTATION,
        seed=1,
        epoch=0,
        size_px=SIZE,
    )
    for row, sample_id in enumerate(ids):
        padded = np.pad(source.images_NHWC[sample_id], ((3, 3), (3, 3), (0, 0)), mode="reflect")
        down, right = plan.shifts_N2[row] + 3
        pixels = padded[down : down + SIZE, right : right + SIZE]
        pixels = pixels[:, ::-1] if plan.flips_N[row] else pixels
        wanted = (pixels / 255 - MEAN) / STD
        assert np.abs(images[row].numpy().transpose(1, 2, 0) - wanted).max() <= 5e-6


def test_an_epoch_sees_each_sample_at_most_once_and_the_next_one_in_another_order() -> None:
    loader = build_loader(make_source())
    assert (loader.num_samples, loader.steps_per_epoch, loader.num_left_out) == (NUM_SAMPLES, STEPS, 2)
    epochs = [[sample_id for batch in loader for sample_id in batch.ids_N.tolist()] for _ in range(2)]
    assert [len(set(ids)) for ids in epochs] == [48, 48]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_executor_and_world_size_gives_the_same_global_batches(executor: str, world_size: int) -> None:
    source = make_source()
    wanted = take([build_loader(source)], STEPS + 1)
    ranks = [build_loader(source, executor=executor, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert_same(take(ranks, STEPS + 1), wanted)


PLACES = [
    ("resident", 1),
    ("reference_0_workers", 3),
    ("reference_2_workers", 2),
    ("resident", 4),
    ("threads_2", 6),
    ("threads_2", 1),
    ("processes_2", 2),
]


@pytest.mark.parametrize("trial", range(6))
def test_a_run_stopped_at_random_points_continues_exactly_at_another_world_size_and_executor(trial: int) -> None:
    source, total = make_source(), 3 * STEPS
    wanted = take([build_loader(source)], total)
    rng = np.random.default_rng(trial)
    stops = sorted(rng.choice(np.arange(1, total), size=2, replace=False).tolist())
    state, seen = None, list[Seen]()
    for count in np.diff([0, *stops, total]).tolist():
        executor, world_size = PLACES[int(rng.integers(len(PLACES)))]
        ranks = [
            build_loader(source, executor=executor, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        if state is not None:
            for loader in ranks:
                loader.load_state_dict(json.loads(state))
        seen += take(ranks, count)
        states = [json.dumps(loader.state_dict()) for loader in ranks]
        assert len(set(states)) == 1, "every rank knows the same position"
        state = states[0]
    assert_same(seen, wanted)


@pytest.mark.parametrize("executor", NAMES)
def test_the_same_loader_goes_back_and_on_after_it_was_left_in_mid_epoch(executor: str) -> None:
    source = make_source()
    wanted = take([build_loader(source)], 7)
    loader = build_loader(source, executor=executor)
    assert_same(take([loader], 2), wanted[:2])
    state = loader.state_dict()
    assert_same(take([loader], 3), wanted[2:5])
    loader.load_state_dict(state)
    assert_same(take([loader], 5), wanted[2:7])


def test_the_state_counts_the_batch_in_hand_and_rolls_over_with_the_epoch() -> None:
    loader = build_loader(make_source())
    assert position(loader) == (0, 0)
    positions = [position(loader) for _ in loader]
    assert positions == [(0, 12), (0, 24), (0, 36), (1, 0)]
    assert [position(loader) for _ in loader] == [(1, 12), (1, 24), (1, 36), (2, 0)]


def position(loader: PlannedLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["samples_consumed"]


def test_the_state_is_plain_and_says_what_it_belongs_to() -> None:
    source = make_source()
    state = build_loader(source, seed=7).state_dict()
    assert state == {
        "plan_version": PLAN_VERSION,
        "seed": 7,
        "fingerprint": source.fingerprint(),
        "epoch": 0,
        "samples_consumed": 0,
    }
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"fingerprint": "other"},
            "the data has changed (class names, file names, labels, weights or image sizes): fingerprint",
        ),
        ({"seed": 2}, "run.seed has changed: seed"),
        ({"plan_version": PLAN_VERSION - 1}, "this version of the program draws samples and crops differently: plan_v"),
    ],
)
def test_a_state_of_other_data_seed_or_plan_version_is_refused_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    loader = build_loader(make_source())
    state = {**loader.state_dict(), "epoch": 1, "samples_consumed": 12, **change}
    with pytest.raises(ValueError, match=re.escape(f"cannot continue from this loader state: {reason}")) as caught:
        loader.load_state_dict(state)
    ((key, value),) = change.items()
    assert f"{key} was {value}, is {loader.state_dict()[key]}; restore it, or start a new run" in str(caught.value)
    assert "another --run.out" in str(caught.value)
    assert position(loader) == (0, 0), "a refused state changes nothing"


def test_states_of_other_sources_and_seeds_are_refused_without_editing_them() -> None:
    loader = build_loader(make_source())
    with pytest.raises(ValueError, match="the data has changed"):
        loader.load_state_dict(build_loader(make_source(seed=1)).state_dict())
    with pytest.raises(ValueError, match=r"run\.seed has changed: seed was 2, is 1"):
        loader.load_state_dict(build_loader(make_source(), seed=2).state_dict())


@pytest.mark.parametrize(("before", "now"), [(None, "abc"), ("abc", None), ("abc", "def")])
def test_a_state_of_another_pipeline_of_the_users_own_is_refused_with_the_reason(
    before: str | None, now: str | None
) -> None:
    state = build_loader(make_source(), own_pipeline=before).state_dict()
    assert state.get("albumentations") == before
    assert ("albumentations" in state) == (before is not None), "states without a pipeline stay as they were"
    build_loader(make_source(), own_pipeline=before).load_state_dict(json.loads(json.dumps(state)))
    wanted = (
        "cannot continue from this loader state: the pipeline of augment.albumentations has changed, or the version of "
        f"albumentations: albumentations was {before}, is {now}; restore it, or start a new run with another --run.out."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build_loader(make_source(), own_pipeline=now).load_state_dict(state)


@pytest.mark.parametrize(("consumed", "global_batch_size"), [(12, 8), (48, 12), (60, 12)])
def test_a_position_that_does_not_fit_the_global_batch_or_the_epoch_is_refused(
    consumed: int, global_batch_size: int
) -> None:
    loader = build_loader(make_source(), global_batch_size=global_batch_size)
    state = {**loader.state_dict(), "samples_consumed": consumed}
    wanted = f"{consumed} samples consumed do not fit global batches of {global_batch_size} in an epoch of 50"
    with pytest.raises(ValueError, match=wanted):
        loader.load_state_dict(state)


def build_evaluation(
    source: ArraySource, *, executor: str = "threads_2", rank: int = 0, world_size: int = 1, action: Action = "raise"
) -> PlannedLoader:
    """Batches of 8, pixels as they are stored: 0..255 in float64."""

    def draw_plan(share: Share, epoch: int, step: int) -> Plan:
        return plan_evaluation(share.ids_N, sizes_N2=source.sizes_N2[share.ids_N], fit=FIT, size_px=SIZE)

    return join(
        source,
        order=EvaluationOrder(NUM_SAMPLES, batch_size_per_rank=8, rank=rank, world_size=world_size),
        draw=Draw(draw_plan, lambda plan, share, epoch, step: Effects()),
        executor=executor,
        action=action,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_hands_out_every_sample_once_each_time_it_is_iterated(executor: str, world_size: int) -> None:
    source = make_source()

    ranks = [
        build_evaluation(source, executor=executor, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for _ in range(2):
        batches = [batch for loader in ranks for batch in loader]
        ids = torch.cat([batch.ids_N[batch.valid_N] for batch in batches])
        pixels = torch.cat([batch.inputs[0][batch.valid_N] for batch in batches]).permute(0, 2, 3, 1)
        order = ids.argsort()
        assert ids[order].tolist() == list(range(NUM_SAMPLES))
        assert np.abs(pixels[order].numpy() - source.images_NHWC).max() < 1e-9
        assert {len(batch.ids_N) for batch in batches} == {8}


def test_loading_a_state_needs_no_replay_of_what_was_consumed() -> None:
    source = make_source()
    drawn: list[tuple[int, int]] = []
    loader = build_loader(source)
    inner = loader._draw

    def counting(share: Share, epoch: int, step: int) -> Plan:
        drawn.append((epoch, step))
        return inner.plan(share, epoch, step)

    loader._draw = inner._replace(plan=counting)
    loader.load_state_dict({**loader.state_dict(), "epoch": 1000, "samples_consumed": 36})
    list(loader)
    assert drawn == [(1000, 3)]


@pytest.mark.parametrize("executor", NAMES)
def test_batches_that_are_kept_stay_as_they_were_handed_out(executor: str) -> None:
    source = make_source()
    kept = list(build_loader(source, executor=executor))  # all of an epoch, while slots are used again
    for batch, seen in zip(kept, take([build_loader(source)], STEPS), strict=True):
        assert torch.equal(batch.inputs[0], seen.pixels[:, 0])


# --- mixing, repeats and views

MIXING = EffectSettings(mixing=Mixing(mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8))
EVERYTHING = MIXING._replace(erasing=Erasing(0.5), noise_std=0.05)


def test_a_mixed_batch_says_whose_label_and_weight_the_partner_has() -> None:
    source = make_source()
    weights, kinds = [], []
    for step, batch in enumerate(build_loader(source, settings=MIXING)):
        assert batch.mix is not None
        partners = batch.ids_N.reshape(-1, 2).flip(1).reshape(-1)
        assert batch.mix.partner_labels_N.tolist() == source.labels_N[partners.numpy()].tolist()
        plan = draw_mix(np.arange(12) + 12 * step, mixing=MIXING.mixing, seed=1, epoch=0, size_px=SIZE)
        assert np.array_equal(batch.mix.weight_N.numpy(), plan.weights_B)
        weights += plan.weights_B.tolist()
        kinds += plan.kinds_B.tolist()
    assert set(kinds) == {0, 1, 2}
    assert len(set(weights)) > 10


def test_mixed_pixels_are_made_of_the_unmixed_ones_of_the_same_batch() -> None:
    source = make_source()
    plain, mixed = (list(build_loader(source, settings=settings)) for settings in (EffectSettings(), MIXING))
    for step, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        plan = draw_mix(np.arange(12) + 12 * step, mixing=MIXING.mixing, seed=1, epoch=0, size_px=SIZE)
        assert torch.equal(before.ids_N, after.ids_N)
        for row in range(12):
            own, partner = before.inputs[0][row].double(), before.inputs[0][row ^ 1].double()
            weight = torch.ones(SIZE, SIZE, dtype=torch.float64)
            if plan.kinds_B[row] == 1:
                weight[:] = float(plan.weights_B[row])
            if plan.kinds_B[row] == 2:
                top, left, height, width = plan.boxes_B4[row].tolist()
                weight[top : top + height, left : left + width] = 0
            assert (after.inputs[0][row] - (own * weight + partner * (1 - weight))).abs().max() <= 2e-6


@pytest.mark.parametrize("executor", NAMES[2:])
@pytest.mark.parametrize(("global_batch_size", "world_size"), [(6, 2), (6, 6), (12, 4)])
def test_ranks_with_an_odd_number_of_images_mix_across_their_borders_as_one_process_does(
    executor: str, global_batch_size: int, world_size: int
) -> None:
    source = make_source()
    options: dict[str, Any] = {"settings": EVERYTHING, "global_batch_size": global_batch_size, "num_views": 2}
    count = 50 // global_batch_size + 1
    wanted = take([build_loader(source, **options)], count)
    ranks = [
        build_loader(source, executor=executor, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    assert_same(take(ranks, count), wanted)
    assert {len(seen.ids) for seen in wanted} == {global_batch_size}


@pytest.mark.parametrize("num_repeats", [2, 3])
def test_repeats_are_drawn_each_anew_and_are_the_same_on_any_number_of_ranks(num_repeats: int) -> None:
    source = make_source()
    options: dict[str, Any] = {"settings": EVERYTHING, "num_repeats": num_repeats}
    wanted = take([build_loader(source, **options)], STEPS + 1)
    for world_size in (2, 4):
        ranks = [build_loader(source, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
        assert_same(take(ranks, STEPS + 1), wanted)
    for batch in build_loader(source, num_repeats=num_repeats):
        num_different = GLOBAL_BATCH // num_repeats
        assert batch.ids_N.reshape(num_repeats, num_different).unique(dim=0).shape[0] == 1
        first, second = batch.inputs[0][:num_different], batch.inputs[0][num_different : 2 * num_different]
        assert (first != second).flatten(1).any(dim=1).float().mean() > 0.8, "varied anew, all but 1 of 98"


def test_views_are_images_of_the_same_samples_each_drawn_anew() -> None:
    source = make_source()
    for batch, single in zip(build_loader(source, num_views=3), build_loader(source), strict=True):
        assert len(batch.inputs) == 3
        assert torch.equal(batch.ids_N, single.ids_N)
        assert torch.equal(batch.inputs[0], single.inputs[0])
        for one, other in itertools.combinations(batch.inputs, 2):
            assert (one != other).flatten(1).any(dim=1).float().mean() > 0.7


@pytest.mark.parametrize("trial", range(4))
def test_a_run_that_mixes_repeats_and_has_bad_samples_continues_exactly_after_any_stop(trial: int) -> None:
    options: dict[str, Any] = {"settings": EVERYTHING, "num_repeats": 2, "num_views": 2, "action": "replace"}
    broken, total = [1, 7, 30, 41], 3 * STEPS
    wanted = take([build_loader(make_source(broken=broken), **options)], total)
    rng = np.random.default_rng(trial)
    stops = sorted(rng.choice(np.arange(1, total), size=2, replace=False).tolist())
    state, seen = None, list[Seen]()
    for count in np.diff([0, *stops, total]).tolist():
        executor, world_size = PLACES[int(rng.integers(len(PLACES)))]
        source = make_source(broken=broken, known=bool(rng.integers(2)))
        ranks = [
            build_loader(source, executor=executor, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        seen += take(ranks, count)
        state = ranks[0].state_dict()
    assert_same(seen, wanted)


# --- bad samples

FOUND = pytest.mark.parametrize("known", [True, False], ids=["known_beforehand", "found_by_the_executor"])


def pixels_by_hand(source: BrokenSource, sample_id: int, *, copy: int, view: int, num_views: int) -> npt.NDArray[Any]:
    """One image of epoch 0 through its plan, normalised in float64."""
    plan = plan_training(
        np.array([sample_id]),
        copies_N=np.array([copy]),
        sizes_N2=source.sizes_N2[[sample_id]],
        fit=FIT,
        augmentation=AUGMENTATION,
        seed=1,
        epoch=0,
        size_px=SIZE,
        num_views=num_views,
    )
    image = carry_out(source.images_NHWC[sample_id], plan=plan, row=view, interpolation="bilinear").numpy()
    made: npt.NDArray[Any] = (image / 255 - MEAN) / STD
    return made


@FOUND
@pytest.mark.parametrize("executor", NAMES[1:])
def test_bad_rows_carry_the_pixels_id_and_label_of_their_replacement_in_all_views(executor: str, known: bool) -> None:
    broken = [3, 11, 12, 30, 31, 48]
    source = make_source(broken=broken, known=known)
    order = TrainingOrder(NUM_SAMPLES, global_batch_size=GLOBAL_BATCH, seed=1, rank=0, world_size=1)
    policy = Policy(make_source(broken=broken), split="train", action="replace", seed=1)
    num_met = 0
    for step, batch in enumerate(build_loader(source, executor=executor, num_views=2, action="replace")):
        settled = policy.before(order.share(step, epoch=0), epoch=0, step=step)
        num_met += len(settled.met)
        assert batch.ids_N.tolist() == settled.share.ids_N.tolist()
        assert batch.labels_N.tolist() == source.labels_N[settled.share.ids_N].tolist()
        assert batch.labels_N.tolist() == source.labels_N[order.share(step, epoch=0).ids_N].tolist()
        assert batch.valid_N.all()
        for row, (sample_id, copy) in enumerate(
            zip(batch.ids_N.tolist(), settled.share.copies_N.tolist(), strict=True)
        ):
            for view in range(2):
                wanted = pixels_by_hand(source, sample_id, copy=copy, view=view, num_views=2)
                found = batch.inputs[view][row].numpy().transpose(1, 2, 0)
                assert np.abs(found - wanted).max() <= 5e-6
    assert num_met >= len(broken) - 2


@FOUND
@pytest.mark.parametrize("executor", NAMES[2:])
@pytest.mark.parametrize("world_size", [1, 4])
def test_mended_batches_are_the_same_whoever_found_the_bad_samples_and_where(
    executor: str, known: bool, world_size: int
) -> None:
    broken = [3, 11, 12, 30, 31, 48]
    options: dict[str, Any] = {"settings": EVERYTHING, "num_views": 2, "num_repeats": 2, "action": "replace"}
    wanted = take([build_loader(make_source(broken=broken), **options)], STEPS + 2)
    source = make_source(broken=broken, known=known)
    ranks = [
        build_loader(source, executor=executor, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    assert_same(take(ranks, STEPS + 2), wanted)


@FOUND
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_bad_sample_is_told_once_by_the_rank_that_it_belongs_to(known: bool, world_size: int) -> None:
    broken = [3, 11, 12, 30, 31, 48]
    source = make_source(broken=broken, known=known)
    met: list[BadSample] = []
    for rank in range(world_size):
        loader = build_loader(source, rank=rank, world_size=world_size, settings=MIXING, action="replace")
        batches = list(loader)
        met += loader.take_bad_samples()
        assert loader.take_bad_samples() == [], "each is given once"
        assert all(len(batch.ids_N) == GLOBAL_BATCH // world_size for batch in batches)
    order = TrainingOrder(NUM_SAMPLES, global_batch_size=GLOBAL_BATCH, seed=1, rank=0, world_size=1)
    in_epoch = {int(one): step for step in range(STEPS) for one in order.share(step, epoch=0).ids_N}
    assert sorted((bad.sample_id, bad.step) for bad in met) == [
        (one, in_epoch[one]) for one in broken if one in in_epoch
    ]
    assert {(bad.split, bad.epoch, bad.reason) for bad in met} == {("train", 0, REASON)}


@FOUND
@pytest.mark.parametrize("executor", NAMES[2:])
def test_only_bad_samples_of_batches_handed_out_are_told_however_far_ahead_others_are(
    executor: str, known: bool
) -> None:
    order = TrainingOrder(NUM_SAMPLES, global_batch_size=GLOBAL_BATCH, seed=1, rank=0, world_size=1)
    broken = [int(order.share(step, epoch=0).ids_N[5]) for step in (1, 2)]
    loader = build_loader(make_source(broken=broken, known=known), executor=executor, action="replace")
    told = []
    for _ in loader:
        told.append([bad.sample_id for bad in loader.take_bad_samples()])
    assert told == [[], [broken[0]], [broken[1]], []]
    state = {**loader.state_dict(), "epoch": 0, "samples_consumed": 12}
    loader.load_state_dict(state)
    running = iter(loader)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert [bad.sample_id for bad in loader.take_bad_samples()] == [broken[0]], "what was prefetched is forgotten"


@FOUND
@pytest.mark.parametrize("executor", NAMES[2:])
def test_raise_stops_at_the_batch_and_names_the_sample(executor: str, known: bool) -> None:
    order = TrainingOrder(NUM_SAMPLES, global_batch_size=GLOBAL_BATCH, seed=1, rank=0, world_size=1)
    broken = int(order.share(2, epoch=0).ids_N[5])
    loader = build_loader(make_source(broken=[broken], known=known), executor=executor, action="raise")
    with pytest.raises(ValueError, match=rf"^image {broken}: {REASON}\. Repair or remove it, or go on without"):
        list(loader)
    assert position(loader)[1] <= 24


@FOUND
@pytest.mark.parametrize("executor", NAMES[2:])
@pytest.mark.parametrize("world_size", [1, 3])
def test_an_evaluation_that_excludes_counts_all_others_once_and_tells_what_it_left_out(
    executor: str, world_size: int, known: bool
) -> None:
    broken = [0, 3, 20, 49]  # 49 fills up the last batches, too
    source = make_source(broken=broken, known=known)
    counted, told = [], []
    for rank in range(world_size):
        loader = build_evaluation(source, executor=executor, rank=rank, world_size=world_size, action="exclude")
        for _ in range(2):
            for batch in loader:
                rows = batch.valid_N.nonzero()[:, 0]
                ids = batch.ids_N[rows]
                counted += ids.tolist()
                pixels = batch.inputs[0][rows].permute(0, 2, 3, 1).numpy()
                assert np.allclose(pixels, source.images_NHWC[ids], rtol=0, atol=1e-9)
                assert torch.equal(batch.labels_N, torch.from_numpy(source.labels_N[batch.ids_N]))
            told += loader.take_bad_samples()
    assert sorted(counted) == sorted(2 * [one for one in range(NUM_SAMPLES) if one not in broken])
    assert sorted(bad.sample_id for bad in told) == sorted(2 * broken)
    assert {(bad.replaced_by, bad.replaced_by_name) for bad in told} == {(None, None)}


@pytest.mark.parametrize(
    ("max_bad_frac", "num_repeats", "wanted"), [(0.0, 1, 0), (0.01, 1, 1), (0.25, 1, 12), (0.5, 1, 24), (0.25, 2, 12)]
)
def test_the_number_of_bad_samples_allowed_is_a_part_of_what_an_epoch_takes(
    max_bad_frac: float, num_repeats: int, wanted: int
) -> None:
    loader = build_loader(make_source(), max_bad_frac=max_bad_frac, num_repeats=num_repeats)
    assert loader.max_num_bad == wanted  # of 48


def test_an_evaluation_allows_a_part_of_its_samples_not_of_the_rows_that_fill_up() -> None:
    assert build_evaluation(make_source(), world_size=3).max_num_bad == 25  # half of 50, not of 72


@dataclass(frozen=True, kw_only=True)
class VanishingSource(BrokenSource):
    """Of which the sample `vanishing` can be read once."""

    vanishing: int
    reads: list[int] = field(default_factory=list)

    def read_image(self, sample_id: int, *, channels: int, **options: object) -> npt.NDArray[np.uint8]:
        if sample_id == self.vanishing and sample_id in self.reads:
            raise ValueError("it is gone")
        self.reads.append(sample_id)
        return super().read_image(sample_id, channels=channels, **options)


def test_a_replacement_that_can_no_longer_be_read_is_replaced_in_its_turn() -> None:
    order = TrainingOrder(NUM_SAMPLES, global_batch_size=GLOBAL_BATCH, seed=1, rank=0, world_size=1)
    share = order.share(0, epoch=0)
    for row in range(GLOBAL_BATCH):  # one whose replacement is not in the batch anyway
        plain = make_source(broken=[int(share.ids_N[row])], known=False)
        policy = Policy(make_source(broken=list(plain.broken)), split="train", action="replace", seed=1)
        replacement = int(policy.before(share, epoch=0, step=0).share.ids_N[row])
        if replacement not in share.ids_N:
            break
    assert replacement not in share.ids_N
    source = VanishingSource(
        class_names=plain.class_names,
        labels_N=plain.labels_N,
        images_NHWC=plain.images_NHWC,
        broken=plain.broken,
        vanishing=replacement,
    )
    loader = build_loader(source, action="replace")
    batch = next(iter(loader))
    assert batch.ids_N[row] != replacement
    assert batch.labels_N[row] == plain.labels_N[share.ids_N[row]]
    assert [bad.sample_id for bad in loader.take_bad_samples()] == [int(share.ids_N[row]), replacement]


def test_only_one_iteration_may_be_open() -> None:
    loader = build_loader(make_source())
    first = iter(loader)
    next(first)
    with pytest.raises(RuntimeError, match="an iteration of this loader is still open"):
        next(iter(loader))
    del first
    assert next(iter(loader)).labels_N.shape == (GLOBAL_BATCH,)


def test_rows_that_only_fill_up_are_not_read() -> None:
    plans: list[Plan] = []
    loader = build_evaluation(make_source(), world_size=3)
    run = loader._executor.run
    loader._executor = SimpleNamespace(run=lambda coming: run(plans.append(plan) or plan for plan in coming))
    batches = list(loader)
    assert sum(len(plan.ids_N) for plan in plans) <= sum(max(1, int(batch.valid_N.sum())) for batch in batches)
    assert len({batch.inputs[0].shape for batch in batches}) == 1


def test_any_part_of_any_step_is_made_as_in_its_batch_and_the_position_stays() -> None:
    source, settings = make_source(), EffectSettings(Mixing(0.4, 1.0), Erasing(0.5), noise_std=0.05)
    loader = build_loader(source, executor="threads_2", settings=settings)
    batches = [list(loader) for _ in range(2)]
    order = TrainingOrder(NUM_SAMPLES, global_batch_size=GLOBAL_BATCH, seed=1, rank=0, world_size=1, in_pairs=True)
    position = loader.state_dict()
    parts = []
    for epoch, step, rows in ((1, 2, slice(4, 8)), (0, 3, slice(0, 2)), (1, 0, slice(0, GLOBAL_BATCH))):
        share = order.share(step, epoch=epoch)
        arrays = {name: value[rows] for name, value in share._asdict().items() if name != "own"}
        parts.append(Part(epoch, step, share._replace(**arrays, own=slice(0, rows.stop - rows.start))))
    made = list(loader.carry_out(parts))
    assert [one.part for one in made] == parts
    for (epoch, step, _), rows, one in zip(parts, (slice(4, 8), slice(0, 2), slice(0, 12)), made, strict=True):
        whole = batches[epoch][step]
        torch.testing.assert_close(one.batch.inputs[0], whole.inputs[0][rows], rtol=0, atol=0)
        assert one.batch.ids_N.tolist() == whole.ids_N[rows].tolist() == one.plan.ids_N.tolist()
        assert one.batch.mix is not None
        assert whole.mix is not None
        assert one.batch.mix.weight_N.tolist() == whole.mix.weight_N[rows].tolist()
        assert one.effects.mix is not None
        assert one.effects.mix.weights_B.tolist() == one.batch.mix.weight_N.tolist()
    assert loader.state_dict() == position
