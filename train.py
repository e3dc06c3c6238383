"""Trains an image classifier: `accelerate launch train.py [--config RECIPE] [--section.field VALUE ...]`.

Without a recipe it learns scikit-learn's handwritten digits. The same command continues an interrupted run.
"""

import contextlib
import os
import sys
from functools import partial

from torch import nn

from configs.check import check_batch
from configs.load import config_to_dict, load_config
from configs.schema import Config
from engine.bad_samples import BadSampleLog
from engine.build import (
    build_average,
    build_bn_loader,
    build_card,
    build_folder,
    build_settings,
    check_fits,
    resolve_config,
    with_measured_input,
)
from engine.build_loss import build_loss
from engine.build_phases import build_phases
from engine.errors import clear_errors
from engine.evaluation import describe_result, evaluate
from engine.final import score_run
from engine.fit import fit
from engine.opening import open_folder, save_preview, trace_schedule
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime, start_runtime
from engine.state import Job
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
        config = resolve_config(load_config(sys.argv[1:], prog="train.py", description=__doc__ or ""), os.environ)
        check_dataset(config.data)
        check_model(config.model)
        runtime = start_runtime(config.train.precision, config.run, speed=config.speed, sync_bn=config.train.sync_bn)
        check_batch(config, world_size=runtime.world_size)
        folder = build_folder(config)
        progress = Progress(num_epochs=config.train.epochs, is_main=runtime.is_main)
        if not config.dry_run:
            folder.check_continues(config_to_dict(config))
        result = runtime.from_main(lambda: None if config.dry_run else folder.read_result())  # all have looked now
        if result is None:
            with runtime.naming_lost_ranks(), folder.claim() if runtime.is_main else contextlib.nullcontext():
                train(config, runtime=runtime, folder=folder, progress=progress)
        else:
            trained_on = folder.read_config()["data"]["root"] or config.data.dataset
            progress.say(
                f"{folder.path} is finished: trained on {trained_on}, {describe_result(result)}; "
                "use another --run.out to train again"
            )
        runtime.end()


def train(config: Config, *, runtime: Runtime, folder: RunFolder, progress: Progress) -> None:
    """Data, model, fit, scores, result; without the last two where it is told to stop."""
    with runtime.first_on_this_machine():  # it writes the index of the images, and the others map it
        data = build_data(with_measured_input(config, folder), show_progress=runtime.is_main)
    module = runtime.place(build_network(config, data, show_progress=runtime.is_main))
    place = Place(runtime.device, runtime.dtype, runtime.rank, runtime.world_size, runtime.num_cores)
    loaders = build_loaders(config, data, place=place, show_progress=runtime.is_main)
    phases = build_phases(config, loaders.train, loaders.train_in_batches_of, layers=list_layers(module))
    check_fits(config, module, spec=data.spec, runtime=runtime)
    builders = (build_model, build_pretrained)
    loss = build_loss(config, module, data.train, spec=data.spec, builders=builders, runtime=runtime)
    card = build_card(config, class_names=data.train.class_names, spec=data.spec, fingerprints=fingerprint_splits(data))
    card["teachers"] = loss.teachers
    some_images = partial(build_measuring_loader, config, data, place=place, show_progress=runtime.is_main)
    average, bn_loader = build_average(config, module, some_images), build_bn_loader(config, module, some_images)
    schedule = trace_schedule(phases, module)  # the last that may be refused: a run folder holds what can be trained
    open_folder(
        config,
        module,
        description=describe_data(data, loaders),
        loader=loaders.backend.name,
        card=card,
        runtime=runtime,
        folder=folder,
        progress=progress,
    )
    if runtime.is_main:
        save_preview(schedule, loaders.train, data.spec, folder=folder)
    if config.dry_run:
        progress.say(f"dry run: nothing was trained; schedule and first images: {draw_run(folder, progress.say)}")
        return
    bad_log = BadSampleLog(folder, runtime=runtime, progress=progress)
    score = partial(evaluate, num_classes=len(card["class_names"]), runtime=runtime, bad_log=bad_log)
    job = Job(
        phases=phases,
        loss_fn=loss.loss_fn,
        validate=partial(score, loader=loaders.evaluation["val"]) if "val" in loaders.evaluation else None,
        card=card,
        config=config_to_dict(config),
        bad_log=bad_log,
        folder=folder,
        runtime=runtime,
        settings=build_settings(config, os.environ),
        progress=progress,
        average=average,
        bn_loader=bn_loader,
    )
    if (state := fit(module, job)).stopped_by is not None:
        return
    score_run(module, loaders.evaluation, job=job, state=state, tta=config.evaluation.tta)
    if runtime.is_main:
        progress.say(f"results, curves and checkpoints: {folder.path}; on one page: {draw_run(folder, progress.say)}")


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
