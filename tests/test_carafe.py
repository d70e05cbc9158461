"""CARAFE against nested loops, against mmcv's reference tensors, and mmcv's registry."""
import itertools
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from causalclipseg.carafe import CARAFE, _mmcv_operator, carafe, register_with_mmcv
from conftest import REPOSITORY

REFERENCE = REPOSITORY.parent / "shared" / "data" / "carafe_reference"


def loops(features, kernels, k, group, scale):
    """CARAFE as its definition reads: for each target pixel, the weighted taps around its source pixel."""
    b, c, h, w = features.shape
    out = torch.zeros(b, c, h * scale, w * scale, dtype=features.dtype)
    for n, channel, y, x in itertools.product(range(b), range(c), range(h * scale), range(w * scale)):
        block = channel // (c // group)
        total = torch.zeros((), dtype=features.dtype)
        for iy, ix in itertools.product(range(k), range(k)):
            sy, sx = y // scale + iy - k // 2, x // scale + ix - k // 2
            if 0 <= sy < h and 0 <= sx < w:
                total = total + kernels[n, (block * k + iy) * k + ix, y, x] * features[n, channel, sy, sx]
        out[n, channel, y, x] = total
    return out


def example(b, c, h, w, k, group, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(b, c, h, w, generator=generator, dtype=torch.double)
    kernels = torch.randn(b, group * k * k, h * scale, w * scale, generator=generator, dtype=torch.double)
    return features, kernels


@pytest.mark.parametrize("group, scale, k, size", [(1, 2, 5, (3, 5)), (2, 2, 3, (4, 2)), (2, 4, 5, (2, 3)), (1, 4, 3, (1, 3)), (4, 3, 3, (2, 2)), (1, 1, 1, (2, 3))])
def test_reassembly_equals_nested_loops(group, scale, k, size):
    features, kernels = example(2, 4, *size, k, group, scale)
    torch.testing.assert_close(carafe(features, kernels, k, group, scale), loops(features, kernels, k, group, scale))


def test_gradients_equal_those_of_the_loops():
    settings = (3, 2, 2)
    given = example(1, 4, 2, 3, *settings)
    weight = torch.randn(1, 4, 4, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    grads = []
    for function in (carafe, loops):
        features, kernels = (t.clone().requires_grad_() for t in given)
        (function(features, kernels, *settings) * weight).sum().backward()
        grads.append((features.grad, kernels.grad))
    torch.testing.assert_close(grads[0], grads[1])


def test_gradients_equal_finite_differences():
    features, kernels = example(1, 2, 2, 2, 3, 2, 2)
    assert torch.autograd.gradcheck(lambda f, k: carafe(f, k, 3, 2, 2), (features.requires_grad_(), kernels.requires_grad_()))


def test_taps_outside_the_map_count_as_zero_and_are_not_renormalised():
    features = torch.ones(1, 1, 3, 3)
    kernels = torch.full((1, 25, 6, 6), 1 / 25)
    out = carafe(features, kernels, 5, 1, 2)[0, 0]
    assert torch.allclose(out[0, 0], torch.tensor(9 / 25)), "3 x 3 of the 5 x 5 taps lie inside at a corner"
    assert torch.allclose(out[2, 2], torch.tensor(9 / 25))
    one = torch.zeros(1, 1, 3, 3)
    one[0, 0, 0, 0] = 1
    assert carafe(one, kernels, 3 + 2, 1, 2)[0, 0].count_nonzero() == 36  # within two pixels of (0, 0) lies the whole map


def test_each_group_reads_its_own_kernels():
    features, kernels = example(1, 4, 3, 3, 3, 2, 2)
    kernels[:, :9] = 0
    out = carafe(features, kernels, 3, 2, 2)
    assert out[:, :2].count_nonzero() == 0 and out[:, 2:].count_nonzero() > 0


@pytest.mark.parametrize(
    "shape, k, group, scale, said",
    [
        ((1, 9, 6, 6), 3, 2, 2, r"\(1, 18, 6, 6\) with odd k, not \(1, 9, 6, 6\)"), ((1, 9, 6, 5), 3, 1, 2, r"\(1, 9, 6, 6\) with odd k, not \(1, 9, 6, 5\)"),
        ((2, 9, 6, 6), 3, 1, 2, r"not \(2, 9, 6, 6\)"), ((1, 4, 6, 6), 2, 1, 2, "with odd k"), ((1, 27, 6, 6), 3, 3, 2, "4 channels cannot be split into 3 groups"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(shape, k, group, scale, said):
    with pytest.raises(ValueError, match=said):
        carafe(torch.zeros(1, 4, 3, 3), torch.zeros(shape), k, group, scale)


@pytest.mark.parametrize("group, scale", [(1, 2), (2, 4)])
def test_the_module_is_the_equation_step_by_step(group, scale):
    torch.manual_seed(0)
    module = CARAFE(4, scale, up_kernel=3, up_group=group, compressed_channels=6).double()
    torch.nn.init.normal_(module.content_encoder.weight)
    features = torch.randn(1, 4, 3, 2, dtype=torch.double)
    squeezed = F.conv2d(features, module.channel_compressor.weight, module.channel_compressor.bias)
    encoded = F.conv2d(squeezed, module.content_encoder.weight, module.content_encoder.bias, padding=1)
    kernels = torch.zeros(1, group * 9, 3 * scale, 2 * scale, dtype=torch.double)
    for g, y, x in itertools.product(range(group), range(3 * scale), range(2 * scale)):
        # channel ((g*9 + tap) * s + sy) * s + sx of the encoder is tap `tap` of target pixel (y, x)
        raw = torch.stack([
            encoded[0, ((g * 9 + tap) * scale + y % scale) * scale + x % scale, y // scale, x // scale] for tap in range(9)
        ])  # fmt: skip
        kernels[0, g * 9 : g * 9 + 9, y, x] = raw.exp() / raw.exp().sum()
    torch.testing.assert_close(module.kernels(features), kernels)
    torch.testing.assert_close(module(features), loops(features, kernels, 3, group, scale))


def test_predicted_kernels_sum_to_one_over_the_taps_of_each_group():
    module = CARAFE(8, 2, up_group=2)
    torch.nn.init.normal_(module.content_encoder.weight)
    kernels = module.kernels(torch.randn(2, 8, 4, 6))
    assert kernels.shape == (2, 50, 8, 12) and kernels.min() >= 0
    for group in kernels.split(25, dim=1):
        torch.testing.assert_close(group.sum(1), torch.ones(2, 8, 12))


def test_at_the_start_it_is_nearly_a_box_blur():
    torch.manual_seed(0)
    features = torch.randn(1, 8, 6, 6)
    blurred = F.avg_pool2d(F.pad(features, (2,) * 4), 5, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(CARAFE(8, 2)(features), blurred, atol=0.02, rtol=0)


@pytest.mark.parametrize("scale, group", [(2, 1), (4, 2)])
def test_it_can_start_as_a_gaussian_around_each_target_pixel(scale, group):
    torch.manual_seed(0)
    module = CARAFE(4, scale, up_group=group).double()
    torch.nn.init.zeros_(module.content_encoder.weight)
    module.start_as_interpolation(sigma=0.6)
    kernels = module.kernels(torch.randn(1, 4, 3, 3, dtype=torch.double))
    for y, x, g in itertools.product(range(3 * scale), range(3 * scale), range(group)):
        raw = []
        for iy, ix in itertools.product(range(5), range(5)):
            # centres in source pixels: of the target, and of the tap's source pixel
            dy, dx = (y + 0.5) / scale - (y // scale + iy - 2 + 0.5), (x + 0.5) / scale - (x // scale + ix - 2 + 0.5)
            raw.append(np.exp(-(dy**2 + dx**2) / (2 * 0.6**2)))
        torch.testing.assert_close(kernels[0, g * 25 : g * 25 + 25, y, x], torch.tensor(raw) / sum(raw))


def test_parameters_are_named_and_shaped_as_in_mmcv():
    expected = {
        "channel_compressor.weight": (64, 16, 1, 1), "channel_compressor.bias": (64,),
        "content_encoder.weight": (5 * 5 * 1 * 2 * 2, 64, 3, 3), "content_encoder.bias": (100,),
    }  # fmt: skip
    assert {key: tuple(value.shape) for key, value in CARAFE(16, 2).state_dict().items()} == expected
    other = CARAFE(16, 4, up_kernel=3, up_group=2, encoder_kernel=5, encoder_dilation=2, compressed_channels=32)
    assert other.content_encoder.weight.shape == (9 * 2 * 16, 32, 5, 5)
    assert other(torch.randn(1, 16, 6, 7)).shape == (1, 16, 24, 28)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        CARAFE(4, 2, up_kernel=4)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="mmcv's reference tensors are not beside this checkout")
def test_values_and_gradients_equal_mmcvs_reference_tensors():
    def read(name, *shape):
        return torch.from_numpy(np.fromfile(REFERENCE / f"carafe_{name}.bin", "<f4").reshape(shape).copy())

    features, kernels = read("feat", 2, 64, 3, 3).requires_grad_(), read("mask", 2, 100, 6, 6).requires_grad_()
    out = carafe(features, kernels, 5, 4, 2)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(out, read("output", 2, 64, 6, 6), atol=2e-5, rtol=0)
    torch.testing.assert_close(features.grad, read("feat_grad", 2, 64, 3, 3), atol=2e-5, rtol=0)
    torch.testing.assert_close(kernels.grad, read("mask_grad", 2, 100, 6, 6), atol=2e-5, rtol=0)


def test_mmcvs_builder_gives_our_carafe_on_a_cpu():
    try:
        from mmcv.cnn import build_upsample_layer
    except Exception as error:
        pytest.skip(f"mmcv cannot be imported here: {error}")
    assert register_with_mmcv() == register_with_mmcv() == "causalclipseg_carafe", "twice is fine"
    named = build_upsample_layer(dict(type=register_with_mmcv(), channels=8, scale_factor=4))
    assert isinstance(named, CARAFE) and named.scale_factor == 4
    try:
        from mmcv.ops import CARAFEPack  # noqa: F401
    except Exception:
        layer = build_upsample_layer(dict(type="carafe", channels=8, scale_factor=2))
        assert isinstance(layer, CARAFE) and layer(torch.randn(1, 8, 3, 5)).shape == (1, 8, 6, 10)


@pytest.mark.parametrize("off, serves", [(0.0, True), (0.01, False)])
def test_mmcvs_operator_serves_only_where_it_agrees_with_ours(monkeypatch, off, serves):
    asked = []

    def compiled(features, kernels, *settings):
        asked.append(settings)
        return carafe(features, kernels, *settings) + off

    for name in ("mmcv", "mmcv.ops"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(carafe=compiled))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # the operator is compared on a GPU, and there may be none
    _mmcv_operator.cache_clear()
    try:
        assert _mmcv_operator() is _mmcv_operator() is (compiled if serves else None) and len(asked) == 1
    finally:
        _mmcv_operator.cache_clear()


@pytest.mark.parametrize("error", ['OSError("libGL.so.1: cannot open shared object file")', 'RuntimeError("built for another torch")', 'ImportError("libGL.so.1")'])
def test_the_package_works_where_importing_mmcv_fails(tmp_path, error):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text(f"raise {error}\n")
    script = """
import torch
from causalclipseg.carafe import CARAFE, _mmcv_operator, register_with_mmcv
assert CARAFE(4, 2)(torch.zeros(1, 4, 3, 3)).shape == (1, 4, 6, 6)
assert _mmcv_operator() is None
try:
    register_with_mmcv()
except ImportError as e:
    print(e)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "mmcv cannot be imported" in done.stdout and "install mmcv-lite" in done.stdout
    assert error.split('"')[1] in done.stdout
