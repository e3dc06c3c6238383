"""A run's page: one file, whatever the run holds and whatever its classes are called."""

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import Page, epoch_row, make_confusion, make_samples

from engine.record import RunFolder
from report.page import write_page

ROOT = Path(__file__).parents[2]
NASTY = ('<script>alert("x")</script>', "Tom & Jerry's", "$x^2$ and $5", "猫 кошка", "\udcff", "a very long name " * 4)


def page_of(folder):
    return Page(write_page(folder).read_text())


def check_pictures(page):
    """Every picture is inside the page, is whole, and shows something."""
    for attributes in page.images:
        kind, _, content = attributes["src"].partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
            image.load()
            if "training image" not in attributes["alt"]:
                ratio = int(attributes["width"]) / int(attributes["height"])
                assert image.width / image.height == pytest.approx(ratio, rel=0.01)
                assert image.convert("L").getextrema()[0] < 200, "nothing is drawn"
        assert attributes["alt"]
    return [attributes["alt"] for attributes in page.images]


def run_page(*arguments):
    command = [sys.executable, "-W", "error", "-m", "report.page", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_finished_run_has_every_part(make_run):
    folder = make_run()
    folder.save_schedule({"epoch": [0, 3, 6], "lr": [0, 0.1, 0], "momentum": [0.9, 0.8, 0.9]})
    folder.save_samples(make_samples(40, num_classes=3))
    folder.append_bad_samples(
        [{"after_step": 1, "split": "train", "sample_id": 3, "name": "a/<1>.png", "reason": "cut"}]
    )
    page = page_of(folder)
    alts = check_pictures(page)
    assert [alt for alt in alts if "training image" not in alt] == [
        "loss over the epochs",
        "top-1 accuracy (%) over the epochs",
        "images per second over the epochs",
        "time spent waiting for data (%) over the epochs",
        "planned learning rate over the epochs",
        "confusion matrix of test",
        "accuracy of each class on test",
        "confusion matrix of val",
        "accuracy of each class on val",
    ]
    assert alts.count("training image: cat") == 6
    assert alts.count("training image: 0.7 dog + 0.3 eel") == 6
    headings = ["Curves", "Training images as", "Classes on test", "Classes on val", "6 epochs as numbers"]
    headings += ["Files that could not be read", "Configuration", "Environment", "Repeat it"]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "could not be shown" not in page.text
    assert "12,345 parameters" in page.text
    assert "a/<1>.png" in page.text


def test_the_page_says_the_numbers_of_the_run(make_run):
    folder = make_run()
    counts = make_confusion(3, per_class=200)
    text = page_of(folder).text
    num_right = counts.trace()
    assert f"test top-1 {100 * num_right / 600:.2f} % ({num_right} of 600; 95 % interval" in text
    (true, predicted) = np.unravel_index(np.argmax(counts - np.diag(counts.diagonal())), counts.shape)
    names = ("cat", "dog", "eel")
    worst = counts[true, predicted]
    assert f"{names[true]} {names[predicted]} {worst} {worst / 2:.1f} %" in text
    assert "6 1.1667 73.33 1.2667 73.33 0.0167 1,000 1 30.0" in text, "the row of the last epoch"
    assert "optim.lr 0.1 (none)" in text
    assert "commit 0123abc, with changes that were not committed" in text
    assert "2 processes" in text
    assert f"accelerate launch train.py --run.out {folder.path}" in text


def test_the_page_loads_nothing_from_elsewhere(make_run):
    folder = make_run()
    folder.save_samples(make_samples(4, num_classes=3, size_px=128))
    html = write_page(folder).read_text()
    page = Page(html)
    urls = list(page.urls())
    assert len(urls) == 5 + 2 * 2 + 4  # curves, two splits, samples
    assert all(url.startswith("data:image/") for url in urls)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_names_of_any_kind_are_written_and_never_taken_for_html(make_run):
    folder = make_run("run <i> $x$ & co", names=NASTY)
    folder.save_samples(make_samples(12, num_classes=len(NASTY), channels=1))
    page = page_of(folder)
    check_pictures(page)
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert "could not be shown" not in page.text
    for name in NASTY:
        assert " ".join(name.replace("\udcff", "?").split()) in page.text, name
    assert page.text.startswith("run <i> $x$ & co run <i>")


@pytest.mark.parametrize("num_classes", [2, 1000])
def test_any_number_of_classes_is_shown(make_run, num_classes):
    names = tuple(f"class {place}" for place in range(num_classes))
    page = page_of(make_run(names=names, splits=("test",)))
    alts = check_pictures(page)
    assert "confusion matrix of test" in alts
    assert "accuracy of each class on test" in alts
    assert f"class {num_classes - 1}" in page.text
    assert "could not be shown" not in page.text


def test_a_run_without_counts_shows_the_accuracy_of_its_classes(make_run):
    folder = make_run(result={"test/top1_frac/cat": 0.25, "test/top1_frac/dog": 0.75})
    (folder.path / "confusion.npz").unlink()
    page = page_of(folder)
    alts = check_pictures(page)
    assert "accuracy of each class on test" in alts
    assert not any("confusion" in alt for alt in alts)
    assert "cat 25.00 dog 75.00" in page.text


@pytest.mark.parametrize("splits", [("val",), ("test",), ()])
def test_runs_without_val_or_test_are_shown(make_run, splits):
    page = page_of(make_run(splits=splits))
    alts = check_pictures(page)
    assert "could not be shown" not in page.text
    for split in ("val", "test"):
        assert (f"{split} top-1" in page.text) == (split in splits)
        assert (f"confusion matrix of {split}" in alts) == (split in splits)


def test_a_run_that_is_not_finished_is_shown(make_run):
    page = page_of(make_run(finished=False, rows=[epoch_row(1), epoch_row(2)]))
    assert "not finished: val top-1 60.00 %" in page.text
    assert "2 of 6 epochs" in page.text
    assert len(check_pictures(page)) == 5
    early = page_of(make_run("early", finished=False, rows=[{"step": 1, "epoch": 0.1, "train/loss": 2.0, "lr": 0.1}]))
    assert "nothing is trained yet" in early.text
    assert check_pictures(early) == ["loss over the epochs", "learning rate over the epochs"]


def test_the_page_of_a_run_that_stopped_early_says_so(make_run):
    rows = [epoch_row(1), epoch_row(2), *(epoch_row(n, **{"val/top1_frac": 0.1}) for n in range(3, 7))]
    page = page_of(make_run(rows=rows, train={"epochs": 40, "early_stop_epochs": 4}))
    assert "6 of 40 epochs in 3.0 minutes; stopped early: no better score on val for 4 epochs" in page.text
    assert "stopped early" not in page_of(make_run("whole", train={"early_stop_epochs": 4})).text


def test_a_dry_run_is_named_after_its_run_and_says_how_to_train_it(make_run):
    folder = make_run("my run/dry_run", finished=False, rows=[])
    folder.save_start(folder.read_config() | {"dry_run": True}, folder.read_environment())
    folder.save_schedule({"epoch": [0.0, 1.0], "lr": [0.1, 0.0]})
    page = page_of(folder)
    assert page.text.startswith("my run: dry run my run: dry run nothing is trained yet")
    assert f"To train it: accelerate launch train.py --config '{folder.path}/config.yaml' --dry_run false" in page.text
    assert check_pictures(page) == ["planned learning rate over the epochs"]


def test_a_folder_with_drawings_alone_is_shown(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_schedule({"epoch": [0.0, 1.0], "lr": [0.1, 0.0]})
    folder.save_samples(make_samples(2, num_classes=2))
    page = page_of(folder)
    assert check_pictures(page) == [
        "planned learning rate over the epochs",
        "training image: 0",
        "training image: 0.7 1 + 0.3 0",
    ]
    assert "nothing is trained yet" in page.text


def test_what_is_broken_is_named_and_the_rest_is_shown(make_run):
    folder = make_run()
    for name in ("confusion.npz", "schedule.json", "samples.npz", "environment.json", "bad_samples.jsonl"):
        (folder.path / name).write_text("{ broken\n")
    page = page_of(folder)
    for name in ("confusion.npz", "schedule.json", "samples.npz", "environment.json", "bad_samples.jsonl"):
        assert f"{name} could not be shown" in page.text
    assert "loss over the epochs" in check_pictures(page)
    for name in ("config.yaml", "metrics.jsonl", "result.json"):
        (folder.path / name).write_text("{ broken\n")
        assert f"{name} could not be shown" in page_of(folder).text


def test_numbers_that_are_not_finite_do_not_stop_the_page(make_run):
    rows = [epoch_row(n, **{"train/epoch_loss": float("nan"), "val/loss": float("inf")}) for n in range(1, 7)]
    page = page_of(make_run(rows=rows))
    assert "6 epochs as numbers" in page.text
    assert "top-1 accuracy (%) over the epochs" in check_pictures(page)


def test_the_command_writes_the_pages_and_prints_their_paths(make_run):
    one, two = make_run("one", finished=False), make_run("two", names=NASTY)
    done = run_page(one.path, two.path)
    assert done.stderr == ""
    assert done.stdout == f"{one.path / 'report.html'}\n{two.path / 'report.html'}\n"
    assert (two.path / "report.html").exists()


def test_the_command_names_a_folder_that_is_no_run(make_run, tmp_path):
    good = make_run("good")
    done = run_page(good.path, tmp_path)
    assert done.returncode == 2
    assert f"error: {tmp_path} is not a run folder: it holds nothing that train.py writes." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (good.path / "report.html").exists(), "nothing is written before all folders are known to be good"
