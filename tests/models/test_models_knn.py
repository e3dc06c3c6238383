"""Nearest neighbours as a last layer, held against scikit-learn's."""

import re

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from models import knn
from models.classifiers import fit_classifier
from models.heads import copy_head
from models.knn import NearestNeighbours, install_classifier, install_knn, with_knn

NUM_CLASSES, WIDTH = 4, 6


def make_features(num, *, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % NUM_CLASSES
    centres = np.random.default_rng(0).normal(size=(NUM_CLASSES, WIDTH))
    features = centres[labels] + rng.normal(scale=1.2, size=(num, WIDTH))
    return (features * np.arange(1, WIDTH + 1) + 5).astype(np.float32), labels


def make_layer(bank_ND, labels_N, *, k, num_classes=NUM_CLASSES):
    layer = NearestNeighbours(num_images=len(bank_ND), width=bank_ND.shape[1], num_classes=num_classes, k=k)
    layer.load_state_dict(
        layer.state_dict() | {"bank_ND": torch.as_tensor(bank_ND), "labels_N": torch.tensor(labels_N)}
    )
    return layer


@pytest.mark.parametrize("at_once", [4096, 7])
@pytest.mark.parametrize("k", [1, 3, 5, 50])
def test_predictions_are_those_of_scikit_learn_where_votes_do_not_tie(monkeypatch, k, at_once):
    monkeypatch.setattr(knn, "_AT_ONCE", at_once)  # the bank in one part, or in many smaller than k
    features, labels = make_features(90, seed=1)
    queries, _ = make_features(200, seed=2)
    scaler = StandardScaler().fit(features.astype(np.float64))
    expected = KNeighborsClassifier(k).fit(scaler.transform(features.astype(np.float64)), labels)
    votes = np.rint(k * expected.predict_proba(scaler.transform(queries.astype(np.float64))))
    ranked = np.sort(votes, axis=1)
    is_clear = ranked[:, -1] > ranked[:, -2]
    layer = make_layer(scaler.transform(features.astype(np.float64)).astype(np.float32), labels, k=k)
    layer.mean_D.copy_(torch.from_numpy(scaler.mean_))
    layer.std_D.copy_(torch.from_numpy(scaler.scale_))
    logits = layer(torch.from_numpy(queries))
    assert logits.dtype == torch.float32
    assert is_clear.sum() > 100
    assert logits.argmax(dim=1).numpy()[is_clear].tolist() == votes.argmax(axis=1)[is_clear].tolist()
    shares = (votes + 1 / NUM_CLASSES) / (k + 1)
    assert np.abs(logits.exp().numpy() - shares).max() < 0.01
    assert torch.allclose(logits.exp().sum(dim=1), torch.ones(200), atol=1e-5)


def test_of_equal_votes_the_nearer_wins_and_never_fewer_votes():
    bank = np.array([[0.0], [1.0], [2.0], [3.0], [9.0]], dtype=np.float32)
    layer = make_layer(bank, [2, 0, 0, 2, 1], k=4, num_classes=3)
    query = torch.tensor([[-1.0], [4.0]])  # nearest 2 0 0 2, and 2 0 0 2 from the other side
    assert layer(query).argmax(dim=1).tolist() == [2, 2]
    layer = make_layer(bank, [2, 0, 0, 0, 1], k=4, num_classes=3)
    assert layer(query).argmax(dim=1).tolist() == [0, 0]
    layer = make_layer(bank, [1, 0, 0, 1, 1], k=4, num_classes=3)
    assert layer(torch.tensor([[1.4]])).argmax(dim=1).tolist() == [0]


@pytest.fixture
def fitted():
    return fit_classifier("knn", *make_features(60, seed=1), num_classes=NUM_CLASSES, cv_folds=3, seed=0)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_network_with_neighbours_is_saved_and_made_again_from_its_card(fitted, kind):
    def build():
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, NUM_CLASSES)).eval()
        return nn.Sequential(nn.Identity(), nn.Conv2d(WIDTH, NUM_CLASSES, 1), nn.Flatten()).eval()

    module = build()
    card = install_knn(module, "1", fitted)
    assert card == {"num_images": 60, "width": WIDTH, "k": fitted.k}
    assert not module.training
    assert not module[1].training
    images = torch.from_numpy(make_features(20, seed=2)[0])[:, :, None, None]
    logits = module(images)
    assert logits.shape == (20, NUM_CLASSES)
    again = with_knn(build(), "1", **card)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(images), logits)


def test_it_computes_in_bf16_networks_and_fp64_ones_what_it_is_given(fitted):
    features = torch.from_numpy(make_features(20, seed=2)[0])
    module = nn.Sequential(nn.Linear(WIDTH, NUM_CLASSES))
    install_knn(module, "0", fitted)
    expected = module(features).argmax(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(features).argmax(dim=1), expected)
    assert torch.equal(module.double()(features.double()).argmax(dim=1), expected)


def test_another_width_is_refused(fitted):
    message = f"the last layer 0 takes 5 features, but the neighbours have {WIDTH}; build the network"
    with pytest.raises(ValueError, match=re.escape(message)):
        install_knn(nn.Sequential(nn.Linear(5, 4)), "0", fitted)


@pytest.mark.parametrize("kind", ["linear", "logistic", "knn"])
def test_whatever_was_trained_or_fitted_is_set_and_the_card_says_neighbours_alone(kind):
    features, labels = make_features(60, seed=1)
    module = nn.Sequential(nn.Linear(WIDTH, NUM_CLASSES))
    fitted = (
        copy_head(module, "0")
        if kind == "linear"
        else fit_classifier(kind, features, labels, num_classes=NUM_CLASSES, cv_folds=3, seed=0)
    )
    expected = module(torch.from_numpy(features)) if kind == "linear" else None
    card = install_classifier(module, "0", fitted)
    logits = module(torch.from_numpy(features))
    if kind == "linear":
        assert torch.equal(logits, expected)
    else:
        assert (logits.argmax(dim=1).numpy() == labels).mean() > 0.5
    assert card == ({"knn": {"num_images": 60, "width": WIDTH, "k": fitted.k}} if kind == "knn" else {})
