"""Checks of 00_quickstart."""

from __future__ import annotations

import functools

import numpy as np

from . import close, expect


def threshold(answer):
    """From probabilities to a mask: that is all there is between the model's output and the outline you see."""
    probability = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    probability[0, 0] = 0.5
    for level in (0.5, 0.2, 0.9):
        got = answer(probability, level)
        expect(isinstance(got, np.ndarray) and got.dtype == bool, "return an array of True and False, as a comparison gives it.")
        expect(got.shape == probability.shape, f"the mask has the shape {got.shape}; it should be {probability.shape}, one value a pixel.")
        want = probability >= np.float32(level)
        expect(not (want & ~got & (probability == np.float32(level))).any(), "a pixel whose probability equals the threshold belongs to the mask.")
        expect((got == want).all(), f"at threshold {level} {(got != want).sum()} of {got.size} pixels are wrong.")


def attention(answer):
    """M_i is attention over features: you can now say how much of it lies on the lesion, and how much beside it."""
    rng = np.random.default_rng(1)
    masks = tuple(rng.random((6, 8)).astype(np.float32) for _ in range(3))
    lesion = rng.random((6, 8)) < 0.3
    got = answer(masks, lesion)
    expect(isinstance(got, (tuple, list, np.ndarray)) and len(got) == 2, "return two numbers: the mean on the lesion and the mean beside it.")
    mean = np.mean(masks, axis=0)
    if np.allclose(got, (mean[~lesion].mean(), mean[lesion].mean()), atol=1e-4):
        expect(False, "the two numbers are exchanged: first on the lesion, then beside it.")
    close(got[0], mean[lesion].mean(), "the mean on the lesion")
    close(got[1], mean[~lesion].mean(), "the mean beside the lesion")


def sentence(answer):
    """Your sentence alone moved the mask to the right half: same pixels, other words."""
    from .. import reports

    expect(isinstance(answer, str), "write a sentence between quotation marks.")
    expect(answer.strip(), "the sentence is empty; then the model shows everything that it finds.")
    said = reports.parse(answer)
    expect(said.side != "left", "the sentence names the left half; the lesion of the right half is asked for.")
    found, dice = _right_share(answer)
    expect(found is not None, "with this sentence the model finds nothing. Try the data set's own words: infection, lower, right lung.")
    expect(found >= 0.95, f"only {found:.0%} of the mask lie in the right half; at least 95 % are asked for. Does your sentence name one side?")
    expect(dice >= 0.5, "the mask lies in the right half, but holds hardly anything of the lesion there. Name the lung, or the zone in which it lies.")


@functools.lru_cache(maxsize=32)
def _right_share(sentence: str) -> tuple[float | None, float]:
    """How much of the mask lies in the right half (None: there is none), and its Dice with that of "Infection of the right lung."."""
    from ..inference import segment
    from ..notebook import HOME

    mask, right = (segment(_model(), HOME / "assets" / "examples" / "both-lungs.png", words).mask for words in (sentence, "Infection of the right lung."))
    share = float(mask[:, mask.shape[1] // 2 :].sum() / mask.sum()) if mask.any() else None
    return share, float(2 * (mask & right).sum() / (mask.sum() + right.sum()))


@functools.lru_cache(maxsize=1)
def _model():
    from ..model import CausalCLIPSeg
    from ..notebook import HOME

    return CausalCLIPSeg.from_pretrained(HOME / "assets" / "models" / "mini")
