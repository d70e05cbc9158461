"""What every notebook of the course calls: set up, draw the map, show source and figures.

    from causalclipseg import notebook
    lesson = notebook.setup("04_adversarial_masking")

One switch chooses how long a notebook runs: with the environment variable CAUSALCLIPSEG_FULL=1 it runs full,
otherwise small. CAUSALCLIPSEG_DATA may name a folder with real data; without it the course uses synthetic X-rays.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from . import __version__, plots

HOME = Path(__file__).resolve().parent.parent  #: the checkout
#: import name -> package, of what the notebooks need and Colab's image may lack; never torch, numpy or Jupyter
NEEDED = {
    "open_clip": "open_clip_torch", "accelerate": "accelerate", "huggingface_hub": "huggingface_hub",
    "safetensors": "safetensors", "scipy": "scipy", "PIL": "pillow", "openpyxl": "openpyxl", "tqdm": "tqdm", "typer": "typer",
    "tensorboard": "tensorboard", "kagglehub": "kagglehub", "pydicom": "pydicom", "gradio": "gradio",
    "matplotlib": "matplotlib", "captum": "captum", "ipywidgets": "ipywidgets",
}  # fmt: skip
#: installing must not replace these: a second torch takes minutes, a second numpy or ipykernel breaks the session
HELD = ("torch", "torchvision", "numpy", "ipykernel", "ipython", "jupyterlab", "notebook")
T4_SETUP = 1.0  # minutes for the clone and the missing packages; the small runs themselves are CPU work on either
DPI = 80
UNSEEN_SEED = 2  # the shipped model was trained on phantoms of seeds 0 and 1


# ---------------------------------------------------------------- the second cell


@dataclass(frozen=True)
class Lesson:
    """What `setup` found and chose for one notebook."""

    name: str  #: of the notebook, without its ending
    small: bool  #: True unless CAUSALCLIPSEG_FULL is 1
    device: object  #: torch.device
    seed: int

    def pick(self, *, small, full):
        """One of two values: the one switch between a small and a full run."""
        return small if self.small else full

    @functools.cached_property
    def data(self) -> Path:
        """A data folder: the one CAUSALCLIPSEG_DATA names, else synthetic X-rays, made once (small 120, full 1,500).

        The small one's pictures are among those that the shipped model was trained on; to measure it, take `unseen`.
        """
        return self._data_folder("course", 0)

    @functools.cached_property
    def unseen(self) -> Path:
        """The same, but synthetic X-rays of patients whom the shipped model never met (of a folder of your own, take its test split)."""
        return self._data_folder("unseen", UNSEEN_SEED)

    def _data_folder(self, name: str, seed: int) -> Path:
        named = os.environ.get("CAUSALCLIPSEG_DATA")
        if named:
            if not Path(named).is_dir():
                raise ValueError(f"CAUSALCLIPSEG_DATA is {named}, which is no folder; name one, or unset it to use synthetic X-rays.")
            return Path(named)
        from .phantoms import write_dataset

        count = self.pick(small=120, full=1500)
        folder = HOME / "data" / f"{name}-{count}"
        return folder if folder.is_dir() else write_dataset(folder, count, seed=seed)

    @functools.cached_property
    def folder(self) -> Path:
        """A place for the notebook's own files; not under version control."""
        folder = HOME / "runs" / "course" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model(self):
        """The shipped model `mini`, on the lesson's device, in evaluation mode."""
        from .model import CausalCLIPSeg

        return CausalCLIPSeg.from_pretrained(HOME / "assets" / "models" / "mini", device=self.device)


