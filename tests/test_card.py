"""A run's card says what stands in the run's files; a run goes to a hub and comes back (a small one on this machine)."""
import base64
import dataclasses
import json
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from causalclipseg import cli, evaluation
from causalclipseg.card import CARD, pull_run, push_to_hub, write_card
from causalclipseg.checkpoints import kept_settings
from causalclipseg.config import TrainingConfig, apply_settings, preset, save_json
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.training import TrainingError, train
from conftest import make_tiny_config


@pytest.fixture(scope="module")
def run(phantom_folder, tmp_path_factory):
    """One epoch of training and one evaluation; read, don't write."""
    out = tmp_path_factory.mktemp("card") / "run"
    config = TrainingConfig(epochs=1, batch_size=12, sizes=(), evaluate_every=1, samples_every=1, objective="bounded", split_rule="patients", lr=2e-3)
    train([str(phantom_folder)], out, make_tiny_config(), config, quiet=True)
    model = CausalCLIPSeg.from_pretrained(out)
    result = evaluation.evaluate(evaluation.predictor(model), str(phantom_folder), model="run", image_size=64)
    evaluation.save_result(result, out / "test.json")
    write_card(out)
    return out


def test_the_card_names_data_split_objective_seed_and_what_was_measured(run):
    card = (run / CARD).read_text()
    facts, line = json.loads((run / "training.json").read_text()), json.loads((run / "metrics.jsonl").read_text())
    result = json.loads((run / "test.json").read_text())
    assert card.startswith("---\nlicense: mit\nlibrary_name: causalclipseg\n") and "Not for clinical use" in card
    for words in (
        "phantoms (36 training, 9 validation pictures; split: disjoint by patient)", "none: from random weights", "`bounded`, λ = 0.05",
        f"`{facts['data_digest'][:16]}…`", "1 of 1 planned", f"{line['val_dice']:.4f}", f"torch {facts['versions']['torch']}",
        f"| phantoms, test | 15 | report | 0.5 | {result['per_image']['dice']['mean']:.4f} (", f"{result['pooled']['iou']:.4f} |",
    ):  # fmt: skip
        assert words in card, words


def test_the_cards_command_makes_the_same_settings_again(run):
    from causalclipseg.checkpoints import load_run

    block = (run / CARD).read_text().split("## How it was made")[1].split("```\n")[1]
    words = shlex.split(block)
    assert words[:4] == ["causalclipseg", "train", "--data", "phantoms"] and words[-2:] == ["--out", "run"]
    changes = [value for flag, value in zip(words, words[1:]) if flag == "--set"]
    assert "split_rule=patients" in changes and not [c for c in changes if c.startswith("epochs=26")]
    assert apply_settings(changes, *preset(words[words.index("--preset") + 1])) == load_run(run)


def card_of(folder, model, config, **facts):
    """The card of a run that has only begun, and the words of its command."""
    folder.mkdir(exist_ok=True)
    save_json(model, folder / "config.json")
    data = [{"name": "phantoms", "split_rule": "published ids", "train": 4, "val": 2}]
    (folder / "training.json").write_text(json.dumps({**dataclasses.asdict(config), "data": data, "data_digest": "0" * 64, "limit": None, **facts}))
    text = write_card(folder).read_text()
    return text, shlex.split(text.split("## How it was made")[1].split("```\n")[1])


@pytest.mark.parametrize("name, reads", [("monai:UNet", False), ("concat", True)])
def test_the_card_of_a_network_to_compare_with_loads_that_network(tmp_path, name, reads):
    card, words = card_of(tmp_path / "run", *preset(name))
    assert 'load_model("run")' in card and "CausalCLIPSeg.from_pretrained" not in card and f"| network | {name}, width 32 |" in card
    assert ("| encoders | mini |" in card) == reads == ("from the picture and a sentence" in card)
    assert words[words.index("--preset") + 1] == name and "--set" not in words


def test_the_cards_command_allows_an_archive_where_the_run_did(tmp_path):
    for allowed in (True, False):
        assert ("--torchscript" in card_of(tmp_path / "run", *preset("mini"), torchscript=allowed)[1]) == allowed
    assert "--torchscript" not in card_of(tmp_path / "run", *preset("mini"))[1], "an older run does not say it"


@pytest.mark.parametrize("network", ["causalclipseg", "monai:UNet"])
def test_settings_whose_preset_has_a_name_of_its_own_have_a_card_too(tmp_path, network):
    usual = "mini" if network == "causalclipseg" else network
    model = dataclasses.replace(preset(usual)[0], preset="my-net", decoder_width=48)
    card, words = card_of(tmp_path / "run", model, preset(usual)[1])
    assert "my-net" in card or network != "causalclipseg"
    changes = [value for flag, value in zip(words, words[1:]) if flag == "--set"]
    assert apply_settings(changes, *preset(words[words.index("--preset") + 1])) == (dataclasses.replace(model, preset=usual), preset(usual)[1])


