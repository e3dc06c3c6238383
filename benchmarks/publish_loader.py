"""Measured loaders into what docs/loader.md shows: a table for each job, and one picture of all.

benchmarks/results/loader_<job>.csv -> loader_table -> Markdown
                                    -> draw_loaders -> bars, ours in another colour
"""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = list[dict[str, str]]

LOADER_JOBS = {  # in the order of the page: the jobs of benchmarks/loader.py
    "imagenet": "JPEG files as they came",
    "packed_400": "stored as JPEG, long side 400 px, quality 90",
    "packed_original": "stored as JPEG at its size, quality 90",
    "packed_raw": "stored as pixels, long side 400 px",
}
TITLES = {  # contenders that are not ours, as people know them
    "decode": "limit: decoding alone, simplejpeg",
    "decode_alloc": "limit: decoding alone, into new memory",
    "ffcv": "FFCV",
    "dali": "DALI on CPU",
    "albumentations": "albumentations (not antialiased)",
    "albumentations_area": "albumentations, averaging areas",
    "torchvision_tensors": "torchvision on tensors",
    "torchvision_pil": "torchvision on Pillow images",
    "timm": "timm",
    "spdl": "SPDL",
    "webdataset": "WebDataset",
    "litdata": "LitData",
    "mosaicml": "MosaicML streaming",
}
_OURS, _THEIRS, _LIMIT = "tab:blue", "silver", "gainsboro"
_REASON_LETTERS = 60


