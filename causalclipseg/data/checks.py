"""Is a data folder what it should be? Files, masks, sentences and splits, each looked at once."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import reports
from .dataset import load_image, load_mask
from .layouts import SPLITS, Sample, describe_layout, find_samples, split_rule, unmatched
from .tables import DataError

PUBLISHED = {"train": 5716, "val": 1429, "test": 2113}  # QaTa-COV19-v2 as LViT and CausalCLIPSeg split it
QATA_SOURCES = ("covid", "sub")
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
    its picture, the same picture in two splits. Warnings: the same picture twice in one split, empty masks, sentences
    that can't be read in full, contradict themselves or contradict their mask (side, zones, count; by
    `reports.read_mask`), a subject (sub-S…) in more than one split, and, for QaTa-COV19, splits of other sizes than
    the published ones.

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
    for done, sample in enumerate(samples, start=1):
        digest = _look_at(sample, note)
        if digest:
            pictures.setdefault(digest, []).append(sample)
        if progress:
            progress(done, len(samples))
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
    return bool(reports.parse(report).unread)


def _contradictory(report: str) -> bool:
    return bool(reports.parse(report).contradictions)


def _look_at(sample: Sample, note) -> str | None:
    """Open picture and mask, note what is wrong; the picture's digest, or None where it can't be read."""
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
        if sample.report and not _unread(sample.report):  # another grammar's sentence says something else than what was understood
            for kind in _kinds_of_disagreement(reports.disagreements(reports.parse(sample.report), reports.read_mask(mask))):
                note(False, f"sentences whose {kind} differ{'s' * (kind != 'zones')} from the mask's", sample.name)
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _kinds_of_disagreement(sentences: list[str]) -> list[str]:
    """"side", "zones", "count": which of them plain sentences of `reports.disagreements` speak of."""
    return sorted({"count" if "counts" in s else "zones" if s.startswith("In the") else "side" for s in sentences})
