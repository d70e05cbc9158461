"""The synthetic chest X-rays: reproducible, plausible, visible, and written as a user's data lies on disk."""
import json

import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image
from scipy import ndimage

from causalclipseg import phantoms, reports

NUMBER = 60


@pytest.fixture(scope="module")
def sample():
    return [phantoms.sample_phantom(seed) for seed in range(NUMBER)]


def test_types_and_shapes(sample):
    for p in sample:
        assert p.image.shape == p.mask.shape == p.acquisition.shape == (224, 224) and p.lungs.shape == (2, 224, 224)
        assert p.image.dtype == np.uint8 and p.mask.dtype == p.lungs.dtype == p.acquisition.dtype == bool
        assert json.loads(json.dumps(p.variables)) == p.variables


def test_a_seed_gives_the_same_phantom(sample):
    for seed in (0, 17):
        again = phantoms.sample_phantom(seed)
        for field in ("image", "mask", "lungs", "acquisition"):
            assert np.array_equal(getattr(again, field), getattr(sample[seed], field))
        assert again.report == sample[seed].report and again.variables == sample[seed].variables


def test_seeds_give_different_phantoms(sample):
    assert len({p.image.tobytes() for p in sample}) == NUMBER
    assert len({p.mask.tobytes() for p in sample}) == NUMBER
    assert len({p.report for p in sample}) > NUMBER / 5


@pytest.mark.parametrize("size", [64, 97, 256])
def test_other_sizes_show_the_same_kind_of_picture(size):
    p = phantoms.sample_phantom(3, size)
    assert p.image.shape == (size, size) and p.mask.any() and p.image.std() > 20


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 64"):
        phantoms.sample_phantom(0, 32)
    with pytest.raises(ValueError, match="seed"):
        phantoms.sample_phantom(-1)


@pytest.mark.parametrize("world", [None, phantoms.World(size=64)])
def test_a_data_set_of_a_bad_seed_or_size_is_refused_by_what_was_given(tmp_path, world):
    with pytest.raises(ValueError, match="^a seed must be 0 or more, not -1$"):
        phantoms.write_dataset(tmp_path / "set", 3, seed=-1, size=64, world=world)
    with pytest.raises(ValueError, match="^a phantom needs a size of at least 64 pixels, not 10$"):
        phantoms.write_dataset(tmp_path / "set", 3, size=10)
    assert not any(tmp_path.iterdir())


def test_statistics_resemble_the_real_masks(sample):
    """QaTa-COV19: area 1.2 / 10.2 / 29.3 % at the 5th, 50th, 95th percentile; 3/4 bilateral; mostly two areas."""
    area = np.array([p.mask.mean() for p in sample]) * 100
    low, middle, high = np.percentile(area, (5, 50, 95))
    assert 0.3 < low < 3 and 7 < middle < 14 and 22 < high < 38 and area.min() > 0.1
    count = np.array([ndimage.label(p.mask, np.ones((3, 3)))[1] for p in sample])
    assert 0.55 < np.mean(count == 2) < 0.85 and 0.08 < np.mean(count == 1) < 0.35 and count.max() <= 4
    bilateral = [p.mask[:, :112].any() and p.mask[:, 112:].any() for p in sample]
    assert 0.62 < np.mean(bilateral) < 0.90
    rows = np.mean([p.mask for p in sample], axis=(0, 2))
    assert rows[112:].sum() > rows[:112].sum()  # more below than above
    assert 100 < np.mean([p.image.mean() for p in sample]) < 185


def test_the_lungs_lie_in_their_halves_and_hold_the_lesions(sample):
    for p in sample:
        assert not p.lungs[0][:, 112:].any() and not p.lungs[1][:, :112].any()
        assert 0.05 < p.lungs[0].mean() < 0.25 and 0.05 < p.lungs[1].mean() < 0.25
        assert not (p.mask & ~p.lungs.any(0)).any()


def test_no_border_hides_a_lesion(sample):
    for p in sample:
        hidden = p.mask & p.acquisition
        assert hidden.sum() < 0.25 * p.mask.sum()  # leads may cross it
        edge = ndimage.label(p.acquisition & (p.image < 20))[0]
        outer = np.unique(np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]]))
        assert not (np.isin(edge, outer[outer > 0]) & p.mask).any()


