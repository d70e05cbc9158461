"""`data check`, `data describe` and `data download` on small folders with planted faults."""
import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalclipseg import reports
from causalclipseg.cli import main
from causalclipseg.data import DataError, check, describe, download, find_samples, load_mask
from causalclipseg.phantoms import write_dataset


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good") / "data"
    write_dataset(root, 30, size=64)
    return root


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "data"))


def command(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["data", *map(str, words)])
    return stop.value.code or 0


def errors(result):
    return {f.what: f.names for f in result.findings if f.error}


def warned(result):
    return {f.what: f.names for f in result.findings if not f.error}


def test_a_good_folder_passes(good, tmp_path, capsys):
    result = check(good)
    assert not errors(result) and result.layout == "kaggle" and result.split_rule == "published ids"
    assert result.counts == {s: len(find_samples(good, s)) for s in ("train", "val", "test")}
    assert command("check", good, "--out", tmp_path / "check.json") == 0
    assert "0 errors" in (text := capsys.readouterr().out) or "nothing to object" in text
    kept = json.loads((tmp_path / "check.json").read_text())
    assert kept["errors"] == 0 and kept["counts"] == result.counts and str(tmp_path) not in json.dumps(kept)


def test_planted_faults_are_found(folder, capsys):
    train = find_samples(folder, "train")
    test = find_samples(folder, "test")
    missing, broken, odd, empty, twice = train[:5]
    shutil.copy(odd.mask, odd.mask.with_name("mask_orphan_1.png"))
    missing.mask.unlink()
    broken.image.write_bytes(broken.image.read_bytes()[:60])
    Image.fromarray(np.full((40, 64), 255, np.uint8)).save(odd.mask)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(empty.mask)
    shutil.copy(twice.image, test[0].image)
    result = check(folder)
    found = errors(result)
    assert found["pictures without a mask"] == [missing.image.name] and found["masks without a picture"] == ["mask_orphan_1.png"]
    assert broken.image.name in found["files that can't be read"][0]
    assert found["masks of another size than their picture"] == [odd.name]
    assert twice.name in found["pictures in more than one split"][0] and test[0].name in found["pictures in more than one split"][0]
    assert warned(result)["empty masks"] == [empty.name]
    assert command("check", folder) == 1
    out = capsys.readouterr()
    assert "ERROR" in out.out and "Traceback" not in out.out + out.err


def test_sentences_that_contradict_their_mask_are_named(tmp_path):
    for name in ("Train", "Test"):
        for inner in ("Images", "GTs"):
            (tmp_path / name / inner).mkdir(parents=True)
    left = np.zeros((64, 64), np.uint8)
    left[40:60, 5:25] = 255
    rows = {
        "sub-S1_a": "Unilateral pulmonary infection, one infected area, lower left lung.",
        "sub-S1_b": "Unilateral pulmonary infection, one infected area, lower right lung.",
        "sub-S2_a": "Unilateral pulmonary infection, two infected areas, upper left lung.",
        "sub-S3_a": "Unilateral pulmonary infection, one infected area, lower right lung, with foo.",  # so nothing is said of its side
        "sub-S4_a": "Bilateral pulmonary infection, one infected area, lower left lung.",
    }
    rng = np.random.default_rng(0)
    (tmp_path / "prompt").mkdir()
    for split, names in (("Train", list(rows)[:4] + ["sub-S4_a"]), ("Test", ["sub-S1_c"])):
        for name in names:
            Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(tmp_path / split / "Images" / f"{name}.png")
            Image.fromarray(left).save(tmp_path / split / "GTs" / f"{name}.png")
        lines = [f'{n}.png,"{rows.get(n, rows["sub-S1_a"])}"' for n in names]
        (tmp_path / "prompt" / f"{split.lower()}.csv").write_text("Image,Description\n" + "\n".join(lines) + "\n")
    result = check(tmp_path)
    w = warned(result)
    assert not errors(result)
    assert w["sentences whose side differs from the mask's"] == ["sub-S1_b"]
    assert w["sentences whose zones differ from the mask's"] == ["sub-S2_a"]
    assert w["sentences whose count differs from the mask's"] == ["sub-S2_a"]
    assert w["sentences that are not fully understood"] == ["sub-S3_a"]
    assert w["sentences that contradict themselves"] == ["sub-S4_a"]
    assert w["subjects in more than one split: results on them are too good"] == ["S1"]
    assert any("the published split 5,716" in what for what in w)  # it looks like QaTa-COV19


