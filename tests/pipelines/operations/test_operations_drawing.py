"""What RandAugment, TrivialAugment and the other steps draw, held against torchvision's own transforms.

torchvision's transforms draw for an image whose every application is recorded, as our `Operation` and parameters; both
samples are then compared by chi-square tests. With the seeds fixed a test passes or fails for good; by chance alone one
in a thousand would fail.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, kstest
from torchvision.transforms import v2

from configs.operations import STEPS, read_operations
from pipelines.operations.drawing import STEP_NAMES, Step, draw_operations, num_slots, operations_of
from pipelines.operations.reference import operate
from pipelines.operations.vocabulary import Operation, Operations
from pipelines.plan import Plan, draw_keys

SIZE_PX = 96
COUNT = 40_000  # rows of ours
NUM_TORCHVISION = 12_000  # of theirs, which is slow
LEAST_P = 1e-3


def steps_of(*entries: Any) -> tuple[Step, ...]:
    """As build_augment.py makes them, without the dataclasses."""
    return tuple(Step(name, vars(step)) for name, step in read_operations(entries))


def draw(*entries: Any, count: int = COUNT, seed: int = 0, epoch: int = 0, size_px: int = SIZE_PX) -> Operations:
    ids = np.arange(count)
    keys = draw_keys(epoch, np.zeros(count, dtype=np.int64))
    return draw_operations(steps_of(*entries), ids_N=ids, keys_N=keys, seed=seed, size_px=size_px)


# --- what torchvision draws, as names and magnitudes


def recorded(transform: Any, monkeypatch: pytest.MonkeyPatch, *, count: int) -> list[tuple[str, float]]:
    """(name, magnitude) of every operation that the transform applies to `count` images."""
    found: list[tuple[str, float]] = []

    def record(image: Any, name: str, magnitude: float, **kwargs: Any) -> Any:
        found.append((name, magnitude))
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", record)
    image = torch.zeros(3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(count):
            transform(image)
    return found


def named(operations: Operations) -> list[tuple[str, float]]:
    """(name, magnitude) as torchvision has them, of every operation drawn."""
    codes, values = operations.codes_NK.reshape(-1).tolist(), operations.values_NKP.reshape(-1, 6).tolist()
    return [torchvision_name(Operation(code), value) for code, value in zip(codes, values, strict=True)]


def torchvision_name(operation: Operation, value: list[float]) -> tuple[str, float]:
    match operation:
        case Operation.AFFINE:
            angle, right, down, scale, shear_x, shear_y = value
            assert scale == 1
            if shear_x:
                assert right == pytest.approx(-math.tan(math.radians(shear_x)) * SIZE_PX / 2)
                return "ShearX", math.tan(math.radians(shear_x))
            if shear_y:
                assert down == pytest.approx(-math.tan(math.radians(shear_y)) * SIZE_PX / 2)
                return "ShearY", math.tan(math.radians(shear_y))
            if angle:
                return "Rotate", -angle
            return ("TranslateX", right) if right else ("TranslateY", down)
        case Operation.BRIGHTNESS | Operation.CONTRAST | Operation.SHARPNESS:
            return operation.name.capitalize(), value[0] - 1
        case Operation.SATURATION:
            return "Color", value[0] - 1
        case Operation.POSTERIZE:
            return "Posterize", value[0]
        case Operation.SOLARIZE:
            return "Solarize", value[0] / 255
        case Operation.AUTOCONTRAST:
            return "AutoContrast", 0.0
        case _:
            return operation.name.capitalize(), 0.0


def counted(found: list[tuple[str, float]]) -> Counter[tuple[str, float]]:
    """How often each name came with each magnitude; translations cut off to whole pixels, as torchvision does later
    (but for 15.999999, its float32 of 16, which counts as 16).

    What leaves the image as it is has no name of its own in both: an affine of magnitude 0 is counted as one.
    """
    counts: Counter[tuple[str, float]] = Counter()
    for name, magnitude in found:
        magnitude = round(magnitude, 4) + 0.0
        magnitude = float(int(magnitude)) if name.startswith("Translate") else magnitude
        if magnitude == 0 and name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
            name = "Affine"
        counts[name, magnitude] += 1
    return counts


CASES: dict[str, tuple[dict[str, Any], Callable[[], Any], int]] = {
    "randaugment": ({}, lambda: v2.RandAugment(), 23),
    "randaugment_n3_m20": ({"n": 3, "m": 20}, lambda: v2.RandAugment(num_ops=3, magnitude=20), 23),
    "randaugment_m5_of_11": ({"m": 5, "num_bins": 11}, lambda: v2.RandAugment(magnitude=5, num_magnitude_bins=11), 23),
    "trivial_augment": ({}, lambda: v2.TrivialAugmentWide(), 500),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_and_magnitudes_are_distributed_as_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of the table of (operation, signed magnitude) by program; magnitudes to four digits are the same."""
    fields, make, least_cells = CASES[name]
    step = "trivial_augment" if name.startswith("trivial") else "randaugment"
    ours = counted(named(draw({step: fields})))
    theirs = counted(recorded(make(), monkeypatch, count=NUM_TORCHVISION))
    assert set(ours) == set(theirs)
    assert len(ours) >= least_cells if step == "trivial_augment" else len(ours) == least_cells
    assert len({cell[0] for cell in ours} - {"Affine"}) == 14
    cells = sorted(ours)
    table = np.array([[ours[cell] for cell in cells], [theirs[cell] for cell in cells]])
    assert chi2_contingency(table).pvalue > LEAST_P


