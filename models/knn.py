"""Nearest neighbours as the last layer of a network: the training images vote for their own class.

features (N, D) -> standardised -> the k nearest of the bank -> votes of their classes -> log of each class's share

Legend of shape letters: N images, M images of the bank, D width of features, K classes.
"""

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from models.heads import head_of, install_linear

if TYPE_CHECKING:
    from models.classifiers import Fitted, FittedNeighbours

_AT_ONCE = 4096  # images of the bank that distances are computed to at once
_TIE_FRAC = 0.01  # of a vote: what the nearest neighbour of each class adds at the most


class KnnCard(TypedDict):
    """What a checkpoint has to say of such a layer, for `with_knn` to make room for it."""

    num_images: int
    width: int
    k: int


class NearestNeighbours(nn.Module):
    """Logits by the votes of the k nearest images of a bank, by Euclidean distance of standardised features.

    A class with v of k votes has the logit log((v + 1 / K) / (k + 1)). Of classes with the same votes that of the
    nearest image comes first: the nearest image of each class adds less than a hundredth of a vote, the more the nearer
    it is. It has no parameters; what it knows are buffers, and so in every checkpoint.

    Args:
        num_images: M.
        width: D.
        num_classes: K.
        k: How many vote.
    """

    bank_ND: Tensor
    labels_N: Tensor
    mean_D: Tensor
    std_D: Tensor

    def __init__(self, *, num_images: int, width: int, num_classes: int, k: int) -> None:
        super().__init__()
        self.register_buffer("bank_ND", torch.zeros(num_images, width))  # standardised
        self.register_buffer("labels_N", torch.zeros(num_images, dtype=torch.int64))
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("std_D", torch.ones(width))
        self.num_classes = num_classes
        self.k = k

    def forward(self, features_ND: Tensor) -> Tensor:
        """Logits (N, K), float32, of features (N, D) or (N, D, 1, 1)."""
        queries_ND = (features_ND.flatten(1).double() - self.mean_D) / self.std_D
        return self._log_shares(self._nearest(queries_ND.to(self.bank_ND.dtype).double()))

    def _nearest(self, queries_ND: Tensor) -> Tensor:
        """Labels of the k nearest, the nearest first, int64 (N, k).

        In float64: differences of squares lose half of the digits, and neighbours would change places.
        """
        num_queries = len(queries_ND)
        squares_NM = queries_ND.new_empty(num_queries, 0)
        labels_NM = self.labels_N.new_empty(num_queries, 0)
        parts = (torch.split(one, _AT_ONCE) for one in (self.bank_ND, self.labels_N))
        for bank_MD, labels_M in zip(*parts, strict=True):
            bank_MD = bank_MD.double()
            # squared distances but for the query's own square, which is the same for all
            more_NM = bank_MD.square().sum(dim=1) - 2 * queries_ND @ bank_MD.T
            squares_NM = torch.cat([squares_NM, more_NM], dim=1)
            labels_NM = torch.cat([labels_NM, labels_M.expand(num_queries, -1)], dim=1)
            squares_NM, places_NM = squares_NM.topk(min(self.k, squares_NM.shape[1]), largest=False)
            labels_NM = labels_NM.gather(1, places_NM)
        return labels_NM

    def _log_shares(self, nearest_NM: Tensor) -> Tensor:
        """Logits (N, K) of the labels of the nearest."""
        num_queries, k = nearest_NM.shape
        shape = (num_queries, self.num_classes)
        votes_NK = torch.zeros(shape, dtype=torch.float64, device=nearest_NM.device)
        votes_NK.scatter_add_(1, nearest_NM, torch.ones_like(nearest_NM, dtype=torch.float64))
        places_NM = torch.arange(k, device=nearest_NM.device).expand(num_queries, -1)
        first_NK = torch.full(shape, k, device=nearest_NM.device).scatter_reduce(1, nearest_NM, places_NM, "amin")
        shares_NK = votes_NK + 1 / self.num_classes + _TIE_FRAC * (k - first_NK) / (k + 1)
        return (shares_NK / shares_NK.sum(dim=1, keepdim=True)).log().float()


def with_knn(module: nn.Module, head: str, *, num_images: int, width: int, k: int) -> nn.Module:
    """The network with room for nearest neighbours in place of its last layer, for a checkpoint's weights.

    Args:
        module: The network, changed in place.
        head: The path of its last layer, linear.
        num_images: As in `NearestNeighbours`, and so `width` and `k`: a checkpoint's card says them (`KnnCard`).
        width: As there.
        k: As there.

    Raises:
        ValueError: The last layer takes features of another width.
    """
    layer = head_of(module, head)
    num_classes, own_width = layer.weight.shape[:2]
    if own_width != width:
        raise ValueError(
            f"the last layer {head} takes {own_width} features, but the neighbours have {width}; build the network "
            "that they were computed with (the checkpoint's model.json says it)."
        )
    neighbours = NearestNeighbours(num_images=num_images, width=width, num_classes=num_classes, k=k)
    module.set_submodule(head, neighbours.to(layer.weight.device, layer.weight.dtype).train(layer.training))
    return module


def install_knn(module: nn.Module, head: str, fitted: "FittedNeighbours") -> KnnCard:
    """Nearest neighbours in place of the last layer, in place; gives what a checkpoint's card has to say of them.

    Raises:
        ValueError: As `with_knn`.
    """
    num_images, width = fitted.bank_ND.shape
    card = KnnCard(num_images=num_images, width=width, k=fitted.k)
    layer = with_knn(module, head, **card).get_submodule(head)
    state = {name: torch.as_tensor(getattr(fitted, name)) for name, _ in layer.named_buffers()}
    layer.load_state_dict(state)
    return card


def install_classifier(module: nn.Module, head: str, fitted: "nn.Linear | Fitted") -> dict[str, Any]:
    """Sets the last layer to a trained layer or a fitted classifier, in place.

    Args:
        module: The network.
        head: The path of its last layer.
        fitted: A linear layer (`models.heads.copy_head`), or what `models.classifiers.fit_classifier` gives.

    Returns:
        What a checkpoint's card has to say beside the rest: `knn` for `with_knn`, or nothing.

    Raises:
        ValueError: As `models.heads.install_linear` and `with_knn`.
    """
    from models.classifiers import FittedLinear  # scikit-learn takes a second, and evaluate.py does without

    if isinstance(fitted, nn.Linear):
        install_linear(module, head, fitted.weight.detach(), None if fitted.bias is None else fitted.bias.detach())
        return {}
    if isinstance(fitted, FittedLinear):
        install_linear(module, head, fitted.weight_KD, fitted.bias_K)
        return {}
    return {"knn": dict(install_knn(module, head, fitted))}
