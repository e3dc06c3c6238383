"""How far each way of doing the operations on pixels is from torchvision's: `make operations DATA=DIR`.

photographs, 224 x 224 -> an operation, parameters drawn over the widest range of any policy -> each way -> mean of the
differences from torchvision -> benchmarks/results/operations.csv -> (`make tables`) docs/operations.md

A way more is a line more in `build_ways`. The test of the table measures by these functions, too.
"""

import argparse
import csv
import functools
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from benchmarks.recipes import RESULTS, code_commit
from pipelines.execution import Operate
from pipelines.operations import kernels, reference
from pipelines.operations.batched import operate_batch
from pipelines.operations.vocabulary import (
    NATIVE_OPERATIONS,
    NUM_PARAMETERS,
    PARAMETER_NAMES,
    Operation,
    Operations,
)
from pipelines.plan import Fit, Plan, plan_evaluation
from pipelines.source import ArraySource

SIZE_PX = 224
EVERY_OPERATION = frozenset(Operation) - {Operation.IDENTITY}
# mean difference of 255 over all images: 2 for colours, 4 where pixels move
LIMITS = dict.fromkeys(EVERY_OPERATION, 2.0) | {Operation.AFFINE: 4.0}
FIELDS = (
    "operation", "parameters", "executor", "device", "images", "mean_of_255", "worst_image_of_255", "limit_of_255",
    "date", "commit", "versions",
)  # fmt: skip
# The widest that a policy draws (TrivialAugment's wide ranges, SimCLR's blur); scale stands beside what torchvision's
# RandomAffine is usually given. Shear 0.99 is 44.71 degrees.
RANGES: dict[Operation, tuple[tuple[float, float], ...]] = {
    Operation.AFFINE: ((-135, 135), (-32, 32), (-32, 32), (0.5, 1.5), (-44.71, 44.71), (-44.71, 44.71)),
    Operation.BRIGHTNESS: ((0.01, 1.99),),
    Operation.CONTRAST: ((0.01, 1.99),),
    Operation.SATURATION: ((0.01, 1.99),),
    Operation.HUE: ((-0.5, 0.5),),
    Operation.RGB_SHIFT: ((-40, 40),) * 3,
    Operation.GAUSSIAN_BLUR: ((0.1, 2.0),),
    Operation.POSTERIZE: ((2, 8),),
    Operation.SOLARIZE: ((0, 255),),
    Operation.SHARPNESS: ((0.01, 1.99),),
}
_WHOLE = (Operation.RGB_SHIFT, Operation.POSTERIZE, Operation.SOLARIZE)
_AFFINE_ALONE = ((0,), (1, 2), (3,), (4,), (5,), tuple(range(6)))  # what is drawn in turns: a turn, ..., all at once
_PACKAGES = ("torch", "torchvision", "numpy", "numba", "nvidia-dali-cuda130")
_Pixels = npt.NDArray[np.uint8]


class Way(NamedTuple):
    """A way of doing operations.

    operate: Images, uint8 (N, S, S, 3), and the operations of as many rows -> uint8 (N, S, S, 3); it may change the
        images given, and give them back.
    device: Where it works, in words.
    offers: What it can do.
    """

    operate: Callable[[_Pixels, Operations], _Pixels]
    device: str = "CPU"
    offers: frozenset[Operation] = EVERY_OPERATION


class Difference(NamedTuple):
    """Between a way's and torchvision's images, of 255: the mean, and that of the image where it is largest."""

    operation: Operation
    way: str
    mean: float
    worst_image: float


def main() -> None:
    """Measures all ways on photographs, prints a table and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--num", type=int, default=250, help="how many of them, at most (default: 250)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where operations.csv goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = build_ways()
    try:
        images_NSSC = load_photographs(options.images, most=options.num)
    except ValueError as error:
        parser.error(str(error))
    differences = measure(images_NSSC, ways=ways)
    for found in differences:
        print(f"{found.operation.name:14} {found.way:10} {found.mean:8.4f} {found.worst_image:8.4f}")
    write_csv(options.results / "operations.csv", differences, ways=ways, num_images=len(images_NSSC))


def build_ways() -> dict[str, Way]:
    """Name -> way; torchvision's own is the first."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    ways = {
        "reference": Way(functools.partial(row_by_row, operate=reference.operate)),
        "kernels": Way(functools.partial(row_by_row, operate=kernels.operate)),
        "batched": Way(
            lambda images, operations: operate_batch(torch.from_numpy(images).to(device), operations).cpu().numpy(),
            device=device_name,
        ),
    }
    if importlib.util.find_spec("nvidia.dali") is not None:
        in_dali = functools.partial(by_dali, device=device)
        ways["dali"] = Way(in_dali, device=device_name, offers=NATIVE_OPERATIONS)
    return ways


