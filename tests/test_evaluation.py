"""Evaluation with predictors whose score is known beforehand."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from causalclipseg import reports as sentences
from causalclipseg.data import DataError, ReferringDataset, find_samples
from causalclipseg._evaluation_page import save
from causalclipseg.evaluation import (
    GRID, TEXT_NOTE, edit_reports, evaluate, evaluate_referring, fit, groups_of, not_held_out, predictor, read_thresholds, resize_probability, save_result, score,
    slice_of,
)  # fmt: skip
from causalclipseg.metrics import counts, surface_scores
from causalclipseg.model import CausalCLIPSeg

HEIGHT, WIDTH = 48, 40
LEFT = "Unilateral pulmonary infection, one infected area, lower left lung."
RIGHT = "Unilateral pulmonary infection, one infected area, upper right lung."
BOTH = "Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung."


def boxes(kind, shift):
    """A mask of 48 x 40: a box on the left half, on the right half, or one on each."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if kind != RIGHT:
        mask[24 : 42 + shift % 4, 2 : 14 + shift % 3] = True
    if kind != LEFT:
        mask[5 : 20 + shift % 4, 24 : 36 + shift % 3] = True
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures whose grey is their mask (255 inside), 48 x 40, in the CSV layout: 4 bilateral, 3 left, 2 right."""
    root = tmp_path_factory.mktemp("evaluation") / "boxes"
    for split in ("Train", "Val", "Test"):
        rows = ["Image,Description"]
        for i, report in enumerate([BOTH] * 4 + [LEFT] * 3 + [RIGHT] * 2):
            name = f"{'covid' if i % 2 else 'sub-S1'}_{split}{i}.png"
            for part in ("Images", "GTs"):
                (root / split / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(boxes(report, i).astype(np.uint8) * 255).save(root / split / part / name)
            rows.append(f'{name},"{report}"')
        (root / "prompt").mkdir(exist_ok=True)
        (root / "prompt" / f"{split.lower()}.csv").write_text("\n".join(rows) + "\n")
    return root


def oracle(images, reports):
    """The picture is its mask, so its grey is the right probability."""
    assert images.shape[1:] == (3, 64, 64) and images.dtype == torch.float32 and len(reports) == len(images)
    assert 0 <= images.min() and images.max() <= 1
    return images[:, :1].clone()


def obedient(images, reports):
    """The oracle, but only on the half that the sentence names."""
    found = oracle(images, reports)
    for probability, report in zip(found, reports):
        side = sentences.parse(report).side
        if side in ("left", "right"):
            probability[:] = sentences.restrict(probability, side)
    return found


def test_a_predictor_that_knows_the_mask_scores_one_at_the_masks_own_size(folder):
    result = evaluate(oracle, folder, model="oracle", image_size=64)
    assert result["n"] == 9 and result["split"] == "test" and result["threshold"] == 0.5 and result["model"] == "oracle"
    # 48 x 40 -> 64 x 64 -> 48 x 40 may move a box's edge, nothing else
    assert result["per_image"]["dice"]["mean"] > 0.97 and result["pooled"]["dice"] > 0.97
    exact = evaluate(lambda images, reports: resize_exactly(folder, reports, images), folder, model="exact", image_size=64)
    assert exact["per_image"]["dice"] == exact["per_image"]["iou"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert exact["pooled"] == dict.fromkeys(("dice", "iou", "precision", "recall"), 1.0)


def resize_exactly(folder, reports, images):
    """The masks themselves, at their own size (a predictor may answer at any size)."""
    data = ReferringDataset(find_samples(folder, "test"), size=None, cache=False)
    wanted = [next(item for item in data if torch.allclose(fit(item["image"][None].float() / 255, 64)[0, 0], image[0])) for image in images]
    return torch.stack([item["mask"].float() for item in wanted])


def test_scores_are_those_of_the_counts_at_the_masks_own_size(folder):
    """A predictor that always answers with the left two thirds, against counts by hand."""
    def left(images, reports):
        out = torch.zeros(len(images), 1, 64, 64)
        out[..., :32] = 1
        return out

    data = ReferringDataset(find_samples(folder, "test"), size=None, cache=False)
    scores = score(left, data, 64, batch_size=4)
    predicted = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    predicted[..., : WIDTH // 2] = True
    for row, item in zip(scores.table, data, strict=True):
        assert item["mask"].shape == (1, HEIGHT, WIDTH)
        assert row.tolist() == counts(predicted, item["mask"].bool())[0].tolist()


def test_the_threshold_decides_and_includes_its_own_value(folder):
    half = lambda images, reports: torch.full((len(images), 1, 64, 64), 0.5)  # noqa: E731
    everywhere = evaluate(half, folder, model="half", image_size=64, threshold=0.5)
    nowhere = evaluate(half, folder, model="half", image_size=64, threshold=0.51)
    assert everywhere["pooled"]["dice"] > 0 and nowhere["pooled"]["dice"] == 0


def test_subgroups_add_up_and_are_scored_each_for_itself(folder):
    blind_right = lambda images, reports: sentences.restrict(oracle(images, reports), "left")  # noqa: E731
    result = evaluate(blind_right, folder, model="left", image_size=64)
    groups = result["subgroups"]
    assert set(groups) == {"source", "view", "side", "count", "lesion size (tertiles)"}
    assert all(sum(part["n"] for part in group.values()) == 9 for group in groups.values())
    side = groups["side"]
    assert {name: part["n"] for name, part in side.items()} == {"both": 4, "left": 3, "right": 2}
    assert side["left"]["dice"] > 0.95 and side["right"]["dice"] == 0 and 0.3 < side["both"]["dice"] < 0.8
    assert set(groups["source"]) == {"covid", "sub"}
    mean = sum(part["n"] * part["dice"] for part in side.values()) / 9
    assert result["per_image"]["dice"]["mean"] == pytest.approx(mean)


@pytest.mark.parametrize("text", ["report", "none", "generic", "shuffled", "swapped"])
def test_the_predictor_sees_the_sentences_that_were_asked_for(folder, text):
    shown = []

    def listen(images, reports):
        shown.extend(reports)
        return oracle(images, reports)

    result = evaluate(listen, folder, model="listener", image_size=64, text=text, batch_size=4, seed=3)
    right = [s.report for s in find_samples(folder, "test")]
    expected = {
        "report": right, "none": [""] * 9, "generic": ["Pulmonary infection."] * 9, "shuffled": sentences.shuffled(right, 3),
        "swapped": [r.replace("left", "?").replace("right", "left").replace("?", "right") for r in right],
    }  # fmt: skip
    assert shown == expected[text] and result["text"] == text
    assert TEXT_NOTE in result["note"] and "privileged" in result["note"]


def test_shuffled_sentences_are_the_same_ones_at_other_places():
    right = [f"{LEFT} {i}" for i in range(7)]
    mixed = edit_reports(right, "shuffled", seed=1)
    assert sorted(mixed) == sorted(right) and all(a != b for a, b in zip(mixed, right))
    assert mixed == edit_reports(right, "shuffled", seed=1)


def test_an_unknown_text_or_split_is_refused(folder):
    with pytest.raises(ValueError, match='no text "latin"'):
        edit_reports([LEFT], "latin")
    with pytest.raises(DataError, match="split"):
        evaluate(oracle, folder, model="oracle", image_size=64, split="holdout")


def test_the_wrong_sentence_lowers_the_score_of_a_predictor_that_obeys_it(folder):
    scores = {t: evaluate(obedient, folder, model="o", image_size=64, text=t)["per_image"]["dice"]["mean"] for t in ("report", "swapped", "none")}
    assert scores["report"] > 0.97 and scores["none"] > 0.97
    assert scores["swapped"] == pytest.approx(4 / 9, abs=0.02), "the four bilateral ones lose nothing, the others all"


def test_an_oracle_that_obeys_the_sentence_steers_every_pixel(folder):
    result = evaluate_referring(obedient, folder, image_size=64, least=100)
    assert result["n"] == 8 and result["pictures"] == 4 and result["empty"] == 0
    assert result["success"] == 1.0 and result["area_on_half"] == result["pooled_area_on_half"] == 1.0
    assert result["dice"] > 0.97


def test_an_oracle_that_ignores_the_sentence_fails(folder):
    result = evaluate_referring(oracle, folder, image_size=64)
    assert result["success"] == 0.0 and 0.4 < result["area_on_half"] < 0.6 and result["dice"] < 0.8


def test_empty_predictions_fail(folder):
    result = evaluate_referring(lambda images, reports: torch.zeros(len(images), 1, 64, 64), folder, image_size=64)
    assert result["empty"] == result["n"] == 8 and result["success"] == result["area_on_half"] == result["dice"] == 0.0


def test_only_pictures_with_enough_lesion_on_both_halves_are_asked_about(folder):
    areas = [min(boxes(BOTH, i)[:, : WIDTH // 2].sum(), boxes(BOTH, i)[:, WIDTH // 2 :].sum()) for i in range(4)]
    least = sorted(areas)[1]
    assert evaluate_referring(obedient, folder, image_size=64, least=least)["pictures"] == sum(a >= least for a in areas) < 4


def test_the_result_can_be_written_as_json_and_says_how_to_repeat_it(folder, tmp_path):
    result = evaluate(oracle, folder, model="oracle", image_size=64)
    save_result(result, tmp_path / "r" / "result.json")
    assert json.loads((tmp_path / "r" / "result.json").read_text()) == result
    assert result["data"] == "boxes" and len(result["data_digest"]) == 64 and result["split_rule"] == "folders"


def test_a_model_becomes_a_predictor_of_probabilities(tiny_model_dir, folder):
    model = CausalCLIPSeg.from_pretrained(tiny_model_dir).train()
    images = torch.rand(2, 3, 64, 64)
    probability = predictor(model)(images, [LEFT, ""])
    assert probability.shape == (2, 1, 64, 64) and 0 <= probability.min() and probability.max() <= 1
    with torch.inference_mode():
        torch.testing.assert_close(probability, model.eval()(images, model.tokenize([LEFT, ""])[0]).logits.sigmoid())
    rough = predictor(model, "bf16")(images, [LEFT, ""])
    assert rough.dtype == torch.float32 and (rough - probability).abs().max() < 0.05
    assert evaluate(predictor(model), folder, model="tiny", image_size=64)["n"] == 9


def test_resizing_leaves_what_fits_and_stays_in_range():
    picture = torch.rand(1, 1, 64, 64)
    assert fit(picture, 64) is picture and resize_probability(picture, (64, 64)) is picture
    for size in ((48, 40), (100, 130)):
        out = resize_probability(picture, size)
        assert out.shape == (1, 1, *size) and 0 <= out.min() and out.max() <= 1
    assert fit(torch.rand(2, 1, 48, 40), 64).shape == (2, 1, 64, 64)


# ---------------------------------------------------------------- thresholds, slices, surfaces, pairs


def doubtful(images, reports):
    """The oracle, but sure of nothing: 0.4 inside, 0.1 around; answers at the masks' size, so that no edge is blurred."""
    return 0.1 + 0.3 * (oracle(images, reports) > 0.5).float()


