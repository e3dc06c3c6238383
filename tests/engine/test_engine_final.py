"""The end of a run: what is scored, and under which names."""

import pytest
import torch
from small_fits import NUM_CLASSES, make_module
from torch import nn

from engine.averages import Ema
from engine.checkpoint import read_card, scored_checkpoint
from engine.evaluation import evaluate
from engine.final import save_final, score_checkpoint, score_run, ways_to_score
from engine.fit import fit


def test_each_suffix_leaves_one_thing_out():
    assert ways_to_score(tta="none", has_average=False) == [("", "judged", "none")]
    assert ways_to_score(tta="flip", has_average=True) == [
        ("", "judged", "flip"),
        ("_raw", "raw", "flip"),
        ("_single", "judged", "none"),
    ]


class Image(nn.Module):
    """The network of small_fits for its data seen as images of one row and five columns."""

    def __init__(self):
        super().__init__()
        self.inner = make_module()

    def forward(self, images):
        return self.inner(images.flatten(1))


@pytest.mark.parametrize("average", [None, Ema(0.9, warmup=False, every_steps=1)])
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_a_run_is_scored_as_it_is_judged_and_without_average_and_views(make_job, make_loader, data, average, tta):
    job = make_job(average=average, select="last", val=False)
    inner = job.loss_fn
    job = job._replace(loss_fn=lambda module, batch: inner(module, batch._replace(inputs=(rows(batch.inputs[0]),))))
    state = fit(Image(), job)
    loader = make_loader(rows(data[0]), data[1], batch_size=7, split="test")
    score_run(Image(), {"test": loader}, job=job, state=state, tta=tta)
    result, said = job.folder.read_result(), job.progress._stream.getvalue()
    expected = {"test": (state.judged, tta)}
    expected |= {"test_raw": (state.module, tta)} if average else {}
    expected |= {"test_single": (state.judged, "none")} if tta != "none" else {}
    assert {key.partition("/")[0] for key in result} == {"step", "epoch", *expected}
    losses = set()
    for name, (module, views) in expected.items():
        score = evaluate(
            module, loader, num_classes=NUM_CLASSES, runtime=job.runtime, bad_log=job.bad_log, step=0, tta=views
        )
        assert (result[f"{name}/top1_frac"], result[f"{name}/loss"]) == (score.top1_frac, score.loss)
        assert f"\n{name}: top-1 " in said
        losses.add(score.loss)
    assert len(losses) == len(expected)


def rows(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[:, None, None, :]


def test_the_only_checkpoint_of_a_finished_network_is_scored_as_every_other(make_job, make_loader, data):
    job = make_job(val=False)
    save_final(Image(), step=7, card=job.card | {"knn": {"k": 3}}, folder=job.folder, runtime=job.runtime)
    checkpoint = scored_checkpoint(job.folder.checkpoints)
    assert checkpoint.name == "step_00000007"
    assert read_card(checkpoint)["knn"] == {"k": 3}
    loader = make_loader(rows(data[0]), data[1], batch_size=7, split="test")
    other = Image()
    for parameter in other.parameters():
        parameter.data.zero_()
    score_checkpoint(
        other,
        {"test": loader},
        card=job.card,
        step=7,
        epoch=0,
        tta="none",
        folder=job.folder,
        runtime=job.runtime,
        bad_log=job.bad_log,
        progress=job.progress,
    )
    score = evaluate(Image(), loader, num_classes=NUM_CLASSES, runtime=job.runtime, bad_log=job.bad_log, step=0)
    result = job.folder.read_result()
    assert (result["test/top1_frac"], result["test/loss"]) == (score.top1_frac, score.loss)
    assert (result["step"], result["epoch"]) == (7, 0)


def test_a_finished_network_that_cannot_be_written_is_an_error(make_job):
    job = make_job(val=False)
    job.folder.checkpoints.touch()
    with pytest.raises(OSError, match="could not write checkpoint"):
        save_final(Image(), step=0, card=job.card, folder=job.folder, runtime=job.runtime)
