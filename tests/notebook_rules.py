"""What a notebook of the course must be, as rules that say what is wrong with one; and its two generated cells."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import nbformat

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = REPOSITORY / "notebooks"
MOST_BYTES, MOST_BYTES_EACH = 6_000_000, 700_000
SOLUTION_TITLE = "#@title Solution (run or unfold)"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
LAST_SECTIONS = ["Summary", "Quiz", "Where next"]


def paths(numbers=()) -> list[Path]:
    """The notebooks whose names begin with one of `numbers`, or all."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return [path for path in found if not numbers or path.stem[:2] in {f"{int(n):02d}" for n in numbers}]


def address() -> str:
    """The repository's one address, from pyproject.toml."""
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"].rstrip("/")


def badge(name: str) -> str:
    """A notebook's Colab badge, as Markdown."""
    place = f"{address().removeprefix('https://github.com/')}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open {name} in Colab]({BADGE})](https://colab.research.google.com/github/{place})"


def bootstrap() -> str:
    """The first code cell, the same everywhere: it makes the package importable."""
    return f"""\
# Make the package importable: from the checkout above this notebook or, in Colab, from a fresh clone.
import subprocess, sys
from pathlib import Path

places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "causalclipseg"]
home = next((place for place in places if (place / "causalclipseg/notebook.py").is_file()), None)
if home is None and "google.colab" in sys.modules:
    home = places[-1]
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{address()}", str(home)], check=True)
assert home is not None, "Open this notebook inside a checkout of {address()}"
sys.path.insert(0, str(home))"""


# ---------------------------------------------------------------- the rules


