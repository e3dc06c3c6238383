"""Features that were computed once, in batches of the same samples in which the images would come.

order -> share of the step -> policy (what could not be read) -> rows of the features -> Batch

Legend of shape letters: N samples of the split, M of them with features, D width, B samples of this rank's step.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.batch import BadSample, Batch, Features
from pipelines.order import Order, Share, read_position
from pipelines.plan import PLAN_VERSION
from pipelines.policy import Policy


class CachedLoader:
    """A `pipelines.batch.Loader` of features; its position is (epoch, samples consumed), as that of images is.

    Args:
        features: Of the split, in the order of the ids; what could not be read is missing. `features_ND` may lie on the
            device, or on the CPU, from which each batch is then copied.
        labels_N: int64 (N,), the label of every sample of the split.
        order: Which samples each step takes.
        policy: What happens to samples that are missing; it knows them all.
        seed: The seed of the order, kept in the state.
        fingerprint: What the data is, kept in the state.
        max_bad_frac: The part of an epoch's samples that may be missing.
        device: Where batches lie.
        dtype: Of their features.
    """

    def __init__(
        self,
        features: Features,
        labels_N: npt.NDArray[np.int64],
        *,
        order: Order,
        policy: Policy,
        seed: int,
        fingerprint: str,
        max_bad_frac: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.num_samples = len(labels_N)
        self.steps_per_epoch = order.steps_per_epoch
        self.num_left_out = order.num_left_out
        num_counted = min(self.num_samples, order.steps_per_epoch * order.samples_per_step)
        self.max_num_bad = math.ceil(max_bad_frac * num_counted - 1e-9)
        self._features_MD = features.features_ND
        self._rows_N = np.full(self.num_samples, -1, dtype=np.int64)
        self._rows_N[features.ids_N.numpy()] = np.arange(len(features.ids_N))
        self._labels_N = labels_N
        self._order = order
        self._policy = policy
        self._identity = {"plan_version": PLAN_VERSION, "seed": seed, "fingerprint": fingerprint}
        self._device, self._dtype = device, dtype
        self._met: list[BadSample] = []
        self._epoch = 0
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the present position to the end of the epoch.

        Raises:
            ValueError: A sample is missing, and the policy is raise; or nothing can replace it.
        """
        epoch, first = self._epoch, self._step
        for step in range(first, self.steps_per_epoch):
            share, met = self._policy.before(self._order.share(step, epoch=epoch), epoch=epoch, step=step)
            self._met += met
            batch = self._make(share)
            self._advance()
            yield batch

    def take_bad_samples(self) -> list[BadSample]:
        """This rank's samples that were missing, met since the last call."""
        met, self._met = self._met, []
        return met

    def state_dict(self) -> dict[str, Any]:
        """The position: batches handed out count as consumed; a whole epoch is the start of the next."""
        consumed = self._step * self._order.samples_per_step
        return {**self._identity, "epoch": self._epoch, "samples_consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position, at any world size.

        Raises:
            ValueError: The state belongs to other data, another seed or plan version, or lies within a global batch.
        """
        self._epoch, self._step = read_position(
            state, identity=self._identity, order=self._order, num_samples=self.num_samples
        )

    def _advance(self) -> None:
        self._step += 1
        if self._step == self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0

    def _make(self, share: Share) -> Batch:
        ids_B = share.ids_N[share.own]
        rows_B = torch.from_numpy(self._rows_N[ids_B]).to(self._features_MD.device)
        features_BD = self._features_MD.index_select(0, rows_B).to(self._device, self._dtype)
        return Batch(
            inputs=(features_BD,),
            labels_N=torch.from_numpy(self._labels_N[ids_B]).to(self._device),
            mix=None,
            ids_N=torch.from_numpy(np.array(ids_B)).to(self._device),
            valid_N=torch.from_numpy(np.array(share.valid_N[share.own])).to(self._device),
        )
