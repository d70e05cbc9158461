"""What one GPU trains from nothing, or goes on with, in twenty minutes on QaTa-COV19, and what that is worth on the test split.

    python tests/benchmarks/campaign.py OUT --data QATA --phantoms PHANTOMS               # trains, measures, writes OUT/campaign.json
    python tests/benchmarks/campaign.py OUT --data QATA --phantoms PHANTOMS --measure     # measures what was trained
    python tests/benchmarks/campaign.py OUT --data QATA --only full second                # the paper's size alone

All runs share one GPU and start together; one that stands on another waits for it. A step of one run leaves most of a large GPU
idle (the CPU cannot start its kernels fast enough), so NVIDIA's multi-process service (`nvidia-cuda-mps-control -d`) should run.
One process that is killed while it computes takes down all others of that service: let a run end, or stop all and start again.
The paper's size needs the GPU for itself: beside nine small runs three seeds of it got a tenth to a half of the speed they have alone.

    full-K    preset paper (RN101, 224 pixels) without CLIP's weights, trained on the training split, best validation Dice kept;
              what differs from the preset is in `OURS`
    plain-K   the same without the intervention (the paper's Table 2)
    second-K  goes on from full-K, with the validation pictures as well and without the `covid_N` pictures, of which validation and
              test hold none; its last moving average is kept, and nothing chosen
    unet, dynunet   image-only networks of MONAI, as full-K trained (the paper's Table 1)
    small-0, -1     preset mini, goes on from the first network of assets/models/mini; -2, -3: from another network (--other); -4: from
                    nothing. Data as of second-K, and phantoms; each stands on a short run of its own, warm-K, that also tells its speed
    small-image     goes on from mini's first network without any sentence
    small-sources   from nothing, on four fifths of each source: for figures by source on the fifth left out

After training, soup-01 and soup-23 are the means of the weights of small-0 and -1, -2 and -3, and `grown` is one file of three
networks, soup-01, soup-23 and small-4, stored as mini is.

The test split is read by `--measure` alone, after all of them. A mean of networks is the mean of their probabilities; "six views"
is `causalclipseg/views.py`, "own threshold" `metrics.expected_dice_threshold`, "side checked" `causalclipseg/doubt.py` with the
numbers of the shipped `mini`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = "assets/models/mini"
GROWN = ("soup-01", "soup-23", "small-4")
JOINED = ("soup-01", "soup-23", "grown")  #: no runs: made of some
SIZE = 224
SAFE = 0.85  # of the time left is planned with: later on, larger pictures keep the GPU busier
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

COMMON = {"precision": "bf16", "batch_size": 64, "workers": 1, "samples_every": 0, "edit": 0.25, "tones": 0.8, "rotate": 10, "scale": [0.8, 1.2], "shift": 0.06}
OURS = {
    **COMMON, "batch_size": 48, "workers": 2, "weights": "none", "decoder": "conditioned", "standardize": True, "objective": "minimax", "confounder_every": 4, "dice_weight": 1.0,
    "graphs": True, "optimizer": "adamw", "lr": 6e-4, "weight_decay": 0.05, "warmup": 0.05, "clip_grad": 1.0, "ema": 0.998, "refer": 0.15, "generic": 0.04, "no_text": 0.12,
}  # fmt: skip
SIZES = [[0.5, 128], [0.75, 160]]
LAST = {"train_splits": ["train", "val"], "leave_out": ["covid"], "evaluate_every": 2000}  # nothing is chosen, so only the end is validated
SECOND = {**OURS, **LAST, "lr": 4e-4, "sizes": [[0.4, 160]]}
SMALL = {**COMMON, **LAST, "confounder_every": 8, "join": 0.1, "refer": 0.15, "generic": 0.04, "no_text": 0.08, "lr": 2e-3, "ema": 0.999, "sizes": [[0.4, 160]]}
WORDLESS = {"no_text": 1.0, "refer": 0.0, "generic": 0.0}
NOTHING = 4e-3  # learning rate of a small network that starts from nothing


@dataclass
class Job:
    """One run. epochs of 0: as many as fit, by how fast the run it stands on went."""

    preset: str
    settings: dict
    epochs: int
    start: str = ""  #: a run of this campaign, or a folder
    phantoms: bool = False  #: trained on these, too


def jobs(seeds: int, epochs: int, second: int, baselines: list[str], other: str = "", small: int = 0) -> dict[str, Job]:
    """Each run by its name. second, small: epochs, 0 for as many as fit."""
    first, found = {"sizes": SIZES, "evaluate_every": max(1, epochs // 8)}, {}
    for k in range(seeds):
        found[f"full-{k}"] = Job("paper", {**OURS, **first, "seed": k}, epochs)
        found[f"plain-{k}"] = Job("paper", {**OURS, **first, "seed": k, "intervention": False, "objective": "none"}, epochs)
        found[f"second-{k}"] = Job("paper", {**SECOND, "seed": 100 + k}, second, f"full-{k}")
    for name in baselines:
        found[name] = Job({"unet": "monai:UNet", "dynunet": "monai:DynUNet"}[name], {**COMMON, **first, "seed": 0}, 50)
    for k, start in enumerate((MINI, MINI, other, other, "")):
        if start or k == 4:
            settings = {**SMALL, "seed": 200 + k} | ({} if start else {"lr": NOTHING})
            found[f"warm-{k}"] = Job("mini", {**settings, "sizes": [[0.5, 160]]}, 4, start, phantoms=True)
            found[f"small-{k}"] = Job("mini", {**settings, "seed": 300 + k}, small, f"warm-{k}", phantoms=True)
    found["small-image"] = Job("mini", {**SMALL, **WORDLESS, "seed": 400}, 60, MINI)
    found["small-sources"] = Job("mini", {**SMALL, "train_splits": ["train"], "leave_out": [], "split_rule": "sources", "lr": NOTHING, "seed": 500}, 30)
    return found


def fitting(first: Path, settings: dict, data: list[str], seconds: float) -> int:
    """Epochs with these settings that fit in so many seconds, by how fast the run that was first done went beside the others."""
    from causalclipseg.data import find_samples

    samples = [s for folder in data for split in settings["train_splits"] for s in find_samples(folder, split)]
    pictures = sum(s.source not in settings["leave_out"] for s in samples)
    rate = {line["size"]: line["images_per_second"] for line in map(json.loads, (first / "metrics.jsonl").read_text().splitlines())}
    (share, small), large = settings["sizes"][0], max(rate)
    return max(2, int(seconds / pictures / (share / rate[small] + (1 - share) / rate[large])))


def pairs(settings: dict) -> list[str]:
    """Settings as the command line and `config.apply_settings` take them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def run(name: str, job: Job, args, done: dict, until: float, fit: dict) -> str:
    """Train one run to its end, after the one it stands on; a finished one is left as it is."""
    settings, epochs, start, data = dict(job.settings), job.epochs, job.start, [args.data] + [args.phantoms] * job.phantoms
    if start in done:
        done[start].result()
    if not epochs and (args.out / name / "training.json").exists():  # it was begun
        epochs = json.loads((args.out / name / "training.json").read_text())["epochs"]
    if not epochs:
        with fit["lock"]:  # all runs of a kind have the epochs of the one that comes first
            kind = name.split("-")[0]
            left = SAFE * (until - time.monotonic() - 20)
            epochs = fit[kind] = fit.get(kind) or fitting(args.out / start, settings, data, left)
    settings |= {"epochs": epochs} | ({"start": str(args.out / start if start in done or (args.out / start).is_dir() else Path(start).resolve())} if start else {})
    folder, began = args.out / name, time.monotonic()
    if not (folder / "README.md").exists():
        command = [sys.executable, "-m", "causalclipseg", "train", "--preset", job.preset, "--out", str(folder)]
        command += [part for d in data for part in ("--data", d)]
        command += [f"--set={pair}" for pair in pairs(settings)]
        command += ["--resume"] if (folder / "state").exists() else []
        command += ["--limit", str(args.limit)] if args.limit else []
        with open(args.out / f"{name}.log", "a") as log:
            if subprocess.run(command, stdout=log, stderr=log, cwd=ROOT).returncode:
                raise RuntimeError(f"{name} failed, see {name}.log")
    return f"{name} {time.monotonic() - began:.0f} s"


