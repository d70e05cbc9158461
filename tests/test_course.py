"""What the notebooks call (setup, show, map, source, slider, the exercises' checks), with a stand-in for Colab."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from causalclipseg import exercises, notebook
from causalclipseg.config import ModelConfig
from causalclipseg.masking import Masker


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would display: (thing, metadata) in order."""
    import IPython.display

    found = []

    class Handle:
        def __init__(self, place):
            self.place = place

        def update(self, data, raw=False, metadata=None):
            found[self.place] = (data, metadata or {})

    def display(thing, raw=False, metadata=None, display_id=None):
        found.append((thing, metadata or {}))
        return Handle(len(found) - 1) if display_id else None

    monkeypatch.setattr(IPython.display, "display", display)
    return found


@pytest.fixture
def colab(monkeypatch):
    google = types.ModuleType("google")
    google.colab = types.ModuleType("google.colab")
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", google.colab)


class Pip:
    """Stands where subprocess.run would; keeps what it was asked."""

    def __init__(self, code=0, said=""):
        self.calls, self.code, self.said, self.held = [], code, said, ""

    def __call__(self, command, **_):
        self.calls.append(command)
        self.held = open(command[command.index("--constraint") + 1]).read()
        return subprocess.CompletedProcess(command, self.code, "", self.said)


# ---------------------------------------------------------------- setup


def test_setup_seeds_and_says_what_it_runs_on(capsys, monkeypatch):
    monkeypatch.delenv("CAUSALCLIPSEG_FULL", raising=False)
    draws = []
    for _ in range(2):
        lesson = notebook.setup("00_quickstart")
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said and "device:" in said and "minutes:" in said and "small" in said
    assert lesson.small and lesson.pick(small=1, full=2) == 1 and lesson.device.type in ("cpu", "cuda")


def test_one_switch_runs_it_full(monkeypatch, capsys):
    monkeypatch.setenv("CAUSALCLIPSEG_FULL", "1")
    lesson = notebook.setup("07_full_training_qata")
    assert not lesson.small and lesson.pick(small=1, full=2) == 2
    assert "· full\n" in capsys.readouterr().out


def test_real_data_only_where_the_reader_names_it(monkeypatch, tmp_path):
    lesson = notebook.Lesson("x", True, torch.device("cpu"), 0)
    monkeypatch.setenv("CAUSALCLIPSEG_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no folder"):
        lesson.data
    monkeypatch.setenv("CAUSALCLIPSEG_DATA", str(tmp_path))
    assert lesson.data == tmp_path


def test_phantoms_are_made_once_and_the_folder_is_ignored_by_git(monkeypatch, tmp_path):
    monkeypatch.delenv("CAUSALCLIPSEG_DATA", raising=False)
    monkeypatch.setattr(notebook, "HOME", tmp_path)
    written = []
    monkeypatch.setattr("causalclipseg.phantoms.write_dataset", lambda folder, count, seed: written.append((count, seed)) or folder)
    lesson = notebook.Lesson("x", True, torch.device("cpu"), 0)
    assert lesson.data == tmp_path / "data" / "course-120" and lesson.unseen == tmp_path / "data" / "unseen-120" and written == [(120, 0), (120, 2)]
    lesson.data.mkdir(parents=True)
    assert notebook.Lesson("y", True, torch.device("cpu"), 0).data == lesson.data and len(written) == 2
    assert lesson.folder.is_dir() and lesson.folder.relative_to(tmp_path).parts[0] == "runs"
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    assert "/data/" in ignored and "/runs/" in ignored


def test_colab_gets_what_it_lacks_and_keeps_its_torch(colab, monkeypatch):
    assert notebook.in_colab()
    pip = Pip()
    installed = notebook.install_missing(pip, {"torch": "torch", "open_clip_of_tomorrow": "open_clip_torch", "no_such_captum": "captum"})
    assert [line.split(">")[0] for line in installed] == ["open_clip_torch", "captum"] and ">=" in installed[0]
    (command,) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and command[-2:] == installed
    assert f"torch=={torch.__version__.partition('+')[0]}\n" in pip.held and "numpy==" in pip.held and "ipykernel==" in pip.held
    assert notebook.install_missing(Pip(1), {"torch": "torch"}) == []  # nothing is missing: pip isn't called


def test_a_failed_install_is_one_sentence(colab):
    with pytest.raises(RuntimeError, match="captum.*could not be installed.*no space left"):
        notebook.install_missing(Pip(1, "many lines\nERROR: no space left"), {"no_such_captum": "captum"})


