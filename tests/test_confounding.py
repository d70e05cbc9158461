"""The experiment: its sums, its remedies' edits, that it runs whole and goes on where it was stopped."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from causalclipseg import acquisition, confounding
from causalclipseg._confounding_page import interval, summarise, verdict
from causalclipseg.cli import main
from causalclipseg.confounding import METHODS, SETS, SMALL, Method
from causalclipseg.phantoms import OPENING, World

TINY = replace(SMALL, train=40, test=12, steps=4, batch=8, strengths=(0.6,))


def row(method, seed, same, none, reverse):
    looks = {kind: {r: dict.fromkeys(("auroc_m", "auroc_one_minus_m", "mass_m", "mass_one_minus_m", "area"), 0.5) for r in ("lesion", "device")}
             for kind in ("trained", "untrained", "location prior")}  # fmt: skip
    probes = {kind: dict.fromkeys(("Y from F^s", "Y from F^c", "A from F^c", "A from F^s"), 0.5) for kind in ("trained", "untrained")}
    return {"method": method, "seed": seed, "strength": 0.6, "dice": dict(zip(SETS, (same, none, reverse, reverse))), "change": 0.1, "looks": looks,
            "probes": probes, "history": []}  # fmt: skip


def test_drop_and_share_closed_are_the_formulas_paired_by_seed():
    rows = [row("oracle", 0, 0.8, 0.8, 0.8), row("oracle", 1, 0.9, 0.88, 0.86), row("none", 0, 0.8, 0.7, 0.6), row("none", 1, 0.9, 0.8, 0.66),
            row("causal", 0, 0.8, 0.75, 0.7), row("causal", 1, 0.88, 0.8, 0.71)]  # fmt: skip
    found = summarise(rows, METHODS)
    assert found["none"]["drop"]["mean"] == pytest.approx(((0.2 - 0) + (0.24 - 0.04)) / 2)
    assert found["causal"]["drop"]["mean"] == pytest.approx(((0.1 - 0) + (0.17 - 0.04)) / 2)
    assert found["causal"]["closed"]["mean"] == pytest.approx((0.1 / 0.2 + 0.05 / 0.2) / 2)
    assert found["none"]["closed"]["mean"] == 0 and found["oracle"]["closed"]["mean"] == pytest.approx(1)
    assert found["causal"]["to the oracle"]["mean"] == pytest.approx((-0.05 - 0.08) / 2)
    said = verdict(rows, found)
    assert said["dice reversed"]["mean"] == pytest.approx(0.075) and said["drop"]["mean"] == pytest.approx((-0.1 - 0.07) / 2)


def test_the_interval_is_students():
    values = [0.1, 0.2, 0.4]
    found = interval(values)
    half = 4.302652729911275 * np.std(values, ddof=1) / 3**0.5  # t of 2 degrees of freedom, 97.5 %
    assert found["mean"] == pytest.approx(7 / 30) and found["high"] - found["mean"] == pytest.approx(half)
    assert interval([0.3])["low"] is None and interval([])["mean"] is None and interval([np.nan, 1.0])["n"] == 1


def test_the_views_of_a_remedy_hold_the_patient_and_never_show_the_other_scanner(tmp_path):
    data = confounding.compose(confounding.patients("train", TINY, tmp_path), 0.6, 0)
    chosen, rng = np.array([3, 5, 8]), np.random.default_rng(0)
    for name in ("interventional", "augmentation"):
        images, sentences = confounding._views(METHODS[name], data, chosen, rng)
        assert images.shape == (6, 64, 64) and len(sentences) == 6
        candidates = [np.concatenate([data["image"][[k]], data["edited"][k]]) for k in (*chosen, *chosen)]
        assert all((c == i).all((1, 2)).any() for c, i in zip(candidates, images))
    images, _ = confounding._views(METHODS["matched"], data, chosen, rng)
    assert all((i == data["image"][k]).all() or (i == data["other"][k]).all() for i, k in zip(images, (*chosen, *chosen)))
    many = rng.integers(40, size=2000)
    images, _ = confounding._views(METHODS["matched"], data, many, rng)
    own = (images == data["image"][np.tile(many, 2)]).all((1, 2)).reshape(2, -1)  # either view: the scanner by a coin, whatever the other's
    assert own.mean(1) == pytest.approx([0.5, 0.5], abs=0.04) and (own[0] & own[1]).mean() == pytest.approx(0.25, abs=0.04)
    data["field"] = data["mask"].any(0)
    images, sentences = confounding._views(METHODS["surroundings"], data, chosen, rng)
    assert images.shape == (3, 64, 64) and sentences == data["report"][chosen].tolist()
    assert (images[:, data["field"]] == data["image"][chosen][:, data["field"]]).all()  # with the lesion, which lies inside
    assert all((i != data["image"][k])[~data["field"]].mean() > 0.5 for i, k in zip(images, chosen))
    chosen = rng.integers(40, size=400)
    images, _ = confounding._views(METHODS["adjusted with edits"], data, chosen, rng)
    kept, edited = (images == data["image"][chosen]).all((1, 2)), (images[:, None] == data["edited"][chosen]).all((2, 3)).any(1)
    assert (kept | edited).all() and kept.mean() == pytest.approx(0.75, abs=0.08)
    images, sentences = confounding._views(METHODS["none"], data, chosen, rng)
    assert (images == data["image"][chosen]).all() and sentences == data["report"][chosen].tolist()


def test_sets_of_other_couplings_hold_the_same_patients_on_the_scanners_of_the_world():
    n = 4000
    people = {"L": np.arange(n) % 2, "pictures": np.arange(2 * n).reshape(2, n), "devices": np.zeros((2, n)), "mask": np.arange(n),
              "report": np.array(["Pulmonary infection."] * n), "edited": np.zeros((2, n))}  # fmt: skip
    for c in (0.9, 0.0, -0.9):
        found, world = confounding.compose(people, c, 0), World(c).model
        noise, seen = world.sample_noise(n, 1), {}
        for name in "WAL":
            seen[name] = world._evaluate(name, seen, noise, n)
        for x, y in ("WA", "WL", "AL"):
            assert np.corrcoef(found[x], found[y])[0, 1] == pytest.approx(np.corrcoef(seen[x], seen[y])[0, 1], abs=0.06)
        assert (found["image"] == people["pictures"][found["A"], np.arange(n)]).all() and (found["mask"] == people["mask"]).all()
        assert (abs(found["other"] - found["image"]) == n).all()
        opens = np.char.startswith(found["report"], OPENING)
        assert opens[found["W"] == 1].mean() == pytest.approx(0.75, abs=0.04) and opens[found["W"] == 0].mean() == pytest.approx(0.25, abs=0.04)


def test_patients_for_choosing_are_not_those_of_the_test(tmp_path):
    chosen, tested = (confounding.patients(kind, TINY, tmp_path) for kind in ("validation", "test"))
    assert len(set(confounding.PATIENTS.values()) | {2}) == 4 and not (chosen["pictures"] == tested["pictures"]).all((2, 3)).any()


def test_the_sensor_lies_outside_the_field_and_its_side_says_nothing_once_the_surroundings_are_changed(tmp_path):
    data = confounding.compose(confounding.patients("train", replace(TINY, train=200), tmp_path), 0.9, 0)
    field = data["mask"].mean(0) > 0.02
    assert (data["device"] & field).sum() < 0.02 * data["device"].sum() and (data["mask"] & ~field).sum() < 0.05 * data["mask"].sum()
    # the same surroundings for all: outside the field nothing is left that could tell one picture's scanner from another's
    others = np.repeat(data["image"][:1], 200, 0)
    around = acquisition.in_other_surroundings(data["image"], others, field)[:, ~field].astype(float)
    around = (around - around.mean(1, keepdims=True)) / around.std(1, keepdims=True)
    assert np.corrcoef(around).min() > 0.9


def test_what_a_method_may_not_see_does_not_reach_the_network():
    torch.manual_seed(0)
    model, rng = confounding.CausalCLIPSeg(TINY.model).eval(), np.random.default_rng(0)
    images, other = (rng.integers(0, 255, (2, 64, 64), dtype=np.uint8) for _ in range(2))
    words, more = ["Pulmonary infection."] * 2, ["Chest X-ray: Pulmonary infection."] * 2
    logits = lambda method, i, s: confounding._forward(model, method, i, s).logits
    with torch.inference_mode():
        assert torch.equal(logits(METHODS["image only"], images, words), logits(METHODS["image only"], images, more))
        assert torch.equal(logits(METHODS["sentence only"], images, words), logits(METHODS["sentence only"], other, words))
        assert not torch.equal(logits(METHODS["none"], images, words), logits(METHODS["none"], other, words))
        assert not torch.equal(logits(METHODS["none"], images, words), logits(METHODS["none"], images, more))


def test_a_probe_finds_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 5, generator=generator), torch.rand(600, generator=generator) > 0.5
    told = torch.cat([x, 2 * y[:, None].float() + 0.1 * x[:, :1]], 1)
    assert confounding._probe(told[:400], y[:400], told[400:], y[400:]) > 0.99
    assert 0.35 < confounding._probe(x[:400], y[:400], x[400:], y[400:]) < 0.65


def test_the_experiment_runs_whole_and_goes_on(tmp_path):
    said, wanted = [], ("oracle", "none", "causal", "interventional", "adjusted", "adjusted with edits", "surroundings")
    result = confounding.run(tmp_path, setting=TINY, seeds=2, methods=wanted, say=said.append)
    assert len(said) == 2 * len(wanted) == len(result["runs"])
    assert set(result["summary"]["0.6"]) == set(wanted) and (tmp_path / "confounding.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "confounding.json").read_text())["verdict"].keys() == {"0.6"}
    text = (tmp_path / "confounding.md").read_text()
    assert all(f"| {name}: " in text for name in wanted) and "nan" not in text
    causal = next(r for r in result["runs"] if r["method"] == "causal")
    assert all(0 <= line["D_s"] <= 1 and line["L_s"] > 0 for line in causal["history"])
    (tmp_path / "runs" / "0.6" / "none-1.json").unlink()
    again = confounding.run(tmp_path, setting=TINY, seeds=2, methods=wanted, say=said.append)
    assert len(said) == 2 * len(wanted) + 1 and said[-1].startswith("none, strength 0.6, seed 1")
    kept = lambda r: {(x["method"], x["seed"]): x["dice"] for x in r["runs"]}
    assert kept(again) == kept(result)  # the same seed gives the same run
    for other in ({"setting": replace(TINY, steps=5)}, {"setting": TINY, "on": "validation"}):
        with pytest.raises(ValueError, match="another setting"):
            confounding.run(tmp_path, methods=wanted, **other)


@pytest.mark.parametrize("more, said", [(["--strengths", "much"], "numbers"), (["--strengths", "1"], "between 0 and 1"), (["--methods", "magic"], "no method 'magic'")])
def test_what_the_command_refuses(tmp_path, capsys, more, said):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "confounding", "--out", str(tmp_path / "out"), "--small", *more])
    assert stopped.value.code == 2
    assert __import__("re").search(said, capsys.readouterr().err)


def test_no_remedy_of_the_table_uses_the_scanners_but_the_matched_one():
    assert [name for name, m in METHODS.items() if m.edits == "matched"] == ["matched"] and Method("x").edits == ""
