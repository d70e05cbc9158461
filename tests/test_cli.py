"""The command line: each command once for real, and every failure in one line with its exit status."""
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import causalclipseg
from causalclipseg import cli
from causalclipseg.phantoms import World
from conftest import REPOSITORY, tiny_changes

SENTENCE = "Unilateral pulmonary infection, one infected area, lower left lung."
SMALLEST = [*tiny_changes(), "epochs=1", "batch_size=4", "sizes=[]"]


@pytest.fixture
def run(capsys):
    """Runs the command line in this process: exit status, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(a) for a in arguments])
        out = capsys.readouterr()
        return caught.value.code or 0, out.out, out.err

    return call


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)).save(path)
    return path


def refused(answer, *words):
    """Exit status 2, nothing on stdout, and one line on stderr that holds the words."""
    status, out, err = answer
    assert status == 2 and out == "" and err.startswith("causalclipseg: ") and err.count("\n") == 1, (out, err)
    assert all(word in err for word in words), err


def settings(*changes):
    return [part for setting in (*SMALLEST, *changes) for part in ("--set", setting)]


# ---------------------------------------------------------------- the commands


def test_train_evaluate_predict(tmp_path, run, phantom_folder):
    trained = tmp_path / "run"
    common = ["train", "--data", phantom_folder, "--limit", 8, "--out", trained, "--preset", "mini", "--objective", "bounded"]
    status, out, err = run(*common, *settings(), "--resume")
    assert status == 0, err
    assert {"config.json", "model.safetensors", "training.json", "metrics.jsonl", "state"} <= {p.name for p in trained.iterdir()}
    assert json.loads((trained / "config.json").read_text())["clip"]["text_width"] == 16
    assert json.loads((trained / "training.json").read_text())["objective"] == "bounded"
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 1

    assert "epoch 1/1" in out and "holds no run yet" in out  # with --resume from the start, as where a run died before it had a folder
    refused(run(*common, *settings()), "already holds a run", "--resume")
    refused(run(*common[:4], 4, *common[5:], "--resume", *settings()), "--limit 8", "--limit 4")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    refused(run(*common[:6], tmp_path / "notes", "--resume", *settings()), "no run that could be resumed")
    refused(run(*common, "--resume", *settings("epochs=3")), "epochs (1, not 3)")
    refused(run(*common[:-3], "paper", "--resume"), "preset ('mini', not 'paper')")
    refused(run(*common, "--resume", *settings("weights_sha256=ab", "lam=1")), "lam (0.05, not 1.0).")
    status, _, err = run(*common, "--resume", *settings("weights_sha256=ab"))  # finished already; the same settings may be repeated
    assert status == 0 and len((trained / "metrics.jsonl").read_text().splitlines()) == 1, err

    scores = tmp_path / "scores" / "test.json"
    arguments = ["--model", trained, "--data", phantom_folder, "--split", "test", "--text", "swapped", "--out", scores]
    status, out, err = run("evaluate", *arguments, "--threshold", 0.4, "--referring")
    assert status == 0 and "per image" in out and "pooled" in out, err
    result = json.loads(scores.read_text())
    assert {"per_image", "pooled", "subgroups", "n", "threshold", "split", "text", "data", "model", "referring"} <= set(result)
    assert (result["n"], result["threshold"], result["split"], result["text"]) == (15, 0.4, "test", "swapped")
    assert result["model"] == "run" and set(result["per_image"]["dice"]) == {"mean", "low", "high"}
    assert 0 <= result["referring"]["success"] <= 1

    image = next((phantom_folder / "QaTa-COV19-v2" / "Test Set" / "Images").iterdir())
    status, out, err = run("predict", image, SENTENCE, "--model", trained, "--out", tmp_path / "out", "--threshold", 0.3)
    assert status == 0 and err == ""
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["model"] == "run" and written["threshold"] == 0.3 and written["report"] == SENTENCE
    assert written["finding"] in out


def test_the_most_exact_answer(tmp_path, run, phantom_folder, tiny_model_dir):
    whole, asked = tmp_path / "both", ("--average-views", "--check-side", "--threshold", "expected-dice")
    status, out, err = run("ensemble", tiny_model_dir, tiny_model_dir, "--out", whole, "--data", phantom_folder)
    assert status == 0 and "2 networks" in out, err
    image = next((phantom_folder / "QaTa-COV19-v2" / "Test Set" / "Images").iterdir())
    status, out, err = run("predict", image, SENTENCE, "--model", whole, "--out", tmp_path / "out", *asked)
    assert status == 0, err
    assert 0.3 <= json.loads((tmp_path / "out" / "result.json").read_text())["threshold"] <= 0.5
    status, out, err = run("evaluate", "--model", whole, "--data", phantom_folder, "--out", tmp_path / "x.json", "--limit", 4, "--no-surface", *asked)
    result = json.loads((tmp_path / "x.json").read_text())
    assert status == 0 and result["average_views"] and result["check_side"] and "expected-dice" in result["thresholds"], err
    status, out, err = run("ensemble", whole, "--silent", tiny_model_dir, "--out", tmp_path / "silent")
    assert status == 0 and "3 networks" in out, err
    refused(run("ensemble", tiny_model_dir, "--out", tmp_path / "one"), "at least two")
    refused(run("ensemble", tiny_model_dir, whole, "--out", tmp_path / "one"), "none of their own")
    refused(run("predict", image, SENTENCE, "--model", whole, "--out", tmp_path / "out", "--threshold", "guess"), "guess", "expected-dice")
    refused(run("train", "--data", phantom_folder, "--out", tmp_path / "run", "--set", 'companions=[{}]'), "causalclipseg ensemble")


def test_evaluate_in_full(tmp_path, run, phantom_folder, tiny_model_dir):
    scores = tmp_path / "scores.json"
    status, out, err = run(
        "evaluate", "--model", tiny_model_dir, "--data", phantom_folder, "--out", scores, "--threshold", "expected-dice", "--threshold", "validation-best",
        "--text", "all", "--against", tiny_model_dir, "--only", "side=both", "--limit", 4, "--markdown", "--page",
    )  # fmt: skip
    assert status == 0 and err == "", err
    result = json.loads(scores.read_text())
    assert result["threshold"] == 0.5 and set(result["thresholds"]) == {"0.35", "0.5", "expected-dice", "validation-best"}
    assert result["n"] == 4 and result["only"] == "side=both" and result["against"]["paired"]["dice"]["p_wilcoxon"] == 1
    assert all(word in out for word in ("HD95", "expected-dice (", "validation-best (", "sentence: swapped", "Wilcoxon"))
    assert (tmp_path / "scores.md").read_text().startswith("tiny on phantoms (test, side=both; 4 pictures") and "<img" in (tmp_path / "scores.html").read_text()
    common = ("evaluate", "--model", tiny_model_dir, "--data", phantom_folder, "--out", tmp_path / "x.json")
    refused(run(*common, "--threshold", "guess"), "guess", "expected-dice, validation-best")
    refused(run(*common, "--only", "side=up"), "side=up")
    refused(run(*common, "--against", tmp_path / "gone"), "gone")


def test_train_a_network_to_compare_with(tmp_path, run, phantom_folder):
    options = [part for setting in ("image_size=64", "width=4", "epochs=1", "batch_size=4", "sizes=[]") for part in ("--set", setting)]
    status, _, err = run("train", "--data", phantom_folder, "--limit", 8, "--out", tmp_path / "unet", "--preset", "monai:UNet", *options)
    assert status == 0, err
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["network"] == "monai:UNet"
    status, _, err = run("evaluate", "--model", tmp_path / "unet", "--data", phantom_folder, "--text", "none", "--out", tmp_path / "x.json", "--no-surface")
    assert status == 0 and json.loads((tmp_path / "x.json").read_text())["model"] == "unet", err
    refused(run("train", "--data", phantom_folder, "--out", tmp_path / "y", "--preset", "monai:VNet"), "monai:VNet", "monai:UNet")


def test_pretrain_and_the_tables(tmp_path, run, phantom_folder):
    shared = ("image_size", "epochs", "batch_size", "sizes")  # what the tables and the contrast have options or rules for
    tiny = [part for setting in SMALLEST if not setting.startswith(shared) for part in ("--set", setting)]
    clip = tmp_path / "clip"
    status, out, err = run("pretrain", "--data", phantom_folder, "--out", clip, "--steps", 1, "--batch-size", 4, "--limit", 8, *tiny, "--set", "image_size=64")
    assert status == 0 and "own sentence found among" in out and (clip / "clip.safetensors").exists(), err
    common = ["--data", phantom_folder, "--out", tmp_path / "tables", "--steps", 1, "--seeds", 1, "--limit", 8, "--batch-size", 4, "--image-size", 64, *tiny]
    status, out, err = run("benchmark", "table2", *common, "--weights", clip, "--row", "mini-plain-pretrained")
    assert status == 0 and "| pre-trained | yes | no |" in out and "quoted: paper, Table 2" in out, err
    assert json.loads((tmp_path / "tables" / "table2.json").read_text())["rows"][2]["status"] == "measured"
    status, out, err = run("benchmark", "table1", *common, "--width", 4, "--row", "UNet-4", "--set", "objective=bounded", "--torchscript")
    assert status == 0 and "not run: it was not asked for" in out and (tmp_path / "tables" / "table1.md").exists(), err
    refused(run("benchmark", "table1", *common, "--row", "VNet-4"), "VNet-4")
    refused(run("pretrain", "--data", phantom_folder, "--out", clip), "already holds")
    other = ("pretrain", "--data", phantom_folder, "--out", tmp_path / "other", "--steps", 1, "--batch-size", 4, "--limit", 8, *tiny)
    assert run(*other, "--set", "image_size=64", "--split-rule", "patients")[0] == 0
    assert json.loads((tmp_path / "other" / "pretraining.json").read_text())["split_rule"] == "patients"
    refused(run("train", "--data", phantom_folder, "--out", tmp_path / "run", *settings(f"weights={tmp_path / 'other'}")), "--split-rule published")


def test_data_phantoms(tmp_path, run):
    folder = tmp_path / "phantoms"
    status, out, err = run("data", "phantoms", folder, "--count", 4, "--seed", 3, "--size", 64)
    assert (status, err) == (0, "") and "4 phantoms" in out
    about = json.loads((folder / "phantoms.json").read_text())
    assert (about["count"], about["seed"], about["size"]) == (4, 3, 64)
    refused(run("data", "phantoms", tmp_path / "few", "--count", 2), "at least 3")
    refused(run("data", "phantoms", tmp_path / "small", "--count", 3, "--size", 16), "at least 64")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(run("data", "phantoms", tmp_path / "mine", "--count", 3), "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_data_phantoms_of_a_world(tmp_path, run):
    folder, asked = tmp_path / "world", ("--count", 4, "--size", 64)
    assert run("data", "phantoms", folder, *asked, "--coupling", -0.8, "--precision", "side")[0] == 0
    assert json.loads((folder / "phantoms.json").read_text())["world"] == World(-0.8, "side", 64).settings
    assert run("data", "phantoms", folder, *asked, "--coupling", 0)[0] == 0
    assert json.loads((folder / "phantoms.json").read_text())["world"] == World(0, "generic", 64).settings
    assert run("data", "phantoms", folder, *asked)[0] == 0
    assert json.loads((folder / "phantoms.json").read_text())["world"] is None
    refused(run("data", "phantoms", tmp_path / "no", *asked, "--precision", "side"), "--precision belongs to a world", "--coupling")
    refused(run("data", "phantoms", tmp_path / "no", *asked, "--coupling", 2), "from -1 to 1")
    assert not (tmp_path / "no").exists()


def test_as_a_module_in_its_own_process(tmp_path, picture, tiny_model_dir):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "causalclipseg", "predict", picture, "lower left lung, gizmo", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*command, "--model", tiny_model_dir], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == 'causalclipseg: warning: These words of the sentence could not be read: "gizmo".\n'
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"mask.png", "result.json"}
    command[4] = tmp_path / "gone.png"
    bad = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert bad.returncode == 2 and bad.stderr == f"causalclipseg: {tmp_path / 'gone.png'} is not there.\n"


def test_help_imports_nothing_heavy(run):
    status, out, _ = run("--help")
    assert status == 0 and all(word in out for word in ("predict", "train", "evaluate", "data"))
    for command in (["predict"], ["train"], ["evaluate"], ["pretrain"], ["benchmark", "table1"], ["data", "phantoms"]):
        status, out, _ = run(*command, "--help")
        assert status == 0 and "Usage" in out
    status, out, _ = run("--version")
    assert (status, out) == (0, f"causalclipseg {causalclipseg.__version__}\n")
    code = "import sys, causalclipseg.cli\nprint([m for m in ('torch', 'numpy', 'PIL', 'open_clip') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout == "[]\n"


# ---------------------------------------------------------------- what is refused


def test_wrong_usage(run, picture, tmp_path):
    for arguments in (["predict", picture], ["predict", picture, SENTENCE], ["train", "--out", tmp_path], ["fly"],
                      ["evaluate", "--threshold", "much"], ["train", "--limit", "0"]):  # fmt: skip
        status, _, err = run(*arguments)
        assert status == 2 and "Traceback" not in err and err.strip()


def test_settings_are_refused_by_name(run, tmp_path, phantom_folder):
    def train(*arguments):
        return run("train", "--data", phantom_folder, "--out", tmp_path / "run", *arguments)

    refused(train("--set", "epoch=3"), '"epoch"', "epochs")
    refused(train("--set", "clip.text_size=3"), '"clip.text_size"')
    refused(train("--set", "epochs"), "key=value")
    refused(train("--set", "epochs=few"), "epochs")
    refused(train("--set", "image_size=100"), "multiple of 32")
    refused(train("--preset", "maxi"), '"maxi"')
    refused(train("--set", "freeze=text"), 'freeze=["text"]')
    refused(train("--set", "scale=[2,1]"), "lowest and the highest")
    refused(run("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "run"), "nowhere")
    assert not (tmp_path / "run").exists()


def test_output_of_the_wrong_kind(run, tmp_path, picture, tiny_model_dir, phantom_folder):
    (tmp_path / "file").write_text("mine")
    folder = ["--data", phantom_folder, "--out", tmp_path / "file"]
    for command in (["predict", picture, SENTENCE, *folder[2:]], ["train", *folder], ["audit", *folder], ["pretrain", *folder], ["benchmark", "table2", *folder], ["average", "a", "b", *folder[2:]]):
        status, out, err = run(*command)
        assert status == 2 and out == "" and "is a file" in " ".join(err.replace("│", " ").split()), command
    assert (tmp_path / "file").read_text() == "mine"
    refused(run("evaluate", "--data", phantom_folder, "--out", tmp_path, "--model", tiny_model_dir), "is a folder")
    refused(run("evaluate", "--data", phantom_folder, "--out", tmp_path / "file" / "x.json", "--model", tiny_model_dir), "x.json cannot be written")
    refused(run("evaluate", "--data", phantom_folder, "--out", tmp_path / "x.md", "--markdown", "--model", tiny_model_dir), "--out is for the JSON")
    refused(run("pretrain", "--data", phantom_folder, "--out", tmp_path / "file" / "x"), "cannot be written")
    refused(run("audit", "--data", phantom_folder, "--out", tmp_path / "file" / "x", "--model", tiny_model_dir), "cannot be written")
    status, _, err = run("predict", picture, SENTENCE, "--out", tmp_path / "file" / "below", "--model", tiny_model_dir)
    assert status == 1 and err.startswith("causalclipseg: ") and err.count("\n") == 1 and "Not a directory" in err


@pytest.mark.parametrize("threshold", ["0", "1", "-3", "nan"])
def test_thresholds(run, tmp_path, picture, tiny_model_dir, phantom_folder, threshold):
    model = ("--model", tiny_model_dir, f"--threshold={threshold}")
    refused(run("predict", picture, SENTENCE, "--out", tmp_path / "out", *model), "threshold", "between 0 and 1")
    refused(run("evaluate", "--data", phantom_folder, "--out", tmp_path / "x.json", *model), "threshold", "between 0 and 1")


def test_splits_and_texts_are_named(run, tmp_path, tiny_model_dir, phantom_folder):
    common = ("evaluate", "--model", tiny_model_dir, "--data", phantom_folder, "--out", tmp_path / "x.json")
    refused(run(*common, "--split", "exam"), "exam", "train, val, test")
    refused(run(*common, "--text", "rhyme"), "rhyme", "shuffled")
    assert not (tmp_path / "x.json").exists()


def broken_models(tiny_model_dir, folder):
    """name -> (a folder with a damaged model, the words that its refusal must hold)."""

    def copy(name):
        shutil.copytree(tiny_model_dir, folder / name)
        return folder / name

    def changed(name, **changes):
        config = copy(name) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))

    (copy("no_weights") / "model.safetensors").unlink()
    (copy("no_config") / "config.json").unlink()
    (copy("cut_config") / "config.json").write_text('{"preset": "mi')
    (copy("list_config") / "config.json").write_text("[1, 2]")
    changed("unknown_key", flux_capacitor=3)
    changed("wrong_size", image_size=50)
    changed("wrong_type", image_size="large")
    changed("another_shape", decoder_width=20)
    weights = copy("cut_weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (copy("text_weights") / "model.safetensors").write_text("git lfs pointer")
    (copy("empty_weights") / "model.safetensors").write_bytes(b"")
    return {
        "no_weights": "model.safetensors", "no_config": "config.json", "cut_config": "not valid JSON",
        "list_config": "one JSON object", "unknown_key": '"flux_capacitor"', "wrong_size": "multiple of 32",
        "wrong_type": "config.json", "another_shape": "does not fit", "cut_weights": "model.safetensors",
        "text_weights": "model.safetensors", "empty_weights": "model.safetensors", "nowhere": "not a folder",
    }  # fmt: skip


def test_damaged_models(run, tmp_path, picture, tiny_model_dir):
    for name, words in broken_models(tiny_model_dir, tmp_path).items():
        answer = run("predict", picture, SENTENCE, "--out", tmp_path / "out", "--model", tmp_path / name)
        refused(answer, words, name)
        assert not (tmp_path / "out").exists()


def test_the_shipped_model_is_the_default(run, tmp_path, picture, tiny_model_dir, monkeypatch):
    assert cli.SHIPPED_MODEL == REPOSITORY / "assets" / "models" / "mini"
    monkeypatch.setattr(cli, "SHIPPED_MODEL", tiny_model_dir)
    assert run("predict", picture, SENTENCE, "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["model"] == "tiny"
    monkeypatch.setattr(cli, "SHIPPED_MODEL", tmp_path / "gone")
    refused(run("predict", picture, SENTENCE, "--out", tmp_path / "out"), "no shipped model", "--model")


# ---------------------------------------------------------------- failures, interrupts, debugging


def test_debug_shows_the_traceback(tmp_path, tiny_model_dir, monkeypatch):
    arguments = ["predict", str(tmp_path / "gone.png"), SENTENCE, "--out", str(tmp_path / "out")]
    for call in ([*arguments, "--debug"], ["--debug", *arguments]):
        with pytest.raises(causalclipseg.images.ImageError):
            cli.main(call)
    monkeypatch.setenv("CAUSALCLIPSEG_DEBUG", "1")
    with pytest.raises(causalclipseg.images.ImageError):
        cli.main(arguments)
    monkeypatch.setenv("CAUSALCLIPSEG_DEBUG", "0")
    with pytest.raises(SystemExit):
        cli.main(arguments)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_one_of_several_processes_on_gpus_that_fails_ends_without_the_others(debug, tmp_path, monkeypatch, capsys):
    """To take leave NCCL waits for them, and they wait in the middle of a step."""
    ended = []
    monkeypatch.setattr(cli, "_others", lambda: SimpleNamespace(get_backend=lambda: "nccl", destroy_process_group=lambda: None))
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    with pytest.raises((SystemExit, causalclipseg.images.ImageError)):
        cli.main(["predict", str(tmp_path / "gone.png"), SENTENCE, "--out", str(tmp_path / "out"), *debug])
    assert ended == [2] and "gone.png" in (said := capsys.readouterr().err) and ("Traceback" in said) == bool(debug)


@pytest.mark.parametrize("error, status, words", [
    (KeyboardInterrupt(), 130, ""), (ValueError("one\n two"), 2, "causalclipseg: one two\n"),
    (OSError(28, "No space left on device", "out/mask.png"), 1, "causalclipseg: out/mask.png: No space left on device\n"),
    (KeyError("x"), 1, "unexpected KeyError"), (MemoryError(), 1, "unexpected MemoryError"),
])  # fmt: skip
def test_exit_status_of_each_kind_of_failure(run, tmp_path, monkeypatch, error, status, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("causalclipseg.phantoms.write_dataset", fail)
    got, out, err = run("data", "phantoms", tmp_path / "p", "--count", 3)
    assert (got, out) == (status, "") and (words in err if words else err == "")
    assert err.count("\n") <= 1


def test_warnings_of_the_jobs_are_one_line_each(run, tmp_path, tiny_model_dir, phantom_folder):
    shutil.copytree(phantom_folder, tmp_path / "data")
    next((tmp_path / "data" / "QaTa-COV19-v2" / "Test Set" / "Images").iterdir()).unlink()
    out = tmp_path / "scores.json"
    status, _, err = run("evaluate", "--model", tiny_model_dir, "--data", tmp_path / "data", "--out", out)
    assert status == 0 and json.loads(out.read_text())["n"] == 14
    assert re.fullmatch(r"(causalclipseg: warning: .*without a picture.*Left out\.\n)+", err)
