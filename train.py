"""Trains an image classifier: `accelerate launch train.py [--config RECIPE] [--section.field VALUE ...]`.

Without a recipe it learns scikit-learn's handwritten digits. The same command continues an interrupted run.
"""

import os
import sys
from functools import partial

from torch import nn

from configs.check import check_batch
from configs.check_strategy import refuse_finetuning
from configs.load import load_config
from configs.schema import Config
from engine.build import (
    build_average,
    build_bn_loader,
    build_card,
    check_fits,
    resolve_config,
    with_measured_input,
)
from engine.build_loss import build_loss
from engine.build_phases import build_phases
from engine.errors import clear_errors
from engine.run import Desk, Plan, conduct, unless_finished
from engine.runtime import start_runtime
from models.build import build_model, build_pretrained, check_model, check_sizes
from models.start import start_from_images
from models.surgery import list_layers
from pipelines.build import (
    Data,
    Place,
    build_data,
    build_loaders,
    build_measuring_loader,
    check_dataset,
    describe_data,
    fingerprint_splits,
    read_training_images,
)
from report.page import draw_run


def main() -> None:
    """Command line -> configuration -> run."""
    with clear_errors(sys.argv):
        config = load_config(sys.argv[1:], prog="train.py", description=__doc__ or "")
        refuse_finetuning(config)
        config = resolve_config(config, os.environ)
        check_dataset(config.data)
        check_model(config.model)
        runtime = start_runtime(config.train.precision, config.run, speed=config.speed, sync_bn=config.train.sync_bn)
        check_batch(config, world_size=runtime.world_size)
        unless_finished(config, partial(train, config), runtime=runtime)
        runtime.end()


def train(config: Config, desk: Desk) -> None:
    """Data, network, loaders, phases, loss; then all of it is conducted."""
    runtime = desk.runtime
    with runtime.first_on_this_machine():  # it writes the index of the images, and the others map it
        data = build_data(with_measured_input(config, desk.folder), show_progress=runtime.is_main)
    module = runtime.place(build_network(config, data, show_progress=runtime.is_main))
    place = Place(runtime.device, runtime.dtype, runtime.rank, runtime.world_size, runtime.num_cores)
    loaders = build_loaders(config, data, place=place, show_progress=runtime.is_main)
    phases = build_phases(config, loaders.train, loaders.train_in_batches_of, layers=list_layers(module))
    check_fits(config, module, spec=data.spec, runtime=runtime)
    builders = (build_model, build_pretrained)
    loss = build_loss(config, module, data.train, spec=data.spec, builders=builders, runtime=runtime)
    card = build_card(config, class_names=data.train.class_names, spec=data.spec, fingerprints=fingerprint_splits(data))
    some_images = partial(build_measuring_loader, config, data, place=place, show_progress=runtime.is_main)
    plan = Plan(
        module=module,
        phases=phases,
        loss_fn=loss.loss_fn,
        card=card | {"teachers": loss.teachers},
        evaluation=loaders.evaluation,
        spec=data.spec,
        description=describe_data(data, loaders),
        loader=loaders.backend.name,
        average=build_average(config, module, some_images),
        bn_loader=build_bn_loader(config, module, some_images),
    )
    conduct(config, plan, desk=desk, draw=draw_run)


def build_network(config: Config, data: Data, *, show_progress: bool) -> nn.Module:
    """The network, checked against the data, and started from training images if it asks for them."""
    module = build_model(
        config.model,
        num_classes=len(data.train.class_names),
        spec=data.spec,
        seed=config.run.seed,
        has_checkpointing=config.speed.gradient_checkpointing,
    )
    check_sizes(module, spec=data.spec, sizes_px=[size_px for _, size_px in config.augment.sizes_px])
    read_images = partial(read_training_images, config, data, show_progress=show_progress)
    start_from_images(module, read_images, seed=config.run.seed)
    return module


if __name__ == "__main__":
    main()
