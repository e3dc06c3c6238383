"""One contract for every executor: the pixels that Pillow makes of the same plan."""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED, EXECUTORS, Setting
from PIL import Image

import pipelines.executors
from pipelines.execution import Carried
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import Source
from pipelines.sources.scan import scan_folder

Pixels = npt.NDArray[np.uint8]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
COUNT = 12


class Case(NamedTuple):
    """What is carried out. `max_difference` of 255 from the oracle, `mean_difference` over a batch.

    Executors with a resize of their own (dali) may differ by 1 in the mean, as long as they resize.
    """

    sizes: list[tuple[int, int]]
    size_px: int
    augmentation: Augmentation
    max_difference: int
    mean_difference: float
    channels: int = 3
    interpolation: str = "bilinear"
    fit: Fit = Fit("crop", 1.0)
    num_views: int = 1
    suffix: str = ".png"

    @property
    def setting(self) -> Setting:
        drawn = self.augmentation.crop == "rrc"
        return Setting(self.channels, self.interpolation, self.fit, self.size_px, "drawn" if drawn else "stored")


SEVERAL = [(30, 44), (41, 23), (26, 26)]
SHIFT_FLIP = Augmentation(crop="pad", pad_px=4, flip="random")
ALL_FLIPS = Augmentation(flip="random", vertical_flip_prob=0.5)
SHIFT_ALL_FLIPS = SHIFT_FLIP._replace(vertical_flip_prob=0.5)
RRC = Augmentation(crop="rrc", flip="random")
CROP, SQUASH = Fit("crop", 1.0), Fit("squash", 1.0)
LETTERBOX, GREY_LETTERBOX = Fit("letterbox", 1.0, border=(124, 7, 255)), Fit("letterbox", 1.0, border=(90,))
CASES = {
    "as_stored": Case([(20, 20)], 20, Augmentation(), 0, 0.0),
    "flip": Case([(20, 20)], 20, Augmentation(flip="random"), 0, 0.0),
    "shift": Case([(20, 20)], 20, Augmentation(crop="pad", pad_px=5), 0, 0.0),
    "vertical_flip": Case([(20, 20)], 20, Augmentation(vertical_flip_prob=0.5), 0, 0.0),
    "all_flips": Case([(20, 20)], 20, ALL_FLIPS, 0, 0.0),
    "shift_all_flips_grey": Case([(20, 20)], 20, SHIFT_ALL_FLIPS, 0, 0.0, channels=1),
    "rrc_vertical_flip": Case([(30, 44)], 16, Augmentation(crop="rrc", vertical_flip_prob=0.5), 1, 0.2),
    "shift_and_flip_grey": Case([(20, 20)], 20, SHIFT_FLIP, 0, 0.0, channels=1),
    "centre_crop": Case([(20, 33), (41, 20)], 20, SHIFT_FLIP, 0, 0.0),
    "resize": Case(SEVERAL, 17, Augmentation(), 1, 0.2),
    "resize_bicubic": Case(SEVERAL, 17, Augmentation(), 1, 0.2, interpolation="bicubic"),
    "enlarge_bicubic_shift_flip": Case(SEVERAL, 50, SHIFT_FLIP, 1, 0.2, interpolation="bicubic"),
    "squash": Case(SEVERAL, 17, SHIFT_FLIP, 1, 0.2, fit=SQUASH),
    "letterbox": Case(SEVERAL, 17, Augmentation(), 1, 0.2, fit=LETTERBOX),
    "letterbox_landscape_bicubic": Case([(30, 44)], 16, SHIFT_FLIP, 1, 0.2, interpolation="bicubic", fit=LETTERBOX),
    "letterbox_portrait_grey": Case([(44, 30)], 16, ALL_FLIPS, 1, 0.2, channels=1, fit=GREY_LETTERBOX),
    "letterbox_enlarged": Case([(12, 30), (30, 12)], 50, SHIFT_ALL_FLIPS, 1, 0.2, fit=LETTERBOX),
    "letterbox_thin": Case([(1, 40), (40, 1), (2, 90)], 16, SHIFT_ALL_FLIPS, 1, 0.2, fit=LETTERBOX),
    "letterbox_not_resized": Case([(20, 13), (1, 20), (20, 20), (19, 20)], 20, ALL_FLIPS, 0, 0.0, fit=LETTERBOX),
    "letterbox_shift_two_views": Case([(20, 13), (8, 20)], 20, SHIFT_ALL_FLIPS, 0, 0.0, fit=LETTERBOX, num_views=2),
    "letterbox_rrc": Case([(30, 44)], 16, RRC, 1, 0.2, fit=LETTERBOX),
    "jpeg_letterbox": Case([(60, 88)], 32, SHIFT_ALL_FLIPS, 1, 0.2, fit=LETTERBOX, suffix=".jpg"),
    "jpeg_letterbox_not_resized": Case([(20, 13)], 20, Augmentation(), 0, 0.0, fit=LETTERBOX, suffix=".jpg"),
    "crop_frac": Case(SEVERAL, 17, Augmentation(), 1, 0.2, fit=Fit("crop", 0.7)),
    "rrc": Case([(30, 44)], 16, RRC, 1, 0.2),
    "rrc_bicubic_grey": Case([(44, 30)], 16, RRC, 1, 0.2, channels=1, interpolation="bicubic"),
    "rrc_enlarged": Case([(12, 12)], 40, RRC, 1, 0.2),
    "rrc_two_views": Case([(30, 44)], 16, RRC, 1, 0.2, num_views=2),
    "shift_flip_three_views": Case([(20, 20)], 20, SHIFT_FLIP, 0, 0.0, num_views=3),
    "jpeg_crop_flip": Case([(20, 33), (41, 20)], 20, Augmentation(flip="random"), 0, 0.0, suffix=".jpg"),
    "jpeg_rrc": Case([(60, 88)], 32, RRC, 1, 0.2, suffix=".jpg"),
    "jpeg_to_grey": Case([(20, 20)], 20, SHIFT_FLIP, 0, 0.0, channels=1, suffix=".jpg"),
}
ONE_MEAN = 1.0  # of 255: how far a resize of its own may be from Pillow's


