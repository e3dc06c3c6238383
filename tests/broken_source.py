"""A source in memory of which some images cannot be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pipelines.source import ArraySource


@dataclass(frozen=True, kw_only=True)
class BrokenSource(ArraySource):
    """The samples `broken` cannot be read; `bad`, what is known of them beforehand, may say less."""

    broken: Mapping[int, str] = field(default_factory=dict)

    def read_image(self, sample_id: int, *, channels: int, **options: object) -> npt.NDArray[np.uint8]:
        if sample_id in self.broken:
            raise ValueError(self.broken[sample_id])
        return super().read_image(sample_id, channels=channels, **options)

    def take(self, ids: npt.NDArray[np.int64]) -> "BrokenSource":
        taken = super().take(ids)
        assert isinstance(taken, BrokenSource)
        broken = {place: self.broken[int(old)] for place, old in enumerate(ids) if int(old) in self.broken}
        return replace(taken, broken=broken)
