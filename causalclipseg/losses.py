"""From a batch to a loss: the forward passes that an objective wants, and the objective over them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

from . import acquisition, reports
from .config import TrainingConfig
from .data import DataError, Sample
from .objectives import ADVERSARIAL, Loss, adjustment, objective


def batch_loss(model, batch: dict, name: str, config: TrainingConfig) -> tuple[Loss, torch.Tensor]:
    """The loss of one batch. What an objective needs beyond one pass over it (an edited copy of the batch,
    weights of its pictures) is added here, and nowhere else in the training.

    Args:
        model: `CausalCLIPSeg`, or anything with its `tokenize` and `forward`, in training mode.
        batch: `images` (B, 3, H, W) in [0, 1] and `masks` (B, 1, H, W), 0 or 1, both on the model's device;
            `reports`, `names`: B strings; `indices` (B,); for "adjusted" `weights` (B,), see `picture_weights`; with a
            teacher `answers` (B, 1, H, W) in [0, 1].
        name: the objective of this step, one of `objectives.OBJECTIVES`. config: its weights.
    Returns:
        the loss, its parts detached, and the logits S_c (B, 1, H, W), detached. Random numbers may be drawn from
        the global generators: they are seeded anew at each step, so that a resumed run draws the same.
    """
    tokens, _ = model.tokenize(batch["reports"])
    output = model(
        batch["images"], tokens, confounder=name in ADVERSARIAL, reversal=config.lam if name == "minimax" else None
    )
    edited_logits = None
    if name == "interventional":
        images, sentences = under_do(batch["images"], batch["reports"])
        edited_logits = model(images, model.tokenize(sentences)[0]).logits
    loss = objective(
        name, output.logits, output.confounder_logits, batch["masks"], lam=config.lam, cap=config.cap, dice_weight=config.dice_weight,
        edited_logits=edited_logits, mu=config.mu, weights=batch.get("weights"), answers=batch.get("answers"), distill=config.distill,
    )  # fmt: skip
    return loss, output.logits.detach()


def under_do(images: torch.Tensor, sentences: list[str]) -> tuple[torch.Tensor, list[str]]:
    """The same patients under simulated do(A): other acquisitions, (B, 3, H, W) in [0, 1], and other words; the masks hold."""
    rng, words = np.random.default_rng(int(torch.randint(2**62, ()))), random.Random(int(torch.randint(2**62, ())))
    grey = (images[:, 0] * 255).round().byte().cpu().numpy()
    edited = torch.from_numpy(np.stack([acquisition.other_acquisition(image, rng) for image in grey])).to(images.device)
    return edited[:, None].to(images.dtype).div(255).expand_as(images), [reports.other_words(s, words) for s in sentences]


def picture_weights(samples: list[Sample]) -> dict[str, float]:
    """The weights of "adjusted", {name: w}: the source of a picture (its ward, in a world of phantoms) is the observed
    confounder, and the side its sentence names is what must not depend on it.

    Raises:
        DataError: one source alone, a source without pictures of one side, or two pictures of one name.
    """
    known = _wards({sample.image.parents[3] for sample in samples if len(sample.image.parents) > 3})
    causes = [known.get(s.image, (s.source, reports.parse(s.report).side or "none")) for s in samples]
    if len({c for c, _ in causes}) < 2:
        raise DataError(f'The objective "adjusted" needs pictures of two sources at least; all of these are "{causes[0][0]}".')
    if len({s.name for s in samples}) < len(samples):
        raise DataError('The objective "adjusted" tells pictures apart by name, and some names occur twice.')
    try:
        weights = adjustment([c for c, _ in causes], [lesion for _, lesion in causes])
    except ValueError as error:
        raise DataError(str(error)) from None
    return dict(zip((s.name for s in samples), weights.tolist()))


def _wards(roots: set[Path]) -> dict[Path, tuple]:
    """(W, L) of the pictures of a world of phantoms, by their path; {} for other data."""
    found = {}
    for root in roots:
        try:
            about = json.loads((root / "phantoms.json").read_text(encoding="utf-8"))
            for p in about["pictures"]:
                folder = root / "QaTa-COV19-v2" / ("Test Set" if p["split"] == "test" else "Train Set")
                found[folder / "Images" / p["image"]] = (p["W"], p["L"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
