"""The demo of app.py, driven through gradio_client as a program would drive it."""
from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path

import gradio
import gradio_client
import numpy as np
import pytest
import torch
from causalclipseg import plots
from causalclipseg.demo import engine, pictures, tour, views, words
from demo_driver import REPOSITORY, free_port, loading_app, running_app, until
from PIL import Image

SENTENCE = "Unilateral pulmonary infection, one infected area, lower left lung."


@pytest.fixture
def client(address):
    return gradio_client.Client(address, verbose=False)


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    from causalclipseg import CausalCLIPSeg

    return CausalCLIPSeg.from_pretrained(tiny_model_dir)


def picture(path: Path, seed=0, height=96, width=80, dtype=np.uint8) -> Path:
    high = np.iinfo(dtype).max
    pixels = np.random.default_rng(seed).integers(0, high, (height, width), dtype=dtype, endpoint=True)
    Image.fromarray(pixels).save(path)
    return path


def ask(client, path, sentence=SENTENCE, threshold=0.5):
    mask, result = client.predict(gradio_client.handle_file(path), sentence, threshold, api_name="/segment")
    return Image.open(mask), result


def refusal(client, *arguments) -> str:
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        ask(client, *arguments)
    return str(caught.value)


def threshold_between(probability) -> float:
    """A threshold that a model of random weights passes at some pixels and not at others."""
    return round(float(np.clip(np.median(probability), 0.01, 0.99)), 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_is_the_packages_own_pixel_by_pixel(client, model, tmp_path, dtype):
    from causalclipseg import segment

    path = picture(tmp_path / "xray.png", dtype=dtype)
    threshold = threshold_between(segment(model, path, SENTENCE).probability)
    mask, result = ask(client, path, SENTENCE, threshold)
    own = segment(model, path, SENTENCE, threshold=threshold)
    assert mask.format == "PNG" and mask.size == (80, 96)
    values = np.asarray(mask)
    assert values.ndim == 2 and set(np.unique(values)) <= {0, 255}
    assert np.array_equal(values == 255, own.mask)
    # A value that is not the picture's own 16 bits would also change what was read.
    assert result == json.loads(json.dumps({**own.to_dict(), "model": "tiny"}))


def test_interface_is_typed_and_documented(client):
    described = client.view_api(return_format="dict")
    assert list(described["named_endpoints"]) == ["/segment", "/intervene", "/explain"] and not described["unnamed_endpoints"]
    names = {name: [p["parameter_name"] for p in e["parameters"]] for name, e in described["named_endpoints"].items()}
    assert names["/intervene"] == ["image", "report", "edit", "strength"] and names["/explain"] == ["image", "report", "method"]
    assert all(e["description"] for e in described["named_endpoints"].values())
    endpoint = described["named_endpoints"]["/segment"]
    assert [(p["parameter_name"], p["component"]) for p in endpoint["parameters"]] == [
        ("image", "Image"), ("report", "Textbox"), ("threshold", "Slider")]  # fmt: skip
    assert endpoint["parameters"][2]["parameter_default"] == 0.5
    assert [r["component"] for r in endpoint["returns"]] == ["Image", "Json"]
    assert all("Not for clinical use" in e["description"] for e in described["named_endpoints"].values())
    typed = {p["parameter_name"]: p["type"]["type"] for e in described["named_endpoints"].values() for p in e["parameters"]}
    assert typed["threshold"] == typed["strength"] == "number" and typed["report"] == "string"
    assert set(json.loads(json.dumps(described["named_endpoints"]["/explain"]["parameters"][2]["type"]["enum"]))) == set(views.METHODS)


def test_intervene_is_the_packages_own(client, model, tmp_path):
    from causalclipseg.intervention import intervene

    path = picture(tmp_path / "xray.png")
    before, after, result = client.predict(gradio_client.handle_file(path), SENTENCE, "noise", 1.0, api_name="/intervene")
    own = intervene(model, path, SENTENCE, "noise", 1.0)
    assert result["dice"] == pytest.approx(own.dice) and result["verdict"] == own.verdict
    assert Image.open(before).size == Image.open(after).size == (80, 96)
    assert np.array_equal(np.asarray(Image.open(after)), np.asarray(plots.overlay(own.after.image, own.after.mask)))


@pytest.mark.parametrize("method", ["occlusion", "gradcam", "integrated_gradients", "words"])
def test_explain_answers_or_says_why_not(client, tmp_path, method):
    drawn, result = client.predict(gradio_client.handle_file(picture(tmp_path / "xray.png")), SENTENCE, method, api_name="/explain")
    assert Image.open(drawn).size[0] >= 500 and result["method"] == method
    assert result["faithfulness"] is not None or any("nothing to attribute" in w for w in result["warnings"])


@pytest.mark.parametrize("arguments, api", [((SENTENCE, "magic", 0.5), "/intervene"), ((SENTENCE, "blur", 7), "/intervene"), ((SENTENCE, "magic"), "/explain")])
def test_unknown_edits_methods_and_strengths_are_refused(client, tmp_path, arguments, api):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(gradio_client.handle_file(picture(tmp_path / "xray.png")), *arguments, api_name=api)
    assert "Traceback" not in str(caught.value)


def test_dicom_is_read_with_its_window(client, model, tmp_path):
    from causalclipseg import segment
    from test_dicom import dicom

    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(WindowCenter=1000, WindowWidth=500))
    threshold = threshold_between(segment(model, path, SENTENCE).probability)
    mask, result = ask(client, path, SENTENCE, threshold)
    assert np.array_equal(np.asarray(mask) == 255, segment(model, path, SENTENCE, threshold=threshold).mask)
    assert any("centre 1000" in w for w in result["warnings"])


