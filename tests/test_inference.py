"""`segment` against the model's own forward pass, and the files of a result."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from causalclipseg import CausalCLIPSeg, reports, segment
from causalclipseg.inference import save_result
from causalclipseg.phantoms import sample_phantom
from conftest import lively, make_tiny_config
from demo_driver import REPOSITORY

SENTENCE = "Unilateral pulmonary infection, one infected area, lower left lung."


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return lively(CausalCLIPSeg(make_tiny_config())).eval()


@pytest.fixture(scope="module")
def picture():
    """(80, 112) uint8, another size and shape than the model's 64 x 64."""
    return np.asarray(Image.fromarray(sample_phantom(5, 96).image).resize((112, 80)))


def test_it_is_the_forward_pass_resized(model, picture):
    result = segment(model, picture, SENTENCE, confounder=True)
    image = F.interpolate(torch.from_numpy(picture / np.float32(255))[None, None], (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        output = model(image.repeat(1, 3, 1, 1), model.tokenize([SENTENCE])[0], confounder=True)

    def resized(values):
        return F.interpolate(values, (80, 112), mode="bilinear")[0, 0].numpy()

    np.testing.assert_allclose(result.probability, resized(output.logits.sigmoid()), atol=1e-5)
    np.testing.assert_allclose(result.confounder_probability, resized(output.confounder_logits.sigmoid()), atol=1e-5)
    assert len(result.causal_masks) == len(result.confounder_masks) == 3
    for causal, confounding, mask in zip(result.causal_masks, result.confounder_masks, output.masks):
        np.testing.assert_allclose(causal, resized(mask.mean(1, keepdim=True)), atol=1e-5)
        np.testing.assert_allclose(causal + confounding, 1, atol=1e-6)
    for values in (result.probability, result.confounder_probability, *result.causal_masks, *result.confounder_masks):
        assert values.shape == (80, 112) and values.dtype == np.float32 and 0 <= values.min() and values.max() <= 1
    assert result.mask.dtype == np.bool_ and np.array_equal(result.mask, result.probability >= 0.5)
    assert np.array_equal(result.image, picture) and result.warnings == []


def test_path_picture_array_and_bytes_give_the_same(model, picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    first = segment(model, picture, SENTENCE)
    rgb = np.dstack([picture] * 3)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(picture), Image.fromarray(rgb), rgb, picture / 255):
        again = segment(model, source, SENTENCE)
        assert np.array_equal(again.probability, first.probability) and again.to_dict() == first.to_dict()


def test_a_model_in_training_is_put_into_evaluation_mode(model, picture):
    first = segment(model, picture, SENTENCE)
    again = segment(model.train(), picture, SENTENCE)
    assert np.array_equal(first.probability, again.probability) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sentence_and_confounder_branch_matter_only_where_they_should(model, picture):
    first, other = segment(model, picture, SENTENCE), segment(model, picture, "All right lung.")
    assert not np.allclose(first.probability, other.probability, atol=1e-4)
    both = segment(model, picture, SENTENCE, confounder=True)
    assert first.confounder_probability is None and np.array_equal(both.probability, first.probability)


def test_the_threshold_decides(model, picture):
    levels = np.quantile(segment(model, picture, SENTENCE).probability, [0.2, 0.5, 0.8])
    results = [segment(model, picture, SENTENCE, threshold=level) for level in levels]
    shares = [r.area_fraction for r in results]
    assert 1 > shares[0] > shares[1] > shares[2] > 0
    assert [r.threshold for r in results] == [float(level) for level in levels]
    for result in results:
        assert result.area_fraction == result.mask.sum() / (80 * 112)
        assert result.finding == reports.describe(result.mask) and result.components == reports.read_mask(result.mask).count
        assert result.zones == {side: list(getattr(reports.read_mask(result.mask), side)) for side in ("left", "right")}
        assert result.disagreements == reports.disagreements(reports.parse(SENTENCE), reports.read_mask(result.mask))


def test_an_empty_mask(model, picture, tmp_path):
    result = segment(model, picture, SENTENCE, threshold=0.999999)
    assert not result.mask.any() and result.area_fraction == 0 and result.components == 0
    assert result.finding == reports.EMPTY and result.zones == {"left": [], "right": []}
    assert result.disagreements == [
        "The sentence names the left lung; the mask has nothing there.",
        "The sentence counts one infected area; the mask has no infected area.",
    ]
    save_result(result, tmp_path)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.getextrema() == (0, 0)


def test_without_intervention_there_are_no_masks(picture, tmp_path, model):
    save_result(segment(model, picture, SENTENCE), tmp_path)
    plain = CausalCLIPSeg(make_tiny_config(intervention=False))
    result = segment(plain, picture, SENTENCE)
    assert result.causal_masks == result.confounder_masks == () and result.probability.shape == (80, 112)
    save_result(result, tmp_path)  # those of the earlier result must not stay
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.png", "overlay.png", "probability.png", "result.json"]
    with pytest.raises(ValueError, match="without causal intervention"):
        segment(plain, picture, SENTENCE, confounder=True)


def test_warnings_of_sentence_and_picture(model, picture):
    long = (
        "Bilateral pulmonary infection, two infected areas, upper middle lower left lung and upper middle lower right "
        "lung, at the left lung, at the right lung."
    )
    cases = [
        ("", picture, ["no sentence"]),
        ("lower left lung and frobnicated gizmos", picture, ['"frobnicated", "gizmos"']),
        (long, picture, ["24 tokens that the model reads; its end was not read"]),
        ("Bilateral infection, no infected area.", picture, ["contradicts itself"]),
        ("Pulmonary infection.", picture, []),
        (SENTENCE, np.tile(picture, (1, 3)), ["squeezed"]),
        (SENTENCE, np.full((64, 64), 7, np.uint8), ["same value"]),
        ("blah", np.full((200, 64), 7.0), ["stretched", "same value", "blah", "do not rely", "squeezed"]),
    ]
    for sentence, image, words in cases:
        found = segment(model, image, sentence).warnings
        assert len(found) == len(words) and all(any(w in line for line in found) for w in words), (sentence, found)


def test_many_unread_words_are_counted(model, picture):
    words = [f"q{letter}q" for letter in "abcdefghij"]
    assert any("and 4 more" in line for line in segment(model, picture, " ".join(words)).warnings)


@pytest.mark.parametrize("change, error, words", [
    ({"report": None}, TypeError, "must be a string, not NoneType"), ({"report": ["a"]}, TypeError, "not list"),
    ({"report": b"left lung"}, TypeError, "not bytes"), ({"report": "a" * 10_001}, ValueError, "10,001 characters"),
    ({"threshold": 0}, ValueError, "between 0 and 1"), ({"threshold": 1}, ValueError, "between 0 and 1"),
    ({"threshold": float("nan")}, ValueError, "between 0 and 1"), ({"threshold": "0.5"}, TypeError, "not str"),
    ({"threshold": None}, TypeError, "not NoneType"), ({"threshold": True}, TypeError, "not bool"),
    ({"model": "assets/models/mini"}, TypeError, "must be a CausalCLIPSeg"), ({"image": None}, ValueError, "NoneType"),
])  # fmt: skip
def test_wrong_arguments(model, picture, change, error, words):
    with pytest.raises(error, match=words):
        segment(**{"model": model, "image": picture, "report": SENTENCE, **change})


def test_damaged_weights_are_not_a_silent_mask(picture):
    broken = CausalCLIPSeg(make_tiny_config())
    with torch.no_grad():
        for parameter in broken.causal.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="weights are damaged"):
        segment(broken, picture, SENTENCE)


def test_the_files_of_a_result(model, picture, tmp_path):
    level = float(np.median(segment(model, picture, SENTENCE).probability))
    result = segment(model, picture, SENTENCE, threshold=level)
    result.model = "tiny"
    out = save_result(result, tmp_path / "a" / "b")
    assert out == tmp_path / "a" / "b"
    names = ["causal.png", "confounder.png", "mask.png", "overlay.png", "probability.png", "result.json"]
    assert sorted(p.name for p in out.iterdir()) == names  # and nothing half-written beside them
    read = {}
    for name in names[:-1]:
        with Image.open(out / name) as written:
            assert written.size == (112, 80) and written.format == "PNG"
            assert written.mode == ("RGB" if name == "overlay.png" else "L")
            read[name] = np.asarray(written)
    assert np.array_equal(read["mask.png"], result.mask * 255) and set(np.unique(read["mask.png"])) == {0, 255}
    assert np.abs(read["probability.png"] / 255 - result.probability).max() <= 0.5 / 255 + 1e-6
    mean = np.mean(result.causal_masks, axis=0)
    assert np.abs(read["causal.png"] / 255 - mean).max() <= 0.5 / 255 + 1e-6
    assert np.abs(read["confounder.png"] / 255 - (1 - mean)).max() <= 0.5 / 255 + 1e-6
    written = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert written == result.to_dict()
    assert set(written) == {
        "area_fraction", "components", "zones", "finding", "disagreements", "report", "warnings", "model", "threshold",
    }  # fmt: skip
    assert written["model"] == "tiny" and written["report"] == SENTENCE and written["threshold"] == level
    before = result.causal_masks[0].copy()
    save_result(result, out)  # again over the first, and without changing the result
    assert np.array_equal(result.causal_masks[0], before)


def test_results_are_not_written_over_a_file(model, picture, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save_result(segment(model, picture, SENTENCE), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_words_that_find_nothing_are_told_from_a_picture_without_a_lesion():
    """The shipped model was never taught "both lungs" alone."""
    mini = CausalCLIPSeg.from_pretrained(REPOSITORY / "assets/models/mini")
    picture = REPOSITORY / "assets/examples/both-lungs.png"
    for sentence, told in (("both lungs", True), ("Infection of the left lung.", False), ("No infected area.", False)):
        found = segment(mini, picture, sentence)
        assert any("With these words the model finds nothing, without a sentence" in line for line in found.warnings) == told, sentence
        assert not told or not found.mask.any()
