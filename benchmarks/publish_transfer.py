"""Measured transfer into what docs/transfer.md shows: a table with verdicts, a picture, the learning rates tried.

benchmarks/results/recipes.csv -> its rows of the studies transfer, transfer_source and transfer_rates
                               -> transfer_table, rates_table -> Markdown
                               -> draw_transfer -> accuracy over images per class, a line for each method
                               -> its rows of transfer_features -> features_table -> Markdown
benchmarks/results/frozen.csv  -> frozen_table -> Markdown
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from benchmarks.transfer_study import (
    AGAINST,
    ARMS,
    EPOCHS,
    KEPT,
    KEPT_IMAGES,
    METHODS,
    RATES,
    RATES_TRIED,
    SOURCE,
    TRIALS,
)
from benchmarks.verdicts import differences, spread

Rows = list[dict[str, str]]

_Arm = TypeVar("_Arm")
_APART = 0.02  # how far from each other, in parts of the axis' scale, the lines stand that would hide each other
_COLORS = ("tab:gray", "tab:blue", "tab:green", "tab:orange", "tab:red", "tab:purple")


def transfer_table(rows: Rows) -> str:
    """A line for each method, a column for each number of images, and how each differs from training from scratch."""
    top1s = _top1s(rows, study="transfer", arms=ARMS)
    if not top1s:
        return "Not measured yet.\n"
    heads = " | ".join(_at(num_images) for num_images in EPOCHS)
    lines = [f"| strategy | {heads} |", "| --- |" + " --- |" * len(EPOCHS)]
    for method in METHODS:
        cells = [top1s.get((method, num_images)) for num_images in EPOCHS]
        lines.append(f"| {method} | {' | '.join(spread(values) if values else 'not measured' for values in cells)} |")
    pairs = [
        (_named(method, num_images), _named(AGAINST, num_images))
        for num_images in EPOCHS
        for method in METHODS
        if method != AGAINST and {(method, num_images), (AGAINST, num_images)} <= set(top1s)
    ]
    lines += ["", *differences(pairs, {_named(*arm): values for arm, values in top1s.items()})]
    return "\n".join([*lines, *_about(rows)]) + "\n"


def rates_table(rows: Rows) -> str:
    """Top-1 on val at each learning rate that was tried, the best in bold, and the rate that the study takes."""
    val = _top1s(rows, study="transfer_rates", arms=TRIALS, column="val_top1_frac")
    if not val:
        return "Not measured yet.\n"
    best = best_rates(rows)
    lines = ["| strategy | learning rates tried, and top-1 on val | taken |", "| --- | --- | ---: |"]
    for method, rates in RATES_TRIED.items():
        figures = {lr: f"{lr:g}: {statistics.mean(val[method, lr]):.2f} %" for lr in rates if (method, lr) in val}
        words = [f"**{figure}**" if lr == best.get(method) else figure for lr, figure in figures.items()]
        lines.append(f"| {method} | {', '.join(words) or 'not measured'} | {RATES[method]:g} |")
    return "\n".join(lines) + "\n"


def best_rates(rows: Rows) -> dict[str, float]:
    """Of each method whose rates were all tried, the one with the highest top-1 on val; of equals the lowest."""
    val = _top1s(rows, study="transfer_rates", arms=TRIALS, column="val_top1_frac")
    return {
        method: max(sorted(rates), key=lambda lr: statistics.mean(val[method, lr]))
        for method, rates in RATES_TRIED.items()
        if all((method, lr) in val for lr in rates)
    }


def features_table(rows: Rows) -> str:
    """Seconds per epoch and top-1 of a head that is trained on images, and on their features; how often it is faster.

    An epoch's seconds are those of training alone: its images over the median speed of the run's epochs.
    """
    top1s = _top1s(rows, study="transfer_features", arms=KEPT)
    speeds = _figures(rows, study="transfer_features", arms=KEPT, column="images_per_s")
    if set(top1s) != set(KEPT.values()):
        return "Not measured yet.\n"
    lines = ["| trained on | seconds per epoch | top-1 on test |", "| --- | ---: | --- |"]
    for name, values in top1s.items():
        lines.append(f"| {name} | {KEPT_IMAGES / statistics.median(speeds[name]):.3f} | {spread(values)} |")
    ratio = statistics.median(speeds["features"]) / statistics.median(speeds["images"])
    last = [row for row in rows if row["study"] == "transfer_features"][-1]
    said = f"An epoch on features is **{ratio:.1f} times** as fast. Measured on {last['machine']}, {last['date']}."
    return "\n".join([*lines, "", *differences([("features", "images")], top1s), "", said]) + "\n"


def frozen_table(rows: Rows) -> str:
    """What a step costs by what is trained of the network."""
    if not rows:
        return "Not measured yet.\n"
    head = (
        "| trained | parameters | ms per step | kept for the backward pass, MiB per image | gradients, optimizer, MiB |"
    )
    lines = [head, "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        step = f"{float(row['step_ms']):.1f} ({float(row['lowest_ms']):.1f} to {float(row['highest_ms']):.1f})"
        kept, held = float(row["kept_mib_per_image"]), float(row["gradients_and_optimizer_mib"])
        lines.append(f"| {row['trained']} | {int(row['parameters']):,} | {step} | {kept:.3f} | {held:.2f} |")
    first = rows[0]
    about = f"{first['model']}, {first['batch_size']} images of {first['size_px']} px, AdamW, {first['device']}, "
    return "\n".join([*lines, "", f"{about}{first['cpu']}, {first['date']}."]) + "\n"


def transfer_picture(rows: Rows) -> str:
    """The picture's place in the page, if there is something to draw."""
    if not _top1s(rows, study="transfer", arms=ARMS):
        return ""
    return "\n![Accuracy over training images per class, for each strategy](figures/transfer.png)\n\n"


