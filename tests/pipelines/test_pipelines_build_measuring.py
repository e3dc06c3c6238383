"""Training images for statistics of the network, and loaders of one split in other batches."""

import numpy as np
import pytest
import torch

from configs.load import replace_section
from configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InputSpec,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from pipelines.build import Place, build_data, build_evaluation_loader, build_loaders, build_measuring_loader
from pipelines.order import EvaluationOrder

CPU = torch.device("cpu")


def place_of(rank=0, world_size=1):
    return Place(CPU, torch.float32, rank, world_size, 1)


@pytest.fixture
def config():
    return Config(
        data=DataConfig(dataset="digits"),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        augment=AugmentConfig(crop="pad", pad_px=1, flip="random"),
        train=TrainConfig(epochs=3, global_batch_size=60, batch_sizes=((0, 60), (1, 40))),
        loader=LoaderConfig(eval_batch_size_per_rank=16),
    )


@pytest.fixture
def data(config):
    return build_data(config, show_progress=False)


def batches(loader):
    return list(loader)


@pytest.mark.parametrize(("num_images", "num_taken"), [(7, 7), (16, 16), (50, 48), (10_000, 1280)])
def test_some_images_come_as_evaluation_shows_them_in_whole_batches(config, data, num_images, num_taken):
    loader = build_measuring_loader(config, data, num_images, place=place_of(), show_progress=False)
    found = batches(loader)
    kept = [batch.inputs[0][batch.valid_N] for batch in found]
    assert sum(map(len, kept)) == num_taken
    assert all(len(images) == 16 for images in kept) or num_images < 16
    of_train = build_evaluation_loader(config, data, "train", place=place_of(), show_progress=False)
    known = {
        image.numpy().tobytes(): int(label)
        for batch in of_train
        for image, label in zip(batch.inputs[0], batch.labels_N, strict=True)
    }
    for batch in found:
        for image, label, valid in zip(batch.inputs[0], batch.labels_N, batch.valid_N, strict=True):
            assert not valid or known[image.numpy().tobytes()] == label
    assert len({image.numpy().tobytes() for images in kept for image in images}) > 0.97 * num_taken, "none twice"


def test_batches_mix_the_classes_and_come_again_as_they_were(config, data):
    loader = build_measuring_loader(config, data, 320, place=place_of(), show_progress=False)
    first, again = batches(loader), batches(loader)
    assert min(len(set(batch.labels_N.tolist())) for batch in first) >= 5
    assert all(torch.equal(one.inputs[0], other.inputs[0]) for one, other in zip(first, again, strict=True))
    other = build_measuring_loader(
        replace_section(config, "run", seed=1), data, 320, place=place_of(), show_progress=False
    )
    assert not torch.equal(batches(other)[0].labels_N, first[0].labels_N)


def test_batches_are_the_same_at_any_number_of_processes(config, data):
    alone = batches(build_measuring_loader(config, data, 80, place=place_of(), show_progress=False))
    of_ranks = [
        batches(build_measuring_loader(config, data, 80, place=place_of(rank, 2), show_progress=False))
        for rank in (0, 1)
    ]
    dealt = [batch for pair in zip(*of_ranks, strict=True) for batch in pair if batch.valid_N.any()]
    assert len(alone) == len(dealt) == 5
    assert all(torch.equal(one.inputs[0], other.inputs[0]) for one, other in zip(alone, dealt, strict=True))


@pytest.mark.parametrize("backend", ["threads", "resident"])
@pytest.mark.parametrize("on_bad_sample", ["replace", "raise"])
def test_images_that_cannot_be_read_are_left_out_where_training_replaces_them(make_folder, backend, on_bad_sample):
    root = make_folder({"train": {"dark": 12, "light": 12}})
    broken = root / "train" / "dark" / "003.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    config = Config(
        data=DataConfig(dataset="folder", root=str(root), val_frac=0.0, on_bad_sample=on_bad_sample, max_bad_frac=0.2),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        input=InputSpec(size_px=16, mean=(0.5,) * 3, std=(0.5,) * 3),
        train=TrainConfig(epochs=1, global_batch_size=4),
        loader=LoaderConfig(eval_batch_size_per_rank=64, backend=backend, num_threads=1),
        run=RunConfig(select="last"),
    )
    data = build_data(config, show_progress=False)

    def count():
        loader = build_measuring_loader(config, data, 24, place=place_of(), show_progress=False)
        return [sum(int(batch.valid_N.sum()) for batch in loader) for _ in range(2)]

    if on_bad_sample == "raise":
        with pytest.raises(ValueError, match=r"003\.png"):
            count()
    else:
        assert count() == [23, 23]


def test_train_in_other_batches_is_the_loader_that_its_size_would_have(config, data):
    loaders = build_loaders(config, data, place=place_of(), show_progress=False)
    assert loaders.train.steps_per_epoch == 1293 // 60
    found = loaders.train_in_batches_of(40)
    alone = replace_section(config, "train", global_batch_size=40, batch_sizes=())
    expected = build_loaders(alone, data, place=place_of(), show_progress=False).train
    assert (found.steps_per_epoch, found.num_left_out, found.max_num_bad) == (
        expected.steps_per_epoch,
        expected.num_left_out,
        expected.max_num_bad,
    )
    assert found.state_dict() == expected.state_dict()
    for loader in (found, expected):
        loader.load_state_dict(loader.state_dict() | {"epoch": 2})
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert torch.equal(one.ids_N, other.ids_N)
    assert loaders.train.state_dict()["epoch"] == 0, "each has its own position"
    first = replace_section(config, "train", batch_sizes=((0, 30), (1, 60)))
    assert build_loaders(first, data, place=place_of(), show_progress=False).train.steps_per_epoch == 1293 // 30


def test_ids_in_an_order_of_their_own_are_dealt_in_it():
    ids = np.array([4, 1, 3, 0, 2])
    order = EvaluationOrder(5, batch_size_per_rank=2, rank=0, world_size=1, ids_N=ids)
    shares = [order.share(step, epoch=0) for step in range(3)]
    assert np.concatenate([share.ids_N[share.valid_N] for share in shares]).tolist() == ids.tolist()
