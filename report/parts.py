"""The parts of a run's page: what a run folder holds -> pictures and rows of tables, ready for the template.

Each part is made alone: one that is missing is left out, one that is broken is named, and the others are shown.
"""

import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.record import RunFolder, Samples
from report.classes import ClassScore, draw_classes, scores_of_counts, scores_of_result
from report.confusion import draw_confusion, most_confused
from report.curves import PANELS, draw_panel
from report.hints import Hint, find_hints
from report.samples import Tile, build_tiles
from report.schedule import draw_schedule
from report.settings import Setting, flatten, settings_changed, show_value
from report.sheet import Picture, Table, data_url, embed_figure
from report.summary import Summary, epoch_rows, summarise

_MOST_TILES = 36
_MOST_PAIRS = 20
_MOST_BAD = 100
_COLUMNS = {  # key of metrics.jsonl: (heading, factor, format)
    "epoch": ("epoch", 1, "g"),
    "train/epoch_loss": ("train loss", 1, ".4f"),
    "train/epoch_top1_frac": ("train top-1 %", 100, ".2f"),
    "val/loss": ("val loss", 1, ".4f"),
    "val/top1_frac": ("val top-1 %", 100, ".2f"),
    "val/top5_frac": ("val top-5 %", 100, ".2f"),
    "val_raw/loss": ("val loss, not averaged", 1, ".4f"),
    "val_raw/top1_frac": ("val top-1 %, not averaged", 100, ".2f"),
    "lr": ("learning rate", 1, ".3g"),
    "train/images_per_s": ("images/s", 1, ",.0f"),
    "train/data_wait_frac": ("wait %", 100, ".0f"),
    "train/epoch_s": ("seconds", 1, ",.1f"),
}

_Value = TypeVar("_Value")


