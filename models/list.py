"""Lists and searches the networks there are: `python -m models.list ['timm/*next*']`.

pattern -> one name per line, and how many
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence

from models.build import MODELS
from models.names import list_names_like, nearest_names
from models.timm_zoo import list_timm
from models.torchvision_zoo import list_torchvision


def main(arguments: Sequence[str]) -> int:
    """Prints the names that match; 1 if there are none.

    Args:
        arguments: The command line, without the program.
    """
    parser = argparse.ArgumentParser(
        prog="python -m models.list", description="Lists and searches networks for --model.name.", allow_abbrev=False
    )
    parser.add_argument("pattern", nargs="?", help="* for any letters, ? for one, for example 'timm/*next*'; quote it")
    pattern = parser.parse_args(arguments).pattern
    own = list(MODELS)
    if pattern is None:
        print("\n".join(own))
        print(f"{len(own)} of our own, {len(list_torchvision())} torchvision/..., {len(list_timm())} timm/...")
        return 0
    names = list_names_like(pattern, own)
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        close = nearest_names(pattern.replace("*", ""), names)
        like = f"nearest: {', '.join(close)}" if close else "write * for any letters, for example '*next*'"
        print(f"no network is called {pattern!r}; {like}", file=sys.stderr)
        return 1
    print("\n".join(found))
    print(f"{len(found)} of {len(names)} networks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
