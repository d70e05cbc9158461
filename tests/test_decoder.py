"""Eq. 1 against nested loops and against a grouped convolution at full resolution."""
import itertools

import pytest
import torch
from torch.nn import functional as F

from causalclipseg.decoder import FiLM, TextToPixelDecoder, correlate
from causalclipseg.masking import coordinates
from conftest import lively


def example(b, c, h, w, k):
    generator = torch.Generator().manual_seed(k)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.double)  # noqa: E731
    return draw(b, c, h, w), draw(b, c, k, k), draw(b)


def bilinear(x, size):
    """Bilinear interpolation of (h, w) to `size`, pixel centres at halves, edges repeated; by loops."""
    (h, w), (height, width) = x.shape, size
    out = torch.zeros(size, dtype=x.dtype)
    for y, column in itertools.product(range(height), range(width)):
        sy, sx = max((y + 0.5) * h / height - 0.5, 0), max((column + 0.5) * w / width - 0.5, 0)
        y0, x0 = int(sy), int(sx)
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        fy, fx = sy - y0, sx - x0
        out[y, column] = (1 - fy) * ((1 - fx) * x[y0, x0] + fx * x[y0, x1]) + fy * ((1 - fx) * x[y1, x0] + fx * x[y1, x1])
    return out


@pytest.mark.parametrize("k", [1, 3, 5])
def test_correlation_equals_loops_over_all_channels_at_full_resolution(k):
    features, kernels, bias = example(2, 3, 2, 3, k)
    size = (4, 6)
    out = correlate(features, kernels, bias, size)
    assert out.shape == (2, 1, *size)
    for n in range(2):
        up = torch.stack([bilinear(channel, size) for channel in features[n]])
        for y, x in itertools.product(range(size[0]), range(size[1])):
            total = bias[n].clone()
            for c, iy, ix in itertools.product(range(3), range(k), range(k)):
                sy, sx = y + iy - k // 2, x + ix - k // 2
                if 0 <= sy < size[0] and 0 <= sx < size[1]:
                    total = total + kernels[n, c, iy, ix] * up[c, sy, sx]
            torch.testing.assert_close(out[n, 0, y, x], total)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("low, size", [((6, 9), (24, 36)), ((5, 4), (20, 16)), ((7, 7), (7, 7))])
