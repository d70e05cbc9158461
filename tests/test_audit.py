"""The audit with predictors whose dependence is known beforehand."""
import json
import shutil
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from causalclipseg import cli
from causalclipseg.audit import attention, audit, auroc, mass, sampled
from causalclipseg.data import find_samples
from causalclipseg.evaluation import predictor
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.phantoms import sample_phantom


def bright(images, reports):
    """Calls lesion what is bright: it depends on the picture alone."""
    return images[:, :1].clone()


def blind(images, reports):
    """Looks at the sentence alone: the half that is named."""
    found = torch.zeros_like(images[:, :1])
    for p, report in zip(found, reports):
        if "left" in report:
            p[..., : p.shape[-1] // 2] = 0.9
        if "right" in report:
            p[..., p.shape[-1] // 2 :] = 0.9
    return found


FEW = dict(model="trial", image_size=64, edits=("exposure", "marker"), severities=(1, 3))


@pytest.fixture(scope="module")
def bright_audit(phantom_folder):
    return audit(bright, phantom_folder, attention=bright, **FEW)


def test_what_reads_only_the_sentence_does_not_move_with_the_acquisition(phantom_folder):
    result = audit(blind, phantom_folder, **FEW).result
    assert all(row["cost"]["mean"] == row["change"]["mean"] == row["probability_change"] == 0 for row in result["edits"])
    assert result["sentences"]["none"]["dice"]["mean"] == 0 and result["sentences"]["swapped"]["change"]["mean"] > 0
    assert result["worst"]["cost"]["mean"] == 0 and result["over_costly"] == [] and result["localisation"] == {}


def test_what_reads_only_the_picture_does_not_move_with_the_sentence(bright_audit):
    result = bright_audit.result
    assert all(row["cost"]["mean"] == row["change"]["mean"] == 0 for row in result["sentences"].values())
    by = {(row["edit"], row["severity"]): row for row in result["edits"]}
    assert set(by) == {(e, s) for e in ("exposure", "marker") for s in (1, 3)}
    assert by["exposure", 3]["change"]["mean"] > by["exposure", 1]["change"]["mean"] > 0
    assert by["exposure", 1]["change"]["low"] <= by["exposure", 1]["change"]["mean"] <= by["exposure", 1]["change"]["high"]
    for row in by.values():
        assert row["dice"]["mean"] == pytest.approx(result["plain"]["per_image"]["dice"]["mean"] - row["cost"]["mean"])
    worst = max(by.values(), key=lambda row: row["cost"]["mean"])
    assert (result["worst"]["edit"], result["worst"]["severity"]) == (worst["edit"], worst["severity"])
    assert result["worst"]["lowest_of_all_edits"]["mean"] <= result["worst"]["dice"]["mean"]


def test_groups_hold_every_picture_once(bright_audit):
    for values in bright_audit.result["groups"].values():
        assert sum(group["n"] for group in values.values()) == bright_audit.result["n"] == 15


def test_localisation_is_that_of_the_pixels_the_acquisition_drew(bright_audit, phantom_folder):
    """The map is the picture itself, so the numbers follow from the phantoms."""
    about = json.loads((phantom_folder / "phantoms.json").read_text())
    expected = []
    for picture in about["pictures"]:
        if picture["split"] == "test":
            phantom = sample_phantom(picture["seed"], 64)
            if phantom.acquisition.any():
                grey = phantom.image.astype(float)
                inside, outside = grey[phantom.acquisition], grey[~phantom.acquisition]
                expected.append(np.mean((inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)))
    found = bright_audit.result["localisation"]["acquisition"]
    assert found["n"] == len(expected) and found["auroc_m"]["mean"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert found["auroc_one_minus_m"]["mean"] == pytest.approx(1 - found["auroc_m"]["mean"], abs=1e-4)
    assert bright_audit.result["localisation"]["lesion"]["n"] == 15


def test_auroc_and_mass_on_small_maps():
    values, region = np.array([[0.1, 0.4], [0.3, 0.2]]), np.array([[False, True], [True, False]])
    assert auroc(values, region) == 1 and auroc(1 - values, region) == 0 and mass(values, region) == pytest.approx(0.7)
    assert auroc(np.ones((2, 2)), region) == 0.5 and np.isnan(auroc(values, np.zeros((2, 2), bool)))
    assert np.isnan(mass(np.zeros((2, 2)), region)) and np.isnan(mass(values, np.zeros((2, 2), bool)))


def test_a_sample_keeps_the_shares_of_groups(phantom_folder):
    samples = find_samples(phantom_folder, "all")
    few = sampled(samples, 20)
    assert few == sampled(samples, 20) and len({s.name for s in few}) == 20 and sampled(samples, 99) == samples

    def bilateral(some):
        return np.mean(["Bilateral" in s.report for s in some])

    assert bilateral(few) == pytest.approx(bilateral(samples), abs=0.05)


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_shows_phantoms_with_alt_text(bright_audit, tmp_path):
    bright_audit.save(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["audit.html", "audit.json"]
    text = (tmp_path / "new" / "audit.html").read_text(encoding="utf-8")
    tags = _Page(text).tags
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == 15 and all(a["alt"] and a["src"].startswith("data:image/png;base64,") for a in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags} and "http" not in re.sub(r'src="[^"]*"', "", text)
    assert len(text) < 2_000_000 and json.loads((tmp_path / "new" / "audit.json").read_text()) == bright_audit.result


def test_a_patient_is_shown_only_on_request(phantom_folder, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    for entry in phantom_folder.iterdir():
        if entry.name != "phantoms.json":  # without it nothing says that these are phantoms
            (real / entry.name).symlink_to(entry)
    assert audit(bright, real, limit=2, **FEW).pictures == []
    assert audit(bright, real, limit=2, pictures=True, **FEW).pictures
    assert audit(bright, phantom_folder, limit=2, pictures=False, **FEW).pictures == []
    inside = next(path.parent for path in phantom_folder.rglob("Train Set"))  # the folder that holds the splits says so, too
    assert audit(bright, inside, limit=2, **FEW).pictures and audit(bright, inside, limit=2, **FEW).result["phantoms"]


def test_a_name_cannot_break_the_page(bright_audit):
    from causalclipseg._audit_page import page

    text = page({**bright_audit.result, "model": "<script>alert(1)</script>"}, [])
    assert "<script>" not in text


@pytest.mark.parametrize("change, words", [
    (dict(edits=("colour",)), "colour"), (dict(edits=()), "at least one edit"), (dict(severities=(4,)), "severity"), (dict(limit=1), "limit"), (dict(threshold=1.5), "between 0 and 1"), (dict(split="all"), "must be one of"),
])  # fmt: skip
def test_wrong_settings_are_refused(phantom_folder, change, words):
    with pytest.raises(ValueError, match=words):
        audit(bright, phantom_folder, **{**FEW, **change})


def test_wrong_predictions_are_refused(phantom_folder):
    for predict, words in ((lambda i, r: i, "shape"), (lambda i, r: 5 * i[:, :1], "outside"), (lambda i, r: i[:, :1] * torch.nan, "outside")):
        with pytest.raises(ValueError, match=words):
            audit(predict, phantom_folder, **FEW)


def test_our_own_model_is_audited_from_the_command_line(tiny_model_dir, phantom_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["audit", "--model", str(tiny_model_dir), "--data", str(phantom_folder), "--out", str(tmp_path / "a"), "--limit", "4"])
    assert not caught.value.code and "worst edit" in capsys.readouterr().out
    result = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert result["n"] == 4 and result["of"] == 15 and len(result["edits"]) == 24 and set(result["localisation"]) == {"lesion", "acquisition"}
    model = CausalCLIPSeg.from_pretrained(tiny_model_dir)
    again = audit(predictor(model), phantom_folder, model="tiny", attention=attention(model), image_size=64, limit=4)
    assert again.result["edits"] == result["edits"] and again.result["localisation"] == result["localisation"]


def test_an_audit_goes_by_the_runs_own_split_rule_and_says_what_was_trained_on(tiny_model_dir, phantom_folder, tmp_path, capsys):
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / "training.json").write_text(json.dumps({"train_splits": ["train", "val"], "split_rule": "first80"}))
    with pytest.raises(SystemExit):
        cli.main(["audit", "--model", str(model), "--data", str(phantom_folder), "--out", str(tmp_path / "a"), "--limit", "2", "--split", "val"])
    result = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert "trained on the validation pictures" in result["note"] and "trained on the validation pictures" in capsys.readouterr().err
    assert "80" in result["split_rule"]


def test_a_file_in_the_way_is_refused(bright_audit, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        bright_audit.save(tmp_path / "file")
