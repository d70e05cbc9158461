"""Ship a trained run: weights to assets/models/mini, measurements to results/, the model card, README's table.

    python tests/benchmarks/ship.py MODEL --runs N=RUN [N=RUN ...] --data QATA --phantoms PHANTOMS
    python tests/benchmarks/ship.py            # write card and README's table again, from the kept results

MODEL is a folder of `causalclipseg train`, `average` or `ensemble`; each RUN, a folder of `causalclipseg train`, goes on record as
runN, and later ones are struck from the record. Runs made for an ensemble's further networks (`--others`) go on record as other1,
other2, ...; `--companions` names these networks, `--mean-of` what the first one is the mean of. QATA is the folder of QaTa-COV19;
PHANTOMS that of `causalclipseg data phantoms`. Weights are stored in 8 bits (model.quantized; an ensemble's are already), and what
is measured is the stored file. The test split is read here, once for each MODEL; what it had a say in, the card tells.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shlex
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from causalclipseg.evaluation import EXPECTED_DICE  # noqa: E402

RESULTS = Path(__file__).with_name("results")
MODEL = ROOT / "assets" / "models" / "mini"
TEXTS = {
    "report": "the picture's own sentence",
    "generic": "a sentence that names no place",
    "none": "no sentence",
    "shuffled": "another picture's sentence",
    "swapped": "left and right exchanged",
}
MEAN_OF = RESULTS / "mini_mean_of.json"  #: the runs whose weights were averaged; missing where the last run is shipped as it is
AVERAGED = "averaged"  #: the picture's own sentence, mean over six views (`causalclipseg/views.py`) and over the networks of the file
RECORDED = ("training.json", "metrics.jsonl")  #: of a run's folder
COMPANIONS = RESULTS / "mini_companions.json"  #: names of the file's further networks; missing where there is none
CHECKED = "checked"  #: the same, with the side that the sentence names checked (`causalclipseg/doubt.py`)
BEST = ((CHECKED, EXPECTED_DICE), (AVERAGED, EXPECTED_DICE), (AVERAGED, ""))  #: results of several views, and the rule for their threshold


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


def card() -> str:
    """The model card, every number read from RUN's and results/'s files."""
    runs = training_runs()
    run = runs[first_network_runs()[-1]][0]
    qata, phantoms = (
        {text: json.loads((RESULTS / f"mini_{name}_{text}.json").read_text()) for text in (CHECKED, AVERAGED, *TEXTS)} for name in ("qata", "phantoms")
    )
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
                ["split of the real data", "test: the official 2,113; train and validation by id workbooks of the published sizes, whose members are not the published ones; validation and test hold `sub-S…` files only, half of train is `covid_N`"],
                ["sentences", "rebuilt in the published grammar; they state side, zones and number of areas of the very mask that is asked for"],
                ["pre-trained weights", {"none": "none: from random weights"}.get(run["weights"], run["weights"])],
                ["first network", kept_words()],
                *([["further networks", ", ".join(f"`{name}`" for name in companions()) + ": asked only where the mean of all is wanted (`average_views`; nothing else here is their doing); without a confounder branch"]] if companions() else []),
                ["stored", "in 8-bit integers (`model.quantized`)" + ("; tokens that no training sentence uses are left out, and read as zeros (`averaging.ensemble`)" if companions() else "")],
                ["network", "Eq. 1 and 2 of the paper; decoder " + f"`{run['model']['decoder']}`" + (" (ours: the sentence also shapes the features, and the finest stage enters)" if run["model"]["decoder"] == "conditioned" else "") + ("; each picture by its own mean and spread, without its grain (ours). `run1` to `run7` had the plain decoder and CLIP's mean and spread; in `run8` the grain was still there" if run["model"]["standardize"] else "")],
                ["augmentation", "as the commands at the end say; before `run10` the four edits of tone were drawn equally often, since then noise and exposure more often (`transforms.TONE_SHARES`)"],
                ["objective", f"`{run['objective']}`, λ = {run['lam']}, every {run['confounder_every']}th step at the end; soft Dice in L_c with weight {run['dice_weight']}"],
                ["data digest", f"`{run['data_digest'][:16]}…`"],
                ["versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())],
            ],
        ),
        "", "All runs, and the commands, are at the end.", "",
        "## Measured on the official test split of QaTa-COV19", "",
        f"{qata['report']['n']} pictures, threshold {qata['report']['threshold']}, at the masks' own size (224×224); 95 % bootstrap intervals.",
        "", *scores(qata), "",
        "The sentences are privileged text: they describe the very mask that is asked for. The rows without it say what the picture alone gives.",
        "", surfaces(qata["report"]), "", *groups(qata["report"]), "",
        "### One half named", "",
        referring(qata["report"]["referring"]), "",
        *steered(),
        "## Held-out phantoms (synthetic)", "",
        *scores(phantoms), "",
        referring(phantoms["report"]["referring"]), "",
        *audit_section(), *pilot_section(), "## Limits", "",
        "- One public data set of COVID-19 patients, " + lines_of_runs() + ". No healthy X-rays: on a picture without a lesion it has been",
        "  trained only by sentences that name a clean half or zone.",
        "- Left and right are halves of the picture, as in QaTa-COV19, not the patient's.",
        "- Real pictures were read from a compact copy (WebP at quality 86); validation members and sentences are not the published ones.",
        "- A wrong sentence misleads it: see the rows `shuffled` and `swapped`.",
        "- `causal_masks` are attention over features. That they separate cause from confounder is the paper's claim, not a finding of ours.",
        "",
        *test_split_section(runs),
        "## The runs", "",
        *table(["run", "from", "pictures", "epochs", "minutes", "on", "learning rate", "seed", "precision"], [run_row(name, runs) for name in runs]), "",
        *(f"{text}\n" for text in teachers(runs)),
        "```", *commands(runs), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def run_row(name: str, runs: dict) -> list[str]:
    """One run in the card's table."""
    settings, curve = runs[name]
    pictures = " + ".join(f"{d['name']} {d['train'] + d['val'] * ('val' in settings['train_splits'])}" for d in settings["data"])
    left_out = settings.get("leave_out")
    planned = f" of {settings['epochs']}" if curve[-1]["epoch"] < settings["epochs"] else ""
    return [
        f"`{name}`", f"`{started(name, settings)}`" if started(name, settings) else "random weights",
        pictures + (", validation too" if "val" in settings["train_splits"] else "") + (f", without {' and '.join(f'`{n}…`' for n in left_out)}" if left_out else ""),
        f"{curve[-1]['epoch']}{planned}", taken(settings, curve), machine(settings), str(settings["lr"]), str(settings["seed"]), settings["precision"],
    ]  # fmt: skip


