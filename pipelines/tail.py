"""The last step, on the device: images in bytes -> what the network sees.

uint8 (N, H, W, C) -> operations -> noise -> normalise -> erase, cut out -> mix -> float (N, C, H, W), channels_last

Legend of shape letters: N rows (samples times views), B samples, H height, W width, C channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.effects import Effects, MixPlan
from pipelines.kernels import normalise_rows
from pipelines.operations.vocabulary import Operations
from pipelines.parallel import RowPool

_NOISE_ROWS = 16  # images whose noise is made at once: it takes 8 bytes a value, several times over
_BYTES_PER_OPERATED = 8  # an operation takes about as long as copying so many bytes for each byte
_GOLDEN, _MULTIPLIER_1, _MULTIPLIER_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # counter.py's


class Tail:
    """Makes what the network sees of finished images; they lie on the device already, but for the CPU's kernel.

    Args:
        mean: Mean per channel, 0..1.
        std: Standard deviation per channel, 0..1.
        device: Where the result lies.
        dtype: float32 or float64.
        pool: Threads for the CPU's kernel.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
        pool: RowPool,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._pool = pool
        # (x / 255 - mean) / std = x * scale + offset
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._scale_C = scale.to(device=device, dtype=dtype)
        self._offset_C = offset.to(device=device, dtype=dtype)

    def __call__(self, images_NHWC: Tensor, effects: Effects, *, num_views: int = 1) -> tuple[Tensor, ...]:
        """One float (B, C, H, W) per view, channels_last, on the device; from uint8 (N, H, W, C), 0..255, on it."""
        if effects.operations is not None:
            images_NHWC = self._operate(images_NHWC, effects.operations)
        if effects.noise_keys_N is not None:
            keys_N = self._on_device(effects.noise_keys_N)
            images = self._normalise(add_noise(images_NHWC, keys_N=keys_N, std=effects.noise_std).to(self._dtype))
        elif self._device.type == "cpu" and self._dtype == torch.float32:
            images = self._normalise_by_kernel(images_NHWC)
        else:
            images = self._normalise(images_NHWC.to(self._dtype))
        for boxes_N4 in (effects.erase_N4, effects.cutout_N4):
            if boxes_N4 is not None:
                erased_NHW = box_masks(self._on_device(boxes_N4), size_px=images.shape[1])
                images.masked_fill_(erased_NHW[..., None], 0.0)  # after normalising, 0 is the mean
        views = images.chunk(num_views)
        if effects.mix is not None:
            views = tuple(self._mix(view, effects.mix) for view in views)
        return tuple(view.permute(0, 3, 1, 2) for view in views)

    def _operate(self, images_NHWC: Tensor, operations: Operations) -> Tensor:
        """The operations, on new memory: by kernels on the CPU, by batched torch elsewhere."""
        if self._device.type != "cpu":
            from pipelines.operations.batched import operate_batch

            return operate_batch(images_NHWC, operations)
        from pipelines.operations.kernels import operate_rows  # compiled, or read from disk, where they are needed

        images = images_NHWC.clone(memory_format=torch.contiguous_format)
        values = images.numpy()

        def operate(start: int, stop: int) -> None:
            operate_rows(values[start:stop], operations.rows(slice(start, stop)))

        self._pool.run(operate, num_rows=len(values), bytes_per_row=_BYTES_PER_OPERATED * values[0].size)
        return images

    def _normalise(self, images_NHWC: Tensor) -> Tensor:
        return torch.addcmul(self._offset_C, images_NHWC, self._scale_C)

    def _normalise_by_kernel(self, images_NHWC: Tensor) -> Tensor:
        num_images, height, width, channels = images_NHWC.shape
        values = images_NHWC.contiguous().numpy().reshape(num_images * height, width * channels)
        out = torch.empty(images_NHWC.shape, dtype=torch.float32)
        out_RP = out.numpy().reshape(values.shape)
        scale_P, offset_P = np.tile(self._scale_C.numpy(), width), np.tile(self._offset_C.numpy(), width)

        def normalise(start: int, stop: int) -> None:
            normalise_rows(values[start:stop], scale_P, offset_P, out_RP[start:stop])

        self._pool.run(normalise, num_rows=len(values), bytes_per_row=5 * values.shape[1])
        return out

    def _mix(self, images_BHWC: Tensor, mix: MixPlan) -> Tensor:
        """Each image times its weight plus its partner times the rest; in a CutMix box the partner alone."""
        weights_B111 = self._on_device(np.where(mix.kinds_B == 1, mix.weights_B, 1)).to(images_BHWC.dtype)
        boxes_BHW = box_masks(self._on_device(mix.boxes_B4), size_px=images_BHWC.shape[1])
        weights_BHW1 = torch.where(boxes_BHW, 0.0, weights_B111[:, None, None])[..., None]
        partners_BHWC = images_BHWC.reshape(-1, 2, *images_BHWC.shape[1:]).flip(1).reshape(images_BHWC.shape)
        return images_BHWC * weights_BHW1 + partners_BHWC * (1 - weights_BHW1)

    def _on_device(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def box_masks(boxes_N4: Tensor, *, size_px: int) -> Tensor:
    """Masks, bool (N, size_px, size_px), True within each box (top, left, height, width)."""
    line = torch.arange(size_px, device=boxes_N4.device)
    tops, lefts, heights, widths = (each[:, None] for each in boxes_N4.unbind(1))
    rows_NH = (line >= tops) & (line < tops + heights)
    columns_NW = (line >= lefts) & (line < lefts + widths)
    return rows_NH[:, :, None] & columns_NW[:, None, :]


def add_noise(images_NHWC: Tensor, *, keys_N: Tensor, std: float) -> Tensor:
    """Gaussian noise, clamped to 0..255; what a row gets depends on its key alone, on any device.

    Args:
        images_NHWC: uint8 (N, H, W, C).
        keys_N: int64 (N,), random bits.
        std: Standard deviation on the scale 0 to 1.

    Returns:
        float32 (N, H, W, C), 0..255.
    """
    parts = []
    for start in range(0, len(keys_N), _NOISE_ROWS):
        images, keys = images_NHWC[start : start + _NOISE_ROWS], keys_N[start : start + _NOISE_ROWS]
        noise = _standard_normal(keys, num_values=images[0].numel()).view(images.shape)
        parts.append(noise.mul_(255 * std).add_(images).clamp_(0, 255))
    return torch.cat(parts)


def _standard_normal(keys_N: Tensor, *, num_values: int) -> Tensor:
    """float32 (N, num_values), by Box and Muller's transform of SplitMix64's bits."""
    num_pairs = -(-num_values // 2)
    counters = torch.arange(1, num_pairs + 1, device=keys_N.device) * _GOLDEN
    bits = keys_N[:, None] + counters
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIER_2
    bits = bits ^ _shift_right(bits, 31)
    radius = (_shift_right(bits, 40).float() + 1).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :num_values]


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """A logical shift; torch's own drags the sign along."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