def join(out: Path, data: list[str]) -> None:
    """Means of weights, and one file of three networks, of the small runs that are there."""
    from causalclipseg.averaging import average, ensemble

    for pair in ("01", "23"):
        members = [out / f"small-{k}" for k in pair]
        if all((member / "README.md").exists() for member in members) and not (out / f"soup-{pair}").exists():
            average(members, out / f"soup-{pair}")
    members = [out / name for name in GROWN]
    if all((member / "model.safetensors").exists() for member in members) and not (out / "grown").exists():
        ensemble(members, out / "grown", data)


# ---------------------------------------------------------------- measuring


def tasks(there: list[str]) -> dict[str, dict]:
    """What is measured of the networks that are there: name -> arguments of `measure`; the longest first."""
    second, full, plain = ([name for name in there if name.startswith(kind)] for kind in ("second", "full", "plain"))
    image_only = [name for name in ("unet", "dynunet", "small-image") if name in there]
    small = [name for name in there if name.startswith(("small", "soup")) and name not in ("small-image", "small-sources")]
    grown = [name for name in there if name == "grown"]
    found = {}
    groups = {"second": second, "second and grown": second + grown if second and grown else [], "second and mini": second and [*second, MINI]}
    for title, networks in (groups | {"full": full, "grown": grown, "mini": [MINI]}).items():
        if networks:
            found[f"{title}, six views, side checked"] = dict(networks=networks, text="report", views=6, checked=True, more=title == "second")
            found |= {f"{title}, six views, {text}": dict(networks=networks, text=text, views=6) for text in ("report", "none")}
    found |= {f"{name}, six views, report": dict(networks=[name], text="report", views=6) for name in second + full + small}
    found |= {f"{name}, six views, none": dict(networks=[name], text="none", views=6) for name in second + image_only}
    if len(image_only) == 3:
        found["image-only networks together, none"] = dict(networks=image_only, text="none", views=1)
        found["image-only networks together, small-image in six views, none"] = dict(networks=image_only, text="none", views={"small-image": 6})
        found["image-only networks and mini, both minis in six views, none"] = dict(networks=[*image_only, MINI], text="none", views={"small-image": 6, MINI: 6})
    found |= {f"{name}, none": dict(networks=[name], text="none", views=1) for name in second + full + plain + image_only}
    found |= {f"{name}, report": dict(networks=[name], text="report", views=1) for name in second + full + plain + small}
    found |= {f"{name}, {text}": dict(networks=[name], text=text, views=1) for name in second[:1] for text in ("shuffled", "swapped")}
    return found


