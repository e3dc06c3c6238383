"""Configuration -> the training loader of a run, to be timed: it starts where it is told and ends early.

Config, Data (, DataLoaderOptions) -> build_study_loader -> StudyLoader -> as many batches of an epoch as are wanted

A run has no options for how a torch DataLoader pins and copies and whether its workers persist: all of it is always on.
What that is worth can be measured here.
"""

from collections.abc import Iterator
from typing import NamedTuple

from configs.schema import Config
from pipelines.batch import Batch
from pipelines.build_data import Data, given
from pipelines.build_executor import Parts, Place, choose_backend
from pipelines.build_loader import assemble, build_pool, join, training_parts
from pipelines.executors.reference import ReferenceExecutor
from pipelines.loader import Part, PlannedLoader
from pipelines.order import Order
from pipelines.transfer import Transfer


class DataLoaderOptions(NamedTuple):
    """What courses teach about torch's DataLoader, beside the number of workers.

    pin_memory: batches lie in pinned memory, from which a GPU copies by itself. non_blocking: the host goes on while it
    does. persistent_workers: workers live on from epoch to epoch.
    """

    pin_memory: bool = True
    non_blocking: bool = True
    persistent_workers: bool = True


class StudyLoader:
    """Batches of one epoch of train, as training would meet them, again and again.

    Args:
        loader: Makes them.
        order: Which samples each step takes.
        epoch: Which epoch that is.
    """

    def __init__(self, loader: PlannedLoader, order: Order, *, epoch: int) -> None:
        self.steps_per_epoch = order.steps_per_epoch
        self.images_per_step = order.samples_per_step
        self._loader = loader
        self._order = order
        self._epoch = epoch

    def batches(self, *, num_steps: int | None = None) -> Iterator[Batch]:
        """The batches of the first `num_steps` steps; None = of all. Nothing is prepared beyond them.

        Raises:
            ValueError: A sample cannot be read, and the policy is raise; or nothing can replace it.
        """
        steps = range(self.steps_per_epoch if num_steps is None else num_steps)
        parts = (Part(self._epoch, step, self._order.share(step, epoch=self._epoch)) for step in steps)
        for made in self._loader.carry_out(parts):
            yield made.batch


def build_study_loader(
    config: Config, data: Data, *, place: Place, dataloader: DataLoaderOptions | None = None
) -> StudyLoader:
    """The loader of train as it is in the last epoch, when images have their final size.

    Args:
        config: The run's.
        data: Its data.
        place: Where batches go; one process.
        dataloader: How the DataLoader works, with loader.backend=reference alone; None = as in a run.

    Raises:
        ValueError: The global batch does not fit the data, or the backend is not to be had.
    """
    parts = training_parts(config, data, place=place)
    if dataloader is None:
        loader = join(config, data, parts, place=place, show_progress=False)
    else:
        loader = _join_dataloader(config, data, parts, place=place, options=dataloader)
    return StudyLoader(loader, parts.order, epoch=config.train.epochs - 1)


def _join_dataloader(
    config: Config, data: Data, parts: Parts, *, place: Place, options: DataLoaderOptions
) -> PlannedLoader:
    assert choose_backend(config, data).name == "reference", config.loader
    executor = ReferenceExecutor(
        parts.source,
        channels=given(data.spec.channels),
        interpolation=data.spec.interpolation,
        num_workers=given(config.loader.num_workers),
        pin_memory=options.pin_memory and place.device.type == "cuda",
        persistent=options.persistent_workers,
        operate=parts.operate,
    )
    transfer = Transfer(place.device, non_blocking=options.non_blocking)
    return assemble(config, data, parts, executor=executor, transfer=transfer, place=place, pool=build_pool(place))
