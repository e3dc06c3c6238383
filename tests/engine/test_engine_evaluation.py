"""Evaluation against scikit-learn, and its counting."""

import functools

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from engine.evaluation import Evaluation, evaluate, logits_of_views, save_scores, summary_line, to_metrics
from engine.record import RunFolder

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


@pytest.fixture
def score_of(runtime, bad_log):
    """score_of(module, loader): the evaluation on this process."""
    return functools.partial(evaluate, num_classes=NUM_CLASSES, runtime=runtime, bad_log=bad_log, step=40)


@pytest.mark.parametrize("batch_size", [1, 10, 53, 64])
def test_scores_are_scikit_learns_and_every_sample_counts_once(score_of, make_loader, data, module, batch_size):
    inputs, labels = data
    score = score_of(module, make_loader(inputs, labels, batch_size=batch_size))
    logits = module.eval()(inputs).detach()
    probabilities, classes = logits.softmax(dim=1).numpy(), np.arange(NUM_CLASSES)
    assert (score.num_samples, score.num_excluded) == (53, 0)
    assert score.top1_frac == accuracy_score(labels, logits.argmax(dim=1))
    assert score.top5_frac == top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    assert score.loss == pytest.approx(log_loss(labels, probabilities, labels=classes), abs=1e-6)
    for number, frac in enumerate(score.per_class_top1_frac):
        of_class = labels == number
        assert frac == accuracy_score(labels[of_class], logits.argmax(dim=1)[of_class])


def test_the_module_is_left_in_the_mode_it_was_in(score_of, make_loader, data, module):
    loader = make_loader(*data, batch_size=10)
    for mode in (True, False):
        module.train(mode)
        score_of(module, loader)
        assert module.training is mode


class Undecided(nn.Linear):
    """Draws random numbers in evaluation too."""

    def forward(self, inputs):
        return super().forward(inputs * torch.rand_like(inputs))


def test_a_network_that_draws_random_numbers_gets_the_same_score_each_time(score_of, make_loader, data):
    module, loader = Undecided(4, NUM_CLASSES).double(), make_loader(*data, batch_size=10)
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scores.append(score_of(module, loader).loss)
    assert scores[0] == scores[1]


def test_a_loader_that_loses_samples_is_found_out(score_of, make_loader, data, module):
    loader = make_loader(*data, batch_size=10)
    loader.steps_per_epoch -= 1
    with pytest.raises(RuntimeError, match="counted 50 samples and excluded 0, but the split has 53"):
        score_of(module, loader)


def test_a_loss_that_is_not_finite_is_an_error(score_of, make_loader, data, module):
    inputs, labels = data
    inputs[3] = float("nan")
    with pytest.raises(FloatingPointError, match="loss of 1 of 53 evaluated samples is not finite"):
        score_of(module, make_loader(inputs, labels, batch_size=10))


def test_five_classes_have_no_top_5(score_of, make_loader, data, module):
    inputs, labels = data
    score = score_of(nn.Linear(4, 5).double(), make_loader(inputs, labels % 5, batch_size=10), num_classes=5)
    assert score.top5_frac is None
    assert "test/top5_frac" not in to_metrics(score, split="test")


def test_metrics_are_flat_and_a_class_without_samples_is_left_out():
    score = Evaluation(4, 0, 3, 0.75, None, 0.5, (1.0, None, 0.5))
    assert to_metrics(score, split="val", class_names=("cat", "dog", "eel")) == {
        "val/top1_frac": 0.75,
        "val/loss": 0.5,
        "val/num_samples": 4,
        "val/top1_frac/cat": 1.0,
        "val/top1_frac/eel": 0.5,
    }


def test_the_summary_line_gives_counts():
    line = summary_line(Evaluation(360, 0, 355, 355 / 360, 1.0, 0.04321, ()), split="test")
    assert line == "test: top-1 98.61 % (355 of 360), top-5 100.00 %, loss 0.0432"


def test_losses_of_a_diverged_network_are_an_error_not_a_wrapped_number(score_of, make_loader, data, module):
    inputs, labels = data
    with pytest.raises(FloatingPointError, match="beyond all bounds: training has diverged"):
        score_of(module, make_loader(inputs * 1e14, labels, batch_size=10))


