"""Edits of a chest X-ray that stand for another acquisition: do(A) on a picture that exists already.

A lesion isn't an effect of how the picture was taken (W -> A -> I <- L <- W), so the mask stays as
it is. Tones (exposure, contrast, noise, blur) change every pixel a little; overlays (border, marker,
electrodes, line) draw something, but never on `avoid`, the lesion:

    image, drawn = edit(image, "electrodes", strength_of(2), seed=7, avoid=mask)

An overlay in the way of `avoid` is laid elsewhere, made narrower or left out as a whole, never cut: a
hole in the shape of the lesion would tell a network where it is. Still, what is drawn with `avoid` lies
beside lesions more often than chance has it; who needs A to be independent of L draws without `avoid`
and accepts that a wire may cross a lesion. Lengths scale with the picture. Positions are (row, column).
"""
from __future__ import annotations

import zlib
from collections.abc import Callable
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from scipy import ndimage

SEVERITIES = (1, 2, 3)  # mild, clear, strong: each is seen in practice, and the lungs can still be read

# How much an edit does at severities 1, 2 and 3. Strength 0 is nothing; between them it is linear.
LEVELS = {
    "exposure": (0.35, 0.70, 1.05),     # |log2 of gamma|; 6 % of it is also the shift, as a share of the grey range
    "contrast": (0.20, 0.40, 0.60),     # share of the contrast that is lost; a gain is 1 / (1 - share)
    "noise": (0.020, 0.040, 0.065),     # standard deviation at middle grey, as a share of the grey range
    "blur": (0.004, 0.008, 0.013),      # standard deviation, as a share of the shorter side
    "border": (0.035, 0.070, 0.110),    # width on the widest side, as a share of the shorter side
    "marker": (0.040, 0.055, 0.075),    # height of a letter, as a share of the shorter side; words are smaller
    "electrodes": (2, 4, 6),            # how many, each with its lead
    "line": (1, 2, 3),                  # how many
}
GRAIN = 0.5  # standard deviation of what smooths the grain of noise, in pixels of a picture of 224
SMALLEST = 32  # pixels a side
MARGIN = 0.01  # overlays keep this far from `avoid`, as a share of the shorter side, and at least 1 pixel
TRIES = 10     # places looked at before an electrode or a line is left out
MARKERS = ("L", "R", "D", "AP", "MOBILE")
SPOTS = (  # where electrodes sit: shoulders, flanks, chest leads in front of the heart; (row, column), shares of the picture
    (0.20, 0.20), (0.20, 0.80), (0.70, 0.18), (0.70, 0.84), (0.45, 0.62), (0.55, 0.74), (0.40, 0.30), (0.85, 0.50))
LINES = (  # control points of a cubic curve, shares of the picture; diameter in pixels of a picture of 224; sway of the points
    (((-0.08, 0.50), (0.10, 0.50), (0.20, 0.50), (0.30, 0.495)), 4.5, 0.01),   # endotracheal tube
    (((-0.08, 0.51), (0.45, 0.44), (0.75, 0.50), (0.97, 0.68)), 2.6, 0.015),   # nasogastric tube
    (((-0.08, 0.37), (0.16, 0.36), (0.26, 0.44), (0.46, 0.455)), 1.4, 0.02),   # central venous catheter
    (((0.30, -0.08), (0.02, 0.25), (0.20, 0.48), (0.47, 0.455)), 1.2, 0.02),   # the same from the arm
    (((0.65, -0.20), (0.20, 0.30), (1.05, 0.60), (0.50, 1.20)), 3.0, 0.05),    # oxygen tubing on the chest
    (((-0.10, 0.88), (0.30, 0.99), (0.60, 0.88), (1.10, 0.95)), 2.2, 0.03))    # infusion line along the arm


class Edited(NamedTuple):
    image: np.ndarray  # (H, W) uint8
    drawn: np.ndarray  # (H, W) bool, the pixels that an overlay changed; all False after a change of tone


