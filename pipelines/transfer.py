"""Images from the host to the device: on a stream of their own, into buffers that are never given away.

host memory -> side stream -> ring of device buffers -> (event) -> the device's tail -> (event) -> buffer free again

A tensor that is freed while another stream still works on it is overwritten without a word, so the ring keeps its
buffers, and each waits for both sides before it is used again.
"""

import torch
from torch import Tensor

_NUM_BUFFERS = 2  # one that is copied into while the tail reads the other


class Transfer:
    """Copies one batch after the other. Images that are on the device already pass as they are.

    Args:
        device: Where they go.
        non_blocking: Whether the host goes on while a GPU copies; else each copy is waited for, without a ring.
    """

    def __init__(self, device: torch.device, *, non_blocking: bool = True) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda" and non_blocking
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8, device=device) for _ in range(_NUM_BUFFERS)]
        self._read = [self._event() for _ in range(_NUM_BUFFERS)]
        self._copied = self._event()
        self._turn = 0

    def start(self, images_NHWC: Tensor) -> Tensor:
        """The images on the device, uint8 (N, H, W, C), for work on the current stream, until `start` is called twice.

        Pinned host memory is copied while the device computes.
        """
        if images_NHWC.device.type == self._device.type:
            return images_NHWC
        if self._stream is None or self._copied is None:
            return images_NHWC.to(self._device)
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        target = self._room(images_NHWC.numel()).view(images_NHWC.shape)
        read = self._read[self._turn]
        assert read is not None, "a CUDA device has events"
        self._stream.wait_event(read)
        with torch.cuda.stream(self._stream):
            target.copy_(images_NHWC, non_blocking=True)
            self._copied.record(self._stream)
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        return target

    def mark_read(self) -> None:
        """Says that all work on the images of the last `start` has been given to the current stream."""
        read = self._read[self._turn]
        if read is not None:
            read.record(torch.cuda.current_stream(self._device))

    def wait_for_copy(self) -> None:
        """Returns once the host memory of the last `start` may be written again."""
        if self._copied is not None:
            self._copied.synchronize()

    def _event(self) -> torch.cuda.Event | None:
        return torch.cuda.Event() if self._is_cuda else None  # type: ignore[no-untyped-call]

    def _room(self, num_bytes: int) -> Tensor:
        buffer = self._buffers[self._turn]
        if buffer.numel() < num_bytes:
            torch.cuda.synchronize(self._device)  # once per larger size: nobody may be using the old one
            buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
            self._buffers[self._turn] = buffer
        return buffer[:num_bytes]