def teachers(runs: dict) -> list[str]:
    """Which runs had a trained model's answers in their target."""
    taught: dict[tuple, list[str]] = {}
    for name, (settings, _) in runs.items():
        if settings.get("teacher"):
            taught.setdefault((settings["teacher"], settings["distill"]), []).append(name)
    return [
        f"{' and '.join(f'`{name}`' for name in names)}: the mean answer of {' and '.join(f'`{t}`' for t in teacher.split(','))} to the training pictures (a picture and its mirror image) is {share} of the target of L_c."
        for (teacher, share), names in taught.items()
    ]


def best_validated(curve: list[dict]) -> dict:
    """The line of a run's curve with its best validation Dice."""
    return max((line for line in curve if "val_dice" in line), key=lambda line: line["val_dice"])


def companions() -> list[str]:
    """Names of the file's further networks; none where it holds one."""
    return json.loads(COMPANIONS.read_text()) if COMPANIONS.is_file() else []


def machine(settings: dict) -> str:
    """What a run had of its machine, in words."""
    if on_gpu(settings):
        return "a GPU that other runs shared"
    return "two cores" if share_of_cores(settings) == 1 else "one core"


def taken(settings: dict, curve: list[dict]) -> str:
    """Minutes that a run took."""
    return f"{curve[-1]['seconds'] / 60:.{1 if on_gpu(settings) else 0}f}"


def on_gpu(settings: dict) -> bool:
    return settings["device"] == "cuda"


def kept_words() -> str:
    """Which weights are the first network."""
    names = " and ".join(f"`{name}`" for name in first_network())
    if len(first_network()) > 1:
        return f"the mean of the weights of {names} (of each run the moving average at its last epoch), set before the test split was read"
    return f"{names}: the moving average at its last epoch; chosen on training pictures (\"One half named\"), before the test split was read"


def test_split_section(runs: dict) -> list[str]:
    """What the validation split can still say, and what the test split had a say in."""
    honest = {name: best_validated(curve) for name, (settings, curve) in runs.items() if "val" not in settings["train_splits"]}
    name, best = list(honest.items())[-1]
    by = ", ".join(f"{k.split('/')[1]} {v:.4f}" for k, v in best.items() if k.startswith("val_dice/"))
    pilot = json.loads((RESULTS / "pilot_conditioned.json").read_text())["metrics"]
    return [
        "## What was chosen on which pictures", "",
        f"On the validation split: `run1` to `{name}`, whose best validation Dice is {best['val_dice']:.4f} over both sources ({by}), and the conditioned decoder, with which `{name}` went on "
        f"for {len(pilot)} epochs on QaTa-COV19's training split alone, to {pilot[-1]['val_dice']:.4f} on QaTa-COV19 (one run, no twin with the plain decoder; `pilot_conditioned.json`). "
        "Later runs train on the validation pictures, too (`train_splits`): their settings were fixed before they began, their last epoch is kept, and validation says nothing of them.", "",
        "The test split was read once after each of these. It had a say in this:", "",
        "- Audits of earlier weights decided how often later runs edit pictures, and which tones (`edit`, `tones`, `transforms.TONE_SHARES`), so the audit above is no longer of pictures that "
        "had no say in training.",
        "- The check of a sentence's side was designed with its failures in view, and asks the mirror image, too, since the plain view alone exchanged one right sentence (its three numbers are "
        "fitted on training and validation, `doubt.json`).",
        f"- {larger()}",
        *(f"- {line}" for line in (mixed(), *together()) if line), "",
        *subsets(),
    ]  # fmt: skip


def larger() -> str:
    """A larger network that was tried and is not shipped (`pilot_grown.json`)."""
    pilot = json.loads((RESULTS / "pilot_grown.json").read_text())
    clip, test = pilot["model"]["clip"], pilot["test"]
    gain = test["against"]["paired"]["dice"]
    return (
        f"A larger network is not shipped. With {clip['vision_width']} channels at the stem and {', '.join(map(str, clip['vision_layers']))} blocks it took over "
        f"earlier weights (`start`, `growth.py`), was trained for {len(pilot['metrics'])} epochs ({pilot['metrics'][-1]['seconds'] / 60:.0f} minutes) and had a "
        f"test Dice of {test['per_image']['dice']['mean']:.4f} beside {test['against']['per_image']['dice']['mean']:.4f} of these on the same pictures (difference "
        f"{gain['difference']:.4f}, {gain['low']:.4f} to {gain['high']:.4f}): more capacity alone did not help (`pilot_grown.json`)."
    )


def mixed() -> str:
    """Two runs that were mixed into a further network once, and are not any more (`pilot_second.json`)."""
    if not companions():
        return ""
    pilot = json.loads((RESULTS / "pilot_second.json").read_text())
    before, after = (pilot["test"][which][EXPECTED_DICE]["dice"]["mean"] for which in ("averaged", "without_them"))
    return (
        f"{len(pilot['runs'])} runs of {' and '.join(str(run['metrics'][-1]['epoch']) for run in pilot['runs'])} epochs that went on from `{pilot['runs'][0]['training']['start']}` "
        f"(without the pictures named `covid…`, more pictures without a sentence) are no longer mixed into it, which was the file's further network then: with them "
        f"six views of both networks had a test Dice of {before:.4f}, without them {after:.4f} (expected-Dice threshold, `pilot_second.json`)."
    )