class Edit(NamedTuple):
    description: str   # one plain sentence, for a clinician
    overlay: bool      # whether it draws something, and so respects `avoid`
    apply: Callable    # (image (H, W) float32, amount, rng, odd seed or not, avoid (H, W) bool or None) -> (H, W) float32


def edit(image: np.ndarray, name: str, strength: float, *, seed: int = 0, avoid: np.ndarray | None = None) -> Edited:
    """The picture as another acquisition would show it.

    image (H, W) uint8, at least 32 x 32; name, one of `EDITS`; strength in [0, 1]: 0 gives the picture
    back bit for bit, `strength_of` the fixed severities; seed, 0 or more: where and what is drawn, the
    grain of the noise, and the direction of `exposure` (even: too bright, odd: too dark) and `contrast`
    (even: flat, odd: hard); avoid (H, W), nonzero where no overlay may draw. The same arguments give
    the same result, and a higher strength adds to what a lower one drew. Where `avoid` leaves no room
    the picture comes back as it was, `drawn` all False. ValueError for an argument that isn't as described.
    """
    if name not in EDITS:
        raise ValueError(f"unknown edit {name!r}; known are {', '.join(EDITS)}")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2 or min(image.shape) < SMALLEST:
        what = f"{type(image).__name__} {getattr(image, 'dtype', '')} {getattr(image, 'shape', '')}"
        raise ValueError(f"image must be a grey uint8 array (H, W) of at least {SMALLEST} x {SMALLEST} pixels, not {what}")
    if not isinstance(strength, Real) or not 0 <= strength <= 1:  # also refuses NaN
        raise ValueError(f"strength must be a number in [0, 1], not {strength!r}")
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")
    if avoid is not None and np.shape(avoid) != image.shape:
        raise ValueError(f"avoid has shape {np.shape(avoid)}, but the image {image.shape}")
    if strength == 0:
        return Edited(image.copy(), np.zeros(image.shape, bool))
    avoid = np.asarray(avoid) != 0 if avoid is not None and np.any(avoid) else None
    amount = amount_of(name, strength)
    # neither strength nor size is part of it: moving a slider or resizing must not move an overlay
    rng = np.random.default_rng((zlib.crc32(name.encode()), int(seed)))
    changed = EDITS[name].apply(image.astype(np.float32), amount, rng, seed % 2 == 1, avoid).round().clip(0, 255).astype(np.uint8)
    return Edited(changed, changed != image if EDITS[name].overlay else np.zeros(image.shape, bool))


def strength_of(severity: int) -> float:
    """The strength in (0, 1] of a severity (1, 2 or 3). Raises ValueError for another one."""
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, not {severity!r}")
    return severity / SEVERITIES[-1]


def amount_of(name: str, strength: float) -> float:
    """How much the edit `name` does at a strength in [0, 1], in the measure of `LEVELS`."""
    return float(np.interp(strength, (0, *map(strength_of, SEVERITIES)), (0, *LEVELS[name])))


