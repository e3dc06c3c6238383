"""Training steps per second: `python -m benchmarks.throughput --models resnet18 --size 64`.

`ours` is `engine.fit.fit` as train.py calls it, logging every 10 steps; `bare` is the loop as one writes it by hand, on
torchvision's network; `timm` the same on timm's network and optimizer (timm's own benchmark is a script, which its
package lacks). Each step trains on the same batch, on the device: no loader, no copy, no evaluation, no checkpoint.
Below 64 pixels all networks but our own have the small stem (model.stem).

_dali, _threads and _resident is ours fed by that loader (benchmarks/fed.py), so that one sees what it costs:

    python -m benchmarks.throughput --contenders ours_bf16 ours_bf16_dali ours_bf16_threads --images DIR --steps 100
    python -m benchmarks.throughput --models airbench --classes 10 --size 32 --batch 2000 \
        --contenders ours_bf16 ours_bf16_resident

data_wait_frac is the part of a turn that the program waited for the next batch. A GPU still computes meanwhile what it
was given before, so what it loses is the difference to the contender without a loader, at the most that part. While
others have their turn a loader gets some batches ready: the steps that take them are not counted.

Each contender is a process of its own that warms up (and compiles) once; then they take turns of some steps, so that
all meet the same machine; a turn ends when the device is through. Median, lowest and highest of the turns go into
benchmarks/results/throughput.csv, where they replace those of the same network on the same device.

ours, bare and timm are float32 and channels_last, but for bare_nchw; _bf16 is mixed precision, _compiled torch.compile;
optimizers are SGD's, fused on a GPU (ours by speed.fused=auto).
"""

import argparse
import contextlib
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from benchmarks.fed import FEEDS, FedLoader, Feed, build_source, fed_words, feed_of, loader_fields, num_ready, plan_feed
from benchmarks.loader import about
from benchmarks.recipes import ROOT
from benchmarks.turns import Racer, answer_and_wait
from configs.load import DEFAULT_RECIPE, build_parser, config_to_dict, parse_config
from configs.nearest import nearest
from configs.schema import Config, InputSpec
from engine.bad_samples import BadSampleLog
from engine.build import build_settings, resolve_config
from engine.build_phases import build_phases
from engine.fit import fit
from engine.launch import cores_per_rank
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime, start_runtime
from engine.state import Job
from models.build import build_model, check_model
from models.stem import make_stem_small
from models.torchvision_zoo import PREFIX, has_torchvision
from pipelines.batch import Batch, Loader
from pipelines.build import Data, Place, build_training_loader

RESULTS = Path(__file__).parent / "results" / "throughput.csv"
_OPTIONS = ("", "_bf16", "_compiled", "_bf16_compiled")
SYNTHETIC = (*(who + options for who in ("ours", "bare", "timm") for options in _OPTIONS), "bare_nchw")
CONTENDERS = (*SYNTHETIC, *(f"ours{options}_{backend}" for backend in FEEDS for options in _OPTIONS))
_RECIPES = {"airbench": ROOT / "configs" / "cifar10" / "speedrun94.yaml"}  # whose model.args a network of ours has
_LEAST_PX = 64  # of images that the stem for photographs is for
_LR = 1e-4  # the same batch again and again must not diverge


class Task(NamedTuple):
    """What everybody trains, and how long.

    model: name of a network, torchvision's or, where it has none of that name, our own. batch_size: images. size_px:
    their height and width. num_warmup: steps before the first turn. num_steps: steps of a turn. num_classes: of the
    last layer.
    """

    model: str
    batch_size: int
    size_px: int
    num_warmup: int
    num_steps: int
    num_classes: int = 1000

    @property
    def is_ours(self) -> bool:
        """Whether the network is one of this project's."""
        return not has_torchvision(PREFIX + self.model)

    @property
    def stem(self) -> str:
        """As model.stem."""
        return "small" if self.size_px < _LEAST_PX and not self.is_ours else "default"


