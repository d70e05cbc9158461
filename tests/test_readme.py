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


def kept_result(name: str) -> dict:
    return json.loads((REPOSITORY / f"tests/benchmarks/results/{name}.json").read_text())


def told(value: dict) -> str:
    """Mean and 95 % interval as the text writes them."""
    return "{mean:.3f} ({low:.3f} to {high:.3f})".format(**value).replace("-", "−")


def shown(value: dict, factor: float = 1, digits: int = 3) -> str:
    """Mean and half of the interval, as the tables write them."""
    return f"{factor * value['mean']:.{digits}f} ± {factor * (value['high'] - value['low']) / 2:.{digits}f}".replace("-", "−")


def short(value: dict, factor: float = 1, digits: int = 3) -> str:
    """The same of how far something lies below."""
    return shown(value, factor, digits).removeprefix("−")


def test_the_table_of_the_known_confounder_is_what_the_runs_say():
    found = kept_result("confounding")
    kept, harm = found["summary"]["0.9"], found["verdict"]["0.9"]["dice reversed"]
    methods = ["oracle", "none", "causal", "minimax", "interventional", "matched", "adjusted", "adjusted by scanner", "adjusted with edits", "surroundings"]
    table = README.partition("| trained with |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == len(methods)

    for method, line in zip(methods, table):
        row, (_, *cells) = kept[method], [cell.strip() for cell in line.strip("| ").split("|")]
        wanted = [f"{row['dice same']['mean']:.3f}", f"{row['dice none']['mean']:.3f}", shown(row["dice reversed"])]
        if method != "oracle":
            wanted += [f"{shown(row['closed'], 100, 0)} %" if method != "none" else "", shown(row["to the oracle"])]
        assert [cell for cell in cells if cell or method != "oracle"] == wanted, line
    words = " ".join(README.split())
    assert f"leaves a drop of {kept['matched']['drop']['mean']:.3f} from same to reversed" in words
    assert f"reversed set by {told(harm)}" in words


def test_what_is_told_of_the_known_confounder_is_what_the_runs_say():
    """The section of the results page that is written by hand."""
    words = " ".join(RESULTS.partition("## A world with a known confounder")[2].partition("\n## ")[0].split())
    found, fewer = kept_result("confounding"), kept_result("confounding_4000")["summary"]["0.9"]
    kept, weaker, harm = found["summary"]["0.9"], found["summary"]["0.6"], found["verdict"]
    printed = kept["causal"]
    mean = lambda row, key: f"{row[key]['mean']:.2f}"  # noqa: E731
    for claim in (
        f"where nothing is coupled by {told(harm['0.9']['dice none'])}",
        "no smaller ({mean:+.3f}, {low:.3f} to {high:+.3f})".format(**harm["0.9"]["drop"]).replace("-", "−"),
        f"(AUROC {mean(printed, 'trained lesion auroc_m')}, an untrained masker {mean(printed, 'untrained lesion auroc_m')}, "
        f"a map of where lesions usually are {mean(printed, 'location prior lesion auroc_m')})",
        f"from F^s ({mean(printed, 'trained Y from F^s')}) as well as from F^c ({mean(printed, 'trained Y from F^c')}), "
        f"and the scanner from F^c ({mean(printed, 'trained A from F^c')})",
        f"`reweighted`, {100 * kept['reweighted']['closed']['mean']:.0f} %",
        f"comes closest: {short(kept['adjusted by scanner']['to the oracle'])} below it with plain words, "
        f"{short(kept['reweighted']['to the oracle'])} with the sentences as they are",
        f"it is {short(fewer['adjusted by scanner']['to the oracle'])} below its oracle and drops by {fewer['adjusted by scanner']['drop']['mean']:.3f}, "
        f"not {kept['adjusted by scanner']['drop']['mean']:.3f}",
        f"With it they regain {100 * kept['adjusted with edits']['closed']['mean']:.0f} %",
        f"loses little ({weaker['none']['dice reversed']['mean']:.3f} reversed, the oracle {weaker['oracle']['dice reversed']['mean']:.3f})",
        f"by scanner regains {short(weaker['adjusted by scanner']['closed'], 100, 0)} % and is {short(weaker['adjusted by scanner']['to the oracle'])} below",
        f"as much as at 0.9 ({told(harm['0.6']['dice reversed']).replace(' (', ', ').rstrip(')')}, reversed)",
    ):
        assert claim in words, claim
    spoken = " ".join(README.split())
    assert f"adjustment) regains {short(kept['adjusted by scanner']['closed'], 100, 0)} % of the loss" in spoken
    assert f"into other patients' pictures {short(kept['surroundings']['closed'], 100, 0)} %" in spoken
    early = [max(line["L_s"] for line in run["history"] if line["step"] <= 100) for run in found["runs"] if (run["method"], run["strength"]) == ("causal", 0.9)]
    assert len(early) == 5 and min(early) > 1000
    regained = {name: row["closed"] for name, row in kept.items() if name != "oracle" and row["closed"]["mean"] >= 0.8}
    assert len(regained) == 5 and sum(value["low"] < 0.8 for value in regained.values()) == 2, regained
    assert not [name for name in regained if kept[name]["to the oracle"]["mean"] > -0.01]


def test_what_is_told_of_l_s_on_real_pictures_is_what_the_runs_say():
    words = " ".join(RESULTS.partition("## L_s on real pictures")[2].partition("\n## ")[0].split())
    result = kept_result("runaway")
    entropy, runs = result["base_rate_entropy"], {run["rate"]: run["lines"] for run in result["runs"]}
    assert f"entropy ({entropy:.2f} nats a pixel)" in words and all(line["L_s"] > entropy for lines in runs.values() for line in lines)
    passes = {rate: next(line["step"] for line in lines if line["L_s"] > 10 * entropy) for rate, lines in runs.items()}
    assert f"after {passes[3e-5]} steps at the paper's rate of 3e-5, after {passes[3e-4]} at 3e-4 and after {passes[3e-3]} at 3e-3" in words
    fast = {line["step"]: line for line in runs[3e-3]}
    assert f"reaches {round(fast[150]['L_s'], -3):,.0f} after 150 steps" in words
    assert "from {:.2f} to {:.2f} to {:.2f} within 50".format(*(fast[step]["dice"] for step in (90, 110, 140))) in words
    assert (result["pictures"], result["size"], result["seed"]) == (1000, 64, 0) and "1,000 pictures of 64×64, one seed" in words
