"""What several GPUs alone can do: BatchNorm over all of them, and parameters shared out among them."""

import pytest
import torch
from programs import epoch_rows, final_weights, read_rows, succeed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

TWO = ("torchrun", "--nproc-per-node", "2", "train.py")
RESNET = {"name": "resnet", "args": {"blocks": [1, 1], "widths": [8, 12]}}


def train(command, recipe, out, *options):
    succeed(*command, "--config", str(recipe), "--run.out", str(out), *options)
    return out


def assert_same_weights(folder, expected, *, tolerance):
    wanted = final_weights(expected)
    assert final_weights(folder).keys() == wanted.keys()
    for name, value in final_weights(folder).items():
        assert torch.allclose(value.double(), wanted[name].double(), rtol=0, atol=tolerance), name


@pytest.mark.parametrize("model", [RESNET, {"name": "timm/test_efficientnet", "stem": "small"}], ids=["own", "timm"])
def test_synchronised_batch_norm_on_two_gpus_computes_as_on_one(small_recipe, tmp_path, model):
    """In double precision; without it the two would differ in the first digits."""
    recipe = small_recipe(
        model={"args": {}, **model},
        input={"size_px": 32},
        train={"epochs": 1, "global_batch_size": 60, "precision": "fp64", "sync_bn": True},
        run={"trackers": []},
    )
    one = train(("train.py",), recipe, tmp_path / "one")
    two = train(TWO, recipe, tmp_path / "two")
    assert_same_weights(two, one, tolerance=1e-6)


@pytest.mark.parametrize("options", [(), ("--speed.compile", "default"), ("--train.precision", "bf16")])
def test_two_gpus_that_share_parameters_train_as_two_that_do_not(small_recipe, tmp_path, options):
    recipe = small_recipe(model=RESNET, train={"epochs": 2, "global_batch_size": 60}, run={"trackers": []})
    plain = train(TWO, recipe, tmp_path / "plain", *options)
    sharded = train(TWO, recipe, tmp_path / "sharded", *options, "--speed.shard", "true")
    assert [row["train/ids_hash"] for row in epoch_rows(sharded)] == [
        row["train/ids_hash"] for row in epoch_rows(plain)
    ]
    assert_same_weights(sharded, plain, tolerance=0.1 if options else 1e-3)
    assert all(row["train/gpu_memory_gib"] > 0 for row in read_rows(sharded))
