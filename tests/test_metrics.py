"""Every score against loops, and the two families side by side."""
import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalclipseg.metrics import (
    Reliability, Scores, bootstrap_interval, counts, dice, expected_dice_threshold, iou, paired_test, surface_scores,
)  # fmt: skip

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


def test_patients_are_resampled_with_all_their_pictures():
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(50), 8)
    own = rng.normal(0.8, 0.1, 50)
    values = own[subjects] + rng.normal(0, 0.01, 400)
    low, high = bootstrap_interval(values, subjects=subjects)
    # the normal approximation for 50 means of eight pictures each; taken one by one the 400 would promise a third of it
    assert high - low == pytest.approx(2 * 1.96 * values.reshape(50, 8).mean(1).std() / 50**0.5, rel=0.15)
    assert high - low > 2.4 * np.diff(bootstrap_interval(values))[0]
    # of patients with unlike numbers of pictures the mean over pictures is asked for, not that over patients
    values, subjects = np.array([1.0] * 90 + [0.0] * 10), np.array(["a"] * 90 + [f"b{k}" for k in range(10)])
    low, high = bootstrap_interval(values, subjects=subjects, rounds=500)
    assert low == 0 and high > values.mean()  # without the one patient who has 90 pictures nothing is left
    alone = bootstrap_interval(values, subjects=np.arange(100))
    assert alone == bootstrap_interval(values)
    table = np.array([[8, 1, 1], [5, 5, 5], [9, 0, 0], [1, 4, 2]])
    whose = np.array(["p", "q", "p", "r"])
    wide = Scores(table, whose)
    assert wide.select(np.array([True, False, True, True])).subjects.tolist() == ["p", "p", "r"]
    assert wide.per_image()["dice"]["low"] == bootstrap_interval(wide.dice, subjects=whose)[0]


def test_an_interval_by_patients_equals_a_plain_count_of_all_draws():
    values, subjects = np.array([0.2, 0.4, 0.9]), np.array(["a", "a", "b"])
    draws = [np.mean([v for p in chosen for v, s in zip(values, subjects) if s == p]) for chosen in itertools.product("ab", repeat=2)]
    found = bootstrap_interval(values, subjects=subjects, level=0.999)
    assert found == pytest.approx((min(draws), max(draws)))


# ---------------------------------------------------------------- precision, recall, pairs


def test_precision_and_recall_equal_a_plain_count_and_follow_the_same_rule_for_what_is_empty():
    table = np.array([[8, 2, 4], [0, 0, 0], [0, 3, 0], [0, 0, 5], [7, 0, 0]])
    scores = Scores(table)
    assert scores.precision.tolist() == [8 / 10, 1, 0, 0, 1] and scores.recall.tolist() == [8 / 12, 1, 0, 0, 1]
    tp, fp, fn = table.sum(0)
    assert scores.pooled(("precision", "recall")) == {"precision": tp / (tp + fp), "recall": tp / (tp + fn)}
    assert scores.per_image(("recall",))["recall"]["mean"] == pytest.approx((8 / 12 + 1 + 0 + 0 + 1) / 5)


def test_a_paired_test_sees_a_small_steady_difference_that_the_spread_of_pictures_hides():
    rng = np.random.default_rng(0)
    b = rng.random(200)
    a = b + rng.normal(0.01, 0.01, 200)
    found = paired_test(a, b)
    assert found["difference"] == pytest.approx((a - b).mean()) and found["low"] < found["difference"] < found["high"]
    # the normal approximation of a paired mean
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * (a - b).std() / 200**0.5, rel=0.15)
    assert found["p_bootstrap"] == 1 / 2000 and found["p_wilcoxon"] < 1e-6 and found["better"] + found["worse"] + found["equal"] == 200
    back = paired_test(b, a)
    assert back["difference"] == -found["difference"] and back["better"] == found["worse"]
    same = paired_test(b, b)
    assert same["difference"] == 0 and same["p_wilcoxon"] == same["p_bootstrap"] == 1 and same["equal"] == 200
    noise = paired_test(b + rng.normal(0, 0.01, 200), b)
    assert noise["p_wilcoxon"] > 0.01 and noise["low"] < 0 < noise["high"]
    with pytest.raises(ValueError, match="equally long"):
        paired_test(a, b[:-1])


def test_a_paired_test_of_patients_is_that_of_their_means():
    rng = np.random.default_rng(0)
    subjects, d = np.repeat(np.arange(40), 5), np.repeat(rng.normal(0.01, 0.03, 40), 5) + rng.normal(0, 0.001, 200)
    by_patient, by_picture = paired_test(d, 0 * d, subjects=subjects), paired_test(d, 0 * d)
    assert by_patient["patients"] == 40 and by_patient["n"] == by_picture["patients"] == 200
    assert by_patient["p_wilcoxon"] == paired_test(d.reshape(40, 5).mean(1), np.zeros(40))["p_wilcoxon"] > by_picture["p_wilcoxon"]
    assert by_patient["difference"] == by_picture["difference"] and by_patient["low"] < by_picture["low"] < by_picture["high"] < by_patient["high"]


