"""The demo in a real Chromium: upload, type, press, read the finding, on a phone's and on a desktop's width."""
from __future__ import annotations

import time

import pytest
from causalclipseg.demo.views import HAS_ALT_TEXT
from demo_driver import CHROMEDRIVER, CHROMIUM, REPOSITORY, browser, click, css, finding, open_page, open_tab, pictures, press, remove, running_app, text_of, until, upload, write

pytest.importorskip("selenium", reason="selenium is not installed (pip install selenium)")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="Chromium is missing (apt-get install chromium chromium-driver)")
PICTURE = REPOSITORY / "assets" / "examples" / "both-lungs.png"


@pytest.fixture(scope="module")
def address(tiny_model_dir, phantom_folder):
    with running_app(tiny_model_dir, "--data", phantom_folder) as address:
        yield address


ACCESSIBILITY = (REPOSITORY / "tests" / "accessibility.js").read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_legible_reachable_and_has_words(address, theme):
    with browser(1440) as page:
        open_page(page, f"{address}/?__theme={theme}")
        click(page, "tbody tr")
        finding(page)
        for title in ("Segment", "Look inside", "Intervene", "Explain", "About the model"):
            open_tab(page, title)
            if title == "Look inside":
                until(lambda: pictures(page, "inside-0"), "the first picture")
            if title == "Intervene":
                click(page, "#intervene")
                until(lambda: pictures(page, "slider"), "before and after")
            time.sleep(2)  # colours and pictures fade in
            faults = {kind: found for kind, found in page.execute_script(ACCESSIBILITY).items() if found}
            if not HAS_ALT_TEXT:  # older Gradio, e.g. 6.24: the words stand beside the pictures
                faults = {kind: found for kind, found in faults.items() if kind not in ("silent", "nameless")}
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

        # Look inside: ten pictures, each with its words; a switch hides three.
        open_tab(page, "Look inside")
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

        # Explain: either faithfulness or the reason why there is nothing to explain.
        open_tab(page, "Explain")
        click(page, "#explain")
        said = until(lambda: text_of(page, "explanation"), "the explanation")
        assert "Faithfulness" in said or "nothing to attribute" in said
        open_tab(page, "About the model")
        assert "model card" in until(lambda: text_of(page, "card"), "the card")
        open_tab(page, "Segment")

        # Opacity, by keyboard: another picture, the same finding.
        slider = page.find_element("css selector", "#opacity input[type=range]")
        slider.send_keys("\ue014" * 3)  # arrow to the right
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
