"""Read a picture from anything a user has, as grey 8-bit pixels, and say what was done to it.

The one place where picture files become arrays: for prediction (`inference.py`), the command line, the demo and
the data sets. Of ours, only dicom.py is imported here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from .dicom import is_dicom, read_dicom

LEAST_SIDE = 32  #: pixels; the encoder's last stride, below it nothing anatomical is left
MOST_PIXELS = 80_000_000  #: five times 4096 x 4096; also below Pillow's own limit against decompression bombs
LOW_CONTRAST = 10  #: grey levels of 255 between darkest and brightest
COLOUR_SPREAD = 8  #: grey levels by which the channels of a grey picture may differ
#: Pillow would also start Ghostscript for EPS, which nobody needs here.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow's convert("L")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_PHOTOMETRIC = 262  # of TIFF; 0: white is zero


class ImageError(ValueError):
    """A picture that cannot be used; the message is one sentence that names it and says why."""


class Picture(NamedTuple):
    """What `read_picture` returns."""

    pixels: np.ndarray  #: (H, W) uint8, 0 (black) to 255 (white)
    warnings: list[str]  #: what was done that changes the meaning, and what looks wrong; one sentence each


def read_image(source, least: int = LEAST_SIDE) -> np.ndarray:
    """The pixels of `read_picture`, (H, W) uint8, without its warnings."""
    return read_picture(source, least).pixels


def read_picture(source, least: int = LEAST_SIDE, most: int = MOST_PIXELS) -> Picture:
    """Read a picture and turn it into grey, upright, 8-bit pixels.

    Args:
        source: a path; the bytes of a file, or a binary file object; a PIL image; an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of bool, integers, or floats; or a `Picture`, which is returned as it is.
        least: fewest pixels that each side must have.
        most: pixels of the whole picture beyond which a file is not decoded.

    Colour becomes luminance, transparent pixels black, and EXIF's orientation is applied. 8-bit values stay as
    they are, floats within [0, 1] are scaled by 255 (of a DICOM file with a window, see dicom.py, too); whatever goes beyond (16-bit or float files, which rarely
    use their full range) is stretched from its own minimum and maximum to 0 and 255.

    Raises:
        ImageError: there is no such file, it is empty, damaged or no picture, too small, too large, holds
            several frames, or values that are not numbers.
    """
    if isinstance(source, Picture):
        return source
    warnings: list[str] = []
    if isinstance(source, (str, os.PathLike)):
        name = str(source)
        _check_file(Path(source), name)
        array = _decode(source, name, most, warnings)
    elif isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "The picture"
        content = source.read() if hasattr(source, "read") else bytes(source)
        if not isinstance(content, bytes):
            raise ImageError(f"{name} was opened as text; open it in binary mode.")
        if not content:
            raise ImageError(f"{name} is empty (0 bytes).")
        array = _decode(io.BytesIO(content), name, most, warnings)
    elif isinstance(source, Image.Image):
        name = "The picture"
        array = _guarded(lambda: _pixels(source, name, most, warnings), name, most)
    elif hasattr(source, "__array__"):
        name = "The picture"
        array = _from_array(np.asarray(source), name, most, warnings)
    else:
        raise ImageError(f"A picture must be a path, bytes, a PIL image or an array, not {type(source).__name__}.")
    _check_size(array.shape[1], array.shape[0], name, least, most)
    pixels = _to_uint8(array, name, warnings)
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        warnings.append("Every pixel of the picture has the same value; there is nothing to see in it.")
    elif high - low < LOW_CONTRAST:
        warnings.append(f"The picture has hardly any contrast: its grey levels lie between {low} and {high} of 255.")
    return Picture(pixels, warnings)


# ---------------------------------------------------------------- files


def _check_file(path: Path, name: str) -> None:
    if "\0" in name:
        raise ImageError(f"{name!r} is not the name of a file.")
    if not name:
        raise ImageError("The picture's name is empty.")
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder, not a picture.")
        if not path.exists():
            raise ImageError(f"{name} is not there.")
        if not path.is_file():
            raise ImageError(f"{name} is not a regular file.")
        if path.stat().st_size == 0:
            raise ImageError(f"{name} is empty (0 bytes).")
    except OSError as error:  # no permission, a name that is too long
        raise ImageError(f"{name} cannot be read: {error.strerror or error}.") from error


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)


def _decode(file, name: str, most: int, warnings: list[str]) -> np.ndarray:
    def read():
        if is_dicom(_head(file)):
            try:
                array = read_dicom(file, most, warnings)
            except ImportError:
                raise ImageError(f"{name} is a DICOM file; reading it needs pydicom (pip install pydicom).") from None
            except ValueError as error:
                raise ImageError(f"{name} {error}.") from error
            return _from_array(array, name, most, warnings) if array.ndim == 3 else array
        with open_picture(file) as picture:
            return _pixels(picture, name, most, warnings)

    return _guarded(read, name, most)


def _head(file) -> bytes:
    """The first bytes of a path or a binary file object, which is left where it was."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return opened.read(132)
    head = file.read(132)
    file.seek(0)
    return head


@contextlib.contextmanager
def open_picture(file):
    """A path or a binary file object as a PIL image that is not yet loaded, for a `with`; raises as Pillow does."""
    # Given a path, Pillow 12 maps uncompressed TIFF files into memory, and garbles those that have an orientation.
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file) as opened:
        with Image.open(opened, formats=_formats()) as picture:
            yield picture


