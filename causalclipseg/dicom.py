"""A DICOM file as grey values: its own window applied, MONOCHROME1 turned round, laterality said. Called by images.py."""

from __future__ import annotations

import numpy as np

RADIOGRAPHS = ("CR", "DX", "DR", "RF", "RG", "XA", "OT", "SC", "")


def is_dicom(head: bytes) -> bool:
    """The first 132 bytes of a file are a DICOM preamble."""
    return head[128:132] == b"DICM"


def read_dicom(file, most_pixels: int, warnings: list[str]) -> np.ndarray:
    """The picture of a DICOM file.

    Args:
        file: a path or a binary file object. most_pixels: rows x columns beyond which nothing is decoded.
        warnings: gets a sentence for what was done to the values, and for what the file says of sides and view.
    Returns:
        (H, W) float32 in [0, 1] where the file has a window, else its own values; (H, W, 3) uint8 for a colour picture.
    Raises:
        ValueError: one sentence without the file's name on why there is no picture to read.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut

    try:
        data = pydicom.dcmread(file)
    except InvalidDicomError as error:
        raise ValueError("is damaged and cannot be read as DICOM") from error
    rows, columns, frames = (int(data.get(name) or 0) for name in ("Rows", "Columns", "NumberOfFrames"))
    if "PixelData" not in data or not rows or not columns:
        raise ValueError("is a DICOM file that holds no picture")
    if frames > 1:
        raise ValueError(f"is a DICOM file of {frames} frames; save the one that is meant as its own file")
    if rows * columns > most_pixels:
        raise ValueError(f"has {columns}×{rows} pixels; at most {most_pixels:,} are read, make it smaller first")
    try:
        values = data.pixel_array
    except Exception as error:  # a compression that nothing here can undo, or fewer bytes than the header promises
        syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
        compressed = getattr(syntax, "is_compressed", False)
        how = f"is compressed in a way that cannot be read here ({syntax.name}); save it uncompressed" if compressed else "is damaged: its pixels cannot be read"
        raise ValueError(how) from error
    _warn_of_sides(data, warnings)
    if values.ndim == 3:
        warnings.append("The DICOM picture is in colour; its luminance was used.")
        return values
    values = _windowed(data, apply_modality_lut(values, data), warnings)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values if values.max() > 1 else 1 - values
        warnings.append("The DICOM file stores bright for dense the other way round (MONOCHROME1); it was inverted.")
    return values


def _windowed(data, values: np.ndarray, warnings: list[str]) -> np.ndarray:
    """The file's own display window (PS3.3, C.11.2), scaled to [0, 1]; without one, the values as they are."""
    from pydicom.pixels import apply_voi_lut

    if "VOILUTSequence" in data:
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        warnings.append("The DICOM file's own lookup table for display (VOI LUT) was applied.")
        return (apply_voi_lut(values, data) / (2**bits - 1)).astype(np.float32).clip(0, 1)
    if data.get("WindowCenter") is None or data.get("WindowWidth") is None:
        return values.astype(np.float32)
    centre, width = (float(np.atleast_1d(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    # pydicom maps to the range of the stored bits; two values far outside the window tell what that range is.
    beyond = np.concatenate([values.ravel().astype(np.float64), [centre - 100 * abs(width) - 100, centre + 100 * abs(width) + 100]])
    shown = apply_voi_lut(beyond, data)
    low, high = shown[-2:]
    warnings.append(f"The DICOM file's own window was applied: centre {centre:g}, width {width:g}.")
    return ((shown[:-2] - low) / max(high - low, 1e-9)).reshape(values.shape).astype(np.float32).clip(0, 1)


def _warn_of_sides(data, warnings: list[str]) -> None:
    modality, view = str(data.get("Modality") or ""), str(data.get("ViewPosition") or "")
    if modality not in RADIOGRAPHS:
        warnings.append(f"The DICOM file is of modality {modality[:8]}; the model was trained on plain chest X-rays.")
    if view in ("LL", "RL", "LATERAL", "LLD", "RLD"):
        warnings.append(f"The DICOM file says view {view}; the model was trained on frontal views.")
    only = str(data.get("ImageLaterality") or data.get("Laterality") or "")
    if only in ("L", "R"):
        warnings.append(f"The DICOM file says that it shows the patient's {'left' if only == 'L' else 'right'} side alone (laterality {only}).")
    along_row = str((data.get("PatientOrientation") or [""])[0])
    if along_row.startswith("R"):
        warnings.append("The picture's left is the patient's LEFT (DICOM orientation); the model was trained on pictures the other way round.")
    elif along_row.startswith("L"):
        warnings.append("The picture's left is the patient's right (DICOM orientation), as usual.")
    else:
        warnings.append("The DICOM file does not say which side of the patient is left in the picture.")
