"""The loss section, lever by lever: each changes the loss as it says."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from configs.load import config_to_dict, replace_section
from configs.schema import Config, DataConfig, InputSpec, ModelConfig, OptimConfig, TrainConfig
from engine.build_loss import build_loss
from engine.checkpoint import save_checkpoint
from engine.losses import bce, cross_entropy, focal, shift_logits, weigh_classes
from engine.teachers import hash_weights
from models.build import build_model, build_pretrained
from pipelines.batch import Batch
from pipelines.source import ArraySource

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn", args={"width": 8, "hidden": 8}),
    optim=OptimConfig(name="sgd", lr=0.1),
    train=TrainConfig(epochs=1, global_batch_size=6),
)
SPEC = InputSpec(size_px=8, channels=1, mean=(0.5,), std=(0.25,))
COUNTS = [6, 3, 1]
TRAIN = ArraySource(
    class_names=("cat", "dog", "owl"),
    labels_N=np.repeat(np.arange(3), COUNTS),
    images_NHWC=np.zeros((10, 8, 8, 1), np.uint8),
)


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(
        inputs=(torch.randn(10, 1, 8, 8, generator=generator, dtype=torch.float64),),
        labels_N=torch.from_numpy(TRAIN.labels_N),
        mix=None,
        ids_N=torch.arange(10),
        valid_N=torch.ones(10, dtype=torch.bool),
    )


@pytest.fixture
def student(runtime):
    return runtime.place(build_model(CONFIG.model, num_classes=3, spec=SPEC, seed=0))


@pytest.fixture
def build(runtime, student):
    def build(*, train=TRAIN, distill=None, **loss):
        config = replace_section(CONFIG, "loss", **loss)
        config = replace_section(config, "distill", **(distill or {}))
        return build_loss(config, student, train, spec=SPEC, builders=(build_model, build_pretrained), runtime=runtime)

    return build


def weights(balance, factors=None, beta=0.999):
    return weigh_classes(COUNTS, balance=balance, effective_beta=beta, factors=factors or {})


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({}, cross_entropy()),
        ({"label_smoothing": 0.1}, cross_entropy(label_smoothing=0.1)),
        ({"balance": "inverse"}, cross_entropy(class_weights_K=weights("inverse"))),
        (
            {"balance": "effective", "effective_beta": 0.9},
            cross_entropy(class_weights_K=weights("effective", beta=0.9)),
        ),
        (
            {"balance": "inverse", "class_weights": {"owl": 2.0}},
            cross_entropy(class_weights_K=weights("inverse", {2: 2.0})),
        ),
        ({"class_weights": {"dog": 3.0}}, cross_entropy(class_weights_K=weights("none", {1: 3.0}))),
        (
            {"balance": "logit_adjustment", "adjustment_tau": 2.0},
            cross_entropy(logit_shift_K=shift_logits(COUNTS, tau=2.0)),
        ),
        ({"name": "bce"}, bce()),
        (
            {"name": "bce", "label_smoothing": 0.1, "target_threshold": 0.01},
            bce(label_smoothing=0.1, target_threshold=0.01),
        ),
        ({"name": "bce", "balance": "inverse"}, bce(class_weights_K=weights("inverse"))),
        ({"name": "focal"}, focal(gamma=2.0)),
        ({"name": "focal", "focal_gamma": 0.5, "label_smoothing": 0.1}, focal(gamma=0.5, label_smoothing=0.1)),
        (
            {"name": "focal", "balance": "logit_adjustment", "class_weights": {"cat": 2.0}},
            focal(gamma=2.0, logit_shift_K=shift_logits(COUNTS, tau=1.0), class_weights_K=weights("none", {0: 2.0})),
        ),
    ],
)
def test_each_lever_changes_the_loss_as_it_says(build, student, loss, expected):
    batch = make_batch()
    built = build(**loss)
    assert built.teachers == {}
    output = built.loss_fn(student, batch)
    assert output.loss.item() == pytest.approx(expected(student(*batch.inputs), batch).item(), rel=1e-12)


def test_the_mean_weight_of_a_training_image_is_one(build, student):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)  # the same loss for every image
    for loss in ({"balance": "inverse"}, {"balance": "effective"}, {"class_weights": {"owl": 9.0}}):
        given = build(**loss).loss_fn(module, make_batch()).loss
        assert given.item() == pytest.approx(np.log(3), rel=1e-12)


def test_a_weight_of_a_class_that_is_not_there_is_answered_with_the_nearest(build):
    message = "loss.class_weights.cats: there is no such class; nearest: cat; valid: cat, dog, owl"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(class_weights={"cats": 2.0})


@pytest.mark.parametrize("balance", ["inverse", "effective", "logit_adjustment"])
def test_a_class_without_training_images_cannot_be_balanced(build, balance):
    train = dataclasses.replace(TRAIN, class_names=("cat", "dog", "owl", "yak"))
    message = f"loss.balance={balance} goes by the number of training images of each class, but yak has none; add some"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(train=train, balance=balance)


def test_distillation_takes_teacher_temperature_weight_and_layers(build, student, tmp_path):
    module = build_model(CONFIG.model, num_classes=3, spec=SPEC, seed=5)
    card = {"model": config_to_dict(CONFIG.model), "class_names": list(TRAIN.class_names)}
    save_checkpoint(
        tmp_path / "teacher" / "checkpoints",
        step=1,
        best_step=None,
        weights=module.state_dict(),
        card=card | {"input": config_to_dict(SPEC)},
        training_state={},
    )
    name, batch = str(tmp_path / "teacher"), make_batch()
    distill = {
        "teachers": (name,),
        "temperature": 2.0,
        "weight": 0.25,
        "features": {"features.0": "features.0"},
        "features_weight": 10.0,
    }
    built = build(distill=distill, name="focal")
    assert built.teachers == {name: hash_weights(module)}
    loss, sums = built.loss_fn(student, batch)
    own, wanted = student(*batch.inputs), module.double()(*batch.inputs)
    divergence = nn.functional.kl_div(
        (own / 2).log_softmax(1), (wanted / 2).log_softmax(1), log_target=True, reduction="batchmean"
    )
    means = {part: sums[part].item() / 10 for part in ("label_loss", "distill_loss", "attention_loss")}
    assert means["label_loss"] == pytest.approx(focal(gamma=2.0)(own, batch).item(), rel=1e-12)
    assert means["distill_loss"] == pytest.approx(4 * divergence.item(), rel=1e-10)
    assert means["attention_loss"] > 0
    expected = 0.75 * means["label_loss"] + 0.25 * means["distill_loss"] + 10 * means["attention_loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert student.training
