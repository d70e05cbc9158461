"""The page: inputs on the left, one tab a question on the right; and the endpoints `/segment`, `/intervene`, `/explain`."""

from __future__ import annotations

import functools
import html

import gradio as gr
from PIL import Image

from .. import plots, reports
from ..acquisition import EDITS as PICTURE_EDITS
from ..images import read_picture
from . import pictures, tour, views, words
from .engine import Cancelled, Engine, card_of, upload

KEPT = 3600  #: seconds until an upload and its answer are deleted
LOOKED = 600  #: seconds between two looks for what is to be deleted
SENTENCES = {"no sentence": "no sentence", "generic": "no place named", "sides swapped": "left and right exchanged",
             "left only": "only the left half named", "right only": "only the right half named"}  # fmt: skip
# On a phone the answer lies below the examples; bring it into view.
SCROLL = "() => { if (innerWidth < 800) document.querySelector('#answer')?.scrollIntoView({behavior: 'smooth'}) }"
# Gradio's slider takes no alternative text.
SLIDER_WORDS = """() => setTimeout(() => document.querySelectorAll('#slider img').forEach(
  (e, i) => e.alt = `The X-ray with its mask ${i ? 'after' : 'before'} the edit`), 500)"""
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one model, hence one question at a time; nothing else waits for it
PRIVATE = {"api_visibility": "private"}


def asked(question):
    """`question` with whatever is wrong with an input said in one sentence on the page."""
    @functools.wraps(question)
    def ask(*arguments, **named):
        try:
            return question(*arguments, **named)
        except Cancelled:
            raise gr.Error("Cancelled.", title="Stopped", print_exception=False) from None
        except (ValueError, TypeError) as error:
            raise gr.Error(html.escape(str(error)), title="Please check", print_exception=False) from None

    return ask


def gallery(title: str, samples: list[list[str]], headers: list[str]):
    return gr.Dataset(label=title, components=[gr.Image(render=False), gr.HTML(render=False)], headers=headers, samples=samples,
                      type="index", samples_per_page=12, layout="table", elem_classes="examples")  # fmt: skip


def row(shows: str, path: str, text: str) -> list[str]:
    return [path, f"<b>{html.escape(shows)}</b> {html.escape(text)}"]


