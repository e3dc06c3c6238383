"""What was drawn, in words and numbers: every operation, the geometry, the effects, and how often each."""

import numpy as np
import pytest

from pipelines.effects import Effects, EffectSettings, Erasing, Mixing, MixPlan
from pipelines.geometry import carry_out
from pipelines.operations.drawing import Step
from pipelines.operations.vocabulary import NUM_PARAMETERS, PARAMETER_NAMES, Operation, Operations
from pipelines.plan import Augmentation, Plan
from pipelines.wording import Drawn, Range, count_drawn, list_drawn, list_names

WORDS: dict[Operation, tuple[tuple[float, ...], str]] = {  # parameters, and what is said of them
    Operation.AFFINE: ((-12.34, 0, 0, 1, 0, 0), "affine rotate -12.3 deg"),
    Operation.BRIGHTNESS: ((1.311,), "brightness x1.31"),
    Operation.CONTRAST: ((0.7,), "contrast x0.70"),
    Operation.SATURATION: ((0,), "saturation x0.00"),
    Operation.HUE: ((0.071,), "hue +0.07"),
    Operation.RGB_SHIFT: ((3, -10, 0), "rgb shift +3, -10, +0"),
    Operation.GRAYSCALE: ((), "grayscale"),
    Operation.GAUSSIAN_BLUR: ((1.25,), "gaussian blur 1.25 px"),
    Operation.POSTERIZE: ((4,), "posterize 4 bits"),
    Operation.SOLARIZE: ((170.4,), "solarize 170"),
    Operation.EQUALIZE: ((), "equalize"),
    Operation.AUTOCONTRAST: ((), "autocontrast"),
    Operation.SHARPNESS: ((1.9,), "sharpness x1.90"),
    Operation.INVERT: ((), "invert"),
}


def make_plan(*rows: list[tuple[float, ...]], **fields: object) -> Plan:
    """A plan of 32 px; each row a list of operations, (operation, *parameters); ids are 100, 101, ..."""
    num_slots = max(len(row) for row in rows)
    codes_NK = np.zeros((len(rows), num_slots), np.int8)
    values_NKP = np.zeros((len(rows), num_slots, NUM_PARAMETERS))
    for place, row in enumerate(rows):
        for slot, (code, *parameters) in enumerate(row):
            codes_NK[place, slot] = code
            values_NKP[place, slot, : len(parameters)] = parameters
    plan = Plan(
        ids_N=np.arange(100, 100 + len(rows)),
        windows_N4=np.tile([0, 0, 32, 32], (len(rows), 1)),
        shifts_N2=np.zeros((len(rows), 2), np.int64),
        flips_N=np.zeros(len(rows), np.bool_),
        vertical_flips_N=np.zeros(len(rows), np.bool_),
        size_px=32,
        operations=Operations(codes_NK, values_NKP),
    )
    return plan._replace(**fields)


def words_of(plan: Plan, effects: Effects = Effects(), *, row: int = 0) -> list[str]:  # noqa: B008  # frozen
    return [drawn.words for drawn in list_drawn(plan, effects, row, sizes_N2=None)]


@pytest.mark.parametrize("operation", [one for one in Operation if one != Operation.IDENTITY], ids=lambda one: one.name)
def test_every_operation_has_its_words_and_its_numbers(operation: Operation) -> None:
    parameters, words = WORDS[operation]
    (drawn,) = list_drawn(make_plan([(operation, *parameters)]), Effects(), 0, sizes_N2=None)
    assert drawn.words == words
    if operation != Operation.AFFINE:
        assert drawn.values == dict(zip(PARAMETER_NAMES.get(operation, ()), parameters, strict=True))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ((0, 3, -2.5, 1, 0, 0), "affine right 3 px, down -2.5 px"),
        ((0, 0, 0, 1.2, 0, 0), "affine scale x1.20"),
        ((0, -1.24, 0, 1, 17.2, 0), "affine right -1.2 px, shear x 17.2 deg"),
        ((0, 0, 0, 1, 0, -5), "affine shear y -5 deg"),
        ((-0.02, 0, 0, 1, 0, 0), "affine rotate 0 deg"),
        ((-0.0, 0, 0, 1, 0, 0), "affine"),
    ],
)
def test_of_affine_only_what_differs_from_nothing_is_said(parameters: tuple[float, ...], words: str) -> None:
    (drawn,) = list_drawn(make_plan([(Operation.AFFINE, *parameters)]), Effects(), 0, sizes_N2=None)
    assert drawn.words == words
    assert all(drawn.values[name] == parameters[PARAMETER_NAMES[Operation.AFFINE].index(name)] for name in drawn.values)


def test_operations_come_in_the_order_in_which_they_are_done_and_identity_is_nothing() -> None:
    plan = make_plan([(Operation.INVERT,), (Operation.IDENTITY,), (Operation.HUE, -0.5)], [(Operation.EQUALIZE,)])
    assert words_of(plan) == ["invert", "hue -0.50"]
    assert words_of(plan, row=1) == ["equalize"]
    assert words_of(plan._replace(operations=None)) == []


def test_a_shift_says_where_the_image_goes() -> None:
    """The plan moves the window: 3 down, so the image goes 3 up; a white pixel in the middle shows it."""
    plan = make_plan([], [], [], shifts_N2=np.array([[3, -2], [0, 1], [0, 0]]), flips_N=np.array([True, False, False]))
    assert [words_of(plan, row=row) for row in range(3)] == [["shift 2 right, 3 up", "flip"], ["shift 1 left"], []]
    pixels = np.zeros((32, 32, 1), np.uint8)
    pixels[16, 16] = 255
    straight = carry_out(pixels, plan=plan._replace(flips_N=np.zeros(3, np.bool_)), row=0, interpolation="bilinear")
    assert np.argwhere(straight[..., 0].numpy() == 255).tolist() == [[16 - 3, 16 + 2]]
    turned = plan._replace(vertical_flips_N=np.array([True, True, False]))
    assert [words_of(turned, row=row)[1:] for row in range(3)] == [["flip", "vertical flip"], ["vertical flip"], []]
    shift = list_drawn(plan, Effects(), 0, sizes_N2=None)[0]
    assert shift.values == {"right_px": 2, "down_px": -3}


