"""`python -m tools.show_augment`: the pixels of its picture, the numbers of its table, and what it says of mistakes."""

import dataclasses
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import run_program

from configs.load import load_config
from configs.schema import InputSpec
from pipelines.build import Place, Preview, Shown, build_data, build_training_loader
from pipelines.preview import Sample
from pipelines.wording import Drawn
from tools import show_augment
from tools.augment_picture import as_bytes, cells_of, draw_preview, enlarge, side_of_cells
from tools.show_augment import Options, preview_run

VARIED = ["--augment.flip", "random", "--augment.mixup_alpha", "0.4", "--augment.noise_std", "0.05"]
MakeFolder = Callable[..., Path]


def run_tool(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["show_augment.py", *words])
    show_augment.main()


def test_cells_hold_what_the_training_loader_hands_out(tmp_path: Path) -> None:
    config = load_config([*VARIED, "--augment.operations", "[{randaugment: {}}]"], prog="", description="")
    data = build_data(config, show_progress=False)
    preview = preview_run(config, data, Options(out=str(tmp_path / "a.png"), num_images=3, num_samples=2))
    place = Place(torch.device("cpu"), torch.float32, 0, 1, 1)
    loader = build_training_loader(config, data, place=place, show_progress=False)
    mean, std = data.spec.mean[0], data.spec.std[0]
    met: dict[int, list[np.ndarray]] = {}
    for _ in range(4):
        for batch in loader:
            for sample_id, pixels in zip(batch.ids_N.tolist(), batch.inputs[0], strict=True):
                met.setdefault(sample_id, []).append(pixels.numpy().transpose(1, 2, 0).copy())
    for shown in preview.shown:
        original, *samples = cells_of(shown, data.spec)
        np.testing.assert_array_equal(original.image_HWC, data.train.images_NHWC[shown.sample_id])
        for cell, pixels in zip(samples, met[shown.sample_id][:2], strict=True):
            assert cell.image_HWC.dtype == np.uint8
            np.testing.assert_allclose(cell.image_HWC, np.clip((pixels * std + mean) * 255, 0, 255), atol=0.5001)


def make_preview(num_images: int, num_samples: int, *, size_px: int, channels: int) -> Preview:
    rng = np.random.default_rng(0)
    shown = []
    for number in range(num_images):
        samples = [
            Sample(epoch, torch.from_numpy(rng.random((channels, size_px, size_px))), [Drawn("flip", "flip")])
            for epoch in range(num_samples)
        ]
        original = rng.integers(0, 256, (size_px, size_px, channels), dtype=np.uint8)
        shown.append(Shown(number, f"DIR/a$b$ {number}.jpg", "猫 $x$ <b>", original, samples))
    return Preview(shown, [], [], 0, "threads")