def tags(cell) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def outputs_text(cell) -> str:
    """Everything written in a code cell's outputs; pictures are left out."""
    found = []
    for output in cell.get("outputs", []):
        found += [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
        found += ["".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(found)


def lint(path: Path) -> list[str]:
    """What is wrong with a notebook, one sentence each; empty where nothing is."""
    notebook = nbformat.read(path, as_version=4)
    problems = []
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        problems.append(f"is no valid notebook: {str(error).splitlines()[0]}")
    if path.stat().st_size > MOST_BYTES_EACH:
        problems.append(f"has {path.stat().st_size / 1000:.0f} kB; at most {MOST_BYTES_EACH / 1000:.0f}")
    for rule in (_opening, _headings, _outputs, _exercises, _figures, _private, _links):
        problems += rule(notebook, path)
    return problems


def _opening(notebook, path):
    cells, name = notebook.cells, path.stem
    if len(cells) < 4:
        yield "has fewer than four cells"
        return
    if cells[0].cell_type != "markdown" or cells[0].source != badge(name):
        yield "begins with another header than the generated one; run `make`"
    if cells[1].cell_type != "code" or cells[1].source != bootstrap():
        yield "has another bootstrap cell than the generated one; run `make`"
    if f'notebook.setup("{name}")' not in cells[2].source:
        yield f'does not call notebook.setup("{name}") in its third cell'
    if not cells[3].source.startswith(f"# {name[:2]} · "):
        yield f'has no title "# {name[:2]} · ..." in its fourth cell'
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "names a kernel of its author's machine"


def headings(notebook) -> list[tuple[int, str]]:
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found += [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#{1,6}) (.+)$", _without_code(cell.source), re.MULTILINE)]
    return found


def _headings(notebook, path):
    levels = headings(notebook)
    if [level for level, _ in levels].count(1) != 1:
        yield "has not exactly one heading of the first level"
    for (before, _), (level, text) in zip(levels, levels[1:]):
        if level > before + 1:
            yield f'jumps from heading level {before} to {level} at "{text}"'
    sections = [text for level, text in levels if level == 2]
    if sections[-3:] != LAST_SECTIONS:
        yield f"does not end with the sections {', '.join(LAST_SECTIONS)}"
        return
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    quiz = text.partition("\n## Quiz")[2].partition("\n## ")[0]
    if quiz.count("<details>") != 3:
        yield "has not exactly three questions with folded answers in its quiz"


def _outputs(notebook, path):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "was not run from the top on a clean kernel (its counts are not 1, 2, 3, ...); run `make`"
    for cell in code:
        first = cell.source.strip().splitlines()[0] if cell.source.strip() else "(empty)"
        if "nbval-check-output" in tags(cell) and (not cell.outputs or cell.execution_count is None):
            yield f"has a cell whose output is to be compared and that holds none: {first}"
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                yield f"holds a warning or progress bar (stderr): {first}"
            if output.output_type == "error" and "check" not in tags(cell):
                yield f"holds an error outside a check: {first}"
            if any("widget" in kind for kind in output.get("data", {})):
                yield f"holds the view of a widget, which shows nothing without a kernel: {first}"


def _exercises(notebook, path):
    cells = notebook.cells
    number = f"n{path.stem[:2]}."
    places = [i for i, cell in enumerate(cells) if "exercise" in tags(cell)]
    for kind in ("check", "solution"):
        if sum(kind in tags(cell) for cell in cells) != len(places):
            yield f"has not one {kind} cell for each exercise"
            return
    if not 2 <= len(places) <= 4:
        yield f"has {len(places)} exercises; two to four are meant"
    for i in places:
        name = cells[i].metadata.get("exercise", "")
        if not name.startswith(number):
            yield f'has an exercise named "{name}", which is not of this notebook ({number}...)'
        task = cells[i - 1]
        if task.cell_type != "markdown" or "<summary>Hint</summary>" not in task.source:
            yield f"{name}: no task with a folded hint stands before it"
        heading = re.search(r"^#+ .*(●○○|●●○|●●●).*\d+ min", task.source, re.MULTILINE)
        if not heading:
            yield f"{name}: its heading gives no difficulty (●○○, ●●○, ●●●) and minutes"
        check, solution = (cells[i + 1 : i + 3] + [None, None])[:2]
        if check is None or "check" not in tags(check) or solution is None or "solution" not in tags(solution):
            yield f"{name}: check and solution do not follow it"
            continue
        if "raises-exception" not in tags(check) or f'exercises.check("{name}"' not in check.source:
            yield f"{name}: its check is not tagged raises-exception or checks something else"
        if [output.get("ename") for output in check.outputs] != ["NotYet"]:
            yield f"{name}: the unsolved exercise does not end in NotYet"
        if solution.metadata.get("exercise") != name or f'exercises.check("{name}"' not in solution.source:
            yield f"{name}: its solution belongs to another exercise or is not checked"
        if not solution.source.startswith(SOLUTION_TITLE) or solution.metadata.get("cellView") != "form":
            yield f'{name}: its solution does not begin with "{SOLUTION_TITLE}" as a form'
        if not solution.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"{name}: its solution is not folded"
        if "✓" not in outputs_text(solution):
            yield f"{name}: its solution does not pass"
        stub, solved = defined(cells[i].source), defined(solution.source)
        for what, shape in stub.items():
            if solved.get(what) != shape:
                yield f"{name}: {what} is written {shape} in the exercise and {solved.get(what, 'nowhere')} in the solution"


def defined(code: str) -> dict[str, str]:
    """Names a cell defines at its top level, with a function's signature ("(x, y=2)") or "value"."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = f"({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "class"
        elif isinstance(node, ast.Assign):
            found |= {name.id: "value" for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def _figures(notebook, path):
    for cell in notebook.cells:
        text = cell.source if cell.cell_type == "markdown" else "\n".join(
            "".join(output.get("data", {}).get("text/html", "")) for output in cell.outputs
        )  # fmt: skip
        for alt in [*re.findall(r"!\[([^]]*)\]\(", text), *[_attribute(tag, "alt") for tag in re.findall(r"<img\b[^>]*>", text)]]:
            if len(alt.strip()) < 8:
                yield f'has a picture without alternative text: "{alt}"'
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "") if kind.startswith("image/") else None
                if alt is not None and len(alt) < 20:
                    yield f"has a figure without alternative text; use notebook.show: {cell.source.splitlines()[0]}"


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf'\b{name}="([^"]*)"', tag)
    return found[1] if found else ""


def _private(notebook, path):
    for cell in notebook.cells:
        everything = cell.source + "\n" + (outputs_text(cell) if cell.cell_type == "code" else "")
        for found in re.findall(r"(?<![\w.:/<])/(?:work|home|root|tmp|Users|content|mnt|opt)/[\w./-]*|[A-Z]:\\\\?Users", everything):
            yield f"holds a path of one machine: {found}"
        if cell.cell_type == "code":
            for found in re.findall(r"\bcovid_\d+|\bsub-S\d+", outputs_text(cell)):
                yield f"names a patient's picture in an output: {found}"
            for found in re.findall(r"^\s*[!%]pip\b|\binput\(|drive\.mount|\.login\(|getpass", cell.source, re.MULTILINE):
                yield f"asks or installs by itself: {found.strip()}"


def _links(notebook, path):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from broken_links(cell.source, path, slugs(title for _, title in headings(notebook)))


def broken_links(text: str, path: Path, own: set[str]):
    """Links of a Markdown text in the file `path`, whose own anchors are `own`, that lead nowhere, one sentence each; no network."""
    text = _without_code(text)
    for link in [*re.findall(r"\]\(([^)\s]+)\)", text), *[_attribute(tag, "href") for tag in re.findall(r"<a\b[^>]*>", text)]]:
        if re.match(r"https?://[\w.-]+\.\w+(/|$)", link) or link.startswith("mailto:"):
            continue
        if re.match(r"\w+:", link):
            yield f"has a link of an unknown kind: {link}"
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve()
        if file and not (target.exists() and target.is_relative_to(REPOSITORY)):
            yield f"has a link to nothing: {link}"
        elif anchor and anchor.lower() not in (anchors(target) if file else own):
            yield f"has a link to a heading that is not there: {link}"


def anchors(path: Path) -> set[str]:
    """The headings' anchors of a Markdown file or notebook."""
    if path.suffix == ".ipynb":
        return slugs(title for _, title in headings(nbformat.read(path, as_version=4)))
    return slugs(re.findall(r"^#{1,6} (.+)$", _without_code(path.read_text(encoding="utf-8")), re.MULTILINE))


def slugs(titles) -> set[str]:
    """Headings as anchors, lower case, as GitHub and as Jupyter write them."""
    found = set()
    for title in titles:
        plain = re.sub(r"[*`]|\]\([^)]*\)|\[", "", title).strip().lower()
        found |= {plain.replace(" ", "-"), re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")}
    return found


def _without_code(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
