"""scikit-learn's classifiers on features: logistic regression, linear support vectors, nearest neighbours.

features (N, D), labels -> standardised -> strength or number of neighbours by cross-validation -> fitted on all
    -> linear: weights of a last layer, the standardising folded in; knn: the standardised features themselves

Legend of shape letters: N samples, D width of features, K classes.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

LinearKind = Literal["logistic", "svm"]
Kind = Literal["logistic", "svm", "knn"]

# the strongest regularisation first: of equal scores the first one is taken
LOGISTIC_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SVM_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NUM_NEIGHBOURS = (1, 3, 5, 11, 21, 51)

_NAMES = {"logistic": "logistic regression", "svm": "linear SVM, each class against the rest", "knn": "neighbours"}
_OPTIONS = {"logistic": "C", "svm": "C", "knn": "k"}
_MOST_ITERATIONS = {"logistic": 1000, "svm": 10_000}


class Search(NamedTuple):
    """What cross-validation has tried.

    kind: the classifier. option: C or k. values: those that were tried. top1_fracs: of each, the mean over the parts;
    spreads: their standard deviation. best: the place of the one that was taken. num_parts: of the cross-validation.
    """

    kind: Kind
    option: str
    values: tuple[float, ...]
    top1_fracs: tuple[float, ...]
    spreads: tuple[float, ...]
    best: int
    num_parts: int

    def describe(self) -> str:
        """A line with what was taken, and the scores of all that was tried."""
        tried = zip(self.values, self.top1_fracs, self.spreads, strict=True)
        scores = ", ".join(f"{value:g}: {100 * frac:.2f} +- {100 * spread:.2f} %" for value, frac, spread in tried)
        at_end = self.best in (0, len(self.values) - 1) and len(self.values) > 1
        return (
            f"{_NAMES[self.kind]}: {self.option}={self.values[self.best]:g}{' (the end of the grid)' * at_end}, by "
            f"cross-validation in {self.num_parts} parts (top-1 by {self.option}: {scores})"
        )


class FittedLinear(NamedTuple):
    """Weights of a last layer: weight_KD float32 (K, D), bias_K float32 (K,) or None, for features as they are."""

    weight_KD: npt.NDArray[np.float32]
    bias_K: npt.NDArray[np.float32] | None
    search: Search
    has_converged: bool

    def describe(self) -> str:
        """What was chosen and why, in a line."""
        most = _MOST_ITERATIONS[self.search.kind]
        return self.search.describe() + ("" if self.has_converged else f"; stopped after {most} steps, not converged")


class FittedNeighbours(NamedTuple):
    """What nearest neighbours need.

    bank_ND: float32 (N, D), standardised. labels_N: int64 (N,). k: how many vote. mean_D, std_D: float32 (D,), by which
    features are standardised.
    """

    bank_ND: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64]
    k: int
    mean_D: npt.NDArray[np.float32]
    std_D: npt.NDArray[np.float32]
    search: Search

    def describe(self) -> str:
        """What was chosen and why, in a line."""
        return self.search.describe()


Fitted = FittedLinear | FittedNeighbours


def fit_classifier(
    kind: Kind,
    features_ND: npt.NDArray[np.floating[Any]],
    labels_N: npt.NDArray[np.int64],
    *,
    num_classes: int,
    cv_folds: int,
    seed: int,
    has_bias: bool = True,
) -> Fitted:
    """The classifier, its strength C (or k) chosen by stratified cross-validation, fitted on all samples.

    In float64; features are standardised by the samples that a fit sees, in each part of the cross-validation anew. It
    takes N * D * 8 bytes about three times.

    Args:
        kind: logistic = softmax regression with an L2 penalty (of two classes the logistic one); svm = linear support
            vectors, squared hinge loss, one against the rest; knn = the nearest by Euclidean distance, all votes equal.
        features_ND: float (N, D).
        labels_N: int64 (N,), 0..num_classes-1.
        num_classes: K.
        cv_folds: Parts of the cross-validation, 2 or more.
        seed: Of the parts, and of the SVM's solver.
        has_bias: Whether a linear classifier has one. Without, features are scaled, not centred: for last layers that
            have none.

    Returns:
        FittedLinear for logistic and svm, FittedNeighbours for knn.

    Raises:
        ValueError: A class has fewer samples than there are parts, or a feature is not finite.
    """
    _check(features_ND, labels_N, num_classes=num_classes, cv_folds=cv_folds)
    exact_ND: npt.NDArray[np.float64] = features_ND.astype(np.float64)
    most_neighbours = len(labels_N) - -(-len(labels_N) // cv_folds)  # of the samples that a part is fitted on
    grid = {
        "logistic": LOGISTIC_STRENGTHS,
        "svm": SVM_STRENGTHS,
        "knn": tuple(k for k in NUM_NEIGHBOURS if k <= most_neighbours),
    }[kind]
    search = _build_search(kind, grid, cv_folds=cv_folds, seed=seed, has_bias=has_bias)
    with warnings.catch_warnings():
        # of weak regularisation, which then is seldom the best; of what is taken `has_converged` says it
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(exact_ND, labels_N)
    tried = Search(
        kind=kind,
        option=_OPTIONS[kind],
        values=grid,
        top1_fracs=tuple(search.cv_results_["mean_test_score"].tolist()),
        spreads=tuple(search.cv_results_["std_test_score"].tolist()),
        best=int(search.best_index_),
        num_parts=cv_folds,
    )
    scaler, classifier = search.best_estimator_["scaler"], search.best_estimator_["classifier"]
    if kind == "knn":
        return _neighbours(exact_ND, labels_N, scaler=scaler, search=tried)
    return _folded(classifier, scaler=scaler, search=tried, has_bias=has_bias)


def _build_search(kind: Kind, grid: Sequence[float], *, cv_folds: int, seed: int, has_bias: bool) -> GridSearchCV:
    """Scaler and classifier, for each value of the grid in stratified parts."""
    return GridSearchCV(
        Pipeline(
            [
                ("scaler", StandardScaler(with_mean=has_bias or kind == "knn")),
                ("classifier", _build(kind, seed=seed, has_bias=has_bias)),
            ]
        ),
        {"classifier__n_neighbors" if kind == "knn" else "classifier__C": list(grid)},
        scoring="accuracy",
        cv=StratifiedKFold(cv_folds, shuffle=True, random_state=seed),
        error_score="raise",
    )


def _build(kind: Kind, *, seed: int, has_bias: bool) -> Any:
    match kind:
        case "logistic":
            return LogisticRegression(max_iter=_MOST_ITERATIONS[kind], fit_intercept=has_bias)
        case "svm":
            return LinearSVC(max_iter=_MOST_ITERATIONS[kind], dual="auto", random_state=seed, fit_intercept=has_bias)
        case "knn":
            return KNeighborsClassifier()


def _folded(classifier: Any, *, scaler: Any, search: Search, has_bias: bool) -> FittedLinear:
    """Weights for features that are not standardised; of two classes, for which there is one row, two."""
    weight_KD, bias_K = classifier.coef_, np.broadcast_to(classifier.intercept_, len(classifier.coef_))
    if len(weight_KD) == 1:  # the difference of two logits, which is all that counts
        weight_KD, bias_K = (np.concatenate([-half, half]) for half in (weight_KD / 2, bias_K / 2))
    weight_KD = weight_KD / scaler.scale_
    if has_bias:
        bias_K = bias_K - weight_KD @ scaler.mean_
    num_iterations = np.max(classifier.n_iter_)
    return FittedLinear(
        weight_KD=weight_KD.astype(np.float32),
        bias_K=bias_K.astype(np.float32) if has_bias else None,
        search=search,
        has_converged=bool(num_iterations < _MOST_ITERATIONS[search.kind]),
    )


def _neighbours(
    features_ND: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64], *, scaler: Any, search: Search
) -> FittedNeighbours:
    """The features standardised by float32 statistics, as those of later images will be."""
    mean_D, std_D = scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32)
    return FittedNeighbours(
        bank_ND=((features_ND - mean_D) / std_D).astype(np.float32),
        labels_N=labels_N.astype(np.int64),
        k=int(search.values[search.best]),
        mean_D=mean_D,
        std_D=std_D,
        search=search,
    )


def _check(
    features_ND: npt.NDArray[np.floating[Any]], labels_N: npt.NDArray[np.int64], *, num_classes: int, cv_folds: int
) -> None:
    if not np.isfinite(features_ND).all():
        raise ValueError("features are not finite; look at the weights that the network starts from.")
    counts_K = np.bincount(labels_N, minlength=num_classes)
    fewest = int(counts_K.argmin())
    count = int(counts_K[fewest])
    if count < cv_folds:
        way_out = f"--strategy.cv_folds {count}" if count >= 2 else "--strategy.classifier linear"
        raise ValueError(
            f"cross-validation in strategy.cv_folds={cv_folds} parts needs as many training images of each class, but "
            f"class number {fewest} has {count}; use {way_out}, or add images."
        )