def test_inverted_masks_exchanged_sides_and_folders_of_no_split_are_told(folder, capsys):
    assert not {what for what in warned(check(folder)) if "inverted" in what or "exchanged" in what or "no split" in what}
    for sample in find_samples(folder, "val"):
        Image.fromarray(255 - np.asarray(Image.open(sample.mask))).save(sample.mask)
    for sample in find_samples(folder, "test")[:1]:  # a single one of its split may be large
        Image.fromarray(255 - np.asarray(Image.open(sample.mask))).save(sample.mask)
    shutil.copytree(folder / "QaTa-COV19-v2" / "Test Set", folder / "QaTa-COV19-v2" / "Holdout Set")
    table = folder / "Train_text_for_Covid19.xlsx"
    rows = [(s.name, reports.swap_sides(s.report)) for split in ("train", "val") for s in find_samples(folder, split)]
    table.unlink()
    with open(table.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([("Image", "Description"), *rows])
    w = warned(check(folder))
    inverted, = (names for what, names in w.items() if "inverted?" in what)
    assert sorted(inverted) == sorted(s.name for s in find_samples(folder, "val"))
    assert [names for what, names in w.items() if "belong to no split" in what] == [["Holdout Set"]]
    told, = (what for what in w if "exchanged" in what)
    assert "the patient's left and right" in told and "reports.swap_sides" in told
    assert command("check", folder) == 0 and capsys.readouterr().out.count("the patient's left") == 1


@pytest.mark.parametrize("layout", ["kaggle", "lvit"])
def test_describe_writes_sentences_that_the_layout_finds(folder, tmp_path, layout, capsys):
    if layout == "kaggle":
        root = folder
        for table in [*root.rglob("*.xlsx"), *root.rglob("*.csv")]:
            table.unlink()
    else:
        root = tmp_path / "lvit"
        for split in ("train", "val", "test"):
            for sample in find_samples(folder, split):
                for inner, file in (("img", sample.image), ("labelcol", sample.mask)):
                    place = root / f"{split.capitalize()}_Folder" / inner
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, place / file.name)
    assert command("check", root) == 1  # pictures without any sentences
    assert "no table of sentences" in capsys.readouterr().out
    assert command("describe", root) == 0
    samples = find_samples(root, "all")
    assert len(samples) == 30
    assert all(s.report == reports.describe(load_mask(s.mask)) for s in samples)
    table = next(iter(root.rglob("*rain*.csv")))
    assert "written from the mask" in table.read_text().splitlines()[1]
    before = table.read_text()
    with pytest.raises(DataError, match="already has its sentences"):
        describe(root)
    assert table.read_text() == before and check(root).errors == 0


def test_describe_needs_masks(folder):
    for table in [*folder.rglob("*.xlsx"), *folder.rglob("*.csv"), *folder.rglob("Ground-truths/*")]:
        table.unlink()
    with pytest.raises(DataError, match="22 pictures without a mask"):
        describe(folder)
    assert not [*folder.rglob("*.csv")]


def test_describe_leaves_out_what_has_no_mask_and_says_so_once(tmp_path):
    for i in range(4):
        (tmp_path / "Images").mkdir(exist_ok=True), (tmp_path / "Ground-truths").mkdir(exist_ok=True)
        mask = np.zeros((64, 64), np.uint8)
        mask[40:60, 5 + i : 25] = 255
        Image.fromarray(mask).save(tmp_path / "Images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "Ground-truths" / f"mask_{i}.png")
    (tmp_path / "Ground-truths" / "mask_3.png").unlink()
    with pytest.warns(UserWarning) as caught:
        assert describe(tmp_path) == {tmp_path / "prompt" / "train.csv": 3}
    assert [str(w.message).split(": ")[1] for w in caught] == ["1 pictures without a mask (3.png). Left out."]
    for i in (1, 2, 3):
        (tmp_path / "Images" / f"{i}.png").unlink()
        (tmp_path / "Ground-truths" / f"mask_{i}.png").unlink(missing_ok=True)
    (tmp_path / "prompt" / "train.csv").unlink()
    assert list(describe(tmp_path).values()) == [1], "a single picture, which the split rule gives to val"


class Hub:
    """Stands for kagglehub, and so for the network: gives a folder, or raises."""

    def __init__(self, answer):
        self.answer = answer

    def dataset_download(self, name):
        assert name == "aysendegerli/qatacov19-dataset"
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_a_failed_download_without_a_token_says_how(no_token, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kagglehub", Hub(RuntimeError("401 Unauthorized")))
    assert command("download", tmp_path / "new") == 2
    error = capsys.readouterr().err
    assert "401 Unauthorized" in error and "no Kaggle token" in error and "KAGGLE_USERNAME" in error and "Traceback" not in error
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "kaggle.json").write_text("{}")
    assert command("download", tmp_path / "new") == 2
    error = capsys.readouterr().err
    assert "401 Unauthorized" in error and "no Kaggle token" not in error and "in a browser" in error
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("x")
    assert command("download", tmp_path / "new") == 2
    assert (tmp_path / "new" / "mine.txt").read_text() == "x"


def test_download_puts_what_kagglehub_fetched_in_place_with_or_without_a_token(no_token, good, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DataError, match="kagglehub is not installed; run `pip install kagglehub`"):
        download(tmp_path / "new")
    monkeypatch.setitem(sys.modules, "kagglehub", Hub(good))
    assert len(find_samples(download(tmp_path / "new"), "all")) == 30
    monkeypatch.setenv("KAGGLE_API_TOKEN", "x")
    monkeypatch.setitem(sys.modules, "kagglehub", Hub(RuntimeError("403 Forbidden")))
    with pytest.raises(DataError, match="403 Forbidden"):
        download(tmp_path / "other")
    assert not (tmp_path / "other").exists()