def oracle(image: Image.Image, plan: Plan, row: int, case: Case) -> Pixels:
    """The plan by Pillow and numpy alone."""
    top, left, height, width = plan.windows_N4[row].tolist()
    size = case.size_px
    image = image.convert("L" if case.channels == 1 else "RGB").crop((left, top, left + width, top + height))
    box = (0, 0, size, size) if plan.letterbox is None else plan.letterbox.boxes_N4[row].tolist()
    top, left, height, width = box
    pixels = np.empty((size, size, case.channels), dtype=np.uint8)
    pixels[:] = 0 if plan.letterbox is None else plan.letterbox.border
    resized = np.asarray(image.resize((width, height), PILLOW[case.interpolation]))
    pixels[top : top + height, left : left + width] = resized.reshape(height, width, case.channels)
    down, right = plan.shifts_N2[row].tolist()
    border = size - 1
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="reflect")
    pixels = padded[border + down : border + down + size, border + right : border + right + size]
    pixels = pixels[:, ::-1] if plan.flips_N[row] else pixels
    return pixels[::-1] if plan.vertical_flips_N[row] else pixels


def draw_plans(source: Source, case: Case, *, epoch: int, sizes_px: tuple[int, ...] = ()) -> list[Plan]:
    """All samples, shuffled, in batches of 2, 5 and 5; one of them twice. `sizes_px` instead of the case's size."""
    ids = np.random.default_rng(epoch).permutation(len(source.labels_N))
    ids[-1] = ids[0]
    return [
        plan_training(
            part,
            copies_N=np.zeros_like(part),
            sizes_N2=source.sizes_N2[part],
            fit=case.fit,
            augmentation=case.augmentation,
            seed=1,
            epoch=epoch,
            size_px=size_px,
            num_views=case.num_views,
        )
        for part, size_px in zip(np.split(ids, [2, 7]), sizes_px or [case.size_px] * 3, strict=True)
    ]


def kept(carried: Carried) -> Carried:
    """A copy: the executor may use its memory again."""
    return Carried(carried.images_NHWC.clone(), dict(carried.bad))


