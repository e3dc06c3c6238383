"""The door of executors: what they take and what they hand over.

plans, in order -> executor (as far ahead as it likes) -> Carried, in the same order
"""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
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


class Failure(NamedTuple):
    """A ValueError on its way home from a worker process: its text, and where it was raised."""

    message: str
    traceback: str

    @classmethod
    def of(cls, carry_out: Callable[[], Carried]) -> "Carried | Failure":
        """What `carry_out` gives, or the ValueError that it raises; a DataLoader would put its traceback before it."""
        try:
            return carry_out()
        except ValueError as error:
            return cls(str(error), traceback.format_exc())


def given_or_raised(done: Carried | Failure) -> Carried:
    """What a worker sent.

    Raises:
        ValueError: It sent one; the text is the same as if it had been raised here.
    """
    if isinstance(done, Failure):
        raise ValueError(done.message) from RuntimeError(f"in a worker:\n{done.traceback}")
    return done


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
