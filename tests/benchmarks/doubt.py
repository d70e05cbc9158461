"""How far should a sentence's side be believed? Fit doubt.py's numbers, and count on the test split what they do.

    python tests/benchmarks/doubt.py --data QATA [--model MODEL]

Fitted on sentences of training and validation that name one half alone (pictures named `sub-S…`, as the test split's): logistic
regression without a penalty, whose intercept is log [pi / (1 - pi)]. The test split chooses nothing. Writes results/doubt.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).with_name("results")


def collect(source: str, data: str, split: str, batch_size: int = 32) -> dict:
    """Of the split's sentences that claim a side: features, whether most of the mask lies on the other half, Dice with both sides; on one core."""
    import torch
    from tqdm import tqdm

    from causalclipseg import doubt, reports
    from causalclipseg.baselines import load_model
    from causalclipseg.data import ReferringDataset, find_samples
    from causalclipseg.evaluation import fit, predictor
    from causalclipseg.metrics import Scores, counts, expected_dice_threshold

    torch.set_num_threads(1)
    model = load_model(source).to(memory_format=torch.channels_last)
    samples = [s for s in find_samples(data, split) if s.source == "sub" and doubt.claimed_side(s.report)]
    items, predict, size = ReferringDataset(samples), predictor(model, companions=True), model.config.image_size
    found = {"x": [], "wrong": [], "dice": [], "dice_other": []}
    for start in tqdm(range(0, len(items), batch_size), desc=split):
        batch = [items[i] for i in range(start, min(start + batch_size, len(items)))]
        images = torch.cat([fit(item["image"][None].float() / 255, size) for item in batch]).expand(-1, 3, -1, -1)
        shown = [item["report"] for item in batch]
        answers = {}

        def once(pictures, sentences):  # each answer to the pictures themselves is wanted for the features and for its Dice
            if pictures is not images:
                return predict(pictures, sentences)
            key = tuple(sentences)
            answers[key] = answers[key] if key in answers else predict(images, sentences)
            return answers[key]

        found["x"] += doubt.features(once, images, shown).tolist()
        for name, sentences in (("dice", shown), ("dice_other", [reports.swap_sides(r) for r in shown])):
            rows = [counts(p >= expected_dice_threshold(p.numpy()), item["mask"].bool()) for item, p in zip(batch, once(images, sentences))]
            found[name] += Scores(torch.cat(rows).numpy()).dice.tolist()
        for item in batch:
            area = {side: int(reports.restrict(item["mask"][0].numpy(), side).sum()) for side in reports.SIDES}
            found["wrong"].append(area[doubt.claimed_side(item["report"])] < sum(area.values()) / 2)
    return found


def fit(x, wrong, prior: float) -> list[float]:
    """a and b of highest likelihood, for the given pi (Newton's method)."""
    import torch

    x, y = torch.tensor(x, dtype=torch.double), torch.tensor(wrong, dtype=torch.double)
    w = torch.zeros(2, dtype=torch.double)
    for _ in range(30):
        p = (math.log(prior / (1 - prior)) + x @ w).sigmoid()
        w = w + torch.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]), x.T @ (y - p))
    return w.tolist()


def summary(found: dict, pi: float, w: list[float]) -> dict:
    """What `believed` does with these numbers, per-image Dice at the expected-Dice threshold."""
    odds = [math.log(pi / (1 - pi)) + w[0] * a + w[1] * b for a, b in found["x"]]
    n, exchanged = len(odds), [z > 0 for z in odds]
    after = [other if e else own for own, other, e in zip(found["dice"], found["dice_other"], exchanged)]
    return {
        "sentences": n, "wrong_side": sum(found["wrong"]), "exchanged": sum(exchanged),
        "exchanged_rightly": sum(e and w for e, w in zip(exchanged, found["wrong"])),
        "dice": sum(found["dice"]) / n, "dice_checked": sum(after) / n,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of QaTa-COV19")
    parser.add_argument("--model", default=str(ROOT / "assets" / "models" / "mini"))
    arguments = parser.parse_args()
    from causalclipseg._files import write_text

    splits = ("train", "val", "test")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(splits, pool.map(collect, *zip(*((arguments.model, arguments.data, split) for split in splits)))))
    x, wrong = (found["train"][key] + found["val"][key] for key in ("x", "wrong"))
    pi = sum(wrong) / len(wrong)
    a, b = fit(x, wrong, pi)
    result = {
        "model": Path(arguments.model).name, "data": "qata", "pi": pi, "a": a, "b": b, "fitted_on": ["train", "val"],
        "splits": {split: summary(rows, pi, [a, b]) for split, rows in found.items()},
        "note": "one-sided sentences of sub-S… pictures; wrong_side: the half not named holds more of the mask; Dice per image, one view, expected-Dice threshold",
    }  # fmt: skip
    write_text(RESULTS / "doubt.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