def test_large_losses_are_summed_exactly(score_of, make_loader, data):
    inputs, labels = data
    module = nn.Linear(4, NUM_CLASSES, bias=False).double()
    score = score_of(module, make_loader(inputs * 1e7, labels, batch_size=7))
    expected = torch.nn.functional.cross_entropy(module(inputs * 1e7), labels).item()
    assert score.loss > 1e6
    assert score.loss == pytest.approx(expected, rel=1e-12)


# --- samples that cannot be read

BAD = (0, 7, 8, 52)


@pytest.mark.parametrize("batch_size", [1, 10, 53, 64])
def test_excluded_samples_are_not_counted_and_the_others_all_are(score_of, make_loader, data, module, batch_size):
    inputs, labels = data
    score = score_of(module, make_loader(inputs, labels, batch_size=batch_size, split="val", bad=BAD))
    rest = torch.tensor([row for row in range(53) if row not in BAD])
    logits = module.eval()(inputs[rest]).detach()
    assert (score.num_samples, score.num_excluded) == (49, 4)
    assert score.top1_frac == accuracy_score(labels[rest], logits.argmax(dim=1))
    assert score.loss == pytest.approx(
        log_loss(labels[rest], logits.softmax(dim=1).numpy(), labels=np.arange(NUM_CLASSES)), abs=1e-6
    )
    metrics = to_metrics(score, split="val")
    assert (metrics["val/num_samples"], metrics["val/num_excluded"]) == (49, 4)


def test_a_loss_that_is_not_finite_does_not_matter_on_an_excluded_row(score_of, make_loader, data, module):
    inputs, labels = data
    inputs[3] = float("nan")
    assert score_of(module, make_loader(inputs, labels, batch_size=10, split="val", bad=(3,))).num_samples == 52


def test_each_evaluation_of_the_same_loader_counts_alike_and_prints_each_file_once(
    score_of, make_loader, data, module, progress
):
    loader = make_loader(*data, batch_size=10, split="val", bad=BAD)
    first, second = score_of(module, loader), score_of(module, loader)
    assert (first.confusion_KK == second.confusion_KK).all()
    assert first._replace(confusion_KK=None) == second._replace(confusion_KK=None)
    lines = progress._stream.getvalue().splitlines()
    assert lines == [f"not counted: val/{number}.png: burnt" for number in BAD]


