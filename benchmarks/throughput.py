"""Training steps per second on data that is there: `python -m benchmarks.throughput --models resnet18 --size 64`.

`ours` is `engine.fit.fit` as train.py calls it, logging every 10 steps; `bare` is the loop as one writes it by hand, on
torchvision's network; `timm` the same on timm's network and optimizer (timm's own benchmark is a script, which its
package lacks). Each step trains on the same batch, on the device: no loader, no copy, no evaluation, no checkpoint.

Each contender is a process of its own that warms up (and compiles) once; then they take turns of some steps, so that
all meet the same machine; a turn ends when the device is through. Median, lowest and highest of the turns go into
benchmarks/results/throughput.csv, where they replace those of the same network on the same device.

ours, bare and timm are float32 and channels_last, but for bare_nchw; _bf16 is mixed precision, _compiled torch.compile;
optimizers are fused on a GPU (ours by speed.fused=auto).
"""

import argparse
import contextlib
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.loader import about
from configs.load import config_to_dict, load_config
from configs.schema import InputSpec
from engine.bad_samples import BadSampleLog
from engine.build import build_settings, resolve_config
from engine.build_phases import build_phases
from engine.fit import fit
from engine.launch import cores_per_rank
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import start_runtime
from engine.state import Job
from models.build import build_model
from pipelines.batch import Batch

RESULTS = Path(__file__).parent / "results" / "throughput.csv"
_OPTIONS = ("", "_bf16", "_compiled", "_bf16_compiled")
CONTENDERS = (*(who + options for who in ("ours", "bare", "timm") for options in _OPTIONS), "bare_nchw")
_NUM_CLASSES = 1000
_LR = 1e-4  # the same batch again and again must not diverge


class Task(NamedTuple):
    """What everybody trains, and how long.

    model: name of a network. batch_size: images. size_px: their height and width. num_warmup: steps before the first
    turn. num_steps: steps of a turn.
    """

    model: str
    batch_size: int
    size_px: int
    num_warmup: int
    num_steps: int


def main() -> None:
    """Prints a line for each contender, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"], help="names that torchvision and timm both have")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--warmup", type=int, default=20, help="steps")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a contender, in this process
    options = parser.parse_args()
    for model in options.models:
        task = Task(model, options.batch, options.size, options.warmup, options.steps)
        if options.one:
            run(options.one, task)
            return
        rows = measure(task, options.contenders, repeats=options.repeats)
        save(rows, RESULTS)


def measure(task: Task, contenders: list[str], *, repeats: int) -> list[dict[str, Any]]:
    """A row for each contender, who take turns."""
    with contextlib.ExitStack() as stack:
        racers = {one: stack.enter_context(_Racer(one, task)) for one in contenders}
        speeds: dict[str, list[float]] = {one: [] for one in contenders}
        for repeat in range(repeats):
            first = repeat % len(contenders)  # nobody always comes first
            for one in contenders[first:] + contenders[:first]:
                speeds[one].append(task.num_steps * task.batch_size / racers[one].take_turn())
    said = {"device": _device_name(), **about()}
    rows = []
    for one, values in speeds.items():
        found = {"images_per_s": statistics.median(values), "lowest": min(values), "highest": max(values)}
        rows.append(
            {
                "model": task.model,
                "contender": one,
                **{name: round(value, 1) for name, value in found.items()},
                "repeats": repeats,
                "batch_size": task.batch_size,
                "size_px": task.size_px,
                **said,
            }
        )
        print(task.model, one, *(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)
    return rows


class _Racer:
    """A contender in a process of its own, which waits for its turns."""

    def __init__(self, contender: str, task: Task) -> None:
        words = ["--one", contender, "--models", task.model, "--batch", str(task.batch_size), "--size"]
        words += [str(task.size_px), "--warmup", str(task.num_warmup), "--steps", str(task.num_steps)]
        command = [sys.executable, "-m", "benchmarks.throughput", *words]
        self._contender = contender
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "_Racer":
        self._read()  # it is warm, and nobody else computes meanwhile
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def take_turn(self) -> float:
        """Seconds that the steps of a turn take."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["seconds"])
        raise RuntimeError(f"{self._contender} has ended; what went wrong stands above.")


def run(contender: str, task: Task) -> None:
    """Trains as long as it is given turns on stdin, and prints the seconds of each."""
    who, *options = contender.split("_")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(cores_per_rank(1))  # as start_runtime does
    turns = _Turns(task, device)
    with contextlib.suppress(_OverError):
        if who == "ours":
            run_ours(task, turns, options)
        else:
            run_bare(task, turns, options, device=device, is_timm=who == "timm")


