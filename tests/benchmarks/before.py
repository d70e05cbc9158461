"""Keep what an earlier shipped file scored.

    python tests/benchmarks/before.py NAME WHAT [--results FOLDER]

Writes results/NAME.json. WHAT says in words which file it was. FOLDER: results/ of the checkout that shipped it; this one's otherwise.
`mini_before` is the last file before sentences that name a healthy half (`healthy`), `mini_before_taught` the last before the first network
was taught by the networks of the file; mini_card.py compares with both, and refuses other ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from kept import RESULTS, WAYS, at, read  # noqa: E402


def kept(what: str, results: Path) -> dict:
    """The figures that mini_card.py compares with: scores by the way of answering, and one half named."""
    plain, ways = read("mini_qata_report", results), {}
    for (text, rule), words in WAYS.items():
        scores = at(read(f"mini_qata_{text}", results), rule)
        ways[words] = {family: {key: scores[family][key] for key in ("dice", "iou")} for family in ("per_image", "pooled")}
    return {
        "what": what, "networks": read("mini_networks", results), "n": plain["n"], "data_digest": plain["data_digest"],
        "ways": ways, "referring": plain["referring"],
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("mini_before", "mini_before_taught"))
    parser.add_argument("what")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from causalclipseg._files import write_text

    write_text(RESULTS / f"{arguments.name}.json", json.dumps(kept(arguments.what, arguments.results), indent=2) + "\n")
