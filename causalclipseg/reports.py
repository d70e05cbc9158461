"""The sentences of QaTa-COV19: read one, write one from a mask, reword it, edit it.

    Bilateral pulmonary infection, two infected areas, upper lower left lung and all right lung.
    side                           count               zones of each half

In QaTa-COV19 "left" is the LEFT HALF OF THE PICTURE, which is usually the patient's right lung.
Wherever a side touches pixels, `laterality` says which is meant: "image" (the data set's way) or
"anatomical" (the patient's left, the right half of the picture). A sentence alone has no laterality.

Nothing of ours is imported here; numpy and scipy are loaded only when a mask is read.
"""

from __future__ import annotations

import itertools
import random
import re
import unicodedata
from dataclasses import dataclass

SIDES = ("left", "right")
ZONES = ("upper", "middle", "lower")
LATERALITIES = ("image", "anatomical")

# Rows, as fractions of the height, between upper | middle | lower. The sentences count zones inside each
# patient's lungs, which a mask doesn't show, so fixed rows only approximate them. Searched on the 7,145
# train sentences of our QaTa-COV19 copy; round values near the best with a middle band of a sixth of the
# picture (a 12-row band agrees better, 68 % / 60 %, and would be useless to `restrict`). Zones of both
# halves exactly equal: 63.4 % train, 55.7 % test; a single zone of a half: 88.9 % / 86.1 %. Thirds of the
# picture: 28 % / 34 %. Left and right exchanged: 46 % / 41 %.
ZONE_BOUNDS = (0.25, 0.42)
# A lesion of the upper or the lower zone often spills into the middle one unmentioned: beside one of them
# alone, the middle counts from this share of the half's lesion on. Without the rule: 55.1 % / 52.5 %.
MIDDLE_MIN_SHARE = 0.25
# A spill-over across the mid-line names the other half from this share of the picture on (100 pixels at
# 224x224): right side 98.8 % train, 98.9 % test, against 98.6 % / 98.6 % for "any pixel".
SIDE_MIN_AREA = 0.002

# A sentence that names one half or one zone of it; the first is the usual one.
REFER = (
    "Infection of the {} lung.", "Infected area in the {} lung.", "Lesion in the {} lung.",
    "Pulmonary infection, {} lung.", "Only the {} lung.", "{} lung",
)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMPTY = "No infected area."
GENERIC = "Pulmonary infection."
LONGEST = 20  # words and punctuation marks of the longest canonical sentence

# Words that carry no side, zone or count but belong to such a sentence: never reported as unread.
_PLAIN = frozenset(
    """a an and are area areas at both but chest consolidation covid eof field fields finding findings
    focus foci glass ground half has have in infected infection infections infiltrate involved involvement is
    it its lesion lesions lobe lobes located lung lungs of on only opacities opacity part patient pneumonia
    portion pulmonary ray region regions seen shows side sided sides the there third thirds this visible with
    x xray xxx zone zones""".split()
)
_NAME = re.compile(r"\b(?:covid[ -]?19|sars[ -]?cov[ -]?2)\b")  #: its number counts no areas
# Where one of these is among the two words after a number, that is the count: 3 cm and "no effusion" count no areas.
_COUNTED = frozenset(
    "area areas finding findings foci focus infected infection infections lesion lesions opacities opacity pneumonia region regions".split()
)
# A table, not edit distance: "light" is one letter from "right", "flower" from "lower".
_READ_AS = {
    "lower": "lowerl lowe lwoer loer lowwer", "middle": "midle middl mid middel midlle middlel",
    "upper": "uper uppper uppe upperl", "all": "al whole entire", "left": "lef letf leftlung",
    "right": "rigth rihgt righ rightlung", "bilateral": "bilatral bilaterial bilaterally",
    "unilateral": "unilatral unilaterial unilaterally", "one": "single", "no": "none zero",
}
_TYPOS = {typo: word for word, typos in _READ_AS.items() for typo in typos.split()}
_WORD = re.compile(r"[^\W_]+|[^\w\s]")


