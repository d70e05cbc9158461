"""Attributions against plain re-computations, and their measures of faithfulness on functions whose answer is known."""
import json

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValueSampling

from causalclipseg import CausalCLIPSeg, explain
from conftest import lively, make_tiny_config

SENTENCE = "Bilateral pulmonary infection, two infected areas."


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return lively(CausalCLIPSeg(make_tiny_config())).eval()


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (96, 80), dtype=np.uint8)


def some_threshold(model, picture):
    """A threshold that half of the pixels pass."""
    from causalclipseg import segment

    return float(np.clip(np.median(segment(model, picture, SENTENCE).probability), 0.01, 0.99))


@pytest.mark.parametrize("method", explain.METHODS)
def test_every_method_gives_a_finite_map_and_its_faithfulness(model, picture, method):
    done = []
    found = explain.explain(model, picture, SENTENCE, method, threshold=some_threshold(model, picture), progress=done.append)
    assert done == sorted(done) and done[-1] == 1 and not found.empty
    if method == "words":
        assert found.attribution is None and found.words == tuple(SENTENCE.split()) and len(found.scores) == 6
    else:
        assert found.attribution.shape == picture.shape and found.attribution.dtype == np.float32
        assert np.isfinite(found.attribution).all()
        assert found.inside is None or 0 <= found.inside <= 1  # None: nothing speaks for the mask
    assert 0 <= found.faithfulness.fit <= 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_integrated_gradients_add_up_to_the_change_of_the_score(model, picture):
    """Completeness: the attributions sum to s(x) - s(baseline) (Sundararajan et al., ICML 2017)."""
    from causalclipseg import segment

    result = segment(model, picture, SENTENCE, threshold=some_threshold(model, picture))
    target = explain._Target(model, result, "black", None)
    values = explain._integrated_gradients(target, (), "fusion")
    with torch.no_grad():
        change = target(target.picture) - target(target.background)
    assert float(values.sum()) == pytest.approx(float(change), rel=0.1, abs=0.05)


def test_the_score_is_the_mean_logit_over_the_frozen_mask(model, picture):
    from causalclipseg import segment
    from causalclipseg.evaluation import fit

    result = segment(model, picture, SENTENCE, threshold=some_threshold(model, picture))
    target = explain._Target(model, result, "mean", None)
    small = fit(torch.from_numpy(picture)[None, None].float() / 255, 64)
    with torch.no_grad():
        logits = model(small.expand(-1, 3, -1, -1), model.tokenize([SENTENCE])[0]).logits[0, 0]
        frozen = logits.sigmoid() >= result.threshold
        assert target(small).item() == pytest.approx(logits[frozen].mean().item(), abs=1e-6)
        other = 1 - small  # the mask stays that of the first picture
        again = model(other.expand(-1, 3, -1, -1), model.tokenize([SENTENCE])[0]).logits[0, 0]
        assert target(other).item() == pytest.approx(again[frozen].mean().item(), abs=1e-6)


def test_words_have_the_shapley_values_of_a_game_that_is_known():
    """Two words that only count together share their worth; a third adds its own."""
    def game(keep):
        return 4 * keep[:, 0] * keep[:, 1] + keep[:, 2]

    torch.manual_seed(0)
    values = ShapleyValueSampling(game).attribute(torch.ones(1, 3), baselines=0, n_samples=400, perturbations_per_eval=8)[0]
    assert values.sum().item() == pytest.approx(5, abs=1e-4) and values[2].item() == pytest.approx(1, abs=1e-4)
    assert values[0].item() == pytest.approx(2, abs=0.3)


def test_the_measures_know_a_perfect_map_from_a_wrong_one():
    weights = torch.linspace(0, 1, 20) ** 3
    right = explain.measure(lambda keep: keep @ weights, weights)
    wrong = explain.measure(lambda keep: keep @ weights, -weights)
    scaled = explain.measure(lambda keep: keep @ weights, 1000 * weights)
    assert right.better_than_random and not wrong.better_than_random
    assert right.fit == pytest.approx(1, abs=1e-4) and scaled.fit == pytest.approx(1, abs=1e-4)
    assert right.deletion < right.random_deletion < wrong.deletion
    assert right.insertion_curve[0] == pytest.approx(0, abs=1e-6) and right.insertion_curve[-1] == pytest.approx(1, abs=1e-6)
    assert explain.measure(lambda keep: keep @ weights, torch.zeros(20)).fit == pytest.approx(0, abs=1e-6)


def test_deletion_is_the_plain_area_under_the_curve():
    weights = torch.tensor([3.0, 1.0])
    found = explain.measure(lambda keep: keep @ weights, weights)
    assert found.deletion == pytest.approx((1 / 2 + 1 / 4 + 0) * 0 + 0.5 * (1 + 0.25) / 2 + 0.5 * (0.25 + 0) / 2)


def test_an_empty_mask_is_said_and_gives_zeros(model, picture):
    found = explain.explain(model, picture, SENTENCE, "gradcam", threshold=0.9999)
    assert found.empty and not found.attribution.any() and found.faithfulness is None
    assert any("nothing to attribute" in line for line in found.warnings)


def test_no_sentence_has_no_words(model, picture):
    found = explain.explain(model, picture, "", "words", threshold=some_threshold(model, picture))
    assert found.words == () and any("no words" in line for line in found.warnings)


def test_it_can_be_cancelled(model, picture):
    class Cancelled(Exception):
        pass

    def stop(share):
        raise Cancelled

    with pytest.raises(Cancelled):
        explain.explain(model, picture, SENTENCE, "occlusion", threshold=some_threshold(model, picture), progress=stop)


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"baseline": "pink"}, {"layer": "stage9"}])
def test_unknown_choices_are_named(model, picture, wrong):
    with pytest.raises(ValueError, match="choose one of"):
        explain.explain(model, picture, SENTENCE, **wrong)


def test_weights_are_not_changed_by_the_randomisation_check(model, picture):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    value = explain.randomisation_check(model, picture, SENTENCE, "gradcam")
    assert np.isnan(value) or -1 <= value <= 1
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
