"""Measure a model on a data folder: per-image and pooled scores, surfaces, subgroups and calibration, with any sentence.

Everything here takes a *predictor*: a function `f(images, reports) -> probability`, with images
(B, 3, S, S) in [0, 1] and a list of B sentences, that returns (B, 1, S, S) in [0, 1]. `predictor(model)`
makes one of a `CausalCLIPSeg`; any other network can be wrapped in three lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from . import reports as sentences
from ._files import write_text
from .data import DataError, ReferringDataset, Sample, data_digest, find_samples, split_rule
from .data.layouts import SPLITS
from .data.splits import patient_of
from .metrics import TOLERANCE, Reliability, Scores, counts, expected_dice_threshold, mean_interval, paired_test, surface_scores

Predictor = Callable[[torch.Tensor, list[str]], torch.Tensor]
#: Sentences that pictures are shown with, and how a page names them.
TEXTS = {
    "report": "its own sentence", "none": "no sentence", "generic": "a sentence that names no place",
    "shuffled": "another picture's sentence", "swapped": "left and right exchanged",
}  # fmt: skip
ALL = ("dice", "iou", "precision", "recall")
EXPECTED_DICE = "expected-dice"  #: each picture's own threshold (`metrics.expected_dice_threshold`)
RULES = (EXPECTED_DICE, "validation-best")  #: ways to choose a threshold, always reported beside a fixed one
GRID = tuple(round(0.2 + 0.025 * k, 3) for k in range(21))  #: thresholds that "validation-best" chooses from
INTERVAL_NOTE = "Intervals: 95 % bootstrap that resamples patients, each with all their pictures, where file names tell whose a picture is."
TEXT_NOTE = "The sentences state side, zones and number of areas of the very mask that is asked for (privileged text)."


def networks_of(model) -> list:
    """The networks of a model's file that read sentences, the first one first; a network it is compared with is alone."""
    return [model, *getattr(model, "companions", ())]


def predictor(model, precision: str = "no", companions: bool = False) -> Predictor:
    """Wrap a `CausalCLIPSeg`: tokenise, predict (the confounder branch does not run), sigmoid.

    Args:
        model: put into evaluation mode at each call.
        precision: "no" (fp32) or "bf16".
        companions: the mean probability of the network and its companions, where it has any.
    """

    @torch.inference_mode()
    def predict(images: torch.Tensor, reports: list[str]) -> torch.Tensor:
        model.eval()
        networks = networks_of(model) if companions else [model]
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = [network(images.to(model.device), network.tokenize(reports)[0]).logits for network in networks]
        return sum(x.float().sigmoid() for x in logits) / len(networks)

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


def check_threshold(threshold) -> float:
    """The threshold as a float; TypeError where it is no number, ValueError where it lies outside (0, 1)."""
    if isinstance(threshold, (bool, str)) or not isinstance(threshold, (int, float, np.number)):
        raise TypeError(f"threshold must be a number, not {type(threshold).__name__}.")
    if not 0 < threshold < 1:  # nan, too
        raise ValueError(f"threshold must lie between 0 and 1 (both excluded), not {threshold}.")
    return float(threshold)


def check_split(split: str) -> None:
    """DataError unless it is "train", "val" or "test"."""
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")


def read_threshold(word: str, rules: Iterable[str] = (EXPECTED_DICE,)) -> float | str:
    """What `--threshold` was given: a number in (0, 1), or the name of a rule as it is; ValueError for anything else."""
    if word in rules:
        return word
    try:
        number = float(word)
    except ValueError:
        raise ValueError(f'"{word}" is no threshold; give a number between 0 and 1, or {", ".join(rules)}.') from None
    return check_threshold(number)


def read_thresholds(given: Iterable[str]) -> tuple[float, list[str]]:
    """What several `--threshold` were given: the number (0.5 where there is none), and the names of rules.

    Raises:
        ValueError: a number outside (0, 1), two numbers, or a word that is no rule.
    """
    read = [read_threshold(word, RULES) for word in given]
    numbers, rules = ([value for value in read if isinstance(value, kind)] for kind in (float, str))
    if len(numbers) > 1:
        raise ValueError(f"Only one fixed threshold can be the main one, not {len(numbers)}; 0.35 and 0.5 are always measured.")
    return (numbers or [0.5])[0], rules


