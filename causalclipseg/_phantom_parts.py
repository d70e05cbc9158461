"""The parts of a phantom: a patient without lesions, the lesions, how the picture was taken, and the picture.

Attenuation is in units in which a thorax full of soft tissue is 1: X-rays are weakened exponentially (Beer-Lambert),
a detector shows the logarithm, so attenuations along a ray add up. "Left" and "right" mean the halves of the picture,
as in QaTa-COV19; the heart lies to the right, because the picture's left is the patient's right.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from causalclipseg._phantom_drawing import (Canvas, Frame, bezier, body, bones, closed_spline, lettering,
                                            lung_points, smooth_noise, vessels)

MARKERS = ("L", "R", "D", "AP", "PA", "AP ERECT", "MOBILE", "DCHA", "SUPINE")
LUNG_DEPTH = 0.62  # attenuation that the air of a lung takes away where it is deepest


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a key
class Anatomy:
    """A patient without lesions, placed in the picture."""
    tissue: np.ndarray       # (H, W) float32 attenuation, air of the lungs already taken away
    air: np.ndarray          # (H, W) float32 depth of air in the lungs, 0 to 1
    lungs: np.ndarray        # (2, H, W) bool
    height: np.ndarray       # (H, W) float32, 0 at the apex of the lungs, 1 at the diaphragm
    periphery: np.ndarray    # (H, W) float32, 0 at the midline, 1 at the chest wall
    variables: dict


@dataclass(frozen=True)
class Lesions:
    mask: np.ndarray         # (H, W) bool, as an annotator would outline it
    density: np.ndarray      # (H, W) float32, share of the air that is replaced by fluid
    variables: dict
    mimic: np.ndarray | None = None  # (H, W) bool, where an opacity lies that is no lesion; only in a World


@dataclass(frozen=True)
class Acquisition:
    brightness: np.ndarray   # (H, W) float32 in [0, 1], of what was drawn
    cover: np.ndarray        # (H, W) float32 in [0, 1], how opaque that is
    variables: dict
    device: np.ndarray | None = None  # (H, W) bool, the dose sensor by which two scanners differ; only in a World


# Anatomy ------------------------------------------------------------------------------------

def sample_anatomy(rng: np.random.Generator, size: int) -> Anatomy:
    """Draw one patient: proportions first, then every organ's attenuation on the pixel grid."""
    v = {
        "width": rng.uniform(0.62, 0.76), "top": rng.uniform(-0.78, -0.62), "base": rng.uniform(0.26, 0.56),
        "heart": rng.uniform(0.34, 0.50), "angle": rng.normal(0, 0.025), "zoom": rng.uniform(0.97, 1.2),
        "dx": rng.uniform(-0.04, 0.04), "dy": rng.uniform(-0.06, 0.06), "bone": rng.uniform(0.6, 1.3),
        "vessels": rng.uniform(0.6, 1.3), "fat": rng.uniform(0.0, 1.0), "breasts": bool(rng.random() < 0.45),
    }
    # the lungs stay clear of where a collimator's border may lie, or a lesion could be under it
    v["zoom"] = min(v["zoom"], 0.88 / (v["width"] + 0.05), 0.88 / (v["base"] + 0.2))
    v = {k: (x if isinstance(x, bool) else round(float(x), 4)) for k, x in v.items()}
    frame = Frame(size, float(np.clip(v["angle"], -0.06, 0.06)), v["zoom"], v["dx"], v["dy"])
    x, y = frame.coordinates()
    x = x + 0.012 * smooth_noise(rng, size, 5)  # nobody is drawn with a ruler
    y = y + 0.012 * smooth_noise(rng, size, 5)
    across = np.abs(x)
    # half width of the rib cage at each height, a rounded dome above nearly straight sides
    up = np.clip((v["base"] + 0.1 - y) / (v["base"] + 0.1 - (v["top"] - 0.06)), 0, 1)
    cage = (v["width"] + 0.05) * (1 - up ** 2.8) ** 0.5 + 1e-3
    periphery = across / cage

    halves = [Canvas(size).polygon(frame.to_pixels(closed_spline(lung_points(rng, v, side)))).array() for side in (-1, 1)]
    column = np.arange(size) < size / 2
    lungs = np.stack([(halves[0] > 0.5) & column, (halves[1] > 0.5) & ~column])
    silhouette = halves[0] * column + halves[1] * ~column
    depth = ndimage.distance_transform_edt(lungs.any(0)).astype(np.float32) * (2 / size / v["zoom"])
    air = np.sqrt(1 - (1 - np.clip(depth / 0.24, 0, 1)) ** 2) * silhouette

    near = ndimage.gaussian_filter(silhouette, size * 0.035)
    tissue = body(rng, x, y, v)
    tissue += 0.27 * v["bone"] * bones(rng, x, y, periphery, near, v)
    tissue -= LUNG_DEPTH * air * (1 + 0.06 * smooth_noise(rng, size, 4))
    # lung reaches behind the heart and the domes of the diaphragm
    tissue -= 0.12 * near * (1 - silhouette)
    marks = vessels(rng, frame, v) * silhouette
    grain = 0.04 * np.abs(smooth_noise(rng, size, 44)) + 0.02 * smooth_noise(rng, size, 20) + 0.015 * smooth_noise(rng, size, 80)
    tissue += v["vessels"] * (0.17 * marks + grain * air)
    height = (y - v["top"]) / (v["base"] + 0.05 - v["top"])
    return Anatomy(tissue.astype(np.float32), air, lungs, height, np.minimum(periphery, 1), v)


