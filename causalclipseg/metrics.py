"""Dice and IoU, in the two families that the literature mixes (they differ by 6 to 8 points), and what goes with them.

per image: the mean over pictures of each picture's own score (LViT; the paper's figures fit it);
pooled:    one score from the counts summed over the whole set (LanGuideMedSeg, MMI-UNet, FMISeg).

    Dice = 2 TP / (2 TP + FP + FN)        IoU = TP / (TP + FP + FN)
    precision = TP / (TP + FP)            recall = TP / (TP + FN)

A picture whose mask and prediction are both empty scores 1 in all four; one of the two empty scores 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch


def counts(prediction: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """True positives, false positives and false negatives of each picture.

    Args:
        prediction, mask: (B, 1, H, W) or (B, H, W), bool.
    Returns:
        (B, 3) int64: TP, FP, FN in pixels.
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} differ in shape.")
    p, y = prediction.bool().flatten(1), mask.bool().flatten(1)
    return torch.stack([(p & y).sum(1), (p & ~y).sum(1), (~p & y).sum(1)], dim=1)


def dice(tp, fp, fn):
    """2 TP / (2 TP + FP + FN), elementwise over arrays; 1 where all three are 0."""
    tp, fp, fn = (np.asarray(x, dtype=float) for x in (tp, fp, fn))
    below = 2 * tp + fp + fn
    return np.where(below > 0, 2 * tp / np.maximum(below, 1), 1.0)


def iou(tp, fp, fn):
    """TP / (TP + FP + FN), elementwise over arrays; 1 where all three are 0."""
    tp, fp, fn = (np.asarray(x, dtype=float) for x in (tp, fp, fn))
    below = tp + fp + fn
    return np.where(below > 0, tp / np.maximum(below, 1), 1.0)


def precision(tp, fp, fn):
    """TP / (TP + FP), elementwise; with nothing predicted 1 where there is no lesion, else 0."""
    tp, fp, fn = (np.asarray(x, dtype=float) for x in (tp, fp, fn))
    return np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), np.where(fn > 0, 0.0, 1.0))


def recall(tp, fp, fn):
    """TP / (TP + FN), elementwise; with no lesion 1 where nothing is predicted, else 0."""
    return precision(tp, fn, fp)


def bootstrap_interval(
    values: np.ndarray, *, subjects: np.ndarray | None = None, level: float = 0.95, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over pictures.

    Pictures of one patient resemble each other, so that patients are resampled, each with all their pictures, where it is known
    whose a picture is (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, Sec. 3.8).

    Args:
        values: (N,) one score a picture. subjects: (N,) whose picture each is; None: each another patient's.
        level: in (0, 1). rounds: resamples.
    Returns:
        (low, high).
    """
    values = np.asarray(values, dtype=float)
    low, high = np.quantile(_resampled_means(values, _patients(subjects, len(values)), rounds, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _patients(subjects: np.ndarray | None, pictures: int) -> np.ndarray:
    """(N,) the number of each picture's patient, from 0."""
    return np.arange(pictures) if subjects is None else np.unique(subjects, return_inverse=True)[1]


def _resampled_means(values: np.ndarray, whose: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """(rounds,) means over the pictures of as many patients as there are, drawn with replacement; whose: (N,) of `_patients`."""
    totals, pictures = np.bincount(whose, weights=values), np.bincount(whose)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, len(totals), len(totals)) for _ in range(rounds))
    return np.array([totals[patients].sum() / pictures[patients].sum() for patients in drawn])