@pytest.fixture
def make_source(write_folder: Callable[..., Path]) -> Callable[[Case], Source]:
    def make(case: Case) -> Source:
        root = write_folder(
            {"train": {"a": COUNT - 5, "b": 5}},
            sizes=case.sizes,
            channels=3 if case.suffix == ".jpg" else case.channels,
        )
        if case.suffix == ".jpg":
            for file in sorted((root / "train").rglob("*.png")):
                with Image.open(file) as image:
                    image.save(file.with_suffix(".jpg"), quality=90)
                file.unlink()
        return scan_folder(str(root), show_progress=False)["train"]

    return make


def test_the_contract_runs_over_every_executor_there_is() -> None:
    modules = {module.name for module in pkgutil.iter_modules(pipelines.executors.__path__)} - {
        "dali_graph",
        "dali_requirements",
    }
    assert modules == {"dali", "processes", "reference", "resident", "threads"}
    expected = modules if DALI_IS_EXPECTED else modules - {"dali"}
    assert {name.split("_")[0] for name in EXECUTORS} == expected
    assert len(EXECUTORS) == (9 if DALI_IS_EXPECTED else 8)
    assert len(CASES) == 32


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_makes_the_pixels_that_pillow_makes(
    name: str, case: Case, make_source: Callable[[Case], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(case)
    if name == "dali":  # DALI itself decodes, not what steps in when it fails
        monkeypatch.setattr("pipelines.executors.dali.DaliExecutor._note_failure", None)
    executor = EXECUTORS[name](source, case.setting)
    resizes = name == "dali" and case.max_difference > 0
    for epoch in (0, 1):  # an executor serves many epochs
        plans = draw_plans(source, case, epoch=epoch)
        batches = [kept(carried).images_NHWC for carried in executor.run(iter(plans))]
        assert [tuple(batch.shape) for batch in batches] == [
            (n * case.num_views, case.size_px, case.size_px, case.channels) for n in (2, 5, 5)
        ]
        assert {batch.dtype for batch in batches} == {torch.uint8}
        for plan, batch in zip(plans, batches, strict=True):
            wanted = []
            for row, sample_id in enumerate(plan.ids_N):
                with Image.open(source.describe(int(sample_id))) as image:
                    wanted.append(oracle(image, plan, row, case))
            difference = np.abs(batch.numpy().astype(int) - np.stack(wanted))
            assert resizes or difference.max() <= case.max_difference
            assert difference.mean() <= (ONE_MEAN if resizes else case.mean_difference)


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_image_that_cannot_be_read_is_told_and_the_others_are_right(
    name: str, make_source: Callable[[Case], Source]
) -> None:
    case = CASES["shift_flip_three_views"]
    source = make_source(case)
    bad_id = 9
    wanted = [kept(carried) for carried in EXECUTORS[name](source, case.setting).run(draw_plans(source, case, epoch=0))]
    path = Path(source.describe(bad_id))
    path.write_bytes(path.read_bytes()[:-60])
    executor = EXECUTORS[name](source, case.setting)
    for _ in range(2):  # and it goes on after that
        num_bad = 0
        plans = draw_plans(source, case, epoch=0)
        for plan, carried, right in zip(plans, executor.run(iter(plans)), wanted, strict=True):
            assert sorted(carried.bad) == np.flatnonzero(plan.ids_N == bad_id).tolist()
            assert all("truncated" in reason for reason in carried.bad.values())
            good = np.flatnonzero(plan.ids_N != bad_id)
            assert torch.equal(carried.images_NHWC[good], right.images_NHWC[good])
            num_bad += len(carried.bad)
        assert num_bad in (3, 6)  # three views, of one or two occurrences


@pytest.mark.parametrize("case_name", ["rrc", "letterbox_landscape_bicubic"])
@pytest.mark.parametrize("name", EXECUTORS)
def test_image_sizes_change_from_plan_to_plan(name: str, case_name: str, make_source: Callable[[Case], Source]) -> None:
    case = CASES[case_name]
    source = make_source(case)
    plans = draw_plans(source, case, epoch=0, sizes_px=(12, 40, 16))
    executor = EXECUTORS[name](source, case.setting._replace(windows="drawn"))
    for plan, carried in zip(plans, executor.run(iter(plans)), strict=True):
        for row, sample_id in enumerate(plan.ids_N):
            with Image.open(source.describe(int(sample_id))) as image:
                wanted = oracle(image, plan, row, case._replace(size_px=plan.size_px))
            difference = np.abs(carried.images_NHWC[row].numpy().astype(int) - wanted)
            assert difference.mean() <= (ONE_MEAN if name == "dali" else case.mean_difference)


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_square_image_letterboxed_equals_crop_and_squash_to_the_bit(
    name: str, make_source: Callable[[Case], Source]
) -> None:
    case = Case([(30, 30), (24, 24)], 17, SHIFT_ALL_FLIPS, 1, 0.2)
    source = make_source(case)
    made = []
    for each in (case._replace(fit=fit) for fit in (CROP, SQUASH, LETTERBOX)):
        plans = draw_plans(source, each, epoch=0)
        made.append(torch.cat([kept(one).images_NHWC for one in EXECUTORS[name](source, each.setting).run(plans)]))
    assert len(made[0]) == COUNT
    assert torch.equal(made[2], made[0])
    assert torch.equal(made[2], made[1])


@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "resident"])
def test_plans_with_a_border_another_border_and_none_take_turns(
    name: str, make_source: Callable[[Case], Source]
) -> None:
    """Resident is told at its start what it stores."""
    case = CASES["letterbox_not_resized"]
    source = make_source(case)
    cases = [case._replace(fit=fit) for fit in (CROP, LETTERBOX, LETTERBOX._replace(border=(1, 2, 3)), SQUASH)]
    pairs = [(plan, each) for each in cases for plan in draw_plans(source, each, epoch=0)]
    pairs += pairs[:4]
    executor = EXECUTORS[name](source, case.setting)
    for (plan, each), carried in zip(pairs, executor.run(plan for plan, _ in pairs), strict=True):
        for row, sample_id in enumerate(plan.ids_N):
            with Image.open(source.describe(int(sample_id))) as image:
                difference = np.abs(carried.images_NHWC[row].numpy().astype(int) - oracle(image, plan, row, each))
            assert difference.mean() <= (ONE_MEAN if name == "dali" else 0.2)