def answers(
    predict: Predictor, dataset: Dataset, image_size: int, *, reports: list[str] | None = None, batch_size: int = 32,
    progress: Callable | None = None,
) -> Iterator[tuple[dict, torch.Tensor]]:  # fmt: skip
    """Each item of a data set with its predicted probability (1, H, W), at the mask's own size.

    Args:
        predict: see above. dataset: a `ReferringDataset` without transform (any size, or each its own).
        image_size: S, to which pictures are resized for the predictor; probabilities are resized back.
        reports: sentences to show instead of the data set's own, in its order.
        progress: wraps the iterable of batches, e.g. `tqdm`.
    """
    starts = range(0, len(dataset), batch_size)
    for start in progress(starts) if progress else starts:
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        images = torch.cat([fit(item["image"][None].float() / 255, image_size) for item in items])
        shown = reports[start : start + batch_size] if reports is not None else [item["report"] for item in items]
        probabilities = predict(images.expand(-1, 3, -1, -1), shown).cpu()
        for item, probability in zip(items, probabilities):
            yield item, resize_probability(probability[None], tuple(item["mask"].shape[-2:]))[0]


def score(predict: Predictor, dataset: Dataset, image_size: int, *, threshold: float = 0.5, **options) -> Scores:
    """Compare predictions with masks at the masks' own size.

    Args:
        threshold: a pixel belongs to the prediction where its probability is at least this. The others: see `answers`.
    Returns:
        the `Scores` of all pictures, in the data set's order.
    """
    found = answers(predict, dataset, image_size, **options)
    table = torch.cat([counts(probability >= threshold, item["mask"].bool()) for item, probability in found]).numpy()
    samples = getattr(dataset, "samples", None)  # a part of a data set, or a wrapper, has none
    return Scores(table, None if samples is None else subjects_of(samples))


def subjects_of(samples: list[Sample]) -> np.ndarray:
    """(N,) whose picture each is; one that does not say so is taken as another patient's."""
    return np.array([patient_of(s) or s.name for s in samples])


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


# ---------------------------------------------------------------- the whole measurement


@dataclass
class Measured:
    """One pass of a model over some pictures, and all that is counted on the way."""

    samples: list[Sample]
    shown: list[str]  #: the sentences
    scores: dict[str, Scores]  #: by threshold: "0.5", "0.35", ..., or the name of a rule
    thresholds: dict[str, np.ndarray]  #: the same keys, each picture's threshold (N,)
    reliability: Reliability
    surface: np.ndarray | None  #: (N, 2) HD95 and surface Dice at the main threshold


def measure(
    predict: Predictor, samples: list[Sample], image_size: int, *, shown: list[str] | None = None, thresholds: Iterable[float] = (0.5,),
    expected_dice: bool = False, surface_at: float | None = None, batch_size: int = 32, progress: Callable | None = None,
) -> Measured:  # fmt: skip
    """Predict each picture once, and score it at every threshold.

    Args:
        shown: sentences in the samples' order; None: their own.
        thresholds: fixed ones. expected_dice: also each picture's `metrics.expected_dice_threshold`.
        surface_at: the threshold of the surface distances; None: none (they cost about 20 ms a picture, and need MONAI).
    """
    fixed = {f"{t:g}": t for t in thresholds}
    names = [*fixed, *([EXPECTED_DICE] if expected_dice else [])]
    tables, used = {name: [] for name in names}, {name: [] for name in names}
    reliability, surface = Reliability(), []
    shown = [s.report for s in samples] if shown is None else shown
    dataset = ReferringDataset(samples, size=None, cache=False)
    for item, probability in answers(predict, dataset, image_size, reports=shown, batch_size=batch_size, progress=progress):
        mask, p = item["mask"].bool(), probability.numpy()
        for name in names:
            t = fixed[name] if name in fixed else expected_dice_threshold(p)
            used[name].append(t)
            tables[name].append(counts(probability >= t, mask))
        reliability.add(p, mask.numpy())
        if surface_at is not None:
            surface.append(surface_scores(p[0] >= surface_at, mask[0].numpy()))
    subjects = subjects_of(samples)
    return Measured(
        list(samples), list(shown), {name: Scores(torch.cat(rows).numpy(), subjects) for name, rows in tables.items()},
        {name: np.array(values) for name, values in used.items()}, reliability, np.array(surface) if surface else None,
    )  # fmt: skip


