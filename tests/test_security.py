"""What a stranger could try with the demo: files and addresses of the machine, other interfaces, what is left behind."""
from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from demo_driver import REPOSITORY, free_port, until
from PIL import Image

META = {"_type": "gradio.FileData"}
SENTENCE = "Infection of the left lung."


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory):
    """A picture that another server of this machine offers, and who asked for it."""
    file = tmp_path_factory.mktemp("neighbour") / "secret.png"
    Image.new("L", (96, 96), 90).save(file)
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(file.read_bytes())

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret.png", file, asked
    server.shutdown()


def answer_to(address: str, *arguments) -> tuple[str, object]:
    """What /segment answers to a program that writes its requests itself: the kind of answer, and its content."""
    request = urllib.request.Request(f"{address}/gradio_api/call/segment", json.dumps({"data": arguments}).encode(), {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request))["event_id"]
    kind, _, content = urllib.request.urlopen(f"{address}/gradio_api/call/segment/{event}").read().decode().partition("\ndata: ")
    return kind.removeprefix("event: "), json.loads(content)


def upload(address: str, content: bytes, name: str) -> dict:
    border = "border"
    body = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content + f"\r\n--{border}--\r\n".encode()
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={border}"})
    return {"path": json.load(urllib.request.urlopen(request))[0], "meta": META}


def test_what_is_no_upload_is_one_sentence_and_the_next_question_is_answered(address, neighbour):
    url, file, asked = neighbour
    wrong = {
        "Addresses are not fetched": [{"path": url, "meta": META}, {"path": url.upper(), "meta": META}, {"path": f"file://{file}", "meta": META}],
        "must be an uploaded file": [{"path": str(file), "meta": META}, {"path": str(file), "url": url, "meta": META}, {"path": "", "meta": META},
                                     {"path": "../secret.png", "meta": META}, str(file), url, 7, ["x"], {"path": "data:image/png;base64,AAAA", "meta": META}],
        "no picture yet": [None, {"path": None, "url": url, "meta": META}],
    }  # fmt: skip
    for says, pictures in wrong.items():
        for picture in pictures:
            kind, content = answer_to(address, picture, SENTENCE, 0.5)
            assert kind == "error" and says in content["error"] and "Traceback" not in content["error"], (picture, content)
    assert not asked
    kind, content = answer_to(address, upload(address, file.read_bytes(), "mine.png"), SENTENCE, "much")
    assert kind == "error" and content["error"]
    kind, content = answer_to(address, upload(address, file.read_bytes(), "mine.png"), SENTENCE, 0.5)
    assert kind == "complete" and content[1]["finding"]


def test_the_name_of_an_upload_cannot_leave_its_folder(address, neighbour):
    kept = upload(address, neighbour[1].read_bytes(), "../../../../escaped.png")["path"]
    assert Path(kept).name == "escaped.png" and ".." not in kept
    assert not [folder for folder in list(Path(kept).parents)[1:] if (folder / "escaped.png").exists()]


def test_an_upload_of_200_mb_is_refused_while_it_comes(address):
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)) as caught:
        upload(address, bytes(200 * 2**20), "large.png")
    if isinstance(caught.value, urllib.error.HTTPError):
        assert caught.value.code == 413 and b"exceeded maximum allowed size" in caught.value.read()