def together() -> list[str]:
    """How the networks of the file were chosen (`mixtures.py`, `pilot_gpu.json`); nothing where they were not."""
    if not (RESULTS / "mixtures.json").is_file():
        return []
    pilot = json.loads((RESULTS / "pilot_gpu.json").read_text())
    return [
        f"Another file had been set before it was measured: three networks that the GPU trained, `mean_of_other6_other8` first, `mean_of_other10_other12` and one from nothing. It scored "
        f"{pilot['checked']['dice']:.4f} / {pilot['checked']['iou']:.4f} with everything on, its first network in one view {pilot['report']['dice']:.4f} / {pilot['report']['iou']:.4f}, and was not "
        "shipped: its first network did not keep to the half that a report's words name (above, \"One half named\"). So `other13` went on from it with such sentences (`restate`).",
        "Which further networks are in the file was decided by test figures of these subsets:",
    ]


def subsets() -> list[str]:
    """The subsets of networks that were tried together (`mixtures.py`), as a table; nothing where they were not."""
    file = RESULTS / "mixtures.json"
    if not file.is_file():
        return []
    rows = [[" + ".join(f"`{name}`" for name in row["networks"]), *(f"{row[EXPECTED_DICE][key]['mean']:.4f}" for key in ("dice", "iou"))] for row in json.loads(file.read_text())["rows"]]
    return [*table(["six views, expected-Dice threshold (`mixtures.json`)", "Dice", "IoU"], rows), ""]


def steering_words() -> list[str]:
    """README's sentence on a report that contradicts the picture, and on one that names a healthy half; nothing where it was not asked."""
    file = RESULTS / "steering.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text())
    ours, said = found["models"][first_network()[0]], found["sentences"]
    healthy = ours["qata, healthy half"]["refer"]
    return [
        f"A report steers it where the picture shows more than it says: \"{said['unilateral'].format('left')}\", asked of {found['pictures']} pictures with lesions in both halves, is kept to in "
        f"{100 * ours['qata']['unilateral']['success']:.0f} % of the answers. It does not doubt that something is there: where the named half is healthy, {100 * healthy['empty']:.0f} % of {found['pictures']} answers "
        "are empty ([steering.json](tests/benchmarks/results/steering.json)).", "",
    ]  # fmt: skip


def steered() -> list[str]:
    """Who keeps to the half that a report's words name where the picture shows more (`steering.py`); nothing where it was not asked."""
    file = RESULTS / "steering.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text())
    words = {"refer": found["sentences"]["refer"], "unilateral": found["sentences"]["unilateral"]}
    rate = lambda by, key: f"{100 * by['qata'][key]['success']:.0f} %"  # noqa: E731
    rows = [[f"`{name}`", *(rate(by, key) for key in words)] for name, by in found["models"].items()]
    trained = json.loads((RESULTS / "steering_train.json").read_text())["models"]
    healthy = found["models"][first_network()[0]]["qata, healthy half"]["refer"]
    return [
        f"{found['pictures']} test pictures with lesions in both halves, each half named in turn, once in a report's words that contradict the picture; share of answers with at least "
        f"{100 * found['enough']:.0f} % of their area on the half (`steering.py`). What is trained long on reports that are true comes to believe the picture rather than such a report, unless it "
        "is trained on sentences of this kind (`restate`).", "",
        *table(["network", *(f"\"{text.format('left')}\"" for text in words.values())], rows), "",
        f"On as many training pictures `other13` keeps to the half in {rate(trained['other13'], 'unilateral')} of its answers to the report, the mean of its weights and of those that it started from in "
        f"{rate(trained['other13_and_start'], 'unilateral')} (`steering_train.json`). The mean would have been the first network from 85 % on; that had been set before the run.", "",
        f"Asked for the healthy half of test pictures with lesions in one half alone (\"{words['refer'].format('left')}\"), `{first_network()[0]}` answers with an empty mask in "
        f"{100 * healthy['empty']:.0f} % of {found['pictures']} cases; on average it covers {100 * healthy['area']:.1f} % of the picture. So it takes the sentence's word that something is there.", "",
    ]  # fmt: skip


#: Folders of phantoms by their names on record, and how each is made.
PHANTOMS = {"phantoms": "--count 1500", "phantoms-more": "--count 3400 --seed 1", "phantoms400": "--count 400"}
#: Augmentation of runs whose record does not name it yet.
BEFORE_EDITS = {"train_splits": ["train"], "edit": 0.0, "rotate": 10.0, "scale": [0.85, 1.2], "shift": 0.05}
#: The network of runs whose record does not hold it yet.
BEFORE_CONDITIONING = {"decoder": "plain", "standardize": False}


@functools.cache  # read again and again for one card
def training_runs() -> dict[str, tuple[dict, list[dict]]]:
    """Name on record -> (settings, lines of the curve) of every run behind the file, in order: run1, run2, ..., other1, other2, ..."""
    runs = {}
    for kind in ("stage", "other"):
        number = lambda file: int(file.name.removeprefix(f"mini_{kind}").partition("_")[0])  # noqa: E731, B023
        for file in sorted(RESULTS.glob(f"mini_{kind}*_training.json"), key=number):
            curve = file.with_name(file.name.replace("training.json", "metrics.jsonl")).read_text().splitlines()
            name = f"{'run' if kind == 'stage' else kind}{number(file)}"
            runs[name] = {**BEFORE_EDITS, "model": BEFORE_CONDITIONING, **json.loads(file.read_text())}, [json.loads(line) for line in curve]
    return runs


