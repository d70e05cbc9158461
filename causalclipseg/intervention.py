"""do(A) on one picture, or another sentence for it: the same model before and after, and what changed.

A, the acquisition, is no cause of the lesion L (W -> A -> I <- L): under do(A) the mask should stay as it is. A
sentence, however, is meant to steer the mask, so there a change is what one hopes for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import acquisition, reports
from .inference import Result, segment

#: edit of a sentence -> (what it does, the new sentence)
SENTENCE_EDITS = {
    "no sentence": ("The model sees no sentence at all.", lambda text: reports.edit_none()),
    "generic": ("The sentence says only that there is an infection.", lambda text: reports.GENERIC),
    "sides swapped": ("Left and right are exchanged in the sentence.", reports.swap_sides),
    "left only": ("The sentence names the left half alone.", lambda text: reports.refer("left")),
    "right only": ("The sentence names the right half alone.", lambda text: reports.refer("right")),
}
EDITS = {name: edit.description for name, edit in acquisition.EDITS.items()} | {name: says for name, (says, _) in SENTENCE_EDITS.items()}
HARDLY, CLEARLY = 0.95, 0.80  #: Dice from which a change is hardly one; below which it is a clear one
#: `Report.side` of both sentences -> what is said where an edit left it as it was
SAME_SIDE = {None: "Neither sentence names a half", "both": "Both sentences name both halves"} | {
    side: f"Both sentences name the {side} half" for side in reports.SIDES}  # fmt: skip


@dataclass
class Intervention:
    """The answers before and after one edit; both at the picture's own size."""

    before: Result
    after: Result
    edit: str
    strength: float
    drawn: np.ndarray  #: (H, W) bool, pixels that an overlay (electrodes, marker, …) changed

    @property
    def dice(self) -> float:
        """Dice of the two masks, in [0, 1]; two empty ones agree: 1."""
        total = int(self.before.mask.sum() + self.after.mask.sum())
        return 2 * int((self.before.mask & self.after.mask).sum()) / total if total else 1.0

    @property
    def difference(self) -> np.ndarray:
        """Probability after less that before, (H, W) float32 in [-1, 1]."""
        return self.after.probability - self.before.probability

    @property
    def on_sentence(self) -> bool:
        """The edit changed the sentence, not the picture."""
        return self.edit in SENTENCE_EDITS

    @property
    def _draws(self) -> bool:
        """The edit draws something over the picture; it changes no tones."""
        return not self.on_sentence and acquisition.EDITS[self.edit].overlay

    @property
    def _towards_named_half(self) -> bool:
        """More of the mask than before lies on the one half that the edited sentence names; all of it, where all of it did."""
        side = reports.parse(self.after.report).side
        if side not in reports.SIDES:
            return False
        before, after = (reports.restrict(mask, side).sum() / mask.sum() for mask in (self.before.mask, self.after.mask))
        return bool(after > before or after == 1)

    @property
    def changed(self) -> bool:
        """The edit did something: an overlay can find no place, and a sentence may have no side to swap."""
        if self.on_sentence:
            return self.before.report != self.after.report
        return not np.array_equal(self.before.image, self.after.image)

    @property
    def verdict(self) -> str:
        """One plain sentence on what happened, and what it means."""
        if not self.changed:
            return "The edit changed nothing here, so the answer is the same." + (
                " Beside the predicted lesion it found no place to draw." if self._draws and self.strength else "")  # fmt: skip
        if not (self.before.mask.any() or self.after.mask.any()):
            return "Both masks are empty, so there is nothing that could have changed."
        says = f"(Dice {self.dice:.2f} between the two masks)"
        if self.on_sentence:
            if not self.after.mask.any():
                return "With the edited sentence the mask is empty: the model finds no lesion that fits these words."
            if not self.before.mask.any():
                return "With your own sentence the mask was empty; with the edited one the model finds a lesion."
            if self.dice < HARDLY:
                if self._towards_named_half:
                    return f"The mask follows the sentence {says}: the sentence steers what is segmented."
                return f"The mask changes with the sentence {says}."
            side, now = (reports.parse(answer.report).side for answer in (self.before, self.after))
            if side == now:
                return f"The mask hardly changes {says}. {SAME_SIDE[side]}, so nothing follows from that."
            return f"The mask hardly follows the sentence {says}: it comes from the picture."
        if self.dice >= HARDLY:
            return f"The mask hardly changes {says}. The patient is the same under do(A), so that is how it should be."
        how = "a little" if self.dice >= CLEARLY else "clearly"
        lost = "" if self._draws else " Part of that may be what the edit took from the picture, not a shortcut."
        return f"The mask changes {how} {says}, although the patient is the same under do(A): here the model depends on the acquisition.{lost}"

    def to_dict(self) -> dict:
        """What `/intervene` returns as JSON."""
        return {
            "edit": self.edit, "strength": self.strength, "what": EDITS[self.edit], "changed": self.changed, "dice": self.dice,
            "mean_absolute_difference": float(np.abs(self.difference).mean()), "verdict": self.verdict,
            "before": self.before.to_dict(), "after": self.after.to_dict(),
        }  # fmt: skip


def intervene(
    model, image, report: str, edit: str, strength: float = 2 / 3, *, threshold: float = 0.5, seed: int = 0, confounder: bool = False,
) -> Intervention:  # fmt: skip
    """Ask a model twice: as it is, and after one edit of the picture or of the sentence.

    Args:
        model, image, report, threshold, confounder: as for `inference.segment`.
        edit: one of `EDITS`: an acquisition (`acquisition.EDITS`) or a sentence (`SENTENCE_EDITS`).
        strength: in [0, 1], of an acquisition; 1/3, 2/3 and 1 are mild, clear and strong. No sentence has one.
        seed: where and what is drawn. Overlays avoid the mask that was predicted before, since an electrode on a
            lesion would hide it; where the model missed a lesion, it may be covered.
    Raises:
        ValueError: an unknown edit, a strength outside [0, 1], a picture that is too small, what `segment` refuses.
    """
    if edit not in EDITS:
        raise ValueError(f'There is no edit "{edit}"; choose one of {", ".join(EDITS)}.')
    if isinstance(strength, bool) or not isinstance(strength, (int, float, np.number)) or not 0 <= strength <= 1:
        raise ValueError(f"strength must be a number from 0 to 1, not {strength!r}.")
    before = segment(model, image, report, confounder=confounder, threshold=threshold)
    pixels, drawn, text = before.image, np.zeros(before.mask.shape, bool), before.report
    if edit in SENTENCE_EDITS:
        text = SENTENCE_EDITS[edit][1](text)
    else:
        pixels, drawn = acquisition.edit(pixels, edit, float(strength), seed=seed, avoid=before.mask)
    # at the threshold of before, also where a rule chose it: what changes is the edit's doing alone
    after = segment(model, pixels, text, confounder=confounder, threshold=before.threshold)
    return Intervention(before, after, edit, float(strength), drawn)
