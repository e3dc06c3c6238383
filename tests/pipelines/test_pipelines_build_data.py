"""Kinds of data sets by configuration: names, splits that are set aside, sampling, what is said and refused."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sources.torchvision_layouts import LAYOUTS
from torchvision.datasets import utils as torchvision_utils

from configs.load import replace_section
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from pipelines.build import Place, build_data, build_loaders, check_dataset, choose_backend, describe_data
from pipelines.sources.own_dataset import OwnSource
from pipelines.sources.torchvision_sets import SETS

ALONE = Place(device=torch.device("cpu"), dtype=torch.float32, rank=0, world_size=1, num_cores=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EXACTVISION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """30 cats, 10 dogs and a mouse twice; weights 0, 1, 2 in turn."""
    rows = []
    for number in range(42):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'cat' if number < 30 else 'dog' if number < 40 else 'mouse'},{number % 3}")
    (tmp_path / "all.csv").write_text("\n".join(["path,label,weight", *rows]))
    return tmp_path / "all.csv"


def make_config(dataset: str, **changes: Any) -> Config:
    config = Config(
        data=DataConfig(dataset=dataset, val_frac=0.0),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=1, global_batch_size=6),
    )
    for key, value in {"loader__num_workers": 0, "run__select": "last", **changes}.items():
        section, _, name = key.partition("__")
        config = replace_section(config, section, **{name: value})
    return config


def described(config: Config) -> str:
    data = build_data(config, show_progress=False)
    return describe_data(data, build_loaders(config, data, place=ALONE, show_progress=False))


# --- names


def test_an_unknown_name_is_answered_with_the_nearest_and_all_there_are() -> None:
    with pytest.raises(ValueError, match=r"^unknown data set data\.dataset='cifar_10'; nearest: ") as caught:
        check_dataset(DataConfig(dataset="cifar_10"))
    told = str(caught.value)
    assert "nearest: cifar10, " in told
    assert (
        "valid: digits, folder, manifest, packed; your own Dataset as package.module:Name; of torchvision's: cifar10,"
        in told
    )
    assert all(name in told for name in SETS)


@pytest.mark.parametrize("name", ["digits", "folder", "manifest", "mnist", "own_sets:Plain"])
def test_a_known_name_passes(name: str) -> None:
    check_dataset(DataConfig(dataset=name))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (DataConfig(dataset="own_sets:Plane"), "data.dataset=own_sets:Plane: own_sets has no 'Plane'; nearest: Plain"),
        (DataConfig(dataset="no_module:A"), "data.dataset=no_module:A: there is no module 'no_module'"),
        (
            DataConfig(dataset="own_sets:Plain", args={"cuont": 3}),
            "own_sets:Plain has no argument 'cuont'; nearest: cou",
        ),
    ],
)
def test_mistakes_with_an_own_data_set_are_found_before_it_is_made(data: DataConfig, wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_dataset(data)
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build_data(make_config(data.dataset, data__args=data.args), show_progress=False)


# --- torchvision's


def test_a_data_set_without_test_sets_a_fifth_of_each_class_aside_and_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision_utils, "check_md5", lambda *arguments, **options: True)
    LAYOUTS["semeion"](cache / "datasets")  # where they are looked for if no root is given
    first, second = (
        build_data(make_config("semeion", data__split_seed=seed, run__seed=seed), show_progress=True) for seed in (0, 5)
    )
    assert first.test is not None
    assert second.test is not None
    assert np.bincount(first.train.labels_N).tolist() == [5] * 8 + [4] * 2 or len(first.train.labels_N) == 48
    assert len(first.test.labels_N) == 12
    assert first.test.fingerprint() == second.test.fingerprint()
    wanted = (
        "semeion has no test of its own: 20% of each class, 12 images, are set aside as test, the same ones in every"
    )
    assert wanted in capsys.readouterr().out


# --- own


def test_auto_takes_reference_for_items_read_on_demand_and_resident_for_held_ones() -> None:
    config = make_config("own_sets:Plain", loader__resident_max_gib=0.0)
    data = build_data(config, show_progress=False)
    assert isinstance(data.train, OwnSource)
    backend = choose_backend(config, data)
    assert backend == ("reference", "your own data set, not held in memory: read by worker processes")
    held = make_config("own_sets:Plain")
    assert choose_backend(held, build_data(held, show_progress=False)).name == "resident"


def test_items_that_cannot_be_read_are_left_out_by_the_policy_of_their_split() -> None:
    changes = {"data__args": {"kind": "os"}, "data__max_bad_frac": 0.2}
    with pytest.raises(ValueError, match="2 of 12 items of train cannot be read"):
        build_data(make_config("own_sets:Broken", **changes, data__on_bad_eval_sample="exclude"), show_progress=False)
    data = build_data(make_config("own_sets:Broken", **changes, data__on_bad_sample="replace"), show_progress=False)
    assert len(data.train.labels_N) == 10


# --- manifests and sampling


def test_a_manifest_is_trained_on_like_a_folder(table: Path) -> None:
    told = described(make_config("manifest", data__root=str(table), data__val_frac=0.25, train__global_batch_size=10))
    assert told.startswith(
        "data: 31 train, 11 val; 3 classes; 1 images left out of each epoch of 3 steps\ninput: 8x8, 3"
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"data__sampling": "balanced"},
            "sampling: balanced: cat x0.47, dog x1.40, mouse x7.00; an epoch is 42 draws\n",
        ),
        (
            {"data__class_weights": {"mouse": 2.0}},
            "sampling: shuffled with class_weights: cat x0.95, dog x0.95, mouse x1.91; an epoch is 42 draws\n",
        ),
        (
            {"data__sampling": "weighted"},
            "sampling: weighted: cat x1.00, dog x0.90, mouse x1.50; an epoch is 42 draws\n",
        ),
        (
            {"data__sampling": "balanced", "data__class_weights": {"cat": 2.0}},
            "sampling: balanced with class_weights: cat x0.70, dog x1.05, mouse x5.25; an epoch is 42 draws\n",
        ),
    ],
)
def test_what_sampling_does_is_said_in_one_line(table: Path, changes: dict[str, Any], wanted: str) -> None:
    told = described(make_config("manifest", data__root=str(table), train__global_batch_size=10, **changes))
    assert told.startswith(
        "data: 42 train; 3 classes; 2 draws left out of each epoch of 4 steps\n" + wanted + "input: "
    )


def test_of_many_classes_the_extremes_are_said() -> None:
    told = described(make_config("digits", data__class_weights={"7": 3.0}))
    line = told.splitlines()[1]
    assert line.startswith("sampling: shuffled with class_weights: 7 x2.")
    assert line.count(" x") == 6
    assert ", ..., " in line


def test_an_unknown_class_in_class_weights_is_answered_with_the_nearest(table: Path) -> None:
    wanted = "data.class_weights.mose: there is no such class; nearest: mouse; valid: cat, dog, mouse"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build_data(
            make_config("manifest", data__root=str(table), data__class_weights={"mose": 2.0}), show_progress=False
        )


def test_weights_stay_with_their_images_when_val_is_set_aside(table: Path) -> None:
    config = make_config("manifest", data__root=str(table), data__val_frac=0.25, data__sampling="weighted")
    data = build_data(config, show_progress=False)
    assert data.train.weights_N is not None
    numbers = [int(Path(data.train.describe(row)).stem) for row in range(len(data.train.labels_N))]
    assert data.train.weights_N.tolist() == [number % 3 for number in numbers]
    loader = build_loaders(config, data, place=ALONE, show_progress=False).train
    met = torch.cat([batch.ids_N for _ in range(3) for batch in loader]).tolist()
    assert {numbers[row] % 3 for row in met} == {1, 2}, "an image of weight 0 is never met"


def test_evaluation_is_never_resampled(table: Path) -> None:
    config = make_config("manifest", data__root=str(table), data__val_frac=0.25, data__sampling="balanced")
    data = build_data(config, show_progress=False)
    val = build_loaders(config, data, place=ALONE, show_progress=False).evaluation["val"]
    assert torch.cat([batch.ids_N[batch.valid_N] for batch in val]).tolist() == list(range(11))


@pytest.mark.parametrize("backend", ["threads", "resident", "reference"])
def test_a_repeated_sample_is_cropped_anew_and_a_bad_one_is_replaced_each_time(table: Path, backend: str) -> None:
    (table.parent / "41.png").write_text("no image")
    config = make_config(
        "manifest",
        data__root=str(table),
        data__sampling="balanced",
        data__on_bad_sample="replace",
        data__max_bad_frac=0.5,
        augment__crop="pad",
        augment__pad_px=3,
        loader__backend=backend,
    )
    loader = build_loaders(config, build_data(config, show_progress=False), place=ALONE, show_progress=False).train
    batches = list(loader)
    ids, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids_N", "labels_N"))
    assert np.bincount(labels).tolist() == [14, 14, 14]
    assert (ids == 40).sum() == 14, "the other mouse stands in"
    crops = torch.cat([batch.inputs[0] for batch in batches])[ids == 40]
    assert len({crop.numpy().tobytes() for crop in crops}) >= 10, "of 49 shifts"
    told = loader.take_bad_samples()
    assert [(Path(one.name).name, Path(str(one.replaced_by_name)).name) for one in told] == [("41.png", "40.png")] * 7


def test_missing_images_are_kept_or_refused_by_the_policy(table: Path) -> None:
    (table.parent / "3.png").unlink()
    config = make_config("manifest", data__root=str(table))
    with pytest.raises(ValueError, match=r"1 of the 42 images of .*all\.csv are not there:\n  .*all\.csv, line 5: "):
        build_data(config, show_progress=False)
    kept = build_data(replace_section(config, "data", on_bad_sample="replace"), show_progress=False)
    assert list(kept.train.bad) == [3]
