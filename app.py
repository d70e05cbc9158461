"""The web demo: a chest X-ray and a sentence in; the mask, and what the model kept and took away, out.

    python app.py [--model DIR] [--data DIR] [--host HOST] [--port 7860]

This file holds the page alone: the model is `causalclipseg.inference`, its pictures are `causalclipseg.plots`.
Gradio is imported when the page is built and torch when the model is loaded, so that a wrong command is refused
at once and the page is up before the model is.
"""

from __future__ import annotations

import argparse
import functools
import html
import inspect
import io
import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from causalclipseg import plots, reports

HERE = Path(__file__).resolve().parent
DEFAULT_MODEL = HERE / "assets" / "models" / "mini"
EXAMPLES = HERE / "assets" / "examples"
FROM_DATA = 6  #: pictures of --data that are shown as examples
LARGEST_UPLOAD = "50mb"
KEPT = 3600  #: seconds until an upload and its answer are deleted
VIEW = (640, 1024)  #: pixels of the longer side of what is drawn, at least and at most; downloads keep the input's
LOADING_PATIENCE = 300  #: seconds; how long a question waits for the model after a start
STYLE = HERE / "assets" / "demo.css"
# On a phone the answer lies below the examples; bring it into view.
SCROLL = "() => { if (innerWidth < 800) document.querySelector('#answer')?.scrollIntoView({behavior: 'smooth'}) }"


class Engine:
    """The one loaded model of this process; questions wait until it is there."""

    def __init__(self, name: str):
        self.name = name
        self.ready = threading.Event()

    def load(self) -> None:
        """Import torch and read the weights. ValueError says in one sentence what is wrong with them."""
        from causalclipseg import CausalCLIPSeg, inference

        self.inference, self.model = inference, CausalCLIPSeg.from_pretrained(self.name)
        self.ready.set()

    def ask(self, image: str | None, report: str | None, threshold: float):
        """The `inference.Result` for an uploaded file; ValueError says in one sentence what is wrong with it."""
        if not image:
            raise ValueError("There is no picture yet; upload one or choose an example.")
        if not self.ready.wait(LOADING_PATIENCE):
            raise ValueError("The model is still being loaded; try again in a moment.")
        try:
            content = io.BytesIO(Path(image).read_bytes())
        except OSError:
            raise ValueError("The picture is no longer on the server; upload it again.") from None
        content.name = Path(image).name  # messages name the file, not where the server keeps it
        intervention = self.model.config.intervention
        return self.inference.segment(self.model, content, report or "", confounder=intervention, threshold=threshold)


# ---------------------------------------------------------------- words


def finding_html(result) -> str:
    """The finding in words: everything that the picture with the mask shows, for those who don't see it."""
    found, highest = bool(result.mask.any()), float(result.probability.max())
    if found:
        says = html.escape(result.finding)
        many = f"{result.components} separate area{'s' * (result.components != 1)}"
        rows = [("Area", f"{result.area_fraction:.1%} of the picture, in {many}")]
        for side in reports.SIDES:
            rows_of, columns = reports.part_slices(*result.mask.shape, side)
            share, zones = result.mask[rows_of, columns].sum() / result.mask.size, result.zones[side]
            where = "all zones" if len(zones) == 3 else " and ".join(zones) + " zone" if zones else "a spill-over"
            rows.append((f"{side.capitalize()} half", f"{where}, {share:.1%} of the picture" if share else "nothing"))
        rows.append(("Probability", f"{result.probability[result.mask].mean():.2f} on average inside the mask, at most {highest:.2f}"))
    else:
        says = f"No lesion found at threshold {result.threshold:.2f}."
        rows = [("Probability", f"at most {highest:.2f} in the whole picture")]
    rows.append(("Your sentence", html.escape(result.report.strip()[:300]) or "(none)"))
    claim = reports.parse(result.report)
    if result.disagreements:
        verdict = '<div class="note"><strong>⚠ Sentence and mask disagree</strong>' + _list(result.disagreements) + "</div>"
    elif claim.side or claim.extent or claim.count is not None:
        verdict = '<p class="good"><strong>✓ Sentence and mask agree.</strong></p>'
    else:
        verdict = "<p>The sentence names no side, zone or number that could be compared with the mask.</p>"
    if result.warnings:
        verdict += '<div class="note"><strong>⚠ Please note</strong>' + _list(result.warnings) + "</div>"
    table = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return (
        f'<section class="card" id="finding" role="status" aria-live="polite"><h2>What the mask shows</h2>'
        f'<p class="says">{says}</p><dl>{table}</dl>{verdict}<small>Left and right are the halves of the picture, as in '
        "QaTa-COV19; the picture’s left is usually the patient’s right. Not for clinical use.</small></section>"
    )


