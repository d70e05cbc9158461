"""Typed settings of the model and of its training, the presets, and their JSON files.

A setting marked *paper* is printed in the paper (Sec. 3.2); all others are ours, and those marked *ours* fill a place
where a reader would look for the paper's.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from ._files import write_text


@dataclass
class ClipConfig:
    """A small CLIP of our own, for open_clip's `CLIP` class (ModifiedResNet + text transformer)."""

    embed_dim: int = 128  #: T, length of the text feature tau
    vision_layers: tuple[int, int, int, int] = (1, 2, 3, 2)  #: bottlenecks of stages 1 to 4
    vision_width: int = 24  #: channels of the stem; stage i has 4 * width * 2**(i-1)
    vision_heads: int = 8  #: heads of the attention pool (used by contrastive pre-training alone)
    text_width: int = 48  #: narrow, since the token table alone is 49,408 x width
    text_heads: int = 4  #: attention heads of the text tower
    text_layers: int = 3  #: its blocks

    def __post_init__(self):
        self.vision_layers = tuple(self.vision_layers)
        if len(self.vision_layers) != 4 or not all(isinstance(n, int) and n > 0 for n in self.vision_layers):
            raise ValueError(f"clip.vision_layers holds the bottlenecks of four stages, as in [1, 2, 3, 2], not {list(self.vision_layers)}.")
        for name in ("embed_dim", "vision_width", "vision_heads", "text_width", "text_heads", "text_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip.{name} must be at least 1, not {getattr(self, name)}.")
        if self.text_width % self.text_heads:
            raise ValueError(f"clip.text_width must be a multiple of clip.text_heads ({self.text_heads}), not {self.text_width}.")


#: networks that CausalCLIPSeg is compared with (baselines.py): MONAI's by its class names, and a plain text-guided one
BASELINES = ("monai:UNet", "monai:BasicUNetPlusPlus", "monai:AttentionUnet", "monai:DynUNet", "monai:SwinUNETR", "concat")

COMPANIONS, SILENT = "companions.", "silent."
FURTHER = (COMPANIONS, SILENT)  #: before the names of weights of other networks than the first of a file


