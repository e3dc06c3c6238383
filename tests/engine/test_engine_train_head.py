"""A head trained on features: as a run of its own, continued where it was stopped, judged as every run."""

import io
import json

import pytest
import torch
from small_fits import KilledError, assert_same_weights, rows_of
from torch import nn

from configs.load import load_config
from engine.build import resolve_config
from engine.checkpoint import load_weights, read_card, scored_checkpoint
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder
from engine.train_head import train_head
from pipelines.batch import Features
from pipelines.build import Place, build_cached_loader, build_data

WIDTH = 64
CARD = {"model": {}, "class_names": [str(k) for k in range(10)], "input": {"size_px": 8}, "data": {"train": "1"}}
OPTIONS = ["--train.epochs", "3", "--train.global_batch_size", "100", "--run.trackers", "[]", "--optim.lr", "0.01"]


@pytest.fixture(scope="module")
def digits():
    config = load_config(OPTIONS, prog="", description="")
    return build_data(config, show_progress=False)


def features_of(source):
    """The pixels themselves."""
    pixels = torch.from_numpy(source.images_NHWC).flatten(1).float() / 16 / 15
    return Features(pixels, torch.from_numpy(source.labels_N), torch.arange(len(pixels)))


@pytest.fixture
def train(tmp_path, runtime, digits):
    def train(name, *options, interrupt_after=None, stop=False):
        config = resolve_config(load_config([*OPTIONS, *options], prog="", description=""), {})
        place = Place(runtime.device, runtime.dtype, 0, 1, 1)
        loaders = {
            split: build_cached_loader(config, digits, split, features_of(getattr(digits, split)), place=place)
            for split in ("train", "val")
        }
        loss_fn, steps = supervised(num_classes=10), []
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        if stop:
            (folder.path / "stop").touch()

        def interruptible(module, batch):
            steps.append(1)
            if interrupt_after is not None and len(steps) > interrupt_after:
                raise KilledError
            return loss_fn(module, batch)

        torch.manual_seed(0)
        head = nn.Linear(WIDTH, 10).double()
        trained = train_head(
            head,
            config=config,
            train=loaders["train"],
            val=loaders["val"],
            loss_fn=interruptible,
            card=CARD,
            folder=folder,
            runtime=runtime,
            progress=Progress(num_epochs=3, is_main=True, stream=io.StringIO()),
            environ={},
        )
        return trained, folder

    return train


class Rows:
    """What `rows_of` reads of a job."""

    def __init__(self, folder):
        self.folder = folder


def test_a_head_learns_and_has_the_weights_that_it_is_judged_by(train):
    trained, folder = train("run")
    assert (trained.step, trained.epochs, trained.stopped_by) == (36, 3, None)
    rows = [row for row in folder.read_metrics() if "val/top1_frac" in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["val/top1_frac"] > 0.8
    checkpoint = scored_checkpoint(folder.path / "head" / "checkpoints")
    assert read_card(checkpoint) == CARD
    judged = nn.Linear(WIDTH, 10).double()
    load_weights(judged, checkpoint)
    assert_same_weights(trained.head, judged)


def test_the_best_weights_are_taken_where_the_last_are_worse(train):
    trained, folder = train("run", "--schedule.name", "constant", "--optim.lr", "5", "--schedule.warmup_epochs", "0")
    rows = [row for row in folder.read_metrics() if "val/top1_frac" in row]
    scores = [(row["val/top1_frac"], -row["val/loss"]) for row in rows]
    best_step = rows[scores.index(max(scores))]["step"]
    assert scored_checkpoint(folder.path / "head" / "checkpoints").name == f"step_{best_step:08d}"
    last, _ = train(
        "last",
        "--schedule.name",
        "constant",
        "--optim.lr",
        "5",
        "--schedule.warmup_epochs",
        "0",
        "--run.select",
        "last",
    )
    is_same = torch.equal(trained.head.weight, last.head.weight)
    assert is_same == (best_step == 36)


@pytest.mark.parametrize("interrupt_after", [1, 12, 20, 35])
def test_a_head_that_continues_equals_one_that_never_stopped(train, interrupt_after):
    every = ("--run.checkpoint_every_steps", "5")
    expected, straight = train("straight", *every)
    with pytest.raises(KilledError):
        train("stopped", *every, interrupt_after=interrupt_after)
    torch.manual_seed(5)
    trained, folder = train("stopped", *every)
    assert_same_weights(trained.head, expected.head)
    assert rows_of(Rows(folder)) == rows_of(Rows(straight))


def test_a_finished_one_is_trained_no_more(train):
    expected, _ = train("run")
    again, _ = train("run", interrupt_after=0)
    assert_same_weights(again.head, expected.head)
    assert (again.step, again.epochs) == (36, 3)


def test_a_file_called_stop_in_the_run_folder_is_heeded_and_the_same_command_goes_on(train):
    expected, _ = train("straight")
    trained, folder = train("run", stop=True)
    assert trained.stopped_by == "a file called stop"
    assert 0 < trained.step < 36
    assert sorted(one.name for one in folder.path.iterdir()) == ["head", "stopped"]
    again, folder = train("run")
    assert again.stopped_by is None
    assert_same_weights(again.head, expected.head)
    assert sorted(one.name for one in folder.path.iterdir()) == ["head", "metrics.jsonl"]


def test_metrics_are_those_of_the_run(train):
    _, folder = train("run")
    rows = (folder.path / "head" / "metrics.jsonl").read_text()
    assert (folder.path / "metrics.jsonl").read_text() == rows
    assert {json.loads(line)["step"] for line in rows.splitlines()} >= {10, 12, 20, 24, 30, 36}
