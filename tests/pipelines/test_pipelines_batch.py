"""Batches cut into micro-batches."""

import pytest
import torch

from pipelines.batch import Batch, Mix, split_batch


def make_batch(count: int, *, mix: bool) -> Batch:
    ids = torch.arange(count)
    return Batch(
        inputs=(torch.randn(count, 3, 4, 4), torch.randn(count, 1, 2, 2)),
        labels_N=ids % 3,
        mix=Mix(partner_labels_N=ids % 2, weight_N=torch.rand(count)) if mix else None,
        ids_N=ids,
        valid_N=ids < count - 1,
    )


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize(("count", "num_parts"), [(12, 1), (12, 2), (12, 3), (12, 12)])
def test_the_parts_are_equal_in_size_and_together_are_the_batch(count: int, num_parts: int, mix: bool) -> None:
    batch = make_batch(count, mix=mix)
    parts = split_batch(batch, num_parts)
    assert [len(part.labels_N) for part in parts] == [count // num_parts] * num_parts
    for name in ("labels_N", "ids_N", "valid_N"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    for view in range(2):
        assert torch.equal(torch.cat([part.inputs[view] for part in parts]), batch.inputs[view])
    if batch.mix is None:
        assert all(part.mix is None for part in parts)
        return
    for place, whole in enumerate(batch.mix):
        assert torch.equal(torch.cat([part.mix[place] for part in parts if part.mix]), whole)


def test_parts_of_a_number_that_does_not_divide_differ_by_one_and_lose_nothing() -> None:
    batch = make_batch(10, mix=False)
    parts = split_batch(batch, 4)
    assert sorted(len(part.labels_N) for part in parts) == [2, 2, 3, 3]
    assert torch.equal(torch.cat([part.ids_N for part in parts]), batch.ids_N)
