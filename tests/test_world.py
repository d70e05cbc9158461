"""The world of phantoms: a structural causal model whose dials move one thing each."""
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from causalclipseg import phantoms, reports
from causalclipseg.data import check, find_samples
from causalclipseg.phantoms import World
from causalclipseg.scm import our_graph

COUPLINGS = (-0.9, 0.0, 0.5, 0.9)


@pytest.fixture(scope="module")
def patients():
    """By coupling, the same 40 patients (the same seed), 96 x 96."""
    return {c: World(c, size=96).sample(40, seed=3) for c in COUPLINGS}


def causes(coupling, n=20_000, seed=0):
    """W, A, L of many units, without drawing a picture."""
    model = World(coupling).model
    noise, values = model.sample_noise(n, seed), {}
    for name in "WAL":
        values[name] = model._evaluate(name, values, noise, n)
    return values


def test_its_graph_is_ours_with_the_parts_of_a_picture_named():
    """Lesion L of `our_graph` is the whole lesion here (`lesions`), of which L says the lung."""
    world, ours = World().model.graph, our_graph()
    here = lambda name: "lesions" if name == "L" else name
    for x, y in ("AW", "LW", "AL", "IT", "AY", "LT", "AT", "WY", "WI", "TY"):
        for given in ((), "W", "L", "WL", "AL"):
            held = {*given} - {x, y}
            known = held | {"lesions"} if "L" in held else held
            assert world.d_separated(here(x), here(y), known) == ours.d_separated(x, y, held), (x, y, held)
    assert not {"L", "lesions", "Y", "T"} & world.descendants("A") and world.is_backdoor_set("A", "Y", "W")


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_only_the_coupling_of_a_and_l_changes(coupling):
    v = causes(coupling)
    for name in "WAL":
        assert v[name].mean() == pytest.approx(0.5, abs=0.015)  # four standard errors
    assert np.corrcoef(v["A"], v["L"])[0, 1] == pytest.approx(coupling, abs=0.03)
    assert (v["A"] == v["L"]).mean() == pytest.approx((1 + coupling) / 2, abs=0.015)


def contrast(p):
    """How much brighter the lesion is than the lung around it, in grey values; NaN where it fills the lung."""
    side = p.lungs[p.variables["L"]]
    ring = side & ndimage.binary_dilation(p.mask, iterations=4) & ~ndimage.binary_dilation(p.mask, iterations=1)
    return float(p.image[p.mask].mean()) - float(p.image[ring].mean()) if ring.any() else np.nan


def test_how_well_lesions_show_does_not_depend_on_the_coupling():
    values = {c: np.array([contrast(p) for p in World(c, size=96).stream(150, seed=8)]) for c in (0.0, 0.9)}
    means = {c: np.nanmean(v) for c, v in values.items()}
    error = np.hypot(*(np.nanstd(v) / np.sqrt(np.isfinite(v).sum()) for v in values.values()))
    assert means[0.0] > 5 and abs(means[0.9] - means[0.0]) < 3 * error
    assert error < 0.2 * means[0.0]


def test_the_lesion_lies_in_the_lung_that_l_names_and_the_mimic_in_the_other(patients):
    for p in patients[0.9]:
        side = p.variables["L"]
        assert p.mask.any() and p.mimic.any() and not (p.mask & ~p.lungs[side]).any() and not (p.mimic & ~p.lungs[1 - side]).any()
        assert p.variables["lesions"]["sides"] == [("left", "right")[side]]
        half = p.device[:, :48] if p.variables["A"] == 0 else p.device[:, 48:]
        assert half.sum() > 0.8 * p.device.sum() > 10 and not (p.device & p.mask).any() and not (p.device & ~p.acquisition).any()


def test_lesion_and_mimic_are_alike_in_place_and_size(patients):
    pooled = [p for c in (0.9, -0.9) for p in patients[c]]
    lesion, mimic = (np.mean([getattr(p, name) for p in pooled], axis=(1, 2)) for name in ("mask", "mimic"))
    assert abs(lesion.mean() - mimic.mean()) < 4 * np.hypot(lesion.std(), mimic.std()) / np.sqrt(len(pooled))


def test_a_seed_gives_the_same_patients_however_many(patients):
    again = World(0.9, size=96).sample(3, seed=3)
    for p, q in zip(again, patients[0.9]):
        assert np.array_equal(p.image, q.image) and p.report == q.report and p.variables == q.variables and p.noise == q.noise
    assert not np.array_equal(World(0.9, size=96).sample(1, seed=4)[0].image, again[0].image)


