"""The door of executors: what they take and what they hand over.

plans, in order -> executor (as far ahead as it likes) -> Carried, in the same order
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.plan import Plan


class Carried(NamedTuple):
    """A plan, carried out.

    images_NHWC: uint8 (N, S, S, C), 0..255, where the executor works; valid until the next one is asked for.
    bad: the rows whose image could not be read, and why; their pixels mean nothing.
    """

    images_NHWC: Tensor
    bad: Mapping[int, str]


class Operate(Protocol):
    """Does what the plan says to the pixels of one finished image."""

    def __call__(self, image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
        """Changes `image_SSC`, uint8 (S, S, C), contiguous, in place, as row `row` of the plan has it."""
        ...


class Executor(Protocol):
    """Carries plans out. What to do about images that cannot be read is not its business (pipelines/policy.py)."""

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan in turn, carried out. Plans are taken as they are needed, a few ahead."""
        ...
