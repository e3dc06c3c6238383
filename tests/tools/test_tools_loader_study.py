"""`python -m tools.loader_study`: what it tries, how it times and judges, its chart, and what it says of mistakes."""

import dataclasses
import io
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from programs import run_program

from configs.schema import LoaderConfig
from pipelines.build import DataLoaderOptions
from tools import loader_study, study_picture
from tools.loader_study import Options, Study
from tools.study_picture import draw_study
from tools.study_settings import Setting, own_setting, settings_for, threads_for
from tools.study_timing import Turn, Watch, bytes_of_workers, open_loader, time_turn, turn_estimate_s
from tools.study_verdict import Result, Verdict, judge, rounds_won, table_of

RECIPE = LoaderConfig()
SHORT = ["--seconds", "0.02", "--num_repeats", "2", "--num_workers", "[0,2]", "--num_threads", "[1]"]


def run_tool(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["loader_study.py", *words])
    loader_study.main()


def names(loader: LoaderConfig = RECIPE, *, num_cores: int, on_gpu: bool, **given: Any) -> list[str]:
    chosen = {"num_workers": (0, 2, 4, 8), "num_threads": ()} | given
    return [one.name for one in settings_for(loader, num_cores=num_cores, on_gpu=on_gpu, **chosen)]


# What is tried


def test_two_cores_without_a_gpu() -> None:
    assert names(num_cores=2, on_gpu=False) == [
        "DataLoader, 0 workers",
        "DataLoader, 2 workers",
        "DataLoader, 4 workers",
        "DataLoader, 8 workers",
        "DataLoader, 2 workers, not persistent",
        "threads, 1 thread",
        "threads, 2 threads",
        "threads, 4 threads",
        "processes, 2 workers",
        "resident",
        "dali, 2 threads",
    ]


def test_a_gpu_adds_pinning_and_blocking_copies_and_nothing_else() -> None:
    without, with_gpu = (names(num_cores=16, on_gpu=on_gpu) for on_gpu in (False, True))
    assert [name for name in with_gpu if name not in without] == [
        "DataLoader, 8 workers, not pinned",
        "DataLoader, 8 workers, blocking",
        "DataLoader, 8 workers, not pinned, blocking",
    ]
    assert set(without) < set(with_gpu)


def test_each_option_of_the_dataloader_is_measured_off_with_the_others_on() -> None:
    settings = settings_for(RECIPE, num_cores=2, on_gpu=True, num_workers=(2,), num_threads=())
    options = {one.name.removeprefix("DataLoader, 2 workers"): one.dataloader for one in settings}
    assert options[""] is None
    assert options[", not persistent"] == DataLoaderOptions(persistent_workers=False)
    assert options[", not pinned"] == DataLoaderOptions(pin_memory=False)
    assert options[", blocking"] == DataLoaderOptions(non_blocking=False)
    assert options[", not pinned, blocking"] == DataLoaderOptions(pin_memory=False, non_blocking=False)


@pytest.mark.parametrize(
    ("num_cores", "threads"),
    [(1, [1, 2]), (2, [1, 2, 4]), (6, [1, 2, 4, 6, 8]), (8, [1, 2, 4, 8, 16]), (64, [1, 2, 4, 8, 64, 128])],
)
def test_threads_go_up_to_the_cores_and_a_step_beyond(num_cores: int, threads: list[int]) -> None:
    assert threads_for(num_cores) == threads


def test_numbers_that_were_asked_for_and_the_recipes_own_are_tried() -> None:
    recipe = LoaderConfig(num_threads=3, num_workers=5)
    found = names(recipe, num_cores=2, on_gpu=False, num_workers=(1,), num_threads=(7,))
    assert found == [
        "DataLoader, 1 worker",
        "DataLoader, 5 workers",
        "DataLoader, 1 worker, not persistent",
        "threads, 3 threads",
        "threads, 7 threads",
        "processes, 5 workers",
        "resident",
        "dali, 3 threads",
    ]