def test_wilcoxons_p_is_that_of_all_signs_enumerated():
    a, b = np.array([0.9, 0.8, 0.7, 0.65, 0.5]), np.array([0.85, 0.83, 0.6, 0.5, 0.3])
    d = a - b
    ranks = np.argsort(np.argsort(np.abs(d))) + 1
    least = min(ranks[d > 0].sum(), ranks[d < 0].sum())
    sums = [sum(r for r, s in zip(ranks, signs) if s) for signs in itertools.product([0, 1], repeat=5)]
    assert paired_test(a, b)["p_wilcoxon"] == pytest.approx(2 * np.mean([s <= least for s in sums]))


# ---------------------------------------------------------------- surfaces


def plain_surface(prediction, mask, tolerance):
    """HD95 and surface Dice by comparing every edge pixel with every other (an edge pixel has a neighbour outside, also beyond the border)."""
    def edge(area):
        area = np.pad(area, 1)
        inner = area[:-2, 1:-1] & area[2:, 1:-1] & area[1:-1, :-2] & area[1:-1, 2:]
        return np.argwhere(area[1:-1, 1:-1] & ~inner)

    p, y = edge(prediction), edge(mask)
    distances = np.sqrt(((p[:, None] - y[None]) ** 2).sum(-1))
    there, back = distances.min(1), distances.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(there) + len(back))


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_surface_scores_equal_a_comparison_of_all_pairs_of_edge_pixels(tolerance):
    rng = np.random.default_rng(1)
    for _ in range(6):
        areas = []
        for _ in range(2):  # two boxes each, one of which may touch the border
            area = np.zeros((30, 26), bool)
            for _ in range(2):
                top, left = rng.integers(0, 20), rng.integers(0, 16)
                area[top : top + rng.integers(2, 12), left : left + rng.integers(2, 12)] = True
            areas.append(area)
        assert surface_scores(*areas, tolerance) == pytest.approx(plain_surface(*areas, tolerance))


def test_surfaces_of_what_is_empty_follow_the_written_rule():
    empty, full = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    assert surface_scores(empty, empty) == (0, 1) and surface_scores(full, full) == (0, 1)
    assert surface_scores(empty, full) == surface_scores(full, empty) == (50, 0)


def test_without_monai_surfaces_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ValueError, match="pip install monai"):
        surface_scores(np.eye(8, dtype=bool), np.ones((8, 8), bool))


# ---------------------------------------------------------------- thresholds and calibration


def test_the_expected_dice_threshold_equals_a_loop_over_all_thresholds():
    rng = np.random.default_rng(0)
    for power in (0.5, 1, 2, 4, 8):
        p = rng.random((12, 10)) ** power
        best, best_value = None, -1
        for t in np.linspace(0.5, 0.3, 21):
            area = [v for v in p.ravel() if v >= t]
            value = 2 * sum(area) / (p.sum() + len(area))
            if value > best_value + 1e-12:
                best, best_value = t, value
        assert expected_dice_threshold(p) == pytest.approx(best)


def test_the_promised_dice_is_the_mean_dice_of_masks_drawn_from_the_probabilities():
    """The equation is a ratio of expectations; with many pixels it meets the expectation of the ratio."""
    rng = np.random.default_rng(0)
    p = np.concatenate([np.full(300, 0.9), np.full(300, 0.4), np.full(3000, 0.02)])
    masks = rng.random((300, p.size)) < p
    means = {}
    for t in (0.3, 0.5):
        found = p >= t
        means[t] = np.mean(2 * (masks & found).sum(1) / (masks.sum(1) + found.sum()))
        assert 2 * p[found].sum() / (p.sum() + found.sum()) == pytest.approx(means[t], abs=0.003)
    assert means[0.3] > means[0.5] and expected_dice_threshold(p) == pytest.approx(0.4)


def test_a_picture_without_doubt_keeps_the_plain_threshold():
    assert expected_dice_threshold(np.zeros((4, 4))) == expected_dice_threshold(np.array([0.0, 1.0])) == 0.5
    unsure = np.concatenate([np.full(50, 0.35), np.zeros(500)])
    assert expected_dice_threshold(unsure) < 0.36, "nothing is as likely as 0.5, and saying nothing scores 0"


def test_calibration_equals_a_loop_over_bins_and_pictures_add_up():
    rng = np.random.default_rng(0)
    p, y = rng.random((3, 1, 20, 20)), rng.random((3, 1, 20, 20)) > 0.6
    p[0, 0, 0, :2] = 0, 1
    found = Reliability()
    for one, mask in zip(p, y):
        found.add(one, mask)
    ece = 0
    for k, row in enumerate(found.to_dict()["bins"]):
        inside = (p >= k / 10) & ((p < (k + 1) / 10) | (k == 9))
        assert row["pixels"] == inside.sum() and (row["from"], row["to"]) == (k / 10, (k + 1) / 10)
        assert row["mean_probability"] == pytest.approx(p[inside].mean()) and row["lesion_share"] == pytest.approx(y[inside].mean())
        ece += inside.sum() / p.size * abs(p[inside].mean() - y[inside].mean())
    assert found.ece() == pytest.approx(ece)
    calibrated = Reliability()
    calibrated.add(np.full(1000, 0.3), np.arange(1000) < 300)
    assert calibrated.ece() == calibrated.ece(inner=True) == pytest.approx(0)
    sure = Reliability()
    sure.add(np.zeros(10), np.zeros(10))
    assert sure.ece(inner=True) == 0 and sure.to_dict()["bins"][3]["lesion_share"] is None
