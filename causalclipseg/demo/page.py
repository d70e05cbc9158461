"""The page: inputs on the left, one tab a question on the right."""

from __future__ import annotations

import contextlib
import functools
import html
from pathlib import Path

import gradio as gr
import matplotlib.pyplot  # noqa: F401  (here, before any request: Gradio and captum would import it at once from two threads)
from gradio import processing_utils
from PIL import Image

from .. import reports
from ..acquisition import EDITS as PICTURE_EDITS
from . import endpoints, pictures, tour, views, words
from .engine import Engine, browsers_show, card_of, upload
from .events import Events

KEPT = 3600  #: seconds until an upload and its answer are deleted
LOOKED = 600  #: seconds between two looks for what is to be deleted
SENTENCES = {"no sentence": "no sentence", "generic": "no place named", "sides swapped": "left and right exchanged",
             "left only": "only the left half named", "right only": "only the right half named"}  # fmt: skip


def gallery(title: str, samples: list[list[str]], headers: list[str]):
    return gr.Dataset(label=title, components=[gr.Image(render=False), gr.HTML(render=False)], headers=headers, samples=samples,
                      type="index", samples_per_page=12, layout="table", elem_classes="examples")  # fmt: skip


def row(shows: str, path: str, text: str) -> list[str]:
    """An example's picture and its words: a button, which is reached without a mouse and has a name; to press it is to click on the row."""
    return [path, f'<button type="button"><b>{html.escape(shows)}</b> {html.escape(text)}</button>']


def file_to_show(path: str, cache: str) -> str:
    """An example's file in Gradio's cache; a PNG of what the model sees where browsers could not show it."""
    if not browsers_show(path):
        with contextlib.suppress(ValueError):  # a click says what is wrong with it
            path = processing_utils.save_pil_to_cache(Image.fromarray(upload(path).pixels), cache, Path(path).stem, "png")
    return processing_utils.save_file_to_cache(path, cache)