def test_the_comparison_notices_another_magnitude_or_another_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = counted(recorded(v2.RandAugment(), monkeypatch, count=NUM_TORCHVISION))
    assert set(counted(named(draw({"randaugment": {"m": 10}})))) != set(theirs)
    ours = counted(named(draw({"randaugment": {"prob": 0.95}})))
    cells = sorted(theirs)
    table = np.array([[ours[cell] for cell in cells], [theirs[cell] for cell in cells]])
    assert chi2_contingency(table).pvalue < 1e-6


def test_randaugments_probability_and_spread_of_magnitudes() -> None:
    drawn = draw({"randaugment": {"n": 1, "m": 15, "m_std": 3, "prob": 0.5}})
    codes, values = drawn.codes_NK[:, 0], drawn.values_NKP[:, 0]
    assert binomtest(int((codes != 0).sum()), COUNT, 0.5 * 13 / 14).pvalue > LEAST_P
    magnitudes = 30 * np.abs(values[codes == Operation.BRIGHTNESS, 0] - 1) / 0.9
    assert kstest(magnitudes, "norm", args=(15, 3)).pvalue > LEAST_P
    clipped = draw({"randaugment": {"n": 1, "m": 29, "m_std": 30}})
    factors = clipped.values_NKP[:, 0][clipped.codes_NK[:, 0] == Operation.CONTRAST, 0]
    assert np.abs(factors - 1).max() == pytest.approx(0.9)
    assert (factors == 1).any()


def test_colour_jitter_is_torchvisions() -> None:
    """Factors evenly between the limits, every order equally often, all or nothing."""
    step = {"color_jitter": {"brightness": 0.4, "contrast": [0.5, 2], "saturation": 1.5, "hue": 0.1, "prob": 0.8}}
    drawn = draw(step)
    done = drawn.codes_NK[:, 0] != 0
    assert ((drawn.codes_NK != 0).all(axis=1) == done).all()
    assert binomtest(int(done.sum()), COUNT, 0.8).pvalue > LEAST_P
    orders = Counter(map(tuple, drawn.codes_NK[done].tolist()))
    assert len(orders) == 24
    counts = np.array(list(orders.values()))
    assert chi2_contingency(np.stack([counts, np.full(24, counts.mean()).round()])).pvalue > LEAST_P
    limits = {
        Operation.BRIGHTNESS: (0.6, 1.4),
        Operation.CONTRAST: (0.5, 2.0),
        Operation.SATURATION: (0.0, 2.5),
        Operation.HUE: (-0.1, 0.1),
    }
    theirs = v2.ColorJitter(brightness=0.4, contrast=(0.5, 2), saturation=1.5, hue=0.1)
    for operation, (low, high) in limits.items():
        values = drawn.values_NKP[..., 0][drawn.codes_NK == operation]
        assert tuple(getattr(theirs, operation.name.lower())) == pytest.approx((low, high))
        assert kstest(values, "uniform", args=(low, high - low)).pvalue > LEAST_P


