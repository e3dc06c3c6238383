"""What the tail will do to finished images, decided beforehand like the plan: noise, erase, cut out, mix.

(seed, epoch, ids, positions in the epoch) -> Effects -> pipelines/tail.py carries them out

Legend of shape letters: N rows (samples times views, as in the plan), B samples; 4 = top, left, height, width.

Mixing pairs positions 2k and 2k+1 of the epoch, and its weight and box belong to the pair: so neither the number of
ranks nor the size of a batch changes them.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from pipelines.counter import Stream, random_bits, random_uniform
from pipelines.operations.vocabulary import Operations
from pipelines.plan import Plan, draw_keys

_NUM_ERASE_TRIES = 10  # as torchvision's RandomErasing


class Mixing(NamedTuple):
    """How pairs are mixed.

    mixup_alpha: mixup with a weight from Beta(alpha, alpha); 0 = never (Zhang et al., "mixup", ICLR 2018).
    cutmix_alpha: a box of the partner of about that part of the area; 0 = never (Yun et al., "CutMix", ICCV 2019).
    prob: the part of pairs that are mixed at all. switch_prob: of these, where both are on, the part of CutMix.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5


class Erasing(NamedTuple):
    """Random erasing, as torchvision draws it: with `prob`, a box of `scale` of the area and `ratio` height / width."""

    prob: float = 0.0
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)


class MixPlan(NamedTuple):
    """weights_B: float32 (B,), of the sample itself, 1 = not mixed. boxes_B4: int64 (B, 4), taken from the partner.

    kinds_B: int8 (B,), 0 not mixed, 1 mixup, 2 CutMix. The partner of row b is row b ^ 1.
    """

    kinds_B: npt.NDArray[np.int8]
    weights_B: npt.NDArray[np.float32]
    boxes_B4: npt.NDArray[np.int64]


class Effects(NamedTuple):
    """What the tail does; None = not at all.

    erase_N4, cutout_N4: int64 (N, 4), height 0 = nothing. noise_keys_N: int64 (N,). operations: what the executor has
    left to the tail.
    """

    erase_N4: npt.NDArray[np.int64] | None = None
    noise_keys_N: npt.NDArray[np.int64] | None = None
    noise_std: float = 0.0
    mix: MixPlan | None = None
    cutout_N4: npt.NDArray[np.int64] | None = None
    operations: Operations | None = None


class EffectSettings(NamedTuple):
    """Which effects are drawn.

    noise_std: standard deviation of Gaussian noise on the scale 0 to 1. cutout_px: side of the square, 0 = none.
    """

    mixing: Mixing = Mixing()
    erasing: Erasing = Erasing()
    noise_std: float = 0.0
    cutout_px: int = 0

    @property
    def mixes(self) -> bool:
        """Whether any pair is mixed."""
        return self.mixing.prob > 0 and (self.mixing.mixup_alpha > 0 or self.mixing.cutmix_alpha > 0)


def draw_effects(
    plan: Plan,
    *,
    copies_B: npt.NDArray[np.int64],
    positions_B: npt.NDArray[np.int64],
    settings: EffectSettings,
    seed: int,
    epoch: int,
) -> Effects:
    """The effects on the images of a plan.

    Args:
        plan: Its ids, views and size are read.
        copies_B: int64 (B,), how often each sample has been met before in this epoch.
        positions_B: int64 (B,), places in the epoch; where pairs are mixed, whole pairs.
        settings: What is drawn.
        seed: The run's.
        epoch: The epoch.
    """
    copies_N = np.concatenate([copies_B * plan.num_views + view for view in range(plan.num_views)])
    keys_N = draw_keys(epoch, copies_N)
    erase_N4 = noise_keys_N = mix = cutout_N4 = None
    if settings.erasing.prob > 0:
        erase_N4 = _draw_boxes(plan.ids_N, keys_N, erasing=settings.erasing, seed=seed, size_px=plan.size_px)
    if settings.noise_std > 0:
        noise_keys_N = random_bits(seed, Stream.NOISE, keys_N, plan.ids_N).view(np.int64)
    if settings.mixes:
        mix = draw_mix(positions_B, mixing=settings.mixing, seed=seed, epoch=epoch, size_px=plan.size_px)
    if settings.cutout_px > 0:
        draws = random_uniform(seed, Stream.CUTOUT, keys_N[:, None], plan.ids_N[:, None], np.arange(2))
        cutout_N4 = _squares(draws, side_px=settings.cutout_px, size_px=plan.size_px)
    return Effects(
        erase_N4=erase_N4, noise_keys_N=noise_keys_N, noise_std=settings.noise_std, mix=mix, cutout_N4=cutout_N4
    )