def load(out: Path, name: str):
    """A network's predictor, where it answers fastest."""
    import torch

    from causalclipseg.baselines import best_device, load_model
    from causalclipseg.evaluation import predictor

    model = load_model(folder_of(out, name), device=best_device()).to(memory_format=torch.channels_last)
    large = name.startswith(("full", "plain", "second"))
    return predictor(model, "bf16" if best_device().type == "cuda" and large else "no", companions=True)


def folder_of(out: Path, name: str) -> Path:
    return ROOT / name if name == MINI else out / name


def networks_in(out: Path, name: str) -> int:
    """How many networks a model's answer is the mean of."""
    return 1 + len(json.loads((folder_of(out, name) / "config.json").read_text()).get("companions", ()))


def answer(out: Path, data: str, limit: int | None, name: str, text: str, views: int) -> None:
    """The probabilities of one network for all test pictures, kept in OUT/answers."""
    import torch

    torch.set_num_threads(1)
    from mixtures import write_answers

    from causalclipseg.data import find_samples
    from causalclipseg.evaluation import edit_reports
    from causalclipseg.views import averaged

    file = kept_answers(out, name, text, views)
    if file.exists():
        return
    file.parent.mkdir(exist_ok=True)
    predict, samples = load(out, name), find_samples(data, "test")[:limit]
    shown = edit_reports([s.report for s in samples], text)
    write_answers(averaged(predict) if views == 6 else predict, samples, SIZE, file, shown)


def kept_answers(out: Path, name: str, text: str, views: int) -> Path:
    return out / "answers" / f"{Path(name).name}_{text}_{views}.npy"


def views_of(views: int | dict, name: str) -> int:
    """How many views a network is asked: of all the same number, or some more than one."""
    return views if isinstance(views, int) else views.get(name, 1)


def measure(out: Path, data: str, limit: int | None, networks: list[str], text: str, views: int | dict, checked: bool = False, more: bool = False) -> dict:
    """One row of the result, from what its networks answered. more: also surfaces, groups, calibration, and one half named."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from mixtures import mean_of, replay, side_checked

    from causalclipseg.evaluation import EXPECTED_DICE, evaluate, evaluate_referring
    from causalclipseg.views import averaged

    shares = [networks_in(out, name) for name in networks]
    singles = [load(out, name) for name in networks] if checked or more else []
    given = [np.load(kept_answers(out, name, text, views_of(views, name))) for name in networks]
    shown, exchanged = replay(given, lambda answers: mean_of(answers, shares)), []

    def mean(images, reports):
        return mean_of([f(images, reports).cpu() for f in singles], shares)

    if checked:
        shown = side_checked(shown, mean, averaged(mean), exchanged)
    began = time.monotonic()
    result = evaluate(shown, data, model=" + ".join(networks), text=text, image_size=SIZE, limit=limit, rules=[EXPECTED_DICE], surface=more)
    kept = {key: result[key] for key in ("per_image", "pooled", "n", "split", "text", "thresholds", "data", "data_digest", "split_rule", "seed")}
    if more:
        kept |= {"surface": result["surface"], "subgroups": result["subgroups"], "calibration": result["calibration"]}
        if limit is None:
            kept["referring"] = evaluate_referring(mean, data, image_size=SIZE)
    if checked:
        kept["exchanged"] = len(exchanged)
    return kept | {"networks": sum(shares), "views": views, "side_checked": checked, "seconds": time.monotonic() - began}


def record(out: Path, names: list[str], rows: dict) -> None:
    """Write OUT/campaign.json: every row, and every run's settings and curve."""
    from causalclipseg._files import write_text

    runs = {}
    for name in names:
        folder = out / name
        if (folder / "training.json").exists():
            curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            settings = json.loads((folder / "training.json").read_text())
            settings["start"] = Path(settings["start"]).name
            runs[name] = {"ended": (folder / "README.md").exists(), "model": json.loads((folder / "config.json").read_text()), "training": settings, "curve": curve}
    write_text(out / "campaign.json", json.dumps({"device": device(), "rows": rows, "runs": runs}) + "\n")


