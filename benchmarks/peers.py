"""Other people's loaders at the same two jobs as ours, built as their documentation has it: names -> builders.

A builder takes the job and returns an `Epoch`; it raises ImportError where its package is not installed. Time the
second epoch and those after it: in the first, workers start and FFCV compiles (ten seconds). None works between epochs.
"""

from benchmarks.peers_cifar import PEERS_CIFAR
from benchmarks.peers_imagenet import PEERS_IMAGENET
from benchmarks.peers_job import CifarJob, Epoch, ImagenetJob
from benchmarks.peers_pixels import RESIZES, mean_difference_from_pillow

__all__ = [
    "PEERS_CIFAR",
    "PEERS_IMAGENET",
    "RESIZES",
    "CifarJob",
    "Epoch",
    "ImagenetJob",
    "mean_difference_from_pillow",
]
