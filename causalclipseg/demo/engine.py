"""The models of this process and the questions that the page asks them. Torch is imported when they are loaded."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import threading
from pathlib import Path

from ..images import Picture, open_picture, read_picture

LOADING_PATIENCE = 300  #: seconds; how long a question waits for the models after a start
MOST_PIXELS = 4096 * 4096  #: of an upload; an answer holds about ten maps of its size, however small the file was


class Cancelled(Exception):
    """The visitor pressed Cancel."""


class Engine:
    """The loaded models; questions wait until they are there. Every ValueError is one sentence for the visitor."""

    def __init__(self, sources: list[str]):
        self.sources = dict(zip(_names(sources), sources))  #: name on the page -> folder or hub id
        self.models, self.ready = {}, threading.Event()
        self.running: dict[str, threading.Event] = {}  # visitor -> set once the explanation shall stop
        # Captum hooks into a model while it explains; other questions must not run through those hooks.
        self.twins, self.explaining = {}, threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.sources)

    def load(self) -> None:
        """Import torch and read the weights. ValueError says in one sentence what is wrong with them."""
        from causalclipseg import CausalCLIPSeg, inference, intervention  # noqa: F401  (all that an answer needs, in one thread)

        for name, source in self.sources.items():
            self.models[name] = CausalCLIPSeg.from_pretrained(source)
        self.ready.set()

    def model(self, name: str | None):
        if not self.ready.wait(LOADING_PATIENCE):
            raise ValueError("The model is still being loaded; try again in a moment.")
        if name is not None and name not in self.models:
            raise ValueError("There is no such model here; choose one of the list.")
        return self.models[name or self.names[0]]

    def segment(self, image: str | None, report: str | None, threshold: float, name: str | None = None, exact: bool = False):
        """The `inference.Result` for an uploaded file; exact: the mean over six views and over the networks of the model's file."""
        picture, model = upload(image), self.model(name)
        from causalclipseg import inference  # after the waiting: two threads that import torch at once can block each other

        result = inference.segment(model, picture, report or "", confounder=model.config.intervention, threshold=threshold, average_views=exact)
        result.model = (name or self.names[0]) + ", mean of six views" * exact
        return result

    def one_view(self, result, name: str | None = None):
        """The first network's answer in one view, where `result` is a mean: its logits are those of Eq. 1, beside D_s of the same view."""
        model = self.model(name)
        from causalclipseg import inference

        return inference.segment(model, result.image, result.report, confounder=model.config.intervention, threshold=result.threshold)

    def without_sentence(self, result, name: str | None = None):
        """The answer in one view to the same picture without a sentence, for what the sentence adds."""
        model = self.model(name)
        from causalclipseg import inference

        return inference.segment(model, result.image, "", threshold=result.threshold)

    def intervene(self, image, report, edit: str, strength: float, threshold: float = 0.5, seed: int = 0, name: str | None = None):
        """The `intervention.Intervention` for an uploaded file."""
        picture, model = upload(image), self.model(name)
        from causalclipseg.intervention import intervene

        found = intervene(model, picture, report or "", edit, strength, threshold=threshold, seed=int(seed))
        found.before.model = found.after.model = name or self.names[0]
        return found

    def explain(self, image, report, method: str, threshold: float = 0.5, name: str | None = None, visitor: str | None = None, progress=None):
        """The `explain.Explanation` for an uploaded file; raises Cancelled once `stop(visitor)` was called."""
        picture, model = upload(image), self.model(name)
        from causalclipseg.explain import explain

        stop = threading.Event()

        def step(share: float) -> None:
            if stop.is_set():
                raise Cancelled
            if progress:
                progress(share)

        name = name or self.names[0]
        if visitor is not None:
            self.running[visitor] = stop
        try:
            with self.explaining:
                step(0.0)  # it may have been stopped while it waited
                if name not in self.twins:
                    self.twins[name] = copy.deepcopy(model)
                found = explain(self.twins[name], picture, report or "", method, threshold=threshold, progress=step)
        finally:
            if visitor is not None and self.running.get(visitor) is stop:
                del self.running[visitor]
        found.result.model = name
        return found

    def stop(self, visitor: str | None) -> None:
        """End this visitor's explanation at its next step."""
        if (stop := self.running.get(visitor)) is not None:
            stop.set()


def upload(image: str | None) -> Picture:
    """An uploaded file's picture; messages give the visitor's name for it, not the server's path. ValueError: there is none, or it cannot be used."""
    if not image:
        raise ValueError("There is no picture yet; upload one or choose an example.")
    try:
        content = io.BytesIO(Path(image).read_bytes())
    except OSError:
        raise ValueError("The picture is no longer on the server; upload it again, or choose the example again.") from None
    content.name = Path(image).name
    return read_picture(content, most=MOST_PIXELS)


def browsers_show(file: str) -> bool:
    """Whether browsers show this file as the model sees it: they know no TIFF, and a picture of 16 bits is almost black in them."""
    with contextlib.suppress(Exception):  # what Pillow raises of broken files; `upload` says it in one sentence
        with open_picture(file) as picture:
            return picture.format in ("PNG", "JPEG", "WEBP") and not picture.mode.startswith(("I", "F"))
    return False


def check_source(source: str) -> str | None:
    """One sentence on why `source` cannot be a model, without loading it; None where it may be one."""
    folder = Path(source)
    if folder.is_dir():
        missing = [file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()]
        return f"{folder} is no model: it holds no {missing[0]}." if missing else None
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return f"{source} is not a folder with a model, nor a hub id such as org/name."
    return None


def card_of(source: str) -> str:
    """The text of a model's card without the hub's front matter; empty where there is none. Of a model on the hub: where it is."""
    if not Path(source).is_dir():
        return f"Its model card is at https://huggingface.co/{source} ."
    card = Path(source) / "README.md"
    text = ""
    with contextlib.suppress(OSError):
        text = card.read_text(encoding="utf-8", errors="replace")
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def _names(sources: list[str]) -> list[str]:
    """Short names, all different: the folder's, with a number where two are alike."""
    names: list[str] = []
    for source in sources:
        short = Path(source).resolve().name if Path(source).is_dir() else source
        same = sum(n == short or n.startswith(f"{short} (") for n in names)
        names.append(f"{short} ({same + 1})" if same else short)
    return names
