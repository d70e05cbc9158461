"""The notebooks are as `tests/notebook_rules.py` wants them, and those rules notice when one is not.

That they run is tested by nbval (see pyproject.toml): every cell of every notebook, on a clean kernel.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
import sys
import types

import nbformat
import notebook_rules as rules
import notebooks as tool
import pytest
from conftest import REPOSITORY

from causalclipseg import exercises

PATHS = rules.paths()
NAMES = [path.stem for path in PATHS]


def cells(path, tag):
    return [cell for cell in nbformat.read(path, as_version=4).cells if tag in rules.tags(cell)]


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


# ---------------------------------------------------------------- the notebooks


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_nothing_is_wrong_with_a_notebook(path):
    assert rules.lint(path) == []


def test_all_notebooks_together_are_small():
    assert sum(path.stat().st_size for path in PATHS) < rules.MOST_BYTES


def test_every_notebook_has_its_minutes_measured():
    measured = json.loads(tool.MINUTES.read_text()) if PATHS else {}
    assert set(measured) == set(NAMES) and all(value > 0 for value in measured.values())
    assert sum(measured.values()) <= 12  # minutes, small, the whole series


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_an_unsolved_exercise_does_not_pass(path, monkeypatch):
    """The stubs as they stand, in a cell's namespace that holds the notebook's imports."""
    for folder in (REPOSITORY, REPOSITORY / "tests" / "benchmarks"):  # as notebook 07 does, whose curves are on record there
        monkeypatch.syspath_prepend(folder)
    space: dict = {}
    for cell in code(path):
        for node in ast.walk(ast.parse(python(cell.source))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), space)
    for cell, check in zip(cells(path, "exercise"), cells(path, "check")):
        exec(cell.source, space)
        with pytest.raises(exercises.NotYet):
            exec(check.source, space)


def test_every_exercise_stands_in_one_notebook():
    asked = [cell.metadata["exercise"] for path in PATHS for cell in cells(path, "exercise")]
    assert len(asked) == len(set(asked))
    assert set(asked) == set(exercises.everything())


def python(source: str) -> str:
    """A cell without the lines that only IPython reads."""
    return "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in source.splitlines())


# ---------------------------------------------------------------- the tool notices


def markdown(source):
    return nbformat.v4.new_markdown_cell(source)


def run(source, *tags, **metadata):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags), **metadata})


def printed(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


@pytest.fixture
def example():
    """A small notebook with nothing wrong, as the tool leaves it, and where it would lie."""
    task = "### Exercise 1 ●○○ 5 min\nAdd one.\n<details><summary>Hint</summary>+</details>"
    quiz = "## Quiz\n" + "\n".join("Why?\n<details><summary>Answer</summary>So.</details>" for _ in range(3))
    stub = run("def add(x):\n    raise NotImplementedError", "exercise", exercise="n04.masker")
    check = run('exercises.check("n04.masker", add)', "check")
    check.outputs = [nbformat.v4.new_output("error", ename="NotYet", evalue="no", traceback=["✗ Not yet: no"])]
    solution = run(
        f'{rules.SOLUTION_TITLE}\ndef add(x):\n    return x + 1\nexercises.check("n04.masker", add)', "solution",
        exercise="n04.masker", jupyter={"source_hidden": True}, cellView="form",
    )  # fmt: skip
    solution.outputs = [printed("✓ yes\n")]
    figure = run("notebook.show(figure, alt=words)", "nbval-check-output")
    words = "A square that is black on its left and white on its right."
    figure.outputs = [nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": words}, metadata={"image/png": {"alt": words}})]
    exercise = [markdown(task), stub, check, solution]
    book = nbformat.v4.new_notebook(cells=[
        run('from causalclipseg import exercises, notebook\nlesson = notebook.setup("04_example")'),
        markdown("# 04 · Example\nSee [the readme](../README.md#licence) and [below](#Where-next)."), figure, markdown("## Practice"),
        *copy.deepcopy(exercise), *copy.deepcopy(exercise), markdown("## Summary\nShort."), markdown(quiz), markdown("## Where next\nOn."),
    ])  # fmt: skip
    tool.refresh(book, "04_example")
    for count, cell in enumerate((c for c in book.cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    return book, rules.NOTEBOOKS / "04_example.ipynb"


RULES = (rules._opening, rules._headings, rules._outputs, rules._exercises, rules._figures, rules._private, rules._links)


def problems(book, path):
    return [problem for rule in RULES for problem in rule(book, path)]


def test_a_good_notebook_has_no_problems(example):
    book, path = example
    nbformat.validate(book)
    assert problems(book, path) == []
    before = copy.deepcopy(book)
    tool.refresh(book, path.stem)
    tool.tidy(book)
    book.cells[1].execution_count = 1  # of the generated cell
    assert book == before  # making it again changes nothing else


def place(book, tag):
    return next(cell for cell in book.cells if tag in rules.tags(cell))


def first(book, start):
    return next(cell for cell in book.cells if cell.source.startswith(start))


def replace(find, where, old, new):
    def change(book):
        cell = find(book, where)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return change


def set_source(tag, old, new):
    return replace(place, tag, old, new)


def in_text(start, old, new):
    return replace(first, start, old, new)


def outputs(tag, new):
    def change(book):
        place(book, tag).outputs = new

    return change


def count(book):
    book.cells[1].execution_count = None


def alt(book):
    place(book, "nbval-check-output").outputs[0].metadata = {}


def fold(book):
    place(book, "solution").metadata["jupyter"] = {}


def stderr(book):
    place(book, "bootstrap").outputs = [nbformat.v4.new_output("stream", name="stderr", text="Warning")]


def widget(book):
    place(book, "bootstrap").outputs = [nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})]


def no_solution(book):
    book.cells.remove(place(book, "solution"))


def patient(book):
    place(book, "bootstrap").outputs = [printed("covid_12.png")]


@pytest.mark.parametrize(
    "change, problem",
    [
        (set_source("header", "04_example", "05_example"), "another header"),
        (set_source("bootstrap", "Path.cwd()", "Path.home()"), "another bootstrap"),
        (in_text("from causalclipseg", "04_example", "05_example"), 'does not call notebook.setup'),
        (in_text("# 04", "# 04 · Example", "# Example"), "no title"),
        (in_text("## Practice", "## Practice", "# Practice"), "not exactly one heading"),
        (in_text("## Practice", "## Practice", "## Practice\n#### Deep"), "jumps from heading level 2 to 4"),
        (in_text("## Summary", "## Summary", "## In short"), "does not end with the sections"),
        (in_text("## Quiz", "<details>", "<p>"), "three questions"),
        (count, "not run from the top"),
        (outputs("nbval-check-output", []), "to be compared and that holds none"),
        (outputs("check", []), "to be compared and that holds none"),
        (stderr, "stderr"),
        (widget, "view of a widget"),
        (no_solution, "not one solution cell"),
        (fold, "not folded"),
        (outputs("check", [printed("✓ yes")]), "does not end in NotYet"),
        (outputs("solution", [printed("")]), "its solution does not pass"),
        (set_source("exercise", "add(x)", "add(x, y=2)"), r"add is written \(x, y=2\) in the exercise and \(x\) in the solution"),
        (set_source("solution", rules.SOLUTION_TITLE, "# my solution"), "does not begin with"),
        (set_source("check", "n04.masker", "n04.split"), "checks something else"),
        (in_text("### Exercise", "Hint", "Idea"), "folded hint"),
        (in_text("### Exercise", "●○○", ""), "difficulty"),
        (alt, "figure without alternative text"),
        (in_text("## Practice", "## Practice", "## Practice\n![](a.png)"), "picture without alternative text"),
        (in_text("## Practice", "## Practice", "## Practice\nSee /home/me/data."), "path of one machine: /home/me/data"),
        (set_source("bootstrap", "import", "drive.mount('x')\nimport"), "asks or installs"),
        (patient, "patient's picture"),
        (in_text("# 04", "../README.md", "../README.txt"), "link to nothing"),
        (in_text("# 04", "#licence", "#warranty"), "heading that is not there"),
    ],
)  # fmt: skip
def test_the_tool_notices(example, change, problem):
    book, path = example
    change(book)
    found = problems(book, path)
    assert any(re.search(problem, text) for text in found), found


def test_tidying_removes_what_differs_from_run_to_run(example):
    book, _ = example
    cell = place(book, "bootstrap")
    cell.metadata["execution"] = {"iopub.execute_input": "now"}
    book.metadata["widgets"] = {"state": {}}
    cell.outputs = [printed("a\n"), printed("b\n"), nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})]
    tool.tidy(book)
    assert "execution" not in cell.metadata and "widgets" not in book.metadata
    assert [output.text for output in cell.outputs] == ["a\nb\n"]


def test_ids_depend_on_the_source_alone(example):
    book, path = example
    ids = [cell.id for cell in book.cells]
    assert len(ids) == len(set(ids))
    for cell in book.cells:
        cell.id = "x" + cell.id
    tool.refresh(book, path.stem)
    assert [cell.id for cell in book.cells] == ids


def test_the_address_stands_in_one_place():
    assert rules.address() == "https://github.com/causalclipseg/causalclipseg"
    assert rules.address() in rules.bootstrap() and "/causalclipseg/causalclipseg/blob/main/notebooks/x.ipynb" in rules.badge("x")


def test_the_bootstrap_cell_finds_the_checkout_above(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(REPOSITORY / "assets" / "examples")
    space: dict = {}
    exec(rules.bootstrap(), space)
    assert space["home"] == REPOSITORY and sys.path[0] == str(REPOSITORY)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="inside a checkout"):
        exec(rules.bootstrap(), {})


def test_in_colab_the_bootstrap_cell_clones_once(tmp_path, monkeypatch):
    calls = []

    def clone(command, check):
        calls.append(command)
        (tmp_path / "causalclipseg" / "causalclipseg").mkdir(parents=True)
        (tmp_path / "causalclipseg" / "causalclipseg" / "notebook.py").touch()

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", clone)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        space: dict = {}
        exec(rules.bootstrap(), space)
    assert len(calls) == 1 and calls[0][-2:] == [rules.address(), str(tmp_path / "causalclipseg")]
    assert space["home"] == tmp_path / "causalclipseg" and sys.path[0] == str(space["home"])


# ---------------------------------------------------------------- notebooks/README.md

README = tool.README.read_text(encoding="utf-8")


def test_the_readme_s_tables_are_up_to_date():
    assert tool.readme(README) == README, "run `python tests/notebooks.py make` (or call its readme())"


def test_the_readme_s_links_lead_somewhere():
    titles = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert list(rules.broken_links(README, tool.README, rules.slugs(titles))) == []
    main = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "(notebooks/README.md)" in main


def test_the_readme_names_every_notebook_and_what_one_learns():
    for name in NAMES:
        row = re.search(rf"^\| \[.*?\]\({name}\.ipynb\) \| (.*?) \| [\d.]+ \| (.*) \|$", README, re.MULTILINE)
        assert row and len(row[1]) > 20 and row[2] == rules.badge(name), name


@pytest.mark.parametrize("item", ["Eq. 1", "Eq. 2", "Eq. 3", "Eq. 4", "Fig. 1", "Fig. 2", "Fig. 3", "Fig. 4", "Table 1", "Table 2"])
def test_every_part_of_the_paper_is_in_the_notebooks_that_the_readme_names(item):
    table = README.partition("## Where the paper is")[2].partition("\n## ")[0]
    names = [name for row in table.splitlines() if re.search(rf"{re.escape(item)}\b", row) for name in re.findall(r"\((\w+)\.ipynb\)", row)]
    assert names
    kind, number = item.split()
    for name in names:  # also as "Eqs. 3-4", "Fig. 3 and Fig. 4", "Tables 1 and 2"
        text = "\n".join(cell.source for cell in nbformat.read(rules.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells)
        assert re.search(rf"{kind.rstrip('.')}s?\.? (\d(-|–| and | to ))?{number}\b", text), f"{name} does not mention {item}"


@pytest.mark.parametrize("section", ["1", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "3.4"])
def test_every_section_of_the_paper_has_its_row(section):
    assert re.search(rf"^\| Sec\. {re.escape(section)}, .*\.ipynb\)", README, re.MULTILINE)


def test_every_public_module_is_met():
    met = tool.modules_met()
    assert set(met) == set(tool.public_modules()) and len(met) > 20
    assert [name for name, places in met.items() if not places] == []
