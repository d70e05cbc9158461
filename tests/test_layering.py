"""Every module has its place, arrows point down only, and importing the package is cheap."""
import ast
import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "causalclipseg"
#: module -> those of ours that it may import ("causalclipseg" itself holds the version and imports lazily)
MAY = {
    "_files": set(),
    "config": {"_files"},
    "reports": set(),
    "acquisition": set(),
    "carafe": set(),
    "objectives": set(),
    "metrics": set(),
    "scm": set(),
    "pretrained": set(),
    "encoders": {"pretrained", "config"},
    "masking": {"carafe"},
    "decoder": {"masking"},  # for the coordinate convolution
    "baselines": {"model", "encoders", "config"},
    "model": {"encoders", "masking", "decoder", "config", "_files"},
    "recording": {"encoders", "model"},
    "phantoms": {"scm", "reports", "_phantom_parts", "_files"},
    "_phantom_parts": {"_phantom_drawing"},
    "_phantom_drawing": set(),
    "dicom": set(),
    "images": {"dicom"},
    "data": {"reports", "images", "acquisition", "config", "_files"},  # edits augment
    # what a training is made of
    "losses": {"config", "objectives", "acquisition", "reports", "data"},
    "schedule": {"config"},
    "checkpoints": {"config", "_files"},
    "feeding": {"config", "data"},
    "growth": {"config"},
    "distillation": {"baselines", "data", "evaluation", "views"},
    "doubt": {"reports"},
    "views": {"doubt", "evaluation", "reports"},
    "card": {"checkpoints", "config", "_files"},
    "runs": {"checkpoints", "config", "_files", "data", "metrics", "plots"},
    # what is shown
    "plots": set(),
    "_audit_page": {"evaluation"},
    "_confounding_page": {"_files"},
    "_evaluation_page": {"_audit_page", "_files", "data", "evaluation", "plots"},
}
JOBS = {"training", "pretraining", "averaging", "evaluation", "audit", "inference", "intervention", "explain", "benchmark", "confounding"}
DRAWING = {"inference", "audit"}  # the jobs that make pictures
ABOVE = {"cli", "_cli_measure", "__main__", "notebook", "exercises", "demo"}  # no job may import these


def modules():
    """Name -> files; the packages `data`, `demo` and `exercises` count as one module each."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    return {**found, **{name: sorted((PACKAGE / name).glob("*.py")) for name in ("data", "demo", "exercises")}}


def imports(path):
    """The modules of ours that a file imports anywhere, also inside a function."""
    inside = len(path.relative_to(PACKAGE).parts) - 1 if path.is_relative_to(PACKAGE) else None
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if inside is None or node.level <= inside:
                continue  # within `data`
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "causalclipseg":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("causalclipseg.")}
    return found & modules().keys()


def test_every_module_has_one_place():
    assert sorted([*MAY, *JOBS, *ABOVE]) == sorted(modules())


@pytest.mark.parametrize("name", sorted(MAY))
def test_a_module_imports_only_what_lies_below_it(name):
    for path in modules()[name]:
        assert imports(path) - {name} <= MAY[name], path.name


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_job_imports_no_front_end(name):
    for path in modules()[name]:
        assert not imports(path) & (ABOVE | (set() if name in DRAWING else {"plots"}))


def test_no_import_goes_round_in_a_circle():
    arrows = {name: set().union(*map(imports, paths)) - {name} for name, paths in modules().items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in arrows[name]:
                visit(other)
            path.pop()
            done.add(name)

    for name in arrows:
        visit(name)
    assert len(done) == len(arrows) > 10


@pytest.mark.parametrize("name", ["app.py", "causalclipseg/cli.py", "causalclipseg/_cli_measure.py", "causalclipseg/__main__.py"])
def test_front_ends_hold_no_model_code(name):
    path = REPOSITORY / name
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            assert not {b for b in bases if b.endswith("Module")}, node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {node.module or ""} if isinstance(node, ast.ImportFrom) else {alias.name for alias in node.names}
            assert not {n for n in names if n.startswith(("torch.nn", "open_clip", "torchvision"))}
    if name == "app.py":
        assert imports(path) == {"demo"}


def test_the_demo_holds_no_model_code():
    for path in modules()["demo"]:
        assert not imports(path) & {"encoders", "carafe", "masking", "decoder", "objectives", "training", "model"}, path.name


@pytest.mark.parametrize("statement", ["import causalclipseg", "import causalclipseg.config", "import causalclipseg.reports"])
def test_importing_the_package_alone_does_not_import_torch(statement):
    script = f"{statement}, sys; print(sorted({{'torch', 'open_clip', 'torchvision'}} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_offers_the_names_it_lists():
    import causalclipseg

    from causalclipseg.config import ModelConfig
    from causalclipseg.model import CausalCLIPSeg

    assert causalclipseg.CausalCLIPSeg is CausalCLIPSeg and causalclipseg.ModelConfig is ModelConfig
    assert set(causalclipseg.__all__) <= set(dir(causalclipseg))
    with pytest.raises(AttributeError, match="'segmnt'"):
        causalclipseg.segmnt
