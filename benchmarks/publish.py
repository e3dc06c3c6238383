"""Measured rows into what people read: `python -m benchmarks.publish` (or `make tables`).

benchmarks/results/recipes.csv       -> docs/recipes.md, the figure in each recipe's header, and the blocks of README.md
benchmarks/results/recipe_epochs.csv    docs/course.md, docs/levers.md and docs/transfer.md between
                                        <!-- NAME: made by `make tables` --> and <!-- end -->
                                     -> docs/figures/*.png
benchmarks/results/operations.csv    -> docs/operations.md
benchmarks/results/loader_*.csv      -> the blocks of docs/loader.md and docs/augmentation.md, docs/figures/loader.png
benchmarks/results/loader_study.txt  -> the block of docs/loader_study.md
benchmarks/results/gpu_check_*.json  -> the blocks of docs/dali.md
benchmarks/results/checkpoint.csv    -> the block of README.md
configs/operations.py                -> the block of docs/augmentation.md

CI runs it with --check, which changes nothing and fails if a text is not what these say.
"""

import argparse
import functools
import itertools
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.publish_dali import (
    load_checks,
    loaders_block,
    pixels_block,
    predictions_block,
    sweep_block,
    training_block,
    verdicts_block,
)
from benchmarks.publish_loader import (
    LOADER_JOBS,
    cores_table,
    draw_loaders,
    loader_picture,
    loader_table,
    memory_table,
    threads_table,
)
from benchmarks.publish_transfer import (
    draw_transfer,
    features_table,
    frozen_table,
    rates_table,
    transfer_picture,
    transfer_table,
)
from benchmarks.recipes import ALONE, AUGMENTATIONS, DISTILLED, LEVER_PATH, LEVERS, RESULTS, ROOT, read_csv
from benchmarks.verdicts import differences, spread
from configs.operations_table import step_table
from report.intervals import welch

_BLOCK = re.compile(r"(<!-- (\w+): made by `make tables` -->\n).*?(<!-- end -->\n)", flags=re.DOTALL)
_LENGTHS = (5, 10, 15, 20, 25, 30)  # epochs at which the study of lengths is read
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")
_LEVER_STUDIES = ("levers", "single_levers", "distill")
_NOT_MEASURED = "# Not measured yet."
_Rows = list[dict[str, str]]
_Arm = tuple[str, str]  # recipe, overrides
# Who does operations, in the order of the columns: the names of benchmarks/operations.py -> what people know them by.
WAYS = {
    "reference": "`reference` (torchvision)",
    "kernels": "`threads`, and the tail on a CPU",
    "batched": "the tail on a GPU",
    "dali": "`dali` itself, on a GPU",
}
_WITHOUT: _Arm = ("configs/cifar10/simple_cnn_bn_dropout.yaml", "--train.epochs 30")
_CONSTANT: _Arm = ("configs/cifar10/simple_cnn_cosine.yaml", "--schedule.name constant")
_COSINE: _Arm = ("configs/cifar10/simple_cnn_cosine.yaml", "")


# What those had whose settings a recipe takes: top-1, time and machine, and who; the recipes' headers say where that is
# and what differs.
_FFCV = "ffcv-imagenet, ResNet-50 with blur"
PUBLISHED = {
    "configs/cifar10/resnet18.yaml": "94.82 % (mmpretrain, steps in place of the cosine)",
    "configs/cifar10/speedrun94.yaml": "94.01 %, 2.59 s on an A100 (airbench94_muon)",
    "configs/cifar10/speedrun96.yaml": "96.03 %, 34.7 s on an A100 (airbench96)",
    "configs/imagenet/rn50_16.yaml": f"73.8 %, 14.9 min on 8 A100 ({_FFCV})",
    "configs/imagenet/rn50_40.yaml": f"77.2 %, 35.6 min on 8 A100 ({_FFCV})",
    "configs/imagenet/rn50_88.yaml": f"78.4 %, 77.2 min on 8 A100 ({_FFCV})",
    "configs/imagenet/rn50_90.yaml": "77.12 +- 0.11 %, about 3 h on 8 A100 (NVIDIA DeepLearningExamples)",
    "configs/imagenet/rn50_a3.yaml": "78.1 % (ResNet strikes back, A3)",
    "configs/imagenet/rn50_v2.yaml": "80.858 % (torchvision, IMAGENET1K_V2)",
}
_DATA = {  # by the folder in configs/, or by the recipe where those of a folder differ
    "digits": "handwritten digits",
    "cifar10": "CIFAR-10",
    "imagenet": "ImageNet",
    "finetune": "your own images",
    "finetune/cifar10_three.yaml": "three classes of CIFAR-10",
}


