"""The loader: a position is (epoch, samples consumed), whoever continues it."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipelines.batch import Batch
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, load_store
from pipelines.loader import Executor, PlannedLoader
from pipelines.order import EvaluationOrder, TrainingOrder
from pipelines.plan import PLAN_VERSION, Augmentation, Fit, Plan, plan_evaluation, plan_training
from pipelines.source import ArraySource
from pipelines.tail import Tail

NUM_SAMPLES, GLOBAL_BATCH, STEPS = 50, 12, 4  # 2 samples left out of each epoch
SIZE = 12
FIT = Fit("crop", 1.0)
AUGMENTATION = Augmentation(crop="pad", pad_px=3, flip="random")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
CPU = torch.device("cpu")


def make_source(*, seed: int = 0) -> ArraySource:
    rng = np.random.default_rng(seed)
    return ArraySource(
        class_names=("a", "b", "c"),
        labels_N=rng.integers(0, 3, NUM_SAMPLES),
        images_NHWC=rng.integers(0, 256, (NUM_SAMPLES, SIZE, SIZE, 3), dtype=np.uint8),
    )


def build_executor(name: str, source: ArraySource) -> Executor:
    if name == "resident":
        store = load_store(
            source, channels=3, windows=None, size_px=SIZE, interpolation="bilinear", show_progress=False
        )
        return ResidentExecutor(store, size_px=SIZE, interpolation="bilinear", windows="stored")
    return ReferenceExecutor(
        source, size_px=SIZE, channels=3, interpolation="bilinear", num_workers=int(name[-1]), pin_memory=False
    )


def build_loader(
    source: ArraySource,
    *,
    executor: str = "reference_0",
    rank: int = 0,
    world_size: int = 1,
    seed: int = 1,
    global_batch_size: int = GLOBAL_BATCH,
) -> PlannedLoader:
    def draw_plan(ids_N: npt.NDArray[np.int64], epoch: int) -> Plan:
        return plan_training(
            ids_N, sizes_N2=source.sizes_N2[ids_N], fit=FIT, augmentation=AUGMENTATION, seed=seed, epoch=epoch
        )

    return PlannedLoader(
        source.labels_N,
        order=TrainingOrder(
            NUM_SAMPLES, global_batch_size=global_batch_size, seed=seed, rank=rank, world_size=world_size
        ),
        draw_plan=draw_plan,
        executor=build_executor(executor, source),
        tail=Tail(mean=MEAN, std=STD, device=CPU, dtype=torch.float32),
        seed=seed,
        fingerprint=source.fingerprint(),
        device=CPU,
    )


class Seen(NamedTuple):
    """A global batch, the shares of all ranks joined."""

    ids: list[int]
    labels: list[int]
    pixels: torch.Tensor


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
                pixels=torch.cat([share.inputs[0] for share in shares]),
            )
        )
    return seen


def assert_same(left: list[Seen], right: list[Seen]) -> None:
    assert [one.ids for one in left] == [one.ids for one in right]
    assert [one.labels for one in left] == [one.labels for one in right]
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
    plan = plan_training(ids, sizes_N2=source.sizes_N2[ids], fit=FIT, augmentation=AUGMENTATION, seed=1, epoch=0)
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


@pytest.mark.parametrize("executor", ["reference_0", "reference_2", "resident"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_executor_and_world_size_gives_the_same_global_batches(executor: str, world_size: int) -> None:
    source = make_source()
    wanted = take([build_loader(source)], STEPS + 1)
    ranks = [build_loader(source, executor=executor, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert_same(take(ranks, STEPS + 1), wanted)


PLACES = [("resident", 1), ("reference_0", 3), ("reference_2", 2), ("resident", 4), ("reference_2", 1)]


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


@pytest.mark.parametrize("executor", ["reference_0", "reference_2", "resident"])
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
            "the data has changed (class names, file names, labels or image sizes): fingerprint",
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


@pytest.mark.parametrize(("consumed", "global_batch_size"), [(12, 8), (48, 12), (60, 12)])
def test_a_position_that_does_not_fit_the_global_batch_or_the_epoch_is_refused(
    consumed: int, global_batch_size: int
) -> None:
    loader = build_loader(make_source(), global_batch_size=global_batch_size)
    state = {**loader.state_dict(), "samples_consumed": consumed}
    wanted = f"{consumed} samples consumed do not fit global batches of {global_batch_size} in an epoch of 50"
    with pytest.raises(ValueError, match=wanted):
        loader.load_state_dict(state)


@pytest.mark.parametrize("executor", ["reference_0", "reference_2", "resident"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_hands_out_every_sample_once_each_time_it_is_iterated(executor: str, world_size: int) -> None:
    source = make_source()

    def draw_plan(ids_N: npt.NDArray[np.int64], epoch: int) -> Plan:
        return plan_evaluation(ids_N, sizes_N2=source.sizes_N2[ids_N], fit=FIT)

    ranks = [
        PlannedLoader(
            source.labels_N,
            order=EvaluationOrder(NUM_SAMPLES, batch_size_per_rank=8, rank=rank, world_size=world_size),
            draw_plan=draw_plan,
            executor=build_executor(executor, source),
            tail=Tail(mean=(0.0,) * 3, std=(1 / 255,) * 3, device=CPU, dtype=torch.float64),
            seed=1,
            fingerprint=source.fingerprint(),
            device=CPU,
        )
        for rank in range(world_size)
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
    drawn: list[int] = []
    loader = build_loader(source)
    inner: Callable[[npt.NDArray[np.int64], int], Plan] = loader._draw_plan

    def counting(ids_N: npt.NDArray[np.int64], epoch: int) -> Plan:
        drawn.append(epoch)
        return inner(ids_N, epoch)

    loader._draw_plan = counting
    loader.load_state_dict({**loader.state_dict(), "epoch": 1000, "samples_consumed": 36})
    list(loader)
    assert drawn == [1000]
