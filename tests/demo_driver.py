"""Start the demo as a user does, and drive it in Debian's Chromium: shared by tests and the screenshot script."""
from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

try:
    from selenium.common.exceptions import StaleElementReferenceException as Redrawn
except ImportError:  # only the browser needs selenium

    class Redrawn(Exception):
        """Never raised without selenium."""

REPOSITORY = Path(__file__).resolve().parent.parent
CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars")
PATIENCE = 300  #: seconds until a step of the page counts as failed; generous, since nothing here measures time


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running_app(model, *more: str, root: Path = REPOSITORY):
    """`python app.py --model MODEL …` in a process of its own; yields its address once the model is loaded. root: where app.py lies."""
    port = free_port()
    # A cache of its own, so that uploads of a run are gone with it.
    with tempfile.TemporaryDirectory() as cache, open(Path(cache) / "log", "w+") as log:
        environment = {**os.environ, "GRADIO_TEMP_DIR": cache, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "app.py", "--model", str(model), "--port", str(port), *map(str, more)]
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or "The model is ready" in Path(log.name).read_text(), "the demo to start")
            if process.poll() is not None:
                raise RuntimeError(f"app.py ended: {Path(log.name).read_text()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


@contextlib.contextmanager
def loading_app(model, folder: Path):
    """The demo with its page up and its model not yet loaded, so that every question waits.

    Yields the process, its port, and a function that lets the model be loaded; what it prints goes to `folder`/log.
    """
    code = (
        "import signal, sys, time, pathlib, app; from causalclipseg.demo.engine import Engine; load = Engine.load\n"
        "def held(engine):\n"
        "    while not pathlib.Path(sys.argv[3]).exists(): time.sleep(0.1)\n"
        "    load(engine)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "Engine.load = held; app.main(['--model', sys.argv[1], '--port', sys.argv[2]])"
    )
    port, go, log = free_port(), folder / "go", folder / "log"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    with open(log, "w") as out:
        server = subprocess.Popen([sys.executable, "-c", code, str(model), str(port), str(go)], cwd=REPOSITORY, env=environment, stdout=out, stderr=out)
    try:
        until(lambda: server.poll() is not None or "The page is at" in log.read_text(), "the page to be served")
        yield server, port, go.touch
    finally:
        server.terminate()
        server.wait(PATIENCE)


@contextlib.contextmanager
def browser(width: int, height: int = 900):
    """A fresh headless Chromium whose page is `width` CSS pixels wide (selenium's WebDriver)."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (*QUIET, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
        try:
            driver.set_script_timeout(PATIENCE)
            # A window cannot be as narrow as a phone; the emulated screen can.
            resize(driver, width, height)
            yield driver
        finally:
            driver.quit()


def resize(driver, width: int, height: int) -> None:
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})


def until(condition, what: str):
    """Wait until `condition()` is true and return it; TimeoutError names what did not happen.

    An element that the page replaced while it was looked at counts as not there yet.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(Redrawn):
            if value := condition():
                return value
        time.sleep(0.1)
    raise TimeoutError(f"waited {PATIENCE} s for {what}")


def open_page(driver, address: str) -> None:
    urllib.request.urlopen(address).close()
    driver.get(address)
    until(lambda: css(driver, "#report textarea"), "the page")


def css(driver, selector: str):
    """The shown elements of a selector."""
    return [e for e in driver.find_elements("css selector", selector) if e.is_displayed()]


def pictures(driver, name: str) -> list[str]:
    """Addresses of the loaded pictures of a component, which is scrolled to first: browsers load what is far below late.

    Gradio fades pictures in, and headless Chromium draws no frames while nobody looks, so that a picture may stay
    transparent; what counts is that it has come.
    """
    driver.execute_script("document.querySelector(arguments[0])?.scrollIntoView({behavior: 'instant'})", f"#{name}")
    script = "return [...document.querySelectorAll(arguments[0])].filter(i => i.complete && i.naturalWidth).map(i => i.src)"
    return driver.execute_script(script, f"#{name} img")


REMOVE = "#image button[aria-label*=emove], #image button[aria-label=Clear]"


def upload(driver, picture: Path) -> None:
    driver.find_element("css selector", "#image input[type=file]").send_keys(str(picture))
    until(lambda: css(driver, REMOVE), "the upload")  # the button stands there also for what is no picture


def remove(driver) -> None:
    click(driver, REMOVE)


def write(driver, sentence: str) -> None:
    box = until(lambda: css(driver, "#report textarea"), "the sentence's box")[0]
    box.clear()
    box.send_keys(sentence)


def click(driver, selector: str, number: int = 0) -> None:
    """Click the shown element of that number, once the page has drawn it."""
    element = until(lambda: css(driver, selector)[number:], selector)[0]
    driver.execute_script("arguments[0].click()", element)


def press(driver) -> None:
    click(driver, "#segment")


def finding(driver) -> str:
    """The written finding, once it is there."""
    return until(lambda: " ".join(e.text for e in css(driver, "#finding")), "the finding")


def open_tab(driver, title: str) -> None:
    """Choose a tab by its title; on a narrow screen some hide in a menu."""
    find = "[...document.querySelectorAll('#tabs button[role=tab], #tabs .overflow-dropdown button')].filter(b => b.textContent.trim() === arguments[0])"
    script = f"const found = {find}; if (!found.length) return false; found[found.length - 1].click(); return true"
    until(lambda: driver.execute_script(script, title), f"the tab {title}")


def text_of(driver, name: str) -> str:
    """The shown text of a part of the page, empty while it isn't there."""
    return " ".join(e.text for e in css(driver, f"#{name}"))


def save_whole_page(driver, path: Path, width: int) -> None:
    """A screenshot from the top of the page to its end."""
    for _ in range(2):  # a higher screen lets the page show more, and grow once
        height = driver.execute_script("return Math.ceil(document.documentElement.getBoundingClientRect().height)")
        resize(driver, width, max(height, 400))
        until(lambda: driver.execute_script("return [...document.images].every(i => i.complete)"), "the pictures")
        time.sleep(2)  # Chromium paints at the new size, and Gradio's last fade ends
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))
