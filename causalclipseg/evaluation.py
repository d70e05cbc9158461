"""Measure a model on a data folder: per-image and pooled Dice and IoU, with any sentence.

Everything here takes a *predictor*: a function `f(images, reports) -> probability`, with images
(B, 3, S, S) in [0, 1] and a list of B sentences, that returns (B, 1, S, S) in [0, 1]. `predictor(model)`
makes one of a `CausalCLIPSeg`; any other network can be wrapped in three lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from . import reports as sentences
from .config import write_text
from .data import ReferringDataset, data_digest, find_samples, split_rule
from .metrics import Scores, counts

Predictor = Callable[[torch.Tensor, list[str]], torch.Tensor]
TEXTS = ("report", "none", "generic", "shuffled", "swapped")
TEXT_NOTE = "The sentences state side, zones and number of areas of the very mask that is asked for (privileged text)."


def predictor(model, precision: str = "no") -> Predictor:
    """Wrap a `CausalCLIPSeg`: tokenise, predict (the confounder branch does not run), sigmoid.

    Args:
        model: put into evaluation mode at each call.
        precision: "no" (fp32) or "bf16".
    """

    @torch.inference_mode()
    def predict(images: torch.Tensor, reports: list[str]) -> torch.Tensor:
        model.eval()
        tokens, _ = model.tokenize(reports)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images.to(model.device), tokens).logits
        return logits.float().sigmoid()

    return predict


def edit_reports(reports: list[str], text: str, seed: int = 0) -> list[str]:
    """The sentences a model is shown in an evaluation.

    Args:
        reports: the right ones. text: "report" (as they are), "none" (empty), "generic" (names no place),
            "shuffled" (each picture gets another picture's), "swapped" (left and right exchanged).
    """
    if text == "report":
        return list(reports)
    if text == "none":
        return [""] * len(reports)
    if text == "generic":
        return [sentences.GENERIC] * len(reports)
    if text == "shuffled":
        return sentences.shuffled(reports, seed)
    if text == "swapped":
        return [sentences.swap_sides(r) for r in reports]
    raise ValueError(f'There is no text "{text}"; choose one of {", ".join(TEXTS)}.')


def score(
    predict: Predictor, dataset: Dataset, image_size: int, *, reports: list[str] | None = None,
    threshold: float = 0.5, batch_size: int = 32, progress: Callable | None = None,
) -> Scores:  # fmt: skip
    """Compare predictions with masks at the masks' own size.

    Args:
        predict: see above. dataset: a `ReferringDataset` without transform (any size, or each its own).
        image_size: S, to which pictures are resized for the predictor; probabilities are resized back.
        reports: sentences to show instead of the data set's own, in its order.
        threshold: a pixel belongs to the prediction where its probability is at least this.
        progress: wraps the iterable of batches, e.g. `tqdm`.
    Returns:
        the `Scores` of all pictures, in the data set's order.
    """
    table = []
    starts = range(0, len(dataset), batch_size)
    for start in progress(starts) if progress else starts:
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        images = torch.cat([fit(item["image"][None].float() / 255, image_size) for item in items])
        shown = reports[start : start + batch_size] if reports is not None else [item["report"] for item in items]
        probabilities = predict(images.expand(-1, 3, -1, -1), shown).cpu()
        for item, probability in zip(items, probabilities):
            mask = item["mask"].bool()
            probability = resize_probability(probability[None], tuple(mask.shape[-2:]))[0]
            table.append(counts(probability >= threshold, mask))
    return Scores(torch.cat(table).numpy())


def fit(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (B, C, H, W) to (B, C, size, size), bilinear with antialiasing; the same as it is where it fits."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def resize_probability(probability: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (B, 1, h, w) in [0, 1] to (B, 1, *size), bilinear; values stay in [0, 1]."""
    if tuple(probability.shape[-2:]) == tuple(size):
        return probability
    small = size[0] < probability.shape[-2] or size[1] < probability.shape[-1]
    return F.interpolate(probability, size=size, mode="bilinear", align_corners=False, antialias=small).clamp(0, 1)


def evaluate(
    predict: Predictor, data: str, *, model: str, image_size: int = 224, split: str = "test", text: str = "report",
    threshold: float = 0.5, batch_size: int = 32, seed: int = 0, progress: Callable | None = None,
) -> dict:  # fmt: skip
    """The result of `causalclipseg evaluate`, as a dictionary that JSON can hold.

    Args:
        data: a folder in one of the three layouts. model: how the model is named in the result.
        split: "train", "val" or "test". text: see `edit_reports`. seed: of the shuffled sentences.
    Returns:
        per-image and pooled scores, those of subgroups, and all that is needed to repeat them.
    """
    samples = find_samples(data, split)
    dataset = ReferringDataset(samples, size=None, cache=False)
    shown = edit_reports([s.report for s in samples], text, seed)
    scores = score(
        predict, dataset, image_size, reports=shown, threshold=threshold, batch_size=batch_size, progress=progress
    )
    return {
        "per_image": scores.per_image(), "pooled": scores.pooled(), "subgroups": subgroups(scores, samples),
        "n": len(samples), "threshold": threshold, "split": split, "text": text, "model": model,
        "data": Path(data).name, "data_digest": data_digest(samples), "split_rule": split_rule(data), "seed": seed,
        "note": f"Metrics at the masks' own size; an empty mask with an empty prediction scores 1. {TEXT_NOTE}",
    }  # fmt: skip


def subgroups(scores: Scores, samples) -> dict:
    """Per-image and pooled means by source, by side(s) of the sentence, and by lesion size."""
    area = scores.table[:, 0] + scores.table[:, 2]
    low, high = np.quantile(area, [1 / 3, 2 / 3])
    size = np.where(area <= low, "small", np.where(area <= high, "medium", "large"))
    side = np.array([sentences.parse(s.report).side or "unknown" for s in samples])
    groups = {"source": np.array([s.source for s in samples]), "side": side, "lesion size (tertiles)": size}
    result = {}
    for name, values in groups.items():
        result[name] = {}
        for value in np.unique(values):
            part = scores.select(values == value)
            result[name][str(value)] = {
                "n": len(part.table), "dice": float(part.dice.mean()), "iou": float(part.iou.mean()),
                "pooled_dice": part.pooled()["dice"],
            }  # fmt: skip
    return result


def evaluate_referring(
    predict: Predictor, data: str, *, image_size: int = 224, split: str = "test", threshold: float = 0.5,
    least: int = 100, batch_size: int = 32, progress: Callable | None = None,
) -> dict:  # fmt: skip
    """Does the sentence steer the pixels? Name one half of each bilateral case and look where the mask goes.

    Every picture whose halves both hold at least `least` lesion pixels is shown twice, once with "Infection of
    the left lung." and once with "... right lung."; nothing is cut away by side afterwards.

    Returns:
        "n": number of predictions; "empty": how many are empty; "success": share of predictions that are not
        empty and have at least 95 % of their area on the named half; "area_on_half": mean share of the
        predicted area on that half (an empty prediction counts 0); "dice": mean per-image Dice against the
        mask of that half; "pooled_area_on_half": the same share over the summed areas.
    """
    samples = find_samples(data, split)
    dataset = ReferringDataset(samples, size=None, cache=False)
    shares, scores, areas = [], [], []
    cases = []
    for i in range(len(dataset)):
        mask = dataset[i]["mask"].numpy()[0]
        halves = {side: sentences.restrict(mask, side) for side in sentences.SIDES}
        if all(half.sum() >= least for half in halves.values()):
            cases += [(i, side) for side in sentences.SIDES]
    starts = range(0, len(cases), batch_size)
    for start in progress(starts) if progress else starts:
        batch = cases[start : start + batch_size]
        items = [dataset[i] for i, _ in batch]
        images = torch.cat([fit(item["image"][None].float() / 255, image_size) for item in items])
        probabilities = predict(images.expand(-1, 3, -1, -1), [sentences.refer(side) for _, side in batch]).cpu()
        for (_, side), item, probability in zip(batch, items, probabilities):
            mask = item["mask"].numpy()[0]
            found = resize_probability(probability[None], mask.shape)[0, 0].numpy() >= threshold
            on_half = sentences.restrict(found, side).sum()
            areas.append((on_half, found.sum()))
            shares.append(on_half / found.sum() if found.any() else 0.0)
            half = sentences.restrict(mask, side) > 0
            scores.append(counts(torch.from_numpy(found)[None], torch.from_numpy(half)[None]))
    shares, areas = np.array(shares), np.array(areas)
    result = Scores(torch.cat(scores).numpy())
    return {
        "n": len(cases), "pictures": len(cases) // 2, "least_pixels": least, "threshold": threshold, "split": split,
        "empty": int((areas[:, 1] == 0).sum()), "success": float((shares >= 0.95).mean()),
        "area_on_half": float(shares.mean()), "pooled_area_on_half": float(areas[:, 0].sum() / max(areas[:, 1].sum(), 1)),
        "dice": float(result.dice.mean()), "iou": float(result.iou.mean()),
    }  # fmt: skip


def save_result(result: dict, path: str | Path) -> None:
    """Write a result as JSON, beside its place and then renamed."""
    write_text(path, json.dumps(result, indent=2) + "\n")
