"""Checks of 01_data."""

from __future__ import annotations

import numpy as np

from . import close, expect


def mirror(answer):
    """Picture, mask and sentence stay in step: the flip is safe to train with."""
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (5, 8), np.uint8), rng.random((5, 8)) < 0.4
    cases = (
        ("Infection of the left lung.", "Infection of the right lung."),
        ("Bilateral, upper left lung and lower right lung.", "Bilateral, upper right lung and lower left lung."),
        ("Left-sided opacity.", "Right-sided opacity."),
        ("A bright area in the upright left lung.", "A bright area in the upright right lung."),
    )
    for sentence, swapped in cases:
        got = answer(image.copy(), mask.copy(), sentence)
        expect(isinstance(got, (tuple, list)) and len(got) == 3, "return three things: picture, mask, sentence.")
        for what, new, old in (("the picture", got[0], image), ("the mask", got[1], mask)):
            new = np.asarray(new)
            expect(new.shape == old.shape, f"{what} has the shape {new.shape}, not {old.shape}.")
            expect(not (new == old).all(), f"{what} is not mirrored.")
            expect(not (new == old[::-1]).all(), f"{what} is turned upside down; left and right should be exchanged (the last axis).")
            expect((new == old[:, ::-1]).all(), f"{what} is changed in another way than by mirroring left and right.")
        expect(got[2] != sentence, f'the sentence is still "{sentence}": it now names the wrong half.')
        expect(got[2] == swapped, f'"{sentence}" should become "{swapped}", not "{got[2]}".')


def iou(answer):
    """J = D / (2 − D). It holds for one picture and for pooled counts, never for means over pictures."""
    for tp, fp, fn in ((10, 0, 0), (5, 5, 5), (0, 3, 4), (7, 1, 9)):
        dice = 2 * tp / (2 * tp + fp + fn)
        try:
            got = answer(dice)
        except ZeroDivisionError:
            expect(False, f"a Dice of {dice:.3f} makes you divide by zero (the hint's x has no value where TP is 0): simplify until nothing is divided by D.")
        expect(isinstance(got, (int, float, np.number)), "return one number.")
        close(float(got), tp / (tp + fp + fn), f"the IoU that belongs to a Dice of {dice:.3f}")


def leaks(answer):
    """You found every subject that would make validation look better than it is."""
    splits = {
        "train": ["sub-SA1_ses-E1_run-1.png", "sub-SB2_ses-E1.png", "sub-SB2_ses-E2.png", "covid_1.png", "mask_sub-SC3_ses-E2.png"],
        "val": ["sub-SA1_ses-E2.png", "covid_2.png", "sub-SD4_ses-E1.png", "sub-SF6_ses-E1.png", "sub-SB21_ses-E1.png"],
        "test": ["sub-SC3_ses-E9.png", "sub-SE5_ses-E1.png", "covid_3.png", "sub-SF6_ses-E2.png"],
    }
    got = answer({split: list(names) for split, names in splits.items()})
    expect(isinstance(got, (set, frozenset, list, tuple)), "return a set of subjects.")
    got = set(got)
    expect(not any(str(name).startswith("covid") for name in got), "a name like covid_1 says nothing of the patient; leave those out.")
    expect("SB2" not in got, "SB2 is in one split only (SB21 is another patient); several pictures of a patient within it are no leak.")
    expect("SA1" in got, "SA1 is in train and in val, with different sessions: the same patient.")
    expect("SC3" in got, "SC3 is in train (its mask is called mask_sub-SC3_…) and in test.")
    expect("SF6" in got, "SF6 is in val and in test: compare every pair of splits.")
    expect(got == {"SA1", "SC3", "SF6"}, f"expected the subjects SA1, SC3 and SF6, got {sorted(got)}.")
    expect(set(answer({"train": ["covid_1.png"], "val": ["covid_1b.png"]})) == set(), "without any subject's name there is no leak that names can show.")


def two_dice(answer):
    """Both families from the same predictions; now you know which one you are reading."""
    rng = np.random.default_rng(2)
    masks = rng.random((6, 9, 9)) < np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9])[:, None, None]
    predictions = masks ^ (rng.random(masks.shape) < 0.1)
    masks[0] = predictions[0] = False  # nothing there and nothing found: a perfect answer
    masks[1], predictions[1, 0, 0] = False, True  # nothing there, and something found: 0
    predictions[2] = False  # something there, and nothing found: 0
    tp, fp, fn = ((a & b).sum((1, 2)) for a, b in ((predictions, masks), (predictions, ~masks), (~predictions, masks)))
    below = 2 * tp + fp + fn
    each = np.where(below > 0, 2 * tp / np.maximum(below, 1), 1.0)
    got = answer(predictions, masks)
    expect(isinstance(got, (tuple, list)) and len(got) == 2, "return two numbers: the per-image mean and the pooled Dice.")
    expect(np.isfinite(got[0]), "the per-image mean is not a number: what is the Dice of an empty mask and an empty prediction?")
    if abs(got[0] - np.where(below > 0, each, 0).mean()) < 1e-6:
        expect(False, "an empty prediction for an empty mask is right: it scores 1, not 0.")
    close(got[0], each.mean(), "the per-image mean", 1e-6)
    close(got[1], 2 * tp.sum() / below.sum(), "the pooled Dice", 1e-6)
