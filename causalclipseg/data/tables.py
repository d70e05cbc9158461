"""Reading the tables beside the pictures (.xlsx, .csv), and the key by which names are matched."""
from __future__ import annotations

import csv
import io
from pathlib import Path

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
NAME_COLUMNS = ("image", "filename", "file", "name", "img", "mask", "id")
DELIMITERS = ",;\t|"
TEXT_COLUMNS = ("description", "text", "report", "sentence", "caption", "prompt")


class DataError(ValueError):
    """Something is wrong with a data set; the message says what, where, and what to do."""


def sample_name(name) -> str:
    """The name of a sample: base name without `mask_` and without a picture's ending.

    "mask_X.png", "X.PNG", "Images/X.jpg" and "X" all give "X"; a workbook's number 12 gives "12".
    """
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    name = str(name).replace("\\", "/").rsplit("/", 1)[-1].strip()
    for ending in PICTURE_ENDINGS:
        if name.lower().endswith(ending):
            name = name[:-len(ending)]
            break
    return name[5:] if name.lower().startswith("mask_") else name


def sample_key(name) -> str:
    """What names are compared by: sample_name in lower case."""
    return sample_name(name).lower()


def read_sentences(paths) -> dict[str, str]:
    """key -> sentence of one or several tables, in the order of the rows.

    White space within a sentence, line breaks of a quoted cell included, becomes one space. A name that comes twice
    with the same sentence counts once; with two different ones it raises DataError.
    """
    sentences: dict[str, str] = {}
    for path in paths:
        rows = _rows(path)
        name_at, text_at, start = _columns(path, rows)
        for number, row in enumerate(rows[start:], start + 1):
            name = row[name_at] if name_at < len(row) else None
            if name is None or not str(name).strip():
                continue
            # Only a comma splits a sentence into cells; a workbook's further cells are its owner's notes.
            if path.suffix.lower() == ".csv" and len(row) > len(rows[0]) and any(row[len(rows[0]):]):
                raise DataError(f"{path}, row {number} has {len(row)} columns, the first row {len(rows[0])}: put "
                                f"sentences with commas into double quotes.")
            text = row[text_at] if text_at < len(row) else None
            text = "" if text is None else " ".join(str(text).split())
            key = sample_key(name)
            if sentences.setdefault(key, text) != text:
                raise DataError(f"{path}, row {number}: {sample_name(name)} has two different sentences, "
                                f"{sentences[key]!r} and {text!r}. Remove one.")
    return sentences


def read_ids(path: Path) -> set[str]:
    """The keys listed in an id table (its name column, or its first one)."""
    rows = _rows(path)
    header = _header(rows)
    at = next((header.index(c) for c in NAME_COLUMNS if c in header), None)
    body, at = (rows, 0) if at is None else (rows[1:], at)
    return {sample_key(r[at]) for r in body if at < len(r) and r[at] is not None and str(r[at]).strip()}


def _header(rows) -> list[str]:
    return ["" if c is None else str(c).strip().lower() for c in rows[0]] if rows else []


def _columns(path: Path, rows) -> tuple[int, int, int]:
    """(name column, text column, first data row). Falls back to the first two columns where they are unnamed."""
    header = _header(rows)
    name = next((header.index(c) for c in NAME_COLUMNS if c in header), None)
    text = next((header.index(c) for c in TEXT_COLUMNS if c in header), None)
    if name is not None and text is not None:
        return name, text, 1
    if len(header) < 2:
        raise DataError(f"{path} needs two columns, Image and Description; its first row is "
                        f"{rows[0] if rows else 'missing (an empty table)'}.")
    if name is not None:  # the text column has no name: the next one
        return name, name + 1 if name + 1 < len(header) else 0, 1
    if text is not None:
        return max(text - 1, 0) if text else 1, text, 1
    # No header we know. Either it's missing, and the first row is a sample, or its cells are blank or foreign.
    first_is_data = _names_a_picture(header[0]) or len(header[1].split()) > 3
    return 0, 1, 0 if first_is_data else 1


def _names_a_picture(cell: str) -> bool:
    return cell.endswith(PICTURE_ENDINGS) or cell.startswith("mask_")


def _rows(path: Path) -> list[tuple]:
    """All rows of the first sheet, or of the CSV file, blank ones left out."""
    rows = _xlsx_rows(path) if path.suffix.lower() == ".xlsx" else _csv_rows(path)
    return [r for r in rows if any(c is not None and str(c).strip() for c in r)]


def _xlsx_rows(path: Path) -> list[tuple]:
    import openpyxl  # here, because only people with workbooks need it

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some writers leave a wrong size in the file, which would cut rows off
        rows = list(sheet.iter_rows(values_only=True))
        book.close()
    except Exception as error:  # openpyxl raises many kinds for a broken file (zip, XML, key, value)
        raise DataError(f"{path} can't be read as an Excel workbook ({error}). Save it again as .xlsx or as .csv "
                        f"with the columns Image,Description.") from error
    return rows


def _csv_rows(path: Path) -> list[tuple]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8 "
                        f"CSV.") from error
    try:
        return [tuple(r) for r in csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True, strict=True)]
    except csv.Error as error:
        raise DataError(f"{path} can't be read as CSV ({error}). Check its double quotes.") from error


def _delimiter(text: str) -> str:
    """What stands between the cells: what leaves a name, of a picture or a column, in the first cell of the first row."""
    first = text.lstrip("\n").split("\n", 1)[0]
    present = [d for d in DELIMITERS if d in first]
    for delimiter in present:
        cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))
        name = cells[0].strip().lower()
        if len(cells) > 1 and (name in NAME_COLUMNS or _names_a_picture(name)) and not any(d in name for d in DELIMITERS):
            return delimiter
    return present[0] if present else ","
