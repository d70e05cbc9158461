"""Ship a trained run: weights to assets/models/mini, measurements to results/, the model card, README's results.

    python tests/benchmarks/ship.py MODEL --runs RUN [RUN ...] --others RUN [RUN ...] --networks NAME [NAME ...] --data QATA --phantoms PHANTOMS
    python tests/benchmarks/ship.py MODEL --further RUN [RUN ...] --another RUN [RUN ...] --networks NAME ...    # the same, when more runs of either line made it
    python tests/benchmarks/ship.py            # write card (mini_card.py), README (readme_results.py) and results/README.md (results_page.py) again, from the kept results

MODEL is a folder of `causalclipseg ensemble`, each RUN one of `causalclipseg train`; they go on record in place of those that are
(provenance.py), and stay as they are where no NAME is given. QATA is the folder of QaTa-COV19; PHANTOMS that of `causalclipseg data
phantoms`. What is measured is the stored file (weights in 8 bits, large ones in 4; model.quantized). The test split is read here, once
for each MODEL; what it had a say in, the card tells.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
import readme_results  # noqa: E402
import results_page  # noqa: E402
from kept import AVERAGED, CHECKED, EXPECTED_DICE, MODEL, RESULTS, TEXTS, fill  # noqa: E402
from mini_card import card  # noqa: E402
from mixtures import alone, keep_six_views, replay, side_checked  # noqa: E402
from provenance import record, trained_on  # noqa: E402


def measure(data: str, phantoms: str, texts: list[str], folder: Path) -> None:
    """Evaluate the shipped file on both test splits with these texts, and on one named half; write results/.

    What each network answers in six views is kept in FOLDER, under a name made of its weights, and not asked for again.
    """
    folders = {"qata": data, "phantoms": phantoms}
    means = [("qata", "report"), ("qata", "none"), ("phantoms", "report")] if AVERAGED in texts else []
    folder.mkdir(parents=True, exist_ok=True)
    files = {(name, text): six_view_files(shipped(), folder, name, text) for name, text in means}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        answers = [
            pool.submit(alone, keep_six_views, str(MODEL), number, folders[name], "test", text, file)
            for (name, text), wanted in files.items() for number, file in enumerate(wanted) if not Path(file).is_file()
        ]  # the longest first
        tasks = [pool.submit(alone, measure_one, name, where, text) for name, where in folders.items() for text in texts if text in TEXTS]
        for done in as_completed(answers):
            print(done.result(), flush=True)
        tasks += [pool.submit(alone, measure_averaged, name, folders[name], text, wanted) for (name, text), wanted in files.items()]
        for done in as_completed(tasks):
            print(done.result(), flush=True)


def shipped(folder: str = ""):
    """The shipped model, or another, laid out as a CPU likes it."""
    import torch

    from causalclipseg import CausalCLIPSeg

    return CausalCLIPSeg.from_pretrained(folder or MODEL).to(memory_format=torch.channels_last)


def keep(result: dict, name: str, text: str) -> str:
    """Write one result; returns a line for the terminal."""
    from causalclipseg.evaluation import save_result

    del result["cases"]  # names of patients' pictures stay out of the repository
    save_result(result, RESULTS / f"mini_{name}_{text}.json")
    line = f"{name} {text} Dice {result['per_image']['dice']['mean']:.4f} IoU {result['per_image']['iou']['mean']:.4f} pooled {result['pooled']['dice']:.4f}"
    if EXPECTED_DICE in result["thresholds"]:
        row = result["thresholds"][EXPECTED_DICE]["per_image"]
        line += f" {EXPECTED_DICE} {row['dice']['mean']:.4f} {row['iou']['mean']:.4f}"
    if "referring" in result:
        line += f"  half named: success {result['referring']['success']:.4f} Dice {result['referring']['dice']:.4f}"
    return line


def measure_one(name: str, folder: str, text: str) -> str:
    """One test split with one kind of text."""
    from causalclipseg.evaluation import evaluate, evaluate_referring, predictor

    model = shipped()
    predict, size = predictor(model), model.config.image_size
    rules = [EXPECTED_DICE] if text == "report" else []
    result = evaluate(predict, folder, model="assets/models/mini", text=text, image_size=size, rules=rules, surface=text == "report")
    if text == "report":
        result["referring"] = evaluate_referring(predict, folder, image_size=size)
    return keep(result | {"views": 1, "networks": 1}, name, text)


def digest(network) -> str:
    """A name made of a network's own weights."""
    from causalclipseg.config import FURTHER

    found = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if not key.startswith(FURTHER):
            found.update(key.encode() + value.numpy().tobytes())
    return found.hexdigest()[:16]