@pytest.mark.parametrize(
    ("backend", "loader", "name"),
    [
        ("threads", RECIPE, "threads, 2 threads"),
        ("threads", LoaderConfig(num_threads=4), "threads, 4 threads"),
        ("reference", RECIPE, "DataLoader, 2 workers"),
        ("reference", LoaderConfig(num_workers=0), "DataLoader, 0 workers"),
        ("processes", LoaderConfig(workers="processes"), "processes, 2 workers"),
        ("resident", RECIPE, "resident"),
        ("dali", RECIPE, "dali, 2 threads"),
    ],
)
def test_the_recipes_own_setting_is_found(backend: str, loader: LoaderConfig, name: str) -> None:
    settings = settings_for(loader, num_cores=2, on_gpu=True, num_workers=(0, 2, 4), num_threads=())
    own = own_setting(settings, backend=backend, loader=loader, num_cores=2)
    assert own is not None
    assert own.name == name
    assert own_setting(settings[:1], backend="dali", loader=loader, num_cores=2) is None


def test_options_undo_the_recipes_processes_where_threads_are_meant() -> None:
    settings = settings_for(RECIPE, num_cores=2, on_gpu=False, num_workers=(2,), num_threads=(2,))
    options = {one.name: (one.options(RECIPE), one.options(LoaderConfig(workers="processes"))) for one in settings}
    threads = "--loader.backend threads --loader.num_threads 2"
    assert options["threads, 2 threads"] == (
        threads,
        "--loader.backend threads --loader.workers threads --loader.num_threads 2",
    )
    assert options["processes, 2 workers"][0] == (
        "--loader.backend threads --loader.workers processes --loader.num_workers 2"
    )
    assert options["DataLoader, 2 workers"][1] == "--loader.backend reference --loader.num_workers 2"


# How it times


