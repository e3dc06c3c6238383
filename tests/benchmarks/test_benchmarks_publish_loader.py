"""The page of loaders: tables, reasons, the picture."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import loader, publish
from benchmarks.publish_loader import (
    LOADER_JOBS,
    TITLES,
    cores_table,
    draw_loaders,
    loader_picture,
    loader_table,
    memory_table,
    threads_table,
)

ABOUT = {"repeats": "7", "cpu": "2 cores of X", "date": "2026-11-26", "versions": "torch 2.14"}


def row(contender: str, speed: int | None, *, difference: str = "", reason: str = "") -> dict[str, str]:
    speeds = ("", "", "") if speed is None else (str(speed), str(speed - 50), str(speed + 50))
    names = ("images_per_s", "lowest", "highest")
    return {"contender": contender, **dict(zip(names, speeds, strict=True)), "difference_of_255": difference,
            "reason": reason, **ABOUT}  # fmt: skip


ROWS = [
    row("litdata", None, reason="ImportError: run `pip install\n litdata`"),
    row("ffcv", 1000, difference="1.481"),
    row("threads", 2500, difference="0.035"),
]


def test_a_table_is_in_order_of_speed_with_the_ratio_to_ffcv_and_reasons_below() -> None:
    lines = loader_table(ROWS).splitlines()
    assert lines[2:] == [
        "| **`threads`** | 2,500 | 2,450 | 2,550 | 2.50 | 0.035 |",
        "| FFCV | 1,000 | 950 | 1,050 | 1.00 | 1.481 |",
        "",
        "Medians of 7 epochs, 2 cores of X, 2026-11-26, torch 2.14.",
        "",
        "Not measured:",
        "",
        "- LitData: `ImportError: run 'pip install litdata'`",
    ]


def test_without_ffcv_there_are_no_ratios() -> None:
    assert "| **`threads`** | 2,500 | 2,450 | 2,550 |  | 0.035 |" in loader_table(ROWS[2:])


def test_a_job_without_figures_says_so_and_still_names_the_reasons() -> None:
    assert loader_table([]) == "Not measured yet.\n"
    assert loader_table(ROWS[:1]).splitlines()[0] == "Not measured yet."
    assert "- LitData: `ImportError" in loader_table(ROWS[:1])
    assert loader_picture({job: [] for job in LOADER_JOBS}) == "Not measured yet.\n"
    assert "figures/loader.png" in loader_picture({"imagenet": ROWS, "packed_400": []})


def test_the_picture_has_a_panel_for_each_job_that_was_measured(tmp_path: Path) -> None:
    draw_loaders({"imagenet": [], "packed_400": ROWS[:1]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    draw_loaders({"imagenet": ROWS, "packed_400": []}, tmp_path / "one.png")
    draw_loaders({"imagenet": ROWS, "packed_400": ROWS}, tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > 1.5 * one.height


def test_the_page_has_a_table_for_each_job_and_knows_every_peer() -> None:
    page = (publish.ROOT / "docs" / "loader.md").read_text()
    for job in LOADER_JOBS:
        assert f"<!-- loader_{job}: made by `make tables` -->\n" in page
    assert list(LOADER_JOBS) == ["imagenet", *loader._STORED]
    contenders = {name for job in LOADER_JOBS for name in loader._CONTENDERS[job]}
    ours = {name for name in contenders if name.startswith(("threads", "dali_planned", "reference"))}
    assert contenders - ours == set(TITLES)


def test_a_contender_without_figures_is_left_out_of_the_table_of_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    head = "contender,images_per_s,repeats,reason,cpu,date\n"
    rows = "threads,900,7,,X,Y\ntimm,,0,No module named 'timm',X,Y\n"
    (tmp_path / "loader_color_jitter.csv").write_text(head + rows)
    block = publish.speed_block()
    assert "| `threads` |  |  |  | 900 |" in block
    assert "timm" not in block
    assert "Medians of 7 epochs, X, Y." in block


def test_the_table_of_threads_reckons_what_the_lock_allows() -> None:
    rows = [
        {"stored": "raw", "num_threads": threads, "images_per_s": speed, "cpu_us_per_image": "200",
         "locked_frac": "0.1", "locked_us_per_image": "20.0", **ABOUT}
        for threads, speed in (("1", "5000"), ("2", "9000"))
    ]  # fmt: skip
    lines = threads_table(rows).splitlines()
    assert lines[2:] == [
        "| raw | 1 | 5,000 | 200 | 10.0% | 20.0 |",
        "| raw | 2 | 9,000 | 200 | 10.0% | 20.0 |",
        "",
        "2 cores of X, 2026-11-26, torch 2.14.",
    ]
    assert threads_table([]) == "Not measured yet.\n"


def test_the_table_of_cores_says_how_many_processes_keep_them_at_work() -> None:
    rows = [
        {"num_threads": str(count), "images_per_s": str(speed), "ideal_images_per_s": str(2000 * count), **ABOUT}
        for count, speed in ((1, 1900), (4, 6100), (16, 5000))
    ]
    lines = cores_table(rows).splitlines()
    assert lines[2:5] == ["| 1 | 1,900 | 2,000 |", "| 4 | 6,100 | 8,000 |", "| 16 | 5,000 | 32,000 |"]
    assert "about 6,100 images/s at most, as much as 3 cores decode" in lines[6]
    assert "16 cores at work takes 6 processes or more, and 64 cores 22: ranks, or" in lines[6]
    assert cores_table([]) == "Not measured yet.\n"


def test_the_table_of_memory_says_who_reads_ahead() -> None:
    rows = [
        {"memory": memory, "reads_ahead": ahead, "data_mib": "1200", "images_per_s": "3000", **ABOUT}
        for memory, ahead in (("not limited", "True"), ("1,500 MiB", "False"))
    ]
    lines = memory_table(rows).splitlines()
    assert lines[2:4] == ["| not limited | yes | 1,200 | 3,000 |", "| 1,500 MiB | no | 1,200 | 3,000 |"]
    assert memory_table([]) == "Not measured yet.\n"