def six_view_files(model, folder: Path, name: str, text: str) -> list[str]:
    """Where the answers of each network of a model are kept; without a sentence also of the one that reads none, which is the last."""
    networks = [model, *(model.further if text == "none" else model.companions)]
    return [str(folder / f"{digest(network)}_{name}_{text}.npy") for network in networks]


def measure_averaged(name: str, data: str, text: str, files: list[str]) -> str:
    """The kept answers of all networks together; of the picture's own sentence also their plain mean, and with the check of the side; without
    one also of those that read sentences, and of the one that reads none."""
    import numpy as np
    from causalclipseg.data import find_samples
    from causalclipseg.evaluation import evaluate, predictor
    from causalclipseg.evaluation import measure as scores_of
    from causalclipseg.views import answering, together, with_silent

    model, exchanged, lines = shipped(), [], []
    kept = [np.load(file, mmap_mode="r") for file in files]
    answer, parts = replay(kept, together), {}
    if text == "none" and model.silent is not None:
        answer = with_silent(replay(kept[:-1], together), replay(kept[-1:]))
        parts = {"that read sentences": replay(kept[:-1], together), "that reads none": replay(kept[-1:])}
    ways = {AVERAGED if text == "report" else f"{text}_{AVERAGED}": answer}
    if text == "report":
        ways[CHECKED] = side_checked(replay(kept, together), predictor(model, companions=True), answering(model, average_views=True), exchanged)
    for way, answer in ways.items():
        result = evaluate(answer, data, model="assets/models/mini", text=text, image_size=model.config.image_size, rules=[EXPECTED_DICE])
        result |= {"views": 6, "networks": len(kept)}
        if way == CHECKED:
            result["exchanged"] = len(exchanged)
        for part, alone in parts.items():
            found = scores_of(alone, find_samples(data, "test"), model.config.image_size, expected_dice=True).scores
            result.setdefault("networks alone", {})[part] = {
                rule: {"per_image": found[rule].per_image(), "pooled": found[rule].pooled()} for rule in ("0.5", EXPECTED_DICE)
            }
        if (name, way) == ("qata", AVERAGED):  # for the card
            found = scores_of(replay(kept), find_samples(data, "test"), model.config.image_size, expected_dice=True).scores
            result["plain_mean"] = {rule: found[rule].per_image() for rule in ("0.5", EXPECTED_DICE)}
        lines.append(keep(result, name, way))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder with a model; left out: write the card again from the kept results")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="the runs that led to the file, on record as run1, run2, ...")
    parser.add_argument("--others", nargs="+", default=[], metavar="RUN", help="those of a second line of runs, on record as other1, other2, ...")
    parser.add_argument("--further", nargs="+", default=[], metavar="RUN", help="further runs of the first line, after those that are on record")
    parser.add_argument("--another", nargs="+", default=[], metavar="RUN", help="further runs of the second line, after those that are on record")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="names on record of the file's networks: other13, mean_of_run4_run5")
    parser.add_argument("--silent", default="", metavar="NAME", help="name on record of the network that reads no sentence, if there is one")
    parser.add_argument("--texts", nargs="+", default=[AVERAGED, *TEXTS], help="what is measured; the rest stays as it is on record")
    parser.add_argument("--keep", type=Path, help="a folder for what the networks answer in six views; what is there is not asked for again")
    parser.add_argument("--data")
    parser.add_argument("--phantoms")
    args = parser.parse_args()
    if args.model:
        from causalclipseg.model import CONFIG_FILE, WEIGHTS_FILE

        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(Path(args.model) / file, MODEL / file)
        if args.networks:
            record(*([Path(run) for run in runs] for runs in (args.runs, args.others, args.further, args.another)), args.networks, args.silent)
        with tempfile.TemporaryDirectory() as temporary:
            measure(args.data, args.phantoms, args.texts, args.keep or Path(temporary))
    from causalclipseg._files import write_text

    write_text(MODEL / "training.json", json.dumps(trained_on(), indent=1) + "\n")
    write_text(MODEL / "README.md", card())
    fill(ROOT / "README.md", readme_results.PARTS)
    fill(RESULTS / "README.md", results_page.PARTS)


if __name__ == "__main__":
    main()
