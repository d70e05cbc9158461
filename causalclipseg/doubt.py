"""Doubt: does the picture speak against the side that a sentence names? Bayes' rule on three answers of the model.

    log [P(wrong) / P(right)] = log [pi / (1 - pi)] + a [logit c(i, s t) - logit c(i, t)] + b log [(m_o + e) / (m_n + e)]

t says that the infection is in one half alone ("Unilateral pulmonary infection, …"), s t has left and right exchanged. c(i, t)
is the highest Dice that the answer f(i, t) promises, if its probabilities are right; m_n and m_o are how much of the picture
f(i, "Pulmonary infection.") calls lesion on the named and on the other half. f answers to the picture and to its mirror image,
and the mean counts: what a network takes for left or right by habit cancels out. pi is how often such sentences of QaTa-COV19
name the half that holds less of the lesion; pi, a and b: `tests/benchmarks/doubt.py`, on train and validation.

A model that was trained on sentences which are nearly always right follows a wrong one, too. "Infection of the left lung." says
nothing of the other half, so it is never doubted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import reports as sentences

WRONG, CONFIDENCE, EVIDENCE = 0.0332, 1.17, 1.64  #: pi, a and b
SMALL = 20 / 224**2  #: e, a share of the picture: 20 of 224 x 224 pixels


def claimed_side(report: str) -> str | None:
    """ "left" or "right" where the sentence says that the infection is in that half alone, else None."""
    said = sentences.parse(report)
    return said.side if said.extent == "unilateral" and said.side in sentences.SIDES else None


def promised_dice(probability: torch.Tensor) -> torch.Tensor:
    """The highest expected Dice over all thresholds, pixels taken as calibrated: max over n of 2 sum_n p / (n + sum p).

    Args:
        probability: (B, 1, H, W) in [0, 1]; sum_n is over its n largest values.
    Returns:
        (B,) float64 in [0, 1]; 0 where nothing is probable.
    """
    p = probability.flatten(1).double().sort(dim=1, descending=True).values
    found = p.cumsum(1)
    n = torch.arange(1, p.shape[1] + 1, device=p.device)
    return (2 * found / (n + found[:, -1:])).amax(1)


def mirrored(predict: Callable[[torch.Tensor, list[str]], torch.Tensor], images: torch.Tensor, reports: list[str]) -> torch.Tensor:
    """flip f(flip i, swap t): the answer to the mirror images, mirrored back, (B, 1, H, W)."""
    return predict(images.flip(-1), [sentences.swap_sides(r) for r in reports]).flip(-1)


def features(predict: Callable[[torch.Tensor, list[str]], torch.Tensor], images: torch.Tensor, reports: list[str]) -> torch.Tensor:
    """What a and b are multiplied with, (B, 2) float64; above 0 where it speaks for the other half.

    Args:
        predict: f(images (B, 3, S, S) in [0, 1], reports) -> probability (B, 1, S, S). reports: each with a `claimed_side`.
    """
    both = lambda shown: (predict(images, shown) + mirrored(predict, images, shown)).double().cpu() / 2
    named, other, plain = both(reports), both([sentences.swap_sides(r) for r in reports]), both([sentences.GENERIC] * len(reports))
    half = plain.shape[-1] // 2
    left, right = (part.flatten(1).sum(1) / plain[0].numel() for part in (plain[..., :half], plain[..., half:]))
    on_left = torch.tensor([claimed_side(r) == "left" for r in reports])
    on_named, on_other = torch.where(on_left, left, right), torch.where(on_left, right, left)
    logit = lambda p: promised_dice(p).logit(eps=0.01)
    return torch.stack([logit(other) - logit(named), ((on_other + SMALL) / (on_named + SMALL)).log()], dim=1)


def log_odds(predict: Callable[[torch.Tensor, list[str]], torch.Tensor], images: torch.Tensor, reports: list[str]) -> list[float | None]:
    """log [P(wrong) / P(right)] of each sentence, in nats; None for one without a `claimed_side`.

    Args:
        predict: see `features`. images: (B, 3, S, S) in [0, 1]. reports: B sentences.
    """
    asked = [i for i, report in enumerate(reports) if claimed_side(report)]
    odds: list[float | None] = [None] * len(reports)
    if asked:
        x = features(predict, images[asked], [reports[i] for i in asked])
        prior = torch.tensor(WRONG, dtype=torch.double).logit()
        for i, value in zip(asked, (prior + CONFIDENCE * x[:, 0] + EVIDENCE * x[:, 1]).tolist()):
            odds[i] = value
    return odds


def believed(predict: Callable[[torch.Tensor, list[str]], torch.Tensor], images: torch.Tensor, reports: list[str]) -> list[str]:
    """The sentences, with left and right exchanged where P(wrong) > P(right); see `log_odds`."""
    odds = log_odds(predict, images, reports)
    return [sentences.swap_sides(r) if value is not None and value > 0 else r for r, value in zip(reports, odds)]
