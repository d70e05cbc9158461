"""Audit: what a model's answer depends on, beside the lesion.

The same picture is shown as another acquisition would show it (`acquisition.EDITS`, each at three fixed
severities), with other sentences, and the scores are read apart by known groups. A lesion is no effect of the
acquisition (W -> A -> I <- L <- W), so the mask is held under do(A), and so should the answer be:

    cost    mean over pictures of Dice(f(i), y) - Dice(f(i_a), y)       what an edit a costs in accuracy
    change  mean over pictures of 1 - Dice(f(i_a), f(i))                how much of the answer it moves

A small cost with a large change is a warning, too: the answer moves, only not always for the worse. Intervals
are 95 % percentile bootstrap over patients, each with all their pictures, paired for the cost; they say nothing about another training run.

Any callable f(images (B, 3, S, S) in [0, 1], reports) -> probability (B, 1, S, S) can be audited.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from . import acquisition, plots
from . import reports as sentences
from ._files import write_text
from .data import ReferringDataset, Sample, data_digest, find_samples, split_rule
from .evaluation import (
    INTERVAL_NOTE, TEXT_NOTE, TEXTS, check_split, check_threshold, edit_reports, fit, resize_probability, subgroups, subjects_of,
)  # fmt: skip
from .metrics import Scores, counts, dice, mean_interval

COSTLY = 0.03  #: an edit that costs more per-image Dice than this is named in the summary
EXAMPLES = 3  #: pictures shown on the page, where pictures are shown
REGIONS = {"lesion": "pixels of the lesion", "acquisition": "pixels that the acquisition drew"}

Predictor = Callable[[torch.Tensor, list[str]], torch.Tensor]


@dataclass
class Audit:
    """What `audit` returns: numbers for JSON, and pictures for the page (empty unless they may be shown)."""

    result: dict
    pictures: list[tuple[str, str, Image.Image]] = field(default_factory=list)  #: (caption, alt text, picture)

    def save(self, out: str | Path) -> None:
        """Write `audit.json` and the self-contained `audit.html` into a folder, each beside its place, then renamed.

        Raises:
            ValueError: `out` is a file.
        """
        from ._audit_page import page

        out = Path(out)
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; --out needs a folder.")
        write_text(out / "audit.json", json.dumps(self.result, indent=2) + "\n")
        write_text(out / "audit.html", page(self.result, self.pictures))


def attention(model) -> Predictor:
    """M of a `CausalCLIPSeg` as a callable (images, reports) -> (B, 1, S, S) in [0, 1]: the mean over channels and
    stages of M_i, each resized to the picture. The model must have the intervention."""

    @torch.inference_mode()
    def look(images: torch.Tensor, reports: list[str]) -> torch.Tensor:
        model.eval()
        masks = model(images.to(model.device), model.tokenize(reports)[0]).masks
        return sum(resize_probability(m.float().mean(1, keepdim=True), tuple(images.shape[-2:])) for m in masks) / len(masks)

    return look


def audit(
    predict: Predictor, data: str | Path, *, model: str, attention: Predictor | None = None, image_size: int = 224,
    split: str = "test", threshold: float = 0.5, splits: str = "published", limit: int | None = None, edits: Iterable[str] | None = None,
    severities: Iterable[int] = acquisition.SEVERITIES, pictures: bool | None = None, seed: int = 0,
    batch_size: int = 32, progress: Callable[[int, int], None] | None = None,
) -> Audit:  # fmt: skip
    """Measure a model under each edit, sentence and group.

    Args:
        predict: see above. data: a folder in one of the three layouts. model: how the model is named.
        attention: M as (images, reports) -> (B, 1, S, S) in [0, 1]; None: no localisation.
        image_size: S. split: "train", "val" or "test". threshold: of the prediction, in (0, 1).
        splits: the rule that tells train from val, as in training (data/splits.py).
        limit: audit a sample of this many pictures, spread evenly over source, side, count and name.
        edits: names in `acquisition.EDITS`; None: all. severities: of 1, 2, 3.
        pictures: show examples on the page; None: only where the data are phantoms, never a patient unasked.
        seed: of the edits' places and of the shuffled sentences. progress: called with (done, all) predictions.
    Raises:
        ValueError, DataError: an unknown edit, a wrong setting, or a prediction of another shape or out of [0, 1].
    """
    names = tuple(acquisition.EDITS) if edits is None else tuple(edits)
    if unknown := [name for name in names if name not in acquisition.EDITS]:
        raise ValueError(f"There is no edit {unknown[0]!r}; choose of {', '.join(acquisition.EDITS)}.")
    severities = tuple(severities)
    strengths = [acquisition.strength_of(s) for s in severities]
    check_threshold(threshold)
    if not names or not severities:
        raise ValueError("An audit needs at least one edit and one severity.")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2, since sentences are exchanged between pictures, not {limit}.")
    check_split(split)
    everything = find_samples(data, split, rule=splits)
    samples = sampled(everything, limit)
    if len(samples) < 2:
        raise ValueError(f"{data} has {len(samples)} pictures in its {split} split; an audit exchanges sentences between pictures, and needs two.")
    truth = _phantom_truth(data)
    show = bool(truth) and all(s.name in truth for s in samples) if pictures is None else pictures
    dataset = ReferringDataset(samples, size=None, cache=False)
    right = [s.report for s in samples]
    shown = {text: edit_reports(right, text, seed) for text in TEXTS}
    conditions = list(shown) + [(name, severity) for name in names for severity in severities]

    tallies = {condition: _Tally(threshold, subjects_of(samples)) for condition in conditions}
    looks: dict[str, dict[str, list[float]]] = {region: {} for region in REGIONS}
    total, done, kept = len(samples) * len(conditions), 0, []
    for start in range(0, len(samples), batch_size):
        items = [dataset.arrays(i) for i in range(start, min(start + batch_size, len(samples)))]
        masks = [torch.from_numpy(mask)[None] for _, mask in items]
        plain = None
        for condition in conditions:
            text = condition if isinstance(condition, str) else "report"
            images = [image for image, _ in items]
            if condition != text:
                name, severity = condition
                strength = strengths[severities.index(severity)]
                images = [acquisition.edit(image, name, strength, seed=seed + start + k, avoid=mask).image
                          for k, (image, mask) in enumerate(items)]  # fmt: skip
            given = shown[text][start : start + len(items)]
            found = _answers(predict, images, given, image_size)
            if plain is None:  # the first condition: the plain picture with its own sentence
                plain = found
                if attention is not None:
                    _look(attention, images, given, image_size, items, samples[start : start + len(items)], truth, looks)
            for mask, p, p0 in zip(masks, found, plain):
                tallies[condition].add(p, mask, p0)
            if show and start == 0:
                kept += [(condition, k, images[k], found[k][0].numpy()) for k in range(min(EXAMPLES, len(items)))]
            done += len(items)
            if progress:
                progress(done, total)

    base = tallies["report"].scores
    rows = {condition: tally.row(base) for condition, tally in tallies.items()}
    edited = [{"edit": c[0], "severity": c[1], "overlay": acquisition.EDITS[c[0]].overlay, **rows[c]} for c in conditions if not isinstance(c, str)]
    lowest = np.min([tallies[c].scores.dice for c in conditions if not isinstance(c, str)], axis=0)
    result = {
        "model": model, "data": Path(data).resolve().name, "split": split, "n": len(samples), "of": len(everything),
        "patients": len(set(base.subjects)), "threshold": threshold,
        "image_size": image_size, "seed": seed, "phantoms": bool(truth), "data_digest": data_digest(samples), "split_rule": split_rule(data, splits),
        "plain": {"per_image": base.per_image(), "pooled": base.pooled()},
        "edits": edited, "descriptions": {name: acquisition.EDITS[name].description for name in names},
        "worst": _worst(edited, lowest, base), "costly": COSTLY,
        "over_costly": [f"{r['edit']} at severity {r['severity']}" for r in edited if r["cost"]["mean"] > COSTLY],
        "sentences": {text: rows[text] for text in TEXTS}, "groups": subgroups(base, samples),
        "localisation": {region: _summary(values) for region, values in looks.items() if values},
        "note": f"Dice at the masks' own size; an empty mask with an empty prediction scores 1. {INTERVAL_NOTE} They say nothing about "
                f"other training runs. {TEXT_NOTE}",
    }  # fmt: skip
    return Audit(result, _draw(kept, items=dataset, worst=result["worst"], threshold=threshold) if show else [])


def sampled(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` of the samples: every k-th after sorting by source, side, count and name, so that each of
    these groups keeps its share. The same arguments give the same sample."""
    if limit is None or limit >= len(samples):
        return list(samples)

    def stratum(sample: Sample):
        report = sentences.parse(sample.report)
        return sample.source, report.side or "", report.count or 0, sample.name

    ordered = sorted(samples, key=stratum)
    return [ordered[int((k + 0.5) * len(ordered) / limit)] for k in range(limit)]


