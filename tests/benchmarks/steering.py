"""Does the sentence steer the mask? One half of pictures with lesions in both, asked for in several wordings.

    python tests/benchmarks/steering.py MODEL MODEL [MODEL ...] --data QATA --phantoms PHANTOMS [--split train]

Success: at least 95 per cent of the answer's area lies on the half that the sentence names, and the answer is not empty. Some of
the wordings are a report's and contradict such a picture ("Unilateral ..."). The first pictures of each split whose sentence
is bilateral (of training none named `covid_N`, as in the test split), each half named in turn, one view, threshold 0.5. And of
as many pictures with lesions in one half alone, the healthy half named: the answer should be empty. A model that holds several
networks is asked with all of them in six views, too, in two of the wordings: together, and for comparison their plain mean. Writes
results/steering.json, or steering_train.json; the models go by their folders' names, and those measured earlier on the same pictures stay.
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
IN_SIX_VIEWS = ("refer", "unilateral")  #: the wordings that all networks of a model are asked in, six views each
ENOUGH = 0.95


def steering(predict, images, wordings=tuple(SENTENCES)) -> dict:
    """wording -> success and mean share of the area on the named half; images (B, 3, H, W) in [0, 1]."""
    from causalclipseg.reports import SIDES, restrict

    found = {}
    for name in wordings:
        success, shares, words = 0, [], SENTENCES[name]
        for side in SIDES:
            mask = predict(images, [words.format(side)] * len(images))[:, 0] >= 0.5
            share = restrict(mask, side).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
            success += int((share >= ENOUGH).sum())
            shares += share.tolist()
        found[name] = {"success": success / len(shares), "area_on_half": sum(shares) / len(shares)}
    return found


def clean(predict, images, masks, wordings=tuple(SENTENCES)) -> dict:
    """wording -> share of empty answers, and mean share of the picture that they cover, where the sentence names the half without a lesion.

    images (B, 3, H, W) in [0, 1]; masks (B, H, W), each with lesions in one half alone.
    """
    from causalclipseg.reports import SIDES, restrict

    healthy = [next(side for side in SIDES if not restrict(mask, side).any()) for mask in masks]
    found = {}
    for name in wordings:
        answers = predict(images, [SENTENCES[name].format(side) for side in healthy])[:, 0] >= 0.5
        areas = answers.float().mean((1, 2))
        found[name] = {"empty": float((areas == 0).float().mean()), "area": float(areas.mean())}
    return found


def shown(items: list[dict]):
    """Pictures of a data set as a network takes them, (B, 3, H, W) in [0, 1]."""
    import torch

    return torch.cat([item["image"][None].float() / 255 for item in items]).expand(-1, 3, -1, -1)


def one_half_alone(samples: list, count: int, size: int) -> tuple:
    """The first pictures whose mask, at `size`, lies in one half alone: images (B, 3, H, W) and masks (B, H, W)."""
    import torch

    from causalclipseg.data import ReferringDataset
    from causalclipseg.reports import SIDES, restrict

    items = ReferringDataset([s for s in samples if s.report.startswith("Unilateral")], size=size)
    chosen = [i for i in items if sum(bool(restrict(i["mask"][0], side).any()) for side in SIDES) == 1][:count]
    return shown(chosen), torch.cat([i["mask"] for i in chosen])


def measured_earlier(file: Path, asked: dict) -> dict:
    """The models of a result that is there already, if they were asked the same of the same pictures."""
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    return earlier["models"] if earlier and {key: earlier.get(key) for key in asked} == asked else {}


def ways(name: str, network) -> list[tuple]:
    """How a model is asked: name of the row, predictor, wordings."""
    from causalclipseg.evaluation import predictor
    from causalclipseg.views import answering, averaged

    found = [(name, predictor(network), tuple(SENTENCES))]
    if network.config.companions:
        found.append((f"{name}, six views", answering(network, average_views=True), IN_SIX_VIEWS))
        found.append((f"{name}, plain mean of six views", averaged(predictor(network, companions=True)), IN_SIX_VIEWS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--phantoms", required=True)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--split", choices=("test", "train"), default="test")
    args = parser.parse_args()
    from causalclipseg import CausalCLIPSeg
    from causalclipseg._files import write_text
    from causalclipseg.data import ReferringDataset, data_digest, find_samples

    file = Path(__file__).with_name("results") / f"steering{'' if args.split == 'test' else '_train'}.json"
    result = {"pictures": args.pictures, "enough": ENOUGH, "split": args.split, "sentences": SENTENCES, "data_digest": {}}
    networks, found = {Path(model).name: CausalCLIPSeg.from_pretrained(model) for model in args.models}, {}
    for kind, data in (("qata", args.data), ("phantoms", args.phantoms)):
        every = [s for s in find_samples(data, args.split) if s.source != "covid"]
        samples = [s for s in every if s.report.startswith("Bilateral")][: args.pictures]
        result["data_digest"][kind] = data_digest(samples)
        sizes = {network.config.image_size for network in networks.values()}
        bilateral = {size: shown(ReferringDataset(samples, size=size)) for size in sizes}
        unilateral = {size: one_half_alone(every, args.pictures, size) for size in sizes}
        for model, network in networks.items():
            size = network.config.image_size
            for name, predict, wordings in ways(model, network):
                rows = steering(predict, bilateral[size], wordings)
                healthy = clean(predict, *unilateral[size], wordings)
                found.setdefault(name, {}).update({kind: rows, f"{kind}, healthy half": healthy})
                for words, row in rows.items():
                    print(f"{name:24s} {kind:9s} {words:11s} success {row['success']:.3f}  area on the half {row['area_on_half']:.3f}  healthy half empty {healthy[words]['empty']:.3f}", flush=True)
    write_text(file, json.dumps({**result, "models": {**measured_earlier(file, result), **found}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
