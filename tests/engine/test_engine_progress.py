"""What is printed."""

import io

from engine.progress import Progress

ROW = {
    "step": 42,
    "train/epoch_loss": 0.51234,
    "train/epoch_top1_frac": 0.8492,
    "val/loss": 0.4321,
    "val/top1_frac": 0.8542,
    "lr": 1.61e-3,
    "train/images_per_s": 8385.4,
    "train/data_wait_frac": 0.09,
    "train/epoch_s": 0.21,
}


def printed(row, *, is_main=True):
    stream = io.StringIO()
    progress = Progress(num_epochs=3, is_main=is_main, stream=stream)
    for epoch in (1, 2):
        progress.start_epoch(epoch, num_steps=21, first_step=0)
        progress.step()
        progress.end_epoch(epoch, row)
    return stream.getvalue()


def test_without_a_terminal_an_epoch_is_a_line_of_fixed_width_under_one_header():
    header, first, second = printed(ROW).splitlines()
    assert len(header) == len(first) == len(second)
    assert first.split() == [
        "1",
        "42",
        "0.5123",
        "84.92",
        "%",
        "0.4321",
        "85.42",
        "%",
        "1.61e-03",
        "8,385",
        "9%",
        "0.2",
    ]
    assert header.count("epoch") == 1
    for title, value in {"val top-1": "85.42 %", "images/s": "8,385", "seconds": "0.2", "lr": "1.61e-03"}.items():
        assert header.index(title) + len(title) == first.index(value) + len(value), title


def test_without_val_its_columns_stay_empty():
    row = {key: value for key, value in ROW.items() if not key.startswith("val/")}
    assert printed(row).splitlines()[1].split()[5:7] == ["-", "-"]


def test_only_the_main_process_prints():
    assert printed(ROW, is_main=False) == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_shows_loss_accuracy_speed_and_wait():
    stream = Terminal()
    progress = Progress(num_epochs=3, is_main=True, stream=stream)
    progress.start_epoch(1, num_steps=21, first_step=0)
    row = {"train/loss": 1.5, "train/top1_frac": 0.25, "train/images_per_s": 1234.5, "train/data_wait_frac": 0.07}
    progress.show(row, step=10, num_steps=63)
    assert "loss 1.5000, top-1 25.0 %, 1,234 images/s, data wait 7 %" in stream.getvalue()
    assert "epoch 1/3" in stream.getvalue()


def test_a_long_epoch_without_a_terminal_shows_that_it_lives(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("engine.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(num_epochs=3, is_main=True, stream=stream)
    progress.start_epoch(1, num_steps=21, first_step=0)
    row = {"train/loss": 1.5, "train/images_per_s": 10.0, "train/data_wait_frac": 0.0}
    for now[0] in (10.0, 31.0, 40.0, 62.0):
        progress.show(row, step=int(now[0]), num_steps=100)
    lines = [line for line in stream.getvalue().splitlines() if "step " in line and "loss 1.5" in line]
    assert [line.split()[1] for line in lines] == ["31", "62"]


def test_what_takes_long_hands_everything_on_and_shows_how_far_it_is(monkeypatch):
    for stream, seconds, shown in ((Terminal(), 30.0, "features:   0%|"), (io.StringIO(), -1.0, "features: 2 of 3\n")):
        monkeypatch.setattr("engine.progress._SECONDS_BETWEEN_LINES", seconds)
        progress = Progress(num_epochs=0, is_main=True, stream=stream)
        assert list(progress.through("abc", doing="features", num_items=3)) == ["a", "b", "c"]
        assert shown in stream.getvalue()
    silent = io.StringIO()
    assert list(Progress(num_epochs=0, is_main=False, stream=silent).through("ab", doing="x", num_items=2)) == [
        "a",
        "b",
    ]
    assert silent.getvalue() == ""
