"""From a configuration to loaders: splits, input specification, the choice of the executor, and what is refused."""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from configs.load import replace_section
from configs.schema import Config, DataConfig, InputSpec, ModelConfig, OptimConfig, TrainConfig
from pipelines import build_data as build_data_module
from pipelines import build_executor
from pipelines.batch import Batch
from pipelines.build import (
    Data,
    Loaders,
    Place,
    build_data,
    build_evaluation_loader,
    build_loaders,
    build_training_loader,
    check_classes,
    choose_backend,
    describe_data,
    size_at,
    split_of,
)
from pipelines.build_augment import build_effect_settings
from pipelines.build_loader import mixes_at
from pipelines.executors.dali_requirements import Machine
from pipelines.source import ArraySource
from pipelines.sources.digits import load_digits

WriteFolder = Callable[..., Path]
ALONE = Place(device=torch.device("cpu"), dtype=torch.float32, rank=0, world_size=1, num_cores=1)
TWO = {"cat": 12, "dog": 8}


def make_config(root: Path | None = None, **changes: Any) -> Config:
    """Digits, or the folder `root`; changes such as augment__crop="rrc"."""
    config = Config(
        data=DataConfig(dataset="digits" if root is None else "folder", root=root and str(root)),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="adamw", lr=0.001),
        train=TrainConfig(epochs=1, global_batch_size=6),
    )
    for key, value in {"loader__num_workers": 0, **changes}.items():
        section, _, name = key.partition("__")
        config = replace_section(config, section, **{name: value})
    return config


def data_of(config: Config) -> Data:
    return build_data(config, show_progress=False)


def loaders_of(config: Config, *, place: Place = ALONE) -> Loaders:
    return build_loaders(config, data_of(config), place=place, show_progress=False)


def counts_of(data: Data) -> dict[str, int]:
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {split: len(source.labels_N) for split, source in splits.items() if source is not None}


def fingerprints(data: Data) -> list[str]:
    return [source.fingerprint() for source in (data.train, data.val, data.test) if source is not None]


def test_digits_are_split_into_train_val_and_a_test_of_360_and_measured_on_train() -> None:
    data = data_of(make_config())
    assert counts_of(data) == {"train": 1293, "val": 144, "test": 360}
    assert (data.spec.size_px, data.spec.channels) == (8, 1)
    assert isinstance(data.train, ArraySource)
    pixels = data.train.images_NHWC / 255
    assert data.spec.mean == pytest.approx([pixels.mean()], abs=5.1e-7)
    assert data.spec.std == pytest.approx([pixels.std()], abs=5.1e-7)
    parts = [source.images_NHWC for source in (data.train, data.val, data.test) if isinstance(source, ArraySource)]
    together = np.sort(np.concatenate(parts).reshape(1797, -1), axis=0)
    assert together.tolist() == np.sort(load_digits().images_NHWC.reshape(1797, -1), axis=0).tolist()


def test_val_follows_split_seed_not_run_seed_and_test_is_always_the_same() -> None:
    first = fingerprints(data_of(make_config()))
    assert fingerprints(data_of(make_config(run__seed=5))) == first
    other = fingerprints(data_of(make_config(data__split_seed=5)))
    assert (other[0] != first[0], other[1] != first[1], other[2] == first[2]) == (True, True, True)


def test_without_val_frac_nothing_is_held_out_where_the_last_checkpoint_is_selected() -> None:
    data = data_of(make_config(data__val_frac=0.0, run__select="last"))
    assert counts_of(data) == {"train": 1437, "test": 360}


@pytest.mark.parametrize(
    ("options", "name", "instead"),
    [
        ({"run__select": "best"}, "run.select=best", "use run.select=last"),
        ({"run__select": "last", "train__early_stop_epochs": 3}, "train.early_stop_epochs", "leave it out"),
        ({"run__select": "last", "schedule__name": "plateau"}, "schedule.name=plateau", "leave it out"),
    ],
)
def test_what_goes_by_val_is_refused_without_it_with_both_ways_out(
    options: dict[str, object], name: str, instead: str
) -> None:
    wanted = (
        f"{name} needs val to go by, but there is no val: data.val_frac=0 and the data has no val/; {instead}, "
        "or use data.val_frac=0.1."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        data_of(make_config(data__val_frac=0.0, **options))


def test_a_val_of_its_own_is_used_and_train_left_whole(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "val": {"cat": 2, "dog": 1}})
    assert counts_of(data_of(make_config(root))) == {"train": 20, "val": 3}
    assert counts_of(data_of(make_config(root, data__val_frac=0.0))) == {"train": 20, "val": 3}


def test_a_folder_without_val_gives_a_stratified_part_of_train(write_folder: WriteFolder) -> None:
    data = data_of(make_config(write_folder({"train": TWO}), data__val_frac=0.25))
    assert counts_of(data) == {"train": 15, "val": 5}
    assert data.val is not None
    assert np.bincount(data.val.labels_N).tolist() == [3, 2]


