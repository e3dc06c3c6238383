"""The runner of studies: it does what is missing, keeps what is done, and reads a run's figures."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks import recipes
from benchmarks.cells import Cell
from benchmarks.publish import COMPARISONS
from benchmarks.recipes import (
    BEST,
    ROOT,
    RUNS_FIELDS,
    STUDIES,
    Shares,
    append_rows,
    build_command,
    chosen_cells,
    missing_cells,
    note_start,
    read_csv,
    read_rows,
)

RESULT = {"epoch": 2, "test/top1_frac": 0.75, "val/top1_frac": 0.5, "step": 8}
EPOCHS = [
    {"step": 4, "epoch": 1, "train/epoch_loss": 1.5, "train/epoch_top1_frac": 0.3, "val/loss": 1.25,
     "val/top1_frac": 0.4, "train/epoch_s": 60.0, "train/images_per_s": 100.0},
    {"step": 8, "epoch": 2, "train/epoch_loss": 1.0, "train/epoch_top1_frac": 0.6, "val/loss": 1.0,
     "val/top1_frac": 0.5, "train/epoch_s": 30.0, "train/images_per_s": 200.0},
]  # fmt: skip
CELL = Cell("configs/digits/simple_cnn.yaml", "", 3)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(RESULT))
    environment = {"machine": "NVIDIA H200, 1 process", "python": "3.11", "packages": {"torch": "2.14"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    rows = [{"step": 2, "epoch": 0.5, "train/loss": 2.0}, *EPOCHS]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_recipe_that_a_study_names_exists_and_no_run_stands_twice_in_it() -> None:
    for name, cells in STUDIES.items():
        assert len(cells) == len(set(cells)) > 0, name
        assert all((ROOT / cell.recipe).is_file() for cell in cells), name
    assert len(STUDIES["course"]) == 4 * 5
    assert len(STUDIES["thirty"]) == 3 * 3
    arms = {arm for one in COMPARISONS.values() if one.study == "thirty" for arm in one.arms}
    assert {(cell.recipe, cell.overrides) for cell in STUDIES["thirty"]} == arms
    on_cpu = [cell for name, study in STUDIES.items() if name != "gpu" for cell in study]
    assert {cell.recipe for cell in on_cpu} == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "configs").rglob("*.yaml")
        if not re.search(r"^# (It needs (a )?GPU|Not measured: its weights are)", path.read_text(), re.MULTILINE)
    }


def test_the_rows_of_a_run_are_its_figures(finished: Path) -> None:
    row, epochs = read_rows("digits", CELL, finished, shares=Shares("2", "1 run", "0123abcd"))
    assert set(row) == set(RUNS_FIELDS)
    assert (row["study"], row["recipe"], row["seed"], row["epochs"]) == ("digits", CELL.recipe, 3, 2)
    assert (row["test_top1_frac"], row["val_top1_frac"], row["last_train_top1_frac"]) == (0.75, 0.5, 0.6)
    assert (row["minutes"], row["commit"], row["torch"]) == (1.5, "0123abcd", "2.14")
    assert row["machine"] == "NVIDIA H200"
    assert [(one["epoch"], one["train_loss"], one["val_top1_frac"]) for one in epochs] == [(1, 1.5, 0.4), (2, 1.0, 0.5)]


def test_what_a_run_has_not_is_empty_in_its_row(finished: Path) -> None:
    (finished / "result.json").write_text(json.dumps({"epoch": 2, "test/top1_frac": 0.75, "step": 8}))
    without_val = [{key: value for key, value in row.items() if not key.startswith("val/")} for row in EPOCHS]
    (finished / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without_val))
    row, epochs = read_rows("digits", CELL, finished, shares=Shares("2", "1 run", "0123abcd"))
    assert (row["val_top1_frac"], row["minutes"]) == ("", 1.5)
    assert [(one["val_loss"], one["val_top1_frac"]) for one in epochs] == [("", ""), ("", "")]
    (finished / "metrics.jsonl").write_text(json.dumps({"step": 0, "epoch": 0, "test/score_s": 1.0}) + "\n")
    row, epochs = read_rows("digits", CELL, finished, shares=Shares("2", "1 run", "0123abcd"))
    assert (row["last_train_top1_frac"], row["minutes"], row["images_per_s"], epochs) == ("", "", "", [])
    assert row["test_top1_frac"] == 0.75


def test_the_rows_of_a_study_go_into_a_folder_that_was_not_there(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(cell: Cell, folder: Path, **_: object) -> None:
        shutil.copytree(finished, folder)

    monkeypatch.setattr(recipes, "run_cell", run)
    monkeypatch.setattr(recipes, "code_commit", lambda: "0123abcd")
    results = tmp_path / "not" / "there"
    words = ["recipes", "digits", "--runs", str(tmp_path / "runs"), "--results", str(results), "--seed", "3"]
    monkeypatch.setattr("sys.argv", words)
    recipes.main()
    assert [row["seed"] for row in read_csv(results / "recipes.csv")] == ["3"]
    assert [row["epoch"] for row in read_csv(results / "recipe_epochs.csv")] == ["1", "2"]


def test_only_runs_without_a_row_are_missing(finished: Path, tmp_path: Path) -> None:
    cells = STUDIES["digits"]
    assert missing_cells("digits", results=tmp_path) == cells
    row, _ = read_rows("digits", cells[1], finished, shares=Shares("2", "1 run", "0123abcd"))
    append_rows(tmp_path / "recipes.csv", RUNS_FIELDS, [row])
    assert missing_cells("digits", results=tmp_path) == [cells[0], *cells[2:]]
    assert missing_cells("course", results=tmp_path) == STUDIES["course"], "another study has its own rows"
    append_rows(tmp_path / "recipes.csv", RUNS_FIELDS, [row | {"seed": 0}])
    assert [one["seed"] for one in read_csv(tmp_path / "recipes.csv")] == ["1", "0"]
    assert (tmp_path / "recipes.csv").read_text().count("study,") == 1


@pytest.mark.slow
def test_a_run_is_trained_into_its_folder_and_a_finished_one_not_again(tmp_path: Path) -> None:
    cell = Cell("configs/digits/simple_cnn.yaml", "--train.epochs 2", 0)
    recipes.run_cell(cell, tmp_path / "run", data=None, work=tmp_path, threads=1)
    row, epochs = read_rows("digits", cell, tmp_path / "run", shares=Shares("1", "1 run", "0123abcd"))
    assert row["epochs"] == len(epochs) == 2
    assert 0 < row["test_top1_frac"] < 1
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    recipes.run_cell(cell, tmp_path / "run", data=None, work=tmp_path, threads=1)
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


def test_a_run_that_fails_says_where_its_log_is(tmp_path: Path) -> None:
    cell = Cell("configs/digits/simple_cnn.yaml", "--train.epochs 0", 0)
    with pytest.raises(RuntimeError, match=r"failed; see .*run\.log"):
        recipes.run_cell(cell, tmp_path / "run", data=None, work=tmp_path, threads=1)
    assert "train.epochs" in (tmp_path / "run.log").read_text()


def test_a_run_that_went_on_beside_others_or_by_other_code_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    alone, beside = (dict(zip(Shares._fields, one, strict=True)) for one in ((2, "1 run", "a"), (1, "2 runs", "b")))
    assert note_start(folder, **alone) == Shares("2", recipes.ALONE, "a")
    assert note_start(folder, **alone) == Shares("2", recipes.ALONE, "a"), "stopped and gone on"
    assert note_start(folder, **beside) == Shares("2 then 1", "1 run then 2 runs", "a then b")
    assert note_start(folder, **alone).beside != recipes.ALONE, "it stays so"


def test_new_rows_do_not_change_the_code_but_anything_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "recipes.csv").write_text("study\n")
    (tmp_path / "train.py").write_text("pass\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = recipes.code_commit()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    (results / "recipes.csv").write_text("study\nbest\n")
    assert recipes.code_commit() == commit
    (tmp_path / "train.py").write_text("raise\n")
    assert recipes.code_commit() == f"{commit}-dirty"


def test_without_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert recipes.code_commit() == "unknown"


def test_every_recipe_gets_a_time_of_its_own() -> None:
    run_alone = {cell.recipe for study in ("digits", "best", "timing") for cell in STUDIES[study]}
    by_strategy = {"configs/finetune/cifar10_three.yaml"}  # trained from different beginnings, it has no one time
    assert run_alone | {f"configs/{BEST[0]}.yaml"} | by_strategy == {
        cell.recipe for name, study in STUDIES.items() if name != "gpu" for cell in study
    }


def test_what_ran_on_a_cpu_is_named_by_the_cpu(finished: Path) -> None:
    environment = json.loads((finished / "environment.json").read_text()) | {"machine": "CPU, 1 process, 2 CPU threads"}
    (finished / "environment.json").write_text(json.dumps(environment))
    row, _ = read_rows("digits", CELL, finished, shares=Shares("2", "1 run", "0123abcd"))
    assert " cores" in row["machine"]


def test_runs_are_chosen_by_what_they_contain_and_by_their_seed() -> None:
    assert chosen_cells("levers", only="", seed=None) == STUDIES["levers"]
    assert chosen_cells("levers", only="speedrun94.yaml --model.args", seed=1) == [
        cell for cell in STUDIES["levers"] if "speedrun94" in cell.recipe and cell.overrides and cell.seed == 1
    ]
    assert len(chosen_cells("levers", only="speedrun94.yaml", seed=2)) == 3


def test_a_command_is_that_of_the_recipes_program_with_its_places_filled_in() -> None:
    cell = Cell("configs/finetune/cifar10_three.yaml", "--data.root %WORK%/x_%SEED% --model.name %RUNS%/source", 7)
    words = build_command(cell, Path("/some runs/one"), data="/data", work=Path("/some work"), threads=2)
    assert words == [
        *("finetune.py", "--config", cell.recipe),
        *("--data.root", "/some work/x_7", "--model.name", "/some runs/source"),
        *("--run.seed", "7", "--run.out", "/some runs/one", "--run.num_threads", "2"),
    ]  # fmt: skip
    plain = Cell("configs/cifar10/simple_cnn.yaml", "--train.epochs 3", 0)
    words = build_command(plain, Path("/runs/one"), data="/data", work=Path("/work"), threads=1)
    assert words[:7] == ["train.py", "--config", plain.recipe, "--train.epochs", "3", "--data.root", "/data"]
    words = build_command(CELL, Path("/runs/one"), data=None, work=Path("/work"), threads=1)
    assert words[:4] == ["train.py", "--config", CELL.recipe, "--run.seed"], "digits need no folder"


def test_a_study_makes_its_data_before_its_runs(
    monkeypatch: pytest.MonkeyPatch, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_folder({split: {f"class {place}": 2 for place in range(10)} for split in ("train", "test")})
    trained: list[list[str]] = []

    def stop(cell: Cell, folder: Path, *, data: str | None, work: Path, threads: int) -> None:
        trained.append(sorted(path.name for path in work.iterdir()))
        raise RuntimeError("failed")

    monkeypatch.setattr(recipes, "run_cell", stop)
    monkeypatch.setattr(recipes, "link_folders", partial(recipes.link_folders, subsets=[(2, 0)], trials=[]))
    places = ["--runs", str(tmp_path / "runs"), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "rows")]
    monkeypatch.setattr(sys, "argv", ["recipes", "transfer_source", "--data", str(data), *places])
    with pytest.raises(RuntimeError, match="failed"):
        recipes.main()
    assert trained == [["seven", "three_2_0"]]
