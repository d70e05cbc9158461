"""When and how L_s runs away under `causal`, Eq. 3-4 as printed: at the paper's learning rate and at larger ones.

    python tests/benchmarks/runaway.py --data QATA [--rates 3e-5,3e-4,3e-3] [--steps 600,300,150]

A small network of the package's own modules on QaTa-COV19 at 64 x 64, as the paper trains: Adam, batch 32, lambda 0.05, cross-entropy alone,
no clipping; constant rate, one seed. Writes results/runaway.json and assets/figures/runaway.png: L_s and L_c, and the Dice of D_c and of D_s on
validation pictures, over the steps. `passes` is the first logged step at which L_s exceeds the base rate's entropy (1 x), and 10 and 100 times it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def study(pictures: dict, validation: dict, rate: float, steps: int, seed: int, every: int) -> dict:
    from causalclipseg.confounding import SMALL
    from causalclipseg.metrics import counts, dice
    from causalclipseg.model import CausalCLIPSeg
    from causalclipseg.objectives import objective

    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), CausalCLIPSeg(SMALL.model).to(memory_format=torch.channels_last)
    optimizer, lines, recent = torch.optim.Adam(model.parameters(), lr=rate), [], []
    show = lambda x: x.float().div(255).expand(-1, 3, -1, -1)
    scored = lambda logits, masks: float(dice(*counts(logits > 0, masks).numpy().T).mean())
    for step in range(1, steps + 1):
        chosen = rng.choice(len(pictures["image"]), 32, replace=False)
        output = model.train()(show(pictures["image"][chosen]), model.tokenize([pictures["report"][k] for k in chosen])[0], confounder=True)
        loss = objective("causal", output.logits, output.confounder_logits, pictures["mask"][chosen].float(), lam=0.05)
        if not torch.isfinite(loss.total):
            lines.append({"step": step, "stopped": True})
            break
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        recent.append((loss.causal.item(), loss.confounder.item(), loss.total.item()))
        if step % every == 0:
            with torch.inference_mode():
                output = model.eval()(show(validation["image"]), model.tokenize(validation["report"])[0], confounder=True)
            means = np.mean(recent, 0)
            lines.append({"step": step, "L_c": means[0], "L_s": means[1], "L": means[2], "dice": scored(output.logits, validation["mask"]),
                          "dice_of_D_s": scored(output.confounder_logits, validation["mask"])})  # fmt: skip
            print(rate, lines[-1], flush=True)
            recent = []
    return {"rate": rate, "lines": lines}


def load(root: str, split: str, n: int) -> dict:
    from causalclipseg.data import ReferringDataset, find_samples

    samples = find_samples(root, split)[:: max(1, len(find_samples(root, split)) // n)][:n]
    items = [item for item in ReferringDataset(samples, size=64)]
    return {"image": torch.stack([i["image"] for i in items]), "mask": torch.stack([i["mask"] for i in items]).bool(), "report": [i["report"] for i in items]}


def draw(result: dict, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for run, colour, style in zip(result["runs"], ("#0072B2", "#E69F00", "#D55E00"), ("-", "--", ":")):
        lines = [line for line in run["lines"] if "L_s" in line]
        steps = [line["step"] for line in lines]
        left.plot(steps, [line["L_s"] for line in lines], style, color=colour, label=f"rate {run['rate']:g}")
        right.plot(steps, [line["dice"] for line in lines], style, color=colour, label=f"D_c, rate {run['rate']:g}")
        right.plot(steps, [line["dice_of_D_s"] for line in lines], style, color=colour, alpha=0.4, marker=".", label=f"D_s, rate {run['rate']:g}")
    left.axhline(result["base_rate_entropy"], color="black", linewidth=0.8)
    left.annotate("the base rate's entropy", (1, result["base_rate_entropy"]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    left.set_yscale("log")
    left.set_ylabel("L_s, nats a pixel")
    right.set_ylabel("Dice on validation pictures")
    for panel in (left, right):
        panel.set_xlabel("step")
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    figure.suptitle("QaTa-COV19, the objective as printed", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rates", default="3e-5,3e-4,3e-3")
    parser.add_argument("--steps", default="600,300,150")
    parser.add_argument("--count", type=int, default=1000, help="training pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from causalclipseg._files import write_text
    from causalclipseg.feeding import versions

    torch.set_num_threads(1)
    training, validation = load(args.data, "train", args.count), load(args.data, "val", 100)
    base = float(training["mask"].float().mean())
    entropy = float(-base * np.log(base) - (1 - base) * np.log(1 - base))
    runs = []
    for rate, steps in zip(map(float, args.rates.split(",")), map(int, args.steps.split(","))):
        run = study(training, validation, rate, steps, args.seed, max(10, steps // 20))
        first = lambda factor: next((line["step"] for line in run["lines"] if line.get("L_s", 0) > factor * entropy), None)
        run["passes"] = {f"{factor} x": first(factor) for factor in (1, 10, 100)}
        runs.append(run)
    result = {"data": "QaTa-COV19, official training split", "pictures": len(training["image"]), "size": 64, "lam": 0.05, "batch": 32, "seed": args.seed,
              "base_rate_entropy": entropy, "runs": runs, "versions": versions()}  # fmt: skip
    write_text(Path(__file__).with_name("results") / "runaway.json", json.dumps(result, indent=1) + "\n")
    draw(result, ROOT / "assets" / "figures" / "runaway.png")


if __name__ == "__main__":
    main()