class Comparison(NamedTuple):
    """A block and a picture of a page: what they say of each arm of a study, in this order.

    alt: what the picture shows; without it there is none. against: what an arm is held against, by their names, where
    that is not the one before it.
    """

    study: str
    arms: dict[_Arm, str]
    alt: str
    against: Mapping[str, str] = MappingProxyType({})

    def rows_of(self, rows: _Rows) -> _Rows:
        """Those rows of a CSV that belong to it."""
        return [row for row in rows if row["study"] == self.study and (row["recipe"], row["overrides"]) in self.arms]


COMPARISONS = {
    "course": Comparison(
        "course",
        {
            ("configs/cifar10/simple_cnn.yaml", ""): "plain",
            ("configs/cifar10/simple_cnn_bn.yaml", ""): "+ BatchNorm",
            ("configs/cifar10/simple_cnn_bn_dropout.yaml", ""): "+ dropout 0.5",
            ("configs/cifar10/simple_cnn_bn_dropout_aug.yaml", ""): "+ crop and flip",
        },
        "Loss on train and val, accuracy on val, over ten epochs, for the four networks",
    ),
    "length": Comparison(
        "thirty",
        {_WITHOUT: "without crops and flips", _CONSTANT: "with crops and flips"},
        "The same over 30 epochs, without and with crops and flips",
    ),
    "cosine": Comparison(
        "thirty",
        {_CONSTANT: "constant learning rate", _COSINE: "cosine"},
        "Loss and accuracy over 30 epochs, constant and cosine",
    ),
    "augment": Comparison(
        "augment",
        {("configs/cifar10/simple_cnn_bn.yaml", overrides): name for name, overrides in AUGMENTATIONS.items()},
        "Loss and accuracy over 15 epochs, for seven ways of augmenting",
        against={name: "crop and alternating flip" for name in AUGMENTATIONS if name.startswith("+")},
    ),
    "levers": Comparison(
        "levers",
        {(f"configs/{recipe}.yaml", overrides): name for name, (recipe, overrides) in LEVER_PATH.items()},
        "",
    ),
    "single_levers": Comparison(
        "single_levers",
        {("configs/cifar10/airbench.yaml", overrides): name for name, overrides in LEVERS.items()},
        "",
        against=dict.fromkeys(LEVERS, "none"),
    ),
    "distill": Comparison(
        "distill",
        {("configs/cifar10/simple_cnn.yaml", overrides): name for name, overrides in DISTILLED.items()},
        "",
        against=dict.fromkeys(DISTILLED, "plain"),
    ),
}


class Group(NamedTuple):
    """The runs of one recipe with the same overrides, which differ in the seed alone.

    timed: the run of median time among those of this recipe, of any study, that ran one at a time on one machine, where
    there are such; what ran beside others has no time to tell.
    """

    study: str
    recipe: str
    overrides: str
    rows: list[dict[str, str]]
    timed: dict[str, str] | None

    @property
    def top1(self) -> str:
        """`69.13 +- 0.60 %`: mean and standard deviation on test; of one run the value alone."""
        values = [100 * float(row["test_top1_frac"]) for row in self.rows]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread} %"

    @property
    def runs(self) -> str:
        """`5 seeds`."""
        return f"{len(self.rows)} seed" + "s" * (len(self.rows) > 1)

    @property
    def minutes(self) -> str:
        """`1.3 min on 2 cores of ...`, `5 s on ...`; nothing where no run was alone on the machine."""
        if self.timed is None:
            return ""
        minutes = float(self.timed["minutes"])
        time = f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:.1f} min"
        return f"{time} on {self.timed['machine']}"

    @property
    def header(self) -> str:
        """The line that the recipe's header holds."""
        row = max(self.rows, key=lambda row: row["date"])
        parts = [f"# {self.top1} on test ({self.runs})", self.minutes, f"torch {row['torch']}", f"{row['date']}."]
        return ", ".join(part for part in parts if part)