def test_what_is_too_large_or_bloated_is_refused(client, address, tmp_path):
    """PNGs that would unfold to 30,000 x 30,000 and 8,900 x 8,900 pixels, of which no more than the header may be read, and 200 MB of nothing."""
    bomb = tmp_path / "bomb.png"
    for side, says in ((30_000, "bomb.png has more than 16,777,216 pixels; make it smaller"), (8_900, "bomb.png has 8900×8900 pixels; at most 16,777,216 are read, make it smaller")):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10_000_000)), (b"IEND", b"")]
        bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts))
        assert says in refusal(client, bomb)
    large = tmp_path / "large.png"
    with open(large, "wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(ValueError, match="exceeds the maximum file size of 52428800 bytes"):  # by the client, from the page's own limit
        ask(client, large)
    assert ask(client, picture(tmp_path / "good.png"))[0].size == (80, 96)


@pytest.mark.parametrize("too_much", [lambda: np.empty(10**15), lambda: torch.empty(10**15)])
def test_too_little_memory_is_one_sentence(too_much):
    with pytest.raises(gradio.Error, match="more memory than there is; make the picture smaller"):
        views.asked(too_much)()
    with pytest.raises(ZeroDivisionError):
        views.asked(lambda: 1 // 0)()


@pytest.mark.parametrize("name, tags, says", [("empty.dcm", {"PixelData": None}, "holds no picture"), ("film.dcm", {"NumberOfFrames": 4}, "4 frames")])
def test_dicom_without_a_picture_is_one_sentence(client, tmp_path, name, tags, says):
    from test_dicom import dicom

    path = tmp_path / name
    path.write_bytes(dicom(**tags))
    message = refusal(client, path)
    assert says in message and name in message and "/tmp" not in message


@pytest.mark.parametrize("name, content, says", [
    ("notes.png", b"this is no picture", "notes.png is not a picture"),
    ("empty.png", b"", "empty"),
    ("dot.png", "1x1", "1×1"),
    ("cut.jpg", "truncated", "cut.jpg is damaged"),
])  # fmt: skip
def test_bad_picture_is_one_sentence_and_the_next_question_is_answered(client, tmp_path, name, content, says):
    path = tmp_path / name
    if content == "1x1":
        picture(path, height=1, width=1)
    elif content == "truncated":
        picture(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content)
    message = refusal(client, path)
    assert says in message and "Traceback" not in message and "\n" not in message.strip()
    assert "/tmp" not in message  # where the server keeps uploads is nobody's business
    assert ask(client, picture(tmp_path / "good.png"))[0].size == (80, 96)


@pytest.mark.parametrize("name, mode, size", [("palette.png", "P", (80, 96)), ("alpha.png", "RGBA", (80, 96)), ("bit.png", "1", (80, 96)),
                                              ("float.tiff", "F", (80, 96)), ("large.png", "I;16", (4096, 4096))])  # fmt: skip
def test_every_encoding_gets_a_mask_of_its_size(client, tmp_path, name, mode, size):
    pixels = np.random.default_rng(0).integers(0, 2**16, size[::-1], dtype=np.uint16)
    drawn = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray((pixels >> 8).astype(np.uint8)).convert(mode)
    drawn.save(tmp_path / name)
    mask, result = ask(client, tmp_path / name)
    assert mask.size == size and set(np.unique(np.asarray(mask))) <= {0, 255} and 0 <= result["area_fraction"] <= 1


def test_uploads_are_deleted_and_examples_stay(tiny_model_dir, tmp_path):
    """With seconds for an hour: what a visitor sent, and the answer, are gone from the server's disk, but not the picture of an example that they had, too."""
    code = (
        "import sys, app; from causalclipseg.demo import page; page.KEPT, page.LOOKED = 15, 1;"
        "app.main(['--model', sys.argv[1], '--port', sys.argv[2]])"
    )
    port, cache = free_port(), tmp_path / "cache"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-c", code, str(tiny_model_dir), str(port)], cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: "is ready" in (tmp_path / "log").read_text(), "the demo to start")
        sent, earlier, example = picture(tmp_path / "mine.png"), set(cache.rglob("*")), tour.picture("both-lungs.png")
        address = f"http://127.0.0.1:{port}"
        shown = [s[0]["path"] for c in json.load(urllib.request.urlopen(f"{address}/config"))["components"] for s in c["props"].get("samples", ())]
        assert len(shown) > 6 and all(Path(path).is_file() for path in shown)
        client = gradio_client.Client(address, verbose=False)
        ask(client, example)
        assert ask(client, sent)[0].size == (80, 96)
        kept = [file for file in cache.rglob("*.png") if file not in earlier]
        assert len(kept) >= 2 and any(file.read_bytes() == sent.read_bytes() for file in kept), "the upload and its answer"
        until(lambda: not any(file.exists() for file in kept), "both to be deleted")
        for path in shown:
            assert urllib.request.urlopen(f"{address}/gradio_api/file={path}").read().startswith(b"\x89PNG"), path
    finally:
        server.terminate()
        server.wait(30)


def test_an_explanation_can_be_cancelled(model, tmp_path):
    asked = engine.Engine(["here"])
    asked.models["here"], path = model, picture(tmp_path / "xray.png")
    asked.ready.set()
    shares = []

    def progress(share):
        shares.append(share)
        asked.stop("me")

    threshold = threshold_between(asked.segment(str(path), SENTENCE, 0.5).probability)
    with pytest.raises(engine.Cancelled):
        asked.explain(str(path), SENTENCE, "occlusion", threshold, visitor="me", progress=progress)
    assert shares == [0.0] and not asked.running
    assert asked.explain(str(path), SENTENCE, "occlusion", threshold, visitor="you").method == "occlusion"


def test_an_explanation_that_waits_for_another_can_be_cancelled(model, tmp_path):
    asked = engine.Engine(["here"])
    asked.models["here"], path = model, picture(tmp_path / "xray.png")
    asked.ready.set()
    asked.stop("nobody")  # who asked nothing can stop nothing
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with asked.explaining:
            waiting = pool.submit(asked.explain, str(path), SENTENCE, "gradcam", visitor="me")
            until(lambda: "me" in asked.running, "the question to come")
            asked.stop("me")
        with pytest.raises(engine.Cancelled):
            waiting.result()


def test_models_answer_by_their_names_and_a_path_is_none(model, tmp_path):
    """Two models of one process: each gives its own mask; the visitor can choose among their names, and nothing else."""
    from conftest import lively, make_tiny_config

    from causalclipseg import CausalCLIPSeg, segment

    other = lively(CausalCLIPSeg(make_tiny_config()), 5).eval()
    other.save_pretrained(tmp_path / "other")
    model.save_pretrained(tmp_path / "mine")
    asked, path = engine.Engine([str(tmp_path / "mine"), str(tmp_path / "other")]), picture(tmp_path / "xray.png")
    assert asked.names == ["mine", "other"]
    asked.load()
    for name, own in (("mine", model), ("other", other), (None, model)):
        found = asked.segment(str(path), SENTENCE, 0.5, name)
        assert np.array_equal(found.probability, segment(own, path, SENTENCE).probability) and found.model == (name or "mine")
    with pytest.raises(ValueError, match="no such model"):
        asked.segment(str(path), SENTENCE, 0.5, str(tmp_path / "other"))


def test_more_exact_is_the_packages_mean_of_six_views(model, tiny_model_dir, tmp_path):
    from causalclipseg import segment

    asked = engine.Engine([str(tiny_model_dir)])
    asked.load()
    path = picture(tmp_path / "xray.png")
    result = asked.segment(str(path), SENTENCE, 0.5, None, True)
    assert np.array_equal(result.probability, segment(model, path, SENTENCE, average_views=True).probability)
    plain, bare = asked.one_view(result), asked.without_sentence(result)
    own = segment(model, path, SENTENCE, confounder=True)
    assert np.array_equal(plain.probability, own.probability) and np.array_equal(plain.confounder_probability, own.confounder_probability)
    assert np.array_equal(bare.probability, segment(model, path, "").probability)
    kept = views.answer(result, 0.5, bare, plain)[2]
    assert [np.array_equal(t["values"], w["values"]) for t, w in zip(kept["tiles"], pictures.inside(own, bare), strict=True)] == [True] * 10
    assert any("The mask is that of the mean over all views, not of this map." in tile["meaning"] for tile in kept["tiles"])
    assert result.model.endswith("mean of six views") and "six views" in words.finding_html(result)


def test_explanations_and_answers_at_once_do_not_mix(model, tmp_path):
    """Captum's hooks lie on a model of their own: two explanations and many masks at once are what they are alone."""
    asked = engine.Engine(["here"])
    asked.models["here"] = model
    asked.ready.set()
    paths = [str(picture(tmp_path / f"{k}.png", k)) for k in range(2)]
    threshold = threshold_between(asked.segment(paths[0], SENTENCE, 0.5).probability)

    def why(path):
        return asked.explain(path, SENTENCE, "gradcam", threshold).attribution

    alone = [why(path) for path in paths]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = [pool.submit(why, path) for path in paths * 3]
        masks = [pool.submit(asked.segment, paths[0], SENTENCE, threshold) for _ in range(30)]
        for k, found in enumerate(together):
            np.testing.assert_allclose(found.result(), alone[k % 2], atol=1e-6)
        assert all(np.array_equal(m.result().mask, masks[0].result().mask) for m in masks)


@pytest.mark.parametrize("sentence", ["", "infection " * 500, "🫁 lung 😷", "<script>alert(1)</script><b>left</b>", "Infección del pulmón"])
def test_odd_sentences_get_a_mask_and_warnings(client, tmp_path, sentence):
    mask, result = ask(client, picture(tmp_path / "xray.png"), sentence)
    assert mask.size == (80, 96) and result["warnings"] and result["report"].strip() == sentence.strip()


@pytest.mark.parametrize("threshold", [0, 1, -3])
def test_impossible_threshold_is_refused(client, tmp_path, threshold):
    assert "Traceback" not in refusal(client, picture(tmp_path / "xray.png"), SENTENCE, threshold)


def test_every_client_gets_its_own_mask(address, model, tmp_path):
    from causalclipseg import segment

    sizes = [(64 + 8 * k, 72 + 4 * k) for k in range(6)]
    paths = [picture(tmp_path / f"{k}.png", k, *size) for k, size in enumerate(sizes)]
    threshold = threshold_between(segment(model, paths[0], SENTENCE).probability)

    def own_mask(path):
        client = gradio_client.Client(address, verbose=False)
        return all(np.array_equal(np.asarray(ask(client, path, SENTENCE, threshold)[0]) == 255,
                                  segment(model, path, SENTENCE, threshold=threshold).mask) for _ in range(2))  # fmt: skip

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert all(pool.map(own_mask, paths))


def test_it_listens_to_this_machine_alone(address):
    """The port's listening socket is bound to 127.0.0.1 (0100007F in the kernel's table)."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs Linux's /proc/net/tcp")
    port = f"{int(address.rsplit(':', 1)[1]):04X}"
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    everywhere = Path("/proc/net/tcp6").read_text().splitlines()[1:]
    assert [r[1] for r in rows if r[3] == "0A" and r[1].endswith(":" + port)] == ["0100007F:" + port]
    assert not [line for line in everywhere if line.split()[3] == "0A" and line.split()[1].endswith(":" + port)]


def test_page_says_what_it_is(address):
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    text = json.dumps(config)
    assert "Not for clinical use" in text and "Model <strong>tiny" in text
    assert not config["analytics_enabled"] and not config.get("run_history")


@pytest.mark.parametrize("arguments, says", [
    (["--model", "nowhere"], "nowhere is not a folder with a model, nor a hub id such as org/name."),
    (["--model", "tests"], "tests is no model: it holds no config.json."),
])  # fmt: skip
def test_missing_model_is_refused_in_one_sentence(arguments, says):
    ended = subprocess.run([sys.executable, "app.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.strip() == says and not ended.stdout


def test_importing_app_loads_neither_gradio_nor_torch():
    code = "import sys, app; sys.exit(' '.join({'gradio', 'torch'} & set(sys.modules)) or 0)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


# ---------------------------------------------------------------- words, without a server


def result_of(mask, report=SENTENCE, warnings=()):
    from causalclipseg.inference import Result

    image, probability = np.full(mask.shape, 90, np.uint8), np.where(mask, 0.9, 0.2).astype(np.float32)
    return Result(image, mask, probability, (), None, report, 0.5, list(warnings), "tiny")


def test_finding_says_what_the_picture_shows():
    mask = np.zeros((100, 100), bool)
    mask[60:80, 10:30] = True
    text = words.finding_html(result_of(mask))
    for said in ("4.0% of the picture, in 1 separate area", "<td>4.0% ◆</td><td>–</td>", "0.90 on average", "agree", f"Your sentence: {SENTENCE}"):
        assert said in text
    assert "⚠" not in text


@pytest.mark.parametrize("report, why", [
    ("Left lung not infected.", "not every word of the sentence was read"), ("Left lung without infection.", "not every word of the sentence was read"),
    ("Unilateral pulmonary infection, left lung and right lung.", "the sentence contradicts itself"),
])  # fmt: skip
def test_a_sentence_that_was_not_understood_does_not_agree(report, why):
    mask = np.zeros((100, 100), bool)
    mask[10:90, 10:30] = mask[10:90, 70:90] = True
    mask[:, 50:] &= "right" in report
    text = words.finding_html(result_of(mask, report))
    assert f"could not be compared:</strong> {why}." in text and "agree." not in text
    text = words.finding_html(result_of(np.zeros((100, 100), bool), report))
    assert "disagree" in text and f"But {why}, so this may not be what it means." in text


def test_an_intervention_shows_the_warnings_of_both_answers():
    from causalclipseg.intervention import Intervention

    mask = np.ones((64, 64), bool)
    before, after = result_of(mask, warnings=["The picture is <odd>."]), result_of(mask, "", warnings=["The picture is <odd>.", "No sentence."])
    text = words.intervention_html(Intervention(before, after, "no sentence", 1.0, ~mask))
    assert "Please note" in text and text.count("The picture is &lt;odd&gt;.") == 1 and "<li>After the edit: No sentence.</li>" in text
    assert "Please note" not in words.intervention_html(Intervention(result_of(mask), result_of(mask), "generic", 1.0, ~mask))


def test_intervention_and_explanation_say_what_they_were_asked_and_no_more():
    from causalclipseg.explain import Explanation, Faithfulness
    from causalclipseg.intervention import Intervention

    result = result_of(np.ones((64, 64), bool))
    assert "Model tiny, threshold 0.50." in words.intervention_html(Intervention(result, result, "generic", 1.0, ~result.mask))
    for deletion, says in ((0.2, "On this picture it does better than the mean of 8 random orders"), (0.9, "no better than the mean of 8 random orders")):
        measures = Faithfulness(deletion, 0.8, 0.5, 0.5, 0.3, 0.2, (), ())
        text = words.explanation_html(Explanation("words", result, None, ("left",), (1.0,), measures))
        assert says in text and "chance" not in text and "Model tiny, threshold 0.50." in text


def test_where_sentence_and_mask_differ_is_marked():
    mask = np.zeros((100, 100), bool)
    mask[:20, 10:30] = True  # upper left; the sentence says lower left
    text = words.finding_html(result_of(mask))
    assert "Sentence and mask disagree" in text and "the sentence names lower; the mask shows upper" in text
    assert re.findall(r"<td>([^<]*⚠)</td>", text) == ["4.0% ⚠", "– ◆ ⚠"]


@pytest.mark.parametrize("size", [(64, 48), (1200, 900)])
def test_downloads_hold_the_mask_without_loss(size):
    result = result_of(np.random.default_rng(0).random(size) > 0.5)
    links = dict(re.findall(r'download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', words.downloads_html(result, Image.new("RGB", (8, 8)))))
    assert list(links) == ["mask.png", "overlay.png", "result.json"]
    mask = Image.open(io.BytesIO(base64.b64decode(links["mask.png"])))
    assert mask.format == "PNG" and mask.mode == "L" and np.array_equal(np.asarray(mask), result.mask * np.uint8(255))
    assert json.loads(base64.b64decode(links["result.json"])) == json.loads(json.dumps(result.to_dict()))


def test_empty_mask_is_said():
    text = words.finding_html(result_of(np.zeros((64, 64), bool)))
    assert "No lesion found at threshold 0.50." in text and "at most 0.20" in text and "disagree" in text


def test_sentence_and_warnings_are_escaped():
    text = words.finding_html(result_of(np.zeros((64, 64), bool), "<img src=x onerror=alert(1)>", ["<b>odd</b>"]))
    assert "<img" not in text and "<b>" not in text


def test_model_without_intervention_says_so():
    result = result_of(np.zeros((64, 64), bool))
    tiles = pictures.inside(result, result)
    assert [t["values"] is None for t in tiles] == [True, False, False, False]
    said = words.map_html(tiles[0]["title"], tiles[0]["meaning"], None, result.mask, None)
    assert "built without causal intervention" in said


def test_maps_that_are_kept_are_small_and_right():
    mask = np.zeros((1000, 500), bool)
    mask[:500] = True
    result = result_of(mask)
    tile = next(t for t in pictures.inside(result, result) if t["group"] == pictures.GROUPS[2])
    assert max(tile["values"].shape) == pictures.KEPT and tile["values"][10, 10] == pytest.approx(0.9, abs=1e-3)
    response = next(t for t in pictures.inside(result, result) if t["group"] == pictures.GROUPS[3])
    assert response["values"][10, 10] == pytest.approx(np.log(9), abs=1e-2)  # the logit of 0.9


def test_zones_add_up_to_the_half():
    mask = np.zeros((100, 100), bool)
    mask[:, :30] = True
    text = words.zones_html(result_of(mask))
    shares = [float(share) for share in re.findall(r"<td>([\d.]+)%", text)]
    assert len(shares) == 4 and sum(shares[:3]) == pytest.approx(shares[3], abs=0.2) and shares[3] == 30
    assert "17.4% ◆" in text and text.count("◆") == 2  # the caption's, and the zone that the sentence named


def test_model_card_becomes_one_line(tmp_path):
    assert "no model card" in words.about_model("x", engine.card_of(str(tmp_path)))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# mini\n\nTrained on **QaTa-COV19** and\n[phantoms](x.md). <i>\n\nMore.\n")
    assert words.about_model("x", engine.card_of(str(tmp_path))).endswith(": Trained on QaTa-COV19 and phantoms. &lt;i&gt;")


def test_a_model_of_the_hub_says_where_its_card_is():
    assert words.about_model("org/name", engine.card_of("org/name")) == "Model <strong>org/name</strong>: Its model card is at https://huggingface.co/org/name ."


def test_the_shipped_models_card_says_what_it_must():
    card = engine.card_of(str(REPOSITORY / "assets/models/mini"))
    for part in ("Not for clinical use", "| `run1` | random weights |", "## Measured on the official test split", "## Audit", "## Limits"):
        assert part in card


def test_models_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert engine.Engine([str(f) for f in folders] + ["org/name"]).names == ["run", "run (2)", "org/name"]


def test_a_space_is_written_whole_or_not_at_all(tmp_path):
    from causalclipseg.demo.space import write_space

    folder = write_space(tmp_path / "space")
    text = (folder / "README.md").read_text()
    assert text.startswith("---\ntitle: CausalCLIPSeg") and "app_file: app.py" in text and "Not for clinical use" in text
    assert text.count("---\n") == 2  # the card's own front matter is gone
    needed = (folder / "requirements.txt").read_text()
    assert "torch>=" in needed and "pydicom" in needed and "pytest" not in needed and "gradio" not in needed
    assert (folder / "assets/models/mini/model.safetensors").stat().st_size > 10**6 and (folder / "causalclipseg/demo/page.py").is_file()
    assert "*.safetensors filter=lfs" in (folder / ".gitattributes").read_text()  # or the hub refuses what is above 10 MB
    with running_app(folder / "assets/models/mini", root=folder) as space:
        assert ask(gradio_client.Client(space, verbose=False), folder / "assets/examples/both-lungs.png")[1]["area_fraction"] > 0
    with pytest.raises(ValueError, match="already there and not empty"):
        write_space(folder)


def test_shipped_examples_are_whole():
    rows = tour.shipped_examples()
    assert 4 <= len(rows) <= 8 and all(Path(row["image"]).is_file() and row["report"] and row["shows"] for row in rows)
    pictures = [row["image"] for row in rows]
    assert any(pictures.count(path) > 1 for path in pictures)  # the same picture with different sentences


@pytest.mark.parametrize("exact", [False, True])
def test_the_shipped_model_answers_its_examples_as_they_say(exact):
    from causalclipseg import CausalCLIPSeg, reports, segment

    model = CausalCLIPSeg.from_pretrained(REPOSITORY / "assets" / "models" / "mini")
    for row in tour.shipped_examples():
        mask = segment(model, row["image"], row["report"], average_views=exact).mask
        if "stays empty" in row["shows"]:
            assert not mask.any(), row
        else:
            named = [side for side in reports.SIDES if getattr(reports.parse(row["report"]), side)]
            assert mask.any() and sum(reports.restrict(mask, side).sum() for side in named) >= 0.95 * mask.sum(), row


def test_data_folder_gives_examples(phantom_folder):
    rows = tour.data_examples(str(phantom_folder))
    assert len(rows) == tour.FROM_DATA and all(Path(row["image"]).is_file() and row["report"] for row in rows)


@pytest.mark.parametrize("name, mode, shown", [("a.png", "L", True), ("a.jpg", "L", True), ("a.webp", "RGB", True), ("a.tiff", "L", False), ("a.png", "I;16", False)])
def test_what_browsers_cannot_show_becomes_a_png(tmp_path, monkeypatch, name, mode, shown):
    from causalclipseg.demo.page import Page
    from causalclipseg.images import read_image

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 4096, (96, 80), dtype=np.uint16)
    Image.fromarray(pixels if mode == "I;16" else (pixels >> 4).astype(np.uint8)).convert(mode).save(tmp_path / name)
    file = str(tmp_path / name)
    page = Page(engine.Engine(["here"]), {"Mine": [{"image": file, "report": SENTENCE, "shows": ""}]})
    page.build()
    assert engine.browsers_show(file) == shown
    drawn = page.shown[file]
    assert drawn in page.image.keep_in_cache and (Path(drawn).read_bytes() == Path(file).read_bytes()) == shown
    if not shown:
        assert Image.open(drawn).mode == "L" and np.array_equal(np.asarray(Image.open(drawn)), read_image(file))


def test_the_page_takes_dicom_files_of_any_name_and_says_how_long_they_are_kept(address, tmp_path):
    from causalclipseg.demo.page import Page
    from gradio.data_classes import FileData
    from test_dicom import dicom

    page = Page(engine.Engine(["here"]), {})
    page.build()
    path = tmp_path / "IM000001"
    path.write_bytes(dicom())
    assert page.dicom.file_types is None and page.dicom.preprocess(FileData(path=str(path))) == str(path)
    assert "on this server’s disk for at most 70 minutes" in json.dumps(json.load(urllib.request.urlopen(f"{address}/config")), ensure_ascii=False)


def test_a_question_asked_while_the_model_is_loaded_waits_for_it(tiny_model_dir, tmp_path, monkeypatch):
    asked, path = engine.Engine([str(tiny_model_dir)]), str(picture(tmp_path / "xray.png"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asked.segment, path, SENTENCE, 0.5)
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(0.5)
        asked.load()
        assert waiting.result(60).model == "tiny"
    monkeypatch.setattr(engine, "LOADING_PATIENCE", 0.01)
    with pytest.raises(ValueError, match="still being loaded; try again"):
        engine.Engine([str(tiny_model_dir)]).segment(path, SENTENCE, 0.5)


@pytest.mark.parametrize("arguments, said", [(["--data", "nowhere"], "nowhere"), (["--space", "tests"], "already there and not empty"), (["--model", "nowhere"], "nowhere"),
                                             (["--space", "there", "--model", "assets/models/mini"], "leave out --model and --data")])  # fmt: skip
def test_a_start_that_cannot_be_is_refused_in_one_sentence(arguments, said):
    ended = subprocess.run([sys.executable, "app.py", *arguments, "--port", str(free_port())], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1 and said in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("port", ["0", "-1", "99999", "7860.5"])
def test_a_port_that_cannot_be_is_refused(port):
    ended = subprocess.run([sys.executable, "app.py", "--port", port], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].endswith(f"argument --port: must be a whole number from 1 to 65535, not {port}")


def test_a_busy_port_and_a_foreign_host_are_told_apart(tiny_model_dir):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for host, says in (("127.0.0.1", f"Port {port} cannot be used (Address already in use); choose another one with --port."),
                           ("203.0.113.7", "203.0.113.7 is no address of this machine; choose another one with --host, for example 127.0.0.1.")):  # fmt: skip
            command = [sys.executable, "app.py", "--model", str(tiny_model_dir), "--host", host, "--port", str(port)]
            ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            assert ended.returncode == 1 and ended.stderr.strip() == says and not ended.stdout


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_it_listens_on_an_ipv6_address(tiny_model_dir, tmp_path, host):
    if not socket.has_ipv6 or "00000001 01" not in Path("/proc/net/if_inet6").read_text():
        pytest.skip("needs IPv6 on this machine")
    port, log = free_port(), tmp_path / "log"
    environment = {**os.environ, "GRADIO_SERVER_NAME": host, "PYTHONUNBUFFERED": "1"}
    with open(log, "w") as out:
        server = subprocess.Popen([sys.executable, "app.py", "--model", str(tiny_model_dir), "--port", str(port)], cwd=REPOSITORY,
                                  env=environment, stdout=out, stderr=out)  # fmt: skip
    try:
        until(lambda: server.poll() is not None or "The page is at" in log.read_text(), "the page to be served")
        assert log.read_text().startswith(f"The page is at http://[::1]:{port}/ ;")
        assert b"CausalCLIPSeg" in urllib.request.urlopen(f"http://[::1]:{port}/").read()
    finally:
        server.terminate()
        server.wait(60)


def test_ctrl_c_while_the_model_is_loaded_ends_quietly(tiny_model_dir, tmp_path):
    with loading_app(tiny_model_dir, tmp_path) as (server, port, _):
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    assert (tmp_path / "log").read_text() == f"The page is at http://127.0.0.1:{port}/ ; the model is being loaded.\n"


def test_own_models_come_first_the_shipped_one_last_on_the_host_that_was_named(tiny_model_dir, tmp_path, monkeypatch):
    sys.path.insert(0, str(REPOSITORY))
    import app

    served = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    monkeypatch.setattr(app, "_serve", lambda engine, given: served.append((engine.names, given.host)))
    app.main(["--model", str(tiny_model_dir), "--host", "0.0.0.0", "--port", str(free_port())])
    assert served == [(["tiny", "mini"], "0.0.0.0")]
