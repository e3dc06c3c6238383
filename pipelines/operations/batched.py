"""The operations on batches, by torch, on whatever device the images lie: what a GPU's tail does.

slot 0 -> slot 1 -> ... -> slot K-1; within a slot, for each operation: gather its rows -> one batch -> put them back

Which rows ask for what is known on the host, so that nothing here waits for the device. Their meaning is that of
reference.py (torchvision v2): on a CPU, operations on points, saturation and sharpness give the same bytes, for they
calculate in float32 and in the same order; affine, hue and blur differ by 1 of 255 in few pixels. (On a GPU nothing has
been measured yet.)

Legend of shape letters: N rows of a plan, R of them with the same operation, K operations per row, P = 6 parameters,
S height and width, C channels (1 or 3), T = 256 entries of a table, W weights of a blur.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pipelines.operations.vocabulary import Operation, Operations, affine_matrices, blur_radius

_VALUES_AT_ONCE = 2**22  # bytes of images that are worked on at once; the hungriest, hue, takes 27 times as much


def operate_batch(images_NHWC: Tensor, operations: Operations) -> Tensor:
    """Does the operations of each row to its image.

    Args:
        images_NHWC: uint8 (N, S, S, C), 0..255, on any device; C is 1 or 3. It is left as it is.
        operations: Those of N rows, on the host.

    Returns:
        uint8 (N, S, S, C), a new tensor on the same device.
    """
    assert len(images_NHWC) == len(operations.codes_NK)
    images = images_NHWC.clone(memory_format=torch.contiguous_format)
    device, size_px = images_NHWC.device, images_NHWC.shape[1]
    order_NK = np.argsort(operations.codes_NK, axis=0, kind="stable")  # rows with the same operation lie together
    sorted_NK = np.take_along_axis(operations.codes_NK, order_NK, axis=0)
    order = torch.from_numpy(order_NK).to(device, non_blocking=True)
    parameters_NKP = torch.from_numpy(_parameters(operations, size_px=size_px)).to(device, non_blocking=True)
    rows_at_once = max(1, _VALUES_AT_ONCE // max(images[:1].numel(), 1))
    for slot in range(sorted_NK.shape[1]):
        for operation, change in _CHANGES.items():
            start, stop = np.searchsorted(sorted_NK[:, slot], [operation, operation + 1]).tolist()
            for rows_R in torch.split(order[start:stop, slot], rows_at_once) if start < stop else ():
                images[rows_R] = change(images[rows_R], parameters_NKP[rows_R, slot])
    return images


def _parameters(operations: Operations, *, size_px: int) -> npt.NDArray[np.float32]:
    """What is calculated with, float32 (N, K, 6): as it stands in the plan, but for the following.

    AFFINE: the rows a, b, c and d, e, f of a matrix from places in the result to places in the image, where the image
    reaches from -1 to 1 and the result is counted in pixels from the centre. Blends (contrast, saturation, sharpness):
    factor and 1 - factor, of which torchvision takes the difference in float64.
    """
    codes_NK, values_NKP = operations.codes_NK, operations.values_NKP.copy()
    is_affine = codes_NK == Operation.AFFINE
    matrices = affine_matrices(values_NKP[is_affine], size_px=size_px).reshape(-1, 2, 3)
    centre = (size_px - 1) / 2
    matrices[:, :, 2] += (matrices[:, :, 0] + matrices[:, :, 1] - 1) * centre
    values_NKP[is_affine] = (matrices / (size_px / 2)).reshape(-1, 6)
    is_blend = np.isin(codes_NK, [Operation.CONTRAST, Operation.SATURATION, Operation.SHARPNESS])
    values_NKP[is_blend, 1] = 1 - values_NKP[is_blend, 0]
    return values_NKP.astype(np.float32)


def _affine(images_RSSC: Tensor, matrices_RP: Tensor) -> Tensor:
    size = images_RSSC.shape[1]
    line = torch.arange(size, device=images_RSSC.device) - (size - 1) / 2
    # not by a product of matrices, nor by affine_grid: on a GPU they may round to ten bits (TF32), a tenth of a pixel
    a, b, c, d, e, f = matrices_RP[:, :, None, None].unbind(1)
    grid_RSS2 = torch.stack([a * line + b * line[:, None] + c, d * line + e * line[:, None] + f], dim=3)
    images_RCSS = images_RSSC.permute(0, 3, 1, 2).float()
    sampled = grid_sample(images_RCSS, grid_RSS2, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().to(torch.uint8).permute(0, 2, 3, 1)


def _brightness(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    return _look_up(images_RSSC, _every_value(images_RSSC) * values_RP[:, :1])


def _contrast(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    grey_RSS = images_RSSC[..., 0] if images_RSSC.shape[3] == 1 else _grey(images_RSSC)
    total_R1 = grey_RSS.sum(dim=(1, 2), dtype=torch.int64)[:, None].float()
    # by a tensor, since a GPU would multiply by the inverse of a number
    means_R1 = total_R1 / torch.full_like(total_R1, grey_RSS[0].numel())
    factors_R1, rest_R1 = values_RP[:, :1], values_RP[:, 1:2]
    return _look_up(images_RSSC, torch.addcmul(_every_value(images_RSSC) * factors_R1, means_R1, rest_R1))


def _saturation(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    if images_RSSC.shape[3] == 1:
        return images_RSSC
    factors, rest = values_RP[:, :2, None, None, None].unbind(1)
    return _to_bytes(torch.addcmul(images_RSSC * factors, _grey(images_RSSC)[..., None], rest))


def _hue(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    """Hexcone coordinates and back; a hue is counted in sextants, red 0, green 2, blue 4."""
    if images_RSSC.shape[3] == 1:
        return images_RSSC
    red, green, blue = images_RSSC.float().unbind(3)
    least_RSS, most_RSS = torch.aminmax(images_RSSC, dim=3)
    chroma_RSS = (most_RSS - least_RSS).float()
    divisor = chroma_RSS.clamp(min=1)  # grey pixels, whose hue does not matter
    towards_others = torch.where(most_RSS == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue_RSS = torch.where(most_RSS == red, (green - blue) / divisor, towards_others)
    hue_RSS += 6 * values_RP[:, :1, None]
    # a channel is full within a sextant of its own hue, falls over the next and is at its least for the two opposite
    steps_RSSC = (hue_RSS[..., None] + torch.arange(5, 0, -2, device=images_RSSC.device)).remainder_(6)
    missing_RSSC = torch.minimum(steps_RSSC, 4 - steps_RSSC).clamp_(0, 1)
    shifted_RSSC = torch.addcmul(most_RSS[..., None].float(), missing_RSSC, chroma_RSS[..., None], value=-1)
    return _to_bytes(shifted_RSSC.mul_(255.999 / 255))  # as torchvision makes bytes of 0..1


def _rgb_shift(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    assert images_RSSC.shape[3] == 3, "configurations for grey images have no RGB_SHIFT"
    return _look_up(images_RSSC, _every_value(images_RSSC) + values_RP[:, :3, None])


def _grayscale(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    if images_RSSC.shape[3] == 1:
        return images_RSSC
    return _grey(images_RSSC).to(torch.uint8)[..., None].expand_as(images_RSSC)


def _gaussian_blur(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    radius = blur_radius(images_RSSC.shape[1])
    places_W = torch.arange(-radius, radius + 1, device=images_RSSC.device)
    weights_RW = (places_W / values_RP[:, :1]).square_().mul_(-0.5).softmax(dim=1)
    smooth = _weigh(_weigh(images_RSSC.float(), weights_RW, dim=1), weights_RW, dim=2)
    return smooth.round_().to(torch.uint8)


def _weigh(images_RSSC: Tensor, weights_RW: Tensor, *, dim: int) -> Tensor:
    """Sums over neighbours along one axis, border by reflection.

    Not by a convolution: on a GPU it may round to ten bits (TF32).
    """
    size, radius = images_RSSC.shape[dim], weights_RW.shape[1] // 2
    places = torch.arange(-radius, size + radius, device=images_RSSC.device).abs_()
    places = torch.where(places >= size, 2 * (size - 1) - places, places)
    padded, total = images_RSSC.index_select(dim, places), torch.zeros_like(images_RSSC)
    for first, weights_R111 in enumerate(weights_RW[:, :, None, None, None].unbind(1)):
        total.addcmul_(padded.narrow(dim, first, size), weights_R111)
    return total


def _posterize(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    lost_R1 = 8 - values_RP[:, :1].int()
    return _look_up(images_RSSC, _every_value(images_RSSC).int() >> lost_R1 << lost_R1)


def _solarize(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    values_T = _every_value(images_RSSC)
    return _look_up(images_RSSC, torch.where(values_T >= values_RP[:, :1], 255 - values_T, values_T))


def _equalize(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    """Pillow's tables, which torchvision's are."""
    rows, size, _, channels = images_RSSC.shape
    places = _places_in_tables(images_RSSC).flatten()
    counts = places.new_zeros(rows * channels * 256)
    counts_RCT = counts.scatter_add_(0, places, places.new_ones(1).expand_as(places)).view(rows, channels, 256)
    sums_RCT = counts_RCT.cumsum(dim=2)
    brightest = sums_RCT.argmax(dim=2, keepdim=True)  # the first of equal ones
    step_RC1 = (size * size - counts_RCT.gather(2, brightest)) // 255
    below_RCT = sums_RCT - counts_RCT
    tables_RCT = (below_RCT + step_RC1 // 2) // step_RC1.clamp(min=1)
    tables_RCT[..., 0] = 0
    return _look_up(images_RSSC, torch.where(step_RC1 == 0, _every_value(images_RSSC).long(), tables_RCT))


def _autocontrast(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    values_T = _every_value(images_RSSC)
    least_RC1, most_RC1 = (
        extreme.float()[..., None] for extreme in (images_RSSC.amin(dim=(1, 2)), images_RSSC.amax(dim=(1, 2)))
    )
    tables_RCT = (values_T - least_RC1) / (most_RC1 - least_RC1).mul_(1 / 255)
    return _look_up(images_RSSC, torch.where(most_RC1 == least_RC1, values_T, tables_RCT))


def _sharpness(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    if images_RSSC.shape[1] <= 2:
        return images_RSSC
    centre = images_RSSC[:, 1:-1, 1:-1].float()
    columns = images_RSSC[:, :-2].int() + images_RSSC[:, 1:-1] + images_RSSC[:, 2:]
    squares = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    smooth = torch.add(squares, centre, alpha=4).mul_(1 / 13).round_()  # whole / 13 is never half way
    rest_R111 = values_RP[:, 1, None, None, None]
    result = images_RSSC.clone()
    result[:, 1:-1, 1:-1] = _to_bytes(torch.addcmul(centre, smooth.sub_(centre), rest_R111))
    return result


def _invert(images_RSSC: Tensor, values_RP: Tensor) -> Tensor:
    return 255 - images_RSSC


# images, uint8 (R, S, S, C), and their parameters, float32 (R, 6) of `_parameters` -> uint8 (R, S, S, C)
_CHANGES: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.AFFINE: _affine,
    Operation.BRIGHTNESS: _brightness,
    Operation.CONTRAST: _contrast,
    Operation.SATURATION: _saturation,
    Operation.HUE: _hue,
    Operation.RGB_SHIFT: _rgb_shift,
    Operation.GRAYSCALE: _grayscale,
    Operation.GAUSSIAN_BLUR: _gaussian_blur,
    Operation.POSTERIZE: _posterize,
    Operation.SOLARIZE: _solarize,
    Operation.EQUALIZE: _equalize,
    Operation.AUTOCONTRAST: _autocontrast,
    Operation.SHARPNESS: _sharpness,
    Operation.INVERT: _invert,
}


def _grey(images_RSSC: Tensor) -> Tensor:
    """Whole numbers, float32 (R, S, S), of images of three channels."""
    red, green, blue = images_RSSC.unbind(3)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _every_value(images_RSSC: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=images_RSSC.device)


def _look_up(images_RSSC: Tensor, tables: Tensor) -> Tensor:
    """Each value replaced by the entry of a table: (R, 256) of all channels, or (R, C, 256), of any type and range."""
    tables_RCT = _to_bytes(tables if tables.ndim == 3 else tables[:, None])
    rows, channels = len(images_RSSC), images_RSSC.shape[3]
    return tables_RCT.expand(rows, channels, 256).take(_places_in_tables(images_RSSC))


def _places_in_tables(images_RSSC: Tensor) -> Tensor:
    """Where each value stands in tables (R, C, 256): int64 (R, S, S, C)."""
    rows, channels = len(images_RSSC), images_RSSC.shape[3]
    starts = torch.arange(0, rows * channels * 256, 256, device=images_RSSC.device)
    return starts.view(rows, 1, 1, channels) + images_RSSC


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
