"""Every loss through the loop: micro-batches, interruptions and teachers change nothing."""

import copy

import pytest
import torch
from small_fits import NUM_CLASSES, KilledError, assert_same_weights, make_module, rows_of
from torch import nn

from engine.distillation import AttentionTransfer, Teacher, distilled
from engine.fit import fit
from engine.losses import bce, cross_entropy, focal, shift_logits, supervised, weigh_classes
from engine.teachers import hash_weights
from pipelines.batch import Mix

COUNTS = [12, 8, 4]
WEIGHTS = weigh_classes(COUNTS, balance="inverse", effective_beta=0.0, factors={2: 3.0})
SHIFT = shift_logits(COUNTS, tau=1.0)
LABEL_LOSSES = {
    "cross_entropy": cross_entropy(),
    "smoothed": cross_entropy(label_smoothing=0.1),
    "weighted": cross_entropy(label_smoothing=0.1, class_weights_K=WEIGHTS),
    "adjusted": cross_entropy(logit_shift_K=SHIFT, class_weights_K=WEIGHTS),
    "bce": bce(label_smoothing=0.1, target_threshold=0.4),
    "bce weighted": bce(class_weights_K=WEIGHTS),
    "focal": focal(gamma=2.0, label_smoothing=0.1),
    "focal weighted": focal(gamma=0.5, class_weights_K=WEIGHTS, logit_shift_K=SHIFT),
}


def make_teacher():
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, NUM_CLASSES)).double()
    module.eval().requires_grad_(False)
    return Teacher("runs/teacher", module, lambda view: view, hash_weights(module))


def distillation(*teachers):
    return distilled(cross_entropy(), teachers, num_classes=NUM_CLASSES, temperature=3.0, weight=0.7)


def loss_fns():
    for name, label_loss in LABEL_LOSSES.items():
        yield name, supervised(num_classes=NUM_CLASSES, label_loss=label_loss)
    yield "distilled", distillation(make_teacher())


