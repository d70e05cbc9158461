"""What happens when something on the page is pressed, moved or chosen."""

from __future__ import annotations

import functools
import html
import time
from pathlib import Path

import gradio as gr
from PIL import Image

from .. import reports
from . import pictures, tour, views, words
from .endpoints import EXPLAINING, MODEL
from .engine import browsers_show, card_of, upload
from .views import asked

PRIVATE = {"api_visibility": "private"}
QUIET = {"queue": False, "show_progress": "hidden", **PRIVATE}
# On a phone the answer lies below the examples; bring it into view.
SCROLL = "() => { if (innerWidth < 800) document.querySelector('#answer')?.scrollIntoView({behavior: 'smooth'}) }"


class Events:
    """Wires the components of a `page.Page` to the questions."""

    def __init__(self, page):
        self.page, self.engine = page, page.engine
        # A DICOM file, a TIFF and a picture of 16 bits are asked about themselves; the page shows what a browser can, a PNG of them.
        self.given = [page.image, page.scan, page.report, page.threshold, page.name]
        self.full = [*self.given, page.opacity, page.exact]  # what `question` takes
        self.answer = [page.start, page.found, page.kept, page.overlay, page.downloads, page.finding, page.mask, page.numbers]
        self.intervention = [page.intervened, page.slider, page.bar, page.verdict, page.difference, page.difference_words]
        self.knobs = [page.edit, page.strength, page.seed]
        self.explanation = [page.attribution, page.explanation]
        self.others = [page.intervened, *self.explanation]  # what a new picture makes old, beside the answer
        self.look = ([page.kept, page.groups, page.inside_opacity, page.outline], page.tiles)
        self.pending = []  # events that may still be under way when the picture or the model is changed
        self._segment()
        self._intervene()
        self._explain()
        # These drop what was asked before them; what they ask themselves is wired after.
        self._drop_pending([page.name.input])
        self._reading()  # another model ends no reading, another picture does
        self._drop_pending([part.click for part in (*page.tables, page.interventions, page.explanations, page.tour_button)])
        self._examples()
        self._model()
        self._tour()
        self._inputs()

    # ---- questions

    @asked
    def question(self, image, scan, report, threshold, name, opacity, exact):
        result = self.engine.segment(scan or image, report, threshold, name, exact)
        return self.everything(result, opacity, name, exact)

    def everything(self, result, opacity, name, exact):
        """What the page shows of an answer, with what "Inside" needs beside it."""
        plain = self.engine.one_view(result, name) if exact else None
        return views.answer(result, opacity, self.engine.without_sentence(result, name), plain)

    def intervene_example(self, index, name, opacity):
        """The settings and the answer of an example of "Intervene"."""
        _, file, report, edit, strength = tour.INTERVENTIONS[index]
        found = self.page.example_intervention(tour.picture(file), report, edit, strength, 0.5, 0, name)
        return [edit, strength, 0, *views.intervention(found, opacity)]

    def explain_example(self, index, name):
        _, file, report, method = tour.EXPLANATIONS[index]
        return [method, *views.explanation(self.page.example_explanation(tour.picture(file), report, method, 0.5, name))]

    def again(self, image, scan, *rest):
        """The question anew after a control was moved, where there is a picture."""
        return self.question(image, scan, *rest) if image or scan else [gr.skip()] * len(self.answer)

    # ---- answers that come too late

    def pends(self, event):
        """`event`, noted as one that `_drop_pending` ends."""
        self.pending.append(event)
        return event

    def then_tiles(self, event):
        """After an answer: its pictures in "Inside"."""
        # success, not then: an event that was dropped counts as a failure, and nothing of it must be drawn.
        return self.pends(self.pends(event).success(views.tiles, *self.look, show_progress="hidden", **PRIVATE))

    def then_answer(self, event):
        """After an example of another tab: the same picture's answer in "Segment" and "Inside", so that all tabs speak of it."""
        return self.then_tiles(self.pends(event).success(self.question, self.full, self.answer, show_progress="hidden", **PRIVATE, **MODEL))

    def _drop_pending(self, triggers):
        """Let these triggers end all events noted so far, so that no answer to an old question comes to stand beside a new picture.

        To be called before anything else is wired to them: the browser takes what hangs on a trigger one after another.
        """
        def stop(request: gr.Request):
            self.engine.stop(request.session_hash)

        gr.on(triggers, None, cancels=self.pending, **PRIVATE)
        gr.on(triggers, stop, **QUIET)  # Gradio lets a function that runs go on, and only drops its answer

    # ---- Segment, Inside

    def _segment(self):
        page = self.page
        answered = gr.on([page.button.click, page.report.submit], self.question, self.full, self.answer, **PRIVATE, **MODEL)
        answered.success(lambda: gr.update(selected="segment"), None, page.tabs, queue=False, **PRIVATE).success(None, js=SCROLL)
        self.then_tiles(answered)
        # input, not release: the arrow keys move a slider, too. Of the values that come while one is drawn, the last counts.
        for control in (page.threshold, page.exact):
            self.then_tiles(control.input(self.again, self.full, self.answer, trigger_mode="always_last", show_progress="minimal", **PRIVATE, **MODEL))
        page.opacity.input(lambda kept, value: pictures.with_mask(kept, value) if kept else gr.skip(), [page.kept, page.opacity],
                           page.overlay, trigger_mode="always_last", show_progress="hidden", **PRIVATE)  # fmt: skip
        gr.on([page.groups.input, page.inside_opacity.input, page.outline.input], views.tiles, *self.look, trigger_mode="always_last",
              show_progress="hidden", **PRIVATE)  # fmt: skip

    def _model(self):
        """Another model: its card, and its answer in the place of the other one's."""
        page = self.page
        self.then_tiles(
            page.name.input(lambda name: [page.card_text(name), words.about_model(name, card_of(self.engine.sources[name])), *views.NO_OTHERS],
                            page.name, [page.card, page.about, *self.others], **QUIET).then(
                self.again, self.full, self.answer, **PRIVATE, **MODEL))  # fmt: skip

    def _reading(self):
        """A file that browsers can't show becomes one that they can.

        It has a trigger of its own, a change of what was chosen, so that it can be wired before `_drop_pending`: the next picture ends it.
        """
        page = self.page

        @asked
        def read(chosen):
            if not chosen:
                return gr.skip(), gr.skip()
            picture = upload(chosen[0])
            note = f'<div class="card"><strong>{html.escape(Path(chosen[0]).name)}</strong>{words.bullets(picture.warnings)}</div>'
            return Image.fromarray(picture.pixels), gr.update(value=note, visible=True)

        self.pends(page.chosen.change(read, page.chosen, [page.image, page.dicom_note], **PRIVATE))

    def _inputs(self):
        page = self.page
        gone = [*self.answer[:3], *self.others, page.dicom_note, *page.tiles, page.scan]

        def forget(file):
            """Another picture: the old answer must not stand beside it. What browsers can't show is kept as the scan."""
            scan = file if file and not browsers_show(file) else None
            nothing = [gr.update(visible=True), gr.update(visible=False), None, *views.NO_OTHERS, views.HIDDEN, *views.tiles(None, (), 1, False)]
            return [*nothing, scan]

        def compose(left, right, count):
            zones = {side: tuple(z for z in reports.ZONES if z in said) for side, said in (("left", left), ("right", right))}
            whole = tuple(side for side, said in zones.items() if said == reports.ZONES)
            return reports.write(reports.Report(**zones, count=None if count is None or count < 0 else count, whole=whole))

        self._drop_pending([page.image.upload, page.image.clear, page.dicom.upload])
        gr.on([page.image.upload, page.image.clear], forget, page.image, gone, **QUIET)
        # The box is empty until the file was read; that button takes any file, a PNG, too.
        page.dicom.upload(lambda file: [*forget(file)[:-1], file, None], page.dicom, [*gone, page.image], **QUIET)
        # With the time, so that the same file again is another value, and is read again.
        gr.on([page.image.upload, page.dicom.upload], lambda scan: scan and (scan, time.time_ns()), page.scan, page.chosen,
              show_progress="hidden", **PRIVATE)  # fmt: skip
        parts = [page.left, page.right, page.count]
        gr.on([part.input for part in parts], compose, parts, page.report, trigger_mode="always_last", **QUIET)

    # ---- Intervene, Explain

    def _intervene(self):
        page = self.page

        @asked
        def ask(image, scan, report, threshold, name, opacity, edit, strength, seed):
            return views.intervention(self.engine.intervene(scan or image, report, edit, strength, threshold, seed or 0, name), opacity)

        self.pends(page.intervene_button.click(ask, [*self.given, page.opacity, *self.knobs], self.intervention, **PRIVATE, **MODEL))
        # The picture's own bar answers to a mouse or a finger alone.
        page.bar.input(lambda position: gr.update(slider_position=position), page.bar, page.slider, trigger_mode="always_last", **QUIET)

    def _explain(self):
        page = self.page

        @asked
        def ask(image, scan, report, threshold, name, method, request: gr.Request, progress=gr.Progress()):
            progress(0, desc="asking the model")
            step = functools.partial(progress, desc="asking the model")
            return views.explanation(self.engine.explain(scan or image, report, method, threshold, name, request.session_hash, step))

        def cancel(request: gr.Request):
            self.engine.stop(request.session_hash)
            return [gr.update(visible=False), '<div class="card" id="explanation"><p>Cancelled.</p></div>', gr.update(interactive=False)]

        def may_cancel(may: bool):
            return lambda: gr.update(interactive=may)

        started = self.pends(page.explain_button.click(may_cancel(True), None, page.cancel, **QUIET).then(
            ask, [*self.given, page.method], self.explanation, **PRIVATE, **EXPLAINING))  # fmt: skip
        started.then(may_cancel(False), None, page.cancel, **QUIET)
        # `cancels` takes a question that still waits out of the queue; the engine ends one that runs.
        page.cancel.click(cancel, None, [*self.explanation, page.cancel], cancels=[started], **QUIET)

    # ---- the examples of each tab

    def _examples(self):
        page = self.page
        shown = [*self.given[:4], page.dicom_note]  # what `put` fills

        # None may be named as an endpoint is: Gradio would number the endpoint.
        def put(path, report):
            return [page.shown[path], None if browsers_show(path) else path, report, 0.5, views.HIDDEN]

        @asked
        def of_segment(rows, index, opacity, name, exact):
            path, report = rows[index]["image"], rows[index]["report"]
            result = (page.example if Path(path).parent == tour.EXAMPLES else self.engine.segment)(path, report, 0.5, name, exact)
            return [*put(path, report), gr.update(selected="segment"), *self.everything(result, opacity, name, exact), *views.NO_OTHERS]

        @asked
        def of_intervene(index, name, opacity):
            _, file, report, *_ = tour.INTERVENTIONS[index]
            return [*put(tour.picture(file), report), *self.intervene_example(index, name, opacity), *views.NO_OTHERS[1:]]

        @asked
        def of_explain(index, name):
            _, file, report, _ = tour.EXPLANATIONS[index]
            return [*put(tour.picture(file), report), *self.explain_example(index, name), views.NO_OTHERS[0]]

        for table, rows in zip(page.tables, page.galleries.values(), strict=True):
            answered = table.click(functools.partial(of_segment, rows), [table, page.opacity, page.name, page.exact],
                                   [*shown, page.tabs, *self.answer, *self.others], **PRIVATE, **MODEL)  # fmt: skip
            answered.success(None, js=SCROLL)
            self.then_tiles(answered)
        self.then_answer(page.interventions.click(of_intervene, [page.interventions, page.name, page.opacity],
                                                  [*shown, *self.knobs, *self.intervention, *self.others[1:]], **PRIVATE, **MODEL))  # fmt: skip
        self.then_answer(page.explanations.click(of_explain, [page.explanations, page.name],
                                                 [*shown, page.method, *self.explanation, page.intervened], **PRIVATE, **EXPLAINING))  # fmt: skip

    # ---- the tour

    def _tour(self):
        page = self.page

        def next_step(number):
            number = number % len(tour.TOUR)
            _, file, report, _, text = tour.TOUR[number]
            label = "Next step" if number + 1 < len(tour.TOUR) else "Start again"
            said = f"<p><b>Step {number + 1} of {len(tour.TOUR)}.</b> {text}</p>"
            return [number + 1, said, gr.update(value=label), tour.picture(file), None, report, 0.5, *views.NO_OTHERS, views.HIDDEN]

        def at(tab, number):
            return tour.TOUR[number - 1][0] == tab

        def do(number, name, opacity):
            if not at("intervene", number):
                return [gr.skip()] * len(self.knobs + self.intervention)
            wanted = tour.TOUR[number - 1]
            return self.intervene_example([(p, r, e) for _, p, r, e, _ in tour.INTERVENTIONS].index(wanted[1:4]), name, opacity)

        def why(number, name):
            if not at("explain", number):
                return [gr.skip()] * len([page.method, *self.explanation])
            return self.explain_example([(p, r, m) for _, p, r, m in tour.EXPLANATIONS].index(tour.TOUR[number - 1][1:4]), name)

        put = self.pends(page.tour_button.click(
            next_step, page.step, [page.step, page.tour_text, page.tour_button, *self.given[:4], *self.others, page.dicom_note], show_progress="hidden", **PRIVATE))
        answered = self.then_tiles(put.success(self.question, self.full, self.answer, **PRIVATE, **MODEL))
        done = self.pends(answered.success(do, [page.step, page.name, page.opacity], [*self.knobs, *self.intervention], **PRIVATE, **MODEL))
        told = self.pends(done.success(why, [page.step, page.name], [page.method, *self.explanation], **PRIVATE, **EXPLAINING))
        told.success(lambda number: gr.update(selected=tour.TOUR[number - 1][0]), page.step, page.tabs, **PRIVATE).success(None, js=SCROLL)