class Page:
    """The parts of the page that the tabs share: its inputs, the kept answer, and the questions about them."""

    def __init__(self, engine: Engine, galleries: dict[str, list[dict]]):
        self.engine, self.galleries = engine, galleries
        # Answers to the shipped examples; pictures of --data may be too large to keep.
        self.example = functools.lru_cache(maxsize=32)(engine.segment)
        self.example_intervention = functools.lru_cache(maxsize=16)(lambda *a: engine.intervene(*a))
        self.example_explanation = functools.lru_cache(maxsize=16)(lambda *a: engine.explain(*a))

    def warm(self) -> None:
        """Answer the slow examples ahead of the first visitor, so that each answers at once."""
        for _, name, report, method in tour.EXPLANATIONS:
            if tour.Path(tour.picture(name)).is_file():
                self.example_explanation(tour.picture(name), report, method, 0.5, self.engine.names[0])

    # ---- layout

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="CausalCLIPSeg", analytics_enabled=False, delete_cache=(LOOKED, KEPT)) as page:
            name = self.engine.names[0]
            gr.HTML(
                "<h1>CausalCLIPSeg</h1><p>Segments a chest X-ray from a sentence, and shows which features it kept and which it "
                'took away.</p><p class="not-clinical"><strong>Not for clinical use.</strong> A teaching demo; its answers can be '
                f"wrong.</p><p>{words.about_model(name, card_of(self.engine.sources[name]))}</p>",
                elem_id="head",
            )
            self.kept = gr.State(None, time_to_live=KEPT)
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    self._inputs()
                with gr.Column(scale=7, min_width=300, elem_id="answer"), gr.Tabs(elem_id="tabs") as self.tabs:
                    for title, key, fill in (("Segment", "segment", self._segment_tab), ("Look inside", "inside", self._inside_tab),
                                             ("Intervene", "intervene", self._intervene_tab), ("Explain", "explain", self._explain_tab),
                                             ("About the model", "about", self._about_tab)):  # fmt: skip
                        with gr.Tab(title, id=key):
                            fill()
            self._wire()
        return page

    def _inputs(self):
        names = self.engine.names
        self.name = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        self.image = gr.Image(
            label="Chest X-ray", type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
            height=330, buttons=[], elem_id="image", placeholder="Drop a chest X-ray here\nor click to choose (PNG, JPEG, TIFF)",
        )  # fmt: skip
        if views.HAS_ALT_TEXT:
            self.image.alt_text = "The chest X-ray that you chose"
        # Gradio would open the upload itself: a traceback for what is no picture, 8 bits for what has 16.
        self.image.preprocess = lambda file: file and file.path
        self.dicom = gr.UploadButton("… or a DICOM file", file_types=[".dcm", ".dicom", ".ima"], size="sm", elem_id="dicom")
        self.dicom_note = gr.HTML(visible=False)
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
        with gr.Row():
            self.threshold = gr.Slider(0.01, 0.99, 0.5, step=0.01, label="Threshold", elem_id="threshold", min_width=140)
            self.opacity = gr.Slider(0, 1, 0.35, step=0.05, label="Opacity", elem_id="opacity", min_width=140)
        self.tables = [gallery(title, [row(r["shows"], r["image"], r["report"]) for r in rows], ["X-ray", "Sentence"])
                       for title, rows in self.galleries.items()]  # fmt: skip
        with gr.Accordion("Guided tour, five steps", open=False, elem_id="tour"):
            self.step = gr.State(0)
            self.tour_text = gr.HTML("<p>Each step loads an example, asks one question and says what to look at.</p>")
            self.tour_button = gr.Button("Start the tour", elem_id="tour-next")

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
            self.strength = gr.Slider(0, 1, 2 / 3, step=1 / 30, label="Strength (of a picture’s edit)", elem_id="strength", min_width=180)
            self.seed = gr.Number(0, precision=0, minimum=0, maximum=10**6, label="Draw (seed)", min_width=100)
        self.intervene_button = gr.Button("Intervene", variant="primary", elem_id="intervene")
        with gr.Column(visible=False) as self.intervened:
            gr.HTML('<div class="legend"><strong>Before | after</strong><span>move the bar in the picture, or focus it and use the arrow keys</span></div>')
            self.slider = gr.ImageSlider(show_label=False, interactive=False, format="png", buttons=["fullscreen"], elem_id="slider")
            self.slider.change(None, js=SLIDER_WORDS)
            self.verdict = gr.HTML()
            self.difference = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], format="png", elem_id="difference")
            self.difference_words = gr.HTML()
        self.interventions = gallery("Examples, synthetic X-rays", [row(s, tour.picture(p), r) for s, p, r, *_ in tour.INTERVENTIONS], ["X-ray", "Edit and sentence"])

    def _explain_tab(self):
        gr.HTML('<div class="tile"><p>Which pixels, or which words, made this mask? A method of captum answers, and is then put to the '
                "test: does it foretell what the model does when those pixels or words are taken away?</p></div>")  # fmt: skip
        self.method = gr.Radio([(label, name) for name, label in views.METHODS.items()], value="occlusion", label="Method", elem_id="method")
        with gr.Row():
            self.explain_button = gr.Button("Explain", variant="primary", elem_id="explain")
            self.cancel = gr.Button("Cancel", elem_id="cancel")
        self.attribution = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], format="png", visible=False, elem_id="attribution")
        self.explanation = gr.HTML(elem_id="explanation-box")
        self.explanations = gallery("Examples, synthetic X-rays", [row(s, tour.picture(p), r) for s, p, r, _ in tour.EXPLANATIONS], ["X-ray", "Question and sentence"])

    def _about_tab(self):
        self.card = gr.Markdown(self._card(self.engine.names[0]), elem_id="card", latex_delimiters=[])

    def _card(self, name: str) -> str:
        return card_of(self.engine.sources[name]) or f"{name} has no model card (README.md in its folder)."

    # ---- events

    def _wire(self):
        engine, inputs = self.engine, [self.image, self.report, self.threshold]
        answer = [self.start, self.found, self.kept, self.overlay, self.downloads, self.finding, self.mask, self.numbers]
        look = ([self.kept, self.groups, self.inside_opacity, self.outline], self.tiles)

        @asked
        def question(image, report, threshold, opacity, name):
            result = engine.segment(image, report, threshold, name)
            return views.answer(result, opacity, engine.without_sentence(result, name))

        def again(image, *rest):
            return question(image, *rest) if image else [gr.skip()] * len(answer)

        @asked
        def example(rows, index, opacity, name):
            path, report = rows[index]["image"], rows[index]["report"]
            result = (self.example if tour.Path(path).parent == tour.EXAMPLES else engine.segment)(path, report, 0.5, name)
            values = views.answer(result, opacity, engine.without_sentence(result, name))
            return [path, report, 0.5, gr.update(selected="segment"), *values]

        full = [*inputs, self.opacity, self.name]
        asking = [self.button.click, self.report.submit]
        gr.on(asking, question, full, answer, **PRIVATE, **MODEL).success(
            lambda: gr.update(selected="segment"), None, self.tabs, queue=False, **PRIVATE).success(None, js=SCROLL).then(
            views.tiles, *look, **PRIVATE)  # fmt: skip
        for table, rows in zip(self.tables, self.galleries.values(), strict=True):
            table.click(functools.partial(example, rows), [table, self.opacity, self.name], [*inputs, self.tabs, *answer], **PRIVATE, **MODEL).success(
                None, js=SCROLL).then(views.tiles, *look, **PRIVATE)  # fmt: skip
        # input, not release: the arrow keys move a slider, too. Of the values that come while one is drawn, the last counts.
        self.threshold.input(again, full, answer, trigger_mode="always_last", show_progress="minimal", **PRIVATE, **MODEL).then(views.tiles, *look, **PRIVATE)
        self.opacity.input(lambda kept, value: views.shown(pictures.with_mask(kept, value), kept["alt"]) if kept else gr.skip(), [self.kept, self.opacity],
                           self.overlay, trigger_mode="always_last", show_progress="hidden", **PRIVATE)  # fmt: skip
        gr.on([self.groups.input, self.inside_opacity.input, self.outline.input], views.tiles, *look, trigger_mode="always_last", show_progress="hidden", **PRIVATE)
        self._wire_inputs(answer)

        # Intervene
        intervention = [self.intervened, self.slider, self.verdict, self.difference, self.difference_words]

        @asked
        def intervene_page(image, report, edit, strength, threshold, seed, name, opacity):
            return views.intervention(engine.intervene(image, report, edit, strength, threshold, seed or 0, name), opacity)

        @asked
        def intervene_example(index, name, opacity):
            _, file, report, edit, strength = tour.INTERVENTIONS[index]
            path = tour.picture(file)
            found = self.example_intervention(path, report, edit, strength, 0.5, 0, name)
            return [path, report, edit, strength, 0, *views.intervention(found, opacity)]

        doing = [self.image, self.report, self.edit, self.strength, self.threshold, self.seed, self.name, self.opacity]
        self.intervene_button.click(intervene_page, doing, intervention, **PRIVATE, **MODEL)
        self.interventions.click(intervene_example, [self.interventions, self.name, self.opacity],
                                 [self.image, self.report, self.edit, self.strength, self.seed, *intervention], **PRIVATE, **MODEL)  # fmt: skip

        # Explain
        @asked
        def explain_page(image, report, method, threshold, name, request: gr.Request, progress=gr.Progress()):
            progress(0, desc="asking the model")
            step = functools.partial(progress, desc="asking the model")
            return views.explanation(engine.explain(image, report, method, threshold, name, request.session_hash, step))

        @asked
        def explain_example(index, name):
            _, file, report, method = tour.EXPLANATIONS[index]
            path = tour.picture(file)
            return [path, report, method, *views.explanation(self.example_explanation(path, report, method, 0.5, name))]

        # Not in the models' queue, or a long explanation would block every other answer; and Cancel must get through.
        explaining = {"concurrency_id": "explain", "concurrency_limit": 1}
        outcome = [self.attribution, self.explanation]
        self.explain_button.click(explain_page, [self.image, self.report, self.method, self.threshold, self.name], outcome, **PRIVATE, **explaining)
        self._wire_cancel()
        self.explanations.click(explain_example, [self.explanations, self.name], [self.image, self.report, self.method, *outcome], **PRIVATE, **explaining)

        self._wire_tour(full, answer, look, intervention, intervene_example, outcome, explain_example, question)
        self._wire_endpoints(inputs)

    def _wire_cancel(self):
        def cancel(request: gr.Request):
            self.engine.stop(request.session_hash)

        self.cancel.click(cancel, None, None, queue=False, **PRIVATE)

    def _wire_inputs(self, answer):
        def forget():
            """Another picture: the old answer must not stand beside it."""
            return [gr.update(visible=True), gr.update(visible=False), None, gr.update(visible=False), gr.update(visible=False), "", gr.update(visible=False)]

        @asked
        def read_dicom(file):
            content = upload(file)
            picture = read_picture(content)
            return Image.fromarray(picture.pixels), gr.update(value=f'<div class="card"><strong>{html.escape(content.name)}</strong>{words.bullets(picture.warnings)}</div>', visible=True)

        def compose(left, right, count):
            report = reports.Report(tuple(z for z in reports.ZONES if z in left), tuple(z for z in reports.ZONES if z in right),
                                    None if count is None or count < 0 else count)  # fmt: skip
            return reports.write(report)

        gone = [*answer[:3], self.intervened, self.attribution, self.explanation, self.dicom_note]
        gr.on([self.image.upload, self.image.clear], forget, None, gone, queue=False, show_progress="hidden", **PRIVATE)
        self.dicom.upload(forget, None, gone, queue=False, show_progress="hidden", **PRIVATE).then(
            read_dicom, self.dicom, [self.image, self.dicom_note], **PRIVATE)  # fmt: skip
        gr.on([self.left.input, self.right.input, self.count.input], compose, [self.left, self.right, self.count], self.report, show_progress="hidden", **PRIVATE)
        self.name.input(self._card, self.name, self.card, show_progress="hidden", **PRIVATE)

    def _wire_tour(self, full, answer, look, intervention, intervene_example, outcome, explain_example, question):
        def next_step(number):
            number = number % len(tour.TOUR)
            tab, file, report, _, text = tour.TOUR[number]
            label = "Next step" if number + 1 < len(tour.TOUR) else "Start again"
            return [number + 1, f"<p><b>Step {number + 1} of {len(tour.TOUR)}.</b> {text}</p>", gr.update(value=label), tour.picture(file), report, 0.5]

        def at(tab):
            return lambda number: tour.TOUR[number - 1][0] == tab

        def do(number, name, opacity):
            if not at("intervene")(number):
                return [gr.skip()] * len(intervention)
            wanted = tour.TOUR[number - 1]
            index = [(p, r, e) for _, p, r, e, _ in tour.INTERVENTIONS].index(wanted[1:4])
            return intervene_example(index, name, opacity)[5:]

        def why(number, name):
            if not at("explain")(number):
                return [gr.skip()] * len(outcome)
            index = [(p, r, m) for _, p, r, m in tour.EXPLANATIONS].index(tour.TOUR[number - 1][1:4])
            return explain_example(index, name)[3:]

        (self.tour_button.click(next_step, self.step, [self.step, self.tour_text, self.tour_button, self.image, self.report, self.threshold], **PRIVATE)
            .success(question, full, answer, **PRIVATE, **MODEL)
            .success(views.tiles, *look, **PRIVATE)
            .success(do, [self.step, self.name, self.opacity], intervention, **PRIVATE, **MODEL)
            .success(why, [self.step, self.name], outcome, **PRIVATE, **MODEL)
            .success(lambda number: gr.update(selected=tour.TOUR[number - 1][0]), self.step, self.tabs, **PRIVATE))  # fmt: skip

    def _wire_endpoints(self, inputs):
        engine = self.engine

        @asked
        def segment(image: str, report: str, threshold: float = 0.5):
            """Segment what a sentence names in a chest X-ray. Not for clinical use.

            Args:
                image: the X-ray, a PNG, JPEG, TIFF, BMP or DICOM file of 8 or 16 bits a pixel.
                report: the sentence, e.g. "Unilateral pulmonary infection, one infected area, lower left lung."
                threshold: a pixel belongs to the mask where its probability is at least this, 0.01 to 0.99.
            Returns:
                the mask, a PNG of the input's size with the values 0 and 255; and a JSON with area_fraction, components,
                zones, finding, disagreements, report, warnings, model and threshold.
            """
            return views.for_programs(engine.segment(image, report, threshold))

        @asked
        def intervene(image: str, report: str, edit: str = "electrodes", strength: float = 2 / 3):
            """Ask twice: as it is, and after one edit of the picture (do(A), another acquisition) or of the sentence.

            Args:
                image: the X-ray. report: the sentence.
                edit: exposure, contrast, noise, blur, border, marker, electrodes, line; or, of the sentence: no sentence,
                    generic, sides swapped, left only, right only.
                strength: of a picture's edit, 0 to 1; 1/3, 2/3 and 1 are mild, clear and strong.
            Returns:
                two PNGs of the input's size, the pictures before and after with the mask drawn on them; and a JSON with dice
                between the two masks, verdict, and both answers as /segment gives them.
            """
            found = engine.intervene(image, report, edit, strength)
            return plots.overlay(found.before.image, found.before.mask), plots.overlay(found.after.image, found.after.mask), found.to_dict()

        @asked
        def explain(image: str, report: str, method: str = "occlusion"):
            """Attribute the predicted mask to pixels or words, and measure how faithful that is.

            Args:
                image: the X-ray. report: the sentence.
                method: gradcam, integrated_gradients, occlusion (pixels) or words.
            Returns:
                a PNG with the attribution over the X-ray (green for, purple against the mask; for words, the mask alone);
                and a JSON with faithfulness (deletion, insertion, fit, and a random order's) and, for words, their scores.
            """
            found = engine.explain(image, report, method)
            return views.attribution_picture(found), found.to_dict()

        hidden = [gr.Button(visible=False) for _ in range(3)]  # events that nobody can press, with the page's components
        with gr.Row(visible=False):
            before, after, drawn = (gr.Image(format="png") for _ in range(3))
            outcome, reasons = gr.JSON(), gr.JSON()
        hidden[0].click(segment, inputs, [self.mask, self.numbers], api_name="segment", **MODEL)
        hidden[1].click(intervene, [self.image, self.report, self.edit, self.strength], [before, after, outcome], api_name="intervene", **MODEL)
        hidden[2].click(explain, [self.image, self.report, self.method], [drawn, reasons], api_name="explain", concurrency_id="explain", concurrency_limit=1)
