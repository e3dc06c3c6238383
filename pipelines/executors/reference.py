"""The plain executor: a torch DataLoader and torchvision; the oracle that the others are tested against.

plans -> worker: read, decode, crop the window, resize, shift, flip, operate -> uint8 (N, S, S, C)
"""

from collections.abc import Iterable, Iterator
from functools import partial

from pipelines.execution import Carried, Operate
from pipelines.geometry import carry_out_plan
from pipelines.plan import Plan
from pipelines.source import Source
from pipelines.workers import PlanWorkers


class ReferenceExecutor:
    """Carries plans out in worker processes; one task is one batch.

    Args:
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        num_workers: Worker processes; 0 = in this one.
        pin_memory: Whether images lie in pinned memory.
        persistent: Whether workers live on from epoch to epoch; else each epoch starts its own.
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
        persistent: bool = True,
        operate: Operate | None = None,
    ) -> None:
        carry_out = partial(
            carry_out_plan, source=source, channels=channels, interpolation=interpolation, operate=operate
        )
        self._workers = PlanWorkers(
            carry_out, num_workers=num_workers, num_prefetched=None, pin_memory=pin_memory, persistent=persistent
        )

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the CPU.

        Raises:
            ValueError: One cannot be carried out, by whatever worker; the message is that of the cause alone.
        """
        return self._workers.run(plans)
