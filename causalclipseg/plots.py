"""Pictures of a result: the mask over the X-ray, and heat maps of the attention masks.

Colours are Okabe and Ito's, which people with colour blindness can tell apart (and which stay apart from the
grey of an X-ray). Blue stands for the causal path everywhere, orange for the confounder's. numpy and Pillow only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BLUE = (0, 114, 178)  #: causal masks M_i
ORANGE = (230, 159, 0)  #: confounder masks 1 - M_i
SKY = (86, 180, 233)  #: the predicted mask
VERMILLION = (213, 94, 0)
GREEN = (0, 158, 115)  #: a true mask, where one is known
YELLOW = (240, 228, 66)
PURPLE = (204, 121, 167)
PALETTE = {
    "black": BLACK, "orange": ORANGE, "sky": SKY, "green": GREEN, "yellow": YELLOW, "blue": BLUE,
    "vermillion": VERMILLION, "purple": PURPLE,
}  # fmt: skip

Colour = tuple[int, int, int]


def unit(colour: Colour) -> tuple[float, float, float]:
    """A colour as Matplotlib wants it: red, green and blue in [0, 1]."""
    return tuple(part / 255 for part in colour)


def overlay(image, mask, probability=None, opacity: float = 0.4, colour: Colour = SKY, contour: bool = True) -> Image.Image:
    """A mask over its picture: a tint that lets the lung shine through, and a clear outline.

    Args:
        image: (H, W) or (H, W, 3), uint8, or the PIL image.
        mask: (H, W) bool.
        probability: (H, W) in [0, 1]; where given, the tint is the stronger the surer the model is.
        opacity: of the tint, in [0, 1]; the outline stays.
        colour: red, green, blue, 0 to 255. contour: draw the outline.
    Returns:
        an RGB picture of W x H pixels.
    Raises:
        ValueError: shapes that differ, or an opacity outside [0, 1].
    """
    mask = np.asarray(mask, bool)
    base = _base(image, mask.shape)
    tint = mask.astype(np.float32) * _opacity(opacity)
    if probability is not None:
        tint *= 0.25 + 0.75 * np.clip(_of_shape(probability, mask.shape, "probability"), 0, 1)
    picture = _blend(base, colour, tint)
    if contour and mask.any():
        line, shadow = outline(mask)
        picture = _blend(picture, BLACK, shadow * np.float32(0.5))
        picture = _blend(picture, colour, line)
    return picture


def heat(values, image=None, colour: Colour = BLUE, opacity: float = 0.75) -> Image.Image:
    """A map of values over a picture: the colour is the denser the larger the value.

    Args:
        values: (H, W) in [0, 1], e.g. M_i with BLUE or 1 - M_i with ORANGE; not stretched, so that two maps with
            the same settings can be compared.
        image: (H, W) or (H, W, 3) uint8 or the PIL image; without it the ground is black.
        colour: red, green, blue, 0 to 255. opacity: of a value of 1, in [0, 1].
    Returns:
        an RGB picture of W x H pixels.
    Raises:
        ValueError: shapes that differ, or an opacity outside [0, 1].
    """
    values = np.clip(np.asarray(values, np.float32), 0, 1)
    if values.ndim != 2:
        raise ValueError(f"values must have the shape (H, W), not {values.shape}.")
    base = Image.new("RGB", values.shape[::-1]) if image is None else _base(image, values.shape)
    return _blend(base, colour, values * _opacity(opacity))


def outline(mask) -> tuple[np.ndarray, np.ndarray]:
    """The smoothed border of a mask as two layers of opacity: the line, and a wider one that sets it off.

    Args:
        mask: (H, W) bool.
    Returns:
        line, shadow: (H, W) float32 in [0, 1]; the line is about 1/150 of the shorter side wide.
    """
    mask = np.asarray(mask, bool)
    width = max(1.2, min(mask.shape) / 150)
    sigma = 1.25 * width  # enough for the shadow: far from the border the distance saturates at 1.25 sigma
    # Blurred with a Gaussian, an edge rises by 0.4 / sigma a pixel where it crosses 1/2: that is a distance to the
    # border, hence a smooth line, for far less than an exact distance transform of a large picture costs.
    soft = Image.fromarray(mask * np.uint8(255)).filter(ImageFilter.GaussianBlur(sigma))
    distance = np.abs(np.asarray(soft, np.float32) / 255 - 0.5)
    distance *= sigma / 0.4
    line = np.clip(width / 2 + 0.5 - distance, 0, 1)
    shadow = np.clip(0.9 * width + 0.5 - distance, 0, 1)
    return line, shadow


def _base(image, shape: tuple[int, int]) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    if picture.size != (shape[1], shape[0]):
        raise ValueError(f"The picture has {picture.width}×{picture.height} pixels, what lies over it {shape[1]}×{shape[0]}.")
    return picture.convert("RGB")


def _of_shape(values, shape: tuple[int, int], name: str) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.shape != shape:
        raise ValueError(f"{name} has the shape {values.shape}, the mask {shape}.")
    return values


def _opacity(opacity: float) -> np.float32:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, not {opacity}.")
    return np.float32(opacity)


def _blend(base: Image.Image, colour: Colour, alpha: np.ndarray) -> Image.Image:
    """`colour` over an RGB picture with an opacity of (H, W) in [0, 1]."""
    layer = Image.fromarray(np.round(alpha * 255).astype(np.uint8))
    return Image.composite(Image.new("RGB", base.size, tuple(colour)), base, layer)
