"""The names of all networks, and the ones most like a name that is none of them.

our own: resnet    torchvision's: torchvision/resnet18    timm's: timm/resnet18
with a tag, which names weights: torchvision/resnet18.IMAGENET1K_V1, timm/resnet18.a1_in1k
"""

import difflib
from collections.abc import Sequence

from models.timm_zoo import list_timm, list_timm_weights
from models.torchvision_zoo import list_torchvision, list_torchvision_weights

_NUM_OFFERED = 5


def list_names(own: Sequence[str]) -> list[str]:
    """All names: our own, as given, then torchvision's, then timm's (which imports it, a second)."""
    return [*own, *list_torchvision(), *list_timm()]


def list_names_like(name: str, own: Sequence[str]) -> list[str]:
    """All names that `name` can be meant for: with a dot in it, those with a tag too.

    Args:
        name: A name, or a pattern of names.
        own: Our own.
    """
    tagged = [*list_torchvision_weights(), *list_timm_weights()] if "." in name else []
    return list_names(own) + tagged


def nearest_names(name: str, names: Sequence[str]) -> list[str]:
    """The names most like `name`, best first; those that are the same behind the / count as most alike.

    Args:
        name: A name that is not among them.
        names: Those there are.
    """
    word = _word(name)
    same = [one for one in names if _word(one) == word]
    zoo = name[: -len(word)] if "/" in name else ""
    in_zoo = [one for one in names if zoo and one.startswith(zoo)]
    words = {_word(one): one for one in reversed(in_zoo or names)}  # our own before the zoos'
    close = difflib.get_close_matches(word, words, n=_NUM_OFFERED, cutoff=0.6)
    return list(dict.fromkeys([*same, *(words[one] for one in close)]))[:_NUM_OFFERED]


def _word(name: str) -> str:
    """What stands behind the /, in small letters."""
    return name.rpartition("/")[2].lower()
