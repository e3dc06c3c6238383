"""A run that trains the last layer of a network on features: what the rest makes of each image, computed once.

images, each once -> features, kept between runs -> classifier: linear      trained by `fit`, in RUN/head     |
                                                                logistic, svm, knn  fitted by scikit-learn    |
    -> installed as the network's last layer -> the run's checkpoint -> val, test scored on images as ever  <-
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import nn

from configs.imports import is_import_path
from configs.schema import AugmentConfig, Config
from engine.bad_samples import BadSampleLog
from engine.features import Features, cached_features, compute_features, features_key
from engine.final import save_final, score_checkpoint
from engine.opening import open_folder, take_samples
from engine.record import RunFolder
from engine.run import Desk, Plan
from engine.train_head import train_head
from pipelines.batch import Loader


class Fitted(Protocol):
    """A classifier of models/classifiers.py."""

    def describe(self) -> str:
        """What was chosen and why, in a line."""
        ...


class Tools(NamedTuple):
    """What other rooms do for it.

    train_images: those of train, each once, as evaluation shows them. batches_of: (split, features) -> batches of
    features. fit: (kind, features (N, D), labels (N,), num_classes=, cv_folds=, seed=, has_bias=) -> classifier.
    copy_head: (module, head) -> that layer on its own. install: (module, head, classifier or layer) -> what a
    checkpoint's card has to say of it, beside the rest. cache: folder of what is kept between runs.
    """

    train_images: Callable[[], Loader]
    batches_of: Callable[[str, Features], Loader]
    fit: Callable[..., Fitted]
    copy_head: Callable[[nn.Module, str], nn.Linear]
    install: Callable[[nn.Module, str, Any], dict[str, Any]]
    cache: Path


def conduct_on_features(
    config: Config,
    plan: Plan,
    *,
    head: str,
    tools: Tools,
    desk: Desk,
    draw: Callable[[RunFolder, Callable[[str], None]], Any],
) -> None:
    """Features, classifier, checkpoint, scores; in a dry run none of these, and not where training is told to stop.

    Args:
        config: The run's.
        plan: What is trained; of its phases none is read.
        head: The path of the network's last layer.
        tools: What other rooms do.
        desk: Where.
        draw: As in `engine.run.conduct`.

    Raises:
        ValueError: The network does something after its last layer, a class has too few images for cross-validation,
            or an image cannot be read.
    """
    runtime, folder, progress = desk
    bad_log = BadSampleLog(folder, runtime=runtime, progress=progress)
    images = {"train": tools.train_images(), **plan.evaluation}
    if runtime.is_main and not config.dry_run:
        folder.drop_all_rows()  # of a start that was interrupted; those of RUN/head stay
    features = (
        {} if config.dry_run else _compute(config, plan, images, head=head, tools=tools, desk=desk, bad_log=bad_log)
    )
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
    if config.augment != AugmentConfig():
        progress.say("augmentation: none, for features are those of each image as evaluation shows it")
    if runtime.is_main:
        folder.save_samples(take_samples(images["train"], plan.spec))
    if config.dry_run:
        progress.say(f"dry run: nothing was computed; first images: {draw(folder, progress.say)}")
        return
    trained = _train(config, plan, features, head=head, tools=tools, desk=desk)
    if trained is None:
        return
    _score(config, plan, *trained, desk=desk, bad_log=bad_log)
    if runtime.is_main:
        progress.say(f"results and checkpoint: {folder.path}; on one page: {draw(folder, progress.say)}")


def _score(
    config: Config,
    plan: Plan,
    step: int,
    epoch: int,
    card: dict[str, Any],
    *,
    desk: Desk,
    bad_log: BadSampleLog,
) -> None:
    """Saves the network with its classifier, and scores that on images."""
    runtime, folder, progress = desk
    save_final(plan.module, step=step, card=card, folder=folder, runtime=runtime)
    score_checkpoint(
        plan.module,
        plan.evaluation,
        card=card,
        step=step,
        epoch=epoch,
        tta=config.evaluation.tta,
        folder=folder,
        runtime=runtime,
        bad_log=bad_log,
        progress=progress,
    )


def _compute(
    config: Config,
    plan: Plan,
    images: Mapping[str, Loader],
    *,
    head: str,
    tools: Tools,
    desk: Desk,
    bad_log: BadSampleLog,
) -> dict[str, Features]:
    """Features of train and, where the head is trained in epochs, of val.

    Every start computes those of a network of the user's own anew, for its code may have changed.
    """
    runtime = desk.runtime
    splits = ["train"] + (["val"] if "val" in images and config.strategy.classifier == "linear" else [])

    def compute(split: str) -> Features:
        beat = partial(runtime.watchdog.beat, "computing features")
        if is_import_path(config.model.name):  # no key knows what the user's own code does
            return compute_features(
                plan.module,
                images[split],
                head=head,
                runtime=runtime,
                beat=beat,
                progress=desk.progress,
                bad_log=bad_log,
            )
        key = features_key(
            config,
            plan.module,
            head=head,
            spec=plan.spec,
            fingerprint=plan.card["data"][split],
            backend=plan.loader,
            runtime=runtime,
        )
        return cached_features(
            plan.module,
            images[split],
            head=head,
            folder=tools.cache,
            key=key,
            runtime=runtime,
            beat=beat,
            progress=desk.progress,
            bad_log=bad_log,
        )

    return {split: compute(split) for split in splits}


def _train(
    config: Config, plan: Plan, features: Mapping[str, Features], *, head: str, tools: Tools, desk: Desk
) -> tuple[int, int, dict[str, Any]] | None:
    """Trains and installs the classifier; gives steps, epochs and the card; None where it was told to stop."""
    strategy, train = config.strategy, features["train"]
    if strategy.classifier == "linear":
        trained = train_head(
            tools.copy_head(plan.module, head),
            config=config,
            train=tools.batches_of("train", train),
            val=tools.batches_of("val", features["val"]) if "val" in features else None,
            loss_fn=plan.loss_fn,
            card=plan.card,
            folder=desk.folder,
            runtime=desk.runtime,
            progress=desk.progress,
            environ=os.environ,
        )
        if trained.stopped_by is not None:
            return None
        return trained.step, trained.epochs, plan.card | tools.install(plan.module, head, trained.head)

    def fit() -> Fitted:
        return tools.fit(
            strategy.classifier,
            train.features_ND.numpy(),
            train.labels_N.numpy(),
            num_classes=len(plan.card["class_names"]),
            cv_folds=strategy.cv_folds,
            seed=config.run.seed,
            has_bias=getattr(plan.module.get_submodule(head), "bias", None) is not None,
        )

    shown = f"{strategy.cv_folds}-fold cross-validation on features of {len(train.labels_N):,} images"
    desk.progress.say(f"{strategy.classifier}: {shown} ...")
    with desk.runtime.first_on_this_machine():  # the others wait for a lock: it may take longer than a collective waits
        fitted_here = fit() if desk.runtime.is_first_on_machine else None
    fitted = desk.runtime.from_main(lambda: fitted_here)  # the same on every rank, to the bit
    assert fitted is not None, "the main process is the first of its machine"
    desk.progress.say(fitted.describe())
    return 0, 0, plan.card | tools.install(plan.module, head, fitted)