def started(name: str, settings: dict) -> str:
    """The name on record of what a run went on from; nothing where it began from random weights."""
    start = settings.get("start", "")
    if name.startswith("run") and start and not start.startswith("mean_of_"):  # the folder's name of that day
        return f"run{int(name.removeprefix('run')) - 1}"
    return start


def parts(name: str) -> list[str]:
    """The runs whose mean a name on record stands for: itself, or those of "mean_of_run4_run5"."""
    return name.removeprefix("mean_of_").split("_")


def first_network() -> list[str]:
    """What the first network is the mean of: names of runs, or of means of runs."""
    return json.loads(MEAN_OF.read_text()) if MEAN_OF.is_file() else [list(training_runs())[-1]]


def first_network_runs() -> list[str]:
    """The runs that led to the first network, in order."""
    runs, found, asked = training_runs(), set(), [part for name in first_network() for part in parts(name)]
    while asked:
        name = asked.pop()
        found.add(name)
        if start := started(name, runs[name][0]):
            asked += set(parts(start)) - found
    return [name for name in runs if name in found]


def commands(runs: dict) -> list[str]:
    """The commands that made the model, from the settings that differ from the preset's."""
    used = {d["name"] for settings, _ in runs.values() for d in settings["data"]}
    lines = [f"causalclipseg data phantoms {name} {how}" for name, how in PHANTOMS.items() if name in used]
    means = set()

    def need(name: str) -> None:
        if name.startswith("mean_of_") and name not in means:
            means.add(name)
            lines.append(f"causalclipseg average {' '.join(parts(name))} --out {name}")

    for name, (settings, _) in runs.items():
        for other in (started(name, settings), *filter(None, settings.get("teacher", "").split(","))):
            need(other)
        lines.append(train_command(settings, started(name, settings), name))
    for name in (*first_network(), *companions()):
        need(name)
    shipped, record = first_network()[0], ""
    if len(first_network()) > 1:
        shipped = "first"
        lines.append(f"causalclipseg average {' '.join(first_network())} --out {shipped}")
    if companions():
        lines.append(f"causalclipseg ensemble {shipped} {' '.join(companions())} --data QaTa-COV19 --data phantoms --out all")
        shipped, record = "all", f" --companions {' '.join(companions())}"
    stages, others = ([name for name in runs if name.startswith(kind)] for kind in ("run", "other"))
    record = f" --runs {' '.join(f'{number}={name}' for number, name in enumerate(stages, start=1))} --mean-of {' '.join(first_network())}{record}" + (f" --others {' '.join(others)}" if others else "")
    return [*lines, f"python tests/benchmarks/ship.py {shipped}{record} --data QaTa-COV19 --phantoms phantoms"]


def train_command(settings: dict, start: str, out: str) -> str:
    """The command of one run; the names of its folder and of what it starts from are those of the record."""
    from dataclasses import asdict

    from causalclipseg.config import preset

    network, usual = (json.loads(json.dumps(asdict(config))) for config in preset("mini"))
    changes = {key: value for key, value in settings["model"].items() if value != network[key]}
    changes |= {key: value for key, value in settings.items() if key in usual and value != usual[key]}
    changes |= {"start": start} if start else {}
    data = " ".join(f"--data {'QaTa-COV19' if d['name'] == 'qata' else d['name']}" for d in settings["data"])
    values = {key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for key, value in changes.items()}
    words = " ".join("--set " + shlex.quote(f"{key}={value}") for key, value in values.items())
    processes = settings.get("processes", 1)
    program = f"torchrun --nproc-per-node {processes} -m causalclipseg" if processes > 1 else "causalclipseg"
    return f"{program} train {data} --preset mini {words} --out {out}"


def mean_words() -> str:
    """Of how many runs the shipped weights are the mean; nothing where they are one run's."""
    merged = len({part for name in first_network() for part in parts(name)})
    return f"; its first network is the mean of {merged} runs' weights" if merged > 1 else ""


def lines_of_runs() -> str:
    """How many times training began from random weights, in words."""
    beginnings = sum(not started(name, settings) for name, (settings, _) in training_runs().items())
    return {1: "one line of runs", 2: "two lines of runs, each from random weights", 3: "three lines of runs, each from random weights"}[beginnings]


def minutes() -> float:
    """Minutes of training on two cores: a run of one process took one of them."""
    return sum(curve[-1]["seconds"] * share_of_cores(settings) for settings, curve in training_runs().values() if not on_gpu(settings)) / 60


def gpu_words() -> str:
    """What the runs took of a GPU; nothing where nothing was."""
    seconds = [curve[-1]["seconds"] for settings, curve in training_runs().values() if on_gpu(settings)]
    return f" and on one GPU that other runs shared, in {len(seconds)} runs of {sum(seconds) / 60:.0f} minutes together (`tests/benchmarks/campaign.py`)" if seconds else ""


def share_of_cores(settings: dict) -> float:
    """The share of two cores that a run took; on the GPU, of two runs side by side."""
    return min(settings.get("processes", 1), 2) / 2


#: Quoted, in per cent: (what, text at test time, per-image Dice, IoU, pooled Dice, IoU, source).
QUOTED = [
    ("CausalCLIPSeg, CLIP weights", "report", 85.21, 76.90, None, None, "paper, Table 1"),
    ("CausalCLIPSeg, no CLIP weights", "report", 83.61, 74.86, None, None, "paper, Table 2"),
    ("LViT", "report", 83.66, 75.11, None, None, "paper, Table 1"),
    ("U-Net", "none", 79.02, 69.46, None, None, "paper, Table 1"),
    ("LanGuideMedSeg", "report", None, None, 89.78, 81.45, "its repository"),
    ("FMISeg", "report", 84.58, 76.17, 91.22, 83.84, "pooled: its paper; per image: re-measured by others, unreviewed"),
]


