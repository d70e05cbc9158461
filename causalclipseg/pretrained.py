"""Pre-trained weights of a CLIP: from a tag of open_clip, a file, a folder of `causalclipseg pretrain`, or the hub."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import open_clip
import torch
from torch import nn


HUB, FOLDER = "hf-hub:", "local-dir:"  #: open_clip's marks before the id of a model on the hub, and before a folder that holds one
PRETRAINED_FILE = "clip.safetensors"  #: what `causalclipseg pretrain` writes into its folder
FOLDER_FILES = (PRETRAINED_FILE, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")  #: the last two: open_clip's own


def _local(source: str) -> Path:
    """Where local weights lie, if `source` names any: a file, or the one in a folder of `causalclipseg pretrain` or of open_clip."""
    path = Path(source.removeprefix(FOLDER))
    if path.is_dir():
        return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path / PRETRAINED_FILE)
    return path


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
            `causalclipseg pretrain` wrote, or one in open_clip's layout; or a hub id "org/name".
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
        state = _download(encoder, pretrained=source).state_dict()
    elif source.removeprefix(HUB).count("/") == 1 and not source.startswith((".", "/", FOLDER)):
        found = _download(HUB + source.removeprefix(HUB))
        _check_activation(clip, source, encoder, wants_quick=_quick(found))
        state = found.state_dict()
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(encoder)) or "none"
        raise ValueError(f'"{source}" is neither a file nor a hub id nor a tag that open_clip has for {encoder} (tags: {tags}).')
    own = clip.state_dict()
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in ("input_resolution", "context_length", "vocab_size")}
    extra = sorted(set(state) - set(own) - {"logit_bias", "text.transformer.embeddings.position_ids"})  # the last: 0, 1, 2, ... of old BERTs
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
    if wants_quick and not _quick(clip):
        quick = f"{encoder}-quickgelu"
        advice = f'choose encoder="{quick}"' if quick in open_clip.list_models() else "choose weights made for GELU"
        raise ValueError(f'The weights "{source}" are made for QuickGELU, and {encoder} has GELU; {advice}.')


def _quick(clip: nn.Module) -> bool:
    blocks = getattr(text_tower(clip).transformer, "resblocks", ())  # a tower of transformers has none, and no QuickGELU
    return len(blocks) > 0 and isinstance(blocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def text_tower(clip: nn.Module) -> nn.Module:
    """What holds the text transformer: open_clip's `CLIP` itself, or the `text` of its other classes."""
    return clip if hasattr(clip, "transformer") else clip.text


def _download(name: str, pretrained: str | None = None) -> nn.Module:
    try:
        return open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
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
