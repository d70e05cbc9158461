"""CLIP's text and vision encoders (Sec. 2.1) on open_clip: tau, and F_2, F_3, F_4."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import re
import threading
from pathlib import Path

import open_clip
import torch
from huggingface_hub import snapshot_download
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn import functional as F

from .config import ModelConfig
from .pretrained import FOLDER, HUB, load_weights, text_tower


GRAIN = (1 / 6, 2 / 3, 1 / 6)  #: a Gaussian of 0.6 pixels, across and down: takes off the grain of noise, and no outline of a lesion
ONE_AT_A_TIME = threading.Lock()  #: for tokenizers of transformers, which keep the length that they were asked for last
FLAT = 0.02  #: added to a picture's standard deviation, so that a flat one is not divided by zero
CLIP_LENGTH = 77  #: SOT, tokens, EOT
MARKS = re.compile("<(start|end)_of_text>", re.IGNORECASE)  #: of the vocabulary, not of a report


@functools.lru_cache(maxsize=8)
def _tokenizer(clip: str = "mini"):
    """What cuts sentences into the tokens of a CLIP: its own byte pair encoding, or a tokenizer of transformers."""
    if clip == "mini":
        return open_clip.tokenizer.SimpleTokenizer()
    with _one_sentence_if_it_fails(clip):
        return open_clip.get_tokenizer(clip)


@functools.lru_cache(maxsize=16384)
def _encode(report: str, clip: str) -> tuple[int, ...]:
    """The tokens of a sentence, of which CLIP reads no more than 75; its own marks are no words that a report could hold."""
    return tuple(_tokenizer(clip).encode(MARKS.sub(" ", report))[:CLIP_LENGTH])


def tokenize(reports: list[str], context_length: int, clip: str = "mini") -> tuple[torch.Tensor, list[bool]]:
    """CLIP's byte pair encoding, bracketed with SOT and EOT and padded with zeros; or what another text tower reads.

    Args:
        reports: B sentences; any text, also empty.
        context_length: L, tokens with SOT and EOT. A longer sentence loses its end and keeps its EOT.
        clip: the name of the CLIP whose text tower reads them, see `ModelConfig.text_encoder`.
    Returns:
        tokens (B, L), int64, and for each sentence whether it was cut.
    Raises:
        ValueError: the tower's vocabulary is not here and can't be fetched.
    """
    tokenizer = _tokenizer(clip)
    if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        with ONE_AT_A_TIME:
            tokens, long = tokenizer(reports, context_length=context_length), tokenizer([*reports, ""], context_length=8 * context_length)
        padding = long[-1, -2]  # of the empty sentence; its last token may be a CLS
        return tokens, ((long[:-1] != padding).sum(1) > (tokens != padding).sum(1)).tolist()
    tokens = torch.zeros(len(reports), context_length, dtype=torch.long)
    cut = []
    for row, report in zip(tokens, reports):
        ids = _encode(report, clip)
        cut.append(len(ids) > context_length - 2)
        ids = [tokenizer.sot_token_id, *ids[: context_length - 2], tokenizer.eot_token_id]
        row[: len(ids)] = torch.tensor(ids)
    return tokens, cut


def two_sources(weights: str) -> tuple[str, str]:
    """"A+B" as A and B, anything else as itself and ""; a file or folder whose name holds a plus is one source."""
    first, _, second = weights.partition("+")
    return (weights, "") if Path(weights).exists() else (first, second)


def build_encoders(config: ModelConfig, weights: str = "none", torchscript: bool = False, sha256: str = "") -> tuple[TextEncoder, VisionEncoder]:
    """Both encoders of a model, of one CLIP or, with `config.text_encoder`, of two.

    Args:
        weights: see `load_weights`; for two CLIPs "A+B", A for the pictures' and B for the sentences', or "none" for neither.
    Raises:
        ValueError: as `build_clip`, `load_weights` and `OtherTextEncoder`, or an image tower that gives no pyramid.
    """
    first, second = two_sources(weights)
    if second and not config.text_encoder:
        raise ValueError(f'weights="{weights}" names two sources, which needs a text_encoder beside the encoder.')
    if config.text_encoder and not second and first not in ("", "none"):
        raise ValueError(f'weights="{weights}" says nothing of the text_encoder; add its weights, "{weights}+…", or "{weights}+none" for random ones.')
    clip = build_clip(config)
    load_weights(clip, first, encoder=config.encoder, torchscript=torchscript, sha256=sha256)
    vision, reader = VisionEncoder(clip, config.standardize), clip
    if config.text_encoder:
        reader = build_clip(dataclasses.replace(config, encoder=config.text_encoder))
        load_weights(reader, second, encoder=config.text_encoder, torchscript=torchscript, sha256=sha256)
    return (TextEncoder(reader) if reads_as_clip(reader) else OtherTextEncoder(reader, config.context_length)), vision


def build_clip(config: ModelConfig) -> nn.Module:
    """An open_clip model with random weights; never downloads weights.

    Args:
        config: `encoder` is "mini" (its shape is `config.clip`), an open_clip name, "hf-hub:org/name" (a model of open_clip on the
            hub) or "local-dir:folder" (the same in a folder). Settings of a model on the hub, and
            settings and vocabulary of a text tower of transformers, are small files that the hub is asked for once.
    Raises:
        ValueError: open_clip has no such model, or what it is built from is not here and can't be fetched.
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
    # The size of the picture only shapes the pooling, which segmentation does not use.
    with _one_sentence_if_it_fails(config.encoder):
        name = config.encoder
        if name.startswith(HUB):  # asked for itself, open_clip would fetch the weights, too
            name = FOLDER + snapshot_download(name.removeprefix(HUB), allow_patterns=["open_clip_config.json"])
        clip = open_clip.create_model(name, pretrained=None, load_weights=False, pretrained_text=False, force_custom_text=False)
    return clip.float()  # a tower of transformers may be described in half precision


