"""The files of a Hugging Face Space: the demo, the package and the shipped model, with the front matter a Space asks for."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from .._files import check_new_folder, put_in_place

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = ("jupyterlab", "nbval", "pytest", "hypothesis", "selenium", "tensorboard", "mmcv-lite", "kagglehub", "monai")  #: not needed to serve


def write_space(directory: str | Path) -> Path:
    """Write a folder that can be pushed to a Space as it is.

    Args:
        directory: made where it is missing; must be empty.
    Raises:
        ValueError: the folder holds something already.
    """
    directory = check_new_folder(directory)
    beside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("causalclipseg", "assets"):
        shutil.copytree(ROOT / name, beside / name, ignore=skip)
    shutil.copy(ROOT / "app.py", beside)
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith(("#", "gradio", *LEFT_OUT))]
    (beside / "requirements.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (beside / "README.md").write_text(front_matter() + (ROOT / "assets/models/mini/README.md").read_text(encoding="utf-8").split("---\n", 2)[-1], encoding="utf-8")
    (beside / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8")  # the hub takes no larger file otherwise
    put_in_place(beside, directory)
    return directory


def front_matter() -> str:
    """What a Space reads at the top of its README.md; a Space installs the Gradio that it names."""
    return (
        "---\ntitle: CausalCLIPSeg\nemoji: 🫁\ncolorFrom: blue\ncolorTo: yellow\nsdk: gradio\n"
        f"sdk_version: {version('gradio')}\npython_version: '{sys.version_info.major}.{sys.version_info.minor}'\napp_file: app.py\npinned: false\nlicense: mit\n"
        "short_description: Segment a chest X-ray from a sentence\n---\n"
    )
