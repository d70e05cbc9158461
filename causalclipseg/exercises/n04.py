"""Checks of notebook 04: coordinates, Eq. 2, a mask that hides everything, CARAFE."""

from __future__ import annotations

import torch
from torch import nn

from .. import carafe as package
from .. import masking
from . import close, expect


def coordinates(answer) -> None:
    """x and y are those of the package, on every map that was tried."""
    for shape in ((2, 3, 4, 6), (1, 1, 7, 7)):
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        got, want = answer(features), masking.coordinates(features)
        if isinstance(got, torch.Tensor) and got.shape == want.shape and got.dtype == want.dtype and torch.allclose(got.flip(1), want, atol=1e-5):
            expect(False, "the two channels are exchanged: x comes first, then y.")
        close(got, want, "the coordinates")
    for kind in (torch.float32, torch.float64):
        got = answer(torch.zeros(1, 1, 3, 3, dtype=kind)).dtype
        expect(got == kind, f"for features of {kind} the coordinates are {got}; they should be of the features' type.")


def masker(answer) -> None:
    """M, F^c and F^s are those of the package, and F^c + F^s = F."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, 4, 6, generator=generator)
    reference = masking.Masker(5, 8)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        reference.eval()
        mask = reference(features)
        causal, confounding = masking.split(features, mask)
        got = answer(features, reference.coord_conv.conv, reference.norm, reference.conv)
    expect(isinstance(got, tuple) and len(got) == 3, "return three things: M, F^c and F^s.")
    expect(isinstance(got[0], torch.Tensor) and float(got[0].min()) > 0 and float(got[0].max()) < 1, "M leaves (0, 1): where is the sigmoid?")
    if got[0].shape == mask.shape and torch.allclose(got[0], 1 - mask, atol=1e-5):
        expect(False, "M and 1 - M are exchanged.")
    close(got[0], mask, "M")
    close(got[1], causal, "F^c")
    close(got[2], confounding, "F^s")


def hide(answer) -> None:
    """F^s is one and the same number everywhere: this mask hides all that F knew."""
    features = (1 + 5 * torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(2))).double()
    features[0, 0, 0, 0] = 1  # the lowest that is allowed
    mask = answer(features)
    expect(isinstance(mask, torch.Tensor) and mask.shape == features.shape, "the mask needs one value for each channel and location: the shape of the features.")
    expect(float(mask.min()) > 0 and float(mask.max()) < 1, f"the mask reaches from {float(mask.min()):.3g} to {float(mask.max()):.3g}; it must stay inside (0, 1).")
    hidden = (1 - mask) * features
    spread = float(hidden.max() - hidden.min())
    level = float(hidden.abs().mean())
    expect(
        spread < 1e-3 * level,
        f"F^s still differs by {spread:.3g} between its largest and its smallest value, beside a mean of {level:.3g}: multiplied up, it shows F again.",
    )
    another = (1 - answer(features + 1)) * (features + 1)
    expect(float((another - hidden).abs().max()) < 1e-3 * level, "other features give another constant; then F^s still tells them apart.")


def carafe(answer) -> None:
    """the reassembled maps are those of the package, at scales 2 and 4."""
    generator = torch.Generator().manual_seed(3)
    for (h, w), k, s in (((3, 5), 3, 2), ((4, 4), 5, 4)):
        features = torch.randn(2, 3, h, w, generator=generator)
        kernels = torch.rand(2, k * k, s * h, s * w, generator=generator).softmax(dim=1)
        got, want = answer(features, kernels, k, s), package.carafe(features, kernels, k, 1, s)
        close(got, want, f"the map for k = {k}, s = {s}")
    one = nn.functional.one_hot(torch.tensor(4), 9).float().view(1, 9, 1, 1).expand(1, 9, 4, 4)
    features = torch.arange(4.0).view(1, 1, 2, 2)
    close(answer(features, one, 3, 2), features.repeat_interleave(2, 2).repeat_interleave(2, 3), "with all weight on the centre, the enlarged map")
