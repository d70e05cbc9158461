"""The paper's tables as commands, in small: tiny networks, few pictures, the whole way."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalclipseg import benchmark, training
from causalclipseg.baselines import load_model
from causalclipseg.benchmark import Budget, markdown, table1, table2
from causalclipseg.config import ClipConfig
from causalclipseg.data import DataError
from causalclipseg.evaluation import evaluate, predictor
from conftest import make_tiny_config

TINY = {
    "clip": make_tiny_config().clip, "masker_width": 8, "fusion_width": 16, "carafe_compressed": 8, "decoder_width": 16, "workers": 0,
}  # fmt: skip
SMALL = dict(steps=2, batch_size=6, image_size=64, limit=12, settings=TINY)


@pytest.fixture(scope="module")
def folder(phantom_folder, tmp_path_factory):
    """Both tables, run once: table 2 without pre-trained encoders and two seeds, table 1 with one network and ours."""
    out = tmp_path_factory.mktemp("tables")
    said = []
    two = table2(phantom_folder, out, seeds=2, say=said.append, **SMALL)
    one = table1(phantom_folder, out, seeds=2, width=4, rows=["UNet-4", "mini"], say=said.append, **SMALL)
    return out, two, one, said


def rows(result):
    return {row["name"]: row for row in result["rows"]}


def test_every_row_is_measured_quoted_or_says_why_it_did_not_run(folder):
    out, two, one, _ = folder
    assert [r["status"] for r in two["rows"]] == ["measured"] * 2 + ["not run"] * 2 + ["quoted: paper, Table 2"] * 4
    assert "--weights" in rows(two)["pre-trained"]["reason"]
    states = {name: row["status"] for name, row in rows(one).items() if not name.startswith("paper")}
    assert states == {"U-Net": "measured", "UNet++": "not run", "Attention U-Net": "not run", "nnU-Net's DynUNet": "not run", "Swin UNETR": "not run",
                      "text concatenated (plain)": "not run", "ours, mini, no sentence shown": "measured", "ours, mini": "measured"}  # fmt: skip
    quoted = [r for r in one["rows"] if r["name"].startswith("paper")]
    assert len(quoted) == 14 and all(r["status"] == "quoted: paper, Table 1" for r in quoted)
    assert rows(one)["paper: CausalCLIPSeg"]["dice"] == rows(two)["paper: pre-trained and intervention"]["dice"] == 85.21
    for number, result in ((1, one), (2, two)):
        assert json.loads((out / f"table{number}.json").read_text()) == result
        assert (out / f"table{number}.md").read_text() == markdown(result)


def test_scores_are_those_of_the_saved_models_and_the_spread_is_over_seeds(folder, phantom_folder):
    out, two, one, _ = folder
    for result, name, run, text in ((two, "without both", "mini-plain", "report"), (one, "ours, mini, no sentence shown", "mini", "none")):
        dice = []
        for seed in range(2):
            network = load_model(out / "runs" / f"{run}-seed{seed}")
            assert network.config.intervention == (run == "mini")
            found = evaluate(predictor(network), phantom_folder, model="x", image_size=64, text=text, limit=12)
            dice.append(100 * found["per_image"]["dice"]["mean"])
        row = rows(result)[name]
        assert row["text"] == text and row["scores"]["dice"]["seeds"] == pytest.approx(dice, abs=0.006)
        assert row["scores"]["dice"]["mean"] == pytest.approx(np.mean(dice), abs=0.006)
        assert row["scores"]["dice"]["spread"] == pytest.approx(np.std(dice, ddof=1), abs=0.006)
        assert row["parameters"] == sum(p.numel() for p in network.parameters())


def test_every_row_takes_the_same_steps_and_only_its_own_switches_differ(folder):
    out, two, one, _ = folder
    assert two["budget"] == one["budget"] and two["budget"]["steps_of_each_run"] == 2 and two["budget"]["epochs"] == 1
    configs = {run: json.loads((out / "runs" / f"{run}-seed1" / "asked.json").read_text()) for run in ("mini", "mini-plain", "UNet-4")}
    differ = {part: {k for k, v in configs["mini"][part].items() if configs["mini-plain"][part][k] != v} for part in ("model", "training")}
    assert {config["training"]["weights"] for config in configs.values()} == {"none"}
    assert differ == {"model": {"intervention"}, "training": {"objective"}}
    for run in configs:
        log = [json.loads(line) for line in (out / "runs" / f"{run}-seed1" / "metrics.jsonl").read_text().splitlines()]
        assert sum(line["images"] for line in log) == 2 * 6 and configs[run]["training"]["seed"] == 1
    assert Budget(600, 16, 160, None).epochs(5716) == 2 and Budget(10, 16, 160, None).epochs(5716) == 1


def test_a_finished_table_is_not_run_again_and_runs_are_shared_between_tables(folder, phantom_folder, monkeypatch, tmp_path):
    out, two, _, said = folder
    assert sum("seed 0: training" in line for line in said) == 3, "two rows of table 2, the U-Net; ours of table 1 is there already"
    monkeypatch.setattr(benchmark, "train", lambda *_, **__: pytest.fail("trained again"))
    assert table2(phantom_folder, out, seeds=2, **SMALL)["rows"] == two["rows"]
    changed = shutil.copytree(phantom_folder, tmp_path / Path(phantom_folder).name)
    picture = min(changed.rglob("Train Set/Images/*"))
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    again = table2(changed, out, seeds=2, **SMALL)
    assert again["data_digest"] != two["data_digest"] and "another budget, other settings, data" in again["rows"][0]["reason"]
    other = table2(phantom_folder, out, seeds=2, **{**SMALL, "steps": 4})
    assert [r["status"] for r in other["rows"][:2]] == ["not run"] * 2 and "another budget" in other["rows"][0]["reason"]


def test_rows_with_pretrained_encoders_start_from_them_and_what_does_not_fit_is_said(phantom_folder, tmp_path):
    from causalclipseg.pretraining import pretrain

    pretrain([phantom_folder], tmp_path / "clip", make_tiny_config(), steps=1, batch_size=4, limit=8)
    wanted = ["mini-plain-pretrained"]
    result = table2(phantom_folder, tmp_path / "a", seeds=1, rows=wanted, weights=str(tmp_path / "clip"), **SMALL)
    row = rows(result)["pre-trained"]
    assert row["status"] == "measured" and row["scores"]["dice"]["spread"] is None and "±" not in markdown(result)
    asked = json.loads((tmp_path / "a" / "runs" / "mini-plain-pretrained-seed0" / "asked.json").read_text())
    assert asked["training"]["weights"] == str(tmp_path / "clip")
    wide = {**SMALL, "settings": {**TINY, "clip": ClipConfig(text_width=24)}}
    result = table2(phantom_folder, tmp_path / "b", seeds=1, rows=wanted, weights=str(tmp_path / "clip"), **wide)
    assert rows(result)["pre-trained"]["status"] == "not run" and "does not fit" in rows(result)["pre-trained"]["reason"]


class Death(Exception):
    pass


def test_a_row_that_was_killed_before_its_first_state_is_run_again(phantom_folder, tmp_path, monkeypatch):
    def die(*_, **__):
        raise Death

    asked = dict(seeds=1, rows=["mini-plain"], **SMALL)
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(training, "save_state", die)
        table2(phantom_folder, tmp_path, **asked)
    assert (tmp_path / "runs" / "mini-plain-seed0" / "model.safetensors").exists()
    (tmp_path / "runs" / "mini-plain-seed0" / "metrics.jsonl").write_text("")  # the epoch's line was not written either
    assert rows(table2(phantom_folder, tmp_path, **asked))["without both"]["status"] == "measured"


def test_settings_reach_the_rows_that_can_follow_them(phantom_folder, tmp_path, monkeypatch):
    """An image-only network has no intervention for an objective to need; an archive is read where it was allowed."""
    seen = []

    def look(data, out, model_config, config, **options):
        training.check_settings(model_config, config)
        seen.append((config.objective, options["torchscript"]))
        raise ValueError("only looked at")

    monkeypatch.setattr(benchmark, "train", look)
    common = {**SMALL, "settings": {**TINY, "objective": "bounded"}}
    result = table1(phantom_folder, tmp_path, seeds=1, width=4, rows=["UNet-4", "concat-4", "mini"], torchscript=True, **common)
    assert {row["reason"] for row in result["rows"] if row["status"] == "not run"} == {"only looked at", "it was not asked for"}
    assert seen == [("none", True), ("none", True), ("bounded", True), ("bounded", True)]
    table2(phantom_folder, tmp_path, seeds=1, rows=["mini-plain"], **common)
    assert seen[4:] == [("none", False)]


def test_encoders_that_may_know_validation_pictures_are_refused_or_named_in_the_table(phantom_folder, tmp_path):
    from causalclipseg.pretraining import pretrain

    about = pretrain([phantom_folder], tmp_path / "clip", make_tiny_config(), steps=1, batch_size=4, limit=8)
    asked = dict(seeds=1, rows=["mini-plain-pretrained"], weights=str(tmp_path / "clip"), **{**SMALL, "settings": {**TINY, "split_rule": "patients"}})
    row = rows(table2(phantom_folder, tmp_path / "a", **asked))["pre-trained"]
    assert row["status"] == "not run" and "pre-trained with split_rule=published" in row["reason"]
    del about["split_rule"]  # of a time when there was no choice
    (tmp_path / "clip" / "pretraining.json").write_text(json.dumps(about))
    said = []
    result = table2(phantom_folder, tmp_path / "b", say=said.append, **asked)
    assert rows(result)["pre-trained"]["status"] == "measured"
    assert "does not say by which split_rule" in result["note"] and any("does not say" in line for line in said)


def test_wrong_arguments_are_refused_before_anything_runs(phantom_folder, tmp_path):
    with pytest.raises(ValueError, match="no row mini; .*mini-pretrained"):
        table1(phantom_folder, tmp_path, rows=["mini"], weights="clip")
    with pytest.raises(ValueError, match="no row VNet.*UNet-32"):
        table1(phantom_folder, tmp_path, rows=["VNet"])
    with pytest.raises(ValueError, match="at least 1"):
        table2(phantom_folder, tmp_path, steps=0)
    with pytest.raises(ValueError, match=r"seed \(--seeds\), batch_size \(--batch-size\)"):
        table2(phantom_folder, tmp_path, settings={"seed": 5, "batch_size": 2, "lr": 1e-3})
    with pytest.raises(ValueError, match="epochs can be at most 2000"):
        table2(phantom_folder, tmp_path, steps=5000, limit=8)
    assert not list(tmp_path.iterdir())
    untested = shutil.copytree(phantom_folder, tmp_path / "untested")
    next(untested.glob("Test_text*.xlsx")).unlink()
    with pytest.raises(DataError):
        table2(untested, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()
