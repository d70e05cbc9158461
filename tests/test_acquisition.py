"""Edits of the acquisition: nothing at strength 0, more with more strength, never on the lesion, the same every time."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from causalclipseg import acquisition
from causalclipseg.acquisition import EDITS, LEVELS, SEVERITIES, edit, strength_of

OVERLAYS = [name for name in EDITS if EDITS[name].overlay]
TONES = [name for name in EDITS if not EDITS[name].overlay]
STRENGTHS = (0, 0.1, 1 / 3, 0.5, 2 / 3, 0.8, 1)


def picture(height=224, width=224, seed=0):
    """Something smooth with every grey in it, (height, width) uint8."""
    row, column = np.mgrid[:height, :width] / [[[height]], [[width]]]
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, (height, width)), 2)
    return np.clip(128 + 70 * np.cos(6 * column) * np.sin(4 * row + 1) + 150 * texture, 5, 235).astype(np.uint8)


def change(image, name, strength, **settings):
    return float(np.abs(edit(image, name, strength, **settings).image.astype(int) - image).mean())


def lesion(height, width):
    """An ellipse in one lung, (height, width) bool."""
    row, column = np.mgrid[:height, :width]
    return ((row - 0.6 * height) / (0.15 * height)) ** 2 + ((column - 0.3 * width) / (0.12 * width)) ** 2 < 1


def test_every_edit_is_described_and_has_a_rising_level_for_each_severity():
    assert set(EDITS) == set(LEVELS) == {"exposure", "contrast", "noise", "blur", "border", "marker", "electrodes", "line"}
    assert OVERLAYS == ["border", "marker", "electrodes", "line"]
    for name, what in EDITS.items():
        assert what.description[0].isupper() and what.description.count(".") == 1 and what.description.endswith(".")
        assert len(LEVELS[name]) == len(SEVERITIES) and 0 < LEVELS[name][0] < LEVELS[name][1] < LEVELS[name][2]


@pytest.mark.parametrize("name", EDITS)
def test_strength_0_gives_the_picture_back(name):
    image = picture()
    for strength in (0, 0.0, np.float32(0)):
        edited = edit(image, name, strength, seed=3, avoid=lesion(224, 224))
        assert np.array_equal(edited.image, image) and not edited.drawn.any()
    assert edited.image is not image  # so that writing into the result leaves the picture alone


@pytest.mark.parametrize("name", EDITS)
def test_more_strength_changes_more_and_the_picture_itself_stays(name):
    image, visible = picture(), 0
    before = image.copy()
    for seed in range(6):
        changes = [change(image, name, s, seed=seed, avoid=lesion(224, 224)) for s in STRENGTHS]
        assert changes == sorted(changes) and changes[0] == 0
        visible += changes[2] < changes[4] < changes[6]
    assert visible >= 5  # an overlay may, rarely, find no place beside the lesion
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", ["border", "electrodes", "line"])
def test_a_stronger_overlay_covers_what_a_weaker_one_drew(name):
    for seed in range(5):
        weak, strong = (edit(picture(), name, strength, seed=seed).drawn for strength in (0.4, 0.9))
        assert weak.any() and not (weak & ~strong).any()


@pytest.mark.parametrize("name", EDITS)
def test_the_same_arguments_give_the_same_edit_and_another_seed_another(name):
    image = picture()
    one, same, other = (edit(image, name, 0.7, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(one.image, same.image) and np.array_equal(one.drawn, same.drawn)
    assert name == "blur" or not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("name", OVERLAYS)
def test_where_an_overlay_lies_does_not_depend_on_what_the_picture_shows(name):
    dark, grey = (edit(np.full((128, 128), value, np.uint8), name, 1, seed=2).drawn for value in (80, 110))
    assert (dark ^ grey).mean() < 0.002  # but for what rounding hides at its rim


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("shape", [(32, 32), (500, 300), (33, 200)])
def test_any_size_and_what_is_drawn_is_what_changed(name, shape):
    image = picture(*shape)
    for seed in range(4):
        edited = edit(image, name, 1, seed=seed)
        assert edited.image.shape == edited.drawn.shape == shape
        assert edited.image.dtype == np.uint8 and edited.drawn.dtype == bool
        changed = edited.image != image
        assert changed.any()
        assert np.array_equal(edited.drawn, changed if EDITS[name].overlay else np.zeros(shape, bool))


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_takes_the_same_share_of_a_picture_of_any_size(name):
    small, large = (np.mean([edit(picture(n, n), name, 1, seed=s).drawn.mean() for s in range(6)]) for n in (128, 384))
    assert 0.5 < small / large < 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(OVERLAYS), st.integers(32, 90), st.integers(32, 90), st.integers(0, 10 ** 6),
       st.floats(0.05, 1), st.sampled_from((0.0005, 0.003, 0.02, 0.3)), st.integers(0, 4))
def test_overlays_keep_off_any_mask(name, height, width, seed, strength, share, growth):
    rng = np.random.default_rng(seed)
    avoid = ndimage.maximum_filter(rng.random((height, width)) < share, 2 * growth + 1)
    image = picture(height, width)
    edited = edit(image, name, strength, seed=seed, avoid=avoid)
    assert not (edited.drawn & ndimage.binary_dilation(avoid, np.ones((3, 3)))).any()
    assert np.array_equal(edited.drawn, edited.image != image)


@pytest.mark.parametrize("name", ["electrodes", "line"])
def test_a_wire_keeps_off_single_pixels_in_its_way(name):
    image, rng = picture(), np.random.default_rng(0)
    for seed in range(12):
        avoid = edit(image, name, 1, seed=seed).drawn & (rng.random(image.shape) < 0.004)
        assert not (edit(image, name, 1, seed=seed, avoid=avoid).drawn & avoid).any()


@pytest.mark.parametrize("name", ["electrodes", "line", "marker"])
def test_what_is_drawn_fades_in_as_a_slider_moves(name):
    image = np.full((128, 128), 60, np.uint8)
    pictures = [edit(image, name, strength, seed=1).image.astype(int) for strength in np.linspace(0, 1 / 3, 34)]
    assert max(np.abs(a - b).max() for a, b in zip(pictures[:-1], pictures[1:])) < 25


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_keep_off_a_lesion_but_still_appear(name):
    image, avoid = picture(), lesion(224, 224)
    drawn = [edit(image, name, 1, seed=seed, avoid=avoid).drawn for seed in range(10)]
    near = ndimage.binary_dilation(avoid, np.ones((3, 3)), iterations=2)  # the margin of 1 % is 2 pixels
    assert not any((d & near).any() for d in drawn) and sum(d.any() for d in drawn) >= 9
    kinds = [edit(image, name, 1, seed=1, avoid=a).image for a in (avoid, avoid.astype(np.uint8), avoid * 255.0)]
    assert all(np.array_equal(kinds[0], k) for k in kinds)


@pytest.mark.parametrize("name", EDITS)
def test_a_mask_without_room_leaves_the_picture_and_one_that_is_empty_asks_for_nothing(name):
    image = picture(96, 96)
    full = edit(image, name, 1, seed=1, avoid=np.ones((96, 96), bool))
    free, empty = edit(image, name, 1, seed=1), edit(image, name, 1, seed=1, avoid=np.zeros((96, 96), bool))
    assert np.array_equal(free.image, empty.image) and np.array_equal(free.drawn, empty.drawn)
    assert not full.drawn.any() and np.array_equal(full.image, image if name in OVERLAYS else free.image)


def test_an_overlay_moves_as_a_whole_and_is_not_cut():
    """What is laid beside a small obstacle has the size of what is laid without one."""
    image, free = picture(), edit(picture(), "marker", 1, seed=1).drawn
    moved = edit(image, "marker", 1, seed=1, avoid=free).drawn
    assert moved.any() and not (moved & free).any() and 0.8 < moved.sum() / free.sum() < 1.25


@pytest.mark.parametrize("name", ["exposure", "contrast"])
def test_exposure_and_contrast_keep_the_order_of_the_greys(name):
    ramp = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    for strength in STRENGTHS:
        for seed in (0, 1):
            greys = edit(ramp, name, strength, seed=seed).image.ravel()[::16].astype(int)
            assert np.array_equal(edit(ramp, name, strength, seed=seed).image.ravel(), greys.repeat(16))
            assert (np.diff(greys) >= 0).all() and len(set(greys)) > 80


def test_the_seed_chooses_the_direction_of_exposure_and_contrast():
    image = picture()
    for seed in (0, 2, 10):
        assert edit(image, "exposure", 0.5, seed=seed).image.mean() > image.mean() > edit(image, "exposure", 0.5, seed=seed + 1).image.mean()
        assert edit(image, "contrast", 0.5, seed=seed).image.std() < image.std() < edit(image, "contrast", 0.5, seed=seed + 1).image.std()


def test_noise_grows_with_strength_and_with_the_density_of_tissue():
    spread = lambda grey, strength: edit(np.full((128, 128), grey, np.uint8), "noise", strength, seed=1).image.std()
    levels = [spread(128, strength_of(s)) for s in SEVERITIES]
    assert np.allclose(levels, 255 * np.array(LEVELS["noise"]), rtol=0.05)
    assert spread(50, 0.6) < spread(120, 0.6) < spread(190, 0.6)
    assert abs(edit(np.full((128, 128), 128, np.uint8), "noise", 1).image.mean() - 128) < 0.5


def test_noise_keeps_its_share_of_the_picture_when_a_large_one_is_made_smaller():
    flat = lambda n: edit(np.full((n, n), 128, np.uint8), "noise", 1).image
    spread = lambda n: flat(n).reshape(112, n // 112, 112, n // 112).mean((1, 3)).std()
    assert 0.8 < spread(448) / spread(224) < 1.25


def test_blur_lowers_the_energy_of_the_gradient():
    energy = [sum((g ** 2).mean() for g in np.gradient(edit(picture(), "blur", s).image.astype(float))) for s in (0, 1 / 3, 2 / 3, 1)]
    assert energy[3] < energy[2] < energy[1] < 0.95 * energy[0]


def test_a_border_is_dark_and_lies_at_the_edge():
    edited = edit(np.full((200, 200), 180, np.uint8), "border", 1, seed=3)
    assert 0.02 < edited.drawn.mean() < 0.5 and not edited.drawn[60:140, 60:140].any()
    assert np.median(edited.image[edited.drawn]) < 20


def test_severities_map_onto_strength():
    assert [strength_of(s) for s in SEVERITIES] == sorted(strength_of(s) for s in SEVERITIES) and strength_of(3) == 1
    for severity in (0, 4, 1.5):
        with pytest.raises(ValueError, match=r"severity must be one of \(1, 2, 3\)"):
            strength_of(severity)


@pytest.mark.parametrize("arguments, message", [
    (dict(name="x-ray"), "unknown edit 'x-ray'; known are exposure, contrast, noise"),
    (dict(image=picture() / 255), "grey uint8 array .* not ndarray float64"),
    (dict(image=np.zeros((64, 64, 3), np.uint8)), r"\(64, 64, 3\)"),
    (dict(image=np.zeros((31, 64), np.uint8)), "at least 32 x 32"),
    (dict(image=[[1, 2]]), "not list"),
    (dict(strength=1.01), r"strength must be a number in \[0, 1\], not 1.01"),
    (dict(strength=-0.1), "strength"),
    (dict(strength=float("nan")), "strength"),
    (dict(strength="0.5"), "strength"),
    (dict(seed=-1), "seed must be a whole number of at least 0, not -1"),
    (dict(seed=0.5), "seed"),
    (dict(avoid=np.zeros((10, 10), bool)), r"avoid has shape \(10, 10\), but the image \(224, 224\)"),
])  # fmt: skip
def test_bad_arguments_are_refused_in_clear_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        edit(**{"image": picture(), "name": "marker", "strength": 0.5, **arguments})


def test_large_seeds_and_numpy_numbers_are_fine():
    a, b = (edit(picture(), "line", strength, seed=seed) for strength, seed in ((0.5, 2 ** 63 + 1), (np.float64(0.5), np.uint64(2 ** 63 + 1))))
    assert np.array_equal(a.image, b.image)


# The drawing that overlays are made of ---------------------------------------------------------

def test_distance_is_that_of_a_full_search():
    points = np.random.default_rng(0).uniform(-4, 30, (40, 2))
    row, column = np.mgrid[:24, :30]
    full = np.hypot(row[..., None] - points[:, 0], column[..., None] - points[:, 1]).min(-1)
    for reach in (0.7, 3, 6.4):
        assert np.allclose(acquisition.distance_to(points, (24, 30), reach), np.minimum(full, reach), atol=1e-5)


def test_curves_are_dense_and_end_at_their_ends():
    control = np.array([(0, 0), (80, -20), (-30, 90), (60, 50)], float)
    points = acquisition.curve(control, 0.5)
    assert np.allclose(points[[0, -1]], control[[0, -1]]) and np.hypot(*np.diff(points, axis=0).T).max() <= 0.5
    assert np.allclose(acquisition.curve(np.stack([control, control + 1]), 0.5)[0], acquisition.curve(control, 0.5))


def test_every_marker_can_be_written_and_letters_differ():
    for text in acquisition.MARKERS:
        points = acquisition.letters(text)
        assert points.min() == 0 and points[:, 0].max() == 1
    assert len({acquisition.letters(letter).tobytes() for letter in acquisition._STROKES}) == len(acquisition._STROKES)


def test_another_acquisition_for_training_changes_the_picture_and_repeats_with_its_generator():
    image = picture(64, 64)
    results = [acquisition.other_acquisition(image, np.random.default_rng(k)) for k in (1, 1, 2)]
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])
    assert all(r.shape == image.shape and r.dtype == np.uint8 and not np.array_equal(r, image) for r in results)


def test_its_patches_fall_anywhere():
    flat = np.full((64, 64), 128, np.uint8)
    hit = np.mean([_patched(flat, seed) for seed in range(60)], axis=0)
    assert hit.min() > 0.02 and 0.1 < hit.mean() < 0.6


def test_other_surroundings_keep_the_field_and_take_the_grey_of_the_picture():
    images = np.stack([picture(64, 64), picture(64, 64) // 2])
    field = np.zeros((64, 64), bool)
    field[20:50, 10:40] = True
    found = acquisition.in_other_surroundings(images, images[::-1] // 3, field)
    assert found.dtype == np.uint8 and np.array_equal(found[:, field], images[:, field])
    for before, after in zip(images[:, ~field].astype(float), found[:, ~field]):
        assert after.mean() == pytest.approx(before.mean(), abs=2) and after.std() == pytest.approx(before.std(), rel=0.1)
    flat = np.full((1, 64, 64), 7, np.uint8)
    assert np.isfinite(acquisition.in_other_surroundings(images[:1], flat, field)).all()


def _patched(image, seed):
    """Pixels that differ between the same draw with patches and without."""
    return acquisition.other_acquisition(image, np.random.default_rng(seed)) != acquisition.other_acquisition(image, np.random.default_rng(seed), patches=0)
