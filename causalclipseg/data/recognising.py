"""Which of the layouts a folder has: where its pictures, masks and tables lie, by their names alone. See layouts.py."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .tables import DataError

SPLITS = ("train", "val", "test")
ALIASES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # as folders and tables are called
IMAGE_FOLDERS = ("images", "img", "image", "imgs")
MASK_FOLDERS = ("ground truths", "gts", "labelcol", "masks", "mask", "gt", "labels")


@dataclass
class Part:
    """One folder of pictures with its masks and the tables that may hold its sentences."""

    images: Path
    masks: Path | None
    tables: list[Path] = field(default_factory=list)


@dataclass
class Layout:
    """What was found: the parts by split; val has none of its own where ids or the order of rows tell it from train."""

    kind: str  # "kaggle", "lvit" or "csv"
    home: Path
    parts: dict[str, Part]
    ids: dict[str, Path] = field(default_factory=dict)  # "train", "val" -> table of ids

    @property
    def rule(self) -> str:
        """How the folder itself tells train from val."""
        if "val" in self.parts:
            return "folders"
        return "published ids" if self.ids else "first 80 per cent of rows"


def recognise(root: Path) -> Layout:
    """The layout at root or up to two levels below it; the nearest level wins, two on one level are refused."""
    if not root.is_dir():
        raise DataError(f"{root} is {'a file, not a folder' if root.exists() else 'not there'}. "
                        f"Give the folder that holds the data set.")
    levels = [[root]]
    for _ in range(3):
        found = [x for folder in levels[-1] for x in (_kaggle(folder), _lvit(folder), _csv(folder)) if x]
        if len(found) > 1:
            raise DataError(f"{root} holds several data sets: {', '.join(f'{x.home} ({x.kind})' for x in found)}. "
                            f"Give one of them.")
        if found:
            return found[0]
        levels.append([c for folder in levels[-1] for c in folders_in(folder).values()])
    # Last, and only where nothing else is: Kaggle's download holds such a folder (v1) beside one with splits (v2).
    bare = [x for level in levels[:3] for x in map(_bare, level) if x]
    if len(bare) == 1:
        return bare[0]
    raise DataError(
        f"No data set recognised in {root}. Looked there and two levels below for the Kaggle layout "
        f"(`Train Set/Images` and `Train Set/Ground-truths`), the LViT layout (`Train_Folder/img` and "
        f"`Train_Folder/labelcol`) and the CSV layout (`Train/Images`, `Train/GTs`, `prompt/train.csv`; or `Images`, "
        f"`GTs`, `train.csv`). Found: {', '.join(sorted(p.name for p in root.iterdir())[:8]) or 'an empty folder'}.")


def _plain(name: str) -> str:
    """A name as it is compared: lower case, with spaces for `_` and `-`."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def folders_in(folder: Path) -> dict[str, Path]:
    """The folders inside a folder, by their plain names."""
    hidden = (".", "__MACOSX")  # a Mac's archives bring a second tree, of its own files named as the pictures are
    return {_plain(p.name): p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(hidden)}


def _called(pattern: str, split: str) -> list[str]:
    """The plain names that a folder or table of a split may have."""
    return [pattern.format(name) for name in ALIASES[split]]


def _tables(folder: Path | None, *stems: str) -> list[Path]:
    """The .xlsx and .csv files of a folder whose plain stem is one of stems, in the order of stems."""
    if folder is None or not folder.is_dir():
        return []
    files = [p for p in sorted(folder.iterdir())
             if p.suffix.lower() in (".xlsx", ".csv") and not p.name.startswith((".", "~$")) and p.is_file()]
    return [p for stem in stems for p in files if _plain(p.stem) == stem]


def _part(folder: Path) -> Part | None:
    inside = folders_in(folder)
    images = next((inside[n] for n in IMAGE_FOLDERS if n in inside), None)
    masks = next((inside[n] for n in MASK_FOLDERS if n in inside), None)
    return Part(images, masks) if images else None


def _parts(home: Path, pattern: str) -> dict[str, Part]:
    inside = folders_in(home)
    found = {s: next(filter(None, (_part(inside[n]) for n in _called(pattern, s) if n in inside)), None) for s in SPLITS}
    return {s: p for s, p in found.items() if p}


def _share_train(parts: dict[str, Part], tables: list[Path]) -> None:
    """Give val a part of its own, over the pictures of train, where it has a table and no folder."""
    if tables and "train" in parts and "val" not in parts:
        parts["val"] = Part(parts["train"].images, parts["train"].masks, tables)


def _kaggle(home: Path) -> Layout | None:
    parts = _parts(home, "{} set")
    if not parts:
        return None
    home = home.resolve()
    near = [home, home.parent, home.parent.parent]

    def tables(split):
        stems = *_called("{} text for covid19", split), *_called("{} text", split)
        places = [t for folder in near for t in _tables(folder, *stems) + _tables(folder / "prompt", *_called("{}", split), *stems)]
        return places[:1]  # the nearest one: a second copy above it is not a second source

    for split, part in parts.items():
        part.tables = tables(split)
    _share_train(parts, tables("val"))
    ids = {s: t[0] for s in ("train", "val") if (t := [t for f in near for t in _tables(f, *_called("{} id", s))])}
    return Layout("kaggle", home, parts, ids)


def _lvit(home: Path) -> Layout | None:
    parts = _parts(home, "{} folder")
    if not parts:
        return None
    for split, part in parts.items():
        shared = ("train val text",) if split != "test" else ()
        stems = (*_called("{} text", split), *_called("{} text for covid19", split), *shared)
        folders = [part.images.parent, home] + ([parts["train"].images.parent] if shared and "train" in parts else [])
        part.tables = [t for f in folders for t in _tables(f, *stems)][:1]
    ids = {s: t[0] for s in ("train", "val") if (t := _tables(home, *_called("{} id", s)))}
    return Layout("lvit", home, parts, ids)


def _csv(home: Path) -> Layout | None:
    def tables(split, *more):
        return [t for f in (home / "prompt", home, *more) for t in _tables(f, *_called("{}", split))][:1]

    parts = _parts(home, "{}")
    for split, part in parts.items():
        part.tables = tables(split, part.images.parent)
    _share_train(parts, tables("val", *(p.images.parent for s, p in parts.items() if s == "train")))
    if not parts and (shared := _part(home)):
        parts = {s: Part(shared.images, shared.masks, t) for s in SPLITS if (t := tables(s))}
    return Layout("csv", home, parts) if parts else None


def _bare(home: Path) -> Layout | None:
    """One folder of pictures and one of masks, without any table."""
    part = _part(home)
    return Layout("csv", home, {"train": part}) if part and part.masks else None


def expected_tables(kind: str, split: str) -> str:
    """Where a split's sentences were looked for, in words."""
    name = split.capitalize()
    return {"kaggle": f"{name}_text_for_Covid19.xlsx or prompt/{split}.csv beside the sets or up to two levels above",
            "lvit": f"{name}_text.xlsx in {name}_Folder or beside it (train and val also: Train_Val_text.xlsx)",
            "csv": f"prompt/{split}.csv or {split}.csv"}[kind]
