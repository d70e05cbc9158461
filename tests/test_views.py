"""The mean over six views against a plain re-computation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from causalclipseg import CausalCLIPSeg, reports, segment
from causalclipseg.evaluation import fit, predictor, resize_probability
from causalclipseg.views import averaged, together
from conftest import lively, make_tiny_config

SENTENCES = ["Unilateral pulmonary infection, one infected area, lower left lung.", ""]


@pytest.fixture(scope="module")
def predict():
    torch.manual_seed(2)
    return predictor(lively(CausalCLIPSeg(make_tiny_config())))


def test_it_is_the_mean_of_six_answers(predict):
    images = torch.rand(2, 1, 64, 64).expand(-1, 3, -1, -1)
    answers = []
    for size in (32, 64, 96):
        view = images if size == 64 else F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        answers += [predict(view, SENTENCES), predict(view.flip(-1), [reports.swap_sides(s) for s in SENTENCES]).flip(-1)]
    resized = [a if a.shape[-1] == 64 else F.interpolate(a, (64, 64), mode="bilinear", antialias=a.shape[-1] > 64) for a in answers]
    torch.testing.assert_close(averaged(predict)(images, SENTENCES), sum(resized) / 6, atol=1e-5, rtol=0)


def test_a_mirrored_picture_with_exchanged_sides_gives_the_mirrored_answer(predict):
    images, mean = torch.rand(2, 1, 64, 64).expand(-1, 3, -1, -1), averaged(predict)
    mirrored = mean(images.flip(-1), [reports.swap_sides(s) for s in SENTENCES]).flip(-1)
    torch.testing.assert_close(mean(images, SENTENCES), mirrored, atol=1e-5, rtol=0)


def test_a_half_that_the_first_network_leaves_empty_is_its_own_answer():
    torch.manual_seed(0)
    first, others = torch.rand(4, 1, 6, 8), [torch.rand(4, 1, 6, 8) for _ in range(2)]
    first[0] *= 0.4  # nothing on either half
    first[1, ..., :4] *= 0.4
    first[2, ..., 4:] *= 0.4
    first[3, 0, 0, 0] = first[3, 0, 0, 7] = 0.5  # a single pixel is something
    mean = (first + others[0] + others[1]) / 3
    expected = mean.clone()
    expected[0], expected[1, ..., :4], expected[2, ..., 4:] = first[0], first[1, ..., :4], first[2, ..., 4:]
    torch.testing.assert_close(together([first, *others]), expected)
    torch.testing.assert_close(together([first]), first)
    mirrored = together([answer.flip(-1) for answer in (first, *others)]).flip(-1)
    torch.testing.assert_close(mirrored, expected)


def test_segment_takes_the_mean_at_the_pictures_size():
    model = lively(CausalCLIPSeg(make_tiny_config()))
    picture = (torch.rand(80, 72) * 255).byte().numpy()
    plain, mean = (segment(model, picture, SENTENCES[0], average_views=six) for six in (False, True))
    small = fit(torch.from_numpy(picture)[None, None].float() / 255, 64).expand(-1, 3, -1, -1)
    expected = resize_probability(averaged(predictor(model))(small, SENTENCES[:1]), (80, 72))[0, 0].numpy()
    np.testing.assert_allclose(mean.probability, expected, atol=1e-5)
    assert not np.allclose(mean.probability, plain.probability, atol=1e-4)
    for one, other in zip(mean.causal_masks, plain.causal_masks):
        np.testing.assert_array_equal(one, other)


def test_pictures_too_small_for_a_smaller_view_are_refused(predict):
    with pytest.raises(ValueError, match="at least 64 pixels"):
        averaged(predict)(torch.rand(1, 3, 32, 32), [""])
