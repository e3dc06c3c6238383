"""A user's own pipeline in loaders: the same pixels to the bit by whoever carries it out, wherever, after any stop."""

import random
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image

from configs.load import load_config, replace_section
from configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InputSpec,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from pipelines.batch import Batch
from pipelines.build import Data, Place, build_data, build_evaluation_loader, build_training_loader, choose_backend
from pipelines.geometry import carry_out
from pipelines.loader import PlannedLoader
from pipelines.operations.own_pipeline import _import_albumentations
from pipelines.order import Share

A = _import_albumentations()
SIZE, COUNT, GLOBAL_BATCH = 24, 54, 18
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
BACKENDS: dict[str, dict[str, Any]] = {
    "threads_1": {"backend": "threads", "num_threads": 1},
    "threads_4": {"backend": "threads", "num_threads": 4, "prefetch_batches": 1},
    "workers_0": {"backend": "reference", "num_workers": 0},
    "workers_2": {"backend": "reference", "num_workers": 2},
    "processes_0": {"backend": "threads", "workers": "processes", "num_workers": 0},
    "processes_2": {"backend": "auto", "workers": "processes", "num_workers": 2},
}
PLACES = [("threads_1", 2), ("threads_4", 3), ("workers_2", 2), ("processes_0", 3), ("processes_2", 1)]


class FailsOnWhite(A.ImageOnlyTransform):  # type: ignore[misc]
    """A transform of the user's own that random images do not find fault with."""

    def apply(self, img: npt.NDArray[np.uint8], **_: Any) -> npt.NDArray[np.uint8]:
        if img.min() == 255:
            raise ValueError("it is white")  # as damaged images raise, but here it is the pipeline's fault
        return img


def pipeline() -> Any:
    return A.Compose(
        [
            A.RandomBrightnessContrast(),
            A.SomeOf([A.GaussNoise(), A.Rotate(20), A.OneOf([A.Posterize(), A.CLAHE()])], n=2),
            A.CoarseDropout(),
        ]
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of several sizes in three classes, none smaller than the input, in train and val."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for split, count in (("train", COUNT), ("val", 6)):
        for number in range(count):
            path = folder / split / "abc"[number % 3] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 200, (SIZE + number % 5, SIZE + number % 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, quality=95)
    A.save(pipeline(), folder / "mine.yaml", data_format="yaml")
    return folder


def make_config(root: Path, *, backend: str = "threads_4", **augment: Any) -> Config:
    own = {"crop": "rrc", "flip": "random", "albumentations": str(root / "mine.yaml")}
    return Config(
        data=DataConfig(dataset="folder", root=str(root)),
        input=InputSpec(size_px=SIZE, channels=3, mean=MEAN, std=STD),
        augment=AugmentConfig(**{**own, **augment}),
        loader=LoaderConfig(**BACKENDS[backend]),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=2, global_batch_size=GLOBAL_BATCH),
        run=RunConfig(seed=3),
    )


DATA: dict[str, Data] = {}


def data_of(config: Config) -> Data:
    return DATA.setdefault(repr((config.data, config.input)), build_data(config, show_progress=False))


def ranks_of(config: Config, *, world_size: int = 1, num_views: int = 1) -> list[PlannedLoader]:
    return [
        build_training_loader(
            config,
            data_of(config),
            place=Place(torch.device("cpu"), torch.float32, rank, world_size, 2),
            show_progress=False,
            num_views=num_views,
        )
        for rank in range(world_size)
    ]


def steps_of(ranks: list[PlannedLoader]) -> Iterator[torch.Tensor]:
    """The images of each global batch, float (N, V, C, H, W), V views."""
    for shares in zip(*ranks, strict=True):
        yield torch.cat([torch.stack(share.inputs, dim=1) for share in shares])


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "crop": (1, {}),
    "two_views": (2, {}),
    "repeats": (1, {"repeats": 3}),
    "growing": (1, {"sizes_px": ((0, 16), (0.4, SIZE)), "noise_std": 0.02, "mixup_alpha": 0.4}),
}


def test_every_way_to_carry_it_out_is_tried(root: Path) -> None:
    chosen = {name: choose_backend(make_config(root, backend=name), data_of(make_config(root))) for name in BACKENDS}
    assert {name.split("_")[0].replace("workers", "reference") for name in BACKENDS} == {
        backend.name for backend in chosen.values()
    }
    assert len(VARIANTS) == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_are_the_same_to_the_bit_on_any_backend_and_number_of_ranks(root: Path, variant: str) -> None:
    num_views, augment = VARIANTS[variant]
    straight = ranks_of(make_config(root, backend="workers_0", **augment), num_views=num_views)
    epochs = [list(steps_of(straight)) for _ in range(2)]
    assert len(epochs[0]) == 3
    for backend, world_size in [*((name, 1) for name in BACKENDS), *PLACES]:
        ranks = ranks_of(make_config(root, backend=backend, **augment), world_size=world_size, num_views=num_views)
        for wanted in epochs:
            assert equal(list(steps_of(ranks)), wanted), (backend, world_size)