def test_a_crop_is_told_as_width_by_height_at_left_top_and_counted_by_its_area() -> None:
    plan = make_plan([], windows_N4=np.array([[20, 3, 98, 112]]))
    (crop,) = list_drawn(plan, Effects(), 0, sizes_N2=np.array([[196, 224]], np.int32))
    assert crop.words == "crop 112x98 at (3, 20)"
    assert crop.values == {"area_frac": 0.25, "width_over_height": 112 / 98}


def test_effects_are_told_after_the_operations_and_only_where_there_is_a_box() -> None:
    effects = Effects(
        noise_keys_N=np.array([1, 2]),
        noise_std=0.02,
        erase_N4=np.array([[1, 2, 16, 8], [0, 0, 0, 0]]),
        cutout_N4=np.array([[0, 24, 8, 8], [4, 4, 8, 8]]),
    )
    plan = make_plan([(Operation.INVERT,)], [])
    assert words_of(plan, effects) == ["invert", "noise 0.02", "erase 8x16 at (2, 1)", "cutout 8x8 at (24, 0)"]
    assert words_of(plan, effects, row=1) == ["noise 0.02", "cutout 8x8 at (4, 4)"]
    erase = list_drawn(plan, effects, 0, sizes_N2=None)[2]
    assert erase.values == {"area_frac": 8 * 16 / 32**2}


def test_mixing_names_the_weight_of_the_image_itself_and_its_partner() -> None:
    mix = MixPlan(np.array([1, 1, 2, 0], np.int8), np.array([0.83, 0.83, 0.75, 1], np.float32), np.zeros((4, 4), int))
    plan, effects = make_plan([], [], [], []), Effects(mix=mix)
    assert [words_of(plan, effects, row=row) for row in range(4)] == [
        ["mixup 0.83 with 101"],
        ["mixup 0.83 with 100"],
        ["CutMix 25 % of 103"],
        [],
    ]
    (named,) = list_drawn(plan, effects, 1, sizes_N2=None, name_sample=lambda sample_id: f"<{sample_id}>")
    assert named.words == "mixup 0.83 with <100>"


def test_the_users_own_pipeline_is_named_with_its_seed() -> None:
    plan = make_plan([(Operation.IDENTITY,)], own_seeds_N=np.array([255]))
    assert list_drawn(plan, Effects(), 0, sizes_N2=None) == [Drawn("own pipeline", "own pipeline ff")]


def test_all_that_may_be_drawn_is_named_in_the_order_in_which_it_is_done() -> None:
    assert list_names(Augmentation(), EffectSettings()) == []
    steps = (Step("equalize", {"prob": 0.1}), Step("brightness", {"factor": (0.5, 1.5), "prob": 1.0}))
    some = Augmentation(crop="pad", pad_px=2, flip="alternating", vertical_flip_prob=0.5, operations=steps)
    settings = EffectSettings(Mixing(0.0, 1.0), Erasing(0.5), noise_std=0.1, cutout_px=4)
    wanted = ["shift", "flip", "vertical flip", "brightness", "equalize", "noise", "erase", "cutout", "CutMix"]
    assert list_names(some, settings) == wanted
    assert list_names(Augmentation(own_pipeline=True), EffectSettings()) == ["own pipeline"]
    assert list_names(Augmentation(crop="rrc"), EffectSettings(Mixing(0.2, 0.0))) == ["crop", "mixup"]
    assert list_names(Augmentation(crop="pad", pad_px=0), EffectSettings(Mixing(0.2, 1.0, prob=0.0))) == []


def test_names_of_what_is_drawn_are_those_that_may_be_drawn() -> None:
    everything = [
        Operation[name.upper().replace(" ", "_")] for name in list_names(all_single_steps(), EffectSettings())
    ]
    assert everything == [one for one in Operation if one != Operation.IDENTITY]
    for operation in everything:
        (drawn,) = list_drawn(make_plan([(operation, *WORDS[operation][0])]), Effects(), 0, sizes_N2=None)
        assert drawn.name in list_names(all_single_steps(), EffectSettings())


def all_single_steps() -> Augmentation:
    names = [one.name.lower() for one in Operation if one != Operation.IDENTITY]
    return Augmentation(operations=tuple(Step(name, {}) for name in names))


def test_things_are_counted_once_per_image_and_parameters_each_time() -> None:
    bright = [Drawn("brightness", "", {"factor": factor}) for factor in (0.5, 1.0, 1.8)]
    turned, moved = Drawn("affine", "", {"angle_deg": -9.0}), Drawn("affine", "", {"right_px": 2.0, "angle_deg": 1.0})
    images = [[bright[0], bright[1]], [bright[2], Drawn("flip", "")], [turned], [moved, Drawn("flip", "")], []]
    never, flip, brightness, affine = count_drawn(images, names=["equalize", "flip"])
    assert never == ("equalize", 0, {})
    assert flip == ("flip", 2, {})
    assert brightness[:2] == ("brightness", 2)
    assert brightness.ranges["factor"] == Range(2, 0.5, pytest.approx(1.1), 1.8)
    assert affine.ranges == {"angle_deg": Range(2, -9.0, -4.0, 1.0), "right_px": Range(1, 2.0, 2.0, 2.0)}
    assert list(affine.ranges) == ["angle_deg", "right_px"]