def loader_table(rows: Rows) -> str:
    """A line for each contender, fastest first, those that were not measured below it with the reason."""
    measured, missing = _measured(rows), _missing(rows)
    if not measured:
        return "\n".join(["Not measured yet.", *missing]) + "\n"
    lines = ["| loader | images/s | lowest | highest | of FFCV's | from Pillow, of 255 |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    ffcv = next((float(row["images_per_s"]) for row in measured if row["contender"] == "ffcv"), None)
    for row in measured:
        speeds = [f"{int(row[column]):,}" for column in ("images_per_s", "lowest", "highest")]
        of_ffcv = f"{float(row['images_per_s']) / ffcv:.2f}" if ffcv else ""
        lines.append(f"| {_title(row)} | {' | '.join(speeds)} | {of_ffcv} | {row['difference_of_255']} |")
    repeats = " or ".join(sorted({row["repeats"] for row in measured}, key=int))
    about = measured[0]
    lines += ["", f"Medians of {repeats} epochs, {about['cpu']}, {about['date']}, {about['versions']}."]
    return "\n".join([*lines, *missing]) + "\n"


def threads_table(rows: Rows) -> str:
    """How threads scale, and what of it is under Python's lock."""
    if not rows:
        return "Not measured yet.\n"
    heads = "| stored as | threads | images/s | CPU us per image | under the lock, of the time | us per image |"
    lines = [heads, "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        frac, cpu, speed = float(row["locked_frac"]), int(row["cpu_us_per_image"]), int(row["images_per_s"])
        cells = (row["stored"], row["num_threads"], f"{speed:,}", cpu, f"{frac:.1%}", row["locked_us_per_image"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", f"{rows[0]['cpu']}, {rows[0]['date']}, {rows[0]['versions']}."]) + "\n"


def cores_table(rows: Rows) -> str:
    """How many images a second threads of one process would make on as many cores, and what that says of 16 and 64."""
    if not rows:
        return "Not measured yet.\n"
    lines = ["| threads, each as if it had a core | images/s | if nothing were shared |", "| ---: | ---: | ---: |"]
    for row in rows:
        speeds = (f"{int(row[column]):,}" for column in ("images_per_s", "ideal_images_per_s"))
        lines.append(f"| {row['num_threads']} | {' | '.join(speeds)} |")
    best = max(rows, key=lambda row: int(row["images_per_s"]))
    most, alone = int(best["images_per_s"]), int(rows[0]["ideal_images_per_s"])
    per_process = max(1, round(most / alone))
    lines += [
        "",
        f"So one process makes about {most:,} images/s at most, as much as {per_process} cores decode; more threads in "
        f"it gain nothing. To keep 16 cores at work takes {-(-16 // per_process)} processes or more, and 64 cores "
        f"{-(-64 // per_process)}: ranks, or `--loader.workers processes`.",
        "",
        f"{rows[0]['cpu']}, {rows[0]['date']}, {rows[0]['versions']}.",
    ]
    return "\n".join(lines) + "\n"


def memory_table(rows: Rows) -> str:
    """What it costs when the data is larger than memory."""
    if not rows:
        return "Not measured yet.\n"
    lines = ["| memory | reads ahead | data, MiB | images/s |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        ahead = "yes" if row["reads_ahead"] == "True" else "no"
        lines.append(f"| {row['memory']} | {ahead} | {int(row['data_mib']):,} | {int(row['images_per_s']):,} |")
    return "\n".join([*lines, "", f"{rows[0]['cpu']}, {rows[0]['date']}, {rows[0]['versions']}."]) + "\n"


def loader_picture(rows_of_job: Mapping[str, Rows]) -> str:
    """The picture's place in the page, if there is something to draw."""
    if not any(_measured(rows) for rows in rows_of_job.values()):
        return "Not measured yet.\n"
    return "\n![Images per second of each loader at each job](figures/loader.png)\n\n"


def draw_loaders(rows_of_job: Mapping[str, Rows], path: Path) -> None:
    """Bars of images per second, a panel for each job that was measured; no file where none was."""
    jobs = {job: rows for job, rows in rows_of_job.items() if _measured(rows)}
    if not jobs:
        return
    heights = [len(rows) + 2 for rows in jobs.values()]
    figure = Figure(figsize=(10, 0.28 * sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(jobs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (job, rows) in zip(panels, jobs.items(), strict=True):
        _draw_bars(axes, rows, title=LOADER_JOBS[job])
    figure.savefig(path, dpi=100)


def _draw_bars(axes: Axes, rows: Rows, *, title: str) -> None:
    measured = _measured(rows)
    names = [TITLES.get(row["contender"], row["contender"]) for row in measured]
    speeds = [float(row["images_per_s"]) for row in measured]
    spread = [
        [speed - float(row["lowest"]) for speed, row in zip(speeds, measured, strict=True)],
        [float(row["highest"]) - speed for speed, row in zip(speeds, measured, strict=True)],
    ]
    axes.barh(names, speeds, xerr=spread, color=[_color(row) for row in measured], ecolor="dimgray")
    for place, row in enumerate(measured):
        difference = f", {row['difference_of_255']} of 255 from Pillow" if row["difference_of_255"] else ""
        words = f"{int(row['images_per_s']):,}{difference}"
        axes.annotate(words, (float(row["highest"]), place), (4, 0), textcoords="offset points", va="center", size=8)
    for place, row in enumerate(_without_figures(rows), start=len(measured)):
        words = f"not measured: {_one_line(row['reason'])[:_REASON_LETTERS]}"
        axes.barh([TITLES.get(row["contender"], row["contender"])], [0.0])
        note = axes.annotate(words, (0, place), (4, 0), textcoords="offset points", va="center", size=8)
        note.set_parse_math(False)  # a message may have dollars in it
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(float(row["highest"]) for row in measured))
    axes.set_title(f"{title}: images/s", loc="left")


def _measured(rows: Rows) -> Rows:
    """Those with figures, fastest first."""
    return sorted((row for row in rows if row["images_per_s"]), key=lambda row: -float(row["images_per_s"]))


def _without_figures(rows: Rows) -> Rows:
    return [row for row in rows if not row["images_per_s"]]


def _missing(rows: Rows) -> list[str]:
    lines = [f"- {_title(row)}: {_as_code(row['reason'])}" for row in _without_figures(rows)]
    return ["", "Not measured:", "", *lines] if lines else []


def _as_code(reason: str) -> str:
    """A message as code, in which a tick would end it."""
    return "`" + _one_line(reason).replace("`", "'") + "`"


def _one_line(reason: str) -> str:
    return " ".join(reason.split())


def _title(row: dict[str, str]) -> str:
    return TITLES.get(row["contender"], f"**`{row['contender']}`**")


def _color(row: dict[str, str]) -> str:
    if row["contender"].startswith("decode"):
        return _LIMIT
    return _THEIRS if row["contender"] in TITLES else _OURS
