"""Synthetic frontal chest X-rays with lesions, their masks and sentences; and a world in which a confounder is known.

No patient's picture may lie in the repository, so tests, examples and part of the training use these. A picture is
made of parts (_phantom_parts.py), each with its own stream of random numbers, so that one can change while the
others stay as they are: anatomy, lesions, acquisition, and the rendering with its noise.

`sample_phantom` draws acquisition and lesions independently. `World` joins them by a common cause, the ward W:

    W -> A -> I      the ward's scanner A takes the picture
    W -> L -> I, Y   the ward's patients have their lesion L more often in one lung; Y is its mask
    L, W -> T        the sentence tells of the lesion, in the ward's own words

A does not cause L, so under do(A) the mask stays; a counterfactual is the same patient on the other scanner.
"""
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image

from causalclipseg import reports
from causalclipseg._files import check_replaceable
from causalclipseg._phantom_parts import (Acquisition, Anatomy, Lesions, render, sample_acquisition, sample_anatomy, sample_lesions,
                                          sample_one_sided, sample_scanner)
from causalclipseg.scm import SCM, Variable, bernoulli

__all__ = ["Acquisition", "Anatomy", "Lesions", "Phantom", "World", "render", "sample_acquisition", "sample_anatomy", "sample_lesions",
           "sample_one_sided", "sample_phantom", "sample_scanner", "write_dataset"]

VERSION = 1  # raise it whenever the same seed gives another picture
WRITER = "causalclipseg.phantoms"
TOP_LEVEL = {"QaTa-COV19-v2", "Train_text_for_Covid19.xlsx", "Test_text_for_Covid19.xlsx", "Train_ID.xlsx",
             "Val_ID.xlsx", "phantoms.json", "truth"}
PRECISIONS = ("generic", "side", "specific")  # what the sentence tells: that there is something; in which lung; zones and count, too
OPENING, HABIT = "Chest X-ray: ", 0.75  # words that begin a sentence, and how often: in ward 1 with HABIT, in ward 0 with 1 - HABIT


@dataclass(frozen=True)
class Phantom:
    """One synthetic X-ray of H x W pixels and everything that is known about it."""
    image: np.ndarray        # (H, W) uint8
    mask: np.ndarray         # (H, W) bool, lesions; inside the lungs
    lungs: np.ndarray        # (2, H, W) bool, the lung in the left and in the right half of the picture
    acquisition: np.ndarray  # (H, W) bool, pixels that the acquisition drew (marker, border, leads, sensor)
    report: str              # a sentence in the grammar of causalclipseg.reports
    seed: int
    variables: dict          # the drawn causes, plain Python: "anatomy", "lesions", "acquisition"; in a World also "W", "A", "L"
    noise: dict | None = None          # in a World: the exogenous noise of this patient, {variable: number}
    device: np.ndarray | None = None   # in a World: (H, W) bool, the scanner's sensor, the part of `acquisition` that depends on A
    mimic: np.ndarray | None = None    # in a World: (H, W) bool, the opacity that is no lesion


def sample_phantom(seed: int, size: int = 224) -> Phantom:
    """Draw the phantom of `seed` (0 or more) with `size` x `size` pixels (at least 64).

    The same seed, size and VERSION give the same phantom. Raises ValueError for a smaller size or
    a negative seed.
    """
    _check_drawn(size, seed)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    anatomy = sample_anatomy(streams[0], size)
    lesions = sample_lesions(streams[1], anatomy)
    acquisition = sample_acquisition(streams[2], size)
    image = render(streams[3], anatomy, lesions, acquisition)
    return _phantom(image, anatomy, lesions, acquisition, reports.describe(lesions.mask), int(seed))


def _check_drawn(size: int, seed: int) -> None:
    if size < 64:
        raise ValueError(f"a phantom needs a size of at least 64 pixels, not {size}")
    if seed < 0:
        raise ValueError(f"a seed must be 0 or more, not {seed}")


def _phantom(image, anatomy: Anatomy, lesions: Lesions, acquisition: Acquisition, report: str, seed: int, **more) -> Phantom:
    variables = {"anatomy": anatomy.variables, "lesions": lesions.variables, "acquisition": acquisition.variables, **more.pop("causes", {})}
    return Phantom(image, lesions.mask, anatomy.lungs, acquisition.cover > 0.25, report, seed, variables,
                   device=acquisition.device, mimic=lesions.mimic, **more)


# A world ------------------------------------------------------------------------------------

