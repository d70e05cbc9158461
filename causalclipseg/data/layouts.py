"""Which picture belongs to which mask and which sentence: the three layouts users have on disk.

    kaggle   ROOT/[QaTa-COV19/]QaTa-COV19-v2/{Train Set,Test Set}/{Images,Ground-truths}
             sentences and ids beside or above: Train_text_for_Covid19.xlsx, Test_text_for_Covid19.xlsx,
             Train_ID.xlsx, Val_ID.xlsx, or prompt/{train,test}.csv
    lvit     ROOT/{Train,Val,Test}_Folder/{img,labelcol}, sentences in {Train,Val,Test}_text.xlsx or
             Train_Val_text.xlsx (QaTa-COV19, MosMedData+, MoNuSeg as LViT distributes them)
    csv      ROOT/{Train,Val,Test}/{Images,GTs} with prompt/{train,val,test}.csv, or ROOT/{Images,GTs} with
             train.csv, val.csv, test.csv beside them

In the published tables the column `Image` names the *mask* (`mask_X.png`), elsewhere the picture (`X.png`), and
some ids have no ending. So everything is matched by one key: the base name in lower case, without `mask_` and
without a picture's ending. Nothing here opens a picture or needs torch.
"""
from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from .splits import RULES, TRAIN_SHARE, resplit
from .tables import DataError, read_ids, read_sentences, sample_key, sample_name, PICTURE_ENDINGS

SPLITS = ("train", "val", "test")
IMAGE_FOLDERS = ("images", "img", "image", "imgs")
MASK_FOLDERS = ("ground truths", "gts", "labelcol", "masks", "mask", "gt", "labels")

_SUBJECT = re.compile(r"^sub-(S[0-9A-Za-z]+)|(Morozov_study_\d+|Jun_\w*?case\d+)|^(TCGA-\w+-\w+)")  # see splits.py


@dataclass(frozen=True)
class Sample:
    """One picture with its mask and its sentence; paths only, nothing is opened.

    name     the picture's stem without `mask_` and ending, e.g. "covid_12"
    report   the sentence, "" where none was asked for
    split    "train", "val" or "test"
    source   "covid" (covid_N), "sub" (sub-S…), "phantom" (phantom…), "other"
    subject  whose picture it is, "S10644" from sub-S10644_…; None where the name does not say (see splits.py)
    """

    image: Path
    mask: Path | None
    report: str
    name: str
    split: str
    source: str
    subject: str | None


@dataclass
class _Part:
    """One folder of pictures with its masks and the tables that may hold its sentences."""

    images: Path
    masks: Path | None
    tables: list[Path] = field(default_factory=list)


@dataclass
class _Layout:
    kind: str
    home: Path
    parts: dict[str, _Part]
    ids: dict[str, Path] = field(default_factory=dict)  # "train", "val" -> table of ids

    @property
    def rule(self) -> str:
        """How the folder itself tells train from val."""
        if "val" in self.parts:
            return "folders"
        return "published ids" if self.ids else "first 80 per cent of rows"


# ---------------------------------------------------------------- what users call

