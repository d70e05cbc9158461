"""The web demo: a chest X-ray and a sentence in; the mask, and what the model kept and took away, out.

    python app.py [--model DIR ...] [--data DIR] [--host HOST] [--port 7860]
    python app.py --space DIR                 # write the files of a Hugging Face Space, and end

The page itself is `causalclipseg.demo`. Gradio is imported when the page is built and torch when the model is
loaded, so that a wrong command is refused at once and the page is up before the model is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from causalclipseg.demo import tour
from causalclipseg.demo.engine import Engine, check_source

HERE = Path(__file__).resolve().parent
DEFAULT_MODEL = HERE / "assets" / "models" / "mini"
LARGEST_UPLOAD = "50mb"
STYLE = HERE / "assets" / "demo.css"
VISITORS = 200  #: whose last answer is kept in memory, a few MB each
UPLOADS, LOCK = "causalclipseg-", "server.lock"  #: how folders of uploads begin; the file in them that their server holds
ENDS = ("SIGTERM", "SIGHUP", "SIGBREAK")  #: a service is stopped, a terminal is closed, the same on Windows


def launch(page, examples: list[str], host: str, port: int | None, mcp: bool = False):
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
    if ":" in host and not host.startswith("["):  # IPv6; Gradio makes an address of it
        host = f"[{host}]"
    return page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, max_file_size=LARGEST_UPLOAD,
        allowed_paths=sorted(set(examples)), footer_links=["api"], run_history=False,
        enable_monitoring=False, mcp_server=mcp, ssr_mode=False, pwa=False, css_paths=STYLE, theme=theme,
        state_session_capacity=VISITORS,
    )  # fmt: skip


def port_number(text: str) -> int:
    """The value of --port, 1 to 65535; argparse says what is wrong with another one."""
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text}")
    return int(text)


def check_address(host: str, port: int) -> str | None:
    """One sentence on why nothing can listen at `host` and `port`, naming the option that is wrong; None where it can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listener:
            listener.bind((address[0], 0, *address[2:]))  # any port: is the host right?
    except (OSError, UnicodeError):
        return f"{host} is no address of this machine; choose another one with --host, for example 127.0.0.1."
    try:
        for family, address in ((family, address), (socket.AF_INET, ("127.0.0.1", port))):  # Gradio insists on the second
            with socket.socket(family) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
    except OSError as error:
        return f"Port {port} cannot be used ({error.strerror}); choose another one with --port."
    return None


def hold(folder: Path):
    """For a `with`: lock the folder of uploads for as long as this process lives, however it ends."""
    if fcntl is None:
        return contextlib.nullcontext()
    lock = open(folder / f"{LOCK}.new", "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(lock.name, folder / LOCK)  # only now, so that nobody finds it unlocked
    return lock


def remove_left(folder: Path) -> None:
    """Remove the folders beside this one whose servers could not do it themselves, since they were killed: nobody holds their locks."""
    for other in folder.parent.glob(f"{UPLOADS}*") if fcntl else ():
        with contextlib.suppress(OSError), open(other / LOCK, "r+") as lock:  # OSError: it is held, is another user's, or there is none
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the demo until it is interrupted; a wrong setting ends it with one sentence."""
    parser = argparse.ArgumentParser(description="The web demo of CausalCLIPSeg. Not for clinical use.")
    parser.add_argument("--model", action="append", help="a folder with a model, or a hub id; may be repeated; the first is chosen at the start, the shipped one comes last")
    parser.add_argument("--data", help="a folder with your data; some pictures of its test split become examples")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=7860, help="1 to 65535 (default: %(default)s)")
    parser.add_argument("--mcp", action="store_true", help="also serve the endpoints as MCP tools")
    parser.add_argument("--space", metavar="DIR", help="write the files of a Hugging Face Space with the shipped model into DIR, and end")
    given = parser.parse_args(arguments)
    if given.space and (given.model or given.data):
        sys.exit("--space writes the shipped model and examples alone; leave out --model and --data.")
    models = given.model or []
    if not any(Path(model).resolve() == DEFAULT_MODEL for model in models) and (DEFAULT_MODEL.is_dir() or not models):
        models.append(str(DEFAULT_MODEL))
    for wrong in filter(None, map(check_source, models)):
        sys.exit(wrong)
    if given.space:
        from causalclipseg.demo.space import write_space

        try:
            print(f"A Space's files are in {write_space(given.space)}. Upload them: hf upload NAME/SPACE {given.space} . --repo-type space")
        except (ValueError, OSError) as error:
            sys.exit(str(error))
        return
    if wrong := check_address(given.host, given.port):
        sys.exit(wrong)
    # Set before Gradio is imported, since it and huggingface_hub read them then.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.pop("GRADIO_SERVER_NAME", None)  # in `given` already; Gradio would try the port there as an IPv4 address
    if all(Path(model).is_dir() for model in models):
        os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix=UPLOADS, ignore_cleanup_errors=True) as uploads, hold(Path(uploads)):
        remove_left(Path(uploads))
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)  # so that what was uploaded is gone with the server

        def end(status: int) -> None:
            shutil.rmtree(uploads, ignore_errors=True)
            os._exit(status)  # sys.exit would wait for every visitor's connection

        for number in (getattr(signal, name) for name in ENDS if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored, so that the server stays
                signal.signal(number, lambda *_: end(0))
        try:
            _serve(Engine(models), given)
        except KeyboardInterrupt:  # before the model was ready; later, Gradio ends the page
            end(128 + signal.SIGINT)


def _serve(engine: Engine, given: argparse.Namespace) -> None:
    try:
        galleries = {"Examples, synthetic X-rays": tour.shipped_examples()}
        if given.data:
            galleries["Examples from your data, test split"] = tour.data_examples(given.data)
        from causalclipseg.demo.page import Page

        parts = Page(engine, galleries)
        page = parts.build()
        served = [row["image"] for rows in galleries.values() for row in rows]
        _, address, _ = launch(page, served, given.host, given.port, given.mcp)
        print(f"The page is at {address} ; the model is being loaded.", flush=True)
        engine.load()  # after the page is up; questions wait for it
    except (ValueError, OSError, ImportError) as error:  # an unknown folder, broken weights, a port in use, no mcp
        sys.exit(str(error))
    print("The model is ready. Press Ctrl+C to stop.", flush=True)
    threading.Thread(target=parts.warm, daemon=True).start()
    page.block_thread()


if __name__ == "__main__":
    main()