def test_setup_installs_in_colab_alone(colab, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(notebook, "install_missing", lambda: calls.append(1))
    notebook.setup("00_quickstart")
    monkeypatch.delitem(sys.modules, "google.colab")
    notebook.setup("00_quickstart")
    assert calls == [1]


def test_what_colab_may_be_given_is_in_requirements_and_never_torch_numpy_or_jupyter():
    required = {re.split(r"[\[>]", line)[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines() if line[:1].isalpha()}
    assert set(notebook.NEEDED.values()) <= required
    assert not set(notebook.NEEDED.values()) & set(notebook.HELD)


def test_minutes_are_measured_or_said_not_to_be(monkeypatch, tmp_path):
    monkeypatch.setattr(notebook, "HOME", tmp_path)
    assert "not measured" in notebook.minutes("04")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "minutes.json").write_text('{"04": 0.5}')
    said = notebook.minutes("04")
    assert "0.5 on a laptop (measured" in said and "T4 (an estimate)" in said


def test_the_lesson_brings_the_shipped_model():
    model = notebook.Lesson("x", True, torch.device("cpu"), 0).model()
    assert model.config.alone() == ModelConfig() and not model.training


# ---------------------------------------------------------------- what is shown


def test_a_figure_has_its_words_in_the_picture_and_below_it(shown):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2, 1))
    axes.plot([0, 1])
    notebook.show(figure, alt='A line that rises from 0 to 1 & a "quote".')
    (picture, metadata), (words, _) = shown
    assert metadata["image/png"]["alt"].startswith("A line") and picture["text/plain"].startswith("A line")
    assert "<details>" in words["text/html"] and "&amp;" in words["text/html"]
    assert not pyplot.fignum_exists(figure.number)  # or the inline backend would show it once more
    with pytest.raises(ValueError, match="alternative text"):
        notebook.show(Image.new("L", (4, 4)), alt=" ")


def test_panels_share_their_grey_scale():
    figure = notebook.panels([("a", np.zeros((4, 8))), ("b", np.full((4, 8), 7, np.uint8)), ("two\nlines", Image.new("RGB", (8, 4)))], columns=2)
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["a", "b", "two\nlines"] and len(figure.axes) == 4
    assert [axes.images[0].get_clim() for axes in drawn[:2]] == [(0, 1), (0, 255)]
    assert figure.get_figwidth() > figure.get_figheight()


def test_a_slider_shows_its_start_and_follows(shown):
    drawn = []

    def draw(value):
        drawn.append(value)
        return Image.new("L", (8, 8), int(255 * value))

    notebook.slider(draw, "threshold", [0.1, 0.5, 0.9], alt="Everything above {value}.")
    assert drawn == [0.5] and shown[0][0]["text/plain"] == "Everything above 0.5."
    control = shown[2][0]
    control.value = 0.9
    assert drawn == [0.5, 0.9] and shown[0][0]["text/plain"] == "Everything above 0.9." and "0.9" in shown[1][0]["text/html"]
    with pytest.raises(ValueError, match="one of the slider's values"):
        notebook.slider(draw, "threshold", [0.1], start=2, alt="x")


def test_source_is_the_package_s_own(shown):
    notebook.source(Masker)
    text = shown[0][0].data
    assert text.startswith("`causalclipseg/masking.py, line ") and "class Masker(nn.Module)" in text


@pytest.mark.parametrize("part", sorted(notebook._PARTS))
def test_the_map_says_where_you_are(shown, part):
    import xml.etree.ElementTree as tree

    notebook.map(part)
    (data, metadata), = shown
    svg = tree.fromstring(data["image/svg+xml"])
    title = notebook._PARTS[part][0]
    assert f"You are here: {title}." in metadata["image/svg+xml"]["alt"] == svg.findtext("{*}title")
    words = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert sum("you are here" in text for text in words) == 1


def test_the_map_has_no_other_parts():
    with pytest.raises(ValueError, match='no part "mask"'):
        notebook.map("mask")


# ---------------------------------------------------------------- exercises


@pytest.fixture
def judge(monkeypatch):
    """Put a check in the place of every exercise."""

    def put(function):
        monkeypatch.setattr(exercises, "everything", lambda: {"n04.masker": function})
        return function

    return put


def test_a_right_answer_is_told_so(judge, capsys):
    def right(answer):
        """That is Eq. 2.

        More for those who read the source.
        """
        exercises.close(answer(), torch.ones(2), "M")

    judge(right)
    exercises.check("n04.masker", lambda: torch.ones(2))
    assert capsys.readouterr().out == "✓ That is Eq. 2.\n"


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda: None, "M is missing"),
        (lambda: [1.0, 1.0], "M should be a tensor, not list"),
        (lambda: torch.ones(3), r"shape \(3,\); it should be \(2,\)"),
        (lambda: torch.tensor([1.0, 1.5]), "off by up to 0.5"),
        (lambda: torch.tensor([1.0, float("nan")]), "not a number"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_answer_hears_why(judge, answer, message):
    judge(lambda given: exercises.close(given(), torch.ones(2), "M"))
    with pytest.raises(exercises.NotYet, match=message):
        exercises.check("n04.masker", answer)


def test_a_stub_hears_what_to_do(judge):
    def stub():
        raise NotImplementedError

    judge(lambda answer: answer())
    with pytest.raises(exercises.NotYet, match="still `raise NotImplementedError`"):
        exercises.check("n04.masker", stub)


def test_assertions_and_expectations_become_messages(judge):
    def strict(answer):
        if answer > 5:
            raise AssertionError("too large")  # what `assert` raises
        exercises.expect(answer > 2, "too small")

    judge(strict)
    for answer, message in ((7, "too large"), (1, "too small")):
        with pytest.raises(exercises.NotYet, match=message) as caught:
            exercises.check("n04.masker", answer)
        assert caught.value._render_traceback_() == [f"✗ Not yet: {message}"]


def test_an_unknown_exercise_names_the_known(judge):
    judge(lambda answer: None)
    with pytest.raises(ValueError, match='no exercise "n04.maskr"; known: n04.masker'):
        exercises.check("n04.maskr", None)


def test_every_exercise_says_what_a_right_answer_is():
    for name, function in exercises.everything().items():
        assert function.__doc__ and len(function.__doc__.strip().splitlines()[0]) > 10, name