@dataclass
class ModelConfig:
    """Everything that decides the shape of a `CausalCLIPSeg`, or of a network it is compared with."""

    preset: str = "mini"  #: the name of the settings that these began from
    network: str = "causalclipseg"  #: or one of `BASELINES`, which have no intervention
    width: int = 32  #: channels of a baseline's first stage; read by baselines alone
    encoder: str = "mini"  #: an open_clip name ("RN101-quickgelu", "hf-hub:org/name", "local-dir:folder"), or "mini" for `clip` (paper: CLIP's ResNet-101)
    text_encoder: str = ""  #: another such name, whose text tower is used instead of `encoder`'s; empty: its own
    clip: ClipConfig = field(default_factory=ClipConfig)  #: read only where encoder is "mini"
    image_size: int = 224  #: pictures are resized to this; a multiple of 32 (paper: 224)
    context_length: int = 24  #: tokens with SOT and EOT (paper: 20, which cuts the longest sentences)
    intervention: bool = True  #: off: features go straight to fusion and D_c (the paper's Table 2)
    mask_channels: str = "location"  #: "location": M_i is (B, 1, h, w); "channel": (B, C_i, h, w)
    masker_width: int = 32  #: ours: channels between the CoordConv and the convolution of Eq. 2
    fusion_width: int = 96  #: ours: channels of each scaled stage, and of F^c and F^s
    carafe_compressed: int = 32  #: CARAFE's compressed channels (mmcv: 64)
    decoder_width: int = 64  #: C of Eq. 1, channels that meet the text kernel
    kernel_size: int = 3  #: K of Eq. 1 (ours)
    upsampling_steps: int = 1  #: ours: learned x2 steps (interpolation + convolution) after stride 8
    decoder: str = "conditioned"  #: "plain": up(F) of Eq. 1 knows no sentence; "conditioned" (ours): tau shapes it, and F_1 enters
    standardize: bool = True  #: ours: each picture's own mean and spread instead of CLIP's, and its grain taken off (encoders.py)
    companions: tuple[ModelConfig, ...] = ()  #: ours: further networks in the same file, asked together with it (views.together)
    silent: ModelConfig | None = None  #: ours: one more, trained without sentences and asked only where none is given (views.answering)

    def __post_init__(self):
        self.companions = tuple(_build(ModelConfig, c, "companions.") if isinstance(c, dict) else c for c in self.companions)
        self.silent = _build(ModelConfig, self.silent, "silent.") if isinstance(self.silent, dict) else self.silent
        if any(c.further or c.network != "causalclipseg" for c in self.further) or (self.further and self.network != "causalclipseg"):
            raise ValueError("companions and silent are further networks of kind causalclipseg, beside one, and have none of their own.")
        if isinstance(self.clip, dict):
            self.clip = _build(ClipConfig, self.clip, "clip.")
        for name in ("width", "masker_width", "fusion_width", "carafe_compressed", "decoder_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(
                f"image_size must be a positive multiple of 32 (the encoder's last stride), not {self.image_size}."
            )
        if self.decoder not in ("plain", "conditioned"):
            raise ValueError(f'decoder must be "plain" or "conditioned", not {self.decoder!r}.')
        if self.mask_channels not in ("location", "channel"):
            raise ValueError(f'mask_channels must be "location" or "channel", not {self.mask_channels!r}.')
        if self.network not in ("causalclipseg", *BASELINES):
            raise ValueError(f'There is no network "{self.network}"; choose "causalclipseg" or one of {", ".join(BASELINES)}.')
        if self.network != "causalclipseg" and self.intervention:
            raise ValueError(f"{self.network} has no intervention; set intervention=false.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the kernel has a centre, not {self.kernel_size}.")
        if not 2 <= self.context_length <= 77:
            raise ValueError(f"context_length must lie between 2 and CLIP's 77, not {self.context_length}.")
        if not 0 <= self.upsampling_steps <= 3:
            raise ValueError(f"upsampling_steps must lie between 0 and 3, not {self.upsampling_steps}.")

    @property
    def further(self) -> tuple[ModelConfig, ...]:
        """The other networks in the file: the companions, and the one that is asked where there is no sentence."""
        return (*self.companions, *((self.silent,) if self.silent else ()))

    def alone(self) -> ModelConfig:
        """The first network's settings, as those of a file of its own."""
        return dataclasses.replace(self, companions=(), silent=None)


CHOICES = {"optimizer": ("adamw", "adam"), "precision": ("no", "bf16", "fp16"), "split_rule": ("published", "first80", "patients", "sources")}
FREEZABLE = ("text", "stem", "stage1", "stage2", "stage3", "stage4")


