"""Order, plan, executor, policy and tail, joined into the loader that the engine iterates.

Legend of shape letters: N rows of a plan, B samples of this rank's step, S height and width, C channels.

order -> share of the step -> policy (known bad) -> plan -> executor (may run ahead)
      -> policy (found bad) -> transfer -> effects -> tail -> Batch
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.batch import BadSample, Batch, Mix
from pipelines.effects import Effects
from pipelines.execution import Carried, Executor
from pipelines.order import Order, Share, read_position
from pipelines.plan import PLAN_VERSION, Plan, rows_of
from pipelines.policy import Policy
from pipelines.tail import Tail
from pipelines.transfer import Transfer


class Draw(NamedTuple):
    """Everything that is decided about the share of a step, as pure functions.

    plan: (share, epoch, step) -> geometry. effects: (plan, share, epoch, step) -> what the tail does.
    """

    plan: Callable[[Share, int, int], Plan]
    effects: Callable[[Plan, Share, int, int], Effects]


class Part(NamedTuple):
    """Samples of a step of an epoch: all of a share, or some of its rows; where pairs are mixed, whole pairs."""

    epoch: int
    step: int
    share: Share


class Made(NamedTuple):
    """A part, carried out: the batch, and what was decided about it."""

    part: Part
    plan: Plan
    effects: Effects
    batch: Batch


class _Given(NamedTuple):
    """A part whose plan the executor has."""

    part: Part
    plan: Plan
    met: list[BadSample]


class PlannedLoader:
    """A `pipelines.batch.Loader`; its position is (epoch, samples consumed), whoever carries the plan out.

    Args:
        labels_N: int64 (N,), the label of every sample of the split.
        order: Which samples each step takes.
        draw: What is decided about them.
        executor: Carries the plans out.
        policy: What happens to samples that cannot be read.
        repair: Carries one plan out at once, for samples that take the place of such ones.
        transfer: Moves images to the device.
        tail: Makes what the network sees.
        seed: The seed of order and plan, kept in the state.
        fingerprint: What the data is, kept in the state.
        own_pipeline: What the user's own pipeline is, kept in the state; None = there is none.
        max_bad_frac: The part of an epoch's samples that may be bad.
        device: Where labels, ids and masks lie.
    """

    def __init__(
        self,
        labels_N: npt.NDArray[np.int64],
        *,
        order: Order,
        draw: Draw,
        executor: Executor,
        policy: Policy,
        repair: Callable[[Plan], Carried],
        transfer: Transfer,
        tail: Tail,
        seed: int,
        fingerprint: str,
        max_bad_frac: float,
        device: torch.device,
        own_pipeline: str | None = None,
    ) -> None:
        self.num_samples = len(labels_N)
        self._max_bad_frac = max_bad_frac
        self._labels_N = labels_N
        self._executor = executor
        self._policy = policy
        self._repair = repair
        self._transfer = transfer
        self._tail = tail
        self._identity = {"plan_version": PLAN_VERSION, "seed": seed, "fingerprint": fingerprint}
        if own_pipeline is not None:
            self._identity["albumentations"] = own_pipeline
        self._device = device
        self._begin(order, draw)

    def _begin(self, order: Order, draw: Draw) -> None:
        self.steps_per_epoch = order.steps_per_epoch
        self.num_left_out = order.num_left_out
        num_counted = min(self.num_samples, order.steps_per_epoch * order.samples_per_step)
        self.max_num_bad = math.ceil(self._max_bad_frac * num_counted - 1e-9)
        self._order = order
        self._draw = draw
        self._met: list[BadSample] = []
        self._is_open = False
        self._epoch = 0
        self._step = 0

    def in_other_batches(self, *, order: Order, draw: Draw) -> "PlannedLoader":
        """A loader of the same split, at its beginning, whose steps are other ones.

        It shares executor, transfer and memory with this one, so only one of the two may be iterated at a time.
        """
        other = copy.copy(self)
        other._begin(order, draw)
        return other

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the present position to the end of the epoch; one iteration at a time.

        Raises:
            RuntimeError: Another iteration is still open.
            ValueError: A sample cannot be read, and the policy is raise; or nothing can replace it.
        """
        if self._is_open:
            raise RuntimeError("an iteration of this loader is still open; go through it to the end, or close it.")
        self._is_open = True
        try:
            yield from self._batches()
        finally:
            self._is_open = False

    def _batches(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._step
        parts = (
            Part(epoch, step, _without_filling(self._order.share(step, epoch=epoch)))
            for step in range(first, self.steps_per_epoch)
        )
        for made in self.carry_out(parts):
            self._advance()
            yield made.batch

    def carry_out(self, parts: Iterable[Part]) -> Iterator[Made]:
        """Parts of any steps, in any order, made into batches as every other; the position stays where it is.

        Raises:
            ValueError: A sample cannot be read, and the policy is raise; or nothing can replace it.
        """
        given: deque[_Given] = deque()

        def plans() -> Iterator[Plan]:
            for part in parts:
                share, met = self._policy.before(part.share, epoch=part.epoch, step=part.step)
                plan = self._draw.plan(share, part.epoch, part.step)
                given.append(_Given(part._replace(share=share), plan, met))
                yield plan

        for carried in self._executor.run(plans()):
            made = self._make(carried, given.popleft())
            try:
                yield made
            finally:
                self._transfer.wait_for_copy()  # the executor is about to use the memory of `carried` again

    def take_bad_samples(self) -> list[BadSample]:
        """This rank's samples that could not be read, met since the last call."""
        met, self._met = self._met, []
        return met

    def state_dict(self) -> dict[str, Any]:
        """The position: batches handed out count as consumed; a whole epoch is the start of the next."""
        consumed = self._step * self._order.samples_per_step
        return {**self._identity, "epoch": self._epoch, "samples_consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position, at any world size.

        Raises:
            ValueError: The state belongs to other data, another seed, plan version or pipeline of the user's, or lies
                within a global batch.
        """
        self._epoch, self._step = read_position(
            state, identity=self._identity, order=self._order, num_samples=self.num_samples
        )

    def _advance(self) -> None:
        self._step += 1
        if self._step == self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0

    def _make(self, carried: Carried, given: _Given) -> Made:
        images_NHWC = carried.images_NHWC
        if carried.bad:
            given = self._mend(images_NHWC, given, bad=carried.bad)
        epoch, step, share = given.part
        self._met += given.met
        effects, own = self._draw.effects(given.plan, share, epoch, step), share.own
        num_filling = own.stop - own.start - len(share.ids_N[own])
        if num_filling:  # black images, in evaluation alone
            images_NHWC = F.pad(images_NHWC, (0, 0, 0, 0, 0, 0, 0, num_filling))
        on_device = self._transfer.start(images_NHWC)
        views = self._tail(on_device, effects, num_views=given.plan.num_views)
        self._transfer.mark_read()
        labels_B = self._labels_N[share.ids_N]
        mix = None
        if effects.mix is not None:
            partner_labels_B = labels_B.reshape(-1, 2)[:, ::-1].reshape(-1)
            mix = Mix(self._on_device(partner_labels_B[own]), self._on_device(effects.mix.weights_B[own]))
        batch = Batch(
            inputs=tuple(view[own] for view in views),
            labels_N=self._on_device(np.pad(labels_B[own], (0, num_filling), mode="edge")),
            mix=mix,
            ids_N=self._on_device(np.pad(share.ids_N[own], (0, num_filling), mode="edge")),
            valid_N=self._on_device(np.pad(share.valid_N[own], (0, num_filling))),
        )
        return Made(given.part, given.plan, effects, batch)

    def _mend(self, images_NHWC: Tensor, given: _Given, *, bad: Mapping[int, str]) -> _Given:
        """Settles rows that could not be read: writes the images of the samples that replace them."""
        (epoch, step, share), plan, met = given.part, given.plan, list(given.met)
        num_samples = len(share.ids_N)
        bad_samples = {row % num_samples: reason for row, reason in sorted(bad.items())}
        while bad_samples:  # again, should a file vanish that was chosen a moment ago
            share, newly_met = self._policy.after(share, bad_samples, epoch=epoch, step=step)
            met += newly_met
            plan = self._draw.plan(share, epoch, step)
            valid = [row for row in bad_samples if share.valid_N[row]]
            rows = [view * num_samples + row for view in range(plan.num_views) for row in valid]
            mended = self._repair(rows_of(plan, rows))
            images_NHWC[rows] = mended.images_NHWC.to(images_NHWC.device)
            bad_samples = {rows[place] % num_samples: reason for place, reason in mended.bad.items()}
        return _Given(Part(epoch, step, share), plan, met)

    def _on_device(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self._device, non_blocking=True)


def _without_filling(share: Share) -> Share:
    """The share without the rows at its end that only fill up, but for one, so that there is something to compute."""
    num_rows = int(np.flatnonzero(share.valid_N)[-1]) + 1 if share.valid_N.any() else 1
    if num_rows == len(share.ids_N):
        return share
    arrays = {name: value[:num_rows] for name, value in share._asdict().items() if name != "own"}
    return Share(**arrays, own=share.own)