def test_correlation_equals_a_grouped_convolution_at_full_resolution(k, low, size):
    features, kernels, bias = example(3, 5, *low, k)
    up = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    full = F.conv2d(up.reshape(1, 3 * 5, *size), kernels, bias, padding=k // 2, groups=3)
    torch.testing.assert_close(correlate(features, kernels, bias, size), full.view(3, 1, *size))


def test_gradients_of_the_correlation_equal_those_at_full_resolution():
    tensors = example(2, 3, 3, 4, 3)
    weight = torch.randn(2, 1, 6, 8, dtype=torch.double)

    def full(features, kernels, bias):
        up = F.interpolate(features, size=(6, 8), mode="bilinear", align_corners=False)
        return F.conv2d(up.reshape(1, 6, 6, 8), kernels, bias, padding=1, groups=2).view(2, 1, 6, 8)

    grads = []
    for function in (lambda *t: correlate(*t, (6, 8)), full):
        given = [t.clone().requires_grad_() for t in tensors]
        (function(*given) * weight).sum().backward()
        grads.append([t.grad for t in given])
    torch.testing.assert_close(grads[0], grads[1])


def test_taps_outside_the_picture_count_as_zero():
    out = correlate(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.zeros(1), (6, 6))[0, 0]
    assert (out[0, 0], out[0, 2], out[2, 2]) == (4, 6, 9)


def test_a_kernel_has_a_direction():
    """Correlation, not convolution: the tap to the right reads the pixel to the right."""
    features, kernel = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    features[0, 0, 1, 2] = 1
    kernel[0, 0, 1, 2] = 1
    assert correlate(features, kernel, torch.zeros(1), (3, 3))[0, 0].nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_sentence_becomes_one_kernel_and_one_bias(k):
    decoder = TextToPixelDecoder(6, 8, 4, k).double()
    assert decoder.embed.out_features == 4 * k * k + 1, "D = C * K * K + 1"
    tau = torch.randn(3, 6, dtype=torch.double)
    kernels, bias = decoder.kernel(tau)
    assert kernels.shape == (3, 4, k, k) and bias.shape == (3,)
    for n, c, iy, ix in itertools.product(range(3), range(4), range(k), range(k)):
        row = (c * k + iy) * k + ix
        expected = (decoder.embed.weight[row] * tau[n]).sum() + decoder.embed.bias[row]
        torch.testing.assert_close(kernels[n, c, iy, ix], expected)
    torch.testing.assert_close(bias, tau @ decoder.embed.weight[-1] + decoder.embed.bias[-1])


def test_film_is_the_identity_at_first_and_then_scales_and_shifts_each_channel():
    torch.manual_seed(0)
    film, tau, x = FiLM(6, 4), torch.randn(2, 6), torch.randn(2, 4, 3, 5)
    assert torch.equal(film(tau, x), x)
    lively(film)
    for n, c in itertools.product(range(2), range(4)):
        gamma, beta = (film.embed.weight[row] @ tau[n] + film.embed.bias[row] for row in (c, 4 + c))
        torch.testing.assert_close(film(tau, x)[n, c], (1 + gamma) * x[n, c] + beta)


def test_a_conditioned_decoder_equals_its_steps_one_by_one():
    torch.manual_seed(0)
    decoder = lively(TextToPixelDecoder(6, 5, 4, 3, 2, fine_channels=7)).double().eval()
    double = lambda *shape: torch.randn(*shape, dtype=torch.double)
    tau, x, fine = double(2, 6), double(2, 5, 3, 4), double(2, 7, 6, 8)
    result = decoder.upsample(x, tau, fine)
    part = decoder.conditioning
    x = part.film(tau, x)
    x = x + part.out_norm(part.out(torch.relu(part.film_inside(tau, part.norm(part.conv(x))))))
    x = F.interpolate(decoder.refine[0](x), scale_factor=2, mode="bilinear", align_corners=False)
    x = decoder.film(tau, x + decoder.fine[1](F.conv2d(fine, decoder.fine[0].weight)))
    x = F.interpolate(decoder.refine[1](x), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, decoder.refine[2](x))


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_decoder_equals_its_steps_one_by_one(steps):
    torch.manual_seed(0)
    decoder = lively(TextToPixelDecoder(6, 5, 4, 3, steps)).double().eval()
    tau, features = torch.randn(2, 6, dtype=torch.double), torch.randn(2, 5, 3, 4, dtype=torch.double)
    x = torch.cat([features, coordinates(features)], 1)
    for step, (conv, norm, _) in enumerate(decoder.refine):
        if step:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = F.conv2d(x, conv.conv.weight if step == 0 else conv.weight, padding=1)
        x = torch.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    assert len(decoder.refine) == steps + 1 and x.shape == (2, 4, 3 * 2**steps, 4 * 2**steps)
    up = F.interpolate(x, size=(24, 32), mode="bilinear", align_corners=False)
    kernels, bias = decoder.kernel(tau)
    expected = F.conv2d(up.reshape(1, 8, 24, 32), kernels, bias, padding=1, groups=2).view(2, 1, 24, 32)
    torch.testing.assert_close(decoder(tau, features, (24, 32)), expected)


def test_a_sentence_changes_only_its_own_picture():
    torch.manual_seed(0)
    decoder = TextToPixelDecoder(6, 5, 4).eval()
    tau, features = torch.randn(3, 6), torch.randn(3, 5, 3, 4)
    before = decoder(tau, features, (12, 16))
    tau[1] += 1
    after = decoder(tau, features, (12, 16))
    changed = [not torch.equal(a, b) for a, b in zip(before, after)]
    assert changed == [False, True, False]
