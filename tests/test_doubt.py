"""The side of a sentence against the picture: each part against a plain re-computation, and what is and isn't doubted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from causalclipseg import CausalCLIPSeg, doubt, reports, segment
from causalclipseg.evaluation import predictor
from causalclipseg.views import answering, averaged
from conftest import lively, make_tiny_config

LEFT = "Unilateral pulmonary infection, one infected area, lower left lung."


def sighted(images, shown):
    """Sees the bright half; is unsure where a sentence names the dark one, and sure without a place."""
    bright = (images[:, :1] > 0.5).float()
    out = []
    for picture, sentence in zip(bright, shown):
        side = reports.parse(sentence).side
        if side in reports.SIDES:
            half = torch.zeros_like(picture)
            half[..., : half.shape[-1] // 2] = side == "left"
            half[..., half.shape[-1] // 2 :] = side == "right"
            picture = torch.where((picture * half).sum() > 0, 0.98 * picture * half, 0.2 * half)
        out.append(picture)
    return torch.stack(out)


def lesion(side, size=32):
    image = torch.zeros(1, 3, size, size)
    image[..., 20:28, 4:12] = 1.0
    return image if side == "left" else image.flip(-1)


@pytest.mark.parametrize("sentence, side", [
    (LEFT, "left"), (reports.swap_sides(LEFT), "right"), ("unilateral, RIGHT lung", "right"),
    ("Infection of the left lung.", None), ("Bilateral pulmonary infection, lower left lung and right lung.", None),
    ("Unilateral pulmonary infection.", None), ("Unilateral pulmonary infection, left lung and right lung.", None), (reports.GENERIC, None), ("", None),
])  # fmt: skip
def test_only_a_sentence_about_one_half_alone_can_be_doubted(sentence, side):
    assert doubt.claimed_side(sentence) == side


@given(arrays(np.float32, (6, 5), elements=st.floats(0, 1, width=32)))
def test_the_promised_dice_is_the_best_over_all_areas(p):
    flat, best = sorted(p.ravel().tolist(), reverse=True), 0.0
    for n in range(1, len(flat) + 1):
        best = max(best, 2 * sum(flat[:n]) / (n + sum(flat)))
    assert float(doubt.promised_dice(torch.from_numpy(p)[None, None])[0]) == pytest.approx(best, abs=1e-6)


def test_the_odds_are_bayes_rule():
    image = lesion("right")
    named, other, plain = (sighted(image, [s])[0, 0].double() for s in (LEFT, reports.swap_sides(LEFT), reports.GENERIC))
    logit = lambda c: math.log(min(max(c, 0.01), 0.99) / (1 - min(max(c, 0.01), 0.99)))
    confidence = logit(float(doubt.promised_dice(other[None, None])[0])) - logit(float(doubt.promised_dice(named[None, None])[0]))
    m_n, m_o = float(plain[:, :16].mean() / 2), float(plain[:, 16:].mean() / 2)
    evidence = math.log((m_o + 20 / 224**2) / (m_n + 20 / 224**2))
    expected = math.log(doubt.WRONG / (1 - doubt.WRONG)) + doubt.CONFIDENCE * confidence + doubt.EVIDENCE * evidence
    found = doubt.log_odds(sighted, image.expand(3, -1, -1, -1), ["", LEFT, "Infection of the left lung."])
    assert found[0] is None and found[2] is None and found[1] == pytest.approx(expected, abs=1e-5)


def test_exchanging_sides_and_mirroring_the_picture_leaves_the_odds():
    torch.manual_seed(3)
    predict = predictor(lively(CausalCLIPSeg(make_tiny_config())))
    image = torch.rand(1, 1, 64, 64).expand(-1, 3, -1, -1)
    assert doubt.log_odds(predict, image, [LEFT]) == pytest.approx(doubt.log_odds(predict, image.flip(-1), [reports.swap_sides(LEFT)]), abs=1e-4)


def test_a_wrong_side_is_exchanged_and_a_right_one_kept():
    images = torch.cat([lesion("right"), lesion("left"), lesion("right"), lesion("right")])
    shown = [LEFT, LEFT, "Infection of the left lung.", ""]
    assert doubt.believed(sighted, images, shown) == [reports.swap_sides(LEFT), *shown[1:]]


def test_the_parts_of_an_answer_are_asked_for_alone_and_together(monkeypatch):
    model = lively(CausalCLIPSeg(make_tiny_config()))
    images, predict = torch.rand(2, 1, 64, 64).expand(-1, 3, -1, -1), predictor(model)
    monkeypatch.setattr(doubt, "log_odds", lambda predict, images, shown: [1.0, -1.0])
    shown, read_as = [LEFT, LEFT], [reports.swap_sides(LEFT), LEFT]
    for asked, expected in (
        ({}, predict(images, shown)), ({"check_side": True}, predict(images, read_as)),
        ({"average_views": True}, averaged(predict)(images, shown)), ({"average_views": True, "check_side": True}, averaged(predict)(images, read_as)),
    ):  # fmt: skip
        torch.testing.assert_close(answering(model, **asked)(images, shown), expected)


def test_segment_says_when_it_did_not_believe_the_side(monkeypatch):
    model = lively(CausalCLIPSeg(make_tiny_config()))
    picture = (torch.rand(64, 64) * 255).byte().numpy()
    other = reports.swap_sides(LEFT)
    for odds, read_as in ((1.0, other), (-1.0, LEFT)):
        monkeypatch.setattr(doubt, "log_odds", lambda predict, images, shown, odds=odds: [odds])
        result = segment(model, picture, LEFT, check_side=True)
        np.testing.assert_array_equal(result.probability, segment(model, picture, read_as).probability)
        assert result.report == LEFT and any("speaks against the left lung" in w for w in result.warnings) == (read_as == other)


def test_segment_chooses_the_pictures_own_threshold():
    from causalclipseg.metrics import expected_dice_threshold

    model = lively(CausalCLIPSeg(make_tiny_config()))
    picture = (torch.rand(64, 64) * 255).byte().numpy()
    result = segment(model, picture, LEFT, threshold="expected-dice")
    assert result.threshold == expected_dice_threshold(result.probability)
    np.testing.assert_array_equal(result.mask, result.probability >= result.threshold)
