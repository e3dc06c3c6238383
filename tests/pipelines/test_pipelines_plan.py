"""The plan: a pure function of (seed, epoch, id, copy, view), distributed as torchvision's own draws."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from pipelines.counter import Stream, random_bits
from pipelines.plan import PLAN_VERSION, Augmentation, Fit, Plan, draw_keys, plan_evaluation, plan_training, rows_of

WHOLE = Fit("crop", 1.0)
LETTERBOX = Fit("letterbox", 1.0, border=(7, 8, 9))
OF_VERSION_1 = ("ids_N", "windows_N4", "shifts_N2", "flips_N")  # the arrays there were when it was set
ARRAYS = (*OF_VERSION_1, "vertical_flips_N")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
AUGMENTATIONS = [
    Augmentation(),
    Augmentation(crop="pad", pad_px=4, flip="random"),
    Augmentation(crop="rrc", flip="alternating"),
    Augmentation(crop="rrc", rrc_scale=(0.5, 0.9), rrc_ratio=(0.5, 2.0), flip="random"),
    Augmentation(crop="pad", pad_px=9, flip="random", vertical_flip_prob=0.5),
]


def sizes_like(count: int, *sizes: tuple[int, int]) -> npt.NDArray[np.int32]:
    return np.array([sizes[index % len(sizes)] for index in range(count)], dtype=np.int32)


def draw(
    augmentation: Augmentation,
    *,
    ids: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
    copies: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    epoch: int = 0,
    num_views: int = 1,
    fit: Fit = WHOLE,
) -> Plan:
    return plan_training(
        ids,
        copies_N=np.zeros_like(ids) if copies is None else copies,
        sizes_N2=sizes[ids],
        fit=fit,
        augmentation=augmentation,
        seed=seed,
        epoch=epoch,
        size_px=24,
        num_views=num_views,
    )


def assert_rows_equal(one: Plan, other: Plan) -> None:
    assert (one.size_px, one.num_views) == (other.size_px, other.num_views)
    for name in ARRAYS:
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


def rows_of_arrays(plan: Plan, rows: npt.NDArray[np.int64]) -> Plan:
    return plan._replace(**{name: getattr(plan, name)[rows] for name in ARRAYS})


def digest_of(plans: list[Plan]) -> str:
    digest = hashlib.sha256()
    for plan in plans:
        for name in OF_VERSION_1:
            digest.update(getattr(plan, name).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: f"{a.crop}_{a.flip}")
def test_a_row_depends_on_seed_epoch_and_id_alone(augmentation: Augmentation) -> None:
    sizes = sizes_like(500, (32, 32), (48, 200), (300, 30))
    everything = draw(augmentation, ids=np.arange(500), sizes=sizes, seed=4, epoch=3)
    shuffled = np.random.default_rng(0).permutation(500)
    for ids in (shuffled, shuffled[:17], np.array([499]), np.array([3, 3, 3])):
        rows = rows_of_arrays(everything, ids)
        assert_rows_equal(draw(augmentation, ids=ids, sizes=sizes, seed=4, epoch=3), rows)


GOLDEN = {  # of the plan as it was before copies and views were drawn: both are 0 here
    "pad_random": (AUGMENTATIONS[1], "1539177da9d7619c3f51330342e867d1340d7c2d74316d8722e48808397c1623"),
    "rrc_alternating": (AUGMENTATIONS[2], "66d231f628dba133be2fda5a9b3f94018c3cbc236990d2835905b7368896acda"),
    "rrc_wide": (AUGMENTATIONS[3], "08b9eeeccd2de159ad480febef7d9ce6ef7d220f84d7a73c7a6cf52b94b3eaef"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_numbers_of_plan_version_1_are_what_they_were_when_it_was_set(name: str) -> None:
    augmentation, wanted = GOLDEN[name]
    sizes, ids = sizes_like(1000, (32, 32), (48, 200), (300, 30)), np.arange(1000)
    plans = [draw(augmentation, ids=ids, sizes=sizes, seed=4, epoch=epoch) for epoch in (0, 3)]
    assert PLAN_VERSION == 1, "a version that draws otherwise has golden numbers of its own"
    assert digest_of(plans) == wanted
    second = plans[1]
    assert second.flips_N[:6].tolist() == [True, True, False, True, False, True]
    if name == "pad_random":
        assert second.shifts_N2[:3].tolist() == [[-4, -2], [-4, 4], [-2, -2]]
    if name == "rrc_alternating":
        assert second.windows_N4[:3].tolist() == [[4, 18, 15, 12], [6, 110, 29, 28], [130, 0, 40, 30]]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: f"{a.crop}_{a.flip}")
def test_a_row_of_a_copy_and_view_depends_on_its_id_copy_and_view_alone(augmentation: Augmentation) -> None:
    rng = np.random.default_rng(1)
    sizes, ids, copies = sizes_like(90, (32, 32), (48, 200)), rng.permutation(90), rng.integers(0, 3, 90)
    plan = draw(augmentation, ids=ids, sizes=sizes, copies=copies, seed=4, epoch=3, num_views=3)
    assert plan.ids_N.tolist() == ids.tolist() * 3, "first all samples for view 0, then all again for view 1, ..."
    assert plan.num_views == 3
    for row in range(0, 270, 7):
        view, place = divmod(row, 90)
        one = draw(augmentation, ids=ids[[place]], sizes=sizes, copies=copies[[place]], seed=4, epoch=3, num_views=3)
        assert_rows_equal(rows_of_arrays(plan, np.array([row])), rows_of_arrays(one, np.array([view])))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS[1:], ids=lambda a: f"{a.crop}_{a.flip}")
def test_views_and_copies_are_drawn_each_anew_and_the_first_is_that_of_one_view(augmentation: Augmentation) -> None:
    sizes, ids = sizes_like(200, (64, 64)), np.arange(200)
    alone = draw(augmentation, ids=ids, sizes=sizes)
    views = draw(augmentation, ids=ids, sizes=sizes, num_views=2)
    assert_rows_equal(rows_of_arrays(views, ids)._replace(num_views=1), alone)
    copy = draw(augmentation, ids=ids, sizes=sizes, copies=np.ones_like(ids))
    for other in (rows_of_arrays(views, ids + 200), copy):
        geometry, first = (np.column_stack([plan.windows_N4, plan.shifts_N2]) for plan in (other, alone))
        assert (geometry != first).any(axis=1).mean() > 0.9
        assert abs((other.flips_N != alone.flips_N).mean() - 0.5) < 5 * 0.5 / np.sqrt(200)
        if augmentation.vertical_flip_prob:
            assert abs((other.vertical_flips_N != alone.vertical_flips_N).mean() - 0.5) < 5 * 0.5 / np.sqrt(200)


def test_no_two_of_copy_and_view_share_their_draws() -> None:
    augmentation = Augmentation(crop="rrc")
    sizes, ids = sizes_like(1, (500, 500)), np.zeros(4, dtype=np.int64)
    windows = draw(augmentation, ids=ids, sizes=sizes, copies=np.arange(4), num_views=3).windows_N4
    assert len(np.unique(windows, axis=0)) == 12


def test_the_key_of_a_copy_stands_above_the_epoch() -> None:
    assert draw_keys(7, np.array([0, 1, 5])).tolist() == [7, 2**32 + 7, 5 * 2**32 + 7]


def test_alternating_flips_alternate_in_each_copy_and_view() -> None:
    ids, sizes = np.arange(300), sizes_like(300, (8, 8))
    flips = [
        draw(Augmentation(flip="alternating"), ids=ids, sizes=sizes, copies=ids % 2, epoch=epoch, num_views=2).flips_N
        for epoch in range(3)
    ]
    assert (flips[1] == ~flips[0]).all()
    assert (flips[2] == flips[0]).all()


def test_rows_of_a_plan_are_a_plan_of_one_view() -> None:
    sizes, rows = sizes_like(20, (32, 32), (10, 30)), [39, 0, 7]
    for fit in (WHOLE, LETTERBOX):
        plan = draw(AUGMENTATIONS[4], ids=np.arange(20), sizes=sizes, num_views=2, fit=fit)
        part = rows_of(plan, rows)
        assert part.num_views == 1
        assert_rows_equal(part, rows_of_arrays(plan, np.array(rows))._replace(num_views=1))
    assert part.letterbox is not None
    assert plan.letterbox is not None
    assert part.letterbox.boxes_N4.tolist() == plan.letterbox.boxes_N4[rows].tolist()
    assert part.letterbox.border == (7, 8, 9)
    assert rows_of(draw(AUGMENTATIONS[4], ids=np.arange(20), sizes=sizes), [7]).letterbox is None


def test_an_image_of_unknown_size_counts_as_one_pixel() -> None:
    unknown = np.zeros((2, 2), dtype=np.int32)
    for augmentation in AUGMENTATIONS:
        plan = draw(augmentation, ids=np.arange(2), sizes=unknown)
        assert plan.windows_N4.tolist() == [[0, 0, 1, 1]] * 2
    letterbox = draw(Augmentation(), ids=np.arange(2), sizes=unknown, fit=LETTERBOX).letterbox
    assert letterbox is not None
    assert letterbox.boxes_N4.tolist() == [[0, 0, 24, 24]] * 2


@pytest.mark.parametrize("augmentation", AUGMENTATIONS[1:], ids=lambda a: f"{a.crop}_{a.flip}")
def test_another_seed_or_epoch_draws_otherwise(augmentation: Augmentation) -> None:
    sizes, ids = sizes_like(200, (64, 64)), np.arange(200)
    plans = [
        draw(augmentation, ids=ids, sizes=sizes, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (1, 0), (0, 1))
    ]
    geometries = [np.column_stack([plan.windows_N4, plan.shifts_N2]) for plan in plans]
    for other in (1, 2):
        assert (geometries[0] != geometries[other]).any(axis=1).mean() > 0.9
        assert (plans[0].flips_N != plans[other].flips_N).mean() > 0.3


def test_no_augmentation_is_the_plan_of_evaluation() -> None:
    sizes, ids = sizes_like(50, (20, 30), (9, 8)), np.arange(50)
    wanted = plan_evaluation(ids, sizes_N2=sizes, fit=WHOLE, size_px=24)
    assert_rows_equal(draw(Augmentation(), ids=ids, sizes=sizes), wanted)


def test_dtypes_and_shapes_are_those_that_executors_are_promised() -> None:
    for augmentation in AUGMENTATIONS:
        plan = draw(augmentation, ids=np.arange(6), sizes=sizes_like(6, (40, 50)))
        arrays = [getattr(plan, name) for name in ARRAYS]
        assert [(array.shape, array.dtype) for array in arrays] == [
            ((6,), np.int64),
            ((6, 4), np.int64),
            ((6, 2), np.int64),
            ((6,), np.bool_),
            ((6,), np.bool_),
        ]


def rrc_windows(
    size: tuple[int, int], count: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> npt.NDArray[np.int64]:
    augmentation = Augmentation(crop="rrc", rrc_scale=scale, rrc_ratio=ratio)
    return draw(augmentation, ids=np.arange(count), sizes=sizes_like(count, size), seed=1).windows_N4


def torchvision_windows(
    size: tuple[int, int], count: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> npt.NDArray[np.int64]:
    image = torch.empty(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (1, 1), (2, 300), (300, 2), (7, 5)])
@pytest.mark.parametrize("scale", [SCALE, (0.9, 1.0), (1e-6, 1e-5)])
def test_every_random_window_lies_inside_its_image_and_is_not_empty(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    tops, lefts, heights, widths = rrc_windows(size, 3000, scale=scale, ratio=RATIO).T
    assert tops.min() >= 0
    assert lefts.min() >= 0
    assert heights.min() >= 1
    assert widths.min() >= 1
    assert (tops + heights).max() <= size[0]
    assert (lefts + widths).max() <= size[1]


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((375, 500), SCALE, RATIO),
        ((500, 375), (0.35, 1.0), RATIO),
        ((160, 480), SCALE, RATIO),  # many tries do not fit, so some fall back
        ((224, 224), (0.2, 0.6), (0.5, 3.0)),
    ],
)
def test_windows_are_distributed_as_those_of_torchvision(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = rrc_windows(size, 4000, scale=scale, ratio=ratio)
    theirs = torchvision_windows(size, 4000, scale=scale, ratio=ratio)
    for quantity in (
        lambda w: w[:, 2] * w[:, 3],  # area
        lambda w: w[:, 3] / w[:, 2],  # width / height
        lambda w: w[:, 0],  # top
        lambda w: w[:, 1],  # left
    ):
        # two-sample Kolmogorov-Smirnov; both draws are fixed, so this fails always or never
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3


def test_a_window_of_fixed_size_is_at_every_place_equally_often() -> None:
    windows = rrc_windows((20, 24), 40_000, scale=(120 / 480, 120 / 480), ratio=(1.2, 1.2))
    assert np.unique(windows[:, 2:], axis=0).tolist() == [[10, 12]]
    places = windows[:, 0] * 13 + windows[:, 1]  # tops 0..10, lefts 0..12
    counts = np.bincount(places, minlength=11 * 13)
    assert len(counts) == 11 * 13
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_test_of_distributions_would_notice_another_scale() -> None:
    ours = rrc_windows((375, 500), 4000, scale=(0.12, 1.0), ratio=RATIO)
    theirs = torchvision_windows((375, 500), 4000, scale=SCALE, ratio=RATIO)
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue < 1e-3


@pytest.mark.parametrize("size", [(10, 500), (500, 10), (1, 300), (300, 1), (11, 230), (3, 80)])
def test_images_too_narrow_for_any_try_get_the_window_that_torchvision_falls_back_to(size: tuple[int, int]) -> None:
    theirs = torchvision_windows(size, 20, scale=SCALE, ratio=RATIO)
    assert len(np.unique(theirs, axis=0)) == 1, "no try of torchvision fits such an image"
    ours = rrc_windows(size, 20, scale=SCALE, ratio=RATIO)
    assert ours.tolist() == theirs.tolist()


def test_the_whole_image_is_the_fallback_where_only_the_scale_does_not_fit() -> None:
    # area 1 at ratio 2 needs a window wider than the image; the image's own ratio is within (0.5, 2)
    windows = rrc_windows((30, 30), 10, scale=(1.0, 1.0), ratio=(1.9, 2.0))
    theirs = torchvision_windows((30, 30), 10, scale=(1.0, 1.0), ratio=(1.9, 2.0))
    assert windows.tolist() == theirs.tolist()


def test_random_flips_are_half_and_independent_of_the_epoch_before() -> None:
    ids, sizes = np.arange(40_000), sizes_like(40_000, (8, 8))
    first, second = (draw(Augmentation(flip="random"), ids=ids, sizes=sizes, epoch=epoch).flips_N for epoch in (0, 1))
    deviation = 0.5 / np.sqrt(40_000)
    for share in (first.mean(), second.mean(), (first ^ second).mean()):
        assert abs(share - 0.5) < 5 * deviation


def test_alternating_flips_alternate_from_a_random_start() -> None:
    ids, sizes = np.arange(10_000), sizes_like(10_000, (8, 8))
    flips = [draw(Augmentation(flip="alternating"), ids=ids, sizes=sizes, epoch=epoch).flips_N for epoch in range(5)]
    assert abs(flips[0].mean() - 0.5) < 5 * 0.5 / 100
    for epoch in range(4):
        assert (flips[epoch + 1] == ~flips[epoch]).all()


def test_without_flips_nothing_is_flipped() -> None:
    plan = draw(Augmentation(crop="pad", pad_px=2), ids=np.arange(500), sizes=sizes_like(500, (8, 8)))
    assert not plan.flips_N.any()
    assert not plan.vertical_flips_N.any()


@pytest.mark.parametrize("prob", [0.02, 0.3, 0.5])
def test_vertical_flips_come_at_their_rate_beside_the_others_and_anew_in_each_epoch(prob: float) -> None:
    count = 40_000
    augmentation = Augmentation(flip="random", vertical_flip_prob=prob)
    first, second = (
        draw(augmentation, ids=np.arange(count), sizes=sizes_like(count, (8, 8)), epoch=epoch) for epoch in (0, 1)
    )
    up_down, other_epoch = first.vertical_flips_N, second.vertical_flips_N
    for happened, wanted in (
        (up_down, prob),
        (other_epoch, prob),
        (up_down & first.flips_N, prob / 2),
        (up_down & other_epoch, prob**2),
    ):
        assert abs(happened.mean() - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count)  # binomial, five deviations


def test_a_vertical_flip_of_probability_one_is_certain() -> None:
    plan = draw(Augmentation(vertical_flip_prob=1.0), ids=np.arange(5000), sizes=sizes_like(5000, (8, 8)))
    assert plan.vertical_flips_N.all()


def test_the_vertical_flips_of_plan_version_1_are_what_they_were_when_they_were_added() -> None:
    plan = draw(
        Augmentation(vertical_flip_prob=0.5), ids=np.arange(1000), sizes=sizes_like(1000, (8, 8)), seed=4, epoch=3
    )
    assert PLAN_VERSION == 1, "a version that draws otherwise has golden numbers of its own"
    assert plan.vertical_flips_N[:8].tolist() == [True, False, True, False, True, False, True, True]
    assert plan.vertical_flips_N.sum() == 476


def test_vertical_flips_leave_every_other_draw_as_it_was() -> None:
    sizes, ids = sizes_like(300, (48, 200)), np.arange(300)
    for augmentation in AUGMENTATIONS[1:4]:
        without = draw(augmentation, ids=ids, sizes=sizes, num_views=2)
        plan = draw(augmentation._replace(vertical_flip_prob=0.5), ids=ids, sizes=sizes, num_views=2)
        assert plan.vertical_flips_N.any()
        assert_rows_equal(plan._replace(vertical_flips_N=without.vertical_flips_N), without)


@pytest.mark.parametrize("pad_px", [1, 4])
def test_shifts_cover_every_pair_of_minus_pad_to_pad_equally_often(pad_px: int) -> None:
    count = 40_000
    plan = draw(Augmentation(crop="pad", pad_px=pad_px), ids=np.arange(count), sizes=sizes_like(count, (32, 32)))
    span = 2 * pad_px + 1
    assert plan.shifts_N2.min() == -pad_px
    assert plan.shifts_N2.max() == pad_px
    cells = (plan.shifts_N2 + pad_px) @ np.array([span, 1])
    assert stats.chisquare(np.bincount(cells, minlength=span * span)).pvalue > 1e-3


def test_a_pad_of_zero_shifts_nothing() -> None:
    plan = draw(Augmentation(crop="pad", pad_px=0), ids=np.arange(100), sizes=sizes_like(100, (8, 8)))
    assert not plan.shifts_N2.any()


def evaluation_windows(sizes: list[tuple[int, int]], *, fit: Fit) -> npt.NDArray[np.int64]:
    sizes_N2 = np.array(sizes, dtype=np.int32)
    return plan_evaluation(np.arange(len(sizes)), sizes_N2=sizes_N2, fit=fit, size_px=24).windows_N4


@pytest.mark.parametrize("size", [(8, 8), (375, 500), (500, 375), (10, 13), (13, 10), (10, 15), (31, 28), (1, 9)])
def test_the_window_of_evaluation_is_the_centre_crop_of_torchvision(size: tuple[int, int]) -> None:
    height, width = size
    places = torch.arange(height * width).reshape(1, height, width)
    cropped = tv.center_crop(places, [min(size), min(size)])[0]
    top, left = divmod(int(cropped[0, 0]), width)
    (window,) = evaluation_windows([size], fit=WHOLE).tolist()
    assert window == [top, left, min(size), min(size)]


@pytest.mark.parametrize(("crop_frac", "side"), [(0.875, 328), (0.5, 188), (0.001, 1)])
def test_a_part_of_the_short_side_is_cropped_from_the_centre(crop_frac: float, side: int) -> None:
    fit = Fit("crop", crop_frac)
    (window,) = evaluation_windows([(375, 500)], fit=fit)
    top, left, height, width = window.tolist()
    assert (height, width) == (side, side)
    assert abs(top + side / 2 - 375 / 2) <= 0.5
    assert abs(left + side / 2 - 500 / 2) <= 0.5


def test_squash_takes_the_whole_image() -> None:
    sizes = [(375, 500), (8, 8), (1, 7)]
    assert evaluation_windows(sizes, fit=Fit("squash", 1.0)).tolist() == [[0, 0, 375, 500], [0, 0, 8, 8], [0, 0, 1, 7]]


def test_training_without_rrc_sees_the_window_of_its_fit() -> None:
    sizes, ids = sizes_like(5, (30, 50)), np.arange(5)
    for fit in (Fit("squash", 1.0), Fit("crop", 0.5)):
        plan = plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=sizes,
            fit=fit,
            augmentation=Augmentation(crop="pad", pad_px=2),
            seed=0,
            epoch=0,
            size_px=24,
        )
        assert plan.windows_N4.tolist() == evaluation_windows(sizes.tolist(), fit=fit).tolist()


def boxes(sizes: list[tuple[int, int]], *, size_px: int) -> list[list[int]]:
    plan = plan_evaluation(
        np.arange(len(sizes)), sizes_N2=np.array(sizes, dtype=np.int32), fit=LETTERBOX, size_px=size_px
    )
    assert plan.windows_N4.tolist() == [[0, 0, height, width] for height, width in sizes], "the whole image"
    assert plan.letterbox is not None
    assert plan.letterbox.border == LETTERBOX.border
    assert plan.letterbox.boxes_N4.dtype == np.int64
    found: list[list[int]] = plan.letterbox.boxes_N4.tolist()
    return found


@pytest.mark.parametrize("size_px", [24, 33, 224])
def test_a_letterboxed_image_has_the_size_that_pillow_contains_it_in_and_lies_in_the_middle(size_px: int) -> None:
    rng = np.random.default_rng(size_px)
    sizes = [
        (375, 500),
        (500, 375),
        (24, 24),
        (33, 11),
        (10, 80),
        *(tuple(rng.integers(20, 400, 2)) for _ in range(200)),
    ]
    for (height, width), (top, left, *sides) in zip(sizes, boxes(sizes, size_px=size_px), strict=True):
        contained = ImageOps.contain(Image.new("L", (int(width), int(height))), (size_px, size_px))
        assert sides == [contained.height, contained.width]
        assert max(sides) == size_px
        for start, side in ((top, sides[0]), (left, sides[1])):
            before, behind = start, size_px - start - side
            assert 0 <= behind - before <= 1, "the odd pixel of the border is right or below"


def test_boxes_of_a_letterbox_as_one_counts_them_by_hand() -> None:
    sizes = [(375, 500), (500, 375), (8, 8), (1, 9), (900, 1), (3, 5), (70_000, 140_000)]
    assert boxes(sizes, size_px=10) == [
        [1, 0, 8, 10],  # 7.5 is rounded to the even number, and 1 of the 2 that are left stands above
        [0, 1, 10, 8],
        [0, 0, 10, 10],
        [4, 0, 1, 10],
        [0, 4, 10, 1],  # 0.01 is at least a pixel
        [2, 0, 6, 10],
        [2, 0, 5, 10],
    ]
    assert boxes([(16, 33), (140_000, 70_000)], size_px=16_384) == [[4220, 0, 7944, 16384], [0, 4096, 16384, 8192]]


def test_training_letterboxes_as_evaluation_does_unless_it_draws_windows() -> None:
    sizes, ids = sizes_like(6, (30, 50), (50, 20)), np.arange(6)
    evaluation = plan_evaluation(ids, sizes_N2=sizes, fit=LETTERBOX, size_px=24).letterbox
    assert evaluation is not None
    for crop in ("none", "pad"):
        plan = draw(Augmentation(crop=crop), ids=ids, sizes=sizes, num_views=2, fit=LETTERBOX)
        assert plan.letterbox is not None
        assert plan.letterbox.boxes_N4.tolist() == evaluation.boxes_N4.tolist() * 2
    drawn = [draw(Augmentation(crop="rrc"), ids=ids, sizes=sizes, fit=fit) for fit in (WHOLE, LETTERBOX)]
    assert_rows_equal(*drawn)
    assert drawn[1].letterbox is None


def test_no_other_fit_has_boxes() -> None:
    for fit in (WHOLE, Fit("squash", 1.0), Fit("crop", 0.5, border=(1, 2, 3))):
        assert draw(AUGMENTATIONS[1], ids=np.arange(4), sizes=sizes_like(4, (30, 50)), fit=fit).letterbox is None


# --- seeds of a pipeline of the user's own

OWN = Augmentation(crop="rrc", flip="random", own_pipeline=True)


def test_seeds_are_drawn_only_where_there_is_a_pipeline_and_change_nothing_else() -> None:
    sizes, ids = sizes_like(100, (48, 200), (300, 30)), np.arange(100)
    plan = draw(OWN, ids=ids, sizes=sizes, seed=4, epoch=3)
    without = draw(OWN._replace(own_pipeline=False), ids=ids, sizes=sizes, seed=4, epoch=3)
    assert_rows_equal(plan, without)
    assert without.own_seeds_N is None
    assert plan_evaluation(ids, sizes_N2=sizes, fit=WHOLE, size_px=8).own_seeds_N is None
    assert rows_of(without, [1, 2]).own_seeds_N is None


def own_seeds(ids: npt.NDArray[np.int64], **options: object) -> list[int]:
    plan = draw(OWN, ids=ids, sizes=sizes_like(300, (40, 40)), **options)  # type: ignore[arg-type]
    assert plan.own_seeds_N is not None
    assert plan.own_seeds_N.dtype == np.int64
    return plan.own_seeds_N.tolist()


def test_a_seed_is_the_bits_of_seed_epoch_copy_view_and_id_above_the_lowest() -> None:
    ids, copies = np.array([7, 0, 7]), np.array([0, 2, 1])
    found = own_seeds(ids, copies=copies, seed=9, epoch=5, num_views=2)
    keys = [(7, 0), (0, 4), (7, 2), (7, 1), (0, 5), (7, 3)]  # copy * 2 + view
    wanted = [int(random_bits(9, Stream.OWN, 5 + (copy << 32), sample_id)) >> 1 for sample_id, copy in keys]
    assert found == wanted
    assert len(set(wanted)) == 6


def test_a_seed_depends_on_its_sample_alone_and_rows_keep_theirs() -> None:
    ids = np.arange(300)
    everything = own_seeds(ids, seed=4, epoch=3)
    assert min(everything) >= 0
    assert max(everything) > 2**62
    shuffled = np.random.default_rng(0).permutation(300)
    assert own_seeds(shuffled, seed=4, epoch=3) == np.array(everything)[shuffled].tolist()
    plan = draw(OWN, ids=ids, sizes=sizes_like(300, (40, 40)), seed=4, epoch=3)
    assert (rows := rows_of(plan, [5, 250])).own_seeds_N is not None
    assert rows.own_seeds_N.tolist() == [everything[5], everything[250]]
    for other in (own_seeds(ids, seed=5, epoch=3), own_seeds(ids, seed=4, epoch=4)):
        assert not set(other) & set(everything)
