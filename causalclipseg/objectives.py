"""Objectives: Eq. 3-4 of the paper as printed, and what it is compared with.

    L_c = l_ce(D_c(tau, F^c), Y)      L_s = l_ce(D_s(tau, F^s), Y)      (Eq. 4)
    L   = L_c - lambda * L_s                                             (Eq. 3)

As printed, L has no floor: every weight, those of D_s included, descends it, and cross-entropy has no
upper bound, so a D_s that is wrong with ever more confidence lowers L for ever. What it is compared with:

    none      L_c
    bounded   L_c - lambda * min(L_s, cap)
    minimax   min over D_s and max over maskers and encoders of L_s: D_s descends L_s, and through the reversed
              gradient of F^s and tau the maskers and encoders ascend lambda * L_s (Ganin & Lempitsky, ICML 2015)

    interventional   (L_c(i, t) + L_c(i_a, t_a)) / 2 + mu * mean (p(i, t) - p(i_a, t_a))^2
                     i_a: the pictures under simulated do(A), the mask held; t_a: the sentences in other words, which cuts
                     W -> T instead (T is no effect of A); p = sigmoid(S_c). Augmentation and consistency: it removes
                     only what the edits reach
    with a teacher   (1 - a) L_c(y) + a L_c(q) in the place of L_c, q the teacher's probability: labels that annotators
                     drew by hand are noisy, and q tells how sure one may be (Hinton et al., 2015)
    adjusted         mean of w_i l_i, w_i = P(c_i) / P(c_i | l_i), where the confounder C is observed; l is what of the
                     lesion it goes with (its side, say). Under these weights C and L are independent, so what the
                     network learns from is sum over c of P(i, t | l, c) P(c): the backdoor adjustment of do(L)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch.nn import functional as F

OBJECTIVES = ("none", "causal", "bounded", "minimax", "interventional", "adjusted")
ADVERSARIAL = ("causal", "bounded", "minimax")  #: those that need the confounder decoder


class Loss(NamedTuple):
    """What an objective returns; all are scalars."""

    total: torch.Tensor  #: what is minimised
    causal: torch.Tensor  #: L_c, in nats a pixel (the cross-entropy alone)
    confounder: torch.Tensor  #: L_s, in nats a pixel (0 where no confounder decoder ran)


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """l_ce: binary cross-entropy, mean over all pixels, in nats.

    Args:
        logits: (B, 1, H, W). masks: the same shape, values 0 or 1.
        weights: (B,), with which each picture counts; None: all alike.
    """
    if weights is None:
        return F.binary_cross_entropy_with_logits(logits.float(), masks)
    return F.binary_cross_entropy_with_logits(logits.float(), masks, weights.view(-1, 1, 1, 1))


def soft_dice_loss(
    logits: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0, weights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """1 - soft Dice, mean over the pictures; `smooth` pixels make an empty mask well defined.

    Dice = (2 sum(p y) + smooth) / (sum p + sum y + smooth), p = sigmoid(logits).

    Args:
        logits: (B, 1, H, W). masks: the same shape, values 0 or 1. weights: as in `cross_entropy`.
    """
    p = logits.float().sigmoid().flatten(1)
    y = masks.flatten(1)
    loss = 1 - (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)
    return loss.mean() if weights is None else (weights * loss).mean()


def consistency(logits: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two predictions of the same patients, sigmoid(logits) and sigmoid(edited); in [0, 1]."""
    return (logits.float().sigmoid() - edited.float().sigmoid()).square().mean()