def draw_transfer(rows: Rows, path: Path) -> None:
    """Mean top-1 on test over images per class, a line for each method, bars of a standard deviation; or no file."""
    top1s = _top1s(rows, study="transfer", arms=ARMS)
    if not top1s:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, (method, color) in enumerate(zip(METHODS, _COLORS, strict=True)):
        of_method = {num_images: top1s[method, num_images] for num_images in EPOCHS if (method, num_images) in top1s}
        apart = 1 + _APART * (place - (len(METHODS) - 1) / 2)
        means = [statistics.mean(values) for values in of_method.values()]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in of_method.values()]
        places = [num_images * apart for num_images in of_method]
        axes.errorbar(places, means, yerr=spreads, color=color, label=method, marker="o", markersize=4, capsize=3)
    axes.set_xscale("log")
    axes.set_xticks(list(EPOCHS), [f"{num_images:,}" for num_images in EPOCHS])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training images per class")
    axes.set_title("top-1 on test (%): mean and standard deviation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=80)


def _top1s(
    rows: Rows, *, study: str, arms: Mapping[tuple[str, str], _Arm], column: str = "test_top1_frac"
) -> dict[_Arm, list[float]]:
    """Top-1 of all seeds of each arm that was measured, in percent."""
    figures = _figures(rows, study=study, arms=arms, column=column)
    return {arm: [100 * value for value in values] for arm, values in figures.items()}


def _figures(rows: Rows, *, study: str, arms: Mapping[tuple[str, str], _Arm], column: str) -> dict[_Arm, list[float]]:
    """A column of all seeds of each arm that was measured; rows of what is no longer an arm are passed over."""
    found: dict[_Arm, list[float]] = defaultdict(list)
    for row in rows:
        arm = arms.get((row["recipe"], row["overrides"]))
        if row["study"] == study and arm is not None:
            found[arm].append(float(row[column]))
    return dict(found)


def _at(num_images: int) -> str:
    return f"{num_images:,} per class"


def _named(method: str, num_images: int) -> str:
    return f"{method} at {_at(num_images)}"


def _about(rows: Rows) -> list[str]:
    """Where and when it was measured, and how good the network is that was started from."""
    last = [row for row in rows if row["study"] == "transfer"][-1]
    source = _top1s(rows, study="transfer_source", arms={(SOURCE.recipe, SOURCE.overrides): "source"})
    values = source.get("source")
    known = f" The network it starts from: {spread(values)} on its own seven classes." if values else ""
    return ["", f"Measured on {last['machine']}, torch {last['torch']}, {last['date']}.{known}"]
