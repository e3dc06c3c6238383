"""The door of this room: what a loader hands to the engine.

Legend of shape letters: N samples in the batch of this rank, C channels, H height, W width, D width of features.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Mix(NamedTuple):
    """How each sample was mixed with its partner: `weight` of the sample, `1 - weight` of the partner.

    partner_labels_N: int64 (N,), on the device.
    weight_N: float32 (N,), 0..1, on the device.
    """

    partner_labels_N: Tensor
    weight_N: Tensor


class Batch(NamedTuple):
    """One rank's share of a global batch, on the device.

    inputs: one tensor per view, normalised float (N, C, H, W), channels_last; or features, float (N, D).
    labels_N: int64 (N,), 0..num_classes-1.
    mix: None, or what mixup and CutMix did.
    ids_N: int64 (N,), the sample ids.
    valid_N: bool (N,); False on rows that only fill up the last batches of an evaluation, and must not be counted.
    """

    inputs: tuple[Tensor, ...]
    labels_N: Tensor
    mix: Mix | None
    ids_N: Tensor
    valid_N: Tensor


class Features(NamedTuple):
    """What a network makes of the samples of a split before its last layer: computed by the engine, batched here.

    N: the samples that could be read, in the order of their ids, each once.
    features_ND: float32 (N, D), of a run in fp64 float64.
    labels_N: int64 (N,), 0..num_classes-1, on the CPU.
    ids_N: int64 (N,), the sample ids, rising, on the CPU.
    """

    features_ND: Tensor
    labels_N: Tensor
    ids_N: Tensor


class BadSample(NamedTuple):
    """A sample that could not be read.

    split: train, val or test. epoch, step: where it was met. sample_id: its id. name: the path of its file. reason:
    why. replaced_by, replaced_by_name: the sample that took its place; None where it was left out.
    """

    split: str
    epoch: int
    step: int
    sample_id: int
    name: str
    reason: str
    replaced_by: int | None
    replaced_by_name: str | None


class Loader(Protocol):
    """Batches of one split. Iterating goes from the present position to the end of the epoch.

    num_samples: samples in the split.
    steps_per_epoch: batches per epoch, the same on every rank.
    num_left_out: samples that an epoch leaves out because they do not fill a global batch.
    max_num_bad: how many samples that cannot be read an epoch may meet, over all ranks, before the run has to stop.
    """

    num_samples: int
    steps_per_epoch: int
    num_left_out: int
    max_num_bad: int

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the present position to the end of the epoch."""
        ...

    def take_bad_samples(self) -> list[BadSample]:
        """This rank's samples that could not be read, met since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values: the batches handed out so far count as consumed."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position, at any world size.

        Raises:
            ValueError: The state belongs to other data, another seed or another version of the plan.
        """
        ...


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """The batch cut into `num_parts` consecutive micro-batches of equal size."""

    def part(start: int, stop: int) -> Batch:
        mix = batch.mix and Mix(batch.mix.partner_labels_N[start:stop], batch.mix.weight_N[start:stop])
        return Batch(
            inputs=tuple(view[start:stop] for view in batch.inputs),
            labels_N=batch.labels_N[start:stop],
            mix=mix,
            ids_N=batch.ids_N[start:stop],
            valid_N=batch.valid_N[start:stop],
        )

    size = len(batch.labels_N)
    bounds = [size * index // num_parts for index in range(num_parts + 1)]
    return [part(start, stop) for start, stop in itertools.pairwise(bounds)]
