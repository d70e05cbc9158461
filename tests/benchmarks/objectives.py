"""Short runs of `mini` under each objective, same seed and data: which validates best, and what L_s does.

    python tests/benchmarks/objectives.py --data QATA --phantoms PHANTOMS [--limit 1500] [--epochs 2]

Writes results/objectives.json: for each objective, a line an epoch. One seed and little data: it shows which
objective runs away or stands still, not which is better by a point.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--phantoms", required=True)
    parser.add_argument("--limit", type=int, default=1500, help="training (and validation) pictures of each folder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=160, help="edge of the pictures")
    parser.add_argument("--precision", default="bf16")
    args = parser.parse_args()

    from causalclipseg._files import write_text
    from causalclipseg.config import preset
    from causalclipseg.objectives import OBJECTIVES
    from causalclipseg.training import train, versions

    model, settings = preset("mini")
    model = replace(model, image_size=args.size)
    runs = {}
    for name in OBJECTIVES:
        config = replace(
            settings, objective=name, confounder_every=1, epochs=args.epochs, sizes=(), ema=0.0, evaluate_every=1,
            precision=args.precision,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            train([args.data, args.phantoms], Path(folder) / name, model, config, limit=args.limit, quiet=True)
            lines = (Path(folder) / name / "metrics.jsonl").read_text().splitlines()
        runs[name] = [json.loads(line) for line in lines]
        last = runs[name][-1]
        print(name, {key: last[key] for key in ("loss", "loss_causal", "loss_confounder", "val_dice")}, flush=True)
    result = {"runs": runs, "limit": args.limit, "size": args.size, "lam": settings.lam, "cap": settings.cap, "lr": settings.lr,
              "batch_size": settings.batch_size, "seed": settings.seed, "precision": args.precision, "versions": versions()}  # fmt: skip
    write_text(Path(__file__).with_name("results") / "objectives.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
