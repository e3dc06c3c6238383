"""The end of a run: what is scored, and under which names."""

import pytest
import torch
from small_fits import NUM_CLASSES, make_module
from torch import nn

from engine.averages import Ema
from engine.evaluation import evaluate
from engine.final import score_run, ways_to_score
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
