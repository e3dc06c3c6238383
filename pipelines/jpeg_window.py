"""A window of a JPEG, decoded without the rest of the image, by nvImageCodec on the CPU; this is its only home.

It decodes by libjpeg-turbo, which stops below the window, and of what lies above and beside it does no more than find
where the next code begins. Pixels are those of the whole image, to the bit. ImageNet's files, windows of
RandomResizedCrop, one core of an AMD EPYC: 0.90 ms instead of 1.13 (nvImageCodec 0.9.0, simplejpeg 1.9.0, 2026-11-20).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from nvidia import nvimgcodec
except ImportError:  # it exists for Linux only
    nvimgcodec = None

Window = tuple[int, int, int, int]
"""Top, left, height, width, in pixels; inside the image."""

_MIN_WIDTH = 2  # px; one column alone comes out otherwise than in the whole image (4:2:0, nvImageCodec 0.9.0)
_MOST_KEPT = 64 * 2**20  # bytes; a larger window gets memory of its own
_SEQUENTIAL = {0xC0, 0xC1}  # the markers SOF0 and SOF1
_TABLES = {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC: in the range of frame headers, but none
_AS_LIBJPEG_DOES = ":fancy_upsampling=1 :fast_idct=0"


class JpegWindowDecoder:
    """Decodes windows for one thread, which does the work itself, with the GIL free."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._params: dict[int, Any] = {}
        self._image: Any = None

    def decode(
        self, encoded: memoryview, window: Window, *, height: int, width: int, channels: int
    ) -> npt.NDArray[np.uint8] | None:
        """The pixels of `window` of a grey or RGB JPEG that is stored upright and known to be whole.

        Args:
            encoded: The bytes of the file.
            window: The part that is wanted.
            height: Height of the image.
            width: Width of the image.
            channels: 1 for grey, 3 for RGB.

        Returns:
            uint8 (H, W, C), 0..255, valid until the next call. None where the window must be cut from the whole image:
            nvImageCodec is not installed, the image is progressive, has another size or a damaged header, grey is
            wanted of colours, or there is nothing to save. Other damage need not be found.
        """
        _, _, window_height, window_width = window
        if nvimgcodec is None or window_width < _MIN_WIDTH or (window_height, window_width) == (height, width):
            return None
        if not _is_sequential(encoded):
            return None
        try:
            stream = nvimgcodec.CodeStream(np.frombuffer(encoded, np.uint8))
            if (stream.height, stream.width) != (height, width) or (channels == 1 and stream.num_channels > 1):
                return None
            image = self._decode(stream, window, channels)
        except RuntimeError:  # it cannot be read
            return None
        return None if image is None else np.asarray(image)

    def _decode(self, stream: Any, window: Window, channels: int) -> Any:
        top, left, height, width = window
        if self._decoder is None:
            self._decoder = _build_decoder()
            self._params = {1: _build_params("GRAY", "I_Y"), 3: _build_params("SRGB", "I_RGB")}
        kept = height * width * channels <= _MOST_KEPT
        image = self._decoder.decode(
            stream.get_sub_code_stream(region=nvimgcodec.Region(top, left, top + height, left + width)),
            params=self._params[channels],
            image=self._image if kept else None,
        )
        if kept and image is not None:
            self._image = image
        return image


def _build_decoder() -> Any:
    return nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
        options=_AS_LIBJPEG_DOES,
    )


def _build_params(color_spec: str, sample_format: str) -> Any:
    return nvimgcodec.DecodeParams(
        apply_exif_orientation=False,
        color_spec=getattr(nvimgcodec, color_spec),
        sample_format=getattr(nvimgcodec, sample_format),
    )


def _is_sequential(encoded: memoryview) -> bool:
    """Whether a JPEG stores each block at once. A progressive one may lack its last scans and be whole all the same.

    libjpeg then smooths blocks by their neighbours, which are not there where a window ends.
    """
    place = 2
    while place + 9 < len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in _TABLES:
            return marker in _SEQUENTIAL
        place += 2 + (encoded[place + 2] << 8) + encoded[place + 3]
    return False
