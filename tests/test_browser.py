"""The demo in a real Chromium: upload, type, press, read the finding, on a phone's and on a desktop's width."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import gradio_client
import numpy as np
import pytest
from PIL import Image
from demo_driver import CHROMEDRIVER, CHROMIUM, REPOSITORY, browser, click, css, finding, free_port, loading_app, open_page, open_tab, pictures, press, remove, running_app, text_of, until, upload, write

pytest.importorskip("selenium", reason="selenium is not installed (pip install selenium)")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="Chromium is missing (apt-get install chromium chromium-driver)")
PICTURE = REPOSITORY / "assets" / "examples" / "both-lungs.png"


@pytest.fixture(scope="module")
def address(tiny_model_dir, phantom_folder, tmp_path_factory):
    model = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("models") / tiny_model_dir.name)
    shutil.copy(REPOSITORY / "assets/models/mini/README.md", model)  # a real card is long, and its tables are wide
    with running_app(model, "--data", phantom_folder) as address:
        yield address


RIGHT, ENTER, HOME = "\ue014", "\ue007", "\ue011"
DICOM = "input[data-testid*=DICOM]"  #: where a DICOM file goes in
ACCESSIBILITY = (REPOSITORY / "tests" / "accessibility.js").read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_legible_reachable_and_has_words(address, theme):
    with browser(1440) as page:
        open_page(page, f"{address}/?__theme={theme}")
        click(page, "tbody tr")
        finding(page)
        for title in ("Segment", "Inside", "Intervene", "Explain", "About"):
            open_tab(page, title)
            if title == "Inside":
                until(lambda: pictures(page, "inside-0"), "the first picture")
            if title == "Intervene":
                click(page, "#intervene")
                until(lambda: pictures(page, "slider"), "before and after")
            time.sleep(2)  # colours and pictures fade in
            faults = {kind: found for kind, found in page.execute_script(ACCESSIBILITY).items() if found}
            assert not faults, f"{title}: {faults}"


@pytest.mark.parametrize("width", [390, 1440])
def test_a_person_gets_an_answer(address, width, tmp_path):
    notes = tmp_path / "notes.png"
    notes.write_text("this is no picture")
    with browser(width) as page:
        open_page(page, address)
        assert "Not for clinical use" in page.find_element("tag name", "body").text
        upload(page, PICTURE)
        write(page, "Infection of the <b>left</b> lung.")
        press(page)
        text = finding(page)
        assert "What the mask shows" in text and "Infection of the <b>left</b> lung." in text and ("No lesion" in text or "Area" in text)
        before = until(lambda: pictures(page, "overlay"), "the overlay")

        # The mean of six views, and back.
        click(page, "#exact input")
        until(lambda: "mean of six views" in finding(page), "the more exact answer")
        click(page, "#exact input")
        until(lambda: finding(page) == text, "the plain answer")

        # Composed from side, zone and count.
        click(page, "#compose .label-wrap")
        for zone in (0, 1, 2, 5):
            click(page, "#compose input[type=checkbox]", zone)
        composed = "Bilateral pulmonary infection, all left lung and lower right lung."
        until(lambda: css(page, "#report textarea")[0].get_property("value") == composed, "the composed sentence")

        # Inside: ten pictures, each with its words; a switch hides three.
        open_tab(page, "Inside")
        for number in range(10):
            assert until(lambda: pictures(page, f"inside-{number}"), f"picture {number}")
        assert len(until(lambda: css(page, "#tiles .tile"), "their words")) == 10
        click(page, "#groups input", 1)
        until(lambda: len(css(page, "#tiles .tile")) == 7, "the switch")

        # Intervene: the example answers with one click, the button with a few.
        open_tab(page, "Intervene")
        click(page, "#intervene")
        assert "Dice" in until(lambda: text_of(page, "verdict"), "the verdict")
        assert until(lambda: pictures(page, "slider"), "before and after") and until(lambda: pictures(page, "difference"), "the difference")
        bar = "return document.querySelector('#slider .icon-wrap').getBoundingClientRect().left"
        middle = page.execute_script(bar)
        css(page, "#bar input[type=range]")[0].send_keys(RIGHT * 10)
        until(lambda: page.execute_script(bar) > middle + 5, "the bar to move")

        # Explain: either faithfulness or the reason why there is nothing to explain.
        open_tab(page, "Explain")
        click(page, "#explain")
        said = until(lambda: text_of(page, "explanation"), "the explanation")
        assert "Faithfulness" in said or "nothing to attribute" in said
        open_tab(page, "About")
        assert "Limits" in until(lambda: text_of(page, "card"), "the card")
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "the card widens the page"
        open_tab(page, "Segment")

        # Opacity, by keyboard: another picture, the same finding.
        slider = page.find_element("css selector", "#opacity input[type=range]")
        slider.send_keys(RIGHT * 3)
        if "No lesion" not in text:
            until(lambda: pictures(page, "overlay") not in ([], before), "the new opacity")
        assert finding(page) == text

        # An example answers with one click.
        click(page, "tbody tr", 3)
        until(lambda: "one infected area, lower right lung" in finding(page), "the example's finding")

        # Nothing reaches beyond the screen, and nothing is fetched from elsewhere.
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        foreign = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert not [name for name in foreign if not name.startswith((address, "data:", "blob:"))]
        assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]

        # Another picture takes the old answer away; one that is none is refused in one sentence.
        remove(page)
        until(lambda: not css(page, "#finding"), "the old finding to go")
        upload(page, notes)
        press(page)
        until(lambda: "notes.png is not a picture" in page.find_element("tag name", "body").text, "the refusal")
        assert not css(page, "#finding")


def test_one_picture_in_every_tab_by_keyboard_and_what_is_downloaded(address, tiny_model_dir, tmp_path):
    """An example by the Enter key; its downloads; an example of another tab, which all tabs then speak of; a DICOM file; the tour."""
    from causalclipseg import CausalCLIPSeg, segment
    from test_dicom import dicom

    with browser(390) as page:
        page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        open_page(page, address)
        until(lambda: css(page, ".examples tbody button")[1:], "rows to reach")[0].send_keys(ENTER)
        assert "Infection of the left lung." in finding(page)
        for name in ("mask.png", "overlay.png", "result.json"):
            click(page, f"a[download='{name}']")
            until(lambda: (tmp_path / name).exists(), name)
        own = segment(CausalCLIPSeg.from_pretrained(tiny_model_dir), PICTURE, "Infection of the left lung.")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), own.mask * np.uint8(255))
        assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps({**own.to_dict(), "model": "tiny"}))
        assert Image.open(tmp_path / "overlay.png").size == (640, 640)

        open_tab(page, "Intervene")
        click(page, ".examples tbody tr", len(css(page, ".examples tbody tr")) - 1)
        assert "Dice" in until(lambda: text_of(page, "verdict"), "the example's verdict")
        open_tab(page, "Segment")
        until(lambda: "one infected area, lower right lung" in finding(page), "the same picture here")

        scan = tmp_path / "scan.dcm"
        scan.write_bytes(dicom(WindowCenter=1000, WindowWidth=500, PatientOrientation=["R", "F"]))
        page.find_element("css selector", DICOM).send_keys(str(scan))
        until(lambda: "centre 1000" in text_of(page, "dicom-note"), "the DICOM file's note")
        assert not css(page, "#finding")
        press(page)
        text = until(lambda: "centre 1000" in finding(page) and finding(page), "the DICOM file's finding")
        assert "patient's LEFT" in text

        click(page, "#tour .label-wrap")
        for step, tab in enumerate(("finding", "finding", "inside-0", "verdict", "explanation"), 1):
            click(page, "#tour-next")
            until(lambda: f"Step {step} of 5" in text_of(page, "tour") and css(page, f"#{tab}"), f"step {step}")


def choose_an_example(page):
    click(page, ".examples tbody tr")


@pytest.mark.parametrize("replace", [remove, choose_an_example])
def test_no_answer_to_an_old_question_comes_to_a_new_picture(tiny_model_dir, tmp_path, replace):
    """Segment, Intervene and Explain are asked about one picture, which is then replaced before any of them is answered."""
    with loading_app(tiny_model_dir, tmp_path) as (server, port, load), browser(1440) as page:
        address = f"http://127.0.0.1:{port}"
        open_page(page, address)
        upload(page, PICTURE)
        press(page)
        for title in ("Intervene", "Explain"):
            open_tab(page, title)
            click(page, f"#{title.lower()}")
        until(lambda: css(page, "#cancel:not([disabled])"), "the questions to be asked")
        replace(page)
        until(lambda: not css(page, "#cancel:not([disabled])"), "the questions to be dropped")
        load()
        program, sent = gradio_client.Client(address, verbose=False), gradio_client.handle_file(PICTURE)
        for ask in ("/segment", "/explain"):  # their queues are in order: what was asked before is over
            program.predict(sent, "Infection of the left lung.", api_name=ask)
        time.sleep(1)
        for title, name in (("Explain", "explanation"), ("Intervene", "verdict")):
            open_tab(page, title)
            assert not css(page, f"#{name}"), title
        open_tab(page, "Segment")
        if replace is remove:
            assert not css(page, "#finding")
            upload(page, PICTURE)
            press(page)
        assert "What the mask shows" in finding(page)


def test_the_last_click_on_more_exact_counts(tiny_model_dir, tmp_path):
    with loading_app(tiny_model_dir, tmp_path) as (server, port, load), browser(1440) as page:
        open_page(page, f"http://127.0.0.1:{port}")
        upload(page, PICTURE)
        click(page, "#exact input")
        time.sleep(1)  # until the question about it waits for the model
        click(page, "#exact input")
        load()
        until(lambda: "What the mask shows" in finding(page) and "six views" not in finding(page), "the plain answer")


def test_nothing_of_the_last_picture_stays(address, tmp_path):
    """The pictures of "Inside" go with their X-ray, and a DICOM file's note with an example of any tab."""
    from test_dicom import dicom

    with browser(1440) as page:
        open_page(page, address)
        click(page, ".examples tbody tr")
        finding(page)
        open_tab(page, "Inside")
        until(lambda: len(css(page, "#tiles .tile")) == 10, "the pictures")
        remove(page)
        until(lambda: not css(page, "#tiles .tile"), "the pictures to go")
        for title in ("Segment", "Intervene", "Explain"):
            open_tab(page, title)
            scan = tmp_path / title  # scanners write no ending
            scan.write_bytes(dicom(WindowCenter=1000, WindowWidth=500))
            page.find_element("css selector", DICOM).send_keys(str(scan))
            until(lambda: scan.name in text_of(page, "dicom-note"), "the DICOM file's note")
            click(page, ".examples tbody tr", 0 if title == "Segment" else len(css(page, ".examples tbody tr")) - 1)
            until(lambda: not css(page, "#dicom-note"), f"the note to go with an example of {title}")


