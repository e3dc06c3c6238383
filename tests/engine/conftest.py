"""A runtime for tests within this process, a loader over tensors that the tests can see through, and fits of both."""

import io
from typing import Any

import pytest
import torch
from small_fits import NUM_CLASSES, KilledError, trained

from configs.schema import RunConfig
from engine.bad_samples import BadSampleLog
from engine.evaluation import evaluate
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime, start_runtime
from engine.schedules import step_decay
from engine.state import FitSettings, Job, Phase
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


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :NUM_CLASSES].argmax(dim=1)


@pytest.fixture
def make_job(tmp_path, runtime, make_loader, data):
    def make(name="run", *, val=True, interrupt_after=None, phases=None, bad=(), bad_val=(), **changes) -> Job:
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        progress = Progress(num_epochs=3, is_main=True, stream=io.StringIO())
        bad_log = BadSampleLog(folder, runtime=runtime, progress=progress)
        values = {
            **FitSettings._field_defaults,
            "seed": 0,
            "select": "best",
            "log_every_steps": 2,
            "checkpoint_every_steps": 0,
            "keep_checkpoints": 2,
            "accumulation": 1,
            "epochs": 3,
            "label_smoothing": 0.0,
            "early_stop_epochs": None,
            "plateau": None,
            "momentum_at": None,
            "average": None,
            "bn_loader": None,
            "max_num_bad": 100,
        } | changes
        loss_fn, steps = supervised(num_classes=NUM_CLASSES, label_smoothing=values["label_smoothing"]), []

        def interruptible(module, batch):
            steps.append(1)
            if interrupt_after is not None and len(steps) > interrupt_after:
                raise KilledError
            return loss_fn(module, batch)

        def validate(module, step):
            loader = make_loader(*data, batch_size=7, split="val", bad=bad_val)
            return evaluate(module, loader, num_classes=NUM_CLASSES, runtime=runtime, bad_log=bad_log, step=step)

        default = Phase(
            name="train",
            loader=make_loader(*data, batch_size=6, bad=bad, max_num_bad=values["max_num_bad"]),
            epochs=values["epochs"],
            accumulation=values["accumulation"],
            build_optimizer=lambda module: torch.optim.SGD(trained(module), lr=0.2, momentum=0.9),
            lr_factor=step_decay(step_size=3, gamma=0.5),
            momentum_at=values["momentum_at"],
            plateau=values["plateau"],
        )
        return Job(
            phases=phases or [default],
            loss_fn=interruptible,
            validate=validate if val else None,
            card={"model": {}, "class_names": ["a", "b", "c"], "input": {"size_px": 8}, "data": {"train": "1"}},
            config={"optim": {"lr": 0.2}},
            bad_log=bad_log,
            folder=folder,
            runtime=runtime,
            settings=FitSettings(**{name: values[name] for name in FitSettings._fields}),
            progress=progress,
            average=values["average"],
            bn_loader=values["bn_loader"],
        )

    return make
