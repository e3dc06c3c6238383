"""The plain executor: a torch DataLoader and torchvision; the oracle that the others are tested against.

plans -> worker: read, decode, crop the window, resize, shift, flip, operate -> uint8 (N, S, S, C)
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.execution import Carried, Failure, Operate, given_or_raised
from pipelines.geometry import carry_out_plan
from pipelines.plan import Plan
from pipelines.source import Source


class ReferenceExecutor:
    """Carries plans out in worker processes; one task is one batch.

    Args:
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        num_workers: Worker processes; 0 = in this one.
        pin_memory: Whether images lie in pinned memory.
        operate: Does the plan's operations; None leaves them to others.
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int,
        interpolation: str,
        num_workers: int,
        pin_memory: bool,
        operate: Operate | None = None,
    ) -> None:
        self._sampler = _Forward()
        self._batches = DataLoader(
            _PlannedImages(source, channels=channels, interpolation=interpolation, operate=operate),
            batch_size=None,  # a plan is already a whole batch
            sampler=self._sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            collate_fn=_identity,
            generator=torch.Generator(),  # else each epoch draws from torch's global generator
        )

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the CPU.

        Raises:
            ValueError: One cannot be carried out, by whatever worker; the message is that of the cause alone.
        """
        self._sampler.plans = iter(plans)
        try:
            yield from map(given_or_raised, self._batches)
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


class _PlannedImages(Dataset[Carried | Failure]):
    def __init__(self, source: Source, *, channels: int, interpolation: str, operate: Operate | None) -> None:
        self._operate = operate
        self._source = source
        self._channels = channels
        self._interpolation = interpolation

    def __getitem__(self, plan: Plan) -> Carried | Failure:
        return Failure.of(lambda: self._carry_out(plan))

    def _carry_out(self, plan: Plan) -> Carried:
        return carry_out_plan(
            plan,
            source=self._source,
            channels=self._channels,
            interpolation=self._interpolation,
            operate=self._operate,
        )


def _identity(images: Any) -> Any:
    return images