class Clock:
    """A clock that goes on by what is slept."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s


class Batches:
    """Batches of 10 images: the first takes `start_s`, those up to `burst` come with it, the others `step_s` each."""

    images_per_step = 10

    def __init__(self, clock: Clock, *, steps: int, start_s: float, step_s: float, burst: int = 1) -> None:
        self.steps_per_epoch = steps
        self.num_begun = self.num_closed = 0
        self._clock, self._start_s, self._step_s, self._burst = clock, start_s, step_s, burst

    def batches(self, *, num_steps: int | None = None) -> Iterator[int]:
        self.num_begun += 1
        try:
            for step in range(self.steps_per_epoch if num_steps is None else num_steps):
                self._clock.now_s += self._start_s if step == 0 else self._step_s if step >= self._burst else 0.0
                yield step
        finally:
            self.num_closed += 1


def take_turn(loader: Batches, clock: Clock, *, seconds: float, num_ahead: int = 1) -> Turn:
    watch = Watch(now=clock.now)
    return time_turn(open_loader(lambda: loader, watch=watch), seconds=seconds, num_ahead=num_ahead, watch=watch)


def test_short_epochs_are_measured_whole() -> None:
    clock = Clock()
    loader = Batches(clock, steps=5, start_s=0.3, step_s=0.1)
    turn = take_turn(loader, clock, seconds=2.0)
    assert turn.epoch_s == pytest.approx(0.7)
    assert turn.images_per_s == pytest.approx(50 / 0.7)
    assert (turn.first_batch_s, turn.epoch_start_s) == (pytest.approx(0.3), pytest.approx(0.3))
    assert loader.num_closed == loader.num_begun == 5, "the first batch, three epochs, and workers' memory"


@pytest.mark.parametrize(("num_ahead", "burst"), [(1, 1), (4, 4)])
def test_the_rest_of_a_long_epoch_is_reckoned_without_the_burst_at_its_start(num_ahead: int, burst: int) -> None:
    clock = Clock()
    loader = Batches(clock, steps=1000, start_s=0.8, step_s=0.1, burst=burst)
    turn = take_turn(loader, clock, seconds=3.0, num_ahead=num_ahead)
    assert turn.epoch_s == pytest.approx(0.8 + (1000 - burst) * 0.1)
    assert clock.now_s - 100 == pytest.approx(0.8 + 3.0, abs=0.11), "the first batch alone, then three seconds"
    assert loader.num_closed == loader.num_begun == 2


def test_a_slow_loader_gets_up_to_four_times_its_seconds_and_one_rate_at_least() -> None:
    clock = Clock()
    turn = take_turn(Batches(clock, steps=1000, start_s=0.5, step_s=0.5, burst=1), clock, seconds=1.0, num_ahead=8)
    assert clock.now_s - 100 == pytest.approx(0.5 + 4.5), "eight that came together, and one more"
    assert turn.epoch_s == pytest.approx(500)
    clock = Clock()
    assert take_turn(Batches(clock, steps=9, start_s=7.0, step_s=7.0), clock, seconds=1.0).epoch_s == pytest.approx(63)
    assert clock.now_s - 100 == pytest.approx(7 + 14), "a first batch, and one beside it"


def test_the_gpu_is_waited_for_before_the_clock_is_read() -> None:
    clock = Clock()

    def synchronize() -> None:
        clock.now_s += 0.25

    watch = Watch(now=clock.now, synchronize=synchronize)
    loader = Batches(clock, steps=3, start_s=0.5, step_s=0.5)
    opened = open_loader(lambda: loader, watch=watch)
    assert opened.first_batch_s == pytest.approx(0.75)
    turn = time_turn(opened, seconds=1.0, num_ahead=1, watch=watch)
    assert turn.epoch_start_s == pytest.approx(0.75)
    assert turn.epoch_s == pytest.approx(1.5 + 2 * 0.25), "once for the first batch, once for the end"


def test_a_turn_is_estimated_by_the_batches_it_needs_at_least() -> None:
    assert turn_estimate_s(seconds=3, num_ahead=1, batch_s=0.01) == 3
    assert turn_estimate_s(seconds=3, num_ahead=8, batch_s=0.5) == 8
    assert turn_estimate_s(seconds=3, num_ahead=8, batch_s=5) == 12


def test_without_workers_there_is_no_memory_of_theirs() -> None:
    assert bytes_of_workers() is None


# What it says


def result(name: str, *rates: float, dataloader: DataLoaderOptions | None = None) -> Result:
    settings = settings_for(RECIPE, num_cores=2, on_gpu=True, num_workers=(0, 2, 4), num_threads=())
    setting = next(one for one in settings if one.name == name)
    return Result(setting, tuple(Turn(0.5, 0.0041, 1000 / rate, rate, None) for rate in rates))


def judge_them(*results: Result, own: Setting | None = None) -> Verdict:
    return judge(results, loader=RECIPE, own=own)


def test_the_fastest_is_named_with_its_options_and_the_dataloaders_best() -> None:
    verdict = judge_them(
        result("DataLoader, 0 workers", 300, 310, 290),
        result("DataLoader, 2 workers", 590, 600, 610),
        result("threads, 1 thread", 800, 810, 790),
        result("threads, 2 threads", 1130, 1100, 1150),
    )
    assert verdict.sentences == [
        "use --loader.backend threads --loader.num_threads 2: 1,130 images/s, 1.9 times the DataLoader's best "
        "(reference, 2 workers)"
    ]


def test_of_those_that_turns_do_not_tell_apart_the_simpler_is_taken() -> None:
    verdict = judge_them(
        result("DataLoader, 2 workers", 600, 600, 600),
        result("threads, 1 thread", 1000, 1060, 980),
        result("threads, 4 threads", 1100, 1050, 1150),
    )
    assert verdict.chosen.setting.name == "threads, 1 thread"
    assert verdict.sentences[0].startswith("use --loader.backend threads --loader.num_threads 1: 1,000 images/s, 1.7 ")
    assert verdict.sentences[1] == (
        "threads, 4 threads made 1,100 images/s and was faster in 2 of 3 rounds: not told apart, so the simpler one is "
        "taken"
    )
    apart = judge_them(result("threads, 1 thread", 1000, 1049, 980), result("threads, 4 threads", 1100, 1050, 1150))
    assert apart.chosen.setting.name == "threads, 4 threads"


@pytest.mark.parametrize(
    ("num_rounds", "most_lost"), [(1, 0), (2, 0), (3, 0), (5, 0), (6, 1), (7, 1), (10, 2), (20, 6)]
)
def test_rounds_are_held_against_each_other_whatever_else_the_machine_does(num_rounds: int, most_lost: int) -> None:
    chance = sum(math.comb(num_rounds, lost) for lost in range(most_lost + 1)) / 2**num_rounds
    assert chance <= 1 / 8 or num_rounds < 3
    assert chance + math.comb(num_rounds, most_lost + 1) / 2**num_rounds > 1 / 8, "one more would be too many"
    speeds = [1000.0 / (1 + number % 3) for number in range(num_rounds)]  # a machine busy by turns
    for num_lost, name in ((most_lost, "threads, 4 threads"), (most_lost + 1, "threads, 1 thread")):
        factors = [0.9] * num_lost + [2.0] * (num_rounds - num_lost)
        fast = [speed * factor for speed, factor in zip(speeds, factors, strict=True)]
        verdict = judge_them(result("threads, 1 thread", *speeds), result("threads, 4 threads", *fast))
        assert verdict.chosen.setting.name == name


def test_after_an_interruption_only_rounds_that_both_had_are_compared() -> None:
    one, other = result("threads, 1 thread", 100, 500), result("threads, 2 threads", 200)
    assert rounds_won(one, other) == rounds_won(Result(one.setting, one.turns[:1]), other) == (0, 1)
    assert rounds_won(other, one) == (1, 1)


def test_medians_that_hardly_differ_are_not_told_apart_by_single_turns() -> None:
    near = judge_them(result("threads, 1 thread", 971), result("threads, 2 threads", 1000))
    assert near.chosen.setting.name == "threads, 1 thread"
    far = judge_them(result("threads, 1 thread", 969), result("threads, 2 threads", 1000))
    assert far.chosen.setting.name == "threads, 2 threads"


def test_what_the_recipe_has_already_is_the_simplest() -> None:
    own = result("threads, 2 threads", 1000, 1010, 990)
    results = [result("threads, 1 thread", 1000, 1010, 990), own, result("resident", 1005)]
    verdict = judge_them(*results, own=own.setting)
    assert verdict.chosen is own
    assert verdict.sentences[1] == "the recipe does that already: nothing to write"
    assert judge_them(*results).chosen.setting.name == "resident"


def test_what_no_run_can_have_is_not_advised_but_compared_with() -> None:
    verdict = judge_them(result("DataLoader, 2 workers, not pinned", 2000), result("threads, 2 threads", 1000))
    assert verdict.sentences == [
        "use --loader.backend threads --loader.num_threads 2: 1,000 images/s, 0.5 times the DataLoader's best "
        "(reference, 2 workers, not pinned)"
    ]


def test_a_dataloader_that_is_as_good_is_said() -> None:
    verdict = judge_them(result("DataLoader, 2 workers", 1000), result("threads, 1 thread", 990))
    assert verdict.sentences[0] == (
        "use --loader.backend threads --loader.num_threads 1: 990 images/s, not told apart from the DataLoader's best "
        "(reference, 2 workers)"
    )
    itself = judge_them(result("DataLoader, 2 workers", 1000), result("threads, 1 thread", 500))
    assert itself.sentences == [
        "use --loader.backend reference --loader.num_workers 2: 1,000 images/s, the DataLoader itself"
    ]


def test_a_noisy_machine_is_said() -> None:
    verdict = judge_them(result("threads, 2 threads", 1000, 1310, 1200))
    assert verdict.sentences[-1].startswith(
        "the turns of threads, 2 threads went from 1,000 to 1,310 images/s: something else uses this machine"
    )
    assert len(judge_them(result("threads, 2 threads", 1000, 1290, 1200)).sentences) == 1


def test_the_table_has_medians_and_ranges() -> None:
    turns = (Turn(0.5, 0.0041, 2.0, 500, None), Turn(0.7, 0.2, 1.0, 1000, 12), Turn(0.6, 0.1, 0.5, 2000, 34))
    setting = result("DataLoader, 2 workers", 1).setting
    head, line = table_of([Result(setting, turns)]).splitlines()
    assert line.split() == [
        "DataLoader,",
        "2",
        "workers",
        "1,000",
        "(500",
        "to",
        "2,000)",
        "1.00",
        "0.60",
        "0.10",
        "34",
    ]
    assert head.split()[:2] == ["setting", "images/s"]
    assert len(head) == len(line)


@pytest.mark.parametrize("fastest", [1130, 1_000_000])
def test_the_chart_is_a_png_with_a_bar_for_each_setting(fastest: float) -> None:
    results = [result("DataLoader, 2 workers", 590, 600, 610), result("threads, 2 threads", fastest, fastest / 1.1)]
    heights = []
    for shown in (results[1:], results, [*results, result("resident", 500)]):
        with Image.open(io.BytesIO(draw_study(shown, judge_them(*shown), title="a $b$", subtitle="x\ny"))) as image:
            assert image.format == "PNG"
            heights.append(image.height)
            colors = {color[:3] for _, color in image.convert("RGB").getcolors(maxcolors=2**24)}
        assert ((44, 160, 44) in colors, (31, 119, 180) in colors) == (True, len(shown) > 1), "green and blue bars"
    assert heights[0] < heights[2]


@pytest.mark.parametrize(("fastest", "scale"), [(5900, "linear"), (7000, "log")])
def test_bars_are_medians_with_their_ranges_and_the_axis_fits_them(
    monkeypatch: pytest.MonkeyPatch, fastest: float, scale: str
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(study_picture, "png_of", lambda figure: figures.append(figure) or b"")
    results = [
        result("DataLoader, 0 workers", 3),
        result("DataLoader, 2 workers", 590, 600, 630),
        result("threads, 2 threads", fastest),
    ]
    verdict = judge_them(*results)
    draw_study(results, verdict, title="a", subtitle="b")
    (axes,) = figures[0].axes
    assert axes.get_xscale() == scale
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == [one.setting.name for one in results]
    assert [bar.get_width() for bar in axes.patches] == [3, 600, fastest]
    assert [text.get_text() for text in axes.texts] == ["3", "600", f"{fastest:,}"]
    ((ranges,),) = [[lines.get_segments() for lines in axes.collections]]
    assert ranges[1][:, 0].tolist() == [590, 630]
    (legend,) = figures[0].legends
    assert legend.get_title().get_text().replace("\n", " ") == " ".join(verdict.sentences)


# The program


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "0"], r"seconds=0 must lie within 0\.01 to 60; use 3\."),
        (["--seconds", "61"], r"seconds=61 must lie within"),
        (["--num_repeats", "0"], r"num_repeats=0 must lie within 1 to 20; use 3\."),
        (["--num_workers", "[]"], r"num_workers=\[\] leaves no DataLoader to compare with; use \[0,2,4,8\]\."),
        (["--num_workers", "[-1,2]"], r"num_workers has -1, which must lie within 0 to 256"),
        (["--num_threads", "[0]"], r"num_threads has 0, which must lie within 1 to 256"),
        (["--num_workers", "[4,2,4]"], r"num_workers=\[4, 2, 4\] has a number twice; use \[2,4\]\."),
        (["--out", "chart.jpg"], r"out=chart\.jpg: the chart is a PNG file"),
        (["--out", "nowhere/chart.png"], r"out=nowhere/chart\.png: there is no folder nowhere"),
        (["--second", "1"], r"unknown option 'second'; nearest: seconds"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.setattr(loader_study, "build_data", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, *words)
    assert left.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.global_batch_size", "5000"], "^error: global_batch_size=5000 is more than the 1293 training images"),
        (["--data.dataset", "digit"], "^error: unknown data set data.dataset='digit'; nearest: digits"),
    ],
)
def test_what_would_stop_the_run_stops_the_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_tool(monkeypatch, *SHORT, *words, "--out", str(tmp_path / "a.png"))


@pytest.mark.slow
def test_as_people_type_it(tmp_path: Path) -> None:
    out = tmp_path / "study.png"
    words = ["--config", "configs/digits/simple_cnn.yaml", *SHORT, "--out", str(out), "--loader.resident_max_gib", "0"]
    done = run_program("python", "-m", "tools.loader_study", *words, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "no GPU: pinning and non-blocking copies change nothing here\n" in done.stdout
    assert "passed over: resident: 0.1 MiB decoded, at most 0 GiB held: loader.resident_max_gib\n" in done.stdout
    assert re.search(r"^\d settings, 2 turns of 0\.02 s each: about \d+ s$", done.stdout, flags=re.MULTILINE)
    for name in ("DataLoader, 0 workers", "DataLoader, 2 workers, not persistent", "threads, 1 thread"):
        line = re.search(rf"^{name}  +([\d,]+) +\(([\d,]+) to ([\d,]+)\) ", done.stdout, flags=re.MULTILINE)
        assert line, done.stdout
        median, lowest, highest = (int(digits.replace(",", "")) for digits in line.groups())
        assert 0 < lowest <= median <= highest
    assert re.search(r"^use --loader\.backend (threads|reference|dali)", done.stdout, flags=re.MULTILINE)
    assert done.stdout.endswith(f"chart: {out}\n")
    with Image.open(out) as image:
        assert image.format == "PNG"


def replace_turns(monkeypatch: pytest.MonkeyPatch, *, fail_at: int, error: BaseException) -> list[str]:
    """Turns that take no time; that of the given number fails. Gives the names of settings as they come."""
    seen: list[str] = []

    def turn(self: Study, setting: Setting, *, seconds: float) -> Turn:
        seen.append(setting.name)
        if len(seen) == fail_at:
            raise error
        return Turn(0.1, 0.1, 1.0, 1000.0, None)

    monkeypatch.setattr(Study, "time", turn)
    return seen


def test_settings_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = replace_turns(monkeypatch, fail_at=0, error=RuntimeError())
    run_tool(monkeypatch, *SHORT, "--num_repeats", "3", "--out", str(tmp_path / "a.png"))
    num_backends = len({name.split(",")[0] for name in seen})
    rounds = seen[num_backends:]
    assert len(rounds) % 3 == 0
    third = len(rounds) // 3
    assert len(set(rounds[:third])) == third
    assert rounds == 3 * rounds[:third]


def test_ctrl_c_prints_what_was_measured_by_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = replace_turns(monkeypatch, fail_at=8, error=KeyboardInterrupt())
    out = tmp_path / "a.png"
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, *SHORT, "--out", str(out))
    assert left.value.code == 130
    printed = capsys.readouterr().out
    measured = seen[seen.index("DataLoader, 0 workers", 1) : 7]  # what came before was the warming up
    assert measured
    table = printed[printed.index("\nsetting ") : printed.index("\nuse ")]
    assert [re.split("  +", line)[0] for line in table.splitlines()[2:]] == measured
    assert "interrupted: this is what was measured by then" in printed
    assert "\ninterrupted: not every setting was measured, or as often as the others\n" in printed
    assert out.exists()


def test_ctrl_c_before_the_first_turn_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_turns(monkeypatch, fail_at=1, error=KeyboardInterrupt())
    with pytest.raises(SystemExit, match=r"^nothing was measured$"):
        run_tool(monkeypatch, *SHORT, "--out", str(tmp_path / "a.png"))


def test_a_setting_that_fails_is_given_up_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = replace_turns(monkeypatch, fail_at=8, error=RuntimeError("DataLoader worker is killed by signal: Bus error"))
    run_tool(monkeypatch, *SHORT, "--out", str(tmp_path / "a.png"))
    printed = capsys.readouterr().out
    assert f"given up: {seen[7]}: DataLoader worker is killed by signal: Bus error\n" in printed
    assert seen[7] not in seen[8:]
    assert seen[6] in seen[8:]
    assert "\nuse --loader.backend " in printed


def test_a_backend_that_cannot_work_is_passed_over_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = replace_turns(monkeypatch, fail_at=2, error=RuntimeError("no such driver"))
    run_tool(monkeypatch, *SHORT, "--out", str(tmp_path / "a.png"))
    assert seen[0] == "DataLoader, 0 workers"
    assert seen[1] == "threads, 1 thread"
    assert "passed over: threads: no such driver\n" in capsys.readouterr().out
    assert seen.count("threads, 1 thread") == 1


def test_help_lists_its_own_options_and_those_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, "--help")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for name in (*(field.name for field in dataclasses.fields(Options)), "loader.backend", "data.root"):
        assert f"--{name} " in printed