def mean_interval(values: np.ndarray, subjects: np.ndarray | None = None) -> dict:
    """{"mean", "low", "high"}: the mean over pictures with its 95 % bootstrap interval (`bootstrap_interval`)."""
    low, high = bootstrap_interval(values, subjects=subjects)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def paired_test(a: np.ndarray, b: np.ndarray, *, subjects: np.ndarray | None = None, rounds: int = 2000, seed: int = 0) -> dict:
    """Is model a better than model b on the same pictures?

    Args:
        a, b: (N,) the scores of the two, picture by picture. subjects: (N,) whose picture each is; None: each another patient's.
    Returns:
        "difference": mean of a - b with "low" and "high", a 95 % bootstrap interval that resamples patients and
        keeps pairs; "p_bootstrap": two-sided, twice the smaller share of resamples on either side of 0 (at least
        1 / rounds); "p_wilcoxon": scipy's signed-rank test of each patient's mean difference (patients without one are left
        out; 1 where none is left); "n", "better", "worse", "equal": pictures; "patients". Both tests speak of other
        patients, not of another training run.
    """
    from scipy.stats import wilcoxon

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"A paired test needs two equally long lists of scores, not {a.shape} and {b.shape}.")
    d = a - b
    whose = _patients(subjects, len(d))
    each = np.bincount(whose, weights=d) / np.bincount(whose)
    means = _resampled_means(d, whose, rounds, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return {
        "difference": float(d.mean()), "low": float(low), "high": float(high), "p_bootstrap": float(min(1.0, max(p, 1 / rounds))),
        "p_wilcoxon": float(wilcoxon(each).pvalue) if each.any() else 1.0, "n": len(d), "patients": len(each),
        "better": int((d > 0).sum()), "worse": int((d < 0).sum()), "equal": int((d == 0).sum()),
    }  # fmt: skip


_SCORES = {"dice": dice, "iou": iou, "precision": precision, "recall": recall}


@dataclass
class Scores:
    """The counts of N pictures, and every score that follows from them."""

    table: np.ndarray  #: (N, 3) TP, FP, FN
    subjects: np.ndarray | None = None  #: (N,) whose picture each is; None: each another patient's

    @property
    def dice(self) -> np.ndarray:
        """(N,) Dice of each picture."""
        return dice(*self.table.T)

    @property
    def iou(self) -> np.ndarray:
        """(N,) IoU of each picture."""
        return iou(*self.table.T)

    @property
    def precision(self) -> np.ndarray:
        """(N,) precision of each picture."""
        return precision(*self.table.T)

    @property
    def recall(self) -> np.ndarray:
        """(N,) recall of each picture."""
        return recall(*self.table.T)

    def per_image(self, names: tuple[str, ...] = ("dice", "iou")) -> dict:
        """{"dice": {"mean", "low", "high"}, "iou": ...}: means over pictures and their 95 % bootstrap intervals."""
        return {name: mean_interval(getattr(self, name), self.subjects) for name in names}

    def pooled(self, names: tuple[str, ...] = ("dice", "iou")) -> dict:
        """{"dice", "iou"} of the summed counts."""
        total = self.table.sum(0)
        return {name: float(_SCORES[name](*total)) for name in names}

    def select(self, keep: np.ndarray) -> Scores:
        """The scores of the pictures that `keep` (N,) names."""
        return Scores(self.table[keep], None if self.subjects is None else self.subjects[keep])


# ---------------------------------------------------------------- surfaces

TOLERANCE = 2.0  #: pixels within which a point of one outline counts as met by the other


def surface_scores(prediction: np.ndarray, mask: np.ndarray, tolerance: float = TOLERANCE) -> tuple[float, float]:
    """95th-percentile Hausdorff distance and surface Dice of one picture, by MONAI, in pixels.

    The outlines are the edge pixels of both areas. HD95 is the larger of the two directed 95th percentiles of the
    distances between them; surface Dice is the share of all edge pixels that have the other outline within `tolerance`.

    Args:
        prediction, mask: (H, W) bool. tolerance: in pixels.
    Returns:
        (HD95, surface Dice). Both empty: (0, 1). One of the two empty: (the picture's diagonal, 0), because no
        distance exists and leaving the picture out would reward saying nothing.
    Raises:
        ValueError: MONAI is missing.
    """
    if not prediction.any() or not mask.any():
        return (0.0, 1.0) if prediction.any() == mask.any() else (float(np.hypot(*mask.shape)), 0.0)
    monai = _monai_metrics()
    # Padded, so that an area at the picture's border has its outline there, too.
    p, y = (torch.from_numpy(np.pad(x, 1))[None, None] for x in (prediction, mask))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of arguments that it passes to itself
        distance = monai.compute_hausdorff_distance(p, y, include_background=True, percentile=95)
        share = monai.compute_surface_dice(p, y, class_thresholds=[tolerance], include_background=True)
    return float(distance), float(share)


def _monai_metrics():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from monai import metrics
    except ImportError as error:
        raise ValueError(
            f"Surface distances need MONAI ({error}); install it with `pip install monai`, or leave them out (--no-surface)."
        ) from None
    return metrics


# ---------------------------------------------------------------- thresholds and calibration


def expected_dice_threshold(probability: np.ndarray, low: float = 0.3, high: float = 0.5, steps: int = 21) -> float:
    """The threshold of one picture that promises the highest Dice, if its probabilities are right.

        E[Dice(m_t)] ~ 2 sum(p m_t) / (sum p + sum m_t),    m_t = [p >= t]

    (the ratio of expectations, pixels taken as calibrated; no mask is looked at). With p known the best area is the
    one above a threshold of half the best Dice, hence never above 0.5.

    Args:
        probability: (H, W) or any shape, in [0, 1]. low, high, steps: the thresholds tried, evenly spaced, both ends
            included.
    Returns:
        the best of them, the highest one where several promise the same.
    """
    p = np.sort(np.asarray(probability, dtype=np.float64).ravel())  # ascending
    tail = np.concatenate([np.cumsum(p[::-1])[::-1], [0.0]])  # tail[i]: sum of p[i:]
    thresholds = np.linspace(high, low, steps)
    first = np.searchsorted(p, thresholds, side="left")
    expected = 2 * tail[first] / np.maximum(tail[0] + len(p) - first, 1e-12)
    return float(thresholds[int(np.argmax(expected))])


@dataclass
class Reliability:
    """How often pixels are lesion that are said to be so with probability p, in ten equal bins of p.

    ECE = sum over bins b of n_b / n * |mean p in b - share of lesion in b|
    """

    BINS = 10
    table: np.ndarray = field(default_factory=lambda: np.zeros((Reliability.BINS, 3)))  #: pixels, sum of p, lesion pixels

    def add(self, probability: np.ndarray, mask: np.ndarray) -> None:
        """Count one picture's pixels; probability in [0, 1] and mask bool, of one shape."""
        p, y = np.asarray(probability, dtype=np.float64).ravel(), np.asarray(mask, dtype=np.float64).ravel()
        bins = np.minimum((p * self.BINS).astype(int), self.BINS - 1)
        for column, weights in enumerate((None, p, y)):
            self.table[:, column] += np.bincount(bins, weights=weights, minlength=self.BINS)

    def ece(self, inner: bool = False) -> float:
        """Expected calibration error over all pixels, or (`inner`) over those with p in [0.1, 0.9), which the sure
        background does not drown; 0 where there are none."""
        n, p, y = (self.table[1:-1] if inner else self.table).T
        return float(np.abs(p - y).sum() / n.sum()) if n.sum() else 0.0

    def to_dict(self) -> dict:
        """{"ece", "ece_inner", "bins": [{"from", "to", "pixels", "mean_probability", "lesion_share"}, ...]}; empty bins hold None."""
        bins = [
            {
                "from": k / self.BINS,
                "to": (k + 1) / self.BINS,
                "pixels": int(n),
                "mean_probability": p / n if n else None,
                "lesion_share": y / n if n else None,
            }
            for k, (n, p, y) in enumerate(self.table.tolist())
        ]
        return {"ece": self.ece(), "ece_inner": self.ece(inner=True), "bins": bins}
