"""What changes over a training, and what is trained at all: rates, picture sizes, averaging, frozen parts."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .config import ModelConfig, TrainingConfig

ENCODERS = ("text_encoder", "vision_encoder")


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero.

    Args:
        step: steps done so far, over all epochs. steps: of the whole training. warmup: share of them, in [0, 1].
    """
    rise = max(1, int(warmup * steps))
    if step < rise:
        return (step + 1) / rise if warmup else 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def size_at(progress: float, config: TrainingConfig, model_config: ModelConfig) -> int:
    """The picture size at a share of the epochs in [0, 1): small pictures first cost less."""
    for share, size in config.sizes:
        if progress < share:
            return min(size, model_config.image_size)
    return model_config.image_size


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over what is not frozen; encoders at their own rate; no decay on vectors (norms, biases) and embeddings."""
    groups = {}
    vocabularies = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and "embedding" not in name and id(parameter) not in vocabularies
            groups.setdefault((name.startswith(ENCODERS), decays), []).append(parameter)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = kinds[config.optimizer](
        [
            {
                "params": parameters,
                "lr": config.lr * (config.encoder_lr_factor if encoder else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (encoder, decays), parameters in groups.items()
        ],
        fused=True if next(model.parameters()).is_cuda else None,  # one kernel for all weights
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Give each group this share of its own rate; returns the largest one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    return max(group["lr"] for group in optimizer.param_groups)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """Exponential moving average whose decay rises to `decay`, so that random first weights are soon forgotten.

    All tensors at once, and without asking the GPU for the count (as `AveragedModel.update_parameters` would): a step of
    `paper` has 834 of them.
    """
    count = int(average.n_averaged)  # held by the CPU
    d = min(decay, (1 + count) / (10 + count)) if count else 0.0
    kept = [*average.module.parameters(), *average.module.buffers()]
    new = [x.detach() for x in (*model.parameters(), *model.buffers())]
    floats = [i for i, x in enumerate(kept) if x.is_floating_point()]
    counts = [i for i, x in enumerate(kept) if not x.is_floating_point()]  # of the normalisations
    torch._foreach_lerp_([kept[i] for i in floats], [new[i] for i in floats], 1 - d)
    if counts:
        torch._foreach_copy_([kept[i] for i in counts], [new[i] for i in counts])
    average.n_averaged += 1


def freeze(model: nn.Module, config: TrainingConfig) -> None:
    """Take the gradient from the parts that `config.freeze` names (ValueError where the model has not got one)."""
    for part in _frozen(model, config):
        part.requires_grad_(False)


def train_mode(model: nn.Module, config: TrainingConfig) -> None:
    """Training mode, but for frozen stages and, with `freeze_statistics`, for normalisation."""
    model.train()
    for part in _frozen(model, config):
        if part is not model.text_encoder:  # has neither statistics nor dropout, and counts sentences while training
            part.eval()
    if config.freeze_statistics:
        for part in normalisations(model):
            part.eval()


def normalisations(model: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics."""
    return [part for part in model.modules() if getattr(part, "running_mean", None) is not None]


def _frozen(model: nn.Module, config: TrainingConfig) -> list[nn.Module]:
    if not config.freeze:
        return []
    if not hasattr(model, "vision_encoder"):
        raise ValueError("This network has no encoders to freeze; leave freeze out.")
    parts = {"text": [model.text_encoder], **model.vision_encoder.parts}
    if missing := [name for name in config.freeze if not parts.get(name)]:
        raise ValueError(f"This vision encoder has no {missing[0]} to freeze; it has {', '.join(name for name in parts if parts[name])}.")
    return [part for name in config.freeze for part in parts[name]]
