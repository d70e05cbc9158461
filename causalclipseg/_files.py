"""Files and folders that are whole or not there: written beside their place, then renamed; and seen to be writable before the work."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def check_writable(path: str | os.PathLike) -> None:
    """See that a file can be written, before the work whose result it is to hold; makes its folder.

    Raises:
        ValueError: it is a folder, or its own folder can't be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the name of a file is needed.")
    check_folder(path.parent, path)


def check_new_folder(folder: str | os.PathLike) -> Path:
    """See that a folder can be written beside its place and then renamed.

    Returns:
        its absolute path, so that there is a place beside it.
    Raises:
        ValueError: it is a file, holds something already, can't be made, or can't be replaced: a mount point, or the folder that this process works in.
    """
    path = Path(folder).resolve()
    check_replaceable(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{folder} is already there and not empty; choose another folder, or remove it.")
    check_folder(path.parent, path)
    return path


def check_replaceable(folder: Path) -> None:
    """ValueError where another folder can't take the place of this one: a mount point, or the folder that this process works in."""
    if folder == Path.cwd() or folder.is_mount():
        raise ValueError(f"{folder} is {'the folder you are in' if folder == Path.cwd() else 'a mount point'}, which can't be replaced; name a folder inside it.")


def put_in_place(beside: Path, folder: Path) -> None:
    """Give a folder that is written and whole the name that `check_new_folder` allowed."""
    if folder.exists():
        folder.rmdir()  # empty; Windows renames over no folder
    beside.rename(folder)


def check_folder(folder: str | os.PathLike, wanted: Path | None = None) -> None:
    """The same for a folder, for the sake of `wanted`; ValueError where it can't be made or written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{wanted or folder} cannot be written ({error.strerror}); choose another place.") from None


@contextlib.contextmanager
def written_beside(path: str | os.PathLike):
    """Yield a name beside `path` to write to; renamed to `path` afterwards, removed if the writing failed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())  # else the new name could outlive a power cut, and the contents not
        os.replace(beside, path)
    except OSError as error:
        if error.filename == str(beside):
            error.filename, error.filename2 = str(path), None  # nobody asked for a file of that other name
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file beside its place, then rename it."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
