"""Objectives: Eq. 3-4 of the paper as printed, and what it is compared with.

    L_c = l_ce(D_c(tau, F^c), Y)      L_s = l_ce(D_s(tau, F^s), Y)      (Eq. 4)
    L   = L_c - lambda * L_s                                             (Eq. 3)

As printed, L has no floor: every weight, those of D_s included, descends it, and cross-entropy has no
upper bound, so a D_s that is wrong with ever more confidence lowers L for ever. What it is compared with:

    none      L_c
    bounded   L_c - lambda * min(L_s, cap)
    minimax   min over D_s and max over maskers and encoders of L_s: D_s descends L_s, and through the reversed
              gradient of F^s and tau the maskers and encoders ascend lambda * L_s (Ganin & Lempitsky, ICML 2015)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

OBJECTIVES = ("none", "causal", "bounded", "minimax")


class Loss(NamedTuple):
    """What an objective returns; all are scalars."""

    total: torch.Tensor  #: what is minimised
    causal: torch.Tensor  #: L_c, in nats a pixel (the cross-entropy alone)
    confounder: torch.Tensor  #: L_s, in nats a pixel (0 where no confounder decoder ran)


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """l_ce: binary cross-entropy, mean over all pixels, in nats.

    Args:
        logits: (B, 1, H, W). masks: the same shape, values 0 or 1.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), masks)


def soft_dice_loss(logits: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """1 - soft Dice, mean over the pictures; `smooth` pixels make an empty mask well defined.

    Dice = (2 sum(p y) + smooth) / (sum p + sum y + smooth), p = sigmoid(logits).

    Args:
        logits: (B, 1, H, W). masks: the same shape, values 0 or 1.
    """
    p = logits.float().sigmoid().flatten(1)
    y = masks.flatten(1)
    return (1 - (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)).mean()


def objective(
    name: str, logits: torch.Tensor, confounder_logits: torch.Tensor | None, masks: torch.Tensor, *,
    lam: float = 0.05, cap: float = 0.37, dice_weight: float = 0.0,
) -> Loss:  # fmt: skip
    """The loss that goes by `name`.

    Args:
        name: "none", "causal", "bounded" or "minimax". For "minimax", the confounder branch must have run behind
            `masking.reverse_gradient` (the model's `reversal` argument), with this `lam`.
        logits: S_c, (B, 1, H, W). confounder_logits: S_s, the same shape; None only under "none".
        masks: Y, the same shape, float, 0 or 1.
        lam: lambda of Eq. 3. cap: nats a pixel up to which "bounded" counts L_s.
        dice_weight: weight of a soft Dice term beside L_c (0: as printed). It never enters L_s.
    Raises:
        ValueError: an unknown name, or a confounder prediction that is missing.
    """
    if name not in OBJECTIVES:
        raise ValueError(f'There is no objective "{name}"; choose one of {", ".join(OBJECTIVES)}.')
    loss_c = cross_entropy(logits, masks)
    total = loss_c + dice_weight * soft_dice_loss(logits, masks) if dice_weight else loss_c
    if name == "none":
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