@dataclass(frozen=True)
class Report:
    """What one sentence says.

    left, right: zones named for that half, in the order upper, middle, lower; all three for "all left
    lung" and for a bare "left lung"; empty where the half is not named. count: infected areas, 0 for
    "no infected area", None when no number was given. extent: "unilateral", "bilateral" or None.
    unread: words that were not understood, in the order of the sentence, lower case, each once.
    whole: the halves whose three zones were said in one word ("all", or the bare lung).
    """

    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    count: int | None = None
    extent: str | None = None
    unread: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def __post_init__(self):
        for zone in (*self.left, *self.right):
            if zone not in ZONES:
                raise ValueError(f"A zone must be 'upper', 'middle' or 'lower', not {zone!r}.")
        for side in self.whole:
            if side not in SIDES or set(getattr(self, side)) != set(ZONES):
                raise ValueError(f"whole names {side!r}, but that half does not have all three zones.")

    @property
    def side(self) -> str | None:
        """"left", "right", "both", or None when no side is named."""
        if self.left and self.right:
            return "both"
        return "left" if self.left else "right" if self.right else None

    @property
    def contradictions(self) -> tuple[str, ...]:
        """What the sentence says against itself, one plain sentence each; empty if it is consistent."""
        found = []
        if self.extent == "bilateral" and self.side in SIDES:
            found.append(f"It says bilateral but names only the {self.side} lung.")
        if self.extent == "unilateral" and self.side == "both":
            found.append("It says unilateral but names both lungs.")
        if self.count == 0 and (self.side or self.extent):
            found.append("It says there is no infected area but describes one.")
        elif self.count == 1 and (self.side == "both" or self.extent == "bilateral"):
            found.append("It counts one infected area but speaks of both lungs.")
        return tuple(found)


def _areas(count: int) -> str:
    word = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{word} infected {'area' if count in (0, 1) else 'areas'}"


# ---------------------------------------------------------------------------------------- sentences
def parse(text: str) -> Report:
    """Read a sentence; never raises on a string. Not a string: TypeError.

    Case, spacing, order, a missing full stop, "area" or "areas", digits, "one area in the ...", the
    known typos ("lowerl left lung") and trailing "EOF XXX" padding are accepted. Zones belong to the next
    side of the phrase ("upper lower left lung"), else to the one before ("left lung, lower zone"); where the
    phrase begins with its side, "and" begins the next one ("left lower lobe and right upper lobe"). Two sides
    with "and" between them share zones ("lower left and right lung", "left and right lower lobes"), as "both
    lower lobes" and "bilateral lower lobe infection" give theirs to both. A number
    or "no" is the count only where areas follow ("two infected areas", "no lesion"), else it is unread; so is a "no"
    beside a side ("no infection in the left lung").
    """
    if not isinstance(text, str):
        raise TypeError(f"A report must be a string, not {type(text).__name__}.")
    said: dict[str, set[str]] = {}  # side -> its zones and "all"; an empty set is a bare "left lung"
    pending: set[str] = set()  # zones that still wait for their side
    named: tuple[str, ...] = ()  # the last side: it takes zones that are said after it
    begins = False  # whether that side begins its phrase: no zone was said before it
    given: set[str] = set()  # the zones that were said before it
    count, counted, extent, unread = None, "", None, {}
    said_words = _WORD.findall(_NAME.sub("covid", text.lower()).replace("-", " "))
    words = [_TYPOS.get(w, w) for w in said_words]
    for at, word in enumerate([*words, "."]):
        following = words[at + 1] if at + 1 < len(words) else ""
        both_lungs = word == "both" and (following in ("lung", "lungs", "sides") or _of_both(words[at + 1 :]))
        if word in ZONES or word == "all":
            pending.add(word)
        elif word in SIDES or both_lungs:
            # "left and right lower lobes": the first one shares what the second one takes
            pair = words[at - 2 : at] == [*named, "and"] and word not in named
            shared = pair and not said[named[0]]
            if pair and following not in (*ZONES, "all"):
                pending |= given  # "lower left and right lung": the second one shares what the first one took
            named, begins, given = SIDES if both_lungs or shared else (word,), not pending, pending
            for side in named:
                said.setdefault(side, set()).update(pending)
            pending = set()
            extent = extent or ("bilateral" if both_lungs else None)
        elif word in ("unilateral", "bilateral", "both"):
            extent = "bilateral" if word == "both" else word
        elif word == "one" and following in ("lung", "side", "sided"):
            pass
        elif _is_number(word) and (_counts_areas(words[at + 1 : at + 5]) or text.lower().strip(" .") == "none"):
            if count is None:
                count, counted = NUMBERS.index(word) if word in NUMBERS else int(word), said_words[at]
        elif word in ",;.:)" or word == "and":
            if begins or word != "and":
                for side in named:
                    said[side] |= pending
                pending = set() if named else pending
            if word in ("and", ",") and not any(said[side] for side in named):
                begins = False  # a bare "left lung and ..." is whole: the zones that follow belong to the next side
            named = () if word in ";." else named
        elif word not in _PLAIN and (word.isalnum() or unicodedata.category(word) == "So"):
            unread[said_words[at]] = None  # a word or an emoji; other punctuation means nothing here
    if extent == "bilateral" and not said and pending:  # "bilateral lower lobe infection"
        said = {side: pending for side in SIDES}
        pending = set()
    if count == 0 and said:  # "no infection in the left lung": what is denied where is not read
        count, unread[counted] = None, None
    unread.update(dict.fromkeys(z for z in (*ZONES, "all") if z in pending))
    whole = tuple(s for s in SIDES if s in said and (not said[s] or "all" in said[s]))
    left, right = (ZONES if s in whole else tuple(z for z in ZONES if z in said.get(s, [])) for s in SIDES)
    return Report(left, right, count, extent, tuple(unread), whole)


