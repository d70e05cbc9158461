"""What the phantoms are drawn with: noise fields, outlines, strokes, a tiny alphabet, and the organs.

A picture is described in body coordinates: x grows to the right of the picture, y downwards, the
middle of the thorax is (0, 0) and the picture reaches from about -1 to 1. `Frame` maps them to
pixels. Nothing here draws random numbers unless it is handed a generator.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

OVERSAMPLING = 2  # shapes are filled on a finer grid and averaged, which smooths their edges


@dataclass(frozen=True)
class Frame:
    """How a body lies in a picture of `size` x `size` pixels.

    `angle` (radians) turns the body clockwise, `zoom` enlarges it, `dx` and `dy` move it (in half
    picture widths).
    """
    size: int
    angle: float = 0.0
    zoom: float = 1.0
    dx: float = 0.0
    dy: float = 0.0

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Body points (N, 2) to pixel positions (N, 2), x before y."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        turned = np.asarray(points, float) @ np.array([[c, s], [-s, c]]) * self.zoom
        return (turned + [self.dx, self.dy] + 1) * (self.size / 2)

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Body x and y at the centre of every pixel, two (size, size) float32 arrays."""
        grid = ((np.arange(self.size, dtype=np.float32) + 0.5) * (2 / self.size) - 1)
        u, v = np.meshgrid((grid - self.dx) / self.zoom, (grid - self.dy) / self.zoom)
        c, s = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return u * c + v * s, v * c - u * s


