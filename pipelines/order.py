"""Which samples each step takes, as a function of (seed, epoch, step) and nothing else.

Legend of shape letters: N samples of this rank in this step (or of the whole data, where a function says so).

Training:   permutation of the epoch -> global batch g = perm[g*G : (g+1)*G] -> rank r's contiguous slice
Evaluation: batches of B in order, dealt to the ranks in turn; rows past the end are marked invalid
"""

import functools
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.counter import Stream, random_bits


class Share(NamedTuple):
    """One rank's share of one step: ids_N int64 (N,); valid_N bool (N,), False on rows that only fill up."""

    ids_N: npt.NDArray[np.int64]
    valid_N: npt.NDArray[np.bool_]


class Order(Protocol):
    """Decides the share of one rank. `samples_per_step` counts over all ranks."""

    steps_per_epoch: int
    samples_per_step: int
    num_left_out: int

    def share(self, step: int, *, epoch: int) -> Share:
        """The samples of one step of one epoch."""
        ...


@functools.lru_cache(maxsize=4)
def epoch_permutation(num_samples: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..num_samples-1, int64 (N,), read-only: the ids sorted by their random bits."""
    bits = random_bits(seed, Stream.ORDER, epoch, np.arange(num_samples))
    permutation = np.argsort(bits, kind="stable").astype(np.int64)
    permutation.flags.writeable = False
    return permutation


class TrainingOrder:
    """A full shuffle per epoch; the samples that do not fill a global batch are left out, others each time.

    Raises:
        ValueError: The global batch is larger than the data, or does not divide by the world size.
    """

    def __init__(self, num_samples: int, *, global_batch_size: int, seed: int, rank: int, world_size: int) -> None:
        if global_batch_size > num_samples:
            raise ValueError(
                f"global_batch_size={global_batch_size} is more than the {num_samples} training images; "
                f"use at most {num_samples - num_samples % world_size}."
            )
        if global_batch_size % world_size:
            raise ValueError(f"global_batch_size={global_batch_size} is not divisible by world_size={world_size}.")
        self.num_samples = num_samples
        self.samples_per_step = global_batch_size
        self.steps_per_epoch = num_samples // global_batch_size
        self.num_left_out = num_samples % global_batch_size
        self._seed = seed
        self._size_per_rank = global_batch_size // world_size
        self._offset = rank * self._size_per_rank

    def share(self, step: int, *, epoch: int) -> Share:
        """This rank's slice of global batch `step`."""
        permutation = epoch_permutation(self.num_samples, seed=self._seed, epoch=epoch)
        start = step * self.samples_per_step + self._offset
        ids = permutation[start : start + self._size_per_rank]
        return Share(ids, np.ones(len(ids), dtype=np.bool_))


class EvaluationOrder:
    """Every sample exactly once. A batch holds the same samples at any world size; only who computes it changes."""

    def __init__(self, num_samples: int, *, batch_size_per_rank: int, rank: int, world_size: int) -> None:
        self.num_samples = num_samples
        self.samples_per_step = batch_size_per_rank * world_size
        self.steps_per_epoch = -(-num_samples // self.samples_per_step)
        self.num_left_out = 0
        self._batch_size = batch_size_per_rank
        self._rank = rank
        self._world_size = world_size

    def share(self, step: int, *, epoch: int) -> Share:
        """Batch number `step * world_size + rank`; `epoch` changes nothing."""
        start = (step * self._world_size + self._rank) * self._batch_size
        ids = np.arange(start, start + self._batch_size)
        return Share(np.minimum(ids, self.num_samples - 1), ids < self.num_samples)