class Guard:
    """Lets parts fail alone; `problems` names those that did."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, build: Callable[[], _Value], *, name: str) -> _Value | None:
        """What `build` gives, or None if it raises."""
        try:
            return build()
        except Exception as error:  # a page with a hole is worth more than none, and a finished run more than both
            self.problems.append(f"{name} could not be shown: {error} ({type(error).__name__})")
            return None


class Material(NamedTuple):
    """All that a run folder holds, with nothing where a file is missing or broken."""

    folder: RunFolder
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any] | None
    schedule: dict[str, list[float]] | None
    samples: Samples | None
    confusions: dict[str, NDArray[np.int64]]
    bad: list[dict[str, Any]]

    def class_names(self, num_classes: int) -> list[str]:
        """The names, in the order of labels; numbers where they are not known."""
        names = self.environment.get("class_names") or []
        known = isinstance(names, list) and len(names) >= num_classes
        return [str(name) for name in names] if known else [str(label) for label in range(num_classes)]


class ClassesPart(NamedTuple):
    """The classes of one split; confusion and pairs are None where no counts were kept."""

    split: str
    confusion: Picture | None
    pairs: Table | None
    bars: Picture
    scores: Table


def read_material(folder: RunFolder, *, guard: Guard) -> Material:
    """Reads every file of the run folder that can be read."""
    has_config = (folder.path / "config.yaml").exists()
    return Material(
        folder=folder,
        config=(guard.attempt(folder.read_config, name="config.yaml") if has_config else None) or {},
        environment=guard.attempt(folder.read_environment, name="environment.json") or {},
        rows=guard.attempt(folder.read_metrics, name="metrics.jsonl") or [],
        result=guard.attempt(folder.read_result, name="result.json"),
        schedule=guard.attempt(folder.read_schedule, name="schedule.json"),
        samples=guard.attempt(folder.read_samples, name="samples.npz"),
        confusions=guard.attempt(folder.read_confusions, name="confusion.npz") or {},
        bad=guard.attempt(folder.read_bad_samples, name="bad_samples.jsonl") or [],
    )


def build_summary(material: Material) -> Summary:
    """The run in numbers."""
    return summarise(material.rows, config=material.config, result=material.result, environment=material.environment)


def build_hints(material: Material, *, summary: Summary) -> list[Hint]:
    """What the numbers suggest."""
    return find_hints(
        material.rows,
        summary=summary,
        class_names=material.class_names(0),
        confusions=material.confusions,
        num_bad=len({row.get("name") for row in material.bad}),
    )


def build_curves(material: Material, *, guard: Guard) -> list[Picture]:
    """The panels that there are numbers for; the learning rate where no schedule tells it."""
    shown = [panel for panel in PANELS if panel != "learning rate" or material.schedule is None]
    made = [guard.attempt(lambda panel=panel: _build_curve(material, panel), name=panel) for panel in shown]  # type: ignore[misc]
    return [picture for picture in made if picture is not None]


def _build_curve(material: Material, panel: str) -> Picture | None:
    figure = draw_panel(material.rows, panel=panel)
    return None if figure is None else embed_figure(figure, alt=f"{panel} over the epochs")


def build_schedule(material: Material) -> Picture | None:
    """The planned learning rate, if it was written down."""
    if material.schedule is None:
        return None
    return embed_figure(draw_schedule(material.schedule), alt="planned learning rate over the epochs")


def build_samples(material: Material) -> list[tuple[Tile, str]]:
    """Tiles and their pictures, as URLs that hold them."""
    samples = material.samples
    if samples is None or not len(samples.labels_N):
        return []
    names = material.class_names(1 + int(max(samples.labels_N.max(), samples.partner_labels_N.max())))
    tiles = build_tiles(samples, class_names=names, limit=_MOST_TILES)
    return [(tile, data_url(tile.content, media_type=tile.media_type)) for tile in tiles]


def build_classes(material: Material, *, guard: Guard) -> list[ClassesPart]:
    """The splits whose classes were scored, test first."""
    made = [
        guard.attempt(lambda split=split: _build_split(material, split), name=f"classes of {split}")  # type: ignore[misc]
        for split in ("test", "val")
    ]
    return [part for part in made if part is not None]


def _build_split(material: Material, split: str) -> ClassesPart | None:
    counts_KK = material.confusions.get(split)
    if counts_KK is None or not counts_KK.any():
        scores = scores_of_result(material.result or {}, split=split)
        return ClassesPart(split, None, None, _draw_bars(scores, split), _score_table(scores)) if scores else None
    names = material.class_names(len(counts_KK))
    scores = scores_of_counts(counts_KK, class_names=names)
    confusion = embed_figure(draw_confusion(counts_KK, class_names=names), alt=f"confusion matrix of {split}")
    pairs = _pair_table(counts_KK, names)
    return ClassesPart(split, confusion, pairs, _draw_bars(scores, split), _score_table(scores))


def _draw_bars(scores: list[ClassScore], split: str) -> Picture:
    return embed_figure(draw_classes(scores), alt=f"accuracy of each class on {split}")


def _pair_table(counts_KK: NDArray[np.int64], names: list[str]) -> Table | None:
    pairs = most_confused(counts_KK, class_names=names, limit=_MOST_PAIRS)
    columns = [("is", "name"), ("taken for", "name"), ("images", "number"), ("of the class", "number")]
    rows = [[pair.true, pair.predicted, f"{pair.num_samples:,}", f"{100 * pair.class_frac:.1f} %"] for pair in pairs]
    return Table(columns, rows) if rows else None


def _score_table(scores: list[ClassScore]) -> Table:
    columns = [("class", "name"), ("top-1 %", "number"), ("95 % interval", "number"), ("images", "number")]
    return Table(
        columns,
        [
            [
                score.name,
                f"{100 * score.top1_frac:.2f}",
                "" if score.interval is None else " to ".join(f"{100 * end:.1f}" for end in score.interval),
                "" if score.num_samples is None else f"{score.num_samples:,}",
            ]
            for score in scores
        ],
    )


def build_epochs(material: Material) -> Table | None:
    """A row per epoch, with the metrics that the run has."""
    epochs = epoch_rows(material.rows)
    shown = {key: column for key, column in _COLUMNS.items() if any(key in row for row in epochs)}
    rows = [
        [format(factor * row[key], style) if key in row else "" for key, (_, factor, style) in shown.items()]
        for row in epochs
    ]
    return Table([(heading, "number") for heading, _, _ in shown.values()], rows) if rows else None


def build_bad(material: Material) -> Table | None:
    """The first 100 lines of bad_samples.jsonl."""
    rows = [[str(row.get(key, "")) for key in ("split", "name", "reason")] for row in material.bad[:_MOST_BAD]]
    return Table([("split", "name"), ("file", "name"), ("reason", "name")], rows) if rows else None


def build_settings(material: Material) -> Table | None:
    """The options that differ from their defaults."""
    settings: list[Setting] = settings_changed(material.config)
    columns = [("option", "name"), ("value", "name"), ("default", "name")]
    return Table(columns, [list(setting) for setting in settings]) if settings else None


def build_environment(material: Material) -> Table | None:
    """environment.json as rows, without the command and the class names, which are shown elsewhere."""
    hidden = ("class_names", "command")
    flat = flatten({name: value for name, value in material.environment.items() if name not in hidden})
    rows = [[name, show_value(value)] for name, value in flat.items()]
    return Table([("what", "name"), ("value", "name")], rows) if rows else None


def build_commands(material: Material) -> list[tuple[str, str]]:
    """What to type to repeat the run, each with a word on it."""
    commands = []
    typed, path = material.environment.get("command"), material.folder.path
    if typed:
        commands.append((_how_typed(material.environment), shlex.join(["accelerate", "launch", *typed])))
    if material.config.get("dry_run"):
        train = ["--config", str(path / "config.yaml"), "--dry_run", "false"]
        commands.append(("To train it:", shlex.join(["accelerate", "launch", "train.py", *train])))
    elif material.config:
        again = ["--config", str(path / "config.yaml"), "--run.out", f"{path}-again"]
        words = "From the configuration that was recorded, with every option resolved:"
        commands.append((words, shlex.join(["accelerate", "launch", "train.py", *again])))
    return commands


def _how_typed(environment: Mapping[str, Any]) -> str:
    words = "As it was typed (options of the launcher itself are not recorded)"
    if environment.get("world_size", 1) > 1:
        words += f"; {environment['world_size']} processes"
    commit = environment.get("git_commit") or ""
    if commit:
        words += f"; commit {commit.removesuffix('-dirty')}"
    return words + (", with changes that were not committed:" if commit.endswith("-dirty") else ":")
