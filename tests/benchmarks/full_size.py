"""The network of the paper's size on QaTa-COV19: trained from nothing on one GPU, over several seeds, and measured.

    python tests/benchmarks/full_size.py OUT --data QATA                # trains, measures, writes OUT/full_size.json
    python tests/benchmarks/full_size.py OUT --data QATA --measure      # measures what was trained

All runs share one GPU and start together; one that stands on another waits for it. A step of one run leaves most of a large GPU
idle (the CPU cannot start its kernels fast enough), so NVIDIA's multi-process service (`nvidia-cuda-mps-control -d`) should run:

    full-K    preset paper (RN101, 224 pixels) without CLIP's weights, trained on the training split, best validation Dice kept;
              what differs from the preset is in `OURS`
    plain-K   the same without the intervention (the paper's Table 2)
    second-K  goes on from full-K, with the validation pictures as well and without the `covid_N` pictures, of which validation and
              test hold none; its last moving average is kept, and nothing chosen
    unet, dynunet   image-only networks of MONAI, as full-K trained (the paper's Table 1)

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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = "assets/models/mini"
SIZE = 224
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

COMMON = {"precision": "bf16", "batch_size": 48, "workers": 1, "samples_every": 0, "edit": 0.25, "tones": 0.8, "rotate": 10, "scale": [0.8, 1.2], "shift": 0.06}
OURS = {
    **COMMON, "weights": "none", "decoder": "conditioned", "standardize": True, "objective": "minimax", "confounder_every": 4, "dice_weight": 1.0,
    "optimizer": "adamw", "lr": 6e-4, "weight_decay": 0.05, "warmup": 0.05, "clip_grad": 1.0, "ema": 0.998, "refer": 0.15, "generic": 0.04, "no_text": 0.12,
}  # fmt: skip
SIZES = [[0.5, 128], [0.75, 160]]
SECOND = {"train_splits": ["train", "val"], "leave_out": ["covid"], "lr": 4e-4, "evaluate_every": 1000, "sizes": [[0.4, 160]]}


def jobs(seeds: int, epochs: int, second: int, baselines: list[str]) -> dict[str, tuple[str, dict, str]]:
    """Each run: its preset, its settings, and the run it stands on."""
    first = {"epochs": epochs, "sizes": SIZES, "evaluate_every": max(1, epochs // 8)}
    found = {}
    for k in range(seeds):
        found[f"full-{k}"] = ("paper", {**OURS, **first, "seed": k}, "")
        found[f"plain-{k}"] = ("paper", {**OURS, **first, "seed": k, "intervention": False, "objective": "none"}, "")
        if second:
            found[f"second-{k}"] = ("paper", {**OURS, **SECOND, "epochs": second, "seed": 100 + k}, f"full-{k}")
    for name in baselines:
        network = {"unet": "UNet", "dynunet": "DynUNet"}[name]
        found[name] = (f"monai:{network}", {**COMMON, **first, "seed": 0}, "")
    return found


def fitting(first: Path, data: str, seconds: float) -> int:
    """Epochs of `SECOND` that fit in so many seconds, by how fast the run that was first done went beside the others."""
    from causalclipseg.data import find_samples

    pictures = sum(s.source not in SECOND["leave_out"] for split in SECOND["train_splits"] for s in find_samples(data, split))
    rate = {line["size"]: line["images_per_second"] for line in map(json.loads, (first / "metrics.jsonl").read_text().splitlines())}
    (share, small), large = SECOND["sizes"][0], max(rate)
    return max(2, int(seconds / pictures / (share / rate[small] + (1 - share) / rate[large])))


def run(name: str, job: tuple[str, dict, str], out: Path, data: str, limit: int | None, done: dict, until: float, fit: dict) -> str:
    """Train one run to its end, after the one it stands on; a finished one is left as it is."""
    preset, settings, start = job
    if start:
        settings = {**settings, "start": str(out / start)}
        done[start].result()
        if until and not (out / name).exists():
            with fit["lock"]:
                fit.setdefault("epochs", fitting(out / start, data, until - time.monotonic() - 20))
            settings["epochs"] = fit["epochs"]
    folder, began = out / name, time.monotonic()
    if not (folder / "README.md").exists():
        command = [sys.executable, "-m", "causalclipseg", "train", "--data", data, "--preset", preset, "--out", str(folder)]
        command += [f"--set={key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
        command += ["--resume"] if (folder / "state").exists() else []
        command += ["--limit", str(limit)] if limit else []
        with open(out / f"{name}.log", "a") as log:
            if subprocess.run(command, stdout=log, stderr=log, cwd=ROOT).returncode:
                return f"{name} FAILED, see {name}.log"
    return f"{name} {time.monotonic() - began:.0f} s"


# ---------------------------------------------------------------- measuring


def tasks(runs: list[str]) -> dict[str, dict]:
    """What is measured: name -> arguments of `measure`; the longest first."""
    kinds = {kind: [r for r in runs if r.startswith(kind)] for kind in ("second", "full", "plain")}
    images_only = [r for r in runs if r in ("unet", "dynunet")]
    found = {}
    for kind, mix in (("second", []), ("second", [MINI]), ("full", [])):
        if kinds[kind]:
            title, networks = f"mean of {kind}" + (" and mini" if mix else ""), kinds[kind] + mix
            main = kind == "second" and not mix
            found[f"{title}, six views, side checked"] = dict(networks=networks, text="report", views=6, checked=True, more=main)
            found |= {f"{title}, six views, {text}": dict(networks=networks, text=text, views=6) for text in ("report", "none")}
    found |= {f"{name}, six views, report": dict(networks=[name], text="report", views=6) for name in kinds["second"] + kinds["full"]}
    found |= {f"{name}, six views, none": dict(networks=[name], text="none", views=6) for name in kinds["second"] + images_only}
    found |= {f"{name}, none": dict(networks=[name], text="none", views=1) for name in runs}
    found |= {f"{name}, report": dict(networks=[name], text="report", views=1) for name in runs if name not in images_only}
    found |= {f"{name}, {text}": dict(networks=[name], text=text, views=1) for name in kinds["second"][:1] for text in ("shuffled", "swapped")}
    return found


def load(out: Path, name: str):
    """A network's predictor, where it answers fastest."""
    import torch

    from causalclipseg.baselines import best_device, load_model
    from causalclipseg.evaluation import predictor

    model = load_model(folder_of(out, name), device=best_device()).to(memory_format=torch.channels_last)
    return predictor(model, "bf16" if best_device().type == "cuda" and name != MINI else "no", companions=True)


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