def test_as_many_bad_samples_as_are_allowed_pass_and_one_more_stops_the_run(score_of, make_loader, data, module):
    assert score_of(module, make_loader(*data, batch_size=10, split="val", bad=BAD, max_num_bad=4)).num_excluded == 4
    wanted = (
        r"^4 of 53 images of this epoch could not be read \(listed above, or in bad_samples.jsonl in the run "
        r"folder\), and data\.max_bad_frac allows 3\. Repair the data, or raise data\.max_bad_frac\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        score_of(module, make_loader(*data, batch_size=10, split="val", bad=BAD, max_num_bad=3))


def test_bad_samples_that_are_too_many_are_told_before_the_run_stops(score_of, make_loader, data, module, progress):
    with pytest.raises(ValueError, match="allows 0"):
        score_of(module, make_loader(*data, batch_size=10, split="val", bad=BAD, max_num_bad=0))
    assert len(progress._stream.getvalue().splitlines()) == 4


def test_a_split_of_which_nothing_can_be_read_has_no_score(score_of, make_loader, data, module):
    with pytest.raises(ValueError, match="evaluation has nothing to count: no image of the split could be read"):
        score_of(module, make_loader(*data, batch_size=10, split="val", bad=tuple(range(53))))


def test_the_summary_line_says_how_many_were_not_counted():
    line = summary_line(Evaluation(358, 2, 355, 355 / 358, 1.0, 0.04321, ()), split="test")
    assert line == (
        "test: top-1 99.16 % (355 of 358), top-5 100.00 %, loss 0.0432; 2 not counted: they could not be read"
    )


def test_confusions_are_scikit_learns_of_the_samples_that_count(score_of, make_loader, data, module):
    inputs, labels = data
    kept = [place for place in range(len(labels)) if place not in BAD]
    score = score_of(module, make_loader(*data, batch_size=10, split="val", bad=BAD))
    predicted = module.eval()(inputs[kept]).argmax(dim=1)
    wanted = confusion_matrix(labels[kept], predicted, labels=range(len(score.per_class_top1_frac)))
    assert (score.confusion_KK == wanted).all()
    assert score.confusion_KK.sum() == score.num_samples == len(kept)
    assert score.confusion_KK.trace() == score.num_correct


def test_above_a_thousand_classes_there_are_no_confusions(score_of, make_loader, data, module, monkeypatch):
    monkeypatch.setattr("engine.evaluation._MOST_CONFUSED_CLASSES", 2)
    assert score_of(module, make_loader(*data, batch_size=10, split="val")).confusion_KK is None


def test_scores_of_a_run_are_kept_with_their_confusions(tmp_path, score_of, make_loader, data, module):
    folder = RunFolder(tmp_path)
    score = score_of(module, make_loader(*data, batch_size=10, split="val"))
    names = [f"class {number}" for number in range(len(score.per_class_top1_frac))]
    save_scores(folder, {"val": score, "test": score._replace(confusion_KK=None)}, class_names=names, step=7, epoch=2)
    result = folder.read_result()
    assert (result["step"], result["epoch"], result["val/top1_frac"]) == (7, 2, score.top1_frac)
    assert result["test/top1_frac/class 0"] == score.per_class_top1_frac[0]
    confusions = folder.read_confusions()
    assert list(confusions) == ["val"]
    assert (confusions["val"] == score.confusion_KK).all()


# --- test-time augmentation


class Sensitive(nn.Module):
    """Logits that see where things are: neither mirrored nor shifted images give the same."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 4, NUM_CLASSES))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def images():
    return torch.randn(11, 2, 5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def by_hand(module, images, *, down, right):
    """The mean over both mirror images of images shifted down and right (or, below 0, up and left), by indices."""
    height, width = images.shape[2:]
    rows = [abs(row - down) if row - down < height else 2 * (height - 1) - (row - down) for row in range(height)]
    columns = [abs(col - right) if col - right < width else 2 * (width - 1) - (col - right) for col in range(width)]
    shifted = images[:, :, rows][:, :, :, columns]
    return (module(shifted) + module(shifted[..., list(reversed(range(width)))])) / 2


def test_views_are_averaged_as_written_by_hand(images):
    module = Sensitive().double()
    with torch.no_grad():
        plain, pair = module(images), by_hand(module, images, down=0, right=0)
        diagonals = [by_hand(module, images, down=way, right=way) for way in (1, -1)]
        found = {tta: logits_of_views(module, (images,), tta=tta) for tta in ("none", "flip", "flip_shift")}
    assert torch.equal(found["none"], plain)
    assert torch.allclose(found["flip"], pair, rtol=0, atol=1e-14)
    assert torch.allclose(found["flip_shift"], 0.5 * pair + 0.25 * sum(diagonals), rtol=0, atol=1e-14)
    for one, other in (("none", "flip"), ("flip", "flip_shift")):
        assert not torch.allclose(found[one], found[other], atol=1e-2)


@pytest.mark.parametrize("tta", ["none", "flip", "flip_shift"])
def test_logits_of_half_precision_are_averaged_in_float32(images, tta):
    module = Sensitive().to(torch.bfloat16)
    rounded = images.to(torch.bfloat16)
    found = logits_of_views(module, (rounded,), tta=tta)
    wanted = logits_of_views(lambda views: module(views).float(), (rounded,), tta=tta)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("tta", ["flip", "flip_shift"])
def test_the_score_is_that_of_the_averaged_logits(score_of, make_loader, images, tta):
    module, labels = Sensitive().double(), torch.arange(11) % NUM_CLASSES
    score = score_of(module, make_loader(images, labels, batch_size=4), tta=tta)
    logits_NK = logits_of_views(module, (images,), tta=tta).detach()
    assert score.num_correct == (logits_NK.argmax(1) == labels).sum()
    assert score.loss == pytest.approx(torch.nn.functional.cross_entropy(logits_NK, labels).item(), abs=1e-6)


def test_scores_beside_that_of_a_split_have_no_classes_and_no_confusions(tmp_path, score_of, make_loader, data, module):
    folder = RunFolder(tmp_path)
    score = score_of(module, make_loader(*data, batch_size=10, split="val"))
    names = [str(number) for number in range(NUM_CLASSES)]
    save_scores(folder, {"test": score, "test_raw": score}, class_names=names, step=1, epoch=1)
    keys = set(folder.read_result())
    assert {"test/top1_frac", "test/top1_frac/0", "test_raw/top1_frac", "test_raw/loss"} <= keys
    assert "test_raw/top1_frac/0" not in keys
    assert list(folder.read_confusions()) == ["test"]
