"""Attributions against plain re-computations, and their measures of faithfulness on functions whose answer is known."""
import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from causalclipseg import CausalCLIPSeg, explain, segment
from causalclipseg.baselines import build_model
from causalclipseg.config import preset
from causalclipseg.evaluation import fit
from causalclipseg.model import Segmentation
from conftest import make_tiny_config

SENTENCE = "Bilateral pulmonary infection, two infected areas."


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (96, 80), dtype=np.uint8)


def some_threshold(model, picture):
    """A threshold that half of the pixels pass."""
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
    picture = picture[:64, :64]  # the network's own size
    threshold = some_threshold(model, picture)
    found = explain.explain(model, picture, SENTENCE, "integrated_gradients", threshold=threshold, baseline="black", faithfulness=False)
    pixels = torch.from_numpy(picture.copy())[None, None].float() / 255
    with torch.no_grad():
        logits = model(torch.cat([pixels, 0 * pixels]).expand(-1, 3, -1, -1), model.tokenize([SENTENCE] * 2)[0]).logits[:, 0]
    whole, empty = logits[:, logits[0].sigmoid() >= threshold].mean(dim=1)
    assert found.attribution.sum() == pytest.approx(float(whole - empty), rel=0.1, abs=0.05)


def reads(monkeypatch, model, score):
    """Let the network's every logit be `score` (B,) of its pictures (B, S, S) and tokens (B, L)."""
    def forward(images, tokens, confounder=False, reversal=None):
        return Segmentation(score(images[:, 0], tokens)[:, None, None, None].expand(-1, 1, *images.shape[-2:]), None, ())

    monkeypatch.setattr(model, "forward", forward)


@pytest.mark.parametrize("baseline", explain.BASELINES)
def test_what_the_network_reads_is_found_and_nothing_else(model, monkeypatch, baseline):
    picture = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    reads(monkeypatch, model, lambda images, tokens: 100 * images[:, :16, :16].mean(dim=(1, 2)))
    exact, watched = (
        explain.explain(model, picture, SENTENCE, method, baseline=baseline, faithfulness=False).attribution for method in ("integrated_gradients", "occlusion")
    )
    pixels = torch.from_numpy(picture)[None, None].float() / 255
    instead = {"black": 0 * pixels, "mean": pixels.mean().expand_as(pixels), "blur": explain._background(pixels, "blur")}[baseline]
    expected = torch.zeros(64, 64)
    expected[:16, :16] = (100 / 256 * (pixels - instead))[0, 0, :16, :16]
    np.testing.assert_allclose(exact, expected.numpy(), atol=1e-4)
    inside = np.zeros((64, 64), bool)
    inside[:20, :20] = True  # as far as windows of 8 pixels in steps of 4 reach
    assert np.abs(watched[:16, :16]).max() > 0.01 and not watched[~inside].any()
    if baseline == "black":
        assert watched[:16, :16].min() > 0, "every window there takes something away"


@pytest.mark.parametrize("layer", explain.LAYERS)
def test_grad_cam_weighs_the_channels_of_its_layer_by_their_mean_gradient(model, picture, layer):
    threshold, kept = some_threshold(model, picture), []
    found = explain.explain(model, picture, SENTENCE, "gradcam", threshold=threshold, layer=layer, faithfulness=False)
    place = model.causal.fusion if layer == "fusion" else getattr(model.vision_encoder.net, f"layer{layer[-1]}")
    hook = place.register_forward_hook(lambda module, given, out: kept.append(out))
    small = fit(torch.from_numpy(picture)[None, None].float() / 255, 64)
    logits = model(small.expand(-1, 3, -1, -1), model.tokenize([SENTENCE])[0]).logits[0, 0]
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[logits.sigmoid() >= threshold].mean(), kept)
    values = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1, keepdim=True).detach()
    for size in ((64, 64), picture.shape):
        values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    assert np.ptp(found.attribution) > 0
    np.testing.assert_allclose(found.attribution, values[0, 0].numpy(), rtol=1e-3, atol=1e-5 * float(values.abs().max()))


def test_stages_of_another_image_tower_are_refused_and_its_fusion_is_not(picture, tmp_path):
    vision = {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    text = {"context_length": 24, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}}))
    model = CausalCLIPSeg(make_tiny_config(encoder=f"local-dir:{tmp_path}")).eval()
    asked = dict(threshold=some_threshold(model, picture), faithfulness=False)
    assert explain.explain(model, picture, SENTENCE, "gradcam", **asked).attribution.any()
    with pytest.raises(ValueError, match='no place for Grad-CAM\'s layer "stage2"; choose layer=fusion, or one of the methods integrated_gradients, occlusion, words'):
        explain.explain(model, picture, SENTENCE, "gradcam", layer="stage2", **asked)


def test_the_score_is_the_mean_logit_over_the_frozen_mask(model, picture):
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


