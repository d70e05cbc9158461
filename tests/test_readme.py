"""README's examples are run as they stand, against the shipped model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import notebook_rules
import pytest
from causalclipseg import cli
from demo_driver import REPOSITORY, running_app
from typer.main import get_command

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RESULTS = (REPOSITORY / "tests/benchmarks/results/README.md").read_text(encoding="utf-8")


def run(code: str, folder=REPOSITORY) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_examples(tmp_path):
    section = README.partition("## In Python")[2].partition("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    shutil.copytree(REPOSITORY / "assets/models", tmp_path / "assets/models")
    shutil.copytree(REPOSITORY / "assets/examples", tmp_path / "assets/examples")
    run(code + "\nassert out.mask.any() and len(out.causal_masks) == 3 and out.finding", tmp_path)


def test_client_example():
    code = re.search(r"<!-- client example -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    with running_app(REPOSITORY / "assets/models/mini") as address:
        checks = "\nassert answer['area_fraction'] > 0 and change['verdict'] and reasons['faithfulness']"
        run(code.replace("http://127.0.0.1:7860", address) + checks)


@pytest.mark.parametrize("line", re.findall(r"^causalclipseg (.+)$", README, re.MULTILINE))
def test_a_command_it_names_is_understood(line, monkeypatch):
    """Every option and argument is one that the command has; nothing is run."""
    monkeypatch.chdir(REPOSITORY)
    command, words = get_command(cli.app), shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("x", words)


@pytest.mark.parametrize("page", ["README.md", "tests/benchmarks/results/README.md"])
def test_links_lead_somewhere(page):
    file = REPOSITORY / page
    assert list(notebook_rules.broken_links(file.read_text(encoding="utf-8"), file, notebook_rules.anchors(file))) == []


def test_results_and_card_are_what_the_kept_files_say():
    """`ship.py` without arguments changes nothing: no number in them was written by hand."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "benchmarks"))
    from causalclipseg.checkpoints import kept_settings
    from mini_card import card
    from provenance import trained_on
    import readme_results
    import results_page

    for page, parts in ((README, readme_results.PARTS), (RESULTS, results_page.PARTS)):
        for name, part in parts.items():
            assert page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0] == part()
    assert (REPOSITORY / "assets/models/mini/README.md").read_text(encoding="utf-8") == card()
    assert kept_settings(REPOSITORY / "assets/models/mini") == trained_on()


def test_every_kept_file_is_in_the_table():
    table = RESULTS.partition("## Which file is what")[2]
    named = re.findall(r"`([\w*]+(?:\.[\w*]+)?)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    for file in (REPOSITORY / "tests/benchmarks/results").iterdir():
        assert file.name == "README.md" or any(fnmatch(file.name, name) for name in named), file.name


def test_the_table_of_the_known_confounder_is_what_the_runs_say():
    found = json.loads((REPOSITORY / "tests/benchmarks/results/confounding.json").read_text())
    kept, harm = found["summary"]["0.9"], found["verdict"]["0.9"]["dice reversed"]
    methods = ["oracle", "none", "causal", "minimax", "interventional", "matched", "adjusted", "adjusted by scanner", "adjusted with edits", "surroundings"]
    table = README.partition("| trained with |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == len(methods)

    def shown(value: dict, factor: float = 1, digits: int = 3, unit: str = "") -> str:
        text = f"{factor * value['mean']:.{digits}f} ± {factor * (value['high'] - value['low']) / 2:.{digits}f}{unit}"
        return text.replace("-", "−")

    for method, line in zip(methods, table):
        row, (_, *cells) = kept[method], [cell.strip() for cell in line.strip("| ").split("|")]
        wanted = [f"{row['dice same']['mean']:.3f}", f"{row['dice none']['mean']:.3f}", shown(row["dice reversed"])]
        if method != "oracle":
            wanted += [shown(row["closed"], 100, 0, " %") if method != "none" else "", shown(row["to the oracle"])]
        assert [cell for cell in cells if cell or method != "oracle"] == wanted, line
    words = " ".join(README.split())
    assert f"leaves a drop of {kept['matched']['drop']['mean']:.3f} from same to reversed" in words
    assert "reversed set by {mean:.3f} ({low:.3f} to {high:.3f})".format(**harm).replace("-", "−") in words