def objective(
    name: str, logits: torch.Tensor, confounder_logits: torch.Tensor | None, masks: torch.Tensor, *,
    lam: float = 0.05, cap: float = 0.37, dice_weight: float = 0.0,
    edited_logits: torch.Tensor | None = None, mu: float = 1.0, weights: torch.Tensor | None = None,
    answers: torch.Tensor | None = None, distill: float = 0.5,
) -> Loss:  # fmt: skip
    """The loss that goes by `name`.

    Args:
        name: one of `OBJECTIVES`. For "minimax", the confounder branch must have run behind
            `masking.reverse_gradient` (the model's `reversal` argument), with this `lam`.
        logits: S_c, (B, 1, H, W). confounder_logits: S_s, the same shape; read only by the `ADVERSARIAL`.
        masks: Y, the same shape, float, 0 or 1.
        lam: lambda of Eq. 3. cap: nats a pixel up to which "bounded" counts L_s, the L_s of these very pictures: of a step
            that is taken in parts (`accumulate`) or by several processes, each part's own mean meets it, not the whole batch's.
        dice_weight: weight of a soft Dice term beside L_c (0: as printed). It never enters L_s.
        edited_logits: for "interventional", S_c of the same patients under do(A), (B, 1, H, W). mu: of its consistency.
        weights: for "adjusted", w_i, (B,), see `adjustment`.
        answers: q, a teacher's probability, the shape of the masks; None: no teacher. distill: a, its share, in [0, 1].
    Raises:
        ValueError: an unknown name, or a prediction or weights that are missing.
    """
    if name not in OBJECTIVES:
        raise ValueError(f'There is no objective "{name}"; choose one of {", ".join(OBJECTIVES)}.')
    if name == "adjusted" and weights is None:
        raise ValueError('The objective "adjusted" needs the weights of the pictures (objectives.adjustment).')
    weights = weights if name == "adjusted" else None
    loss_c = cross_entropy(logits, masks, weights)
    dice = lambda target: dice_weight * soft_dice_loss(logits, target, weights=weights) if dice_weight else 0
    total = loss_c + dice(masks)
    if answers is not None:
        total = (1 - distill) * total + distill * (cross_entropy(logits, answers, weights) + dice(answers))
    if name == "interventional":
        if edited_logits is None:
            raise ValueError('The objective "interventional" needs the prediction for the edited batch.')
        edited = objective("none", edited_logits, None, masks, dice_weight=dice_weight, answers=answers, distill=distill).total
        total = (total + edited) / 2 + mu * consistency(logits, edited_logits)
    if name not in ADVERSARIAL:
        return Loss(total, loss_c.detach(), torch.zeros_like(loss_c))
    if confounder_logits is None:
        raise ValueError(f'The objective "{name}" needs the confounder decoder\'s prediction (model.intervention on).')
    loss_s = cross_entropy(confounder_logits, masks)
    if name == "minimax":
        return Loss(total + loss_s, loss_c.detach(), loss_s.detach())
    # "bounded" is L_c - lambda * min(L_s, cap). Above the cap its gradient is zero, so L_s is left out
    # altogether there: the same step, without a backward pass through the confounder branch.
    if name == "causal" or loss_s.item() < cap:
        total = total - lam * loss_s  # Eq. 3
    else:
        total = total - lam * cap
    return Loss(total, loss_c.detach(), loss_s.detach())


def adjustment(confounder: Sequence, lesion: Sequence) -> torch.Tensor:
    """w_i = P(c_i) / P(c_i | l_i), by the frequencies in a training set; mean 1.

    Args:
        confounder: the observed group c of each of N pictures (ward, hospital, view). lesion: what of its lesion goes
            with the group, and must not depend on it (the side, a class of size).
    Returns:
        (N,) float32.
    Raises:
        ValueError: a group in which some l never occurs: there the data cannot tell what it would look like (positivity).
    """
    pairs, groups, kinds = Counter(zip(confounder, lesion, strict=True)), Counter(confounder), Counter(lesion)
    for c, l in product(groups, kinds):
        if not pairs[c, l]:
            raise ValueError(f'No picture of group {c!r} has lesion {l!r}, so "adjusted" cannot know what it would look like.')
    n = len(confounder)
    return torch.tensor([groups[c] / n * kinds[l] / pairs[c, l] for c, l in zip(confounder, lesion)], dtype=torch.float32)