def auroc(values: np.ndarray, region: np.ndarray) -> float:
    """P(a pixel of the region has a higher value than one outside), ties count half; NaN where one of the two is empty.

    Args:
        values: (H, W). region: (H, W) bool.
    """
    inside, n = int(region.sum()), region.size
    if inside in (0, n):
        return float("nan")
    ranks = rankdata(values.ravel())[region.ravel()]
    return float((ranks.sum() - inside * (inside + 1) / 2) / (inside * (n - inside)))


def mass(values: np.ndarray, region: np.ndarray) -> float:
    """Share of a map's sum that lies in a region: sum of values in it / sum of all; NaN for an empty region or map."""
    total = float(values.sum())
    return float(values[region].sum() / total) if total > 0 and region.any() else float("nan")


# ---------------------------------------------------------------- one batch


@dataclass
class _Tally:
    """What is counted of the answers under one condition, picture by picture."""

    threshold: float
    subjects: np.ndarray  #: (N,) whose picture each is
    tables: list = field(default_factory=list)  #: TP, FP, FN against the mask
    moved: list = field(default_factory=list)  #: the same against the plain answer
    shifts: list[float] = field(default_factory=list)  #: mean absolute change of the probability

    def add(self, found: torch.Tensor, mask: torch.Tensor, plain: torch.Tensor) -> None:
        """One picture's answer beside its mask and the plain answer, each (1, H, W)."""
        self.tables.append(counts(found >= self.threshold, mask)[0])
        self.moved.append(counts(found >= self.threshold, plain >= self.threshold)[0])
        self.shifts.append(float((found - plain).abs().mean()))

    @property
    def scores(self) -> Scores:
        return Scores(torch.stack(self.tables).numpy(), self.subjects)

    def row(self, base: Scores) -> dict:
        """The means, and what was lost against the plain answers' scores."""
        scores = self.scores
        return {
            "dice": _mean(scores.dice, self.subjects), "pooled_dice": scores.pooled()["dice"],
            "cost": _mean(base.dice - scores.dice, self.subjects),
            "change": _mean(1 - dice(*torch.stack(self.moved).numpy().T), self.subjects), "probability_change": float(np.mean(self.shifts)),
        }  # fmt: skip


