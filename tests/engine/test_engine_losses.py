"""The loss of plain and of mixed batches, against soft labels written out in float64."""

import re

import pytest
import torch
from torch import nn

from engine.losses import supervised
from pipelines.batch import Batch, Mix, split_batch

NUM_CLASSES, COUNT = 5, 12


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Linear(4, NUM_CLASSES).double()


def make_batch(*, weights=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (COUNT,), generator=generator)
    partners = labels.reshape(-1, 2).flip(1).reshape(-1)
    return Batch(
        inputs=(torch.randn(COUNT, 4, generator=generator, dtype=torch.float64),),
        labels_N=labels,
        mix=None if weights is None else Mix(partners, weights),
        ids_N=torch.arange(COUNT),
        valid_N=torch.ones(COUNT, dtype=torch.bool),
    )


def soft_cross_entropy(logits, batch, *, label_smoothing):
    """Minus the mean of sum over classes of target * log softmax, the target mixed first and then smoothed."""
    targets = nn.functional.one_hot(batch.labels_N, NUM_CLASSES).double()
    if batch.mix is not None:
        weights = batch.mix.weight_N.double()[:, None]
        partners = nn.functional.one_hot(batch.mix.partner_labels_N, NUM_CLASSES).double()
        targets = weights * targets + (1 - weights) * partners
    targets = (1 - label_smoothing) * targets + label_smoothing / NUM_CLASSES
    log_softmax = logits - logits.exp().sum(dim=1, keepdim=True).log()
    return -(targets * log_softmax).sum(dim=1).mean()


def mixed_weights(*, dtype=torch.float64):
    pairs = torch.tensor([0.0, 0.3, 0.5, 0.75, 1.0, 0.123], dtype=dtype)
    return pairs.repeat_interleave(2)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("weights", [None, mixed_weights(), torch.ones(COUNT, dtype=torch.float64)])
def test_the_loss_is_the_cross_entropy_with_mixed_and_smoothed_targets(module, weights, label_smoothing):
    batch = make_batch(weights=weights)
    output = supervised(num_classes=NUM_CLASSES, label_smoothing=label_smoothing)(module, batch)
    wanted = soft_cross_entropy(module(*batch.inputs), batch, label_smoothing=label_smoothing)
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_its_gradient_is_that_of_the_soft_targets_too(module):
    batch = make_batch(weights=mixed_weights())
    gradients = [
        torch.autograd.grad(loss, module.weight)[0]
        for loss in (
            supervised(num_classes=NUM_CLASSES, label_smoothing=0.1)(module, batch).loss,
            soft_cross_entropy(module(*batch.inputs), batch, label_smoothing=0.1),
        )
    ]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)


def test_weights_of_float32_serve_a_module_of_float64(module):
    batch = make_batch(weights=mixed_weights(dtype=torch.float32))
    output = supervised(num_classes=NUM_CLASSES, label_smoothing=0.0)(module, batch)
    assert output.loss.dtype == torch.float64
    wanted = soft_cross_entropy(module(*batch.inputs), batch, label_smoothing=0.0)
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-7)  # 1 - weight is rounded to float32


def test_a_mix_that_changes_nothing_gives_the_loss_of_none(module):
    plain, mixed = make_batch(), make_batch(weights=torch.ones(COUNT, dtype=torch.float64))
    loss_fn = supervised(num_classes=NUM_CLASSES, label_smoothing=0.1)
    assert loss_fn(module, mixed).loss.item() == pytest.approx(loss_fn(module, plain).loss.item(), rel=1e-12)


def test_of_a_mixed_image_the_label_that_weighs_more_counts_as_right(module):
    batch = make_batch(weights=mixed_weights())
    guesses = module(*batch.inputs).argmax(dim=1).tolist()
    right = 0
    for row, guess in enumerate(guesses):
        own = batch.mix.weight_N[row] >= 0.5
        right += guess == int(batch.labels_N[row] if own else batch.mix.partner_labels_N[row])
    sums = supervised(num_classes=NUM_CLASSES, label_smoothing=0.0)(module, batch).sums
    assert int(sums["top1_frac"]) == right


def test_micro_batches_that_divide_pairs_keep_the_loss(module):
    batch = make_batch(weights=mixed_weights())
    loss_fn = supervised(num_classes=NUM_CLASSES, label_smoothing=0.1)
    parts = split_batch(batch, 4)  # of 3 images: every other pair is cut in two
    assert sum(loss_fn(module, part).loss.item() for part in parts) / 4 == pytest.approx(
        loss_fn(module, batch).loss.item(), rel=1e-12
    )


@pytest.mark.parametrize(
    ("forward", "given"),
    [
        (lambda logits: (logits, logits), "a tuple"),
        (lambda logits: logits[:6], "shape (6, 5)"),
        (lambda logits: logits[:, 0], "shape (12,)"),
        (lambda logits: logits[:, :-1], "shape (12, 4)"),
        (lambda logits: torch.cat([logits, logits], dim=1), "shape (12, 10)"),
    ],
)
def test_a_network_that_gives_something_else_in_training_is_told_what_is_wanted(module, forward, given):
    def network(inputs):
        return forward(module(inputs))

    message = f"in training the network gives {given} for 12 images of 5 classes; wanted: one tensor of logits (12, 5),"
    with pytest.raises(ValueError, match=re.escape(message)):
        supervised(num_classes=NUM_CLASSES, label_smoothing=0.0)(network, make_batch())
