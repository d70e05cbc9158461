"""How much of a training step is spent waiting for pictures, with a step of stated length in place of a GPU.

    python tests/benchmarks/feeding.py --data DIR --out tests/benchmarks/results/feeding.json

The real feed (`causalclipseg.feeding`: decoded cache, sentences, cutting of masks, what is drawn over pictures, workers,
batches sent as bytes) gives batches of the preset `paper` (32 pictures of 224 x 224, its own augmentation); a sleep
stands in for the GPU, which computes without the CPU. For each number of workers: how many pictures a second the feed
alone gives, the share of time waited beside each assumed step, and the shortest step beside which at most 5 % is waited.
And, whatever else the machine does meanwhile (`load_average`, `cores_allowed`): the processor time of one picture in a
worker, hence what one free core feeds.

Not counted as waiting: the work on every pixel (`data.finish`: warp, tones, blur, noise), which a GPU does as a part of
its step. It makes some thirty passes over 6 MB, by memory bandwidth below a millisecond on a T4; the share of it that
the core beside a GPU has, the calls that start it, is measured on pictures of 8 x 8 pixels (`calls_ms_a_batch`). Where
there is no GPU a CPU does it, at `cpu_ms_a_picture_where_no_gpu_is`, beside a step that takes a hundred times as long.
The copy to the GPU (3.2 MB a batch) is not counted either, and the training's own use of the cores is not simulated.
A thread takes batches from the workers while a step runs, as DataLoader's own does where there is a GPU to pin them for.

The assumed steps: `paper` costs 26 GFLOPs a picture forward, and three times that with its backward pass, so
2.5 TFLOPs a step of 32. At about a third of its peak in half precision a T4 (65 TFLOPS) takes some 120 ms and an
A100 (312 TFLOPS) some 25 ms. They are assumptions, not measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

STEPS_MS = {"T4, fp16 (assumed)": 120.0, "A100, bf16 (assumed)": 25.0}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder in one of the layouts")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60, help="steps of each measurement, after 10 that are not counted")
    parser.add_argument("--limit", type=int, default=1000, help="use only the first pictures")
    args = parser.parse_args()

    from causalclipseg._files import write_text
    from causalclipseg.config import preset
    from causalclipseg.feeding import find_data, training_sets, versions

    model_config, config = preset("paper")
    folders, description = find_data([args.data], config, args.limit)
    began = time.perf_counter()
    data_sets = training_sets(folders, model_config, config)
    decoding = time.perf_counter() - began
    pictures = sum(map(len, data_sets))
    cpu, pixels, calls = _cpu(data_sets[0])
    rows = [_measure(data_sets, dataclasses.replace(config, workers=workers, batch_size=BATCH), model_config.image_size, args.steps) for workers in args.workers]
    result = {
        "rows": rows, "cpu_ms_a_picture": cpu, "images_per_second_of_a_free_core": 1000 / cpu, "cpu_ms_a_picture_where_no_gpu_is": pixels,
        "calls_ms_a_batch": calls, "assumed_steps_ms": STEPS_MS, "batch_size": BATCH, "size": model_config.image_size, "pictures": pictures,
        "decoding_once_ms_a_picture": 1000 * decoding / pictures, "seed": config.seed, "cores": os.cpu_count(), "cores_allowed": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0], "processor": _processor(), "versions": versions(),
        "data": description["data"], "data_digest": description["data_digest"],
    }  # fmt: skip
    import json

    write_text(args.out, json.dumps(result, indent=2) + "\n")
    print(f"{cpu:.2f} ms of processor time a picture: a free core feeds {1000 / cpu:.0f} images/s ({calls:.1f} ms of calls a batch; without a GPU {pixels:.2f} ms a picture more)")
    for row in rows:
        waits = ", ".join(f"{name} {share:.1%}" for name, share in row["waiting_share"].items())
        print(f"{row['workers']} workers: {row['images_per_second']:.0f} images/s; waiting: {waits}; 5 % from steps of {row['step_ms_for_5_per_cent']:.0f} ms on")


def _measure(data_sets, config, size: int, steps: int) -> dict:
    from causalclipseg.feeding import Feed

    feed = Feed(data_sets, config)
    interval = 1 / _rate(feed, size, steps)  # seconds between two batches that the feed can give
    shares = {name: _waiting(feed, size, steps, ms / 1000) for name, ms in STEPS_MS.items()}
    return {
        "workers": config.workers, "images_per_second": BATCH / interval, "batch_ms": 1000 * interval, "waiting_share": shares,
        "step_ms_for_5_per_cent": 1000 * interval * 0.95,
    }  # fmt: skip


def _cpu(data_set, count: int = 256) -> tuple[float, float, float]:
    """Milliseconds of processor time: of one picture in a worker, of its pixels where no GPU takes them, and of the calls
    that have a GPU take a batch of them."""
    from causalclipseg.data import finish, pixels, stack

    def spent(work) -> float:
        began = time.process_time()
        work()
        return 1000 * (time.process_time() - began)

    places = [i % len(data_set) for i in range(count)]
    items = [data_set[i] for i in places]
    batches = [stack(items[k : k + BATCH]) for k in range(0, count, BATCH)]
    tiny = [{**b, "pairs": b["pairs"][..., :8, :8]} for b in batches]
    finish(batches[0])
    each = spent(lambda: [data_set[i] for i in places]) / count
    whole = spent(lambda: [finish(b) for b in batches]) / count
    together, pixels.IN_CACHE = pixels.IN_CACHE, BATCH  # as on a GPU
    calls = spent(lambda: [finish(b) for b in tiny]) / len(batches)
    pixels.IN_CACHE = together
    return each, whole, calls


def _batches(feed, size: int):
    """Batches for ever, with the workers that live through all epochs."""
    epoch = 0
    while True:
        yield from feed.epoch(epoch, size)
        epoch += 1


def _rate(feed, size: int, steps: int) -> float:
    """Batches a second, taken as fast as they come."""
    batches = _batches(feed, size)
    for _ in range(10):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps / (time.perf_counter() - began)


def _waiting(feed, size: int, steps: int, step: float) -> float:
    """Share of the time that is spent waiting for a batch, beside a step of so many seconds."""
    batches, waits = _batches(feed, size), []
    with ThreadPoolExecutor(1) as thread:  # takes from the workers while a step runs, as DataLoader's own does where a GPU is
        coming = thread.submit(next, batches)
        for number in range(steps + 10):
            began = time.perf_counter()
            coming.result()
            if number >= 10:
                waits.append(time.perf_counter() - began)
            coming = thread.submit(next, batches)
            time.sleep(step)
    waited = statistics.fmean(waits)
    return waited / (waited + step)


def _processor() -> str:
    try:
        return next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
