"""CLIP's text and vision encoders (Sec. 2.1) on open_clip: tau, and F_2, F_3, F_4."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import zipfile
from pathlib import Path

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn import functional as F

from .config import ModelConfig


GRAIN = (1 / 6, 2 / 3, 1 / 6)  #: a Gaussian of 0.6 pixels, across and down: takes off the grain of noise, and no outline of a lesion
FLAT = 0.02  #: added to a picture's standard deviation, so that a flat one is not divided by zero
PRETRAINED_FILE = "clip.safetensors"  #: what `causalclipseg pretrain` writes into its folder


@functools.lru_cache(maxsize=1)
def _tokenizer():
    return open_clip.tokenizer.SimpleTokenizer()


@functools.lru_cache(maxsize=65536)
def _encode(report: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(report))


def tokenize(reports: list[str], context_length: int) -> tuple[torch.Tensor, list[bool]]:
    """CLIP's byte pair encoding, bracketed with SOT and EOT and padded with zeros.

    Args:
        reports: B sentences; any text, also empty.
        context_length: L, tokens with SOT and EOT. A longer sentence loses its end and keeps its EOT.
    Returns:
        tokens (B, L), int64, and for each sentence whether it was cut.
    """
    tokenizer = _tokenizer()
    tokens = torch.zeros(len(reports), context_length, dtype=torch.long)
    cut = []
    for row, report in zip(tokens, reports):
        ids = _encode(report)
        cut.append(len(ids) > context_length - 2)
        ids = [tokenizer.sot_token_id, *ids[: context_length - 2], tokenizer.eot_token_id]
        row[: len(ids)] = torch.tensor(ids)
    return tokens, cut


def build_encoders(config: ModelConfig, weights: str = "none", torchscript: bool = False, sha256: str = "") -> tuple[TextEncoder, VisionEncoder]:
    """Both encoders of a model, of one CLIP or, with `config.text_encoder`, of two.

    Args:
        weights: see `load_weights`; for two CLIPs "A+B", A for the pictures' and B for the sentences'.
    Raises:
        ValueError: as `build_clip` and `load_weights`, or a tower that gives no pyramid, or reads other tokens.
    """
    first, _, second = weights.partition("+")
    if second and not config.text_encoder:
        raise ValueError(f'weights="{weights}" names two sources, which needs a text_encoder beside the encoder.')
    clip = build_clip(config)
    load_weights(clip, first, encoder=config.encoder, torchscript=torchscript, sha256=sha256)
    if not config.text_encoder:
        return TextEncoder(clip), VisionEncoder(clip, config.standardize)
    other = build_clip(dataclasses.replace(config, encoder=config.text_encoder))
    load_weights(other, second, encoder=config.text_encoder, torchscript=torchscript, sha256=sha256)
    return TextEncoder(other), VisionEncoder(clip, config.standardize)


def build_clip(config: ModelConfig) -> nn.Module:
    """An open_clip model with random weights; never downloads.

    Args:
        config: `encoder` is "mini" (its shape is `config.clip`) or an open_clip name.
    Raises:
        ValueError: open_clip has no such model, or one of its towers needs a download to be built.
    """
    if config.encoder == "mini":
        c = config.clip
        return open_clip.CLIP(
            embed_dim=c.embed_dim,
            vision_cfg=dict(
                layers=list(c.vision_layers), width=c.vision_width, image_size=config.image_size,
                head_width=c.vision_width * 32 // c.vision_heads,
            ),
            text_cfg=dict(
                context_length=config.context_length, width=c.text_width, heads=c.text_heads, layers=c.text_layers
            ),
        )  # fmt: skip
    if config.encoder not in open_clip.list_models():
        raise ValueError(f'open_clip has no model "{config.encoder}"; `open_clip.list_models()` names them.')
    if "hf_model_name" in open_clip.get_model_config(config.encoder)["text_cfg"]:
        raise ValueError(
            f'"{config.encoder}" reads sentences with a model of transformers, whose shape and vocabulary come from the hub; building a model '
            "here never downloads, so choose a tower that reads CLIP's tokens: RN50, ViT-B-32 or convnext_base."
        )
    # The size of the picture only shapes the pooling, which segmentation does not use.
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))  # it warns that the weights are random; they are meant to be, or come later
    try:
        return open_clip.create_model(config.encoder, pretrained=None, load_weights=False, force_custom_text=False)
    finally:
        logging.disable(before)


def _local(source: str) -> Path:
    """Where local weights lie, if `source` names any: a file, or the one in a folder of `causalclipseg pretrain`."""
    path = Path(source)
    return path / PRETRAINED_FILE if path.is_dir() else path


def file_digest(source: str) -> str:
    """SHA-256 of the local weights that `load_weights` would read from `source`; "" where it is a tag or a hub id."""
    path = _local(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if source and path.is_file() else ""


def load_weights(
    clip: open_clip.CLIP, source: str, *, encoder: str, torchscript: bool = False, sha256: str = "",
) -> None:  # fmt: skip
    """Fill a CLIP with pre-trained weights; every weight or none.

    Args:
        clip: from `build_clip`; changed in place.
        source: "none" (leaves the random weights); a tag that open_clip knows for `encoder`, e.g. "openai"
            (downloaded once, then cached); a local file (`.safetensors`, or a state dict that
            `torch.load(weights_only=True)` reads, plain, under "state_dict", or in OpenAI's names); a folder that
            `causalclipseg pretrain` wrote; or a hub id "org/name".
        encoder: the open_clip name, for tags.
        torchscript: allow `source` to be a TorchScript archive, the format OpenAI published. Such a file holds
            code, so its digest must be given, too.
        sha256: digest that the local file must have (required for a TorchScript archive).
    Raises:
        ValueError: one sentence on what is wrong and what to do.
    """
    if source in ("", "none"):
        return
    path = _local(source)
    if path.is_file():
        state = _read_file(path, torchscript, sha256)
        _check_activation(clip, source, encoder, wants_quick=_is_torchscript(path))  # OpenAI's archives always do
    elif source in open_clip.list_pretrained_tags_by_model(encoder):
        tag = open_clip.get_pretrained_cfg(encoder, source) or {}
        _check_activation(clip, source, encoder, wants_quick=tag.get("quick_gelu", False))
        state = _download(encoder, pretrained=source)
    elif source.count("/") == 1 and not source.startswith((".", "/")):
        state = _download(f"hf-hub:{source}")
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(encoder)) or "none"
        raise ValueError(f'"{source}" is neither a file nor a hub id nor a tag that open_clip has for {encoder} (tags: {tags}).')
    own = clip.state_dict()
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in ("input_resolution", "context_length", "vocab_size")}
    extra = sorted(set(state) - set(own) - {"logit_bias"})
    # CLIP's contrastive loss alone reads these; the places of the attention pool are as many as the picture's size asks for.
    for key in ("logit_scale", "logit_bias", "visual.attnpool.positional_embedding"):
        if key in own and (key not in state or own[key].shape != state[key].shape):
            state[key] = own[key]
    missing = sorted(set(own) - set(state))
    odd = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or odd or extra:
        example = (missing + odd + extra)[0]
        raise ValueError(
            f"{source} does not fit {encoder}: {len(missing)} weights are missing, {len(odd)} have another shape, "
            f"{len(extra)} are unknown (for example {example})."
        )
    clip.load_state_dict({key: state[key] for key in own})


def _check_activation(clip: open_clip.CLIP, source: str, encoder: str, wants_quick: bool) -> None:
    """Refuse weights made for QuickGELU in a model with GELU: they would load, and give another tau in silence."""
    if wants_quick and not isinstance(_text_tower(clip).transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU):
        quick = f"{encoder}-quickgelu"
        advice = f'choose encoder="{quick}"' if quick in open_clip.list_models() else "choose weights made for GELU"
        raise ValueError(f'The weights "{source}" are made for QuickGELU, and {encoder} has GELU; {advice}.')


def _text_tower(clip: nn.Module) -> nn.Module:
    """What holds the text transformer: open_clip's `CLIP` itself, or the `text` of its other classes."""
    return clip if hasattr(clip, "transformer") else clip.text


def _download(name: str, pretrained: str | None = None) -> dict:
    try:
        return open_clip.create_model(name, pretrained=pretrained, require_pretrained=True).state_dict()
    except Exception as error:
        what = f"{name}'s weights" + (f' "{pretrained}"' if pretrained else "")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{what} could not be downloaded ({reason}); connect to the internet, or give a local file.") from error


def _read_file(path: Path, torchscript: bool, sha256: str) -> dict:
    if sha256:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256.lower():
            raise ValueError(f"{path} has the SHA-256 digest {found}, not {sha256}; it is damaged or not the file you mean.")
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        if _is_torchscript(path):
            if not (torchscript and sha256):
                raise ValueError(
                    f"{path} is a TorchScript archive, which holds code; if you trust it, allow it (torchscript=True) "
                    "and give its SHA-256 digest."
                )
            return open_clip.load_openai_model(os.fspath(path), precision="fp32", device="cpu").state_dict()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]  # an empty file: EOFError without a text
        raise ValueError(f"{path} cannot be read as weights: {reason}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict.")
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class TextEncoder(nn.Module):
    """CLIP's text transformer: tokens to tau, the projected activation of its last layer at the EOT token.

    Takes any number of tokens up to CLIP's own (77): positions and the causal mask are cut to length. A
    token sees only those before it, so what follows EOT cannot change tau.

    While training, the transformer runs once for each different sentence of a batch.

    Shape:
        tokens (B, L), int64, 0 as padding -> tau (B, T)
    """

    def __init__(self, clip: nn.Module):
        super().__init__()
        tower = _text_tower(clip)
        pooled = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", "")
        if pooled != "argmax" or getattr(tower, "cls_emb", None) is not None or tower.vocab_size != len(_tokenizer().encoder) or not isinstance(tower.text_projection, nn.Parameter):
            raise ValueError("This text tower does not read CLIP's tokens as CLIP does; choose the text tower of RN50, ViT-B-32 or convnext_base.")
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.causal = tower.attn_mask is not None  # a few towers let every token see all
        self.each = False  #: equal sentences run too, while training: where shapes must not change (recording.py)

    @property
    def dim(self) -> int:
        """T."""
        return self.text_projection.shape[1]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        if length > len(self.positional_embedding):
            raise ValueError(f"{length} tokens are more than this encoder's {len(self.positional_embedding)}.")
        if self.each or not self.training:
            return self._encode(tokens)
        sentences, which = torch.unique(tokens, dim=0, return_inverse=True)
        return self._encode(sentences)[which]

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]  # (B, L, width)
        mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1) if self.causal else None
        x = self.ln_final(self.transformer(x, attn_mask=mask))
        eot = tokens.argmax(dim=1)  # EOT has the largest id of CLIP's vocabulary
        return x[torch.arange(len(x), device=x.device), eot] @ self.text_projection


