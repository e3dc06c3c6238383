"""The reference executor: images as they are stored, and those that cannot be read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.executors.reference import ReferenceExecutor
from pipelines.plan import Fit, Plan, plan_evaluation
from pipelines.source import Source
from pipelines.sources.scan import scan_folder


@pytest.fixture
def source(write_folder: Callable[..., Path]) -> Source:
    return scan_folder(str(write_folder({"train": {"a": 6, "b": 6}})), show_progress=False)["train"]


def build(source: Source, *, num_workers: int) -> ReferenceExecutor:
    return ReferenceExecutor(source, channels=3, interpolation="bilinear", num_workers=num_workers, pin_memory=False)


def plans_of(source: Source, *, batch_size: int = 2) -> list[Plan]:
    return [
        plan_evaluation(ids, sizes_N2=source.sizes_N2[ids], fit=Fit("crop", 1.0), size_px=16)
        for ids in np.split(np.arange(len(source.labels_N)), len(source.labels_N) // batch_size)
    ]


def test_images_are_those_stored_in_the_order_of_the_plans(source: Source) -> None:
    for plan, batch in zip(plans_of(source), build(source, num_workers=2).run(plans_of(source)), strict=True):
        stored = np.stack([source.read_image(int(sample_id), channels=3) for sample_id in plan.ids_N])
        assert torch.equal(batch.images_NHWC, torch.from_numpy(stored))
        assert batch.bad == {}


def test_an_image_that_a_worker_cannot_read_is_a_bad_row_and_the_executor_serves_on(source: Source) -> None:
    executor = build(source, num_workers=2)
    bad = Path(source.describe(7))
    content = bad.read_bytes()
    bad.write_bytes(b"nonsense")
    found = [dict(carried.bad) for carried in executor.run(plans_of(source))]
    assert found == [{}, {}, {}, {1: "not an image in any format that Pillow reads"}, {}, {}]
    bad.write_bytes(content)
    assert [carried.bad for carried in executor.run(plans_of(source))] == [{}] * 6
