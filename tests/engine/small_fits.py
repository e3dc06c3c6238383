"""Fits of a small network on 24 samples, 4 steps an epoch, for the tests of the loop, its sums and its checkpoints."""

import collections

import torch
from torch import nn

from engine.schedules import constant
from engine.state import Phase

NUM_CLASSES = 3
BAD = (2, 3, 13, 23)  # images that cannot be read: in steps 1, 1, 3 and 4 of each epoch of 4


def make_module(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, NUM_CLASSES)).double()


def make_blocks(dropout=0.2):
    """Two blocks, the norm of the second without parameters, with statistics of images; and a head."""
    torch.manual_seed(0)
    parts = {
        "backbone": nn.Sequential(
            nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Tanh()),
            nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh()),
        ),
        "head": nn.Linear(6, NUM_CLASSES),
    }
    module = nn.Sequential(collections.OrderedDict(parts)).double()
    for _ in range(20):
        module(2 + 3 * torch.randn(24, 5, dtype=torch.float64))
    return module


class KilledError(Exception):
    """Stands for a kill."""


def trained(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def rows_of(job):
    rows = job.folder.read_metrics()
    timed = ("train/images_per_s", "train/images_per_s_per_rank", "train/data_wait_frac", "train/epoch_s")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def assert_same_weights(module, other, *, tolerance=0.0):
    for (name, value), expected in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=tolerance), name


def two_phases(make_loader, data):
    def phase(name, trains, lr):
        return Phase(
            name=name,
            loader=make_loader(*data, batch_size=6),
            epochs=2,
            accumulation=1,
            build_optimizer=lambda module: torch.optim.AdamW(trained(module), lr=lr),
            lr_factor=constant(),
            trains=trains,
        )

    return [phase("head", lambda name: name.startswith("3."), 0.1), phase("all", lambda name: True, 0.01)]


def met_in(rows):
    return [(row["epoch"], row["step"], row["sample_id"]) for row in rows]