def test_a_counterfactual_is_the_same_patient_on_the_other_scanner(patients):
    world = World(0.9, size=96)
    for p in patients[0.9][:8]:
        q = world.counterfactual(p, A=1 - p.variables["A"])
        assert np.array_equal(p.mask, q.mask) and np.array_equal(p.lungs, q.lungs) and np.array_equal(p.mimic, q.mimic)
        assert p.report == q.report and p.noise == q.noise and q.variables["A"] == 1 - p.variables["A"]
        changed = p.image != q.image  # faint edges of what was drawn reach a little further
        assert changed.any() and not (changed & ~ndimage.binary_dilation(p.device | q.device, iterations=2)).any()
        same = world.counterfactual(p, A=p.variables["A"])
        assert np.array_equal(same.image, p.image)
        other = world.counterfactual(p, L=1 - p.variables["L"])
        assert not (other.mask & p.mask).any() and np.array_equal(other.lungs, p.lungs) and np.array_equal(other.device, p.device)


def test_do_sets_a_variable_for_everyone_and_cuts_its_arrows():
    world = World(1.0, "side", size=64)
    for name, value in (("A", 1), ("L", 0), ("W", 1)):
        found = world.sample(12, seed=1, do={name: value})
        assert {p.variables[name] for p in found} == {value}
        others = {other: {p.variables[other] for p in found} for other in "WAL" if other != name}
        if name == "W":
            assert others == {"A": {1}, "L": {1}}
        else:
            assert all(len(seen) == 2 for seen in others.values())


def test_how_much_a_sentence_tells():
    for precision, told in (("generic", None), ("side", "side"), ("specific", "zones")):
        for p in World(0.5, precision, size=64).sample(6, seed=2):
            said = reports.parse(p.report)
            assert not said.unread
            assert (said.side is None) if told is None else (said.side == ("left", "right")[p.variables["L"]])
            if told == "zones":
                assert replace(said, unread=()) == replace(reports.parse(reports.describe(p.mask)), unread=())


def test_each_ward_has_its_habit_in_words():
    model = World(0.9).model
    noise = model.sample_noise(4000, 0)
    lesion = phantoms.Lesions(None, None, {"sides": ["left"]})
    for ward, share in ((0, 0.25), (1, 0.75)):
        opens = [World()._sentence(lesion, ward, u).startswith(phantoms.OPENING) for u in noise["T"]]
        assert np.mean(opens) == pytest.approx(share, abs=0.03)


def test_what_is_refused(patients):
    for wrong, said in ((dict(coupling=1.1), "correlation, from -1 to 1, not 1.1"), (dict(precision="exact"), "generic, side, specific, not 'exact'"),
                        (dict(size=32), "at least 64, not 32"), (dict(mimic=2), "a share, from 0 to 1, not 2")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            World(**wrong)
    with pytest.raises(ValueError, match="World"):
        World(size=64).counterfactual(phantoms.sample_phantom(1, 64), A=1)
    with pytest.raises(ValueError, match="no variable"):
        World(size=96).counterfactual(patients[0.9][0], scanner=1)


def test_a_world_on_disk_has_its_truth_beside_it(tmp_path):
    world = World(0.8, "specific", size=64)
    root = phantoms.write_dataset(tmp_path / "world", 8, seed=5, world=world)
    about = json.loads((root / "phantoms.json").read_text())
    assert World(**about["world"]).settings == world.settings and about["size"] == 64
    assert Counter(s.split for s in (*find_samples(root, "train"), *find_samples(root, "val"), *find_samples(root, "test"))).total() == 8
    assert not check(root).errors
    for picture, p in zip(about["pictures"], world.stream(8, seed=5)):
        folder = root / "QaTa-COV19-v2" / ("Test Set" if picture["split"] == "test" else "Train Set")
        read = lambda path: np.asarray(Image.open(path))
        assert np.array_equal(read(folder / "Images" / picture["image"]), p.image)
        assert np.array_equal(read(root / "truth" / "acquisition" / picture["image"]) > 0, p.acquisition)
        assert np.array_equal(read(root / "truth" / "device" / picture["image"]) > 0, p.device)
        lungs = read(root / "truth" / "lungs" / picture["image"])
        assert np.array_equal(np.stack([lungs == 1, lungs == 2]), p.lungs)
        assert {k: picture[k] for k in "WAL"} == {k: p.variables[k] for k in "WAL"} and picture["noise"] == p.noise
    again = phantoms.write_dataset(root, 3, size=64)  # a plain set replaces it
    assert json.loads((again / "phantoms.json").read_text())["world"] is None and not (again / "truth" / "device").exists()