def _is_number(word: str) -> bool:
    return word in NUMBERS or (word.isascii() and word.isdigit() and len(word) <= 3)


def _of_both(following: list[str]) -> bool:
    """Whether "both" before these words means both lungs: "both lower lobes", but not "both upper and lower zones of the left lung"."""
    ends = (k for k, word in enumerate(following) if word in ",;." or (word == "and" and following[k - 1] not in ZONES))
    return following[:1] != [] and following[0] in ZONES and {*SIDES}.isdisjoint(following[: next(ends, None)])


def _counts_areas(following: list[str]) -> bool:
    """Whether a number before these words counts infected areas; "two ground-glass opacities" does, too."""
    near = [w for w in itertools.takewhile(str.isalnum, following) if w not in ("ground", "glass")]
    return not _COUNTED.isdisjoint(near[:2])


def understood(text: str) -> bool:
    """Whether every word of a sentence was read. Only then may another sentence of this grammar stand for it."""
    return not parse(text).unread


def write(report: Report, all_as_one: bool = True) -> str:
    """The data set's own sentence for a report; unread words are left out.

    all_as_one: a half in `report.whole` is "all left lung", not "upper middle lower left lung". Without a
    count its phrase is left out; without sides it is "Pulmonary infection." or "No infected area.".
    """
    places = []
    for side in SIDES:
        zones = " ".join(z for z in ZONES if z in getattr(report, side))
        if zones:
            places.append(f"{'all' if all_as_one and side in report.whole else zones} {side} lung")
    if report.count == 0 and not places and report.extent is None:
        return EMPTY
    extent = report.extent or ({1: "unilateral", 2: "bilateral"}.get(len(places)))
    parts = [f"{extent} pulmonary infection" if extent else "pulmonary infection"]
    if report.count is not None:
        parts.append(_areas(report.count))
    if places:
        parts.append(" and ".join(places))
    sentence = ", ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def swap_sides(text: str) -> str:
    """The sentence with left and right exchanged; twice gives it back.

    Only whole words ("left", "Left", "LEFT", also in "left-sided") change, in their letter case; misspelt
    sides and odd casings ("lEFT") stay, since no second swap could restore them.
    """
    def other(match: re.Match) -> str:
        word = match.group()
        new = "right" if word.lower() == "left" else "left"
        return new.upper() if word.isupper() else new.capitalize() if word.istitle() else new

    return re.sub(r"\b(?:left|Left|LEFT|right|Right|RIGHT)\b", other, text)


