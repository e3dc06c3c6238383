"""Evaluation against scikit-learn, and its counting."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn

from engine.evaluation import Evaluation, evaluate, summary_line, to_metrics

NUM_CLASSES = 7


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(53, 4, generator=generator, dtype=torch.float64),
        torch.randint(0, NUM_CLASSES, (53,), generator=generator),
    )


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, NUM_CLASSES)).double()


@pytest.mark.parametrize("batch_size", [1, 10, 53, 64])
def test_scores_are_scikit_learns_and_every_sample_counts_once(runtime, make_loader, data, module, batch_size):
    inputs, labels = data
    score = evaluate(
        module, make_loader(inputs, labels, batch_size=batch_size), num_classes=NUM_CLASSES, runtime=runtime
    )
    logits = module.eval()(inputs).detach()
    probabilities, classes = logits.softmax(dim=1).numpy(), np.arange(NUM_CLASSES)
    assert score.num_samples == 53
    assert score.top1_frac == accuracy_score(labels, logits.argmax(dim=1))
    assert score.top5_frac == top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    assert score.loss == pytest.approx(log_loss(labels, probabilities, labels=classes), abs=1e-6)
    for number, frac in enumerate(score.per_class_top1_frac):
        of_class = labels == number
        assert frac == accuracy_score(labels[of_class], logits.argmax(dim=1)[of_class])


def test_the_module_is_left_in_the_mode_it_was_in(runtime, make_loader, data, module):
    loader = make_loader(*data, batch_size=10)
    for mode in (True, False):
        module.train(mode)
        evaluate(module, loader, num_classes=NUM_CLASSES, runtime=runtime)
        assert module.training is mode


def test_a_loader_that_loses_samples_is_found_out(runtime, make_loader, data, module):
    loader = make_loader(*data, batch_size=10)
    loader.steps_per_epoch -= 1
    with pytest.raises(RuntimeError, match="counted 50 samples, but the split has 53"):
        evaluate(module, loader, num_classes=NUM_CLASSES, runtime=runtime)


def test_a_loss_that_is_not_finite_is_an_error(runtime, make_loader, data, module):
    inputs, labels = data
    inputs[3] = float("nan")
    with pytest.raises(FloatingPointError, match="loss of 1 of 53 evaluated samples is not finite"):
        evaluate(module, make_loader(inputs, labels, batch_size=10), num_classes=NUM_CLASSES, runtime=runtime)


def test_five_classes_have_no_top_5(runtime, make_loader, data, module):
    inputs, labels = data
    score = evaluate(
        nn.Linear(4, 5).double(), make_loader(inputs, labels % 5, batch_size=10), num_classes=5, runtime=runtime
    )
    assert score.top5_frac is None
    assert "test/top5_frac" not in to_metrics(score, split="test")


def test_metrics_are_flat_and_a_class_without_samples_is_left_out():
    score = Evaluation(4, 3, 0.75, None, 0.5, (1.0, None, 0.5))
    assert to_metrics(score, split="val", class_names=("cat", "dog", "eel")) == {
        "val/top1_frac": 0.75,
        "val/loss": 0.5,
        "val/num_samples": 4,
        "val/top1_frac/cat": 1.0,
        "val/top1_frac/eel": 0.5,
    }


def test_the_summary_line_gives_counts():
    line = summary_line(Evaluation(360, 355, 355 / 360, 1.0, 0.04321, ()), split="test")
    assert line == "test: top-1 98.61 % (355 of 360), top-5 100.00 %, loss 0.0432"


def test_losses_of_a_diverged_network_are_an_error_not_a_wrapped_number(runtime, make_loader, data, module):
    inputs, labels = data
    with pytest.raises(FloatingPointError, match="beyond all bounds: training has diverged"):
        evaluate(module, make_loader(inputs * 1e14, labels, batch_size=10), num_classes=NUM_CLASSES, runtime=runtime)


def test_large_losses_are_summed_exactly(runtime, make_loader, data):
    inputs, labels = data
    module = nn.Linear(4, NUM_CLASSES, bias=False).double()
    score = evaluate(module, make_loader(inputs * 1e7, labels, batch_size=7), num_classes=NUM_CLASSES, runtime=runtime)
    expected = torch.nn.functional.cross_entropy(module(inputs * 1e7), labels).item()
    assert score.loss > 1e6
    assert score.loss == pytest.approx(expected, rel=1e-12)