def draw_mix(positions_B: npt.NDArray[np.int64], *, mixing: Mixing, seed: int, epoch: int, size_px: int) -> MixPlan:
    """How each position is mixed with the other one of its pair."""
    draws = random_uniform(seed, Stream.MIX, epoch, (positions_B // 2)[:, None], np.arange(5))
    is_mixed = draws[:, 0] < mixing.prob
    is_cutmix = is_mixed & _takes_cutmix(draws[:, 1], mixing=mixing)
    weights_B = np.where(is_mixed & ~is_cutmix, _beta(draws[:, 2], mixing.mixup_alpha), 1.0)
    boxes_B4 = np.zeros((len(positions_B), 4), dtype=np.int64)
    if is_cutmix.any():
        boxes_B4[is_cutmix] = _cutmix_boxes(draws[is_cutmix], alpha=mixing.cutmix_alpha, size_px=size_px)
        areas_B = boxes_B4[:, 2] * boxes_B4[:, 3]
        weights_B = np.where(is_cutmix, 1.0 - areas_B / size_px**2, weights_B)
    kinds_B = np.where(is_cutmix, 2, np.where(is_mixed, 1, 0)).astype(np.int8)
    return MixPlan(kinds_B=kinds_B, weights_B=weights_B.astype(np.float32), boxes_B4=boxes_B4)


def _takes_cutmix(draws: npt.NDArray[np.float64], *, mixing: Mixing) -> npt.NDArray[np.bool_]:
    if mixing.mixup_alpha > 0 and mixing.cutmix_alpha > 0:
        switched: npt.NDArray[np.bool_] = draws < mixing.switch_prob
        return switched
    return np.full(len(draws), mixing.cutmix_alpha > 0)


def _beta(draws: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """Beta(alpha, alpha) by inversion, so that one uniform number makes one weight."""
    return np.ones_like(draws) if alpha == 0 else np.asarray(betaincinv(alpha, alpha, draws), dtype=np.float64)


def _cutmix_boxes(draws: npt.NDArray[np.float64], *, alpha: float, size_px: int) -> npt.NDArray[np.int64]:
    """Boxes as torchvision's CutMix: sides sqrt(1 - weight) of the image, centre anywhere, cut off at the borders."""
    halves = np.floor(0.5 * np.sqrt(1 - _beta(draws[:, 2], alpha)) * size_px).astype(np.int64)[:, None]
    centres = np.floor(draws[:, 3:5] * size_px).astype(np.int64)
    starts, stops = np.maximum(centres - halves, 0), np.minimum(centres + halves, size_px)
    return np.concatenate([starts, stops - starts], axis=1)


def _squares(draws: npt.NDArray[np.float64], *, side_px: int, size_px: int) -> npt.NDArray[np.int64]:
    """Squares with a centre in any pixel, cut off at the borders, as cutout's authors have them."""
    starts = np.floor(draws * size_px).astype(np.int64) - side_px // 2
    stops = np.minimum(starts + side_px, size_px)
    starts = np.maximum(starts, 0)
    return np.concatenate([starts, stops - starts], axis=1)


def _draw_boxes(
    ids_N: npt.NDArray[np.int64], keys_N: npt.NDArray[np.int64], *, erasing: Erasing, seed: int, size_px: int
) -> npt.NDArray[np.int64]:
    """Boxes to erase as torchvision draws them: ten tries, the first that fits, else none."""
    tries = np.arange(_NUM_ERASE_TRIES)[None, :, None]
    draws = random_uniform(seed, Stream.ERASE, keys_N[:, None, None], ids_N[:, None, None], tries, np.arange(5))
    (low, high), (log_low, log_high) = erasing.scale, np.log(erasing.ratio)
    areas = size_px**2 * (low + (high - low) * draws[..., 0])
    ratios = np.exp(log_low + (log_high - log_low) * draws[..., 1])
    heights = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    widths = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (heights < size_px) & (widths < size_px)
    tops = np.floor(draws[..., 2] * (size_px - heights + 1)).astype(np.int64)
    lefts = np.floor(draws[..., 3] * (size_px - widths + 1)).astype(np.int64)
    boxes = np.stack([tops, lefts, heights, widths], axis=2)[np.arange(len(ids_N)), fits.argmax(axis=1)]
    is_erased = fits.any(axis=1) & (draws[:, 0, 4] < erasing.prob)
    return np.where(is_erased[:, None], boxes, 0)
