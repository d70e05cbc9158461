"""Is it causal? Every objective trained in a world whose confounder is known (`phantoms.World`), and tested outside it.

In training the scanner A goes with the lung L of the lesion. Test sets: the same coupling, none, the reverse of it (the
same patients in all three), and those of the first one re-rendered on the other scanner. With Dice per image, and m a method:

    drop     (same - reversed) of m, less the oracle's              what the confounder costs it
    closed   (m - none) / (oracle - none), on the reversed set      the share of that which a remedy wins back
    change   mean of 1 - Dice(f(i), f(i_a)), i_a under the other A  0 where the answer does not depend on the scanner

The oracle was trained where A and L are independent. A remedy's edits (`acquisition.other_acquisition`,
`reports.other_words`) draw nothing that A draws; "matched" draws the very scanners anew, which is do(A) itself, and stands apart. "surroundings" draws
nothing at all: it copies the field of the lungs into the picture of another training patient, drawn by chance
(`acquisition.in_other_surroundings`). That needs neither a record of the scanner nor a notion of what it does, but shows
what is in the data, sensors among it. Each run is kept as one JSON file, so that a stopped experiment goes on.

Sizes, steps and remedies were chosen on patients of their own (`PATIENTS`, "validation"); the test's were drawn afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import acquisition, reports
from ._files import write_text, written_beside
from .audit import attention, auroc, mass
from .config import ClipConfig, ModelConfig
from .metrics import counts, dice
from .model import CausalCLIPSeg
from .objectives import ADVERSARIAL, adjustment, objective
from .phantoms import HABIT, OPENING, VERSION, World

LAM = 0.05  #: lambda of Eq. 3, as in the paper
EDITED = 2  #: edited copies of a training picture, made once
SETS = ("same", "none", "reversed", "rerendered")
PATIENTS = {"train": 1, "validation": 3, "test": 4}  #: seeds of the world; 2 drew earlier test patients, on which its difficulty was set
FIELD = 0.01  #: a pixel belongs to the field of the lungs where this share of the training masks has a lesion


@dataclass(frozen=True)
class Method:
    """One row of the table: an objective, and what it may see."""

    says: str
    objective: str = "none"
    coupled: bool = True  #: trained where A and L go together
    edits: str = ""  #: "other": disjoint from what A draws; "matched": the scanners, drawn anew; "surroundings": other patients'
    views: int = 1  #: pictures of a patient in a step; of two, the second is always edited, the first half of the time by "other", always by "matched"
    share: float = 1.0  #: of the pictures that are edited, where a patient has one view
    mu: float = 0.0  #: weight of the consistency between two views of a patient
    balance: str = ""  #: pictures drawn so that this variable ("W" or "A") is independent of L
    image: bool = True
    sentence: bool = True
    plain_words: bool = False  #: sentences rewritten in the data set's own words, in training and in tests: the ward's habit is gone


METHODS = {
    "oracle": Method("L_c where A and L are independent", coupled=False),
    "none": Method("L_c alone"),
    "causal": Method("Eq. 3-4 as printed", "causal"),
    "bounded": Method("L_s counts up to the base rate's entropy", "bounded"),
    "minimax": Method("D_s descends L_s, maskers and encoders ascend it", "minimax"),
    "interventional": Method("edits disjoint from A, with consistency", "interventional", edits="other", views=2, mu=1.0),
    "augmentation": Method("the same edits without the consistency term", edits="other", views=2),
    "adjusted": Method("weights P(W) / P(W | L), the ward observed", "adjusted", balance="W"),
    "adjusted by scanner": Method("weights P(A) / P(A | L), the scanner observed; plain words", "adjusted", balance="A", plain_words=True),
    "adjusted with edits": Method("the same, and a quarter of the pictures edited, disjoint from A", "adjusted", edits="other", share=0.25, balance="A", plain_words=True),
    "surroundings": Method("the field of the lungs in another patient's picture, drawn by chance; plain words", edits="surroundings", plain_words=True),
    "reweighted": Method("groups of A and L made equal, sentences as they are", balance="A"),
    "image only": Method("L_c, no sentence", sentence=False),
    "sentence only": Method("L_c, no picture", image=False),
    "matched": Method("interventional, the scanner of both pictures drawn anew: do(A) itself", "interventional", edits="matched", views=2, mu=1.0),
}


@dataclass(frozen=True)
class Setting:
    """How large the experiment is."""

    size: int = 96
    train: int = 24000  #: pictures of a training set; adjusted, at a correlation of 0.9, 1,200 of them stand for half of all
    test: int = 400  #: of each test set
    steps: int = 2000
    batch: int = 32  #: pictures a step, views counted: as many for every method
    lr: float = 4e-3
    width: int = 12  #: of the vision encoder's stem
    channels: int = 32  #: of fusion and decoder
    strengths: tuple[float, ...] = (0.3, 0.6, 0.9)
    mimic: float = 0.6
    precision: str = "generic"

    @property
    def model(self) -> ModelConfig:
        clip = ClipConfig(embed_dim=32, vision_layers=(1, 1, 1, 1), vision_width=self.width, vision_heads=4, text_width=16, text_heads=2, text_layers=1)
        return ModelConfig(
            clip=clip, image_size=self.size, context_length=12 if self.precision == "generic" else 24, masker_width=8, fusion_width=self.channels,
            carafe_compressed=8, decoder_width=self.channels, kernel_size=1, upsampling_steps=0 if self.size < 96 else 1,
            decoder="plain", standardize=False,
        )  # fmt: skip


FULL = Setting()
SMALL = Setting(size=64, train=24000, steps=500, width=8, channels=24, strengths=(0.9,))


def run(
    out: str | Path, *, setting: Setting = FULL, seeds: int = 5, strengths: Iterable[float] | None = None,
    methods: Iterable[str] | None = None, on: str = "test", say: Callable[[str], None] = print,
) -> dict:  # fmt: skip
    """Train and measure every method with every seed at every strength; write `confounding.json`, `.md` and `.png`.

    Args:
        out: a folder; pictures and finished runs in it are used again.
        strengths: correlations of A and L in training, in (0, 1): at 1 nothing could be adjusted for; None: the setting's. methods: names in `METHODS`.
        on: whose Dice is measured, "test", or "validation" for whoever wants to choose something.
    Raises:
        ValueError: a strength out of range, an unknown method, or `out` holding runs of another setting.
    """
    from ._confounding_page import write_report

    out, names = Path(out), list(METHODS if methods is None else methods)
    strengths = tuple(setting.strengths if strengths is None else strengths)
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"There is no method {unknown[0]!r}; choose of {', '.join(METHODS)}.")
    if not strengths or not all(0 < s < 1 for s in strengths) or seeds < 1:
        raise ValueError("The experiment needs a seed, and strengths between 0 and 1, both excluded.")
    _claim(out, setting, on)
    for seed in range(seeds):
        for strength in strengths:
            for name in names:
                path = out / "runs" / f"{strength:g}" / f"{name.replace(' ', '-')}-{seed}.json"
                if path.exists():
                    continue
                began = time.process_time()
                found = measure(METHODS[name], strength, seed, setting, out / "pictures", on)
                found |= {"method": name, "seed": seed, "strength": strength, "cpu_seconds": time.process_time() - began}
                write_text(path, json.dumps(found) + "\n")
                say(f"{name}, strength {strength:g}, seed {seed}: " + ", ".join(f"{k} {found['dice'][k]:.3f}" for k in SETS))
    rows = [json.loads(path.read_text()) for path in sorted((out / "runs").rglob("*.json"))]
    return write_report(out, rows, setting, METHODS, on, LAM)


def _claim(out: Path, setting: Setting, on: str) -> None:
    mine = {**dataclasses.asdict(setting), "phantoms": VERSION, "on": on, "patients": PATIENTS}
    mine.pop("strengths")
    path = out / "setting.json"
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(mine)):
        raise ValueError(f"{out} holds runs of another setting (see {path}); choose another folder.")
    write_text(path, json.dumps(mine, indent=2) + "\n")


# Pictures -----------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def patients(kind: str, setting: Setting, folder: Path) -> dict[str, np.ndarray]:
    """The patients of training ("train"), choosing ("validation") or testing ("test"), each on both scanners, rendered once.

    Returns pictures (2, N, H, W) uint8, by scanner, and what the device covers of them, devices (2, N, H, W) bool;
    mask (N, H, W) bool; report (N,), without the ward's words; L (N,); for training edited (2, N, EDITED, H, W).
    """
    path = folder / f"{kind}.npz"
    if path.exists():
        with np.load(path) as stored:
            return dict(stored)
    world, rng = World(0, setting.precision, setting.size, setting.mimic), np.random.default_rng(0)
    found: dict[str, list] = {name: [] for name in ("pictures", "devices", "mask", "report", "L", "edited")}
    for p in world.stream(setting.train if kind == "train" else setting.test, seed=PATIENTS[kind]):
        pair = [world.counterfactual(p, A=a) for a in (0, 1)]
        found["pictures"].append([q.image for q in pair])
        found["devices"].append([q.device for q in pair])
        found["mask"].append(p.mask)
        found["report"].append(p.report.removeprefix(OPENING))
        found["L"].append(p.variables["L"])
        found["edited"].append([[acquisition.other_acquisition(q.image, rng) for _ in range(EDITED if kind == "train" else 0)] for q in pair])
    arrays = {name: np.stack(values) for name, values in found.items()}
    for name in ("pictures", "devices", "edited"):
        arrays[name] = np.moveaxis(arrays[name], 1, 0)
    with written_beside(path) as beside, open(beside, "wb") as file:
        np.savez_compressed(file, **arrays)
    return arrays


def compose(people: dict, coupling: float, seed: int) -> dict[str, np.ndarray]:
    """A set: the same patients, each in a ward and on a scanner by P(W, A | L) of `World(coupling)`, and the ward's words.

    Sets of other couplings hold the same patients on other scanners, so differences between them are due to W alone.
    Returns W, A, L (N,); image, other (on the other scanner) uint8, mask and device bool (N, H, W); report (N,);
    edited (N, EDITED, H, W) where there is one.
    """
    rng, lung, link = np.random.default_rng([seed, 7]), people["L"], abs(coupling) ** 0.5
    k = np.arange(len(lung))
    follow = lambda of, strength: np.where(rng.random(len(of)) < (1 + strength) / 2, of, 1 - of)
    # All marginals are 1/2, so W given L is linked as L is to W.
    w = follow(lung, link if coupling >= 0 else -link)
    a = follow(w, link)
    opens = rng.random(len(lung)) < np.where(w == 1, HABIT, 1 - HABIT)
    return {
        "W": w, "A": a, "L": lung, "image": people["pictures"][a, k], "other": people["pictures"][1 - a, k], "mask": people["mask"],
        "device": people["devices"][a, k], "report": np.array([(OPENING if o else "") + r for o, r in zip(opens, people["report"])]),
        "edited": people["edited"][a, k],
    }  # fmt: skip


def _tensor(images: np.ndarray) -> torch.Tensor:
    """(N, H, W) uint8 to (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images)[:, None].float().div(255).expand(-1, 3, -1, -1)


