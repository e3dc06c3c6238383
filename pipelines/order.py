"""Which samples each step takes, as a function of (seed, epoch, step) and nothing else.

Legend of shape letters: N samples of this rank in this step (or of the whole data, where a function says so).

Training:   permutation of the epoch -> global batch g = perm[g*G : (g+1)*G] -> rank r's contiguous slice
            (repeated R times: global batch g = perm[g*G/R : (g+1)*G/R], R times one after the other)
            (with weights: as many draws as samples, in which some come again; pipelines/sampling.py)
Evaluation: batches of B in order, dealt to the ranks in turn; rows past the end are marked invalid
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.counter import Stream, random_bits
from pipelines.sampling import Sequence, draw_sequence, expectations

_CHANGES = {
    "fingerprint": "the data has changed (class names, file names, labels, weights or image sizes)",
    "seed": "run.seed has changed",
    "plan_version": "this version of the program draws samples and crops differently",
    "albumentations": "the pipeline of augment.albumentations has changed, or the version of albumentations",
}


class Share(NamedTuple):
    """What one rank works on in one step.

    ids_N: int64 (N,).
    copies_N: int64 (N,), 0 where a sample is met for the first time in its epoch, 1 the second time, and so on.
    positions_N: int64 (N,), places in the sequence that all ranks go through together in an epoch.
    valid_N: bool (N,), False on rows that only fill up.
    own: The rows that are this rank's; others are there as partners for mixing.
    """

    ids_N: npt.NDArray[np.int64]
    copies_N: npt.NDArray[np.int64]
    positions_N: npt.NDArray[np.int64]
    valid_N: npt.NDArray[np.bool_]
    own: slice


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


class Weighting(NamedTuple):
    """How often samples are met, where that is not once per epoch: labels int64 (N,), weights float64 (N,)."""

    labels_N: npt.NDArray[np.int64]
    weights_N: npt.NDArray[np.float64]


class TrainingOrder:
    """A full shuffle per epoch; the samples that do not fill a global batch are left out, others each time.

    With a weighting, the epoch is as many draws, in which a sample may come several times or not at all.

    Args:
        num_samples: How many samples there are.
        global_batch_size: Samples per step over all ranks, repetitions counted.
        seed: The seed of the permutations.
        rank: This rank.
        world_size: Number of ranks.
        num_repeats: How often each sample stands in its global batch (repeated augmentation, Hoffer et al., "Augment
            your batch", CVPR 2020). An epoch keeps its number of steps, so it meets 1 / num_repeats of the samples.
        in_pairs: Whether a share is widened to whole pairs of positions (2k, 2k+1), as mixing needs.
        weighting: How often samples are met; None = each once.

    Raises:
        ValueError: The global batch is larger than the data, does not divide by the world size or the repeats, or is
            odd where pairs are wanted.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        global_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        num_repeats: int = 1,
        in_pairs: bool = False,
        weighting: Weighting | None = None,
    ) -> None:
        if global_batch_size > num_samples:
            raise ValueError(
                f"global_batch_size={global_batch_size} is more than the {num_samples} training images; "
                f"use at most {num_samples - num_samples % world_size}."
            )
        for name, parts in (("world_size", world_size), ("num_repeats", num_repeats)):
            if global_batch_size % parts:
                offer = max(global_batch_size // parts, 1) * parts
                raise ValueError(
                    f"global_batch_size={global_batch_size} is not divisible by {name}={parts}; use {offer}."
                )
        if in_pairs and global_batch_size % 2:
            raise ValueError(
                f"global_batch_size={global_batch_size} is odd, but samples are mixed in pairs; use an even one."
            )
        self.num_samples = num_samples
        self.samples_per_step = global_batch_size
        self.steps_per_epoch = num_samples // global_batch_size
        self._num_different = global_batch_size // num_repeats
        self.num_left_out = num_samples - self.steps_per_epoch * self._num_different
        self._seed = seed
        size_per_rank = global_batch_size // world_size
        start, stop = rank * size_per_rank, (rank + 1) * size_per_rank
        first, last = (start - start % 2, stop + stop % 2) if in_pairs else (start, stop)
        self._slots_N = np.arange(first, last)
        self._own = slice(start - first, stop - first)
        self._num_repeats = num_repeats
        self._sequence = _sequences(num_samples, weighting=weighting, seed=seed)

    def share(self, step: int, *, epoch: int) -> Share:
        """This rank's slice of global batch `step`."""
        sequence = self._sequence(epoch)
        copies_N, places_N = np.divmod(self._slots_N, self._num_different)
        places_N += step * self._num_different
        if sequence.copies_N is not None:
            copies_N += sequence.copies_N[places_N] * self._num_repeats
        return Share(
            ids_N=sequence.ids_N[places_N],
            copies_N=copies_N,
            positions_N=step * self.samples_per_step + self._slots_N,
            valid_N=np.ones(len(places_N), dtype=np.bool_),
            own=self._own,
        )


def read_position(
    state: Mapping[str, Any], *, identity: Mapping[str, Any], order: Order, num_samples: int
) -> tuple[int, int]:
    """Epoch and step of a loader's state, whatever the world size that it was written at.

    Args:
        state: A loader's `state_dict`: what it read, `epoch` and `samples_consumed`.
        identity: What the loader reads now; what is missing in both is equal.
        order: Its order.
        num_samples: Of an epoch, for the message.

    Raises:
        ValueError: The state belongs to other data, another seed, plan version or pipeline of the user's, or lies
            within a global batch.
    """
    for key, reason in _CHANGES.items():
        before, now = state.get(key), identity.get(key)  # states are older than pipelines, and most have none
        if before != now:
            raise ValueError(
                f"cannot continue from this loader state: {reason}: {key} was {before}, is {now}; restore it, or start "
                "a new run with another --run.out."
            )
    step, rest = divmod(state["samples_consumed"], order.samples_per_step)
    if rest or step >= order.steps_per_epoch:
        raise ValueError(
            f"cannot continue from this loader state: {state['samples_consumed']} samples consumed do not fit global "
            f"batches of {order.samples_per_step} in an epoch of {num_samples}."
        )
    return state["epoch"], step


def _sequences(num_samples: int, *, weighting: Weighting | None, seed: int) -> Callable[[int], Sequence]:
    """The sequence of an epoch; the last two are kept, for an executor that runs ahead into the next epoch."""
    if weighting is None:
        return lambda epoch: Sequence(epoch_permutation(num_samples, seed=seed, epoch=epoch), None)
    labels_N, wanted_N = weighting.labels_N, expectations(weighting.weights_N)
    return functools.lru_cache(maxsize=2)(lambda epoch: draw_sequence(labels_N, wanted_N, seed=seed, epoch=epoch))


class EvaluationOrder:
    """Every sample exactly once. A batch holds the same samples at any world size; only who computes it changes.

    Args:
        num_samples: How many samples there are.
        batch_size_per_rank: Samples per batch.
        rank: This process.
        world_size: How many there are.
        ids_N: int64 (N,), the samples in the order in which they come. Default: as they are numbered.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size_per_rank: int,
        rank: int,
        world_size: int,
        ids_N: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._ids_N = ids_N
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
        positions_N = np.arange(start, start + self._batch_size)
        places_N = np.minimum(positions_N, self.num_samples - 1)
        return Share(
            ids_N=places_N if self._ids_N is None else self._ids_N[places_N],
            copies_N=np.zeros_like(positions_N),
            positions_N=positions_N,
            valid_N=positions_N < self.num_samples,
            own=slice(0, self._batch_size),
        )
