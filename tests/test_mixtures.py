"""The benchmarks that keep what networks answer, and measure means of it."""
import json
import shutil
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from causalclipseg import CausalCLIPSeg, doubt
from causalclipseg.averaging import ensemble
from causalclipseg.config import preset
from causalclipseg.data import find_samples
from causalclipseg.evaluation import evaluate, predictor
from causalclipseg.views import answering, averaged, together
from conftest import REPOSITORY, lively
from conftest import make_tiny_config as tiny_config

sys.path.insert(0, str(REPOSITORY / "tests" / "benchmarks"))
import campaign  # noqa: E402
import mixtures  # noqa: E402
import provenance  # noqa: E402
import seeds  # noqa: E402
import ship  # noqa: E402
import steering  # noqa: E402


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Two of them, in folders full-0 and second-0."""
    folder, found = tmp_path_factory.mktemp("networks"), []
    for seed, name in enumerate(("full-0", "second-0")):
        torch.manual_seed(seed)
        found.append(lively(CausalCLIPSeg(tiny_config())))
        found[-1].save_pretrained(folder / name)
    return folder, found


def mean_of(models):
    singles = [averaged(predictor(model)) for model in models]
    return lambda images, reports: sum(f(images, reports) for f in singles) / len(singles)


def close(measured, expected):
    for key in ("dice", "iou"):
        for rule in ("0.5", "expected-dice"):
            row, other = (result["thresholds"][rule]["per_image"] if "thresholds" in result else result[rule] for result in (measured, expected))
            assert row[key]["mean"] == pytest.approx(other[key]["mean"], abs=2e-3)  # answers are kept in 16 bits


def test_a_subsets_row_is_the_mean_answer_of_its_members(networks, phantom_folder, tmp_path, monkeypatch):
    folder, models = networks
    monkeypatch.setattr(mixtures, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixtures.py", *map(str, (folder / "full-0", folder / "second-0")), "--data", str(phantom_folder)])
    mixtures.main()
    rows = json.loads((tmp_path / "mixtures.json").read_text())["rows"]
    assert [row["networks"] for row in rows] == [["full-0"], ["second-0"], ["full-0", "second-0"]]
    for row, members in zip(rows, (models[:1], models[1:], models)):
        close(row, evaluate(mean_of(members), str(phantom_folder), model="", image_size=64, rules=["expected-dice"]))


def test_a_row_of_the_campaign_is_the_mean_answer_of_its_networks(networks, phantom_folder, monkeypatch):
    folder, models = networks
    monkeypatch.setattr(campaign, "SIZE", 64)
    for name in ("full-0", "second-0"):
        campaign.answer(folder, str(phantom_folder), None, name, "none", 6)
    row = campaign.measure(folder, str(phantom_folder), None, ["full-0", "second-0"], "none", 6)
    close(row, evaluate(mean_of(models), str(phantom_folder), model="", image_size=64, text="none", rules=["expected-dice"]))
    assert (row["networks"], row["views"], row["text"]) == (2, 6, "none")


def test_kept_answers_with_the_side_checked_are_those_of_the_package(networks, phantom_folder, monkeypatch):
    monkeypatch.setattr(doubt, "WRONG", 0.999)  # so that most sentences that claim a side are read the other way round
    model, samples, exchanged = networks[1][0], find_samples(phantom_folder, "test")[:6], []
    images = torch.rand(len(samples), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = [sample.report for sample in samples]
    checked = mixtures.side_checked(averaged(predictor(model)), predictor(model), averaged(predictor(model)), exchanged)
    torch.testing.assert_close(checked(images, shown), answering(model, average_views=True, check_side=True)(images, shown))
    assert exchanged and all(doubt.claimed_side(shown[i]) for i in exchanged)


def test_what_is_shipped_is_measured_from_the_answers_of_each_of_its_networks(networks, phantom_folder, tmp_path, monkeypatch):
    folder, data = networks[0], str(phantom_folder)
    ensemble([str(folder / "full-0"), str(folder / "second-0")], tmp_path / "both", [data])
    monkeypatch.setattr(ship, "MODEL", tmp_path / "both")
    monkeypatch.setattr(ship, "RESULTS", tmp_path)
    monkeypatch.setattr(doubt, "WRONG", 0.9)
    files = ship.six_view_files(ship.shipped(), tmp_path, "phantoms", "report")
    assert len(set(files)) == 2  # named by their own weights
    for number, file in enumerate(files):
        mixtures.keep_six_views(str(ship.MODEL), number, data, "test", "report", file)
    model = ship.shipped()
    ship.measure_averaged("phantoms", data, "report", files)
    for way, check in ((ship.AVERAGED, False), (ship.CHECKED, True)):
        result = json.loads((tmp_path / f"mini_phantoms_{way}.json").read_text())
        close(result, evaluate(answering(model, average_views=True, check_side=check), data, model="", image_size=64, rules=["expected-dice"]))
        assert (result["networks"], result["views"]) == (2, 6) and "cases" not in result
    assert result["exchanged"] > 0


def test_without_a_sentence_the_network_that_reads_none_is_measured_too(networks, phantom_folder, tmp_path, monkeypatch):
    folder, data = networks[0], str(phantom_folder)
    ensemble([str(folder / "full-0"), str(folder / "second-0")], tmp_path / "both", [data], silent=str(folder / "second-0"))
    monkeypatch.setattr(ship, "MODEL", tmp_path / "both")
    monkeypatch.setattr(ship, "RESULTS", tmp_path)
    assert len(ship.six_view_files(ship.shipped(), tmp_path, "phantoms", "report")) == 2
    files = ship.six_view_files(ship.shipped(), tmp_path, "phantoms", "none")
    for number, file in enumerate(files):
        mixtures.keep_six_views(str(ship.MODEL), number, data, "test", "none", file)
    ship.measure_averaged("phantoms", data, "none", files)
    result, model = json.loads((tmp_path / f"mini_phantoms_none_{ship.AVERAGED}.json").read_text()), ship.shipped()
    ask = lambda predict: evaluate(predict, data, model="", image_size=64, text="none", rules=["expected-dice"])  # noqa: E731
    close(result, ask(answering(model, average_views=True)))
    assert (result["networks"], result["views"]) == (3, 6)
    spoken = lambda images, reports: together([averaged(predictor(f))(images, reports) for f in (model, *model.companions)])  # noqa: E731
    alone = {"that reads none": averaged(predictor(model.silent)), "that read sentences": spoken}
    for part, predict in alone.items():
        assert result["networks alone"][part]["0.5"]["per_image"]["dice"]["mean"] == pytest.approx(ask(predict)["per_image"]["dice"]["mean"], abs=2e-3)


def test_seeds_are_measured_as_the_file_is_and_spread_over(networks, phantom_folder, tmp_path, monkeypatch):
    folder, data = networks[0], str(phantom_folder)
    for name, members in (("a", ("full-0", "second-0")), ("b", ("second-0", "full-0"))):
        ensemble([str(folder / member) for member in members], tmp_path / name, [data])
    monkeypatch.setattr(seeds, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["seeds.py", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--data", data])
    seeds.main()
    found = json.loads((tmp_path / "seeds.json").read_text())
    values = []
    for name in "ab":
        model = CausalCLIPSeg.from_pretrained(tmp_path / name)
        for way, several in (("one view", False), ("six views", True)):
            whole = evaluate(answering(model, average_views=several), data, model="", image_size=64)
            assert found["seeds"][name][way]["0.5"]["dice"] == pytest.approx(whole["per_image"]["dice"]["mean"], abs=2e-3)
        values.append(found["seeds"][name]["one view"]["0.5"]["dice"])
    spread = found["spread"]["one view"]["0.5"]["dice"]
    assert spread["mean"] == pytest.approx(sum(values) / 2) and spread["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_a_run_that_was_begun_goes_on_with_its_own_epochs(tmp_path, monkeypatch):
    """Killed between warm-0 and its end, small-0 must not be given the epochs that fit now."""
    commands, args = [], SimpleNamespace(out=tmp_path, data="qata", phantoms="phantoms", limit=None)
    monkeypatch.setattr(campaign.subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0))
    (tmp_path / "small-0" / "state").mkdir(parents=True)
    (tmp_path / "small-0" / "training.json").write_text('{"epochs": 7}')
    finished = Future()
    finished.set_result("")
    job = campaign.jobs(1, 2, 0, [])["small-0"]
    campaign.run("small-0", job, args, {"warm-0": finished}, 0.0, {"lock": threading.Lock()})
    assert {"--set=epochs=7", "--resume", f"--set=start={tmp_path / 'warm-0'}"} <= set(commands[0])
    assert [commands[0][i + 1] for i, part in enumerate(commands[0]) if part == "--data"] == ["qata", "phantoms"]


def test_every_setting_of_the_campaign_is_one_of_the_package():
    for job in campaign.jobs(1, 2, 0, ["unet", "dynunet"], other="elsewhere").values():
        network, training = (vars(config) for config in preset(job.preset))
        assert set(job.settings) <= set(network) | set(training)


def test_a_second_stage_has_the_epochs_that_fit(phantom_folder, tmp_path):
    lines = [{"size": size, "images_per_second": rate} for size, rate in ((128, 600), (160, 400), (224, 200))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pictures = sum(len(find_samples(phantom_folder, split)) for split in ("train", "val"))
    share, settings = campaign.SECOND["sizes"][0][0], {**campaign.SECOND, "leave_out": []}
    epochs = campaign.fitting(Path(tmp_path), settings, [str(phantom_folder)], 10.5 * pictures * (share / 400 + (1 - share) / 200))
    assert epochs == 10


def test_steering_counts_answers_that_keep_to_the_named_half():
    """An answer that reads the side but in a report's words, and one that is empty."""

    def answer(images, sentences):
        found = torch.zeros(len(images), 1, *images.shape[-2:])
        for mask, sentence in zip(found, sentences):
            half = mask[..., : mask.shape[-1] // 2] if "left" in sentence else mask[..., mask.shape[-1] // 2 :]
            (mask if sentence.startswith("Unilateral") else half).fill_(0.0 if sentence.startswith("Show") else 1.0)
        return found

    found = steering.steering(answer, torch.zeros(3, 3, 8, 8))
    assert set(found) == set(steering.SENTENCES)
    assert found["refer"] == {"success": 1.0, "area_on_half": 1.0}
    assert found["unilateral"] == {"success": 0.0, "area_on_half": 0.5}
    assert found["show"] == {"success": 0.0, "area_on_half": 0.0}
    masks = torch.zeros(3, 8, 8)
    masks[:, :, 5:] = 1  # lesions on the right, so the left is asked for
    found = steering.clean(answer, torch.zeros(3, 3, 8, 8), masks)
    assert found["refer"] == {"empty": 0.0, "area": 0.5} and found["show"] == {"empty": 1.0, "area": 0.0}
    found = steering.clean(lambda images, said: answer(images, ["Show" if "left" in s else s for s in said]), torch.zeros(3, 3, 8, 8), masks)
    assert all(row["empty"] == 1.0 for row in found.values())


def test_steering_keeps_models_that_were_asked_the_same(tmp_path):
    file, asked = tmp_path / "steering.json", {"pictures": 100, "data_digest": {"qata": "a"}}
    assert steering.measured_earlier(file, asked) == {}
    file.write_text(json.dumps({**asked, "models": {"before": 1}}))
    assert steering.measured_earlier(file, asked) == {"before": 1}
    assert steering.measured_earlier(file, {**asked, "data_digest": {"qata": "b"}}) == {}


def test_a_further_run_goes_on_record_after_the_others(tmp_path, monkeypatch):
    before, silent = provenance.training_runs(), provenance.silent()
    results = Path(shutil.copytree(provenance.RESULTS, tmp_path / "results"))
    monkeypatch.setattr(provenance, "RESULTS", results)
    monkeypatch.setattr(provenance, "NETWORKS", results / "mini_networks.json")
    run = tmp_path / "run"
    run.mkdir()
    (run / "training.json").write_text(json.dumps({"start": "/somewhere/other1", "seed": 7}))
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (run / "config.json").write_text('{"preset": "mini"}')
    try:
        provenance.record([], [], [], [run], ["run1"])
        *kept, added = (runs := provenance.training_runs())
        assert kept == list(before) and added == f"other{sum(name.startswith('other') for name in before) + 1}"
        assert (runs[added][0]["start"], runs[added][0]["model"], runs[added][1]) == ("other1", {"preset": "mini"}, [{"epoch": 1}])
        assert list(provenance.shipped_runs()) == ["run1"]  # the file's network went on from nothing, and nothing from it
        assert provenance.led_to([added]) == [name for name in runs if name in {added, *provenance.led_to(["other1"])}]
        provenance.record([], [], [], [], ["run1"], "other1")
        assert set(provenance.earlier_silent()) >= set(silent) and "other1" not in provenance.earlier_silent()
        assert provenance.silent() == ["other1"] and set(provenance.shipped_runs()) == {"run1", *provenance.led_to(["other1"], teachers=True)}
        assert "ensemble run1 --silent other1 " in "\n".join(provenance.commands(provenance.shipped_runs()))
        provenance.record([], [], [run], [], ["run1"])
        more = [name for name in provenance.training_runs() if name not in runs]
        assert more == [f"run{sum(name.startswith('run') for name in before) + 1}"] and provenance.training_runs()[more[0]][0]["start"] == "other1"
        provenance.record([run], [], [], [run], ["run1"])  # in place of all
        assert list(provenance.training_runs()) == ["run1", "other1"] and provenance.networks() == ["run1"]
        assert provenance.silent() == [] and provenance.earlier_silent() == {}
    finally:
        provenance.training_runs.cache_clear()  # the next one reads the repository's again
