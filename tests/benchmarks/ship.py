"""Ship a trained run: weights to assets/models/mini, measurements to results/, the model card, README's results.

    python tests/benchmarks/ship.py MODEL --runs N=RUN [N=RUN ...] --data QATA --phantoms PHANTOMS
    python tests/benchmarks/ship.py            # write card (mini_card.py) and README (readme_results.py) again, from the kept results

MODEL is a folder of `causalclipseg train`, `average` or `ensemble`; each RUN, a folder of `causalclipseg train`, goes on record as
runN, and later ones are struck from the record. Runs made for an ensemble's further networks (`--others`) go on record as other1,
other2, ...; `--companions` names these networks, `--mean-of` what the first one is the mean of. QATA is the folder of QaTa-COV19;
PHANTOMS that of `causalclipseg data phantoms`. Weights are stored in 8 bits (model.quantized; an ensemble's are already), and what
is measured is the stored file. The test split is read here, once for each MODEL; what it had a say in, the card tells.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from kept import AVERAGED, CHECKED, EXPECTED_DICE, MODEL, RESULTS, TEXTS  # noqa: E402
from mini_card import card  # noqa: E402
from provenance import record, record_companions  # noqa: E402
from readme_results import fill  # noqa: E402


def measure(data: str, phantoms: str, texts: list[str]) -> None:
    """Evaluate the shipped file on both test splits with these texts, and on one named half; write results/."""
    folders = (("qata", data), ("phantoms", phantoms))
    tasks = [(measure_averaged, name, folder) for name, folder in folders if AVERAGED in texts]  # the longest first
    tasks += [(measure_without_sentence, "qata", data)] * (AVERAGED in texts)
    tasks += [(measure_one, name, folder, text) for name, folder in folders for text in texts if text in TEXTS]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(alone, *task) for task in tasks]):
            print(done.result(), flush=True)


def alone(question, *arguments) -> str:
    """One measurement on one core."""
    import torch

    torch.set_num_threads(1)
    return question(*arguments)


def shipped():
    """The shipped model, laid out as a CPU likes it."""
    import torch

    from causalclipseg import CausalCLIPSeg

    return CausalCLIPSeg.from_pretrained(MODEL).to(memory_format=torch.channels_last)


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


def measure_averaged(name: str, folder: str) -> str:
    """Six views by every network of the file, without and with the check of the side."""
    from mixtures import side_checked

    from causalclipseg.evaluation import evaluate, predictor
    from causalclipseg.views import averaged

    model, seen, exchanged, lines = shipped(), [], [], []
    predict = predictor(model, companions=True)
    mean = averaged(predict)

    def remember(images, reports):
        seen.append(mean(images, reports))
        return seen[-1]

    # what the first pass answered stays where the sentence is believed
    check = side_checked(lambda images, reports: seen.pop(0), predict, exchanged)
    for text, answer in ((AVERAGED, remember), (CHECKED, check)):
        result = evaluate(answer, folder, model="assets/models/mini", image_size=model.config.image_size, rules=[EXPECTED_DICE]) | asked(model)
        if text == CHECKED:
            result["exchanged"] = len(exchanged)
        lines.append(keep(result, name, text))
    return "\n".join(lines)


def asked(model) -> dict:
    """How many views and networks a mean answer is of, for its record."""
    return {"views": 6, "networks": 1 + len(model.companions)}


def measure_without_sentence(name: str, data: str) -> str:
    """Six views by every network without a sentence, for README's table."""
    from causalclipseg.evaluation import evaluate
    from causalclipseg.views import answering

    model = shipped()
    answer = answering(model, average_views=True)
    result = evaluate(answer, data, model="assets/models/mini", text="none", image_size=model.config.image_size, rules=[EXPECTED_DICE])
    return keep(result | asked(model), name, "none_averaged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder with a model; left out: write the card again from the kept results")
    parser.add_argument("--runs", nargs="+", default=[], metavar="N=RUN", help="the runs behind it that are not on record yet")
    parser.add_argument("--mean-of", nargs="+", default=[], metavar="NAME", help="the runs, or means of runs, whose mean the first network is")
    parser.add_argument("--companions", nargs="+", default=[], metavar="NAME", help="an ensemble's further networks, by their names on record")
    parser.add_argument("--others", nargs="+", default=[], metavar="RUN", help="the runs that were made for these alone, on record as other1, other2, ...")
    parser.add_argument("--texts", nargs="+", default=[AVERAGED, *TEXTS], help="what is measured; the rest stays as it is on record")
    parser.add_argument("--data")
    parser.add_argument("--phantoms")
    args = parser.parse_args()
    if args.model:
        import torch

        from causalclipseg import CausalCLIPSeg
        from causalclipseg.model import CONFIG_FILE, WEIGHTS_FILE

        model = CausalCLIPSeg.from_pretrained(args.model)
        if model.companions:  # stored in 8 bits already
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(Path(args.model) / file, MODEL / file)
        else:
            model.save_pretrained(MODEL, dtype=torch.int8)
        record({int(number): Path(run) for number, _, run in (pair.partition("=") for pair in args.runs)}, args.mean_of)
        record_companions(args.companions, [Path(run) for run in args.others])
        measure(args.data, args.phantoms, args.texts)
    from causalclipseg.config import write_text

    write_text(MODEL / "README.md", card())
    fill(ROOT / "README.md")


if __name__ == "__main__":
    main()