def _list(lines) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def map_html(title: str, meaning: str, values: np.ndarray | None, mask: np.ndarray, colour) -> str:
    """Title, meaning, colour scale and figures of one map of values in [0, 1]: its written equivalent."""
    if values is None:
        return f'<div class="tile"><h3>{title}</h3><p>Not there: this model was built without causal intervention.</p></div>'
    parts = [("inside the mask", mask), ("outside", ~mask)]
    figures = ", ".join(f"{name} {values[where].mean():.2f}" for name, where in parts if where.any())
    ramp = f"background: linear-gradient(90deg, #808080, rgb{tuple(colour)})"
    return (
        f'<div class="tile"><h3>{title}</h3><p>{meaning}</p><p><small>On average {figures}; lowest {values.min():.2f}, '
        f'highest {values.max():.2f}.</small></p><p class="legend"><span>0 <i class="ramp" style="{ramp}"></i> 1</span></p></div>'
    )


def legend_html() -> str:
    """What the colours of the large picture mean."""
    style = f"border-color: rgb{plots.SKY}; background: rgba{(*plots.SKY, 0.4)}"
    swatch = f'<span><i class="swatch" style="{style}"></i>mask: outline and tint</span>'
    return f'<div class="legend"><strong>Mask over the X-ray</strong>{swatch}</div>'


def about_model(name: str) -> str:
    """One line on the model: its name, and the first sentence of its card where the folder has one."""
    card = Path(name) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # the hub's metadata
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip() and not p.strip().startswith(("#", "|", "<", "!", "```"))]
    line = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    line = line if len(line) < 320 else line[:320].rsplit(" ", 1)[0] + " …"
    shown = html.escape(Path(name).resolve().name if Path(name).is_dir() else name)
    return f"Model <strong>{shown}</strong>: " + (html.escape(line) or "its folder has no model card.")


# ---------------------------------------------------------------- pictures


def view_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) to draw at: enough for a clear outline, never more than a screen shows."""
    scale = min(max(max(height, width), VIEW[0]), VIEW[1]) / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(values: np.ndarray, size: tuple[int, int], how=Image.Resampling.BILINEAR) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size, how))


def maps(result) -> list[tuple]:
    """(title, meaning, values or None, colour) of the four small pictures."""
    kept = removed = None
    if result.causal_masks:
        kept = sum(result.causal_masks) / len(result.causal_masks)
        removed = 1 - kept
    return [
        ("Probability of a lesion", "σ(S<sub>c</sub>), what the causal decoder D<sub>c</sub> predicts. "
         f"The mask is every pixel at {result.threshold:.2f} or more.", result.probability, plots.SKY),
        ("Causal mask M", "The share of each feature that is kept for D<sub>c</sub>, mean of the three stages.", kept, plots.BLUE),
        ("Confounder mask 1 − M", "The share that is taken away and handed to D<sub>s</sub> instead.", removed, plots.ORANGE),
        ("Confounder decoder", "σ(S<sub>s</sub>), what D<sub>s</sub> predicts from the part that was taken away. Not a finding.",
         result.confounder_probability, plots.ORANGE),
    ]  # fmt: skip


def for_programs(result) -> tuple[Image.Image, dict]:
    """What `/segment` returns: the mask at the input's size, 0 or 255, and the numbers."""
    return Image.fromarray(result.mask * np.uint8(255)), result.to_dict()