def _answers(predict, images: list[np.ndarray], reports: list[str], size: int) -> list[torch.Tensor]:
    """Probabilities (1, H, W), each at its picture's own size."""
    batch = torch.cat([fit(torch.from_numpy(image)[None, None].float() / 255, size) for image in images]).expand(-1, 3, -1, -1)
    found = torch.as_tensor(predict(batch, reports)).float().cpu()
    if found.shape != (len(images), 1, size, size):
        raise ValueError(f"The model returned the shape {tuple(found.shape)}; expected {(len(images), 1, size, size)}.")
    if not (found.min() >= 0 and found.max() <= 1):  # also refuses NaN
        raise ValueError("The model returned values outside [0, 1]; a probability is needed (apply a sigmoid to logits).")
    return [resize_probability(p[None], image.shape)[0] for p, image in zip(found, images)]


def _look(attention, images, reports, size: int, items, samples, truth, looks) -> None:
    """Add AUROC and mass of M and 1 - M on the lesion and on the drawn pixels of each picture to `looks`."""
    for (image, mask), sample, subject, m in zip(items, samples, subjects_of(samples), _answers(attention, images, reports, size)):
        regions = {"lesion": mask, "acquisition": _drawn(truth, sample.name, image)}
        for region, pixels in regions.items():
            if pixels is None or not pixels.any():
                continue
            values = {"share": float(pixels.mean()), "subject": subject}
            for name, look in (("m", m[0].numpy()), ("one_minus_m", 1 - m[0].numpy())):
                values |= {f"auroc_{name}": auroc(look, pixels), f"mass_{name}": mass(look, pixels)}
            for key, value in values.items():
                looks[region].setdefault(key, []).append(value)