def test_images_of_several_sizes_need_a_size_and_the_offer_works(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO}, sizes=[(120, 140), (150, 100), (110, 110)])
    wanted = (
        "the images are not squares of one size, but 110 to 150 pixels high and 100 to 140 wide; "
        "say which square size the network "
        "sees, for example --input.size_px 96."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        data_of(make_config(root))
    assert data_of(make_config(root, input__size_px=96)).spec.size_px == 96


@pytest.mark.parametrize(("size", "offer"), [((20, 30), 32), ((64, 65), 64), ((300, 224), 224)])
def test_images_of_one_size_that_is_not_square_need_a_size_too(
    write_folder: WriteFolder, size: tuple[int, int], offer: int
) -> None:
    root = write_folder({"train": {"cat": 2, "dog": 2}}, sizes=[size])
    wanted = f"{size[0]} to {size[0]} pixels high and {size[1]} to {size[1]} wide; .*--input.size_px {offer}\\."
    with pytest.raises(ValueError, match=wanted):
        data_of(make_config(root, data__val_frac=0.5))


def test_a_size_that_only_test_has_is_not_overlooked(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "test": {"cat": 1, "dog": 1}})
    Image.new("RGB", (40, 40)).save(root / "test/cat/000.png")
    with pytest.raises(ValueError, match="the images are not squares of one size, but 16 to 40"):
        data_of(make_config(root))


def test_the_size_of_square_images_is_taken_from_them(write_folder: WriteFolder) -> None:
    assert data_of(make_config(write_folder({"train": TWO}, sizes=[(24, 24)]))).spec.size_px == 24


def test_channels_are_one_only_if_every_image_of_every_split_is_grey(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "test": {"cat": 1, "dog": 1}}, channels=1)
    assert data_of(make_config(root)).spec.channels == 1
    assert data_of(make_config(root, input__channels=3)).spec.channels == 3
    with pytest.raises(ValueError, match=r"input\.mean has 3 values .*; give one per channel: 1 \(input\.channels\)"):
        data_of(make_config(root, input__mean=(0.5, 0.5, 0.5)))
    Image.new("RGB", (16, 16), (1, 2, 3)).save(root / "test/cat/000.png")
    data = data_of(make_config(root))
    assert data.spec.channels == 3
    assert data.spec.mean == (data.spec.mean or ())[:1] * 3, "train itself is grey"


def test_given_statistics_are_kept_and_only_the_others_measured() -> None:
    given = data_of(make_config(input__mean=(0.25,))).spec
    measured = data_of(make_config()).spec
    assert (given.mean, given.std) == ((0.25,), measured.std)
    both = data_of(make_config(input__mean=(0.25,), input__std=(0.5,))).spec
    assert (both.mean, both.std) == ((0.25,), (0.5,))


def test_statistics_for_other_channels_than_the_images_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input\.std has 3 values \[.*\]; give one per channel: 1"):
        data_of(make_config(input__std=(0.5, 0.5, 0.5)))


def test_a_pad_beyond_the_measured_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment\.pad_px=8 shifts .* input\.size_px=8: .* at most 7; use 4"):
        data_of(make_config(augment__crop="pad", augment__pad_px=8))
    assert data_of(make_config(augment__crop="pad", augment__pad_px=7)).spec.size_px == 8


def test_a_batch_larger_than_train_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size=1294 is more than the 1293 training images"):
        loaders_of(make_config(train__global_batch_size=1294))


# --- the choice of the executor


def test_auto_holds_data_that_fit_and_says_how_large_they_are() -> None:
    config = make_config()
    gib = 1797 * 8 * 8 / 2**30
    wanted = f"{1024 * gib:.1f} MiB decoded, at most 4 GiB held: loader.resident_max_gib"
    assert choose_backend(config, data_of(config)) == ("resident", wanted)


def test_auto_holds_exactly_what_the_limit_allows() -> None:
    gib = 1797 * 8 * 8 / 2**30
    config = make_config(loader__resident_max_gib=gib)
    assert choose_backend(config, data_of(config)).name == "resident"
    config = make_config(loader__resident_max_gib=gib * 0.999)
    backend = choose_backend(config, data_of(config))
    assert backend.name == "threads"
    assert backend.reason == f"{1024 * gib:.1f} MiB decoded, at most {gib * 0.999:g} GiB held: loader.resident_max_gib"


def test_the_decoded_size_counts_what_the_store_will_hold(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO}, sizes=[(64, 48)])
    resized = make_config(root, input__size_px=8)
    assert f"{20 * 8 * 8 * 3 / 2**20:.1f} MiB decoded" in choose_backend(resized, data_of(resized)).reason
    drawn = make_config(root, input__size_px=8, augment__crop="rrc")
    assert f"{20 * 64 * 48 * 3 / 2**20:.1f} MiB decoded" in choose_backend(drawn, data_of(drawn)).reason


@pytest.mark.parametrize("backend", ["reference", "resident", "threads", "dali"])
def test_a_configured_executor_is_taken_whatever_the_size(backend: str) -> None:
    config = make_config(loader__backend=backend, loader__resident_max_gib=0.0)
    assert choose_backend(config, data_of(config)) == (backend, "as configured")


@pytest.mark.parametrize(
    ("gib", "fallback", "wanted"),
    [(4.0, "resident", "DALI is not installed"), (0.0, "threads", "DALI is not installed")],
)
def test_dali_where_it_is_not_installed_is_refused_with_what_auto_takes_instead(
    gib: float, fallback: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_executor, "this_machine", lambda *, on_gpu: NO_DALI)
    config = make_config(loader__backend="dali", loader__resident_max_gib=gib)
    with pytest.raises(ValueError, match=wanted) as caught:
        choose_backend(config, data_of(config))
    assert str(caught.value).startswith("loader.backend=dali: NVIDIA DALI is not installed (pip install ")
    assert str(caught.value).endswith(f". Or use --loader.backend auto, which takes {fallback} here.")