def test_lesions_are_visible():
    """The same patient under the same acquisition and noise, with lesions and without."""
    for seed in range(20):
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
        anatomy = phantoms.sample_anatomy(streams[0], 224)
        ill = phantoms.sample_lesions(streams[1], anatomy)
        well = phantoms.Lesions(np.zeros_like(ill.mask), np.zeros_like(ill.density), {})
        acquisition = phantoms.sample_acquisition(streams[2], 224)
        noise = np.random.SeedSequence(seed).spawn(4)[3]
        with_lesions, without = (
            phantoms.render(np.random.default_rng(noise), anatomy, x, acquisition).astype(float) for x in (ill, well))
        assert np.array_equal(with_lesions, phantoms.sample_phantom(seed).image)
        difference = with_lesions - without
        assert difference[ill.mask].mean() > 10  # of 255
        clear = anatomy.lungs.any(0) & ~ndimage.binary_dilation(ill.mask, iterations=6)
        if clear.any():
            assert difference[ill.mask].mean() > 5 * abs(difference[clear].mean())


@pytest.mark.parametrize("part", ["sample_anatomy", "sample_lesions", "sample_acquisition"])
def test_streams_are_independent(monkeypatch, part):
    """However much one part draws, the others stay as they are."""
    before, original = phantoms.sample_phantom(4, 96), getattr(phantoms, part)

    def draws_more(rng, *given):
        made = original(rng, *given)
        rng.random(1000)
        return made

    monkeypatch.setattr(phantoms, part, draws_more)
    after = phantoms.sample_phantom(4, 96)
    assert np.array_equal(before.image, after.image) and before.variables == after.variables
    assert np.array_equal(before.mask, after.mask) and np.array_equal(before.acquisition, after.acquisition)


def test_the_same_stream_repeats_a_part_and_another_does_not():
    anatomy, same = (phantoms.sample_anatomy(np.random.default_rng(1), 96) for _ in range(2))
    lesions = [phantoms.sample_lesions(np.random.default_rng(s), anatomy) for s in (1, 1, 2)]
    assert np.array_equal(lesions[0].mask, lesions[1].mask) and not np.array_equal(lesions[0].mask, lesions[2].mask)
    assert np.array_equal(anatomy.tissue, same.tissue)  # nothing was changed in place


def test_the_sentence_agrees_with_the_mask(sample):
    for p in sample:
        said = reports.parse(p.report)
        assert bool(said.left) == p.mask[:, :112].any() and bool(said.right) == p.mask[:, 112:].any()
        assert said.count == ndimage.label(p.mask, np.ones((3, 3)))[1] and not said.unread
        assert p.variables["lesions"]["sides"] == [s for s in ("left", "right") if getattr(said, s)]


def rows(path):
    return [tuple(row) for row in load_workbook(path, read_only=True).active.iter_rows(values_only=True)]


def test_the_data_set_has_the_kaggle_layout(tmp_path):
    seen = []
    root = phantoms.write_dataset(tmp_path / "a" / "set", 10, seed=5, size=64, progress=lambda k, n: seen.append((k, n)))
    assert root == tmp_path / "a" / "set" and seen == [(k, 10) for k in range(1, 11)]
    about = json.loads((root / "phantoms.json").read_text())
    assert about["seed"] == 5 and about["version"] == phantoms.VERSION and about["count"] == 10 == len(about["pictures"])

    train, test = rows(root / "Train_text_for_Covid19.xlsx"), rows(root / "Test_text_for_Covid19.xlsx")
    ids = [rows(root / name) for name in ("Train_ID.xlsx", "Val_ID.xlsx")]
    assert train[0] == test[0] == ("Image", "Description") and ids[0][0] == ids[1][0] == ("Image",)
    assert [r[0] for r in train[1:]] == [r[0] for r in ids[0][1:] + ids[1][1:]]
    assert len(ids[0]) - 1 == 6 and len(ids[1]) - 1 == 2 and len(test) - 1 == 2
    for folder, listed in (("Train Set", train[1:]), ("Test Set", test[1:])):
        images, masks = (root / "QaTa-COV19-v2" / folder / part for part in ("Images", "Ground-truths"))
        assert sorted(f.name for f in masks.iterdir()) == sorted(name for name, _ in listed)
        assert sorted(f.name for f in images.iterdir()) == sorted(name.removeprefix("mask_") for name, _ in listed)
        for name, sentence in listed:
            mask, image = Image.open(masks / name), Image.open(images / name.removeprefix("mask_"))
            assert mask.mode == image.mode == "L" and mask.size == image.size == (64, 64)
            assert set(np.unique(mask)) == {0, 255}
            assert sentence == reports.describe(np.asarray(mask) > 127)
    first = about["pictures"][0]
    assert np.array_equal(phantoms.sample_phantom(first["seed"], 64).image,
                          Image.open(root / "QaTa-COV19-v2" / "Train Set" / "Images" / first["image"]))


