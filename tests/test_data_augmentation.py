"""The data set, its batches, and augmentation that keeps picture, mask and sentence in step."""
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from causalclipseg import reports
from causalclipseg.data import (DataError, ReferringDataset, Sample, TrainTransform, collate, item_generator,
                                load_image, load_mask)
from causalclipseg.data.joining import joined
from causalclipseg.data.transforms import TONE_SHARES, refer_to_part

SIZE = 32
BOTH = "Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung."
LEFT = "Unilateral pulmonary infection, one infected area, lower left lung."
STILL = dict(edit=0, flip=0, rotate=0, shift=0, scale=None, exposure=0, noise=0, blur=0, refer=0, paraphrase=0, generic=0,
             none=0)  # every edit off


# ---------------------------------------------------------------- data set

@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Nine random pictures of 32 by 32 pixels, each with a lesion low on the left."""
    root, rng, found = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[16:30, 3:14] = 255
    for i in range(9):
        files = root / f"{i}.png", root / f"mask_{i}.png"
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(files[0])
        Image.fromarray(mask).save(files[1])
        found.append(Sample(*files, LEFT, str(i), "train", "other", None))
    return found


def test_items_and_batches(samples):
    cached, read = ReferringDataset(samples, size=SIZE), ReferringDataset(samples, size=SIZE, cache=False)
    native = ReferringDataset(samples, size=None)
    for a, b, c, s in zip(cached, read, native, samples, strict=True):
        assert a["image"].shape == a["mask"].shape == (1, SIZE, SIZE)
        assert a["image"].dtype == a["mask"].dtype == torch.uint8 and (a["report"], a["name"]) == (s.report, s.name)
        assert np.array_equal(a["image"][0], load_image(s.image)) and np.array_equal(a["mask"][0], load_mask(s.mask))
        for other in (b, c):
            assert all(torch.equal(a[k], other[k]) for k in ("image", "mask"))
    batch = collate([cached[i] for i in (2, 0)])
    assert batch["images"].shape == (2, 3, SIZE, SIZE) and batch["masks"].shape == (2, 1, SIZE, SIZE)
    assert batch["images"].dtype == batch["masks"].dtype == torch.float32 and 0 <= batch["images"].min()
    assert torch.equal(batch["images"][0, 2] * 255, cached[2]["image"][0].float()) and batch["images"].max() <= 1
    assert batch["masks"].unique().tolist() == [0, 1] and batch["indices"].tolist() == [2, 0]
    assert batch["names"] == [samples[2].name, samples[0].name] and batch["reports"] == [LEFT, LEFT]
    with pytest.raises(IndexError):
        cached[len(samples)]


def test_pictures_are_decoded_once_unless_told_otherwise(samples, tmp_path):
    copies = []
    for s in samples[:2]:
        files = tmp_path / s.image.name, tmp_path / s.mask.name
        for old, new in zip((s.image, s.mask), files):
            shutil.copy(old, new)
        copies.append(Sample(*files, s.report, s.name, s.split, s.source, s.subject))
    cached, read = ReferringDataset(copies, size=SIZE), ReferringDataset(copies, size=SIZE, cache=False)
    before = cached[0]["image"], read[0]["image"]
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(cached[0]["image"], before[0]) and torch.equal(before[0], before[1]) and cached[1]["mask"].any()
    with pytest.raises(DataError, match="0.png is not there"):
        read[0]


def test_other_sizes_are_resized_and_transforms_do_not_touch_the_cache(samples):
    data = ReferringDataset(samples, size=20)
    image = np.asarray(Image.open(samples[0].image).resize((20, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(data[0]["image"][0], image) and data[0]["mask"].unique().tolist() == [0, 1]
    before = data[0]["image"].clone()
    data[0]["image"].zero_()
    assert torch.equal(data[0]["image"], before)


def test_what_is_wrong_with_a_pair_is_said(tmp_path, samples):
    Image.new("L", (5, 4)).save(tmp_path / "small.png")
    s = samples[0]
    with pytest.raises(DataError, match="32×32 pixels, its mask .*small.png 5×4"):
        ReferringDataset([Sample(s.image, tmp_path / "small.png", "", "x", "train", "other", None)])
    with pytest.raises(DataError, match="no mask"):
        ReferringDataset([Sample(s.image, None, "", "x", "train", "other", None)])
    with pytest.raises(DataError, match="empty"):
        ReferringDataset([])
    small = Sample(tmp_path / "small.png", tmp_path / "small.png", "", "x", "train", "other", None)
    with pytest.raises(DataError, match="one size"):
        collate([*ReferringDataset([s, small], size=None)])


def test_augmentation_depends_on_seed_epoch_and_index_only(samples):
    data = ReferringDataset(samples, TrainTransform(SIZE), size=SIZE, seed=3)
    data.set_epoch(2)
    first = [data[i] for i in range(len(data))]
    torch.rand(5), random.random(), np.random.rand()  # the global generators play no part
    again = ReferringDataset(samples, TrainTransform(SIZE), size=SIZE, seed=3)
    again.set_epoch(2)
    for i in reversed(range(len(data))):
        item = again[i]
        assert item["report"] == first[i]["report"] and item["plan"] == first[i]["plan"]
        assert all(torch.equal(item[k], first[i][k]) for k in ("image", "mask"))
    pictures = collate(first)["images"]
    for seed, epoch in ((3, 1), (4, 2)):
        other = ReferringDataset(samples, TrainTransform(SIZE), size=SIZE, seed=seed)
        other.set_epoch(epoch)
        assert not torch.equal(collate([other[0]])["images"][0], pictures[0])
    plain = ReferringDataset(samples, size=SIZE)[1]
    image, _, report = TrainTransform(SIZE)(plain["image"], plain["mask"], plain["report"], item_generator(3, 2, 1))
    assert torch.equal(image / 255, pictures[1, :1]) and report == first[1]["report"]
    assert item_generator(1, 2, 3).initial_seed() != item_generator(1, 3, 2).initial_seed()


def test_workers_give_the_same_as_none_and_hear_of_the_epoch(samples):
    data = ReferringDataset(samples, TrainTransform(SIZE), size=SIZE)
    loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collate, num_workers=2,
                                         persistent_workers=True)
    seen = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        for batch in loader:
            here = collate([data[int(i)] for i in batch["indices"]])
            assert torch.equal(batch["images"], here["images"]) and torch.equal(batch["masks"], here["masks"])
            assert batch["reports"] == here["reports"]
        seen.append(batch["images"])
    assert not torch.equal(*seen)


# ---------------------------------------------------------------- two patients in one picture

def test_a_joined_picture_holds_two_patients_and_a_sentence_that_is_true_of_it(samples, tmp_path):
    """Left halves of `samples` (a lesion low on the left) beside right halves: one other patient has a lesion there, too."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[2:8, 20:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    everybody = [*samples, Sample(samples[0].image, tmp_path / "mask.png", "", "9", "train", "other", None)]
    data = ReferringDataset(everybody, TrainTransform(SIZE, **STILL, join=1.0), size=SIZE)
    plain, heard = ReferringDataset(everybody, size=SIZE), set()
    for epoch in range(4):
        data.set_epoch(epoch)
        for i in range(len(data)):
            item = data[i]
            assert torch.equal(item["image"][..., : SIZE // 2], plain[i]["image"][..., : SIZE // 2])
            assert torch.equal(item["mask"][..., : SIZE // 2], plain[i]["mask"][..., : SIZE // 2])
            assert any(torch.equal(item["mask"][..., SIZE // 2 :], other["mask"][..., SIZE // 2 :]) for other in plain)
            assert item["report"] == reports.describe(item["mask"][0] > 0)
            heard.add(reports.parse(item["report"]).side)
            assert all(torch.equal(item[k], data[i][k]) for k in ("image", "mask"))  # of seed, epoch and index alone
    assert heard >= {"left", "both"}


def test_the_other_patient_is_brought_to_the_same_tones_and_the_masks_are_cut_alike():
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(60, 10, (40, 40)).round().astype(np.uint8), rng.normal(180, 20, (40, 40)).round().astype(np.uint8)
    two, other = rng.integers(0, 2, (2, 40, 40), dtype=np.uint8), rng.integers(0, 2, (2, 40, 40), dtype=np.uint8)
    image, mask = joined(dark, two, bright, other)
    assert image.dtype == mask.dtype == np.uint8 and image.shape == (40, 40) and mask.shape == (2, 40, 40)
    assert np.array_equal(image[:, :20], dark[:, :20]) and np.array_equal(mask[..., :20], two[..., :20])
    assert np.array_equal(mask[..., 20:], other[..., 20:])
    plain = (bright[:, 20:] - bright.mean()) / bright.std() * dark.std() + dark.mean()
    assert np.abs(image[:, 20:] - plain).max() <= 0.51
    flat = np.full((40, 40), 7, np.uint8)
    assert joined(flat, two, flat, other)[0].tolist() == flat.tolist()  # a picture without spread


# ---------------------------------------------------------------- augmentation

def upright(seed, both=True):
    """A picture and a mask with a lesion low on the left, and one low on the right where `both`."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((1, 48, 48), np.uint8)
    mask[0, 34:44, 6:18] = 1
    if both:
        mask[0, 30:42, 30:44] = 1
    return torch.from_numpy(rng.integers(0, 256, (1, 48, 48), dtype=np.uint8)), torch.from_numpy(mask)


def test_everything_off_changes_nothing():
    image, mask = upright(0)
    out = TrainTransform(48, **STILL)(image, mask, BOTH)
    assert torch.equal(out[0], image) and torch.equal(out[1], mask) and out[2] == BOTH
    assert type(out[0]) is type(out[1]) is torch.Tensor


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), side=st.sampled_from(["left", "right"]), both=st.booleans(),
       zones=st.sampled_from(["upper", "lower", "upper middle", "all"]))
def test_a_flip_swaps_sides_and_mask_together(seed, side, both, zones):
    other = "right" if side == "left" else "left"
    report = f"Unilateral pulmonary infection, one infected area, {zones} {side} lung."
    if both:
        report = f"Bilateral pulmonary infection, two infected areas, {zones} {side} lung and middle {other} lung."
    image, mask = upright(seed, both)
    transform = TrainTransform(48, **{**STILL, "flip": 1})
    flipped, flipped_mask, said = transform(image, mask, report, item_generator(seed, 0, 0))
    assert torch.equal(flipped, image.flip(-1)) and torch.equal(flipped_mask, mask.flip(-1))
    before, after = reports.parse(report), reports.parse(said)
    assert (after.left, after.right) == (before.right, before.left) and after.count == before.count
    back = transform(flipped, flipped_mask, said, item_generator(seed, 0, 0))
    assert torch.equal(back[0], image) and torch.equal(back[1], mask)
    assert reports.parse(back[2]) == before


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), both=st.booleans(), flip=st.booleans())
def test_a_referring_sentence_keeps_the_named_part_only(seed, both, flip):
    image, mask = upright(seed, both)
    refer = 1 if both else 0.5
    transform = TrainTransform(48, **{**STILL, "flip": float(flip), "refer": refer})
    whole = (mask.flip(-1) if flip else mask)[0].numpy().astype(bool)
    for index in range(4):
        _, part, said = transform(image, mask, BOTH if both else LEFT, item_generator(seed, 0, index))
        part = part[0].numpy().astype(bool)
        if not both and reports.parse(said).count is not None:
            continue  # one side only: half of them keep their sentence
        named = reports.parse(said)
        assert named.side in ("left", "right"), said
        zones = named.left or named.right
        outside = part[:, 24:] if named.side == "left" else part[:, :24]
        assert not outside.any()
        zone = zones[0] if len(zones) == 1 else None
        assert np.array_equal(part, reports.restrict(whole, named.side, zone).astype(bool))
        assert np.array_equal(part, part & whole)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), both=st.booleans())
def test_a_restated_sentence_is_the_report_of_what_is_left(seed, both):
    image, mask = upright(seed, both)
    transform = TrainTransform(48, **{**STILL, "refer": 1, "restate": 1})
    said = BOTH if both else LEFT
    for index in range(4):
        _, part, sentence = transform(image, mask, said, item_generator(seed, 0, index))
        if part.any() and sentence != said:
            assert sentence == reports.describe(part[0].numpy())
            assert reports.parse(sentence).side in ("left", "right")
            assert not (part & ~mask).any()
        elif not part.any():  # a clean part has no report: the sentence names the part alone
            assert reports.parse(sentence).count is None


def test_clean_parts_are_named_on_purpose_and_are_empty():
    bilateral, unilateral = upright(0)[1][0].numpy() > 0, upright(0, both=False)[1][0].numpy() > 0
    for mask in (bilateral, unilateral):
        words = random.Random(0)
        parts = [refer_to_part(mask, words) for _ in range(400)]
        empty = [said for side, zone, said in parts if not reports.restrict(mask, side, zone).any()]
        assert 0.12 < len(empty) / len(parts) < 0.28
        for said in empty:
            named = reports.parse(said)
            zone = (named.left or named.right)
            zone = zone[0] if len(zone) == 1 else None
            assert not reports.restrict(mask, named.side, zone).any()
    side, zone, said = refer_to_part(np.zeros((48, 48), bool), random.Random(0))
    assert reports.parse(said).side == side and zone in (None, "upper", "middle", "lower")


def test_a_healthy_half_is_named_as_often_as_asked():
    unilateral, bilateral = (upright(0, both=both)[1][0].numpy() > 0 for both in (False, True))
    words = random.Random(0)
    parts = [refer_to_part(unilateral, words, healthy=0.7) for _ in range(400)]
    named = [(side, zone) for side, zone, _ in parts if zone is None and not reports.restrict(unilateral, side, zone).any()]
    assert len({side for side, _ in named}) == 1 and 0.65 < len(named) / len(parts) < 0.8  # and 1 in 35 by the other rule
    draws = [[refer_to_part(bilateral, random.Random(seed), healthy=share) for seed in range(50)] for share in (0.0, 0.7)]
    assert draws[0] == draws[1]  # where no half is healthy nothing changes


def test_sentence_edits_come_as_often_as_asked():
    image, mask = upright(0)
    transform = TrainTransform(48, **{**STILL, "refer": 0.25, "generic": 0.2, "none": 0.1, "paraphrase": 1})
    said = [transform(image, mask, BOTH, item_generator(0, 0, i))[2] for i in range(600)]
    share = {"none": said.count("") / 600, "generic": said.count(reports.GENERIC) / 600}
    assert share == {"none": pytest.approx(0.1, abs=0.04), "generic": pytest.approx(0.2, abs=0.05)}
    rest = [reports.parse(s) for s in said if s and s != reports.GENERIC]
    assert sum(r.side in ("left", "right") for r in rest) / 600 == pytest.approx(0.25, abs=0.05)
    plain = reports.parse(BOTH)
    assert all((r.left, r.right) == (plain.left, plain.right) for r in rest if r.side == "both")
    with pytest.raises(ValueError, match="must not pass 1"):
        TrainTransform(refer=0.9, generic=0.2)


def test_a_sentence_of_another_grammar_is_kept_or_emptied_and_its_mask_is_whole(samples):
    image, mask = upright(0)
    said = "The nuclei are evenly distributed."
    transform = TrainTransform(48, **{**STILL, "refer": 0.4, "restate": 0.5, "generic": 0.3, "none": 0.2, "paraphrase": 1})
    drawn = [transform(image, mask, said, item_generator(0, 0, i)) for i in range(100)]
    assert all(torch.equal(m, mask) for _, m, _ in drawn)
    assert {s for *_, s in drawn} == {said, ""} and 10 < sum(s == "" for *_, s in drawn) < 32
    slides = [replace(s, report=said) for s in samples]
    data, plain = ReferringDataset(slides, TrainTransform(SIZE, **STILL, join=1.0), size=SIZE), ReferringDataset(slides, size=SIZE)
    assert all(torch.equal(a["image"], b["image"]) and a["report"] == said for a, b in zip(data, plain)), "nothing is joined"


def test_geometry_moves_picture_and_mask_alike_and_keeps_sides():
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 20:44, 8:26] = 1
    transform = TrainTransform(64, **{**STILL, "rotate": 10, "shift": 0.05, "scale": (0.85, 1.2)})
    for i in range(30):
        image, moved, _ = transform(mask * 200, mask, LEFT, item_generator(0, 0, i))
        assert moved.unique().tolist() == [0, 1]
        assert ((image > 100) != moved.bool()).float().mean() < 0.01  # in step, up to the interpolated rim
        columns = moved[0].nonzero()[:, 1].float()
        assert columns.mean() < 28  # still on its side


def test_exposure_noise_and_blur_stay_in_range_and_leave_the_mask():
    image, mask = upright(1)
    transform = TrainTransform(48, **{**STILL, "exposure": 0.4, "noise": 0.1, "blur": 2.0})
    changed = 0
    for i in range(20):
        out, same, _ = transform(image, mask, BOTH, item_generator(0, 0, i))
        assert out.dtype == torch.uint8 and out.shape == image.shape and torch.equal(same, mask)
        changed += not torch.equal(out, image)
    assert 10 < changed < 20  # most, not all
    bigger, big_mask, _ = TrainTransform(96, **STILL)(image, mask, BOTH)
    assert bigger.shape == big_mask.shape == (1, 96, 96) and big_mask.unique().tolist() == [0, 1]


def test_an_edit_of_the_acquisition_changes_the_picture_and_neither_mask_nor_sentence():
    report = "Unilateral pulmonary infection, one infected area, lower left lung."
    image, mask = upright(3, False)
    transform = TrainTransform(48, **{**STILL, "edit": 1})
    changed = 0
    for index in range(12):
        edited, edited_mask, said = transform(image, mask, report, item_generator(0, 0, index))
        assert torch.equal(edited_mask, mask) and said == report and edited.dtype == torch.uint8
        changed += not torch.equal(edited, image)
    assert changed >= 8  # a weak edit may round to nothing


def test_tones_are_drawn_in_their_shares():
    plans = [TrainTransform(SIZE, **{**STILL, "edit": 1.0}, tones=1.0).prepare(*upright(i)[:2], BOTH, item_generator(0, 0, i))[3] for i in range(600)]
    assert {plan.tone for plan in plans} == TONE_SHARES.keys()
    drawn = {name: sum(plan.tone == name for plan in plans) / 600 for name in TONE_SHARES}
    assert all(abs(share - TONE_SHARES[name] / sum(TONE_SHARES.values())) < 0.06 for name, share in drawn.items())
