"""Make the README's picture of the demo, and with --all one of every state at phone and desktop width.

    python tests/benchmarks/screenshots.py [--model assets/models/mini] [--out assets/figures/demo.png] [--all DIR]

It starts the demo, clicks its first example in Debian's Chromium, and saves what is seen. Only shipped examples
(synthetic X-rays) appear. Needs the packages chromium and chromium-driver, and selenium from PyPI.
"""
from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import demo_driver as demo  # noqa: E402
from PIL import Image  # noqa: E402

README_WIDTH, README_HEIGHT = 1280, 1300
TABS = (("Inside", "", 0), ("Intervene", "verdict", 0), ("Explain", "explanation", 2), ("About", "", 0))


def choose(driver, row: int) -> str:
    """Click an example; the finding once it has come."""
    before = " ".join(e.text for e in demo.css(driver, "#finding"))
    rows = demo.until(lambda: demo.css(driver, "tbody tr"), "the examples")
    driver.execute_script("arguments[0].click()", rows[row])
    demo.until(lambda: " ".join(e.text for e in demo.css(driver, "#finding")) not in ("", before), "the example's finding")
    time.sleep(3)  # the pictures fade in
    return demo.finding(driver)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=demo.REPOSITORY / "assets" / "models" / "mini")
    parser.add_argument("--out", type=Path, default=demo.REPOSITORY / "assets" / "figures" / "demo.png")
    parser.add_argument("--all", type=Path, metavar="DIR", help="also save every state at 390 and 1440 pixels here")
    arguments = parser.parse_args()
    if not (demo.CHROMIUM and demo.CHROMEDRIVER):
        sys.exit("Chromium is missing; on Debian: apt-get install chromium chromium-driver")
    with demo.running_app(arguments.model) as address:
        with demo.browser(README_WIDTH, README_HEIGHT) as driver:
            demo.open_page(driver, address)
            choose(driver, 0)
            driver.execute_script("window.scrollTo(0, 0)")
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            last = demo.css(driver, "#finding .good, #finding .note")[0]  # below it are figures
            height = driver.execute_script("return arguments[0].getBoundingClientRect().bottom", last) + 12
            with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as seen:
                seen.crop((0, 0, seen.width, round(height * seen.width / README_WIDTH))).save(arguments.out)
        for width in (390, 1440) if arguments.all else ():
            with demo.browser(width) as driver:
                demo.open_page(driver, address)
                demo.save_whole_page(driver, arguments.all / f"{width}-start.png", width)
                for row, name in ((1, "left-named"), (4, "healthy-half-named"), (0, "both")):
                    choose(driver, row)
                    demo.save_whole_page(driver, arguments.all / f"{width}-{name}.png", width)
                for title, part, example in TABS:
                    demo.open_tab(driver, title)
                    if part:
                        table = demo.until(lambda: [e for e in demo.css(driver, ".examples") if e.is_displayed()][-1:], "the tab's examples")[0]
                        driver.execute_script("arguments[0].click()", table.find_elements("css selector", "tbody tr")[example])
                        demo.until(lambda: demo.text_of(driver, part), f"the answer of {title}")
                    time.sleep(4)
                    demo.save_whole_page(driver, arguments.all / f"{width}-{title.lower().replace(' ', '-')}.png", width)


if __name__ == "__main__":
    main()
