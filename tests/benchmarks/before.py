"""Keep what an earlier shipped file scored, or one that was not shipped after all.

    python tests/benchmarks/before.py NAME WHAT [--results FOLDER] [--runs NAME=RUN ...]

Writes results/NAME.json. WHAT says in words which file it was. FOLDER: results/ of the checkout that measured it (`ship.py`); this one's
otherwise. RUN: folders of the runs that made it, where they are on record nowhere else.
`mini_before` is the last file before sentences that name a healthy half (`healthy`), `mini_before_taught` the last before the first network
was taught by the networks of the file; mini_card.py compares with both, and refuses other ones. `pilot_silent` was not shipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from kept import AVERAGED, EXPECTED_DICE, RESULTS, WAYS, at, read  # noqa: E402
from provenance import recorded  # noqa: E402


def kept(what: str, results: Path, runs: dict[str, Path]) -> dict:
    """The figures that mini_card.py compares with: scores by the way of answering, without a sentence, and one half named; and the runs."""
    plain = read("mini_qata_report", results)
    silent = {"one view": ("none", ""), "six views, own thresholds": (f"none_{AVERAGED}", EXPECTED_DICE)}
    return {
        "what": what, "networks": read("mini_networks", results)["networks"], "n": plain["n"], "data_digest": plain["data_digest"],
        "ways": {words: families(text, rule, results) for (text, rule), words in WAYS.items()},
        "without a sentence": {words: families(text, rule, results) for words, (text, rule) in silent.items()},
        "referring": plain["referring"],
        "runs": {name: {"training": json.loads(texts["training.json"]), "metrics": [json.loads(line) for line in texts["metrics.jsonl"].splitlines()]}
                 for name, texts in ((name, recorded(run)) for name, run in runs.items())},
    }  # fmt: skip


def families(text: str, rule: str, results: Path) -> dict:
    """Dice and IoU, per image and pooled, of one kind of text."""
    scores = at(read(f"mini_qata_{text}", results), rule)
    return {family: {key: scores[family][key] for key in ("dice", "iou")} for family in ("per_image", "pooled")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("mini_before", "mini_before_taught", "pilot_silent"))
    parser.add_argument("what")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME=RUN")
    arguments = parser.parse_args()
    runs = {name: Path(run) for name, _, run in (pair.partition("=") for pair in arguments.runs)}
    from causalclipseg._files import write_text

    write_text(RESULTS / f"{arguments.name}.json", json.dumps(kept(arguments.what, arguments.results, runs), indent=2) + "\n")
