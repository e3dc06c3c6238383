"""A runtime for tests within this process, and a loader over tensors that the tests can see through."""

import io
from typing import Any

import pytest
import torch

from configs.schema import RunConfig
from engine.bad_samples import BadSampleLog
from engine.progress import Progress
from engine.runtime import Runtime, start_runtime
from pipelines.batch import BadSample, Batch


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return start_runtime("fp64", RunConfig(num_threads=1))


@pytest.fixture
def progress() -> Progress:
    """Prints into memory: progress._stream.getvalue()."""
    return Progress(num_epochs=3, is_main=True, stream=io.StringIO())


@pytest.fixture
def bad_log(runtime: Runtime, progress: Progress) -> BadSampleLog:
    """A log without a run folder: it prints."""
    return BadSampleLog(None, runtime=runtime, progress=progress)


class TensorLoader:
    """Batches cut from tensors in order, the last ones filled up with rows that do not count.

    Samples in `bad` cannot be read: in split train the next one takes their place, in others they are not counted.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        labels_N: torch.Tensor,
        *,
        batch_size: int,
        split: str = "train",
        bad: tuple[int, ...] = (),
        max_num_bad: int = 100,
    ) -> None:
        self.inputs, self.labels_N, self.batch_size = inputs, labels_N, batch_size
        self.split, self.bad, self.max_num_bad = split, bad, max_num_bad
        self.num_samples = len(labels_N)
        self.steps_per_epoch = -(-len(labels_N) // batch_size)
        self.num_left_out = 0
        self.epoch = self.position = 0
        self.met: list[BadSample] = []

    def __iter__(self):
        for step in range(self.position, self.steps_per_epoch):
            ids = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
            valid = ids < self.num_samples
            rows = ids.clamp(max=self.num_samples - 1)
            for row in range(self.batch_size):
                if int(rows[row]) in self.bad and valid[row]:
                    self.met.append(self.describe(int(rows[row]), step))
                    if self.split == "train":
                        rows[row] = (rows[row] + 1) % self.num_samples
                    else:
                        valid[row] = False
            self.position = (step + 1) % self.steps_per_epoch
            self.epoch += self.position == 0
            yield Batch((self.inputs[rows],), self.labels_N[rows], None, rows, valid)

    def describe(self, sample_id: int, step: int) -> BadSample:
        replaced_by = sample_id + 1 if self.split == "train" else None
        return BadSample(
            split=self.split,
            epoch=self.epoch,
            step=step,
            sample_id=sample_id,
            name=f"{self.split}/{sample_id}.png",
            reason="burnt",
            replaced_by=replaced_by,
            replaced_by_name=None if replaced_by is None else f"{self.split}/{replaced_by}.png",
        )

    def take_bad_samples(self) -> list[BadSample]:
        met, self.met = self.met, []
        return met

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


@pytest.fixture
def make_loader():
    return TensorLoader
