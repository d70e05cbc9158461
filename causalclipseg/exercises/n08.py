"""Notebook 08: two families of Dice, the rule for empty masks, the bootstrap, and a paired test."""

from __future__ import annotations

import numpy as np

from ..metrics import Scores, dice

ONE_IN_THIRTY = np.r_[np.zeros(29), 1.0]  #: scores so skewed that a normal interval leaves their range
NEVER = "One picture is never drawn: draw indices from 0 to N - 1."


def _table(rng, n: int, empty: bool = False) -> np.ndarray:
    """(n, 3) TP, FP, FN of pictures of very different sizes."""
    area = np.exp(rng.uniform(3, 9, n)).astype(int)
    tp = (area * rng.uniform(0.3, 1, n)).astype(int)
    table = np.stack([tp, (area * rng.uniform(0, 0.5, n)).astype(int), area - tp], axis=1)
    if empty:
        table[:: max(2, n // 3)] = 0
    return table


def families(answer) -> None:
    """Both families, from the same counts.

    answer(table (N, 3) TP, FP, FN) -> (mean Dice over pictures, pooled Dice).
    """
    for seed in range(3):
        table = _table(np.random.default_rng(seed), 40)
        said = answer(table)
        assert np.shape(said) == (2,), "Return two numbers: the mean over pictures, and the pooled Dice."
        scores = Scores(table)
        right = float(scores.dice.mean()), scores.pooled()["dice"]
        assert not np.allclose(said, right[::-1]), "Both are right, but in the other order: per image first, then pooled."
        for name, a, b in zip(("per-image", "pooled"), said, right):
            assert np.isclose(a, b), f"Your {name} Dice is {float(a):.4f}; it should be {b:.4f}."


def empty_rule(answer) -> None:
    """All five cases follow the rule.

    answer(table (N, 3)) -> (N,) Dice, 1 where mask and prediction are both empty.
    """
    cases = np.array([[0, 0, 0], [0, 7, 0], [0, 0, 7], [5, 0, 0], [5, 5, 0]])
    with np.errstate(all="ignore"):
        said = np.asarray(answer(cases), dtype=float)
    assert said.shape == (5,), f"Return one Dice a picture, shape (5,), not {said.shape}."
    words = ("both empty", "an empty mask, but a prediction", "a mask, but an empty prediction", "all right", "half of the prediction wrong")
    for case, word, value, right in zip(cases, words, said, dice(*cases.T)):
        assert np.isclose(value, right, atol=1e-5), f"TP, FP, FN = {', '.join(map(str, case))} ({word}): you give {value:.3f}, the rule says {right:.3f}."


def bootstrap(answer) -> None:
    """Your interval is as wide as theory says, and the same for the same seed.

    answer(values (N,), rounds, seed) -> (low, high), the 95 % percentile interval of the mean.
    """
    rng = np.random.default_rng(0)
    values = rng.beta(6, 1.5, 150)
    low, high = answer(values, 1000, 0)
    half, right = (high - low) / 2, 1.96 * values.std() / np.sqrt(len(values))
    every = np.mean([np.diff(answer(values, 1000, seed)) / 2 for seed in range(12)])  # one interval varies by chance by some per cent
    assert low < values.mean() < high, f"The interval {low:.3f} to {high:.3f} does not hold the mean, {values.mean():.3f}."
    assert half < 3 * right, f"The half width is {half:.3f}; about {right:.3f} is expected. Are these quantiles of the pictures? Take them of the means."
    assert 0.95 * right < every < 1.05 * right, (
        f"Over twelve seeds the half width is {every:.4f}; about {right:.4f} is expected. "
        "Resample N of N pictures, with replacement, and take the quantiles 0.025 and 0.975."
    )
    assert (low, high) == tuple(answer(values, 1000, 0)), "The same seed gives another interval: make the generator from the seed."
    assert (low, high) != tuple(answer(values, 1000, 1)), "Another seed gives the same interval to the last digit: is anything drawn by chance?"
    for skewed in (ONE_IN_THIRTY, ONE_IN_THIRTY[::-1]):
        low, high = answer(skewed, 1000, 0)
        assert low >= 0, "The mean of resampled scores cannot be below the lowest score: resample, don't use a formula."
        assert high > 0, NEVER


def paired(answer) -> None:
    """Your interval uses that both models saw the same pictures.

    answer(a (N,), b (N,), rounds, seed) -> (mean difference a - b, low, high), pictures resampled in pairs.
    """
    rng = np.random.default_rng(1)
    b = rng.beta(6, 1.5, 120)
    a = b + rng.normal(0.01, 0.02, 120)
    said = answer(a, b, 1000, 0)
    assert len(tuple(said)) == 3, "Return three numbers: the mean difference, and the ends of its interval."
    mean, low, high = said
    assert np.isclose(mean, (a - b).mean()), f"The mean of a - b is {(a - b).mean():.6f}, not {mean:.6f}. Take it of all pictures, not of the resampled means."
    half, right = (high - low) / 2, 1.96 * (a - b).std() / np.sqrt(len(a))
    alone = 1.96 * np.hypot(a.std(), b.std()) / np.sqrt(len(a))
    assert abs(half - alone) > abs(half - right), (
        f"The half width is {half:.4f}, as if a and b came from different pictures; paired it is about {right:.4f}. "
        "Draw one set of pictures, and take a - b on it."
    )
    every = np.mean([np.diff(tuple(answer(a, b, 1000, seed))[1:]) / 2 for seed in range(12)])
    assert 0.93 * right < every < 1.07 * right, f"Over twelve seeds the half width is {every:.4f}; about {right:.4f} is expected of the middle 95 %."
    for skewed in (ONE_IN_THIRTY, ONE_IN_THIRTY[::-1]):
        _, low, high = answer(skewed, np.zeros(30), 1000, 0)
        assert low >= 0, "Where no picture is worse under a, no mean of resampled pictures is: resample, don't use a formula."
        assert high > 0, NEVER