def test_a_file_that_browsers_cannot_show_is_shown_and_asked_as_it_is(address, tmp_path):
    """A picture of 12 bits in 16 is drawn as the model sees it, and once more after it was removed."""
    pixels = np.linspace(0, 4095, 96 * 80).astype(np.uint16).reshape(96, 80)
    for name in ("xray.tiff", "xray.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    with browser(1440) as page:
        open_page(page, address)
        for name in ("xray.tiff", "xray.png", "xray.png"):
            upload(page, tmp_path / name)
            until(lambda: name in text_of(page, "dicom-note") and "0 to 4095" in text_of(page, "dicom-note"), "the note")
            drawn = "const i = document.querySelector('#image img'); return i && i.complete && i.naturalWidth"
            until(lambda: page.execute_script(drawn) == 80, "the picture")
            assert "/image.png" in page.execute_script("return document.querySelector('#image img').src")
            press(page)
            assert "0 to 4095" in finding(page)
            remove(page)
            until(lambda: not css(page, "#finding") and not css(page, "#dicom-note"), "both to go")


def test_a_file_that_is_still_read_does_not_come_to_another_picture(tiny_model_dir, tmp_path):
    from test_dicom import dicom

    code = (
        "import sys, time, app; from causalclipseg.demo import events; read = events.upload\n"
        "def slow(file):\n"
        "    time.sleep(4)\n"
        "    return read(file)\n"
        "events.upload = slow; app.main(['--model', sys.argv[1], '--port', sys.argv[2]])"
    )
    port, log, scan = free_port(), tmp_path / "log", tmp_path / "scan.dcm"
    scan.write_bytes(dicom(WindowCenter=1000, WindowWidth=500))
    with open(log, "w") as out:
        server = subprocess.Popen([sys.executable, "-c", code, str(tiny_model_dir), str(port)], cwd=REPOSITORY, stdout=out, stderr=out,
                                  env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    try:
        until(lambda: server.poll() is not None or "is ready" in log.read_text(), "the demo to start")
        with browser(1440) as page:
            open_page(page, f"http://127.0.0.1:{port}")
            page.find_element("css selector", DICOM).send_keys(str(scan))
            until(lambda: css(page, "#image .wrap, #image .progress-text, #image .eta-bar"), "the reading to begin")
            time.sleep(1)
            choose_an_example(page)
            assert "all left lung and all right lung" in finding(page)
            time.sleep(6)
            assert not css(page, "#dicom-note")
            assert "both-lungs.png" in page.execute_script("return document.querySelector('#image img').src")
    finally:
        server.terminate()
        server.wait(60)


def test_an_explanation_shows_its_progress_and_can_be_cancelled(tmp_path):
    from causalclipseg import CausalCLIPSeg
    from conftest import make_tiny_config

    CausalCLIPSeg(make_tiny_config(image_size=448)).eval().save_pretrained(tmp_path / "slow")
    with running_app(tmp_path / "slow") as address, browser(1440) as page:
        open_page(page, address)
        css(page, "#threshold input[type=range]")[0].send_keys(HOME)  # the whole picture is mask, so there is something to explain
        upload(page, PICTURE)
        press(page)
        finding(page)
        open_tab(page, "Explain")
        click(page, "#explain")
        until(lambda: "asking the model" in text_of(page, "explanation-box"), "the progress")
        click(page, "#cancel:not([disabled])")
        until(lambda: "Cancelled" in text_of(page, "explanation"), "the end")
        assert not css(page, "#cancel:not([disabled])")
        press(page)
        assert "Area" in finding(page)
