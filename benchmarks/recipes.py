"""What the recipes give: every recipe at several seeds, one row per run, kept as the runs finish.

python -m benchmarks.recipes course --data DIR     (or `make recipes STUDY=course DATA=DIR`)

study -> cells (recipe, overrides, seed) -> those without a row -> train.py or finetune.py each ->
benchmarks/results/recipes.csv (a row per run) and recipe_epochs.csv (a row per epoch). Stop it at any time: the same
command goes on, runs in their middle included. DIR holds CIFAR-10 as train/<class>/ and test/<class>/.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import yaml

from benchmarks.cells import Cell, run_name
from benchmarks.transfer_data import link_folders
from benchmarks.transfer_study import KEPT_STUDY, SOURCE, STUDY, TRIAL_STUDY

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ALONE = "1 run"  # what the column `beside` says of runs that went one at a time from their beginning to their end
RUNS_FIELDS = (
    "study", "recipe", "overrides", "seed", "epochs", "test_top1_frac", "val_top1_frac", "last_train_top1_frac",
    "minutes", "images_per_s", "threads", "beside", "machine", "python", "torch", "date", "commit",
)  # fmt: skip
EPOCH_FIELDS = (
    "study", "recipe", "overrides", "seed", "epoch", "train_loss", "train_top1_frac", "val_loss", "val_top1_frac",
)  # fmt: skip


def _cells(recipe: str, *, seeds: int, overrides: str = "") -> list[Cell]:
    return [Cell(f"configs/{recipe}.yaml", overrides, seed) for seed in range(seeds)]


# The course's network with BatchNorm for 15 epochs: without augmentation, with crops and flips of two kinds, and what
# else there is on top of crops and alternating flips.
_ALTERNATING = "--train.epochs 15 --augment.crop pad --augment.flip alternating"
AUGMENTATIONS = {
    "none": "--train.epochs 15",
    "crop and flip": "--train.epochs 15 --augment.crop pad --augment.flip random",
    "crop and alternating flip": _ALTERNATING,
    "+ RandAugment": f'{_ALTERNATING} --augment.operations ["randaugment"]',
    "+ cutout": f"{_ALTERNATING} --augment.cutout_px 8",
    "+ mixup": f"{_ALTERNATING} --augment.mixup_alpha 0.2",
    "+ CutMix": f"{_ALTERNATING} --augment.cutmix_alpha 1.0",
}

# From the course's network to the best recipe, each lever on top of those before it; ten epochs each but for the last.
_CROPS = "--augment.crop pad --augment.flip alternating"
_CYCLE = (
    "--optim.name sgd --optim.lr 0.1 --optim.momentum 0.9 --optim.nesterov true --optim.weight_decay 0.0005 "
    "--schedule.name one_cycle --schedule.rise_frac 0.2"
)
_NARROW = "--model.args.widths [16,32,64]"
LEVER_PATH = {
    "plain": ("cifar10/simple_cnn", ""),
    "+ BatchNorm": ("cifar10/simple_cnn_bn", ""),
    "+ crop and alternating flip": ("cifar10/simple_cnn_bn", _CROPS),
    "+ Nesterov SGD, one cycle": ("cifar10/simple_cnn_bn", f"{_CROPS} {_CYCLE}"),
    "+ label smoothing 0.1": ("cifar10/simple_cnn_bn", f"{_CROPS} {_CYCLE} --loss.label_smoothing 0.1"),
    "airbench's network, narrow": ("cifar10/airbench", f"{_NARROW} --train.epochs 10"),
    "+ Muon": ("cifar10/speedrun94", f"{_NARROW} --train.epochs 10 --evaluation.tta none"),
    "+ test-time augmentation": ("cifar10/speedrun94", f"{_NARROW} --train.epochs 10"),
    "+ full width: the best recipe": ("cifar10/speedrun94", ""),
}
BEST = LEVER_PATH["+ full width: the best recipe"]  # last, so that it can be run alone, and tell its time
# Single levers, each alone on top of the narrow network for five epochs.
_SHORT = f"{_NARROW} --train.epochs 5"
LEVERS = {
    "none": _SHORT,
    "+ EMA 0.99": f"{_SHORT} --average.ema_decay 0.99",
    "+ SWA of the last two epochs": f"{_SHORT} --average.swa_start_epoch 3 --average.swa_lr_frac 0.1",
    "+ mixup 0.2": f"{_SHORT} --augment.mixup_alpha 0.2",
    "+ CutMix": f"{_SHORT} --augment.cutmix_alpha 1.0",
    "+ CutMix until epoch 4": f"{_SHORT} --augment.cutmix_alpha 1.0 --augment.mix_until_epoch 4",
    "+ cutout 8": f"{_SHORT} --augment.cutout_px 8",
    "+ progressive resizing": f"{_SHORT} --augment.sizes_px [[0,20],[2,26],[4,32]] --train.bn_images 5000",
    "+ growing batches": f"{_SHORT} --train.batch_sizes [[0,128],[2,256],[4,512]]",
    "+ no decay on norms and biases": f"{_SHORT} --optim.no_decay norms_and_biases",
    "+ gradients clipped to 1": f"{_SHORT} --optim.clip_norm 1.0",
    "focal loss": f"{_SHORT} --loss.name focal",
    "binary cross entropy": f"{_SHORT} --loss.name bce --optim.lr 1.0",
    "AdamW": f"{_SHORT} --optim.name adamw --optim.lr 0.01 --optim.momentum 0 --optim.nesterov false "
    "--optim.weight_decay 0.05",
    "LAMB": f"{_SHORT} --optim.name lamb --optim.lr 0.02 --optim.momentum 0 --optim.nesterov false",
}
# The plain network, taught by the best recipe's first run as well; in bf16, for that teacher takes 36 minutes in fp32.
_PLAIN = "--train.precision bf16"
_TAUGHT = f"{_PLAIN} --distill.teachers [%RUNS%/levers-speedrun94-0]"
DISTILLED = {
    "plain": _PLAIN,
    "taught by the best recipe": _TAUGHT,
}

STUDIES: dict[str, list[Cell]] = {
    "digits": _cells("digits/simple_cnn", seeds=5),
    "course": [
        cell
        for seed in range(5)
        for variant in ("", "_bn", "_bn_dropout", "_bn_dropout_aug")
        for cell in _cells(f"cifar10/simple_cnn{variant}", seeds=5)
        if cell.seed == seed
    ],
    "thirty": [  # epochs: without and with crops and flips, then with a learning rate that falls
        Cell(f"configs/cifar10/{recipe}.yaml", overrides, seed)
        for seed in range(3)
        for recipe, overrides in (
            ("simple_cnn_cosine", "--schedule.name constant"),
            ("simple_cnn_bn_dropout", "--train.epochs 30"),
            ("simple_cnn_cosine", ""),
        )
    ],
    "augment": [
        Cell("configs/cifar10/simple_cnn_bn.yaml", overrides, seed)
        for seed in range(3)
        for overrides in AUGMENTATIONS.values()
    ],
    "best": _cells("cifar10/airbench", seeds=3),
    "levers": [
        Cell(f"configs/{recipe}.yaml", overrides, seed)
        for seed in range(3)
        for recipe, overrides in LEVER_PATH.values()
        if (recipe, overrides) != BEST
    ]
    + _cells(BEST[0], seeds=3),
    "single_levers": [
        Cell("configs/cifar10/airbench.yaml", overrides, seed) for seed in range(3) for overrides in LEVERS.values()
    ],
    "distill": [
        Cell("configs/cifar10/simple_cnn.yaml", overrides, seed)
        for seed in range(3)
        for overrides in DISTILLED.values()
    ],
    "transfer_source": [SOURCE],
    "transfer_rates": TRIAL_STUDY,
    "transfer": STUDY,
    "transfer_features": KEPT_STUDY,
}
STUDIES["gpu"] = [Cell("configs/cifar10/resnet18.yaml", "--train.epochs 60", seed) for seed in range(3)]
# Minutes count only of runs that went one at a time, with nothing else on the machine. Small networks are best run two
# at a time; this is one more of each, alone. (digits and best are run alone as they are.)
STUDIES["timing"] = [
    Cell(recipe, "", 0) for recipe in dict.fromkeys(cell.recipe for cell in STUDIES["course"] + STUDIES["thirty"])
]


def main() -> None:
    """Runs the cells of a study that have no row yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--data", help="CIFAR-10 as an image folder", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="where the run folders lie")
    parser.add_argument("--work", type=Path, default=Path("runs/work"), help="where data that studies make of DIR lies")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows go")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other; the cores are shared among them")
    parser.add_argument("--only", help="what the recipe of a run and what is changed in it must contain", default="")
    parser.add_argument("--seed", type=int, help="the seed of the only runs", default=None)
    options = parser.parse_args()
    cells = chosen_cells(options.study, only=options.only, seed=options.seed)
    if options.data is None and any("cifar10" in cell.recipe for cell in cells):
        parser.error("this study needs --data DIR, CIFAR-10 as train/<class>/ and test/<class>/")
    missing = [cell for cell in missing_cells(options.study, results=options.results) if cell in cells]
    print(
        f"{options.study}: {len(cells)} runs, {len(cells) - len(missing)} have a row, {len(missing)} to do", flush=True
    )
    if any("%WORK%" in cell.overrides for cell in missing):
        link_folders(Path(options.data), work=options.work)
    options.results.mkdir(parents=True, exist_ok=True)  # now, not when the first run is over
    lock, threads = Lock(), max(1, (os.cpu_count() or 1) // options.jobs)
    beside = ALONE if options.jobs == 1 else f"{options.jobs} runs at a time"

    def work(cell: Cell) -> None:
        folder = options.runs / run_name(options.study, cell)
        shares = note_start(folder, threads=threads, beside=beside, commit=code_commit())
        run_cell(cell, folder, data=options.data, work=options.work, threads=threads)
        row, epochs = read_rows(options.study, cell, folder, shares=shares)
        with lock:
            append_rows(options.results / "recipe_epochs.csv", EPOCH_FIELDS, epochs)
            append_rows(options.results / "recipes.csv", RUNS_FIELDS, [row])
        took = f" in {row['minutes']:.1f} min" if row["minutes"] != "" else ""
        print(f"{cell}: {100 * row['test_top1_frac']:.2f} %{took}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, missing))


def chosen_cells(study: str, *, only: str, seed: int | None) -> list[Cell]:
    """The runs of a study that contain a text, and have a seed if there is one."""
    return [cell for cell in STUDIES[study] if only in f"{cell.recipe} {cell.overrides}" and seed in (None, cell.seed)]


def missing_cells(study: str, *, results: Path) -> list[Cell]:
    """The runs of a study that have no row yet."""
    done = {
        (row["study"], row["recipe"], row["overrides"], int(row["seed"])) for row in read_csv(results / "recipes.csv")
    }
    return [cell for cell in STUDIES[study] if (study, *cell) not in done]


class Shares(NamedTuple):
    """What a run had: CPU threads, what ran beside it, and by which code; `1 then 2` where it went on differently."""

    threads: str
    beside: str
    commit: str


def note_start(folder: Path, *, threads: int, beside: str, commit: str) -> Shares:
    """Notes in FOLDER.starts how a run is started or goes on; gives what it was over all its starts."""
    path = Path(f"{folder}.starts")
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = path.read_text().splitlines() if path.exists() else []
    present = f"{threads}\t{beside}\t{commit}"
    if present not in starts:
        starts.append(present)
        path.write_text("\n".join(starts) + "\n")
    columns = zip(*(start.split("\t") for start in starts), strict=True)
    return Shares(*(" then ".join(dict.fromkeys(column)) for column in columns))


def code_commit() -> str:
    """The commit of the code; `-dirty` where it was changed since; `unknown` without git.

    New rows of results are no change of the code.
    """
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", ".", ":!benchmarks/results"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # no git, or not a checkout: what was measured must not be lost for that
    return f"{head}-dirty" if changed else head


def run_cell(cell: Cell, folder: Path, *, data: str | None, work: Path, threads: int) -> None:
    """Trains one cell to its end, from its newest checkpoint if it has one; its output goes into FOLDER.log.

    Raises:
        RuntimeError: The program failed.
    """
    command = [sys.executable, *build_command(cell, folder, data=data, work=work, threads=threads)]
    with open(f"{folder}.log", "a") as log:
        if subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise RuntimeError(f"{' '.join(command)} failed; see {folder}.log")


def build_command(cell: Cell, folder: Path, *, data: str | None, work: Path, threads: int) -> list[str]:
    """The program that a cell is for, which follows from the folder of its recipe, and its options.

    Args:
        cell: The run.
        folder: Where it leaves its files, beside those of other runs.
        data: What a recipe for image folders gets, if the cell does not name other data.
        work: The folder of data that is made for studies.
        threads: CPU threads.
    """
    program = "finetune.py" if Path(cell.recipe).parent.name == "finetune" else "train.py"
    overrides = cell.overrides.split()
    needs_root = yaml.safe_load((ROOT / cell.recipe).read_text())["data"]["dataset"] == "folder"
    if needs_root and "--data.root" not in overrides:
        overrides += ["--data.root", str(Path(str(data)).resolve())]
    places = {"%RUNS%": folder.parent.resolve(), "%WORK%": work.resolve(), "%SEED%": cell.seed}
    for place, value in places.items():
        overrides = [word.replace(place, str(value)) for word in overrides]
    own = ["--run.seed", str(cell.seed), "--run.out", str(folder.resolve()), "--run.num_threads", str(threads)]
    return [program, "--config", cell.recipe, *overrides, *own]


def read_rows(study: str, cell: Cell, folder: Path, *, shares: Shares) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a finished run, and a row for each of its epochs.

    What a run has not, a score on val or the time of an epoch, is empty.
    """
    result = json.loads((folder / "result.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "train/epoch_loss" in line]
    key = {"study": study, **cell._asdict()}
    epochs = [
        key
        | {
            "epoch": line["epoch"],
            "train_loss": round(line["train/epoch_loss"], 6),
            "train_top1_frac": round(line["train/epoch_top1_frac"], 6),
            "val_loss": line.get("val/loss", ""),
            "val_top1_frac": line.get("val/top1_frac", ""),
        }
        for line in ends
    ]
    row = key | {
        "epochs": result["epoch"],
        "test_top1_frac": result["test/top1_frac"],
        "val_top1_frac": result.get("val/top1_frac", ""),
        "last_train_top1_frac": round(ends[-1]["train/epoch_top1_frac"], 6) if ends else "",
        "minutes": round(sum(line["train/epoch_s"] for line in ends) / 60, 2) if ends else "",
        "images_per_s": sorted(line["train/images_per_s"] for line in ends)[len(ends) // 2] if ends else "",
        "threads": shares.threads,
        "beside": shares.beside,
        "machine": _machine_name(environment["machine"]),
        "python": environment["python"],
        "torch": environment["packages"]["torch"],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": shares.commit,
    }
    return row, epochs


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, fields: Sequence[str], rows: list[dict[str, Any]]) -> None:
    """Adds rows to a CSV, with a header where it is new."""
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _machine_name(described: str) -> str:
    """What a run computed on: the GPU that its environment.json names, else the CPU."""
    name = described.partition(",")[0]
    return _cpu_name() if name == "CPU" else name


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores"


if __name__ == "__main__":
    main()
