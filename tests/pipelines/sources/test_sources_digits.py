"""The digits, against scikit-learn's own array."""

import numpy as np
from sklearn.datasets import load_digits as load_sklearn_digits

from pipelines.sources.digits import load_digits


def test_there_are_1797_grey_digits_of_8_by_8_from_0_to_255() -> None:
    digits = load_digits()
    assert digits.images_NHWC.shape == (1797, 8, 8, 1)
    assert digits.images_NHWC.dtype == np.uint8
    assert (digits.images_NHWC.min(), digits.images_NHWC.max()) == (0, 255)
    assert digits.is_grey
    assert np.unique(digits.sizes_N2, axis=0).tolist() == [[8, 8]]


def test_pixels_and_labels_are_those_of_scikit_learn() -> None:
    digits, theirs = load_digits(), load_sklearn_digits()
    assert np.rint(digits.images_NHWC[..., 0] * (16 / 255)).tolist() == theirs.images.tolist()
    assert np.abs(digits.images_NHWC[..., 0] / 255 - theirs.images / 16).max() <= 0.5 / 255
    assert digits.labels_N.tolist() == theirs.target.tolist()
    assert digits.class_names == tuple("0123456789")
