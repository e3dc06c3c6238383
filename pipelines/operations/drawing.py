"""The ways of drawing operations: single ones with a probability, colour jitter, RandAugment, TrivialAugment.

steps (augment.operations of a recipe) + (seed, epoch, sample id, copy) -> Operations, the columns of each step in turn

RandAugment and TrivialAugment draw from torchvision's two tables of 14 operations, with its magnitudes.

Legend of shape letters: N rows of a plan, K operations per row, P = 6 parameters.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from pipelines.counter import Stream, random_uniform
from pipelines.operations.vocabulary import NUM_PARAMETERS, Operation, Operations

_Floats = npt.NDArray[np.float64]
_Range = tuple[float, float]
_Uniform = Callable[[int], _Floats]  # number of columns -> float64 (N, number), 0 to below 1


class Step(NamedTuple):
    """A step of a recipe: its name, and the fields of its dataclass in configs/operations.py."""

    name: str
    arguments: Mapping[str, Any]


class _Space(NamedTuple):
    """The largest magnitudes of a table: shear (a tangent), translation in pixels, rotation in degrees, distance of a
    blend's factor from 1, bits that posterize drops.
    """  # noqa: D205

    shear: float
    translation_px: float
    rotation_deg: float
    blend: float
    bits: int


_CHOICES = (  # in the order of torchvision's tables
    Operation.IDENTITY,
    *5 * (Operation.AFFINE,),  # shear along x and y, translation right and down, rotation
    Operation.BRIGHTNESS,
    Operation.SATURATION,
    Operation.CONTRAST,
    Operation.SHARPNESS,
    Operation.POSTERIZE,
    Operation.SOLARIZE,
    Operation.AUTOCONTRAST,
    Operation.EQUALIZE,
)
_SHEAR_X, _SHEAR_Y, _RIGHT, _DOWN, _ROTATION = range(1, 6)
_BLENDS = (Operation.BRIGHTNESS, Operation.SATURATION, Operation.CONTRAST, Operation.SHARPNESS)
_FACTORS = {"brightness": Operation.BRIGHTNESS, "contrast": Operation.CONTRAST, "saturation": Operation.SATURATION}


def draw_operations(
    steps: tuple[Step, ...],
    *,
    ids_N: npt.NDArray[np.int64],
    keys_N: npt.NDArray[np.int64],
    seed: int,
    size_px: int,
) -> Operations:
    """The operations of N rows; each row depends on (seed, its key, its id) alone.

    Args:
        steps: At least one.
        ids_N: int64 (N,), sample ids.
        keys_N: int64 (N,), the counter of (epoch, copy), see `pipelines.plan.draw_keys`.
        seed: The run's.
        size_px: Height and width of the images.
    """
    drawn = []
    for number, step in enumerate(steps):
        uniform = partial(_uniform, seed, keys_N, ids_N, number)
        drawn.append(_DRAWS[step.name](uniform, size_px=size_px, **step.arguments))
    codes, values = zip(*drawn, strict=True)
    return Operations(np.concatenate(codes, axis=1), np.concatenate(values, axis=1))


def operations_of(steps: tuple[Step, ...]) -> frozenset[Operation]:
    """Every operation that the steps can draw, but for IDENTITY."""
    found: set[Operation] = set()
    for step in steps:
        if step.name in ("randaugment", "trivial_augment"):
            found |= set(_CHOICES)
        elif step.name == "color_jitter":
            found |= {operation for operation, _ in _jittered(step.arguments)}
        else:
            found.add(Operation[step.name.upper()])
    return frozenset(found - {Operation.IDENTITY})


def num_slots(steps: tuple[Step, ...]) -> int:
    """K: how many operations follow one another in each row."""
    jitters = [len(_jittered(step.arguments)) for step in steps if step.name == "color_jitter"]
    randaugments = [int(step.arguments["n"]) for step in steps if step.name == "randaugment"]
    return sum(jitters) + sum(randaugments) + len(steps) - len(jitters) - len(randaugments)


def _uniform(
    seed: int, keys_N: npt.NDArray[np.int64], ids_N: npt.NDArray[np.int64], step: int, num_columns: int
) -> _Floats:
    return random_uniform(
        seed, Stream.OPERATION, keys_N[:, None], ids_N[:, None], step, np.arange(num_columns, dtype=np.int64)
    )


def _between(draws: _Floats, limits: _Range) -> _Floats:
    return limits[0] + (limits[1] - limits[0]) * draws


# --- policies


def _draw_randaugment(
    uniform: _Uniform, *, size_px: int, n: int, m: float, m_std: float, num_bins: int, prob: float
) -> Operations:
    """Cubuk et al., "RandAugment", NeurIPS 2020; `m_std` and `prob` of each operation as timm has them."""
    draws = uniform(4 * n).reshape(-1, 4)
    level = np.clip(m + m_std * ndtri(draws[:, 3]), 0, num_bins - 1) if m_std > 0 else np.full(len(draws), float(m))
    space = _Space(shear=0.3, translation_px=150 / 331 * size_px, rotation_deg=30, blend=0.9, bits=4)
    return _from_space(draws, level / (num_bins - 1), space=space, size_px=size_px, prob=prob, num_slots=n)


def _draw_trivial_augment(uniform: _Uniform, *, size_px: int, num_bins: int, prob: float) -> Operations:
    """Mueller and Hutter, "TrivialAugment", ICCV 2021, its wide table."""
    draws = uniform(4)
    level = np.floor(draws[:, 3] * num_bins) / (num_bins - 1)
    space = _Space(shear=0.99, translation_px=32, rotation_deg=135, blend=0.99, bits=6)
    return _from_space(draws, level, space=space, size_px=size_px, prob=prob, num_slots=1)


def _from_space(
    draws_M4: _Floats, level_M: _Floats, *, space: _Space, size_px: int, prob: float, num_slots: int
) -> Operations:
    """One of the 14 operations for each of M = N * `num_slots` rows, at `level`, 0 to 1, of its largest magnitude.

    The columns of `draws`: which operation, negative or not, whether at all.
    """
    choice_M = np.floor(draws_M4[:, 0] * len(_CHOICES)).astype(np.int64)
    codes_M = np.array(_CHOICES, dtype=np.int8)[choice_M]
    signed_M = np.where(draws_M4[:, 1] < 0.5, -level_M, level_M)
    values_MP = np.zeros((len(choice_M), NUM_PARAMETERS))
    is_affine_M = codes_M == Operation.AFFINE
    values_MP[is_affine_M] = _affine_values(choice_M, signed_M, space=space, size_px=size_px)[is_affine_M]
    first_M = values_MP[:, 0]
    first_M[:] = np.where(np.isin(codes_M, _BLENDS), 1 + signed_M * space.blend, first_M)
    first_M[:] = np.where(codes_M == Operation.POSTERIZE, np.rint(8 - level_M * space.bits), first_M)
    first_M[:] = np.where(codes_M == Operation.SOLARIZE, 255 * (1 - level_M), first_M)
    return _with_prob(
        codes_M.reshape(-1, num_slots),
        values_MP.reshape(-1, num_slots, NUM_PARAMETERS),
        is_done_NK=draws_M4[:, 2].reshape(-1, num_slots) < prob,
    )


def _affine_values(choice_M: npt.NDArray[np.int64], signed_M: _Floats, *, space: _Space, size_px: int) -> _Floats:
    """Parameters of AFFINE, float64 (M, 6). Shears are about the upper left corner, as in Pillow and torchvision."""
    tangent_M = space.shear * signed_M
    shear_deg_M, corner_px_M = np.degrees(np.arctan(tangent_M)), -tangent_M * size_px / 2
    pixels_M = np.trunc(signed_M * space.translation_px)
    columns = {
        0: np.where(choice_M == _ROTATION, -signed_M * space.rotation_deg, 0),
        1: np.where(choice_M == _RIGHT, pixels_M, np.where(choice_M == _SHEAR_X, corner_px_M, 0)),
        2: np.where(choice_M == _DOWN, pixels_M, np.where(choice_M == _SHEAR_Y, corner_px_M, 0)),
        3: np.ones(len(choice_M)),
        4: np.where(choice_M == _SHEAR_X, shear_deg_M, 0),
        5: np.where(choice_M == _SHEAR_Y, shear_deg_M, 0),
    }
    return np.stack([columns[place] for place in range(NUM_PARAMETERS)], axis=1)


def _jittered(arguments: Mapping[str, Any]) -> list[tuple[Operation, _Range]]:
    """What colour jitter varies, and within which limits."""
    asked = [(operation, arguments[name]) for name, operation in _FACTORS.items() if tuple(arguments[name]) != (1, 1)]
    hue = arguments["hue"]
    return asked + ([(Operation.HUE, hue)] if tuple(hue) != (0, 0) else [])


def _draw_color_jitter(uniform: _Uniform, *, size_px: int, prob: float, **limits: _Range) -> Operations:
    """Each of its operations once, in random order, as torchvision's ColorJitter."""
    asked = _jittered(limits)
    draws = uniform(2 * len(asked) + 1)
    order_NK = np.argsort(draws[:, len(asked) : -1], axis=1, kind="stable")
    codes_K = np.array([operation for operation, _ in asked], dtype=np.int8)
    values_NK = np.stack([_between(draws[:, k], one) for k, (_, one) in enumerate(asked)], axis=1)
    values_NKP = np.zeros((*order_NK.shape, NUM_PARAMETERS))
    values_NKP[..., 0] = np.take_along_axis(values_NK, order_NK, axis=1)
    return _with_prob(codes_K[order_NK], values_NKP, is_done_NK=np.broadcast_to(draws[:, -1:] < prob, order_NK.shape))