def find_samples(root, split: str = "train", *, strict: bool = False, need_masks: bool = True,
                 need_reports: bool = True, rule: str = "published") -> list[Sample]:
    """The samples of one split ("train", "val", "test") or of all, in the order of the sentences' table.

    root          a folder in one of the layouts above, or up to two levels above it
    strict        True: anything unmatched raises; False: it is left out, with one warning that counts and names it
    need_masks    False: pictures without a mask are kept with mask=None (to predict)
    need_reports  False: pictures without a sentence are kept with report="" (to describe masks)
    rule          how train and val are told apart, see splits.py

    DataError: no layout recognised, a split that is not there, two different sentences, pictures or masks for one
    name, nothing matched at all, and, when strict, anything unmatched.
    """
    if split not in (*SPLITS, "all"):
        raise DataError(f"split must be one of train, val, test, all; got {split!r}")
    if rule not in RULES:
        raise DataError(f"The split rule must be one of {', '.join(RULES)}; got {rule!r}.")
    layout = _recognise(Path(root))
    if rule == "first80" and "val" not in layout.parts:
        layout.ids, rule = {}, "published"  # the layout's own rule without ids, which counts rows before any is left out
    if rule != "published" and split != "test":
        options = dict(strict=strict, need_masks=need_masks, need_reports=need_reports)
        samples = find_samples(root, "all", **options)
        samples = resplit([s for s in samples if s.split != "test"], rule) + [s for s in samples if s.split == "test"]
        return [s for s in samples if split in ("all", s.split)]
    wanted = _available(layout) if split == "all" else [split]
    missing = [s for s in wanted if s not in _available(layout)]
    if missing:
        raise DataError(f"{layout.home} ({layout.kind} layout) has no {missing[0]} split, only: "
                        f"{', '.join(_available(layout)) or 'none'}")
    samples, problems = [], {}
    matched: dict[str, list[Sample]] = {}
    for s in wanted:
        part = s if s in layout.parts else "train"
        if part not in matched:
            matched[part] = _match(layout, part, need_masks, need_reports, problems)
        samples += [x for x in matched[part] if x.split == s]
    if problems:
        text = f"{layout.home} ({layout.kind} layout): " + "; ".join(
            f"{len(v)} {k} ({', '.join(v[:3])}{', …' if len(v) > 3 else ''})" for k, v in problems.items())
        if strict or not samples:
            raise DataError(text + ". Add or remove these"
                            + (", or read the folder with strict=False to leave them out." if samples else "."))
        warnings.warn(text + ". Left out.", stacklevel=2)
    if not samples:
        raise DataError(f"{layout.home} ({layout.kind} layout): no sample in split {split}.")
    return samples


def describe_layout(root) -> str:
    """"kaggle", "lvit" or "csv"; DataError where none is recognised."""
    return _recognise(Path(root)).kind


def split_rule(root, rule: str = "published") -> str:
    """How train and val are told apart, in words: by "published" "folders", "published ids" or "first 80 per cent of rows"."""
    return RULES[rule] or _recognise(Path(root)).rule


def unmatched(root) -> dict[str, list[str]]:
    """What has no partner in a folder, over all splits: kind ("pictures without a mask", …) -> names.

    DataError as for `find_samples`; a split without any sentences is reported, not refused.
    """
    layout, problems = _recognise(Path(root)), {}
    for name, part in layout.parts.items():
        if not part.tables:
            problems[f"{name} pictures, and no table of sentences for them"] = []
        _match(layout, name, True, bool(part.tables), problems)
    return problems


def tables_to_write(root) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Splits without a table of sentences: folder's name -> (where a table would be found, the splits it serves)."""
    layout = _recognise(Path(root))
    names = {"lvit": "{0}_text.csv", "kaggle": "prompt/{1}.csv", "csv": "prompt/{1}.csv"}
    return {
        s: (layout.home / names[layout.kind].format(s.capitalize(), s), ("train", "val") if s == "train" and "val" not in layout.parts else (s,))
        for s, part in layout.parts.items()
        if not part.tables
    }