def main() -> None:
    """Writes the texts and draws the figures; with --check only compares the texts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a text is not what they say")
    options = parser.parse_args()
    stale = [path for path, text in texts().items() if (path.read_text() if path.exists() else None) != text]
    if options.check:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            sources = "benchmarks/results/* and configs/operations.py"
            sys.exit(f"not what {sources} say: {names}; run `make tables` and commit the result.")
        return
    for path in stale:
        path.write_text(texts()[path])
        print(f"{path.relative_to(ROOT)} written")
    draw_figures(ROOT / "docs" / "figures")


def texts() -> dict[Path, str]:
    """Every text that holds measured figures, or the table of a recipe's operations, as it should be."""
    groups = load_groups()
    runs, epochs = (read_csv(RESULTS / f"{name}.csv") for name in ("recipes", "recipe_epochs"))
    blocks: dict[str, Callable[[], str]] = {
        "recipes": lambda: readme_table(groups),
        "course": lambda: course_block(groups, COMPARISONS["course"]),
        "speed": speed_block,
        "checkpoint": lambda: checkpoint_block(read_csv(RESULTS / "checkpoint.csv")),
        "augment": lambda: course_block(groups, COMPARISONS["augment"]),
        **{name: functools.partial(course_block, groups, COMPARISONS[name]) for name in _LEVER_STUDIES},
        "cosine": lambda: course_block(groups, COMPARISONS["cosine"]),
        "length": lambda: length_block(epochs),
        "transfer": lambda: transfer_table(runs),
        "transfer_rates": lambda: rates_table(runs),
        "transfer_picture": lambda: transfer_picture(runs),
        "transfer_features": lambda: features_table(runs),
        "frozen": lambda: frozen_table(read_csv(RESULTS / "frozen.csv")),
        "operations": step_table,
        "loader_picture": lambda: loader_picture(load_loaders()),
        **{f"loader_{job}": functools.partial(loader_table, rows) for job, rows in load_loaders().items()},
        "loader_threads": lambda: threads_table(read_csv(RESULTS / "loader_threads.csv")),
        "loader_cores": lambda: cores_table(read_csv(RESULTS / "loader_cores.csv")),
        "loader_memory": lambda: memory_table(read_csv(RESULTS / "loader_memory.csv")),
        "loader_study": study_block,
        "dali_verdicts": lambda: verdicts_block(load_checks(RESULTS)),
        "dali_loaders": lambda: loaders_block(load_checks(RESULTS)),
        **{f"dali_{name}": functools.partial(sweep_block, load_checks(RESULTS), name) for name in ("load", "threads")},
        "dali_training": lambda: training_block(load_checks(RESULTS)),
        "dali_pixels": lambda: pixels_block(load_checks(RESULTS)),
        "dali_predictions": lambda: predictions_block(load_checks(RESULTS)),
        **{f"picture_{name}": functools.partial(picture_block, epochs, name) for name in COMPARISONS},
    }
    written = {
        ROOT / "docs" / "recipes.md": recipes_page(groups),
        ROOT / "docs" / "operations.md": operations_page(read_csv(RESULTS / "operations.csv")),
    }
    pages = ("course", "augmentation", "dali", "levers", "loader", "loader_study", "transfer")
    for path in (ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in pages)):
        written[path] = _BLOCK.sub(lambda found: found[1] + blocks[found[2]]() + found[3], path.read_text())
    measured = {group.recipe: group for group in groups if not group.overrides}
    for recipe in all_recipes():
        header = measured[recipe].header if recipe in measured else _NOT_MEASURED
        written[ROOT / recipe] = with_figure((ROOT / recipe).read_text(), header=header)
    return written


