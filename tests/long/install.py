"""`pip install .` elsewhere: the command finds the shipped model without the checkout. Run by name; pip fetches setuptools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_an_installed_command_has_the_shipped_model(tmp_path):
    source, where, out = (tmp_path / name for name in ("source", "installed", "out"))
    for name in ("causalclipseg", "assets"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source)  # a build leaves its folder behind, so not in the checkout
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(where), str(source)], check=True)
    command = [sys.executable, "-m", "causalclipseg", "predict", str(ROOT / "assets/examples/both-lungs.png"), "Infection of the left lung.", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(where)})
    assert json.loads((out / "result.json").read_text())["model"] == "mini"
