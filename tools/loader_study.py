"""Times ways of loading a recipe's images on this machine: `python -m tools.loader_study --config RECIPE [--out PNG]`.

torch's DataLoader as courses teach it (workers, pinning, non-blocking copies, persistent workers) and the executors of
this project take turns, each making the batches of the recipe. The screen and a chart say how fast each was, and which
options to write. Every option of train.py may be added; nothing is trained.
"""

import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from configs.check import check_batch
from configs.load import DEFAULT_RECIPE, load_with_options, replace_section
from configs.schema import Config
from pipelines.build import (
    Data,
    Place,
    StudyLoader,
    build_data,
    build_study_loader,
    check_dataset,
    choose_backend,
    num_cores,
)
from tools.study_picture import draw_study
from tools.study_settings import Setting, count, own_setting, settings_for
from tools.study_timing import Opened, Turn, Watch, open_loader, time_turn, turn_estimate_s
from tools.study_verdict import Result, judge, table_of

_MOST_SECONDS, _MOST_REPEATS, _MOST_HELPERS = 60, 20, 256
_INTERRUPTED = 130  # the exit status of what Ctrl-C ended
_START_S = 0.5  # about what it takes to build a loader, or to stop a worker's process


@dataclass(frozen=True, kw_only=True)
class Options:
    """The study.

    Attributes:
        out: The chart, a PNG file.
        seconds: How long a turn of a setting measures; one that has then made only a few batches goes on a little.
        num_repeats: Turns of each setting.
        num_workers: Worker processes of the DataLoader that are tried.
        num_threads: Threads that are tried. Default: 1, 2, 4, 8 up to the CPU cores, the cores, and a step beyond.
    """

    out: str = "loader_study.png"
    seconds: float = 3.0
    num_repeats: int = 3
    num_workers: tuple[int, ...] = (0, 2, 4, 8)
    num_threads: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: A number out of range or given twice, or a chart that cannot be written.
        """
        if not 0.01 <= self.seconds <= _MOST_SECONDS:
            raise ValueError(f"seconds={self.seconds:g} must lie within 0.01 to {_MOST_SECONDS}; use 3.")
        if not 1 <= self.num_repeats <= _MOST_REPEATS:
            raise ValueError(f"num_repeats={self.num_repeats} must lie within 1 to {_MOST_REPEATS}; use 3.")
        if not self.num_workers:
            raise ValueError("num_workers=[] leaves no DataLoader to compare with; use [0,2,4,8].")
        for name, least in (("num_workers", 0), ("num_threads", 1)):
            _check_numbers(name, getattr(self, name), least=least)
        _check_writable(Path(self.out))


class Study:
    """Loaders of a run's training images, to be timed in turns.

    Args:
        config: The run's.
        data: Its data.
        place: Where batches go.
    """

    def __init__(self, config: Config, data: Data, *, place: Place) -> None:
        self._config = config
        self._data = data
        self._place = place
        self.images_per_step = config.train.global_batch_size
        self.num_cores = place.num_cores
        self._kept: dict[str, Opened] = {}
        self._num_opened = 0
        on_gpu = place.device.type == "cuda"
        self._watch = Watch(synchronize=torch.cuda.synchronize) if on_gpu else Watch()

    def time(self, setting: Setting, *, seconds: float) -> Turn:
        """One turn, of which nothing stays, so that each setting has the machine to itself as in a run.

        The images of resident do stay: they would have to be decoded again.

        Raises:
            ValueError: The setting cannot be had, or an image cannot be read.
        """
        with warnings.catch_warnings():  # more workers than cores are tried on purpose
            warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
            return self._time(setting, seconds=seconds)

    def _time(self, setting: Setting, *, seconds: float) -> Turn:
        opened = self._kept.get(setting.backend) or open_loader(partial(self._build, setting), watch=self._watch)
        if setting.backend == "resident":
            self._kept[setting.backend] = opened
        return time_turn(opened, seconds=seconds, num_ahead=setting.num_ahead, watch=self._watch)

    def _build(self, setting: Setting) -> StudyLoader:
        """The loader of a setting, each time with another seed: no setting finds its files just read by another."""
        self._num_opened += 1
        config = replace_section(self._config, "loader", **setting.changes)
        config = replace_section(config, "run", seed=self._config.run.seed + self._num_opened)
        return build_study_loader(config, self._data, place=self._place, dataloader=setting.dataloader)


def main() -> None:
    """Command line -> table, chart and verdict."""
    config, options = load_with_options(
        sys.argv[1:], options=Options, prog="python -m tools.loader_study", description=__doc__ or ""
    )
    try:
        study(config, options, recipe=_recipe_of(sys.argv[1:]))
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(TRACEBACK=1 shows where it came from)")


def study(config: Config, options: Options, *, recipe: str) -> None:
    """Times every setting, prints the table and the verdict, writes the chart.

    config -> settings that can be had -> a first turn each, not counted -> rounds of turns -> table, chart, verdict

    Args:
        config: The run's.
        options: What to try, and for how long.
        recipe: What the chart is called.

    Raises:
        OSError: Data is not there, or the chart cannot be written.
        ValueError: The run could not begin.
    """
    check_dataset(config.data)
    check_batch(config, world_size=1)
    data = build_data(config, show_progress=True)
    place = _place_of(config)
    torch.set_num_threads(config.run.num_threads or place.num_cores)
    about = _describe(config, data, place=place)
    print(about)
    if place.device.type == "cpu":
        print("no GPU: pinning and non-blocking copies change nothing here")
    if config.run.world_size not in (None, 1):
        print(f"run.world_size={config.run.world_size}: measured is one process, with all cores and the global batch")
    settings = _settings_to_be_had(config, data, options, place=place)
    own = own_setting(
        settings, backend=choose_backend(config, data).name, loader=config.loader, num_cores=place.num_cores
    )
    results, is_whole = _measure(Study(config, data, place=place), settings, options)
    if not results:
        sys.exit("nothing was measured")
    verdict = judge(results, loader=config.loader, own=own)
    if not is_whole:
        verdict.sentences.append("interrupted: not every setting was measured, or as often as the others")
    Path(options.out).write_bytes(draw_study(results, verdict, title=f"Loading for {recipe}", subtitle=about))
    print(table_of(results))
    print("\n".join(verdict.sentences))
    print(f"chart: {options.out}")
    if not is_whole:
        sys.exit(_INTERRUPTED)


def _settings_to_be_had(config: Config, data: Data, options: Options, *, place: Place) -> list[Setting]:
    """Those that make sense with this recipe and on this machine; of the others it is said why not."""
    settings = settings_for(
        config.loader,
        num_cores=place.num_cores,
        on_gpu=place.device.type == "cuda",
        num_workers=options.num_workers,
        num_threads=options.num_threads,
    )
    refusals = {backend: _refusal(config, data, place, backend) for backend in ("resident", "dali")}
    for backend, refusal in refusals.items():
        if refusal:
            print(f"passed over: {backend}: {refusal}")
    return [setting for setting in settings if not refusals.get(setting.backend)]


def _refusal(config: Config, data: Data, place: Place, backend: str) -> str:
    """Why a backend is not to be had with this recipe; nothing where it is."""
    try:
        choose_backend(replace_section(config, "loader", backend=backend), data, device=place.device)
    except ValueError as error:
        return str(error)
    automatic = choose_backend(replace_section(config, "loader", backend="auto"), data)
    is_wanted = backend != "resident" or "resident" in (automatic.name, config.loader.backend)
    return "" if is_wanted else automatic.reason


def _measure(study: Study, settings: list[Setting], options: Options) -> tuple[list[Result], bool]:
    """Results, and whether they are whole. Rounds of turns, so that what else the machine does hits all settings alike.

    Ctrl-C ends it with what there is by then.
    """
    turns: list[list[Turn]] = [[] for _ in settings]
    failed: set[str] = set()
    is_whole = False
    try:
        settings, estimate_s = _warm_up(study, settings, options)
        print(
            f"{count(len(settings), 'setting')}, {count(options.num_repeats, 'turn')} of {options.seconds:g} s each: "
            f"about {estimate_s:,.0f} s"
        )
        with tqdm(total=len(settings) * options.num_repeats, unit="turn", leave=False, disable=None) as bar:
            for _ in range(options.num_repeats):
                for setting, own_turns in zip(settings, turns, strict=False):
                    bar.set_description(setting.name)
                    if setting.name not in failed:
                        try:
                            own_turns.append(study.time(setting, seconds=options.seconds))
                        except RuntimeError as error:  # such as workers for which shared memory does not suffice
                            failed.add(setting.name)
                            tqdm.write(f"given up: {setting.name}: {error}")
                    bar.update()
        is_whole = True
    except KeyboardInterrupt:
        tqdm.write("interrupted: this is what was measured by then")
    results = [Result(setting, tuple(own)) for setting, own in zip(settings, turns, strict=False) if own]
    return results, is_whole


def _warm_up(study: Study, settings: list[Setting], options: Options) -> tuple[list[Setting], float]:
    """The settings whose backend works, and about how many seconds all their turns will take.

    Each backend makes a few batches: compiling and importing, which a program does once, is not any one setting's.

    Raises:
        ValueError: The DataLoader itself cannot make batches of this recipe.
    """
    first = {setting.backend: setting for setting in reversed(settings)}  # that with the fewest helpers
    works, batch_s = set(), 0.0
    for backend in tqdm(list(reversed(first)), desc="warming up", unit="backend", leave=False, disable=None):
        try:
            turn = study.time(first[backend], seconds=min(options.seconds, 0.2))
        except (ValueError, RuntimeError, ImportError) as error:
            if backend == "reference":
                raise
            tqdm.write(f"passed over: {backend}: {error}")
            continue
        works.add(backend)
        if backend == "reference":
            batch_s = study.images_per_step / turn.images_per_s
    tried = [setting for setting in settings if setting.backend in works]
    estimates = [
        _START_S
        + turn_estimate_s(
            seconds=options.seconds,
            num_ahead=setting.num_ahead,
            batch_s=batch_s / max(1, min(setting.num_helpers, study.num_cores)),
        )
        for setting in tried
    ]
    return tried, options.num_repeats * sum(estimates)


def _place_of(config: Config) -> Place:
    """Where and how a run of one process would make its batches here."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    return Place(torch.device("cpu" if on_cpu else "cuda"), dtype, rank=0, world_size=1, num_cores=num_cores())


