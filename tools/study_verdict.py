"""What the loader study found, in words: a table, and which options to write.

{Setting: Turns} -> Result (median, lowest, highest) -> table_of, judge -> lines for the screen
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from configs.schema import LoaderConfig
from tools.study_settings import Setting
from tools.study_timing import Turn

_CHANCE = 1 / 8  # of so many rounds won by one of two equals: three of three, six of seven, eight of ten
_MARGIN = 0.03  # medians nearer than this are not told apart, however little the turns of each differ
_NOISY = 1.3  # highest / lowest turn: beyond, the machine is not quiet enough to tell much
_SIMPLER_FIRST = ("resident", "threads", "reference", "dali", "processes")


class Result(NamedTuple):
    """The turns of a setting, at least one."""

    setting: Setting
    turns: tuple[Turn, ...]

    @property
    def images_per_s(self) -> float:
        """The median."""
        return statistics.median(turn.images_per_s for turn in self.turns)

    @property
    def lowest(self) -> float:
        """The slowest turn's images/s."""
        return min(turn.images_per_s for turn in self.turns)

    @property
    def highest(self) -> float:
        """The fastest turn's images/s."""
        return max(turn.images_per_s for turn in self.turns)


class Verdict(NamedTuple):
    """chosen: what to use. sentences: why, the options to write first."""

    chosen: Result
    sentences: list[str]


def table_of(results: Sequence[Result]) -> str:
    """A line for each setting, columns of fixed width."""
    width = max(len(result.setting.name) for result in results)
    lines = [
        f"{'setting':{width}}   images/s     (lowest to highest)  epoch s  first batch s  epoch start s  workers MiB",
        *(f"{result.setting.name:{width}} {_columns(result)}" for result in results),
    ]
    return "\n".join(lines)


def judge(results: Sequence[Result], *, loader: LoaderConfig, own: Setting | None) -> Verdict:
    """What to write: the fastest, or the simplest of those that the measurement does not tell from it.

    Simplest is what the recipe has already, then what needs the fewest threads or processes.

    Args:
        results: What was measured.
        loader: The recipe's.
        own: What the recipe has already.
    """
    open_to_runs = [result for result in results if result.setting.dataloader is None]
    fastest = max(open_to_runs, key=lambda result: result.images_per_s)
    tied = [result for result in open_to_runs if is_as_fast(result, fastest)]
    chosen = min(tied, key=lambda result: _complexity(result.setting, own=own))
    sentences = [f"use {chosen.setting.options(loader)}: {_against_dataloader(chosen, results)}"]
    if chosen.setting == own:
        sentences.append("the recipe does that already: nothing to write")
    if chosen is not fastest:
        num_won, num_rounds = rounds_won(fastest, chosen)
        sentences.append(
            f"{_brief(fastest.setting)} made {fastest.images_per_s:,.0f} images/s and was faster in {num_won} of "
            f"{num_rounds} rounds: not told apart, so the simpler one is taken"
        )
    noisy = [result for result in (chosen, fastest) if result.highest > _NOISY * result.lowest]
    if noisy:
        sentences.append(
            f"the turns of {_brief(noisy[0].setting)} went from {_range(noisy[0])}: something else uses this machine; "
            "measure again when it is quiet, or with more --num_repeats"
        )
    return Verdict(chosen, sentences)


def is_as_fast(result: Result, fastest: Result) -> bool:
    """Whether the turns do not tell the two apart: their medians hardly differ, or both win rounds (a sign test).

    Round is held against round because what else the machine does hits both of its turns; and unlike overlapping
    ranges, this tells more with more turns.
    """
    num_won, num_rounds = rounds_won(fastest, result)
    return result.images_per_s >= (1 - _MARGIN) * fastest.images_per_s or num_won < _wins_needed(num_rounds)


def rounds_won(one: Result, other: Result) -> tuple[int, int]:
    """In how many rounds `one` was faster, and of how many that both had."""
    pairs = list(zip(one.turns, other.turns, strict=False))
    return sum(own.images_per_s > its.images_per_s for own, its in pairs), len(pairs)


def _wins_needed(num_rounds: int) -> int:
    """The fewest wins that one of two equals has no more often than `_CHANCE`; of one or two rounds, all."""
    outcomes, ways = 2**num_rounds, 0
    for num_won in range(num_rounds, -1, -1):
        ways += math.comb(num_rounds, num_won)
        if ways > _CHANCE * outcomes:
            return min(num_won + 1, num_rounds)
    return 0


def _against_dataloader(chosen: Result, results: Sequence[Result]) -> str:
    """`1,130 images/s, 1.9 times the DataLoader's best (reference, 2 workers)`."""
    rate = f"{chosen.images_per_s:,.0f} images/s"
    dataloaders = [result for result in results if result.setting.backend == "reference"]
    if not dataloaders:
        return rate
    best = max(dataloaders, key=lambda result: result.images_per_s)
    if chosen.setting.backend == "reference":
        return f"{rate}, the DataLoader itself"
    slow, fast = sorted((best, chosen), key=lambda result: result.images_per_s)
    if is_as_fast(slow, fast):
        return f"{rate}, not told apart from the DataLoader's best ({_brief(best.setting)})"
    return f"{rate}, {chosen.images_per_s / best.images_per_s:.1f} times the DataLoader's best ({_brief(best.setting)})"


def _complexity(setting: Setting, *, own: Setting | None) -> tuple[bool, int, int]:
    return (setting != own, setting.num_helpers, _SIMPLER_FIRST.index(setting.backend))


def _brief(setting: Setting) -> str:
    return setting.name.replace("DataLoader", "reference")


def _range(result: Result) -> str:
    return f"{result.lowest:,.0f} to {result.highest:,.0f} images/s"


def _columns(result: Result) -> str:
    turns = result.turns
    spread = f"({result.lowest:,.0f} to {result.highest:,.0f})"
    first, start, epoch = (
        _seconds(statistics.median(getattr(turn, name) for turn in turns))
        for name in ("first_batch_s", "epoch_start_s", "epoch_s")
    )
    known = [turn.workers_mib for turn in turns if turn.workers_mib is not None]
    memory = f"{max(known):,.0f}" if known else "-"
    return f"{result.images_per_s:10,.0f} {spread:>23} {epoch:>8} {first:>14} {start:>14} {memory:>12}"


def _seconds(seconds: float) -> str:
    """Three digits or so: `0.0041`, `0.52`, `12.3`, `1,234`."""
    digits = 4 if seconds < 0.1 else 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:,.{digits}f}"