def test_what_the_network_sees_is_made_by_albumentations_from_the_seed_of_the_row(root: Path) -> None:
    config = make_config(root, backend="threads_4")
    (loader,) = ranks_of(config, num_views=2)
    plans = []
    draw = loader._draw.plan

    def recording(share: Share, epoch: int, step: int) -> Any:
        plans.append(draw(share, epoch, step))
        return plans[-1]

    loader._draw = loader._draw._replace(plan=recording)
    batch = next(iter(loader))
    images, compose = torch.cat(batch.inputs), pipeline()
    assert len(np.unique(plans[0].own_seeds_N)) == 2 * GLOBAL_BATCH
    for row, sample_id in enumerate(plans[0].ids_N.tolist()):
        with Image.open(data_of(config).train.describe(sample_id)) as image:
            window = carry_out(np.asarray(image), plan=plans[0], row=row, interpolation="bilinear").numpy()
        seed = int(plans[0].own_seeds_N[row])
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        wanted = (compose(image=window)["image"] / 255 - MEAN) / STD
        assert np.abs(images[row].numpy().transpose(1, 2, 0) - wanted).max() <= 1e-5


def images_by_sample(batches: list[Batch]) -> dict[int, list[torch.Tensor]]:
    found: dict[int, list[torch.Tensor]] = {}
    for batch in batches:
        for view in batch.inputs:
            for sample_id, image in zip(batch.ids_N.tolist(), view, strict=True):
                found.setdefault(sample_id, []).append(image)
    return found


def test_views_repeats_and_epochs_are_varied_each_anew(root: Path) -> None:
    """The geometry stays here: all that differs is the pipeline's."""
    noise = A.Compose([A.GaussNoise(p=1)])
    A.save(noise, root / "noise.yaml", data_format="yaml")
    still = {"crop": "none", "flip": "none", "albumentations": str(root / "noise.yaml")}
    (loader,) = ranks_of(make_config(root, repeats=3, **still), num_views=2)
    images = images_by_sample([batch for _ in range(2) for batch in loader])
    assert {len(each) for each in images.values()} <= {6, 12}
    for each in images.values():
        assert len({image.numpy().tobytes() for image in each}) == len(each)


@pytest.mark.parametrize("variant", ["two_views", "repeats"])
def test_a_run_stopped_in_mid_epoch_goes_on_exactly_elsewhere(root: Path, variant: str) -> None:
    num_views, augment = VARIANTS[variant]
    straight = ranks_of(make_config(root, **augment), num_views=num_views)
    epochs = [list(steps_of(straight)) for _ in range(2)]
    other = root / "same_pipeline.json"  # in another file, written in another way
    A.save(pipeline(), other, data_format="json")
    stops = [(0, 1), (0, 2), (1, 1), (1, 2), (0, 2)]
    for (epoch, num_done), (backend, world_size) in zip(stops, PLACES, strict=True):
        ranks = ranks_of(make_config(root, **augment), num_views=num_views)
        for _ in range(epoch):
            list(steps_of(ranks))
        running = steps_of(ranks)
        assert equal([next(running) for _ in range(num_done)], epochs[epoch][:num_done])
        state = ranks[0].state_dict()
        del running
        config = make_config(root, backend=backend, **augment, albumentations=str(other))
        after = ranks_of(config, world_size=world_size, num_views=num_views)
        for loader in after:
            loader.load_state_dict(state)
        assert equal(list(steps_of(after)), epochs[epoch][num_done:]), (backend, world_size)


def test_a_run_does_not_go_on_with_a_changed_pipeline_or_without_it_or_newly_with_one(root: Path) -> None:
    A.save(A.Compose([A.Rotate(19)]), root / "other.yaml", data_format="yaml")
    configs = [make_config(root), make_config(root, albumentations=str(root / "other.yaml"))]
    configs.append(make_config(root, albumentations=None))
    loaders = [ranks_of(config)[0] for config in configs]
    assert "albumentations" not in loaders[2].state_dict()
    for one in loaders:
        for other in loaders:
            if one is other:
                one.load_state_dict(other.state_dict())
                continue
            with pytest.raises(
                ValueError, match=r"the pipeline of augment\.albumentations has changed, or the version"
            ):
                one.load_state_dict(other.state_dict())


