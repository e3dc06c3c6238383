"""The plain executor: a torch DataLoader, Pillow and torchvision; the oracle that the others are tested against.

plans -> worker: read, decode, crop the window, resize, shift, flip -> uint8 (N, S, S, C)
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.geometry import carry_out
from pipelines.plan import Plan
from pipelines.source import Source


class ReferenceExecutor:
    """Carries plans out in worker processes; one task is one batch."""

    def __init__(
        self, source: Source, *, size_px: int, channels: int, interpolation: str, num_workers: int, pin_memory: bool
    ) -> None:
        self._sampler = _Forward()
        self._batches = DataLoader(
            _PlannedImages(source, size_px=size_px, channels=channels, interpolation=interpolation),
            batch_size=None,  # a plan is already a whole batch
            sampler=self._sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            collate_fn=_identity,
            generator=torch.Generator(),  # else each epoch draws from torch's global generator
        )

    def run(self, plans: Iterable[Plan]) -> Iterator[Tensor]:
        """The images of each plan in turn, uint8 (N, S, S, C) on the CPU.

        Raises:
            ValueError: An image cannot be read; the message names it.
        """
        self._sampler.plans = iter(plans)
        try:
            for result in self._batches:
                if isinstance(result, str):
                    raise ValueError(result)
                yield result
        finally:
            self._sampler.plans = iter(())


class _Forward:
    """The sampler: hands on the plans of the present run, so that workers can persist between runs.

    It knows the plans only while they run, and not the executor: objects that lead back to each other are left to the
    garbage collector, which takes the workers' pipes from them before it tells them to stop (10 s, "Bad file
    descriptor"; torch 2.14.1).
    """

    def __init__(self) -> None:
        self.plans: Iterator[Plan] = iter(())

    def __iter__(self) -> Iterator[Plan]:
        while (plan := next(self.plans, None)) is not None:
            yield plan


class _PlannedImages(Dataset[Tensor | str]):
    def __init__(self, source: Source, *, size_px: int, channels: int, interpolation: str) -> None:
        self._source = source
        self._size_px = size_px
        self._channels = channels
        self._interpolation = interpolation

    def __getitem__(self, plan: Plan) -> Tensor | str:  # an error travels as text: the DataLoader would wrap it
        try:
            images = [self._image(plan, row) for row in range(len(plan.ids_N))]
        except ValueError as error:
            return str(error)
        return torch.stack(images)

    def _image(self, plan: Plan, row: int) -> Tensor:
        pixels = self._source.read_image(int(plan.ids_N[row]), channels=self._channels)
        return carry_out(pixels, plan=plan, row=row, size_px=self._size_px, interpolation=self._interpolation)


def _identity(images: Any) -> Any:
    return images
