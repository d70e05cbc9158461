"""Ship a trained run: its weights to assets/models/mini, every measurement to results/, and the model card.

    python tests/benchmarks/ship.py RUN --data QATA --phantoms PHANTOMS [--pilots DIR]

RUN is a folder of `causalclipseg train`; QATA the folder of QaTa-COV19; PHANTOMS that of
`causalclipseg data phantoms`. Weights are stored in half precision, and what is measured is the stored file.
The test split is read here, and nowhere before: what is shipped was chosen on the validation splits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).with_name("results")
MODEL = ROOT / "assets" / "models" / "mini"
TEXTS = {
    "report": "the picture's own sentence",
    "generic": "a sentence that names no place",
    "none": "no sentence",
    "shuffled": "another picture's sentence",
    "swapped": "left and right exchanged",
}


def measure(data: str, phantoms: str) -> None:
    """Evaluate the shipped file on both test splits with every text, and on one named half; write results/."""
    import torch
    from tqdm import tqdm

    from causalclipseg import CausalCLIPSeg
    from causalclipseg.evaluation import evaluate, evaluate_referring, predictor, save_result

    torch.set_num_threads(2)
    model = CausalCLIPSeg.from_pretrained(MODEL)
    common = dict(image_size=model.config.image_size, progress=lambda x: tqdm(x, disable=None, leave=False))
    predict = predictor(model)
    for name, folder in (("qata", data), ("phantoms", phantoms)):
        for text in TEXTS:
            result = evaluate(predict, folder, model="assets/models/mini", text=text, **common)
            if text == "report":
                result["referring"] = evaluate_referring(predict, folder, **common)
            save_result(result, RESULTS / f"mini_{name}_{text}.json")
            print(name, text, result["per_image"]["dice"], result["per_image"]["iou"]["mean"], result["pooled"], flush=True)
            if text == "report":
                print(name, "one half named", result["referring"], flush=True)


def card() -> str:
    """The model card, every number read from RUN's and results/'s files."""
    run = json.loads((RESULTS / "mini_training.json").read_text())
    curve = [json.loads(line) for line in (RESULTS / "mini_metrics.jsonl").read_text().splitlines()]
    qata = {text: json.loads((RESULTS / f"mini_qata_{text}.json").read_text()) for text in TEXTS}
    phantoms = {text: json.loads((RESULTS / f"mini_phantoms_{text}.json").read_text()) for text in TEXTS}
    best = max((line for line in curve if "val_dice" in line), key=lambda line: line["val_dice"])
    lines = [
        "---", "license: mit", "library_name: causalclipseg", "pipeline_tag: image-segmentation",
        "tags: [medical, chest-x-ray, referring-segmentation]", "---", "",
        "# CausalCLIPSeg `mini`", "",
        "Segments COVID-19 lesions in a frontal chest X-ray from the picture and a sentence. Made for teaching and",
        "research. **Not for clinical use**: not tested on patients of any clinic, not a medical device.", "",
        "## How it was made", "",
        *table(
            ["", ""],
            [
                ["data", " + ".join(f"{d['name']} ({d['train']} training, {d['val']} validation pictures)" for d in run["data"])],
                ["split of the real data", f"{run['data'][0]['split_rule']}; validation and test hold `sub-S…` files only, half of train is `covid_N`"],
                ["sentences", "rebuilt in the published grammar; they state side, zones and number of areas of the very mask that is asked for"],
                ["pre-trained weights", {"none": "none: from random weights"}.get(run["weights"], run["weights"])],
                ["objective", f"`{run['objective']}`, λ = {run['lam']}, every {run['confounder_every']}th step; soft Dice in L_c with weight {run['dice_weight']}"],
                ["epochs", f"{curve[-1]['epoch']} ({curve[-1]['seconds'] / 60:.0f} minutes), the weights of epoch {best['epoch']} kept (best validation Dice)"],
                ["machine", f"{run['device']}, {run.get('processes', 1)} processes of {run['threads']} thread(s), precision {run['precision']}"],
                ["seed", str(run["seed"])],
                ["data digest", f"`{run['data_digest'][:16]}…`"],
                ["versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())],
            ],
        ),
        "",
        "```",
        "causalclipseg data phantoms phantoms --count 1500",
        f"torchrun --nproc-per-node {run.get('processes', 1)} -m causalclipseg train --data QaTa-COV19 --data phantoms --preset mini --set precision={run['precision']} --out run",
        "python tests/benchmarks/ship.py run --data QaTa-COV19 --phantoms phantoms",
        "```",
        "",
        f"Validation Dice, per image, when chosen: {best['val_dice']:.4f} over both sources ("
        + ", ".join(f"{k.split('/')[1]} {v:.4f}" for k, v in best.items() if k.startswith("val_dice/")) + ").",
        "", "## Measured once, on the official test split of QaTa-COV19", "",
        f"{qata['report']['n']} pictures, threshold {qata['report']['threshold']}, at the masks' own size (224×224); 95 % bootstrap intervals.",
        "", *scores(qata), "",
        "The sentences are privileged text: they describe the very mask that is asked for. The rows without it say what the picture alone gives.",
        "", *groups(qata["report"]), "",
        "### One half named", "",
        referring(qata["report"]["referring"]), "",
        "## Held-out phantoms (synthetic)", "",
        *scores(phantoms), "",
        referring(phantoms["report"]["referring"]), "",
        *pilot_section(), "## Limits", "",
        "- One public data set of COVID-19 patients, one seed. No healthy X-rays: on a picture without a lesion it has been",
        "  trained only by sentences that name a clean half or zone.",
        "- Left and right are halves of the picture, as in QaTa-COV19, not the patient's.",
        "- Real pictures were read from a compact copy (WebP at quality 86); validation members and sentences are not the published ones.",
        "- A wrong sentence misleads it: see the rows `shuffled` and `swapped`.",
        "- `causal_masks` are attention over features. That they separate cause from confounder is the paper's claim, not a finding of ours.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def scores(results: dict) -> list[str]:
    """One row a text: both families of Dice and IoU."""
    rows = []
    for text, what in TEXTS.items():
        r = results[text]
        d, i = r["per_image"]["dice"], r["per_image"]["iou"]
        rows.append([
            f"`{text}`: {what}", f"{d['mean']:.4f} ({d['low']:.4f} to {d['high']:.4f})", f"{i['mean']:.4f} ({i['low']:.4f} to {i['high']:.4f})",
            f"{r['pooled']['dice']:.4f}", f"{r['pooled']['iou']:.4f}",
        ])  # fmt: skip
    return table(["sentence", "per-image Dice", "per-image IoU", "pooled Dice", "pooled IoU"], rows)


def groups(result: dict) -> list[str]:
    """One row a subgroup."""
    rows = [
        [name, value, str(g["n"]), f"{g['dice']:.4f}", f"{g['iou']:.4f}", f"{g['pooled_dice']:.4f}"]
        for name, values in result["subgroups"].items()
        for value, g in values.items()
    ]
    return table(["by", "group", "pictures", "per-image Dice", "per-image IoU", "pooled Dice"], rows)


def referring(r: dict) -> str:
    """One sentence of figures on the named half."""
    return (
        f"{r['pictures']} bilateral pictures (each half at least {r['least_pixels']} lesion pixels), each half named in turn: "
        f"{100 * r['success']:.1f} % of {r['n']} predictions are not empty and have at least 95 % of their area on the named half; "
        f"on average {100 * r['area_on_half']:.1f} % of the area lies there ({100 * r['pooled_area_on_half']:.1f} % of the summed area); "
        f"{r['empty']} are empty; per-image Dice against that half's mask {r['dice']:.4f}. Nothing is cut away by side."
    )


def pilot_section() -> list[str]:
    """The short runs that the objective was chosen by, where their curves are kept."""
    files = sorted(RESULTS.glob("pilot_*.jsonl"))
    if not files:
        return []
    rows = []
    for file in files:
        for line in map(json.loads, file.read_text().splitlines()):
            rows.append([f"`{file.stem.removeprefix('pilot_')}`", str(line["epoch"]), f"{line['loss_causal']:.4f}", f"{line['loss_confounder']:.4f}", f"{line['val_dice']:.4f}"])
    return ["## Choosing the objective", "", (RESULTS / "pilots.txt").read_text().strip(), "",
            *table(["objective", "epoch", "L_c", "L_s", "validation Dice"], rows), ""]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run's folder; left out: write the card again from the kept results")
    parser.add_argument("--data")
    parser.add_argument("--phantoms")
    args = parser.parse_args()
    if args.run:
        import torch

        from causalclipseg import CausalCLIPSeg
        from causalclipseg.config import write_text

        CausalCLIPSeg.from_pretrained(args.run).save_pretrained(MODEL, dtype=torch.float16)
        for kept, name in (("training.json", "mini_training.json"), ("metrics.jsonl", "mini_metrics.jsonl")):
            write_text(RESULTS / name, (Path(args.run) / kept).read_text())
        measure(args.data, args.phantoms)
    else:
        from causalclipseg.config import write_text
    write_text(MODEL / "README.md", card())


if __name__ == "__main__":
    main()
