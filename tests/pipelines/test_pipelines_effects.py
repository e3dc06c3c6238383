"""Effects: keyed by sample or by pair alone, distributed as torchvision's own draws."""

import itertools
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomErasing, v2

from pipelines import effects
from pipelines.counter import Stream, random_uniform
from pipelines.effects import Effects, EffectSettings, Erasing, Mixing, MixPlan, draw_effects, draw_mix
from pipelines.plan import Fit, Plan, plan_evaluation

SIZE = 32
Ids = npt.NDArray[np.int64]


def plan_of(ids: Ids, *, num_views: int = 1, size_px: int = SIZE) -> Plan:
    sizes_N2 = np.full((len(ids) * num_views, 2), 40, dtype=np.int32)
    plan = plan_evaluation(np.tile(ids, num_views), sizes_N2=sizes_N2, fit=Fit("crop", 1.0), size_px=size_px)
    return plan._replace(num_views=num_views)


def draw(
    settings: EffectSettings,
    ids: Ids,
    *,
    copies: Ids | None = None,
    positions: Ids | None = None,
    seed: int = 0,
    epoch: int = 0,
    num_views: int = 1,
    size_px: int = SIZE,
) -> Effects:
    return draw_effects(
        plan_of(ids, num_views=num_views, size_px=size_px),
        copies_B=np.zeros_like(ids) if copies is None else copies,
        positions_B=np.arange(len(ids)) if positions is None else positions,
        settings=settings,
        seed=seed,
        epoch=epoch,
    )


def mix_of(mixing: Mixing, num_pairs: int, *, seed: int = 0, epoch: int = 0, size_px: int = SIZE) -> MixPlan:
    """Of the first sample of each pair; the second has the same."""
    plan = draw_mix(np.arange(2 * num_pairs), mixing=mixing, seed=seed, epoch=epoch, size_px=size_px)
    return MixPlan(plan.kinds_B[::2], plan.weights_B[::2], plan.boxes_B4[::2])


def assert_rate(found: npt.NDArray[np.bool_], wanted: float) -> None:
    """Within 5 standard deviations of a binomial count, and exact at 0 and 1."""
    deviation = np.sqrt(wanted * (1 - wanted) / len(found))
    assert abs(found.mean() - wanted) <= 5 * deviation


# --- mixing

BOTH = Mixing(mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8, switch_prob=0.5)


def test_both_samples_of_a_pair_have_the_same_weight_box_and_kind() -> None:
    plan = draw_mix(np.arange(2000), mixing=BOTH, seed=3, epoch=2, size_px=SIZE)
    assert {int(kind) for kind in plan.kinds_B} == {0, 1, 2}
    for array in plan:
        assert np.array_equal(array[::2], array[1::2])
    assert [(array.dtype, array.shape) for array in plan] == [
        (np.int8, (2000,)),
        (np.float32, (2000,)),
        (np.int64, (2000, 4)),
    ]


@pytest.mark.parametrize("bounds", [[0, 2000], [0, 2, 700, 2000], list(range(0, 2001, 40))])
def test_a_pair_is_mixed_the_same_in_whichever_batch_of_whichever_rank_it_lies(bounds: list[int]) -> None:
    whole = draw_mix(np.arange(5000), mixing=BOTH, seed=3, epoch=2, size_px=SIZE)
    parts = [
        draw_mix(np.arange(start, stop), mixing=BOTH, seed=3, epoch=2, size_px=SIZE)
        for start, stop in itertools.pairwise(bounds)
    ]
    for array, *pieces in zip(whole, *parts, strict=True):
        assert np.array_equal(np.concatenate(pieces), array[:2000])


def test_the_mix_of_a_pair_does_not_depend_on_the_samples_in_it() -> None:
    settings = EffectSettings(mixing=BOTH)
    one, other = (draw(settings, np.random.default_rng(seed).permutation(100)).mix for seed in (0, 1))
    assert one is not None
    assert other is not None
    for left, right in zip(one, other, strict=True):
        assert np.array_equal(left, right)