def test_evaluation_never_sees_it(root: Path) -> None:
    for backend in ("threads_4", "workers_0", "processes_0"):
        found = []
        for augment in ({}, {"albumentations": None}):
            config = make_config(root, backend=backend, **augment)
            place = Place(torch.device("cpu"), torch.float32, 0, 1, 2)
            for split in ("train", "val"):
                loader = build_evaluation_loader(config, data_of(config), split, place=place, show_progress=False)
                found.append([batch.inputs[0] for batch in loader])
        assert equal(found[0], found[2])
        assert equal(found[1], found[3])


def test_grey_images_and_images_of_ones_own_data_set_get_it_too(root: Path) -> None:
    """Items that do not fit into memory are read by the workers of `reference`."""
    pixels = []
    for backend in BACKENDS:
        config = make_config(root, backend=backend)
        config = replace_section(config, "loader", resident_max_gib=0.0)
        config = replace_section(config, "input", channels=1, mean=(0.5,), std=(0.25,))
        data = DataConfig(dataset="own_sets:Sizes", args={"count": COUNT}, val_frac=0.0)
        config = Config(**{**vars(config), "data": data, "run": RunConfig(seed=3, select="last")})
        (loader,) = ranks_of(config)
        pixels.append(list(steps_of([loader])))
        assert pixels[-1][0].shape == (GLOBAL_BATCH, 1, 1, SIZE, SIZE)
        assert equal(pixels[-1], pixels[0])
    (plain,) = ranks_of(replace_section(config, "augment", albumentations=None))
    assert not torch.equal(next(steps_of([plain])), pixels[0][0])


# --- samples that cannot be read, and pipelines that fail


@pytest.fixture
def broken_root(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the images in which the file train/a/03.jpg is cut short, or white."""

    def make(fault: str) -> Path:
        for path in root.rglob("*.jpg"):
            copy = tmp_path / "images" / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        bad = tmp_path / "images/train/a/03.jpg"
        if fault == "cut":
            bad.write_bytes(bad.read_bytes()[:-100])
        else:
            Image.new("RGB", (SIZE, SIZE), (255, 255, 255)).save(bad, quality=100)
        (tmp_path / "images/mine.yaml").write_text((root / "mine.yaml").read_text())
        return tmp_path / "images"

    return make


def test_an_image_that_takes_the_place_of_a_bad_one_goes_through_the_pipeline(
    broken_root: Callable[[str], Path],
) -> None:
    folder, found = broken_root("cut"), []
    for backend, verify in [*((name, False) for name in BACKENDS), ("threads_4", True)]:
        config = replace_section(
            make_config(folder, backend=backend), "data", on_bad_sample="replace", verify=verify, max_bad_frac=0.1
        )
        data = build_data(config, show_progress=False)
        place = Place(torch.device("cpu"), torch.float32, 0, 1, 2)
        loader = build_training_loader(config, data, place=place, show_progress=False)
        found.append(list(steps_of([loader])))
        (met,) = loader.take_bad_samples()
        assert met.name.endswith("a/03.jpg")
        assert bool(data.train.bad) == verify, "else it is found on the way, and mended then"
        assert equal(found[-1], found[0]), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transform_that_fails_stops_the_run_with_sample_file_and_message_and_is_no_bad_image(
    broken_root: Callable[[str], Path], backend: str
) -> None:
    folder = broken_root("white")
    A.save(A.Compose([FailsOnWhite(p=1)]), folder / "mine.yaml", data_format="yaml")
    config = replace_section(make_config(folder, backend=backend), "data", on_bad_sample="replace", max_bad_frac=0.5)
    (loader,) = ranks_of(config)
    wanted = (
        f"{folder}/train/a/03.jpg: augment.albumentations={folder}/mine.yaml: for this image, it fails: FailsOnWhite: "
        "ValueError: it is white. Correct the pipeline, or leave that transform out."
    )
    with pytest.raises(ValueError, match="it is white") as caught:
        list(loader)
    assert str(caught.value) == wanted, "of whatever backend: not a word before it"
    assert loader.take_bad_samples() == []
    traceback.clear_frames(caught.tb)  # else the garbage collector has to stop the workers, and waits 5 s for each
    del loader


# --- the page


def test_the_example_of_the_page_works_as_it_stands(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "augmentation.md").read_text()
    section = page.partition("## Your own albumentations pipeline")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    options = re.findall(r"^    (--augment\.albumentations .*)$", section, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert yaml.safe_load((tmp_path / "my_pipeline.yaml").read_text())["transform"]["__class_fullname__"] == "Compose"
    assert len(options) == 2
    for line in options:
        config = load_config(line.split(), prog="train.py", description="")
        assert config.augment.albumentations == "my_pipeline.yaml"
    assert config.loader.workers == "processes"
    augment = AugmentConfig(**yaml.safe_load(recipe)["augment"])
    (loader,) = ranks_of(Config(**{**vars(make_config(root)), "augment": augment}))
    assert len(list(loader)) == 3
