"""Writing in the background: snapshots that training no longer changes, errors that are not lost."""

import threading
import time

import pytest
import torch

from engine.writer import Writer, snapshot


def test_a_snapshot_stays_as_it_was_when_training_goes_on():
    weight = torch.ones(3, requires_grad=True)
    state = {"state": {0: {"momentum": weight.detach(), "step": 4}}, "groups": [(weight,), 0.1], "none": None}
    taken = snapshot(state)
    with torch.no_grad():
        weight.mul_(5)
    state["state"][0]["step"] = 5
    assert taken["state"][0]["momentum"].tolist() == [1, 1, 1]
    assert taken["groups"][0][0].tolist() == [1, 1, 1]
    assert not taken["groups"][0][0].requires_grad
    assert (taken["state"][0]["step"], taken["groups"][1], taken["none"]) == (4, 0.1, None)


def test_tensors_that_share_memory_no_longer_do():
    tied = torch.ones(2)
    taken = snapshot({"a": tied, "b": tied})
    assert taken["a"].data_ptr() != taken["b"].data_ptr()


def test_training_goes_on_while_a_thread_writes():
    writer, may_end, written = Writer(), threading.Event(), []

    def write():
        may_end.wait(10)
        written.append(threading.current_thread().name)

    writer.submit(write)
    assert written == []
    writer.check()  # waits for nothing
    may_end.set()
    writer.wait()
    assert len(written) == 1
    assert written[0].startswith("writer")
    writer.close()


def test_one_piece_is_written_at_a_time_and_in_turn():
    writer, order = Writer(), []
    for number in range(20):
        writer.submit(lambda number=number: order.append(number))
    writer.close()
    assert order == list(range(20))


def test_what_could_not_be_written_is_told_by_the_next_call():
    def fail():
        raise OSError("disk full")

    for ask in (lambda writer: writer.wait(), lambda writer: writer.submit(lambda: None)):
        writer = Writer()
        writer.submit(fail)
        with pytest.raises(OSError, match="disk full"):
            ask(writer)
        writer.wait()  # told once
        writer.close()
    writer = Writer()
    writer.submit(fail)
    writer.close()
    with pytest.raises(OSError, match="disk full"):
        writer.check()


def test_who_waits_for_a_slow_disk_gives_signs(monkeypatch):
    monkeypatch.setattr("engine.writer._SECONDS_BETWEEN_SIGNS", 0.01)
    signs, may_end = [], threading.Event()

    def sign():
        signs.append(1)
        may_end.set()

    writer = Writer(sign)
    writer.submit(lambda: may_end.wait(10))
    writer.wait()
    assert signs
    writer.close()


def test_the_longest_piece_is_known_while_it_is_written_and_afterwards():
    writer, may_end = Writer(), threading.Event()
    assert writer.longest_s == 0
    writer.submit(lambda: may_end.wait(10))
    time.sleep(0.2)
    assert writer.longest_s >= 0.2
    may_end.set()
    writer.wait()
    writer.submit(lambda: None)
    writer.wait()
    assert 0.2 <= writer.longest_s < 5
    writer.close()
