"""How many phantoms a second a core draws: plain ones, and patients of a world on one scanner and on both.

    python tests/benchmarks/phantoms.py [--count 60]

Writes results/phantoms.json: pictures of 224 x 224 a second of processor time, on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    n = parser.parse_args().count

    from causalclipseg._files import write_text
    from causalclipseg.feeding import versions
    from causalclipseg.phantoms import VERSION, World, sample_phantom

    world = World(0.9)
    sample_phantom(0), world.sample(1)  # tables that are made once
    ways = {
        "plain": lambda k: sample_phantom(k),
        "world": lambda k: next(world.stream(1, seed=k)),
        "world, both scanners": lambda k: [world.counterfactual(p, A=1 - p.variables["A"]) for p in world.stream(1, seed=k)],
    }
    result = {}
    for name, draw in ways.items():
        began = time.process_time()
        for k in range(n):
            draw(k)
        result[name] = round(n * (2 if "both" in name else 1) / (time.process_time() - began), 1)
        print(name, result[name], flush=True)
    write_text(Path(__file__).with_name("results") / "phantoms.json", json.dumps(
        {"pictures_a_second_of_one_core": result, "size": 224, "count": n, "version": VERSION, "versions": versions()}, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
