"""Is a data folder what it should be? Files, masks, sentences and splits, each looked at once."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import reports
from .dataset import load_image, load_mask
from .layouts import SPLITS, Sample, describe_layout, find_samples, split_rule, unmatched, unused_folders
from .tables import DataError

PUBLISHED = {"train": 5716, "val": 1429, "test": 2113}  # QaTa-COV19-v2 as LViT and CausalCLIPSeg split it
QATA_SOURCES = ("covid", "sub")
EXCHANGED = (
    "the sides that most sentences name fit their masks better when exchanged: they seem to mean the patient's left and right, where "
    "left is taken for the left half of the picture; exchange them in the tables (reports.swap_sides does it for one sentence)"
)
SHOWN = 3  # names a finding shows; the JSON file has all of them


@dataclass
class Finding:
    """One kind of thing that was found, with the samples it was found in."""

    error: bool  #: True: the folder can't be trusted as it is; False: worth knowing
    what: str
    names: list[str] = field(default_factory=list)


@dataclass
class DataCheck:
    """What `check` returns."""

    root: str
    layout: str
    split_rule: str
    counts: dict[str, int]
    sources: dict[str, dict[str, int]]  #: split -> source -> pictures
    findings: list[Finding]

    @property
    def errors(self) -> int:
        """Number of kinds of errors."""
        return sum(f.error for f in self.findings)

    def to_dict(self) -> dict:
        """Everything as JSON values."""
        return {
            "data": Path(self.root).name, "layout": self.layout, "split_rule": self.split_rule, "counts": self.counts,
            "published": PUBLISHED, "sources": self.sources, "errors": self.errors,
            "findings": [{"error": f.error, "what": f.what, "n": len(f.names), "names": f.names} for f in self.findings],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The same for a terminal."""
        counts = ", ".join(f"{split} {n}" for split, n in self.counts.items())
        out = [f"{self.root}: {self.layout} layout; {counts}; train and val by {self.split_rule}"]
        for f in self.findings:
            names = f": {', '.join(f.names[:SHOWN])}{', …' if len(f.names) > SHOWN else ''}" if f.names else ""
            out.append(f"{'ERROR  ' if f.error else 'warning'}  {f.what}{f' ({len(f.names)})' if f.names else ''}{names}")
        counted = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((self.errors, "error"), (len(self.findings) - self.errors, "warning"))]
        return [*out, ", ".join(counted) if self.findings else "nothing to object to"]


