"""The course's notebooks: make them on a clean kernel, and say what is wrong with one.

    python tests/notebooks.py make [04 05 ...]    refresh the first two cells, run small, keep the outputs
    python tests/notebooks.py lint [04 05 ...]    say what is wrong, without running

`make` writes notebooks/minutes.json and the tables of notebooks/README.md, too. Without numbers both take every
notebook there is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from notebook_rules import NOTEBOOKS, REPOSITORY, badge, bootstrap, headings, lint, outputs_text, paths, tags

MINUTES, README = NOTEBOOKS / "minutes.json", NOTEBOOKS / "README.md"
CELL_TIMEOUT = 300


# ---------------------------------------------------------------- make


def refresh(notebook, name: str) -> None:
    """Generate the first two cells, the tags that follow from others, the cells' ids and the metadata; in place."""
    notebook.cells = [cell for cell in notebook.cells if not {"header", "bootstrap"} & tags(cell)]
    head = nbformat.v4.new_markdown_cell(badge(name), metadata={"tags": ["header"]})
    first = nbformat.v4.new_code_cell(bootstrap(), metadata={"tags": ["bootstrap"]})
    notebook.cells[:0] = [head, first]
    seen = set()
    for cell in notebook.cells:
        if "check" in tags(cell):  # its message is compared, too
            cell.metadata.tags = ["check", "raises-exception", "nbval-check-output"]
        cell.metadata.pop("lines_to_next_cell", None)
        digest = hashlib.sha256(cell.source.encode()).hexdigest()
        cell.id = next(d for n in range(len(digest)) if (d := digest[n : n + 8]) not in seen)
        seen.add(cell.id)
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"},
    })  # fmt: skip
    notebook.nbformat, notebook.nbformat_minor = 4, 5


def execute(notebook) -> float:
    """Run every cell on a clean kernel, small, on synthetic data.

    Returns:
        the processor seconds that the kernel and its children took, or the seconds on the clock where those are fewer:
        what it takes one idle core, also where this machine is busy with other things.
    """
    import resource  # not on Windows

    from nbclient import NotebookClient

    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # also the conditions the minutes hold for
    for name in ("CAUSALCLIPSEG_FULL", "CAUSALCLIPSEG_DATA", "PYTHONPATH"):  # never a patient's picture in an output
        environment.pop(name, None)
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}})
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    client.execute(env=environment)
    clock, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return min(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def tidy(notebook) -> None:
    """Remove from the outputs what differs from run to run or needs a live kernel; in place."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for volatile in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(volatile, None)
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                continue
            output.get("metadata", {}).pop("needs_background", None)
            if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept


def make(numbers=()) -> None:
    """Refresh and run notebooks, and write them with their outputs and their minutes."""
    sys.path.insert(0, str(REPOSITORY))
    from causalclipseg import notebook as course
    from nbclient.exceptions import CellExecutionError

    for path in paths(numbers):
        notebook = nbformat.read(path, as_version=4)
        refresh(notebook, path.stem)
        try:
            seconds = execute(notebook)
        except CellExecutionError as error:
            sys.exit(f"{path.name} stopped, and is left as it was. {error}")
        tidy(notebook)
        measured = json.loads(MINUTES.read_text()) if MINUTES.exists() else {}
        measured[path.stem] = math.ceil(seconds / 15) / 4  # quarters of a minute, rounded up
        MINUTES.write_text(json.dumps(dict(sorted(measured.items())), indent=1) + "\n")
        line = course.minutes(path.stem)
        for output in notebook.cells[2].get("outputs", []):  # what setup would print now
            if output.output_type == "stream":
                output.text = re.sub(r"^minutes: .*$", line, output.text, flags=re.MULTILINE)
        nbformat.write(notebook, path)
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
        for problem in lint(path):
            print(f"  {problem}", flush=True)
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


# ---------------------------------------------------------------- notebooks/README.md


def readme(text: str) -> str:
    """notebooks/README.md with its table of contents and its table of modules made anew.

    What a row of contents says of a notebook is kept; title, minutes and badge are filled in.
    """
    said = dict(re.findall(r"^\| \[\d\d · [^]]*\]\((\w+)\.ipynb\) \| (.*?) \|", text, re.MULTILINE))
    measured = json.loads(MINUTES.read_text(encoding="utf-8"))
    contents = ["| notebook | you can afterwards | minutes | |", "|---|---|---|---|"]
    for path in paths():
        title = headings(nbformat.read(path, as_version=4))[0][1]
        contents.append(f"| [{title}]({path.name}) | {said.get(path.stem, '…')} | {measured.get(path.stem, '…')} | {badge(path.stem)} |")
    modules = ["| module | notebooks |", "|---|---|"]
    for module, places in modules_met().items():
        modules.append(f"| `{module}` | {', '.join(f'[{name[:2]}]({name}.ipynb)' for name in places)} |")
    for mark, lines in (("contents", contents), ("modules", modules)):
        table = "\n".join([f"<!-- {mark} -->", *lines, f"<!-- /{mark} -->"])
        text = re.sub(f"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _: table, text, flags=re.DOTALL)  # noqa: B023
    return text


def public_modules() -> list[str]:
    """The package's modules without a leading underscore; `data`, `demo` and `exercises` count as one each."""
    package = REPOSITORY / "causalclipseg"
    names = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    return sorted(name for name in names if not name.startswith("_"))


def modules_met() -> dict[str, list[str]]:
    """Module -> the notebooks that import it, run it or show its source."""
    import causalclipseg

    met = {name: [] for name in public_modules()}
    for path in paths():
        found = set()
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                found |= imported(cell.source, causalclipseg._HOMES)
                found |= set(re.findall(r"^`causalclipseg/(\w+)(?:\.py|/)", outputs_text(cell), re.MULTILINE))  # notebook.source
                found |= {"cli"} if re.search(r'-m causalclipseg|"-m"(?s:.*)"causalclipseg"|"causalclipseg"(?s:.*)"-m"', cell.source) else set()
        for name in found & met.keys():
            met[name].append(path.stem)
    return met


def imported(source: str, homes: dict[str, str]) -> set[str]:
    """Modules of ours that a cell imports; `homes` says where the names live that the package itself offers."""
    code = "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in source.splitlines())
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "causalclipseg":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {homes.get(alias.name, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("causalclipseg.")}
    return found


if __name__ == "__main__":
    what, numbers = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if what == "make":
        make(numbers)
    elif what == "lint":
        wrong = {path.name: lint(path) for path in paths(numbers)}
        for name, problems in wrong.items():
            print(name + ("".join(f"\n  {problem}" for problem in problems) or ": as it should be"))
        sys.exit(any(wrong.values()))
    else:
        sys.exit(__doc__)
