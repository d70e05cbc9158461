"""From a picture and a sentence to a mask: what the command line, the demo and the notebooks call."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import doubt, reports
from ._files import write_text, written_beside
from .evaluation import EXPECTED_DICE, check_threshold, fit, predictor, resize_probability
from .images import read_picture
from .metrics import expected_dice_threshold
from .views import answering

MOST_CHARACTERS = 10_000  #: of a sentence; the tokenizer's time grows with the square of a word's length
LONG_ASPECT = 2.0  #: pictures are squeezed to a square; beyond this ratio of the sides that is worth a warning
_SHOWN_WORDS = 6  # of those that could not be read


@dataclass
class Result:
    """A segmented picture; all arrays have the input's size (H, W)."""

    image: np.ndarray  #: (H, W) uint8, the grey picture as the model was given it, before it was resized
    mask: np.ndarray  #: (H, W) bool, `probability >= threshold`
    probability: np.ndarray  #: (H, W) float32 in [0, 1], sigma(S_c)
    causal_masks: tuple[np.ndarray, ...]  #: M_i of each stage, mean over channels, (H, W) float32 in [0, 1]
    confounder_probability: np.ndarray | None  #: (H, W) float32, sigma(S_s); None unless asked for
    report: str  #: the sentence, as it was given
    threshold: float
    warnings: list[str] = field(default_factory=list)  #: one sentence each
    model: str = ""  #: how the model is named in result.json

    @property
    def confounder_masks(self) -> tuple[np.ndarray, ...]:
        """1 - M_i of each stage, (H, W) float32 in [0, 1]; empty for a model without intervention."""
        return tuple(1 - mask for mask in self.causal_masks)

    @functools.cached_property
    def seen(self) -> reports.Report:
        """What the mask shows, read with the grammar of the sentences."""
        return reports.read_mask(self.mask)

    @property
    def area_fraction(self) -> float:
        """Share of the picture's pixels that the mask holds, in [0, 1]."""
        return float(self.mask.mean())

    @property
    def components(self) -> int:
        """8-connected areas of the mask."""
        return self.seen.count

    @property
    def zones(self) -> dict[str, list[str]]:
        """Zones of the mask in each half of the picture, e.g. {"left": ["lower"], "right": []}."""
        return {side: list(getattr(self.seen, side)) for side in reports.SIDES}

    @property
    def finding(self) -> str:
        """A sentence in the data set's grammar that says what the mask shows."""
        return reports.write(self.seen)

    @property
    def disagreements(self) -> list[str]:
        """Where the sentence and the mask differ; one plain sentence each."""
        return reports.disagreements(reports.parse(self.report), self.seen)

    def to_dict(self) -> dict:
        """What `result.json` holds."""
        return {
            "area_fraction": self.area_fraction, "components": self.components, "zones": self.zones,
            "finding": self.finding, "disagreements": self.disagreements, "report": self.report,
            "warnings": list(self.warnings), "model": self.model, "threshold": self.threshold,
        }  # fmt: skip


@torch.inference_mode()
def segment(
    model, image, report: str, confounder: bool = False, threshold: float | str = 0.5, average_views: bool = False, check_side: bool = False,
) -> Result:  # fmt: skip
    """Segment what a sentence names in a chest X-ray.

    Args:
        model: a `CausalCLIPSeg`; it is put into evaluation mode.
        image: path, bytes, file object, PIL image, array or `Picture`, see `images.read_picture`.
        report: the sentence; any text, also empty, at most 10,000 characters.
        confounder: also run the confounder branch (for `Result.confounder_probability`).
        threshold: in (0, 1); a pixel belongs to the mask where its probability is at least this. Or "expected-dice": the one
            that promises this picture the highest Dice (`metrics.expected_dice_threshold`).
        average_views: the probability is the mean over six views of the picture (`views.averaged`), and over the model's
            companions where it has any (`views.answering`): more exact, six times the work for each network. The masks M_i, and
            what D_s predicts, stay those of the plain view.
        check_side: where the sentence says that the infection is in one half alone, and the picture speaks against it, answer as
            if it named the other half, with a warning (`doubt.believed`; six more predictions for such a sentence).
    Returns:
        a `Result` at the picture's own size. Whatever was done to picture or sentence, and whatever makes the
        answer doubtful, is in its `warnings`.
    Raises:
        TypeError: `model`, `report` or `threshold` is of another kind.
        ValueError: a threshold outside (0, 1), a sentence that is too long, a picture that cannot be used
            (`images.ImageError`), a confounder asked of a model without intervention, damaged weights.
    """
    if not hasattr(model, "tokenize") or not hasattr(model, "config"):
        raise TypeError(f"model must be a CausalCLIPSeg (see CausalCLIPSeg.from_pretrained), not {type(model).__name__}.")
    own = isinstance(threshold, str) and threshold == EXPECTED_DICE
    threshold = 0.5 if own else check_threshold(threshold)
    report, warnings = _check_report(report)
    picture = read_picture(image)
    warnings = picture.warnings + warnings
    height, width = picture.pixels.shape
    if max(height, width) > LONG_ASPECT * min(height, width):
        warnings.append(
            f"The picture ({width}×{height}) is much longer than wide or wider than long; it was squeezed to a square, "
            "which the model was not trained for."
        )
    model.eval()
    pixels = torch.from_numpy(np.array(picture.pixels))[None, None]
    small = fit(pixels.float().div_(255), model.config.image_size).to(model.device)
    images, read_as = small.expand(-1, 3, -1, -1), report
    if check_side:
        read_as = doubt.believed(predictor(model, companions=average_views), images, [report])[0]
        if read_as != report:
            warnings.append(f"The picture speaks against the {doubt.claimed_side(report)} lung; the answer is to the sentence with the other side.")
    tokens, cut = model.tokenize([read_as])
    if cut[0]:
        warnings.append(f"The sentence, with the marks of its start and end, is longer than the {model.config.context_length} tokens that the model reads; its end was not read.")

    output = model(images, tokens, confounder=confounder)
    if not torch.isfinite(output.logits).all():
        raise ValueError("The model's output is not a number (NaN or infinity); its weights are damaged.")

    def full_size(values: torch.Tensor) -> np.ndarray:
        return resize_probability(values.float().cpu(), (height, width))[0, 0].numpy()

    probability = output.logits.sigmoid()
    if average_views:  # one of the six is the plain view again: a seventh of the work, for one way to average
        probability = answering(model, average_views=True)(images, [read_as])
    probability = full_size(probability)
    if own:
        threshold = expected_dice_threshold(probability)
    if not (probability >= threshold).any() and _asks_for_everything(report):
        found = float((full_size(predictor(model)(images, [""])) >= threshold).mean())
        if found:
            warnings.append(
                f"With these words the model finds nothing, without a sentence {found:.1%} of the picture. It knows words such as infection, left lung, lower right lung."
            )
    return Result(
        image=picture.pixels, mask=probability >= threshold, probability=probability,
        causal_masks=tuple(full_size(mask.mean(dim=1, keepdim=True)) for mask in output.masks),
        confounder_probability=full_size(output.confounder_logits.sigmoid()) if confounder else None,
        report=report, threshold=threshold, warnings=warnings, model=model.config.preset,
    )  # fmt: skip