def data_digest(samples, contents: bool = False) -> str:
    """sha256 (64 hex digits) of a list of samples: split, name, sentence, and the size of picture and mask.

    It doesn't depend on where the folder lies nor on the samples' order. contents=True hashes the files
    themselves (seconds rather than a fraction of one), which also sees a change that keeps the size.
    """
    def mark(path):
        if path is None:
            return "-"
        return hashlib.sha256(path.read_bytes()).hexdigest() if contents else str(path.stat().st_size)

    lines = sorted("\x1f".join((s.split, s.name, s.report, mark(s.image), mark(s.mask))) for s in samples)
    return hashlib.sha256("\x1e".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------- matching

def _available(layout: _Layout) -> list[str]:
    return [s for s in SPLITS if s in layout.parts or (s == "val" and "train" in layout.parts)]


def _match(layout: _Layout, part_name: str, need_masks: bool, need_reports: bool, problems: dict) -> list[Sample]:
    """All samples of one folder of pictures, each with its split; what is unmatched is added to `problems`."""
    part = layout.parts[part_name]
    pictures = _files_by_key(part.images)
    masks = _files_by_key(part.masks) if part.masks else {}
    sentences = read_sentences(part.tables)
    if need_reports and not part.tables:
        raise DataError(f"{layout.home} ({layout.kind} layout): found pictures in {part.images} but no sentences. "
                        f"Looked for {_expected_tables(layout.kind, part_name)}. Put the file there, or write "
                        f"sentences from the masks with `causalclipseg data describe`.")
    keys = list(sentences)
    if not need_reports:
        keys += sorted(pictures.keys() - sentences.keys())

    # A table may serve several folders (Train_Val_text.xlsx) and a folder several tables (Images with train.csv
    # and test.csv), so a thing is unmatched only if it has no partner anywhere in this layout.
    elsewhere = set().union(*(_files_by_key(p.images).keys() for p in layout.parts.values() if p is not part))
    described = set(sentences).union(*(read_sentences(p.tables) for p in layout.parts.values()
                                       if p is not part and p.images == part.images))

    def problem(what, names):
        if names:
            problems.setdefault(what, []).extend(names)

    problem("sentences without a picture", [k for k in keys if k not in pictures and k not in elsewhere])
    if need_reports:
        problem("pictures without a sentence", sorted(p.name for k, p in pictures.items() if k not in described))
        problem("rows with an empty sentence", [k for k in keys if k in pictures and not sentences[k]])
    if need_masks:
        problem("masks without a picture", sorted(p.name for k, p in masks.items() if k not in pictures and k not in elsewhere))
        problem("pictures without a mask", sorted(pictures[k].name for k in keys if k in pictures and k not in masks))

    split_of = _splits(layout, part_name, keys, problem)
    samples = []
    for key in keys:
        report = sentences.get(key, "")
        if key not in pictures or key not in split_of or (need_reports and not report) \
                or (need_masks and key not in masks):
            continue
        samples.append(_sample(pictures[key], masks.get(key), report, split_of[key]))
    return samples


def _splits(layout: _Layout, part_name: str, keys: list[str], problem) -> dict[str, str]:
    """key -> split, by the layout's rule."""
    if part_name != "train" or layout.rule == "folders":
        return dict.fromkeys(keys, part_name)
    if layout.rule == "first 80 per cent of rows":
        first = int(TRAIN_SHARE * len(keys))  # of the rows, before anything is left out, as LanGuideMedSeg counts
        return {k: "train" if i < first else "val" for i, k in enumerate(keys)}
    ids = {s: read_ids(path) for s, path in layout.ids.items()}
    both = sorted(ids.get("train", set()) & ids.get("val", set()))
    if both:
        raise DataError(f"{layout.ids['train']} and {layout.ids['val']} share {len(both)} ids ({', '.join(both[:3])}): "
                        f"training on validation pictures. Remove them from one of the two.")
    if len(ids) == 1:  # one list is enough: the other one is the rest
        (known, names), = ids.items()
        other = "val" if known == "train" else "train"
        return {k: known if k in names else other for k in keys}
    problem("rows in neither id table", [k for k in keys if k not in ids["train"] and k not in ids["val"]])
    problem("ids without a sentence", sorted((ids["train"] | ids["val"]) - set(keys)))
    return {k: s for s in ids for k in keys if k in ids[s]}


def _files_by_key(folder: Path) -> dict[str, Path]:
    """key -> picture file of a folder; refuses two different files for one key."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in PICTURE_ENDINGS:
            continue
        other = found.setdefault(sample_key(path.name), path)
        if other is not path and other.read_bytes() != path.read_bytes():
            raise DataError(f"{folder} holds two different files for one name: {other.name} and {path.name}. "
                            f"Remove or rename one.")
    return found


def _sample(image: Path, mask: Path | None, report: str, split: str) -> Sample:
    name = sample_name(image.name)
    low = name.lower()
    source = next((s for s in ("covid", "sub", "phantom") if re.match(rf"{s}[-_]", low)), "other")
    subject = _SUBJECT.search(name)
    return Sample(image, mask, report, name, split, source, next(filter(None, subject.groups())) if subject else None)


# ---------------------------------------------------------------- recognising

def _recognise(root: Path) -> _Layout:
    """The layout at root or up to two levels below it; the nearest level wins, two on one level are refused."""
    if not root.is_dir():
        raise DataError(f"{root} is {'a file, not a folder' if root.exists() else 'not there'}. "
                        f"Give the folder that holds the data set.")
    level = [root]
    for _ in range(3):
        found = [x for folder in level for x in (_kaggle(folder), _lvit(folder), _csv(folder)) if x]
        if len(found) > 1:
            raise DataError(f"{root} holds several data sets: {', '.join(f'{x.home} ({x.kind})' for x in found)}. "
                            f"Give one of them.")
        if found:
            return found[0]
        level = [c for folder in level for c in _folders(folder).values()]
    raise DataError(
        f"No data set recognised in {root}. Looked there and two levels below for the Kaggle layout "
        f"(`Train Set/Images` and `Train Set/Ground-truths`), the LViT layout (`Train_Folder/img` and "
        f"`Train_Folder/labelcol`) and the CSV layout (`Train/Images`, `Train/GTs`, `prompt/train.csv`; or `Images`, "
        f"`GTs`, `train.csv`). Found: {', '.join(sorted(p.name for p in root.iterdir())[:8]) or 'an empty folder'}.")


def _plain(name: str) -> str:
    """A name as it is compared: lower case, with spaces for `_` and `-`."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _folders(folder: Path) -> dict[str, Path]:
    return {_plain(p.name): p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _tables(folder: Path | None, *stems: str) -> list[Path]:
    """The .xlsx and .csv files of a folder whose plain stem is one of stems, in the order of stems."""
    if folder is None or not folder.is_dir():
        return []
    files = [p for p in sorted(folder.iterdir())
             if p.suffix.lower() in (".xlsx", ".csv") and not p.name.startswith((".", "~$")) and p.is_file()]
    return [p for stem in stems for p in files if _plain(p.stem) == stem]


def _part(folder: Path) -> _Part | None:
    inside = _folders(folder)
    images = next((inside[n] for n in IMAGE_FOLDERS if n in inside), None)
    masks = next((inside[n] for n in MASK_FOLDERS if n in inside), None)
    return _Part(images, masks) if images else None


def _parts(home: Path, pattern: str) -> dict[str, _Part]:
    inside = _folders(home)
    found = {s: _part(inside[pattern.format(s)]) for s in SPLITS if pattern.format(s) in inside}
    return {s: p for s, p in found.items() if p}


def _kaggle(home: Path) -> _Layout | None:
    parts = _parts(home, "{} set")
    if not parts:
        return None
    home = home.resolve()
    near = [home, home.parent, home.parent.parent]
    for split, part in parts.items():
        stems = (f"{split} text for covid19", f"{split} text")
        places = [t for folder in near for t in _tables(folder, *stems) + _tables(folder / "prompt", split, *stems)]
        part.tables = places[:1]  # the nearest one: a second copy above it is not a second source
    ids = {s: t[0] for s in ("train", "val") if (t := [t for f in near for t in _tables(f, f"{s} id")])}
    return _Layout("kaggle", home, parts, ids)


def _lvit(home: Path) -> _Layout | None:
    parts = _parts(home, "{} folder")
    if not parts:
        return None
    for split, part in parts.items():
        shared = ("train val text",) if split != "test" else ()
        stems = (f"{split} text", f"{split} text for covid19", *shared)
        folders = [part.images.parent, home] + ([parts["train"].images.parent] if shared and "train" in parts else [])
        part.tables = [t for f in folders for t in _tables(f, *stems)][:1]
    ids = {s: t[0] for s in ("train", "val") if (t := _tables(home, f"{s} id"))}
    return _Layout("lvit", home, parts, ids)


def _csv(home: Path) -> _Layout | None:
    def tables(split, *more):
        return [t for f in (home / "prompt", home, *more) for t in _tables(f, split)][:1]

    parts = _parts(home, "{}")
    for split, part in parts.items():
        part.tables = tables(split, part.images.parent)
    if not parts and (shared := _part(home)):
        parts = {s: _Part(shared.images, shared.masks, t) for s in SPLITS if (t := tables(s))}
    return _Layout("csv", home, parts) if parts else None


def _expected_tables(kind: str, split: str) -> str:
    name = split.capitalize()
    return {"kaggle": f"{name}_text_for_Covid19.xlsx or prompt/{split}.csv beside the sets or up to two levels above",
            "lvit": f"{name}_text.xlsx in {name}_Folder or beside it (train and val also: Train_Val_text.xlsx)",
            "csv": f"prompt/{split}.csv or {split}.csv"}[kind]
