"""Draw README's pictures from the shipped model and the kept results: phantoms only, never a patient.

    python tests/benchmarks/figures.py

Writes to assets/figures: overview.png (one synthetic X-ray, three sentences, and the two masks), training.png (the shipped
model's curve, on real and synthetic validation pictures) and confounding.png (the experiment of `benchmark confounding`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from kept import read
from provenance import first_network_runs, on_gpu, share_of_cores, training_runs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FIGURES = ROOT / "assets" / "figures"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#5A5A5A"  # Okabe-Ito, and a grey
SEED = 20


def overview() -> None:
    """One phantom, its own sentence and two that name a half; below, where M and 1 - M look."""
    import torch

    from causalclipseg import CausalCLIPSeg, segment
    from causalclipseg.phantoms import sample_phantom
    from causalclipseg.reports import refer

    torch.set_num_threads(1)
    model = CausalCLIPSeg.from_pretrained(ROOT / "assets" / "models" / "mini")
    phantom = sample_phantom(SEED)
    results = [segment(model, phantom.image, text, confounder=True) for text in (phantom.report, refer("left"), refer("right"))]
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 7), layout="constrained")
    axes = axes.ravel()
    titles = ["1  synthetic, truth dashed", "2  its own sentence", "3  “…left lung.”", "4  “…right lung.”", "5  causal mask $M$", "6  confounder mask $1-M$"]
    for axis, title in zip(axes, titles):
        axis.imshow(phantom.image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=15, loc="left")
        axis.axis("off")
    axes[0].contour(phantom.mask, [0.5], colors=GREEN, linewidths=1.6, linestyles="--")
    for axis, result in zip(axes[1:4], results):
        axis.imshow(_tint(result.probability, BLUE, 0.55))
        if result.mask.any():
            axis.contour(result.mask, [0.5], colors=BLUE, linewidths=1.8)
        axis.contour(phantom.mask, [0.5], colors=GREEN, linewidths=1, linestyles="--")
    for axis, masks, colour in zip(axes[4:], (results[0].causal_masks, results[0].confounder_masks), (BLUE, ORANGE)):
        axis.imshow(_tint(np.mean(masks, axis=0), colour, 0.8))
    _save(figure, "overview.png")


def training() -> None:
    """Validation Dice and the two losses of the shipped run, epoch by epoch."""
    curve = joined_curve()
    validated = [line for line in curve if "val_dice" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    # The synthetic validation set is not the same in each stage.
    real = [line["val_dice/qata"] for line in validated]
    synthetic = [next(v for k, v in line.items() if k.startswith("val_dice/phantoms")) for line in validated]
    for label, dice, colour, marker in (("real (QaTa-COV19)", real, BLUE, "o"), ("synthetic (phantoms)", synthetic, ORANGE, "s")):
        left.plot([line["minutes"] for line in validated], dice, color=colour, marker=marker, markersize=5, label=label)
    left.set(xlabel="minutes of training on two CPU cores", ylabel="per-image Dice, validation", ylim=(0.45, 0.95))
    both = [line["minutes"] for line in curve if line["trains_on_validation"]]
    if both:
        left.axvspan(both[0], both[-1], color=GREY, alpha=0.12, linewidth=0)
        left.text(both[0] + 8, 0.47, "grey: trained on the\nvalidation pictures, too;\nno longer a validation", color=GREY, fontsize=9)
    left.legend(frameon=False, loc="center left", bbox_to_anchor=(0.1, 0.4))
    minutes = [line["minutes"] for line in curve]
    right.plot(minutes, [line["loss_causal"] for line in curve], color=BLUE, marker="o", markersize=2.5, linewidth=1, label="$L_c$ (causal)")
    right.plot(minutes, [line["loss_confounder"] for line in curve], color=ORANGE, marker="s", markersize=2.5, linewidth=1, label="$L_s$ (confounder)")
    right.set(xlabel="minutes", ylabel="nats a pixel, training", ylim=(0, None))
    right.legend(frameon=False)
    gpu = [line["minutes"] for line in curve if line["gpu"]]
    if gpu:
        for axis in (left, right):
            axis.axvspan(gpu[0], gpu[-1], color=GREEN, alpha=0.18, hatch="//", linewidth=0)
        right.annotate("hatched: on a GPU", (gpu[0], 0.2), (-6, 0), textcoords="offset points", ha="right", color=GREEN, fontsize=9)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    _save(figure, "training.png")


def confounding() -> None:
    """The kept runs of `benchmark confounding`, drawn as the command draws them."""
    from causalclipseg._confounding_page import draw
    from causalclipseg.confounding import METHODS

    found = read("confounding")
    draw(FIGURES / "confounding.png", found["runs"], found["summary"], METHODS)
    print(FIGURES / "confounding.png")


def joined_curve() -> list[dict]:
    """The lines of all runs behind the first network in order, with minutes since the first began, whether validation was trained on, and where.

    Runs of one process took one of the two cores each, side by side, and those on a GPU shared it: they are drawn one after the
    other, at half their minutes.
    """
    curve, before, runs = [], 0.0, training_runs()
    for settings, lines in map(runs.get, first_network_runs()):
        more, share = {"trains_on_validation": "val" in settings["train_splits"], "gpu": on_gpu(settings)}, share_of_cores(settings)
        curve += [{**line, **more, "minutes": (before + line["seconds"] * share) / 60} for line in lines]
        before += lines[-1]["seconds"] * share
    return curve


def _tint(values: np.ndarray, colour: str, strength: float) -> np.ndarray:
    """(H, W) in [0, 1] as a colour (H, W, 4) whose opacity is the value, not stretched."""
    return np.dstack([np.broadcast_to(matplotlib.colors.to_rgb(colour), (*values.shape, 3)), strength * values])


def _save(figure, name: str) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / name, dpi=110)
    plt.close(figure)
    print(FIGURES / name)


if __name__ == "__main__":
    overview()
    training()
    confounding()
