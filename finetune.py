"""Fine-tunes a pretrained network: `accelerate launch finetune.py [--config RECIPE] --data.root DIR --model.name NAME`.

NAME is torchvision/NAME or timm/NAME, with the tag of its weights or without, or a run folder of train.py or of this.
--strategy.name says in what order its parts are trained. The same command continues an interrupted run.
"""

import os
import sys
from functools import partial
from pathlib import Path

from torch import nn

from configs.check import check_batch
from configs.load import load_with_options, replace_section
from configs.schema import Config
from engine.build import build_average, build_bn_loader, build_card, check_fits, resolve_config, with_measured_input
from engine.build_loss import build_loss
from engine.build_start import Start, build_start, describe_images, describe_input
from engine.build_strategy import build_strategy_phases, decide_strategy, first_scheduled_epoch
from engine.errors import clear_errors
from engine.folds import FoldOptions, list_runs, summarise
from engine.run import Desk, Plan, conduct, unless_finished
from engine.run_on_features import Tools, conduct_on_features
from engine.runtime import start_runtime
from engine.teachers import hash_weights
from models.build import build_model, build_pretrained, build_pretrained_spec, build_started, check_model, check_sizes
from models.classifiers import fit_classifier
from models.heads import copy_head
from models.knn import install_classifier
from models.start import start_from_images
from models.surgery import find_head, list_layers, list_stages
from pipelines.build import (
    Data,
    Place,
    build_cached_loader,
    build_data,
    build_loaders,
    build_measuring_loader,
    build_whole_train_loader,
    check_dataset,
    default_cache,
    describe_data,
    fingerprint_splits,
    read_training_images,
)
from report.page import draw_run

RECIPE = Path(__file__).parent / "configs" / "finetune" / "folder.yaml"
_NUM_SHOWN = 256  # images by which it is seen whether the data looks like what the weights expect


def main() -> None:
    """Command line -> what is started from -> a run, or one for each part of a cross-validation."""
    with clear_errors(sys.argv):
        config, options = load_with_options(
            sys.argv[1:], options=FoldOptions, prog="finetune.py", description=__doc__ or "", recipe=RECIPE
        )
        config, start = build_start(config, spec_of=build_pretrained_spec)
        config = resolve_config(config, os.environ)
        runs = list_runs(config, options)
        check_dataset(config.data)
        check_model(config.model)
        runtime = start_runtime(config.train.precision, config.run, speed=config.speed, sync_bn=config.train.sync_bn)
        check_batch(config, world_size=runtime.world_size)
        for one in runs:
            folder = unless_finished(one, partial(tune, one, start), runtime=runtime)
            if runtime.from_main(folder.read_result) is None:  # told to stop, or a dry run
                break
        else:
            if options.folds and runtime.is_main:
                print(summarise(Path(str(config.run.out)), runs, options))
        runtime.end()


def tune(config: Config, start: Start, desk: Desk) -> None:
    """Data, network with its weights, strategy, loaders, phases, loss; then all of it is conducted."""
    runtime, measured = desk.runtime, with_measured_input(config, desk.folder)
    if config.strategy.name == "features":  # kept ones would not show that files were edited in place
        measured = replace_section(measured, "data", rescan=True)
    with runtime.first_on_this_machine():  # it writes the index of the images, and downloads weights
        data = build_data(measured, show_progress=runtime.is_main)
        network = build_network(config, start, data, desk=desk)
    module, class_names = runtime.place(network), data.train.class_names
    head = find_head(module, num_classes=len(class_names))
    place = Place(runtime.device, runtime.dtype, runtime.rank, runtime.world_size, runtime.num_cores)
    some_images = partial(build_measuring_loader, config, data, place=place, show_progress=runtime.is_main)
    decided = decide_strategy(config, module, some_images, head=head, labels_N=data.train.labels_N, desk=desk)
    loaders = build_loaders(config, data, place=place, show_progress=runtime.is_main)
    builders = (build_model, build_pretrained)
    loss = build_loss(config, module, data.train, spec=data.spec, builders=builders, runtime=runtime)
    card = build_card(config, class_names=class_names, spec=data.spec, fingerprints=fingerprint_splits(data))
    drawn = None if config.weights.head == "keep" else head
    start_card = {"name": start.name, "sha256": hash_weights(module, but=drawn)}
    began = {} if decided.strategy.name == "scratch" else {"start": start_card}
    plan = Plan(
        module=module,
        phases=[],
        loss_fn=loss.loss_fn,
        card=card | {"teachers": loss.teachers, "strategy": decided.strategy.name} | began,
        evaluation=loaders.evaluation,
        spec=data.spec,
        description=describe_data(data, loaders),
        loader=loaders.backend.name,
    )
    if decided.strategy.name == "features":
        tools = Tools(
            train_images=partial(build_whole_train_loader, config, data, place=place, show_progress=runtime.is_main),
            batches_of=partial(build_cached_loader, config, data, place=place),
            fit=fit_classifier,
            copy_head=copy_head,
            install=install_classifier,
            cache=default_cache(),
        )
        conduct_on_features(config, plan, head=head, tools=tools, desk=desk, draw=draw_run)
        return
    stages, layers = list_stages(module, head=head), list_layers(module)
    phases = build_strategy_phases(decided, loaders.train, loaders.train_in_batches_of, stages=stages, layers=layers)
    check_fits(config, module, spec=data.spec, runtime=runtime, phase=phases[-1])
    before = first_scheduled_epoch(decided.strategy, num_stages=len(stages))
    plan = plan._replace(
        phases=phases,
        average=build_average(config, module, some_images, first_epoch=before),
        bn_loader=build_bn_loader(config, module, some_images),
    )
    conduct(config, plan, desk=desk, draw=draw_run)


def build_network(config: Config, start: Start, data: Data, *, desk: Desk) -> nn.Module:
    """The network with its weights, checked against the data; says what fitted, and what it will see."""
    say, spec, num_classes = desk.progress.say, data.spec, len(data.train.class_names)
    show_progress = desk.runtime.is_main
    read_images = partial(read_training_images, config, data, show_progress=show_progress)
    if config.strategy.name == "scratch":
        seed, frugal = config.run.seed, config.speed.gradient_checkpointing
        module = build_model(config.model, num_classes=num_classes, spec=spec, seed=seed, has_checkpointing=frugal)
        start_from_images(module, read_images, seed=seed)
        say("weights: random")
    else:
        module, match = build_started(config, file=start.file, num_classes=num_classes, spec=spec)
        say(f"weights: {start.name}: {match.describe()}")
    check_sizes(module, spec=spec, sizes_px=[size_px for _, size_px in config.augment.sizes_px])
    say(describe_input(spec, given=start.spec, is_grey=data.train.is_grey))
    say(describe_images(read_images(num_images=_NUM_SHOWN), spec))
    return module


if __name__ == "__main__":
    main()