@dataclass
class TrainingConfig:
    """Everything that decides a training run, beside the data folders."""

    objective: str = "minimax"  #: "none", "causal" (Eq. 3-4 as printed), "bounded", "minimax", "interventional" or "adjusted"
    confounder_every: int = 4  #: the confounder branch is trained at every n-th step only, to save time (paper: 1)
    lam: float = 0.05  #: lambda of Eq. 3 (paper)
    cap: float = 0.37  #: nats a pixel up to which "bounded" counts L_s: the base rate's entropy on QaTa-COV19
    mu: float = 1.0  #: weight of "interventional"'s consistency between the two views of a patient
    dice_weight: float = 1.0  #: soft Dice beside the cross-entropy, in L_c alone (paper: 0)
    weights: str = "none"  #: CLIP weights to start from: "openai", a file, a hub id, "none" (paper: CLIP's)
    start: str = ""  #: a run's folder or a hub id whose whole model this run goes on from, with a new schedule
    teacher: str = ""  #: folders or hub ids, a comma between two, of models whose mean answer is mixed into the masks (distillation.py)
    distill: float = 0.5  #: share of these answers in L_c
    weights_sha256: str = ""  #: digest that a local TorchScript archive must have
    split_rule: str = "published"  #: how train and val are told apart: "published", "first80", "patients" or "sources" (data/splits.py)
    epochs: int = 26  #: passes over the training pictures (paper: at most 2,000)
    patience: int = 100  #: epochs without a better validation Dice before stopping, asked at each validation (paper: 100)
    batch_size: int = 32  #: pictures of one optimiser step, over all processes
    accumulate: int = 1  #: parts in which a process takes its share of a batch, to save memory
    optimizer: str = "adamw"  #: "adamw" or "adam" (paper: adam)
    lr: float = 3e-3  #: highest learning rate (paper: 3e-5)
    encoder_lr_factor: float = 1.0  #: learning rate of the two encoders, as a share of `lr`
    freeze: tuple[str, ...] = ()  #: parts that stay as they are: "text", "stem", "stage1" ... "stage4" (of the vision encoder)
    freeze_statistics: bool = False  #: normalisation uses its running statistics, and leaves them, during training, too
    weight_decay: float = 0.05
    warmup: float = 0.05  #: share of all steps during which the rate rises linearly; then a cosine (paper: a cosine)
    clip_grad: float = 1.0  #: largest gradient norm; 0: no clipping
    ema: float = 0.998  #: decay of the averaged weights that are validated and kept; 0: none
    precision: str = "no"  #: "no" (fp32), "bf16" or "fp16" (with a scaled loss; a GPU)
    channels_last: bool = True  #: memory layout of pictures and convolutions
    compile: bool = False  #: torch.compile on the vision encoder and the branches
    graphs: bool = False  #: on a GPU: passes are recorded once and replayed (recording.py); faster where the CPU starts kernels too slowly
    deterministic: bool = False  #: on a GPU: operations that give the same bits again (slower), but for those that torch then warns of; a CPU always does
    sizes: tuple[tuple[float, int], ...] = ((0.5, 160),)  #: ((until this share of the epochs, picture size), ...), shares rising; then image_size
    evaluate_every: int = 2  #: epochs between two validations (the last epoch is always validated)
    checkpoint_every: str = "10 minutes"  #: "N minutes" or "N steps" between two states within an epoch; an epoch ends with one, too, unless that takes a tenth of the time since the last
    samples_every: int = 5  #: epochs between two pictures of what the model predicts; 0: none
    seed: int = 0  #: of weights, order and augmentation
    workers: int = 0  #: processes that prepare batches beside the step (ours: 2 in `paper`, so that a GPU need not wait)
    train_splits: tuple[str, ...] = ("train",)  #: splits that are trained on; with "val", validation says nothing any more
    leave_out: tuple[str, ...] = ()  #: sources ("covid", "sub") whose pictures are not trained on
    # Augmentation (data/transforms.py); probabilities unless said
    rotate: float = 15.0  #: degrees, either way
    scale: tuple[float, float] = (0.75, 1.3)  #: lowest and highest factor of size
    shift: float = 0.08  #: share of the picture's edge, either way
    exposure: float = 0.3  #: half of the pictures: strength of brightness, contrast and gamma (0.3: factors from 0.7 to 1.3)
    noise: float = 0.03  #: half of the pictures: largest standard deviation of noise, as a share of the range of greys
    blur: float = 1.0  #: half of the pictures: largest sigma of the blur in pixels
    edit: float = 0.3  #: the picture is edited as another acquisition would show it (acquisition.py)
    tones: float = 0.5  #: share of these edits that change tones (exposure, contrast, noise, blur), the rest draw something
    join: float = 0.0  #: the right half is another patient's, and the sentence is written anew
    flip: float = 0.5  #: the picture is mirrored, and left and right change places in its sentence
    refer: float = 0.2  #: the sentence names one half or zone, and the mask keeps only that part; half as often where one half alone has lesions
    healthy: float = 0.0  #: share of these sentences that name the half without a lesion, where there is one; the mask is empty
    restate: float = 0.0  #: share of these sentences written as a report of what is left ("Unilateral …, all left lung."), unless nothing is
    paraphrase: float = 0.15  #: the sentence is worded otherwise and means the same
    generic: float = 0.03  #: the sentence says only that there is an infection
    no_text: float = 0.05  #: no sentence at all

    def __post_init__(self):
        for name in ("train_splits", "leave_out", "scale", "freeze"):
            setattr(self, name, tuple(getattr(self, name)))
        if not all(isinstance(name, str) for key in ("train_splits", "leave_out", "freeze") for name in getattr(self, key)):
            raise ValueError("train_splits, leave_out and freeze hold names.")
        if not self.train_splits or set(self.train_splits) - {"train", "val"}:
            raise ValueError(f'train_splits holds "train", or "train" and "val", not {list(self.train_splits)}.')
        if not (len(self.scale) == 2 and all(map(_number, self.scale)) and 0 < self.scale[0] <= self.scale[1]):
            raise ValueError(f"scale holds the lowest and the highest factor of size, as in [0.8, 1.2], not {list(self.scale)}.")
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_number, pair)) for pair in self.sizes):
            raise ValueError(f"sizes holds pairs of a share of the epochs and a picture size, as in [[0.5, 160]], not {self.sizes}.")
        self.sizes = tuple((float(share), int(size) if float(size).is_integer() else size) for share, size in self.sizes)
        for share, size in self.sizes:
            if size < 32 or size % 32:  # also a fraction
                raise ValueError(f"sizes: every picture size must be a multiple of 32, not {size}.")
        shares = [share for share, _ in self.sizes]
        if shares != sorted(set(shares)) or not all(0 < share <= 1 for share in shares):
            raise ValueError(f"sizes: each size is used until its share of the epochs, so the shares must rise, above 0 and up to 1, not {shares}.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        for name in ("epochs", "batch_size", "evaluate_every", "patience", "confounder_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.epochs > 2000:
            raise ValueError(f"epochs can be at most 2000, the paper's limit, not {self.epochs}.")
        for name in (
            "lam", "cap", "mu", "dice_weight", "encoder_lr_factor", "weight_decay", "clip_grad", "samples_every", "workers",
            "rotate", "shift", "noise", "blur",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}.")
        for name in ("warmup", "distill", "edit", "tones", "join", "flip", "refer", "healthy", "restate", "paraphrase", "generic", "no_text"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        if self.refer + self.generic + self.no_text > 1:
            raise ValueError("refer, generic and no_text are shares of the same sentences; together they must not pass 1.")
        if not 0 <= self.exposure < 1:
            raise ValueError(f"exposure must lie between 0 (none) and 1, 1 left out (factors begin at 1 - exposure), not {self.exposure}.")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, not {self.lr}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie between 0 (no averaging) and 1, 1 left out, not {self.ema}.")
        if unknown := sorted(set(self.freeze) - set(FREEZABLE)):
            raise ValueError(f"freeze knows {', '.join(FREEZABLE)}, not {', '.join(unknown)}.")
        if self.start and self.weights not in ("", "none"):
            raise ValueError("start holds a whole model already; give either start or weights.")
        self.interval()

    def interval(self) -> tuple[str, float]:
        """`checkpoint_every` as ("minutes" or "steps", how many)."""
        number, _, unit = self.checkpoint_every.strip().partition(" ")
        unit = unit.strip().rstrip("s") + "s"
        try:
            count = float(number)
        except ValueError:
            count = -1.0
        if unit not in ("minutes", "steps") or not 0 < count < math.inf or (unit == "steps" and not count.is_integer()):
            raise ValueError(f'checkpoint_every is written "10 minutes" or "500 steps", not {self.checkpoint_every!r}.')
        return unit, count


def preset(name: str) -> tuple[ModelConfig, TrainingConfig]:
    """The settings that go by a name.

    Args:
        name: `"mini"` (trains on two CPU cores), `"paper"` (RN101 from CLIP, Sec. 3.2 of the paper), or a network
            it is compared with: `"monai:UNet"` and the other `BASELINES`.
    Raises:
        ValueError: no preset has that name.
    """
    if name == "mini":
        return ModelConfig(), TrainingConfig()
    if name == "paper":
        model = ModelConfig(
            preset="paper", encoder="RN101-quickgelu", context_length=20, masker_width=64, fusion_width=256,
            carafe_compressed=64, decoder_width=128, upsampling_steps=2, decoder="plain", standardize=False,
        )  # fmt: skip
        training = TrainingConfig(
            objective="causal", confounder_every=1, dice_weight=0.0, weights="openai", epochs=2000, batch_size=32, optimizer="adam",
            lr=3e-5, weight_decay=0.0, warmup=0.0, clip_grad=0.0, ema=0.0, sizes=(), evaluate_every=1, workers=2,
        )  # fmt: skip
        return model, training
    if name in BASELINES:
        model = ModelConfig(preset=name, network=name, intervention=False)
        if name == "concat":
            return model, TrainingConfig(objective="none")
        # No sentence is read, so none may name a part of the mask; MONAI's examples train at rates near 1e-3.
        return model, TrainingConfig(objective="none", lr=1e-3, refer=0.0)
    raise ValueError(f'There is no preset "{name}"; choose "mini", "paper" or one of {", ".join(BASELINES)}.')


ELSEWHERE = {"preset": "choose it with --preset", "companions": "networks are put together by `causalclipseg ensemble`", "silent": "networks are put together by `causalclipseg ensemble`"}


def apply_settings(settings: list[str], *configs):
    """Set `key=value` pairs, as the command line gives them, on the configs that know the key.

    A nested key is written with a dot (`clip.text_layers=2`); values are read as JSON, else as text.

    Args:
        settings: strings `key=value`, each key a field of one of `configs`.
        configs: dataclass instances; the first that has the key takes it.
    Returns:
        new config instances, in the given order.
    Raises:
        ValueError: a pair without "=", or a key that none of the configs has.
    """
    data = [dataclasses.asdict(c) for c in configs]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f'"{setting}" is not a setting; write key=value.')
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if key.strip() in ELSEWHERE:
            raise ValueError(f"{key.strip()} is no setting: {ELSEWHERE[key.strip()]}.")
        *path, last = key.strip().split(".")
        for place in data:
            for part in path:
                place = place.get(part, {}) if isinstance(place, dict) else {}
            if isinstance(place, dict) and last in place:
                place[last] = _like(place[last], value, key)
                break
        else:
            names = sorted(_names(data))
            near = difflib.get_close_matches(key.strip(), names, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise ValueError(f'There is no setting "{key}".{hint} Known settings: {", ".join(names)}.')
    return tuple(_build(type(c), d) for c, d in zip(configs, data))


def _names(data: list[dict], prefix: str = "") -> list[str]:
    """Every key of some dictionaries, nested ones with a dot."""
    return [name for d in data for key, value in d.items() for name in ([prefix + key] if not isinstance(value, dict) else _names([value], f"{key}."))]


def save_json(config, path: str | os.PathLike) -> None:
    """Write a config as JSON; a half-written file never replaces a whole one."""
    write_text(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_json(kind, path: str | os.PathLike):
    """Read a config of class `kind` (`ModelConfig`, `TrainingConfig`) from JSON.

    Raises:
        ValueError: the file is missing or is not JSON, or holds a key that `kind` has not (named).
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold one JSON object of settings.")
    try:
        return _build(kind, data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _build(kind, data: dict, prefix: str = ""):
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - known)
    if unknown:
        names = ", ".join(f'"{prefix}{name}"' for name in unknown)
        raise ValueError(f"{kind.__name__} has no setting {names}; it knows {', '.join(sorted(known))}.")
    return kind(**data)


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _like(old, value, key: str):
    """`value`, if it is of the kind that `old` is; the kinds are few: bool, int, float, str, tuple, dict."""
    if isinstance(old, bool):
        known = {"true": True, "false": False}
        if str(value).lower() not in known:
            raise ValueError(f"{key} takes true or false, not {value!r}.")
        return known[str(value).lower()]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (old, value))
    if numbers and math.isfinite(value):
        if isinstance(old, int) and not float(value).is_integer():
            raise ValueError(f"{key} takes a whole number, not {value}.")
        return type(old)(value)
    if isinstance(old, str):
        return str(value)
    if isinstance(old, (tuple, list)):
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{key} takes a list, {key}=[{json.dumps(value)}], not {value!r}.")
        return value
    if isinstance(old, dict) and isinstance(value, dict):
        return {**old, **{name: _like(old[name], part, f"{key}.{name}") if name in old else part for name, part in value.items()}}
    raise ValueError(f"{key} takes a value like {old!r}, not {value!r}.")
