"""The work of `threads` done by worker processes: for code that holds the GIL, such as transforms written in Python.

plans -> worker: read, decode, resize, shift, flip, operate (pipelines/chunks.py) -> shared memory -> uint8 (N, S, S, C)
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.chunks import ChunkWork
from pipelines.execution import Carried, Failure, Operate, given_or_raised
from pipelines.plan import Plan
from pipelines.source import Source


class ProcessesExecutor:
    """Carries plans out in worker processes, some batches ahead; one task is one batch.

    Args:
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        num_workers: Worker processes; 0 = in this one.
        num_prefetched: Batches that each of them works on ahead of the one handed out.
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
        num_prefetched: int,
        pin_memory: bool,
        operate: Operate | None = None,
    ) -> None:
        work = ChunkWork(source, channels=channels, interpolation=interpolation, operate=operate)
        self._sampler = _Forward()
        self._batches = DataLoader(
            _WorkedImages(work, channels=channels),
            batch_size=None,  # a plan is already a whole batch
            sampler=self._sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=num_prefetched if num_workers > 0 else None,
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

    As in `reference`, it knows neither the plans of a run that is over nor the executor: objects that lead back to each
    other would keep the workers until the garbage collector takes their pipes away (10 s; torch 2.14.1).
    """

    def __init__(self) -> None:
        self.plans: Iterator[Plan] = iter(())

    def __iter__(self) -> Iterator[Plan]:
        while (plan := next(self.plans, None)) is not None:
            yield plan


class _WorkedImages(Dataset[Carried | Failure]):
    def __init__(self, work: ChunkWork, *, channels: int) -> None:
        self._work = work
        self._channels = channels

    def __getitem__(self, plan: Plan) -> Carried | Failure:
        return Failure.of(lambda: self._carry_out(plan))

    def _carry_out(self, plan: Plan) -> Carried:
        images = torch.empty(len(plan.ids_N), plan.size_px, plan.size_px, self._channels, dtype=torch.uint8)
        bad = self._work.carry_out(plan, range(len(plan.ids_N) // plan.num_views), images)
        return Carried(images, bad)


def _identity(images: Any) -> Any:
    return images