def _describe(config: Config, data: Data, *, place: Place) -> str:
    """Two lines: data and batch; machine, how busy it was in the last minute, versions and date."""
    spec, num_images = data.spec, len(data.train.labels_N)
    device = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "no GPU"
    return (
        f"{num_images:,} training images, {spec.size_px}x{spec.size_px}, batches of {config.train.global_batch_size}\n"
        f"{count(place.num_cores, 'core')} of {_cpu_name()}, {device}, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, {date.today()}"
    )


def _cpu_name() -> str:
    """What the processor is called; Linux alone tells by name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _check_numbers(name: str, numbers: Sequence[int], *, least: int) -> None:
    for number in numbers:
        if not least <= number <= _MOST_HELPERS:
            raise ValueError(f"{name} has {number}, which must lie within {least} to {_MOST_HELPERS}; use [2,4,8].")
    if len(set(numbers)) < len(numbers):
        offer = ",".join(str(number) for number in sorted(set(numbers)))
        raise ValueError(f"{name}={list(numbers)} has a number twice; use [{offer}].")


def _check_writable(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"out={path}: the chart is a PNG file; give a name that ends in .png.")
    if path.is_dir():
        raise ValueError(f"out={path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"out={path}: there is no folder {path.parent}; make it, or name another one.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"out={path} cannot be written: no permission; name another folder.")


def _recipe_of(words: list[str]) -> str:
    """The path of the recipe as it was typed; of the default one its name and folder."""
    if words[:1] == ["--config"]:
        return words[1]
    if words and words[0].startswith("--config="):
        return words[0].removeprefix("--config=")
    return str(DEFAULT_RECIPE.relative_to(DEFAULT_RECIPE.parents[2]))


if __name__ == "__main__":
    main()
