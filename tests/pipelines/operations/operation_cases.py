"""What the tests of operations share: parameters, images, and operations of one kind."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.operations.vocabulary import NUM_PARAMETERS, Operation, Operations
from pipelines.plan import Plan

Pixels = npt.NDArray[np.uint8]

# Parameters of each operation, the outermost first; those not named are 0.
PARAMETERS: dict[Operation, list[tuple[float, ...]]] = {
    Operation.IDENTITY: [()],
    Operation.AFFINE: [
        (0, 0, 0, 1, 0, 0), (135, 0, 0, 1, 0, 0), (-30.5, 32, -7.25, 1, 0, 0), (0, 0, 0, 1, 44.71, -44.71),
        (90, 0, 0, 0.25, 0, 0), (179, 500, 500, 1, 0, 0), (-77, 3.5, 2.5, 1.7, -20, 31),
    ],
    Operation.BRIGHTNESS: [(0,), (1,), (0.01,), (0.7,), (1.99,), (300,)],
    Operation.CONTRAST: [(0,), (1,), (0.01,), (0.7,), (1.99,), (300,)],
    Operation.SATURATION: [(0,), (1,), (0.01,), (0.7,), (1.99,), (300,)],
    Operation.HUE: [(-0.5,), (0,), (0.5,), (1 / 3,), (-0.013,), (0.21,)],
    Operation.RGB_SHIFT: [(255, -255, 0), (0, 0, 0), (-40, 40, 7), (1, -1, 100)],
    Operation.GRAYSCALE: [()],
    Operation.GAUSSIAN_BLUR: [(0.001,), (0.1,), (0.8,), (2.0,), (1000,)],
    Operation.POSTERIZE: [(bits,) for bits in range(9)],
    Operation.SOLARIZE: [(0,), (255,), (128,), (77.5,)],
    Operation.EQUALIZE: [()],
    Operation.AUTOCONTRAST: [()],
    Operation.SHARPNESS: [(0,), (1,), (0.01,), (0.7,), (1.99,), (300,)],
    Operation.INVERT: [()],
}  # fmt: skip


def operations_of(operation: Operation, *, num_rows: int) -> Operations:
    """That operation in every row, its parameters taking turns."""
    sets = PARAMETERS[operation]
    return make_operations([[(operation, *sets[row % len(sets)])] for row in range(num_rows)])


def make_operations(rows: list[list[tuple[float, ...]]]) -> Operations:
    """Rows of slots of (operation, parameters...)."""
    codes_NK = np.array([[slot[0] for slot in row] for row in rows], dtype=np.int8)
    values_NKP = np.zeros((*codes_NK.shape, NUM_PARAMETERS))
    for n, row in enumerate(rows):
        for k, (_, *values) in enumerate(row):
            values_NKP[n, k, : len(values)] = values
    return Operations(codes_NK, values_NKP)


def plan_of(operations: Operations, *, size_px: int) -> Plan:
    """A plan of so many rows, of which nothing but the operations is read."""
    rows = len(operations.codes_NK)
    zeros_N = np.zeros(rows, dtype=np.int64)
    windows_N4, shifts_N2 = np.zeros((rows, 4), dtype=np.int64), np.zeros((rows, 2), dtype=np.int64)
    return Plan(zeros_N, windows_N4, shifts_N2, zeros_N > 0, zeros_N > 0, size_px, operations=operations)


def draw_images(num_rows: int, *, size_px: int, channels: int, seed: int = 0) -> Pixels:
    """Images, uint8 (N, S, S, C), in turns: of one colour, soft shapes with a little noise, and noise alone."""
    rng = np.random.default_rng([seed, size_px, channels])
    images = rng.integers(0, 256, (num_rows, size_px, size_px, channels), dtype=np.uint8)
    images[::3] = images[::3, :1, :1]
    for image in images[1::3]:
        for c in range(channels):
            coarse = Image.fromarray(rng.integers(20, 230, (4, 4), dtype=np.uint8))
            soft = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC)).astype(int)
            image[..., c] = np.clip(soft + image[..., c] // 32, 0, 255)
    return images