def measure(out: Path, data: str, limit: int | None, networks: list[str], text: str, views: int, checked: bool = False, more: bool = False) -> dict:
    """One row of the result, from what its networks answered. more: also surfaces, groups, calibration, and one half named."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from mixtures import replay, side_checked

    from causalclipseg.evaluation import EXPECTED_DICE, evaluate, evaluate_referring

    shares = [networks_in(out, name) for name in networks]
    singles = [load(out, name) for name in networks] if checked or more else []
    shown, exchanged = replay([np.load(kept_answers(out, name, text, views)) for name in networks], shares), []

    def mean(images, reports):
        return sum(n * f(images, reports).cpu() for n, f in zip(shares, singles)) / sum(shares)

    if checked:
        shown = side_checked(shown, mean, exchanged)
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
    """Write OUT/full_size.json: every row, and every run's settings and curve."""
    from causalclipseg.config import write_text

    runs = {}
    for name in names:
        folder = out / name
        if (folder / "training.json").exists():
            curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            runs[name] = {"model": json.loads((folder / "config.json").read_text()), "training": json.loads((folder / "training.json").read_text()), "curve": curve}
    write_text(out / "full_size.json", json.dumps({"device": device(), "rows": rows, "runs": runs}) + "\n")


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
    parser.add_argument("--measure", action="store_true", help="train nothing")
    parser.add_argument("--train", action="store_true", help="measure nothing")
    parser.add_argument("--only", nargs="+", help="these runs alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--second", type=int, default=20, help="epochs of second-K; 0: none")
    parser.add_argument("--minutes", type=float, default=0, help="all runs shall take no longer: second-K has the epochs that then fit; 0: --second")
    parser.add_argument("--baselines", nargs="*", default=["unet", "dynunet"])
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="key=JSON for every run (for trials)")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pool", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="measurements at a time")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = jobs(args.seeds, args.epochs, args.second, args.baselines)
    wanted = {name: job for name, job in wanted.items() if not args.only or name in args.only}
    changes = {key: json.loads(value) for key, _, value in (s.partition("=") for s in args.settings)}
    if not args.measure:
        done: dict = {}
        until, fit = 60 * args.minutes and time.monotonic() + 60 * args.minutes, {"lock": threading.Lock()}
        with ThreadPoolExecutor(len(wanted)) as pool:
            for name, (preset, settings, start) in wanted.items():
                job = (preset, settings | changes, start)
                done[name] = pool.submit(run, name, job, args.out, args.data, args.limit, done, until, fit)
            for future in as_completed(done.values()):
                print(future.result(), flush=True)
        record(args.out, list(wanted), {})
    if args.train:
        return
    rows: dict = {}
    trained = [name for name in wanted if (args.out / name / "README.md").exists()]
    todo = tasks(trained)
    questions = dict.fromkeys((name, task["text"], task["views"]) for task in todo.values() for name in task["networks"])
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
