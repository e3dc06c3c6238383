"""What is said and written down before training starts: the run, the schedule, and images as the network sees them.

config, module, data -> open_folder    -> lines on the screen; config.yaml, environment.json,
                                          albumentations.json
phases               -> trace_schedule -> learning rate and momentum over the epochs
loader               -> take_samples   -> its first batch, de-normalised; the loader stays where it was
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from configs.load import config_to_dict
from configs.own_pipeline import read_pipeline
from configs.schema import Config, InputSpec
from engine.freezing import trained_as
from engine.optimizers import main_lr
from engine.progress import Progress
from engine.record import RunFolder, Samples, describe_environment
from engine.runtime import Runtime
from engine.state import Phase
from pipelines.batch import Loader

_NUM_POINTS = 1000  # of each phase
_NUM_SAMPLES = 32


def open_folder(
    config: Config,
    module: nn.Module,
    *,
    description: str,
    loader: str,
    card: dict[str, Any],
    runtime: Runtime,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Says and records what is about to be trained, and on what.

    Args:
        config: The run's.
        module: The network; its parameters are counted.
        description: Lines about the data.
        loader: Name of the loader's backend.
        card: What the weights will be, as in a checkpoint: input, class names and fingerprints of the data go into
            environment.json, beside versions, machine and command.
        runtime: Where it runs.
        folder: Where it is written.
        progress: Where it is said.

    Raises:
        ValueError: The file of the user's own pipeline has changed since the run started.
    """
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    progress.say(description)
    progress.say(f"model: {config.model.name}, {num_parameters:,} parameters")
    progress.say(f"machine: {runtime.describe()}")
    if runtime.is_main:
        about = {
            "machine": runtime.describe(),
            "world_size": runtime.world_size,
            "num_parameters": num_parameters,
            "loader": loader,
            "input": card["input"],
            "class_names": card["class_names"],
            "fingerprints": card["data"],
        }
        path, own_hash = config.augment.albumentations, config.augment.albumentations_hash
        pipeline = None if path is None else read_pipeline(path, expected_hash=own_hash)
        folder.save_start(config_to_dict(config), describe_environment(about), pipeline=pipeline)
    runtime.wait_for_all()


def save_preview(schedule: dict[str, list[float]], loader: Loader, spec: InputSpec, *, folder: RunFolder) -> None:
    """Writes schedule.json, as `trace_schedule` gives it, and samples.npz of training batches into the run folder.

    Raises:
        ValueError: An image cannot be read.
    """
    folder.save_schedule(schedule)
    folder.save_samples(take_samples(loader, spec))


def trace_schedule(phases: list[Phase], module: nn.Module) -> dict[str, list[float]]:
    """Lists of one length: `epoch`, `lr`, and `momentum` where the schedule moves it. Plateau does not show in it.

    `lr` is the highest of what each phase trains.

    Raises:
        ValueError: As what makes a phase's optimizer.
    """
    epochs: list[float] = []
    lrs: list[float] = []
    momenta: list[float] = []
    before = 0
    for phase in phases:
        with trained_as(module, phase.trains):
            peak_lr = main_lr(phase.build_optimizer(module).param_groups)
        for step in range(0, phase.num_steps, max(1, phase.num_steps // _NUM_POINTS)):
            epochs.append(before + step / phase.loader.steps_per_epoch)
            lrs.append(peak_lr * phase.lr_factor(step))
            if phase.momentum_at is not None:
                momenta.append(phase.momentum_at(step))
        before += phase.epochs
    schedule = {"epoch": epochs, "lr": lrs}
    return schedule | {"momentum": momenta} if len(momenta) == len(epochs) else schedule


def take_samples(loader: Loader, spec: InputSpec) -> Samples:
    """Up to 32 images of the first batch, as uint8 on the scale of the stored images.

    Raises:
        ValueError: An image cannot be read.
    """
    position = loader.state_dict()
    batches = iter(loader)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]  # loaders are generators: what they hold is given back now
    loader.load_state_dict(position)
    loader.take_bad_samples()  # they are met again when training comes to them
    assert spec.mean is not None, "complete_input leaves no field open"
    assert spec.std is not None, "as above"
    images_NHWC = batch.inputs[0][:_NUM_SAMPLES].detach().float().cpu().permute(0, 2, 3, 1)
    pixels = (images_NHWC * torch.tensor(spec.std) + torch.tensor(spec.mean)) * 255
    labels_N = batch.labels_N[:_NUM_SAMPLES].cpu().numpy()
    mix = batch.mix
    return Samples(
        images_NHWC=pixels.round().clamp(0, 255).to(torch.uint8).numpy(),
        labels_N=labels_N,
        partner_labels_N=labels_N if mix is None else mix.partner_labels_N[:_NUM_SAMPLES].cpu().numpy(),
        weight_N=np.ones(len(labels_N), np.float32) if mix is None else mix.weight_N[:_NUM_SAMPLES].cpu().numpy(),
    )
