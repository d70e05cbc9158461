"""Answers in pictures, for the page: only as large as a screen shows, and small enough to keep for a visitor."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .. import plots

VIEW = (640, 1024)  #: pixels of the longer side of what is drawn, at least and at most; downloads keep the input's
KEPT = 320  #: pixels of the longer side of the maps that are kept for a visitor
LOGITS = 8.0  #: where the scale of a logit ends: a probability of 0.9997


def view_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) to draw at: enough for a clear outline, never more than a screen shows."""
    scale = min(max(max(height, width), VIEW[0]), VIEW[1]) / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(values: np.ndarray, size: tuple[int, int], how=Image.Resampling.BILINEAR) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size, how))


def drawn(result) -> dict:
    """What is kept of an answer so that another opacity needs no model: X-ray and mask at the size they are drawn."""
    size = view_size(*result.mask.shape)
    return {
        "image": resize(result.image, size, Image.Resampling.BICUBIC),
        "mask": resize(result.mask * np.uint8(255), size, Image.Resampling.NEAREST) > 0,
    }  # fmt: skip


def with_mask(kept: dict, opacity: float) -> Image.Image:
    return plots.overlay(kept["image"], kept["mask"], opacity=opacity)


def small(values: np.ndarray) -> np.ndarray:
    """A map at the size that is kept, float16."""
    height, width = values.shape
    scale = min(1.0, KEPT / max(height, width))
    return resize(values.astype(np.float32), (max(1, round(width * scale)), max(1, round(height * scale)))).astype(np.float16)


def logits(probability: np.ndarray) -> np.ndarray:
    """S_c from sigma(S_c), cut at +-LOGITS."""
    p = np.clip(probability.astype(np.float64), 1e-9, 1 - 1e-9)
    return np.clip(np.log(p / (1 - p)), -LOGITS, LOGITS).astype(np.float32)


def soft_map(values: np.ndarray, kept: dict, colour, opacity: float, outline: bool) -> Image.Image:
    """Values in [0, 1] over the X-ray, with the mask's outline in white; never stretched."""
    size = kept["image"].shape[::-1]
    tinted = plots.heat(resize(values.astype(np.float32), size), kept["image"], colour, opacity)
    return plots.overlay(tinted, kept["mask"], opacity=0, colour=plots.WHITE) if outline else tinted


def signed_map(values: np.ndarray, limit: float, kept: dict, opacity: float = 0.8, outline: bool = True) -> Image.Image:
    """Values from -limit (purple) to limit (green) over the X-ray."""
    size = kept["image"].shape[::-1]
    share = resize(values.astype(np.float32), size) / max(limit, 1e-9)
    picture = plots.heat(np.clip(-share, 0, 1), kept["image"], plots.PURPLE, opacity)
    picture = plots.heat(np.clip(share, 0, 1), picture, plots.GREEN, opacity)
    return plots.overlay(picture, kept["mask"], opacity=0, colour=plots.WHITE) if outline else picture


def inside(result, bare, exact: bool = False) -> list[dict]:
    """Everything that "Inside" shows, small enough to keep: group, title, meaning, values, colour.

    Args:
        result: an `inference.Result` of one view. bare: the same without a sentence. exact: the mask that is drawn is not this
            answer's, but that of a mean over views and networks, whose logits are no network's.
    """
    mask = "that of the mean over all views, not of this map" if exact else f"every pixel at {result.threshold:.2f} or more"
    tiles = []

    def add(group, title, meaning, values, colour=None, limit=None):
        tiles.append({"group": group, "title": title, "meaning": meaning, "values": None if values is None else small(values), "colour": colour, "limit": limit})

    places = ("stride 8, fine texture", "stride 16, parts of the lung", "stride 32, the whole chest")
    for k, kept in enumerate(result.causal_masks):
        add(GROUPS[0], f"M<sub>{k + 2}</sub>", f"Share of each feature of stage {k + 2} ({places[k]}) that is kept for D<sub>c</sub>.", kept, plots.BLUE)
    for k, taken in enumerate(result.confounder_masks):
        add(GROUPS[1], f"1 − M<sub>{k + 2}</sub>", f"Share of stage {k + 2} that is taken away and handed to D<sub>s</sub>.", taken, plots.ORANGE)
    if not result.causal_masks:
        add(GROUPS[0], "M", "", None)
    add(GROUPS[2], "D<sub>c</sub>: σ(S<sub>c</sub>)", f"Probability of a lesion, from the causal features. The mask is {mask}.",
        result.probability, plots.SKY)
    if result.confounder_probability is not None:
        add(GROUPS[2], "D<sub>s</sub>: σ(S<sub>s</sub>)", "What the other decoder predicts from the part that was taken away. Not a finding: where it shows "
            "the lesion too, masking has not removed the lesion from those features.", result.confounder_probability, plots.ORANGE)
    response = logits(result.probability)
    add(GROUPS[3], "Response S<sub>c</sub> of the text kernel", f"The sentence’s K×K kernel slid over the causal features (Eq. 1): green where it answers yes. Cut at ±{LOGITS:g}.",
        response, limit=LOGITS)
    add(GROUPS[3], "What the sentence adds", "The response with your sentence less the response without any: green where the words put the mask, purple where they "
        "forbid it.", response - logits(bare.probability), limit=LOGITS)
    return tiles


GROUPS = ("Causal masks M", "Confounder masks 1 − M", "What the two decoders predict", "Text kernel")
MOST_TILES = 10
