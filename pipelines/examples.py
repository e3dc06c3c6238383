"""A few training images as the network sees them in evaluation, for networks that start from them.

source -> ids by a fixed draw -> read, window, resize -> normalise -> float (N, C, S, S)
"""

import torch
from torch import Tensor

from pipelines.counter import pick_ids
from pipelines.geometry import carry_out
from pipelines.parallel import map_in_threads
from pipelines.plan import Fit, plan_evaluation
from pipelines.source import Source, explain_bad


def read_examples(
    source: Source,
    *,
    num_images: int,
    size_px: int,
    fit: Fit,
    interpolation: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    show_progress: bool,
    skip_bad: bool = False,
) -> Tensor:
    """Up to `num_images` images of the source; which ones depends on their number alone.

    Args:
        source: The images.
        num_images: How many to take, if there are so many.
        size_px: Height and width of the result.
        fit: How an image that is not square fits.
        interpolation: bilinear or bicubic.
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        show_progress: Whether to draw a progress bar.
        skip_bad: Images that cannot be read are left out; else they are an error.

    Returns:
        float32 (N, C, size_px, size_px), normalised, on the CPU.

    Raises:
        ValueError: An image cannot be read, or with `skip_bad` none can.
    """
    ids_N = pick_ids(len(source.labels_N), num_wanted=num_images)
    plan = plan_evaluation(ids_N, sizes_N2=source.sizes_N2[ids_N], fit=fit, size_px=size_px)

    def read(row: int) -> Tensor | str:
        sample_id = int(ids_N[row])
        try:
            if sample_id in source.bad:
                raise ValueError(source.bad[sample_id])
            pixels = source.read_image(sample_id, channels=len(mean))
        except ValueError as error:
            return explain_bad(source, sample_id, str(error))
        return carry_out(pixels, plan=plan, row=row, interpolation=interpolation)

    images, bad = [], []
    rows = range(len(ids_N))
    for result in map_in_threads(read, rows, title="reading examples", unit="image", show_progress=show_progress):
        if isinstance(result, str):
            bad.append(result)
        else:
            images.append(result)
    if bad and (not skip_bad or not images):
        raise ValueError(bad[0])
    pixels_NCHW = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    return (pixels_NCHW - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