def evaluate(
    predict: Predictor, data: str, *, model: str, image_size: int = 224, split: str = "test", text: str = "report", threshold: float = 0.5,
    rules: Iterable[str] = (), only: str = "", limit: int | None = None, surface: bool = False, against: tuple[str, Predictor, int] | None = None,
    batch_size: int = 32, seed: int = 0, splits: str = "published", progress: Callable | None = None,
) -> dict:  # fmt: skip
    """The result of `causalclipseg evaluate`, as a dictionary that JSON can hold.

    Args:
        data: a folder in one of the three layouts. model: how the model is named in the result.
        split: "train", "val" or "test". splits: the rule that tells train from val, as in training (data/splits.py).
        text: see `edit_reports`; "all": the right sentence, and the others beside it.
        threshold: of the main scores; 0.35 and 0.5 always stand beside it, under "thresholds".
        rules: further rows there: "expected-dice" (`metrics.expected_dice_threshold`) and "validation-best" (the fixed
            threshold with the highest per-image Dice on the validation split; one more pass, over that split).
        only: a slice of the split, "GROUP=VALUE" of `groups_of`, e.g. "source=covid" with split="train" for a run that
            was trained with leave_out=["covid"].
        limit: only the first pictures. surface: also surface distances, by MONAI.
        against: (name, predictor, image_size) of a second model, for a paired test on the same pictures and sentences.
        seed: of the shuffled sentences.
    Returns:
        per-image and pooled scores, those of subgroups, and all that is needed to repeat them.
    Raises:
        ValueError, DataError: a wrong setting, or data that can't be read.
    """
    check_threshold(threshold)
    rules = list(dict.fromkeys(rules))
    if unknown := set(rules) - set(RULES):
        raise ValueError(f'There is no rule {", ".join(sorted(unknown))} for a threshold; choose a number or one of {", ".join(RULES)}.')
    check_split(split)
    samples = slice_of(find_samples(data, split, rule=splits), only)[:limit]
    texts = ["report", *(t for t in TEXTS if t != "report")] if text == "all" else [text]
    options = dict(batch_size=batch_size, progress=progress)
    fixed, best = sorted({0.35, 0.5, threshold}), None
    if "validation-best" in rules:
        best = validation_best(predict, data, image_size, limit=limit, text=texts[0], seed=seed, splits=splits, **options)
        fixed = sorted({*fixed, best})
    passes = {
        t: measure(predict, samples, image_size, shown=edit_reports([s.report for s in samples], t, seed), thresholds=fixed,
                   expected_dice=EXPECTED_DICE in rules, surface_at=threshold if surface and t == texts[0] else None, **options)
        for t in texts
    }  # fmt: skip
    main = passes[texts[0]]
    scores = main.scores[f"{threshold:g}"]
    keys = {f"{t:g}": f"{t:g}" for t in sorted({0.35, 0.5, threshold})}  # name of a row -> name of a pass's scores
    keys |= {rule: rule if rule == EXPECTED_DICE else f"{best:g}" for rule in rules}
    result = {
        "per_image": scores.per_image(ALL), "pooled": scores.pooled(ALL), "subgroups": subgroups(scores, samples),
        "n": len(samples), "patients": len(set(scores.subjects)), "threshold": threshold, "split": split, "text": texts[0], "model": model,
        "data": Path(data).resolve().name, "data_digest": data_digest(samples), "split_rule": split_rule(data, splits), "seed": seed,
        "note": f"Metrics at the masks' own size; an empty mask with an empty prediction scores 1. {INTERVAL_NOTE} {TEXT_NOTE}",
        "thresholds": {name: {"threshold": _range(main.thresholds[key]), **_both(main.scores[key])} for name, key in keys.items()},
        "calibration": main.reliability.to_dict(), "cases": cases(scores, main.samples, main.shown),
    }  # fmt: skip
    if only:
        result["only"] = only
    if split == "train":
        result["note"] += " This is the training split: held out only from a run that left these pictures out (its leave_out)."
    if split == "val" and "validation-best" in rules:
        result["note"] += " The threshold validation-best was chosen on these very pictures."
    if split == "val" and splits != "published":
        result["note"] += f" Held out only from a run that was trained with split_rule={splits}, too."
    if main.surface is not None:
        result["surface"] = _surface(main.surface, scores)
    if len(texts) > 1:
        result["texts"] = {t: _both(p.scores[f"{threshold:g}"]) for t, p in passes.items()}
    if against is not None:
        name, other, size = against
        rival = measure(other, samples, size, shown=main.shown, thresholds=[threshold], **options).scores[f"{threshold:g}"]
        result["against"] = {
            "model": name, **_both(rival),
            "paired": {name: paired_test(getattr(scores, name), getattr(rival, name), subjects=scores.subjects) for name in ("dice", "iou")},
            "note": "difference: this model minus the other, on the same pictures",
        }  # fmt: skip
    return result


