"""Ways to tell training from validation pictures, and the other two data sets of the LViT layout, from check to scores."""
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from causalclipseg import cli
from causalclipseg.config import TrainingConfig
from causalclipseg.data import DataError, check, find_samples, split_rule
from causalclipseg.data.splits import patient_of
from causalclipseg.feeding import find_data
from causalclipseg.training import train
from conftest import make_tiny_config
from test_data import LEFT, make_csv, make_kaggle, make_lvit, names, pair, table


def split_of(root, rule):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {s.name: s.split for s in find_samples(root, "all", rule=rule)}


def test_first80_takes_the_first_rows_whatever_the_id_workbooks_say(tmp_path):
    make_kaggle(tmp_path)  # the table names the two pictures of the id workbook for validation first
    published, first = split_of(tmp_path, "published"), split_of(tmp_path, "first80")
    assert {n for n, s in published.items() if s == "val"} == set(names("val", 2)) and split_rule(tmp_path) == "published ids"
    assert {n for n, s in first.items() if s == "val"} == set(names("train", 8)[6:]) and split_rule(tmp_path, "first80") == "first 80 per cent of rows"
    assert {n for n, s in published.items() if s == "test"} == {n for n, s in first.items() if s == "test"}


def test_first80_counts_rows_before_any_is_left_out(tmp_path):
    make_csv(tmp_path, train=10)
    rows = [(f"mask_{n}.png", LEFT) for n in ["gone_1", "gone_2", *names("Train", 10)]]
    table(tmp_path / "prompt" / "train.csv", rows)
    split = split_of(tmp_path, "first80")  # int(0.8 * 12) = 9 rows, two of them without a picture
    assert sum(s == "train" for s in split.values()) == 7


def test_first80_joins_the_folders_of_a_layout_that_has_both(tmp_path):
    make_lvit(tmp_path, train=6, val=4)
    split = split_of(tmp_path, "first80")
    assert [n for n, s in split.items() if s == "val"] == names("Val", 4)[2:]


@pytest.mark.parametrize("rule", ["published", "patients"])
def test_no_patient_is_on_both_sides(tmp_path, rule):
    """Ten patients of four pictures each, dealt out by the id workbooks so that most are on both sides."""
    members = [f"sub-S{p:03d}_run-{i}" for p in range(10) for i in range(4)] + [f"covid_{i}" for i in range(20)]
    home = tmp_path / "QaTa-COV19-v2"
    for name in members:
        pair(home / "Train Set" / "Images", home / "Train Set" / "Ground-truths", name)
    table(home / "Train_text.xlsx", [(f"mask_{n}.png", LEFT) for n in members])
    table(home / "Val_ID.xlsx", [(f"mask_{n}.png",) for n in members[3::5]], ("Image",))
    samples = find_samples(tmp_path, "all", rule=rule)
    sides = {split: {patient_of(s) for s in samples if s.split == split} - {None} for split in ("train", "val")}
    if rule == "published":
        assert sides["train"] & sides["val"] and sum(x.startswith("subjects in more than one split") for x in (f.what for f in check(tmp_path).findings)) == 1
    else:
        assert not sides["train"] & sides["val"] and split_rule(tmp_path, rule) == "disjoint by patient"
        assert {s.split for s in samples if s.source == "covid"} == {"train"}, "nothing tells whose these are"
        assert sum(s.split == "val" for s in samples) == 12, "20 per cent of 60, in whole patients"
        assert samples == find_samples(tmp_path, "all", rule=rule), "the same again"