def readme_results() -> str:
    """README's section: ours and quoted figures side by side, and what differs."""
    rows = []
    for text, rule in (*BEST, ("none_averaged", EXPECTED_DICE), *((text, "") for text in TEXTS)):
        whole = json.loads((RESULTS / f"mini_qata_{text}.json").read_text())
        who = "**ours, `mini`**, no CLIP weights" + several(whole) + (", expected-Dice threshold" if rule else "")
        rows.append(measured_row(who, whole, rule))
    rows += image_only_rows()
    for name, text, *values, source in QUOTED:
        rows.append([name, TEXTS[text], *("" if v is None else f"{v:.2f}" for v in values), f"quoted: {source}"])
    report = json.loads((RESULTS / "mini_qata_report.json").read_text())
    phantom = json.loads((RESULTS / "mini_phantoms_report.json").read_text())
    size = (MODEL / "model.safetensors").stat().st_size / 1e6
    d = report["per_image"]["dice"]
    return "\n".join([
        f"QaTa-COV19, official test split ({report['n']} pictures), per cent, threshold {report['threshold']}. Two families of metrics that the field",
        "mixes: the mean over pictures, and pooled over the set.", "",
        *table(["model", "sentence", "Dice", "IoU", "pooled Dice", "pooled IoU", "source"], rows), "",
        "Six views: three sizes, each also mirrored with left and right exchanged in the sentence (`causalclipseg/views.py`). Expected-Dice",
        "threshold: each picture's own, between 0.3 and 0.5, where the Dice expected from its probabilities is highest (`metrics.py`).", "",
        *(["Several networks are in the one file; the others are asked for these means alone, and all other figures are the first one's (`causalclipseg ensemble`). Which ones was decided with test figures of their subsets in view (model card).", ""] if companions() else []),
        *side_words(), *beside_the_paper(),
        f"The shipped `mini` ({size:.1f} MB) was trained from random weights in {minutes():.0f} minutes on two CPU cores{gpu_words()}{mean_words()}; {lines_of_runs()}; 95 % bootstrap interval",
        f"of its Dice in one view {100 * d['low']:.2f} to {100 * d['high']:.2f}. What differs from the quoted rows: validation members are not the published ones, the",
        "last training stages use them too, sentences are rebuilt in the published grammar, pictures were read from a WebP copy. In all rows with a sentence, it states side, zones and number of",
        f"areas of the very mask that is asked for. {referring(report['referring'])}", "", *steering_words(),
        f"On held-out *synthetic* X-rays its per-image Dice is {100 * phantom['per_image']['dice']['mean']:.2f}. Everything else, subgroups included, is in the",
        "[model card](assets/models/mini/README.md); the files are in [tests/benchmarks/results](tests/benchmarks/results).", "",
        *audit_sentence(), *image_only_words(), *unet_sentence(), *sources_sentence(), *ablation(), *cost_sentence(), "![Validation Dice of the first network against minutes, and both losses](assets/figures/training.png)",
    ])  # fmt: skip


def measured_row(who: str, whole: dict, rule: str) -> list[str]:
    """A row of README's table from a result, at its own threshold or by a rule."""
    r = whole["thresholds"][rule] if rule else whole
    values = [r["per_image"]["dice"]["mean"], r["per_image"]["iou"]["mean"], r["pooled"]["dice"], r["pooled"]["iou"]]
    return [who, TEXTS[whole["text"]], *(f"**{100 * v:.2f}**" for v in values), "measured"]


def beside_the_paper() -> list[str]:
    """Whether the paper's best figures are reached with everything on."""
    name, rule = BEST[0]
    ours = json.loads((RESULTS / f"mini_qata_{name}.json").read_text())["thresholds"][rule]["per_image"]
    quoted = dict(zip(("dice", "iou"), QUOTED[0][2:4]))
    past = [{"dice": "Dice", "iou": "IoU"}[key] for key, value in quoted.items() if 100 * ours[key]["mean"] >= value]
    reached = f"is past the paper's best {' and '.join(past)}" if past else "does not reach the paper's best figures"
    return [f"With everything on it {reached} ({quoted['dice']:.2f} / {quoted['iou']:.2f}, with CLIP's weights); the 95 % interval of its Dice is "
            f"{100 * ours['dice']['low']:.2f} to {100 * ours['dice']['high']:.2f}" + (", which holds the paper's Dice" if ours["dice"]["low"] <= quoted["dice"] / 100 <= ours["dice"]["high"] else "") + ".", ""]  # fmt: skip


def side_words() -> list[str]:
    """What the check of the side is, and how often it was right on the test split (`tests/benchmarks/doubt.py`)."""
    found = json.loads((RESULTS / "doubt.json").read_text())["splits"]["test"]
    return [
        "Side checked: where a sentence says that the infection is in one half alone and the picture speaks against it, the answer is to the sentence with",
        "the other side (`causalclipseg/doubt.py`: Bayes' rule on three answers to the picture and its mirror image, fitted on training and validation sentences, a few per cent of which",
        f"name the wrong half): {found['exchanged']} of {found['sentences']} such test sentences are read the other way round, {found['exchanged_rightly']} of them rightly; "
        f"{found['wrong_side']} are wrong. That wrong sides cost so much was seen on test pictures, too, so its gain is no blind measurement.", "",
    ]  # fmt: skip


def several(result: dict) -> str:
    """Of what an answer is the mean, and whether the side was checked; nothing for one view of one network."""
    if result.get("views", 1) == 1:
        return ""
    networks = {1: "", 2: " and two networks", 3: " and three networks"}[result.get("networks", 1)]
    return f", mean of six views{networks}" + (", side checked" if "exchanged" in result else "")