def test_a_driver_that_is_too_old_for_dali_is_told_before_work_starts_and_only_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def machine(*, on_gpu: bool) -> Machine:
        return NO_DALI._replace(packages_cuda=(13,), is_importable=True, driver_cuda=12 if on_gpu else None)

    monkeypatch.setattr(build_executor, "this_machine", machine)
    config = make_config(loader__backend="dali")
    data = data_of(config)
    for device in (None, torch.device("cpu")):
        assert choose_backend(config, data, device=device).name == "dali"
    with pytest.raises(ValueError, match=r"needs a GPU driver 580 or newer.* type `make dali-cuda120`"):
        build_loaders(config, data, place=ALONE._replace(device=torch.device("cuda")), show_progress=False)


@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system")
@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system")
def test_what_the_gpus_decoder_takes_reaches_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.executors import dali

    seen = []
    monkeypatch.setattr(dali, "DaliExecutor", lambda source, **options: seen.append(options))
    loaders_of(make_config(loader__backend="dali", loader__hw_decoder_load=0.65, loader__num_threads=3))
    assert {(options["hw_decoder_load"], options["num_threads"]) for options in seen} == {(0.65, 3)}


def test_dali_that_does_not_start_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipelines.executors.dali", raising=False)
    monkeypatch.setitem(sys.modules, "pipelines.executors.dali_graph", None)  # as if a library of DALI's were missing
    config = make_config(loader__backend="dali")
    with pytest.raises(ValueError, match=r"^loader.backend=dali: NVIDIA DALI does not start \(.*halted.*\)\. Or use "):
        loaders_of(config)


