"""The end of a run: the checkpoint that counts is scored on val and test, and result.json says that it is finished.

checkpoint, loaders -> test (as the run is judged), test_raw, test_single (what it would be without) -> result.json
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from engine.checkpoint import Weights, has_average, load_weights, scored_checkpoint
from engine.evaluation import Evaluation, Tta, evaluate, save_scores, summary_line
from engine.state import Job, TrainState, count_epochs
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
    checkpoint = scored_checkpoint(job.folder.checkpoints)
    class_names = job.card["class_names"]
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
                runtime=job.runtime,
                bad_log=job.bad_log,
                step=state.step,
                tta=way.tta,
            )
            seconds[f"{name}/score_s"] = round(time.perf_counter() - start_s, 3)
            job.progress.say(summary_line(scores[name], split=name))
    if job.runtime.is_main:
        job.folder.append_metrics({"step": state.step, "epoch": count_epochs(state, job), **seconds})
        save_scores(job.folder, scores, class_names=class_names, step=state.step, epoch=count_epochs(state, job))
