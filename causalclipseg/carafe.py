"""CARAFE: content-aware reassembly of features (Wang et al., ICCV 2019), in pure PyTorch.

For a target pixel p of an upsampled map, with its source pixel q = floor(p / s),

    X'(p) = sum over the k x k taps n of  softmax(W(p))_n * X(q + n),

where W is predicted from X itself. Parameter names, initialisation and channel order are those of
mmcv's `CARAFEPack`, so that its weights load; unlike mmcv's operator, this one runs on a CPU.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

#: In mmcv's registry. No dot in it: mmengine would take it for a path and find the module `causalclipseg.carafe`.
OUR_NAME = "causalclipseg_carafe"


def carafe(features: torch.Tensor, kernels: torch.Tensor, kernel_size: int, group: int, scale: int) -> torch.Tensor:
    """Reassemble features with one k x k kernel for each target pixel; taps outside count as zero.

    The s*s target pixels of a source pixel share its neighbourhood, so neighbourhoods are gathered at source
    resolution alone, one row of taps at a time; no unfolded copy of the upsampled map exists.

    Args:
        features: (B, C, h, w).
        kernels: (B, group * k * k, s*h, s*w), used as they are (no softmax); channel (g*k + iy)*k + ix.
        kernel_size: k, odd.
        group: G; channels are split into G blocks, each with its own kernels. C % G == 0.
        scale: s, a whole number.
    Returns:
        (B, C, s*h, s*w).
    Raises:
        ValueError: the shapes don't fit together.
    """
    b, c, h, w = features.shape
    k, g, s = kernel_size, group, scale
    if c % g:
        raise ValueError(f"{c} channels cannot be split into {g} groups.")
    if k % 2 == 0 or kernels.shape != (b, g * k * k, s * h, s * w):
        raise ValueError(
            f"kernels must be (B, group*k*k, s*h, s*w) = {(b, g * k * k, s * h, s * w)} with odd k, "
            f"not {tuple(kernels.shape)}."
        )
    # mmcv's kernels know these types alone, one for both, and read memory as it lies, whatever the strides say
    suits = features.is_cuda and features.dtype == kernels.dtype and features.dtype in (torch.float32, torch.float16)
    compiled = _mmcv_operator() if suits else None
    if compiled is not None:
        return compiled(features.contiguous(), kernels.contiguous(), k, g, s)
    # One small matrix product for each source pixel and group: (s*s, k) @ (k, C/G), a row of taps at a time.
    matrices = kernels.reshape(b, g, k, k, h, s, w, s).permute(2, 0, 4, 6, 1, 5, 7, 3)  # (k, B, h, w, G, s, s, k)
    matrices = matrices.reshape(k, b * h * w * g, s * s, k)
    padded = F.pad(features, (k // 2,) * 4).permute(0, 2, 3, 1)  # (B, h+k-1, w+k-1, C)
    out = None
    for iy in range(k):
        row = torch.stack([padded[:, iy : iy + h, ix : ix + w] for ix in range(k)], dim=3)  # (B, h, w, k, C)
        row = row.reshape(b * h * w, k, g, c // g).transpose(1, 2).reshape(b * h * w * g, k, c // g)
        term = matrices[iy].to(row.dtype) @ row  # (B*h*w*G, s*s, C/G)
        out = term if out is None else out + term
    return out.view(b, h, w, g, s, s, c // g).permute(0, 3, 6, 1, 4, 2, 5).reshape(b, c, s * h, s * w)


class CARAFE(nn.Module):
    """Upsampling by CARAFE, with its kernel prediction.

    1x1 compression -> k_e x k_e content encoder -> pixel shuffle -> softmax over the k*k taps of each
    group -> `carafe`.

    Args:
        channels: C of the input and of the output.
        scale_factor: s.
        up_kernel: k, taps a side. up_group: G. encoder_kernel: k_e.
        compressed_channels: channels between the two convolutions.

    Shape:
        (B, C, h, w) -> (B, C, s*h, s*w)
    """

    def __init__(
        self, channels: int, scale_factor: int, up_kernel: int = 5, up_group: int = 1, encoder_kernel: int = 3,
        encoder_dilation: int = 1, compressed_channels: int = 64,
    ):  # fmt: skip
        super().__init__()
        if up_kernel % 2 == 0 or encoder_kernel % 2 == 0:
            raise ValueError("CARAFE's kernels must be odd, so that each has a centre.")
        self.scale_factor, self.up_kernel, self.up_group = scale_factor, up_kernel, up_group
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels, up_kernel**2 * up_group * scale_factor**2, encoder_kernel,
            padding=encoder_dilation * (encoder_kernel - 1) // 2, dilation=encoder_dilation,
        )  # fmt: skip
        for module in (self.channel_compressor, self.content_encoder):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        # Nearly equal taps at the start: CARAFE begins as a box blur and learns where to be sharp.
        nn.init.normal_(self.content_encoder.weight, std=0.001)

    def start_as_interpolation(self, sigma: float = 0.5) -> None:
        """Start from a Gaussian of `sigma` source pixels around each target pixel instead of a k x k box blur.

        A box of 5 x 5 spans most of a small map, so that coarse stages would begin as averages of the picture.
        Only biases change: for tap (iy, ix) of target (sy, sx), -distance**2 / (2 sigma**2) before the softmax.
        """
        k, s = self.up_kernel, self.scale_factor
        tap = torch.arange(k) - k // 2  # position of a tap, in source pixels from the source pixel
        target = (torch.arange(s) + 0.5) / s - 0.5  # position of a target pixel, likewise
        square = (tap[:, None] - target[None, :]) ** 2  # (k, s)
        distance = square[:, None, :, None] + square[None, :, None, :]  # (k, k, s, s): iy, ix, sy, sx
        with torch.no_grad():
            self.content_encoder.bias.copy_((-distance / (2 * sigma**2)).flatten().repeat(self.up_group))

    def kernels(self, features: torch.Tensor) -> torch.Tensor:
        """Softmax-normalised kernels (B, G*k*k, s*h, s*w); they sum to one over the k*k taps of a group."""
        raw = F.pixel_shuffle(self.content_encoder(self.channel_compressor(features)), self.scale_factor)
        b, _, h, w = raw.shape
        return raw.reshape(b, self.up_group, self.up_kernel**2, h, w).softmax(dim=2).reshape(b, -1, h, w)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return carafe(features, self.kernels(features), self.up_kernel, self.up_group, self.scale_factor)


def register_with_mmcv() -> str:
    """Make our CARAFE available to mmcv's `build_upsample_layer(dict(type=..., ...))`.

    It is always registered as "causalclipseg_carafe", and as "carafe" where mmcv has none of that
    name (mmcv-lite, or mmcv on a machine without its compiled operators; elsewhere that one is mmcv's own, for a GPU alone).

    Returns:
        the name that is ours everywhere: "causalclipseg_carafe".
    Raises:
        ImportError: mmcv (or mmcv-lite) cannot be imported; the message says why.
    """
    try:
        import mmcv.cnn  # noqa: F401  (fills the registry)
        from mmengine.registry import MODELS
    except Exception as error:  # a bare machine without libGL fails in OpenCV, not in mmcv
        raise ImportError(f"mmcv cannot be imported ({error}); install mmcv-lite, or use causalclipseg.CARAFE directly.") from error
    for name in (OUR_NAME, "carafe"):
        if MODELS.get(name) is None:
            MODELS.register_module(name=name, module=CARAFE)
    return OUR_NAME


@functools.lru_cache(maxsize=1)
def _mmcv_operator():
    """mmcv's compiled CARAFE, if it has been built here and agrees with ours; else None."""
    try:
        from mmcv.ops import carafe as compiled
    except Exception:  # absent, built for another torch, or its own imports fail: ours serves
        return None
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 3, 5, generator=generator)
    kernels = torch.rand(1, 2 * 25, 6, 10, generator=generator)
    expected = carafe(features, kernels, 5, 2, 2)
    try:
        got = compiled(features.cuda(), kernels.cuda(), 5, 2, 2).cpu()
    except Exception:
        return None
    return compiled if torch.allclose(got, expected, atol=1e-4) else None
