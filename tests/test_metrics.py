"""Dice and IoU against loops, and the two families side by side."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalclipseg.metrics import Scores, bootstrap_interval, counts, dice, iou

tables = st.lists(st.tuples(*[st.integers(0, 50_000)] * 3), min_size=1, max_size=20).map(lambda rows: Scores(np.array(rows)))


def test_counts_and_scores_equal_loops_over_pixels():
    rng = np.random.default_rng(0)
    prediction, mask = (torch.from_numpy(rng.random((5, 1, 6, 7)) > q) for q in (0.5, 0.7))
    table = counts(prediction, mask)
    for row, p, y in zip(table.tolist(), prediction, mask):
        tp = fp = fn = 0
        for a, b in zip(p.flatten().tolist(), y.flatten().tolist()):
            tp, fp, fn = tp + (a and b), fp + (a and not b), fn + (b and not a)
        assert row == [tp, fp, fn]
        assert dice(*row) == pytest.approx(2 * tp / (2 * tp + fp + fn)) and iou(*row) == pytest.approx(tp / (tp + fp + fn))
    assert torch.equal(counts(prediction[:, 0], mask[:, 0]), table), "a channel axis makes no difference"


def test_an_empty_mask_and_an_empty_prediction_score_one_and_one_of_the_two_zero():
    full, empty = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    for prediction, mask, expected in ((empty, empty, 1), (full, empty, 0), (empty, full, 0), (full, full, 1)):
        scores = Scores(counts(prediction, mask).numpy())
        assert scores.dice.tolist() == [expected] and scores.iou.tolist() == [expected]
        assert scores.pooled() == {"dice": expected, "iou": expected}


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        counts(torch.zeros(1, 4, 4), torch.zeros(1, 1, 4, 4))


def test_per_image_and_pooled_scores_differ_on_a_worked_example():
    # a large lesion found well, a small one missed, a clean picture left clean
    scores = Scores(np.array([[90, 10, 10], [0, 0, 10], [0, 0, 0]]))
    per_image = scores.per_image()
    assert per_image["dice"]["mean"] == pytest.approx((180 / 200 + 0 + 1) / 3)
    assert per_image["iou"]["mean"] == pytest.approx((90 / 110 + 0 + 1) / 3)
    assert scores.pooled() == {"dice": pytest.approx(180 / 210), "iou": pytest.approx(90 / 120)}
    assert scores.select(np.array([True, False, True])).per_image()["dice"]["mean"] == pytest.approx(0.95)


@given(tables)
@settings(max_examples=60, deadline=None)
def test_pooled_iou_follows_from_pooled_dice(scores):
    pooled = scores.pooled()
    assert pooled["iou"] == pytest.approx(pooled["dice"] / (2 - pooled["dice"]))


@given(tables)
@settings(max_examples=60, deadline=None)
def test_every_score_lies_in_the_unit_interval_and_iou_is_never_above_dice(scores):
    assert ((0 <= scores.iou) & (scores.iou <= scores.dice) & (scores.dice <= 1)).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None)
def test_the_bootstrap_interval_is_ordered_lies_within_the_values_and_repeats_itself(values):
    low, high = bootstrap_interval(np.array(values), rounds=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(np.array(values), rounds=200)


def test_the_bootstrap_interval_contains_the_mean_and_has_the_right_width():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    # the normal approximation: 2 * 1.96 standard errors
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    per_image = Scores(np.array([[8, 1, 1], [5, 5, 5], [9, 0, 0], [1, 4, 2]])).per_image()
    for name in ("dice", "iou"):
        assert per_image[name]["low"] <= per_image[name]["mean"] <= per_image[name]["high"]
