"""The processes executor: the pixels of threads to the bit; its workers: test_pipelines_workers.py."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from executor_builders import EXECUTORS, Setting
from PIL import Image

from pipelines.executors.processes import ProcessesExecutor
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import Source
from pipelines.sources.scan import scan_folder

NUM_BATCHES = 6


@pytest.fixture
def source(tmp_path: Path) -> Source:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60 + number, 90 - number, 3), dtype=np.uint8)).save(path)
    return scan_folder(str(tmp_path), show_progress=False)["train"]


def build(source: Source) -> ProcessesExecutor:
    return ProcessesExecutor(
        source,
        channels=3,
        interpolation="bicubic",
        num_workers=2,
        num_prefetched=2,
        pin_memory=False,
    )


def plans_of(source: Source, *, num_views: int = 1) -> list[Plan]:
    return [
        plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=source.sizes_N2[ids],
            fit=Fit("crop", 1.0),
            augmentation=Augmentation(crop="rrc", flip="random"),
            seed=0,
            epoch=0,
            size_px=32,
            num_views=num_views,
        )
        for ids in np.split(np.arange(24), NUM_BATCHES)
    ]


def test_what_one_worker_has_found_whole_no_other_decodes_whole_again(source: Source) -> None:
    assert not source.whole_N.any()
    list(build(source).run(plans_of(source)))
    assert source.whole_N.all(), "this process and workers that it starts know it, too"


def scramble(image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
    image_SSC[...] = image_SSC ^ np.uint8(plan.ids_N[row])


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("name", ["processes_0", "processes_2"])
def test_pixels_are_those_of_threads_to_the_bit(source: Source, name: str, num_views: int) -> None:
    setting = Setting(interpolation="bicubic", operate=scramble)
    plans = plans_of(source, num_views=num_views)
    wanted = [carried.images_NHWC.clone() for carried in EXECUTORS["threads_2"](source, setting).run(plans)]
    executor = EXECUTORS[name](source, setting)
    for _ in range(2):
        found = [carried.images_NHWC for carried in executor.run(plans)]
        assert len(found) == NUM_BATCHES
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    plain = next(iter(EXECUTORS[name](source, setting._replace(operate=None)).run(plans)))
    assert not torch.equal(plain.images_NHWC, wanted[0])


def test_a_file_cut_short_is_a_bad_row_and_the_executor_serves_on(source: Source) -> None:
    executor = build(source)
    bad = Path(source.describe(7))
    content = bad.read_bytes()
    bad.write_bytes(b"nonsense")
    found = [sorted(carried.bad) for carried in executor.run(plans_of(source))]
    assert found == [[], [3], [], [], [], []]
    bad.write_bytes(content)
    assert [carried.bad for carried in executor.run(plans_of(source))] == [{}] * NUM_BATCHES
