"""Configuration -> a few training images as training will meet them, with what is drawn for them."""

import numpy as np
import numpy.typing as npt

from configs.schema import Config
from pipelines.build_augment import build_augmentation, build_effect_settings
from pipelines.build_data import Data, given
from pipelines.build_executor import Parts, Place, choose_backend, fit_of
from pipelines.build_loader import join, training_parts
from pipelines.policy import Policy
from pipelines.preview import (
    Originals,
    Preview,
    Sample,
    Shown,
    carry_out_meetings,
    count_first,
    find_meetings,
    ids_in,
    read_originals,
)
from pipelines.source import Source
from pipelines.wording import list_names


def build_preview(
    config: Config,
    data: Data,
    *,
    place: Place,
    num_images: int,
    num_samples: int,
    epoch: int,
    num_counted: int,
    show_progress: bool,
) -> Preview:
    """A few training images as the network will meet them, carried out by the training loader; no others are read.

    Args:
        config: The run's.
        data: Its data.
        place: Where batches would go, of a rank that is alone.
        num_images: How many images, if there are so many; their number alone decides which.
        num_samples: How many times of each, from `epoch` on.
        epoch: Where to begin.
        num_counted: For how many images of that epoch it is counted what is drawn.
        show_progress: Whether to draw progress bars.

    Raises:
        ValueError: As `build_training_loader`.
    """
    parts = training_parts(config, data, place=place)
    originals = _read_originals(data, parts, num_images=num_images)
    samples = _meet(
        config,
        data,
        parts,
        ids_N=originals.ids_N,
        place=place,
        epoch=epoch,
        num_samples=num_samples,
        show_progress=show_progress,
    )
    counts, count = count_first(
        parts.order,
        parts.draw,
        epoch=epoch,
        most_images=num_counted,
        sizes_N2=_sizes_of_windows(config, data.train),
        names=list_names(
            build_augmentation(config), build_effect_settings(config, num_images=len(data.train.labels_N))
        ),
    )
    return Preview(
        shown=_join_shown(data.train, originals, samples),
        passed_over=originals.passed_over,
        counts=counts,
        num_counted=count,
        backend=choose_backend(config, data).name,
    )


def _read_originals(data: Data, parts: Parts, *, num_images: int) -> Originals:
    spec = data.spec
    return read_originals(
        data.train,
        num_images=num_images,
        size_px=given(spec.size_px),
        fit=fit_of(spec),
        channels=given(spec.channels),
        interpolation=spec.interpolation,
        skip_bad=parts.action == "replace",
    )


def _meet(
    config: Config,
    data: Data,
    parts: Parts,
    *,
    ids_N: npt.NDArray[np.int64],
    place: Place,
    epoch: int,
    num_samples: int,
    show_progress: bool,
) -> dict[int, list[Sample]]:
    """By sample id, the images as the network will meet them; only they and their partners are read."""
    train = data.train
    in_pairs = build_effect_settings(config, num_images=len(train.labels_N)).mixes
    meetings = find_meetings(parts.order, ids_N, first_epoch=epoch, num_wanted=num_samples, in_pairs=in_pairs)
    policy = Policy(train, split=parts.split, action=parts.action, seed=config.run.seed)
    read = parts._replace(only_ids_N=ids_in(meetings, policy=policy))
    return carry_out_meetings(
        join(config, data, read, place=place, show_progress=show_progress),
        meetings,
        sizes_N2=_sizes_of_windows(config, train),
        name_sample=lambda sample_id: f"{sample_id} ({train.class_names[train.labels_N[sample_id]]})",
    )


def _sizes_of_windows(config: Config, train: Source) -> npt.NDArray[np.int32] | None:
    """Sizes of the images that windows are drawn from; None = none are drawn."""
    return train.sizes_N2 if config.augment.crop == "rrc" else None


def _join_shown(train: Source, originals: Originals, samples: dict[int, list[Sample]]) -> list[Shown]:
    class_names = [train.class_names[label] for label in train.labels_N[originals.ids_N].tolist()]
    return [
        Shown(sample_id, train.describe(sample_id), class_name, original_HWC, samples.get(sample_id, []))
        for sample_id, class_name, original_HWC in zip(
            originals.ids_N.tolist(), class_names, originals.images_NHWC, strict=True
        )
    ]
