"""Write the examples that the demo ships: phantoms with sentences, in assets/examples.

    python tests/benchmarks/examples.py [--out assets/examples]

No patient's picture may lie in the repository, so these are synthetic. The same picture comes with several
sentences, since the point of the model is that the sentence steers the mask.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from PIL import Image  # noqa: E402

from causalclipseg.phantoms import VERSION, sample_phantom  # noqa: E402

# write_dataset draws 64-bit seeds, so these small ones are in no training set.
PICTURES = {"both-lungs": 9_000_031, "right-lung": 9_000_054, "electrodes": 9_000_037, "left-lung": 9_000_025}
# picture, sentence (None: the phantom's own), what the example is for
EXAMPLES = (
    ("both-lungs", None, "Both lungs named"),
    ("both-lungs", "Infection of the left lung.", "Same picture, only the left half named"),
    ("both-lungs", "Infection of the right lung.", "Same picture, only the right half named"),
    ("right-lung", None, "One area in the right half"),
    ("right-lung", "Infection of the left lung.", "Same picture, only the healthy half named: the mask stays empty"),
    ("electrodes", None, "Electrodes over the lungs"),
    ("left-lung", "Infection of the right lung.", "A healthy half that is taken for ill: the model can be wrong"),
)


def write_examples(directory: Path) -> None:
    """Write the pictures (8-bit grey PNG) and `examples.json` (image, report, shows) into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    phantoms = {name: sample_phantom(seed) for name, seed in PICTURES.items()}
    for name, phantom in phantoms.items():
        Image.fromarray(phantom.image).save(directory / f"{name}.png", optimize=True)
    rows = [{"image": f"{name}.png", "report": report or phantoms[name].report, "shows": shows, "phantom": PICTURES[name]}
            for name, report, shows in EXAMPLES]
    text = json.dumps({"phantoms_version": VERSION, "examples": rows}, indent=1, ensure_ascii=False)
    (directory / "examples.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets" / "examples")
    write_examples(parser.parse_args().out)