def test_another_seed_or_epoch_mixes_otherwise() -> None:
    plans = [mix_of(BOTH, 500, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    for other in (1, 2):
        assert (plans[0].weights_B != plans[other].weights_B).mean() > 0.8


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_weights_are_distributed_as_beta(alpha: float) -> None:
    plan = mix_of(Mixing(mixup_alpha=alpha), 20_000)
    assert (plan.kinds_B == 1).all()
    assert not plan.boxes_B4.any()
    weights = plan.weights_B.astype(np.float64)
    assert kolmogorov_pvalue_below(0.999, weights, alpha) > 1e-3
    assert_rate(weights >= 0.999, stats.beta(alpha, alpha).sf(0.999))


def kolmogorov_pvalue_below(limit: float, weights: npt.NDArray[np.float64], alpha: float) -> float:
    """Kolmogorov-Smirnov of the weights below a limit: near 1, float32 is so coarse that of alpha 0.2 2 % are 1."""
    beta = stats.beta(alpha, alpha)
    pvalue: float = stats.kstest(weights[weights < limit], lambda x: beta.cdf(x) / beta.cdf(limit)).pvalue
    return pvalue


def test_the_test_of_beta_would_notice_another_alpha() -> None:
    weights = mix_of(Mixing(mixup_alpha=0.25), 20_000).weights_B.astype(np.float64)
    assert kolmogorov_pvalue_below(0.999, weights, 0.2) < 1e-3


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 100.0])
def test_every_weight_lies_between_0_and_1_whatever_alpha(alpha: float) -> None:
    for mixing in (Mixing(mixup_alpha=alpha), Mixing(cutmix_alpha=alpha)):
        weights = mix_of(mixing, 20_000).weights_B
        assert np.isfinite(weights).all()
        assert weights.min() >= 0
        assert weights.max() <= 1


@pytest.mark.parametrize("size_px", [1, 2, 31, 32])
def test_the_weight_of_cutmix_is_exactly_the_area_outside_the_box(size_px: int) -> None:
    plan = mix_of(Mixing(cutmix_alpha=1.0), 5000, size_px=size_px)
    assert (plan.kinds_B == 2).all()
    tops, lefts, heights, widths = plan.boxes_B4.T
    assert min(array.min() for array in (tops, lefts, heights, widths)) >= 0
    assert max((tops + heights).max(), (lefts + widths).max()) <= size_px
    areas = heights * widths
    assert np.array_equal(plan.weights_B, (1 - areas / size_px**2).astype(np.float32))
    assert np.array_equal(np.rint((1 - plan.weights_B.astype(np.float64)) * size_px**2), areas)


@pytest.mark.parametrize("size_px", [16, 33])
def test_a_cutmix_box_is_the_one_that_torchvision_makes_of_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, size_px: int
) -> None:
    alpha, seed, epoch = 0.7, 5, 3
    plan = mix_of(Mixing(cutmix_alpha=alpha), 300, seed=seed, epoch=epoch, size_px=size_px)
    draws = random_uniform(seed, Stream.MIX, epoch, np.arange(300)[:, None], np.arange(5))
    theirs = v2.CutMix(alpha=alpha, num_classes=2)
    image = torch.zeros(2, 3, size_px, size_px)
    for pair in range(300):
        weight = float(stats.beta(alpha, alpha).ppf(draws[pair, 2]))
        centre_y, centre_x = np.floor(draws[pair, 3:5] * size_px).astype(int).tolist()
        drawn = iter([torch.tensor([centre_x]), torch.tensor([centre_y])])  # torchvision asks for x first
        theirs._dist = SimpleNamespace(sample=lambda shape, weight=weight: torch.tensor(weight, dtype=torch.float64))
        monkeypatch.setattr(torch, "randint", lambda *args, drawn=drawn, **options: next(drawn))
        made = theirs.make_params([image])
        left, top, right, bottom = made["box"]
        assert plan.boxes_B4[pair].tolist() == [top, left, bottom - top, right - left]
        assert plan.weights_B[pair] == np.float32(made["lam_adjusted"])


