"""Random numbers as a pure function of counters, so that nothing has to be remembered to draw them again.

(seed, stream, epoch, sample id, ...) -> SplitMix64 -> 64 random bits. Source: Steele, Lea, Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014; keys are absorbed one after the other, each through one full mixing.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

Counter = int | npt.NDArray[np.int64]


class Stream(IntEnum):
    """What the numbers are for; each purpose has its own."""

    ORDER = 0
    SHIFT = 1
    CROP = 2
    FLIP = 3
    SAMPLE = 4
    ERASE = 5
    NOISE = 6
    MIX = 7
    REPLACE = 8
    SAMPLING_PLACE = 9
    SAMPLING_OFFSET = 10
    SAMPLING_ORDER = 11
    OPERATION = 12
    OWN = 13
    VERTICAL_FLIP = 14
    CUTOUT = 15


def random_bits(seed: int, stream: Stream, *counters: Counter) -> npt.NDArray[np.uint64]:
    """uint64 of the broadcast shape of the counters, each at least 0."""
    # twice: once would let seed and stream change places, and seed 0's shifts would be seed 1's order
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        state = _mix(_mix(np.asarray(seed, dtype=np.uint64)))
        for counter in (int(stream), *counters):
            state = _mix(state ^ _mix(np.asarray(counter).astype(np.uint64)))
    return state


def random_uniform(seed: int, stream: Stream, *counters: Counter) -> npt.NDArray[np.float64]:
    """float64 of the broadcast shape of the counters, at least 0 and below 1, on a grid of 2^-53."""
    return (random_bits(seed, stream, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIER_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIER_2
    return value ^ (value >> np.uint64(31))


def pick_ids(num_samples: int, *, num_wanted: int) -> npt.NDArray[np.int64]:
    """Ids, int64 (num_wanted,) or, if there are fewer, (num_samples,); drawn by the number of samples alone."""
    return np.argsort(random_bits(0, Stream.SAMPLE, np.arange(num_samples)), kind="stable")[:num_wanted]
