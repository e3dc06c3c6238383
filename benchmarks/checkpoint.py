"""What a checkpoint costs, beside Accelerate's: `python -m benchmarks.checkpoint`.

`ours` is `engine.fit.fit` as train.py calls it, which saves after every twelfth step; `accelerate` is
`accelerator.save_state` and `load_state` of the same network and optimizer, which neither check nor sync what they
write. The networks are torchvision's resnet50 (25 million parameters) and vit_l_16 (304 million), with AdamW. The loss
is the mean of the squared weights, so that a step costs little more than the optimizer's work.

stall: what the call takes that training waits for. written: until the checkpoint is whole (ours goes on meanwhile).
resume: from the call to the first step that can be computed, weights and optimizer loaded; ours has then held every
byte against its SHA-256. Each contender is a process of its own; medians over checkpoints, the first one dropped.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from accelerate import Accelerator
from torch import nn

import engine.fit
import engine.resume
from benchmarks.loader import about
from configs.schema import RunConfig
from engine.bad_samples import BadSampleLog
from engine.checkpoint import save_checkpoint
from engine.fit import fit
from engine.losses import StepOutput
from engine.progress import Progress
from engine.record import RunFolder
from engine.resume import save_state
from engine.runtime import start_runtime
from engine.schedules import constant
from engine.state import FitSettings, Job, Phase
from pipelines.batch import Batch

RESULTS = Path(__file__).parent / "results" / "checkpoint.csv"
_MODELS = {"resnet50": torchvision.models.resnet50, "vit_l_16": torchvision.models.vit_l_16}
_STEPS = 12  # between checkpoints: as long as it takes to write one, or the next would wait for it
_CARD: dict[str, Any] = {"model": {}, "class_names": [], "input": {}, "data": {}}


def main() -> None:
    """Measures, prints a line for each, and writes benchmarks/results/checkpoint.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(_MODELS), default=list(_MODELS))
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)  # contender and model
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        contender, model = options.cell
        measure = measure_ours if contender == "ours" else measure_accelerate
        print(json.dumps(measure(model, options.folder, repeats=options.repeats)))
        return
    rows = []
    for model in options.models:
        for contender in ("ours", "accelerate"):
            rows.append({"model": model, "contender": contender, **_in_two_starts(contender, model, options.repeats)})
            print(rows[-1], flush=True)
    _save(rows)


def _in_two_starts(contender: str, model: str, repeats: int) -> dict[str, Any]:
    """What one start writes, the next one goes on from."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.checkpoint", "--cell", contender, model, "--folder", folder]
        command += ["--repeats", str(repeats)]
        first, second = (
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            for _ in range(2)
        )
    return {**first, "resume_s": second["resume_s"]}


def measure_ours(model: str, folder: Path, *, repeats: int) -> dict[str, Any]:
    """Steps by `fit`; every twelfth one is saved."""
    runtime = start_runtime("fp32", RunConfig(trackers=()))
    module = runtime.place(_build(model))
    stalls: list[float] = []
    written: list[float] = []
    step_starts: list[float] = []
    looping: Any = engine.fit
    saving: Any = engine.resume
    looping.save_state = partial(_timed, save_state, stalls)
    saving.save_checkpoint = partial(_timed, save_checkpoint, written)

    def loss_fn(module: nn.Module, batch: Batch) -> StepOutput:
        step_starts.append(time.perf_counter())
        if len(step_starts) > num_steps:
            (run.path / "stop").touch()  # and the next start goes on
        return StepOutput(_loss(module), {})

    run, progress = RunFolder(folder / "run"), Progress(num_epochs=1, is_main=False)
    run.path.mkdir(exist_ok=True)
    num_steps = 0 if run.checkpoints.exists() else _STEPS * (repeats + 2)
    job = Job(
        phases=[Phase("train", _OneImage(), 1, 1, lambda module: torch.optim.AdamW(module.parameters()), constant())],
        loss_fn=loss_fn,
        validate=None,
        card=_CARD,
        config={},
        bad_log=BadSampleLog(run, runtime=runtime, progress=progress),
        folder=run,
        runtime=runtime,
        settings=FitSettings(0, "last", 10**9, _STEPS, 1),
        progress=progress,
    )
    start_s = time.perf_counter()
    fit(module, job)
    return _found(stalls[1:-1], written[1:-1], run.checkpoints, resume_s=step_starts[0] - start_s)


def measure_accelerate(model: str, folder: Path, *, repeats: int) -> dict[str, Any]:
    """The same by Accelerate's own calls."""
    accelerator = Accelerator(cpu=True)
    network = _build(model)
    module, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters()))
    checkpoint, resume_s, stalls = folder / "state", 0.0, []
    if checkpoint.exists():
        start_s = time.perf_counter()
        accelerator.load_state(str(checkpoint))
        resume_s = time.perf_counter() - start_s
        repeats = 0
    for _ in range(repeats + 1):
        accelerator.backward(_loss(module))
        optimizer.step()
        optimizer.zero_grad()
        shutil.rmtree(checkpoint, ignore_errors=True)
        start_s = time.perf_counter()
        accelerator.save_state(str(checkpoint))
        stalls.append(time.perf_counter() - start_s)
    return _found(stalls[1:], stalls[1:], checkpoint, resume_s=resume_s)


def _found(stalls: list[float], written: list[float], folder: Path, *, resume_s: float) -> dict[str, Any]:
    num_bytes = max(
        sum(file.stat().st_size for file in each.rglob("*") if file.is_file())
        for each in ([folder] if (folder / "model.safetensors").exists() else folder.iterdir())
    )
    return {
        "stall_s": round(statistics.median(stalls), 3) if stalls else None,
        "written_s": round(statistics.median(written), 3) if written else None,
        "mib": round(num_bytes / 2**20, 1),
        "resume_s": round(resume_s, 3),
        "repeats": len(stalls),
    }


def _build(model: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = _MODELS[model](weights=None)
    return module


def _loss(module: nn.Module) -> torch.Tensor:
    return torch.stack([parameter.square().mean() for parameter in module.parameters()]).mean()


def _timed(function: Any, seconds: list[float], *arguments: Any, **named: Any) -> Any:
    start_s = time.perf_counter()
    given = function(*arguments, **named)
    seconds.append(time.perf_counter() - start_s)
    return given


class _OneImage:
    """A long epoch of batches of one black image."""

    num_samples, num_left_out, max_num_bad, steps_per_epoch = 1, 0, 0, 10**6

    def __init__(self) -> None:
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        """The same one, again and again."""
        one = torch.zeros(1, dtype=torch.int64)
        while self._step < self.steps_per_epoch:
            self._step += 1
            yield Batch((torch.zeros(1, 3, 8, 8),), one, None, one, one == 0)

    def take_bad_samples(self) -> list[Any]:
        """None."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self._step = state["step"]


def _save(rows: list[dict[str, Any]]) -> None:
    said = about()
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *said])
        writer.writeheader()
        writer.writerows({**row, **said} for row in rows)


if __name__ == "__main__":
    main()
