"""A few training images as the network will meet them, time after time, with what was drawn for each; before training.

source -> read_originals: the images as evaluation shows them
order  -> find_meetings: when they are met -> PlannedLoader -> Sample: pixels as the network sees them, what was drawn
order  -> count_first: how often each thing is drawn

Legend of shape letters: N images, S height and width, C channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.counter import pick_ids
from pipelines.execution import Carried, Executor
from pipelines.geometry import carry_out
from pipelines.loader import Draw, Part, PlannedLoader
from pipelines.order import Order
from pipelines.plan import Fit, Plan, plan_evaluation
from pipelines.policy import Policy
from pipelines.source import Source, explain_bad
from pipelines.wording import Count, Drawn, count_drawn, list_drawn

MOST_EPOCHS = 100  # that are looked through for images which weights or repeats keep out of most


class Originals(NamedTuple):
    """Images as evaluation shows them, and sentences on those that were passed over because they cannot be read.

    ids_N: int64 (N,). images_NHWC: uint8 (N, S, S, C).
    """

    ids_N: npt.NDArray[np.int64]
    images_NHWC: npt.NDArray[np.uint8]
    passed_over: list[str]


class Meeting(NamedTuple):
    """Part of a step, and its rows that were asked for; the others are there as partners for mixing."""

    part: Part
    rows: list[int]


class Sample(NamedTuple):
    """An image as the network sees it once. pixels_CHW: float (C, S, S), normalised, on the CPU."""

    epoch: int
    pixels_CHW: Tensor
    drawn: list[Drawn]


class Shown(NamedTuple):
    """A training image: original_HWC as evaluation shows it, uint8 (S, S, C), and as the network meets it."""

    sample_id: int
    name: str
    class_name: str
    original_HWC: npt.NDArray[np.uint8]
    samples: list[Sample]


class Preview(NamedTuple):
    """What training will show.

    shown: the images. passed_over: sentences on images that cannot be read. counts: of all that may be drawn, how often
    it was, for `num_counted` images of an epoch. backend: who carried it out.
    """

    shown: list[Shown]
    passed_over: list[str]
    counts: list[Count]
    num_counted: int
    backend: str


class Renumbered:
    """An executor of a part of a source, numbered from 0, that is given plans of the whole.

    Args:
        executor: That of `source.take(ids_N)`.
        ids_N: int64 (N,), rising: the samples of the part by their ids in the whole.
    """

    def __init__(self, executor: Executor, *, ids_N: npt.NDArray[np.int64]) -> None:
        self._executor = executor
        self._ids_N = ids_N

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out."""
        yield from self._executor.run(plan._replace(ids_N=self._places(plan.ids_N)) for plan in plans)

    def _places(self, ids_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        places_N = np.searchsorted(self._ids_N, ids_N)
        assert np.array_equal(self._ids_N[np.minimum(places_N, len(self._ids_N) - 1)], ids_N), "none is asked for else"
        return places_N


def read_originals(
    source: Source, *, num_images: int, size_px: int, fit: Fit, channels: int, interpolation: str, skip_bad: bool
) -> Originals:
    """Up to `num_images` images that training meets; which ones depends on their number alone.

    Args:
        source: The images.
        num_images: How many to take, if there are so many.
        size_px: Height and width of the result.
        fit: How an image that is not square fits.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        skip_bad: Images that cannot be read are passed over; else they are an error.

    Raises:
        ValueError: An image cannot be read, or with `skip_bad` none can.
    """
    ids: list[int] = []
    images: list[npt.NDArray[np.uint8]] = []
    passed_over: list[str] = []
    for sample_id in pick_ids(len(source.labels_N), num_wanted=len(source.labels_N)).tolist():
        if len(ids) == num_images:
            break
        if source.weights_N is not None and source.weights_N[sample_id] == 0:
            continue
        one = np.array([sample_id])
        plan = plan_evaluation(one, sizes_N2=source.sizes_N2[one], fit=fit, size_px=size_px)
        try:
            if sample_id in source.bad:
                raise ValueError(source.bad[sample_id])
            pixels = source.read_image(sample_id, channels=channels)
        except ValueError as error:
            if not skip_bad:
                raise ValueError(explain_bad(source, sample_id, str(error))) from error
            passed_over.append(f"{source.describe(sample_id)}: {error}")
            continue
        ids.append(sample_id)
        images.append(carry_out(pixels, plan=plan, row=0, interpolation=interpolation).numpy())
    if not ids:
        raise ValueError(f"no training image can be read; the first of them: {passed_over[0]}.")
    return Originals(np.array(ids), np.stack(images), passed_over)


def find_meetings(
    order: Order, ids_N: npt.NDArray[np.int64], *, first_epoch: int, num_wanted: int, in_pairs: bool
) -> list[Meeting]:
    """When training meets some samples: the first times from an epoch on, in the order in which they come.

    Args:
        order: Of a rank that is alone.
        ids_N: int64 (N,), the samples.
        first_epoch: Where to begin.
        num_wanted: How many times of each; of a sample that is rarely met there may be fewer.
        in_pairs: Whether partners for mixing come along.
    """
    missing = dict.fromkeys(ids_N.tolist(), num_wanted)
    meetings: list[Meeting] = []
    for epoch in range(first_epoch, first_epoch + MOST_EPOCHS):
        for step in range(order.steps_per_epoch):
            share = order.share(step, epoch=epoch)
            asked: list[int] = []
            for row in np.flatnonzero(np.isin(share.ids_N, ids_N)).tolist():
                sample_id = int(share.ids_N[row])
                if missing[sample_id] > 0:
                    missing[sample_id] -= 1
                    asked.append(row)
            if asked:
                meetings.append(_meet(Part(epoch, step, share), asked, in_pairs=in_pairs))
            if not any(missing.values()):
                return meetings
    return meetings


def _meet(part: Part, asked: list[int], *, in_pairs: bool) -> Meeting:
    """The rows `asked` of a part, with their partners, as a part of its own."""
    rows = sorted({*asked, *(row ^ 1 for row in asked)}) if in_pairs else asked
    arrays = {name: value[rows] for name, value in part.share._asdict().items() if name != "own"}
    share = part.share._replace(**arrays, own=slice(0, len(rows)))
    return Meeting(part._replace(share=share), [rows.index(row) for row in asked])


def ids_in(meetings: list[Meeting], *, policy: Policy) -> npt.NDArray[np.int64]:
    """int64 (N,), rising: the samples that are read for meetings, those that replace unreadable partners among them."""
    settled = [policy.before(part.share, epoch=part.epoch, step=part.step).share for part, _ in meetings]
    return np.unique(np.concatenate([share.ids_N for share in settled]))


def carry_out_meetings(
    loader: PlannedLoader,
    meetings: list[Meeting],
    *,
    sizes_N2: npt.NDArray[np.int32] | None,
    name_sample: Callable[[int], str],
) -> dict[int, list[Sample]]:
    """Each sample by its id, as the network sees it, in the order of the meetings.

    Args:
        loader: The training loader.
        meetings: Of samples that can be read.
        sizes_N2: int32 (N, 2), height and width of all stored images, where windows are drawn; None where they are not.
        name_sample: What to call the sample that is mixed in.
    """
    samples: dict[int, list[Sample]] = {}
    for made, (part, rows) in zip(loader.carry_out(part for part, _ in meetings), meetings, strict=True):
        own_sizes_N2 = None if sizes_N2 is None else sizes_N2[made.plan.ids_N]
        for row in rows:
            drawn = list_drawn(made.plan, made.effects, row, sizes_N2=own_sizes_N2, name_sample=name_sample)
            pixels_CHW = made.batch.inputs[0][row].detach().cpu().clone()
            samples.setdefault(int(part.share.ids_N[row]), []).append(Sample(part.epoch, pixels_CHW, drawn))
    return samples


def count_first(
    order: Order,
    draw: Draw,
    *,
    epoch: int,
    most_images: int,
    sizes_N2: npt.NDArray[np.int32] | None,
    names: Sequence[str],
) -> tuple[list[Count], int]:
    """How often each thing is drawn for the first images of an epoch, at most `most_images`, and how many these are.

    Args:
        order: Of a rank that is alone.
        draw: What is decided.
        epoch: The epoch.
        most_images: How many images to look at.
        sizes_N2: As in `carry_out_meetings`.
        names: What may be drawn.
    """
    drawn: list[list[Drawn]] = []
    for step in range(order.steps_per_epoch):
        share = order.share(step, epoch=epoch)
        plan = draw.plan(share, epoch, step)
        effects = draw.effects(plan, share, epoch, step)
        own_sizes_N2 = None if sizes_N2 is None else sizes_N2[plan.ids_N]
        num_rows = min(len(plan.ids_N), most_images - len(drawn))
        drawn += [list_drawn(plan, effects, row, sizes_N2=own_sizes_N2) for row in range(num_rows)]
        if len(drawn) == most_images:
            break
    return count_drawn(drawn, names=names), len(drawn)
