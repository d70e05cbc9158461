"""The mean of several models' weights ("model soup", Wortsman et al., ICML 2022).

    theta = 1/n sum_k theta_k

Runs that started from the same weights and were tuned with other seeds or data mostly lie in one basin of the loss; their
mean then generalises better than each of them, at the cost of one. Nothing is chosen by looking at scores.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .baselines import load_model


def average(models: list[str | os.PathLike], out: str | os.PathLike) -> Path:
    """Write the mean of the weights, and of the normalisation's statistics, of models with the same settings.

    Args:
        models: two or more folders or hub ids. out: folder for `config.json` and `model.safetensors`.
    Returns:
        `out`.
    Raises:
        ValueError: fewer than two models, one that cannot be read, or models whose settings differ.
    """
    if len(models) < 2:
        raise ValueError("A mean needs at least two models.")
    mean = load_model(models[0])
    total = {key: value.double() for key, value in mean.state_dict().items()}
    for name in models[1:]:
        other = load_model(name)
        if other.config != mean.config:
            raise ValueError(f"{name} has other settings than {models[0]}; only models of one shape have a mean.")
        for key, value in other.state_dict().items():
            total[key] += value.double()
    kept = mean.state_dict()
    mean.load_state_dict({key: (value / len(models)).to(kept[key].dtype) for key, value in total.items()})
    mean.save_pretrained(out, dtype=torch.float32)
    return Path(out)
