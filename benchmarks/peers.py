"""Other people's loaders at the same jobs as ours, built as their documentation has it: names -> builders.

A builder takes the job and returns an `Epoch`; it raises ImportError where its package is not installed. Time the
second epoch and those after it: in the first, workers start and FFCV compiles (ten seconds). None works between epochs.
"""

from benchmarks.peers_cifar import PEERS_CIFAR, PEERS_CIFAR_OPERATIONS
from benchmarks.peers_decoded import PEERS_DECODED
from benchmarks.peers_imagenet import PEERS_IMAGENET, PEERS_OPERATIONS
from benchmarks.peers_job import Augment, CifarJob, DecodedJob, Epoch, ImagenetJob
from benchmarks.peers_packed import PEERS_PACKED_JPEG, PEERS_PACKED_RAW
from benchmarks.peers_pixels import RESIZES, RESIZES_PIXELS, RESIZES_STORED, mean_difference_from_pillow

__all__ = [
    "PEERS_CIFAR",
    "PEERS_CIFAR_OPERATIONS",
    "PEERS_DECODED",
    "PEERS_IMAGENET",
    "PEERS_OPERATIONS",
    "PEERS_PACKED_JPEG",
    "PEERS_PACKED_RAW",
    "RESIZES",
    "RESIZES_PIXELS",
    "RESIZES_STORED",
    "Augment",
    "CifarJob",
    "DecodedJob",
    "Epoch",
    "ImagenetJob",
    "mean_difference_from_pillow",
]