def standardized(images: torch.Tensor) -> torch.Tensor:
    """Pictures without their grain, each with mean 0 and standard deviation 1, so that exposure, contrast and noise matter less.

    (B, C, H, W) of any range, H and W at least 2, to the same shape and type.
    """
    kernel = images.new_full((3,), GRAIN[1])  # made on the device: nothing may be copied to it while it records (recording.py)
    kernel[::2] = GRAIN[0]
    kernel = (kernel[:, None] * kernel).expand(images.shape[1], 1, 3, 3)
    smooth = F.conv2d(F.pad(images, [1] * 4, mode="reflect"), kernel, groups=images.shape[1])
    spread, mean = torch.std_mean(smooth.float(), dim=(1, 2, 3), keepdim=True)
    return ((smooth - mean) / (spread + FLAT)).to(images.dtype)


class VisionEncoder(nn.Module):
    """A CLIP's image tower as a pyramid: a picture to F_2, F_3, F_4 (stages 2 to 4; strides 8, 16, 32).

    A ModifiedResNet (the paper's RN101) or a tower of timm with these strides, such as ConvNeXt. CLIP's own
    normalisation is applied here. What pools the last stage is left out: it pools what a segmenter needs.

    Args:
        clip: an open_clip model. standardize: see `standardized`, instead of CLIP's mean and standard deviation.

    Shape:
        (B, 3, H, W) in [0, 1], H and W multiples of 32 -> [(B, C_2, H/8, W/8), (…/16), (…/32)], with `fine` after
        F_1, (B, C_1, H/4, W/4)
    """

    def __init__(self, clip: nn.Module, standardize: bool = False):
        super().__init__()
        visual, self.standardize = clip.visual, standardize
        if isinstance(visual, ModifiedResNet):
            self.net, self.stages = visual, [2, 3, 4]  # index 0 is the stem, so these are the stages that the paper counts from 1
            self.net.attnpool = None
            fine, *self.channels = (stage[-1].conv3.out_channels for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4))
            self.fine_stage, self.fine_channels = 1, fine
        else:
            info = list(getattr(getattr(visual, "trunk", None), "feature_info", []))
            strides = [stage["reduction"] for stage in info]
            if not {8, 16, 32} <= set(strides):
                raise ValueError("This image tower gives no features at strides 8, 16 and 32; try RN50, RN101-quickgelu or convnext_base.")
            self.net, self.stages = visual.trunk, [strides.index(stride) for stride in (8, 16, 32)]
            self.channels = [info[i]["num_chs"] for i in self.stages]
            self.fine_stage = strides.index(4) if 4 in strides else None
            self.fine_channels = info[self.fine_stage]["num_chs"] if 4 in strides else 0  #: C_1; 0: the tower has no stride 4
            self.net.reset_classifier(0, "")
        self.channels = tuple(self.channels)  #: (C_2, C_3, C_4)
        for name, default in (("mean", open_clip.OPENAI_DATASET_MEAN), ("std", open_clip.OPENAI_DATASET_STD)):
            value = getattr(visual, f"image_{name}", None) or default
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """"stem", "stage1" ... "stage4" -> their modules, as far as the tower has them."""
        net = self.net
        if isinstance(net, ModifiedResNet):
            stem, stages = [net.conv1, net.bn1, net.conv2, net.bn2, net.conv3, net.bn3], [net.layer1, net.layer2, net.layer3, net.layer4]
        else:
            stem, stages = [net.stem] if hasattr(net, "stem") else [], list(getattr(net, "stages", getattr(net, "layers", [])))
        return {"stem": stem, **{f"stage{i}": [stage] for i, stage in enumerate(stages, start=1)}}

    def forward(self, images: torch.Tensor, fine: bool = False) -> list[torch.Tensor]:
        h, w = images.shape[-2:]
        if h % 32 or w % 32:
            up = tuple(-(-side // 32) * 32 for side in (h, w))
            raise ValueError(f"Pictures must be a multiple of 32 high and wide, not {h} x {w}; resize them to {up[0]} x {up[1]}.")
        patches = getattr(self.net, "patch_embed", None)  # of a Swin transformer, whose windows are laid out for one size
        if getattr(patches, "strict_img_size", False) and (h, w) != tuple(patches.img_size):
            raise ValueError(f"This image tower takes pictures of {patches.img_size[0]} pixels alone, not {h} x {w}: set image_size={patches.img_size[0]} and sizes=[].")
        if self.standardize:
            x = standardized(images)
        else:
            x = (images - self.mean) / self.std
        stages = [self.fine_stage, *self.stages] if fine else self.stages
        out = self.net.forward_intermediates(x, indices=stages, intermediates_only=True)
        return out["image_intermediates"] if isinstance(out, dict) else out