def all_recipes() -> list[str]:
    """The paths of all recipes below the project's root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def with_figure(recipe: str, *, header: str) -> str:
    """The text of a recipe with the line `header` behind its command, in place of the figure that was there.

    A recipe that is not measured and says why, `# Not measured: ...`, stays as it is.
    """
    lines = recipe.splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if re.match("# +accelerate launch ", line))
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    if header == _NOT_MEASURED and any(line.startswith("# Not measured: ") for line in lines[:end]):
        return recipe
    kept = (line for line in lines[place + 1 : end] if " on test (" not in line)
    others = [line for line in kept if not line.startswith("# Not measured")]
    return "".join([*lines[: place + 1], header + "\n", *others, *lines[end:]])


def load_groups() -> list[Group]:
    """The rows of recipes.csv by study, recipe and overrides, in their order; recipes as they are come first."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    alone: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in read_csv(RESULTS / "recipes.csv"):
        if row["beside"] == ALONE and row["minutes"]:
            alone[row["recipe"], row["overrides"]].append(row)
        if row["study"] != "timing":
            groups[row["recipe"], row["overrides"], row["study"]].append(row)
    return [
        Group(study, recipe, overrides, rows, median_run(alone[recipe, overrides]))
        for (recipe, overrides, study), rows in sorted(groups.items())
    ]


