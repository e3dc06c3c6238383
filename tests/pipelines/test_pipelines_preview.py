"""A preview shows what training will: the pixels of the training loader, for the same images at the same times."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_source import BrokenSource

from configs.load import replace_section
from configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InputSpec,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from pipelines import build_executor
from pipelines.build import (
    Data,
    Place,
    Preview,
    build_data,
    build_evaluation_loader,
    build_preview,
    build_training_loader,
)
from pipelines.counter import pick_ids
from pipelines.order import TrainingOrder, Weighting
from pipelines.plan import Fit, plan_evaluation
from pipelines.preview import Renumbered, find_meetings

WriteFolder = Callable[..., Path]
ALONE = Place(device=torch.device("cpu"), dtype=torch.float32, rank=0, world_size=1, num_cores=2)
EVERYTHING = AugmentConfig(
    crop="pad",
    pad_px=2,
    flip="random",
    vertical_flip_prob=0.3,
    mixup_alpha=0.4,
    cutmix_alpha=1.0,
    mix_prob=0.8,
    erase_prob=0.5,
    noise_std=0.02,
    cutout_px=3,
    operations=({"randaugment": {"n": 2, "m": 9}}, {"affine": {"degrees": 20, "prob": 0.5}}, "autocontrast"),
)
BACKENDS = ["resident", "threads", "reference"]


def make_config(*, root: Path | None = None, augment: AugmentConfig = EVERYTHING, **sections: Any) -> Config:
    config = Config(
        data=DataConfig(dataset="digits" if root is None else "folder", root=root and str(root), val_frac=0.0),
        augment=augment,
        loader=LoaderConfig(num_workers=0, num_threads=2),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=2, global_batch_size=400 if root is None else 6),
    )
    for section, values in {"run": {"select": "last", "seed": 3}, **sections}.items():
        config = replace_section(config, section, **values)
    return config


def preview_of(config: Config, data: Data, **options: int) -> Preview:
    asked = {"num_images": 4, "num_samples": 3, "epoch": 0, "num_counted": 100} | options
    return build_preview(config, data, place=ALONE, show_progress=False, **asked)


def met_in_training(config: Config, data: Data, *, epochs: range) -> dict[int, list[tuple[int, torch.Tensor]]]:
    """id -> (epoch, pixels) each time that it is its turn and the training loader hands it out."""
    loader = build_training_loader(config, data, place=ALONE, show_progress=False)
    loader.load_state_dict(loader.state_dict() | {"epoch": epochs.start})
    order = TrainingOrder(
        len(data.train.labels_N),
        global_batch_size=config.train.global_batch_size,
        seed=config.run.seed,
        rank=0,
        world_size=1,
        num_repeats=config.augment.repeats,
        in_pairs=True,
    )
    met = defaultdict(list)
    for epoch in epochs:
        for step, batch in enumerate(loader):
            own_ids = order.share(step, epoch=epoch).ids_N.tolist()  # of a place that another has taken, the own one
            for own_id, sample_id, pixels in zip(own_ids, batch.ids_N.tolist(), batch.inputs[0].clone(), strict=True):
                if sample_id == own_id:
                    met[sample_id].append((epoch, pixels))
    return met


def check_preview(preview: Preview, config: Config, data: Data, *, epochs: range, num_samples: int = 3) -> None:
    """The preview's samples are the first of each image in training, to the bit; `epochs` are enough to meet them."""
    met = met_in_training(config, data, epochs=epochs)
    for shown in preview.shown:
        wanted = met[shown.sample_id][:num_samples]
        assert len(wanted) == num_samples
        assert [sample.epoch for sample in shown.samples] == [epoch for epoch, _ in wanted]
        for sample, (_, pixels) in zip(shown.samples, wanted, strict=True):
            torch.testing.assert_close(sample.pixels_CHW, pixels, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_are_those_of_the_training_loader_with_everything_drawn(backend: str) -> None:
    config = make_config(loader={"backend": backend})  # a batch of 400 leaves 237 digits out of each epoch
    data = build_data(config, show_progress=False)
    preview = preview_of(config, data, num_images=5)
    assert preview.backend == backend
    check_preview(preview, config, data, epochs=range(7))
    assert [shown.sample_id for shown in preview.shown] == pick_ids(len(data.train.labels_N), num_wanted=5).tolist()


@pytest.mark.parametrize("backend", ["threads", "reference"])
def test_pixels_of_photographs_of_several_sizes_are_those_of_the_training_loader(
    write_folder: WriteFolder, backend: str
) -> None:
    root = write_folder({"train": {"cat": 8, "dog": 7}}, sizes=[(20, 31), (24, 18)])
    augment = dataclasses.replace(EVERYTHING, crop="rrc", pad_px=4, repeats=3, sizes_px=((0, 8), (1, 12), (2.5, 16)))
    config = make_config(root=root, augment=augment, loader={"backend": backend}, input={"size_px": 16})
    config = replace_section(config, "train", epochs=4)
    data = build_data(config, show_progress=False)
    preview = preview_of(config, data, num_images=50, epoch=1)
    assert len(preview.shown) == 15
    check_preview(preview, config, data, epochs=range(1, 40))
    assert {tuple(sample.pixels_CHW.shape) for shown in preview.shown for sample in shown.samples} == {
        (3, 12, 12),
        (3, 16, 16),
    }


def test_what_is_said_of_a_sample_is_what_was_done_to_it() -> None:
    augment = AugmentConfig(operations=({"invert": {"prob": 0.5}},), flip="random", vertical_flip_prob=0.5)
    config = make_config(augment=augment)
    data = build_data(config, show_progress=False)
    preview = preview_of(config, data, num_images=20)
    mean, std = data.spec.mean[0], data.spec.std[0]
    seen = set()
    for shown in preview.shown:
        for sample in shown.samples:
            words = [drawn.words for drawn in sample.drawn]
            image = shown.original_HWC[:, ::-1] if "flip" in words else shown.original_HWC
            image = image[::-1] if "vertical flip" in words else image
            image = 255 - image if "invert" in words else image
            pixels = (sample.pixels_CHW.permute(1, 2, 0).numpy() * std + mean) * 255
            np.testing.assert_allclose(pixels, image, atol=1e-3)
            seen.add(tuple(words))
    parts = ("flip", "vertical flip", "invert")
    assert seen == {words for count in range(4) for words in itertools.combinations(parts, count)}


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_originals_are_the_images_as_evaluation_shows_them(write_folder: WriteFolder, fit: str) -> None:
    root = write_folder({"train": {"cat": 8, "dog": 7}}, sizes=[(20, 31), (24, 18)])
    config = make_config(root=root, augment=AugmentConfig(), input={"size_px": 16, "fit": fit})
    data = build_data(config, show_progress=False)
    preview = preview_of(config, data)
    (batch,) = build_evaluation_loader(config, data, "train", place=ALONE, show_progress=False)
    mean, std = np.array(data.spec.mean), np.array(data.spec.std)
    for shown in preview.shown:
        pixels_HWC = (batch.inputs[0][shown.sample_id].permute(1, 2, 0).numpy() * std + mean) * 255
        np.testing.assert_allclose(shown.original_HWC, pixels_HWC, atol=1e-3)
        assert shown.class_name == data.train.class_names[batch.labels_N[shown.sample_id]]
        assert shown.name.endswith(".png")
        assert [sample.drawn for sample in shown.samples] == [[], [], []]
    assert preview.counts == []


def test_no_image_is_read_but_those_shown_and_their_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(loader={"backend": "resident"})
    data = build_data(config, show_progress=False)
    sizes = []
    load_store = build_executor.load_store
    monkeypatch.setattr(
        build_executor,
        "load_store",
        lambda source, **given: sizes.append(len(source.labels_N)) or load_store(source, **given),
    )
    preview_of(config, data, num_images=2, num_samples=3)
    assert len(sizes) == 1
    assert 2 + 6 - 2 <= sizes[0] <= 2 + 6


def test_counts_are_over_the_first_images_of_the_epoch() -> None:
    config = make_config(
        augment=AugmentConfig(flip="random", erase_prob=0.25, operations=({"hue": {"shift": 0.1, "prob": 0.5}},))
    )
    data = build_data(config, show_progress=False)
    preview = preview_of(config, data, num_counted=1000)
    assert preview.num_counted == 1000
    by_name = {count.name: count for count in preview.counts}
    assert list(by_name) == ["flip", "hue", "erase"]
    for name, prob in (("flip", 0.5), ("hue", 0.5), ("erase", 0.25)):
        assert abs(by_name[name].num_images / 1000 - prob) < 4 * (prob * (1 - prob) / 1000) ** 0.5
    hue = by_name["hue"].ranges["shift"]
    assert -0.1 <= hue.smallest < -0.09 < hue.mean < 0.09 < hue.largest <= 0.1
    assert preview_of(config, data, num_counted=10**6).num_counted == 1200  # all that three batches hold


def broken_data(*, broken: list[int], known: bool = True) -> Data:
    rng = np.random.default_rng(0)
    reasons = dict.fromkeys(broken, "only 17 of 300 bytes")
    source = BrokenSource(
        class_names=("a", "b"),
        labels_N=np.arange(24) % 2,
        images_NHWC=rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8),
        broken=reasons,
        bad=reasons if known else {},
    )
    spec = InputSpec(size_px=8, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    return Data(source, None, None, spec)


@pytest.mark.parametrize("known", [True, False])
def test_images_that_cannot_be_read_are_passed_over_or_an_error_as_the_policy_says(known: bool) -> None:
    first, *others = pick_ids(24, num_wanted=24).tolist()
    broken = [first, others[5], others[8]]
    config = make_config(data={"on_bad_sample": "replace", "max_bad_frac": 0.3}, loader={"backend": "threads"})
    config = replace_section(config, "train", global_batch_size=6)
    data = broken_data(broken=broken, known=known)
    preview = preview_of(config, data)
    assert [shown.sample_id for shown in preview.shown] == others[:4]
    assert preview.passed_over == [f"image {first}: only 17 of 300 bytes"]
    check_preview(preview, config, data, epochs=range(7))  # partners that cannot be read are replaced as in training
    with pytest.raises(ValueError, match=rf"^image {first}: only 17 of 300 bytes\. Repair or remove it, or go on"):
        preview_of(replace_section(config, "data", on_bad_sample="raise"), data)


def test_where_no_image_can_be_read_that_is_said() -> None:
    config = make_config(data={"on_bad_sample": "replace", "max_bad_frac": 0.99}, loader={"backend": "threads"})
    config = replace_section(config, "train", global_batch_size=6)
    with pytest.raises(ValueError, match="no training image can be read; the first of them: image "):
        preview_of(config, broken_data(broken=list(range(24)), known=False))


def test_a_sample_is_met_the_first_times_of_the_order_and_with_its_partners() -> None:
    order = TrainingOrder(50, global_batch_size=12, seed=1, rank=0, world_size=1, num_repeats=2, in_pairs=True)
    ids_N = np.array([7, 30, 31])
    meetings = find_meetings(order, ids_N, first_epoch=2, num_wanted=3, in_pairs=True)
    wanted = defaultdict(list)
    for epoch in range(2, 30):
        for step in range(order.steps_per_epoch):
            share = order.share(step, epoch=epoch)
            for row, sample_id in enumerate(share.ids_N.tolist()):
                wanted[sample_id].append((epoch, step, share.positions_N[row], share.copies_N[row]))
    found = defaultdict(list)
    for (epoch, step, share), rows in meetings:
        assert (share.positions_N[::2] % 2 == 0).all()
        assert (share.positions_N[1::2] == share.positions_N[::2] + 1).all()
        assert share.own == slice(0, len(share.ids_N))
        for row in rows:
            found[int(share.ids_N[row])].append((epoch, step, share.positions_N[row], share.copies_N[row]))
    assert found == {sample_id: wanted[sample_id][:3] for sample_id in ids_N.tolist()}


def test_a_sample_that_is_rarely_met_has_fewer_meetings_and_the_search_ends() -> None:
    weights_N = np.ones(20)
    weights_N[3] = 0.001
    order = TrainingOrder(
        20, global_batch_size=5, seed=1, rank=0, world_size=1, weighting=Weighting(np.zeros(20, np.int64), weights_N)
    )
    meetings = find_meetings(order, np.array([3, 4]), first_epoch=0, num_wanted=3, in_pairs=False)
    met = [int(part.share.ids_N[row]) for part, rows in meetings for row in rows]
    assert met.count(4) == 3
    assert met.count(3) < 3


def test_a_renumbered_executor_is_asked_for_the_places_of_ids() -> None:
    class Echo:
        def run(self, plans: Any) -> Iterator[list[int]]:
            for plan in plans:
                yield plan.ids_N.tolist()

    config = make_config(augment=AugmentConfig())
    data = build_data(config, show_progress=False)
    renumbered = Renumbered(Echo(), ids_N=np.array([5, 9, 40]))
    plan = plan_evaluation(np.array([40, 5, 9, 5]), sizes_N2=data.train.sizes_N2[:4], fit=Fit("crop", 1.0), size_px=8)
    assert list(renumbered.run([plan])) == [[2, 0, 1, 0]]
