"""Notebook 10: ask the demo from Python, sweep its threshold, and build a page of one's own.

The checks ask a demo of their own, the real page on the shipped model; it starts with the first question.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..notebook import HOME

PICTURE = str(HOME / "assets" / "examples" / "both-lungs.png")  #: synthetic
REPORT = "Infection of the left lung."
OTHER = "Infection of the right lung."
BOTH = "Bilateral pulmonary infection."


@functools.cache
def _model():
    from ..model import CausalCLIPSeg

    return CausalCLIPSeg.from_pretrained(HOME / "assets" / "models" / "mini")


@functools.cache
def _client():
    """A client of the demo's page, which a thread of this process serves until the kernel ends."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from ..demo.engine import Engine
    from ..demo.page import Page

    engine = Engine([str(HOME / "assets" / "models" / "mini")])
    engine.models[engine.names[0]] = _model()
    engine.ready.set()
    return _visit(Page(engine, {}).build())


def _visit(page):
    """Serve a page, and return a client of it."""
    from gradio_client import Client

    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False, inline=False)
    return Client(address, verbose=False, download_files=tempfile.mkdtemp(prefix="answers"))


class _Recorder:
    """What the learner's function gets as its client: the real one, and a note of what was asked."""

    def __init__(self):
        self.asked = []

    def predict(self, *arguments, api_name=None, **named):
        return self.submit(*arguments, api_name=api_name, **named).result()

    def submit(self, *arguments, api_name=None, **named):
        self.asked.append(api_name)
        return _client().submit(*arguments, api_name=api_name, **named)


def ask(answer) -> None:
    """You asked the running demo, and read its answer.

    answer(client, picture, report) -> (mask (H, W) bool, finding), by /segment.
    """
    for report in (REPORT, OTHER):
        _ask_once(answer, report)


def _ask_once(answer, report: str) -> None:
    client = _Recorder()
    said = answer(client, PICTURE, report)
    assert "/segment" in client.asked, 'The demo was not asked: call client.predict(..., api_name="/segment").'
    assert isinstance(said, tuple) and len(said) == 2, "Return two things: the mask as an array, and the finding."
    mask, finding = np.asarray(said[0]), said[1]
    height, width = np.asarray(Image.open(PICTURE)).shape[:2]
    assert mask.shape == (height, width), f"The mask has the shape {mask.shape}, the picture {(height, width)}."
    assert mask.dtype == bool, f"The mask holds {mask.dtype}; make it bool: the PNG's 255 is lesion, its 0 is not."
    assert isinstance(finding, str), 'The finding is a sentence: the answer\'s "finding".'
    png, right = _client().predict(_file(PICTURE), report, 0.5, api_name="/segment")
    assert finding == right["finding"], f"The demo says {right['finding']!r}, you return {finding!r}."
    assert np.isclose(mask.mean(), right["area_fraction"], atol=1e-4), (
        f"Your mask covers {mask.mean():.1%} of the picture, the demo's answer {right['area_fraction']:.1%}."
    )
    assert (mask == (np.asarray(Image.open(png)) > 127)).all(), "Your mask is as large as the demo's, but lies elsewhere: is it mirrored or turned?"


def sweep(answer) -> None:
    """The areas are those of the demo.

    answer(client, picture, report, thresholds) -> area fractions, one a threshold.
    """
    thresholds = [0.2, 0.5, 0.8]
    said = list(answer(_Recorder(), PICTURE, REPORT, thresholds))
    assert len(said) == 3, f"Return one area a threshold: 3, not {len(said)}."
    right = [_client().predict(_file(PICTURE), REPORT, t, api_name="/segment")[1]["area_fraction"] for t in thresholds]
    assert np.allclose(said, right), f"You return {[round(float(s), 4) for s in said]}; the demo says {[round(r, 4) for r in right]}."


def page(answer) -> None:
    """Your page runs, and its endpoint answers a program.

    answer(model) -> a gradio page with the endpoint /compare(image, first, second) -> (overlay, overlay, Dice).
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from ..inference import segment

    built = answer(_model())
    assert isinstance(built, gr.Blocks), f"Return the page (a gr.Blocks or gr.Interface), not {type(built).__name__}."
    names = list(built.get_api_info()["named_endpoints"])
    assert "/compare" in names, f'The page has no endpoint /compare, only {", ".join(names) or "none"}: write api_name="compare".'
    try:
        client = _visit(built)
        first, second = REPORT, BOTH
        said = client.predict(_file(PICTURE), first, second, api_name="/compare")
        assert isinstance(said, (tuple, list)) and len(said) == 3, "/compare must return two pictures and one number."
        assert all(Path(str(path)).is_file() for path in said[:2]), "The first two outputs must be pictures (gr.Image)."
        a, b = (segment(_model(), PICTURE, sentence).mask for sentence in (first, second))
        right = 2 * (a & b).sum() / max(1, a.sum() + b.sum())
        number = said[2]
        assert isinstance(number, (int, float)) and abs(number - right) < 1e-3, f"The Dice of the two masks is {right:.3f}; the page says {number!r}."
        # An overlay is the grey picture, tinted where its mask is.
        tint = [np.ptp(np.asarray(Image.open(path).convert("RGB").resize(a.shape[::-1])).astype(int), axis=2) for path in said[:2]]
        assert tint[0][a].mean() > 10 and tint[1][b].mean() > 10, "A picture does not show its mask: draw the mask over the X-ray (plots.overlay)."
        assert tint[0][b & ~a].mean() < 10 < tint[1][b & ~a].mean(), "The first picture should show the mask of the first sentence, the second that of the second."
        same = client.predict(_file(PICTURE), first, first, api_name="/compare")[2]
        assert abs(same - 1) < 1e-6, f"The same sentence twice must give 1, not {same!r}."
    finally:
        built.close(verbose=False)


def _file(picture: str):
    from gradio_client import handle_file

    return handle_file(picture)
