"""Audit a model on real pictures and on phantoms; numbers alone are kept, no patient's picture.

    python tests/benchmarks/audits.py --data QATA --phantoms PHANTOMS [--model DIR] [--limit 500]

Writes results/audit_NAME_qata.json and results/audit_NAME_phantoms.json (NAME: the model's folder). `--limit 0`
takes every test picture: 29 predictions a picture, about an hour for QaTa-COV19 on two free cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--phantoms", required=True)
    parser.add_argument("--model", default=str(ROOT / "assets" / "models" / "mini"))
    parser.add_argument("--limit", type=int, default=500, help="pictures of each test split, spread over the groups; 0: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = {}
        for kind, data in (("phantoms", args.phantoms), ("qata", args.data)):  # beside each other: one process keeps about one core busy
            command = [sys.executable, "-m", "causalclipseg", "audit", "--model", args.model, "--data", data, "--out", str(Path(folder) / kind)]
            asked[kind] = subprocess.Popen(command + (["--limit", str(args.limit)] if args.limit else []), cwd=ROOT)
        failed = [kind for kind, process in asked.items() if process.wait()]
        if failed:
            sys.exit(f"The audit of {' and '.join(failed)} failed; nothing was written.")
        for kind in asked:
            kept = Path(__file__).with_name("results") / f"audit_{Path(args.model).resolve().name}_{kind}.json"
            kept.write_text((Path(folder) / kind / "audit.json").read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()
