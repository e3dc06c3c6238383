"""The jobs with operations on pixels: what each contender is told to do is the same, in its own words."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from benchmarks import loader
from benchmarks.ours import OURS_DECODED, OURS_OPERATIONS
from benchmarks.peers_decoded import PEERS_DECODED
from benchmarks.peers_imagenet import PEERS_OPERATIONS, import_albumentations
from benchmarks.peers_job import Augment, DecodedJob, ImagenetJob
from benchmarks.peers_operations import albumentations_operations, timm_operations, torchvision_operations

# magnitude 9 of 0..30 of torchvision's RandAugment at 224 px, written out: 150/331 * 224 * 0.3 = 30.45, cut off
SHEAR_DEG, SHIFT_PX, ANGLE_DEG, FACTORS, BITS, THRESHOLD = 5.1428, 30, 9, (0.73, 1.27), 7, 0.7


@pytest.fixture
def make_job(tmp_path: Path, make_folder: Callable[..., Path]) -> Callable[[Augment], ImagenetJob]:
    paths = sorted(map(str, make_folder({"train": {"a": 4, "b": 4}}, size_px=40, suffix=".jpg").rglob("*.jpg")))

    def make(augment: Augment) -> ImagenetJob:
        folder = tmp_path / f"contender_{len(list(tmp_path.iterdir()))}"  # each has one of its own
        folder.mkdir()
        return ImagenetJob(paths=paths, folder=folder, batch_size=4, size_px=32, num_threads=1, augment=augment)

    return make


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """Something of many colours and edges, uint8 (64, 64, 3), no value outside 30..220."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(30, 220, (1, 3, 8, 8))
    image = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(64, 64), mode="bilinear")
    return image[0].permute(1, 2, 0).to(torch.uint8).numpy()


def of_one_epoch(name: str, job: ImagenetJob) -> Tensor:
    return torch.cat([images.clone() for images in OURS_OPERATIONS[name](job)()])