def _phantom_truth(data: str | Path) -> dict[str, Path]:
    """Stem of the picture -> the file of what its acquisition drew, where a folder holds phantoms; {} for other data."""
    from .phantoms import WRITER

    for folder in (Path(data), Path(data).resolve().parent):  # the folder within it that holds the splits may have been given
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
            if about["written_by"] == WRITER:
                return {Path(p["image"]).stem: folder / "truth" / "acquisition" / p["image"] for p in about["pictures"]}
    return {}


def _drawn(truth: dict[str, Path], name: str, image: np.ndarray) -> np.ndarray | None:
    """The pixels that the acquisition drew, (H, W) bool; None where that is not known of this picture."""
    if name not in truth or not truth[name].is_file():
        return None
    drawn = np.asarray(Image.open(truth[name])) > 127
    return drawn if drawn.shape == image.shape else None


# ---------------------------------------------------------------- summaries


def _mean(values, subjects) -> dict:
    """`mean_interval` of the finite values (N,), None where there are none; subjects (N,)."""
    values = np.asarray(values, float)
    there = np.isfinite(values)
    return mean_interval(values[there], np.asarray(subjects)[there]) if there.any() else {"mean": None, "low": None, "high": None}


def _worst(edited: list[dict], lowest: np.ndarray, base: Scores) -> dict:
    """The costliest edit, and the mean over pictures of the lowest Dice (N,) that any edit gave (a different one each)."""
    row = max(edited, key=lambda r: r["cost"]["mean"])
    return {
        "edit": row["edit"], "severity": row["severity"], "cost": row["cost"], "dice": row["dice"], "change": row["change"],
        "lowest_of_all_edits": _mean(lowest, base.subjects), "lowest_cost": _mean(base.dice - lowest, base.subjects),
    }  # fmt: skip


def _summary(values: dict[str, list]) -> dict:
    found = {key: _mean(v, values["subject"]) for key, v in values.items() if key not in ("share", "subject")}
    return {"n": len(values["share"]), "share": float(np.mean(values["share"])), **found}


def _draw(kept, items: ReferringDataset, worst: dict, threshold: float) -> list[tuple[str, str, Image.Image]]:
    """For each example: truth, the plain answer, and the answers under the worst edit and without a sentence."""
    pictures = []
    wanted = ("report", (worst["edit"], worst["severity"]), "none", "swapped")
    words = {"report": "as it is", "none": "without a sentence", "swapped": "left and right exchanged in the sentence",
             wanted[1]: f"edited: {worst['edit']}, severity {worst['severity']}"}  # fmt: skip
    for k in sorted({row[1] for row in kept}):
        image, mask = items.arrays(k)
        name = f"Example {k + 1}"
        pictures.append((f"{name}: the lesion's true outline", f"{name}: X-ray with the true lesion outlined in green, "
                         f"{100 * mask.mean():.0f} per cent of the picture", plots.overlay(image, mask, colour=plots.GREEN)))  # fmt: skip
        for condition, number, shown, probability in kept:
            if number == k and condition in wanted:
                found = probability >= threshold
                score = float(dice(*counts(torch.from_numpy(found)[None], torch.from_numpy(mask)[None])[0].tolist()))
                pictures.append((f"{name}, {words[condition]}: Dice {score:.2f}", f"{name}, {words[condition]}: X-ray with the model's answer "
                                 f"in blue, Dice {score:.2f} with the truth", plots.overlay(shown, found)))  # fmt: skip
    return pictures
