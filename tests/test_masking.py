"""Eq. 2 and the fusion, each against a plain re-computation."""
import itertools

import pytest
import torch
from torch.nn import functional as F

from causalclipseg.carafe import carafe
from causalclipseg.masking import CoordConv, Fusion, Masker, coordinates, reverse_gradient, split
from conftest import lively


def convolve(x, weight, bias=None):
    """A convolution of (C, h, w) with zero padding, by loops."""
    out_channels, channels, k, _ = weight.shape
    h, w = x.shape[1:]
    out = torch.zeros(out_channels, h, w, dtype=x.dtype)
    for o, y, column in itertools.product(range(out_channels), range(h), range(w)):
        total = bias[o].clone() if bias is not None else torch.zeros((), dtype=x.dtype)
        for c, iy, ix in itertools.product(range(channels), range(k), range(k)):
            sy, sx = y + iy - k // 2, column + ix - k // 2
            if 0 <= sy < h and 0 <= sx < w:
                total = total + weight[o, c, iy, ix] * x[c, sy, sx]
        out[o, y, column] = total
    return out


def normalise(x, norm):
    """Batch normalisation in evaluation mode, of (C, h, w)."""
    column = lambda t: t.view(-1, 1, 1)  # noqa: E731
    return (x - column(norm.running_mean)) / (column(norm.running_var) + norm.eps).sqrt() * column(norm.weight) + column(norm.bias)


def test_coordinates_run_from_minus_one_to_one_with_x_first():
    places = coordinates(torch.zeros(2, 7, 3, 5))
    assert places.shape == (2, 2, 3, 5)
    for y, x in itertools.product(range(3), range(5)):
        assert places[1, :, y, x].tolist() == pytest.approx([-1 + 2 * x / 4, -1 + 2 * y / 2])


def test_coordinates_take_the_type_of_the_features():
    assert coordinates(torch.zeros(1, 1, 2, 2, dtype=torch.double)).dtype == torch.double


def test_a_coordinate_convolution_is_a_convolution_that_also_sees_where_it_is():
    torch.manual_seed(0)
    layer = CoordConv(2, 3).double()
    features = torch.randn(1, 2, 3, 4, dtype=torch.double)
    seen = torch.zeros(4, 3, 4, dtype=torch.double)
    seen[:2] = features[0]
    for y, x in itertools.product(range(3), range(4)):
        seen[2, y, x], seen[3, y, x] = -1 + 2 * x / 3, -1 + 2 * y / 2
    torch.testing.assert_close(layer(features)[0], convolve(seen, layer.conv.weight, layer.conv.bias))


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_masker_is_equation_2_step_by_step(per_channel):
    torch.manual_seed(0)
    masker = lively(Masker(3, 4, per_channel)).double().eval()
    features = torch.randn(1, 3, 4, 5, dtype=torch.double)
    seen = torch.cat([features, coordinates(features)], 1)[0]
    hidden = normalise(convolve(seen, masker.coord_conv.conv.weight), masker.norm).clamp(min=0)
    expected = 1 / (1 + (-convolve(hidden, masker.conv.weight, masker.conv.bias)).exp())
    torch.testing.assert_close(masker(features)[0], expected)


@pytest.mark.parametrize("per_channel, channels", [(False, 1), (True, 6)])
def test_masks_lie_strictly_between_zero_and_one(per_channel, channels):
    mask = Masker(6, 8, per_channel)(torch.randn(2, 6, 5, 7))
    assert mask.shape == (2, channels, 5, 7) and 0 < mask.min() and mask.max() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_causal_and_confounding_features_add_up_to_the_features(channels):
    torch.manual_seed(0)
    features, mask = torch.randn(2, 3, 4, 5, dtype=torch.double), torch.rand(2, channels, 4, 5, dtype=torch.double)
    causal, confounding = split(features, mask)
    torch.testing.assert_close(causal + confounding, features)
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        m = mask[n, c if channels > 1 else 0, y, x]
        assert causal[n, c, y, x] == m * features[n, c, y, x]
        assert confounding[n, c, y, x] == (1 - m) * features[n, c, y, x]


def test_the_fusion_equals_its_steps_one_by_one():
    torch.manual_seed(0)
    fusion = lively(Fusion((2, 3, 4), 4, 5)).double().eval()
    for up in list(fusion.upsample)[1:]:
        torch.nn.init.normal_(up.content_encoder.weight)
    stages = [torch.randn(1, 2, 4, 8, dtype=torch.double), torch.randn(1, 3, 2, 4, dtype=torch.double), torch.randn(1, 4, 1, 2, dtype=torch.double)]
    scaled = []
    for i, stage in enumerate(stages):
        x = normalise(torch.einsum("oc,chw->ohw", fusion.narrow[i].weight[:, :, 0, 0], stage[0]), fusion.norm[i]).clamp(min=0)[None]
        if i:
            up = fusion.upsample[i]
            x = carafe(x, up.kernels(x), 5, 1, 2**i)
        scaled.append(x)
    merged = F.conv2d(torch.cat(scaled, 1), fusion.merge.weight)[0]
    out = fusion(stages)
    assert out.shape == (1, 4, 4, 8)
    torch.testing.assert_close(out[0], normalise(merged, fusion.merge_norm).clamp(min=0))


def test_the_fusion_brings_every_stage_to_stride_8():
    fusion = Fusion((8, 16, 32), 12, 4)
    out = fusion([torch.randn(2, 8, 12, 8), torch.randn(2, 16, 6, 4), torch.randn(2, 32, 3, 2)])
    assert out.shape == (2, 12, 12, 8)
    assert [getattr(up, "scale_factor", 1) for up in fusion.upsample] == [1, 2, 4]


def test_the_reversal_keeps_the_value_and_turns_the_gradient():
    x = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    out = reverse_gradient(x, 0.3)
    assert torch.equal(out, x)
    weight = torch.randn(2, 3, dtype=torch.double)
    (out * weight).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * weight)


def test_the_fusion_starts_as_an_interpolation_not_as_a_blur():
    """At the start a bright pixel of a coarse stage stays the brightest where it lies."""
    torch.manual_seed(0)
    for up in list(Fusion((2, 3, 4), 4, 8).upsample)[1:]:
        x = torch.zeros(1, 4, 5, 5)
        x[:, :, 2, 2] = 1
        out, s = up(x)[0, 0].detach(), up.scale_factor
        assert out[2 * s : 3 * s, 2 * s : 3 * s].mean() > 2 * out[s : 2 * s, 2 * s : 3 * s].mean()
