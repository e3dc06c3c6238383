"""Images that could not be read: the ranks' lists brought together, written down, and held against the limit.

loader.take_bad_samples() on each rank -> gathered -> bad_samples.jsonl, by the main process
"""

from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime
from pipelines.batch import BadSample, Loader


class BadSampleLog:
    """Writes bad_samples.jsonl: in training every time one is met, in evaluation each file once.

    Args:
        folder: The run folder; None prints the list instead.
        runtime: Gathers.
        progress: Prints.
    """

    def __init__(self, folder: RunFolder | None, *, runtime: Runtime, progress: Progress) -> None:
        self._folder = folder
        self._runtime = runtime
        self._progress = progress
        self._told: set[tuple[str, int]] | None = None

    def write(self, met: list[BadSample], *, step: int) -> None:
        """Adds what the ranks have met; all of them must call this together. `step`: optimizer steps done."""
        rows = []
        if self._told is None:
            earlier = self._folder.read_bad_samples() if self._folder and self._runtime.is_main else []
            self._told = {(row["split"], row["sample_id"]) for row in earlier}
        for bad in sorted(self._runtime.gather_objects(met)):
            if bad.split != "train" and (bad.split, bad.sample_id) in self._told:
                continue
            self._told.add((bad.split, bad.sample_id))
            rows.append({"after_step": step, **bad._asdict()})
        if self._folder is None:
            for row in rows:
                self._progress.say(f"not counted: {row['name']}: {row['reason']}")
        elif self._runtime.is_main:
            self._folder.append_bad_samples(rows)


def check_num_bad(num_bad: int, loader: Loader) -> None:
    """Stops a run whose data is broken; `num_bad` counts over all ranks, so that they stop together.

    Raises:
        ValueError: More samples could not be read than data.max_bad_frac allows.
    """
    if num_bad > loader.max_num_bad:
        raise ValueError(
            f"{num_bad} of {loader.num_samples} images of this epoch could not be read (listed above, or in "
            f"bad_samples.jsonl in the run folder), and data.max_bad_frac allows {loader.max_num_bad}. Repair the "
            "data, or raise data.max_bad_frac."
        )
