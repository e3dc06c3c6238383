"""The end of a run: the checkpoint that counts is scored on val and test, and result.json says that it is finished.

checkpoint, loaders -> test (as the run is judged), test_raw, test_single (what it would be without) -> result.json
finished network    -> save_final -> the checkpoint that counts, where `engine.fit` has written none
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from engine.bad_samples import BadSampleLog
from engine.checkpoint import Weights, has_average, load_weights, save_checkpoint, scored_checkpoint
from engine.evaluation import Evaluation, Tta, evaluate, save_scores, summary_line
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime
from engine.state import Job, TrainState, count_epochs
from engine.writer import snapshot
from pipelines.batch import Loader


class Way(NamedTuple):
    """A way of scoring, and what it appends to the name of a split."""

    suffix: str
    weights: Weights
    tta: Tta


def ways_to_score(*, tta: Tta, has_average: bool) -> list[Way]:
    """First as the run is judged; then each thing that it has beside plain weights and plain images left out, alone.

    raw: the weights themselves, not their average. single: one view of each image.
    """
    ways = [Way("", "judged", tta)]
    ways += [Way("_raw", "raw", tta)] if has_average else []
    return ways + ([Way("_single", "judged", "none")] if tta != "none" else [])


def score_run(module: nn.Module, loaders: Mapping[str, Loader], *, job: Job, state: TrainState, tta: Tta) -> None:
    """Scores the checkpoint that counts on every split, says and writes it.

    Args:
        module: The network; left with the weights that were scored last.
        loaders: By split.
        job: The fit's.
        state: Where it ended.
        tta: Test-time augmentation.

    Raises:
        FileNotFoundError: There is no whole checkpoint, or the best one is gone.
    """
    score_checkpoint(
        module,
        loaders,
        card=job.card,
        step=state.step,
        epoch=count_epochs(state, job),
        tta=tta,
        folder=job.folder,
        runtime=job.runtime,
        bad_log=job.bad_log,
        progress=job.progress,
    )


def score_checkpoint(
    module: nn.Module,
    loaders: Mapping[str, Loader],
    *,
    card: Mapping[str, Any],
    step: int,
    epoch: int,
    tta: Tta,
    folder: RunFolder,
    runtime: Runtime,
    bad_log: BadSampleLog,
    progress: Progress,
) -> None:
    """`score_run` of a folder whose checkpoint `save_final` has written.

    Args:
        module: As there, and so `loaders` and `tta`.
        loaders: As there.
        card: What the weights are; class_names is read.
        step: Optimizer steps done, 0 where there were none.
        epoch: Epochs done.
        tta: As there.
        folder: The run folder.
        runtime: Where it is computed.
        bad_log: Where images that cannot be read are written.
        progress: Where it is said.

    Raises:
        FileNotFoundError: As there.
    """
    checkpoint = scored_checkpoint(folder.checkpoints)
    class_names = card["class_names"]
    scores: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    for way in ways_to_score(tta=tta, has_average=has_average(checkpoint)):
        load_weights(module, checkpoint, weights=way.weights)
        for split, loader in loaders.items():
            name, start_s = split + way.suffix, time.perf_counter()
            scores[name] = evaluate(
                module,
                loader,
                num_classes=len(class_names),
                runtime=runtime,
                bad_log=bad_log,
                step=step,
                tta=way.tta,
            )
            seconds[f"{name}/score_s"] = round(time.perf_counter() - start_s, 3)
            progress.say(summary_line(scores[name], split=name))
    if runtime.is_main:
        folder.append_metrics({"step": step, "epoch": epoch, **seconds})
        save_scores(folder, scores, class_names=class_names, step=step, epoch=epoch)


def save_final(module: nn.Module, *, step: int, card: Mapping[str, Any], folder: RunFolder, runtime: Runtime) -> None:
    """The only checkpoint of a run whose network was not trained as a whole; the main process writes it.

    Training does not go on from it: it holds no optimizer and no position.

    Args:
        module: The finished network.
        step: Optimizer steps done, 0 where there were none.
        card: What the weights are.
        folder: The run folder.
        runtime: This process.

    Raises:
        OSError: It cannot be written.
    """
    if runtime.is_main:
        weights = snapshot(module.state_dict())
        save_checkpoint(
            folder.checkpoints, step=step, best_step=None, weights=weights, card=card, training_state={"step": step}
        )
    runtime.wait_for_all()
