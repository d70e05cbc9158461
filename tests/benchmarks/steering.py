"""Does the sentence steer the mask? One half of pictures with lesions in both, asked for in several wordings.

    python tests/benchmarks/steering.py MODEL MODEL [MODEL ...] --data QATA --phantoms PHANTOMS

Success: at least 95 per cent of the answer's area lies on the half that the sentence names, and the answer is not empty. Some of
the wordings are a report's and contradict such a picture ("Unilateral ..."). The first pictures of each test split whose sentence
is bilateral, each half named in turn, one view, threshold 0.5. Writes results/steering.json; the models go by their folders' names.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SENTENCES = {
    "refer": "Infection of the {} lung.",
    "one area": "One infected area in the {} lung.",
    "unilateral": "Unilateral pulmonary infection, one infected area, all {} lung.",
    "opacity": "Opacity in the {} lung.",
    "show": "Show the lesion in the {} lung.",
    "half alone": "{} lung",
}
ENOUGH = 0.95


def steering(predict, images) -> dict:
    """wording -> success and mean share of the area on the named half; images (B, 3, H, W) in [0, 1]."""
    from causalclipseg.reports import SIDES, restrict

    found = {}
    for name, words in SENTENCES.items():
        success, shares = 0, []
        for side in SIDES:
            mask = predict(images, [words.format(side)] * len(images))[:, 0] >= 0.5
            share = restrict(mask, side).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
            success += int((share >= ENOUGH).sum())
            shares += share.tolist()
        found[name] = {"success": success / len(shares), "area_on_half": sum(shares) / len(shares)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--phantoms", required=True)
    parser.add_argument("--pictures", type=int, default=100)
    args = parser.parse_args()
    import torch

    from causalclipseg import CausalCLIPSeg
    from causalclipseg.config import write_text
    from causalclipseg.data import ReferringDataset, data_digest, find_samples
    from causalclipseg.evaluation import predictor

    result = {"pictures": args.pictures, "enough": ENOUGH, "split": "test", "sentences": SENTENCES, "data_digest": {}, "models": {}}
    networks = {Path(model).name: CausalCLIPSeg.from_pretrained(model) for model in args.models}
    for kind, data in (("qata", args.data), ("phantoms", args.phantoms)):
        samples = [s for s in find_samples(data, "test") if s.report.startswith("Bilateral")][: args.pictures]
        result["data_digest"][kind] = data_digest(samples)
        for model, network in networks.items():
            items = ReferringDataset(samples, size=network.config.image_size)
            images = torch.cat([item["image"][None].float() / 255 for item in items]).expand(-1, 3, -1, -1)
            rows = result["models"].setdefault(model, {})[kind] = steering(predictor(network), images)
            for name, row in rows.items():
                print(f"{model:24s} {kind:9s} {name:11s} success {row['success']:.3f}  area on the half {row['area_on_half']:.3f}", flush=True)
    write_text(Path(__file__).with_name("results") / "steering.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
