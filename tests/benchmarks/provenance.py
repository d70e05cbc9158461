"""The runs behind the shipped file: what is on record of each, which of them led to which network, and the commands that made them."""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path

from kept import AVERAGED, EXPECTED_DICE, RESULTS, at, read

RECORDED = ("training.json", "metrics.jsonl")  #: of a run's folder
#: Names of the file's networks: {"networks": [those that read sentences], "silent": the one that reads none, "earlier": those that were it
#: before, and the file's scores then}
NETWORKS = RESULTS / "mini_networks.json"
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


def networks() -> list[str]:
    """Names on record of the file's networks that read sentences, of runs or of means of runs; the first one first."""
    return json.loads(NETWORKS.read_text())["networks"]


def silent() -> list[str]:
    """The name on record of the file's network for pictures without a sentence, where it has one."""
    return list(filter(None, [json.loads(NETWORKS.read_text())["silent"]]))


def earlier_silent() -> dict[str, dict]:
    """Those that were `silent` before: name -> scores of the file without a sentence then (six views, own thresholds)."""
    return json.loads(NETWORKS.read_text()).get("earlier", {})


def first_network_runs() -> list[str]:
    """The runs that the first network goes on from, in order, its own last."""
    return led_to(networks()[:1])


def seeded_stage() -> list[str]:
    """The runs, from several seeds, of the stage whose mean is the first network, or what that went on from."""
    first = networks()[0]
    return parts(first if len(parts(first)) > 1 else started(first, training_runs()[first][0]))


def led_to(names: list[str], teachers: bool = False) -> list[str]:
    """The runs that led to networks by these names on record, in order; teachers: also those whose answers were a target."""
    runs, found, asked = training_runs(), set(), [part for name in names for part in parts(name)]
    while asked:
        name = asked.pop()
        found.add(name)
        settings = runs[name][0]
        earlier = [started(name, settings), *(settings.get("teacher", "").split(",") if teachers else ())]
        asked += {part for other in filter(None, earlier) for part in parts(other)} - found
    return [name for name in runs if name in found]


def shipped_runs() -> dict[str, tuple[dict, list[dict]]]:
    """The runs without which the file would be another: its networks', and those of their teachers."""
    return {name: training_runs()[name] for name in led_to([*networks(), *silent()], teachers=True)}


def trained_on() -> dict:
    """What `evaluate` has to know of the shipped file, which is of many runs: the pictures that some of them were trained on."""
    runs = [settings for settings, _ in shipped_runs().values()]
    (rule,) = {settings.get("split_rule", "published") for settings in runs}
    return {"split_rule": rule, "train_splits": [split for split in ("train", "val") if any(split in settings["train_splits"] for settings in runs)]}


def best_validated(curve: list[dict]) -> dict:
    """The line of a run's curve with its best validation Dice."""
    return max((line for line in curve if "val_dice" in line), key=lambda line: line["val_dice"])


def on_gpu(settings: dict) -> bool:
    return settings["device"] == "cuda"


def share_of_cores(settings: dict) -> float:
    """The share of two cores that a run took; on the GPU, of two runs side by side."""
    return min(settings.get("processes", 1), 2) / 2


def minutes() -> float:
    """Minutes of training behind the file on two cores: a run of one process took one of them."""
    return sum(curve[-1]["seconds"] * share_of_cores(settings) for settings, curve in shipped_runs().values() if not on_gpu(settings)) / 60


def lines_of_runs() -> str:
    """How many times training began from random weights, in words."""
    beginnings = sum(not started(name, settings) for name, (settings, _) in training_runs().items())
    return {1: "one line of runs", 2: "two lines of runs, each from random weights", 3: "three lines of runs, each from random weights"}[beginnings]


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
    for name in networks():
        need(name)
    wordless = "".join(f" --silent {name}" for name in silent())
    lines.append(f"causalclipseg ensemble {' '.join(networks())}{wordless} --bits 4 --data QaTa-COV19 --data phantoms --out all")
    stages, others = ([name for name in runs if name.startswith(kind)] for kind in ("run", "other"))
    recorded = f"--runs {' '.join(stages)} --others {' '.join(others)} --networks {' '.join(networks())}{wordless}"
    return [*lines, f"python tests/benchmarks/ship.py all {recorded} --data QaTa-COV19 --phantoms phantoms"]


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


def record(stages: list[Path], others: list[Path], further: list[Path], another: list[Path], names: list[str], wordless: str = "") -> None:
    """Keep settings and curve of each run, and the names of the file's networks.

    Args:
        stages, others: go on record as run1, run2, ... and other1, other2, ... in place of all that are; both empty: those stay.
        further, another: more runs of the first and of the second line, after the last one on record.
        names, wordless: of the networks that read sentences, and of the one that reads none.
    """
    from causalclipseg._files import write_text

    kept = [] if stages or others else list(training_runs())
    first, second = (sum(name.startswith(line) for name in kept) for line in ("run", "other"))
    numbered = [(f"mini_stage{number:02d}", run) for number, run in enumerate([*stages, *further], start=first + 1)]
    numbered += [(f"mini_other{number}", run) for number, run in enumerate([*others, *another], start=second + 1)]
    texts = {f"{name}_{part}": text for name, run in numbered for part, text in recorded(run).items()}  # all of them, before one goes
    if not kept:
        for old in (file for part in RECORDED for kind in ("stage", "other") for file in RESULTS.glob(f"mini_{kind}*_{part}")):
            old.unlink()
    for name, text in texts.items():
        write_text(RESULTS / name, text)
    earlier = {}
    if kept:
        before = at(read(f"mini_qata_none_{AVERAGED}", RESULTS), EXPECTED_DICE)["per_image"]
        earlier = {name: scores for name, scores in (earlier_silent() | {name: before for name in silent()}).items() if name != wordless}
    write_text(NETWORKS, json.dumps({"networks": names, "silent": wordless, "earlier": earlier}, indent=1) + "\n")
    training_runs.cache_clear()


def recorded(run: Path) -> dict[str, str]:
    """Settings, with the network's, and curve of one run, by the names of their files; of what it went on from and of its teachers, the folders' names."""
    texts = {kept: (run / kept).read_text() for kept in RECORDED}
    settings = {**json.loads(texts["training.json"]), "model": json.loads((run / "config.json").read_text())}
    settings["start"] = Path(settings["start"]).name
    if settings.get("teacher"):
        settings["teacher"] = ",".join(Path(name).name for name in settings["teacher"].split(","))
    return texts | {"training.json": json.dumps(settings, indent=2) + "\n"}
