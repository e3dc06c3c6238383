"""Order, plan, executor and tail, joined into the loader that the engine iterates.

Legend of shape letters: N samples, S height and width, C channels.

order -> share of the step -> plan -> executor (may run ahead) -> tail -> Batch
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.batch import Batch
from pipelines.order import Order, Share
from pipelines.plan import PLAN_VERSION, Plan
from pipelines.tail import Tail


class Executor(Protocol):
    """Carries plans out, in their order, as far ahead as it likes."""

    def run(self, plans: Iterable[Plan]) -> Iterator[Tensor]:
        """The images of each plan, uint8 (N, S, S, C)."""
        ...


class PlannedLoader:
    """A `pipelines.batch.Loader`; its position is (epoch, samples consumed), whoever carries the plan out.

    Args:
        labels_N: int64 (N,), the label of every sample.
        order: Which samples each step takes.
        draw_plan: (ids, epoch) -> their plan.
        executor: Carries the plan out.
        tail: Moves to the device and normalises.
        seed: The seed of order and plan, kept in the state.
        fingerprint: What the data is, kept in the state.
        device: Where labels, ids and masks lie.
    """

    def __init__(
        self,
        labels_N: npt.NDArray[np.int64],
        *,
        order: Order,
        draw_plan: Callable[[npt.NDArray[np.int64], int], Plan],
        executor: Executor,
        tail: Tail,
        seed: int,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.num_samples = len(labels_N)
        self.steps_per_epoch = order.steps_per_epoch
        self.num_left_out = order.num_left_out
        self._labels_N = labels_N
        self._order = order
        self._draw_plan = draw_plan
        self._executor = executor
        self._tail = tail
        self._identity = {"plan_version": PLAN_VERSION, "seed": seed, "fingerprint": fingerprint}
        self._device = device
        self._epoch = 0
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the present position to the end of the epoch."""
        epoch, first = self._epoch, self._step
        shares: deque[Share] = deque()

        def plans() -> Iterator[Plan]:
            for step in range(first, self.steps_per_epoch):
                shares.append(self._order.share(step, epoch=epoch))
                yield self._draw_plan(shares[-1].ids_N, epoch)

        for images in self._executor.run(plans()):
            batch = self._batch(images, share=shares.popleft())
            self._advance()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position: batches handed out count as consumed; a whole epoch is the start of the next."""
        consumed = self._step * self._order.samples_per_step
        return {**self._identity, "epoch": self._epoch, "samples_consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position, at any world size.

        Raises:
            ValueError: The state belongs to other data, another seed, plan version or global batch.
        """
        reasons = {
            "fingerprint": "the data has changed (class names, file names, labels or image sizes)",
            "seed": "run.seed has changed",
            "plan_version": "this version of the program draws samples and crops differently",
        }
        for key, reason in reasons.items():
            if state[key] != self._identity[key]:
                raise ValueError(
                    f"cannot continue from this loader state: {reason}: {key} was {state[key]}, is "
                    f"{self._identity[key]}; restore it, or start a new run with another --run.out."
                )
        step, rest = divmod(state["samples_consumed"], self._order.samples_per_step)
        if rest or step >= self.steps_per_epoch:
            raise ValueError(
                f"cannot continue from this loader state: {state['samples_consumed']} samples consumed do not fit "
                f"global batches of {self._order.samples_per_step} in an epoch of {self.num_samples}."
            )
        self._epoch, self._step = state["epoch"], step

    def _advance(self) -> None:
        self._step += 1
        if self._step == self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0

    def _batch(self, images: Tensor, *, share: Share) -> Batch:
        def to_device(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.array(array)).to(self._device, non_blocking=True)

        return Batch(
            inputs=(self._tail(images),),
            labels_N=to_device(self._labels_N[share.ids_N]),
            mix=None,
            ids_N=to_device(share.ids_N),
            valid_N=to_device(share.valid_N),
        )
