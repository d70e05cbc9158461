"""Dice and IoU, in the two families that the literature mixes (they differ by 6 to 8 points).

per image: the mean over pictures of each picture's own score (LViT; the paper's figures fit it);
pooled:    one score from the counts summed over the whole set (LanGuideMedSeg, MMI-UNet, FMISeg).

    Dice = 2 TP / (2 TP + FP + FN)        IoU = TP / (TP + FP + FN)

A picture whose mask and prediction are both empty scores 1; one of the two empty scores 0.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def bootstrap_interval(values: np.ndarray, *, level: float = 0.95, rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling pictures.

    Args:
        values: (N,) one score a picture. level: in (0, 1). rounds: resamples.
    Returns:
        (low, high).
    """
    values = np.asarray(values, dtype=float)
    generator = np.random.default_rng(seed)
    means = np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(rounds)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass
class Scores:
    """The counts of N pictures, and every score that follows from them."""

    table: np.ndarray  #: (N, 3) TP, FP, FN

    @property
    def dice(self) -> np.ndarray:
        """(N,) Dice of each picture."""
        return dice(*self.table.T)

    @property
    def iou(self) -> np.ndarray:
        """(N,) IoU of each picture."""
        return iou(*self.table.T)

    def per_image(self) -> dict:
        """{"dice": {"mean", "low", "high"}, "iou": ...}: means over pictures and their 95 % bootstrap intervals."""
        result = {}
        for name, values in (("dice", self.dice), ("iou", self.iou)):
            low, high = bootstrap_interval(values)
            result[name] = {"mean": float(values.mean()), "low": low, "high": high}
        return result

    def pooled(self) -> dict:
        """{"dice", "iou"} of the summed counts."""
        tp, fp, fn = self.table.sum(0)
        return {"dice": float(dice(tp, fp, fn)), "iou": float(iou(tp, fp, fn))}

    def select(self, keep: np.ndarray) -> Scores:
        """The scores of the pictures that `keep` (N,) names."""
        return Scores(self.table[keep])