# --- single operations


def _draw_one(uniform: _Uniform, *, operation: Operation, prob: float, size_px: int, **limits: _Range) -> Operations:
    """One operation with one parameter, or none, evenly within its limits."""
    draws = uniform(1 + len(limits))
    values_NP = np.zeros((len(draws), NUM_PARAMETERS))
    for place, one in enumerate(limits.values()):
        values_NP[:, place] = _between(draws[:, 1 + place], one)
    return _column(operation, values_NP, is_done_N=draws[:, 0] < prob)


def _draw_rgb_shift(uniform: _Uniform, *, size_px: int, most: int, prob: float) -> Operations:
    draws = uniform(4)
    values_NP = np.zeros((len(draws), NUM_PARAMETERS))
    values_NP[:, :3] = np.floor(draws[:, 1:] * (2 * most + 1)) - most
    return _column(Operation.RGB_SHIFT, values_NP, is_done_N=draws[:, 0] < prob)


def _draw_posterize(uniform: _Uniform, *, size_px: int, bits: tuple[int, int], prob: float) -> Operations:
    draws = uniform(2)
    values_NP = np.zeros((len(draws), NUM_PARAMETERS))
    values_NP[:, 0] = np.floor(_between(draws[:, 1], (bits[0], bits[1] + 1)))
    return _column(Operation.POSTERIZE, values_NP, is_done_N=draws[:, 0] < prob)