# Lesions ------------------------------------------------------------------------------------

def sample_lesions(rng: np.random.Generator, anatomy: Anatomy) -> Lesions:
    """Draw COVID-like opacities: mostly bilateral, basal and peripheral, mostly one area a lung."""
    size = anatomy.air.shape[0]
    sides = [0, 1] if rng.random() < 0.75 else [int(rng.random() < 0.45)]
    severity = rng.beta(0.9, 1.15)
    if len(sides) == 1:
        severity *= 0.75
    mask, density, areas = np.zeros((size, size), bool), np.zeros((size, size), np.float32), []
    for side in sides:
        share = float(np.clip(severity * np.exp(rng.normal(0, 0.35)) * 1.2, 0.05, 1))
        kind = str(rng.choice(("basal", "peripheral", "focal"), p=(0.5, 0.2, 0.3) if share > 0.25 else (0.3, 0.0, 0.7)))
        area = _lesion_area(rng, anatomy, side, share, kind)
        second = share < 0.5 and rng.random() < 0.13
        if second:
            far = anatomy.lungs[side] & ~ndimage.binary_dilation(area, iterations=max(2, size // 22))
            if far.sum() > 0.1 * anatomy.lungs[side].sum():
                area |= _lesion_area(rng, anatomy, side, 0.06, "focal", far)
        consolidation = bool(rng.random() < 0.4)
        amount = rng.uniform(0.45, 0.75) if consolidation else rng.uniform(0.26, 0.45)
        mask |= area
        soft = ndimage.gaussian_filter(area.astype(np.float32), size * rng.uniform(0.006, 0.014))
        # at the thin rim of a lung only dense fluid can be seen at all
        amount = max(amount, min(1.0, 0.17 / float((anatomy.air * soft)[area].mean())))
        density += amount * soft * anatomy.lungs[side]
        areas.append({"side": ("left", "right")[side], "kind": kind, "share": round(share, 4),
                      "consolidation": consolidation, "amount": round(float(amount), 4)})
    patches = 0.28 * smooth_noise(rng, size, 9) + 0.20 * smooth_noise(rng, size, 22)
    strands = 0.5 - np.abs(smooth_noise(rng, size, 34))  # thickened septa look like a fine net
    density = np.clip(density * np.clip(1 + patches + 0.25 * strands, 0.45, 1.7), 0, 1.1)
    return Lesions(mask, density, {"sides": [a["side"] for a in areas], "areas": areas})


def sample_one_sided(rng: np.random.Generator, anatomy: Anatomy, side: int, mimic: float) -> Lesions:
    """A lesion in one lung (0: the picture's left), and in the other an opacity that only looks like one.

    Both are drawn from the same places, sizes and kinds. The lesion is patchy and has an edge; the mimic, a
    scar or a fold, say, fades out and is `mimic` times as dense. So the picture alone tells them apart, with care.
    """
    size, density, areas, kinds = len(anatomy.air), np.zeros_like(anatomy.air), [], []
    for lung in (side, 1 - side):
        share = float(np.clip(0.75 * rng.beta(0.9, 1.15) * np.exp(rng.normal(0, 0.35)) * 1.2, 0.08, 0.7))
        kind = str(rng.choice(("basal", "peripheral", "focal"), p=(0.5, 0.2, 0.3) if share > 0.25 else (0.3, 0.0, 0.7)))
        area, amount = _lesion_area(rng, anatomy, lung, share, kind), rng.uniform(0.32, 0.6)
        soft = ndimage.gaussian_filter(area.astype(np.float32), size * (0.010 if lung == side else 0.035))
        amount = max(amount, min(1.0, 0.17 / float((anatomy.air * soft)[area].mean())))
        texture = 0.28 * smooth_noise(rng, size, 9) + 0.20 * smooth_noise(rng, size, 22) if lung == side else 0
        weight = amount if lung == side else mimic * amount
        density += weight * soft * anatomy.lungs[lung] * np.clip(1 + texture, 0.45, 1.7)
        areas.append(area)
        kinds.append({"kind": kind, "share": round(share, 4), "amount": round(float(weight), 4)})
    variables = {"sides": [("left", "right")[side]], "areas": kinds[:1], "mimic": kinds[1]}
    return Lesions(areas[0], np.clip(density, 0, 1.1), variables, areas[1])


def _lesion_area(rng, anatomy: Anatomy, side: int, share: float, kind: str, within=None) -> np.ndarray:
    """One smooth outlined area, (H, W) bool, of about `share` of a lung (or of that lung's `within`)."""
    lung = anatomy.lungs[side]
    size = len(lung)
    within = lung if within is None else within
    noise = smooth_noise(rng, size, 7) + 0.45 * smooth_noise(rng, size, 18)
    if kind == "focal":
        rows, columns = np.nonzero(within)
        weight = (0.15 + np.clip(anatomy.height[within], 0, 1)) * (0.3 + np.clip(anatomy.periphery[within], 0, 1))
        at = rng.choice(len(rows), p=weight / weight.sum())
        row, column = np.ogrid[:size, :size]
        away = np.hypot(row - rows[at], (column - columns[at]) * rng.uniform(0.9, 1.5)) / size
        field = -away + 0.035 * noise
    elif kind == "peripheral":
        field = 0.45 * anatomy.height + 1.0 * anatomy.periphery + 0.13 * noise
    else:
        field = anatomy.height + rng.uniform(-0.3, 0.5) * anatomy.periphery + 0.11 * noise
    if share > 0.84:  # an annotator outlines such a lung as a whole
        area = within
    else:
        count = max(1, int(share * lung.sum()))
        values = field[within]
        area = within & (field > np.partition(values, -min(count, len(values)))[-min(count, len(values))])
    area = ndimage.gaussian_filter(area.astype(np.float32) + (0.5 * ~lung), size * 0.007) > 0.5
    area = _largest_piece(area & within)
    holes, n = ndimage.label(~area)
    return (holes != holes[0, 0]) & lung if n > 1 else area


def _largest_piece(area: np.ndarray) -> np.ndarray:
    pieces, n = ndimage.label(area, np.ones((3, 3)))
    return area if n < 2 else pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


# Acquisition --------------------------------------------------------------------------------

def sample_acquisition(rng: np.random.Generator, size: int) -> Acquisition:
    """Draw how the picture was taken, independent of patient and lesions."""
    portable = bool(rng.random() < 0.45)
    v = {
        "device": "portable" if portable else "fixed",
        "low": rng.uniform(-0.6, 0.15), "high": rng.uniform(1.2, 1.75), "gamma": float(np.exp(rng.normal(0.12, 0.22))),
        "local_contrast": rng.uniform(0.2, 1.2) if rng.random() < 0.35 else 0.0,
        "noise": rng.uniform(0.012, 0.035) if portable else rng.uniform(0.004, 0.016),
        "blur": rng.uniform(0.45, 0.9) if portable else rng.uniform(0.3, 0.6),
        "marker": str(rng.choice(MARKERS)) if rng.random() < 0.6 else "",
        "electrodes": int(rng.integers(1, 5)) if rng.random() < (0.55 if portable else 0.05) else 0,
        "tube": bool(rng.random() < (0.3 if portable else 0.04)),
        "border": [round(rng.uniform(0, most), 4) if rng.random() < 0.2 else 0.0 for most in (0.03, 0.03, 0.06, 0.03)],
    }
    v = {k: (round(x, 4) if isinstance(x, float) else x) for k, x in v.items()}
    scale = size / 224
    at = lambda points: np.asarray(points, float) * size

    leads = Canvas(size)
    for k in range(v["electrodes"]):
        spot = (rng.uniform(0.14, 0.86), rng.uniform(0.12, 0.75))
        goal = (rng.choice((-0.02, 1.02)), rng.uniform(0.3, 1.0))
        bends = [np.add(spot, rng.normal(0, 0.15, 2)), np.add(goal, rng.normal(0, 0.2, 2))]
        leads.stroke(at(bezier([spot, *bends, goal])), 1.0 * scale, 0.55)
        ring = np.linspace(0, 2 * np.pi, 20)
        circle = lambda r: at(spot) + r * scale * np.stack([np.cos(ring), np.sin(ring)], 1)
        leads.polygon(circle(rng.uniform(3.0, 4.5)), 0.45).polygon(circle(1.8), 0.9)
    if v["tube"]:
        x = rng.uniform(0.47, 0.53)
        end = (x + rng.normal(0, 0.01), rng.uniform(0.34, 0.45)) if rng.random() < 0.5 else (x + 0.09, rng.uniform(0.8, 1.0))
        leads.stroke(at(bezier([(x, -0.02), (x - 0.01, 0.2), (x, 0.3), end])), 1.6 * scale, 0.6)
    drawn = leads.array()
    brightness, cover = np.where(drawn > 0, 0.97, 0).astype(np.float32), drawn

    inside = np.ones((size, size), bool)
    if any(v["border"]):
        left, right, above, below = v["border"]
        skew = rng.uniform(-0.008, 0.008, 4)
        corners = [(left + skew[0], above + skew[1]), (1 - right + skew[2], above - skew[1]),
                   (1 - right - skew[2], 1 - below + skew[3]), (left - skew[0], 1 - below - skew[3])]
        # a side without a blade stays open, whatever the skew
        corners = [(c[0] if b else round(c[0]) * 1.2 - 0.1, c[1] if a else round(c[1]) * 1.2 - 0.1)
                   for c, b, a in zip(corners, (left, right, right, left), (above, above, below, below))]
        inside = Canvas(size).polygon(at(corners)).array() > 0.5
    brightness[~inside], cover[~inside] = 0.02, 1
    if v["marker"]:
        _stamp(rng, v["marker"], brightness, cover, scale)
    return Acquisition(brightness, cover, v)


def sample_scanner(rng: np.random.Generator, size: int, side: int) -> Acquisition:
    """Draw how a scanner took the picture: as `sample_acquisition`, and with a dose sensor beside one shoulder.

    The sensor, a ring of metal with a bar across and a cable, is all that scanner 0 (the picture's left) and
    scanner 1 do differently; the generator draws the same for both.
    """
    plain, scale, canvas = sample_acquisition(rng, size), size / 224, Canvas(size)
    x, y, radius, tilt = rng.uniform(0.06, 0.12), rng.uniform(0.16, 0.30), rng.uniform(8.5, 10.5) * scale, rng.uniform(0, np.pi)
    x = 1 - x if side else x
    around, bar = np.linspace(0, 2 * np.pi, 32), np.array([-1.0, 1.0])
    circle = lambda points, r, angle: np.array([x, y]) * size + r * points * np.stack([np.cos(angle), np.sin(angle)], 1)
    canvas.stroke(np.array([[x, y], [x + (0.3 if side else -0.3), y + 0.05]]) * size, 1.6 * scale, 0.7)
    canvas.stroke(circle(1, radius, around), 3.4 * scale, 0.95)
    canvas.stroke(circle(bar[:, None], radius, np.full(2, tilt)), 3.0 * scale, 0.95)
    drawn = canvas.array()
    brightness, cover = np.where(drawn > plain.cover, 0.97, plain.brightness), np.maximum(drawn, plain.cover)
    return Acquisition(brightness.astype(np.float32), cover, {**plain.variables, "sensor": ("left", "right")[side]}, drawn > 0.25)


def _stamp(rng, text: str, brightness: np.ndarray, cover: np.ndarray, scale: float) -> None:
    """Burn `text` into an upper corner: letters of lead, or a dark plate with letters; in place."""
    size = len(cover)
    # long words are set smaller and all near the top, or they would reach the lungs
    letters = lettering(text, max(6, int(round(rng.uniform(7, 11 if len(text) < 3 else 8.5) * scale))))
    height, width = letters.shape
    plate, pad = rng.random() < 0.35, int(round(2 * scale))
    row = int(rng.uniform(0.01, 0.06) * size) + pad
    column = int(rng.uniform(0.01, 0.06) * size) + pad
    if rng.random() < 0.5:
        column = size - column - width
    place = np.s_[row:row + height, column:column + width]
    if plate:
        around = np.s_[row - pad:row + height + pad, column - pad:column + width + pad]
        brightness[around], cover[around] = 0.25, 0.9
        brightness[place] = 0.25 + 0.65 * letters
    else:
        brightness[place] = np.where(letters > 0.1, 0.98, brightness[place])
        cover[place] = np.maximum(cover[place], letters)


# Rendering ----------------------------------------------------------------------------------

def render(rng: np.random.Generator, anatomy: Anatomy, lesions: Lesions, acquisition: Acquisition) -> np.ndarray:
    """The picture, (H, W) uint8: attenuations added, noise of the photons, the tone curve, what was drawn."""
    v, size = acquisition.variables, len(anatomy.air)
    attenuation = anatomy.tissue + LUNG_DEPTH * anatomy.air * lesions.density
    # few photons pass dense tissue, so the noise of their logarithm grows there
    grain = v["noise"] * np.exp(0.55 * (attenuation - 0.6))
    attenuation = attenuation + grain * rng.standard_normal((size, size), dtype=np.float32)
    attenuation = ndimage.gaussian_filter(attenuation, v["blur"] * size / 224)
    if v["local_contrast"]:
        wide = ndimage.gaussian_filter(attenuation, size * 0.06)
        attenuation = attenuation + v["local_contrast"] * (attenuation - wide) - 0.15 * v["local_contrast"] * (wide - 0.8)
    tone = np.clip((attenuation - v["low"]) / (v["high"] - v["low"]), 0, None) ** v["gamma"]
    tone = np.where(tone > 0.8, 0.8 + 0.2 * np.tanh((tone - 0.8) / 0.2), tone)  # a film's shoulder
    tone = tone * (1 - acquisition.cover) + acquisition.brightness * acquisition.cover
    return np.clip(np.rint(tone * 255), 0, 255).astype(np.uint8)
