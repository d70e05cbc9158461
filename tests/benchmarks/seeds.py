"""The spread of the main result over seeds: the same file with its first network trained from another seed each.

    python tests/benchmarks/seeds.py NAME=MODEL NAME=MODEL [...] --data QATA [--keep DIR]

Each MODEL is a folder of `causalclipseg ensemble`, NAME its first network's name on record; the further networks are the same in
all. Measured on the official test split: one view of the first network, and six views of all networks, at threshold 0.5 and at each
picture's own. The side is not checked here, since the numbers of that check are fitted to one file. Answers kept in DIR are used
again (`ship.py --keep`). Writes results/seeds.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kept import EXPECTED_DICE, RESULTS
from mixtures import alone, keep_six_views, replay
from ship import shipped, six_view_files

RULES = ("0.5", EXPECTED_DICE)


def one_view(folder: str, data: str) -> dict:
    """Scores of the first network alone, asked once."""
    from causalclipseg.evaluation import predictor

    model = shipped(folder)
    return scores(predictor(model), data, model.config.image_size)


def six_views(files: list[str], data: str) -> dict:
    """Scores of all networks' kept answers together."""
    import numpy as np
    from causalclipseg.views import together

    kept = [np.load(file, mmap_mode="r") for file in files]
    return scores(replay(kept, together), data, kept[0].shape[-1])


def scores(predict, data: str, size: int) -> dict:
    """rule -> per-image Dice and IoU, pooled Dice and IoU, each a fraction."""
    from causalclipseg.data import find_samples
    from causalclipseg.evaluation import measure

    found = measure(predict, find_samples(data, "test"), size, expected_dice=True).scores
    rows = {}
    for rule in RULES:
        each, pooled = found[rule].per_image(), found[rule].pooled()
        rows[rule] = {"dice": each["dice"]["mean"], "iou": each["iou"]["mean"], "pooled_dice": pooled["dice"], "pooled_iou": pooled["iou"]}
    return rows


def spread(rows: list[dict]) -> dict:
    """rule -> metric -> mean and standard deviation over seeds (of a sample: divided by their number less one)."""
    values = {rule: {key: [row[rule][key] for row in rows] for key in rows[0][rule]} for rule in RULES}
    return {rule: {key: {"mean": statistics.mean(v), "spread": statistics.stdev(v)} for key, v in by.items()} for rule, by in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", required=True, help="folder of QaTa-COV19")
    parser.add_argument("--keep", type=Path, help="a folder for what the networks answer in six views; what is there is not asked for again")
    args = parser.parse_args()
    from causalclipseg._files import write_text
    from causalclipseg.data import data_digest, find_samples

    models = dict(pair.split("=", 1) for pair in args.models)
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: six_view_files(shipped(model), folder, "qata", "report") for name, model in models.items()}
        missing = {file: (models[name], number) for name, wanted in files.items() for number, file in enumerate(wanted) if not Path(file).is_file()}
        single = {name: pool.submit(alone, one_view, model, args.data) for name, model in models.items()}
        for asked in [pool.submit(alone, keep_six_views, model, number, args.data, "test", "report", file) for file, (model, number) in missing.items()]:
            asked.result()
        several = {name: pool.submit(alone, six_views, wanted, args.data) for name, wanted in files.items()}
        rows = {name: {"one view": single[name].result(), "six views": several[name].result()} for name in models}
    samples = find_samples(args.data, "test")
    result = {
        "data": "qata", "split": "test", "n": len(samples), "data_digest": data_digest(samples), "seeds": rows,
        "spread": {way: spread([row[way] for row in rows.values()]) for way in ("one view", "six views")},
    }  # fmt: skip
    write_text(RESULTS / "seeds.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["spread"], indent=2))


if __name__ == "__main__":
    main()