# ---------------------------------------------------------------- examples


def shipped_examples() -> list[dict]:
    """Examples of the repository: image (absolute path), report, shows."""
    listed = EXAMPLES / "examples.json"
    rows = json.loads(listed.read_text(encoding="utf-8"))["examples"] if listed.is_file() else []
    return [{**row, "image": str(EXAMPLES / row["image"])} for row in rows]


def data_examples(folder: str) -> list[dict]:
    """A few pictures of a real folder's test split, evenly spread; they are read from there and stay there."""
    from causalclipseg.data.layouts import find_samples

    samples = find_samples(folder, "test", need_masks=False)
    chosen = samples[:: max(1, len(samples) // FROM_DATA)][:FROM_DATA]
    return [{"image": str(s.image.resolve()), "report": s.report, "shows": ""} for s in chosen]


# ---------------------------------------------------------------- page


def build(engine: Engine, galleries: dict[str, list[dict]]):
    """The page, a `gr.Blocks`; `galleries` are lists of examples by their titles."""
    import gradio as gr

    has_alt_text = "alt_text" in inspect.signature(gr.Image.__init__).parameters  # Gradio 6.24 has none

    def ask(image, report, threshold):
        try:
            return engine.ask(image, report, threshold)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), title="Please check", print_exception=False) from None

    ask_shipped = functools.lru_cache(maxsize=16)(ask)  # small pictures; those of --data may be too large to keep

    def segment(image: str, report: str, threshold: float = 0.5):
        """Segment what a sentence names in a chest X-ray. Not for clinical use.

        Args:
            image: the X-ray, a PNG, JPEG, TIFF or BMP file of 8 or 16 bits a pixel.
            report: the sentence, e.g. "Unilateral pulmonary infection, one infected area, lower left lung."
            threshold: a pixel belongs to the mask where its probability is at least this, 0.01 to 0.99.
        Returns:
            the mask, a PNG of the input's size with the values 0 and 255; and a JSON with area_fraction, components,
            zones, finding, disagreements, report, warnings, model and threshold.
        """
        return for_programs(ask(image, report, threshold))

    def picture(value, alt):
        return gr.update(value=value, **({"alt_text": alt} if has_alt_text else {}))

    def draw(drawn, opacity):
        return picture(plots.overlay(drawn["image"], drawn["mask"], opacity=opacity), drawn["alt"])

    def show(result, opacity):
        """Values of `answer`: every component on the page that depends on a result."""
        size = view_size(*result.mask.shape)
        # Kept for this visitor, so that another opacity needs no model; only as large as it is drawn.
        drawn = {"image": resize(result.image, size, Image.Resampling.BICUBIC), "alt": f"Mask over the X-ray: {result.finding}",
                 "mask": resize(result.mask * np.uint8(255), size, Image.Resampling.NEAREST) > 0}  # fmt: skip
        values = [gr.update(visible=False), gr.update(visible=True), drawn, draw(drawn, opacity), finding_html(result)]
        for title, meaning, soft, colour in maps(result):
            shown = None
            if soft is not None:
                tinted = plots.heat(resize(soft, size), drawn["image"], colour)
                shown = plots.overlay(tinted, drawn["mask"], opacity=0, colour=plots.WHITE)
            values += [{**picture(shown, title), "visible": shown is not None}, map_html(title, meaning, soft, result.mask, colour)]
        return [*values, *for_programs(result)]

    def answer_question(image, report, threshold, opacity):
        return show(ask(image, report, threshold), opacity)

    def answer_again(image, report, threshold, opacity):
        return answer_question(image, report, threshold, opacity) if image else [gr.skip()] * len(answer)

    def answer_example(rows, index, opacity):
        path, report = rows[index]["image"], rows[index]["report"]
        result = (ask_shipped if Path(path).parent == EXAMPLES else ask)(path, report, 0.5)
        return [path, report, 0.5, *show(result, opacity)]

    def gallery(title, rows):
        words = "<b>{}</b> {}".format
        return gr.Dataset(
            label=title, components=[gr.Image(render=False), gr.HTML(render=False)], headers=["X-ray", "Sentence"],
            samples=[[row["image"], words(html.escape(row["shows"]), html.escape(row["report"]))] for row in rows],
            type="index", samples_per_page=12, layout="table", elem_classes="examples",
        )  # fmt: skip

    def forget():
        """Another picture: the old answer must not stand beside it."""
        return [gr.update(visible=True), gr.update(visible=False), None]

    with gr.Blocks(title="CausalCLIPSeg", analytics_enabled=False, delete_cache=(600, KEPT)) as page:
        gr.HTML(
            "<h1>CausalCLIPSeg</h1><p>Segments a chest X-ray from a sentence, and shows which features it kept and which it "
            'took away.</p><p class="not-clinical"><strong>Not for clinical use.</strong> A teaching demo; its answers can be '
            f"wrong.</p><p>{about_model(engine.name)}</p>",
            elem_id="head",
        )
        drawn = gr.State(None, time_to_live=KEPT)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                image = gr.Image(
                    label="Chest X-ray", type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
                    height=330, buttons=[], elem_id="image", placeholder="Drop a chest X-ray here\nor click to choose (PNG, JPEG, TIFF)",
                )  # fmt: skip
                # Gradio would open the upload itself: a traceback for what is no picture, 8 bits for what has 16.
                image.preprocess = lambda upload: upload and upload.path
                report = gr.Textbox(
                    label="Sentence", lines=1, max_lines=4, elem_id="report",
                    placeholder="Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung.",
                    info="Name sides, zones and the number of areas. Left and right are halves of the picture.",
                )  # fmt: skip
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                with gr.Row():
                    threshold = gr.Slider(0.01, 0.99, 0.5, step=0.01, label="Threshold", elem_id="threshold", min_width=140)
                    opacity = gr.Slider(0, 1, 0.35, step=0.05, label="Opacity", elem_id="opacity", min_width=140)
                tables = [gallery(*named) for named in galleries.items()]
            with gr.Column(scale=7, min_width=300, elem_id="answer"):
                start = gr.HTML('<div class="card" id="start"><p>Upload a chest X-ray and write a sentence,<br>or choose an '
                                "example: it answers at once.</p></div>")  # fmt: skip
                with gr.Column(visible=False) as found:
                    gr.HTML(legend_html())  # not a label, which would cover the letters in a picture's corner
                    overlay = gr.Image(show_label=False, interactive=False, buttons=["download", "fullscreen"], format="png", elem_id="overlay")
                    finding = gr.HTML()
                    gr.HTML('<div class="tile"><h2>Look inside</h2><p>All scales run from 0 to 1 and are never stretched. The '
                            "white outline is the mask.</p></div>")  # fmt: skip
                    tiles = []
                    with gr.Row():
                        for name in ("probability", "causal", "confounder", "confounder-decoder"):
                            with gr.Column(min_width=250):
                                tiles += [gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], elem_id=name), gr.HTML()]
                    with gr.Accordion("For programs: what /segment returns", open=False):
                        mask = gr.Image(label="Mask, 0 or 255, input size", format="png", image_mode="L", interactive=False,
                                        height=300, buttons=["download"], elem_id="mask")  # fmt: skip
                        numbers = gr.JSON(label="Result")
        answer = [start, found, drawn, overlay, finding, *tiles, mask, numbers]
        asked, private = [image, report, threshold], {"api_visibility": "private"}
        # One model, hence one question at a time; everything else need not wait for it.
        model_event = {"concurrency_id": "model", "concurrency_limit": 1}
        for table, rows in zip(tables, galleries.values(), strict=True):
            table.click(functools.partial(answer_example, rows), [table, opacity], [*asked, *answer], **private, **model_event).success(
                None, js=SCROLL
            )
        gr.on([button.click, report.submit], answer_question, [*asked, opacity], answer, **private, **model_event).success(None, js=SCROLL)
        # input, not release: the arrow keys move a slider, too. Of the values that come while one is drawn, the last counts.
        threshold.input(answer_again, [*asked, opacity], answer, trigger_mode="always_last", show_progress="minimal", **private, **model_event)
        opacity.input(lambda kept, value: draw(kept, value) if kept else gr.skip(), [drawn, opacity], overlay,
                      trigger_mode="always_last", show_progress="hidden", **private)  # fmt: skip
        gr.on([image.upload, image.clear], forget, None, answer[:3], queue=False, show_progress="hidden", **private)
        # The endpoint for programs: an event that nobody can press, with the same components as the page.
        gr.Button(visible=False).click(segment, asked, [mask, numbers], api_name="segment", **model_event)
    return page


