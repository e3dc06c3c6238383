"""The numbers of operations: matrices are torchvision's, the reach of a blur is SimCLR's."""

import numpy as np
from torchvision.transforms.v2.functional import _geometry

from pipelines.operations.vocabulary import PARAMETER_NAMES, Operation, Operations, affine_matrices, blur_radius


def test_matrices_of_affine_are_torchvisions() -> None:
    rng = np.random.default_rng(0)
    for size_px in (1, 2, 33, 224):
        values_NP = rng.uniform([-180, -50, -50, 0.1, -60, -60], [180, 50, 50, 3, 60, 60], (200, 6))
        for found, (angle, right, down, scale, *shear) in zip(
            affine_matrices(values_NP, size_px=size_px), values_NP.tolist(), strict=True
        ):
            centre = [(size_px - 1) / 2] * 2  # places are counted from 0 at the middle of the first pixel
            wanted = _geometry._get_inverse_affine_matrix(centre, angle, [right, down], scale, shear)
            assert np.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_turn_by_90_degrees_is_clockwise_and_a_translation_goes_right_and_down() -> None:
    turn, move = affine_matrices(np.array([[90, 0, 0, 1, 0, 0], [0, 2, 5, 1, 0, 0.0]]), size_px=9)
    assert np.allclose(turn.reshape(2, 3) @ [8, 0, 1], [0, 0])  # the top right corner was the top left one
    assert np.allclose(move.reshape(2, 3) @ [2, 5, 1], [0, 0])


def test_a_blur_reaches_over_a_tenth_of_the_image_and_never_beyond_it() -> None:
    assert [blur_radius(size_px) for size_px in (1, 2, 3, 32, 64, 224)] == [0, 1, 1, 2, 3, 11]


def test_every_operation_with_parameters_has_at_most_six_names_for_them() -> None:
    assert [int(operation) for operation in Operation] == list(range(15))
    without = {Operation.IDENTITY, Operation.GRAYSCALE, Operation.EQUALIZE, Operation.AUTOCONTRAST, Operation.INVERT}
    assert set(PARAMETER_NAMES) == set(Operation) - without
    assert max(len(names) for names in PARAMETER_NAMES.values()) == 6


def test_rows_of_operations_are_taken_by_a_list_or_a_slice() -> None:
    operations = Operations(np.arange(6, dtype=np.int8).reshape(3, 2), np.arange(36.0).reshape(3, 2, 6))
    assert operations.rows([2, 0]).codes_NK.tolist() == [[4, 5], [0, 1]]
    assert operations.rows(slice(1, 2)).values_NKP.tolist() == [operations.values_NKP[1].tolist()]
