"""The text-to-pixel decoder (Sec. 2.2, Eq. 1): a sentence becomes a filter, and searches the picture."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .masking import CoordConv


def correlate(features: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Eq. 1: S = W_tau * up(F) + b_tau, each picture with the kernel of its own sentence.

    `up` here is the last, bilinear step to `size`. Bilinear interpolation acts on each channel alone, so it
    commutes with the weighted sum over channels: the C channels are first merged into K*K maps, one a tap
    of the kernel, and only these are brought to full resolution and shifted. The result equals a K x K
    correlation of the C interpolated channels at full resolution, at a fraction of its memory.

    Args:
        features: (B, C, h, w).
        kernels: W_tau, (B, C, K, K), K odd. bias: b_tau, (B,).
        size: (H, W) of the result.
    Returns:
        S, logits (B, 1, H, W); taps outside the picture count as zero.
    """
    b, c, h, w = features.shape
    k = kernels.shape[-1]
    # (B, h*w, K*K), so that the maps come out in channels-last order, which interpolation and convolution like best
    merged = features.permute(0, 2, 3, 1).reshape(b, h * w, c) @ kernels.reshape(b, c, k * k)
    merged = merged.view(b, h, w, k * k).permute(0, 3, 1, 2)
    taps = F.interpolate(merged, size=size, mode="bilinear", align_corners=False)
    # Tap n is shifted to its place and all are summed by a convolution with ones where they belong: slicing does
    # the same, but its backward pass fills K*K maps with zeros and took half of a training step.
    shifts = torch.eye(k * k, dtype=taps.dtype, device=taps.device).view(1, k * k, k, k)
    return F.conv2d(taps, shifts, padding=k // 2) + bias.view(b, 1, 1, 1).to(taps.dtype)


class FiLM(nn.Module):
    """Feature-wise linear modulation by the sentence: (1 + gamma(tau)) * x + beta(tau) (Perez et al., AAAI 2018).

    gamma and beta are one linear map of tau, which starts at zero: the identity.

    Shape:
        tau (B, T), x (B, C, h, w) -> (B, C, h, w)
    """

    def __init__(self, text_dim: int, channels: int):
        super().__init__()
        self.embed = nn.Linear(text_dim, 2 * channels)
        nn.init.zeros_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)

    def forward(self, tau: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.embed(tau)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * x + beta


class Conditioning(nn.Module):
    """The sentence shapes the features before they are upsampled: FiLM, then a residual block with FiLM inside.

    Under Eq. 1 alone S is an affine function of tau, so a sentence can only mix a few maps that the picture offers; with a
    ReLU after FiLM it can ask for others. All of it starts as the identity, so a trained plain decoder can be continued.

    Shape:
        tau (B, T), x (B, C, h, w) -> (B, C, h, w)
    """

    def __init__(self, text_dim: int, channels: int):
        super().__init__()
        self.film = FiLM(text_dim, channels)
        self.conv = CoordConv(channels, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.film_inside = FiLM(text_dim, channels)
        self.out = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.out_norm = _zero_norm(channels)

    def forward(self, tau: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = self.film(tau, x)
        inside = torch.relu(self.film_inside(tau, self.norm(self.conv(x))))
        return x + self.out_norm(self.out(inside))


def _zero_norm(channels: int) -> nn.BatchNorm2d:
    """A normalisation that starts by answering zero, so that what it is added to passes unchanged."""
    norm = nn.BatchNorm2d(channels)
    nn.init.zeros_(norm.weight)
    return norm


class TextToPixelDecoder(nn.Module):
    """D(tau, F) of Eq. 1: project tau to a kernel and a bias, upsample F, cross-correlate.

    Args:
        text_dim: T, length of tau. in_channels: channels of F. width: C, channels at the correlation.
        kernel_size: K. steps: learned x2 upsampling steps, each a bilinear interpolation and a 3x3 convolution;
            what is missing to full resolution is bilinear and done inside `correlate`.
        fine_channels: channels of F_1. 0: up(F) is plain; more: up(F) is conditioned (ours): the sentence shapes F
            (`Conditioning`); at the first x2 step, if there is one, F_1 is added and the sentence modulates once more.

    Shape:
        tau (B, T), F (B, in_channels, h, w), F_1 (B, fine_channels, 2 h, 2 w) or None -> logits (B, 1, H, W)
    """

    def __init__(self, text_dim: int, in_channels: int, width: int, kernel_size: int = 3, steps: int = 1, fine_channels: int = 0):
        super().__init__()
        self.width, self.kernel_size = width, kernel_size
        self.embed = nn.Linear(text_dim, width * kernel_size**2 + 1)  # D = C*K*K + 1
        nn.init.normal_(self.embed.weight, std=(text_dim * width) ** -0.5 / kernel_size)
        nn.init.zeros_(self.embed.bias)
        self.refine = nn.ModuleList()
        channels = in_channels
        for step in range(steps + 1):
            # The first convolution also sees coordinates: "upper left" is a place, not a texture.
            conv = CoordConv(channels, width, bias=False) if step == 0 else nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.refine.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
            channels = width
        self.conditioned = fine_channels > 0
        if self.conditioned:
            self.conditioning = Conditioning(text_dim, in_channels)
        if self.conditioned and steps:
            self.fine = nn.Sequential(nn.Conv2d(fine_channels, width, 1, bias=False), _zero_norm(width))
            self.film = FiLM(text_dim, width)

    def kernel(self, tau: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """W_tau (B, C, K, K) and b_tau (B,), by one linear map of tau (B, T)."""
        d = self.embed(tau)
        return d[:, :-1].reshape(-1, self.width, self.kernel_size, self.kernel_size), d[:, -1]

    def upsample(self, features: torch.Tensor, tau: torch.Tensor | None = None, fine: torch.Tensor | None = None) -> torch.Tensor:
        """The learned part of up(F): (B, in_channels, h, w) -> (B, C, h * 2**steps, w * 2**steps).

        tau (B, T) and fine, F_1, (B, fine_channels, 2 h, 2 w), are read by a conditioned decoder alone.
        """
        if self.conditioned:
            features = self.conditioning(tau, features)
        for step, block in enumerate(self.refine):
            if step:
                features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            if step == 1 and self.conditioned:
                features = self.film(tau, features + self.fine(fine))
            features = block(features)
        return features

    def forward(self, tau: torch.Tensor, features: torch.Tensor, size: tuple[int, int], fine: torch.Tensor | None = None) -> torch.Tensor:
        kernels, bias = self.kernel(tau)
        return correlate(self.upsample(features, tau, fine), kernels, bias, size)