def test_cutmix_boxes_are_distributed_as_those_of_torchvision() -> None:
    plan = mix_of(Mixing(cutmix_alpha=1.0), 5000)
    theirs = v2.CutMix(alpha=1.0, num_classes=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [theirs.make_params([torch.zeros(2, 3, SIZE, SIZE)]) for _ in range(5000)]
    boxes = np.array([each["box"] for each in made])  # left, top, right, bottom
    for ours, other in (
        (plan.weights_B, np.array([each["lam_adjusted"] for each in made], dtype=np.float32)),
        (plan.boxes_B4[:, 0], boxes[:, 1]),
        (plan.boxes_B4[:, 1], boxes[:, 0]),
        (plan.boxes_B4[:, 2], boxes[:, 3] - boxes[:, 1]),
        (plan.boxes_B4[:, 3], boxes[:, 2] - boxes[:, 0]),
    ):
        assert stats.ks_2samp(ours, other).pvalue > 1e-3


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("switch_prob", [0.0, 0.25, 1.0])
def test_pairs_are_mixed_and_take_cutmix_as_often_as_asked(prob: float, switch_prob: float) -> None:
    kinds = mix_of(Mixing(0.2, 1.0, prob, switch_prob), 10_000).kinds_B
    assert_rate(kinds > 0, prob)
    if prob:
        assert_rate(kinds[kinds > 0] == 2, switch_prob)


@pytest.mark.parametrize(("mixing", "kinds"), [(Mixing(0.2, 0.0, 0.5), {0, 1}), (Mixing(0.0, 1.0, 0.5), {0, 2})])
def test_switching_counts_only_where_both_are_on(mixing: Mixing, kinds: set[int]) -> None:
    plan = mix_of(mixing._replace(switch_prob=0.5), 4000)
    assert set(plan.kinds_B.tolist()) == kinds
    assert_rate(plan.kinds_B > 0, 0.5)


def test_a_pair_that_is_not_mixed_has_weight_1_and_no_box() -> None:
    plan = mix_of(BOTH, 5000)
    unmixed = plan.kinds_B == 0
    assert (plan.weights_B[unmixed] == 1).all()
    assert not plan.boxes_B4[unmixed].any()
    assert not plan.boxes_B4[plan.kinds_B == 1].any()


@pytest.mark.parametrize(
    ("mixing", "mixes"),
    [(Mixing(), False), (Mixing(0.2), True), (Mixing(0, 1.0), True), (Mixing(0.2, 1.0, 0.0), False)],
)
def test_settings_say_whether_anything_is_mixed(mixing: Mixing, mixes: bool) -> None:
    settings = EffectSettings(mixing=mixing)
    assert settings.mixes is mixes
    assert (draw(settings, np.arange(4)).mix is not None) is mixes


# --- erasing


def erased(erasing: Erasing, count: int, *, size_px: int = SIZE, seed: int = 0) -> Ids:
    drawn = draw(EffectSettings(erasing=erasing), np.arange(count), seed=seed, size_px=size_px).erase_N4
    assert drawn is not None
    assert (drawn.dtype, drawn.shape) == (np.int64, (count, 4))
    return drawn


def torchvision_boxes(count: int, erasing: Erasing, *, size_px: int) -> Ids:
    image = torch.zeros(3, size_px, size_px)
    scale, ratio = tuple(erasing.scale), tuple(erasing.ratio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [RandomErasing.get_params(image, scale, ratio, [0.0])[:4] for _ in range(count)]
    boxes = np.array(made)
    boxes[(boxes[:, 2:] == size_px).all(axis=1)] = 0  # what it gives where no try fits: the image as it was
    return boxes


@pytest.mark.parametrize(
    ("erasing", "size_px"),
    [
        (Erasing(1.0), 32),
        (Erasing(1.0), 224),
        (Erasing(1.0, scale=(0.3, 0.9), ratio=(0.2, 5.0)), 64),  # many tries do not fit
        (Erasing(1.0, scale=(0.1, 0.1), ratio=(1.0, 1.0)), 20),
    ],
)
def test_erased_boxes_are_distributed_as_those_of_torchvision(erasing: Erasing, size_px: int) -> None:
    ours, theirs = erased(erasing, 5000, size_px=size_px), torchvision_boxes(5000, erasing, size_px=size_px)
    for quantity in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],  # area
        lambda boxes: boxes[:, 2] / np.maximum(boxes[:, 3], 1),  # height / width
        lambda boxes: boxes[:, 0],  # top
        lambda boxes: boxes[:, 1],  # left
    ):
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3