@pytest.mark.parametrize(
    "drawn", [{"augment__crop": "rrc"}, {"augment__sizes_px": ((0, 12),)}], ids=["windows_drawn", "sizes_drawn"]
)
def test_windows_drawn_from_images_of_several_sizes_cannot_be_held(
    write_folder: WriteFolder, drawn: dict[str, Any]
) -> None:
    root = write_folder({"train": TWO}, sizes=[(30, 40), (40, 30)])
    config = make_config(root, input__size_px=16, **drawn)
    data = data_of(config)
    assert choose_backend(config, data) == ("threads", "windows or sizes are drawn, from images of several sizes")
    resident = replace_section(config, "loader", backend="resident")
    wanted = (
        "loader.backend=resident holds the images as they are stored for augment.crop=rrc and augment.sizes_px, and "
        "these have several sizes; use loader.backend=threads, or another crop."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        choose_backend(resident, data)
    assert choose_backend(replace_section(resident, "loader", backend="threads"), data).name == "threads"
    fixed = replace_section(resident, "augment", crop="pad", sizes_px=())
    assert choose_backend(fixed, data).name == "resident"


NO_DALI = Machine(system="linux", processor="x86_64", packages_cuda=(), is_importable=False, driver_cuda=None)
OWN_PIPELINE = "transform: {__class_fullname__: Compose, p: 1.0, transforms: [{__class_fullname__: InvertImg, p: 1.0}]}"


@pytest.fixture
def own_pipeline(tmp_path: Path) -> str:
    """The file of a pipeline of albumentations that inverts every image."""
    (tmp_path / "mine.yaml").write_text(OWN_PIPELINE)
    return str(tmp_path / "mine.yaml")


def test_auto_takes_threads_for_a_pipeline_of_the_users_own_and_says_so(own_pipeline: str) -> None:
    config = make_config(augment__albumentations=own_pipeline)
    data = data_of(config)
    assert choose_backend(config, data) == ("threads", "augment.albumentations takes single images on the CPU")
    loaders = build_loaders(config, data, place=ALONE, show_progress=False)
    assert "loader: threads (augment.albumentations takes single images on the CPU)" in describe_data(data, loaders)
    own = make_config(
        augment__albumentations=own_pipeline,
        data__dataset="own_sets:Sizes",
        data__args={"count": 40},
        input__size_px=16,
        loader__resident_max_gib=0.0,
    )
    assert choose_backend(own, data_of(own)).name == "reference", "its workers do it"


@pytest.mark.parametrize("backend", ["resident", "dali"])
def test_a_backend_that_cannot_run_a_pipeline_of_the_users_own_is_refused_with_what_to_do(
    own_pipeline: str, backend: str
) -> None:
    config = make_config(augment__albumentations=own_pipeline, loader__backend=backend)
    wanted = (
        f"loader.backend={backend} cannot carry out augment.albumentations={own_pipeline}, which takes single images "
        "on the CPU; use loader.backend=threads, or leave augment.albumentations out."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        choose_backend(config, data_of(config))


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_worker_processes_take_the_place_of_threads_where_they_are_asked_for(own_pipeline: str, backend: str) -> None:
    options = {"augment__albumentations": own_pipeline, "loader__backend": backend}
    config = make_config(**options, loader__workers="processes", loader__num_workers=2)
    why = "as configured" if backend == "threads" else "augment.albumentations takes single images on the CPU"
    assert choose_backend(config, data_of(config)) == ("processes", f"{why}; loader.workers=processes")
    there, here = loaders_of(config), loaders_of(make_config(**options))
    pixels, wanted = (torch.cat([batch.inputs[0] for batch in one.evaluation["val"]]) for one in (there, here))
    assert torch.equal(pixels, wanted)
    assert torch.equal(next(iter(there.train)).inputs[0], next(iter(here.train)).inputs[0])


def test_processes_change_nothing_where_auto_holds_the_images() -> None:
    config = make_config(loader__workers="processes")
    backend, without = (choose_backend(one, data_of(one)) for one in (config, make_config()))
    assert backend == ("resident", f"{without.reason}; loader.workers=processes is read by threads only")


def test_a_pipeline_is_tried_out_on_every_size_of_the_run_before_training(own_pipeline: str) -> None:
    crop = "{__class_fullname__: RandomCrop, height: 12, width: 12, p: 0.01}"
    Path(own_pipeline).write_text(OWN_PIPELINE.replace("{__class_fullname__: InvertImg, p: 1.0}", crop))
    config = make_config(augment__albumentations=own_pipeline, input__size_px=12)
    loaders_of(config)
    for sizes_px, size_px, came in (
        (((0, 12), (0.5, 16)), 16, "it gives uint8 (12, 12, 1)"),
        (((0, 8),), 8, "it fails: R"),
    ):
        wanted = f"augment.albumentations={own_pipeline}: for an image uint8 ({size_px}, {size_px}, 1), {came}"
        with pytest.raises(ValueError, match=re.escape(wanted)):
            loaders_of(replace_section(config, "augment", sizes_px=sizes_px))


def test_a_pipeline_changes_training_images_and_no_others(own_pipeline: str) -> None:
    changed, plain = (
        loaders_of(make_config(augment__albumentations=path, input__mean=(0.5,), input__std=(0.5,)))
        for path in (own_pipeline, None)
    )
    one, other = (next(iter(loaders.train)).inputs[0] for loaders in (changed, plain))
    assert torch.allclose(one, -other, rtol=0, atol=1e-6)
    for split in ("val", "test"):
        one, other = (next(iter(loaders.evaluation[split])).inputs[0] for loaders in (changed, plain))
        assert torch.equal(one, other)


def test_one_size_throughout_that_is_the_inputs_draws_nothing(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO}, sizes=[(30, 40), (40, 30)])
    config = make_config(root, input__size_px=16, augment__sizes_px=((0, 16), (3, 16)))
    assert choose_backend(config, data_of(config)).name == "resident"


@pytest.mark.parametrize(("num_cores", "configured", "wanted"), [(64, None, 8), (4, None, 4), (1, None, 1), (4, 0, 0)])
def test_the_default_number_of_workers_is_the_cores_per_rank_at_most_eight(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, configured: int | None, wanted: int
) -> None:
    chosen = []

    def record(source: object, **arguments: Any) -> object:
        chosen.append(arguments["num_workers"])
        return object()

    monkeypatch.setattr(build_executor, "ReferenceExecutor", record)
    place = ALONE._replace(num_cores=num_cores)
    loaders_of(make_config(loader__backend="reference", loader__num_workers=configured), place=place)
    assert chosen == [wanted] * 3


# --- loaders


def test_loaders_of_a_run_cover_train_val_and_test() -> None:
    loaders = loaders_of(make_config(train__global_batch_size=100))
    assert (loaders.train.num_samples, loaders.train.steps_per_epoch, loaders.train.num_left_out) == (1293, 12, 93)
    assert {split: loader.num_samples for split, loader in loaders.evaluation.items()} == {"val": 144, "test": 360}
    assert loaders.backend.name == "resident"


def test_evaluation_counts_every_image_with_its_label_and_its_pixels() -> None:
    config = make_config(loader__eval_batch_size_per_rank=100)
    data = data_of(config)
    assert isinstance(data.test, ArraySource)
    loader = build_evaluation_loader(config, data, "test", place=ALONE, show_progress=False)
    batches = list(loader)
    assert [len(batch.ids_N) for batch in batches] == [100] * 4
    valid = torch.cat([batch.valid_N for batch in batches])
    assert int(valid.sum()) == 360
    labels = torch.cat([batch.labels_N for batch in batches])[valid]
    pixels = torch.cat([batch.inputs[0] for batch in batches])[valid]
    assert labels.tolist() == data.test.labels_N.tolist()
    mean, std = (data.spec.mean or ())[0], (data.spec.std or ())[0]
    wanted = (data.test.images_NHWC[..., 0] / 255 - mean) / std
    assert np.abs(pixels[:, 0].numpy() - wanted).max() < 5e-6


RESIZED = {"input__size_px": 10}


@pytest.mark.parametrize(
    ("changes", "levels"),  # how far the pixels may differ, of 255
    [
        ({"augment__crop": "pad", "augment__pad_px": 3, "augment__flip": "random"}, 0),
        ({"augment__crop": "none", "augment__flip": "alternating"}, 0),
        ({"augment__crop": "rrc", "augment__flip": "random"}, 1),
        ({**RESIZED, "augment__crop": "pad", "input__fit": "squash", "input__interpolation": "bicubic"}, 0),
        ({**RESIZED, "input__crop_frac": 0.8}, 0),
        ({**RESIZED, "augment__sizes_px": ((0, 6), (0.5, 16))}, 1),
        ({"augment__crop": "pad", "augment__mixup_alpha": 0.2, "augment__repeats": 3, "augment__erase_prob": 0.5}, 0),
    ],
    ids=["pad", "none", "rrc", "squash_bicubic", "crop_frac", "sizes", "mix_repeat_erase"],
)
def test_all_executors_built_from_a_configuration_give_the_same_batches(
    write_folder: WriteFolder, changes: dict[str, Any], levels: int
) -> None:
    root = write_folder({"train": TWO, "test": {"cat": 3, "dog": 2}}, sizes=[(16, 16)])
    found = []
    for backend in ("reference", "resident", "threads"):
        config = make_config(root, data__val_frac=0.2, loader__backend=backend, run__seed=3, **changes)
        loaders = loaders_of(config)
        assert loaders.backend.name == backend
        found.append([batch for loader in (loaders.train, *loaders.evaluation.values()) for batch in loader])
        std = min(data_of(config).spec.std or ())
    assert len(found[0]) == 2 + 1 + 1
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert torch.equal(one.ids_N, other.ids_N)
            assert torch.equal(one.labels_N, other.labels_N)
            assert torch.equal(one.valid_N, other.valid_N)
            assert (one.inputs[0] - other.inputs[0]).abs().max() <= levels * 1.01 / 255 / std


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"augment__crop": "pad", "augment__pad_px": 3, "augment__flip": "random"}, 0),
        ({"augment__crop": "none", "augment__vertical_flip_prob": 0.5}, 0),
        ({"augment__crop": "rrc"}, 1),
        ({"augment__sizes_px": ((0, 6), (0.5, 16))}, 1),
    ],
    ids=["pad", "none", "rrc", "sizes"],
)
def test_all_executors_letterbox_alike_with_a_border_that_is_about_zero(
    write_folder: WriteFolder, changes: dict[str, Any], levels: int
) -> None:
    root = write_folder({"train": TWO, "test": {"cat": 3, "dog": 2}}, sizes=[(10, 20)])
    backends = ("reference", "resident", "threads")
    found = []
    for backend in backends:
        config = make_config(root, data__val_frac=0.2, loader__backend=backend, input__size_px=12, **changes)
        config = replace_section(config, "input", fit="letterbox")
        loaders, std = loaders_of(config), min(data_of(config).spec.std or ())
        assert loaders.backend.name == backend
        found.append([batch for loader in (loaders.train, *loaders.evaluation.values()) for batch in loader])
        images = torch.cat([batch.inputs[0][batch.valid_N] for batch in loaders.evaluation["test"]])
        assert images[:, :, [0, 1, 2, 9, 10, 11]].abs().max() <= 0.51 / 255 / std, "20 x 10 becomes 12 x 6"
        assert (images[:, :, 3:9].abs().amax(dim=(1, 2, 3)) > 0.2).all()
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert torch.equal(one.ids_N, other.ids_N)
            assert (one.inputs[0] - other.inputs[0]).abs().max() <= levels * 1.01 / 255 / std


