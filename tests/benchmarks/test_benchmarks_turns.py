"""Contenders in processes of their own, of a few lines each."""

import sys

import pytest

from benchmarks import turns
from benchmarks.turns import Racer

COUNTS = """
from benchmarks.turns import answer_and_wait
print("warming up")
turn = 0
while answer_and_wait({"turn": turn}):
    turn += 1
    print("at it")
"""
ENDS = """
from benchmarks.turns import answer_and_wait
answer_and_wait({"turn": 0})
"""


def _racer(program: str) -> Racer:
    return Racer([sys.executable, "-c", program], name="the_one")


def test_each_turn_has_its_answer_and_the_first_says_that_it_is_warm():
    with _racer(COUNTS) as one, _racer(COUNTS) as other:
        assert one.ready == other.ready == {"turn": 0}
        assert [one.take_turn(), one.take_turn(), other.take_turn()] == [{"turn": 1}, {"turn": 2}, {"turn": 1}]


def test_a_contender_that_ends_instead_of_answering_is_named():
    with (
        pytest.raises(RuntimeError, match="the_one has ended; what went wrong stands above"),
        _racer("raise SystemExit(3)"),
    ):
        pass
    with _racer(ENDS) as racer:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the_one has ended"):
                racer.take_turn()


def test_a_contender_that_fails_after_its_last_turn_is_warned_of_and_its_turns_are_kept():
    with (
        pytest.warns(UserWarning, match="the_one ended with exit status 3 after its last turn"),
        _racer(COUNTS + "raise SystemExit(3)") as racer,
    ):
        assert racer.take_turn() == {"turn": 1}


def test_a_contender_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(turns, "_END_S", 0.5)
    with (
        pytest.warns(UserWarning, match="the_one ended with exit status -9"),
        _racer(COUNTS + "import time; time.sleep(600)"),
    ):
        pass
