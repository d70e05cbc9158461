"""`CausalCLIPSeg`: encoders, masking, fusion and decoders, wired as in the paper's Fig. 1."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import nn

from ._files import written_beside
from .config import ModelConfig, load_json, save_json
from .decoder import TextToPixelDecoder
from .encoders import build_encoders, tokenize
from .masking import Fusion, Masker, reverse_gradient, split, split_fine

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SCALE = ".scale"  #: behind the name of a weight that is stored in 8 or 4 bits
SHAPE = ".shape"  #: behind the name of one in 4 bits: the shape of one row
LARGE = 2**17  #: numbers in a weight that may be stored in 4 bits
ROWS = ".rows"  #: behind the name of one of which some rows are not stored, and zero: how many it has, then which are there


class Segmentation(NamedTuple):
    """What `CausalCLIPSeg` returns."""

    logits: torch.Tensor  #: S_c = D_c(tau, F^c), (B, 1, H, W); sigmoid gives the probability of a lesion
    confounder_logits: torch.Tensor | None  #: S_s = D_s(tau, F^s), the same shape; None unless asked for
    masks: tuple[torch.Tensor, ...]  #: M_i for stages 2 to 4, (B, 1 or C_i, h_i, w_i); empty without intervention


class Branch(nn.Module):
    """One of the two twins of Fig. 1: fuse the stages, then decode with the sentence.

    D_c and D_s are "separate yet identical" (Sec. 2.3); so are their fusions here, hence the statistics of
    one branch's normalisation never mix with the other's.
    """

    def __init__(self, config: ModelConfig, channels: tuple[int, ...], text_dim: int, fine_channels: int):
        super().__init__()
        self.fusion = Fusion(channels, config.fusion_width, config.carafe_compressed)
        self.decoder = TextToPixelDecoder(
            text_dim, config.fusion_width, config.decoder_width, config.kernel_size, config.upsampling_steps, fine_channels
        )

    def forward(
        self, tau: torch.Tensor, stages: list[torch.Tensor], size: tuple[int, int], fine: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        return self.decoder(tau, self.fusion(stages), size, fine)


class Segmenter(nn.Module, PyTorchModelHubMixin, library_name="causalclipseg", tags=["image-segmentation"]):
    """What every network here has in common, so that one loop trains and one job measures them all.

    A subclass takes `(config, weights, torchscript, sha256)`, and its `forward(images, tokens, confounder,
    reversal)` returns a `Segmentation`; `config` is its `ModelConfig`.
    """

    config: ModelConfig

    @classmethod
    def builds(cls, network: str) -> bool:
        """Whether this class makes the network that `ModelConfig.network` names."""
        return True

    def tokenize(self, reports: list[str]) -> tuple[torch.Tensor, list[bool]]:
        """Tokens (B, L) of B sentences on the model's device, and whether each sentence was cut."""
        tokens, cut = tokenize(reports, self.config.context_length, self.config.text_encoder or self.config.encoder)
        return tokens.to(self.device), cut

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save_pretrained(self, save_directory: str | os.PathLike, *, dtype: torch.dtype | None = None, push_to_hub: bool = False, **hub):
        """Write `config.json` and `model.safetensors`, each beside its place and then renamed.

        Args:
            save_directory: made if it is missing.
            dtype: store weights as this type (statistics of the normalisation stay as they are); None: as held. `torch.int8`:
                see `quantized`.
            push_to_hub: also upload; `hub` is handed to huggingface_hub's `push_to_hub`.
        """
        directory = Path(save_directory)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        if dtype is not None:
            parameters = {name for name, _ in self.named_parameters()}
            state = quantized(state, parameters) if dtype == torch.int8 else {k: v.to(dtype) if k in parameters else v for k, v in state.items()}
        write_model(directory, state, self.config)
        if push_to_hub:
            hub.pop("config", None)
            return self.push_to_hub(repo_id=hub.pop("repo_id", None) or directory.name, **hub)
        return None

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike, *, device: str | torch.device = "cpu", **hub) -> Segmenter:
        """Load a model from a folder or a hub id; the result is in evaluation mode and in fp32.

        Args:
            model: a folder that holds `config.json` and `model.safetensors`, or a hub id "org/name".
            device: where to put it. hub: `revision`, `cache_dir`, `token`, ... of huggingface_hub.
        Raises:
            ValueError: one sentence on what is missing or does not fit.
        """
        directory = model_folder(model, **hub)
        if not (directory / WEIGHTS_FILE).is_file():
            raise ValueError(f"{directory} holds no {WEIGHTS_FILE}.")
        config = load_json(ModelConfig, directory / CONFIG_FILE)
        if not cls.builds(config.network):
            raise ValueError(f"{directory} holds the network {config.network}, no {cls.__name__}; baselines.load_model reads both.")
        network = cls(config)
        try:
            network.load_state_dict(dequantized(safetensors.torch.load_file(directory / WEIGHTS_FILE)))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{directory / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {reason}") from error
        return network.to(device).eval()


def save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Tensors as safetensors, beside their place and then renamed. OSError also where safetensors has an error of its own (a full disk)."""
    with written_beside(path) as beside:
        try:
            safetensors.torch.save_file(state, beside, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} could not be written ({error}).") from error
        os.chmod(beside, 0o644)  # safetensors writes for its owner alone, and weights are shared


def write_model(directory: Path, state: dict[str, torch.Tensor], config: ModelConfig) -> None:
    """`model.safetensors` and `config.json`, each beside its place and then renamed; the folder is made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(directory / WEIGHTS_FILE, state)
    save_json(config, directory / CONFIG_FILE)


def quantized(state: dict[str, torch.Tensor], parameters: set[str], bits: int = 8) -> dict[str, torch.Tensor]:
    """Weights in few bits: w ~ s q, q in -m ... m with m = 2^(b - 1) - 1 for b bits, and s = max |w| / m of each row (float32, under `SCALE`).

    A row is what one index of the first axis holds: a kernel of a convolution, a row of a matrix, a token's embedding. Vectors (biases,
    scales of the normalisation) and what is no parameter stay as they are. An error of s / 2 at most.

    Args:
        state: the weights. parameters: the names of those that are no statistics.
        bits: 8 (int8), or 4 for a weight of at least `LARGE` numbers: two of a row share a byte (uint8), and the shape of a row is
            kept (int32, under `SHAPE`). Others, which the first layers have, keep 8: they take little room, and answers change most by them.
    """
    if bits not in (8, 4):
        raise ValueError(f"Weights are stored in 8 or in 4 bits, not in {bits}.")
    stored = {}
    for key, value in state.items():
        if key in parameters and value.ndim > 1:
            packed = bits == 4 and value.numel() >= LARGE
            most = 7 if packed else 127
            scale = value.flatten(1).abs().amax(1) / most
            scale = torch.where(scale > 0, scale, 1.0)
            stored[key + SCALE] = scale
            value = (value / _per_row(scale, value)).round().to(torch.int8)
            if packed:
                stored[key + SHAPE] = torch.tensor(value.shape[1:], dtype=torch.int32)
                value = _packed(value.flatten(1))
        stored[key] = value
    return stored


def _packed(rows: torch.Tensor) -> torch.Tensor:
    """Rows of n numbers in -8 ... 7, (R, n), as bytes: two numbers in one, (R, ceil(n / 2)) uint8."""
    low, high = (nn.functional.pad(rows.int() + 8, (0, rows.shape[1] % 2)).view(len(rows), -1, 2)).unbind(-1)
    return (low | high << 4).to(torch.uint8)


def _unpacked(packed: torch.Tensor, n: int) -> torch.Tensor:
    """What `_packed` was given, (R, n) int32."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :n].int() - 8


def without_rows(stored: dict[str, torch.Tensor], key: str, kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """The stored state without some rows of one weight, which are read as zeros; `ROWS` (int32) says which are there.

    Args:
        stored: of `quantized`, or a state as it is. key: the weight's name. kept: (rows,) bool.
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # 8-bit floats cannot be indexed, their bits can
    less = {k: stored[k].view(bits[stored[k].element_size()])[kept].view(stored[k].dtype) for k in (key, key + SCALE) if k in stored}
    return {**stored, **less, key + ROWS: torch.cat([torch.tensor([len(kept)]), kept.nonzero().flatten()]).int()}


def dequantized(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state that `quantized` and `without_rows` stored, weights of theirs in float32; any other state as it is."""
    state = {}
    for key, value in stored.items():
        if key.endswith((SCALE, SHAPE, ROWS)):
            continue
        if key + SHAPE in stored:
            shape = stored[key + SHAPE].tolist()
            value = _unpacked(value, math.prod(shape)).view(-1, *shape)
        if key + SCALE in stored:
            value = value * _per_row(stored[key + SCALE], value)
        if key + ROWS in stored:
            rows, *kept = stored[key + ROWS].tolist()
            whole = torch.zeros(rows, *value.shape[1:])
            whole[kept] = value.float()
            value = whole
        state[key] = value
    return state


def _per_row(scale: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, *[1] * (value.ndim - 1))


def model_folder(model: str | os.PathLike, **hub) -> Path:
    """The folder of a model: as given, or fetched from the hub for an id "org/name" (ValueError if it can't be)."""
    directory = Path(model)
    if not directory.is_dir():
        if str(model).count("/") != 1 or directory.is_absolute() or str(model).startswith("."):
            raise ValueError(f"{model} is not a folder with a model, nor a hub id such as org/name.")
        try:
            directory = Path(snapshot_download(str(model), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE], **hub))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{model} is no folder here and could not be fetched from the hub ({reason}).") from error
    return directory


class CausalCLIPSeg(Segmenter):
    """Referring segmentation of chest X-rays with causal intervention (Chen et al., MICCAI 2024).

    Called, it is one network. Its `companions` and `silent` (mostly none) answer only where all networks are asked together
    (`views.answering`), `silent` only to a picture without a sentence.

    Args:
        config: a `ModelConfig`; the default is the preset `mini`.
        weights: CLIP weights to start from, see `encoders.build_encoders`. "none" never downloads.

    Shape:
        images (B, 3, H, W) in [0, 1], grey repeated; tokens (B, L) -> `Segmentation`
    """

    @classmethod
    def builds(cls, network: str) -> bool:
        return network == "causalclipseg"

    def __init__(self, config: ModelConfig | None = None, weights: str = "none", torchscript: bool = False, sha256: str = ""):
        super().__init__()
        self.config = config if config is not None else ModelConfig()
        self.text_encoder, self.vision_encoder = build_encoders(self.config, weights, torchscript, sha256)
        channels = self.vision_encoder.channels
        self.conditioned = self.config.decoder == "conditioned"
        fine = self.vision_encoder.fine_channels if self.conditioned else 0
        if self.conditioned and not fine:
            raise ValueError(f'"{self.config.encoder}" gives no features at stride 4, which the conditioned decoder takes in; set decoder=plain.')
        self.causal = Branch(self.config, channels, self.text_encoder.dim, fine)
        if self.config.intervention:
            per_channel = self.config.mask_channels == "channel"
            self.maskers = nn.ModuleList(Masker(c, self.config.masker_width, per_channel) for c in channels)
            self.confounder = Branch(self.config, channels, self.text_encoder.dim, fine)
        self.companions = nn.ModuleList(CausalCLIPSeg(companion) for companion in self.config.companions)
        self.silent = CausalCLIPSeg(self.config.silent) if self.config.silent else None
        for network in self.further:
            network.confounder = None  # they answer, and nothing is asked of what they leave out

    @property
    def further(self) -> list[CausalCLIPSeg]:
        """The other networks in the file, in the order of `ModelConfig.further`."""
        return [*self.companions, *([self.silent] if self.silent is not None else [])]

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, confounder: bool = False, reversal: float | None = None,
    ) -> Segmentation:  # fmt: skip
        """Predict from pictures and sentences.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of 32. tokens: (B, L), see `tokenize`.
            confounder: also run the confounder branch (needs `config.intervention`).
            reversal: lambda of the objective `minimax`: what enters the confounder branch keeps its value, but its
                gradient comes back multiplied by -lambda. None: an ordinary gradient.
        Raises:
            ValueError: a size that is no multiple of 32, too many tokens, or a confounder branch asked of a
                model that has none.
        """
        if confounder and not self.config.intervention:
            raise ValueError("This model was built without causal intervention; it has no confounder branch.")
        size = images.shape[-2:]
        tau = self.text_encoder(tokens)
        stages = self.vision_encoder(images, fine=self.conditioned)
        fine, *stages = stages if self.conditioned else (None, *stages)
        if not self.config.intervention:
            return Segmentation(self.causal(tau, stages, size, fine), None, ())
        masks = tuple(masker(stage) for masker, stage in zip(self.maskers, stages))
        causal, confounding = zip(*(split(stage, mask) for stage, mask in zip(stages, masks)))
        fine_c, fine_s = split_fine(fine, masks[0]) if fine is not None else (None, None)
        logits, confounder_logits = self.causal(tau, causal, size, fine_c), None
        if confounder:
            if reversal is not None:
                tau, fine_s, *confounding = (x if x is None else reverse_gradient(x, reversal) for x in (tau, fine_s, *confounding))
            confounder_logits = self.confounder(tau, confounding, size, fine_s)
        return Segmentation(logits, confounder_logits, masks)
