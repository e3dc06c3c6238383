"""The runs that studies are made of, and what their folders are called.

recipe, what is changed in it, seed -> Cell -> run_name
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

_MOST_LETTERS = 199  # file systems take 255 bytes; FOLDER.starts and FOLDER.log stand beside the folder
_HASH_LETTERS = 12


class Cell(NamedTuple):
    """One run: a recipe, what is changed in it, and the seed.

    In what is changed, %SEED% stands for the seed, %RUNS% for the folder that holds the runs, and %WORK% for the folder
    of data that is made for studies.
    """

    recipe: str
    overrides: str
    seed: int


def run_name(study: str, cell: Cell) -> str:
    """The name of a run's folder: all that tells it from others; the end of a long one is replaced by a hash of it."""
    words = cell.overrides.replace("%WORK%/", "").replace("/", "_").split()
    name = "-".join([study, Path(cell.recipe).stem, *words, str(cell.seed)])
    if len(name) <= _MOST_LETTERS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LETTERS]
    return f"{name[: _MOST_LETTERS - _HASH_LETTERS - 1]}-{digest}"