def counted(folder, predict, threshold, split="test"):
    """Per-image Dice of a predictor, counted here."""
    values = []
    for item in ReferringDataset(find_samples(folder, split), size=None, cache=False):
        image = fit(item["image"][None].float() / 255, 64).expand(-1, 3, -1, -1)
        found = resize_probability(predict(image, [item["report"]]), (HEIGHT, WIDTH))[0, 0].numpy() >= threshold
        mask = item["mask"].numpy()[0] > 0
        values.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
    return np.array(values)


def test_fixed_thresholds_and_rules_stand_beside_the_main_one(folder):
    result = evaluate(doubtful, folder, model="d", image_size=64, rules=["expected-dice", "validation-best"])
    rows = result["thresholds"]
    assert list(rows) == ["0.35", "0.5", "expected-dice", "validation-best"] and result["threshold"] == 0.5
    assert result["per_image"]["dice"]["mean"] == rows["0.5"]["per_image"]["dice"]["mean"] == 0, "the main scores stay at the plain threshold"
    assert rows["0.35"]["per_image"]["dice"]["mean"] == pytest.approx(counted(folder, doubtful, 0.35).mean())
    used = rows["expected-dice"]["threshold"]
    assert 0.3 <= used["low"] <= used["mean"] <= used["high"] <= 0.4 and rows["expected-dice"]["per_image"]["dice"]["mean"] > 0.9
    on_validation = {t: counted(folder, doubtful, t, "val").mean() for t in GRID}
    best = rows["validation-best"]["threshold"]["mean"]
    assert on_validation[best] == pytest.approx(max(on_validation.values())) and rows["validation-best"]["threshold"]["low"] == best
    assert rows["validation-best"]["per_image"]["dice"]["mean"] == pytest.approx(counted(folder, doubtful, best).mean())
    with pytest.raises(ValueError, match='no rule "?guess'):
        evaluate(doubtful, folder, model="d", image_size=64, rules=["guess"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        evaluate(doubtful, folder, model="d", image_size=64, threshold=1.5)
    assert "chosen on these very pictures" in evaluate(doubtful, folder, model="d", image_size=64, split="val", rules=["validation-best"])["note"]


def test_what_the_command_line_gives_as_thresholds_is_read_or_refused():
    assert read_thresholds([]) == (0.5, []) and read_thresholds(["0.35"]) == (0.35, [])
    assert read_thresholds(["expected-dice", "0.4", "validation-best"]) == (0.4, ["expected-dice", "validation-best"])
    for wrong, words in ((["0"], "between 0 and 1"), (["nan"], "between 0 and 1"), (["best"], "expected-dice"), (["0.3", "0.4"], "Only one")):
        with pytest.raises(ValueError, match=words):
            read_thresholds(wrong)


def test_precision_recall_surfaces_and_calibration_are_those_of_the_masks(folder):
    result = evaluate(obedient, folder, model="o", image_size=64, text="swapped", surface=True)
    values, surfaces = [], []
    for item in ReferringDataset(find_samples(folder, "test"), size=None, cache=False):
        image = fit(item["image"][None].float() / 255, 64).expand(-1, 3, -1, -1)
        found = resize_probability(obedient(image, [sentences.swap_sides(item["report"])]), (HEIGHT, WIDTH))[0, 0].numpy() >= 0.5
        mask = item["mask"].numpy()[0] > 0
        values.append((found & mask).sum() / found.sum() if found.any() else 0)
        surfaces.append(surface_scores(found, mask))
    assert result["per_image"]["precision"]["mean"] == pytest.approx(np.mean(values))
    distances, shares = np.array(surfaces).T
    assert result["surface"]["hd95"]["mean"] == pytest.approx(distances.mean()) and result["surface"]["hd95"]["median"] == pytest.approx(np.median(distances))
    assert result["surface"]["surface_dice"]["mean"] == pytest.approx(shares.mean()) and result["surface"]["tolerance_pixels"] == 2
    assert result["surface"]["empty_predictions"] == 5 and (distances == np.hypot(HEIGHT, WIDTH)).sum() == 5, "the five one-sided pictures"
    assert "surface" not in evaluate(oracle, folder, model="o", image_size=64)
    assert sum(b["pixels"] for b in result["calibration"]["bins"]) == 9 * HEIGHT * WIDTH


def test_groups_know_views_from_names_and_a_slice_is_cut_from_them(folder):
    samples = find_samples(folder, "test")
    views = [s.__class__(**{**vars(s), "name": f"sub-S1_vp-{v}_cr"}) for s, v in zip(samples, ("ap", "pa"))] + samples[2:3]
    assert groups_of(views)["view"].tolist() == ["ap", "pa", "unknown"]
    assert groups_of(samples)["count"].tolist() == ["2"] * 4 + ["1"] * 5
    assert [s.source for s in slice_of(samples, "source=covid")] == ["covid"] * 4 and slice_of(samples, "") == samples
    held_out = evaluate(oracle, folder, model="o", image_size=64, split="train", only="source=covid", limit=3)
    assert held_out["n"] == 3 and held_out["only"] == "source=covid" and list(held_out["subgroups"]["source"]) == ["covid"]
    assert "leave_out" in held_out["note"]
    for wrong, words in (("covid", "GROUP=VALUE"), ("colour=red", "source, view"), ("side=up", "both, left, right")):
        with pytest.raises(ValueError, match=words):
            slice_of(samples, wrong)


def test_all_sentences_in_one_result_equal_each_alone(folder):
    result = evaluate(obedient, folder, model="o", image_size=64, text="all", seed=2)
    assert result["text"] == "report" and list(result["texts"])[0] == "report" and len(result["texts"]) == 5
    for text, row in result["texts"].items():
        alone = evaluate(obedient, folder, model="o", image_size=64, text=text, seed=2)
        assert (row["per_image"]["dice"], row["pooled"]["iou"]) == (alone["per_image"]["dice"], alone["pooled"]["iou"]), text


def test_two_models_are_compared_picture_by_picture(folder):
    left = lambda images, reports: sentences.restrict(oracle(images, reports), "left")  # noqa: E731
    result = evaluate(oracle, folder, model="o", image_size=64, against=("left", left, 64))
    a, b = counted(folder, oracle, 0.5), counted(folder, left, 0.5)
    paired = result["against"]["paired"]["dice"]
    assert paired["difference"] == pytest.approx((a - b).mean()) == pytest.approx(result["per_image"]["dice"]["mean"] - result["against"]["per_image"]["dice"]["mean"])
    assert (paired["better"], paired["worse"], paired["equal"]) == (6, 0, 3) and result["against"]["model"] == "left"


def test_the_best_median_and_worst_cases_are_those_of_the_sorted_scores(folder):
    blind = lambda images, reports: sentences.restrict(oracle(images, reports), "left")  # noqa: E731
    found = evaluate(blind, folder, model="b", image_size=64)["cases"]
    values = counted(folder, blind, 0.5)
    assert [c["dice"] for c in found["worst"]] == pytest.approx(sorted(values)[:3]) and [c["dice"] for c in found["best"]] == pytest.approx(sorted(values)[:-4:-1])
    assert [c["dice"] for c in found["median"]] == pytest.approx(sorted(values)[::-1][3:6])
    for case in found["worst"]:
        sample = find_samples(folder, "test")[case["index"]]
        assert (case["name"], case["report"]) == (sample.name, sample.report)


def test_the_words_of_a_result_hold_its_numbers_and_no_picture_of_a_patient_unasked(folder, phantom_folder, tmp_path):
    options = dict(model="<o> & co", image_size=64, rules=["expected-dice"], text="all", surface=True, against=("left", obedient, 64))
    result = evaluate(obedient, folder, **options)
    save(result, tmp_path / "r.json", predict=obedient, data=folder, image_size=64)
    text, html = (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()
    for words in (text, html):
        assert f"{100 * result['per_image']['dice']['mean']:.2f}" in words and f"{result['surface']['hd95']['mean']:.2f}" in words and "privileged" in words
        assert all(t in words for t in ("no sentence", "left and right exchanged", "expected-dice", "Wilcoxon", "side: left"))
    assert "<img" not in html and "&lt;o&gt; &amp; co" in html and "<script" not in html and "http" not in html
    save(result, tmp_path / "r.json", predict=obedient, data=folder, image_size=64, pictures=True, markdown=False)
    assert (tmp_path / "r.html").read_text().count("<img") == 2 * 9
    shown = evaluate(lambda images, reports: images[:, :1], phantom_folder, model="grey", image_size=64)
    save(shown, tmp_path / "p.json", predict=lambda images, reports: images[:, :1], data=phantom_folder, image_size=64, markdown=False)
    assert (tmp_path / "p.html").read_text().count("<img") == 2 * 9 and not (tmp_path / "p.md").exists(), "phantoms are always shown"


def test_one_half_named_looks_at_the_pictures_that_are_measured(folder):
    whole = evaluate_referring(obedient, folder, image_size=64)
    assert evaluate_referring(obedient, folder, image_size=64, limit=1)["pictures"] <= 1 < whole["pictures"]
    none = evaluate_referring(obedient, folder, image_size=64, only="side=left")
    assert none["n"] == none["empty"] == 0 and none["dice"] is None


@pytest.mark.parametrize("trained, split, rules, said", [
    ({}, "val", [], ""), ({"split_rule": "patients"}, "test", [], ""), ({"split_rule": "patients"}, "val", [], "split_rule=patients"),
    ({"split_rule": "patients"}, "test", ["validation-best"], "split_rule=patients"), ({"train_splits": ["train", "val"]}, "val", [], "trained on the validation"),
    ({"train_splits": ["train"], "inherited": {"train_splits": ["train", "val"]}}, "val", [], "learned from, was trained on the validation pictures"),
    ({"split_rule": "published", "inherited": {"split_rules": ["patients", "published"]}}, "val", [], "with split_rule=patients, so it may know"),
    ({"train_splits": ["train"], "inherited": {"train_splits": ["train"], "split_rules": ["published"]}}, "val", [], ""),
])  # fmt: skip
def test_a_validation_split_that_was_trained_on_is_no_validation(trained, split, rules, said):
    found = not_held_out(trained, split, rules, "published")
    assert said in found and bool(said) == bool(found)
