"""Our speedrun recipes beside airbench's own scripts, on one GPU, in one run: `python -m benchmarks.speedrun 94 ...`.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python -m benchmarks.speedrun 94 --data DIR --airbench cifar10-airbench --runs 10

Both train on the same images: DIR's, which the script gets in the file that it would otherwise download. The script
is run as it is but for its number of runs; it runs them in one process, after a warm-up that it does not count and in
which it compiles. Ours is train.py once per run. Seconds of both are those of training and of the last scoring of
test, without the scorings before: of ours the sum of `train/epoch_s` and `test/score_s`, once as it is, with
compilation, and once with the first epoch taken as the median of the others, without. A row per run goes into
benchmarks/results/speedrun.csv, which says on what it ran; the last lines are mean, spread, and the ratio of medians.
"""

import argparse
import csv
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.recipes import ROOT, code_commit

RESULTS = ROOT / "benchmarks" / "results" / "speedrun.csv"
SCRIPTS = {"94": "airbench94_muon.py", "96": "legacy/airbench96.py"}
_NUM_RUNS = re.compile(r"range\(\d{2,}\)\s*\]")  # the scripts end by `for run in range(200)])`
_AS_THE_SOURCE = ("--train.precision", "fp16", "--speed.compile", "max-autotune", "--data.val_frac", "0")


class Run(NamedTuple):
    """One training. top1_frac: on test, with test-time augmentation. seconds_with_compile: None where not known."""

    contender: str
    top1_frac: float
    seconds: float
    seconds_with_compile: float | None


def main() -> None:
    """Runs both, and prints what they reach and how long they take."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speedrun", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=sorted(SCRIPTS), help="the accuracy that is aimed at, in per cent")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as train/<class>/ and test/<class>/")
    parser.add_argument("--airbench", type=Path, help="clone of cifar10-airbench; without it ours runs alone")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("options", nargs="*", help="options for train.py after --, in place of the source's own")
    given = parser.parse_args()
    options = given.options or list(_AS_THE_SOURCE)
    runs = [run_ours(given.target, data=given.data, seed=seed, options=options) for seed in range(given.runs)]
    if given.airbench is not None:
        script = given.airbench / SCRIPTS[given.target]
        runs += run_script(script, data=given.data, num_runs=given.runs)
    save_rows(given.results, runs, target=given.target, options=options)
    print(summarise(runs))


def run_ours(target: str, *, data: Path, seed: int, options: list[str]) -> Run:
    """One run of our recipe, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--config", f"configs/cifar10/speedrun{target}.yaml", *options]
        command += ["--data.root", str(data.resolve()), "--run.seed", str(seed), "--run.out", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        return read_ours(Path(folder))


def read_ours(folder: Path) -> Run:
    """What a run folder says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [row["train/epoch_s"] for row in rows if "train/epoch_s" in row]
    result = json.loads((folder / "result.json").read_text())
    scoring = sum(row.get("test/score_s", 0.0) for row in rows)
    warm = statistics.median(epochs[1:]) + sum(epochs[1:]) if len(epochs) > 1 else sum(epochs)
    return Run("ours", result["test/top1_frac"], warm + scoring, sum(epochs) + scoring)


def run_script(script: Path, *, data: Path, num_runs: int) -> list[Run]:
    """Airbench's script, with so many runs, on our images.

    Raises:
        ValueError: The script is not there, or does not say its number of runs as it did.
    """
    if not script.is_file():
        raise ValueError(f"{script} is not there; clone https://github.com/KellerJordan/cifar10-airbench.")
    code, num_changed = _NUM_RUNS.subn(f"range({num_runs})]", script.read_text())
    if num_changed != 1:
        raise ValueError(f"{script} has {num_changed} places that look like its number of runs; wanted 1.")
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            write_images(data / split, Path(folder) / "cifar10" / f"{split}.pt")
        (Path(folder) / script.name).write_text(code)
        done = subprocess.run([sys.executable, script.name], cwd=folder, check=True, capture_output=True, text=True)
    return parse_table(done.stdout)


def write_images(folder: Path, path: Path) -> None:
    """An image folder as airbench keeps CIFAR-10: images uint8 (N, 32, 32, 3), labels int64 (N,), classes."""
    classes = sorted(one.name for one in folder.iterdir() if one.is_dir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).iterdir())]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = torch.tensor([label for _, label in files])
    torch.save({"images": torch.from_numpy(images), "labels": labels, "classes": classes}, path)


def parse_table(text: str) -> list[Run]:
    """The runs of the table that airbench's scripts print, the warm-up left out.

    Its lines are `|  run  |  epoch  | ... |  tta_val_acc  |  ...time_seconds  |`; the one of a run's end says `eval` in
    place of the epoch, and the run's number stands in the run's first line alone.
    """
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    if not lines or "tta_val_acc" not in lines[0]:
        raise ValueError("the script printed no table with a column tta_val_acc; look at what it prints.")
    head, runs, number = lines[0], [], ""
    accuracy, seconds = head.index("tta_val_acc"), next(place for place, name in enumerate(head) if "seconds" in name)
    for line in lines[1:]:
        number = line[0] or number
        if line[1] == "eval" and number != "warmup":
            runs.append(Run("airbench", float(line[accuracy]), float(line[seconds]), None))
    return runs


def summarise(runs: list[Run]) -> str:
    """A line per contender, and the ratio of the medians of their seconds."""
    lines, medians = [], {}
    for name in dict.fromkeys(run.contender for run in runs):
        own = [run for run in runs if run.contender == name]
        fracs = [run.top1_frac for run in own]
        spread = statistics.stdev(fracs) if len(own) > 1 else math.nan
        medians[name] = statistics.median(run.seconds for run in own)
        line = f"{name}: {100 * statistics.mean(fracs):.2f} +- {100 * spread:.2f} % (n = {len(own)})"
        line += f", {medians[name]:.2f} s"
        compiled = [run.seconds_with_compile for run in own if run.seconds_with_compile is not None]
        lines.append(line + (f", with compilation {statistics.median(compiled):.2f} s" if compiled else ""))
    if len(medians) == 2:
        lines.append(f"ours / airbench: {medians['ours'] / medians['airbench']:.2f} of the seconds")
    return "\n".join(lines)


def save_rows(path: Path, runs: list[Run], *, target: str, options: list[str]) -> None:
    """Adds a row per run."""
    about = {
        "target": target,
        "options": " ".join(options),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": code_commit(),
    }
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, [*Run._fields, *about], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(run._asdict() | about for run in runs)


if __name__ == "__main__":
    main()
