"""The last step, on the device: uint8 (N, H, W, C) -> normalised float (N, C, H, W), channels_last."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Tail:
    """Moves images to the device and normalises them.

    Args:
        mean: Mean per channel, 0..1.
        std: Standard deviation per channel, 0..1.
        device: Where the result lies.
        dtype: float32 or float64.
    """

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._device = device
        self._dtype = dtype
        # (x / 255 - mean) / std = x * scale + offset
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._scale_C = scale.to(device=device, dtype=dtype)
        self._offset_C = offset.to(device=device, dtype=dtype)

    def __call__(self, images_NHWC: Tensor) -> Tensor:
        """Float (N, C, H, W), channels_last, on the device; from uint8 (N, H, W, C), 0..255, anywhere."""
        images = images_NHWC.to(self._device, non_blocking=True).to(self._dtype)
        return torch.addcmul(self._offset_C, images, self._scale_C).permute(0, 3, 1, 2)
