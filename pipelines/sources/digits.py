"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, shipped inside that package.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import numpy as np
from sklearn.datasets import load_digits as load_sklearn_digits

from pipelines.source import ArraySource


def load_digits() -> ArraySource:
    """All 1,797 digits; their 17 grey levels are spread over 0..255."""
    digits = load_sklearn_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ArraySource(
        class_names=tuple(str(name) for name in digits.target_names),
        labels_N=digits.target.astype(np.int64),
        images_NHWC=images[..., None],
    )