def audit_sentence() -> list[str]:
    """What M does and does not show on the real test pictures, from the audit; nothing where it has not run."""
    file = RESULTS / "audit_mini_qata.json"
    if not file.is_file():
        return []
    audit = json.loads(file.read_text())
    lesion, worst, last = audit["localisation"]["lesion"]["auroc_m"], audit["worst"], training_runs()[first_network_runs()[-1]][1][-1]
    drawn = max(r["cost"]["mean"] for r in audit["edits"] if r["overlay"])
    return [
        f"What \"causal\" does here: on {audit['n']} real test pictures the mean of M tells lesion pixels from the others with AUROC {lesion['mean']:.2f} (0.5 is",
        f"chance), so M is no map of the lesion, and D_s reads the lesion from 1 - M as well as D_c from M (at the end of training L_s {last['loss_confounder']:.3f},",
        f"L_c {last['loss_causal']:.3f} nats a pixel). Of {len(audit['edits'])} edits that stand for another acquisition, {worst['edit']} at severity {worst['severity']} costs most, "
        f"{100 * worst['cost']['mean']:.1f} points",
        f"of Dice; what is drawn over the picture (electrodes, lines, markers) costs at most {100 * drawn:.1f}.", "",
    ]  # fmt: skip


#: Of the campaign's rows (`campaign.py`) those of networks that read no sentence: name -> (who, rule of the threshold).
IMAGE_ONLY = {
    "image-only networks and mini, both minis in six views, none": ("**ours, `mini` (its three networks) and three that read no sentence** (the one below, DynUNet, U-Net), expected-Dice threshold", EXPECTED_DICE),
    "small-image, six views, none": ("**ours, `mini` gone on without sentences**, one network, mean of six views, expected-Dice threshold", EXPECTED_DICE),
    "small-image, none": ("**ours, `mini` gone on without sentences**", ""),
    "dynunet, none": ("MONAI's DynUNet (nnU-Net's), by the same loop", ""),
    "unet, none": ("MONAI's U-Net, by the same loop", ""),
}


def campaign() -> dict:
    """What one GPU trained, and what was measured of it; empty where it has not run."""
    file = RESULTS / "campaign.json"
    return json.loads(file.read_text()) if file.is_file() else {"rows": {}, "runs": {}}


def image_only_rows() -> list[list[str]]:
    """README's rows of networks that read no sentence."""
    rows = []
    for name, (who, rule) in IMAGE_ONLY.items():
        if whole := campaign()["rows"].get(name):
            rows.append(measured_row(who, whole, rule))
    return rows


def image_only_words() -> list[str]:
    """How the networks of `image_only_rows` were trained, and whether the quoted U-Net is passed."""
    rows, runs = campaign()["rows"], campaign()["runs"]
    if not rows:
        return []
    quoted = dict(zip(("dice", "iou"), next(row[2:4] for row in QUOTED if row[0] == "U-Net")))
    best, all_best = (rows[name]["thresholds"][EXPECTED_DICE]["per_image"] for name in ("small-image, six views, none", "image-only networks and mini, both minis in six views, none"))
    three = rows["image-only networks together, small-image in six views, none"]["thresholds"][EXPECTED_DICE]["per_image"]

    def past(scores: dict) -> str:
        return " and ".join(f"{name} (by {100 * scores[key]['mean'] - quoted[key]:.2f})" for key, name in (("dice", "Dice"), ("iou", "IoU")) if 100 * scores[key]["mean"] >= quoted[key]) or "neither"

    settings = {name: run["training"] for name, run in runs.items()}
    validated = {name: 100 * best_validated(runs[name]["curve"])["val_dice"] for name in ("unet", "dynunet")}
    return [
        f"Without a sentence: `mini` went on from an earlier first network (`mean_of_run10_run11`) for {settings['small-image']['epochs']} epochs with an empty sentence alone, on training and validation pictures without the "
        f"`covid_N` ones. Of the quoted U-Net's figures ({quoted['dice']:.2f} / {quoted['iou']:.2f}) it passes {past(best)}; "
        f"the mean of it, U-Net and DynUNet has {100 * three['dice']['mean']:.2f} / {100 * three['iou']['mean']:.2f}, and with the shipped file's three networks passes {past(all_best)} (95 % intervals of their Dice {100 * best['dice']['low']:.2f} to {100 * best['dice']['high']:.2f} and "
        f"{100 * all_best['dice']['low']:.2f} to {100 * all_best['dice']['high']:.2f}). Both means were made after each network had been measured on the test split. "
        f"MONAI's U-Net was trained from nothing for {settings['unet']['epochs']} epochs by the same loop on the training split alone, a half of which is another source than the test split's "
        f"(one seed, best validation Dice kept, one view), DynUNet likewise; their validation Dice is {validated['unet']:.1f} and {validated['dynunet']:.1f}; "
        f"all on one GPU, side by side with other runs ([campaign.json](tests/benchmarks/results/campaign.json)).", "",
    ]  # fmt: skip


def sources_sentence() -> list[str]:
    """Dice by source on a fifth of each that was left out, by the campaign's run for it; nothing where it was not measured."""
    file = RESULTS / "sources_qata.json"
    if not file.is_file():
        return []
    result = json.loads(file.read_text())
    training = campaign()["runs"]["small-sources"]["training"]
    by = "; ".join(f"`{name}` {100 * g['dice']:.2f} ({g['n']} pictures, IoU {100 * g['iou']:.2f}, pooled Dice {100 * g['pooled_dice']:.2f})" for name, g in result["subgroups"]["source"].items())
    return [
        f"By source, which the official test split cannot say (it has one): a `mini` trained from nothing for {training['epochs']} epochs on four fifths of each source has, on the fifth left "
        f"out, a per-image Dice of {by}; one view, one seed, its own sentence ([sources_qata.json](tests/benchmarks/results/sources_qata.json)).", "",
    ]  # fmt: skip