def by_dali(images_NSSC: _Pixels, operations: Operations, *, device: torch.device) -> _Pixels:
    """All images by one batch of the dali executor."""
    from pipelines.executors.dali import DaliExecutor  # it is not installed everywhere

    num_rows, size_px = images_NSSC.shape[:2]
    source = ArraySource(class_names=("any",), labels_N=np.zeros(num_rows, dtype=np.int64), images_NHWC=images_NSSC)
    codes = operations.codes_NK
    executor = DaliExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        device=device,
        num_threads=2,
        num_prefetched=1,
        operations=frozenset(Operation(code) for code in np.unique(codes).tolist()) - {Operation.IDENTITY},
        num_slots=codes.shape[1],
    )
    plan = _whole_images(num_rows, size_px=size_px)._replace(operations=operations)
    (carried,) = (carried.images_NHWC.cpu().numpy().copy() for carried in executor.run([plan]))
    return carried


def row_by_row(images_NSSC: _Pixels, operations: Operations, *, operate: Operate) -> _Pixels:
    """Images by a function for one image, in place."""
    num_rows, size_px = images_NSSC.shape[:2]
    plan = _whole_images(num_rows, size_px=size_px)._replace(operations=operations)
    for row, image_SSC in enumerate(images_NSSC):
        operate(image_SSC, plan=plan, row=row)
    return images_NSSC


def _whole_images(num_rows: int, *, size_px: int) -> Plan:
    sizes_N2 = np.full((num_rows, 2), size_px, dtype=np.int32)
    return plan_evaluation(np.arange(num_rows), sizes_N2=sizes_N2, fit=Fit("squash", 1.0), size_px=size_px)


def load_photographs(folder: Path, *, most: int) -> _Pixels:
    """The first JPEG files below a folder, in the order of their names: centred squares, uint8 (N, 224, 224, 3).

    Raises:
        ValueError: There are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:most]
    if not paths:
        raise ValueError(f"{folder} has no file *.jpg or *.jpeg, at any depth; name a folder of photographs.")
    fitted = (ImageOps.fit(Image.open(path).convert("RGB"), (SIZE_PX, SIZE_PX)) for path in paths)
    return np.stack([np.asarray(image) for image in fitted])


def measure(images_NSSC: _Pixels, *, ways: dict[str, Way]) -> list[Difference]:
    """For every operation but IDENTITY each way that offers it, on the same images with the same parameters."""
    found = []
    for operation in sorted(frozenset().union(*(way.offers for way in ways.values()))):
        operations = draw_operations(operation, num_rows=len(images_NSSC))
        wanted = row_by_row(images_NSSC.copy(), operations, operate=reference.operate).astype(np.int16)
        for name, way in ways.items():
            if operation in way.offers:
                differences = np.abs(way.operate(images_NSSC.copy(), operations) - wanted)
                means_N = differences.mean(axis=(1, 2, 3))
                found.append(Difference(operation, name, float(means_N.mean()), float(means_N.max())))
    return found


def draw_operations(operation: Operation, *, num_rows: int) -> Operations:
    """That operation once in each row, parameters uniform over `RANGES`; of AFFINE each alone and all at once."""
    rng = np.random.default_rng([0, operation])
    values_NKP = np.zeros((num_rows, 1, NUM_PARAMETERS))
    for place, (low, high) in enumerate(RANGES.get(operation, ())):
        values_NKP[:, 0, place] = rng.uniform(low, high, num_rows)
    if operation in _WHOLE:
        values_NKP = np.rint(values_NKP)
    if operation is Operation.AFFINE:
        for turn, places in enumerate(_AFFINE_ALONE):
            others = [place for place in range(NUM_PARAMETERS) if place not in places]
            values_NKP[turn :: len(_AFFINE_ALONE), 0, others] = [float(place == 3) for place in others]  # scale 1
    return Operations(np.full((num_rows, 1), operation, dtype=np.int8), values_NKP)


def describe_range(operation: Operation) -> str:
    """`factor 0.01 to 1.99`; nothing for an operation without parameters."""
    pairs = zip(PARAMETER_NAMES.get(operation, ()), RANGES.get(operation, ()), strict=True)
    return ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in pairs)


def write_csv(path: Path, differences: list[Difference], *, ways: dict[str, Way], num_images: int) -> None:
    """A row for each difference, in place of what was there."""
    where = {"images": num_images, "date": datetime.now(UTC).date().isoformat(), "commit": code_commit()}
    where["versions"] = "; ".join([f"python {platform.python_version()}", *map(_version, _PACKAGES)])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(found, device=ways[found.way].device) | where for found in differences)


def _row(found: Difference, *, device: str) -> dict[str, Any]:
    return {
        "operation": found.operation.name,
        "parameters": describe_range(found.operation),
        "executor": found.way,
        "device": device,
        "mean_of_255": round(found.mean, 6),
        "worst_image_of_255": round(found.worst_image, 6),
        "limit_of_255": LIMITS[found.operation],
    }


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} -"


if __name__ == "__main__":
    main()