def launch(page, examples: list[dict], host: str, port: int | None):
    """Serve the page from a thread; nothing but the examples is served from the disk, and nothing leaves it."""
    import gradio as gr

    subdued, blue = {"light": "*neutral_600", "dark": "*neutral_300"}, "rgb(0, 114, 178)"  # both at least 4.5 : 1
    text = ("body_text_color_subdued", "block_info_text_color", "block_label_text_color", "block_title_text_color", "input_placeholder_color")
    # Gradio ships this font, but only a few letters of its semi-bold: hence 700.
    font = (gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif")
    theme = gr.themes.Default(primary_hue="blue", font=font).set(
        button_primary_background_fill=blue, button_primary_background_fill_dark=blue,
        button_primary_background_fill_hover="rgb(0, 92, 145)", slider_color=blue, slider_color_dark=blue,
        **{name: subdued["light"] for name in text}, **{f"{name}_dark": subdued["dark"] for name in text},
    )  # fmt: skip
    page.queue(max_size=64)
    return page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, max_file_size=LARGEST_UPLOAD,
        allowed_paths=sorted({row["image"] for row in examples}), footer_links=["api"], run_history=False,
        enable_monitoring=False, mcp_server=False, ssr_mode=False, pwa=False, css_paths=STYLE, theme=theme,
    )  # fmt: skip


