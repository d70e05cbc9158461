"""From a batch to a loss: the forward passes that an objective wants, and the objective over them."""

from __future__ import annotations

import torch

from .config import TrainingConfig
from .objectives import Loss, objective


def batch_loss(model, batch: dict, name: str, config: TrainingConfig) -> tuple[Loss, torch.Tensor]:
    """The loss of one batch. What an objective needs beyond one pass over it (an edited copy of the batch,
    weights of its pictures) is added here, and nowhere else in the training.

    Args:
        model: `CausalCLIPSeg`, or anything with its `tokenize` and `forward`, in training mode.
        batch: `images` (B, 3, H, W) in [0, 1] and `masks` (B, 1, H, W), 0 or 1, both on the model's device;
            `reports`, `names`: B strings; `indices` (B,).
        name: the objective of this step, one of `objectives.OBJECTIVES`. config: its weights.
    Returns:
        the loss, its parts detached, and the logits S_c (B, 1, H, W), detached. Random numbers may be drawn from
        the global generators: they are seeded anew at each step, so that a resumed run draws the same.
    """
    tokens, _ = model.tokenize(batch["reports"])
    output = model(
        batch["images"], tokens, confounder=name != "none", reversal=config.lam if name == "minimax" else None
    )
    loss = objective(
        name, output.logits, output.confounder_logits, batch["masks"],
        lam=config.lam, cap=config.cap, dice_weight=config.dice_weight,
    )  # fmt: skip
    return loss, output.logits.detach()
