"""The tail, against its formula in float64."""

import numpy as np
import pytest
import torch

from pipelines.tail import Tail

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_every_byte_becomes_value_over_255_minus_mean_over_std(
    dtype: torch.dtype, tolerance: float, channels: int
) -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3 * 2).reshape(2, 32, 8, 3)[..., :channels].copy()
    tail = Tail(mean=MEAN[:channels], std=STD[:channels], device=CPU, dtype=dtype)
    wanted = (images / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])
    made = tail(torch.from_numpy(images))
    assert made.dtype == dtype
    assert made.shape == (2, channels, 32, 8)
    assert np.abs(made.numpy().transpose(0, 2, 3, 1) - wanted).max() <= tolerance


def test_the_result_lies_channels_last_in_memory() -> None:
    tail = Tail(mean=MEAN, std=STD, device=CPU, dtype=torch.float32)
    made = tail(torch.zeros(4, 6, 5, 3, dtype=torch.uint8))
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert not made.is_contiguous()
    assert made.stride() == (6 * 5 * 3, 1, 5 * 3, 3)


def test_a_batch_gives_each_image_what_it_would_get_alone() -> None:
    tail = Tail(mean=MEAN, std=STD, device=CPU, dtype=torch.float32)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 7, 7, 3), dtype=np.uint8))
    alone = torch.cat([tail(images[index : index + 1]) for index in range(5)])
    assert torch.equal(tail(images), alone)
