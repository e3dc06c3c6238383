"""The last layer of a network trained on features that are there: a run of its own, in a folder inside the run's.

head, loaders of features -> fit, in RUN/head -> the checkpoint that it is judged by -> head; metrics -> RUN
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from configs.load import config_to_dict
from configs.schema import Config
from engine.bad_samples import BadSampleLog
from engine.build import build_settings
from engine.build_phases import build_phases
from engine.checkpoint import load_weights, scored_checkpoint
from engine.evaluation import evaluate
from engine.fit import fit
from engine.losses import LossFn
from engine.progress import Progress
from engine.record import RunFolder, replace_file
from engine.runtime import Runtime
from engine.state import Job, TrainState, count_epochs
from pipelines.batch import Loader


class TrainedHead(NamedTuple):
    """head: with the weights that it is judged by. step, epochs: how long it was trained. stopped_by: as TrainState's.

    Where `stopped_by` says why training ended early, the same command goes on, and `head` is as it stood.
    """

    head: nn.Linear
    step: int
    epochs: int
    stopped_by: str | None


def train_head(
    head: nn.Linear,
    *,
    config: Config,
    train: Loader,
    val: Loader | None,
    loss_fn: LossFn,
    card: dict[str, Any],
    folder: RunFolder,
    runtime: Runtime,
    progress: Progress,
    environ: Mapping[str, str],
) -> TrainedHead:
    """Trains it in train.epochs epochs, by the recipe's optimizer and schedule, continuing where it was interrupted.

    The folder `head` of the run folder is this training's own: checkpoints, metrics, events. A file `stop` is looked
    for in the run folder, as in every run, and metrics.jsonl is copied there when all is done.

    Args:
        head: features (N, D) -> logits (N, K), placed; trained in place.
        config: The run's.
        train: Batches of features.
        val: The same of val; None where there is none.
        loss_fn: What is learned; it is given the head and batches of features.
        card: What the network is, as in every checkpoint.
        folder: The run's.
        runtime: Where it runs.
        progress: Where it is shown.
        environ: The environment, as in `build_settings`.

    Raises:
        FloatingPointError, OSError, ValueError: As `engine.fit.fit`.
    """
    own = RunFolder(folder.path / "head")
    if runtime.is_main:
        own.path.mkdir(parents=True, exist_ok=True)
    runtime.wait_for_all()
    bad_log = BadSampleLog(own, runtime=runtime, progress=progress)
    score = partial(evaluate, num_classes=head.out_features, runtime=runtime, bad_log=bad_log)
    settings = build_settings(config, environ)
    job = Job(
        phases=build_phases(config, train, layers=[[name for name, _ in head.named_parameters()]]),
        loss_fn=loss_fn,
        validate=None if val is None else partial(score, loader=val),
        card=card,
        config=config_to_dict(config),
        bad_log=bad_log,
        folder=own,
        runtime=runtime,
        settings=settings._replace(control=settings.control or str(folder.path)),
        progress=progress,
    )
    state = fit(head, job)
    if state.stopped_by is None:
        load_weights(head, scored_checkpoint(own.checkpoints))
    if runtime.is_main:
        _hand_over(own, folder, config=config, state=state)
    return TrainedHead(head, state.step, count_epochs(state, job), state.stopped_by)


def _hand_over(own: RunFolder, folder: RunFolder, *, config: Config, state: TrainState) -> None:
    """Leaves in the run folder what people and report/ look for there."""
    if config.run.control is None:
        (folder.path / "saved").unlink(missing_ok=True)  # only a control folder of the user's own has it
    if state.stopped_by is None:
        replace_file(folder.path / "metrics.jsonl", (own.path / "metrics.jsonl").read_bytes())
