"""Each loss of plain and of mixed batches, against torch's, timm's and formulas written out in float64."""

import functools
import re

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch import nn

from engine.losses import bce, cross_entropy, focal, shift_logits, supervised, weigh_classes
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


def one_hot_targets(batch, *, label_smoothing=0.0):
    """Mixed, then smoothed: float64 (N, K), element by element."""
    targets = torch.zeros(COUNT, NUM_CLASSES, dtype=torch.float64)
    for row in range(COUNT):
        part = 1.0 if batch.mix is None else float(batch.mix.weight_N[row])
        targets[row, batch.labels_N[row]] += part
        if batch.mix is not None:
            targets[row, batch.mix.partner_labels_N[row]] += 1 - part
    return targets * (1 - label_smoothing) + label_smoothing / NUM_CLASSES


CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.3], dtype=torch.float64)
BATCHES = [make_batch(), make_batch(weights=mixed_weights())]


@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "mixed"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target_threshold", [None, 0.0, 0.2, 0.6])
def test_bce_is_timms(module, batch, label_smoothing, target_threshold):
    logits = module(*batch.inputs)
    reference = BinaryCrossEntropy(smoothing=label_smoothing, target_threshold=target_threshold)
    # timm smooths labels itself, and mixed targets where it mixes them
    targets = batch.labels_N if batch.mix is None else one_hot_targets(batch, label_smoothing=label_smoothing)
    given = bce(label_smoothing=label_smoothing, target_threshold=target_threshold)(logits, batch)
    assert given.item() == pytest.approx(reference(logits, targets).item(), rel=1e-12)


def test_bces_targets_are_timms_mixups(module):
    weights = torch.full((COUNT,), 0.3, dtype=torch.float64)
    batch = make_batch(weights=weights)
    batch = batch._replace(mix=Mix(batch.labels_N.flip(0), weights))  # timm mixes with the batch upside down
    targets = mixup_target(batch.labels_N, NUM_CLASSES, lam=0.3, smoothing=0.1).double()
    logits = module(*batch.inputs)
    reference = BinaryCrossEntropy(smoothing=0.1)(logits, targets)
    assert bce(label_smoothing=0.1)(logits, batch).item() == pytest.approx(reference.item(), rel=1e-6)  # timm: float32


@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "mixed"])
@pytest.mark.parametrize("target_threshold", [None, 0.4])
def test_bce_weighs_an_image_by_the_classes_it_shows(module, batch, target_threshold):
    logits, targets = module(*batch.inputs), one_hot_targets(batch)
    expected = 0.0
    for row in range(COUNT):
        weight = (targets[row] * CLASS_WEIGHTS).sum()
        labels = targets[row] if target_threshold is None else (targets[row] > target_threshold).double()
        probs = 1 / (1 + (-logits[row]).exp())
        expected += weight * -(labels * probs.log() + (1 - labels) * (1 - probs).log()).mean() / COUNT
    given = bce(target_threshold=target_threshold, class_weights_K=CLASS_WEIGHTS)(logits, batch)
    assert given.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "mixed"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_focal_is_its_formula_and_so_is_its_gradient(module, batch, gamma, label_smoothing):
    logits = module(*batch.inputs)
    targets = one_hot_targets(batch, label_smoothing=label_smoothing)
    probs = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = -(targets * (1 - probs) ** gamma * probs.log()).sum(dim=1).mean()
    given = focal(gamma=gamma, label_smoothing=label_smoothing)(logits, batch)
    assert given.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, module.weight, retain_graph=True)[0] for loss in (given, expected)]
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-14)


def test_focal_without_gamma_is_cross_entropy(module):
    for batch in BATCHES:
        logits = module(*batch.inputs)
        given = focal(gamma=0.0, label_smoothing=0.1)(logits, batch)
        assert given.item() == pytest.approx(cross_entropy(label_smoothing=0.1)(logits, batch).item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_focal_has_a_gradient_where_an_image_is_certain(gamma, label_smoothing):
    logits = torch.zeros(COUNT, NUM_CLASSES)
    logits[:, 0] = 300.0  # a softmax of exactly 1 and 0
    logits.requires_grad_()
    focal(gamma=gamma, label_smoothing=label_smoothing)(logits, make_batch()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("make", [cross_entropy, functools.partial(focal, gamma=2.0)], ids=["cross_entropy", "focal"])
@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "mixed"])
def test_the_loss_by_each_label_counts_by_its_class_and_the_mean_is_over_images(module, make, batch):
    logits = module(*batch.inputs)
    plain = make(label_smoothing=0.1)
    expected = 0.0
    for row in range(COUNT):
        one = split_batch(batch, COUNT)[row]
        labels = [(one.labels_N, 1.0)] if batch.mix is None else []
        if batch.mix is not None:
            labels = [(one.labels_N, one.mix.weight_N), (one.mix.partner_labels_N, 1 - one.mix.weight_N)]
        for label, part in labels:
            loss = plain(logits[row : row + 1], one._replace(labels_N=label, mix=None))
            expected += (part * CLASS_WEIGHTS[label] * loss).item() / COUNT
    given = make(label_smoothing=0.1, class_weights_K=CLASS_WEIGHTS)(logits, batch)
    assert given.item() == pytest.approx(expected, rel=1e-12)