def setup(name: str, seed: int = 0) -> Lesson:
    """Make a notebook ready, and print what it runs on.

    Installs what Colab's image lacks (only there, and never torch, numpy or Jupyter), seeds random, numpy and torch,
    picks the device and sets the figures' style.

    Args:
        name: the notebook's file name without its ending.
    Returns:
        the `Lesson`.
    Raises:
        RuntimeError: a package could not be installed.
    """
    if in_colab():
        install_missing()
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # open_clip says so of every model it builds, before its weights are loaded
    logging.getLogger().addFilter(lambda record: "No pretrained weights loaded" not in record.getMessage())
    lesson = Lesson(name, os.environ.get("CAUSALCLIPSEG_FULL") != "1", torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed)
    _style()
    device = torch.cuda.get_device_name() if lesson.device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    clip = importlib.metadata.version("open_clip_torch")
    print(f"CausalCLIPSeg {__version__} · Python {platform.python_version()} · torch {torch.__version__} · numpy {np.__version__} · open_clip {clip}")
    print(f"device: {device} · seed {seed} · " + ("small (CAUSALCLIPSEG_FULL=1 runs it full)" if lesson.small else "full"))
    print(minutes(name, lesson.small))
    return lesson


def in_colab() -> bool:
    """Whether this kernel is Google Colab's."""
    return "google.colab" in sys.modules


def install_missing(run: Callable = subprocess.run, needed: dict[str, str] = NEEDED) -> list[str]:
    """Install the packages of `needed` that cannot be imported, with requirements.txt's lower bounds.

    Args:
        run: called as `subprocess.run`. needed: import name -> package.
    Returns:
        the requirements that were installed.
    Raises:
        RuntimeError: pip failed; its last line is in the message.
    """
    bounds = {}
    for line in (HOME / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"[\w.-]+", line):
            bounds[found[0]] = line.strip()
    missing = [bounds[package] for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            held = Path(folder) / "held.txt"
            held.write_text("".join(f"{name}=={version}\n" for name in HELD if (version := _version(name))), encoding="utf-8")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(held), *missing]
            done = run(command, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{', '.join(missing)} could not be installed ({why}). Restart the session and run the first cells again.")
        importlib.invalidate_caches()
    return missing


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]  # pip knows no local versions such as +cu128
    except importlib.metadata.PackageNotFoundError:
        return None


def minutes(name: str, small: bool = True) -> str:
    """One line: how long a notebook takes, from notebooks/minutes.json, which the tool that runs them writes."""
    try:
        laptop = json.loads((HOME / "notebooks" / "minutes.json").read_text(encoding="utf-8"))[name]
    except (OSError, KeyError, ValueError):
        laptop = None
    if not small:
        return "minutes: full runs take from minutes to days"
    if laptop is None:
        return "minutes: not measured yet"
    return f"minutes: {laptop:g} on a laptop (measured: one CPU core), {laptop + T4_SETUP:g} in Colab with a T4 (an estimate)"


def _style() -> None:
    import matplotlib
    from matplotlib import pyplot

    cycle = [plots.unit(plots.PALETTE[name]) for name in ("blue", "orange", "green", "vermillion", "purple", "sky", "black")]
    pyplot.rcParams.update({
        "figure.dpi": DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 10,
        # every line of a plot differs in its stroke as well as in its colour
        "axes.prop_cycle": matplotlib.cycler(color=cycle, linestyle=["-", "--", "-.", ":", "-", "--", "-."]),
        "axes.spines.top": False, "axes.spines.right": False, "image.cmap": "gray",
    })  # fmt: skip


# ---------------------------------------------------------------- figures and source


def show(figure, alt: str) -> None:
    """Show a figure with its description, which can be unfolded below it.

    Args:
        figure: a matplotlib figure (closed afterwards, so that it is not shown twice) or a PIL picture.
        alt: what the figure shows, for those who do not see it; a sentence or more.
    """
    from IPython.display import display

    image, words = _bundles(figure, alt)
    display(image[0], raw=True, metadata=image[1])
    display(words, raw=True)


def _bundles(figure, alt: str) -> tuple[tuple[dict, dict], dict]:
    """The picture (data, metadata) and the words below it, as Jupyter's mime bundles."""
    if not alt or not alt.strip():
        raise ValueError("A figure needs alternative text: show(figure, alt=\"what it shows\").")
    data = {"image/png": base64.b64encode(_png(figure)).decode(), "text/plain": alt}
    words = f"<details><summary>This figure in words</summary>{html.escape(alt)}</details>"
    return (data, {"image/png": {"alt": alt}}), {"text/html": words, "text/plain": ""}