def test_the_test_of_erased_boxes_would_notice_another_scale() -> None:
    ours, theirs = erased(Erasing(1.0, scale=(0.02, 0.29)), 5000), torchvision_boxes(5000, Erasing(1.0), size_px=SIZE)
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue < 1e-3


def test_nothing_is_erased_where_no_box_fits() -> None:
    assert not erased(Erasing(1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)), 100).any()
    boxes = erased(Erasing(1.0), 100, size_px=1)
    assert not (boxes[:, 2] * boxes[:, 3]).any()


@pytest.mark.parametrize("prob", [0.1, 0.5, 1.0])
def test_images_are_erased_as_often_as_asked(prob: float) -> None:
    assert_rate(erased(Erasing(prob), 10_000)[:, 2] > 0, prob)


def test_every_box_lies_inside_the_image() -> None:
    for size_px in (2, 5, 32):
        tops, lefts, heights, widths = erased(
            Erasing(1.0, scale=(0.01, 0.99), ratio=(0.1, 10.0)), 5000, size_px=size_px
        ).T
        assert min(array.min() for array in (tops, lefts, heights, widths)) >= 0
        assert max((tops + heights).max(), (lefts + widths).max()) <= size_px


# --- noise, and what rows depend on

ALL = EffectSettings(mixing=BOTH, erasing=Erasing(0.7), noise_std=0.1)


def rows_of_effects(drawn: Effects) -> npt.NDArray[np.int64]:
    """What is drawn for each row, int64 (N, 5)."""
    assert drawn.erase_N4 is not None
    assert drawn.noise_keys_N is not None
    return np.column_stack([drawn.erase_N4, drawn.noise_keys_N])


def test_each_row_depends_on_seed_epoch_id_copy_and_view_alone() -> None:
    rng = np.random.default_rng(0)
    ids, copies = rng.permutation(60), rng.integers(0, 3, 60)
    drawn = rows_of_effects(draw(ALL, ids, copies=copies, seed=2, epoch=5, num_views=2))
    assert len(drawn) == 120
    for row in range(0, 120, 7):
        view, place = divmod(row, 60)
        alone = draw(
            ALL,
            ids[[place]],
            copies=copies[[place]],
            positions=np.array([40]),
            seed=2,
            epoch=5,
            num_views=2,
        )
        assert np.array_equal(rows_of_effects(alone)[view], drawn[row])


def test_seed_epoch_copy_and_view_each_change_what_is_drawn_for_a_sample() -> None:
    ids = np.arange(200)
    first = rows_of_effects(draw(ALL, ids))
    others = [
        rows_of_effects(draw(ALL, ids, seed=1)),
        rows_of_effects(draw(ALL, ids, epoch=1)),
        rows_of_effects(draw(ALL, ids, copies=np.ones_like(ids))),
        rows_of_effects(draw(ALL, ids, num_views=2))[200:],
    ]
    assert np.array_equal(rows_of_effects(draw(ALL, ids, num_views=2))[:200], first), "view 0 is that of one view"
    for other in others:
        assert (other[:, 4] != first[:, 4]).all(), "noise"
        assert (other[:, :4] != first[:, :4]).any(axis=1).mean() > 0.7, "boxes"


