"""The mean over six views against a plain re-computation."""

import pytest
import torch
from torch.nn import functional as F

from causalclipseg import CausalCLIPSeg, reports
from causalclipseg.evaluation import predictor
from causalclipseg.views import averaged
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