def _png(figure) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if isinstance(figure, Image.Image):
        picture = figure
    else:
        from matplotlib import pyplot

        figure.savefig(buffer, format="png", dpi=DPI)
        pyplot.close(figure)
        picture = Image.open(buffer)
    # 256 colours are enough for grey pictures with a few tints, and a third of the bytes
    picture = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def panels(pictures: Iterable[tuple[str, object]], columns: int | None = None, width: float = 2.3):
    """A matplotlib figure of pictures in a grid, each under its title.

    Args:
        pictures: (title, picture) pairs; a picture is (H, W) or (H, W, 3) or a PIL picture. Grey values of floats run
            from 0 to 1 and those of integers from 0 to 255, so that panels can be compared.
        columns: all in one row by default. width: of a panel, in inches.
    """
    import numpy as np
    from matplotlib import pyplot

    pictures = list(pictures)
    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    first = np.asarray(pictures[0][1])
    lines = 1 + max(title.count("\n") for title, _ in pictures)
    height = width * first.shape[0] / first.shape[1] + 0.22 * lines
    figure, axes = pyplot.subplots(rows, columns, figsize=(columns * width, rows * height), squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, (title, picture) in zip(axes.flat, pictures):
        picture = np.asarray(picture)
        place.imshow(picture, vmin=0, vmax=1 if picture.dtype.kind in "fb" else 255)
        place.set_title(title)
    return figure


def slider(draw: Callable, name: str, values: Iterable, start=None, alt: str | Callable = "") -> None:
    """A figure that follows a slider; without a live kernel the figure at `start` stays.

    Args:
        draw: value -> matplotlib figure or PIL picture.
        name: what the slider sets, its label.
        values: the stops of the slider, in order.
        start: one of `values`; the middle one by default.
        alt: text for the figure: a function of the value, or a string in which {value} is filled in.
    """
    from IPython.display import display

    values = list(values)
    start = values[len(values) // 2] if start is None else start
    if start not in values:
        raise ValueError(f"start must be one of the slider's values {values}, not {start!r}.")
    describe = alt if callable(alt) else lambda value: alt.format(value=value)

    image, words = _bundles(draw(start), describe(start))
    picture = display(image[0], raw=True, metadata=image[1], display_id=True)
    text = display(words, raw=True, display_id=True)
    if importlib.util.find_spec("ipywidgets") is None:
        return
    import ipywidgets

    control = ipywidgets.SelectionSlider(
        options=values, value=start, description=name, continuous_update=False, style={"description_width": "initial"},
        layout={"width": "28em"},
    )  # fmt: skip

    def follow(change):
        image, words = _bundles(draw(change["new"]), describe(change["new"]))
        picture.update(image[0], raw=True, metadata=image[1])
        text.update(words, raw=True)

    control.observe(follow, "value")
    display(control)


def source(thing) -> None:
    """Show the source of a class, function or module of the package, highlighted, with its place in the checkout."""
    from IPython.display import Markdown, display

    thing = inspect.unwrap(thing)
    lines, first = inspect.getsourcelines(thing)
    place = Path(inspect.getsourcefile(thing)).resolve().relative_to(HOME).as_posix()
    where = place if inspect.ismodule(thing) else f"{place}, line {first}"
    display(Markdown(f"`{where}`\n\n```python\n{inspect.cleandoc(chr(10) + ''.join(lines)).rstrip()}\n```"))


# ---------------------------------------------------------------- the map

#: part -> (title, what it holds, where the paper has it, column, row); the parts of Fig. 1 and what surrounds them
_PARTS = {
    "data": ("data", "I, T, Y", "Sec. 3.1", 0, 1), "encoders": ("encoders", "τ, F₂ F₃ F₄", "Sec. 2.1", 1, 1),
    "masking": ("masking", "Mᵢ, 1 − Mᵢ", "Eq. 2", 2, 1), "fusion": ("fusion", "Fᶜ, Fˢ", "Sec. 2.3", 3, 1),
    "decoders": ("decoders", "W ∗ up(F) + b", "Eq. 1", 4, 1), "objective": ("objective", "Lc − λ Ls", "Eq. 3-4", 4, 0),
    "evaluation": ("evaluation", "Dice, IoU", "Tables 1, 2", 5, 1), "scm": ("causal graph", "I, T ← C → Y", "Fig. 2", 0, 0),
    "demo": ("demo", "app.py", "", 5, 0),
}  # fmt: skip
_ARROWS = (
    ("scm", "data"), ("data", "encoders"), ("encoders", "masking"), ("masking", "fusion"), ("fusion", "decoders"), ("decoders", "objective"),
    ("decoders", "evaluation"), ("evaluation", "demo"),
)  # fmt: skip


def map(*here: str) -> None:  # noqa: A001 (notebooks read `notebook.map("masking")`)
    """Draw the model with "you are here" on one part or several.

    Args:
        here: of encoders, masking, fusion, decoders, objective, data, scm, evaluation, demo.
    """
    from IPython.display import display

    for part in here:
        if part not in _PARTS:
            raise ValueError(f'The map has no part "{part}"; choose from {", ".join(_PARTS)}.')
    names = " and ".join(_PARTS[part][0] for part in here)
    alt = (
        "Map of the model: the causal graph makes the data (I, T, Y); encoders give τ and F₂ to F₄; masking splits them with Mᵢ and 1−Mᵢ; "
        "fusion gives Fᶜ and Fˢ; decoders steered by τ give the masks; from these come the objective, the evaluation and the demo. "
        + (f"You are here: {names}." if here else "")
    ).strip()
    display({"image/svg+xml": _map_svg(here, alt), "text/plain": alt}, raw=True, metadata={"image/svg+xml": {"alt": alt}})


def _map_svg(here: tuple[str, ...], alt: str) -> str:
    wide, high, step_x, step_y, left, top = 100, 58, 114, 84, 8, 22

    def corner(part):
        return left + _PARTS[part][3] * step_x, top + _PARTS[part][4] * step_y

    def colour(rgb):
        return "#%02x%02x%02x" % rgb

    blue, grey = colour(plots.BLUE), "#555555"
    size = (left * 2 + 5 * step_x + wide, top + step_y + high + 22)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(alt)}" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" style="max-width:100%;height:auto" font-family="DejaVu Sans, Arial, sans-serif" text-anchor="middle">',
        f"<title>{html.escape(alt)}</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{grey}"/></marker></defs><rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for one, other in _ARROWS:
        (x1, y1), (x2, y2) = corner(one), corner(other)
        if y1 == y2:
            path = f"M{x1 + wide} {y1 + high / 2}H{x2 - 1}"
        else:
            path = f"M{x1 + wide / 2} {y1 + (high if y2 > y1 else 0)}V{y2 - 1 if y2 > y1 else y2 + high + 1}"
        lines.append(f'<path d="{path}" fill="none" stroke="{grey}" stroke-width="1.5" marker-end="url(#tip)"/>')
    for part, (title, holds, place, _, row) in _PARTS.items():
        x, y = corner(part)
        lit = part in here
        ink, fill, edge = ("#ffffff", blue, "#000000") if lit else ("#222222", "#f2f2f2", grey)
        lines.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{fill}" stroke="{edge}" stroke-width="{2.5 if lit else 1}"/>')
        for text, below, style in ((title, 18, 'font-size="12" font-weight="bold"'), (holds, 34, 'font-size="11"'), (place, 49, 'font-size="10"')):
            lines.append(f'<text x="{x + wide / 2}" y="{y + below}" {style} fill="{ink}">{html.escape(text)}</text>')
        if lit:  # outside the rows, where no arrow runs
            text, below = ("▲ you are here", high + 14) if row else ("▼ you are here", -6)
            lines.append(f'<text x="{x + wide / 2}" y="{y + below}" font-size="11" font-weight="bold" fill="{blue}">{text}</text>')
    return "\n".join([*lines, "</svg>"])