def test_affine_is_torchvisions_random_affine() -> None:
    drawn = draw(
        {"affine": {"degrees": 10, "translate": 0.1, "scale": [0.9, 1.2], "shear_x": 5, "shear_y": [2, 3]}},
        "invert",
    )
    values = drawn.values_NKP[:, 0]
    limits = ((-10, 10), None, None, (0.9, 1.2), (-5, 5), (2, 3))
    for column, limit in enumerate(limits):
        if limit is not None:
            assert kstest(values[:, column], "uniform", args=(limit[0], limit[1] - limit[0])).pvalue > LEAST_P
    theirs = v2.RandomAffine(degrees=10, translate=(0.1, 0.1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shifts = [theirs.make_params([torch.zeros(3, SIZE_PX, SIZE_PX)])["translate"] for _ in range(COUNT // 4)]
    for column in (1, 2):
        ours, others = (
            Counter(np.asarray(each).tolist()) for each in (values[:, column], np.array(shifts)[:, column - 1])
        )
        places = sorted(set(ours) | set(others))
        assert places == list(range(-10, 11))
        table = np.array([[ours[place] for place in places], [others[place] for place in places]])
        assert chi2_contingency(table).pvalue > LEAST_P
    assert (drawn.codes_NK == [Operation.AFFINE, Operation.INVERT]).all()


def test_single_operations_come_with_their_probability_and_within_their_limits() -> None:
    wanted = {
        "brightness": ({"factor": 0.3}, (0.7, 1.3)),
        "contrast": ({"factor": [0.2, 3]}, (0.2, 3)),
        "saturation": ({"factor": 2}, (0, 3)),
        "sharpness": ({"factor": [1, 2]}, (1, 2)),
        "hue": ({"shift": 0.5}, (-0.5, 0.5)),
        "gaussian_blur": ({}, (0.1, 2.0)),
        "solarize": ({"threshold": [100, 200]}, (100, 200)),
    }
    for name, (fields, (low, high)) in wanted.items():
        drawn = draw({name: {**fields, "prob": 0.3}})
        done = drawn.codes_NK[:, 0] == Operation[name.upper()]
        assert binomtest(int(done.sum()), COUNT, 0.3).pvalue > LEAST_P, name
        assert (drawn.codes_NK[~done] == 0).all()
        assert (drawn.values_NKP[~done] == 0).all()
        assert kstest(drawn.values_NKP[done, 0, 0], "uniform", args=(low, high - low)).pvalue > LEAST_P, name
    shifts = draw({"rgb_shift": {"most": 3}}).values_NKP[:, 0, :3]
    assert Counter(np.unique(shifts).tolist()) == Counter(range(-3, 4))
    assert all(binomtest(int((shifts == value).sum()), shifts.size, 1 / 7).pvalue > LEAST_P for value in range(-3, 4))
    bits = draw({"posterize": {"bits": [3, 5]}}).values_NKP[:, 0, 0]
    assert all(binomtest(int((bits == value).sum()), COUNT, 1 / 3).pvalue > LEAST_P for value in (3, 4, 5))
    for name in ("grayscale", "equalize", "autocontrast", "invert"):
        assert (draw(name, count=10).codes_NK == Operation[name.upper()]).all()


def test_a_row_depends_on_its_own_id_and_key_alone_and_steps_and_seeds_differ() -> None:
    entries = ({"randaugment": {"m_std": 0.5}}, {"brightness": {"factor": 0.5}}, {"brightness": {"factor": 0.5}})
    drawn = draw(*entries, count=50)
    part = draw_operations(
        steps_of(*entries),
        ids_N=np.array([31, 7]),
        keys_N=np.zeros(2, dtype=np.int64),
        seed=0,
        size_px=SIZE_PX,
    )
    for ours, whole in zip(part, drawn, strict=True):
        np.testing.assert_array_equal(ours, whole[[31, 7]])
    assert (drawn.values_NKP[:, 2, 0] != drawn.values_NKP[:, 3, 0]).all()  # steps of one kind draw apart
    for other in (draw(*entries, count=50, seed=1), draw(*entries, count=50, epoch=1)):
        assert (drawn.values_NKP[:, 3, 0] != other.values_NKP[:, 3, 0]).all()


def test_every_step_that_a_recipe_may_name_can_be_drawn_and_says_what_it_may_draw() -> None:
    assert set(STEPS) == STEP_NAMES
    assert len(STEPS) == 17
    needed = {"factor": 0.5, "shift": 0.2, "degrees": 10, "brightness": 0.4, "hue": 0.1}
    for name, schema in STEPS.items():
        fields = {key: value for key, value in needed.items() if key in schema.__dataclass_fields__}
        drawn = draw({name: fields}, count=4000)
        steps = steps_of({name: fields})
        assert drawn.codes_NK.dtype == np.int8
        assert drawn.values_NKP.dtype == np.float64
        assert drawn.codes_NK.shape == (4000, num_slots(steps))
        assert drawn.values_NKP.shape == (4000, num_slots(steps), 6)
        assert set(np.unique(drawn.codes_NK).tolist()) - {0} == set(operations_of(steps)), name
    everything = [
        {name: {key: value for key, value in needed.items() if key in schema.__dataclass_fields__}}
        for name, schema in STEPS.items()
    ]
    assert operations_of(steps_of(*everything)) == set(Operation) - {Operation.IDENTITY}


@pytest.mark.parametrize("policy", [v2.RandAugment, v2.TrivialAugmentWide])
def test_what_is_drawn_changes_pixels_as_torchvisions_policies_do(policy: Any) -> None:
    """Through reference.operate, to the bit where there is no resampling; the matrices differ in their last digits."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    transform = policy(interpolation="bilinear")
    drawn = draw("trivial_augment" if policy is v2.TrivialAugmentWide else {"randaugment": {"n": 1, "m_std": 5}})
    plan = Plan(*5 * (np.empty(0),), size_px=SIZE_PX, operations=drawn)  # type: ignore[arg-type]
    seen = set()
    for row in range(200):
        name, magnitude = named(drawn.rows([row]))[0]
        theirs = transform._apply_image_or_video_transform(
            torch.from_numpy(image).permute(2, 0, 1), name, magnitude, transform.interpolation, transform._fill
        )
        ours = image.copy()
        operate(ours, plan=plan, row=row)
        difference = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
        is_affine = drawn.codes_NK[row, 0] == Operation.AFFINE
        assert difference.max() <= (1 if is_affine else 0), (name, magnitude)
        assert difference.mean() < 0.001
        seen.add(name)
    assert len(seen) == 14