def test_words_have_the_shapley_values_of_a_game_that_is_known(model, picture, monkeypatch):
    """Two words that only count together share their worth; a third adds its own, and one adds nothing."""
    def game(images, tokens):
        upper, left, lung = ((tokens == model.tokenize([word])[0][0, 1]).any(dim=1).float() for word in ("upper", "left", "lung"))
        return 1 + 4 * upper * lung + 2 * left

    reads(monkeypatch, model, game)
    found = explain.explain(model, picture, "upper left big lung", "words", faithfulness=False)
    assert found.words == ("upper", "left", "big", "lung") and found.faithfulness is None
    assert found.scores == pytest.approx((2, 2, 0, 2), abs=1e-5), "few words: all orders"
    monkeypatch.setattr(explain, "EXACT_WORDS", 3)
    upper, left, big, lung = explain.explain(model, picture, "upper left big lung", "words", faithfulness=False).scores
    assert (left, big, upper + lung) == pytest.approx((2, 0, 4), abs=1e-5) and 1 <= upper <= 3, "eight orders, in about half of which one comes last"


def test_words_that_are_not_read_have_no_bar(model, picture):
    found = explain.explain(model, picture, f"{SENTENCE} {'far ' * 1000}", "words", threshold=some_threshold(model, picture), faithfulness=False)
    assert 5 < len(found.words) <= model.config.context_length - 2 and any("its end was not read" in line for line in found.warnings)
    assert not model.tokenize([" ".join(found.words)])[1][0]


def test_where_nothing_changes_nothing_fits():
    found = explain.measure(lambda keep: torch.zeros(len(keep)), torch.rand(9))
    assert found.fit == found.flat_fit == 0


def test_exact_shapley_values_are_the_mean_over_all_orders():
    torch.manual_seed(0)
    worth = torch.rand(2, 2, 2, 2)
    score = lambda keep: torch.stack([worth[tuple(row.long().tolist())] for row in keep])  # noqa: E731
    gains = torch.zeros(4)
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        keep = torch.zeros(4)
        for i in order:
            before = score(keep[None])
            keep[i] = 1
            gains[i] += (score(keep[None]) - before).item() / len(orders)
    torch.testing.assert_close(explain._exact_shapley(score, 4), gains)


def test_the_measures_know_a_perfect_map_from_a_wrong_one():
    weights = torch.linspace(0, 1, 20) ** 3
    right = explain.measure(lambda keep: keep @ weights, weights)
    wrong = explain.measure(lambda keep: keep @ weights, -weights)
    scaled = explain.measure(lambda keep: keep @ weights, 1000 * weights)
    assert right.better_than_random and not wrong.better_than_random
    assert right.fit == pytest.approx(1, abs=1e-4) and scaled.fit == pytest.approx(1, abs=1e-4)
    assert right.deletion < right.random_deletion < wrong.deletion
    assert 0 < right.flat_fit < 0.95 and right.flat_fit == wrong.flat_fit
    assert explain.measure(lambda keep: keep.sum(1), weights).flat_fit == pytest.approx(1, abs=1e-4)
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


@pytest.fixture(scope="module")
def finder(model, picture):
    """The network with a mask of half of the picture at the usual threshold, too."""
    finder = copy.deepcopy(model)
    with torch.no_grad():
        finder.causal.decoder.embed.bias[-1] -= torch.logit(torch.tensor(some_threshold(model, picture)))
    return finder


def test_weights_are_not_changed_by_the_randomisation_check(finder, picture):
    before = {name: value.clone() for name, value in finder.state_dict().items()}
    assert np.isfinite(explain.randomisation_check(finder, picture, SENTENCE, "gradcam"))
    assert all(torch.equal(before[name], now) for name, now in finder.state_dict().items())


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_the_randomisation_check_tells_a_network_that_forgot_from_one_that_did_not(finder, picture, monkeypatch, method):
    forgot = explain.randomisation_check(finder, picture, SENTENCE, method)
    for kind in (torch.nn.Conv2d, torch.nn.Linear):
        monkeypatch.setattr(kind, "reset_parameters", lambda part: None)
    assert explain.randomisation_check(finder, picture, SENTENCE, method) == pytest.approx(1, abs=1e-6)
    assert -1 <= forgot < 0.9


def test_words_cannot_be_checked_by_randomisation(model, picture):
    with pytest.raises(ValueError, match="compares maps of pixels; choose another method than words"):
        explain.randomisation_check(model, picture, SENTENCE, "words")


def test_grad_cam_of_a_network_without_our_features_is_refused_in_one_sentence(picture):
    with pytest.raises(ValueError, match="F.c, which this network has not; choose one of integrated_gradients"):
        explain.explain(build_model(preset("monai:UNet")[0]).eval(), picture, SENTENCE, "gradcam", threshold=1e-6)