def _draw_affine(
    uniform: _Uniform,
    *,
    size_px: int,
    degrees: _Range,
    translate: _Range,
    scale: _Range,
    shear_x: _Range,
    shear_y: _Range,
    prob: float,
) -> Operations:
    """As torchvision's RandomAffine: translation, in parts of the image, in whole pixels."""
    draws = uniform(1 + NUM_PARAMETERS)
    limits = (degrees, translate, translate, scale, shear_x, shear_y)
    values_NP = np.stack([_between(draws[:, 1 + place], one) for place, one in enumerate(limits)], axis=1)
    values_NP[:, 1:3] = np.rint(values_NP[:, 1:3] * size_px)
    return _column(Operation.AFFINE, values_NP, is_done_N=draws[:, 0] < prob)


def _column(operation: Operation, values_NP: _Floats, *, is_done_N: npt.NDArray[np.bool_]) -> Operations:
    codes_NK = np.full((len(values_NP), 1), operation, dtype=np.int8)
    return _with_prob(codes_NK, values_NP[:, None], is_done_NK=is_done_N[:, None])


def _with_prob(codes_NK: npt.NDArray[np.int8], values_NKP: _Floats, *, is_done_NK: npt.NDArray[np.bool_]) -> Operations:
    """IDENTITY, with no parameters, where nothing is done."""
    is_done_NK = is_done_NK & (codes_NK != Operation.IDENTITY)
    return Operations(np.where(is_done_NK, codes_NK, np.int8(0)), np.where(is_done_NK[..., None], values_NKP, 0.0))


_WITH_ONE_LIMIT_OR_NONE = (
    *_BLENDS,
    Operation.HUE,
    Operation.GRAYSCALE,
    Operation.GAUSSIAN_BLUR,
    Operation.SOLARIZE,
    Operation.EQUALIZE,
    Operation.AUTOCONTRAST,
    Operation.INVERT,
)

_DRAWS: dict[str, Callable[..., Operations]] = {
    "randaugment": _draw_randaugment,
    "trivial_augment": _draw_trivial_augment,
    "color_jitter": _draw_color_jitter,
    "affine": _draw_affine,
    "rgb_shift": _draw_rgb_shift,
    "posterize": _draw_posterize,
    **{one.name.lower(): partial(_draw_one, operation=one) for one in _WITH_ONE_LIMIT_OR_NONE},
}

STEP_NAMES = frozenset(_DRAWS)
