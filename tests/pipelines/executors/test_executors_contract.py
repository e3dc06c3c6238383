"""One contract for every executor: the pixels that Pillow makes of the same plan."""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import pipelines.executors
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, load_store
from pipelines.folder import scan_folder
from pipelines.loader import Executor
from pipelines.plan import Augmentation, Fit, Plan, plan_evaluation, plan_training
from pipelines.source import Source

Pixels = npt.NDArray[np.uint8]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
COUNT = 12


class Case(NamedTuple):
    """What is carried out. `max_difference` of 255 from the oracle, `mean_difference` over a batch."""

    sizes: list[tuple[int, int]]
    size_px: int
    augmentation: Augmentation
    max_difference: int
    mean_difference: float
    channels: int = 3
    interpolation: str = "bilinear"
    fit: Fit = Fit("crop", 1.0)


SEVERAL = [(30, 44), (41, 23), (26, 26)]
SHIFT_FLIP = Augmentation(crop="pad", pad_px=4, flip="random")
RRC = Augmentation(crop="rrc", flip="random")
CASES = {
    "as_stored": Case([(20, 20)], 20, Augmentation(), 0, 0.0),
    "flip": Case([(20, 20)], 20, Augmentation(flip="random"), 0, 0.0),
    "shift": Case([(20, 20)], 20, Augmentation(crop="pad", pad_px=5), 0, 0.0),
    "shift_and_flip_grey": Case([(20, 20)], 20, SHIFT_FLIP, 0, 0.0, channels=1),
    "centre_crop": Case([(20, 33), (41, 20)], 20, SHIFT_FLIP, 0, 0.0),
    "resize": Case(SEVERAL, 17, Augmentation(), 1, 0.1),
    "resize_bicubic": Case(SEVERAL, 17, Augmentation(), 1, 0.1, interpolation="bicubic"),
    "enlarge_bicubic_shift_flip": Case(SEVERAL, 50, SHIFT_FLIP, 1, 0.1, interpolation="bicubic"),
    "squash": Case(SEVERAL, 17, SHIFT_FLIP, 1, 0.1, fit=Fit("squash", 1.0)),
    "crop_frac": Case(SEVERAL, 17, Augmentation(), 1, 0.1, fit=Fit("crop", 0.7)),
    "rrc": Case([(30, 44)], 16, RRC, 1, 0.1),
    "rrc_bicubic_grey": Case([(44, 30)], 16, RRC, 1, 0.1, channels=1, interpolation="bicubic"),
    "rrc_enlarged": Case([(12, 12)], 40, RRC, 1, 0.1),
}


def build_reference(source: Source, case: Case, *, num_workers: int) -> Executor:
    return ReferenceExecutor(
        source,
        size_px=case.size_px,
        channels=case.channels,
        interpolation=case.interpolation,
        num_workers=num_workers,
        pin_memory=False,
    )


def build_resident(source: Source, case: Case) -> Executor:
    drawn = case.augmentation.crop == "rrc"
    every_id = np.arange(len(source.labels_N))
    windows = None if drawn else plan_evaluation(every_id, sizes_N2=source.sizes_N2, fit=case.fit)
    store = load_store(
        source,
        channels=case.channels,
        windows=windows,
        size_px=case.size_px,
        interpolation=case.interpolation,
        show_progress=False,
    )
    return ResidentExecutor(
        store, size_px=case.size_px, interpolation=case.interpolation, windows="drawn" if drawn else "stored"
    )


EXECUTORS: dict[str, Callable[[Source, Case], Executor]] = {
    "reference_0_workers": lambda source, case: build_reference(source, case, num_workers=0),
    "reference_2_workers": lambda source, case: build_reference(source, case, num_workers=2),
    "resident": build_resident,
}


def oracle(image: Image.Image, plan: Plan, row: int, case: Case) -> Pixels:
    """The plan by Pillow and numpy alone."""
    top, left, height, width = plan.windows_N4[row].tolist()
    size = case.size_px
    image = image.convert("L" if case.channels == 1 else "RGB").crop((left, top, left + width, top + height))
    pixels = np.asarray(image.resize((size, size), PILLOW[case.interpolation])).reshape(size, size, case.channels)
    down, right = plan.shifts_N2[row].tolist()
    border = size - 1
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="reflect")
    pixels = padded[border + down : border + down + size, border + right : border + right + size]
    return pixels[:, ::-1] if plan.flips_N[row] else pixels