def _guarded(read, name: str, most: int):
    """`read()`, with everything that Pillow can raise turned into an ImageError; most: pixels that would have been read."""
    try:
        return read()
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture that can be read; PNG, JPEG, TIFF, BMP and DICOM files can.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more than {most:,} pixels; make it smaller first.") from error
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is; make it smaller first.") from error
    except PermissionError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, … for broken files
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(f"{name} is damaged and cannot be read ({reason}).") from error


def _pixels(picture: Image.Image, name: str, most: int, warnings: list[str]) -> np.ndarray:
    """(H, W) grey values of a PIL image in their own type, upright."""
    _check_size(*picture.size, name, 1, most)  # from the header, before anything is decoded
    if reason := several(picture):
        raise ImageError(f"{name} {reason}.")
    inverted = stores_white_as_zero(picture)
    picture, turned = upright(picture)
    if turned:
        warnings.append("The picture was turned or mirrored as its EXIF orientation says.")
    if picture.mode.startswith(("I", "F")):  # 16-bit, 32-bit, float: Pillow's convert("L") would clip them
        if inverted:
            warnings.append("The file stores white as zero; its greys were inverted.")
            return 65535 - np.asarray(picture)
        return np.asarray(picture)
    if picture.mode in ("1", "L") and "transparency" not in picture.info:
        return np.asarray(picture.convert("L"))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getextrema()[3][0] < 255:
            warnings.append("Transparent parts of the picture were put on black.")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    picture = picture.convert("RGB")
    _warn_of_colour(np.asarray(picture), 1, warnings)
    return np.asarray(picture.convert("L"))


def several(picture: Image.Image) -> str:
    """Why a file of several frames or pages is no picture, to follow its name; "" for a single one."""
    frames = getattr(picture, "n_frames", 1)
    single = frames == 1 or picture.format == "MPO"
    return "" if single else f"holds {frames} pictures (frames or pages); save the one that is meant as its own file"


def stores_white_as_zero(picture: Image.Image) -> bool:
    """Whether 65535 - v is meant by a value v: in a 16-bit TIFF file that says so. Pillow itself inverts those of 8 bits."""
    return getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0 and picture.mode.startswith("I;16")


def upright(picture: Image.Image) -> tuple[Image.Image, bool]:
    """A picture loaded and turned as its EXIF orientation says, and whether that changed it."""
    before = _orientation(picture)
    picture.load()
    now = _orientation(picture)  # Pillow turns TIFF files itself while it loads them
    return picture.transpose(_UPRIGHT[now]) if now in _UPRIGHT else picture, before in _UPRIGHT


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing; the pixels may still be good
        return 1


# ---------------------------------------------------------------- arrays


def _from_array(array: np.ndarray, name: str, most: int, warnings: list[str]) -> np.ndarray:
    """(H, W) grey values, in the array's own type where it is grey or 8-bit, else in float32."""
    if array.dtype.kind not in "buif":
        raise ImageError(f"{name} must hold numbers, not {array.dtype}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"{name} must have the shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}.")
    height, width = array.shape[:2]
    _check_size(width, height, name, 1, most)
    if array.ndim == 2:
        return array
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.dtype == np.uint8:
        return _pixels(Image.fromarray(array), name, most, warnings)
    unit = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    colours = array[:, :, :3].astype(np.float32)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.float32) / unit
        if not (alpha.min() >= 0 and alpha.max() <= 1):
            raise ImageError(f"{name} has an opacity (fourth channel) outside [0, {unit:g}].")
        if alpha.min() < 1:
            warnings.append("Transparent parts of the picture were put on black.")
            colours = colours * alpha
    high = max(float(colours.max()), 1e-12)
    _warn_of_colour(colours, high / 255, warnings)
    grey = colours @ np.array(_LUMINANCE, np.float32)
    return np.clip(grey, 0, 1) if unit == 1.0 and colours.min() >= 0 and high <= 1 else grey  # rounding goes beyond 1


def _warn_of_colour(colours: np.ndarray, level: float, warnings: list[str]) -> None:
    """Warn where the channels of (H, W, 3) differ by more than COLOUR_SPREAD grey levels of size `level`."""
    red, green, blue = (colours[:, :, i] for i in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if spread.max() > COLOUR_SPREAD * level:
        warnings.append("The picture is in colour; its luminance was used.")


def _check_size(width: int, height: int, name: str, least: int, most: int) -> None:
    if min(width, height) < max(least, 1):
        raise ImageError(f"{name} has {width}×{height} pixels; each side needs at least {max(least, 1)}.")
    if width * height > most:
        raise ImageError(f"{name} has {width}×{height} pixels; at most {most:,} are read, make it smaller first.")


def _to_uint8(array: np.ndarray, name: str, warnings: list[str]) -> np.ndarray:
    """(H, W) of any number type to uint8, by the rule that `read_picture` states."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"{name} holds values that are not numbers (NaN or infinity).")
    is_unit = array.dtype.kind == "f" and low >= 0 and high <= 1
    if is_unit:
        low, scale = 0.0, 255.0
    else:
        scale = 255 / (high - low) if high > low else 0.0
        warnings.append(f"The picture's values, {low:g} to {high:g}, were stretched to 0 to 255.")
    pixels = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), 256):  # in strips, so that no second large copy is made
        strip = array[start : start + 256].astype(np.float64)
        pixels[start : start + 256] = np.round((strip - low) * scale)
    return pixels
