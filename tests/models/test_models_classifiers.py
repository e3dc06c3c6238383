"""scikit-learn's classifiers: what is chosen, and weights that do what the fitted pipeline does."""

import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from models import classifiers
from models.classifiers import FittedLinear, FittedNeighbours, fit_classifier
from models.knn import install_knn

WIDTH = 7


def make_data(num_classes, *, num=120, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num) % num_classes)
    features = rng.normal(size=(num_classes, WIDTH))[labels] + rng.normal(size=(num, WIDTH))
    features[:, 2] = 4.0  # of no variance
    return (features * 10.0 ** np.linspace(-1, 2, WIDTH) + 2).astype(np.float32), labels.astype(np.int64)


def theirs(kind, value):
    classifier = {
        "logistic": lambda: LogisticRegression(C=value, max_iter=1000),
        "svm": lambda: LinearSVC(C=value, max_iter=10_000, dual="auto", random_state=3),
        "knn": lambda: KNeighborsClassifier(n_neighbors=int(value)),
    }[kind]()
    return make_pipeline(StandardScaler(), classifier)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_folded_weights_do_what_the_fitted_pipeline_does(kind, num_classes):
    features, labels = make_data(num_classes)
    fitted = fit_classifier(kind, features, labels, num_classes=num_classes, cv_folds=4, seed=3)
    assert isinstance(fitted, FittedLinear)
    assert (fitted.weight_KD.shape, fitted.bias_K.shape) == ((num_classes, WIDTH), (num_classes,))
    assert fitted.weight_KD.dtype == fitted.bias_K.dtype == np.float32
    pipeline = theirs(kind, fitted.search.values[fitted.search.best]).fit(features.astype(np.float64), labels)
    logits = features.astype(np.float64) @ fitted.weight_KD.T.astype(np.float64) + fitted.bias_K
    expected = pipeline.decision_function(features.astype(np.float64))
    ours = logits[:, 1] - logits[:, 0] if num_classes == 2 else logits
    assert np.abs(ours - expected).max() < 1e-5
    assert logits.argmax(axis=1).tolist() == pipeline.predict(features.astype(np.float64)).tolist()
    if kind == "logistic":
        probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
        assert np.abs(probabilities - pipeline.predict_proba(features.astype(np.float64))).max() < 1e-5


@pytest.mark.parametrize("kind", ["logistic", "svm", "knn"])
def test_the_best_of_the_grid_by_cross_validation_is_taken(kind):
    features, labels = make_data(3)
    fitted = fit_classifier(kind, features, labels, num_classes=3, cv_folds=4, seed=3)
    parts = StratifiedKFold(4, shuffle=True, random_state=3)
    scores = [
        cross_val_score(theirs(kind, value), features.astype(np.float64), labels, cv=parts)
        for value in fitted.search.values
    ]
    means = [float(each.mean()) for each in scores]
    assert fitted.search.top1_fracs == pytest.approx(means, abs=1e-12)
    assert fitted.search.spreads == pytest.approx([float(each.std()) for each in scores], abs=1e-12)
    assert fitted.search.best == int(np.argmax(means))
    assert len(fitted.search.values) == 6
    assert fit_classifier(kind, features, labels, num_classes=3, cv_folds=4, seed=3)[0].tolist() == fitted[0].tolist()


def test_neighbours_predict_what_the_fitted_pipeline_does():
    features, labels = make_data(3)
    fitted = fit_classifier("knn", features, labels, num_classes=3, cv_folds=4, seed=3)
    assert isinstance(fitted, FittedNeighbours)
    assert fitted.k == fitted.search.values[fitted.search.best]
    module = nn.Sequential(nn.Linear(WIDTH, 3))
    install_knn(module, "0", fitted)
    queries, _ = make_data(3, num=300, seed=5)
    pipeline = theirs("knn", fitted.k).fit(features.astype(np.float64), labels)
    votes = np.sort(pipeline.predict_proba(queries.astype(np.float64)), axis=1)
    is_clear = votes[:, -1] - votes[:, -2] > 1e-6
    predicted = module(torch.from_numpy(queries)).argmax(dim=1).numpy()
    assert is_clear.sum() > 200
    assert predicted[is_clear].tolist() == pipeline.predict(queries.astype(np.float64))[is_clear].tolist()


def test_k_is_no_more_than_there_are_samples_to_learn_from():
    features, labels = make_data(3, num=12)
    fitted = fit_classifier("knn", features, labels, num_classes=3, cv_folds=4, seed=3)
    assert fitted.search.values == (1, 3, 5)  # of the nine that each part leaves


def test_what_was_tried_is_told_in_a_line():
    features, labels = make_data(3)
    fitted = fit_classifier("logistic", features, labels, num_classes=3, cv_folds=4, seed=3)
    line = fitted.describe()
    best = fitted.search.values[fitted.search.best]
    assert re.match(
        rf"logistic regression: C={best:g}( \(the end of the grid\))?, by cross-validation in 4 parts "
        r"\(top-1 by C: 0.0001: \d+\.\d\d \+- \d+\.\d\d %, 0.001: .*, 10: \d+\.\d\d \+- \d+\.\d\d %\)$",
        line,
    )
    neighbours = fit_classifier("knn", features, labels, num_classes=3, cv_folds=4, seed=3).describe()
    assert neighbours.startswith("neighbours: k=")
    assert "top-1 by k: 1: " in neighbours


def test_a_fit_that_has_not_converged_says_so(monkeypatch):
    monkeypatch.setattr(classifiers, "_MOST_ITERATIONS", {"logistic": 1, "svm": 1})
    features, labels = make_data(3)
    fitted = fit_classifier("logistic", features, labels, num_classes=3, cv_folds=4, seed=3)
    assert not fitted.has_converged
    assert fitted.describe().endswith("; stopped after 1 steps, not converged")


@pytest.mark.parametrize(("count", "way_out"), [(3, "cv_folds 3"), (1, "classifier linear"), (0, "classifier linear")])
def test_a_class_with_too_few_samples_is_refused_with_the_number_that_works(count, way_out):
    features, labels = make_data(3)
    keep = np.concatenate([np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)[:count]])
    message = (
        f"cv_folds=5 parts needs as many training images of each class, but class number 1 has {count}; use --stra"
    )
    with pytest.raises(ValueError, match=f"{message}tegy.{way_out}, or add images"):
        fit_classifier("svm", features[keep], labels[keep], num_classes=3, cv_folds=5, seed=0)


def test_features_that_are_not_finite_are_refused():
    features, labels = make_data(3)
    features[5, 1] = np.inf
    with pytest.raises(ValueError, match="features are not finite; look at the weights"):
        fit_classifier("knn", features, labels, num_classes=3, cv_folds=4, seed=0)
