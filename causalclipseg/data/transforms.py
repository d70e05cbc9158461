"""Augmentation of picture, mask and sentence together.

Every parameter is drawn from the generator of the item: torchvision's transform classes draw from the global one, which
workers and resumed runs would not repeat. Words, the cutting of masks and what is drawn over a picture are done here,
picture by picture; what changes every pixel is planned here, and done in batches by `pixels.render`.
"""
from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .. import acquisition, reports
from .pixels import Plan, render

CLEAN_SHARE = 0.2  # of the referring samples name a clean half or zone, so that "nothing there" is learnt, too
HALF_SHARE = 0.6  # of the referring samples name a whole half, the rest one zone of it
TONE_SHARES = {"exposure": 1.5, "contrast": 1.0, "noise": 2.0, "blur": 1.0}  # about as the strongest of each costs Dice (audits of `mini`)
SLIVER = 0.0005  # a part with less lesion than this share of the picture (25 pixels at 224) isn't named


class TrainTransform:
    """Random edits of a training sample, each switched off by 0.

    In this order, because it matters:
    0. join        probability that the right half is another patient's (`joining.py`). A data set does this, which has them all,
                   where all are of one size
    1. flip        probability of a horizontal flip; left and right swap in the sentence
    2. the sentence, while halves and zones still lie where they are defined (before any rotation). One that isn't fully
       understood (of another grammar: "The nuclei are evenly distributed.") is kept or emptied (`none`); of others one of
       refer       probability that it names one half or zone only ("Infection of the lower left lung.") and the
                   mask keeps that part only: empty where it is clean, which is chosen on purpose in one of five.
                   A case with lesions on one side gets half this probability: there the sentence teaches less.
                   `healthy` is the share of the sentences of such a case that name its half without a lesion.
                   `restate` is the share of these sentences that are a report of what is left instead ("Unilateral
                   pulmonary infection, two infected areas, upper lower left lung."), where anything is: so a report's words
                   steer, too, where the picture shows more than they say
       generic     probability of a sentence that names no place (reports.GENERIC)
       none        probability of an empty one
       paraphrase  probability of other words for the same thing, among the sentences left
    3. geometry    rotate degrees, shift as a share of the edge, scale as (lowest, highest) factor; filled with 0.
                   Kept small: a sentence's left and lower must stay left and lower
    4. edit        probability of one edit of `acquisition.EDITS` (electrodes, marker, blur …) of any strength up to the
                   strongest, never drawn over the lesion; `tones` is the share of edits that change tones
                   (exposure, contrast, noise, blur) and draw nothing: these cost a model most, see `TONE_SHARES`
       exposure    strength of brightness, contrast and gamma (0.3: factors from 0.7 to 1.3)
       noise       largest standard deviation of the noise, as a share of the range 0 to 255
       blur        largest sigma of the blur in pixels
       each of the last three in half of the samples

    size        edge of the results in pixels; other sizes are resized first

    "Left" in the sentences is the left half of the picture, as in QaTa-COV19; where it is the patient's left, exchange the
    sides of the table's sentences first (`reports.swap_sides`; `data check` tells).

    transform(image, mask, report, rng): uint8 tensors (1, H, W), mask of 0 and 1, sentence; returns the same kinds. A second
    channel of the mask, a teacher's answer, goes with it.
    rng is a torch.Generator; None draws a fresh seed from torch's global generator. `prepare` does the same but for what
    changes every pixel, which it returns as a plan for `pixels.render`.
    """

    def __init__(self, size: int = 224, *, flip: float = 0.5, rotate: float = 15.0,
                 scale: tuple[float, float] = (0.75, 1.3), shift: float = 0.08, edit: float = 0.3, tones: float = 0.5, exposure: float = 0.3,
                 noise: float = 0.03, blur: float = 1.0, refer: float = 0.25, healthy: float = 0.0, restate: float = 0.0, paraphrase: float = 0.3,
                 generic: float = 0.05, none: float = 0.05, join: float = 0.0):
        if refer + generic + none > 1:
            raise ValueError(f"refer + generic + none must not pass 1, got {refer + generic + none}")
        self.size, self.flip, self.rotate, self.scale, self.shift = size, flip, rotate, scale, shift
        self.edit, self.tones, self.exposure, self.noise, self.blur = edit, tones, exposure, noise, blur
        self.refer, self.healthy, self.restate = refer, healthy, restate
        self.paraphrase, self.generic, self.none, self.join = paraphrase, generic, none, join

    def __call__(self, image, mask, report: str, rng: torch.Generator | None = None):
        if rng is None:
            rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        image, mask, report, plan = self.prepare(image, mask, report, rng)
        image, mask = render(image[None], mask[None], [plan])
        return image[0].byte(), mask[0].byte(), report

    def prepare(self, image, mask, report: str, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, str, Plan]:
        """Everything that is done picture by picture, and the plan of what is not. Arguments as of the transform."""
        words = random.Random(int(torch.randint(2**62, (), generator=rng)))
        if tuple(image.shape[-2:]) != (self.size, self.size):
            image, mask = F.resize(image, [self.size] * 2, antialias=True), F.resize(mask, [self.size] * 2, InterpolationMode.NEAREST)
        if words.random() < self.flip:
            image, mask, report = image.flip(-1), mask.flip(-1), reports.swap_sides(report)
        mask, report = self._sentence(mask, report, words)
        plan = self._geometry(words)
        if words.random() < self.edit:
            image, mask, plan = self._edit(image, mask, plan, words)
        return image, mask, report, replace(plan, **self._acquisition(words), seed=words.randrange(2**63))

    def _sentence(self, mask, report: str, words: random.Random):
        """The mask and the sentence after one edit, or as they are."""
        lesion = mask[0].numpy().astype(bool)
        half = lesion.shape[1] // 2
        bilateral = lesion[:, :half].any() and lesion[:, half:].any()
        draw = words.random()
        refer, generic = self.refer if bilateral else self.refer / 2, self.generic
        if not reports.understood(report):
            refer = generic = 0.0
        if draw < refer:
            side, zone, sentence = refer_to_part(lesion, words, self.healthy)
            mask = reports.restrict(mask, side, zone)
            if self.restate and mask[0].any() and words.random() < self.restate:
                sentence = reports.describe(mask[0].numpy())
            return mask, sentence
        if draw < refer + generic:
            return mask, reports.GENERIC
        if draw < refer + generic + self.none:
            return mask, ""
        if words.random() < self.paraphrase:
            report = reports.paraphrase(report, words)
        return mask, report

    def _geometry(self, words: random.Random) -> Plan:
        turn = words.uniform(-self.rotate, self.rotate)
        shift = words.uniform(-self.shift, self.shift), words.uniform(-self.shift, self.shift)
        return Plan(turn, shift, words.uniform(*self.scale) if self.scale else 1.0)

    def _edit(self, image, mask, plan: Plan, words: random.Random):
        """A change of tone is planned. What is drawn over the picture keeps off the lesion, so that is moved first."""
        draws = words.random() >= self.tones
        shares = dict.fromkeys((name for name, edit in acquisition.EDITS.items() if edit.overlay), 1.0) if draws else TONE_SHARES
        name = words.choices(list(shares), list(shares.values()))[0]
        strength, seed = words.random() ** 0.5, words.randrange(2**31)  # strong ones more often: they are what costs
        if not draws:
            return image, mask, replace(plan, tone=name, amount=acquisition.amount_of(name, strength), odd=seed % 2 == 1)
        if plan.moves:
            image, mask = (x[0].byte() for x in render(image[None], mask[None], [plan]))
        edited = acquisition.edit(image[0].numpy(), name, strength, seed=seed, avoid=mask[0].numpy())
        return torch.from_numpy(edited.image)[None], mask, Plan()

    def _acquisition(self, words: random.Random) -> dict:
        chosen = {}
        if words.random() < 0.5:
            near_one = [words.uniform(1 - self.exposure, 1 + self.exposure) for _ in range(3)]
            chosen |= zip(("gamma", "contrast", "brightness"), near_one)
        if words.random() < 0.5 and self.blur:
            chosen["blur"] = words.uniform(0.1, max(self.blur, 0.1))
        if words.random() < 0.5 and self.noise:
            chosen["noise"] = 255 * words.uniform(0, self.noise)
        return chosen


def refer_to_part(lesion: np.ndarray, words: random.Random, healthy: float = 0.0) -> tuple[str, str | None, str]:
    """One half or zone of a picture, and a sentence that names it.

    lesion   bool (H, W), upright, as the zones are defined
    healthy  probability that it is the half without a lesion, where there is one
    returns  side, zone (None: the whole half), sentence; for `reports.restrict`, which may leave nothing of the mask
    """
    parts = [(side, zone, reports.restrict(lesion, side, zone)) for side in reports.SIDES for zone in (None, *reports.ZONES)]
    clean = [p for p in parts if p[1] is None and not p[2].any()]
    if healthy and clean and words.random() < healthy:
        wanted = clean
    elif words.random() < CLEAN_SHARE:
        wanted = [p for p in parts if not p[2].any()]  # of any kind: a whole half is seldom clean
    else:
        halves, least = words.random() < HALF_SHARE, SLIVER * lesion.size
        wanted = [p for p in parts if (p[1] is None) == halves and p[2].any() and p[2].sum() >= least]
    side, zone, _ = words.choice(wanted or parts)  # nothing is clean, or all is: any part is true
    return side, zone, reports.refer(side, zone, rng=words)
