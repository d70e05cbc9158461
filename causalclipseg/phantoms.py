"""Synthetic frontal chest X-rays with lesions, their masks and sentences.

No patient's picture may lie in the repository, so tests, examples and part of the training use
these. A picture is made in four steps, each with its own stream of random numbers, so that one
can be changed while the others stay as they are:

    anatomy      body, lungs, heart, bones, vessels               sample_anatomy
    lesions      where the lungs are opaque, and how much         sample_lesions
    acquisition  exposure, noise, blur, border, marker, leads     sample_acquisition
    rendering    attenuations added up, tone curve, quantum noise render

Attenuation is in units in which a thorax full of soft tissue is 1: X-rays are weakened
exponentially (Beer-Lambert), a detector shows the logarithm, so attenuations along a ray add up.
"Left" and "right" mean the halves of the picture, as in QaTa-COV19; the heart lies to the right,
because the picture's left is the patient's right.
"""
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image
from scipy import ndimage

from causalclipseg import reports
from causalclipseg._phantom_drawing import (Canvas, Frame, bezier, body, bones, closed_spline, lettering,
                                            lung_points, smooth_noise, vessels)

VERSION = 1  # raise it whenever the same seed gives another picture
WRITER = "causalclipseg.phantoms"
TOP_LEVEL = {"QaTa-COV19-v2", "Train_text_for_Covid19.xlsx", "Test_text_for_Covid19.xlsx", "Train_ID.xlsx",
             "Val_ID.xlsx", "phantoms.json"}
MARKERS = ("L", "R", "D", "AP", "PA", "AP ERECT", "MOBILE", "DCHA", "SUPINE")
LUNG_DEPTH = 0.62  # attenuation that the air of a lung takes away where it is deepest


@dataclass(frozen=True)
class Phantom:
    """One synthetic X-ray of H x W pixels and everything that is known about it."""
    image: np.ndarray        # (H, W) uint8
    mask: np.ndarray         # (H, W) bool, lesions; inside the lungs
    lungs: np.ndarray        # (2, H, W) bool, the lung in the left and in the right half of the picture
    acquisition: np.ndarray  # (H, W) bool, pixels that the acquisition drew (marker, border, leads)
    report: str              # a sentence in the grammar of causalclipseg.reports
    seed: int
    variables: dict          # the drawn causes, plain Python: "anatomy", "lesions", "acquisition"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Acquisition:
    brightness: np.ndarray   # (H, W) float32 in [0, 1], of what was drawn
    cover: np.ndarray        # (H, W) float32 in [0, 1], how opaque that is
    variables: dict


def sample_phantom(seed: int, size: int = 224) -> Phantom:
    """Draw the phantom of `seed` (0 or more) with `size` x `size` pixels (at least 64).

    The same seed, size and VERSION give the same phantom. Raises ValueError for a smaller size or
    a negative seed.
    """
    if size < 64 or seed < 0:
        raise ValueError(f"a phantom needs a size of at least 64 and a seed of at least 0, not {size} and {seed}")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    anatomy = sample_anatomy(streams[0], size)
    lesions = sample_lesions(streams[1], anatomy)
    acquisition = sample_acquisition(streams[2], size)
    image = render(streams[3], anatomy, lesions, acquisition)
    variables = {"anatomy": anatomy.variables, "lesions": lesions.variables, "acquisition": acquisition.variables}
    return Phantom(image, lesions.mask, anatomy.lungs, acquisition.cover > 0.25,
                   reports.describe(lesions.mask), int(seed), variables)


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
    brightness, cover = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
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


# On disk ------------------------------------------------------------------------------------

def write_dataset(directory, count: int, *, seed: int = 0, size: int = 224,
                  splits: tuple[float, float, float] = (0.6, 0.15, 0.25),
                  progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `count` phantoms as QaTa-COV19-v2 lies on a user's disk; returns the directory.

    `splits` are the shares of train, val and test; each gets at least one picture. `progress` is
    called with (written, count). Beside the pictures and workbooks, `phantoms.json` holds every
    picture's name, split, seed, sentence and drawn causes. An earlier data set of phantoms in
    `directory` is replaced. It appears at once and whole, or (after an error) not at all.

    Raises ValueError for fewer than 3 pictures, for shares that aren't three positive numbers, and
    for a directory that holds anything this function didn't write.
    """
    directory = Path(directory)
    if count < 3:
        raise ValueError(f"a data set needs at least 3 phantoms, one a split, not {count}")
    if len(splits) != 3 or min(splits) <= 0:
        raise ValueError(f"splits must be three positive shares (train, val, test), not {splits}")
    _refuse_foreign(directory)
    where = [name for name, n in zip(("train", "val", "test"), _split_sizes(count, splits)) for _ in range(n)]

    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        pictures = []
        for k, split in enumerate(where):
            name = f"phantom_{k + 1:06d}.png"
            # 64 bits, so that no two pictures of any data set share a seed by chance
            phantom = sample_phantom(int(np.random.SeedSequence((seed, k)).generate_state(1, np.uint64)[0]), size)
            folder = building / "QaTa-COV19-v2" / ("Test Set" if split == "test" else "Train Set")
            for part, pixels in (("Images", phantom.image), ("Ground-truths", phantom.mask.astype(np.uint8) * 255)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / part / (name if part == "Images" else f"mask_{name}"))
            pictures.append({"image": name, "mask": f"mask_{name}", "split": split, "report": phantom.report,
                             "seed": phantom.seed, **phantom.variables})
            if progress:
                progress(k + 1, count)
        by = {split: [p for p in pictures if p["split"] == split] for split in ("train", "val", "test")}
        text = lambda chosen: [("Image", "Description"), *((p["mask"], p["report"]) for p in chosen)]
        names = lambda chosen: [("Image",), *((p["mask"],) for p in chosen)]
        _write_workbook(building / "Train_text_for_Covid19.xlsx", text(by["train"] + by["val"]))
        _write_workbook(building / "Test_text_for_Covid19.xlsx", text(by["test"]))
        _write_workbook(building / "Train_ID.xlsx", names(by["train"]))
        _write_workbook(building / "Val_ID.xlsx", names(by["val"]))
        about = {"written_by": WRITER, "version": VERSION, "seed": seed, "size": size, "count": count,
                 "splits": {split: len(chosen) for split, chosen in by.items()}, "pictures": pictures}
        (building / "phantoms.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        building.chmod(0o755)  # mkdtemp makes it readable for its owner alone
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return directory


def _split_sizes(count: int, splits) -> list[int]:
    """`count` shared out by `splits`, every part at least 1; the largest part takes what rounding leaves."""
    sizes = [max(1, round(count * share / sum(splits))) for share in splits]
    sizes[sizes.index(max(sizes))] += count - sum(sizes)
    return sizes


def _refuse_foreign(directory: Path) -> None:
    """ValueError unless `directory` is absent, empty, or holds nothing but what write_dataset writes."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file; a data set needs a directory")
    found = {entry.name for entry in directory.iterdir()}
    if not found:
        return
    try:
        ours = json.loads((directory / "phantoms.json").read_text(encoding="utf-8")).get("written_by") == WRITER
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours or found - TOP_LEVEL:
        raise ValueError(f"{directory} holds files that are not a data set of phantoms; choose an empty or new directory")


def _write_workbook(path: Path, rows: list[tuple]) -> None:
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    for row in rows:
        sheet.append(row)
    book.save(path)