def median_run(rows: _Rows) -> dict[str, str] | None:
    """The row of median time (of two in the middle, the slower) among those made as the last one was; None of none."""
    alike = [row for row in rows if (row["machine"], row["torch"]) == (rows[-1]["machine"], rows[-1]["torch"])]
    return sorted(alike, key=lambda row: float(row["minutes"]))[len(alike) // 2] if alike else None


def load_loaders() -> dict[str, _Rows]:
    """The rows of each job of docs/loader.md; none of a job that was not measured."""
    return {job: read_csv(RESULTS / f"loader_{job}.csv") for job in LOADER_JOBS}


def readme_table(groups: list[Group]) -> str:
    """The recipes as they are, one line each."""
    measured = {group.recipe: group for group in groups if not group.overrides}
    lines = ["| recipe | test top-1 | training on CPU |", "| --- | --- | --- |"]
    for recipe in all_recipes():
        group = measured.get(recipe)
        figures = f"{group.top1} ({group.runs}) | {group.minutes}" if group else "not measured yet | "
        lines.append(f"| `{recipe}` | {figures} |")
    return "\n".join(lines) + "\n"


def course_block(groups: list[Group], comparison: Comparison) -> str:
    """The arms of a comparison, a line each, and how each differs from what it is held against."""
    of_study = {(group.recipe, group.overrides): group for group in groups if group.study == comparison.study}
    ordered = {name: of_study[arm] for arm, name in comparison.arms.items() if arm in of_study}
    lines = ["| network | test top-1 | val top-1 | train top-1, last epoch |", "| --- | --- | --- | --- |"]
    for name, group in ordered.items():
        val, train = (_mean(group, column) for column in ("val_top1_frac", "last_train_top1_frac"))
        lines.append(f"| {name} | {group.top1} ({group.runs}) | {val} | {train} |")
    values = {name: [100 * float(row["test_top1_frac"]) for row in group.rows] for name, group in ordered.items()}
    pairs = [(name, comparison.against.get(name, before)) for before, name in itertools.pairwise(ordered)]
    lines += ["", *differences([pair for pair in pairs if pair[1] in ordered], values)]
    return "\n".join(lines) + "\n" if ordered else "Not measured yet.\n"


def speed_block() -> str:
    """How many images a second each loader makes with RandAugment and with colour jitter, alone and with decoding."""
    jobs = {
        "randaugment_decoded": "RandAugment alone",
        "color_jitter_decoded": "colour jitter alone",
        "randaugment": "JPEG, RandAugment",
        "color_jitter": "JPEG, colour jitter",
    }
    rows = {job: read_csv(RESULTS / f"loader_{job}.csv") for job in jobs}
    if not any(rows.values()):
        return "Not measured yet.\n"
    rows = {job: [row for row in of_job if row["images_per_s"]] for job, of_job in rows.items()}
    speeds = {job: {row["contender"]: f"{int(row['images_per_s']):,}" for row in rows[job]} for job in jobs}
    names = list(dict.fromkeys(row["contender"] for job in jobs for row in rows[job]))
    lines = [f"| images/s | {' | '.join(jobs.values())} |", f"| --- |{' ---: |' * len(jobs)}"]
    lines += [f"| `{name}` | {' | '.join(speeds[job].get(name, '') for job in jobs)} |" for name in names]
    measured = [row for job in jobs for row in rows[job]]
    repeats = " or ".join(sorted({row["repeats"] for row in measured}, key=int))
    about = f"Medians of {repeats} epochs, {measured[0]['cpu']}, {measured[0]['date']}."
    return "\n".join([*lines, "", about]) + "\n"


def checkpoint_block(rows: _Rows) -> str:
    """What a checkpoint costs, ours and Accelerate's."""
    if not rows:
        return "Not measured yet.\n"
    heads = "| network | saved by | MiB | training stands still, s | written after, s | back at the first step, s |"
    lines = [heads, "| --- | --- | ---: | ---: | ---: | ---: |"]
    names = {"ours": "**train.py**", "accelerate": "`accelerator.save_state`"}
    for row in rows:
        figures = [f"{float(row[column]):.2f}" for column in ("stall_s", "written_s", "resume_s")]
        lines.append(
            f"| {row['model']} | {names[row['contender']]} | {float(row['mib']):,.0f} | {' | '.join(figures)} |"
        )
    least = min(int(row["repeats"]) for row in rows)
    about = f"Medians of {least} or more checkpoints, {rows[0]['cpu']}, {rows[0]['date']}"
    return "\n".join([*lines, "", f"{about} (`python -m benchmarks.checkpoint`)."]) + "\n"


def study_block() -> str:
    """What the screen showed when `make study` timed ways of loading, from data and machine to the verdict."""
    shown = (RESULTS / "loader_study.txt").read_text()
    return "\n" + "".join(f"    {line}\n" for line in shown.splitlines() if not line.startswith("chart: ")) + "\n"


def picture_block(rows: _Rows, name: str) -> str:
    """The picture of a comparison, if it has rows."""
    comparison = COMPARISONS[name]
    return f"\n![{comparison.alt}](figures/{name}.png)\n\n" if comparison.rows_of(rows) else ""


def length_block(rows: _Rows) -> str:
    """Best top-1 on val within so many epochs, without and with crops and flips, and the difference."""
    comparison = COMPARISONS["length"]
    curves: dict[_Arm, dict[str, list[float]]] = {arm: defaultdict(list) for arm in comparison.arms}
    for row in sorted(comparison.rows_of(rows), key=lambda row: int(row["epoch"])):
        curves[row["recipe"], row["overrides"]][row["seed"]].append(100 * float(row["val_top1_frac"]))
    lines = ["| epochs | without | with crops and flips | difference, 95 % interval |", "| ---: | --- | --- | --- |"]
    for length in _LENGTHS:
        pair = [[max(curve[:length]) for curve in arm.values() if len(curve) >= length] for arm in curves.values()]
        if min(len(one) for one in pair) < 2:
            continue
        test = welch(pair[1], pair[0])
        gain = f"{test.value:+.2f} ({test.interval.low:+.2f} to {test.interval.high:+.2f})" if test else "no spread"
        lines.append(f"| {length} | {spread(pair[0])} | {spread(pair[1])} | {gain} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Not measured yet.\n"


def recipes_page(groups: list[Group]) -> str:
    """docs/recipes.md: all recipes, with what others had, and all groups, with where and when they were measured."""
    lines = [
        "# Recipes and what they gave",
        "",
        "A recipe is one file in `configs/`, and a command trains it (digits need no `--data.root`; those in",
        "`configs/finetune/` are `finetune.py`'s), such as",
        "",
        "    accelerate launch train.py --config configs/cifar10/resnet18.yaml --data.root DIR",
        "",
        "DIR holds the images as `train/<class>/` and `test/<class>/` or, of ImageNet, `val/<class>/`. The batch of a",
        "recipe is that of all processes together; where it does not fit, `--train.accumulation 8` takes it in eight",
        "parts. What others had is on val of ImageNet and on test elsewhere; where that is from, and in what a recipe",
        "differs, its header says.",
        "",
        "| recipe | data | epochs | top-1 that others had | top-1 measured here |",
        "| --- | --- | ---: | --- | --- |",
        *_recipe_lines(groups),
        "",
        "## Every run",
        "",
        "Made by `make tables` from `benchmarks/results/recipes.csv`, a row per run. Mean and standard deviation over",
        "seeds, on test, of the checkpoint that the recipe selects: the best on val, a tenth of train, unless it has",
        "`run.select` or `data.val_frac`. A figure is measured again by",
        "`make recipes STUDY=... DATA=DIR`, DIR holding CIFAR-10 as `train/<class>/` and `test/<class>/`; remove its",
        "rows first. Runs are compared by `python -m report.compare`. CIFAR-10's images were JPEGs of quality 75 with",
        "colour at half resolution: figures on the originals are others.",
        "",
        "| study | recipe | changed in it | epochs | test top-1 | val top-1 | train top-1, last epoch | "
        "training alone on a CPU | measured |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- | --- |",
    ]
    for group in groups:
        row = group.rows[-1]
        val, train = (_mean(group, key) for key in ("val_top1_frac", "last_train_top1_frac"))
        overrides = f"`{group.overrides}`" if group.overrides else ""
        lines.append(
            f"| {group.study} | `{group.recipe.removeprefix('configs/')}` | {overrides} | {row['epochs']} | "
            f"{group.top1} ({group.runs}) | {val} | {train} | {group.minutes} | {row['date']}, {row['machine']}, "
            f"torch {row['torch']}, {shorten(row['commit'])} |"
        )
    return "\n".join(lines) + "\n"


def _recipe_lines(groups: list[Group]) -> list[str]:
    measured = {group.recipe: group for group in groups if not group.overrides}
    lines = []
    for recipe in all_recipes():
        epochs = yaml.safe_load((ROOT / recipe).read_text())["train"]["epochs"]
        group = measured.get(recipe)
        ours = f"{group.top1} ({group.runs})" if group else "not measured yet"
        name = recipe.removeprefix("configs/")
        data = _DATA.get(name) or _DATA[name.partition("/")[0]]
        lines.append(f"| `{name}` | {data} | {epochs} | {PUBLISHED.get(recipe, '')} | {ours} |")
    return lines


def operations_page(rows: _Rows) -> str:
    """docs/operations.md: a line for each operation, a column for each way of doing it."""
    lines = [
        "# Operations on pixels, and how near each way of doing them is to torchvision",
        "",
        "Made by `make tables` from `benchmarks/results/operations.csv`, which `make operations DATA=DIR` measures on",
        "photographs. What an operation means is what torchvision v2 does to a uint8 tensor; a figure is the mean",
        "difference from that, of 255, over all images, and in parentheses that of the worst image; 0: the same bytes.",
        "Parameters are drawn uniformly; for affine, a sixth of the images each is only turned, moved, scaled, sheared",
        "along x, sheared along y, and all at once. A test holds every figure to its limit.",
        "",
    ]
    operations = {row["operation"]: row for row in rows}
    if not operations:
        return "\n".join([*lines, "Not measured yet."]) + "\n"
    lines += [
        f"| operation | parameters | limit | {' | '.join(_titles(rows))} |",
        f"| --- | --- | ---: |{' ---: |' * len(WAYS)}",
    ]
    measured = {(row["operation"], row["executor"]): row for row in rows}
    ways = {row["executor"]: row for row in rows}
    for name, row in operations.items():
        cells = [_cell(measured.get((name, way)), is_measured=way in ways) for way in WAYS]
        title = name.lower().replace("_", " ")
        limit = f"{float(row['limit_of_255']):g}"
        lines.append(f"| {title} | {row['parameters']} | {limit} | {' | '.join(cells)} |")
    lines += ["", "Measured:", ""]
    lines += [
        f"- {WAYS[way]}: {row['images']} images, by code that ran on {row['device']}, {row['date']}, "
        f"{shorten(row['commit'])}, {row['versions']}"
        for way, row in ways.items()
    ]
    return "\n".join(lines) + "\n"


def _titles(rows: _Rows) -> list[str]:
    """The ways, those of a GPU with the device on which their code ran."""
    ran_on = {row["executor"]: row["device"] for row in rows}
    on_gpu = {way: f" (code run on a {ran_on[way]})" for way in ("batched", "dali") if ran_on.get(way) == "CPU"}
    return [title + on_gpu.get(way, "") for way, title in WAYS.items()]


def _cell(row: dict[str, str] | None, *, is_measured: bool) -> str:
    """`0.013 (0.200)`: mean and worst image; of a way that lacks the operation, or was not measured, words."""
    if row is None:
        return "not offered" if is_measured else "not measured yet"
    mean, worst = float(row["mean_of_255"]), float(row["worst_image_of_255"])
    figures = ("< 0.001" if value < 0.001 else f"{value:.3f}" for value in (mean, worst))
    return "0" if worst == 0 else "{} ({})".format(*figures)


def shorten(commit: str) -> str:
    """`0123abcd`, and `0123abcd-dirty` of code that was changed since; of several, joined by `then`, each."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{32}\b", r"\1", commit)


def draw_figures(folder: Path) -> None:
    """Draws the pictures of the pages for which there are rows."""
    rows = read_csv(RESULTS / "recipe_epochs.csv")
    folder.mkdir(parents=True, exist_ok=True)
    for name, comparison in COMPARISONS.items():
        if comparison.alt and comparison.rows_of(rows):
            _draw(comparison.rows_of(rows), comparison.arms, folder / f"{name}.png")
    draw_loaders(load_loaders(), folder / "loader.png")
    draw_transfer(read_csv(RESULTS / "recipes.csv"), folder / "transfer.png")


def _draw(rows: _Rows, arms: dict[_Arm, str], path: Path) -> None:
    """Loss on train and on val and accuracy on val over the epochs; thin lines are runs, thick ones means."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = zip(figure.subplots(1, 3), ("train_loss", "val_loss", "val_top1_frac"), strict=True)
    for axes, key in panels:
        for (arm, name), color in zip(arms.items(), _COLORS, strict=False):
            own = [row for row in rows if (row["recipe"], row["overrides"]) == arm]
            _draw_group(own, axes, key, name=name, color=color)
        axes.set_title({"train_loss": "loss on train", "val_loss": "loss on val"}.get(key, "top-1 on val (%)"))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=80)


def _draw_group(rows: _Rows, axes: Axes, key: str, *, name: str, color: str) -> None:
    scale = 100 if key.endswith("frac") else 1
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        curves[row["seed"]][int(row["epoch"])] = scale * float(row[key])
    for curve in curves.values():
        axes.plot(list(curve), list(curve.values()), color=color, alpha=0.25, linewidth=0.8)
    if curves:
        epochs = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        means = [statistics.mean(curve[epoch] for curve in curves.values()) for epoch in epochs]
        axes.plot(epochs, means, color=color, label=f"{name} ({len(curves)} seeds)", linewidth=2)


def _mean(group: Group, key: str) -> str:
    values = [100 * float(row[key]) for row in group.rows if row[key]]
    return f"{statistics.mean(values):.2f} %" if values else ""


if __name__ == "__main__":
    main()