def test_training_draws_and_evaluation_does_not(write_folder: WriteFolder) -> None:
    config = make_config(write_folder({"train": TWO}), data__val_frac=0.5, augment__crop="rrc", augment__flip="random")
    data = data_of(config)
    loaders = build_loaders(config, data, place=ALONE, show_progress=False)
    first, second = ([batch.inputs[0] for batch in loaders.evaluation["val"]] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    pixels: dict[int, list[torch.Tensor]] = {}
    for _ in range(2):
        for batch in loaders.train:
            for sample_id, image in zip(batch.ids_N.tolist(), batch.inputs[0], strict=True):
                pixels.setdefault(sample_id, []).append(image)
    twice = [images for images in pixels.values() if len(images) == 2]
    assert len(twice) >= 2
    assert not any(torch.equal(one, other) for one, other in twice)


def test_ranks_built_from_one_configuration_share_its_batches() -> None:
    config = make_config(train__global_batch_size=40, augment__crop="pad", augment__pad_px=1)
    alone = next(iter(loaders_of(config).train))
    shares = [next(iter(loaders_of(config, place=ALONE._replace(rank=rank, world_size=4)).train)) for rank in range(4)]
    assert torch.equal(torch.cat([share.ids_N for share in shares]), alone.ids_N)
    assert torch.equal(torch.cat([share.inputs[0] for share in shares]), alone.inputs[0])


def test_inputs_have_the_dtype_of_the_place() -> None:
    loaders = loaders_of(make_config(), place=ALONE._replace(dtype=torch.float64))
    assert next(iter(loaders.train)).inputs[0].dtype == torch.float64


@pytest.mark.parametrize(("first", "second"), [("reference", "resident"), ("resident", "threads"), ("threads", "dali")])
def test_the_position_of_a_loader_can_be_continued_with_another_executor(first: str, second: str) -> None:
    loader, other = (loaders_of(make_config(loader__backend=name)).train for name in (first, second))
    next(iter(loader))
    other.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(other)).inputs[0], next(iter(loader)).inputs[0])


# --- what augment says


def test_every_option_of_mixing_erasing_and_noise_reaches_the_tail() -> None:
    config = make_config(
        augment__mixup_alpha=0.2,
        augment__cutmix_alpha=0.7,
        augment__mix_prob=0.9,
        augment__mix_switch_prob=0.3,
        augment__erase_prob=0.4,
        augment__erase_scale=(0.1, 0.2),
        augment__erase_ratio=(0.5, 2.0),
        augment__noise_std=0.05,
    )
    settings = build_effect_settings(config, num_images=1)
    assert settings.mixing._asdict() == {"mixup_alpha": 0.2, "cutmix_alpha": 0.7, "prob": 0.9, "switch_prob": 0.3}
    assert settings.erasing._asdict() == {"prob": 0.4, "scale": (0.1, 0.2), "ratio": (0.5, 2.0)}
    assert settings.noise_std == 0.05
    plain = next(iter(loaders_of(make_config()).train))
    changed = next(iter(loaders_of(config).train))
    assert plain.mix is None
    assert changed.mix is not None
    assert not torch.equal(plain.inputs[0], changed.inputs[0])


