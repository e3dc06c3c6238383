"""The work of one task: some samples of a plan, all their views, into their rows and no others."""

import pickle

import numpy as np
import numpy.typing as npt
import pytest
import torch
from broken_source import BrokenSource

from pipelines.chunks import ChunkWork
from pipelines.geometry import carry_out
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import ArraySource

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
