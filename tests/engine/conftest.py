"""A runtime for tests within this process, and a loader over tensors that the tests can see through."""

from typing import Any

import pytest
import torch

from configs.schema import RunConfig
from engine.runtime import Runtime, start_runtime
from pipelines.batch import Batch


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return start_runtime("fp64", RunConfig(num_threads=1))


class TensorLoader:
    """Batches cut from tensors in order, the last ones filled up with rows that do not count."""

    def __init__(self, inputs: torch.Tensor, labels_N: torch.Tensor, *, batch_size: int) -> None:
        self.inputs, self.labels_N, self.batch_size = inputs, labels_N, batch_size
        self.num_samples = len(labels_N)
        self.steps_per_epoch = -(-len(labels_N) // batch_size)
        self.num_left_out = 0
        self.epoch = self.position = 0

    def __iter__(self):
        for step in range(self.position, self.steps_per_epoch):
            ids = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
            rows = ids.clamp(max=self.num_samples - 1)
            self.position = (step + 1) % self.steps_per_epoch
            self.epoch += self.position == 0
            yield Batch((self.inputs[rows],), self.labels_N[rows], None, rows, ids < self.num_samples)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


@pytest.fixture
def make_loader():
    return TensorLoader