def _choose(rng, options):
    """One of `options` by a random.Random, a numpy Generator or (None) the first one."""
    # Both kinds have random() in [0, 1); randrange() and integers() are not shared.
    return options[int(rng.random() * len(options)) if rng else 0]


def refer(side: str, zone: str | None = None, rng=None) -> str:
    """A sentence that names one half or one zone of it: "Infection of the lower left lung.".

    side: "left" or "right"; zone: "upper", "middle", "lower" or None for the whole half. rng
    (random.Random or numpy Generator): one of several wordings; None: always the first.
    """
    _check_part(side, zone)
    return _choose(rng, REFER).format(f"{zone} {side}" if zone else side)


def paraphrase(report: str | Report, rng) -> str:
    """Another wording that names the same sides and zones; the count or the extent may be dropped.

    rng: random.Random or numpy Generator. Without a side: the sentence of write(), perhaps in lower case. A text
    that isn't fully understood returns as it is: another grammar's sentence says something else.
    """
    if isinstance(report, str):
        text, report = report, parse(report)
        if report.unread:
            return text
    if report.side is None:
        return _choose(rng, (str, str.lower))(write(report))
    # A sentence longer than the data set's would be cut by the text encoder and lose its last zones.
    drafts = (_reworded(report, rng) for _ in range(8))
    return next((d for d in drafts if len(_WORD.findall(d)) <= LONGEST), write(report))


def _reworded(report: Report, rng) -> str:
    sides = SIDES if report.side == "both" else (report.side,)
    style = _choose(rng, ("plain", "of the", "after"))
    places = []
    for side in sides if _choose(rng, (True, False)) else sides[::-1]:
        zones = [z for z in ZONES if z in getattr(report, side)]
        if side in report.whole:
            name = _choose(rng, ("all ", "the whole ", "all of the ", "")) + f"{side} lung"
        elif style == "after":
            name = f"{side} lung ({' and '.join(zones)})"
        else:
            name = _choose(rng, (" ", " and ")).join(zones) + f" {side} lung"
        places.append("the " + name if style == "of the" else name)
    where = _choose(rng, (" and ", ", ", " and the ")).join(places).replace("the the", "the")
    word = _choose(rng, ("pulmonary infection", "infection", "lung infection", "pneumonia"))
    if _choose(rng, (True, True, False)):
        word = ("bilateral " if len(sides) == 2 else "unilateral ") + word
    if report.count is not None and _choose(rng, (True, True, False)):
        name = _areas(report.count)
        areas = _choose(rng, (name, name.replace(name.split()[0], str(report.count), 1)))
        frame = _choose(rng, ("{0}, {1}, {2}", "{1} in {2}, {0}", "{0} with {1}: {2}", "{2}: {1}"))
        sentence = frame.format(word, areas, where)
    else:
        sentence = _choose(rng, ("{0}, {1}", "{0} of {1}", "{1}: {0}")).format(word, where)
    sentence = sentence[0].upper() + sentence[1:] + _choose(rng, (".", ".", ""))
    return sentence.lower() if _choose(rng, (False, False, True)) else sentence


def edit_none() -> str:
    """The empty sentence: a picture without any text."""
    return ""


def other_words(text: str, rng) -> str:
    """The sentence as another ward might have said it, for training: in the data set's own words, reworded, or not at all.

    rng: random.Random or numpy Generator. What it names stays, unless nothing is said at all (one in five). A sentence
    that isn't fully understood is kept as it is, or dropped as often.
    """
    draw = rng.random()
    if draw >= 0.8 or not text:
        return edit_none()
    return write(parse(text)) if draw < 0.5 and understood(text) else paraphrase(text, rng)


