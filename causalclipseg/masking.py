"""Adversarial masking (Sec. 2.3, Eq. 2) and the fusion of the stages into F^c and F^s."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .carafe import CARAFE


def coordinates(features: torch.Tensor) -> torch.Tensor:
    """Two channels that say where a pixel lies: x, then y, each from -1 (left, top) to 1 (right, bottom).

    Args:
        features: (B, C, h, w); only shape, device and type are used.
    Returns:
        (B, 2, h, w).
    """
    b, _, h, w = features.shape
    options = dict(device=features.device, dtype=features.dtype)
    y = torch.linspace(-1, 1, h, **options).view(1, 1, h, 1).expand(b, 1, h, w)
    x = torch.linspace(-1, 1, w, **options).view(1, 1, 1, w).expand(b, 1, h, w)
    return torch.cat([x, y], dim=1)


class CoordConv(nn.Module):
    """Coordinate convolution: a convolution that also sees where it is (Liu et al., NeurIPS 2018).

    Shape:
        (B, C_in, h, w) -> (B, C_out, h, w)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels + 2, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([features, coordinates(features)], dim=1))


class Masker(nn.Module):
    """Eq. 2, first line: M_i = sigmoid(F(F_i)), F a coordinate convolution followed by a convolution
    (between them, ours: batch normalisation and a ReLU).

    Args:
        channels: C_i of the stage.
        width: channels between the two convolutions (ours).
        per_channel: False: one mask for all channels, (B, 1, h, w), as the paper's words say
            ("controlling every location in feature maps"); True: one for each channel.

    Shape:
        (B, C_i, h, w) -> (B, 1 or C_i, h, w), values in (0, 1), up to the rounding of a sigmoid
    """

    def __init__(self, channels: int, width: int, per_channel: bool = False):
        super().__init__()
        self.coord_conv = CoordConv(channels, width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, channels if per_channel else 1, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.conv(torch.relu(self.norm(self.coord_conv(features)))))


def split(features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 2, the rest: F_i^c = M_i * F_i and F_i^s = (1 - M_i) * F_i.

    Args:
        features: F_i, (B, C_i, h, w). mask: M_i, (B, 1 or C_i, h, w), values in [0, 1].
    Returns:
        (F_i^c, F_i^s), each (B, C_i, h, w); they add up to F_i.
    """
    return mask * features, (1 - mask) * features


def split_fine(features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 2 for F_1, which has no masker of its own: M_2, brought to its scale, so that no feature passes unmasked.

    Args:
        features: F_1, (B, C_1, 2 h, 2 w). mask: M_2, (B, 1 or C_2, h, w); of several channels their mean is used.
    Returns:
        (F_1^c, F_1^s), each (B, C_1, 2 h, 2 w).
    """
    mask = F.interpolate(mask.mean(1, keepdim=True), size=features.shape[-2:], mode="bilinear", align_corners=False)
    return split(features, mask)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lam):
        ctx.lam = lam
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.lam * gradient, None


def reverse_gradient(x: torch.Tensor, lam: float) -> torch.Tensor:
    """The identity, whose gradient comes back multiplied by -lam (Ganin & Lempitsky, ICML 2015).

    Put between the maskers and the confounder branch, it lets D_s descend L_s while maskers and encoders ascend
    lam * L_s: the min-max game that Eq. 3 names.
    """
    return _Reversal.apply(x, lam)


class Fusion(nn.Module):
    """Bring the stages to one scale with CARAFE, concatenate them, merge them by a 1x1 convolution.

    The common scale is that of the first (finest) stage, stride 8; a 1x1 convolution first narrows each
    stage to `width` channels, since reassembly costs k*k products a channel (both are ours).

    Args:
        channels: (C_2, C_3, C_4). width: channels of each scaled stage and of the result.
        compressed: CARAFE's compressed channels.

    Shape:
        three maps (B, C_i, H/8, W/8), (…, H/16, W/16), (…, H/32, W/32) -> (B, width, H/8, W/8)
    """

    def __init__(self, channels: tuple[int, ...], width: int, compressed: int):
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in channels)
        self.upsample = nn.ModuleList(
            nn.Identity() if i == 0 else CARAFE(width, 2**i, compressed_channels=compressed)
            for i in range(len(channels))
        )
        for up in self.upsample[1:]:
            up.start_as_interpolation()
        self.merge = nn.Conv2d(width * len(channels), width, 1, bias=False)
        self.merge_norm = nn.BatchNorm2d(width)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        scaled = [
            up(torch.relu(norm(narrow(x))))
            for x, narrow, norm, up in zip(stages, self.narrow, self.norm, self.upsample)
        ]
        return torch.relu(self.merge_norm(self.merge(torch.cat(scaled, dim=1))))
