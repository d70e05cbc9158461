"""The kept results behind the model card and README: their names, how they are read, and the words that both use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
MODEL = Path(__file__).resolve().parents[2] / "assets" / "models" / "mini"
EXPECTED_DICE = "expected-dice"  #: as in `causalclipseg.evaluation`, which would import torch
TEXTS = {
    "report": "the picture's own sentence",
    "generic": "a sentence that names no place",
    "none": "no sentence",
    "shuffled": "another picture's sentence",
    "swapped": "left and right exchanged",
}
AVERAGED = "averaged"  #: the picture's own sentence, mean over six views (`causalclipseg/views.py`) and over the networks of the file
CHECKED = "checked"  #: the same, with the side that the sentence names checked (`causalclipseg/doubt.py`)
#: How an answer to the picture's own sentence is made: (result, rule for its threshold) -> words, which `legend` explains. The best first.
WAYS = {
    (CHECKED, EXPECTED_DICE): "everything on",
    (AVERAGED, EXPECTED_DICE): "six views, own thresholds",
    (AVERAGED, ""): "six views",
    ("report", EXPECTED_DICE): "one view, own thresholds",
    ("report", ""): "one view",
}
METRICS = ["Dice", "IoU", "pooled Dice", "pooled IoU"]
#: Quoted, in per cent: (what, text at test time, per-image Dice, IoU, pooled Dice, IoU, source).
QUOTED = [
    ("CausalCLIPSeg, CLIP weights", "report", 85.21, 76.90, None, None, "paper, Table 1"),
    ("CausalCLIPSeg, no CLIP weights", "report", 83.61, 74.86, None, None, "paper, Table 2"),
    ("LViT", "report", 83.66, 75.11, None, None, "paper, Table 1"),
    ("FMISeg", "report", 84.58, 76.17, 91.22, 83.84, "pooled: its paper; per image: re-measured by others, unreviewed"),
    ("LanGuideMedSeg", "report", None, None, 89.78, 81.45, "its repository"),
    ("U-Net", "none", 79.02, 69.46, None, None, "paper, Table 1"),
    ("nnU-Net", "none", 80.42, 70.81, None, None, "paper, Table 1, its best without a sentence"),
]
NUMBERS = ("no", "one", "two", "three", "four")


def read(name: str, results: Path = RESULTS) -> dict:
    """A result, NAME.json of results/, this checkout's or another's."""
    return json.loads((results / f"{name}.json").read_text())


def at(result: dict, rule: str) -> dict:
    """Scores of a result by a rule for its threshold, or at its own where there is none."""
    return result["thresholds"][rule] if rule else result


def legend() -> list[str]:
    """What the words of WAYS mean, and how often the check of the side was right on the test split (`doubt.py`)."""
    checked, found = read(f"mini_qata_{CHECKED}"), read("doubt")["splits"]["test"]
    return [
        "- **One view**: the file's first network, asked once, threshold 0.5. The demo answers this way, and every figure is measured this way unless it says otherwise.",
        f"- **Six views** (`--average-views`; in the demo *More exact, slower*): the mean over three sizes, each also mirrored with left and right exchanged in the sentence, and over the {NUMBERS[checked['networks']]} networks of the file that read sentences "
        "(`causalclipseg ensemble`); in a half of the picture where the first network stays below 0.5, its answer alone counts (`causalclipseg/views.py`). Without a sentence, half of the answer is another network's, trained without any.",
        "- **Own thresholds** (`--threshold expected-dice`): each picture's, between 0.3 and 0.5, where the Dice expected from its probabilities is highest (`metrics.py`).",
        "- **Everything on** (both options, and `--check-side`): the side is checked, too. Where a sentence says that the infection is in one half alone and the picture speaks against it, the answer is to the sentence with "
        "the other side (`causalclipseg/doubt.py`: Bayes' rule on three answers to the picture and its mirror image, fitted on training and validation sentences, a few per cent of which name "
        f"the wrong half). Of {found['sentences']} such test sentences {found['wrong_side']} name the wrong half; the check exchanges the sides of {found['exchanged']}, rightly in {found['exchanged_rightly']}.",
    ]  # fmt: skip


def size() -> str:
    """The shipped file's, in MB."""
    return f"{(MODEL / 'model.safetensors').stat().st_size / 1e6:.1f}"


def percent(row: dict) -> list[str]:
    """Dice and IoU of a result, both families, in per cent."""
    return [f"{100 * value:.2f}" for value in (row["per_image"]["dice"]["mean"], row["per_image"]["iou"]["mean"], row["pooled"]["dice"], row["pooled"]["iou"])]


def past(scores: dict, quoted: dict) -> str:
    """Which quoted figures (per cent) are passed, in words."""
    names = {"dice": "Dice", "iou": "IoU"}
    return " and ".join(f"{names[key]} (by {100 * scores[key]['mean'] - value:.2f})" for key, value in quoted.items() if 100 * scores[key]["mean"] >= value) or "neither"


def quoted_scores(name: str) -> dict:
    """Per-image Dice and IoU (per cent) of a quoted row."""
    return dict(zip(("dice", "iou"), next(row[2:4] for row in QUOTED if row[0] == name)))


def interval(score: dict) -> str:
    """A 95 % interval, in per cent."""
    return f"{100 * score['low']:.2f} to {100 * score['high']:.2f}"


def quoted(text: str) -> list[list[str]]:
    """The quoted rows of one kind of text."""
    return [[name, *("" if v is None else f"{v:.2f}" for v in values), f"quoted: {source}"] for name, kind, *values, source in QUOTED if kind == text]


def listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join(", ".join(words).rsplit(", ", 1))


def kept_to(answers: dict, wording: str = "unilateral") -> str:
    """How often one model of `steering.json` kept to the half that a sentence of this wording names."""
    return f"{100 * answers['qata'][wording]['success']:.0f} %"


def left_empty(answers: dict, kind: str = "qata", wording: str = "refer") -> str:
    """How often it answered with nothing where the named half is healthy."""
    return f"{100 * answers[f'{kind}, healthy half'][wording]['empty']:.0f} %"


def fill(page: Path, parts: dict[str, Callable[[], str]]) -> None:
    """Put each part between the page's markers of its name."""
    from causalclipseg._files import write_text

    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        (before, after), start, end = re.split(rf"<!-- {name} -->\n.*<!-- /{name} -->", text, flags=re.DOTALL), f"<!-- {name} -->", f"<!-- /{name} -->"
        text = f"{before}{start}\n{part()}\n{end}{after}"
    write_text(page, text)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def referring(r: dict) -> str:
    """One sentence of figures on the named half."""
    return (
        f"{r['pictures']} bilateral pictures (each half at least {r['least_pixels']} lesion pixels), each half named in turn: "
        f"{100 * r['success']:.2f} % of {r['n']} predictions are not empty and have at least 95 % of their area on the named half; "
        f"on average {100 * r['area_on_half']:.1f} % of the area lies there ({100 * r['pooled_area_on_half']:.1f} % of the summed area); "
        f"empty: {r['empty']}; per-image Dice against that half's mask {r['dice']:.4f}. Nothing is cut away by side."
    )