def shuffled(sentences, seed: int) -> list[str]:
    """The sentences in another order, none at its own place (a derangement); the seed decides.

    Two pictures may still carry equal sentences, as in the data set. One sentence alone: ValueError.
    """
    sentences = list(sentences)
    if len(sentences) == 1:
        raise ValueError("One sentence cannot be shuffled: give at least two.")
    # Sattolo's algorithm: a uniformly drawn single cycle, so no place keeps its own sentence.
    rng, order = random.Random(seed), list(range(len(sentences)))
    for i in range(len(order) - 1, 0, -1):
        j = rng.randrange(i)
        order[i], order[j] = order[j], order[i]
    return [sentences[k] for k in order]


def disagreements(claimed: Report, seen: Report) -> list[str]:
    """Plain sentences on where a sentence (`claimed`) and a mask (`seen`, from read_mask) differ.

    What the sentence leaves open (no count, no side) is no disagreement; nor is it one where a sentence that only
    points ("Infection of the left lung.") means some of a half.
    """
    out = []
    for side in SIDES:
        said, there = getattr(claimed, side), getattr(seen, side)
        if said and not there:
            out.append(f"The sentence names the {side} lung; the mask has nothing there.")
        elif there and not said and (claimed.side or claimed.count == 0):
            out.append(f"The mask has a lesion in the {side} lung; the sentence does not name it.")
        elif any(differ(claimed, seen, side, zone) for zone in ZONES):
            said, there = " and ".join(said), " and ".join(there)
            out.append(f"In the {side} lung the sentence names {said}; the mask shows {there}.")
    if claimed.extent == "bilateral" and claimed.side is None and seen.side != "both":
        out.append("The sentence says bilateral; the mask does not show both lungs.")
    if claimed.extent == "unilateral" and claimed.side is None and seen.side == "both":
        out.append("The sentence says unilateral; the mask shows both lungs.")
    if claimed.count is not None and seen.count is not None and claimed.count != seen.count:
        out.append(f"The sentence counts {_areas(claimed.count)}; the mask has {_areas(seen.count)}.")
    return out


def differ(claimed: Report, seen: Report, side: str, zone: str) -> bool:
    """Whether a sentence and a mask disagree on one zone, by the rule of `disagreements`."""
    said, there = getattr(claimed, side), getattr(seen, side)
    if not said and not (claimed.side or claimed.count == 0):
        return False
    points = claimed.extent is None and claimed.count is None and side in claimed.whole
    return (zone in said) != (zone in there) and not (points and there)


# -------------------------------------------------------------------------------------------- masks
def _check_part(side: str, zone: str | None, laterality: str = "image") -> None:
    if side not in SIDES:
        raise ValueError(f"side must be 'left' or 'right', not {side!r}.")
    if zone is not None and zone not in ZONES:
        raise ValueError(f"zone must be 'upper', 'middle', 'lower' or None, not {zone!r}.")
    if laterality not in LATERALITIES:
        raise ValueError(f"laterality must be 'image' or 'anatomical', not {laterality!r}.")