def run_ours(task: Task, turns: "_Turns", options: list[str]) -> None:
    """`engine.fit.fit`; its loader takes the turns."""
    given = ["--model.name", f"torchvision/{task.model}", "--input.size_px", str(task.size_px), "--run.select", "last"]
    given += ["--train.global_batch_size", str(task.batch_size), "--train.epochs", "1", "--run.trackers", "[]"]
    given += ["--optim.name", "sgd", "--optim.lr", str(_LR), "--optim.momentum", "0.9", "--schedule.warmup_epochs", "0"]
    given += ["--optim.weight_decay", "0.0001", "--schedule.name", "constant", "--run.checkpoint_every_minutes", "0"]
    given += ["--train.precision", "bf16" if "bf16" in options else "fp32"]
    given += ["--speed.compile", "default" if "compiled" in options else "none"]
    config = resolve_config(load_config(given, prog="benchmarks.throughput", description=""), {})
    runtime = start_runtime(config.train.precision, config.run, speed=config.speed)
    spec = InputSpec(size_px=task.size_px, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    module = runtime.place(build_model(config.model, num_classes=_NUM_CLASSES, spec=spec, seed=0))
    loader = _OneBatch(task, turns, device=runtime.device)
    with tempfile.TemporaryDirectory() as path:
        folder, progress = RunFolder(path), Progress(num_epochs=1, is_main=False)
        job = Job(
            phases=build_phases(config, loader),
            loss_fn=supervised(num_classes=_NUM_CLASSES),
            validate=None,
            card={"data": {}, "class_names": [], "input": config_to_dict(spec), "model": {}},
            config=config_to_dict(config),
            bad_log=BadSampleLog(folder, runtime=runtime, progress=progress),
            folder=folder,
            runtime=runtime,
            settings=build_settings(config, {}),
            progress=progress,
        )
        fit(module, job)


def run_bare(task: Task, turns: "_Turns", options: list[str], *, device: torch.device, is_timm: bool) -> None:
    """The loop as one writes it by hand."""
    layout = torch.contiguous_format if "nchw" in options else torch.channels_last
    module = _build(task.model, is_timm=is_timm).to(device).to(memory_format=layout)
    optimizer = _build_optimizer(module, is_timm=is_timm, fused=device.type == "cuda")
    network: Any = torch.compile(module) if "compiled" in options else module
    images_NCHW, labels_N = _make_batch(task, device)
    images_NCHW = images_NCHW.to(memory_format=layout)
    while True:
        turns.before_step()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled="bf16" in options):
            loss = F.cross_entropy(network(images_NCHW), labels_N)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _build(name: str, *, is_timm: bool) -> nn.Module:
    torch.manual_seed(0)
    if is_timm:
        import timm

        module: nn.Module = timm.create_model(name, num_classes=_NUM_CLASSES)
        return module.train()
    import torchvision

    module = torchvision.models.get_model(name, num_classes=_NUM_CLASSES)
    return module.train()


def _build_optimizer(module: nn.Module, *, is_timm: bool, fused: bool) -> torch.optim.Optimizer:
    if not is_timm:
        return torch.optim.SGD(module.parameters(), lr=_LR, momentum=0.9, weight_decay=1e-4, fused=fused)
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        module, opt="momentum", lr=_LR, momentum=0.9, weight_decay=1e-4, filter_bias_and_bn=False, fused=fused
    )
    return optimizer


def _make_batch(task: Task, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randn(task.batch_size, 3, task.size_px, task.size_px, generator=generator)
    labels_N = torch.randint(_NUM_CLASSES, (task.batch_size,), generator=generator)
    return images_NCHW.to(device), labels_N.to(device)


class _OverError(Exception):
    """There is no further turn."""


class _Turns:
    """Steps until the turn is over, then waits for the next one."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task, self._device = task, device
        self._num_left, self._start_s = task.num_warmup, time.perf_counter()

    def before_step(self) -> None:
        """To be called before each step."""
        if self._num_left == 0:
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            print(json.dumps({"seconds": time.perf_counter() - self._start_s}), flush=True)
            if not sys.stdin.readline():
                raise _OverError
            self._num_left, self._start_s = self._task.num_steps, time.perf_counter()
        self._num_left -= 1


class _OneBatch:
    """A loader of a batch that lies on the device, in a long epoch."""

    num_left_out, max_num_bad, steps_per_epoch = 0, 0, 10**6

    def __init__(self, task: Task, turns: _Turns, *, device: torch.device) -> None:
        images_NCHW, labels_N = _make_batch(task, device)
        images_NCHW = images_NCHW.to(memory_format=torch.channels_last)
        ids_N = torch.arange(task.batch_size, device=device)
        self._batch = Batch((images_NCHW,), labels_N, None, ids_N, ids_N >= 0)
        self._turns = turns
        self.num_samples = task.batch_size * self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """The same one, again and again."""
        for _ in range(self.steps_per_epoch):
            self._turns.before_step()
            yield self._batch

    def take_bad_samples(self) -> list[Any]:
        """None."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Puts rows in the place of those of the same network on the same device."""
    old: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="") as file:
            old = list(csv.DictReader(file))
    measured = {(row["model"], row["device"], row["cpu"]) for row in rows}
    kept = [row for row in old if (row["model"], row["device"], row["cpu"]) not in measured]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


if __name__ == "__main__":
    main()