@pytest.mark.parametrize("name", EXECUTORS)
def test_no_plans_give_no_batches(name: str, make_source: Callable[[Case], Source]) -> None:
    case = CASES["as_stored"]
    assert list(EXECUTORS[name](make_source(case), case.setting).run(iter([]))) == []


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_stopped_in_the_middle_can_start_anew(name: str, make_source: Callable[[Case], Source]) -> None:
    case = CASES["shift"]
    source = make_source(case)
    executor, other = (EXECUTORS[name](source, case.setting) for _ in range(2))
    first, second = (draw_plans(source, case, epoch=epoch) for epoch in (0, 1))
    running = executor.run(iter(first))
    next(running)
    del running
    left = [kept(carried).images_NHWC for carried in executor.run(iter(second))]
    wanted = [kept(carried).images_NHWC for carried in other.run(iter(second))]
    assert len(left) == len(wanted) == 3
    assert all(torch.equal(one, two) for one, two in zip(left, wanted, strict=True))


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_leaves_the_random_numbers_of_torch_and_numpy_alone(
    name: str, make_source: Callable[[Case], Source]
) -> None:
    case = CASES["shift"]
    source = make_source(case)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for _ in EXECUTORS[name](source, case.setting).run(iter(draw_plans(source, case, epoch=0))):
        pass
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before


@pytest.mark.parametrize("case_name", ["rrc", "letterbox_landscape_bicubic"])
@pytest.mark.parametrize("name", EXECUTORS)
def test_evaluation_may_ask_for_batches_in_inference_mode(
    name: str, case_name: str, make_source: Callable[[Case], Source]
) -> None:
    case = CASES[case_name]
    source = make_source(case)
    plans = draw_plans(source, case, epoch=0)
    executor = EXECUTORS[name](source, case.setting)
    wanted = [kept(carried) for carried in executor.run(iter(plans))]
    executor = EXECUTORS[name](source, case.setting)
    for mode in (True, False, True):  # the same memory, in and out of it
        with torch.inference_mode(mode):
            found = [kept(carried) for carried in executor.run(iter(plans))]
        assert len(found) == len(wanted) == 3
        assert all(torch.equal(one.images_NHWC, two.images_NHWC) for one, two in zip(found, wanted, strict=True))
        assert [one.bad for one in found] == [{}] * 3