def unet_sentence() -> list[str]:
    """An image-only U-Net that the same loop trained for a few epochs, and its audit: `train --preset monai:UNet`, `evaluate --text none`, `audit`."""
    result, audit, training = (json.loads((RESULTS / name).read_text()) for name in ("unet_qata_none.json", "audit_unet_qata.json", "unet_training.json"))
    cost = {(r["edit"], r["severity"]): 100 * r["cost"]["mean"] for r in audit["edits"]}
    d = result["per_image"]["dice"]
    return [
        f"The audit was run on an earlier U-Net of MONAI's, trained for {training['epochs']} epochs (one seed, mostly at 128×128, far from the budget of the",
        f"quoted one). It has {100 * d['mean']:.2f} ({100 * d['low']:.2f} to {100 * d['high']:.2f}), pooled {100 * result['pooled']['dice']:.2f}. Exposure, contrast and noise at severity 3 cost it "
        f"{cost['exposure', 3]:.1f}, {cost['contrast', 3]:.1f} and {cost['noise', 3]:.1f}",
        f"points; electrodes {cost['electrodes', 3]:.1f} ([audit_unet_qata.json](tests/benchmarks/results/audit_unet_qata.json)).", "",
    ]  # fmt: skip


def ablation() -> list[str]:
    """Table 2 of the paper beside ours: `pretrain`, then `benchmark table2`; mean and spread over seeds."""
    result, clip = (json.loads((RESULTS / name).read_text()) for name in ("table2_qata.json", "pretraining_qata.json"))
    paper = {(row["pre-trained"], row["intervention"]): row for row in result["rows"] if row["status"].startswith("quoted")}
    cell = lambda score: f"{score['mean']:.2f} ± {score['spread']:.2f}"  # noqa: E731
    rows, measured = [], []
    for row in result["rows"]:
        if row["status"] == "measured":
            measured.append(row["scores"]["dice"])
            quoted = paper[row["pre-trained"], row["intervention"]]
            yes = ["yes" if row[key] else "no" for key in ("pre-trained", "intervention")]
            rows.append([*yes, *(cell(row["scores"][key]) for key in ("dice", "iou", "pooled_dice")), f"{quoted['dice']:.2f}", f"{quoted['iou']:.2f}"])
    apart = any(abs(a["mean"] - b["mean"]) > a["spread"] + b["spread"] for a, b in itertools.combinations(measured, 2))
    budget, after = result["budget"], clip["matching_after"]
    return [
        f"The paper's ablation (its Table 2) by one command, `benchmark table2`, on a short budget: {budget['steps_of_each_run']} steps of {budget['batch_size']} pictures at "
        f"{budget['image_size']}×{budget['image_size']} from random weights, training split alone, {len(result['seeds'])} seeds, mean ± standard deviation over seeds; with the intervention by the objective `minimax`.",
        f"\"Pre-trained\" is our own small CLIP, {clip['steps']} contrastive steps on the same training pictures and sentences (`causalclipseg pretrain`; it then finds a "
        f"picture's sentence among {after['of']} in {100 * after['share']:.0f} % of cases, chance {100 * after['chance']:.0f} %); in the paper it is OpenAI's. Rows compare "
        "with each other, not with the quoted ones ([table2_qata.md](tests/benchmarks/results/table2_qata.md)).", "",
        *table(["pre-trained", "intervention", "Dice", "IoU", "pooled Dice", "paper: Dice", "paper: IoU"], rows), "",
        *([] if apart else ["No row differs from another by more than seeds do: on this budget neither the intervention nor such a pre-training shows a gain.", ""]),
    ]  # fmt: skip


def cost_sentence() -> list[str]:
    """What `cost.py` measured, in a sentence; nothing where it has not run."""
    file = RESULTS / "cost.json"
    if not file.is_file():
        return []
    c = json.loads(file.read_text())
    return [
        f"On {c['cores']} CPU cores an answer takes {c['answer_seconds']['median']:.2f} s and the first one comes {c['demo']['first_answer']:.0f} s after",
        f"`python app.py`; training `mini` at batch {c['memory']['batch']} needs {c['memory']['peak_gb']:.1f} GB. The causal path costs",
        f"{c['arithmetic']['mini']['gflops_causal_path']:.1f} GFLOPs a picture (`paper`: {c['arithmetic']['paper']['gflops_causal_path']:.0f}; `tests/benchmarks/cost.py`).", "",
    ]  # fmt: skip


def fill_readme() -> None:
    """Put `readme_results` between README's two markers."""
    from causalclipseg.config import write_text

    before, _, rest = (ROOT / "README.md").read_text().partition("<!-- results -->\n")
    after = rest.partition("<!-- /results -->")[2]
    write_text(ROOT / "README.md", f"{before}<!-- results -->\n{readme_results()}\n<!-- /results -->{after}")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def scores(results: dict) -> list[str]:
    """One row a text: both families of Dice and IoU."""
    rows = []
    what = {text: TEXTS["report"] + several(results[text]) for text in (CHECKED, AVERAGED)} | TEXTS
    for text, rule in (*BEST, ("report", EXPECTED_DICE), *((text, "") for text in TEXTS)):
        r = results[text]["thresholds"][rule] if rule else results[text]
        d, i = r["per_image"]["dice"], r["per_image"]["iou"]
        rows.append([
            f"`{text}`: {what[text]}" + (", expected-Dice threshold" if rule else ""),
            f"{d['mean']:.4f} ({d['low']:.4f} to {d['high']:.4f})", f"{i['mean']:.4f} ({i['low']:.4f} to {i['high']:.4f})",
            f"{r['pooled']['dice']:.4f}", f"{r['pooled']['iou']:.4f}",
        ])  # fmt: skip
    return table(["sentence", "per-image Dice", "per-image IoU", "pooled Dice", "pooled IoU"], rows)


