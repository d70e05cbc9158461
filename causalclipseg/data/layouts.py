"""Which picture belongs to which mask and which sentence: the three layouts users have on disk.

    kaggle   ROOT/[QaTa-COV19/]QaTa-COV19-v2/{Train Set,Test Set}/{Images,Ground-truths}
             sentences and ids beside or above: Train_text_for_Covid19.xlsx, Test_text_for_Covid19.xlsx,
             Train_ID.xlsx, Val_ID.xlsx, or prompt/{train,val,test}.csv
    lvit     ROOT/{Train,Val,Test}_Folder/{img,labelcol}, sentences in {Train,Val,Test}_text.xlsx or
             Train_Val_text.xlsx (QaTa-COV19, MosMedData+, MoNuSeg as LViT distributes them)
    csv      ROOT/{Train,Val,Test}/{Images,GTs} with prompt/{train,val,test}.csv, or ROOT/{Images,GTs} with
             train.csv, val.csv, test.csv beside them; without any table ROOT/{Images,Ground-truths} is one part, whose
             sentences are still to be written (QaTa-COV19-v1)

Val may also be called Valid or Validation. A table of val without a folder of its own (Kaggle, CSV) takes its pictures
from the train folder: they are validated on, and not trained on even where the train table lists them, too.

In the published tables the column `Image` names the *mask* (`mask_X.png`), elsewhere the picture (`X.png`), and
some ids have no ending. So everything is matched by one key: the base name in lower case, without `mask_` and
without a picture's ending. Nothing here opens a picture or needs torch.
"""
from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from .recognising import SPLITS, Layout, expected_tables, folders_in, recognise
from .splits import RULES, TRAIN_SHARE, resplit
from .tables import DataError, read_ids, read_sentences, sample_key, sample_name, PICTURE_ENDINGS

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
    layout = recognise(Path(root))
    if rule == "first80" and "val" not in layout.parts:
        layout.ids, rule = {}, "published"  # the layout's own rule without ids, which counts rows before any is left out
    wanted = _available(layout) if split == "all" else [split]
    missing = [s for s in wanted if s not in _available(layout)]
    if missing:
        raise DataError(f"{layout.home} ({layout.kind} layout) has no {missing[0]} split, only: "
                        f"{', '.join(_available(layout)) or 'none'}")
    if rule != "published" and split != "test" and any(s != "test" for s in wanted):
        options = dict(strict=strict, need_masks=need_masks, need_reports=need_reports)
        samples = find_samples(root, "all", **options)
        samples = resplit([s for s in samples if s.split != "test"], rule) + [s for s in samples if s.split == "test"]
        return [s for s in samples if split in ("all", s.split)]
    return _gather(layout, wanted, strict, need_masks, need_reports)


def _gather(layout: Layout, wanted, strict: bool, need_masks: bool, need_reports: bool) -> list[Sample]:
    """The samples of some splits of a layout; see `find_samples`."""
    samples, problems, told = [], {}, set()
    matched: dict[str, list[Sample]] = {}
    for s in wanted:
        part = s if s in layout.parts else "train"
        if part not in matched:
            matched[part] = _match(layout, part, need_masks, need_reports, problems, told)
        samples += [x for x in matched[part] if x.split == s]
    if problems:
        text = f"{layout.home} ({layout.kind} layout): " + "; ".join(
            f"{len(v)} {k} ({', '.join(v[:3])}{', …' if len(v) > 3 else ''})" for k, v in problems.items())
        if strict or not samples:
            raise DataError(text + ". Add or remove these"
                            + (", or read the folder with strict=False to leave them out." if samples else "."))
        warnings.warn(text + ". Left out.", stacklevel=3)
    if not samples:
        raise DataError(f"{layout.home} ({layout.kind} layout): no sample in split {' or '.join(wanted)}.")
    return samples


def describe_layout(root) -> str:
    """"kaggle", "lvit" or "csv"; DataError where none is recognised."""
    return recognise(Path(root)).kind


def split_rule(root, rule: str = "published") -> str:
    """How train and val are told apart, in words: by "published" "folders", "published ids" or "first 80 per cent of rows"."""
    return RULES[rule] or recognise(Path(root)).rule


