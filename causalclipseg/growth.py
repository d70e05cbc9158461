"""Growth: a trained network continued as a deeper and wider one, whose answers are the same until it is trained on (unless it
also sees pictures otherwise, `standardize`, or `mask_channels="channel"` meets the conditioned decoder, which means over channels).

    z = [W  0] [x ]      x, z: what the trained network holds and computes
        [R  S] [x']      x', z': further channels; R and S start at random, as in any new network

The trained channels read none of the new ones at first, and learn to (Net2Net, Chen et al., ICLR 2016, copies channels
instead). A further residual block starts as the identity: open_clip starts its last normalisation at zero.
"""

from __future__ import annotations

import dataclasses

import torch

from .config import FURTHER, ModelConfig


def grows(earlier: ModelConfig, config: ModelConfig) -> bool:
    """Whether a network of `config` can take over the weights of one of `earlier`.

    It can where nothing differs, or only: more blocks or more width in the `mini` vision encoder, a decoder that is
    conditioned now and was plain, `standardize`; further networks in its file stay behind.
    """
    clip = dataclasses.replace(earlier.clip, vision_layers=config.clip.vision_layers, vision_width=config.clip.vision_width)
    same = dataclasses.replace(earlier.alone(), clip=clip, decoder=config.decoder, standardize=config.standardize) == config
    larger = config.clip.vision_width >= earlier.clip.vision_width and all(
        new >= old for new, old in zip(config.clip.vision_layers, earlier.clip.vision_layers)
    )
    return same and larger and (earlier.decoder, config.decoder) != ("conditioned", "plain")


def grown(earlier: dict[str, torch.Tensor], fresh: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a new network, with a trained one's inside.

    Args:
        earlier: state of the trained network. fresh: state of the new one, as it was built; see `grows`. What only the new
            one has (blocks, a decoder's conditioning) is left as built, which is the identity.
    Returns:
        a state for the new network, of new tensors.
    """
    own = {key: value for key, value in earlier.items() if not key.startswith(FURTHER)}
    return {**fresh, **{key: _padded(value, fresh[key], coordinates=2 if ".coord_conv." in key else 0) for key, value in own.items()}}


def _padded(old: torch.Tensor, new: torch.Tensor, coordinates: int) -> torch.Tensor:
    """`old` in the leading rows and columns of `new`; a kernel's last `coordinates` inputs are no features, and stay last."""
    if old.shape == new.shape:
        return old.clone()
    new, rows = new.clone(), len(old)
    if old.ndim == 1:
        new[:rows] = old
        return new
    features = old.shape[1] - coordinates
    new[:rows] = 0
    new[:rows, :features] = old[:, :features]
    new[:rows, new.shape[1] - coordinates :] = old[:, features:]
    return new
