"""What a step costs where less of a network is trained: `python -m benchmarks.frozen` (about 5 minutes).

    python -m benchmarks.frozen --model torchvision/resnet18 --size 96 --batch 32

The phases of fine-tuning, by the stages that they train (all, the last two, the head), are trained by `engine.fit.fit`
on a batch that is there, with AdamW and the BatchNorm of frozen parts held; then the head alone on features, which is
what strategy.name=features does in each epoch. They take turns. Into benchmarks/results/frozen.csv: milliseconds per
step (median, lowest and highest of the turns, the first epoch of each dropped), what autograd keeps of an image for the
backward pass, and what gradients and the optimizer hold.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.loader import about
from configs.load import config_to_dict, load_config
from configs.schema import Config, InputSpec
from engine.bad_samples import BadSampleLog
from engine.build import build_settings, resolve_config
from engine.build_phases import build_phases
from engine.fit import fit
from engine.freezing import trained_as, trained_names
from engine.losses import supervised
from engine.memory import activation_bytes
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime, start_runtime
from engine.state import Job, Phase
from models.build import build_model
from models.heads import copy_head
from models.surgery import find_head, list_stages
from pipelines.batch import Batch

RESULTS = Path(__file__).parent / "results" / "frozen.csv"
_NUM_CLASSES = 10
_MIB = 2**20


class Part(NamedTuple):
    """What is trained, and on what.

    name: for the table. module: inputs (N, ...) -> logits (N, K). phase: with the batch that it is trained on.
    input_CHW: shape of one input, (D,) of features.
    """

    name: str
    module: nn.Module
    phase: Phase
    input_CHW: tuple[int, ...]


def main() -> None:
    """Prints and saves a row per part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen", description=__doc__)
    parser.add_argument("--model", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--steps", type=int, default=10, help="of an epoch; a turn is three, of which two count")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    words = ["--model.name", options.model, "--input.size_px", str(options.size), "--train.epochs", "3"]
    words += ["--train.global_batch_size", str(options.batch)]
    rows = measure(make_config(words), num_steps=options.steps, repeats=options.repeats)
    save(rows, RESULTS)


def make_config(words: Sequence[str]) -> Config:
    """The recipe: AdamW at a constant rate in float32, with what `words` say."""
    fixed = ["--optim.name", "adamw", "--optim.lr", "1e-5", "--schedule.name", "constant", "--schedule.warmup_epochs"]
    fixed += ["0", "--train.precision", "fp32", "--run.select", "last", "--run.checkpoint_every_minutes", "0"]
    return resolve_config(load_config([*fixed, *words], prog="benchmarks.frozen", description=""), os.environ)


def measure(config: Config, *, num_steps: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each part, all of which take turns."""
    runtime = start_runtime(config.train.precision, config.run)
    parts = build_parts(config, num_steps=num_steps, runtime=runtime)
    step_ms: dict[str, list[float]] = {part.name: [] for part in parts}
    held_mib: dict[str, float] = {}
    for _ in range(repeats):
        for part in parts:
            some_ms, held_mib[part.name] = take_turn(part, config, num_steps=num_steps, runtime=runtime)
            step_ms[part.name] += some_ms
    rows = [
        {
            "model": config.model.name,
            "size_px": config.input.size_px,
            "batch_size": config.train.global_batch_size,
            "trained": part.name,
            "parameters": _count_trained(part),
            "step_ms": round(statistics.median(step_ms[part.name]), 2),
            "lowest_ms": round(min(step_ms[part.name]), 2),
            "highest_ms": round(max(step_ms[part.name]), 2),
            "kept_mib_per_image": round(_kept_mib(part, runtime=runtime), 4),
            "gradients_and_optimizer_mib": round(held_mib[part.name], 2),
            "device": runtime.describe(),
        }
        for part in parts
    ]
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    runtime.end()
    return rows


def build_parts(config: Config, *, num_steps: int, runtime: Runtime) -> list[Part]:
    """All of the network, its last two stages, its head, and the head on features."""
    size_px = config.input.size_px or 96
    spec = InputSpec(size_px=size_px, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    module = runtime.place(build_model(config.model, num_classes=_NUM_CLASSES, spec=spec, seed=0))
    head = find_head(module, num_classes=_NUM_CLASSES)
    alone = copy_head(module, head)
    stages, shape = list_stages(module, head=head), (3, size_px, size_px)
    loader = _OneBatch(shape, config.train.global_batch_size, num_steps=num_steps, device=runtime.device)
    (whole,) = build_phases(config, loader)
    parts = [Part("all", module, whole, shape)]
    for name, number in (("last two stages", 2), ("head", 1)):
        names = frozenset(one for stage in stages[-number:] for one in stage)
        parts.append(Part(name, module, whole._replace(trains=names.__contains__, frozen_bn="eval"), shape))
    width = (alone.in_features,)
    loader = _OneBatch(width, config.train.global_batch_size, num_steps=num_steps, device=runtime.device)
    (of_head,) = build_phases(config, loader)
    return [*parts, Part("head, on features", alone, of_head, width)]


def take_turn(part: Part, config: Config, *, num_steps: int, runtime: Runtime) -> tuple[list[float], float]:
    """Milliseconds per step of each epoch but the first, and MiB of gradients and optimizer."""
    made: list[Optimizer] = []

    def build_optimizer(module: nn.Module) -> Optimizer:
        made.append(part.phase.build_optimizer(module))
        return made[-1]

    with tempfile.TemporaryDirectory() as path:
        folder, progress = RunFolder(path), Progress(num_epochs=part.phase.epochs, is_main=False)
        job = Job(
            phases=[part.phase._replace(build_optimizer=build_optimizer)],
            loss_fn=supervised(num_classes=_NUM_CLASSES),
            validate=None,
            card={"data": {}, "class_names": [], "input": {}, "model": {}},
            config=config_to_dict(config),
            bad_log=BadSampleLog(folder, runtime=runtime, progress=progress),
            folder=folder,
            runtime=runtime,
            settings=build_settings(config, {}),
            progress=progress,
        )
        fit(part.module, job)
        lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["train/epoch_s"] for line in lines if "train/epoch_s" in line]
    return [1000 * one / num_steps for one in seconds[1:]], _held_mib(made)


def _held_mib(optimizers: Sequence[Optimizer]) -> float:
    """Of gradients, one for each parameter that an optimizer has, and of what the optimizers remember."""
    held: list[torch.Tensor] = []
    for one in optimizers:
        held += [parameter for group in one.param_groups for parameter in group["params"]]
        held += [value for state in one.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in held)) / _MIB


def _kept_mib(part: Part, *, runtime: Runtime) -> float:
    with trained_as(part.module, part.phase.trains):
        if len(part.input_CHW) == 3:
            channels, height, width = part.input_CHW
            return activation_bytes(part.module, (channels, height, width), device=runtime.device).per_image / _MIB
    return part.input_CHW[0] * 4 / _MIB  # a linear layer keeps what it is given, in float32


def _count_trained(part: Part) -> int:
    with trained_as(part.module, part.phase.trains):
        names = trained_names(part.module)
    return sum(parameter.numel() for name, parameter in part.module.named_parameters() if name in names)


class _OneBatch:
    """A loader of a batch that lies on the device."""

    num_left_out, max_num_bad = 0, 0

    def __init__(self, shape: tuple[int, ...], batch_size: int, *, num_steps: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(batch_size, *shape, generator=generator).to(device)
        inputs = inputs.to(memory_format=torch.channels_last) if len(shape) == 3 else inputs
        labels_N = torch.randint(_NUM_CLASSES, (batch_size,), generator=generator).to(device)
        ids_N = torch.arange(batch_size, device=device)
        self._batch = Batch((inputs,), labels_N, None, ids_N, ids_N >= 0)
        self.steps_per_epoch, self.num_samples = num_steps, num_steps * batch_size

    def __iter__(self) -> Iterator[Batch]:
        """The same one, again and again."""
        for _ in range(self.steps_per_epoch):
            yield self._batch

    def take_bad_samples(self) -> list[Any]:
        """None."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the rows, with machine, versions and date."""
    here = about()
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *here], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | here for row in rows)


if __name__ == "__main__":
    main()
