"""For programs: `/segment`, `/intervene` and `/explain`, for gradio_client and as MCP tools; their docstrings are the documentation."""

from __future__ import annotations

import gradio as gr

from .. import plots
from . import views
from .views import asked


MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one model, hence one question at a time; nothing else waits for it
EXPLAINING = {"concurrency_id": "explain", "concurrency_limit": 1}  # a queue of its own: an explanation takes seconds


def add(page) -> None:
    """Add the three endpoints to a `page.Page`, whose components give their arguments types, ranges and defaults."""
    engine = page.engine

    @asked
    def segment(image: str, report: str, threshold: float = 0.5):
        """Segment what a sentence names in a chest X-ray. Not for clinical use.

        Args:
            image: the X-ray, a PNG, JPEG, TIFF, BMP or DICOM file of 8 or 16 bits a pixel and at most 4096 x 4096 pixels, uploaded, or (MCP) as a data:image/png;base64,... string; other addresses are not fetched.
            report: the sentence, e.g. "Unilateral pulmonary infection, one infected area, lower left lung."
            threshold: a pixel belongs to the mask where its probability is at least this, 0.01 to 0.99.
        Returns:
            the mask, a PNG of the input's size with the values 0 and 255; and a JSON with area_fraction, components,
            zones, finding, disagreements, report, warnings, model and threshold.
        """
        return views.for_programs(engine.segment(image, report, threshold))

    @asked
    def intervene(image: str, report: str, edit: str = "electrodes", strength: float = 0.67):
        """Ask twice: as it is, and after one edit of the picture (do(A), another acquisition) or of the sentence. Not for clinical use.

        Args:
            image: the X-ray, as for segment.
            report: the sentence, as for segment.
            edit: of the picture: exposure, contrast, noise, blur, border, marker, electrodes, line; of the sentence: no sentence, generic, sides swapped, left only, right only.
            strength: of a picture's edit, 0 to 1; 1/3, 2/3 and 1 are mild, clear and strong.
        Returns:
            two PNGs of the input's size, the pictures before and after with the mask drawn on them; and a JSON with dice
            between the two masks, verdict, and both answers as /segment gives them.
        """
        found = engine.intervene(image, report, edit, strength)
        return plots.overlay(found.before.image, found.before.mask), plots.overlay(found.after.image, found.after.mask), found.to_dict()

    @asked
    def explain(image: str, report: str, method: str = "occlusion"):
        """Attribute the predicted mask to pixels or words, and measure how faithful that is. Not for clinical use.

        Args:
            image: the X-ray, as for segment.
            report: the sentence, as for segment.
            method: occlusion, gradcam or integrated_gradients (pixels), or words.
        Returns:
            a PNG with the attribution over the X-ray (green for, purple against the mask; for words, the mask alone);
            and a JSON with faithfulness (deletion, insertion, the mean of random orders, fit, and that of a flat map) and, for words, their scores.
        """
        found = engine.explain(image, report, method)
        return views.attribution_picture(found), found.to_dict()

    hidden = [gr.Button(visible=False) for _ in range(3)]  # events that nobody can press, with the page's components
    with gr.Row(visible=False):
        before, after, drawn = (gr.Image(format="png") for _ in range(3))
        outcome, reasons = gr.JSON(), gr.JSON()
    hidden[0].click(segment, [page.image, page.report, page.threshold], [page.mask, page.numbers], api_name="segment", **MODEL)
    hidden[1].click(intervene, [page.image, page.report, page.edit, page.strength], [before, after, outcome], api_name="intervene", **MODEL)
    hidden[2].click(explain, [page.image, page.report, page.method], [drawn, reasons], api_name="explain", **EXPLAINING)
