"""Packed images in every executor: what lies beside the window is not read, and the pixels are the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from executor_builders import EXECUTORS, Setting
from PIL import Image

from pipelines.packing.pack import Packing, pack
from pipelines.packing.stored import Settings
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.sources.packed import PackedSource, open_packed
from pipelines.sources.scan import scan_folder

NUM_IMAGES = 12
WINDOWED = sorted(set(EXECUTORS) - {"resident"})  # it holds whole images


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = folder / "images" / "train" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((200 + 9 * number, 290 - 9 * number), Image.Resampling.BICUBIC).save(path)
    for mode in ("jpeg", "raw"):
        settings = Settings(
            mode=mode,  # type: ignore[arg-type]
            long_side_px=None,
            short_side_px=None,
            quality=90,
            subsampling="4:2:0",
            restart=True,
        )
        splits = scan_folder(str(folder / "images"), show_progress=False)
        pack(Packing(splits, None, settings, 2**20), folder / mode, num_workers=0, show_progress=False)
    return folder


def open_train(folder: Path) -> PackedSource:
    source = open_packed(str(folder))["train"]
    assert isinstance(source, PackedSource)
    return source


def plans_of(source: PackedSource, *, num_views: int = 1) -> list[Plan]:
    return [
        plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=source.sizes_N2[ids],
            fit=Fit("crop", 1.0),
            augmentation=Augmentation(crop="rrc", rrc_scale=(0.05, 0.6), flip="random"),
            seed=0,
            epoch=0,
            size_px=48,
            num_views=num_views,
        )
        for ids in np.split(np.arange(NUM_IMAGES), 3)
    ]


def images_of(name: str, source: PackedSource, plans: list[Plan]) -> torch.Tensor:
    done = [
        (carried.images_NHWC.clone(), dict(carried.bad)) for carried in EXECUTORS[name](source, Setting()).run(plans)
    ]
    assert [bad for _, bad in done] == [{}] * len(plans)
    return torch.cat([images for images, _ in done])


def test_these_are_all_executors_but_resident() -> None:
    assert len(WINDOWED) == len(EXECUTORS) - 1 >= 7


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("mode", ["jpeg", "raw"])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_sample_met_again_has_the_same_pixels_though_only_its_window_is_read(
    packed: Path, name: str, mode: str, num_views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_train(packed / mode)
    plans = plans_of(source, num_views=num_views)
    assert not source.checked_M.any()
    whole = images_of(name, source, plans)
    assert source.checked_M.all(), "all of it was read once, and is what was packed"
    num_read = []
    read = source.shards.read
    monkeypatch.setattr(
        source.shards,
        "read",
        lambda shard, start, room: (num_read.append(len(room)), read(shard, start=start, room=room)),
    )
    again = images_of(name, source, plans)
    assert torch.equal(whole, again)
    if name.startswith("threads") or name == "processes_0":
        assert sum(num_read) < 0.9 * source.index.num_bytes_N.sum()


@pytest.mark.parametrize("mode", ["jpeg", "raw"])
def test_executors_agree_on_packed_images(packed: Path, mode: str) -> None:
    source = open_train(packed / mode)
    plans = plans_of(source)
    wanted = images_of("reference_0_workers", source, plans).int()
    assert len(EXECUTORS) >= 8
    for name in EXECUTORS:
        if name == "resident":
            continue  # images of several sizes
        images_of(name, source, plans)
        difference = (images_of(name, source, plans).int() - wanted).abs().float()
        assert difference.mean() < (1.0 if name == "dali" else 0.05), name
        assert difference.max() <= (24 if name == "dali" else 1), name