# ---------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as one upload of small files needs, and their way back; everything is kept in `files`."""

    files: dict[str, bytes] = {}
    asked: list[str] = []
    made: list[dict] = []  #: what was said of each new repository
    private = True

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            return self.answer({"url": f"http://{self.headers['Host']}/me/run", "name": json.loads(body)["name"]})
        if self.path.endswith("/preupload/main"):
            return self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]})
        if "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitOid": "1" * 40, "commitUrl": f"http://{self.headers['Host']}/me/run/commit/1"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        return self.answer({"error": "unknown"}, 404)

    def do_GET(self):
        if self.path.split("?")[0] == "/api/models/me/run":
            return self.answer({"id": "me/run", "sha": "1" * 40, "private": self.private, "siblings": []})
        commit, (path, name) = "1" * 40, self.path.split("?")[0].rsplit("/", 1)
        if path == "/api/models/me/run/revision":
            return self.answer({"id": "me/run", "sha": commit, "siblings": [{"rfilename": name} for name in self.files]})
        if path == "/api/models/me/run/tree":
            return self.answer([{"type": "file", "path": name, "size": len(content), "oid": "2" * 40} for name, content in self.files.items()])
        if path != f"/me/run/resolve/{commit}" or name not in self.files:
            return self.answer({"error": "unknown"}, 404)
        self.send_response(200)
        for key, value in (("ETag", f'"{name}"'), ("X-Repo-Commit", commit), ("Content-Length", str(len(self.files[name])))):
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.files[name])

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_run_is_pushed_with_its_card_and_without_pictures_or_state(run, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert push_to_hub(run, "me/run", endpoint=hub, token="none") == f"{hub}/me/run"
    assert set(Hub.files) == {"README.md", "config.json", "metrics.jsonl", "model.safetensors", "test.json", "training.json"}
    assert b'from_pretrained("me/run")' in Hub.files["README.md"]
    for name, content in Hub.files.items():
        (tmp_path / name).write_bytes(content)
    back = CausalCLIPSeg.from_pretrained(tmp_path)
    assert back.config == make_tiny_config()


def test_the_command_line_pushes_a_run_fetches_it_and_writes_its_card_anew(run, hub, tmp_path, monkeypatch, capsys):
    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "cache")), ("ENDPOINT", hub), ("HUGGINGFACE_CO_URL_TEMPLATE", hub + "/{repo_id}/resolve/{revision}/{filename}")):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for kept in (Hub.files, Hub.made):
        kept.clear()

    def say(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["hub", *map(str, arguments)])
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    mine = shutil.copytree(run, tmp_path / "mine")
    assert say("push", mine, "me/run", "--private") == f"Published: {hub}/me/run.\n"
    assert "private" in (Hub.made[0].get("visibility"), Hub.made[0].get("private") and "private"), "newer and older clients' ways to say it"
    assert set(Hub.files) == {"README.md", "config.json", "metrics.jsonl", "model.safetensors", "test.json", "training.json"}
    assert kept_settings("me/run") == json.loads((mine / "training.json").read_text()), "a model on the hub says how it was trained, too"
    assert say("pull", "me/run", tmp_path / "back") == f"me/run is in {tmp_path / 'back'}.\n"
    for name, content in Hub.files.items():
        assert (tmp_path / "back" / name).read_bytes() == content == (mine / name).read_bytes()
    fetched, own = (CausalCLIPSeg.from_pretrained(where, **more).state_dict() for where, more in (("me/run", {"cache_dir": tmp_path / "cache"}), (run, {})))
    assert all(torch.equal(value, own[name]) for name, value in fetched.items())
    (tmp_path / "back" / CARD).unlink()
    assert say("card", tmp_path / "back") == f"Written: {tmp_path / 'back' / CARD}.\n"
    assert (tmp_path / "back" / CARD).read_text().replace('"back"', '"me/run"') == Hub.files["README.md"].decode()


def test_what_cannot_be_pushed_or_pulled_is_said_in_one_sentence(run, tmp_path):
    with pytest.raises(TrainingError, match="holds no model.safetensors yet"):
        push_to_hub(tmp_path, "me/run")
    with pytest.raises(TrainingError, match="me/run could not be uploaded .*hf auth login"):
        push_to_hub(run, "me/run")  # offline
    with pytest.raises(TrainingError, match="me/run could not be fetched"):
        pull_run("me/run", tmp_path / "new")
    with pytest.raises(TrainingError, match="already there and not empty"):
        pull_run("me/run", run)
    (tmp_path / "training.json").write_text('{"train_splits": ["train"]}')
    with pytest.raises(TrainingError, match="holds no run of `train`"):
        write_card(tmp_path)


def test_a_public_repository_is_not_taken_for_a_private_one(run, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "private", False)
    Hub.files.clear()
    with pytest.raises(TrainingError, match="is there already and public"):
        push_to_hub(run, "me/run", private=True, endpoint=hub, token="none")
    assert not Hub.files
