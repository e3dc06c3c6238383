"""Differences of pixels are counted as they are. (tests/benchmarks/test_benchmarks_gpu_check.py runs all of it.)"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

if not DALI_IS_EXPECTED:
    pytest.skip("no builds of DALI for this system", allow_module_level=True)

from benchmarks import gpu_agreement
from benchmarks.gpu_agreement import WAYS_OF_PREDICTING, Task, measure_pixels
from configs.schema import LoaderConfig
from pipelines.execution import Carried, Executor
from pipelines.plan import Plan


class Brighter:
    """An executor whose first image of each plan is changed in one value, by 9, and whose others are as they were."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        for carried in self._executor.run(plans):
            images = carried.images_NHWC.clone()
            value = int(images[0, 0, 0, 0])
            images[0, 0, 0, 0] = value - 9 if value > 9 else value + 9
            yield carried._replace(images_NHWC=images)


def test_a_difference_in_one_value_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.JPEG")
    task = Task(tmp_path, tmp_path, torch.device("cpu"), num_images=32, epochs=1, num_threads=1)
    ways = gpu_agreement._WAYS_OF_PIXELS
    built = {"dali": lambda source, task: Brighter(ways["reference"](source, task))}
    monkeypatch.setattr(gpu_agreement, "_WAYS_OF_PIXELS", {"reference": ways["reference"], **built})
    reference, other = measure_pixels(task)
    num_values = 224 * 224 * 3
    assert (reference["way"], reference["mean_of_255"], reference["max_of_255"]) == ("reference", 0.0, 0)
    assert reference["frac_unlike_dali"] == round(1 / 32, 4)
    assert other["max_of_255"] == 9
    assert other["worst_image_of_255"] == round(9 / num_values, 3)
    assert other["frac_far_off"] == round(1 / (32 * num_values), 6)
    assert other["frac_unlike_dali"] == 0


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    task = Task(tmp_path, tmp_path, torch.device("cpu"), num_images=8, epochs=1, num_threads=1)
    with pytest.raises(ValueError, match=r"there are no files \*\.jpg or \*\.jpeg in "):
        measure_pixels(task)


@pytest.mark.parametrize("way", WAYS_OF_PREDICTING.values(), ids=WAYS_OF_PREDICTING)
def test_ways_of_predicting_are_fields_of_the_loader(way: dict[str, Any]) -> None:
    assert LoaderConfig(**way).backend in ("threads", "reference", "dali")
    assert next(iter(WAYS_OF_PREDICTING)) == "threads", "what the others are held against fed the training"