# Training -----------------------------------------------------------------------------------


def fit(method: Method, data: dict, probe: dict, setting: Setting, seed: int) -> tuple[CausalCLIPSeg, list[dict]]:
    """Train one network; returns it and its history: step, L_c, L_s, and D_s's Dice on `probe` now and then."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = CausalCLIPSeg(setting.model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=0.02, fused=True)
    n, data = len(data["image"]), data | {"field": data["mask"].mean(0) > FIELD}
    share = np.full(n, 1 / n)
    if method.balance:  # drawn in proportion to the weights: the same mean gradient as weighting, with less noise
        share = adjustment(data[method.balance].tolist(), data["L"].tolist()).double().numpy() / n
        share /= share.sum()
    rate = float(data["mask"].mean())
    cap = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)  # the base rate's entropy: what a D_s that knows nothing reaches
    name = "none" if method.objective == "adjusted" else method.objective
    history, recent = [], []
    for step in range(setting.steps):
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * min(1, (step + 1) / 40) * 0.5 * (1 + np.cos(np.pi * step / setting.steps))
        chosen = rng.choice(n, setting.batch // method.views, p=share)
        images, sentences = _views(method, data, chosen, rng)
        masks = torch.from_numpy(data["mask"][chosen])[:, None].float()
        with torch.autocast("cpu", torch.bfloat16):  # a fifth faster
            output = _forward(model.train(), method, images, sentences, confounder=name in ADVERSARIAL, reversal=LAM if name == "minimax" else None)
        if method.views == 2:
            first, second = output.logits.chunk(2)
            loss = objective("interventional", first, None, masks, edited_logits=second, mu=method.mu, dice_weight=1.0)
        else:
            loss = objective(name, output.logits, output.confounder_logits, masks, lam=LAM, cap=cap, dice_weight=1.0)
        if not torch.isfinite(loss.total):
            history.append({"step": step + 1, "stopped": True})
            break
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append((loss.causal.item(), loss.confounder.item()))
        if (step + 1) % max(1, setting.steps // 10) == 0:
            line = {"step": step + 1, "L_c": float(np.mean([c for c, _ in recent])), "L_s": float(np.mean([s for _, s in recent]))}
            if name in ADVERSARIAL:
                line["D_s"] = _confounder_dice(model, method, probe)
            history.append(line)
            recent = []
    return model, history


def _views(method: Method, data: dict, chosen: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Pictures (views * B, H, W) and sentences of the chosen patients; a second view is under simulated do(A), a single one with probability `share`."""
    images, sentences = data["image"][chosen], data["report"][chosen].tolist()
    if not method.edits:
        return images, sentences
    if method.edits == "matched":
        # do(A): the scanner of either view drawn from the world's P(A), 1/2 each, independent of L
        images, other = (np.where(rng.random((len(chosen), 1, 1)) < 0.5, data["other"][chosen], images) for _ in range(2))
    elif method.edits == "surroundings":
        strangers = data["image"][rng.integers(len(data["image"]), size=len(chosen))]
        other = acquisition.in_other_surroundings(images, strangers, data["field"])
    else:
        first, second = rng.permuted(np.tile(np.arange(EDITED), (len(chosen), 1)), axis=1)[:, :2].T
        other = data["edited"][chosen, second]
    if method.views == 1:
        return np.where(rng.random((len(chosen), 1, 1)) < method.share, other, images), sentences
    if method.edits == "other":
        images = np.where(rng.random((len(chosen), 1, 1)) < 0.5, data["edited"][chosen, first], images)
    return np.concatenate([images, other]), sentences + [reports.other_words(s, rng) for s in sentences]