def other_acquisition(image: np.ndarray, rng: np.random.Generator, *, patches: int = 24) -> np.ndarray:
    """The picture (H, W) uint8 under a random other acquisition, simulated do(A) for training.

    One edit of tones and one overlay of `EDITS`, of any strength, and up to `patches` patches that blur, grey out or
    grain what is below them: who does not know what A may draw can at least cover it now and then. Nothing avoids the
    lesion, so all of it is independent of L; a small lesion can be hidden, which costs a little and hints at nothing.
    """
    for overlay in (False, True):
        name = str(rng.choice([name for name, edit in EDITS.items() if edit.overlay == overlay]))
        image = edit(image, name, float(rng.random()), seed=int(rng.integers(2**31))).image
    blurred = ndimage.uniform_filter(image.astype(np.float32), max(3, image.shape[0] // 4), mode="nearest")
    row, column = (np.arange(n, dtype=np.float32) / n for n in image.shape)
    for _ in range(int(rng.integers(patches + 1))):
        (y, x), (height, width) = rng.random(2), rng.uniform(0.03, 0.18, 2)
        away = np.abs(row - y)[:, None] / height, np.abs(column - x)[None] / width
        inside = (np.maximum(*away) if rng.random() < 0.5 else np.hypot(*away)) < 1
        kind, grey = rng.random(), 255 * rng.random()
        fill = blurred if kind < 0.5 else grey if kind < 0.75 else grey + 40 * rng.standard_normal(image.shape, dtype=np.float32)
        image = np.where(inside, np.clip(fill, 0, 255), image).astype(np.uint8)
    return image


def in_other_surroundings(images: np.ndarray, others: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Each picture's `field` within the surroundings of another one: do(all that lies outside), simulated.

    Most of what an acquisition adds lies beside the lungs: markers, sensors, blades. Where `others` are drawn by chance, their
    surroundings know nothing of the lesion, whatever they hold, so nobody needs to know what A draws. Outside the field the
    others' grey values are brought to the mean and spread of the picture that they now surround, or the seam would show both.

    Args:
        images, others: (N, H, W) uint8. field: (H, W) bool, where lesions can be; not all of the picture.
    Returns:
        (N, H, W) uint8.
    """
    outside = ~field
    (mean, spread), (mean_other, spread_other) = ((x[:, outside].mean(1), x[:, outside].std(1) + 1e-6) for x in (images, others))
    gain = (spread / spread_other)[:, None, None]
    around = (others - mean_other[:, None, None]) * gain + mean[:, None, None]
    return np.where(field, images, np.clip(around, 0, 255).round()).astype(np.uint8)


# Tones --------------------------------------------------------------------------------------
# Plain arithmetic of grey values from 0 to 255, (..., H, W): for numpy's arrays and for torch's tensors alike, so that
# training applies the same to batches on a GPU. Amounts are numbers, or tensors with one of them a picture.
def exposed(image, amount):
    """Under an exposure changed by `amount` of `LEVELS`, above 0 for too much dose: a darker picture."""
    return 255 * ((image / 255) ** 2 ** amount - 0.06 * amount)


def contrasted(image, factor):
    """Around the mean of each picture."""
    mean = image.mean((-2, -1), keepdims=True)
    return mean + (image - mean) * factor


def grained(image, grain, amount):
    """With random `grain` as few photons leave it, `amount` of `LEVELS` strong."""
    # Few photons pass dense (bright) tissue. A Poisson count N has a relative error of 1 / sqrt(N), so the
    # noise of its logarithm, the grey value, grows exponentially with it; electronic noise is the same everywhere.
    brightness = 1.6 * (image / 255 - 0.5)
    spread = (0.85 * (np.exp(brightness) if isinstance(image, np.ndarray) else brightness.exp()) + 0.15) ** 0.5
    shoulder = ((255 - image) / 40).clip(0.2, 1)  # the display flattens whites, and their noise with them
    return image + 255 * amount * grain / grain.std((-2, -1), keepdims=True) * spread * shoulder


def _exposure(image, amount, rng, odd, avoid):
    return exposed(image, amount if odd else -amount)


def _contrast(image, amount, rng, odd, avoid):
    return contrasted(image, 1 / (1 - amount) if odd else 1 - amount)


def _noise(image, amount, rng, odd, avoid):
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    # grain scales with the picture, or the noise of a large one would vanish when it is made smaller
    grain = ndimage.gaussian_filter(grain, GRAIN * min(image.shape) / 224)
    return grained(image, grain, amount)


def _blur(image, amount, rng, odd, avoid):
    return ndimage.gaussian_filter(image, amount * min(image.shape), mode="nearest")


# Overlays -----------------------------------------------------------------------------------
def _border(image, amount, rng, odd, avoid):
    """The blades of a collimator: four dark edges, each a little askew, with a narrow penumbra."""
    (height, width), side = image.shape, min(image.shape)
    shares, slopes, dark = rng.uniform(0.15, 1, 4), np.tan(np.radians(rng.uniform(-2, 2, 4))), rng.uniform(0, 14)
    penumbra, keep_out, cover = max(1.0, 0.006 * side), _widen(avoid, 0, side), np.zeros_like(image)
    row, column = np.mgrid[:height, :width].astype(np.float32)
    blades = ((row, column), (height - 1 - row, column), (column, row), (width - 1 - column, row))
    for share, slope, (depth, along) in zip(shares / shares.max(), slopes, blades):
        depth = depth + slope * along
        depth -= depth.min()
        reach = amount * side * share if keep_out is None else min(amount * side * share, depth[keep_out].min())
        cover = np.maximum(cover, np.clip((reach - depth) / penumbra, 0, 1))
    return _blend(image, cover, dark)


def _marker(image, amount, rng, odd, avoid):
    """A letter of lead with a dark rim, or letters on a dark plate, in a corner (the upper ones first)."""
    shape, side, (least, _, most) = np.array(image.shape), min(image.shape), LEVELS["marker"]
    text, plate = str(rng.choice(MARKERS)), rng.random() < 0.5
    turn = 0 if plate else np.radians(rng.normal(0, 4))  # letters of lead are laid by hand
    strokes = letters(text) @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    low, high = strokes.min(0) - 0.3, strokes.max(0) + 0.3  # room for the rim or the plate
    inset, keep_out = shape * rng.uniform(0.01, 0.045, 2), _widen(avoid, 1, side)

    def height(amount):  # words are set smaller; below 5 pixels no letter can be read
        return min(max(amount * side * (0.6 if len(text) > 2 else 1), 5.0), 0.9 * shape[1] / (high - low)[1])

    def place(points, corner, amount):
        return (points - np.where(corner, high, low)) * height(amount) + np.where(corner, shape - 1 - inset, inset)

    def box(corner, amount):
        (top, left), (bottom, right) = np.rint(place(np.array([low, high]), corner, amount)).astype(int)
        return np.s_[max(top, 0):bottom + 1, max(left, 0):right + 1]

    corners = (*rng.permutation([(0, 0), (0, 1)]), *rng.permutation([(1, 0), (1, 1)]))
    # room for the largest, or a marker would change corners while it grows
    free = [c for c in corners if keep_out is None or not keep_out[box(c, most)].any()]
    if not free:
        return image
    amount, fade = max(amount, least), min(1.0, amount / least)
    h, away = height(amount), distance_to(place(strokes, free[0], amount), image.shape, 0.3 * height(amount))
    if plate:
        cover = np.zeros_like(image)
        cover[box(free[0], amount)] = 0.8 * fade
        return _blend(_blend(image, cover, 55), fade * disc(away, 0.07 * h), 225)
    return _blend(_blend(image, 0.5 * fade * disc(away, 0.2 * h), 20), fade * disc(away, 0.09 * h), 250)


def _electrodes(image, amount, rng, odd, avoid):
    """ECG electrodes: a faint pad, a bright snap, the clip on it, and a lead that leaves the picture."""
    pixel, spots, pad = min(image.shape) / 224, rng.permutation(SPOTS), rng.uniform(6, 8) * min(image.shape) / 224
    # all leads run to one box beside the patient; where the way there is barred, every other try takes the near side
    box = np.array((rng.uniform(0.6, 1.0), rng.choice((-0.06, 1.06))))
    beside = spots + np.stack([np.full(8, 0.15), np.where(spots[:, 1] < 0.5, -0.06, 1.06) - spots[:, 1]], 1)
    ends = np.stack([beside if k % 2 else np.broadcast_to(box, (8, 2)) for k in range(TRIES)])
    controls = np.stack([spots + share * (ends - spots) for share in (0, 0.25, 0.7, 1)], 2)
    # leads hang loose: their bends vary most, and their ends stay outside the picture
    sway = np.array(((0.03, 0.03), (0.14, 0.14), (0.18, 0.12), (0.10, 0.0)))

    def electrode(k, points, shape):
        clip = points[:1 + np.searchsorted(np.hypot(*np.diff(points, axis=0).T).cumsum(), 8 * pixel)]
        clear = 1 - 0.5 * disc(distance_to(points, shape, 0.52 * pixel + 0.7), 0.52 * pixel)
        clear *= 1 - 0.5 * disc(distance_to(clip, shape, 1.3 * pixel + 0.7), 1.3 * pixel)
        away = distance_to(points[:1], shape, pad + 1)
        return 1 - clear * (1 - 0.1 * disc(away, pad)) * (1 - 0.35 * disc(away, 3.4 * pixel)) * (1 - 0.9 * disc(away, 1.6 * pixel))

    return _lay(image, amount, rng, controls, sway, electrode, avoid, pad + 1)


def _line(image, amount, rng, odd, avoid):
    """Catheters and tubes where they lie in practice; a tube shows its two walls and a marker stripe."""
    pixel = min(image.shape) / 224
    controls, widths, sway = zip(*(LINES[k] for k in rng.permutation(len(LINES))))

    def tube(k, points, shape):
        radius = widths[k] * pixel / 2
        away = distance_to(points, shape, radius + 1)
        # 0.38 in the walls, 0.1 between them, and a stripe that shows up; one line where the tube is thin
        return 0.38 * disc(away, radius) - 0.28 * disc(away, radius - 0.8 * pixel) + 0.4 * disc(away, min(0.35 * pixel, radius))

    return _lay(image, amount, rng, np.array(controls), np.array(sway)[:, None, None], tube, avoid, 3 * pixel + 1)


def _lay(image, amount, rng, controls, sway, picture, avoid, reach):
    """Draw the first `amount` of N curves that find a place; the last one faint where `amount` isn't whole.

    controls (N, 4, 2), or one a try (TRIES, N, 4, 2), as shares of the picture; sway, their standard
    deviation; picture(k, points, shape), the cover of curve k, which stays within `reach` pixels of it.
    """
    size, pixel, clear, laid = np.array(image.shape), min(image.shape) / 224, np.ones_like(image), 0
    keep_out = _widen(avoid, reach + 2 * pixel, min(size))  # places are tried with points 4 pixels apart
    # drawn at once, as `avoid` must not shift later draws; later tries look further away
    jitter = rng.standard_normal((TRIES, *controls.shape[-3:])) * sway * (1 + np.arange(TRIES)[:, None, None, None] / 3)
    for k, tries in enumerate(np.swapaxes((controls + jitter) * size - 0.5, 0, 1)):
        if keep_out is not None:
            row, column = np.moveaxis(np.clip(np.rint(curve(tries, 4 * pixel)).astype(int), 0, size - 1), -1, 0)
            tries = tries[~keep_out[row, column].any(axis=1)]
        if len(tries):
            points = curve(tries[0], max(0.5, pixel / 6))
            low, high = (np.clip(np.rint(p).astype(int), 0, size) for p in (points.min(0) - reach, points.max(0) + reach + 1))
            clear[low[0]:high[0], low[1]:high[1]] *= 1 - min(1.0, amount - laid) * picture(k, points - low, tuple(high - low))
            laid += 1
        if laid >= amount:
            break
    return _blend(image, 1 - clear, 255)  # attenuations along a ray add up, and nothing is brighter than metal


def _widen(avoid, reach: float, side: int):
    """`avoid` (H, W) bool and all within the margin and `reach` pixels of it; None stays None."""
    size = 2 * int(np.ceil(reach + max(1.0, MARGIN * side))) + 1
    return None if avoid is None else ndimage.maximum_filter(avoid.astype(np.uint8), size) > 0


# Drawing ------------------------------------------------------------------------------------
def _blend(image, cover, grey):
    return image + (np.float32(grey) - image) * cover


def curve(control: np.ndarray, spacing: float) -> np.ndarray:
    """Points (..., N, 2) at most `spacing` apart, from end to end of the cubic Bezier curves `control` (..., 4, 2)."""
    longest = np.linalg.norm(np.diff(control, axis=-2), axis=-1).max()  # a curve is never faster than 3 times this
    t = np.linspace(0, 1, int(3 * longest / spacing) + 2)[:, None]
    return np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t ** 2 * (1 - t), t ** 3]) @ control


def distance_to(points: np.ndarray, shape: tuple[int, int], reach: float) -> np.ndarray:
    """Distance (H, W) float32 in pixels to the nearest of `points` (N, 2); `reach` where none is nearer."""
    span = np.arange(-int(reach + 0.5), int(reach + 0.5) + 1)
    row, column = (np.rint(p).astype(int)[:, None] + span for p in points.T)
    down, across = (row - points[:, :1]).astype(np.float32), (column - points[:, 1:]).astype(np.float32)
    away = np.sqrt((down * down)[:, :, None] + (across * across)[:, None, :])
    rows, columns = (row >= 0) & (row < shape[0]), (column >= 0) & (column < shape[1])
    inside = (away < reach) & rows[:, :, None] & columns[:, None, :]
    nearest = np.full(shape[0] * shape[1], reach, np.float32)
    np.minimum.at(nearest, (row[:, :, None] * shape[1] + column[:, None, :])[inside], away[inside])
    return nearest.reshape(shape)


def disc(away: np.ndarray, radius: float) -> np.ndarray:
    """Cover in [0, 1]: 1 within `radius` pixels, 0 half a pixel beyond; what is thinner than a pixel is fainter."""
    radius = max(radius, 0.15)  # a wire on a small picture stays just visible
    return np.clip(radius + 0.5 - away, 0, min(1.0, 2 * radius))


# Strokes on a grid 4 wide and 6 high, two digits (column, row) a point: the same on every machine, unlike a font.
_STROKES = {
    "A": "062046 1434", "B": "000030414233 0333 334445360600", "C": "4130100105163645", "D": "00204244260600",
    "E": "40000646 0333", "H": "0006 4046 0343", "I": "0006", "L": "000646", "M": "0600234046", "N": "06004640",
    "O": "103041453616050110", "P": "060030414233 0333", "R": "060030414233 0333 2346", "S": "413010010213334445361605",
    "T": "0040 2026", "U": "000516364540"}  # fmt: skip


def letters(text: str) -> np.ndarray:
    """Points (N, 2), 0.04 apart or less, on the strokes of `text` (letters of `_STROKES`); 1 high, from (0, 0) on."""
    points, start = [], 0
    for letter in text:
        lines = [np.array(list(s), float).reshape(-1, 2) for s in _STROKES[letter].split()]
        for a, b in ((a, b) for line in lines for a, b in zip(line[:-1], line[1:])):
            points.append(a + np.linspace(0, 1, int(np.hypot(*(b - a)) / 0.24) + 2)[:, None] * (b - a) + [start, 0])
        start += 2 + max(line[:, 0].max() for line in lines)
    return np.concatenate(points)[:, ::-1] / 6


EDITS = {
    "exposure": Edit("The picture is too bright or too dark, as after too low or too high a dose.", False, _exposure),
    "contrast": Edit("The picture is flat, as with scattered radiation, or hard, as in a narrow display window.", False, _contrast),
    "noise": Edit("The picture is grainy, most of all in dense tissue, as when too few X-rays reach the detector.", False, _noise),
    "blur": Edit("The picture is unsharp, as when the patient moved or breathed.", False, _blur),
    "border": Edit("The collimator's dark edges reach into the picture.", True, _border),
    "marker": Edit("A side or projection marker (L, R, D, AP, MOBILE) is burned into a corner.", True, _marker),
    "electrodes": Edit("ECG electrodes and their leads lie on the chest, as in a monitored patient.", True, _electrodes),
    "line": Edit("Catheters and tubes cross the picture, as in intensive care.", True, _line),
}
