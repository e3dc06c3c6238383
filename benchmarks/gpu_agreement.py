"""How near DALI's pixels on a GPU are to the CPU path's, and whether a trained network cares.

    python -m benchmarks.gpu_agreement --images DIR --cifar DIR

photographs -> windows of random-resized-crop, 224 px -> each way -> differences from Pillow and torchvision (reference)
CIFAR-10    -> train.py (backend threads, 64 px)      -> a network -> each way's images of test -> who predicts what

`dali` is DALI where the device is, `dali_cpu` the same on the CPU; `_load_` is the part of a batch, in per cent, that
a GPU's JPEG decoder takes (loader.hw_decoder_load; 100 where it is not said).
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.ours import plan_images
from benchmarks.peers_job import ImagenetJob
from benchmarks.photographs import link_as_image_folder, list_jpegs
from benchmarks.recipes import ROOT
from configs.load import load_config, replace_section
from configs.schema import AugmentConfig, Config, ScheduleConfig
from engine.build import resolve_config, with_card
from engine.checkpoint import load_weights, read_card, scored_checkpoint
from engine.record import RunFolder
from engine.runtime import Runtime, start_runtime
from models.build import build_model
from pipelines.build import Place, build_data, build_evaluation_loader
from pipelines.execution import Executor
from pipelines.executors.dali import DaliExecutor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.threads import ThreadsExecutor
from pipelines.plan import Plan
from pipelines.source import Source
from pipelines.sources.scan import scan_folder

_BATCH = 32
_MOST_PIXELS_OFF = 8  # of 255: what is counted as far off
_RECIPE = "configs/cifar10/simple_cnn_bn_dropout_aug.yaml"
_SIZE_PX = 64  # twice CIFAR-10's: every image is resized
WAYS_OF_PREDICTING: dict[str, dict[str, Any]] = {  # fields of loader; the first is held against
    "threads": {"backend": "threads"},
    "reference": {"backend": "reference"},
    "dali": {"backend": "dali"},
    "dali_load_0": {"backend": "dali", "hw_decoder_load": 0.0},
    "dali_load_65": {"backend": "dali", "hw_decoder_load": 0.65},
}


class Task(NamedTuple):
    """What is compared. num_images: photographs. epochs: of training the network. num_threads: of loaders."""

    images: Path
    cifar: Path
    device: torch.device
    num_images: int
    epochs: int
    num_threads: int


def main() -> None:
    """Prints a line for each way; writes all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="photographs: a folder of JPEG files")
    parser.add_argument("--cifar", type=Path, required=True, help="CIFAR-10 as train/<class>/ and test/<class>/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--num_images", type=int, default=512, help="photographs; files are taken several times")
    parser.add_argument("--epochs", type=int, default=3, help="of training the network")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    device = torch.device(given.device)
    task = Task(given.images, given.cifar, device, given.num_images, given.epochs, given.threads)
    found: dict[str, Any] = {}
    for name, measure in (("pixels", measure_pixels), ("predictions", measure_predictions)):
        found[name] = measure(task)
        for row in found[name]:
            print(name, *(f"{key} {value}" for key, value in row.items()), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n")


def measure_pixels(task: Task) -> list[dict[str, Any]]:
    """A row for each way: its pixels' differences from the reference's, of 255, and from DALI's own at load 100."""
    files = list_jpegs(task.images)
    paths = [str(files[number % len(files)]) for number in range(task.num_images)]
    with tempfile.TemporaryDirectory() as folder:
        link_as_image_folder(paths, Path(folder))
        source = scan_folder(folder, show_progress=False)["train"]
        job = ImagenetJob(paths=paths, folder=Path(folder), batch_size=min(_BATCH, len(paths)))
        plans = list(plan_images(source, job)())
        found = {name: _images_of(build(source, task), plans) for name, build in _WAYS_OF_PIXELS.items()}
    wanted, own = found["reference"], found["dali"]
    return [
        {"way": name, **_differences(pixels, wanted), "frac_unlike_dali": _unlike(pixels, own)}
        for name, pixels in found.items()
    ]


def _differences(pixels: Tensor, wanted: Tensor) -> dict[str, float]:
    off = (pixels.int() - wanted.int()).abs()
    return {
        "mean_of_255": round(off.float().mean().item(), 4),
        "worst_image_of_255": round(off.flatten(1).float().mean(1).max().item(), 3),
        "frac_far_off": round((off > _MOST_PIXELS_OFF).float().mean().item(), 6),
        "max_of_255": int(off.max().item()),
    }


def _unlike(pixels: Tensor, own: Tensor) -> float:
    """The part of the images of which some value differs."""
    return round((pixels != own).flatten(1).any(1).float().mean().item(), 4)


def _images_of(executor: Executor, plans: list[Plan]) -> Tensor:
    found = []
    for carried in executor.run(iter(plans)):
        assert not carried.bad, carried.bad
        found.append(carried.images_NHWC.cpu().clone())
    return torch.cat(found)


def _dali(load_frac: float, *, on_cpu: bool = False) -> Callable[[Source, Task], Executor]:
    return lambda source, task: DaliExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        device=torch.device("cpu") if on_cpu else task.device,
        num_threads=task.num_threads,
        num_prefetched=2,
        hw_decoder_load=load_frac,
    )


