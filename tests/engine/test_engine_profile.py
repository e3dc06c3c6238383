"""Steps that are traced: the same training, a trace that opens, and a page whose parts add up."""

import gzip
import json
import re
import time

import pytest
from small_fits import KilledError, assert_same_weights, make_module, rows_of

from engine.fit import fit
from engine.profile import plan_steps


def read_page(job):
    return (job.folder.path / "profile" / "summary.txt").read_text()


def ms_per_step(page, name):
    return float(re.search(rf"^{re.escape(name)}.*% +([\d.]+)", page, flags=re.MULTILINE)[1])


def test_tracing_changes_no_bit_and_leaves_a_trace_and_a_page(make_job):
    expected, module = make_module(dropout=0.5), make_module(dropout=0.5)
    plain, job = make_job("plain", accumulation=2), make_job("traced", accumulation=2, profile=True)
    fit(expected, plain)
    fit(module, job)
    assert_same_weights(module, expected)
    assert rows_of(job) == rows_of(plain)
    assert not (plain.folder.path / "profile").exists()
    trace = json.loads(gzip.decompress((job.folder.path / "profile" / "trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    wanted = {"data wait": 3, "forward": 6, "backward": 6, "optimizer": 3}  # an epoch of 4 steps, 1 of them to warm up
    assert {name: names.count(name) for name in wanted} == wanted
    said = job.progress._stream.getvalue()
    assert said.count("profile of 3 steps:") == 1
    assert str(job.folder.path / "profile" / "summary.txt") in said


def test_the_parts_of_a_step_add_up_and_operators_are_named(make_job):
    job = make_job(profile=True)
    inner = job.loss_fn

    def slow(module, batch):
        time.sleep(0.01)
        return inner(module, batch)

    fit(make_module(), job._replace(loss_fn=slow))
    page = read_page(job)
    step_ms = float(re.search(r"of ([\d.]+) ms and 6 images each", page)[1])
    parts = [ms_per_step(page, name) for name in ("data wait", "forward", "backward", "optimizer", "other")]
    assert sum(parts) == pytest.approx(step_ms, rel=0.01)
    assert ms_per_step(page, "forward") >= 10
    assert ms_per_step(page, "communication") == 0
    images_per_s = float(re.search(r"^([\d,.]+) images/s", page, flags=re.MULTILINE)[1].replace(",", ""))
    assert images_per_s == pytest.approx(6000 / step_ms, rel=0.01)
    operators = re.findall(r"^(aten::\w+) ", page, flags=re.MULTILINE)
    assert 1 <= len(operators) <= 10
    assert {"aten::addmm", "aten::mm"} & set(operators)
    assert len(page.splitlines()) < 60, "one page"
    assert "torch " in page


def test_only_the_first_epoch_is_traced_and_a_continued_run_traces_its_own(make_job):
    with pytest.raises(KilledError):
        fit(make_module(), make_job(profile=True, interrupt_after=2, checkpoint_every_steps=1))
    job = make_job(profile=True)
    assert not (job.folder.path / "profile").exists(), "it was stopped while it was traced"
    fit(make_module(), job)
    assert "1 steps traced" in read_page(job)  # the third step of four warms up


def test_short_epochs_warm_up_for_a_third_and_one_step_is_not_traced(make_job, make_loader, data):
    assert [plan_steps(num_steps) for num_steps in (100, 15, 14, 4, 2, 1, 0)] == [
        (5, 10),
        (5, 10),
        (4, 10),
        (1, 3),
        (1, 1),
        (0, 0),
        (0, 0),
    ]
    job = make_job(profile=True)
    phase = job.phases[0]._replace(loader=make_loader(*data, batch_size=24))
    fit(make_module(), job._replace(phases=[phase]))
    assert "profile: nothing is traced" in job.progress._stream.getvalue()


def test_other_ranks_trace_nothing(make_job, runtime, monkeypatch):
    job = make_job(profile=True)
    monkeypatch.setattr(runtime, "is_main", False)
    monkeypatch.setattr(runtime, "from_main", lambda find: find())
    fit(make_module(), job)
    assert not (job.folder.path / "profile").exists()
