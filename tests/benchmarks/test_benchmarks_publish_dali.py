"""What docs/dali.md shows of the check: the GPU's figures first, and plainly where there are none."""

import json
from pathlib import Path
from typing import Any

from benchmarks.publish_dali import (
    load_checks,
    loaders_block,
    pixels_block,
    predictions_block,
    sweep_block,
    training_block,
    verdicts_block,
)

ABOUT = {
    "device": "NVIDIA H200",
    "cpu": "16 cores of X",
    "date": "2026-12-01",
    "commit": "01234567ab",
    "versions": "v",
}
LOADERS = [
    {"contender": "hand", "images_per_s": 9000.4, "lowest": 8000, "highest": 9500, "gpu_memory_mib": 2100.0,
     "num_threads": 16, "reason": ""},
    {"contender": "dali", "images_per_s": 9100, "lowest": 9000, "highest": 9200, "gpu_memory_mib": None,
     "num_threads": 16, "reason": ""},
    {"contender": "timm", "images_per_s": None, "lowest": None, "highest": None, "gpu_memory_mib": None,
     "num_threads": 16, "reason": "no such package"},
]  # fmt: skip
TRAINING = [
    {"model": "resnet50", "contender": "ours_bf16_dali", "size_px": "224", "batch_size": "256", "data": "dali",
     "images_per_s": "2950.5", "lowest": "2900", "highest": "3000", "data_wait_frac": "0.0123"},
]  # fmt: skip
PIXELS = [
    {"way": "dali", "mean_of_255": 0.4, "worst_image_of_255": 0.9, "frac_far_off": 0.00012, "max_of_255": 31,
     "frac_unlike_dali": 0.0},
]  # fmt: skip
PREDICTIONS = [
    {"way": "dali", "num_samples": 10000, "top1_frac": 0.701, "same_prediction_frac": 0.9951,
     "mean_logit_difference": 0.0123, "logit_std": 2.5},
]  # fmt: skip
FOUND: dict[str, Any] = {
    "about": ABOUT,
    "loaders": {"rows": LOADERS},
    "sweeps": {"rows": {"load": LOADERS[:1]}},
    "training": {"rows": TRAINING},
    "agreement": {"pixels": PIXELS, "predictions": PREDICTIONS},
}
SAID = "NVIDIA H200; 16 cores of X, 2026-12-01, 01234567, v."
NOT_MEASURED = "On a GPU: not measured yet."


def test_without_a_measurement_every_block_says_so() -> None:
    blocks = [verdicts_block({}), loaders_block({}), sweep_block({}, "load"), training_block({}), pixels_block({})]
    assert all(NOT_MEASURED in block for block in [*blocks, predictions_block({})])
    assert "| `dali` / DALI by hand, images/s | at least 0.97 | not measured |" in blocks[0]


def test_tables_hold_the_figures_of_a_gpu_and_say_what_they_were_measured_on() -> None:
    checks = {"cuda": FOUND}
    loaders = loaders_block(checks)
    assert loaders.splitlines()[2:4] == [
        "| `dali` | 16 | 9,100 | 9,000 | 9,200 |  |",
        "| `hand` | 16 | 9,000 | 8,000 | 9,500 | 2,100 |",
    ]
    assert "Not measured: `timm` (no such package)." in loaders
    assert "`hand`" in sweep_block(checks, "load")
    assert NOT_MEASURED in sweep_block(checks, "threads")
    assert "| resnet50 (ours_bf16_dali) | 224 | 256 | dali | 2,950 | 2,900 | 3,000 | 1.2 % |" in training_block(checks)
    assert "| `dali` | 0.400 | 0.900 | 0.012 % | 31 | 0 % |" in pixels_block(checks)
    assert "| `dali` | 10,000 | 70.10 % | 99.51 % | 0.0123 (2.50) |" in predictions_block(checks)
    for block in (loaders, training_block(checks), pixels_block(checks), verdicts_block(checks)):
        assert SAID in block
        assert NOT_MEASURED not in block


def test_figures_of_a_cpu_stand_below_and_do_not_pass_for_a_gpus() -> None:
    checks = {"cpu": FOUND | {"about": ABOUT | {"device": "no GPU"}}}
    for block in (loaders_block(checks), training_block(checks), pixels_block(checks), predictions_block(checks)):
        assert block.startswith(NOT_MEASURED)
        assert "no GPU; 16 cores of X" in block
    assert NOT_MEASURED in verdicts_block(checks)
    assert "| met |" not in verdicts_block(checks)
    both = pixels_block({"cuda": FOUND, **checks})
    assert both.index("NVIDIA H200") < both.index("no GPU")


def test_checks_are_read_by_device(tmp_path: Path) -> None:
    assert load_checks(tmp_path) == {}
    for device in ("cpu", "cuda"):
        (tmp_path / f"gpu_check_{device}.json").write_text(json.dumps(FOUND | {"about": {"device": device}}))
    assert {device: found["about"]["device"] for device, found in load_checks(tmp_path).items()} == {
        "cuda": "cuda",
        "cpu": "cpu",
    }
    assert list(load_checks(tmp_path)) == ["cuda", "cpu"]
