"""Exact evaluation: every sample counted once, at any number of processes, and the count checked.

Legend of shape letters: N samples of a batch, K classes.

loader (same batches at any world size) -> logits (of one view or several) -> integer sums on the device -> one
all-reduce -> Evaluation
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.bad_samples import BadSampleLog, check_num_bad
from engine.record import RunFolder
from engine.runtime import Runtime
from pipelines.batch import Batch, Loader

Tta = Literal["none", "flip", "flip_shift"]

_LOSS_UNIT = 2**24  # losses are summed as integers of this fraction, so that the order of summation cannot matter
_TOP = 5
_MOST_CONFUSED_CLASSES = 1000  # a table of so many classes squared is 8 MB, and is summed over the ranks


class Evaluation(NamedTuple):
    """The score of one split, of the `num_samples` that could be read.

    `top5_frac` is None for five classes or fewer, where it says nothing. `confusion_KK`: int64 (K, K), how many samples
    of the class of each row were taken for that of each column; None above 1,000 classes.
    """

    num_samples: int
    num_excluded: int
    num_correct: int
    top1_frac: float
    top5_frac: float | None
    loss: float
    per_class_top1_frac: tuple[float | None, ...]
    confusion_KK: npt.NDArray[np.int64] | None = None


def evaluate(
    module: nn.Module,
    loader: Loader,
    *,
    num_classes: int,
    runtime: Runtime,
    bad_log: BadSampleLog,
    step: int,
    tta: Tta = "none",
) -> Evaluation:
    """Scores the module, in eval mode, on all samples of the loader; it is left in the mode it was in.

    A network that draws random numbers here too draws the same ones each time it is scored, by the same number of
    processes.

    Args:
        module: images (N, C, H, W) -> logits (N, K).
        loader: The samples; rows with valid False are not counted.
        num_classes: K.
        runtime: Device, autocast and all-reduce.
        bad_log: Where samples that cannot be read are written; they are not counted.
        step: Optimizer steps done, for that list.
        tta: Test-time augmentation, as `logits_of_views` does it.

    Returns:
        Top-1, top-5, mean cross entropy (rounded to 6 decimals, without label smoothing), top-1 per class, confusions.

    Raises:
        RuntimeError: Not exactly the loader's samples were counted or excluded.
        ValueError: More samples could not be read than is allowed.
        FloatingPointError: The loss of a sample is not finite, or too large to be summed.
    """
    was_training = module.training
    module.eval()
    runtime.seed(runtime.rank)  # training seeds every micro-step itself
    counts = _Counts(num_classes=num_classes, num_samples=loader.num_samples, device=runtime.device)
    with torch.inference_mode():
        for batch in loader:
            runtime.watchdog.beat("scoring")
            with runtime.autocast():
                logits_NK = logits_of_views(module, batch.inputs, tta=tta)
            counts.add(logits_NK, batch)
    module.train(was_training)
    met = loader.take_bad_samples()
    num_bad = torch.tensor([len(met)], device=runtime.device)
    sums = runtime.sum_over_ranks(torch.cat([*counts.vectors, num_bad])).tolist()
    if sums[-1]:
        bad_log.write(met, step=step)
        check_num_bad(sums[-1], loader)
    score = _evaluation(sums, num_classes=num_classes, num_samples=loader.num_samples)
    if num_classes <= _MOST_CONFUSED_CLASSES:
        confusion = runtime.sum_over_ranks(counts.confusion).reshape(num_classes, num_classes)
        score = score._replace(confusion_KK=confusion.cpu().numpy())
    return score


def logits_of_views(module: nn.Module, inputs: tuple[Tensor, ...], *, tta: Tta) -> Tensor:
    """Logits of images, or their weighted mean over several views of each (test-time augmentation).

    Args:
        module: images (N, C, H, W) -> logits (N, K).
        inputs: What the loader gives: images, for all but none float (N, C, H, W), H and W 2 or more.
        tta: none; flip = mean of the image and its mirror image; flip_shift = half of that, and a quarter each of the
            same for the image shifted by one pixel down and right, and up and left, filled up by reflection.

    Source: `infer_mirror_translate` of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (airbench).
    """

    def logits_of(*images: Tensor) -> Tensor:
        logits_NK: Tensor = module(*images)
        # of half precision, or their mean would be rounded to it; while training, accelerate has made them float32
        return logits_NK.float() if logits_NK.dtype in (torch.bfloat16, torch.float16) else logits_NK

    def pair_of(*images: Tensor) -> Tensor:
        return (logits_of(*images) + logits_of(*(each.flip(-1) for each in images))) / 2

    match tta:
        case "none":
            return logits_of(*inputs)
        case "flip":
            return pair_of(*inputs)
        case "flip_shift":
            padded = [F.pad(each, (1, 1, 1, 1), mode="reflect") for each in inputs]
            down_right = [each[..., :-2, :-2] for each in padded]
            up_left = [each[..., 2:, 2:] for each in padded]
            return pair_of(*inputs) / 2 + (pair_of(*down_right) + pair_of(*up_left)) / 4


class _Counts:
    """What one rank has counted of a split: integers, on the device.

    Args:
        num_classes: K.
        num_samples: Of the split.
        device: Where they lie.
    """

    def __init__(self, *, num_classes: int, num_samples: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._largest_loss = 2.0**62 / _LOSS_UNIT / num_samples  # so that no sum of them leaves the integers
        self._seen_K, self._correct_K, self._top5_K = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        self._losses_2 = torch.zeros(2, dtype=torch.int64, device=device)  # sum in units, number not finite
        num_cells = num_classes**2 if num_classes <= _MOST_CONFUSED_CLASSES else 0
        self.confusion = torch.zeros(num_cells, dtype=torch.int64, device=device)

    @property
    def vectors(self) -> list[Tensor]:
        """Samples, right ones and those among the first five, of each class; loss in units, losses not finite."""
        return [self._seen_K, self._correct_K, self._top5_K, self._losses_2]

    def add(self, logits_NK: Tensor, batch: Batch) -> None:
        """Counts the valid rows of a batch; nothing here waits for the device."""
        logits_NK = logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32))
        labels_N, valid_N = batch.labels_N, batch.valid_N
        best_N5 = logits_NK.topk(min(_TOP, self._num_classes), dim=1).indices
        ranked = best_N5 == labels_N[:, None]
        if len(self.confusion):
            self.confusion.index_add_(0, labels_N * self._num_classes + best_N5[:, 0], valid_N.long())
        self._seen_K.index_add_(0, labels_N, valid_N.long())
        self._correct_K.index_add_(0, labels_N, (ranked[:, 0] & valid_N).long())
        self._top5_K.index_add_(0, labels_N, (ranked.any(dim=1) & valid_N).long())
        loss_N = F.cross_entropy(logits_NK, labels_N, reduction="none").double()
        finite_N = loss_N.abs() < self._largest_loss  # False for nan, too
        units_N = torch.where(finite_N & valid_N, loss_N, 0.0).mul(_LOSS_UNIT).round().long()
        self._losses_2 += torch.stack([units_N.sum(), (~finite_N & valid_N).sum()])


def _evaluation(sums: list[int], *, num_classes: int, num_samples: int) -> Evaluation:
    seen, correct, top5 = (sums[k * num_classes : (k + 1) * num_classes] for k in range(3))
    loss_units, num_not_finite, num_excluded = sums[3 * num_classes :]
    if sum(seen) + num_excluded != num_samples:
        raise RuntimeError(
            f"evaluation counted {sum(seen)} samples and excluded {num_excluded}, but the split has {num_samples}."
        )
    num_samples = sum(seen)
    if num_samples == 0:
        raise ValueError("evaluation has nothing to count: no image of the split could be read.")
    if num_not_finite:
        raise FloatingPointError(
            f"the loss of {num_not_finite} of {num_samples} evaluated samples is not finite, or beyond all bounds: "
            "training has diverged. Start again with another --run.out and a lower optim.lr."
        )
    return Evaluation(
        num_samples=num_samples,
        num_excluded=num_excluded,
        num_correct=sum(correct),
        top1_frac=sum(correct) / num_samples,
        top5_frac=sum(top5) / num_samples if num_classes > _TOP else None,
        loss=round(loss_units / _LOSS_UNIT / num_samples, 6),
        per_class_top1_frac=tuple(right / count if count else None for right, count in zip(correct, seen, strict=True)),
    )


def to_metrics(score: Evaluation, *, split: str, class_names: Sequence[str] = ()) -> dict[str, float | int]:
    """Flat keys such as `test/top1_frac`; with class names also `test/top1_frac/<class>`."""
    metrics: dict[str, float | int] = {
        f"{split}/top1_frac": score.top1_frac,
        f"{split}/loss": score.loss,
        f"{split}/num_samples": score.num_samples,
    }
    if score.top5_frac is not None:
        metrics[f"{split}/top5_frac"] = score.top5_frac
    if score.num_excluded:
        metrics[f"{split}/num_excluded"] = score.num_excluded
    for name, frac in zip(class_names, score.per_class_top1_frac if class_names else (), strict=True):
        if frac is not None:
            metrics[f"{split}/top1_frac/{name}"] = frac
    return metrics


def summary_line(score: Evaluation, *, split: str) -> str:
    """`test: top-1 98.61 % (355 of 360), top-5 100.00 %, loss 0.0432`."""
    top5 = "" if score.top5_frac is None else f"top-5 {100 * score.top5_frac:.2f} %, "
    right = f"{score.num_correct} of {score.num_samples}"
    excluded = f"; {score.num_excluded} not counted: they could not be read" if score.num_excluded else ""
    return f"{split}: top-1 {100 * score.top1_frac:.2f} % ({right}), {top5}loss {score.loss:.4f}{excluded}"


def save_scores(
    folder: RunFolder, scores: dict[str, Evaluation], *, class_names: Sequence[str], step: int, epoch: int
) -> None:
    """Leaves what was scored; result.json, which says that the run is finished, at last.

    Args:
        folder: The run folder.
        scores: By split, and perhaps, beside it, by split with a suffix, such as test_raw, then without classes.
        class_names: In the order of labels.
        step: Optimizer steps done.
        epoch: Epochs done.
    """
    splits = {name: score for name, score in scores.items() if "_" not in name}
    folder.save_confusions({name: one.confusion_KK for name, one in splits.items() if one.confusion_KK is not None})
    result: dict[str, float | int] = {"step": step, "epoch": epoch}
    for name, score in scores.items():
        result |= to_metrics(score, split=name, class_names=class_names if name in splits else ())
    folder.save_result(result)


def describe_result(result: dict[str, float | int]) -> str:
    """The result in a few words."""
    split = "test" if "test/top1_frac" in result else "val"
    key = f"{split}/top1_frac"
    return f"{split} top-1 {100 * result[key]:.2f} %" if key in result else "no val and no test to score"