def test_a_fifth_of_each_source_is_held_out_and_measured_by_source(tmp_path):
    """Validation as published has one source; a run with this rule leaves out some of both, and scores say so."""
    members = [f"sub-S{p:03d}_run-{i}" for p in range(5) for i in range(4)] + [f"covid_{i}" for i in range(10)]
    home = tmp_path / "QaTa-COV19-v2"
    for name in members:
        pair(home / "Train Set" / "Images", home / "Train Set" / "Ground-truths", name, size=64)
    table(home / "Train_text.xlsx", [(f"mask_{n}.png", LEFT) for n in members])
    table(home / "Val_ID.xlsx", [(f"mask_{n}.png",) for n in members[:4]], ("Image",))
    samples = find_samples(tmp_path, "all", rule="sources")
    held_out = [s for s in samples if s.split == "val"]
    assert {s.source for s in find_samples(tmp_path, "val")} == {"sub"}
    assert sorted(s.source for s in held_out) == ["covid"] * 2 + ["sub"] * 4 and len({patient_of(s) for s in held_out if s.source == "sub"}) == 1
    assert {s.name for s in samples} == set(members) and samples == find_samples(tmp_path, "all", rule="sources"), "the same again"

    config = TrainingConfig(epochs=1, batch_size=4, sizes=(), split_rule="sources", samples_every=0)
    run = train([str(tmp_path)], tmp_path / "run", make_tiny_config(), config, quiet=True)
    assert (facts := json.loads((run / "training.json").read_text())["data"][0])["train"] == 24 and facts["split_rule"].startswith("a fifth of each source")
    command = ["evaluate", "--model", str(run), "--data", str(tmp_path), "--split", "val", "--split-rule", "sources", "--no-surface"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--out", str(tmp_path / "scores.json")])
    assert not ended.value.code
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {source: row["n"] for source, row in scores["subgroups"]["source"].items()} == {"covid": 2, "sub": 4}
    assert "trained with split_rule=sources" in scores["note"] and scores["split_rule"] == facts["split_rule"]


def test_a_rule_that_cannot_be_kept_or_is_not_known_is_refused(tmp_path):
    root = tmp_path / "bare"
    for name in ("a", "b", "c"):
        pair(root / "Train" / "Images", root / "Train" / "GTs", name)
    table(root / "prompt" / "train.csv", [(f"{n}.png", LEFT) for n in "abc"])
    with pytest.raises(DataError, match='0 patients apart, too few for the split rule "patients". Choose "published" or "first80"'):
        find_samples(root, "val", rule="patients")
    make_lvit(tmp_path / "test only", train=0, val=0)
    with pytest.raises(DataError, match="has no train split, only: test"):
        find_samples(tmp_path / "test only", "train", rule="patients")
    assert len(find_samples(tmp_path / "test only", "all", rule="patients")) == 3
    with pytest.raises(DataError, match="must be one of published, first80, patients, sources; got 'last20'"):
        find_samples(root, "train", rule="last20")
    with pytest.raises(ValueError, match="split_rule must be one of published, first80, patients, sources"):
        TrainingConfig(split_rule="last20")


# ---------------------------------------------------------------- what of the splits is trained on


def found(root, **changes):
    return find_data([str(root)], TrainingConfig(**changes))


def test_sources_that_are_left_out_are_validated_and_not_trained_on(tmp_path):
    make_kaggle(tmp_path)
    (folder,), facts = found(tmp_path, leave_out=("covid",))
    assert [s.name for s in folder.train] == names("train", 8)[::2] and {s.source for s in folder.train} == {"sub"}
    assert [s.name for s in folder.val] == names("val", 2)
    assert {key: facts["data"][0][key] for key in ("train", "val")} == {"train": 8, "val": 2}, "what the folder has"
    with pytest.raises(DataError, match="leaves no training picture of"):
        found(tmp_path, leave_out=("covid", "sub"))


def test_both_splits_are_trained_on_where_the_settings_say_so(tmp_path):
    make_kaggle(tmp_path)
    for splits, expected in ((("train",), names("train", 8)), (("train", "val"), names("train", 8) + names("val", 2))):
        (folder,), _ = found(tmp_path, train_splits=splits)
        assert [s.name for s in folder.train] == expected and [s.name for s in folder.val] == names("val", 2)
    (folder,), _ = found(tmp_path, train_splits=("train", "val"), leave_out=("sub",))
    assert {s.name for s in folder.train} == {n for n in names("train", 8) + names("val", 2) if n.startswith("covid")}


def test_training_needs_pictures_of_both_splits(tmp_path):
    make_kaggle(tmp_path, train=1, val=1)  # of one patient, who stays whole
    with pytest.raises(DataError, match="has 2 training and 0 validation pictures; both are needed"):
        found(tmp_path, split_rule="sources")


@pytest.mark.parametrize("name, patient", [
    ("sub-S10644_ses-E19682_run-1_bp-chest_vp-ap_cr", "S10644"), ("covid_17", None), ("Morozov_study_0255_12", "Morozov_study_0255"),
    ("16_Morozov_study_0003_24", "Morozov_study_0003"), ("Jun_coronacases_case7_75", "Jun_coronacases_case7"), ("bjorke_5", None),
    ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-A7-A13E"), ("phantom_00012", "phantom_00012"),
])  # fmt: skip
def test_patients_are_told_by_their_names(tmp_path, name, patient):
    pair(tmp_path / "Train" / "Images", tmp_path / "Train" / "GTs", name)
    table(tmp_path / "prompt" / "train.csv", [(f"{name}.png", LEFT)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = find_samples(tmp_path, "all", need_reports=False)
    assert [patient_of(s) for s in samples] == [patient]


# ---------------------------------------------------------------- the LViT layout's other data sets

NUCLEI = ["The nuclei are evenly distributed.", "The nuclei density in the upper left is high.", "The nuclei are sparsely distributed."]
SLICES = ["Bilateral pulmonary infection, nine infected areas, left lung and middle right lung.", "Unilateral pulmonary infection, two infected areas, right lung."]


def make_slides(root):
    """MoNuSeg's way: stained slides in colour, many small nuclei, other sentences; Train, Val and Test folders."""
    rng = np.random.default_rng(3)
    for split, n in (("Train", 8), ("Val", 2), ("Test", 3)):
        members = [f"TCGA-{split[0]}{i}-A13E-01Z-00-DX1" for i in range(n)]
        for part in ("img", "labelcol"):
            (root / f"{split}_Folder" / part).mkdir(parents=True)
        for name in members:
            mask = np.zeros((96, 96), bool)
            for y, x in rng.integers(6, 90, (12, 2)):
                mask[y - 4 : y + 4, x - 4 : x + 4] = True
            stain = np.where(mask[..., None], (90, 40, 130), (230, 190, 220)) + rng.integers(-15, 15, (96, 96, 3))
            Image.fromarray(stain.clip(0, 255).astype(np.uint8)).save(root / f"{split}_Folder" / "img" / f"{name}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"{split}_Folder" / "labelcol" / f"{name}.png")
        table(root / f"{split}_Folder" / f"{split}_text.xlsx", [(f"{m}.png", NUCLEI[i % 3]) for i, m in enumerate(members)])
    return "folders"


def make_ct(root):
    """MosMedData+'s way: CT slices, one table for Train and Val, and a mask's values 0 and 1."""
    for split, n in (("Train", 8), ("Val", 2), ("Test", 3)):
        for name in (f"Morozov_study_{split}{i:04d}_{i}".replace(split, "") + f"_{split}" for i in range(n)):
            pair(root / f"{split}_Folder" / "img", root / f"{split}_Folder" / "labelcol", name, f"{name}.png", size=64)
            path = root / f"{split}_Folder" / "labelcol" / f"{name}.png"
            Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    files = {s: sorted(p.name for p in (root / f"{s}_Folder" / "img").iterdir()) for s in ("Train", "Val", "Test")}
    table(root / "Train_Folder" / "Train_Val_text.xlsx", [(n, SLICES[i % 2]) for i, n in enumerate(files["Train"] + files["Val"])])
    table(root / "Test_Folder" / "Test_text.xlsx", [(n, SLICES[i % 2]) for i, n in enumerate(files["Test"])])
    return "folders"


@pytest.mark.parametrize("make", [make_slides, make_ct])
def test_check_train_and_evaluate_run_unchanged_on_the_other_data_sets(tmp_path, capsys, make):
    root = tmp_path / make.__name__
    rule = make(root)
    found = check(root)
    assert found.errors == 0 and found.counts == {"train": 8, "val": 2, "test": 3} and found.layout == "lvit" and found.split_rule == rule
    config = TrainingConfig(epochs=1, batch_size=4, sizes=(), split_rule="patients", samples_every=0)
    out = train([str(root)], tmp_path / "run", make_tiny_config(), config, quiet=True)
    facts = json.loads((out / "training.json").read_text())
    assert facts["split_rule"] == "patients" and facts["data"][0]["split_rule"] == "disjoint by patient"
    assert facts["data"][0]["train"] + facts["data"][0]["val"] == 10
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--model", str(out), "--data", str(root), "--out", str(tmp_path / "scores.json"), "--text", "shuffled", "--split-rule", "patients"])
    assert not ended.value.code, capsys.readouterr().err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["n"] == 3 and scores["split_rule"] == "disjoint by patient" and 0 <= scores["per_image"]["dice"]["mean"] <= 1
