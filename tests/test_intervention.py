"""Before and after one edit: the edit is the package's own, and the verdict says what the numbers say."""
import json

import numpy as np
import pytest

from causalclipseg import acquisition, segment
from causalclipseg.intervention import EDITS, SENTENCE_EDITS, Intervention, intervene

SENTENCE = "Unilateral pulmonary infection, one infected area, lower left lung."


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(60, 200, (96, 80), dtype=np.uint8)


@pytest.mark.parametrize("edit", EDITS)
def test_before_and_after_are_two_plain_predictions(model, picture, edit):
    found = intervene(model, picture, SENTENCE, edit, 1.0, seed=5)
    before = segment(model, picture, SENTENCE)
    pixels, text = picture, SENTENCE
    if edit in SENTENCE_EDITS:
        text = SENTENCE_EDITS[edit][1](SENTENCE)
        assert found.on_sentence and text != SENTENCE and not found.drawn.any()
    else:
        pixels = acquisition.edit(picture, edit, 1.0, seed=5, avoid=before.mask).image
    after = segment(model, pixels, text)
    assert np.array_equal(found.before.probability, before.probability)
    assert np.array_equal(found.after.probability, after.probability)
    assert np.array_equal(found.difference, after.probability - before.probability)
    json.dumps(found.to_dict(), allow_nan=False)


def test_strength_zero_changes_nothing_and_says_so(model, picture):
    found = intervene(model, picture, SENTENCE, "blur", 0)
    assert not found.changed and found.dice == 1 and "changed nothing" in found.verdict


def test_a_tone_that_changes_nothing_looked_for_no_place(model):
    found = intervene(model, np.full((96, 80), 90, np.uint8), SENTENCE, "blur", 1.0)
    assert not found.changed and "place" not in found.verdict


def test_both_answers_are_read_at_one_threshold(model, picture):
    found = intervene(model, picture, SENTENCE, "noise", 1.0, threshold="expected-dice")
    assert found.after.threshold == found.before.threshold == segment(model, picture, SENTENCE, threshold="expected-dice").threshold


def made(model, picture, before, after, edit="blur", sentence=SENTENCE):
    first = segment(model, picture, sentence)
    second = segment(model, picture // 2, SENTENCE_EDITS[edit][1](sentence) if edit in SENTENCE_EDITS else sentence)
    first.mask, second.mask = before, after
    return Intervention(first, second, edit, 1.0, np.zeros_like(before))


def test_the_verdict_says_what_the_dice_says(model, picture):
    full, half, none = np.ones((96, 80), bool), np.zeros((96, 80), bool), np.zeros((96, 80), bool)
    half[:48] = True
    assert "hardly changes" in made(model, picture, full, full).verdict
    assert made(model, picture, full, half).dice == pytest.approx(2 / 3)
    assert "changes clearly" in made(model, picture, full, half).verdict
    assert "Both masks are empty" in made(model, picture, none, none).verdict
    left, right = none.copy(), none.copy()
    left[:, :40], right[:, 40:] = True, True  # halves of the picture
    assert "mask follows the sentence" in made(model, picture, full, right, "right only").verdict
    assert "mask follows the sentence" in made(model, picture, left, right, "sides swapped").verdict
    for found in (made(model, picture, full, left, "right only"), made(model, picture, full, half, "right only"), made(model, picture, full, left, "generic")):
        assert found.verdict.startswith("The mask changes with the sentence")
    assert "hardly follows" in made(model, picture, full, full, "right only").verdict
    assert "finds no lesion that fits" in made(model, picture, full, none, "left only").verdict
    assert "your own sentence the mask was empty" in made(model, picture, none, full, "left only").verdict


@pytest.mark.parametrize("sentence, edit, says", [
    ("Unilateral pulmonary infection, one infected area, lower right lung.", "right only", "Both sentences name the right half, so nothing follows"),
    ("Bilateral pulmonary infection, upper left lung and lower right lung.", "sides swapped", "Both sentences name both halves, so nothing follows"),
    ("There is an infection.", "generic", "Neither sentence names a half, so nothing follows"),
])  # fmt: skip
def test_a_mask_that_stays_proves_nothing_where_the_named_side_stays(model, picture, sentence, edit, says):
    full = np.ones((96, 80), bool)
    verdict = made(model, picture, full, full, edit, sentence).verdict
    assert says in verdict and "hardly follows" not in verdict


@pytest.mark.parametrize("edit, strength, says", [("magic", 0.5, "choose one of"), ("blur", 1.5, "from 0 to 1"), ("blur", float("nan"), "from 0 to 1"),
                                                  ("blur", "much", "from 0 to 1")])  # fmt: skip
def test_wrong_arguments_are_one_sentence(model, picture, edit, strength, says):
    with pytest.raises(ValueError, match=says):
        intervene(model, picture, SENTENCE, edit, strength)
