"""The work of `threads` done by worker processes: for code that holds the GIL, such as transforms written in Python.

plans -> worker: read, decode, resize, shift, flip, operate (pipelines/chunks.py) -> shared memory -> uint8 (N, S, S, C)
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import torch

from pipelines.chunks import ChunkWork
from pipelines.execution import Carried, Operate
from pipelines.plan import Plan
from pipelines.source import Source
from pipelines.workers import PlanWorkers


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
        decode: See `pipelines.chunks.ChunkWork`.
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
        decode: Literal["exact", "scaled"] = "exact",
    ) -> None:
        work = ChunkWork(source, channels=channels, interpolation=interpolation, operate=operate, decode=decode)
        self._workers = PlanWorkers(
            partial(_carry_out, work=work, channels=channels),
            num_workers=num_workers,
            num_prefetched=num_prefetched,
            pin_memory=pin_memory,
        )

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the CPU.

        Raises:
            ValueError: One cannot be carried out, by whatever worker; the message is that of the cause alone.
        """
        return self._workers.run(plans)


def _carry_out(plan: Plan, *, work: ChunkWork, channels: int) -> Carried:
    images = torch.empty(len(plan.ids_N), plan.size_px, plan.size_px, channels, dtype=torch.uint8)
    bad = work.carry_out(plan, range(len(plan.ids_N) // plan.num_views), images)
    return Carried(images, bad)