class Page:
    """The parts of the page that the tabs share: its inputs, the kept answer, and the questions about them."""

    def __init__(self, engine: Engine, galleries: dict[str, list[dict]]):
        self.engine, self.galleries = engine, galleries
        # Answers to the shipped examples; pictures of --data may be too large to keep.
        self.example = functools.lru_cache(maxsize=32)(engine.segment)
        self.example_intervention = functools.lru_cache(maxsize=16)(lambda *a: engine.intervene(*a))
        self.example_explanation = functools.lru_cache(maxsize=16)(lambda *a: engine.explain(*a))

    def warm(self) -> None:
        """Answer the examples of the interventions and explanations ahead of the first visitor, quick ones first, so that each answers at once."""
        model = self.engine.names[0]
        with contextlib.suppress(ValueError):  # a visitor hears it when they ask
            for _, name, report, edit, strength in tour.INTERVENTIONS:
                self.example_intervention(tour.picture(name), report, edit, strength, 0.5, 0, model)
            for _, name, report, method in sorted(tour.EXPLANATIONS, key=lambda row: row[-1] == "occlusion"):
                self.example_explanation(tour.picture(name), report, method, 0.5, model)

    # ---- layout

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="CausalCLIPSeg", analytics_enabled=False, delete_cache=(LOOKED, KEPT)) as page:
            name = self.engine.names[0]
            gr.HTML(
                "<h1>CausalCLIPSeg</h1><p>Segments a chest X-ray from a sentence, and shows which features it kept and which it "
                'took away.</p><p class="not-clinical"><strong>Not for clinical use.</strong> A teaching demo; its answers can be '
                "wrong.</p>",
                elem_id="head",
            )
            self.about = gr.HTML(words.about_model(name, card_of(self.engine.sources[name])), elem_id="about")
            # What "Inside" draws; the file that is asked about where browsers can't show it; that file and when it was chosen.
            self.kept, self.scan, self.chosen = (gr.State(None, time_to_live=KEPT) for _ in range(3))
            self._tour()
            with gr.Row():
                with gr.Column(scale=5, min_width=300, elem_id="inputs"):
                    self._inputs()
                with gr.Column(scale=7, min_width=300, elem_id="answer"), gr.Tabs(elem_id="tabs") as self.tabs:
                    for title, key, fill in (("Segment", "segment", self._segment_tab), ("Inside", "inside", self._inside_tab),
                                             ("Intervene", "intervene", self._intervene_tab), ("Explain", "explain", self._explain_tab),
                                             ("About", "about", self._about_tab)):  # fmt: skip
                        with gr.Tab(title, id=key):
                            fill()
            Events(self)
            endpoints.add(self)
            views.uploads_alone(page)
            page.load(None, js=(tour.ASSETS / "demo.js").read_text(encoding="utf-8"), api_visibility="private")
        return page

    def _tour(self):
        with gr.Accordion("Guided tour, five steps", open=False, elem_id="tour"):
            self.step = gr.State(0)
            self.tour_text = gr.HTML("<p>Each step loads an example, asks one question and says what to look at.</p>")
            self.tour_button = gr.Button("Start the tour", size="sm", elem_id="tour-next")

    def _inputs(self):
        names = self.engine.names
        self.name = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        self.image = gr.Image(
            label="Chest X-ray", type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
            height=330, buttons=[], elem_id="image", placeholder="Drop a chest X-ray here\nor click to choose (PNG, JPEG, TIFF)",
        )  # fmt: skip
        # Gradio would open the upload itself: a traceback for what is no picture, 8 bits for what has 16.
        self.image.preprocess = lambda file: file and file.path
        # Of any name: scanners write DICOM files without an extension. `upload` refuses what is none.
        self.dicom = gr.UploadButton("… or a DICOM file", size="sm", elem_id="dicom")
        self.dicom.preprocess = self.image.preprocess  # Gradio would leave an empty file in the cache
        self.dicom_note = gr.HTML(visible=False, elem_id="dicom-note")
        gr.HTML(f'<p class="kept">An upload stays on this server’s disk for at most {(KEPT + LOOKED) // 60} minutes. '
                "DICOM headers hold names: remove them first.</p>")  # fmt: skip
        examples = [r["image"] for rows in self.galleries.values() for r in rows]
        examples += [tour.picture(name) for _, name, *_ in (*tour.INTERVENTIONS, *tour.EXPLANATIONS)]
        self.shown = {path: file_to_show(path, self.image.GRADIO_CACHE) for path in examples}
        # A visitor who chooses an example, or uploads its file, has the same file of the cache, which must outlive their visit.
        self.image.keep_in_cache.update(self.shown.values())
        self.report = gr.Textbox(
            label="Sentence", lines=1, max_lines=4, elem_id="report",
            placeholder="Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung.",
            info="Name sides, zones and the number of areas. Left and right are halves of the picture.",
        )  # fmt: skip
        with gr.Accordion("Compose the sentence", open=False, elem_id="compose"):
            with gr.Row():
                self.left, self.right = (gr.CheckboxGroup(list(reports.ZONES), label=f"{side.capitalize()} lung", min_width=140) for side in reports.SIDES)
            self.count = gr.Dropdown([("not said", -1), *((reports.NUMBERS[n], n) for n in range(1, 10))], value=-1, label="Infected areas")
        self.button = gr.Button("Segment", variant="primary", elem_id="segment")
        self.exact = gr.Checkbox(False, label="More exact, slower", elem_id="exact",
                                 info="The mean of six views, and of all networks in the model’s file; a half of the picture where the first network "
                                      "stays below 0.5 is its answer alone; without a sentence, half is the answer of a network trained for that, if the file has one. Inside’s maps, Intervene and Explain stay those of the first network in one view.")  # fmt: skip
        with gr.Row():
            self.threshold = gr.Slider(0.01, 0.99, 0.5, step=0.01, label="Threshold", elem_id="threshold", min_width=140)
            self.opacity = gr.Slider(0, 1, 0.35, step=0.05, label="Opacity", elem_id="opacity", min_width=140)
        self.tables = [gallery(title, [row(r["shows"], self.shown[r["image"]], r["report"]) for r in rows], ["X-ray", "Sentence"])
                       for title, rows in self.galleries.items()]  # fmt: skip

    def _segment_tab(self):
        self.start = gr.HTML('<div class="card" id="start"><p>Upload a chest X-ray and write a sentence,<br>or choose an '
                             "example: it answers at once.</p></div>")  # fmt: skip
        with gr.Column(visible=False) as self.found:
            gr.HTML(words.legend_html())  # not a label, which would cover the letters in a picture's corner
            self.overlay = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], format="png", elem_id="overlay")
            self.downloads = gr.HTML()
            self.finding = gr.HTML()
            with gr.Accordion("For programs: what /segment returns", open=False):
                self.mask = gr.Image(label="Mask, 0 or 255, input size", format="png", image_mode="L", interactive=False,
                                     height=300, buttons=["download"], elem_id="mask")  # fmt: skip
                self.numbers = gr.JSON(label="Result")

    def _inside_tab(self):
        gr.HTML('<div class="tile"><p>What happens between picture and mask. Scales are fixed and never stretched; the white outline is the mask.</p></div>')
        self.groups = gr.CheckboxGroup(list(pictures.GROUPS), value=list(pictures.GROUPS), label="Show", elem_id="groups")
        with gr.Row():
            self.inside_opacity = gr.Slider(0.1, 1, 0.75, step=0.05, label="Opacity of the colours", elem_id="inside-opacity", min_width=160)
            self.outline = gr.Checkbox(True, label="Outline of the mask", min_width=160)
        self.tiles = []
        with gr.Row(elem_id="tiles"):
            for number in range(pictures.MOST_TILES):
                with gr.Column(min_width=210, visible=False) as column:
                    self.tiles += [column, gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], elem_id=f"inside-{number}"), gr.HTML()]

    def _intervene_tab(self):
        gr.HTML('<div class="tile"><p>do(A): the same patient, another acquisition. Or the same picture, another sentence. '
                "The lesion is no effect of the acquisition, so there the mask should stay.</p></div>")  # fmt: skip
        choices = [(f"picture: {name}", name) for name in PICTURE_EDITS] + [(f"sentence: {says}", name) for name, says in SENTENCES.items()]
        with gr.Row():
            self.edit = gr.Dropdown(choices, value="electrodes", label="Edit", elem_id="edit", min_width=180)
            self.strength = gr.Slider(0, 1, 0.67, step=0.01, label="Strength (of a picture’s edit)", elem_id="strength", min_width=180)
            self.seed = gr.Number(0, precision=0, minimum=0, maximum=10**6, label="Draw (seed)", min_width=100)
        self.intervene_button = gr.Button("Intervene", variant="primary", elem_id="intervene")
        with gr.Column(visible=False) as self.intervened:
            gr.HTML('<div class="legend"><strong>Before | after</strong><span>move the bar in the picture, or the slider below it</span></div>')
            self.slider = gr.ImageSlider(show_label=False, interactive=False, format="png", buttons=["fullscreen"], elem_id="slider")
            self.bar = gr.Slider(0, 100, 50, step=1, label="Bar between before (left) and after (right)", elem_id="bar", buttons=[])
            self.verdict = gr.HTML()
            self.difference_words = gr.HTML()
            self.difference = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], format="png", elem_id="difference")
        samples = [row(s, self.shown[tour.picture(p)], r) for s, p, r, *_ in tour.INTERVENTIONS]
        self.interventions = gallery("Examples, synthetic X-rays", samples, ["X-ray", "Edit and sentence"])

    def _explain_tab(self):
        gr.HTML('<div class="tile"><p>Which pixels, or which words, made this mask? A method of captum answers, and is then put to the '
                "test: does it foretell what the model does when those pixels or words are taken away?</p></div>")  # fmt: skip
        self.method = gr.Radio([(label, name) for name, label in views.METHODS.items()], value="occlusion", label="Method", elem_id="method")
        with gr.Row():
            self.explain_button = gr.Button("Explain", variant="primary", elem_id="explain")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
        self.attribution = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], format="png", visible=False, elem_id="attribution")
        self.explanation = gr.HTML(elem_id="explanation-box")
        samples = [row(s, self.shown[tour.picture(p)], r) for s, p, r, _ in tour.EXPLANATIONS]
        self.explanations = gallery("Examples, synthetic X-rays", samples, ["X-ray", "Question and sentence"])

    def _about_tab(self):
        self.card = gr.Markdown(self.card_text(self.engine.names[0]), elem_id="card", latex_delimiters=[])

    def card_text(self, name: str) -> str:
        return card_of(self.engine.sources[name]) or f"{name} has no model card (README.md in its folder)."
