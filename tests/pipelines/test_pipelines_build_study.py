"""The loader that is timed: the same batches as in training, as many as asked, however the DataLoader works."""

import multiprocessing

import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from pipelines.build import (
    Data,
    DataLoaderOptions,
    Place,
    StudyLoader,
    build_data,
    build_study_loader,
    build_training_loader,
)

CPU = Place(torch.device("cpu"), torch.float32, 0, 1, 1)
ALWAYS_ON = DataLoaderOptions()
PLAIN = DataLoaderOptions(pin_memory=False, non_blocking=False, persistent_workers=False)


def configure(backend: str, *words: str) -> tuple[Config, Data]:
    words = ("--loader.backend", backend, "--loader.num_workers", "2", "--train.epochs", "3", *words)
    config = load_config(words, prog="", description="")
    return config, build_data(config, show_progress=False)


def build(backend: str, options: DataLoaderOptions | None = None, *words: str) -> StudyLoader:
    config, data = configure(backend, *words)
    return build_study_loader(config, data, place=CPU, dataloader=options)


@pytest.mark.parametrize(
    ("backend", "options"), [("threads", None), ("reference", None), ("reference", ALWAYS_ON), ("reference", PLAIN)]
)
def test_its_batches_are_those_of_the_last_epoch_of_training(backend: str, options: DataLoaderOptions | None) -> None:
    config, data = configure(backend)
    training = build_training_loader(config, data, place=CPU, show_progress=False)
    for _ in range(2):
        for _ in training:
            pass
    wanted = [(batch.ids_N.tolist(), batch.inputs[0].clone()) for batch in training]
    studied = build(backend, options)
    for _ in range(2):
        found = [(batch.ids_N.tolist(), batch.inputs[0].clone()) for batch in studied.batches()]
        assert len(found) == studied.steps_per_epoch == len(wanted)
        for (ids, images), (wanted_ids, wanted_images) in zip(found, wanted, strict=True):
            assert ids == wanted_ids
            assert len(ids) == studied.images_per_step
            assert torch.equal(images, wanted_images)


def test_it_ends_after_as_many_steps_as_asked() -> None:
    studied = build("reference", ALWAYS_ON)
    whole = [batch.ids_N.tolist() for batch in studied.batches()]
    assert [batch.ids_N.tolist() for batch in studied.batches(num_steps=2)] == whole[:2]


def test_workers_persist_or_start_anew_as_asked() -> None:
    def workers_of(studied: StudyLoader) -> list[set[int | None]]:
        return [
            {process.pid for process in multiprocessing.active_children()} - before
            for _ in range(2)
            for number, _ in enumerate(studied.batches(num_steps=3))
            if number == 1
        ]

    before = {process.pid for process in multiprocessing.active_children()}
    first, second = workers_of(build("reference", ALWAYS_ON))
    assert len(first) == 2
    assert first == second
    first, second = workers_of(build("reference", PLAIN))
    assert len(first) == len(second) == 2
    assert not first & second


def test_images_have_their_final_size() -> None:
    studied = build("threads", None, "--augment.sizes_px", "[[0, 4], [1.5, 6]]")
    assert {batch.inputs[0].shape[-1] for batch in studied.batches(num_steps=2)} == {6}