@contextlib.contextmanager
def _one_sentence_if_it_fails(clip: str):
    """What goes wrong while open_clip builds something of this CLIP becomes a ValueError of one sentence; its warnings are held back."""
    if not clip.startswith((HUB, FOLDER)) and clip not in open_clip.list_models():
        raise ValueError(f'open_clip has no model "{clip}"; `open_clip.list_models()` names them.')
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))  # it warns that the weights are random; they are meant to be, or come later
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f'"{clip}" could not be built ({reason}); its settings and vocabulary come from the hub or from its folder: '
            "connect to the internet once, or mend the folder."
        ) from error
    finally:
        logging.disable(before)


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
        if not reads_as_clip(clip):
            raise ValueError("This text tower does not read CLIP's tokens as CLIP does; OtherTextEncoder takes it.")
        tower = text_tower(clip)
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.each = False  #: equal sentences run too, while training: where shapes must not change (recording.py)

    @property
    def dim(self) -> int:
        """T."""
        return self.text_projection.shape[1]

    @property
    def longest(self) -> float:
        """The most tokens that it takes."""
        return len(self.positional_embedding)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] > self.longest:
            raise ValueError(f"{tokens.shape[1]} tokens are more than this encoder's {self.longest}.")
        if self.each or not self.training:
            return self._encode(tokens)
        sentences, which = torch.unique(tokens, dim=0, return_inverse=True)
        return self._encode(sentences)[which]

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]  # (B, L, width)
        mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        x = self.ln_final(self.transformer(x, attn_mask=mask))
        eot = tokens.argmax(dim=1)  # EOT has the largest id of CLIP's vocabulary
        return x[torch.arange(len(x), device=x.device), eot] @ self.text_projection


def reads_as_clip(clip: nn.Module) -> bool:
    """Whether the text tower reads CLIP's tokens as CLIP does: each sees those before it, and tau comes from EOT, through a matrix."""
    tower = text_tower(clip)
    if isinstance(tower, HFTextEncoder) or tower.vocab_size != len(_tokenizer().encoder):
        return False
    own = _pooling(tower) == "argmax" and getattr(tower, "cls_emb", None) is None and tower.attn_mask is not None
    return own and isinstance(tower.text_projection, nn.Parameter)


def check_length(clip: nn.Module, length: int) -> None:
    """ValueError where sentences of `length` tokens are not what the CLIP's own text tower takes: all but those of transformers read padding, too."""
    tower = text_tower(clip)
    if not isinstance(tower, HFTextEncoder) and length != tower.context_length:
        raise ValueError(f"This text tower reads sentences of {tower.context_length} tokens, as it was trained: set context_length={tower.context_length}.")


def _pooling(tower: nn.Module) -> str:
    """Where open_clip's own towers read a sentence off: "argmax", "eos", "last", ..."""
    return getattr(tower, "text_pool_type", None) or tower.pool_type


class OtherTextEncoder(TextEncoder):
    """A text tower that is not CLIP's (CoCa's, SigLIP's, a BERT of transformers): tau is its own embedding of the sentence.

    Its dropout, if it has any, stays off, so that equal sentences have one tau.

    Args:
        clip: an open_clip model, which is used up (its image tower is let go). length: L, the tokens that sentences will have.
    Raises:
        ValueError: a length that the tower was not trained with, where padding has a say in its tau.
    """

    def __init__(self, clip: nn.Module, length: int):
        nn.Module.__init__(self)
        self.tower, self.each = text_tower(clip), False
        check_length(clip, length)
        if self.tower is clip:  # an older class of open_clip, picture and text in one
            clip.visual = None
        self.train(self.training)

    @property
    def dim(self) -> int:
        if hasattr(self.tower, "output_dim"):
            return self.tower.output_dim
        return self.tower.text_projection.shape[1]

    @property
    def longest(self) -> float:
        return self.tower.context_length or math.inf

    def train(self, mode: bool = True) -> OtherTextEncoder:
        super().train(mode)
        self.tower.eval()
        return self

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        tau = self.tower.encode_text(tokens) if isinstance(self.tower, open_clip.CLIP) else self.tower(tokens)
        return tau[0] if isinstance(tau, tuple) else tau  # CoCa's gives the tokens' embeddings, too


def standardized(images: torch.Tensor) -> torch.Tensor:
    """Pictures without their grain, each less its mean and divided by its spread, so that exposure, contrast and noise matter less.

        (x - mean) / (std + FLAT), x smoothed; FLAT keeps what is nearly flat from being blown up

    (B, C, H, W) in [0, 1], H and W at least 2, to the same shape and type.
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
        x = standardized(images) if self.standardize else (images - self.mean) / self.std
        stages = [self.fine_stage, *self.stages] if fine else self.stages
        out = self.net.forward_intermediates(x, indices=stages, intermediates_only=True)
        return out["image_intermediates"] if isinstance(out, dict) else out