def _forward(model: CausalCLIPSeg, method: Method, images: np.ndarray, sentences: list[str], **options):
    """The network's output for what the method may see: a grey picture or an empty sentence instead of the rest."""
    pixels = _tensor(images if method.image else np.full_like(images, 128))
    if method.plain_words:
        sentences = [reports.write(reports.parse(s)) for s in sentences]
    tokens, _ = model.tokenize(sentences if method.sentence else [""] * len(images))
    return model(pixels, tokens, **options)


# Measuring ----------------------------------------------------------------------------------


def measure(method: Method, strength: float, seed: int, setting: Setting, folder: Path, on: str = "test") -> dict:
    """Train once, and everything that is reported of that run."""
    people, tested = patients("train", setting, folder), patients(on, setting, folder)
    independent = compose(people, 0, seed)
    data = compose(people, strength, seed) if method.coupled else independent
    sets = {name: compose(tested, c, seed) for name, c in (("same", strength), ("none", 0), ("reversed", -strength))}
    torch.manual_seed(seed)
    untrained = CausalCLIPSeg(setting.model).eval()
    model, history = fit(method, data, sets["none"], setting, seed)
    answers = {name: _predict(model, method, s["image"], s["report"]) for name, s in sets.items()}
    other = {name: _predict(model, method, sets[name]["other"], sets[name]["report"]) for name in ("same", "none")}
    scores = {name: float(_dice(answers[name], s["mask"]).mean()) for name, s in sets.items()}
    scores["rerendered"] = float(_dice(other["same"], sets["same"]["mask"]).mean())
    return {
        "dice": scores, "change": float(1 - _dice(other["none"], answers["none"]).mean()), "history": history,
        "looks": {"trained": looks(model, sets["none"]), "untrained": looks(untrained, sets["none"]),
                  "location prior": _look(np.broadcast_to(data["mask"].mean(0), sets["none"]["image"].shape), sets["none"])},
        "probes": {"trained": probes(model, independent, sets["none"]), "untrained": probes(untrained, independent, sets["none"])},
    }  # fmt: skip


