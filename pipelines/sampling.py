"""How often each sample is met in an epoch, where that is not once: exact, and a function of (seed, epoch) alone.

weights -> expectations that sum to N -> laid end to end, class by class, samples of a class in random order
        -> a comb of N teeth one apart, its offset random -> a sample is met once for each tooth that falls on it

So sample i is met floor(e_i) or ceil(e_i) times, e_i = N * w_i / sum(w), and a class likewise (systematic resampling:
W. G. Madow, "On the theory of systematic sampling, II", Annals of Mathematical Statistics 1949). Independent draws
would leave out a third of the samples even where all weights are equal.

Lengths are counted on a grid of 2^-20, in integers, so that every machine finds the same teeth.

Legend of shape letters: N samples, and as many draws.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.counter import Stream, random_bits

_GRID_BITS = 20  # of an expectation: what lies beyond is rounded, in the sum, not sample by sample
_FINE_BITS = 36  # below the grid: carried along while summing, so that the sums are right to 2^-56


class Sequence(NamedTuple):
    """The draws of an epoch in order.

    ids_N: int64 (N,). copies_N: int64 (N,), how often the sample has been drawn before in this epoch; None = never.
    """

    ids_N: npt.NDArray[np.int64]
    copies_N: npt.NDArray[np.int64] | None


def sampling_weights(
    labels_N: npt.NDArray[np.int64],
    *,
    sampling: Literal["shuffled", "balanced", "weighted"],
    factors: Mapping[int, float],
    weights_N: npt.NDArray[np.float64] | None,
) -> npt.NDArray[np.float64] | None:
    """How often each sample is to be met in proportion to the others, float64 (N,); None = each once.

    Args:
        labels_N: int64 (N,).
        sampling: shuffled = all alike; balanced = every class alike; weighted = as `weights_N` has it.
        factors: Factors on that, by label; all others count 1.
        weights_N: float64 (N,), read by weighted.

    Raises:
        ValueError: No sample has a weight above 0, or a sum of weights that a computer can hold.
    """
    if sampling == "shuffled" and not factors:
        return None
    weights = np.ones(len(labels_N)) if sampling != "weighted" else np.array(weights_N, dtype=np.float64)
    if sampling == "balanced":
        weights /= np.bincount(labels_N)[labels_N]
    by_label = np.ones(int(labels_N.max()) + 1)
    for label, factor in factors.items():
        if label < len(by_label):
            by_label[label] = factor
    weights *= by_label[labels_N]
    if not 0 < float(weights.sum()) < math.inf:
        raise ValueError(
            f"the weights of the {len(weights)} training images sum up to {weights.sum():g}; give at least one image a "
            "weight above 0, and none an enormous one."
        )
    return weights


def expectations(weights_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How often each sample is met in an epoch, on average, float64 (N,), summing to N."""
    scaled_N: npt.NDArray[np.float64] = weights_N / weights_N.max()  # so that no sum overflows
    scaled_N *= len(scaled_N) / math.fsum(scaled_N.tolist())
    return scaled_N


def draw_sequence(
    labels_N: npt.NDArray[np.int64], expectations_N: npt.NDArray[np.float64], *, seed: int, epoch: int
) -> Sequence:
    """The draws of an epoch, shuffled.

    Args:
        labels_N: int64 (N,).
        expectations_N: float64 (N,), see `expectations`.
        seed: The run's.
        epoch: The epoch.
    """
    num_samples = len(labels_N)
    bits_N = random_bits(seed, Stream.SAMPLING_PLACE, epoch, np.arange(num_samples))
    order_N = np.lexsort((bits_N, labels_N))
    ends_N = _ends(expectations_N[order_N])
    tooth = int(random_bits(seed, Stream.SAMPLING_OFFSET, epoch)) >> (64 - _GRID_BITS)
    # teeth lie at tooth + 1/2, tooth + 1/2 + 2^20, ..., so none falls on an end; how many lie before each end:
    before_N = (ends_N - tooth + (1 << _GRID_BITS) - 1) >> _GRID_BITS
    counts_N = np.diff(before_N, prepend=0)
    starts_N = before_N - counts_N
    ids_N = np.repeat(order_N, counts_N)
    copies_N = np.arange(num_samples) - np.repeat(starts_N, counts_N)
    shuffled_N = np.argsort(random_bits(seed, Stream.SAMPLING_ORDER, epoch, ids_N, copies_N), kind="stable")
    return Sequence(ids_N[shuffled_N].astype(np.int64), copies_N[shuffled_N].astype(np.int64))


def _ends(lengths_N: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Where each length ends when all are laid end to end, int64 (N,), in units of the grid, rounded to the nearest.

    Summed in two integers each, for the rounding errors of a floating-point sum would grow with N.
    """
    scaled_N = lengths_N * 2.0**_GRID_BITS
    coarse_N = np.floor(scaled_N)
    fine_N = np.floor((scaled_N - coarse_N) * 2.0**_FINE_BITS)
    fine_sums_N = np.cumsum(fine_N.astype(np.int64))
    ends_N = np.cumsum(coarse_N.astype(np.int64)) + ((fine_sums_N + (1 << (_FINE_BITS - 1))) >> _FINE_BITS)
    assert ends_N[-1] == len(lengths_N) << _GRID_BITS, "the lengths sum to their number"
    return ends_N
