"""curves.png from a run folder, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from engine.record import RunFolder
from report.curves import draw_curves

ROOT = Path(__file__).parents[2]


def write_rows(folder, *, val=True):
    for epoch in range(1, 4):
        row = {"step": epoch, "epoch": epoch, "train/epoch_loss": 1 / epoch, "train/epoch_top1_frac": 0.5, "lr": 0.1}
        folder.append_metrics(row | ({"val/loss": 1.1 / epoch, "val/top1_frac": 0.4} if val else {}))


def colours(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {tuple(colour) for colour in np.unique(pixels, axis=0)}


BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)


def test_train_val_and_learning_rate_are_drawn(tmp_path):
    folder = RunFolder(tmp_path)
    write_rows(folder)
    path = draw_curves(folder)
    assert path == tmp_path / "curves.png"
    assert colours(path) >= {BLUE, ORANGE, GREEN}


def test_a_run_without_val_is_drawn_without_it(tmp_path):
    folder = RunFolder(tmp_path)
    write_rows(folder, val=False)
    drawn = colours(draw_curves(folder))
    assert BLUE in drawn
    assert ORANGE not in drawn


def test_a_run_without_metrics_gives_empty_axes(tmp_path):
    assert BLUE not in colours(draw_curves(RunFolder(tmp_path)))


def test_reports_are_drawn_without_torch():
    program = "import sys, report.curves; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
