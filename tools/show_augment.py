"""Draws training images as the network will see them: `python -m tools.show_augment --config RECIPE [--out PNG]`.

Each row of the picture is a training image: as evaluation shows it, then as training meets it, time after time, with
what was drawn below. The screen says how often each thing is drawn. Every option of train.py may be added; nothing is
trained.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.check import check_batch
from configs.load import DEFAULT_RECIPE, load_with_options
from configs.schema import Config
from pipelines.build import MOST_EPOCHS, Data, Place, Preview, build_data, build_preview, check_dataset, num_cores
from tools.augment_picture import draw_preview
from tools.augment_table import count_table

_NUM_COUNTED = 1000
_MOST = {"num_images": 50, "num_samples": 20}  # in a picture: beyond, nobody looks, and the memory does not suffice


@dataclass(frozen=True, kw_only=True)
class Options:
    """The picture.

    Attributes:
        out: The picture, a PNG file.
        num_images: Training images, a row each; always the same ones of a data set.
        num_samples: How often each is shown as training meets it.
        epoch: From which epoch on; the first is 0.
    """

    out: str = "augment.png"
    num_images: int = 6
    num_samples: int = 6
    epoch: int = 0

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: A number out of range, or a picture that cannot be written.
        """
        for name, least in (("num_images", 1), ("num_samples", 1), ("epoch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is too small; use {least} or more.")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name}={getattr(self, name)} is too large for a picture; use at most {most}.")
        _check_writable(Path(self.out))


def main() -> None:
    """Command line -> picture and table."""
    config, options = load_with_options(
        sys.argv[1:], options=Options, prog="python -m tools.show_augment", description=__doc__ or ""
    )
    try:
        show(config, options, recipe=_recipe_of(sys.argv[1:]))
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(TRACEBACK=1 shows where it came from)")


def show(config: Config, options: Options, *, recipe: str) -> None:
    """Writes the picture and prints what is drawn how often.

    config -> build_preview, by the run's own loader -> pixels, words, counts -> picture, table

    Args:
        config: The run's.
        options: What to draw, and where.
        recipe: What the picture is called.

    Raises:
        OSError: Data is not there, or the picture cannot be written.
        ValueError: The run could not begin, or has no such epoch.
    """
    if options.epoch >= config.train.epochs:
        raise ValueError(
            f"--epoch {options.epoch}: the run has train.epochs={config.train.epochs}; use 0 to "
            f"{config.train.epochs - 1}."
        )
    check_dataset(config.data)
    check_batch(config, world_size=config.run.world_size or 1)
    data = build_data(config, show_progress=True)
    preview = preview_run(config, data, options)
    title = f"{recipe}, seed {config.run.seed}, {data.spec.size_px}x{data.spec.size_px} pixels, {preview.backend}"
    Path(options.out).write_bytes(draw_preview(preview, data.spec, title=title))
    for sentence in preview.passed_over:
        print(f"passed over: {sentence}")
    for shown in preview.shown:
        if len(shown.samples) < options.num_samples:
            times = _count(len(shown.samples), "time")
            print(f"{shown.name}: met {times} only, in {MOST_EPOCHS} epochs (data.sampling, data.class_weights)")
    print(count_table(preview, epoch=options.epoch))
    print(f"{_count(len(preview.shown), 'image')}, {_count(options.num_samples, 'time')} each: {options.out}")


def preview_run(config: Config, data: Data, options: Options) -> Preview:
    """What the picture shows: made where and how the run, of one process, would make its batches."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    return build_preview(
        config,
        data,
        place=Place(device, dtype, rank=0, world_size=1, num_cores=num_cores()),
        num_images=options.num_images,
        num_samples=options.num_samples,
        epoch=options.epoch,
        num_counted=_NUM_COUNTED,
        show_progress=True,
    )


def _check_writable(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"out={path}: the picture is a PNG file; give a name that ends in .png.")
    if path.is_dir():
        raise ValueError(f"out={path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"out={path}: there is no folder {path.parent}; make it, or name another one.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"out={path} cannot be written: no permission; name another folder.")


def _recipe_of(words: list[str]) -> str:
    """The path of the recipe as it was typed; of the default one its name and folder."""
    if words[:1] == ["--config"]:
        return words[1]
    if words and words[0].startswith("--config="):
        return words[0].removeprefix("--config=")
    return str(DEFAULT_RECIPE.relative_to(DEFAULT_RECIPE.parents[2]))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


if __name__ == "__main__":
    main()
