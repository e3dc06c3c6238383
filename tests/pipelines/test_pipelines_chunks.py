"""The work of one task: some samples of a plan, all their views, into their rows and no others."""

import io
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from broken_source import BrokenSource
from PIL import Image

from pipelines.chunks import ChunkWork
from pipelines.geometry import carry_out
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import ArraySource, Source
from pipelines.sources.scan import scan_folder

COUNT, SIZE = 9, 20


def make_source(*, broken: int | None = None) -> BrokenSource:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    reasons = {} if broken is None else {broken: "burnt"}
    return BrokenSource(
        class_names=("a",), labels_N=np.zeros(COUNT, dtype=np.int64), images_NHWC=images, broken=reasons
    )


def make_plan(source: ArraySource, *, num_views: int) -> Plan:
    ids = np.random.default_rng(1).permutation(COUNT)
    return plan_training(
        ids,
        copies_N=np.zeros_like(ids),
        sizes_N2=source.sizes_N2[ids],
        fit=Fit("crop", 1.0),
        augmentation=Augmentation(crop="rrc", flip="random"),
        seed=3,
        epoch=1,
        size_px=14,
        num_views=num_views,
    )


def invert_odd_rows(image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
    if row % 2:
        image_SSC[...] = 255 - image_SSC


def build(source: ArraySource) -> ChunkWork:
    return ChunkWork(source, channels=3, interpolation="bilinear", operate=invert_odd_rows)


def wanted(source: ArraySource, plan: Plan, row: int) -> torch.Tensor:
    pixels = source.images_NHWC[plan.ids_N[row]]
    image = carry_out(pixels, plan=plan, row=row, interpolation="bilinear")
    return 255 - image if row % 2 else image


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("samples", [range(COUNT), range(2, 5), range(8, 9)], ids=str)
def test_the_rows_of_some_samples_are_written_in_every_view_and_no_others(num_views: int, samples: range) -> None:
    source = make_source()
    plan = make_plan(source, num_views=num_views)
    images = torch.full((COUNT * num_views, 14, 14, 3), 7, dtype=torch.uint8)
    assert build(source).carry_out(plan, samples, images) == {}
    rows = {view * COUNT + sample for view in range(num_views) for sample in samples}
    for row in range(COUNT * num_views):
        assert torch.equal(images[row], wanted(source, plan, row) if row in rows else torch.full_like(images[row], 7))


def test_an_image_that_cannot_be_read_is_told_for_every_view_and_is_not_operated_on() -> None:
    source = make_source(broken=4)
    plan = make_plan(source, num_views=2)
    images = torch.zeros((2 * COUNT, 14, 14, 3), dtype=torch.uint8)
    bad = build(source).carry_out(plan, range(COUNT), images)
    rows = np.flatnonzero(plan.ids_N == 4).tolist()
    assert bad == dict.fromkeys(rows, "burnt")
    assert not images[rows].any()


def test_it_works_on_when_it_has_been_sent_to_another_process() -> None:
    source = make_source()
    plan = make_plan(source, num_views=2)
    here, there = (torch.zeros((2 * COUNT, 14, 14, 3), dtype=torch.uint8) for _ in range(2))
    work = build(source)
    work.carry_out(plan, range(COUNT), here)  # its threads have memory of their own by now
    pickle.loads(pickle.dumps(work)).carry_out(plan, range(COUNT), there)
    assert here.any()
    assert torch.equal(here, there)


# --- decoding at a half, a quarter, an eighth

PHOTO_SIZES = [(60, 90), (200, 150), (333, 501), (640, 480)]


def smooth_photograph(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Detail as photographs have it: the finer, the weaker."""
    rng = np.random.default_rng(height)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((width, height), 3))
        for side in (2, 5, 12, 30, 70)
    ]
    return np.average(np.stack(layers), axis=0, weights=[8, 6, 4, 2, 1]).astype(np.uint8)


@pytest.fixture
def photographs(tmp_path: Path) -> Source:
    for number, (height, width) in enumerate(PHOTO_SIZES):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(smooth_photograph(height, width)).save(file, "JPEG", quality=92)
        path.write_bytes(file.getvalue())
    return scan_folder(str(tmp_path), show_progress=False)["train"]


def plan_of_photographs(source: Source, *, size_px: int, num_views: int = 1, fit: str = "crop") -> Plan:
    ids = np.arange(len(source.labels_N))
    return plan_training(
        ids,
        copies_N=np.zeros_like(ids),
        sizes_N2=source.sizes_N2,
        fit=Fit(fit, 1.0, border=(1, 2, 3)),  # type: ignore[arg-type]
        augmentation=Augmentation(crop="rrc" if fit == "crop" else "none", rrc_scale=(0.5, 1.0), flip="random"),
        seed=0,
        epoch=0,
        size_px=size_px,
        num_views=num_views,
    )


def both_ways(source: Source, plan: Plan, *, interpolation: str = "bilinear") -> list[npt.NDArray[np.int16]]:
    """Exact, and scaled; each once before, so that every file is known to be whole."""
    images = []
    for decode in ("exact", "scaled"):
        work = ChunkWork(source, channels=3, interpolation=interpolation, operate=None, decode=decode)  # type: ignore[arg-type]
        out = torch.empty(len(plan.ids_N), plan.size_px, plan.size_px, 3, dtype=torch.uint8)
        for _ in range(2):
            assert work.carry_out(plan, range(len(plan.ids_N) // plan.num_views), out) == {}
        images.append(out.numpy().astype(np.int16))
    return images


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [16, 40, 100])
def test_scaled_decoding_touches_only_windows_at_least_twice_the_result_and_those_little(
    photographs: Source, size_px: int, interpolation: str, fit: str
) -> None:
    plan = plan_of_photographs(photographs, size_px=size_px, fit=fit)
    exact, scaled = both_ways(photographs, plan, interpolation=interpolation)
    sides = np.full((4, 2), size_px) if plan.letterbox is None else plan.letterbox.boxes_N4[:, 2:]
    is_large = (plan.windows_N4[:, 2:] // sides).min(axis=1) >= 2
    differences = np.abs(exact - scaled).mean(axis=(1, 2, 3))
    assert is_large.any()
    assert not differences[~is_large].any()
    assert (differences[is_large] > 0).all(), "it is decoded scaled"
    assert differences.max() < 1.5, "of 255; a window that is off by a pixel of the result would be 4 and more"


def test_a_window_off_by_a_pixel_would_be_noticed(photographs: Source) -> None:
    plan = plan_of_photographs(photographs, size_px=40)
    windows_N4 = plan.windows_N4.copy()
    windows_N4[:, 1] += windows_N4[:, 3] // 40 * np.where(windows_N4[:, 1] > 0, -1, 0)
    moved = plan._replace(windows_N4=windows_N4)
    exact, _ = both_ways(photographs, plan)
    off, _ = both_ways(photographs, moved)
    changed = (windows_N4 != plan.windows_N4).any(axis=1)
    assert np.abs(exact - off).mean(axis=(1, 2, 3))[changed].min() > 1.5


def test_several_views_of_one_image_are_decoded_at_its_size(photographs: Source) -> None:
    exact, scaled = both_ways(photographs, plan_of_photographs(photographs, size_px=16, num_views=2))
    assert np.array_equal(exact, scaled)