@lru_cache(maxsize=64)
def _spline_weights(size: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights (size, cells + 3) that stretch cells + 3 values over size pixels."""
    place = (np.arange(size) + 0.5) / size * cells + 1
    d = np.abs(place[:, None] - np.arange(cells + 3))
    weights = np.where(d < 1, 2 / 3 - d ** 2 + d ** 3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0))
    # every pixel gets unit variance, or the grid of cells would show
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """A (size, size) float32 Gaussian field, mean 0 and variance 1, with features of size / cells pixels."""
    weights = _spline_weights(size, cells)
    return weights @ rng.standard_normal((cells + 3, cells + 3), dtype=np.float32) @ weights.T


def smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high` (which may be the smaller one), an S between; float32."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def closed_spline(points: np.ndarray, steps: int = 10) -> np.ndarray:
    """Catmull-Rom curve through closed control points: (N, 2) to (N * steps, 2)."""
    p0, p1, p2, p3 = (np.roll(np.asarray(points, float), k, axis=0)[:, None] for k in (1, 0, -1, -2))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def bezier(points: np.ndarray, steps: int = 24) -> np.ndarray:
    """Cubic Bezier curve with four control points (4, 2): (steps, 2) points on it."""
    a, b, c, d = np.asarray(points, float)
    t = np.linspace(0, 1, steps)[:, None]
    return (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t ** 2 * (1 - t) * c + t ** 3 * d


class Canvas:
    """A grey canvas of size x size pixels on which polygons and strokes are drawn with smooth edges."""

    def __init__(self, size: int):
        self._image = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, pixels: np.ndarray, value: float = 1.0) -> "Canvas":
        """Fill the polygon through pixel positions (N, 2) with `value` in [0, 1]."""
        flat = (pixels * OVERSAMPLING).ravel().tolist()
        self._draw.polygon(flat, fill=int(round(255 * value)))
        return self

    def stroke(self, pixels: np.ndarray, width: float, value: float = 1.0) -> "Canvas":
        """Draw the line through pixel positions (N, 2), `width` pixels wide, with `value` in [0, 1]."""
        flat = (pixels * OVERSAMPLING).ravel().tolist()
        self._draw.line(flat, fill=int(round(255 * value)), width=max(1, int(round(width * OVERSAMPLING))), joint="curve")
        return self

    def array(self) -> np.ndarray:
        """The canvas as (size, size) float32 in [0, 1]."""
        return np.asarray(self._image.reduce(OVERSAMPLING), dtype=np.float32) / 255


# Seven rows of five pixels a letter. Drawn here rather than with a font so that every machine
# writes the same pixels.
_LETTERS = {
    "A": "01110100011000111111100011000110001", "B": "11110100011000111110100011000111110",
    "C": "01110100011000010000100001000101110", "D": "11110100011000110001100011000111110",
    "E": "11111100001000011110100001000011111", "H": "10001100011000111111100011000110001",
    "I": "01110001000010000100001000010001110", "L": "10000100001000010000100001000011111",
    "M": "10001110111010110101100011000110001", "N": "10001110011010110011100011000110001",
    "O": "01110100011000110001100011000101110", "P": "11110100011000111110100001000010000",
    "R": "11110100011000111110101001001010001", "S": "01111100001000001110000010000111110",
    "T": "11111001000010000100001000010000100", "U": "10001100011000110001100011000101110",
    " ": "0" * 35,
}


def lettering(text: str, height: int) -> np.ndarray:
    """`text` (capital letters that `_LETTERS` knows) as a (height, width) float32 array in [0, 1]."""
    rows = [np.array(list(_LETTERS[letter]), dtype=np.uint8).reshape(7, 5) for letter in text]
    bits = np.concatenate([np.pad(r, ((0, 0), (0, 1))) for r in rows], axis=1)[:, :-1]
    picture = Image.fromarray(bits * 255).resize((max(1, round(bits.shape[1] * height / 7)), height), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.float32) / 255


# Organs. `v` holds a patient's proportions (phantoms.sample_anatomy), x and y are body coordinates. ----

def lung_points(rng: np.random.Generator, v: dict, side: int) -> np.ndarray:
    """Control points (N, 2) of one lung's outline in body coordinates; side -1 is the picture's left."""
    top, base, w, heart = v["top"], v["base"] + (0.0 if side < 0 else 0.05), v["width"], v["heart"]
    h = base - top
    outer = lambda share: w * (1 - (1 - share) ** 2.8 * 0.93) ** 0.5  # follows the rib cage
    if side < 0:
        medial = [(0.19, base - 0.02), (0.21, base - 0.20 * h), (0.16, top + 0.55 * h), (0.13, top + 0.30 * h)]
    else:
        medial = [(heart + 0.03, base - 0.035), (heart - 0.01, base - 0.15 * h), (0.62 * heart, base - 0.34 * h),
                  (0.17, top + 0.48 * h), (0.19, top + 0.36 * h), (0.13, top + 0.25 * h)]
    points = medial + [
        (0.14, top + 0.10 * h), (0.27, top), (0.40 * w / 0.7, top + 0.055 * h), (outer(0.22), top + 0.20 * h),
        (outer(0.42), top + 0.42 * h), (outer(0.7), top + 0.70 * h), (w, base), (w + 0.01, base + 0.15),
        (w - 0.10, base + 0.05), ((w + heart) / 2 if side > 0 else 0.42, base - 0.03)]
    points = np.array(points) + rng.normal(0, 0.012, (len(points), 2))
    return points * [side, 1]


def body(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, v: dict) -> np.ndarray:
    """Soft tissue: torso, neck, shoulders, mediastinum, heart, abdomen, breasts, trachea; (H, W) attenuation."""
    across, w, top, base = np.abs(x), v["width"], v["top"], v["base"]
    shoulder = top - 0.16 + 0.16 * smooth_step(across, 0.3, 1.1) - 0.5 * smooth_step(across, 0.42, 0.12)
    flank = w + 0.20 + 0.10 * v["fat"] + 0.25 * smooth_step(y, top + 0.9, top + 0.3)
    edge = np.minimum(flank - across, y - shoulder)  # about the distance from the skin
    body = 0.92 * np.sqrt(1 - (1 - np.clip(edge / 0.45, 0, 1)) ** 2)
    arm = np.clip(1 - ((across - flank - 0.2) / 0.17) ** 2, 0, 1) * smooth_step(y, top + 0.4, top + 0.7)
    body = np.maximum(body, 0.6 * np.sqrt(arm))
    body += 0.08 * v["fat"] * smooth_step(across, 0.5, 0.9) * (edge > 0)
    body += 0.34 * smooth_step(y, base - 0.30, base + 0.35)
    body += 0.18 * np.exp(-((x - 0.03) / 0.17) ** 2) * smooth_step(y, -1.1, -0.2)
    heart = ((x - 0.42 * v["heart"]) / (0.75 * v["heart"])) ** 2 + ((y - base + 0.22) / 0.42) ** 2
    body += 0.20 * np.sqrt(np.clip(1 - heart, 0, 1)) * smooth_step(y, base + 0.12, base - 0.20)
    body += 0.08 * np.exp(-((x - 0.13) / 0.07) ** 2 - ((y - top - 0.4) / 0.09) ** 2)  # aortic knob
    for side in (-1, 1):  # hila
        body += 0.10 * np.exp(-((x - side * 0.2) / 0.07) ** 2 - ((y - top - 0.58 + 0.03 * side) / 0.12) ** 2)
    body -= 0.12 * smooth_step(np.abs(x + 0.01), 0.075, 0.02) * smooth_step(y, top + 0.50, top + 0.40)  # trachea
    for side in (-1, 1):  # main bronchi
        line = np.abs(y - (top + 0.44 + 0.9 * side * x))
        body -= 0.07 * smooth_step(line, 0.05, 0.02) * smooth_step(side * x, -0.02, 0.02) * smooth_step(side * x, 0.2, 0.12)
    if v["breasts"]:
        drop, reach = rng.uniform(-0.1, 0.08), rng.uniform(0.34, 0.44)
        for side in (-1, 1):
            r = np.hypot((x - side * 0.44) / reach, (y - base + 0.12 - drop) / (0.9 * reach))
            body += 0.12 * smooth_step(r, 1.0, 0.8) * smooth_step(y, base - 0.65, base + 0.1)
    if rng.random() < 0.6:  # gas in the stomach
        gas = np.hypot((x - rng.uniform(0.3, 0.48)) / rng.uniform(0.07, 0.14), (y - base - rng.uniform(0.22, 0.34)) / 0.08)
        body -= 0.16 * smooth_step(gas + 0.25 * smooth_noise(rng, len(x), 14), 1.1, 0.6)
    return body + 0.02 * smooth_noise(rng, len(x), 6) * (edge > 0)


def bones(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, periphery: np.ndarray, near: np.ndarray, v: dict) -> np.ndarray:
    """Ribs, spine, clavicles, scapulae and humeral heads; (H, W), about 0 to 1.

    `near` (H, W) is about 1 in the lungs and 0 away from them: in front of dense tissue ribs drown.
    """
    across, top, base, t = np.abs(x), v["top"], v["base"], np.clip(periphery, 0, 1)
    spacing, turn = rng.uniform(0.125, 0.15), rng.uniform(0.36, 0.48)
    inside = smooth_step(periphery, 1.03, 0.97) * smooth_step(y, base + 0.35, base - 0.05)
    inside = inside * smooth_step(y, top - 0.08, top + 0.04)
    wall = 0.8 + 0.2 * t ** 4  # a ray along the chest wall meets more bone

    def ribs(drop, width):
        phase = (y - top - drop) / spacing
        off = np.abs(phase - np.round(phase)) / width
        return smooth_step(off, 1.15, 0.8) * (0.7 + 0.4 * np.minimum(off, 1) ** 2)

    posterior = ribs(-0.16 * t + turn * t ** 3, 0.23) * smooth_step(across, 0.06, 0.12)
    anterior = ribs(turn - 0.16 + 0.42 * (1 - t) ** 1.2, 0.26) * smooth_step(y, top, top + 0.2)
    anterior *= smooth_step(t, 0.42, 0.75) * smooth_step(t, 1.0, 0.86)  # they end in cartilage
    bones = inside * wall * (0.3 + 0.7 * smooth_step(near, 0.05, 0.5)) * (0.42 * posterior + 0.22 * anterior)

    vertebra = (y - top) / (0.9 * spacing)
    disc = np.abs(vertebra - np.round(vertebra))
    bones += smooth_step(across, 0.105, 0.075) * (0.20 + 0.10 * smooth_step(disc, 0.02, 0.12))
    pedicles = np.hypot((across - 0.062) / 0.022, (disc - 0.32) / 0.14)
    bones += 0.12 * smooth_step(pedicles, 1.1, 0.7)

    tilt, lift = rng.uniform(0.06, 0.24), rng.uniform(0.08, 0.20)
    for side in (-1, 1):
        s = np.clip((side * x - 0.08) / 0.72, 0, 1)
        middle = top + lift + 0.06 - (tilt + rng.normal(0, 0.015)) * s - 0.07 * np.sin(2 * np.pi * s) * 0.6
        off = np.abs(y - middle) / (0.036 + 0.02 * (1 - s) ** 3 + 0.012 * s)
        ends = smooth_step(side * x, 0.07, 0.10) * smooth_step(side * x, 0.84, 0.78)
        bones += ends * smooth_step(off, 1.1, 0.8) * (0.40 + 0.25 * np.minimum(off, 1) ** 2)
        # shoulder blade: a faint plate with a brighter outer border; the head of the humerus beside it
        lean = side * x - (v["width"] + 0.08 - 0.16 * (y - top))
        plate = smooth_step(y, top + 0.02, top + 0.12) * smooth_step(y, top + 0.85, top + 0.65)
        bones += plate * (0.12 * smooth_step(lean, -0.03, 0.0) * smooth_step(lean, 0.22, 0.18)
                          + 0.16 * np.exp(-((lean - 0.17) / 0.025) ** 2))
        head = np.hypot((side * x - v["width"] - 0.30) / 0.15, (y - top - 0.16) / 0.15)
        bones += 0.4 * smooth_step(head, 1.05, 0.9)
        shaft = np.abs(side * x - v["width"] - 0.36 - 0.08 * (y - top))
        bones += 0.35 * smooth_step(shaft, 0.09, 0.06) * smooth_step(y, top + 0.16, top + 0.3)
    return bones * (1 + 0.08 * smooth_noise(rng, len(x), 24))


def vessels(rng: np.random.Generator, frame: Frame, v: dict) -> np.ndarray:
    """Vessels branching from both hila into the lungs, (H, W) float32 in [0, 1]."""
    side = np.repeat((-1.0, 1.0), 8)
    tips = np.stack([side * 0.15, v["top"] + 0.58 - 0.03 * side,
                     np.tile(np.linspace(-1.35, 1.45, 8), 2) + rng.normal(0, 0.12, 16)], 1)
    width, value, pieces = np.full(16, 3.4), np.ones(16), []
    while len(tips):
        n = len(tips)
        bend = tips[:, 2] + rng.normal(0, 0.22, n)
        step = rng.uniform(0.06, 0.13, n)[:, None] * np.stack([side * np.cos(bend), np.sin(bend)], 1)
        ends = tips[:, :2] + step
        pieces += zip(np.concatenate([tips[:, :2], ends], 1), width, value)
        split = rng.random(n) < 0.62
        turn = bend + rng.choice((-1, 1), n) * rng.uniform(0.35, 0.8, n)
        tips = np.concatenate([np.column_stack([ends, bend]), np.column_stack([ends, turn])[split]])
        side, width = np.concatenate([side, side[split]]), np.concatenate([0.81 * width, 0.66 * width[split]])
        value = np.concatenate([0.87 * value, 0.8 * value[split]])
        thick = width > 0.85
        tips, side, width, value = tips[thick], side[thick], width[thick], value[thick]
    canvas, scale = Canvas(frame.size), frame.size / 224
    lines = frame.to_pixels(np.array([p[0] for p in pieces]).reshape(-1, 2)).reshape(-1, 2, 2)
    for line, (_, wide, bright) in reversed(list(zip(lines, pieces))):  # the thick ones last, on top
        canvas.stroke(line, wide * scale, bright)
    return ndimage.gaussian_filter(canvas.array(), 0.65 * scale)