def test_the_defaults_of_the_schema_are_those_of_torchvision_and_change_nothing() -> None:
    settings = build_effect_settings(make_config(), num_images=1)
    assert not settings.mixes
    assert (settings.erasing.prob, settings.noise_std) == (0, 0)
    assert (settings.erasing.scale, settings.erasing.ratio) == ((0.02, 0.33), (0.3, 3.3))


def test_repeats_reach_the_order_and_an_epoch_keeps_its_steps() -> None:
    config = make_config(train__global_batch_size=100, augment__repeats=4, augment__crop="pad", augment__pad_px=1)
    loader = loaders_of(config).train
    assert (loader.steps_per_epoch, loader.num_left_out) == (12, 1293 - 12 * 25)
    batch = next(iter(loader))
    assert batch.ids_N.unique().tolist() == sorted(batch.ids_N[:25].tolist())
    assert torch.bincount(batch.ids_N).max() == torch.bincount(batch.ids_N)[batch.ids_N].min() == 4


def test_views_are_asked_for_by_whoever_builds_the_loader() -> None:
    config = make_config(augment__crop="pad", augment__pad_px=3)
    loader = build_training_loader(config, data_of(config), place=ALONE, show_progress=False, num_views=2)
    one, other = next(iter(loader)).inputs
    assert one.shape == other.shape == (6, 1, 8, 8)
    assert not torch.equal(one, other)


def spec_of(size_px: int) -> InputSpec:
    return InputSpec(size_px=size_px)


@pytest.mark.parametrize(
    ("epoch", "wanted"), [(0.0, 12), (1.4999, 12), (1.5, 16), (1.99, 16), (2.0, 24), (2.7, 24), (100.0, 24)]
)
def test_the_size_of_an_epoch_is_the_last_that_has_begun(epoch: float, wanted: int) -> None:
    config = make_config(augment__sizes_px=((0, 12), (1.5, 16), (2, 24)))
    assert size_at(epoch, config=config, spec=spec_of(20)) == wanted


def test_without_sizes_or_before_the_first_of_them_the_size_is_the_inputs() -> None:
    assert size_at(3.0, config=make_config(), spec=spec_of(20)) == 20
    late = make_config(augment__sizes_px=((2, 24),))
    assert [size_at(epoch, config=late, spec=spec_of(20)) for epoch in (0.0, 1.999, 2.0)] == [20, 20, 24]


@pytest.mark.parametrize("backend", ["reference", "resident", "threads"])
def test_images_grow_in_the_midst_of_an_epoch_and_evaluation_keeps_its_size(
    write_folder: WriteFolder, backend: str
) -> None:
    root = write_folder({"train": TWO}, sizes=[(24, 24)])
    config = make_config(
        root,
        data__val_frac=0.2,
        input__size_px=16,
        augment__sizes_px=((0, 8), (0.5, 12), (1, 24), (1.75, 16)),
        augment__mixup_alpha=0.2,
        augment__cutmix_alpha=1.0,
        augment__erase_prob=0.5,
        train__global_batch_size=4,
        loader__backend=backend,
    )
    loaders = loaders_of(config)
    assert loaders.train.steps_per_epoch == 4
    shapes = [tuple(batch.inputs[0].shape) for _ in range(2) for batch in loaders.train]
    assert [shape[2] for shape in shapes] == [8, 8, 12, 12, 24, 24, 24, 16]
    assert all(shape == (4, 3, shape[2], shape[2]) for shape in shapes)
    assert {tuple(batch.inputs[0].shape[1:]) for batch in loaders.evaluation["val"]} == {(3, 16, 16)}
    again = loaders_of(config).train
    again.load_state_dict({**loaders.train.state_dict(), "epoch": 1, "samples_consumed": 8})
    assert [batch.inputs[0].shape[2] for batch in again] == [24, 16], "a run that goes on knows the size, too"


@pytest.mark.parametrize(
    ("epoch", "wanted"), [(0.0, True), (1.4999, True), (1.5, False), (1.5 - 1e-12, False), (2.0, False), (100.0, False)]
)
def test_pairs_are_mixed_until_an_epoch_that_may_have_a_fraction(epoch: float, wanted: bool) -> None:
    config = make_config(augment__mixup_alpha=0.2, augment__mix_until_epoch=1.5)
    assert mixes_at(epoch, config=config) is wanted
    assert mixes_at(epoch, config=make_config(augment__mixup_alpha=0.2))


def same(batches: list[Batch], others: list[Batch]) -> list[bool]:
    """Which batches are equal, pixels, labels and mixes."""
    return [
        torch.equal(one.inputs[0], other.inputs[0])
        and torch.equal(one.ids_N, other.ids_N)
        and torch.equal(one.labels_N, other.labels_N)
        and (one.mix is None) == (other.mix is None)
        and (one.mix is None or all(torch.equal(*pair) for pair in zip(one.mix, other.mix, strict=True)))
        for one, other in zip(batches, others, strict=True)
    ]