def unmatched(root) -> dict[str, list[str]]:
    """What has no partner in a folder, over all splits: kind ("pictures without a mask", …) -> names.

    DataError as for `find_samples`; a split without any sentences is reported, not refused.
    """
    layout, problems, told = recognise(Path(root)), {}, set()
    for name, part in layout.parts.items():
        if not part.tables:
            problems[f"{name} pictures, and no table of sentences for them"] = []
        _match(layout, name, True, bool(part.tables), problems, told)
    return problems


def unused_folders(root) -> list[str]:
    """Names of the folders beside those of the splits that hold pictures, directly or one level below, and belong to no split."""
    layout = recognise(Path(root))
    used = {p.resolve() for part in layout.parts.values() for p in (part.images, part.masks, part.images.parent) if p}

    def has_pictures(folder: Path) -> bool:
        return any(p.suffix.lower() in PICTURE_ENDINGS and not p.name.startswith(".") for p in folder.iterdir())

    beside = (f for f in folders_in(layout.home).values() if f.resolve() not in used)
    return [f.name for f in beside if any(map(has_pictures, (f, *folders_in(f).values())))]


def tables_to_write(root) -> dict[Path, list[Sample]]:
    """Tables of sentences that are missing: where each would be found -> the samples it would describe.

    Pictures without a mask are left out, with a warning for each table; DataError where none has one.
    """
    layout = recognise(Path(root))
    names = {"lvit": "{0}_text.csv", "kaggle": "prompt/{1}.csv", "csv": "prompt/{1}.csv"}
    return {
        layout.home / names[layout.kind].format(s.capitalize(), s): _gather(
            layout, ("train", "val") if s == "train" and "val" not in layout.parts else (s,), False, need_masks=True, need_reports=False
        )
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

def _available(layout: Layout) -> list[str]:
    return [s for s in SPLITS if s in layout.parts or (s == "val" and "train" in layout.parts)]


def _match(layout: Layout, part_name: str, need_masks: bool, need_reports: bool, problems: dict, told: set[Path]) -> list[Sample]:
    """All samples of one folder of pictures, each with its split; what is unmatched is added to `problems`.

    told: folders of pictures whose own problems are there already, since several tables may share one.
    """
    part = layout.parts[part_name]
    pictures = _files_by_key(part.images)
    masks = _files_by_key(part.masks) if part.masks else {}
    sentences = read_sentences(part.tables)
    if need_reports and not part.tables:
        raise DataError(f"{layout.home} ({layout.kind} layout): found pictures in {part.images} but no sentences. "
                        f"Looked for {expected_tables(layout.kind, part_name)}. Put the file there, or write "
                        f"sentences from the masks with `causalclipseg data describe`.")
    val = layout.parts.get("val")
    if part_name == "train" and val and val.images == part.images:
        validated = read_sentences(val.tables)
        sentences = {k: v for k, v in sentences.items() if k not in validated}
    keys = list(sentences)

    # A table may serve several folders (Train_Val_text.xlsx) and a folder several tables (Images with train.csv
    # and test.csv), so a thing is unmatched only if it has no partner anywhere in this layout.
    elsewhere = set().union(*(_files_by_key(p.images).keys() for p in layout.parts.values() if p is not part))
    described = set(sentences).union(*(read_sentences(p.tables) for p in layout.parts.values()
                                       if p is not part and p.images == part.images))
    if not need_reports and part is next(p for p in layout.parts.values() if p.images == part.images):
        keys += sorted(pictures.keys() - described)  # once, where several tables share a folder
    new = part.images not in told
    told.add(part.images)

    def problem(what, names):
        if names:
            problems.setdefault(what, []).extend(names)

    problem("sentences without a picture", [k for k in keys if k not in pictures and k not in elsewhere])
    if need_reports and new:
        problem("pictures without a sentence", sorted(p.name for k, p in pictures.items() if k not in described))
    if need_reports:
        problem("rows with an empty sentence", [k for k in keys if k in pictures and not sentences[k]])
    if need_masks and new:
        problem("masks without a picture", sorted(p.name for k, p in masks.items() if k not in pictures and k not in elsewhere))
    if need_masks:
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


def _splits(layout: Layout, part_name: str, keys: list[str], problem) -> dict[str, str]:
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