@pytest.mark.parametrize(("size_px", "channels"), [(8, 1), (32, 3), (224, 3)])
def test_the_picture_holds_every_pixel_of_every_image_enlarged_whole(size_px: int, channels: int) -> None:
    preview = make_preview(2, 3, size_px=size_px, channels=channels)
    spec = InputSpec(size_px=size_px, channels=channels, mean=(0.1,) * channels, std=(0.7,) * channels)
    with Image.open(io.BytesIO(draw_preview(preview, spec, title="a recipe"))) as image:
        assert image.format == "PNG"
        picture = np.asarray(image.convert("RGB"))
    side_px = side_of_cells(size_px)
    assert side_px % size_px == 0
    assert 160 < side_px <= 400
    assert 4 * side_px < picture.shape[1] < 4 * side_px + 200
    assert 2 * side_px < picture.shape[0] < 2 * side_px + 400
    places = []
    for shown in preview.shown:
        for cell in cells_of(shown, spec):
            square = cell.image_HWC.repeat(side_px // size_px, axis=0).repeat(side_px // size_px, axis=1)
            places.append(find(np.broadcast_to(square, (side_px, side_px, 3)), picture))
    rows, columns = sorted({top for top, _ in places}), sorted({left for _, left in places})
    assert places == [(top, left) for top in rows for left in columns]
    assert (len(rows), len(columns)) == (2, 4)


def find(square: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Where a square of pixels lies in a picture: by its upper row, then checked whole."""
    side = len(square)
    for top, left in np.argwhere((picture == square[0, 0]).all(axis=2)).tolist():
        if np.array_equal(picture[top : top + side, left : left + side], square):
            return top, left
    raise AssertionError("these pixels are not in the picture")


def test_below_an_image_stand_its_epoch_and_what_was_drawn() -> None:
    sample = Sample(4, torch.zeros(1, 8, 8), [Drawn("flip", "flip"), Drawn("hue", "hue +0.07")])
    shown = Shown(17, "DIR/train/cat/001.jpg", "cat", np.zeros((8, 8, 1), np.uint8), [sample])
    original, first = cells_of(shown, InputSpec(size_px=8, mean=(0.5,), std=(0.5,)))
    assert original.lines == ["17: cat", "001.jpg", "as in evaluation"]
    assert first.lines == ["epoch 4", "flip", "hue +0.07"]


def test_pixels_are_cut_off_at_black_and_white() -> None:
    pixels_CHW = torch.tensor([[[-9.0, 0.0, 9.0]], [[-1.0, 0.0, 1.0]], [[0.0, 0.1, 0.2]]])
    spec = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert as_bytes(pixels_CHW, spec).tolist() == [[[0, 64, 128], [128, 128, 134], [255, 191, 140]]]


def test_images_of_another_size_are_enlarged_whole_too_and_large_ones_made_smaller() -> None:
    image = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    cell = enlarge(image, cell_px=32)
    assert cell.shape == (32, 32, 3)
    np.testing.assert_array_equal(cell[4:28:2, 5:28:2], image)
    assert (cell[:4] == 255).all()
    assert (cell[:, 28:] == 255).all()
    assert side_of_cells(1000) == 320
    assert enlarge(np.full((1000, 1000, 1), 77, np.uint8), cell_px=320).tolist() == np.full((320, 320, 3), 77).tolist()


def test_a_wrong_probability_meets_the_eye_in_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operations = "[{equalize: {prob: 0.01}}, {invert: {prob: 0}}, {affine: {degrees: 5, translate: [0.5, 0.5]}}]"
    out = tmp_path / "a.png"
    run_tool(monkeypatch, *VARIED, "--augment.operations", operations, "--out", str(out), "--num_samples=2")
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.startswith("  ")}
    assert "drawn for the first 1,000 images of epoch 0:" in printed
    assert lines["drawn"] == ["images", "parameter", "smallest", "mean", "largest"]
    assert lines["invert"] == ["0.0", "%"]
    assert 0 < float(lines["equalize"][0]) < 3
    assert 45 < float(lines["flip"][0]) < 55
    assert lines["affine"][:3] == ["100.0", "%", "angle_deg"]
    assert lines["right_px"] == ["4", "4", "4"]
    assert -5 <= float(lines["affine"][3]) < -4.9
    assert lines["mixup"][:3] == ["100.0", "%", "weight"]
    assert printed.endswith(f"6 images, 2 times each: {out}\n")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_parameters_that_only_some_draws_have_are_counted_by_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--augment.operations", "[trivial_augment]", "--num_images=1", "--num_samples=1"]
    run_tool(monkeypatch, *words, "--out", str(tmp_path / "a.png"))
    printed = capsys.readouterr().out
    affine = float(re.search(r"^  affine +([\d.]+) %$", printed, flags=re.MULTILINE)[1])
    parts = re.findall(r"^ +([\d.]+) %  (?:angle_deg|right_px|down_px|shear_._deg) ", printed, flags=re.MULTILINE)
    assert len(parts) == 5
    assert affine < sum(float(part) for part in parts)
    assert all(float(part) < affine for part in parts)
    assert printed.endswith("1 image, 1 time each: " + str(tmp_path / "a.png") + "\n")


def test_without_augmentation_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--augment.crop", "none", "--augment.pad_px", "4", "--num_images=2", "--num_samples=1"]
    run_tool(monkeypatch, *words, "--out", str(tmp_path / "a.png"))
    assert "nothing is drawn: training sees these images as evaluation does" in capsys.readouterr().out
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_image", "3"], "unknown option 'num_image'; nearest: num_images"),
        (["--num_images", "many"], '"num_images"(?s:.*)int'),
        (["--num_images", "0"], "num_images=0 is too small; use 1 or more."),
        (["--num_samples", "21"], "num_samples=21 is too large for a picture; use at most 20."),
        (["--epoch", "-1"], "epoch=-1 is too small"),
        (["--out", "a.jpg"], r"out=a\.jpg: the picture is a PNG file"),
        (["--out", "nowhere/a.png"], r"out=nowhere/a\.png: there is no folder nowhere; make it"),
        (["--augment.flop", "random"], "unknown option 'augment.flop'; nearest: augment.flip"),
        (
            ["--augment.operations", "[equalise]"],
            r"augment\.operations\[0\]: unknown operation 'equalise'; nearest: equal",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_answered_as_train_py_does_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.setattr(show_augment, "build_data", lambda *given, **also: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, *words)
    assert left.value.code == 2
    assert re.search(f"^python -m tools.show_augment: error: .*{message}", capsys.readouterr().err, flags=re.DOTALL)


def test_a_picture_that_would_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        Options(out=str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "30"], r"^error: --epoch 30: the run has train\.epochs=30; use 0 to 29\."),
        (
            ["--train.global_batch_size", "61", "--augment.mixup_alpha", "1"],
            "^error: train.global_batch_size=61 is odd",
        ),
        (["--data.dataset", "digit"], "^error: unknown data set data.dataset='digit'; nearest: digits"),
        (["--data.dataset", "folder", "--data.root", "nowhere"], "^error: (?s:.*)nowhere"),
    ],
)
def test_what_would_stop_the_run_stops_the_tool(
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_tool(monkeypatch, *words)


def test_images_that_cannot_be_read_are_named_or_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder({"train": {"cat": 4, "dog": 4}})
    for path in sorted(root.rglob("*.png"))[::2]:
        path.write_bytes(path.read_bytes()[:150])  # a header, and pixels that break off
    words = ["--data.dataset", "folder", "--data.root", str(root), "--data.val_frac", "0", "--run.select", "last"]
    words += ["--train.global_batch_size", "2", "--input.mean", "[0.5,0.5,0.5]", "--input.std", "[0.2,0.2,0.2]"]
    words += ["--out", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit, match=r"^error: .*\.png: (?s:.*)--data.on_bad_sample replace"):
        run_tool(monkeypatch, *words)
    run_tool(monkeypatch, *words, "--data.on_bad_sample", "replace", "--data.max_bad_frac", "0.9")
    printed = capsys.readouterr().out
    assert len(re.findall(r"^passed over: .*/00[02]\.png: ", printed, flags=re.MULTILINE)) == 4
    assert "4 images, 6 times each" in printed


def test_an_image_that_is_hardly_ever_met_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder({"train": {"cat": 4, "dog": 4}})
    words = ["--data.dataset", "folder", "--data.root", str(root), "--data.val_frac", "0", "--run.select", "last"]
    words += ["--train.global_batch_size", "2", "--data.class_weights.cat", "1e-9", "--num_images=8"]
    run_tool(monkeypatch, *words, "--out", str(tmp_path / "a.png"))
    assert len(re.findall(r"^.*cat/00\d\.png: met 0 times only, in 100 epochs", capsys.readouterr().out, re.M)) == 4


def test_as_people_type_it(tmp_path: Path) -> None:
    out = tmp_path / "augment.png"
    recipe = "configs/digits/simple_cnn.yaml"
    words = ["--config", recipe, "--num_images", "2", "--num_samples", "3", "--out", str(out), "--run.seed", "7"]
    done = run_program("python", "-m", "tools.show_augment", *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  shift +\d+\.\d %  right_px", done.stdout, flags=re.MULTILINE)
    assert done.stdout.endswith(f"2 images, 3 times each: {out}\n")
    with Image.open(out) as image:
        assert image.width == 1125  # 4 images of 240 px with 20 px around each, in whole units of 75
        assert image.info  # written by matplotlib


def test_help_lists_its_own_options_and_those_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, "--help")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for name in (*(field.name for field in dataclasses.fields(Options)), "augment.operations", "data.root"):
        assert f"--{name} " in printed
