"""Features in batches: the samples of the images' loader, whoever continues, whatever is missing."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_source import BrokenSource

from configs.load import replace_section
from configs.schema import Config, DataConfig, InputSpec, ModelConfig, OptimConfig, TrainConfig
from pipelines.batch import Batch, Features, Loader
from pipelines.build import Data, Place, build_cached_loader, build_evaluation_loader, build_training_loader
from pipelines.cached import CachedLoader

NUM_TRAIN, NUM_VAL, BATCH, WIDTH = 50, 31, 12, 5
SPEC = InputSpec(size_px=12, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def place_of(rank: int = 0, world_size: int = 1, dtype: torch.dtype = torch.float32) -> Place:
    return Place(torch.device("cpu"), dtype, rank, world_size, 1)


def make_source(num: int, *, seed: int, broken: tuple[int, ...] = ()) -> BrokenSource:
    rng = np.random.default_rng(seed)
    return BrokenSource(
        class_names=("a", "b", "c"),
        labels_N=rng.integers(0, 3, num),
        images_NHWC=rng.integers(0, 256, (num, 12, 12, 3), dtype=np.uint8),
        broken=dict.fromkeys(broken, "only 17 of 300 bytes"),
    )


def make_data(*, broken: tuple[int, ...] = (), seed: int = 0) -> Data:
    train = make_source(NUM_TRAIN, seed=seed, broken=broken)
    return Data(train=train, val=make_source(NUM_VAL, seed=9, broken=broken), test=None, spec=SPEC)


def make_config(**changes: Any) -> Config:
    config = Config(
        data=DataConfig(dataset="digits", max_bad_frac=0.5),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="adamw", lr=0.001),
        train=TrainConfig(epochs=1, global_batch_size=BATCH),
    )
    given = {"loader__backend": "reference", "loader__num_workers": 0, "loader__eval_batch_size_per_rank": 4}
    for key, value in (given | changes).items():
        section, _, name = key.partition("__")
        config = replace_section(config, section, **{name: value})
    return config


def features_of(data: Data, split: str, *, missing: tuple[int, ...] = ()) -> Features:
    """Of which every row says which sample it is."""
    source = data.train if split == "train" else data.val
    assert source is not None
    ids = torch.tensor([one for one in range(len(source.labels_N)) if one not in missing])
    labels = torch.from_numpy(source.labels_N)[ids]
    return Features(ids[:, None] * torch.ones(WIDTH) + torch.arange(WIDTH) / 10, labels, ids)


def pair_of(config: Config, data: Data, split: str, *, place: Place, missing: tuple[int, ...] = ()) -> list[Loader]:
    """The loader of features and that of images."""
    images: Loader = (
        build_training_loader(config, data, place=place, show_progress=False)
        if split == "train"
        else build_evaluation_loader(config, data, split, place=place, show_progress=False)
    )
    features = features_of(data, split, missing=missing)
    return [build_cached_loader(config, data, split, features, place=place), images]


def endless(loader: Loader) -> Iterator[Batch]:
    return itertools.chain.from_iterable(iter(loader) for _ in itertools.count())


def take(loader: Loader, count: int) -> list[tuple[list[int], list[int], list[bool]]]:
    batches = itertools.islice(endless(loader), count)
    return [(one.ids_N.tolist(), one.labels_N.tolist(), one.valid_N.tolist()) for one in batches]


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"data__sampling": "balanced"},
    {"data__class_weights": {"b": 3.0}},
    {"augment__repeats": 3},
    {"augment__mixup_alpha": 0.4},  # shares are widened to pairs
    {"run__seed": 7},
]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("changes", SAMPLINGS, ids=lambda changes: next(iter(changes), "plain"))
def test_the_samples_of_every_step_are_those_of_the_images(
    split: str, rank: int, world_size: int, changes: dict[str, Any]
) -> None:
    cached, images = pair_of(make_config(**changes), make_data(), split, place=place_of(rank, world_size))
    for name in ("num_samples", "steps_per_epoch", "num_left_out", "max_num_bad"):
        assert getattr(cached, name) == getattr(images, name), name
    count = 2 * cached.steps_per_epoch + 1
    assert take(cached, count) == take(images, count)
    assert cached.state_dict() == images.state_dict()


@pytest.mark.parametrize("held_gib", [4.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_holds_the_features_of_its_samples(dtype: torch.dtype, held_gib: float) -> None:
    data, config = make_data(), make_config(loader__resident_max_gib=held_gib)
    features = features_of(data, "train")
    for batch in build_cached_loader(config, data, "train", features, place=place_of(dtype=dtype)):
        (features_BD,) = batch.inputs
        assert features_BD.dtype == dtype
        assert torch.equal(features_BD, features.features_ND[batch.ids_N].to(dtype))
        assert batch.mix is None
        assert batch.labels_N.tolist() == data.train.labels_N[batch.ids_N.numpy()].tolist()
        assert batch.valid_N.tolist() == [True] * BATCH


@pytest.mark.parametrize("consumed", [1, 3, 4, 6])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loader_that_continues_goes_on_as_one_that_never_stopped(consumed: int, world_size: int) -> None:
    data, config = make_data(), make_config()
    features = features_of(data, "train")
    straight = build_cached_loader(config, data, "train", features, place=place_of())
    expected = take(straight, 9)[consumed:]
    stopped = build_cached_loader(config, data, "train", features, place=place_of())
    take(stopped, consumed)
    state = json.loads(json.dumps(stopped.state_dict()))
    joined = [([], [], []) for _ in expected]
    for rank in range(world_size):
        again = build_cached_loader(config, data, "train", features, place=place_of(rank, world_size))
        again.load_state_dict(state)
        for whole, share in zip(joined, take(again, len(expected)), strict=True):
            for values, more in zip(whole, share, strict=True):
                values.extend(more)
    assert joined == expected


def test_the_images_loader_and_this_one_go_on_where_the_other_stood() -> None:
    cached, images = pair_of(make_config(), make_data(), "train", place=place_of())
    take(cached, 2)
    images.load_state_dict(cached.state_dict())
    assert take(images, 6) == take(cached, 6)


def test_a_position_of_other_data_another_seed_or_within_a_batch_is_refused() -> None:
    data, config = make_data(), make_config()
    cached = build_cached_loader(config, data, "train", features_of(data, "train"), place=place_of())
    state = cached.state_dict()
    for key, value, reason in (
        ("fingerprint", "other", "the data has changed"),
        ("seed", 5, "run.seed has changed: seed was 5, is 0"),
        ("plan_version", 0, "this version of the program draws samples and crops differently"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            cached.load_state_dict(state | {key: value})
    for consumed in (5, 48):
        with pytest.raises(ValueError, match=f"{consumed} samples consumed do not fit global batches of 12 in an"):
            cached.load_state_dict(state | {"samples_consumed": consumed})


@pytest.mark.parametrize(("split", "bad"), [("train", "replace"), ("val", "exclude")])
def test_what_could_not_be_read_is_replaced_or_left_out_as_among_images(split: str, bad: str) -> None:
    broken = (0, 3, 17, 30)
    config = make_config(data__on_bad_sample="replace", data__on_bad_eval_sample="exclude")
    cached, images = pair_of(config, make_data(broken=broken), split, place=place_of(), missing=broken)
    seen, expected = take(cached, cached.steps_per_epoch), take(images, cached.steps_per_epoch)
    counted = [[list(zip(*one, strict=True)) for one in batches] for batches in (seen, expected)]
    kept = [[[row for row in batch if row[2]] for batch in batches] for batches in counted]
    assert kept[0] == kept[1]
    assert not {sample_id for batch in kept[0] for sample_id, _, _ in batch} & set(broken)
    met, wanted = cached.take_bad_samples(), images.take_bad_samples()
    told = [(one.step, one.sample_id, one.replaced_by) for one in met]
    assert sorted(told) == sorted((one.step, one.sample_id, one.replaced_by) for one in wanted)
    assert {one.reason for one in met} == {"it could not be read when features were computed"}
    assert cached.take_bad_samples() == []


def test_what_could_not_be_read_stops_a_run_that_is_to_stop_at_it() -> None:
    data = make_data(broken=(3,))
    features = features_of(data, "train", missing=(3,))
    cached = build_cached_loader(make_config(), data, "train", features, place=place_of())
    with pytest.raises(
        ValueError, match=r"image 3: it could not be read when features were computed\. Repair or remove"
    ):
        take(cached, 8)


def test_features_of_another_split_are_a_mistake_of_ours() -> None:
    data = make_data()
    with pytest.raises(AssertionError, match="these are not the features of val"):
        build_cached_loader(
            make_config(),
            data,
            "val",
            features_of(data, "train")._replace(
                ids_N=torch.arange(NUM_VAL), labels_N=torch.zeros(NUM_VAL, dtype=torch.int64)
            ),
            place=place_of(),
        )


def test_a_position_is_plain_values() -> None:
    data = make_data()
    cached = build_cached_loader(make_config(), data, "train", features_of(data, "train"), place=place_of())
    assert isinstance(cached, CachedLoader)
    take(cached, 5)
    state = cached.state_dict()
    assert (state["epoch"], state["samples_consumed"]) == (1, 12)
    assert json.loads(json.dumps(state)) == state


def test_the_cache_is_where_indexes_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipelines.build import default_cache

    monkeypatch.setenv("EXACTVISION_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