def _threads(source: Source, task: Task) -> Executor:
    return ThreadsExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        num_threads=task.num_threads,
        num_prefetched=2,
        pin_memory=task.device.type == "cuda",
    )


def _reference(source: Source, task: Task) -> Executor:
    return ReferenceExecutor(source, channels=3, interpolation="bilinear", num_workers=0, pin_memory=False)


_WAYS_OF_PIXELS: dict[str, Callable[[Source, Task], Executor]] = {
    "reference": _reference,
    "threads": _threads,
    "dali_cpu": _dali(1.0, on_cpu=True),
    "dali": _dali(1.0),
    "dali_load_0": _dali(0.0),
    "dali_load_65": _dali(0.65),
}


def measure_predictions(task: Task) -> list[dict[str, Any]]:
    """A row for each way: top-1 on test of a network that `threads` fed, and how often it predicts the same."""
    with tempfile.TemporaryDirectory() as folder:
        train(task, Path(folder) / "run")
        scorer = Scorer(Path(folder) / "run", task)
        logits_NK = {name: scorer.logits_of(loader) for name, loader in WAYS_OF_PREDICTING.items()}
    wanted_NK = logits_NK[next(iter(WAYS_OF_PREDICTING))]
    return [
        {
            "way": name,
            "num_samples": len(found_NK),
            "top1_frac": round((found_NK.argmax(1) == scorer.labels_N).double().mean().item(), 4),
            "same_prediction_frac": round((found_NK.argmax(1) == wanted_NK.argmax(1)).double().mean().item(), 5),
            "mean_logit_difference": round((found_NK - wanted_NK).abs().mean().item(), 5),
            "logit_std": round(wanted_NK.std().item(), 3),
        }
        for name, found_NK in logits_NK.items()
    ]


def train(task: Task, folder: Path) -> None:
    """A network of a few epochs, fed by `threads`."""
    words = ["train.py", "--config", _RECIPE, "--data.root", str(task.cifar.resolve()), "--data.val_frac", "0"]
    words += ["--run.select", "last", "--run.out", str(folder), "--run.trackers", "[]", "--loader.backend", "threads"]
    words += ["--input.size_px", str(_SIZE_PX), "--train.epochs", str(task.epochs)]
    words += ["--loader.num_threads", str(task.num_threads)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=sys.stderr)


class Scorer:
    """A trained network, and the images of test as any loader makes them.

    Args:
        folder: The run's.
        task: Its device must be the one that programs take.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        checkpoint = scored_checkpoint(RunFolder(str(folder)).checkpoints)
        card = read_card(checkpoint)
        config = load_config(["--config", str(folder / "config.yaml")], prog="benchmarks.gpu_agreement", description="")
        config = dataclasses.replace(config, augment=AugmentConfig(), schedule=ScheduleConfig())
        self._config: Config = with_card(resolve_config(config, os.environ), card)
        self._num_threads = task.num_threads
        self._runtime: Runtime = start_runtime(self._config.train.precision, self._config.run)
        assert self._runtime.device.type == task.device.type, (self._runtime.device, task.device)
        data = build_data(self._config, show_progress=False)
        num_classes = len(data.train.class_names)
        module = build_model(self._config.model, num_classes=num_classes, spec=data.spec, seed=0)
        self._module: nn.Module = self._runtime.place(module).eval()
        load_weights(self._module, checkpoint, weights="judged")
        assert data.test is not None, "CIFAR-10 has test images"
        self.labels_N = torch.from_numpy(np.array(data.test.labels_N))

    def logits_of(self, loader: dict[str, Any]) -> Tensor:
        """Logits of all images of test, float32 (N, K), on the CPU, in the order of their ids."""
        config = replace_section(self._config, "loader", num_threads=self._num_threads, **loader)
        runtime = self._runtime
        place = Place(runtime.device, runtime.dtype, 0, 1, runtime.num_cores)
        data = build_data(config, show_progress=False)
        batches = build_evaluation_loader(config, data, "test", place=place, show_progress=False)
        with torch.inference_mode():
            pairs = list(self._scored(iter(batches)))
        ids_N = torch.cat([ids for ids, _ in pairs])
        assert torch.equal(ids_N, torch.arange(len(self.labels_N))), "every image is scored once"
        return torch.cat([logits for _, logits in pairs])

    def _scored(self, batches: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            with self._runtime.autocast():
                logits_NK = self._module(*batch.inputs)
            yield batch.ids_N[batch.valid_N].cpu(), logits_NK[batch.valid_N].float().cpu()


if __name__ == "__main__":
    main()