# ---------------------------------------------------------------- command line


def check_model(name: str) -> str | None:
    """One sentence on why `name` cannot be a model, without loading it; None where it may be one."""
    folder = Path(name)
    if folder.is_dir():
        missing = [file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()]
        return f"{folder} is no model: it holds no {missing[0]}." if missing else None
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return f"{name} is not a folder with a model, nor a hub id such as org/name."
    return None


def main(arguments: list[str] | None = None) -> None:
    """Run the demo until it is interrupted; a wrong setting ends it with one sentence."""
    parser = argparse.ArgumentParser(description="The web demo of CausalCLIPSeg. Not for clinical use.")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="a folder with a model, or a hub id (default: assets/models/mini)")
    parser.add_argument("--data", help="a folder with your data; some pictures of its test split become examples")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    given = parser.parse_args(arguments)
    if wrong := check_model(given.model):
        sys.exit(wrong)
    # Set before Gradio is imported, since it and huggingface_hub read them then.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if Path(given.model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    engine = Engine(given.model)
    try:
        galleries = {"Examples, synthetic X-rays": shipped_examples()}
        if given.data:
            galleries["Examples from your data, test split"] = data_examples(given.data)
        page = build(engine, galleries)
        _, address, _ = launch(page, [row for rows in galleries.values() for row in rows], given.host, given.port)
        print(f"The page is at {address} ; the model is being loaded.", flush=True)
        engine.load()  # after the page is up; questions wait for it
    except (ValueError, OSError) as error:  # an unknown folder, broken weights, a port in use
        sys.exit(str(error))
    print("The model is ready. Press Ctrl+C to stop.", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
