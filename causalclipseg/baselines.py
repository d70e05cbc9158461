"""Networks that CausalCLIPSeg is compared with, behind its interface, and the factory of them all.

    monai:NAME   image-only networks of MONAI in 2-D (the sentence is ignored), for Table 1's rows
    concat       a plain text-guided one: the same CLIP encoders; tau is set beside F_4 at every place, and a
                 U-Net's decoder goes up from there. No masker, no text kernels, no CARAFE.

What `ModelConfig.width` is to each: channels of the first stage, doubled with every halving of the picture (to at
most 16 times). Whatever else they have is MONAI's default.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn import functional as F

from .config import ModelConfig, load_json
from .encoders import build_encoders
from .model import CONFIG_FILE, CausalCLIPSeg, Segmentation, Segmenter, model_folder


def build_model(config: ModelConfig, weights: str = "none", torchscript: bool = False, sha256: str = "") -> Segmenter:
    """The network that `config.network` names, with random weights.

    Args:
        weights, torchscript, sha256: pre-trained encoders, see `encoders.build_encoders`.
    Raises:
        ValueError: weights that don't fit, weights for a network without CLIP's encoders, or MONAI is missing.
    """
    return _kind(config)(config, weights=weights, torchscript=torchscript, sha256=sha256)


def load_model(model: str | os.PathLike, *, device: str | torch.device = "cpu", **hub) -> Segmenter:
    """Load any network that the loop here has trained: `from_pretrained` of the class its `config.json` names."""
    folder = model_folder(model, **hub)
    return _kind(load_json(ModelConfig, folder / CONFIG_FILE)).from_pretrained(folder, device=device)


def best_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _kind(config: ModelConfig) -> type[Segmenter]:
    return next(kind for kind in (CausalCLIPSeg, ConcatNetwork, MonaiNetwork) if kind.builds(config.network))


class Baseline(Segmenter):
    """A network without intervention: one prediction, no masks.

    Shape:
        images (B, 3, H, W) in [0, 1], H and W multiples of 32; tokens (B, L) -> `Segmentation`
    """

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, confounder: bool = False, reversal: float | None = None) -> Segmentation:
        if confounder:
            raise ValueError(f"{self.config.network} has no confounder branch.")
        return Segmentation(self.logits(images, tokens), None, ())

    def logits(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [0, 1], tokens (B, L) -> logits (B, 1, H, W)."""
        raise NotImplementedError


class MonaiNetwork(Baseline):
    """An image-only network of MONAI; it gets the grey picture, standardised with fixed numbers, and no sentence."""

    MEAN, STD = 0.5, 0.25  #: of grey values in [0, 1]; fixed, so that a brighter picture stays one

    def __init__(self, config: ModelConfig, weights: str = "none", torchscript: bool = False, sha256: str = ""):
        super().__init__()
        if weights not in ("", "none"):
            raise ValueError(f"{config.network} has none of CLIP's encoders; leave weights at none.")
        self.config = config
        self.net = _monai(config)

    @classmethod
    def builds(cls, network: str) -> bool:
        return network.startswith("monai:")

    def logits(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        out = self.net((images[:, :1] - self.MEAN) / self.STD)
        return out[0] if isinstance(out, (list, tuple)) else out  # UNet++ answers with a list


def _monai(config: ModelConfig) -> nn.Module:
    """The MONAI network for one grey channel and one logit."""
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ValueError(f"{config.network} needs MONAI ({error}); install it with `pip install monai einops`.") from None
    w, name = config.width, config.network.removeprefix("monai:")
    shape = dict(spatial_dims=2, in_channels=1, out_channels=1)
    five = (w, 2 * w, 4 * w, 8 * w, 16 * w)
    if name == "UNet":
        return nets.UNet(**shape, channels=five, strides=(2, 2, 2, 2), num_res_units=2)
    if name == "AttentionUnet":
        return nets.AttentionUnet(**shape, channels=five, strides=(2, 2, 2, 2))
    if name == "BasicUNetPlusPlus":
        return nets.BasicUNetPlusPlus(**shape, features=(*five, w))
    if name == "DynUNet":
        net = nets.DynUNet(**shape, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2], upsample_kernel_size=[2] * 4, filters=five)
        for twice in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(net, twice)  # the same modules again as `skip_layers`, through which it runs; a file holds each weight once
        return net
    # One of Swin's attention heads needs 8 channels or more, so the narrowest is 24, MONAI's own size.
    return nets.SwinUNETR(**shape, feature_size=max(24, w - w % 12))


class ConcatNetwork(Baseline):
    """The plain text-guided baseline: tau concatenated to F_4, then a U-Net's decoder over F_3 and F_2."""

    def __init__(self, config: ModelConfig, weights: str = "none", torchscript: bool = False, sha256: str = ""):
        super().__init__()
        self.config = config
        self.text_encoder, self.vision_encoder = build_encoders(config, weights, torchscript, sha256)
        c2, c3, c4 = self.vision_encoder.channels
        w = config.width
        self.deep = _block(c4 + self.text_encoder.dim, 4 * w)
        self.middle = _block(4 * w + c3, 2 * w)
        self.shallow = _block(2 * w + c2, w)
        self.head = nn.Conv2d(w, 1, 1)

    @classmethod
    def builds(cls, network: str) -> bool:
        return network == "concat"

    def logits(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        tau = self.text_encoder(tokens)
        f2, f3, f4 = self.vision_encoder(images)
        everywhere = tau[:, :, None, None].expand(-1, -1, *f4.shape[-2:])
        x = self.deep(torch.cat([f4, everywhere], dim=1))
        for skip, block in ((f3, self.middle), (f2, self.shallow)):
            x = block(torch.cat([_resize(x, skip.shape[-2:]), skip], dim=1))
        return _resize(self.head(x), images.shape[-2:])


def _block(channels: int, width: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with normalisation and ReLU."""
    layers = []
    for c in (channels, width):
        layers += [nn.Conv2d(c, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _resize(x: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
