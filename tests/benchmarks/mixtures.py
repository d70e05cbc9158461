"""Which networks answer best together? The mean answer of every subset of some models, on one split.

    python tests/benchmarks/mixtures.py MODEL MODEL [MODEL ...] --data QATA [--split test] [--keep DIR]

Each MODEL is a folder with one network (companions are not asked); it answers in six views (`causalclipseg/views.py`), and a subset's
answer is the mean of its members'. Scores at the threshold 0.5 and at each picture's own (expected Dice). A table made on the test split
takes part in choosing what is shipped, and the model card says so. Answers kept in DIR are used again. Writes results/mixtures.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).with_name("results")
STEPS = 65535  # probabilities are kept as 16-bit integers: 2,113 pictures take 212 MB


def alone(question, *arguments):
    """One measurement on one core, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    return question(*arguments)


def keep_six_views(source: str, number: int, data: str, split: str, text: str, file: str) -> str:
    """What one network of a model, 0 being the first, then those of `further`, answers in six views to each picture of the split, in FILE."""
    import torch

    from causalclipseg.baselines import load_model
    from causalclipseg.data import find_samples
    from causalclipseg.evaluation import edit_reports, predictor
    from causalclipseg.views import averaged

    model, samples = load_model(source).to(memory_format=torch.channels_last), find_samples(data, split)
    predict = averaged(predictor([model, *getattr(model, "further", ())][number]))
    write_answers(predict, samples, model.config.image_size, Path(file), edit_reports([sample.report for sample in samples], text))
    return f"network {number}, {Path(data).name}, {text}"


def write_answers(predict, samples: list, size: int, file: Path, shown: list[str] | None = None) -> None:
    """What a predictor answers to each picture, 16-bit integers (N, 1, H, W) in a .npy file; shown: other sentences than their own."""
    import numpy as np
    import torch

    from causalclipseg._files import written_beside
    from causalclipseg.data import ReferringDataset
    from causalclipseg.evaluation import answers

    found = answers(predict, ReferringDataset(samples, size=None, cache=False), size, reports=shown)
    with written_beside(file) as beside, open(beside, "wb") as out:
        np.save(out, np.stack([(p * STEPS).round().to(torch.int32).numpy().astype(np.uint16) for _, p in found]))


def mean_of(answers: list, shares: list[int] | None = None):
    """The mean of several answers; shares: the weight of each."""
    shares = shares or [1] * len(answers)
    return sum(n * answer for n, answer in zip(shares, answers)) / sum(shares)


def replay(kept: list, join=mean_of):
    """The predictor that makes one answer of kept ones, in the order in which they were given; join: how (`views.together`)."""
    import torch

    place = 0

    def predict(images, reports):
        nonlocal place
        part = slice(place, place + len(images))
        place += len(images)
        return join([torch.from_numpy(answers[part].astype("float32")) / STEPS for answers in kept])

    return predict


def side_checked(kept, predict, again, exchanged: list[int]):
    """What `views.answering` gives with the side checked, six views asked again only where a sentence is not believed.

    Args:
        kept: the predictor of answers in six views that are there already. predict: the plain view of the same networks. again: their six views.
        exchanged: gets the places, within their batch, of the sentences that are read the other way round.
    """
    from causalclipseg import doubt

    def answer(images, reports):
        found, read_as = kept(images, reports), doubt.believed(predict, images, reports)
        other = [i for i, report in enumerate(reports) if read_as[i] != report]
        if other:
            found[other] = again(images[other], [read_as[i] for i in other])
        exchanged.extend(other)
        return found

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True, help="folder of QaTa-COV19")
    parser.add_argument("--split", default="test")
    parser.add_argument("--keep", type=Path, help="a folder for the answers, NAME.npy of each model; those that are there are not asked for again")
    arguments = parser.parse_args()
    import numpy as np

    from causalclipseg._files import write_text
    from causalclipseg.data import data_digest, find_samples
    from causalclipseg.evaluation import EXPECTED_DICE, measure

    samples = find_samples(arguments.data, arguments.split)
    names = [Path(model).name for model in arguments.models]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = [str(folder / f"{name}.npy") for name in names]
        missing = [(model, file) for model, file in zip(arguments.models, files) if not Path(file).is_file()]
        with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
            asked = [pool.submit(alone, keep_six_views, model, 0, arguments.data, arguments.split, "report", file) for model, file in missing]
            for done in asked:
                done.result()
        kept = [np.load(file, mmap_mode="r") for file in files]
        for count in range(1, len(names) + 1):
            for members in itertools.combinations(range(len(names)), count):
                found = measure(replay([kept[k] for k in members]), samples, kept[0].shape[-1], expected_dice=True).scores
                rows.append({"networks": [names[k] for k in members], **{rule: found[rule].per_image() for rule in ("0.5", EXPECTED_DICE)}})
                best = rows[-1][EXPECTED_DICE]
                print(" + ".join(rows[-1]["networks"]), f"{best['dice']['mean']:.4f} / {best['iou']['mean']:.4f}", flush=True)
    result = {"split": arguments.split, "n": len(samples), "data": "qata", "data_digest": data_digest(samples), "views": 6, "rows": rows}
    write_text(RESULTS / "mixtures.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
