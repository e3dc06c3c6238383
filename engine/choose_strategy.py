"""Which strategy of fine-tuning suits: by how many images there are, and how well the network knows their like.

images per class, nearest neighbours on the features, what the user knows -> choose -> name and reason

                 similar to what the weights know   different from it
    few images   linear                             differential
    many         head_then_all                      all

Few and similar: the features do, and more parameters would be fitted to chance. Few and different: the last stages must
move far, the first little. Many and similar: all may move, once the new head no longer sends noise back. Many and
different: nothing needs to be kept. A rule of thumb to begin with: where it matters, train two of them and compare.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

FEW_BELOW = 500  # images per class; between collections of one's own, tens to hundreds, and CIFAR-10's 5,000
# At 0.64 to 0.72 the head alone was 5.1 points behind `differential` with 50 images per class, 6.7 with 200
# (docs/transfer.md: five seeds, two cores of an AMD EPYC, torch 2.14.1, 2026-11-30).
SIMILAR_FROM = 0.8

_ENOUGH = 1e-6  # added to the spread of features that do not vary
Similarity = Literal["measured", "similar", "different"]


class Choice(NamedTuple):
    """A value of strategy.name, and why, in a sentence with the numbers."""

    name: Literal["linear", "differential", "head_then_all", "all"]
    why: str


def choose(num_images_per_class: float, *, knows: float | None, similarity: Similarity) -> Choice:
    """What suits.

    Args:
        num_images_per_class: Training images / classes.
        knows: How well a nearest-neighbour classifier on the network's features tells the classes apart: 0 as chance
            does, 1 without a mistake. None where it was not measured: the more careful strategy of the row is taken.
        similarity: strategy.similarity; unless measured, `knows` does not count.
    """
    is_few = num_images_per_class < FEW_BELOW
    is_similar, reason = _judge(knows, similarity=similarity)
    name: Literal["linear", "differential", "head_then_all", "all"]
    if is_similar is None:
        name = "differential" if is_few else "head_then_all"
    elif is_similar:
        name = "linear" if is_few else "head_then_all"
    else:
        name = "differential" if is_few else "all"
    amount = f"few (below {FEW_BELOW})" if is_few else f"many ({FEW_BELOW} or more)"
    return Choice(name, f"{int(num_images_per_class):,} images per class are {amount}, and {reason}")


def measure_knowing(features_ND: Tensor, labels_N: Tensor) -> float:
    """How well features tell classes apart: 0 as guessing the largest class does, 1 without a mistake, or below 0.

    Each sample takes the class of the nearest other one, by Euclidean distance of standardised features.

    Args:
        features_ND: float (N, D), two samples or more, on the CPU.
        labels_N: int64 (N,), of two classes or more.
    """
    features_ND = features_ND.double()
    features_ND = (features_ND - features_ND.mean(dim=0)) / (features_ND.std(dim=0) + _ENOUGH)
    distances_NN = torch.cdist(features_ND, features_ND).fill_diagonal_(torch.inf)
    right_frac = float((labels_N[distances_NN.argmin(dim=1)] == labels_N).double().mean())
    chance_frac = float(labels_N.bincount().max()) / len(labels_N)
    return (right_frac - chance_frac) / (1 - chance_frac)


def _judge(knows: float | None, *, similarity: Similarity) -> tuple[bool | None, str]:
    """Whether the images are like what the network knows, None if that is not known, and what says so."""
    if similarity != "measured":
        return similarity == "similar", f"strategy.similarity says that they are {similarity}"
    if knows is None:
        return None, "how similar they are to what the network knows was not measured"
    is_similar = knows >= SIMILAR_FROM
    verdict = f"similar ({SIMILAR_FROM:g} or more)" if is_similar else f"different (below {SIMILAR_FROM:g})"
    return is_similar, (
        f"nearest neighbours by the features of the network come {knows:.2f} of the way from guessing to no mistake: "
        f"{verdict}"
    )
