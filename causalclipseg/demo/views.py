"""What the page's components show of an answer: lists of their new values, in the order of their outputs."""

from __future__ import annotations

import functools
import html

import gradio as gr
import numpy as np
from PIL import Image

from . import pictures, words
from .engine import Cancelled

METHODS = {"occlusion": "Occlusion (pixels)", "gradcam": "Grad-CAM (pixels)", "integrated_gradients": "Integrated gradients (pixels)", "words": "Words"}


HIDDEN = gr.update(visible=False)
#: the components of Intervene and Explain without an answer
NO_OTHERS = (HIDDEN, HIDDEN, "")


def asked(question):
    """`question` with whatever is wrong with an input said in one sentence on the page."""
    @functools.wraps(question)
    def ask(*arguments, **named):
        try:
            return question(*arguments, **named)
        except Cancelled:
            raise gr.Error("Cancelled.", title="Stopped", print_exception=False) from None
        except (ValueError, TypeError) as error:  # shown as HTML
            raise gr.Error(html.escape(str(error), quote=False), title="Please check", print_exception=False) from None
        except (MemoryError, RuntimeError) as error:  # torch has no error of its own for memory
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise gr.Error("The answer needs more memory than there is; make the picture smaller.", title="Please check", print_exception=False) from None

    return ask


def uploads_alone(page: gr.Blocks) -> None:
    """Let nothing but uploaded files into any event of the page, and say in one sentence what else was sent.

    Gradio itself would fetch the address that a program sends in place of a file, and be silent on a path or an argument of
    the wrong kind.
    """
    take = page.preprocess_data

    async def take_uploads(event, inputs, *rest, **named):
        paths = [str(value.get("path") or "") for value in inputs if isinstance(value, dict)]
        if any("://" in path for path in paths):
            raise gr.Error("Addresses are not fetched; upload the picture itself.", title="Please check", print_exception=False)
        try:
            return await take(event, inputs, *rest, **named)
        except gr.Error as error:  # Gradio's own, of a value outside its range
            error.print_exception = False
            raise
        except Exception:  # whatever Gradio makes of it
            raise gr.Error("An argument cannot be used: a picture must be an uploaded file, no path; for the others see /?view=api.",
                           title="Please check", print_exception=False) from None  # fmt: skip

    page.preprocess_data = take_uploads


def answer(result, opacity, bare, plain=None):
    """Every component of the first tab, and what is kept for the second.

    Args:
        bare: the answer in one view without a sentence. plain: where `result` is a mean over views, the answer in one.
    """
    kept = {**pictures.drawn(result), "tiles": pictures.inside(plain or result, bare, exact=plain is not None)}
    drawn = pictures.with_mask(kept, opacity)
    return [gr.update(visible=False), gr.update(visible=True), kept, drawn, words.downloads_html(result, drawn),
            words.finding_html(result), *for_programs(result)]  # fmt: skip


def tiles(kept, groups, opacity, outline):
    """The pictures of "Inside": a column, a picture and its words each; those of other groups hidden."""
    values = []
    for tile in (kept or {}).get("tiles", ()):
        visible, title, soft = tile["group"] in groups, tile["title"], tile["values"]
        if not visible:
            values += [gr.update(visible=False), gr.skip(), gr.skip()]
            continue
        picture, mask = None, None
        if soft is not None:
            soft = soft.astype(np.float32)
            mask = pictures.resize(kept["mask"].astype(np.uint8), soft.shape[::-1], Image.Resampling.NEAREST) > 0
            picture = (pictures.signed_map(soft, tile["limit"], kept, opacity, outline) if tile["limit"]
                       else pictures.soft_map(soft, kept, tile["colour"], opacity, outline))  # fmt: skip
        said = (words.signed_html(title, tile["meaning"], soft, mask, tile["limit"], "logits") if tile["limit"]
                else words.map_html(title, tile["meaning"], soft, mask, tile["colour"]))  # fmt: skip
        values += [gr.update(visible=True), gr.update(value=picture, visible=picture is not None), said]
    missing = pictures.MOST_TILES - len(values) // 3
    return values + [gr.update(visible=False), gr.skip(), gr.skip()] * missing


def intervention(found, opacity):
    """Before and after, the verdict, the difference map and its words."""
    before, after = pictures.drawn(found.before), pictures.drawn(found.after)
    pair = (pictures.with_mask(before, opacity), pictures.with_mask(after, opacity))
    difference = pictures.small(found.difference).astype(np.float32)
    mask = pictures.resize(found.before.mask.astype(np.uint8), difference.shape[::-1], Image.Resampling.NEAREST) > 0
    meaning = "Probability after less that before: green where it rose, purple where it fell; the white outline is the mask before."
    return [gr.update(visible=True), pair, 50, words.intervention_html(found),
            pictures.signed_map(difference, 1, before),
            words.signed_html("What changed", meaning, difference, mask, 1, "probability")]  # fmt: skip


def explanation(found):
    """The attribution and what to think of it."""
    said = words.explanation_html(found)
    if found.attribution is None:
        return [gr.update(visible=False), said]
    return [gr.update(value=attribution_picture(found), visible=True), said]


def for_programs(result) -> tuple[Image.Image, dict]:
    """What `/segment` returns: the mask at the input's size, 0 or 255, and the numbers."""
    return Image.fromarray(result.mask * np.uint8(255)), result.to_dict()


def attribution_picture(found) -> Image.Image:
    """An attribution over its X-ray; full colour is the 99th percentile of its size, since its unit differs by method."""
    kept = pictures.drawn(found.result)
    if found.attribution is None:
        return pictures.with_mask(kept, 0.35)
    limit = float(np.quantile(np.abs(found.attribution), 0.99)) or 1.0
    return pictures.signed_map(found.attribution, limit, kept)
