"""Downloads one of torchvision's data sets: `python -m pipelines.sources.download NAME [--root DIR]`.

For machines without network: run it on one that has some, and copy the folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.sources.torchvision_sets import SETS, default_root, load_torchvision


def main(arguments: Sequence[str]) -> int:
    """Command line -> files in the folder; 0 when they are there and whole."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sources.download", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("name", choices=sorted(SETS), metavar="NAME", help=", ".join(sorted(SETS)))
    parser.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        sources = load_torchvision(options.name, root=options.root, show_progress=True)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    counts = ", ".join(f"{len(source.labels_N):,} {split}" for split, source in sources.items())
    print(f"{options.name}: {counts}; in {options.root}, to be used by --data.dataset {options.name} --data.root DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