def pixels_of_the_tail(normalised_NCHW: Tensor) -> Tensor:
    """Back to 0..255, channels last."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (normalised_NCHW.permute(0, 2, 3, 1) * std + mean) * 255


@pytest.mark.parametrize("augment", ["randaugment", "color_jitter"])
def test_operations_in_the_threads_and_in_the_tail_give_the_same_images(
    augment: Augment, make_job: Callable[[Augment], ImagenetJob]
) -> None:
    plain, in_threads = (of_one_epoch("threads", make_job(each)) for each in ("none", augment))
    in_tail = of_one_epoch("threads_tail", make_job(augment))
    assert in_threads.shape == (8, 32, 32, 3)
    assert in_threads.dtype == torch.uint8
    torch.testing.assert_close(pixels_of_the_tail(in_tail), in_threads.float(), atol=1e-3, rtol=0)
    assert (plain != in_threads).any(dim=(1, 2, 3)).sum() >= 6  # RandAugment draws its identity now and then


@pytest.mark.parametrize("augment", ["randaugment", "color_jitter"])
def test_the_bare_tails_do_the_same_operations(augment: Augment, make_job: Callable[[Augment], ImagenetJob]) -> None:
    by_kernels = pixels_of_the_tail(of_one_epoch("tail_kernels", make_job(augment)))
    by_torch = of_one_epoch("tail_batched", make_job(augment))
    assert (by_kernels - by_torch).abs().mean() < 0.1
    first, second = by_torch.float().chunk(2)
    assert (first - second).abs().mean() > 1  # of the same images: each batch has operations of its own


def test_jobs_with_operations_have_these_contenders() -> None:
    albumentations = {"albumentations", "albumentations_area"}
    assert set(PEERS_OPERATIONS) == {"dali", *albumentations, "torchvision_tensors", "torchvision_pil", "timm"}
    ours = {"threads", "threads_tail", "reference", "dali_planned", "tail_kernels", "tail_batched"}
    assert set(OURS_OPERATIONS) == ours


def test_torchvision_is_told_the_same() -> None:
    (randaugment,), (jitter,) = torchvision_operations("randaugment"), torchvision_operations("color_jitter")
    assert (randaugment.num_ops, randaugment.magnitude, randaugment.num_magnitude_bins) == (2, 9, 31)
    assert randaugment.interpolation is InterpolationMode.BILINEAR
    assert jitter.brightness == jitter.contrast == jitter.saturation == pytest.approx((0.6, 1.4))
    assert jitter.hue == pytest.approx((-0.1, 0.1))


def test_timm_does_all_that_it_draws_at_three_tenths_of_its_magnitudes() -> None:
    import timm.data

    steps = timm.data.create_transform(
        224, is_training=True, interpolation="bilinear", normalize=False, **timm_operations("randaugment")
    ).transforms
    (randaugment,) = (step for step in steps if type(step).__name__ == "RandAugment")
    assert randaugment.num_layers == 2
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in randaugment.ops} == {(1.0, 3, 0.0)}
    assert {op.kwargs["resample"] for op in randaugment.ops} == {2}  # Pillow's number for bilinear
    assert not any(type(step).__name__ == "ColorJitter" for step in steps)
    jittered = timm.data.create_transform(224, is_training=True, **timm_operations("color_jitter")).transforms
    (jitter,) = (step for step in jittered if type(step).__name__ == "ColorJitter")
    assert jitter.brightness == jitter.contrast == jitter.saturation == pytest.approx((0.6, 1.4))
    assert jitter.hue == pytest.approx((-0.1, 0.1))


def test_albumentations_draws_two_of_fourteen_at_three_tenths_of_torchvisions_magnitudes() -> None:
    pytest.importorskip("albumentations", reason="a peer, of the group benchmarks")
    (some_of,) = albumentations_operations(import_albumentations(), "randaugment", size_px=224)
    assert (some_of.n, some_of.replace, some_of.p) == (2, True, 1)
    assert [op.p for op in some_of.transforms] == 14 * [1]
    by_name: dict[str, list[object]] = {}
    for op in some_of.transforms:
        by_name.setdefault(type(op).__name__, []).append(op)
    shear_x, shear_y, right, down, rotation = by_name["Affine"]
    still = {"x": (0, 0), "y": (0, 0)}
    assert shear_x.shear == {**still, "x": pytest.approx((-SHEAR_DEG, SHEAR_DEG), abs=1e-3)}
    assert shear_y.shear == {**still, "y": pytest.approx((-SHEAR_DEG, SHEAR_DEG), abs=1e-3)}
    assert right.translate_px == {**still, "x": (-SHIFT_PX, SHIFT_PX)}
    assert down.translate_px == {**still, "y": (-SHIFT_PX, SHIFT_PX)}
    assert rotation.rotate == (-ANGLE_DEG, ANGLE_DEG)
    ranges = [(op.brightness, op.contrast, op.saturation, op.hue) for op in by_name["ColorJitter"]]
    one, all_three = (1, 1), pytest.approx(FACTORS)
    assert ranges == [(all_three, one, one, (0, 0)), (one, one, all_three, (0, 0)), (one, all_three, one, (0, 0))]
    assert len(by_name) == 8  # those, and identity, sharpness, posterize, solarize, autocontrast, equalize


def test_albumentations_fixed_operations_are_nearly_torchvisions(photograph: np.ndarray) -> None:
    pytest.importorskip("albumentations", reason="a peer, of the group benchmarks")
    (some_of,) = albumentations_operations(import_albumentations(), "randaugment", size_px=64)
    by_name = {type(op).__name__: op for op in some_of.transforms}
    image = torch.from_numpy(photograph).permute(2, 0, 1)
    wanted = {
        "NoOp": image,
        "Posterize": tv.posterize(image, BITS),
        "Solarize": tv.solarize(image, 255 * THRESHOLD),
        "AutoContrast": tv.autocontrast(image),
        "Equalize": tv.equalize(image),
    }
    for name, expected in wanted.items():
        found = by_name[name](image=photograph)["image"]
        difference = np.abs(found.astype(int) - expected.permute(1, 2, 0).numpy()).mean()
        assert difference < 4, f"{name}: {difference}"  # OpenCV equalizes another way: 2.9


def test_albumentations_jitters_always() -> None:
    pytest.importorskip("albumentations", reason="a peer, of the group benchmarks")
    (jitter,) = albumentations_operations(import_albumentations(), "color_jitter", size_px=224)
    assert jitter.p == 1
    assert jitter.brightness == jitter.contrast == jitter.saturation == pytest.approx((0.6, 1.4))
    assert jitter.hue == pytest.approx((-0.1, 0.1))
    parameters = inspect.signature(type(jitter)).parameters
    assert parameters["p"].default == 0.5  # what it would do unasked: half of the work


def test_an_epoch_that_others_disturbed_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = [loader._Timed(100, 1.0, 2.0, others_frac) for others_frac in (0.4, 0.06, 0.05)]
    coming = iter(epochs)
    monkeypatch.setattr(loader, "_epoch", lambda process: next(coming))
    monkeypatch.setattr(loader.time, "sleep", lambda seconds: None)
    assert loader._undisturbed_epoch(None, most_others_frac=0.05) is epochs[2]


# --- nothing but the operations


@pytest.fixture
def make_decoded(tmp_path: Path) -> Callable[[Augment], DecodedJob]:
    images = np.random.default_rng(0).integers(30, 220, (8, 32, 32, 3), dtype=np.uint8)
    return lambda augment: DecodedJob(images_NHWC=images, folder=tmp_path, batch_size=4, num_threads=1, augment=augment)


def test_every_contender_at_decoded_images_does_operations_and_nothing_else(
    make_decoded: Callable[[Augment], DecodedJob],
) -> None:
    assert set(PEERS_DECODED) == {"albumentations", "torchvision_tensors", "torchvision_pil", "timm"}
    jobs = [make_decoded("randaugment"), make_decoded("color_jitter")]
    for name, build in {**OURS_DECODED, **PEERS_DECODED}.items():
        for job in jobs:
            made = torch.cat([torch.as_tensor(images).clone() for images in build(job)()])
            made = made if made.shape[-1] == 3 else made.permute(0, 2, 3, 1)
            assert made.shape == (8, 32, 32, 3), name
            assert made.dtype == torch.uint8, name
            changed = sum(not any(np.array_equal(one, image) for image in job.images_NHWC) for one in made.numpy())
            assert changed >= (5 if job.augment == "randaugment" else 8), name