def not_held_out(trained: dict, split: str, rules: Iterable[str], splits: str) -> str:
    """Why pictures that are measured were trained on, in a sentence; "" where nothing says so.

    Args:
        trained: `training.json` of the model's run, {} where there is none. split, rules, splits: as in `evaluate`.
    """
    if not trained or not (split == "val" or "validation-best" in rules):
        return ""
    if "val" in trained.get("train_splits", ()):
        return "This model was trained on the validation pictures, too: nothing measured on them says how good it is."
    earlier, origin = trained.get("inherited", {}), "What this model started from, or learned from, was trained"  # perhaps on other data
    if "val" in earlier.get("train_splits", ()):
        return f"{origin} on the validation pictures of its data, too: where they are these, nothing measured on them says how good it is."
    own = trained.get("split_rule", "published")
    if own != splits:
        return f"This model was trained with split_rule={own}, so with {splits} some of the validation pictures were trained on."
    others = [rule for rule in earlier.get("split_rules", ()) if rule != splits]
    return f"{origin} with split_rule={', '.join(others)}, so it may know some of the validation pictures of {splits}." if others else ""


def validation_best(
    predict: Predictor, data: str, image_size: int, *, limit: int | None = None, text: str = "report", seed: int = 0,
    splits: str = "published", **options,
) -> float:  # fmt: skip
    """The fixed threshold of `GRID` with the highest per-image Dice on the validation split; nearest to 0.5 where several have it."""
    samples = find_samples(data, "val", rule=splits)[:limit]
    shown = edit_reports([s.report for s in samples], text, seed)
    found = measure(predict, samples, image_size, shown=shown, thresholds=GRID, **options)
    return max(GRID, key=lambda t: (found.scores[f"{t:g}"].dice.mean(), -abs(t - 0.5)))


def _both(scores: Scores) -> dict:
    """Dice and IoU in both families."""
    return {"per_image": scores.per_image(), "pooled": scores.pooled()}


def _range(values: np.ndarray) -> dict:
    return {"mean": float(values.mean()), "low": float(values.min()), "high": float(values.max())}


def _surface(table: np.ndarray, scores: Scores) -> dict:
    tp, fp, fn = scores.table.T
    return {
        "hd95": {**mean_interval(table[:, 0], scores.subjects), "median": float(np.median(table[:, 0]))},
        "surface_dice": mean_interval(table[:, 1], scores.subjects),
        "tolerance_pixels": TOLERANCE, "empty_predictions": int(((tp + fp == 0) & (fn > 0)).sum()),
        "rule": "pixels at the masks' own size; both empty: distance 0, surface Dice 1; one of the two empty: the picture's diagonal, 0",
    }  # fmt: skip


