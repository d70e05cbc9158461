"""Checks of notebook 05: the text kernel, Eq. 1, and Eq. 1 with merged kernels."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import decoder
from . import close, expect


def kernel(answer) -> None:
    """W and b are those of the package's decoder."""
    torch.manual_seed(0)
    reference = decoder.TextToPixelDecoder(text_dim=6, in_channels=3, width=4, kernel_size=3)
    tau = torch.randn(5, 6)
    with torch.no_grad():
        reference.embed.bias.copy_(torch.randn(37))
        d, (want_w, want_b) = reference.embed(tau), reference.kernel(tau)
    got = answer(d, 4, 3)
    expect(isinstance(got, tuple) and len(got) == 2, "return two things: W_tau and b_tau.")
    close(got[0], want_w, "W_tau")
    close(got[1], want_b, "b_tau")


def correlate(answer) -> None:
    """S is that of the package, each picture with its own kernel."""
    _compare(answer)


def merge(answer) -> None:
    """S is that of the package, and nothing at full resolution had C channels."""
    _compare(answer)
    (b, c, k), size = (1, 64, 3), (112, 112)
    features, kernels, bias = _random(b, c, k, (14, 14), seed=5)
    with _Largest() as seen:
        answer(features, kernels, bias, size)
    channels = seen.numel / (size[0] * size[1])
    expect(channels < 2 * k * k, f"your largest tensor is worth {channels:.0f} channels at full resolution; {k * k} are enough.")


def _compare(answer) -> None:
    for b, c, k, size in ((3, 5, 3, (12, 20)), (2, 4, 1, (8, 8)), (2, 3, 5, (16, 12))):
        features, kernels, bias = _random(b, c, k, (4, 5), seed=b + k)
        got, want = answer(features, kernels, bias, size), decoder.correlate(features, kernels, bias, size)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            off = (got - want).abs()
            flipped = decoder.correlate(features, kernels.flip(2, 3), bias, size)
            expect(not torch.allclose(got, flipped, atol=1e-4) or k == 1, "your kernel is flipped: this is a convolution, not a correlation.")
            edge = k // 2
            inside = off[..., edge : size[0] - edge, edge : size[1] - edge]
            expect(off.max() < 1e-4 or inside.max() > 1e-4, "S is right inside and wrong along the frame: outside the picture, what is *interpolated* counts as zero.")
        close(got, want, f"S for K = {k}")


def _random(b, c, k, small, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, c, *small), (b, c, k, k), (b,))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


class _Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that is made inside."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return result