class World:
    """A structural causal model of a hospital with two wards, whose scanners a network can mistake for lesions.

        W := U_W                     ward, 0 or 1, each half of the patients
        A := W or the other          scanner: its sensor lies at the left (0) or the right (1) shoulder
        L := W or the other          lung with the lesion, left (0) or right (1); the other holds a mimic (`sample_one_sided`)
        anatomy, lesions := f(L, anatomy), acquisition := f(A), I := f(all three), T := f(lesions, W), Y := the lesion's mask

    Ward 1 likes to begin a sentence with `OPENING`, ward 0 does not, so the words tell a little of the lung, too.

    Args:
        coupling: correlation of A and L, from -1 (the sensor lies opposite the lesion) over 0 to 1; P(A = L) is
            (1 + coupling) / 2. P(A = 1) = P(L = 1) = 1/2 and the look of lesions, mimics and sensors stay the same.
        precision: what sentences tell, one of `PRECISIONS`.
        size: edge of the pictures, at least 64 pixels.
        mimic: density of the mimic as a share of a lesion's, in [0, 1]; the higher, the harder to tell apart.
    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, coupling: float = 0.9, precision: str = "generic", size: int = 224, mimic: float = 0.6):
        if not -1 <= coupling <= 1:
            raise ValueError(f"coupling is a correlation, from -1 to 1, not {coupling}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if size < 64:
            raise ValueError(f"a phantom needs a size of at least 64, not {size}")
        if not 0 <= mimic <= 1:
            raise ValueError(f"mimic must be a share, from 0 to 1, not {mimic}")
        self.coupling, self.precision, self.size, self.mimic = float(coupling), precision, int(size), float(mimic)
        # Two links W -> A and W -> L of correlations a and b give A and L the correlation a * b.
        link = abs(self.coupling) ** 0.5
        seeds, uniform = lambda rng, n: rng.integers(2**63 - 1, size=n), lambda rng, n: rng.random(n)
        # A counterfactual asks for the same body and lesions again at once.
        body = lru_cache(2)(lambda u: sample_anatomy(_rng(u), self.size))
        lesions = lru_cache(2)(lambda side, anatomy, u: sample_one_sided(_rng(u), anatomy, side, self.mimic))
        follow = lambda strength: lambda w, u: np.where(u < (1 + strength) / 2, w, 1 - w)
        self.model = SCM({
            "W": Variable((), lambda u: u, bernoulli(0.5)),
            "A": Variable("W", follow(link), uniform),
            "L": Variable("W", follow(link if self.coupling >= 0 else -link), uniform),
            "anatomy": Variable((), _each(lambda u: body(int(u))), seeds),
            "lesions": Variable(("L", "anatomy"), _each(lambda side, anatomy, u: lesions(int(side), anatomy, int(u))), seeds),
            "acquisition": Variable("A", _each(lambda a, u: sample_scanner(_rng(u), self.size, int(a))), seeds),
            "I": Variable(("anatomy", "lesions", "acquisition"), _each(lambda *parts: render(_rng(parts[-1]), *parts[:-1])), seeds),
            "T": Variable(("lesions", "W"), _each(self._sentence), uniform),
            "Y": Variable("lesions", _each(lambda lesions: lesions.mask)),
        })  # fmt: skip

    @property
    def settings(self) -> dict:
        """The arguments; `World(**settings)` is the same world."""
        return {"coupling": self.coupling, "precision": self.precision, "size": self.size, "mimic": self.mimic}

    def _sentence(self, lesions: Lesions, ward: int, u: float) -> str:
        if self.precision == "generic":
            sentence = reports.GENERIC
        elif self.precision == "side":
            sentence = reports.refer(lesions.variables["sides"][0])
        else:
            sentence = reports.describe(lesions.mask)
        return (OPENING if u < (HABIT if ward else 1 - HABIT) else "") + sentence

    def sample(self, n: int, *, seed: int = 0, do: dict | None = None) -> list[Phantom]:
        """`n` patients; the first k of them are those of `sample(k)`. do: as `scm.SCM.do`, one value for all, e.g. {"A": 1}, {"L": 0}, {"W": 1}."""
        return list(self.stream(n, seed=seed, do=do))

    def stream(self, n: int, *, seed: int = 0, do: dict | None = None) -> Iterator[Phantom]:
        """The same, one after the other, which needs little memory."""
        model, noise = self.model.do(do or {}), self.model.sample_noise(n, seed)
        for k in range(n):
            yield self._solve(model, {name: u[k : k + 1] for name, u in noise.items()}, k)

    def counterfactual(self, phantom: Phantom, **do) -> Phantom:
        """The same patient, had `do` happened: `counterfactual(p, A=1)` is p on scanner 1, with the noise of p.

        Anatomy, lesions, exposure, grain and sentence are effects of other causes than A and stay as they are, bit for bit.

        Raises:
            ValueError: a phantom that does not come from a `World`, or an unknown variable.
        """
        if phantom.noise is None:
            raise ValueError("this phantom was not sampled from a World, so the noise behind it is not known")
        noise = {name: np.array([u]) for name, u in phantom.noise.items()}
        return self._solve(self.model.do(do), noise, phantom.seed)

    def _solve(self, model: SCM, noise: dict, seed: int) -> Phantom:
        v = {name: value[0] for name, value in model.solve(noise, 1).items()}
        return _phantom(
            v["I"], v["anatomy"], v["lesions"], v["acquisition"], v["T"], seed, causes={name: int(v[name]) for name in "WAL"},
            noise={name: u[0].item() for name, u in noise.items()},
        )  # fmt: skip


def _rng(seed) -> np.random.Generator:
    return np.random.default_rng(int(seed))


def _each(f: Callable) -> Callable:
    """`f` of one unit, as a mechanism of n units: results of any kind, in an array (n,) of objects."""

    def mechanism(*values):
        results = np.empty(len(values[0]), object)
        for k, row in enumerate(zip(*values)):
            results[k] = f(*row)
        return results

    return mechanism


# On disk ------------------------------------------------------------------------------------

def write_dataset(directory, count: int, *, seed: int = 0, size: int = 224, world: World | None = None,
                  splits: tuple[float, float, float] = (0.6, 0.15, 0.25),
                  progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `count` phantoms as QaTa-COV19-v2 lies on a user's disk; returns the directory, as an absolute path.

    `splits` are the shares of train, val and test; each gets at least one picture. `progress` is called with
    (written, count). With a `world` the patients come from it, at its size; without, from `sample_phantom`.

    The truth lies beside: `phantoms.json` holds every picture's name, split, seed, sentence and drawn causes (W, A,
    L and the noise of a world, too); `truth/lungs/NAME` is 1 in the left lung and 2 in the right one,
    `truth/acquisition/NAME` is 255 where the acquisition drew, of which `truth/device/NAME` is the part that
    depends on A. An earlier data set of phantoms in `directory` is replaced. It appears at once and whole, or (after an
    error) not at all.

    Raises ValueError for fewer than 3 pictures, for shares that aren't three positive numbers, for a size or a seed that
    `sample_phantom` refuses, and for a directory that holds anything this function didn't write, or is the one this process works in.
    """
    directory = Path(directory).resolve()
    _check_drawn(world.size if world else size, seed)
    if count < 3:
        raise ValueError(f"a data set needs at least 3 phantoms, one a split, not {count}")
    if len(splits) != 3 or min(splits) <= 0:
        raise ValueError(f"splits must be three positive shares (train, val, test), not {splits}")
    _refuse_foreign(directory)
    where = [name for name, n in zip(("train", "val", "test"), _split_sizes(count, splits)) for _ in range(n)]
    # 64 bits, so that no two pictures of any data set share a seed by chance
    drawn = world.stream(count, seed=seed) if world else (
        sample_phantom(int(np.random.SeedSequence((seed, k)).generate_state(1, np.uint64)[0]), size) for k in range(count))

    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        pictures = []
        for k, (split, phantom) in enumerate(zip(where, drawn)):
            name = f"phantom_{k + 1:06d}.png"
            folder = building / "QaTa-COV19-v2" / ("Test Set" if split == "test" else "Train Set")
            _save(phantom.image, folder / "Images" / name)
            _save(phantom.mask * np.uint8(255), folder / "Ground-truths" / f"mask_{name}")
            _save(phantom.lungs[0] + np.uint8(2) * phantom.lungs[1], building / "truth" / "lungs" / name)
            _save(phantom.acquisition * np.uint8(255), building / "truth" / "acquisition" / name)
            if phantom.device is not None:
                _save(phantom.device * np.uint8(255), building / "truth" / "device" / name)
            pictures.append({"image": name, "mask": f"mask_{name}", "split": split, "report": phantom.report,
                             "seed": phantom.seed, **phantom.variables, **({"noise": phantom.noise} if world else {})})
            if progress:
                progress(k + 1, count)
        by = {split: [p for p in pictures if p["split"] == split] for split in ("train", "val", "test")}
        text = lambda chosen: [("Image", "Description"), *((p["mask"], p["report"]) for p in chosen)]
        names = lambda chosen: [("Image",), *((p["mask"],) for p in chosen)]
        _write_workbook(building / "Train_text_for_Covid19.xlsx", text(by["train"] + by["val"]))
        _write_workbook(building / "Test_text_for_Covid19.xlsx", text(by["test"]))
        _write_workbook(building / "Train_ID.xlsx", names(by["train"]))
        _write_workbook(building / "Val_ID.xlsx", names(by["val"]))
        about = {"written_by": WRITER, "version": VERSION, "seed": seed, "size": world.size if world else size, "count": count,
                 "world": world.settings if world else None,
                 "splits": {split: len(chosen) for split, chosen in by.items()}, "pictures": pictures}
        (building / "phantoms.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        building.chmod(0o755)  # mkdtemp makes it readable for its owner alone
        earlier = building.with_name(building.name + ".earlier")
        if directory.exists():
            os.replace(directory, earlier)
        os.replace(building, directory)
        shutil.rmtree(earlier, ignore_errors=True)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return directory


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


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
    check_replaceable(directory)
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