def draw_plans(source: Source, case: Case, *, epoch: int) -> list[Plan]:
    """All samples, shuffled, in batches of 5, 5 and 2; one of them twice."""
    ids = np.random.default_rng(epoch).permutation(len(source.labels_N))
    ids[-1] = ids[0]
    return [
        plan_training(
            part, sizes_N2=source.sizes_N2[part], fit=case.fit, augmentation=case.augmentation, seed=1, epoch=epoch
        )
        for part in np.split(ids, [5, 10])
    ]


def test_the_contract_runs_over_every_executor_there_is() -> None:
    modules = {module.name for module in pkgutil.iter_modules(pipelines.executors.__path__)}
    assert modules == {"reference", "resident"}
    assert {name.split("_")[0] for name in EXECUTORS} == modules
    assert len(EXECUTORS) == 3
    assert len(CASES) == 13


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_makes_the_pixels_that_pillow_makes(
    name: str, case: Case, write_folder: Callable[..., Path]
) -> None:
    root = write_folder({"train": {"a": COUNT - 5, "b": 5}}, sizes=case.sizes, channels=case.channels)
    source = scan_folder(str(root), show_progress=False)["train"]
    files = sorted((root / "train").rglob("*.png"))
    executor = EXECUTORS[name](source, case)
    for epoch in (0, 1):  # an executor serves many epochs
        plans = draw_plans(source, case, epoch=epoch)
        batches = list(executor.run(iter(plans)))
        assert [tuple(batch.shape) for batch in batches] == [
            (n, case.size_px, case.size_px, case.channels) for n in (5, 5, 2)
        ]
        assert {batch.dtype for batch in batches} == {torch.uint8}
        for plan, batch in zip(plans, batches, strict=True):
            wanted = []
            for row, sample_id in enumerate(plan.ids_N):
                with Image.open(files[sample_id]) as image:
                    wanted.append(oracle(image, plan, row, case))
            difference = np.abs(batch.numpy().astype(int) - np.stack(wanted))
            assert difference.max() <= case.max_difference
            assert difference.mean() <= case.mean_difference


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_image_that_cannot_be_read_is_a_value_error_that_names_the_file(
    name: str, write_folder: Callable[..., Path]
) -> None:
    case = CASES["flip"]
    root = write_folder({"train": {"a": 6, "b": 6}}, sizes=case.sizes)
    source = scan_folder(str(root), show_progress=False)["train"]
    bad = root / "train/b/003.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(ValueError, match=rf"{bad}: .*truncated"):
        list(EXECUTORS[name](source, case).run(iter(draw_plans(source, case, epoch=0))))


@pytest.mark.parametrize("name", EXECUTORS)
def test_no_plans_give_no_batches(name: str, write_folder: Callable[..., Path]) -> None:
    case = CASES["as_stored"]
    source = scan_folder(str(write_folder({"train": {"a": 2, "b": 2}}, sizes=case.sizes)), show_progress=False)["train"]
    assert list(EXECUTORS[name](source, case).run(iter([]))) == []


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_stopped_in_the_middle_can_start_anew(name: str, write_folder: Callable[..., Path]) -> None:
    case = CASES["shift"]
    source = scan_folder(str(write_folder({"train": {"a": 6, "b": 6}}, sizes=case.sizes)), show_progress=False)["train"]
    executor, other = (EXECUTORS[name](source, case) for _ in range(2))
    first, second = (draw_plans(source, case, epoch=epoch) for epoch in (0, 1))
    running = executor.run(iter(first))
    next(running)
    del running
    left = list(executor.run(iter(second)))
    wanted = list(other.run(iter(second)))
    assert len(left) == len(wanted) == 3
    assert all(torch.equal(one, two) for one, two in zip(left, wanted, strict=True))


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_leaves_the_random_numbers_of_torch_and_numpy_alone(
    name: str, write_folder: Callable[..., Path]
) -> None:
    case = CASES["shift"]
    source = scan_folder(str(write_folder({"train": {"a": 6, "b": 6}}, sizes=case.sizes)), show_progress=False)["train"]
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(EXECUTORS[name](source, case).run(iter(draw_plans(source, case, epoch=0))))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before