def check(root, progress: Callable[[int, int], None] | None = None) -> DataCheck:
    """Look at every file and sentence of a folder in one of the three layouts.

    Errors: pictures, masks or sentences without their partner, files that can't be read, a mask of another size than
    its picture, the same picture in two splits. Warnings: the same picture twice in one split, empty masks, masks that
    cover more than half of their picture where most of a split do, sentences that can't be read in full, contradict
    themselves or contradict their mask (side, zones, count; by `reports.read_mask`), sides that mostly fit better when
    exchanged, a subject (sub-S…) in more than one split, folders with pictures that belong to no split, and, for
    QaTa-COV19, splits of other sizes than the published ones.

    Args:
        root: the folder. progress: called with (done, all) after each picture.
    Raises:
        DataError: no layout is recognised, or two files or sentences stand for one name.
    """
    found: dict[tuple[bool, str], list[str]] = {}

    def note(error: bool, what: str, *names: str):
        found.setdefault((error, what), []).extend(names)

    for what, names in unmatched(root).items():
        note(True, what, *names)
    if unused := unused_folders(root):
        note(False, "folders with pictures that belong to no split; splits are named train, val (valid, validation) and test", *unused)
    samples = _all_samples(root)
    counts = {split: sum(s.split == split for s in samples) for split in SPLITS}
    if any(s.source in QATA_SOURCES for s in samples):
        for split, published in PUBLISHED.items():
            if counts[split] != published:
                note(False, f"{split} has {counts[split]:,} pictures, the published split {published:,}")
    for what, of in (("sentences that are not fully understood", _unread), ("sentences that contradict themselves", _contradictory)):
        if names := [s.name for s in samples if s.report and of(s.report)]:
            note(False, what, *names)
    pictures: dict[str, list[Sample]] = {}
    covered: dict[str, list[tuple[Sample, float]]] = {}  # split -> masks and the share of their picture that they cover
    better = {"as they are": 0, "exchanged": 0}  # sentences whose sides fit their mask better so than otherwise
    for done, sample in enumerate(samples, start=1):
        looked = _look_at(sample, note)
        if looked is not None:
            digest, mask = looked
            pictures.setdefault(digest, []).append(sample)
            if mask is not None:
                covered.setdefault(sample.split, []).append((sample, mask.mean()))
                _compare(sample, mask, note, better)
        if progress:
            progress(done, len(samples))
    for masks in covered.values():
        large = [s.name for s, share in masks if share > 0.5]
        if len(large) > len(masks) / 2:  # single ones may be: 19 of QaTa-COV19's 9,258 masks are
            note(False, "masks that cover more than half of their picture, as most of their split do; inverted?", *large)
    if better["exchanged"] > better["as they are"]:
        note(False, EXCHANGED)
    for same in pictures.values():
        if len(same) > 1:
            apart = len({s.split for s in same}) > 1
            note(apart, "pictures in more than one split" if apart else "pictures that come twice in one split", " = ".join(s.name for s in same))
    places: dict[str, set[str]] = {}
    for sample in samples:
        if sample.subject:
            places.setdefault(sample.subject, set()).add(sample.split)
    if leaked := sorted(subject for subject, splits in places.items() if len(splits) > 1):
        note(False, "subjects in more than one split: results on them are too good", *leaked)
    sources = {split: {} for split in SPLITS}
    for sample in samples:
        sources[sample.split][sample.source] = sources[sample.split].get(sample.source, 0) + 1
    findings = sorted((Finding(error, what, names) for (error, what), names in found.items()), key=lambda f: not f.error)
    return DataCheck(str(root), describe_layout(root), split_rule(root), counts, sources, findings)


def _all_samples(root) -> list[Sample]:
    """Every picture of the folder, with or without mask and sentence; what is unmatched is reported by `unmatched`."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_samples(root, "all", need_masks=False, need_reports=False)


def _unread(report: str) -> bool:
    return not reports.understood(report)


def _contradictory(report: str) -> bool:
    return bool(reports.parse(report).contradictions)


def _look_at(sample: Sample, note) -> tuple[str, np.ndarray | None] | None:
    """Open picture and mask, note what is wrong; the picture's digest and the mask (H, W), or None where one can't be read."""
    try:
        image = load_image(sample.image)
        mask = load_mask(sample.mask) if sample.mask else None
    except DataError as error:
        note(True, "files that can't be read", str(error))
        return None
    if mask is not None:
        if mask.shape != image.shape:
            note(True, "masks of another size than their picture", sample.name)
        elif not mask.any():
            note(False, "empty masks", sample.name)
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest(), mask


def _compare(sample: Sample, mask: np.ndarray, note, better: dict[str, int]) -> None:
    """Note where sentence and mask (H, W) disagree, and count in `better` which way round its sides fit."""
    said = reports.parse(sample.report)
    if not sample.report or said.unread:  # another grammar's sentence says something else than what was understood
        return
    seen = reports.read_mask(mask)
    for kind in _kinds_of_disagreement(reports.disagreements(said, seen)):
        note(False, f"sentences whose {kind} differ{'s' * (kind != 'zones')} from the mask's", sample.name)
    if said.side and seen.side:
        fits = _alike(said.left, seen.left) + _alike(said.right, seen.right)
        exchanged = _alike(said.left, seen.right) + _alike(said.right, seen.left)
        if fits != exchanged:
            better["exchanged" if exchanged > fits else "as they are"] += 1


def _alike(zones: tuple[str, ...], others: tuple[str, ...]) -> int:
    """How well the zones of a half fit: whether it is named counts more than all of its zones."""
    return 10 * (bool(zones) == bool(others)) + sum((z in zones) == (z in others) for z in reports.ZONES)


def _kinds_of_disagreement(sentences: list[str]) -> list[str]:
    """"side", "zones", "count": which of them plain sentences of `reports.disagreements` speak of."""
    return sorted({"count" if "counts" in s else "zones" if s.startswith("In the") else "side" for s in sentences})
