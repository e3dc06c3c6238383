"""What happens to samples that cannot be read: the same for every executor, and a function of (seed, epoch, id) alone.

raise    the run stops and names the file
replace  training: another sample of the same class takes its place; which one comes from the plan's random numbers
exclude  evaluation: the sample is not counted

Legend of shape letters: N samples of a share.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from pipelines.batch import BadSample
from pipelines.counter import Stream, random_bits
from pipelines.order import Share
from pipelines.source import Source, explain_bad

Action = Literal["raise", "replace", "exclude"]

_FIRST_COPY = 2**20  # replacements are drawn as copies that no order counts up to


class Replacement(NamedTuple):
    """The sample that takes a place, and the copy number its crop is drawn with."""

    sample_id: int
    copy: int


class Settled(NamedTuple):
    """A share without bad samples, and those of this rank that were taken out."""

    share: Share
    met: list[BadSample]


class Policy:
    """Decides.

    Args:
        source: The samples.
        split: Their name, for the list.
        action: What to do.
        seed: The run's.
        also_bad: Samples that are known to be unreadable beside those that the source knows of, and why.
    """

    def __init__(
        self,
        source: Source,
        *,
        split: str,
        action: Action,
        seed: int,
        also_bad: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.action: Action = action
        self._source = source
        self._split = split
        self._seed = seed
        self._known = {**also_bad, **source.bad}
        self._known_ids = np.array(sorted(self._known), dtype=np.int64)
        self._readable_ids: set[int] = set()

    def before(self, share: Share, *, epoch: int, step: int) -> Settled:
        """The share without the samples that are known to be bad; at no cost where there are none.

        Raises:
            ValueError: There is one, and the action is raise; or a class has nothing to replace it by.
        """
        if not len(self._known_ids):
            return Settled(share, [])
        rows = np.flatnonzero(np.isin(share.ids_N, self._known_ids)).tolist()
        return self._settle(share, {row: self._known[int(share.ids_N[row])] for row in rows}, epoch, step)

    def after(self, share: Share, bad: dict[int, str], *, epoch: int, step: int) -> Settled:
        """The share without the rows that an executor could not read. Raises as `before`."""
        for row, reason in bad.items():
            self._known.setdefault(int(share.ids_N[row]), reason)
        return self._settle(share, bad, epoch, step)

    def _settle(self, share: Share, bad: dict[int, str], epoch: int, step: int) -> Settled:
        if not bad:
            return Settled(share, [])
        met: list[BadSample] = []
        ids_N, copies_N, valid_N = share.ids_N.copy(), share.copies_N.copy(), share.valid_N.copy()
        for row, reason in bad.items():
            sample_id, copy = int(ids_N[row]), int(copies_N[row])
            if not valid_N[row]:  # it only fills up
                ids_N[row] = self._readable()
                continue
            if self.action == "raise":
                raise ValueError(explain_bad(self._source, sample_id, reason))
            if self.action == "replace":
                ids_N[row], copies_N[row] = self._replacement(sample_id, copy=copy, epoch=epoch)
            else:
                ids_N[row], valid_N[row] = self._readable(), False
            replaced_by = int(ids_N[row]) if self.action == "replace" else None
            if share.own.start <= row < share.own.stop:  # else it is another rank's to tell
                met.append(self._describe(sample_id, reason, replaced_by=replaced_by, epoch=epoch, step=step))
        return Settled(share._replace(ids_N=ids_N, copies_N=copies_N, valid_N=valid_N), met)

    def _replacement(self, sample_id: int, *, copy: int, epoch: int) -> Replacement:
        label, weights_N = self._source.labels_N[sample_id], self._source.weights_N
        may_be_met_N = self._source.labels_N == label
        if weights_N is not None:
            may_be_met_N &= weights_N > 0
        members = np.flatnonzero(may_be_met_N)
        bits = random_bits(self._seed, Stream.REPLACE, epoch, sample_id, copy, members)
        for place in np.argsort(bits, kind="stable").tolist():
            chosen = int(members[place])
            if chosen not in self._known and self._is_readable(chosen):
                return Replacement(chosen, _FIRST_COPY + int(bits[place]) % _FIRST_COPY)
        name = self._source.class_names[label]
        raise ValueError(
            f"{self._source.describe(sample_id)}: {self._known[sample_id]}; and no other image of its class {name!r}"
            f"{'' if weights_N is None else ', of a weight above 0,'} can be read. Repair the class, or remove it."
        )

    def _is_readable(self, sample_id: int) -> bool:
        if sample_id not in self._readable_ids:
            try:
                self._source.read_image(sample_id, channels=3)
            except ValueError as error:
                self._known[sample_id] = str(error)
                return False
            self._readable_ids.add(sample_id)
        return True

    def _readable(self) -> int:
        """Any sample that may stand on a row that is not counted."""
        return next((i for i in range(len(self._source.labels_N)) if i not in self._known), 0)

    def _describe(self, sample_id: int, reason: str, *, replaced_by: int | None, epoch: int, step: int) -> BadSample:
        return BadSample(
            split=self._split,
            epoch=epoch,
            step=step,
            sample_id=sample_id,
            name=self._source.describe(sample_id),
            reason=reason,
            replaced_by=replaced_by,
            replaced_by_name=None if replaced_by is None else self._source.describe(replaced_by),
        )