def part_slices(height: int, width: int, side: str, zone: str | None = None, laterality: str = "image"):
    """(rows, columns) slices of one half, or one zone of it, of a height x width picture.

    The six parts tile the picture: no pixel is in two of them or in none. In a picture of odd width
    the middle column belongs to the right half of the picture.
    """
    _check_part(side, zone, laterality)
    edges = (0, round(ZONE_BOUNDS[0] * height), round(ZONE_BOUNDS[1] * height), height)
    rows = slice(*edges[ZONES.index(zone):][:2]) if zone else slice(0, height)
    image_left = (side == "left") == (laterality == "image")
    return rows, slice(0, width // 2) if image_left else slice(width // 2, width)


def restrict(mask, side: str, zone: str | None = None, laterality: str = "image"):
    """A copy of the mask that keeps one half (or one zone of it) and is zero elsewhere.

    mask: numpy array or torch tensor (..., H, W) of any dtype; the same kind, dtype and shape return.
    """
    if not hasattr(mask, "shape") or len(mask.shape) < 2:
        raise ValueError("restrict needs an array or tensor of shape (..., H, W).")
    rows, columns = part_slices(mask.shape[-2], mask.shape[-1], side, zone, laterality)
    # clone() is torch's word for a copy; asking for it spares an import of torch.
    kept = mask.clone() if hasattr(mask, "clone") else mask.copy()
    kept[...] = 0
    kept[..., rows, columns] = mask[..., rows, columns]
    return kept


def read_mask(mask, laterality: str = "image") -> Report:
    """What a mask shows, as a report: zones of each half, 8-connected areas, whole halves.

    mask: (H, W) array: bool; 0 to 1 (lesion above 0.5); or 0 to 255 and more (lesion above 127). A half
    is named unless it only holds a small spill-over (below SIDE_MIN_AREA) of areas that lie mostly in
    the other one. A zone is named when it holds a pixel; but the middle one needs MIDDLE_MIN_SHARE of the
    half's lesion where only one of its neighbours is named. A half is "whole" where ONE area, the largest
    there, reaches all three zones. ValueError for another number of dimensions, no pixels, values that
    are not numbers, or a largest value between 1 and 128 (no known mask coding).
    """
    import numpy as np
    from scipy import ndimage

    _check_part("left", None, laterality)
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"A mask must have the shape (H, W) with at least one pixel, not {mask.shape}.")
    if mask.dtype.kind not in "buif":
        raise ValueError(f"A mask must hold numbers or booleans, not {mask.dtype}.")
    if mask.dtype.kind != "b":
        # Non-finite values are no lesion and don't decide the scale.
        mask = np.where(np.isfinite(mask), mask, 0)
        if 1 < mask.max() < 128:
            raise ValueError(f"A mask must hold 0 and 1, or 0 and 255; its largest value is {mask.max():g}.")
        mask = mask > (127 if mask.max() > 1 else 0.5)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 0:
        return Report(count=0)
    zones: dict[str, tuple[str, ...]] = {}
    whole = []
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    for side in SIDES:
        rows, columns = part_slices(*mask.shape, side, None, laterality)
        here = np.bincount(labels[rows, columns].ravel(), minlength=count + 1)
        here[0] = 0
        # An area at home in this half names it, however small; a spill-over from the other must be large.
        named = here.sum() >= SIDE_MIN_AREA * mask.size or (2 * here[1:] >= sizes[1:]).any()
        zones[side] = _zones_of(mask, side, laterality) if named else ()
        # Several areas never make "all"; the largest one of a half is the only candidate.
        if len(zones[side]) == 3 and len(_zones_of(labels == here.argmax(), side, laterality)) == 3:
            whole.append(side)
    extent = "bilateral" if zones["left"] and zones["right"] else "unilateral"
    return Report(zones["left"], zones["right"], int(count), extent, whole=tuple(whole))


def _zones_of(mask, side: str, laterality: str) -> tuple[str, ...]:
    """Zones of one half that a boolean (H, W) mask fills; see read_mask for the rule."""
    filled = {z: int(mask[part_slices(*mask.shape, side, z, laterality)].sum()) for z in ZONES}
    one_neighbour = not (filled["upper"] and filled["lower"])
    if one_neighbour and filled["middle"] < MIDDLE_MIN_SHARE * sum(filled.values()):
        filled["middle"] = 0
    return tuple(z for z in ZONES if filled[z])


def describe(mask, laterality: str = "image") -> str:
    """The data set's sentence for an (H, W) mask; see read_mask for what counts.

    An empty mask gives "No infected area.", which is ours: QaTa-COV19 holds no empty mask.
    """
    return write(read_mask(mask, laterality))
