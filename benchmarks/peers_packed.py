"""Peers that read images out of archives of their own: stored images -> RandomResizedCrop, flip -> uint8 batches.

job.paths -> each peer's shards, written once -> decode -> crop, resize, flip -> batch

JPEG files go into the archives byte by byte; pixels as arrays. All shuffle as their documentation has it, which is less
than all images of an epoch in any order: the order of the shards, and a few of them at a time. All drop the last batch.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.peers_imagenet import PEERS_IMAGENET, crop_flip_operate
from benchmarks.peers_job import Epoch, ImagenetJob

_SHARDS_PER_WORKER = 4  # so that all workers have as much to do
_SHUFFLED_IMAGES = 1000  # WebDataset's buffer, of each worker: as its examples have it
_CHUNK = "64MB"  # of LitData: as its documentation has it; MosaicML's shards have as much unasked


def build_webdataset(job: ImagenetJob) -> Epoch:
    """WebDataset: `.tar` shards, decoded by Pillow, torchvision v2 on PIL images; pixels as `.npy`, v2 on tensors.

    Shards are shuffled and shared out to the workers, which shuffle images in a buffer and make batches of their own.
    Batches: (N, C, H, W).
    """
    import webdataset as wds

    suffix = "npy" if job.stored == "raw" else "jpg"
    shards = _write_tars(job, suffix=suffix)
    dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(_SHUFFLED_IMAGES).decode("pil")
    dataset = dataset.to_tuple(suffix, "cls").map_tuple(_transform(job), int).batched(job.batch_size, partial=False)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=job.num_threads, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def _write_tars(job: ImagenetJob, *, suffix: str) -> list[str]:
    import webdataset as wds

    num_shards = _SHARDS_PER_WORKER * job.num_threads
    shards = [str(job.folder / f"shard-{number:06}.tar") for number in range(num_shards)]
    for number, shard in enumerate(shards):
        with wds.TarWriter(shard) as writer:
            for index in range(number, len(job), num_shards):
                image = _load_array(job, index) if job.stored == "raw" else Path(job.paths[index]).read_bytes()
                writer.write({"__key__": f"{index:07}", suffix: image, "cls": 0})
    return shards


def build_litdata(job: ImagenetJob) -> Epoch:
    """LitData: chunks of its own; it decodes JPEG by torchvision, then v2 on tensors. Batches: (N, C, H, W)."""
    litdata = import_litdata(job.folder)
    folder = str(job.folder / "litdata")
    litdata.optimize(
        partial(_sample, job),
        list(range(len(job))),
        output_dir=folder,
        chunk_bytes=_CHUNK,
        num_workers=job.num_threads,
        verbose=False,
    )
    transform = v2.Compose(crop_flip_operate(job)) if job.stored == "jpeg" else _transform(job)
    dataset = litdata.StreamingDataset(
        folder,
        shuffle=True,
        drop_last=True,
        transform=partial(_transform_sample, transform),
        # what it takes for JPEG unasked; for arrays it takes 256: 314 instead of 1,560 images/s (2 cores, 2026-11-26)
        batch_decode=1,
    )
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=job.batch_size, num_workers=job.num_threads, drop_last=True, persistent_workers=True
    )
    return lambda: (images for images, _ in loader)


def import_litdata(folder: Path) -> Any:
    """The package, told to keep its caches below `folder`.

    Untold, `litdata.optimize` deletes the folders `data` and `chunks` of the system's temporary folder, whoever made
    them (0.2.76: DataProcessor._cleanup_cache).
    """
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder / "litdata_cache" / "chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder / "litdata_cache" / "data")
    import litdata

    return litdata


def build_mosaicml(job: ImagenetJob) -> Epoch:
    """MosaicML streaming: MDS shards, decoded by Pillow, v2 on PIL images; pixels: v2 on tensors.

    Batches: (N, C, H, W).
    """
    import streaming

    folder = str(job.folder / "mds")
    encoding = "ndarray:uint8" if job.stored == "raw" else "jpeg"
    with streaming.MDSWriter(out=folder, columns={"image": encoding, "label": "int"}) as writer:
        for index in range(len(job)):
            writer.write(_sample(job, index))
    loader = streaming.StreamingDataLoader(
        streaming.StreamingDataset(local=folder, shuffle=True, batch_size=job.batch_size),
        batch_size=job.batch_size,
        num_workers=job.num_threads,
        drop_last=True,
        persistent_workers=True,
        collate_fn=partial(_collate, _transform(job)),
    )
    return lambda: (images for images, _ in loader)


def _sample(job: ImagenetJob, index: int) -> dict[str, Any]:
    """Pixels, or a JPEG file that is opened but not decoded: LitData and MosaicML copy such a file as it is."""
    return {"image": _load_array(job, index) if job.stored == "raw" else Image.open(job.paths[index]), "label": 0}


def _load_array(job: ImagenetJob, index: int) -> npt.NDArray[np.uint8]:
    return np.asarray(job.load(index)[0])


def _transform(job: ImagenetJob) -> v2.Transform:
    """What is done to an image: a PIL image, or an array (H, W, C)."""
    steps = crop_flip_operate(job)
    return v2.Compose([_as_tensor, *steps] if job.stored == "raw" else [*steps, v2.PILToTensor()])


def _as_tensor(image_HWC: npt.NDArray[np.uint8]) -> torch.Tensor:
    # MosaicML's arrays cannot be written to, which torch warns of: copied, as torchvision copies PIL images
    return torch.from_numpy(np.require(image_HWC, requirements="W")).permute(2, 0, 1)


def _transform_sample(transform: v2.Transform, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    image: torch.Tensor = transform(sample["image"])
    return image, sample["label"]


def _collate(transform: v2.Transform, samples: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*(_transform_sample(transform, sample) for sample in samples), strict=True)
    return torch.stack(images), torch.tensor(labels)


_ARCHIVES: dict[str, Callable[[ImagenetJob], Epoch]] = {
    "ffcv": PEERS_IMAGENET["ffcv"],
    "webdataset": build_webdataset,
    "litdata": build_litdata,
    "mosaicml": build_mosaicml,
}
_ONE_BY_ONE = (  # read the stored JPEG files; `decode` is the limit of all that decode whole images
    "decode",
    "dali",
    "albumentations",
    "albumentations_area",
    "torchvision_tensors",
    "torchvision_pil",
    "timm",
    "spdl",
)

PEERS_PACKED_JPEG = {**_ARCHIVES, **{name: PEERS_IMAGENET[name] for name in _ONE_BY_ONE}}
PEERS_PACKED_RAW = {**_ARCHIVES, "torchvision_pil": PEERS_IMAGENET["torchvision_pil"]}
