"""One run of a program, from its folder to its result.

configuration -> unless_finished -> its folder, claimed -> the program's own train(...), which makes a Plan of the parts
Plan          -> conduct         -> opened, previewed -> fit -> scored; without the last two where it is told to stop
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from configs.load import config_to_dict
from configs.schema import Config, InputSpec
from engine.averages import Ema, Swa
from engine.bad_samples import BadSampleLog
from engine.build import build_folder, build_settings
from engine.evaluation import describe_result, evaluate
from engine.final import score_run
from engine.fit import fit
from engine.losses import LossFn
from engine.opening import open_folder, save_preview, trace_schedule
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime
from engine.state import Job, Phase
from pipelines.batch import Loader


class Desk(NamedTuple):
    """Where a run is computed, written and said."""

    runtime: Runtime
    folder: RunFolder
    progress: Progress


class Plan(NamedTuple):
    """What is trained, how, on what, and what it is scored on.

    module: placed on the device. phases, loss_fn, average, bn_loader, card: as in `engine.state.Job`. evaluation:
    split -> loader, of val and test where there are such. spec: what the network sees. description: lines on the data,
    for the screen. loader: name of the backend that makes training batches.
    """

    module: nn.Module
    phases: list[Phase]
    loss_fn: LossFn
    card: dict[str, Any]
    evaluation: Mapping[str, Loader]
    spec: InputSpec
    description: str
    loader: str
    average: Ema | Swa | None = None
    bn_loader: Loader | None = None


def unless_finished(config: Config, train: Callable[[Desk], None], *, runtime: Runtime) -> RunFolder:
    """Calls `train` with the run's folder claimed for it; a finished run is told of instead.

    Raises:
        FileExistsError: A run is there, and resume is never.
        ValueError: The run that is there has another configuration.
    """
    folder = build_folder(config)
    progress = Progress(num_epochs=config.train.epochs, is_main=runtime.is_main)
    if not config.dry_run:
        folder.check_continues(config_to_dict(config))
    result = runtime.from_main(lambda: None if config.dry_run else folder.read_result())  # all have looked now
    if result is None:
        with runtime.naming_lost_ranks(), folder.claim() if runtime.is_main else contextlib.nullcontext():
            train(Desk(runtime, folder, progress))
    else:
        trained_on = folder.read_config()["data"]["root"] or config.data.dataset
        progress.say(
            f"{folder.path} is finished: trained on {trained_on}, {describe_result(result)}; "
            "use another --run.out to train again"
        )
    return folder


def conduct(config: Config, plan: Plan, *, desk: Desk, draw: Callable[[RunFolder, Callable[[str], None]], Any]) -> None:
    """Opens the run folder, trains, scores; stops after the opening in a dry run, and where training is told to stop.

    Args:
        config: The run's.
        plan: What is trained.
        desk: Where.
        draw: Makes a page of a run folder, and says what it cannot; gives where the page is.

    Raises:
        ValueError: Something in the plan does not fit; nothing has been written then.
    """
    runtime, folder, progress = desk
    schedule = trace_schedule(
        plan.phases, plan.module
    )  # the last that may be refused: a folder holds what can be trained
    open_folder(
        config,
        plan.module,
        description=plan.description,
        loader=plan.loader,
        card=plan.card,
        runtime=runtime,
        folder=folder,
        progress=progress,
    )
    if runtime.is_main:
        save_preview(schedule, plan.phases[0].loader, plan.spec, folder=folder)
    if config.dry_run:
        progress.say(f"dry run: nothing was trained; schedule and first images: {draw(folder, progress.say)}")
        return
    job = build_job(config, plan, desk=desk)
    if (state := fit(plan.module, job)).stopped_by is not None:
        return
    score_run(plan.module, plan.evaluation, job=job, state=state, tta=config.evaluation.tta)
    if runtime.is_main:
        progress.say(f"results, curves and checkpoints: {folder.path}; on one page: {draw(folder, progress.say)}")


def build_job(config: Config, plan: Plan, *, desk: Desk) -> Job:
    """What `fit` is given."""
    runtime, folder, progress = desk
    bad_log = BadSampleLog(folder, runtime=runtime, progress=progress)
    score = partial(evaluate, num_classes=len(plan.card["class_names"]), runtime=runtime, bad_log=bad_log)
    return Job(
        phases=plan.phases,
        loss_fn=plan.loss_fn,
        validate=partial(score, loader=plan.evaluation["val"]) if "val" in plan.evaluation else None,
        card=plan.card,
        config=config_to_dict(config),
        bad_log=bad_log,
        folder=folder,
        runtime=runtime,
        settings=build_settings(config, os.environ),
        progress=progress,
        average=plan.average,
        bn_loader=plan.bn_loader,
    )