@torch.inference_mode()
def _predict(model, method: Method, images: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """(N, H, W) bool at threshold 0.5."""
    model.eval()
    parts = np.array_split(np.arange(len(images)), max(1, len(images) // 50))
    return np.concatenate([_forward(model, method, images[k], sentences[k].tolist()).logits[:, 0].numpy() > 0 for k in parts])


def _dice(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) Dice of each picture."""
    return dice(*counts(torch.from_numpy(found), torch.from_numpy(truth)).numpy().T)


@torch.inference_mode()
def _confounder_dice(model, method: Method, data: dict, n: int = 48) -> float:
    """Mean Dice of what D_s predicts."""
    logits = _forward(model.eval(), method, data["image"][:n], data["report"][:n].tolist(), confounder=True).confounder_logits
    return float(_dice(logits[:, 0].numpy() > 0, data["mask"][:n]).mean())


def looks(model, data: dict, n: int = 100) -> dict:
    """Where M and 1 - M look: AUROC and mass on the lesion and on the device of the scanner, means over n pictures."""
    return _look(attention(model)(_tensor(data["image"][:n]), data["report"][:n].tolist())[:, 0].numpy(), data)


def _look(maps: np.ndarray, data: dict) -> dict:
    found = {}
    for region, name in (("mask", "lesion"), ("device", "device")):
        rows = [(auroc(m, r), mass(m, r), mass(1 - m, r), r.mean()) for m, r in zip(maps.astype(float), data[region])]
        a, m, rest, area = (float(np.nanmean([row[k] for row in rows])) for k in range(4))
        found[name] = {"auroc_m": a, "auroc_one_minus_m": 1 - a, "mass_m": m, "mass_one_minus_m": rest, "area": area}
    return found


@torch.inference_mode()
def _features(model, data: dict, n: int) -> dict[str, torch.Tensor]:
    """F^c and F^s of n pictures, stages side by side at the finest one's grid: (n, h * w, C)."""
    model.eval()
    stages = model.vision_encoder(_tensor(data["image"][:n]))
    masks = [masker(f) for masker, f in zip(model.maskers, stages)]
    join = lambda parts: torch.cat([F.interpolate(p, size=stages[0].shape[-2:]) for p in parts], 1).flatten(2).transpose(1, 2)
    return {"c": join([m * f for m, f in zip(masks, stages)]), "s": join([(1 - m) * f for m, f in zip(masks, stages)])}


def probes(model, train: dict, test: dict, n: int = 400) -> dict:
    """Fresh linear probes on frozen features, fitted where A and L are independent: AUROC on new patients.

    Y at each place of the grid from F^s and from F^c (a lesion covers half of the place); A of a picture from F^c and from F^s, their
    means over the left and the right half.
    """
    fitted, tested, result = _features(model, train, n), _features(model, test, n), {}
    cells = lambda d: F.adaptive_avg_pool2d(torch.from_numpy(d["mask"][:n])[:, None].float(), int(fitted["c"].shape[1] ** 0.5)).flatten() >= 0.5

    def halves(f):
        side = int(f.shape[1] ** 0.5)
        grid = f.reshape(len(f), side, side, -1)
        return torch.cat([grid[:, :, : side // 2].mean((1, 2)), grid[:, :, side // 2 :].mean((1, 2))], 1)

    for part in "cs":
        result[f"Y from F^{part}"] = _probe(fitted[part].flatten(0, 1), cells(train), tested[part].flatten(0, 1), cells(test))
        a = [torch.from_numpy(d["A"][:n]) > 0 for d in (train, test)]
        result[f"A from F^{part}"] = _probe(halves(fitted[part]), a[0], halves(tested[part]), a[1])
    return result


def _probe(x: torch.Tensor, y: torch.Tensor, x_new: torch.Tensor, y_new: torch.Tensor, ridge: float = 0.03) -> float:
    """AUROC of a ridge regression on standardised features."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_new, target = ((x - mean) / std).double(), ((x_new - mean) / std).double(), y.double() - y.double().mean()
    weights = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.double), x.T @ target / len(x))
    return auroc((x_new @ weights).numpy(), y_new.numpy())