def main() -> None:
    """Prints a line for each contender, and writes the table."""
    parser = _build_parser()
    options = parser.parse_args()
    feed = Feed(options.images, options.copies, tuple(options.loader))
    tasks = [
        Task(model, options.batch, options.size, options.warmup, options.steps, options.classes)
        for model in options.models
    ]
    if options.one:
        run(options.one, tasks[0], feed)
        return
    try:
        for task in tasks:
            check(task, options.contenders, feed, repeats=options.repeats)
    except ValueError as error:
        parser.error(str(error))
    for task in tasks:
        rows = measure(task, options.contenders, repeats=options.repeats, **feed._asdict())
        save(rows, options.results)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["resnet50"], help="names that torchvision and timm both have, or our own"
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=list(SYNTHETIC),
        metavar="NAME",
        help="ours, bare or timm, then _bf16 and _compiled, then a loader; else all that are not fed by one",
    )
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=20, help="steps")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--images", type=Path, help="folder of JPEG files, for contenders that are fed from files")
    parser.add_argument("--copies", type=int, help="how often each file is in an epoch; else so often that none ends")
    parser.add_argument(
        "--loader", action="append", default=[], metavar="KEY=VALUE", help="of fed ones, such as num_threads=8"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a contender, in this process
    return parser


def check(task: Task, contenders: Sequence[str], feed: Feed, *, repeats: int) -> Feed:
    """Whether each contender can train this; `feed`, its copies counted.

    Raises:
        ValueError: One cannot, or there is no such contender, network or field of the loader.
    """
    for one in contenders:
        if one not in CONTENDERS:
            raise ValueError(f"there is no contender {one!r}; {nearest(one, CONTENDERS, if_many=None)}")
    configs = [build_config(one, task, feed) for one in contenders]
    check_model(configs[0].model)
    others = [one for one in contenders if not one.startswith("ours")]
    if task.is_ours and others:
        raise ValueError(
            f"{task.model} is a network of ours, which {', '.join(others)} cannot train; use contenders that begin "
            "with ours, or a network of torchvision's."
        )
    most_ready = max(num_ready(config.loader.prefetch_batches) for config in configs)
    num_steps = task.num_warmup + repeats * (most_ready + task.num_steps)
    return plan_feed(feed, contenders, size_px=task.size_px, batch_size=task.batch_size, num_steps=num_steps)


def measure(
    task: Task,
    contenders: Sequence[str],
    *,
    repeats: int,
    images: Path | None = None,
    copies: int | None = None,
    loader: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """A row for each contender, who take turns.

    Args:
        task: What they train.
        contenders: Names, of CONTENDERS.
        repeats: Turns of each.
        images: As `benchmarks.fed.Feed`.
        copies: Likewise.
        loader: Likewise.

    Raises:
        RuntimeError: A contender has ended.
        ValueError: As `check`.
    """
    feed = check(task, contenders, Feed(images, copies, tuple(loader)), repeats=repeats)
    turns: dict[str, list[dict[str, Any]]] = {one: [] for one in contenders}
    with contextlib.ExitStack() as stack:
        racers = {one: stack.enter_context(Racer(_command(one, task, feed), name=one)) for one in contenders}
        for repeat in range(repeats):
            first = repeat % len(contenders)  # nobody always comes first
            for one in [*contenders[first:], *contenders[:first]]:
                turns[one].append(racers[one].take_turn())
    said = {"device": _device_name(), **about()}
    return [_row(one, task, feed, turns=answers) | said for one, answers in turns.items()]


def _row(contender: str, task: Task, feed: Feed, *, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    backend = feed_of(contender)
    fields = {} if backend is None else loader_fields(backend, feed)
    speeds = [task.num_steps * task.batch_size / turn["seconds"] for turn in turns]
    found = {"images_per_s": statistics.median(speeds), "lowest": min(speeds), "highest": max(speeds)}
    waited_frac = statistics.median(turn["waited_s"] / turn["seconds"] for turn in turns)
    words = [*(f"{name} {value:,.1f}" for name, value in found.items()), f"data_wait_frac {waited_frac:.4f}"]
    print(task.model, contender, *words, flush=True)
    return {
        "model": task.model,
        "contender": contender,
        **{name: round(value, 1) for name, value in found.items()},
        "repeats": len(turns),
        "batch_size": task.batch_size,
        "size_px": task.size_px,
        "data": backend or "synthetic",
        "loader": " ".join(f"{key}={value}" for key, value in fields.items()),
        "data_wait_frac": round(waited_frac, 4),
    }


def _command(contender: str, task: Task, feed: Feed) -> list[str]:
    words = ["--one", contender, "--models", task.model, "--batch", str(task.batch_size), "--size", str(task.size_px)]
    words += ["--warmup", str(task.num_warmup), "--steps", str(task.num_steps), "--classes", str(task.num_classes)]
    return [sys.executable, "-m", "benchmarks.throughput", *words, *(feed.words() if feed_of(contender) else [])]


def build_config(contender: str, task: Task, feed: Feed) -> Config:
    """The configuration of a contender that is ours; of another one, whose network it has, the same.

    Raises:
        ValueError: There is no such field of the loader, or no such value.
    """
    options, backend = contender.split("_")[1:], feed_of(contender)
    name = task.model if task.is_ours else PREFIX + task.model
    recipe = _RECIPES.get(task.model) if task.is_ours else None
    args = {} if recipe is None else yaml.safe_load(recipe.read_text())["model"]["args"]
    words = ["--config", str(DEFAULT_RECIPE), "--model.name", name, "--model.args", json.dumps(args)]
    words += ["--model.stem", task.stem, "--input.size_px", str(task.size_px), "--run.select", "last"]
    words += ["--train.global_batch_size", str(task.batch_size), "--train.epochs", "1", "--run.trackers", "[]"]
    words += ["--optim.name", "sgd", "--optim.lr", str(_LR), "--optim.momentum", "0.9", "--schedule.warmup_epochs", "0"]
    words += ["--optim.weight_decay", "0.0001", "--schedule.name", "constant", "--run.checkpoint_every_minutes", "0"]
    words += ["--run.stall_minutes", "0"]  # between two turns lie those of all others
    words += ["--train.precision", "bf16" if "bf16" in options else "fp32"]
    words += ["--speed.compile", "default" if "compiled" in options else "none"]
    words += [] if backend is None else fed_words(backend, feed)
    return resolve_config(parse_config(words, parser=build_parser(prog="benchmarks.throughput", description="")), {})


def run(contender: str, task: Task, feed: Feed) -> None:
    """Trains as long as it is given turns on stdin, and prints what each took."""
    who, *options = contender.split("_")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(cores_per_rank(1))  # as start_runtime does
    with contextlib.suppress(_OverError):
        if who == "ours":
            run_ours(contender, task, feed)
        else:
            run_bare(task, _Turns(task, device), options, device=device, is_timm=who == "timm")


def run_ours(contender: str, task: Task, feed: Feed) -> None:
    """`engine.fit.fit`; its loader takes the turns."""
    config = build_config(contender, task, feed)
    runtime = start_runtime(config.train.precision, config.run, speed=config.speed)
    spec = InputSpec(size_px=task.size_px, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    module = runtime.place(build_model(config.model, num_classes=task.num_classes, spec=spec, seed=0))
    with tempfile.TemporaryDirectory() as path, tempfile.TemporaryDirectory() as links:
        loader = _build_loader(contender, task, feed, config=config, spec=spec, runtime=runtime, links=Path(links))
        folder, progress = RunFolder(path), Progress(num_epochs=1, is_main=False)
        job = Job(
            phases=build_phases(config, loader),
            loss_fn=supervised(num_classes=task.num_classes),
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


def _build_loader(
    contender: str, task: Task, feed: Feed, *, config: Config, spec: InputSpec, runtime: Runtime, links: Path
) -> Loader:
    """What takes the turns: a batch on the device, or the loader that the contender is fed by."""
    backend = feed_of(contender)
    if backend is None:
        return _OneBatch(task, _Turns(task, runtime.device), device=runtime.device)
    source = build_source(backend, feed, num_classes=task.num_classes, folder=links)
    place = Place(runtime.device, runtime.dtype, rank=0, world_size=1, num_cores=runtime.num_cores)
    data = Data(train=source, val=None, test=None, spec=spec)
    loader = build_training_loader(config, data, place=place, show_progress=False)
    return FedLoader(loader, _Turns(task, runtime.device, num_ready=num_ready(config.loader.prefetch_batches)))


def run_bare(task: Task, turns: "_Turns", options: list[str], *, device: torch.device, is_timm: bool) -> None:
    """The loop as one writes it by hand."""
    layout = torch.contiguous_format if "nchw" in options else torch.channels_last
    module = _build(task, is_timm=is_timm).to(device).to(memory_format=layout)
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


def _build(task: Task, *, is_timm: bool) -> nn.Module:
    torch.manual_seed(0)
    if is_timm:
        import timm

        module: nn.Module = timm.create_model(task.model, num_classes=task.num_classes)
    else:
        import torchvision

        module = torchvision.models.get_model(task.model, num_classes=task.num_classes)
    if task.stem == "small":
        make_stem_small(module, in_channels=3, name=task.model)
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
    labels_N = torch.randint(task.num_classes, (task.batch_size,), generator=generator)
    return images_NCHW.to(device), labels_N.to(device)


class _OverError(Exception):
    """There is no further turn."""


class _Turns:
    """Steps until the turn is over, then waits for the next one.

    Args:
        task: How many steps.
        device: Where they are taken.
        num_ready: Batches that may be ready when a turn begins; so many steps come before those that are counted.

    Attributes:
        waited_s: Seconds of the turn that its steps have waited for their batches.
    """

    def __init__(self, task: Task, device: torch.device, *, num_ready: int = 0) -> None:
        self._task, self._device, self._num_ready = task, device, num_ready
        self._num_left = task.num_warmup
        self._begin()

    def before_step(self) -> None:
        """To be called before each step."""
        if self._num_left == 0:
            self._wait_for_device()
            if not answer_and_wait({"seconds": time.perf_counter() - self._start_s, "waited_s": self.waited_s}):
                raise _OverError
            self._num_left = self._num_ready + self._task.num_steps
        if self._num_left == self._task.num_steps:
            self._begin()
        self._num_left -= 1

    def _begin(self) -> None:
        self._wait_for_device()
        self.waited_s, self._start_s = 0.0, time.perf_counter()

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


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