def cases(scores: Scores, samples: list[Sample], shown: list[str], count: int = 3) -> dict:
    """The pictures with the highest, the middle and the lowest Dice.

    Returns:
        {"best", "median", "worst"}: each a list of {"name", "index", "dice", "iou", "report", "shown"}.
    """
    order = np.argsort(-scores.dice, kind="stable")
    middle = max(0, (len(order) - count) // 2)
    chosen = {"best": order[:count], "median": order[middle : middle + count], "worst": order[::-1][:count]}

    def about(i: int) -> dict:
        known = {"name": samples[i].name, "index": i, "report": samples[i].report, "shown": shown[i]}
        return {**known, "dice": float(scores.dice[i]), "iou": float(scores.iou[i])}

    return {kind: [about(int(i)) for i in places] for kind, places in chosen.items()}


def groups_of(samples: list[Sample]) -> dict[str, np.ndarray]:
    """What is known of each picture beforehand, by group: its source, its view (from a file name with "vp-ap" or "vp-pa"),
    and side(s) and number of areas of its sentence."""
    parsed = [sentences.parse(s.report) for s in samples]
    views = [re.search(r"vp-(ap|pa)", s.name) for s in samples]
    return {
        "source": np.array([s.source for s in samples]), "view": np.array([v.group(1) if v else "unknown" for v in views]),
        "side": np.array([r.side or "unknown" for r in parsed]),
        "count": np.array(["unknown" if r.count is None else str(r.count) if r.count < 4 else "4 or more" for r in parsed]),
    }  # fmt: skip


def slice_of(samples: list[Sample], only: str) -> list[Sample]:
    """The samples that "GROUP=VALUE" names; all of them for "". ValueError where the group is unknown or the slice is empty."""
    if not only:
        return samples
    name, equals, value = only.partition("=")
    groups = groups_of(samples)
    if not equals or name not in groups:
        raise ValueError(f'"{only}" names no slice; write GROUP=VALUE with one of {", ".join(groups)}, e.g. source=covid.')
    kept = [s for s, v in zip(samples, groups[name]) if v == value]
    if not kept:
        raise ValueError(f"No picture of this split has {only}; {name} is one of {', '.join(np.unique(groups[name]))}.")
    return kept


def subgroups(scores: Scores, samples: list[Sample]) -> dict:
    """Per-image and pooled means by the groups of `groups_of`, and by lesion size in tertiles of these pictures."""
    area = scores.table[:, 0] + scores.table[:, 2]
    low, high = np.quantile(area, [1 / 3, 2 / 3])
    size = np.where(area <= low, "small", np.where(area <= high, "medium", "large"))
    result = {}
    for name, values in {**groups_of(samples), "lesion size (tertiles)": size}.items():
        result[name] = {}
        for value in np.unique(values):
            part = scores.select(values == value)
            interval = part.per_image(("dice",))["dice"]
            result[name][str(value)] = {
                "n": len(part.table), "dice": interval["mean"], "low": interval["low"], "high": interval["high"], "iou": float(part.iou.mean()),
                "pooled_dice": part.pooled()["dice"],
            }  # fmt: skip
    return result


def evaluate_referring(
    predict: Predictor, data: str, *, image_size: int = 224, split: str = "test", threshold: float = 0.5,
    least: int = 100, only: str = "", limit: int | None = None, splits: str = "published", batch_size: int = 32, progress: Callable | None = None,
) -> dict:  # fmt: skip
    """Does the sentence steer the pixels? Name one half of each bilateral case and look where the mask goes.

    Every picture whose halves both hold at least `least` lesion pixels is shown twice, once with "Infection of
    the left lung." and once with "... right lung."; nothing is cut away by side afterwards.

    Returns:
        "n": number of predictions; "empty": how many are empty; "success": share of predictions that are not
        empty and have at least 95 % of their area on the named half; "area_on_half": mean share of the
        predicted area on that half (an empty prediction counts 0); "dice": mean per-image Dice against the
        mask of that half; "pooled_area_on_half": the same share over the summed areas. Where no case is bilateral, n is
        0 and the shares and scores are None.
    """
    samples = slice_of(find_samples(data, split, rule=splits), only)[:limit]
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
    found = {"n": len(cases), "pictures": len(cases) // 2, "least_pixels": least, "threshold": threshold, "split": split}
    if not cases:
        return found | dict.fromkeys(("success", "area_on_half", "pooled_area_on_half", "dice", "iou")) | {"empty": 0}
    shares, areas = np.array(shares), np.array(areas)
    result = Scores(torch.cat(scores).numpy())
    return found | {
        "empty": int((areas[:, 1] == 0).sum()), "success": float((shares >= 0.95).mean()),
        "area_on_half": float(shares.mean()), "pooled_area_on_half": float(areas[:, 0].sum() / max(areas[:, 1].sum(), 1)),
        "dice": float(result.dice.mean()), "iou": float(result.iou.mean()),
    }  # fmt: skip


def save_result(result: dict, path: str | Path) -> None:
    """Write a result as JSON, beside its place and then renamed."""
    write_text(path, json.dumps(result, indent=2) + "\n")