@pytest.mark.parametrize("backend", ["reference", "resident", "threads"])
def test_where_mixing_ends_in_mid_epoch_nothing_else_changes_and_a_run_that_goes_on_knows(
    write_folder: WriteFolder, backend: str
) -> None:
    root = write_folder({"train": TWO})
    others = {"augment__erase_prob": 0.5, "augment__flip": "random", "loader__backend": backend}
    others |= {"data__val_frac": 0.2, "train__global_batch_size": 4, "train__epochs": 2}
    mixed = others | {"augment__mixup_alpha": 0.4, "augment__cutmix_alpha": 1.0}

    def loader_of(place: Place = ALONE, **options: Any) -> Any:
        return loaders_of(make_config(root, **options), place=place).train

    def batches_of(loader: Any) -> list[Batch]:
        return [batch for _ in range(2) for batch in loader]

    always, never = batches_of(loader_of(**mixed)), batches_of(loader_of(**others))
    ended = batches_of(loader_of(**mixed, augment__mix_until_epoch=1.25))
    assert same(ended, always) == [True] * 5 + [False] * 3
    assert same(ended, never) == [False] * 5 + [True] * 3
    assert [batch.mix is None for batch in ended] == [False] * 5 + [True] * 3
    for step in range(8):  # killed before any step, and continued
        going_on = loader_of(**mixed, augment__mix_until_epoch=1.25)
        state = {**going_on.state_dict(), "epoch": step // 4, "samples_consumed": step % 4 * 4}
        going_on.load_state_dict(state)
        assert all(same(list(going_on), ended[step : 4 * (step // 4 + 1)]))
    places = [ALONE._replace(rank=rank, world_size=2) for rank in range(2)]
    ranks = [batches_of(loader_of(place, **mixed, augment__mix_until_epoch=1.25)) for place in places]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert torch.equal(torch.cat([part.inputs[0] for part in parts]), ended[step].inputs[0])
        assert [part.mix is None for part in parts] == [ended[step].mix is None] * 2


@pytest.mark.parametrize(("wanted", "is_mixed"), [(15, True), (16, True), (17, False)])
def test_pairs_are_mixed_only_where_train_has_images_enough(
    write_folder: WriteFolder, wanted: int, is_mixed: bool
) -> None:
    root = write_folder({"train": TWO})
    mixed = {"augment__mixup_alpha": 0.4, "augment__flip": "random", "train__global_batch_size": 4}
    config = make_config(root, **mixed, augment__mix_from_images=wanted, data__val_frac=0.2)
    data = data_of(config)
    assert len(data.train.labels_N) == 16
    loaders = loaders_of(config)
    always, never = (
        list(loaders_of(make_config(root, **mixed | {"augment__mixup_alpha": alpha}, data__val_frac=0.2)).train)
        for alpha in (0.4, 0.0)
    )
    assert all(same(list(loaders.train), always if is_mixed else never))
    odd = make_config(
        root, **mixed | {"train__global_batch_size": 5}, augment__mix_from_images=wanted, data__val_frac=0.2
    )
    with contextlib.nullcontext() if not is_mixed else pytest.raises(ValueError, match="a global batch of 5 is odd"):
        loaders_of(odd)
    told = "mixing: none, for 16 images are fewer than augment.mix_from_images=17\n"
    assert (told in describe_data(data, loaders)) is not is_mixed


def test_the_description_gives_counts_sizes_statistics_and_the_executor_with_its_reason() -> None:
    config = make_config(train__global_batch_size=100)
    data = data_of(config)
    loaders = build_loaders(config, data, place=ALONE, show_progress=False)
    mean, std = (data.spec.mean or ())[0], (data.spec.std or ())[0]
    assert describe_data(data, loaders) == (
        "data: 1,293 train, 144 val, 360 test; 10 classes; 93 images left out of each epoch of 12 steps\n"
        f"input: 8x8, 1 channel(s), mean ({mean:.4f}), std ({std:.4f})\n"
        "loader: resident (0.1 MiB decoded, at most 4 GiB held: loader.resident_max_gib)"
    )


# --- scoring a split


def test_a_split_that_is_there_is_found_and_one_that_is_not_is_refused_with_those_that_are(
    write_folder: WriteFolder,
) -> None:
    config = make_config(write_folder({"train": TWO}))
    data = data_of(config)
    assert (split_of(data, "train"), split_of(data, "val")) == (data.train, data.val)
    with pytest.raises(ValueError, match=r"^the data has no test; there is train, val\.$"):
        split_of(data, "test")
    with pytest.raises(ValueError, match=r"^the data has no test; there is train, val\.$"):
        build_evaluation_loader(config, data, "test", place=ALONE, show_progress=False)


def test_other_classes_than_those_of_the_checkpoint_are_listed_with_minus_and_plus(write_folder: WriteFolder) -> None:
    data = data_of(make_config(write_folder({"train": TWO})))
    check_classes(data, ["cat", "dog"])
    with pytest.raises(ValueError, match=r"other classes than the checkpoint: - ant, - bee, \+ cat\.$"):
        check_classes(data, ["ant", "bee", "dog"])


def test_train_itself_can_be_scored_unaugmented_and_whole() -> None:
    config = make_config(augment__crop="pad", augment__pad_px=3, augment__mixup_alpha=1.0, augment__repeats=2)
    data = data_of(config)
    loader = build_evaluation_loader(config, data, "train", place=ALONE, show_progress=False)
    batches = list(loader)
    assert sum(int(batch.valid_N.sum()) for batch in batches) == 1293
    assert batches[0].mix is None
    assert batches[0].ids_N[:5].tolist() == [0, 1, 2, 3, 4]


# --- images that cannot be read

BACKENDS = pytest.mark.parametrize("backend", ["reference", "resident", "threads"])
GIVEN = {"input__size_px": 16, "input__mean": (0.5,) * 3, "input__std": (0.5,) * 3}  # nothing is measured
WHAT_TO_DO = (
    "Repair or remove it, or go on without: --data.on_bad_sample replace (in training), "
    "--data.on_bad_eval_sample exclude (in evaluation)."
)


def cut(path: Path) -> Path:
    """Cuts a file behind its header: its size is known, its pixels are not."""
    path.write_bytes(path.read_bytes()[:-60])
    return path


def test_files_that_are_no_images_are_refused_before_anything_is_read_with_the_ways_out(
    write_folder: WriteFolder,
) -> None:
    root = write_folder({"train": TWO})
    bad = [root / "train/cat" / f"{number:03}.png" for number in range(6)]
    for path in bad:
        path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"^6 of 20 images cannot be read:\n  ") as caught:
        data_of(make_config(root, data__val_frac=0.0, run__select="last"))
    lines = str(caught.value).splitlines()
    assert lines[1:6] == [f"  {path}: not an image in any format that Pillow reads" for path in bad[:5]]
    assert lines[6:] == ["  ...", WHAT_TO_DO]


@pytest.mark.parametrize(
    ("split", "option"), [("train", {"on_bad_sample": "replace"}), ("test", {"on_bad_eval_sample": "exclude"})]
)
def test_each_split_has_its_own_option_for_bad_files(
    write_folder: WriteFolder, split: str, option: dict[str, str]
) -> None:
    root = write_folder({"train": TWO, "test": {"cat": 3, "dog": 2}})
    (root / split / "cat/001.png").write_bytes(b"<html>")
    config = make_config(root, data__val_frac=0.0, run__select="last")
    other = {"on_bad_eval_sample": "exclude"} if split == "train" else {"on_bad_sample": "replace"}
    with pytest.raises(ValueError, match=r"cat/001\.png: not an image"):
        data_of(replace_section(config, "data", **other))
    data = data_of(replace_section(config, "data", **option))
    source = split_of(data, split)
    assert list(source.bad.values()) == ["not an image in any format that Pillow reads"]
    assert data.spec.size_px == 16, "an image of unknown size is none of another size"


@BACKENDS
def test_by_default_a_cut_image_stops_the_run_and_is_named(write_folder: WriteFolder, backend: str) -> None:
    root = write_folder({"train": TWO})
    bad = cut(root / "train/cat/003.png")
    config = make_config(
        root,
        loader__backend=backend,
        data__val_frac=0.0,
        run__select="last",
        train__global_batch_size=10,
        **GIVEN,
    )
    with pytest.raises(ValueError, match=rf"{bad}: .*truncated") as caught:
        list(loaders_of(config).train)
    assert WHAT_TO_DO in str(caught.value)


def test_a_resident_store_refuses_a_cut_image_at_the_start(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "test": {"cat": 3, "dog": 2}})
    bad = cut(root / "test/dog/001.png")
    config = make_config(root, data__val_frac=0.0, run__select="last", **GIVEN)
    with pytest.raises(ValueError, match=r"^1 of 5 images cannot be read:\n  ") as caught:
        loaders_of(config)
    assert str(bad) in str(caught.value)
    assert str(caught.value).endswith(WHAT_TO_DO)
    loaders = loaders_of(replace_section(config, "data", on_bad_eval_sample="exclude"))
    assert int(next(iter(loaders.evaluation["test"])).valid_N.sum()) == 4


def test_a_cut_image_met_while_mean_is_measured_is_told_with_the_ways_out(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    cut(root / "train/cat/003.png")
    with pytest.raises(ValueError, match=re.escape(WHAT_TO_DO)):
        data_of(make_config(root, data__val_frac=0.0, run__select="last"))


@BACKENDS
@pytest.mark.parametrize("content", [b"<html>", None], ids=["no_image", "cut"])
def test_with_replace_training_goes_on_and_tells_whose_place_was_taken(
    write_folder: WriteFolder, backend: str, content: bytes | None
) -> None:
    root = write_folder({"train": TWO})
    bad = root / "train/dog/003.png"
    if content is None:
        cut(bad)
    else:
        bad.write_bytes(content)
    config = make_config(
        root,
        loader__backend=backend,
        data__val_frac=0.0,
        run__select="last",
        data__on_bad_sample="replace",
        data__max_bad_frac=0.1,
        train__global_batch_size=10,
    )
    loader = loaders_of(config).train
    assert loader.max_num_bad == 2
    told = []
    for _ in range(3):
        ids = torch.cat([batch.ids_N for batch in loader])
        assert len(ids) == 20
        assert 15 not in ids
        told += loader.take_bad_samples()
    assert [(one.split, one.epoch, one.name) for one in told] == [("train", epoch, str(bad)) for epoch in range(3)]
    assert all("/dog/" in str(one.replaced_by_name) for one in told)


def test_a_class_in_which_nothing_can_be_read_is_refused_at_the_start(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    for path in (root / "train/dog").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"1 class folders without readable images: dog"):
        data_of(make_config(root, data__on_bad_sample="replace", data__on_bad_eval_sample="exclude"))


@pytest.mark.parametrize(
    ("asked", "wanted"), [({"loader__backend": "dali"}, True), ({"data__verify": True}, True), ({}, False)]
)
def test_every_image_is_decoded_once_where_it_is_asked_for_and_for_dali(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], wanted: bool
) -> None:
    inner, seen = build_data_module.scan_folder, []

    def watching(root: str, **options: Any) -> Any:
        seen.append(options["verify"])
        return inner(root, **options)

    monkeypatch.setattr(build_data_module, "scan_folder", watching)
    data_of(make_config(write_folder({"train": TWO}), **asked))
    assert seen == [wanted]