def device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def line(name: str, row: dict) -> str:
    d, own = row["per_image"], row["thresholds"]["expected-dice"]["per_image"]
    return (f"{name:44s} Dice {d['dice']['mean']:.4f} IoU {d['iou']['mean']:.4f} pooled {row['pooled']['dice']:.4f} {row['pooled']['iou']:.4f}"
            f"  own threshold {own['dice']['mean']:.4f} {own['iou']['mean']:.4f}  {row['seconds']:.0f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--phantoms", default="", help="folder of `causalclipseg data phantoms`; without it no small run but small-image and small-sources")
    parser.add_argument("--other", default="", help="folder of a network that small-2 and small-3 go on from")
    parser.add_argument("--measure", action="store_true", help="train nothing")
    parser.add_argument("--train", action="store_true", help="measure nothing")
    parser.add_argument("--rows", nargs="+", help="measure these rows alone")
    parser.add_argument("--only", nargs="+", help="these runs, or kinds of runs (full, second, small, ...), alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=32, help="of full-K and plain-K")
    parser.add_argument("--second", type=int, default=0, help="epochs of second-K; 0: what --minutes leaves")
    parser.add_argument("--small", type=int, default=0, help="epochs of small-0 to small-4; 0: what --minutes leaves")
    parser.add_argument("--minutes", type=float, default=19, help="all runs shall take no longer")
    parser.add_argument("--baselines", nargs="*", default=["unet", "dynunet"])
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="key=JSON for every run (for trials)")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pool", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="measurements at a time")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = jobs(args.seeds, args.epochs, args.second, args.baselines, args.other, args.small)
    wanted = {name: job for name, job in wanted.items() if ({name, name.split("-")[0]} & set(args.only) if args.only else args.phantoms or not job.phantoms)}
    for key, _, value in (s.partition("=") for s in args.settings):
        for job in wanted.values():
            job.settings[key] = json.loads(value)
    if not args.measure:
        done: dict = {}
        until, fit = time.monotonic() + 60 * args.minutes, {"lock": threading.Lock()}
        with ThreadPoolExecutor(len(wanted)) as pool:
            for name, job in wanted.items():  # a run comes after the one it stands on
                done[name] = pool.submit(run, name, job, args, done, until, fit)
            for future in as_completed(done.values()):
                print(future.exception() or future.result(), flush=True)
        join(args.out, [args.data, *[args.phantoms] * bool(args.phantoms)])
        record(args.out, list(wanted), {})
    if args.train:
        return
    rows: dict = {}
    there = [name for name in (*wanted, *JOINED) if (args.out / name / ("config.json" if name in JOINED else "README.md")).exists()]
    todo = {name: task for name, task in tasks(there).items() if not args.rows or name in args.rows}
    questions = dict.fromkeys((name, task["text"], views_of(task["views"], name)) for task in todo.values() for name in task["networks"])
    with ProcessPoolExecutor(args.pool, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(answer, args.out, args.data, args.limit, *question) for question in questions]):
            if future.exception():
                print(f"FAILED: {future.exception()!r}", flush=True)
        print("answered", flush=True)
        futures = {pool.submit(measure, args.out, args.data, args.limit, **task): name for name, task in todo.items()}
        for future in as_completed(futures):
            name = futures[future]
            try:
                rows[name] = future.result()
            except Exception as error:  # one row that fails is no end of the others
                print(f"{name} FAILED: {error!r}", flush=True)
                continue
            print(line(name, rows[name]), flush=True)
            record(args.out, list(wanted), rows)


if __name__ == "__main__":
    main()
