"""The examples of each tab, and the guided tour: which picture, which sentence, which question."""

from __future__ import annotations

import json
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets"
EXAMPLES = ASSETS / "examples"
FROM_DATA = 6  #: pictures of --data that are shown as examples

#: tab "Intervene": (what it shows, picture, sentence, edit, strength)
INTERVENTIONS = (
    ("Electrodes on the chest", "right-lung.png", "Unilateral pulmonary infection, one infected area, lower right lung.", "electrodes", 1.0),
    ("Half the dose: a grainy picture", "both-lungs.png", "Bilateral pulmonary infection, two infected areas, all left lung and all right lung.", "noise", 1.0),
    ("Left and right exchanged in the sentence", "right-lung.png", "Unilateral pulmonary infection, one infected area, lower right lung.", "sides swapped", 1.0),
)
#: tab "Explain": (what it shows, picture, sentence, method)
EXPLANATIONS = (
    ("Which pixels? Occlusion", "right-lung.png", "Unilateral pulmonary infection, one infected area, lower right lung.", "occlusion"),
    ("Which pixels? Grad-CAM", "both-lungs.png", "Bilateral pulmonary infection, two infected areas, all left lung and all right lung.", "gradcam"),
    ("Which words?", "both-lungs.png", "Infection of the left lung.", "words"),
)
#: the tour: (tab, picture, sentence, edit or method or "", what to look at)
TOUR = (
    ("segment", "both-lungs.png", "Bilateral pulmonary infection, two infected areas, all left lung and all right lung.", "",
     "A sentence that names both lungs: the mask should cover both. Below the picture the finding is written out, and compared with the sentence."),
    ("segment", "both-lungs.png", "Infection of the left lung.", "",
     "The same picture, another sentence: only the left half of the picture is named, and only there the mask should stay. The sentence steers the pixels."),
    ("inside", "both-lungs.png", "Infection of the left lung.", "",
     "The masks M say which share of each feature is kept. Compare what D<sub>c</sub> and D<sub>s</sub> predict: where both show the lesion, the masks did "
     "not separate lesion from confounder. “What the sentence adds” is purple on the half that was not named."),
    ("intervene", "right-lung.png", "Unilateral pulmonary infection, one infected area, lower right lung.", "electrodes",
     "do(A): the same patient with electrodes on the chest. The lesion is the same, so the mask should be, too. Move the slider in the picture."),
    ("explain", "both-lungs.png", "Infection of the left lung.", "words",
     "Which words made this mask? Each has its Shapley value, and the table compares them with random orders of the words."),
)  # fmt: skip


def picture(name: str) -> str:
    """Absolute path of a shipped example."""
    return str(EXAMPLES / name)


def shipped_examples() -> list[dict]:
    """Examples of the repository: image (absolute path), report, shows."""
    listed = EXAMPLES / "examples.json"
    rows = json.loads(listed.read_text(encoding="utf-8"))["examples"] if listed.is_file() else []
    return [{**row, "image": picture(row["image"])} for row in rows]


def data_examples(folder: str) -> list[dict]:
    """A few pictures of a real folder's test split, evenly spread; the page keeps copies in its temporary folder while it runs."""
    from causalclipseg.data.layouts import find_samples

    samples = find_samples(folder, "test", need_masks=False)
    chosen = samples[:: max(1, len(samples) // FROM_DATA)][:FROM_DATA]
    return [{"image": str(s.image.resolve()), "report": s.report, "shows": ""} for s in chosen]