def test_noise_keys_are_64_different_bits_for_each_row() -> None:
    keys = draw(ALL, np.arange(5000), num_views=2).noise_keys_N
    assert keys is not None
    assert keys.dtype == np.int64
    assert len(np.unique(keys)) == 10_000
    shares = ((keys.view(np.uint64)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(shares - 0.5).max() <= 5 * 0.5 / 100


def test_what_is_not_asked_for_is_not_drawn() -> None:
    assert draw(EffectSettings(), np.arange(4)) == Effects()
    one = draw(EffectSettings(noise_std=0.25), np.arange(4))
    assert (one.noise_std, one.erase_N4, one.mix) == (0.25, None, None)


def test_mixing_erasing_and_noise_do_not_share_their_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[tuple[Stream, tuple[object, ...]]] = []
    for name in ("random_bits", "random_uniform"):
        inner = getattr(effects, name)

        def recording(seed: int, stream: Stream, *counters: object, inner=inner) -> object:
            streams.append((stream, counters))
            return inner(seed, stream, *counters)

        monkeypatch.setattr(effects, name, recording)
    draw(ALL, np.arange(4))
    assert sorted(stream for stream, _ in streams) == [Stream.ERASE, Stream.NOISE, Stream.MIX]


# --- cutout


@pytest.mark.parametrize(("side_px", "size_px"), [(8, 32), (7, 32), (1, 8), (40, 8)])
def test_cutout_has_its_centre_in_every_pixel_equally_often_and_is_cut_off_at_the_borders(
    side_px: int, size_px: int
) -> None:
    count = 200 * size_px
    boxes_N4 = draw(EffectSettings(cutout_px=side_px), np.arange(count), size_px=size_px).cutout_N4
    assert boxes_N4 is not None
    wanted = {}  # of one axis, by a loop over the places of the centre
    for centre in range(size_px):
        covered = [at for at in range(centre - side_px // 2, centre - side_px // 2 + side_px) if 0 <= at < size_px]
        wanted[covered[0], len(covered)] = wanted.get((covered[0], len(covered)), 0) + 1
    for axis in (0, 1):
        found, counts = np.unique(boxes_N4[:, [axis, axis + 2]], axis=0, return_counts=True)
        assert {(int(start), int(length)) for start, length in found} == set(wanted)
        expected = [count * wanted[int(start), int(length)] / size_px for start, length in found]
        assert len(wanted) == 1 or stats.chisquare(counts, expected).pvalue > 1e-3
    centres = boxes_N4[:, :2] + boxes_N4[:, 2:] / 2
    assert len(wanted) == 1 or abs(np.corrcoef(centres.T)[0, 1]) < 5 / np.sqrt(count)


def test_cutout_differs_by_epoch_copy_view_and_seed_and_beside_erasing() -> None:
    settings = EffectSettings(cutout_px=4, erasing=Erasing(prob=1.0))
    ids = np.arange(64)
    first = draw(settings, ids, num_views=2)
    assert first.cutout_N4 is not None
    assert first.erase_N4 is not None
    assert first.cutout_N4.shape == (128, 4)
    others = [
        first.cutout_N4[64:],
        draw(settings, ids, seed=1).cutout_N4,
        draw(settings, ids, epoch=1).cutout_N4,
        draw(settings, ids, copies=np.ones_like(ids)).cutout_N4,
        first.erase_N4[:64],
    ]
    for other in others:
        assert (first.cutout_N4[:64] != other).any(axis=1).mean() > 0.9
    assert draw(EffectSettings(), ids).cutout_N4 is None
