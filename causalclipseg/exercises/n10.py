"""Notebook 10: ask the demo from Python, sweep its threshold, and build a page of one's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


class _Recorder:
    """Stands between the learner's function and the real client, and writes down what was asked."""

    def __init__(self, client):
        self.client, self.asked = client, []

    def predict(self, *arguments, api_name=None, **named):
        self.asked.append(api_name)
        return self.client.predict(*arguments, api_name=api_name, **named)


def ask(answer, client, picture: str) -> None:
    """You asked the running demo, and read its answer.

    answer(client, picture, report) -> (mask (H, W) bool, finding), by /segment of a running demo.
    """
    client, report = _Recorder(client), "Infection of the left lung."
    said = answer(client, picture, report)
    assert client.asked, "The demo was not asked: call client.predict(..., api_name=\"/segment\")."
    assert isinstance(said, tuple) and len(said) == 2, "Return two things: the mask as an array, and the finding."
    mask, finding = said
    height, width = np.asarray(Image.open(picture)).shape[:2]
    mask = np.asarray(mask)
    assert mask.shape == (height, width), f"The mask has the shape {mask.shape}, the picture {(height, width)}."
    assert mask.dtype == bool, f"The mask holds {mask.dtype}; make it bool: the PNG's 255 is lesion, its 0 is not."
    assert isinstance(finding, str) and "lung" in finding, 'The finding is a sentence: the answer\'s "finding".'
    _, right = client.client.predict(_file(picture), report, 0.5, api_name="/segment")
    assert finding == right["finding"], f"The demo says {right['finding']!r}, you return {finding!r}."
    assert np.isclose(mask.mean(), right["area_fraction"], atol=1e-4), (
        f"Your mask covers {mask.mean():.1%} of the picture, the demo's answer {right['area_fraction']:.1%}."
    )


def sweep(answer, client, picture: str) -> None:
    """The areas are those of the demo.

    answer(client, picture, report, thresholds) -> area fractions, one a threshold.
    """
    thresholds, report = [0.2, 0.5, 0.8], "Infection of the left lung."
    said = answer(client, picture, report, thresholds)
    assert len(said) == 3, f"Return one area a threshold: 3, not {len(said)}."
    right = [client.predict(_file(picture), report, t, api_name="/segment")[1]["area_fraction"] for t in thresholds]
    assert np.allclose(said, right), f"You return {[round(float(s), 4) for s in said]}; the demo says {[round(r, 4) for r in right]}."


def page(answer, model, picture: str) -> None:
    """Your page runs, and its endpoint answers a program.

    answer(model) -> a gradio page with the endpoint /compare(image, first, second) -> (overlay, overlay, Dice).
    """
    import gradio as gr
    from gradio_client import Client

    from ..inference import segment

    built = answer(model)
    assert isinstance(built, gr.Blocks), f"Return the page (a gr.Blocks or gr.Interface), not {type(built).__name__}."
    names = list(built.get_api_info()["named_endpoints"])
    assert "/compare" in names, f'The page has no endpoint /compare, only {", ".join(names) or "none"}: write api_name="compare".'
    _, address, _ = built.launch(prevent_thread_lock=True, quiet=True, share=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            client = Client(address, verbose=False, download_files=folder)
            sentences = "Infection of the left lung.", "Infection of the right lung."
            said = client.predict(_file(picture), *sentences, api_name="/compare")
            assert isinstance(said, (tuple, list)) and len(said) == 3, "/compare must return two pictures and one number."
            assert all(Path(str(path)).is_file() for path in said[:2]), "The first two outputs must be pictures (gr.Image)."
            a, b = (segment(model, picture, sentence).mask for sentence in sentences)
            right = 2 * (a & b).sum() / max(1, a.sum() + b.sum())
            number = said[2]
            assert isinstance(number, (int, float)) and abs(number - right) < 1e-3, f"The Dice of the two masks is {right:.3f}; the page says {number!r}."
            same = client.predict(_file(picture), sentences[0], sentences[0], api_name="/compare")[2]
            assert abs(same - 1) < 1e-6, f"The same sentence twice must give 1, not {same!r}."
    finally:
        built.close()


def _file(picture: str):
    from gradio_client import handle_file

    return handle_file(picture)
