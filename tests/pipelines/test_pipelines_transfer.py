"""From the host to the device: untouched on the CPU; on a GPU, on a stream of its own through a ring of buffers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipelines.transfer import Transfer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def images_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_on_the_cpu_images_pass_as_they_are_and_nothing_is_waited_for() -> None:
    transfer = Transfer(torch.device("cpu"))
    for seed in range(3):
        images = images_of(seed, 4, 5, 5, 3)
        assert transfer.start(images) is images
        transfer.mark_read()
        transfer.wait_for_copy()


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    yield torch.device("cuda", 0)
    torch.cuda.synchronize()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("pin_memory", [False, True])
def test_a_blocking_copy_is_whole_when_it_returns(cuda: torch.device, pin_memory: bool) -> None:
    transfer = Transfer(cuda, non_blocking=False)
    for seed in range(3):
        images = images_of(seed, 64, 32, 32, 3)
        host = images.pin_memory() if pin_memory else images.clone()
        copied = transfer.start(host)
        host.zero_()  # at once: whatever had not been copied yet would be lost
        transfer.mark_read()
        transfer.wait_for_copy()
        assert torch.equal(copied.cpu(), images)


@pytest.mark.gpu
@needs_cuda
def test_images_on_the_gpu_already_pass_as_they_are(cuda: torch.device) -> None:
    images = images_of(0, 4, 5, 5, 3).to(cuda)
    assert Transfer(cuda).start(images) is images


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("pinned", [True, False])
def test_images_arrive_unchanged_in_two_buffers_that_are_used_in_turn(cuda: torch.device, pinned: bool) -> None:
    transfer = Transfer(cuda)
    addresses = []
    for seed in range(6):
        images = images_of(seed, 8, 9, 9, 3)
        made = transfer.start(images.pin_memory() if pinned else images)
        addresses.append(made.data_ptr())
        assert made.device == cuda
        assert torch.equal(made.cpu(), images)
        transfer.mark_read()
        transfer.wait_for_copy()
    assert addresses == addresses[:2] * 3
    assert len(set(addresses)) == 2


@pytest.mark.gpu
@needs_cuda
def test_a_buffer_is_not_written_before_the_work_on_it_is_done(cuda: torch.device) -> None:
    transfer = Transfer(cuda)
    host = images_of(0, 64, 128, 128, 3).pin_memory()
    sums, wanted = [], []
    for seed in range(12):
        host.copy_(images_of(seed, 64, 128, 128, 3))
        wanted.append(int(host.long().sum()))
        images = transfer.start(host)
        torch.cuda._sleep(20_000_000)  # the network is busy: reading comes about 10 ms later
        sums.append(images.long().sum())
        transfer.mark_read()
        transfer.wait_for_copy()  # the host's memory is free, long before that
    assert torch.stack(sums).tolist() == wanted


@pytest.mark.gpu
@needs_cuda
def test_larger_images_get_larger_buffers_and_smaller_ones_a_part(cuda: torch.device) -> None:
    transfer = Transfer(cuda)
    for seed, size in enumerate((8, 16, 8, 32, 32, 8)):
        images = images_of(seed, 4, size, size, 3).pin_memory()
        made = transfer.start(images)
        assert torch.equal(made.cpu(), images)
        transfer.mark_read()
        transfer.wait_for_copy()