def mixing(loss_fn, labels_N):
    """The same, of images that are mixed: with whom and how much follows from their ids alone."""

    def mixed(module, batch):
        weights = ((batch.ids_N // 2 % 5) / 4).double()
        return loss_fn(module, batch._replace(mix=Mix(labels_N[batch.ids_N ^ 1], weights)))

    return mixed


@pytest.mark.parametrize("is_mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize(("name", "loss_fn"), list(loss_fns()), ids=lambda one: one if isinstance(one, str) else "")
def test_accumulation_gives_the_gradients_of_the_whole_batch_of_every_loss(make_job, data, name, loss_fn, is_mixed):
    loss_fn = mixing(loss_fn, data[1]) if is_mixed else loss_fn
    modules = {accumulation: make_module() for accumulation in (1, 2, 4)}  # 4 micro-batches are of 1, 2, 1 and 2
    for accumulation, module in modules.items():
        job = make_job(f"parts{accumulation}", accumulation=accumulation, epochs=1, val=False, select="last")
        fit(module, job._replace(loss_fn=loss_fn))
    for accumulation in (2, 4):
        assert_same_weights(modules[accumulation], modules[1], tolerance=1e-9)
    assert not torch.equal(modules[1][0].weight, make_module()[0].weight)


def test_a_weighted_loss_steps_as_torchs_with_the_sum_over_the_number_of_images(make_job, data):
    module, reference = make_module(), make_module()
    loss_fn = supervised(num_classes=NUM_CLASSES, label_loss=cross_entropy(class_weights_K=WEIGHTS))
    fit(module, make_job(val=False, select="last")._replace(loss_fn=loss_fn))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.9)
    inputs, labels = data
    for step in range(12):
        rows = slice(step % 4 * 6, step % 4 * 6 + 6)
        optimizer.param_groups[0]["lr"] = 0.2 * 0.5 ** (step // 3)
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(reference(inputs[rows]), labels[rows], weight=WEIGHTS, reduction="sum")
        (losses / 6).backward()
        optimizer.step()
    assert_same_weights(module, reference, tolerance=1e-12)


def test_a_run_with_a_teacher_continues_as_if_never_stopped(make_job):
    options = {"checkpoint_every_steps": 1}

    def job(name, *, killed_after=None):
        made, steps, loss_fn = make_job(name, **options), [], distillation(make_teacher(), make_teacher())

        def interruptible(module, batch):
            steps.append(1)
            if killed_after is not None and len(steps) > killed_after:
                raise KilledError
            return loss_fn(module, batch)

        return made._replace(loss_fn=interruptible)

    expected, straight = make_module(dropout=0.5), job("straight")
    fit(expected, straight)
    for killed_after in (3, 5):
        with pytest.raises(KilledError):
            fit(make_module(dropout=0.5), job("stopped", killed_after=killed_after))
    module, continued = make_module(dropout=0.5), job("stopped")
    fit(module, continued)
    assert_same_weights(module, expected)
    assert rows_of(continued) == rows_of(straight)


def test_a_teacher_is_the_same_after_training_and_its_part_of_the_loss_is_reported(make_job):
    one = make_teacher()
    before = copy.deepcopy(one.module.state_dict())
    job = make_job(accumulation=4)
    fit(make_module(), job._replace(loss_fn=distillation(one)))
    assert not one.module.training
    assert all(torch.equal(value, before[name]) for name, value in one.module.state_dict().items())
    assert hash_weights(one.module) == one.digest
    rows = rows_of(job)
    for row, prefix in ((rows[0], "train/"), (rows[-1], "train/epoch_")):
        mean = 0.3 * row[f"{prefix}label_loss"] + 0.7 * row[f"{prefix}distill_loss"]
        assert row[f"{prefix}loss"] == pytest.approx(mean, rel=1e-9)
        assert 0 <= row[f"{prefix}teacher_agreement_frac"] <= 1


def test_a_student_comes_to_agree_with_its_teacher(make_job):
    job = make_job(epochs=40)
    one = make_teacher()
    loss_fn = distilled(cross_entropy(), [one], num_classes=NUM_CLASSES, temperature=1.0, weight=1.0)
    fit(make_module(), job._replace(loss_fn=loss_fn))
    rows = [row for row in rows_of(job) if "train/epoch_loss" in row]
    assert rows[-1]["train/epoch_distill_loss"] < 0.5 * rows[0]["train/epoch_distill_loss"]
    assert rows[-1]["train/epoch_teacher_agreement_frac"] > rows[0]["train/epoch_teacher_agreement_frac"]


def test_attention_is_a_part_of_the_loss_and_layers_are_listened_to_in_the_networks_own_modules(make_job, make_loader):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 1, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(24) % NUM_CLASSES

    def build(seed):
        torch.manual_seed(seed)
        head = (nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, NUM_CLASSES))
        return nn.Sequential(nn.Conv2d(1, 4, 3), *head).double()

    module, teacher = build(0), build(1).eval().requires_grad_(False)
    before = set(module.state_dict())
    loss_fn = distilled(
        cross_entropy(),
        [Teacher("runs/teacher", teacher, lambda view: view, "0")],
        num_classes=NUM_CLASSES,
        temperature=1.0,
        weight=0.0,
        attention=AttentionTransfer(module, teacher, layers={"0": "1"}),
        attention_weight=1000.0,
    )
    job = make_job(val=False, select="last", epochs=20)
    phase = job.phases[0]._replace(
        loader=make_loader(inputs, labels, batch_size=6), epochs=20, lr_factor=lambda step: 0.05
    )
    fit(module, job._replace(loss_fn=loss_fn, phases=[phase]))
    rows = [row for row in rows_of(job) if "train/epoch_loss" in row]
    assert rows[-1]["train/epoch_attention_loss"] < 0.7 * rows[0]["train/epoch_attention_loss"]
    assert rows[0]["train/epoch_loss"] == pytest.approx(
        rows[0]["train/epoch_label_loss"] + 1000 * rows[0]["train/epoch_attention_loss"], rel=1e-9
    )
    assert set(module.state_dict()) == before


def test_another_teacher_than_the_checkpoints_is_refused_before_training(make_job):
    job = make_job()
    fit(make_module(), job._replace(card=job.card | {"teachers": {"runs/a": "12", "runs/b": "34"}}))
    again = make_job("run")._replace(card=job.card | {"teachers": {"runs/a": "12", "runs/b": "56"}})
    message = r"the weights of distill.teachers runs/b have changed since .*step_00000012 was written"
    with pytest.raises(ValueError, match=message):
        fit(make_module(), again)
    fit(make_module(), make_job("old"))  # a checkpoint from before there were teachers
    fit(make_module(), make_job("old")._replace(card=job.card | {"teachers": {}}))
