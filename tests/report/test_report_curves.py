"""curves.png from a run folder, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from engine.record import RunFolder
from report.curves import PANELS, draw_curves, draw_panel

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


def test_a_panel_alone_has_the_numbers_of_the_rows(tmp_path):
    folder = RunFolder(tmp_path)
    write_rows(folder)
    rows = folder.read_metrics()
    lines = {line.get_label(): line for line in draw_panel(rows, panel="top-1 accuracy (%)").axes[0].get_lines()}
    np.testing.assert_allclose(lines["train"].get_xydata(), [[1, 50], [2, 50], [3, 50]])
    np.testing.assert_allclose(lines["val"].get_xydata(), [[1, 40], [2, 40], [3, 40]])
    drawn = [panel for panel in PANELS if draw_panel(rows, panel=panel) is not None]
    assert drawn == ["loss", "top-1 accuracy (%)", "learning rate"]


def test_a_folder_with_dollars_in_its_name_is_drawn(tmp_path):
    folder = RunFolder(tmp_path / "$x^{$ 猫")
    folder.path.mkdir()
    assert BLUE not in colours(draw_curves(folder))


def test_reports_are_drawn_without_torch():
    program = "import sys, report.page, report.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_weights_beside_their_average_have_a_curve_of_their_own(tmp_path):
    rows = [{"step": 1, "epoch": 1, "val/loss": 1.0, "val_raw/loss": 2.0, "val_raw/top1_frac": 0.3}]
    labels = {line.get_label() for line in draw_panel(rows, panel="loss").axes[0].get_lines()}
    assert labels == {"val", "val, weights not averaged"}
    (line,) = draw_panel(rows, panel="top-1 accuracy (%)").axes[0].get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[1, 30]])