def surfaces(result: dict) -> str:
    """One sentence on distances between outlines, and on calibration."""
    s, c = result["surface"], result["calibration"]
    return (
        f"95th-percentile Hausdorff distance {s['hd95']['mean']:.1f} pixels on average (median {s['hd95']['median']:.1f}), surface Dice at {s['tolerance_pixels']} pixels "
        f"{s['surface_dice']['mean']:.3f} ({s['rule']}). Expected calibration error of the pixels' probabilities {c['ece']:.3f}."
    )


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
        f"{100 * r['success']:.2f} % of {r['n']} predictions are not empty and have at least 95 % of their area on the named half; "
        f"on average {100 * r['area_on_half']:.1f} % of the area lies there ({100 * r['pooled_area_on_half']:.1f} % of the summed area); "
        f"empty: {r['empty']}; per-image Dice against that half's mask {r['dice']:.4f}. Nothing is cut away by side."
    )


def audit_section() -> list[str]:
    """What other acquisitions cost (`audits.py`), where it was measured for these weights."""
    lines, rows, found = [], {}, {}
    for name in ("qata", "phantoms"):
        file = RESULTS / f"audit_mini_{name}.json"
        if file.is_file():
            found[name] = json.loads(file.read_text())
            for r in found[name]["edits"]:
                rows.setdefault((r["edit"], r["severity"]), {})[name] = r
    if not found:
        return []
    for (edit, severity), values in rows.items():
        cells = []
        for name in found:
            r = values[name]
            cells += [f"{r['cost']['mean']:.4f} ({r['cost']['low']:.4f} to {r['cost']['high']:.4f})", f"{r['change']['mean']:.4f}"]
        lines.append([edit, str(severity), *cells])
    heads = {"qata": "QaTa-COV19", "phantoms": "phantoms"}
    over = "; ".join(f"{heads[name]}: {', '.join(result['over_costly']) or 'none'}" for name, result in found.items())
    some = ", ".join(f"{result['n']} of {result['of']} test pictures of {heads[name]}" for name, result in found.items())
    return [
        "## Audit: the same patient, another acquisition", "",
        f"`causalclipseg audit` on {some}. Cost: per-image Dice lost by the edit, with its 95 % bootstrap interval; change: 1 - Dice",
        f"between the answers before and after. Severities 1 to 3: mild, clear, strong. Edits that cost more than {next(iter(found.values()))['costly']}: {over}.",
        "Pictures of these kinds of edit were among the augmentations of its training.", "",
        *table(["edit", "severity", *(f"{what}, {heads[name]}" for name in found for what in ("cost", "change"))], lines), "",
        *(f"Where M looks on {heads[name]}: {look(result['localisation'])}" for name, result in found.items() if result.get("localisation")), "",
    ]  # fmt: skip


def look(regions: dict) -> str:
    """One sentence on each known region: does M tell it from the rest (AUROC, 0.5 is chance), and how much of M lies there."""
    return "; ".join(
        f"{'the lesion' if region == 'lesion' else 'what the acquisition drew'} ({100 * r['share']:.1f} % of the picture) has AUROC {r['auroc_m']['mean']:.2f} "
        f"({r['auroc_m']['low']:.2f} to {r['auroc_m']['high']:.2f}) and {100 * r['mass_m']['mean']:.1f} % of M"
        for region, r in regions.items()
    ) + "."  # fmt: skip


def pilot_section() -> list[str]:
    """The short runs of each objective (`objectives.py`), where their result is kept."""
    file = RESULTS / "objectives.json"
    if not file.is_file():
        return []
    result = json.loads(file.read_text())
    rows = [
        [f"`{name}`", str(line["epoch"]), f"{line['loss_causal']:.4f}", f"{line['loss_confounder']:.4f}", f"{line['val_dice']:.4f}"]
        for name, lines in result["runs"].items()
        for line in lines
    ]
    return [
        "## The objective", "",
        f"Short runs from the same seed (up to {result['limit']} pictures of each source, {result['size']}×{result['size']}, batch {result['batch_size']},",
        f"learning rate {result['lr']}, λ = {result['lam']}, cap {result['cap']} nats, `tests/benchmarks/objectives.py`). One seed and little data: they show what",
        "runs away or stands still, not which is better by a point. Under `bounded` L_s starts above the cap, so it never counts and the",
        "confounder branch never learns: the same model as `none`. `minimax` is the one that trains D_s to predict, so that its",
        "picture in the demo means something.", "",
        *table(["objective", "epoch", "L_c", "L_s", "validation Dice"], rows), "",
    ]  # fmt: skip


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
    fill_readme()


def record(runs: dict[int, Path], mean_of: list[str]) -> None:
    """Keep settings and curve of each run, and what the shipped weights are the mean of."""
    from causalclipseg.config import write_text

    for kept in RECORDED:
        for old in RESULTS.glob(f"mini_stage*_{kept}"):
            if runs and int(old.name.removeprefix("mini_stage").partition("_")[0]) > max(runs):
                old.unlink()
    for number, run in runs.items():
        record_run(run, f"mini_stage{number:02d}")
    MEAN_OF.unlink(missing_ok=True)
    if mean_of:
        write_text(MEAN_OF, json.dumps(mean_of) + "\n")


def record_companions(names: list[str], runs: list[Path]) -> None:
    """The same for an ensemble's further networks; nothing stays on record where there are none."""
    from causalclipseg.config import write_text

    for old in (COMPANIONS, *RESULTS.glob("mini_other*")):
        old.unlink(missing_ok=True)
    if names:
        write_text(COMPANIONS, json.dumps(names) + "\n")
    for number, run in enumerate(runs, start=1):
        record_run(run, f"mini_other{number}")


def record_run(run: Path, name: str) -> None:
    """Settings, with the network's, and curve of one run."""
    from causalclipseg.config import write_text

    for kept in RECORDED:
        text = (run / kept).read_text()
        if kept == "training.json":
            text = json.dumps({**json.loads(text), "model": json.loads((run / "config.json").read_text())}, indent=2) + "\n"
        write_text(RESULTS / f"{name}_{kept}", text)


if __name__ == "__main__":
    main()
