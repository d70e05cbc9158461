"""Sentences for pictures that have none, written from their masks in the published grammar."""
from __future__ import annotations

import csv
import io
from pathlib import Path

from .. import reports
from .._files import write_text
from .dataset import load_mask
from .layouts import tables_to_write
from .tables import DataError

WRITTEN = "written from the mask by causalclipseg data describe"


def describe(root) -> dict[Path, int]:
    """Write the sentences of every split that has masks and no table of sentences.

    The files are CSV with the columns Image, Description and Source, and the last one says in each row that the
    sentence comes from the mask: such text is privileged, it states side, zones and count of the mask that is asked for.

    Args:
        root: a folder in one of the layouts.
    Returns:
        each file that was written, with its number of sentences.
    Raises:
        DataError: every split already has its table (nothing is overwritten), or no picture of a split has a mask. A
            single picture without one is left out, with a warning.
    """
    targets = tables_to_write(root)
    if not targets:
        raise DataError(f"{root}: every split already has its sentences. Move a table away to have it written anew.")
    written = {}
    for path, samples in targets.items():
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["Image", "Description", "Source"])
        rows.writerows([s.image.name, reports.describe(load_mask(s.mask)), WRITTEN] for s in samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, out.getvalue())
        written[path] = len(samples)
    return written