def test_weighted_cross_entropy_is_torchs_but_for_what_it_is_divided_by(module):
    for batch in BATCHES:
        logits, targets = module(*batch.inputs), one_hot_targets(batch)
        expected = nn.functional.cross_entropy(logits, targets, weight=CLASS_WEIGHTS)  # of soft targets: / images
        given = cross_entropy(class_weights_K=CLASS_WEIGHTS)(logits, batch)
        assert given.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_plain_cross_entropy_is_torchs_to_the_last_bit(module, label_smoothing):
    batch = make_batch()
    output = supervised(num_classes=NUM_CLASSES, label_loss=cross_entropy(label_smoothing=label_smoothing))
    expected = nn.functional.cross_entropy(module(*batch.inputs), batch.labels_N, label_smoothing=label_smoothing)
    assert output(module, batch).loss.item() == expected.item()


@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "mixed"])
@pytest.mark.parametrize("make", [cross_entropy, functools.partial(focal, gamma=2.0)], ids=["cross_entropy", "focal"])
def test_logit_adjustment_adds_the_log_frequency_in_the_loss_alone(module, make, batch):
    counts = [100, 10, 5, 2, 1]
    shift = shift_logits(counts, tau=1.5)
    frequency = torch.tensor([count / 118 for count in counts], dtype=torch.float64)
    logits = module(*batch.inputs)
    given = make(logit_shift_K=shift)(logits, batch)
    assert given.item() == pytest.approx(make()(logits + 1.5 * frequency.log(), batch).item(), rel=1e-12)
    output = supervised(num_classes=NUM_CLASSES, label_loss=make(logit_shift_K=shift))(module, batch)
    plain = supervised(num_classes=NUM_CLASSES)(module, batch)
    assert torch.equal(output.sums["top1_frac"], plain.sums["top1_frac"])


def test_weights_by_the_number_of_images_have_mean_one_over_the_images():
    counts = [100, 10, 5, 2, 1]
    inverse = weigh_classes(counts, balance="inverse", effective_beta=0.0, factors={})
    assert inverse.tolist() == pytest.approx([118 / (5 * count) for count in counts], rel=1e-12)  # scikit-learn's
    beta = 0.99
    effective = weigh_classes(counts, balance="effective", effective_beta=beta, factors={})
    raw = [1 / sum(beta**power for power in range(count)) for count in counts]  # one over the effective number
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / 118
    assert effective.tolist() == pytest.approx([weight / mean for weight in raw], rel=1e-9)
    factors = weigh_classes(counts, balance="none", effective_beta=0.0, factors={0: 3.0})
    assert factors.tolist() == pytest.approx([3 * 118 / 318] + [118 / 318] * 4, rel=1e-12)
    both = weigh_classes(counts, balance="inverse", effective_beta=0.0, factors={4: 2.0})
    assert (both[4] / both[0]).item() == pytest.approx(200, rel=1e-12)
    for weights in (inverse, effective, factors, both):
        assert (weights * torch.tensor(counts)).sum().item() == pytest.approx(118, rel=1e-12)


def test_without_balance_or_factors_there_are_no_weights():
    for balance in ("none", "logit_adjustment"):
        assert weigh_classes([3, 1], balance=balance, effective_beta=0.9, factors={}) is None


@pytest.mark.parametrize("beta", [0.0, 0.999, 1 - 1e-12])
def test_effective_weights_go_from_none_to_inverse(beta):
    counts = [1000, 10]
    weights = weigh_classes(counts, balance="effective", effective_beta=beta, factors={})
    ratio = {0.0: 1.0, 0.999: 63.5, 1 - 1e-12: 100.0}[beta]
    assert (weights[1] / weights[0]).item() == pytest.approx(ratio, rel=1e-2)


def test_half_precision_is_computed_in_float32(module):
    logits = module(*make_batch().inputs).bfloat16()
    for batch in (make_batch(), make_batch(weights=mixed_weights(dtype=torch.float32))):
        for make in (bce, functools.partial(focal, gamma=2.0)):
            given = make(label_smoothing=0.1)(logits, batch)
            assert given.dtype == torch.float32
            expected = make(label_smoothing=0.1)(logits.double(), batch)
            assert given.item() == pytest.approx(expected.item(), rel=1e-5)