def test_no_page_of_the_server_hands_out_a_file_or_fetches_an_address(address, neighbour, tiny_model_dir):
    url, file, asked = neighbour
    there = f"{urllib.parse.quote(str(file))}"
    up = "/.." * 12
    paths = [
        f"/gradio_api/file={there}", f"/file={there}", f"/gradio_api/file{there}", f"/gradio_api/file={up[1:]}{there}", f"/static{up}{there}",
        f"/assets{up}{there}", f"/svelte{up}{there}", f"/static{up.replace('.', '%2e')}{there}", f"/static{up.replace('/', '%2f')}{there}",
        f"/gradio_api/custom_component/1/client/component{up}{there}", f"/pwa_icon{up}{there}", f"/{there}", f"/gradio_api/proxy={url}",
        f"/gradio_api/file={url}", f"/gradio_api/file={tiny_model_dir}/config.json", f"/gradio_api/file={REPOSITORY}/app.py",
        "/gradio_api/file=/proc/self/environ", "/gradio_api/vibe-code", "/monitoring", "/gradio_api/run-history/records", "/gradio_api/profiling/traces",
    ]  # fmt: skip
    for path in paths:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.request("GET", path)  # as it is written: urllib would tidy the dots away
        response = connection.getresponse()
        content = response.read()
        assert response.status >= 400 or (response.status == 302 and url in path), (path, response.status, content[:200])
        assert not content.startswith(b"\x89PNG") and b"vision_layers" not in content and b"import argparse" not in content, path
        connection.close()
    assert not asked


AUDIT = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0] if event == "socket.getaddrinfo" else "local"
        print("reaches", host, file=sys.stderr, flush=True)
sys.addaudithook(watch)
import app
app.main(sys.argv[1:])
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_leaves_the_machine_and_nothing_is_left_on_it(tiny_model_dir, tmp_path, end):
    """With a link asked for by the environment, on the host that it names: start, answer, end (stopped, or its terminal closed); every connection is written down."""
    port, temporary, log = free_port(), tmp_path / "tmp", tmp_path / "log"
    temporary.mkdir()
    changes = {"TMPDIR": str(temporary), "GRADIO_SERVER_NAME": "127.0.0.2", "GRADIO_SHARE": "True", "PYTHONUNBUFFERED": "1", "GRADIO_ANALYTICS_ENABLED": "True"}
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"} | changes
    with open(log, "w") as written:
        server = subprocess.Popen([sys.executable, "-c", AUDIT, "--model", str(tiny_model_dir), "--port", str(port)], cwd=REPOSITORY,
                                  env=environment, stdout=written, stderr=written)  # fmt: skip
    try:
        until(lambda: server.poll() is not None or "is ready" in log.read_text(), "the demo to start")
        picture = tmp_path / "mine.png"
        Image.new("L", (96, 96), 90).save(picture)
        place = f"http://127.0.0.2:{port}"
        assert answer_to(place, upload(place, picture.read_bytes(), "mine.png"), SENTENCE, 0.5)[0] == "complete"
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
        assert list(temporary.rglob("mine.png"))
    finally:
        server.send_signal(end)
        server.wait(30)
    assert not list(temporary.rglob("*.png")) and not list(temporary.glob("causalclipseg-*"))
    reached = {line.split()[1] for line in log.read_text().splitlines() if line.startswith("reaches")}
    assert reached <= {"127.0.0.2", "127.0.0.1", "localhost", "local", "None"}, reached


def test_what_nohup_ignores_stays_ignored(monkeypatch, tmp_path):
    sys.path.insert(0, str(REPOSITORY))
    import app

    installed = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(app.signal, "getsignal", lambda number: signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    monkeypatch.setattr(app.signal, "signal", lambda number, _: installed.append(number))
    monkeypatch.setattr(app, "_serve", lambda *_: None)
    app.main(["--port", str(free_port())])
    assert installed == [signal.SIGTERM]


def test_uploads_of_servers_that_were_killed_are_removed_and_no_others(tmp_path):
    sys.path.insert(0, str(REPOSITORY))
    import app

    mine, left, running, foreign = (tmp_path / f"{app.UPLOADS}{name}" for name in ("mine", "left", "running", "foreign"))
    for folder in (mine, left, running, foreign):
        folder.mkdir()
        (folder / "xray.png").write_bytes(b"a picture")
    with app.hold(left):
        pass  # its process ended, the folder stayed
    with app.hold(mine), app.hold(running):
        app.remove_left(mine)
        assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(folder.name for folder in (mine, running, foreign))
    assert (running / "xray.png").is_file()


def test_weights_are_read_from_safetensors_alone(tmp_path):
    from causalclipseg.demo.engine import check_source

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "holds no model.safetensors" in check_source(str(tmp_path))
