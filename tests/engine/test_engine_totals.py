"""The sums of an epoch: metrics, the hash of what was seen, a loss that is not finite, images that cannot be read."""

import pytest
import torch
from small_fits import BAD, make_module, met_in, rows_of

from engine.checkpoint import newest_checkpoint, read_manifest
from engine.fit import fit
from engine.totals import NonFiniteLossError


def test_accumulation_reports_the_same_metrics(make_job):
    jobs = [make_job("whole"), make_job("parts", accumulation=3)]
    for job in jobs:
        fit(make_module(), job)
    for row, expected in zip(rows_of(jobs[1]), rows_of(jobs[0]), strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            assert value == pytest.approx(expected[key], abs=1e-6), key


def test_metrics_are_means_over_the_samples_since_the_last_row(make_job, data):
    job = make_job(epochs=1, log_every_steps=3)
    module = make_module()
    losses = []
    inner = job.loss_fn

    def recording(module, batch):
        output = inner(module, batch)
        losses.append((output.loss.item(), int(output.sums["top1_frac"])))
        return output

    fit(module, job._replace(loss_fn=recording))
    log_row, epoch_row = rows_of(job)
    assert log_row["step"] == 3
    assert log_row["epoch"] == 0.75
    assert log_row["train/loss"] == pytest.approx(sum(loss for loss, _ in losses[:3]) / 3)
    assert log_row["train/top1_frac"] == pytest.approx(sum(right for _, right in losses[:3]) / 18)
    assert epoch_row["train/epoch_loss"] == pytest.approx(sum(loss for loss, _ in losses) / 4)
    assert epoch_row["train/epoch_top1_frac"] == pytest.approx(sum(right for _, right in losses) / 24)


def test_the_ids_hash_tells_other_samples_and_another_order_of_steps(make_job, make_loader, data):
    inputs, labels = data

    def hash_of(name, order):
        loader = make_loader(inputs, labels, batch_size=6)
        shares = [torch.tensor(part) for part in order]
        template = list(loader)

        class Reordered(type(loader)):
            def __iter__(self):
                for batch, ids in zip(template, shares, strict=True):
                    yield batch._replace(ids_N=ids)

        job = make_job(name, epochs=1)
        phase = job.phases[0]._replace(loader=Reordered(inputs, labels, batch_size=6))
        fit(make_module(), job._replace(phases=[phase]))
        return rows_of(job)[-1]["train/ids_hash"]

    straight = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17], [18, 19, 20, 21, 22, 23]]
    within = [[5, 4, 3, 2, 1, 0], *straight[1:]]
    swapped = [[6, 1, 2, 3, 4, 5], [0, 7, 8, 9, 10, 11], *straight[2:]]
    other = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17], [18, 19, 20, 21, 22, 22]]
    expected = hash_of("straight", straight)
    assert hash_of("within", within) == expected
    assert hash_of("swapped", swapped) != expected
    assert hash_of("other", other) != expected


@pytest.mark.parametrize("bad_step", [1, 5, 12])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(make_job, bad_step):
    job = make_job(log_every_steps=4)
    inner, steps = job.loss_fn, []

    def poisoned(module, batch):
        steps.append(1)
        output = inner(module, batch)
        return output._replace(loss=output.loss * float("inf")) if len(steps) == bad_step else output

    with pytest.raises(NonFiniteLossError, match=rf"not finite at step {bad_step} "):
        fit(make_module(), job._replace(loss_fn=poisoned))
    checkpoint, _ = newest_checkpoint(job.folder.checkpoints)
    good_epochs = (bad_step - 1) // 4
    assert (checkpoint is None) == (good_epochs == 0)
    if checkpoint is not None:
        assert read_manifest(checkpoint)["step"] == 4 * good_epochs


def test_every_bad_image_of_every_epoch_is_written_with_the_steps_done_and_counted(make_job):
    job = make_job(bad=BAD)
    fit(make_module(), job)
    rows = job.folder.read_bad_samples()
    assert met_in(rows) == [(epoch, (0, 0, 2, 3)[number], BAD[number]) for epoch in range(3) for number in range(4)]
    # written at log steps (every second), which the last step of an epoch is not, and at the end of epochs
    assert [row["after_step"] for row in rows] == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12]
    epochs = [row for row in rows_of(job) if "train/epoch_loss" in row]
    assert [row["train/num_bad"] for row in epochs] == [4, 4, 4]


def test_a_run_without_bad_images_says_nothing_of_them(make_job):
    job = make_job()
    fit(make_module(), job)
    assert not (job.folder.path / "bad_samples.jsonl").exists()
    assert not any("train/num_bad" in row for row in rows_of(job))


@pytest.mark.parametrize(("max_num_bad", "after_step", "num_written"), [(0, 2, 2), (1, 2, 2), (2, 4, 4), (3, 4, 4)])
def test_too_many_bad_images_in_an_epoch_stop_the_run_at_the_next_look_and_are_all_written(
    make_job, max_num_bad, after_step, num_written
):
    job = make_job(bad=BAD, max_num_bad=max_num_bad)
    with pytest.raises(ValueError, match=rf"{num_written} of 24 images of this epoch .* allows {max_num_bad}\."):
        fit(make_module(), job)
    rows = job.folder.read_bad_samples()
    assert met_in(rows) == [(0, (0, 0, 2, 3)[number], BAD[number]) for number in range(num_written)]
    assert {row["after_step"] for row in rows} <= {2, after_step}
    assert newest_checkpoint(job.folder.checkpoints)[0] is None, "no epoch was finished with so much amiss"


def test_the_limit_counts_each_epoch_for_itself(make_job):
    job = make_job(bad=BAD, max_num_bad=4)
    fit(make_module(), job)
    assert len(job.folder.read_bad_samples()) == 12