def _check_report(report) -> tuple[str, list[str]]:
    """The sentence as the tokenizer takes it, and warnings about what it says."""
    if not isinstance(report, str):
        raise TypeError(f"The report must be a string, not {type(report).__name__}.")
    if len(report) > MOST_CHARACTERS:
        raise ValueError(f"The report has {len(report):,} characters; at most {MOST_CHARACTERS:,} are read.")
    # Bytes that are no text (a shell's surrogates) cannot be encoded again.
    report = report.encode("utf-8", "replace").decode("utf-8")
    if not report.strip():
        return report, ["The model saw no sentence; the mask shows what it finds in the picture alone."]
    said, warnings = reports.parse(report), []
    if said.unread:
        words = ", ".join(f'"{word[:30]}"' for word in said.unread[:_SHOWN_WORDS])
        more = len(said.unread) - _SHOWN_WORDS
        warnings.append(f"These words of the sentence could not be read: {words}{f' and {more} more' if more > 0 else ''}.")
    if said.side is None and said.extent is None and said.count is None and (said.unread or not any(map(str.isalnum, report))):
        warnings.append("The sentence names no side, zone or number of areas that could be read; do not rely on it.")
    return report, warnings + [f"The sentence contradicts itself. {line}" for line in said.contradictions]


def _asks_for_everything(report: str) -> bool:
    """Whether there is a sentence that names no half alone, and does not say that there is nothing: "both lungs", "opacity"."""
    said = reports.parse(report)
    return bool(report.strip()) and said.side in (None, "both") and said.count != 0


# ---------------------------------------------------------------- files


def save_result(result: Result, directory: str | os.PathLike) -> Path:
    """Write a result's files, each beside its place and then renamed.

    `mask.png` (0 or 255), `probability.png` (0 to 255), `causal.png` and `confounder.png` (mean over the stages of
    M_i and of 1 - M_i, 0 to 255; only of a model with intervention), all 8-bit grey; `overlay.png` (RGB), all at
    the input's size; and `result.json`.

    Args:
        directory: made where it is missing.
    Returns:
        the directory.
    Raises:
        ValueError: `directory` is a file. OSError: it cannot be written.
    """
    from .plots import overlay

    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; the results need a folder.")
    directory.mkdir(parents=True, exist_ok=True)
    pictures = {"mask": Image.fromarray(result.mask * np.uint8(255)), "probability": grey(result.probability)}
    if result.causal_masks:
        mean = sum(result.causal_masks[1:], start=result.causal_masks[0].copy()) / len(result.causal_masks)
        pictures |= {"causal": grey(mean), "confounder": grey(1 - mean)}
    else:  # of an earlier result in this folder
        for name in ("causal", "confounder"):
            (directory / f"{name}.png").unlink(missing_ok=True)
    pictures["overlay"] = overlay(result.image, result.mask)
    for name, picture in pictures.items():
        _save_png(picture, directory / f"{name}.png")
    write_text(directory / "result.json", json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return directory


def grey(values: np.ndarray) -> Image.Image:
    """(H, W) in [0, 1] as an 8-bit grey picture."""
    return Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8))


def _save_png(picture: Image.Image, path: Path) -> None:
    with written_beside(path) as beside:
        picture.save(beside, format="PNG")
