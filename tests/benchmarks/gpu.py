"""What a GPU makes of the training loop: pictures a second, share of the time spent waiting for batches, memory.

    python tests/benchmarks/gpu.py --data QATA --out tests/benchmarks/results/gpu.json

Each row is a real `causalclipseg train`, alone on the GPU, on the first pictures of a folder, in a process of its own. The first
epoch is not counted (kernels are chosen, workers start). Waiting is the time in which the loop asks its feed for the next batch
and gets none yet, as the CPU sees it; a GPU that still computes the step before does not wait in it, so the share is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PAPER = {"weights": "none"}  # the preset as it is, but for CLIP's weights, which change no time
ROWS = {
    "paper, bf16": ("paper", {**PAPER, "precision": "bf16"}),
    "paper, bf16, graphs": ("paper", {**PAPER, "precision": "bf16", "graphs": True}),
    "paper, bf16, graphs, 4 workers": ("paper", {**PAPER, "precision": "bf16", "graphs": True, "workers": 4}),
    "paper, fp16": ("paper", {**PAPER, "precision": "fp16"}),
    "paper, fp32": ("paper", PAPER),
    "paper, bf16, batches of 128": ("paper", {**PAPER, "precision": "bf16", "batch_size": 128, "workers": 4}),
    "paper, bf16, torch.compile": ("paper", {**PAPER, "precision": "bf16", "compile": True}),
    "mini, bf16": ("mini", {"precision": "bf16", "sizes": (), "workers": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--limit", type=int, default=2000, help="use only the first pictures")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()

    from causalclipseg._files import write_text

    result = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}  # rows of other names stay
    for name in args.rows:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            try:
                row, about = alone.submit(measure, *ROWS[name], args.data, args.limit, args.epochs).result()
            except Exception as error:  # one row that cannot run is no end of the others
                row, about = {"failed": " ".join(str(error).split())[:300]}, {}
        result["rows"][name] = row
        result |= about
        write_text(args.out, json.dumps(result, indent=2) + "\n")
        print(name, row, flush=True)


def measure(name: str, settings: dict, data: str, limit: int, epochs: int) -> tuple[dict, dict]:
    """One row, and what it ran on."""
    import dataclasses

    import torch

    from causalclipseg.config import preset
    from causalclipseg.feeding import Feed
    from causalclipseg.training import train

    model_config, config = preset(name)
    config = dataclasses.replace(config, epochs=epochs, evaluate_every=epochs, samples_every=0, **settings)
    feed_epoch, waits = Feed.epoch, []

    def timed(self, *where):
        batches, waited = feed_epoch(self, *where), 0.0
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - began
            if batch is None:
                waits.append(waited)
                return
            yield batch

    Feed.epoch = timed
    with tempfile.TemporaryDirectory() as folder:
        out = train([data], Path(folder) / "run", model_config, config, limit=limit, quiet=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        about = json.loads((out / "training.json").read_text())
    counted = lines[1:]
    rates = [line["images_per_second"] for line in counted]
    seconds = sum(line["images"] / line["images_per_second"] for line in counted)
    cuda = torch.cuda.is_available()
    row = {
        "images_per_second": sum(line["images"] for line in counted) / seconds, "slowest_and_fastest_epoch": [min(rates), max(rates)],
        "step_ms": 1000 * config.batch_size * seconds / sum(line["images"] for line in counted),
        "waiting_share": sum(waits[1:]) / seconds, "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "batch_size": config.batch_size, "precision": config.precision, "compile": config.compile, "graphs": config.graphs, "workers": config.workers,
        "size": model_config.image_size, "epochs_counted": len(counted), "images_an_epoch": lines[0]["images"], "seed": config.seed,
    }  # fmt: skip
    device = torch.cuda.get_device_name() if cuda else "cpu"
    return row, {"device": device, **{key: about[key] for key in ("versions", "data", "data_digest", "limit")}}


if __name__ == "__main__":
    main()
