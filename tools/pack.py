"""Packs images into a few large files that are the fastest to read.

    python -m tools.pack SOURCE DEST [options]      SOURCE: an image folder, a table (.csv, .tsv, .jsonl), a folder of
                                                    WebDataset shards, or the name of a data set, such as cifar10
    python -m tools.pack --verify DEST              is it still what was packed?

Then train with --data.dataset packed --data.root DEST. The shards are tar files that WebDataset and DALI read, too.
Called again after it was stopped, it goes on; DEST is there when all of it is.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.load import load_with_options
from configs.schema import Config
from pipelines.build import Packed, Storing, has_shards, num_cores, pack_data, verify_packed

_USAGE = "python -m tools.pack SOURCE DEST [options], or python -m tools.pack --verify DEST"
_TABLES = (".csv", ".tsv", ".jsonl")
_MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are stored.

    Attributes:
        mode: keep = the bytes as they are; jpeg = encoded anew, with restart markers, by which a window is decoded
            without the rest; raw = pixels, the fastest to read and the largest.
        long_side: Make images smaller whose longer side is longer than this, in pixels. Not with mode keep.
        short_side: The same of the shorter side.
        quality: Of JPEG, 1 to 100.
        subsampling: Of the colours of JPEG.
        restart: Whether JPEGs get restart markers (2 to 3 % more bytes).
        shard_mib: Longest shard, in MiB.
        workers: Processes that decode and encode. Default: CPU cores.
    """

    mode: Literal["keep", "jpeg", "raw"] = "keep"
    long_side: int | None = None
    short_side: int | None = None
    quality: int = 90
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
    restart: bool = True
    shard_mib: float = 256.0
    workers: int | None = None

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: A number out of range, or one that the mode does not read.
        """
        for name, low, high in (
            ("long_side", 1, 65500),
            ("short_side", 1, 65500),
            ("quality", 1, 100),
            ("shard_mib", 1e-6, 2**20),
            ("workers", 0, 1024),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value} is out of range; use {low} to {high}.")
        for name in ("long_side", "short_side"):
            if self.mode == "keep" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} makes images smaller, but mode=keep stores them as they are; use --mode jpeg."
                )


def main() -> None:
    """Command line -> a packed data set, or what is wrong with one."""
    words = sys.argv[1:]
    is_verifying = words[:1] == ["--verify"]
    try:
        if is_verifying:
            _verify(words[1:])
        else:
            _pack(words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has left; all work is done by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(TRACEBACK=1 shows where it came from)")
    except KeyboardInterrupt:
        sys.exit("\nstopped" if is_verifying else "\nstopped; the same command goes on where this one was")


def _pack(words: list[str]) -> None:
    asks_for_help = bool({"--help", "-h"} & set(words))
    if not asks_for_help and (len(words) < 2 or words[0].startswith("-") or words[1].startswith("-")):
        raise ValueError(f"SOURCE and DEST must come first: {_USAGE}.")
    source = [] if asks_for_help else source_options(words[0])
    config, options = load_with_options(
        [*source, *(["--help"] if asks_for_help else map(_with_underscores, words[2:]))],
        options=Options,
        prog="python -m tools.pack SOURCE DEST",
        description=__doc__ or "",
    )
    print(summarise(pack_source(config, options, Path(words[1])), Path(words[1])))


def pack_source(config: Config, options: Options, dest: Path) -> Packed:
    """Packs the data set of a configuration into the folder `dest`.

    Raises:
        OSError: Data is not there, or `dest` cannot be written.
        ValueError: What the data holds cannot be trained on, or `dest` exists.
    """
    storing = Storing(
        options.mode,
        options.long_side,
        options.short_side,
        options.quality,
        options.subsampling,
        options.restart,
        options.shard_mib,
    )
    workers = num_cores() if options.workers is None else options.workers
    return pack_data(config, dest, storing, num_workers=workers, show_progress=True)


def source_options(source: str) -> list[str]:
    """What of the configuration says where the images are.

    Raises:
        ValueError: There is nothing of that name.
    """
    path = Path(source)
    if path.suffix in _TABLES or (path.is_dir() and any((path / f"train{suffix}").is_file() for suffix in _TABLES)):
        return ["--data.dataset", "manifest", "--data.root", source]
    if path.is_dir() and ((path / "dataset.json").is_file() or has_shards(path)):
        return ["--data.dataset", "packed", "--data.root", source]
    if path.is_dir():
        return ["--data.dataset", "folder", "--data.root", source]
    if os.sep in source or path.exists():
        raise ValueError(f"SOURCE {source} is no folder and no table; give one, or the name of a data set.")
    return ["--data.dataset", source]


def summarise(packed: Packed, dest: Path) -> str:
    """What was packed, and what to do with it."""
    lines = [
        f"{split}: {count:,} images, {packed.num_bytes[split] / 2**20:,.1f} MiB"
        for split, count in packed.num_samples.items()
    ]
    if packed.num_refused:
        lines.append(f"{packed.num_refused:,} images could not be read and were left out: {dest / 'refused.jsonl'}")
    return "\n".join([*lines, f"packed; train with --data.dataset packed --data.root {dest}"])


def _verify(words: list[str]) -> None:
    if len(words) != 1 or words[0].startswith("-"):
        raise ValueError(f"--verify takes one folder: {_USAGE}.")
    faults = list(verify_packed(Path(words[0]), show_progress=True))
    if faults:
        more = [f"... {len(faults):,} in all"] * (len(faults) > _MOST_NAMED)
        sys.exit("\n".join([*faults[:_MOST_NAMED], *more, f"{words[0]} is not what was packed"]))
    print(f"{words[0]}: every shard and every image is what was packed")


def _with_underscores(word: str) -> str:
    """--long-side as --long_side; values stay as they are."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


if __name__ == "__main__":
    main()