def test_the_same_seed_writes_the_same_pictures(tmp_path):
    a, b, c = (phantoms.write_dataset(tmp_path / name, 3, seed=s, size=64) for name, s in (("a", 1), ("b", 1), ("c", 2)))
    read = lambda root: [f.read_bytes() for f in sorted((root / "QaTa-COV19-v2").rglob("*.png"))]
    assert read(a) == read(b) and len(read(a)) == 6 and not set(read(a)) & set(read(c))


@pytest.mark.parametrize("count", [3, 4, 7, 50])
@pytest.mark.parametrize("splits", [(0.6, 0.15, 0.25), (1, 1, 1), (0.98, 0.01, 0.01)])
def test_every_split_has_a_picture(count, splits):
    sizes = phantoms._split_sizes(count, splits)
    assert sum(sizes) == count and min(sizes) >= 1


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 3"):
        phantoms.write_dataset(tmp_path / "few", 2)
    for splits in ((0.5, 0.5), (0.5, 0.5, 0), (0.7, -0.1, 0.4)):
        with pytest.raises(ValueError, match="three positive"):
            phantoms.write_dataset(tmp_path / "few", 5, splits=splits)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="mine"):
        phantoms.write_dataset(tmp_path / "mine", 3, size=64)
    with pytest.raises(ValueError, match="is a file"):
        phantoms.write_dataset(tmp_path / "mine" / "thesis.txt", 3, size=64)
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["mine", "thesis.txt"]

    written = phantoms.write_dataset(tmp_path / "set", 3, size=64)
    (written / "notes.txt").write_text("a user's own file beside ours")
    with pytest.raises(ValueError, match="set"):
        phantoms.write_dataset(written, 3, size=64)
    assert (written / "notes.txt").exists()


def test_an_earlier_set_is_replaced_and_an_empty_directory_filled(tmp_path):
    (tmp_path / "set").mkdir()
    phantoms.write_dataset(tmp_path / "set", 5, size=64)
    phantoms.write_dataset(tmp_path / "set", 3, size=64, seed=1)
    assert len(list((tmp_path / "set" / "QaTa-COV19-v2").rglob("phantom_*.png"))) == 3
    assert [f.name for f in tmp_path.iterdir()] == ["set"]


def test_nothing_half_written_remains_after_an_error(tmp_path):
    def stop(done, count):
        if done == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        phantoms.write_dataset(tmp_path / "set", 4, size=64, progress=stop)
    assert list(tmp_path.iterdir()) == []

    phantoms.write_dataset(tmp_path / "set", 3, size=64)
    before = sorted(f.read_bytes() for f in (tmp_path / "set").rglob("*.png"))
    with pytest.raises(KeyboardInterrupt):
        phantoms.write_dataset(tmp_path / "set", 4, size=64, seed=9, progress=stop)
    assert sorted(f.read_bytes() for f in (tmp_path / "set").rglob("*.png")) == before
    assert [f.name for f in tmp_path.iterdir()] == ["set"]


def test_the_folder_one_works_in_is_not_replaced(tmp_path, monkeypatch):
    phantoms.write_dataset(tmp_path / "set", 3, size=64)
    monkeypatch.chdir(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="the folder you are in"):
        phantoms.write_dataset(".", 3, size=64)
    assert sorted(tmp_path.rglob("*")) == before
    phantoms.write_dataset("../set/../other", 3, size=64)
    assert (tmp_path / "other" / "phantoms.json").exists()
