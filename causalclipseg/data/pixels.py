"""The heavy half of augmentation: what changes every pixel, done for a whole batch on its own device.

What is drawn for a picture is drawn beside it, from the generator of the item (`transforms.py`), and travels as a
`Plan` of a few numbers; so two slow cores can feed a fast GPU, and the batch's members never change what one gets.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import acquisition

IN_CACHE = 4  # pictures that a CPU takes at a time: a whole batch of them does not fit its cache, and takes a third longer


@dataclass(frozen=True)
class Plan:
    """What is still to be done to one picture, in this order; as it stands here, nothing."""

    turn: float = 0.0  #: degrees, clockwise
    shift: tuple[float, float] = (0.0, 0.0)  #: to the right and down, as shares of the edge
    scale: float = 1.0  #: factor of size
    tone: str = ""  #: one of `acquisition.EDITS` that change tones, or none
    amount: float = 0.0  #: of it, see `acquisition.LEVELS`
    odd: bool = False  #: its direction
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 1.0
    blur: float = 0.0  #: sigma of a blur of 5 x 5 pixels
    noise: float = 0.0  #: standard deviation in grey values, 0 to 255
    seed: int = 0  #: of the noise and of the grain of tone "noise"; another device draws other ones from it

    @property
    def moves(self) -> bool:
        """Whether anything is turned, shifted or scaled."""
        return self.turn != 0 or self.shift != (0, 0) or self.scale != 1


def render(images: torch.Tensor, masks: torch.Tensor, plans: list[Plan]) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry out one plan for each picture.

    Args:
        images: (B, 1, H, W) uint8, on any device. masks: (B, 1 or 2, H, W) uint8, there, too: 0 and 1, and in a second
            channel a teacher's answer, 0 to 255, which goes where the mask goes.
    Returns:
        images float32 (B, 1, H, W), whole grey values from 0 to 255, and masks float32, as they were given; there.
    """
    if images.device.type == "cpu" and len(plans) > IN_CACHE:
        parts = (torch.split(images, IN_CACHE), torch.split(masks, IN_CACHE), range(0, len(plans), IN_CACHE))
        done = [render(x, y, plans[k : k + IN_CACHE]) for x, y, k in zip(*parts)]
        return tuple(map(torch.cat, zip(*done)))
    images, masks = images.float(), masks.float()

    def on(wanted: Callable[[Plan], object], change: Callable) -> None:
        """Put change(pictures, their plans) in the place of those pictures whose plan is wanted."""
        chosen = [i for i, plan in enumerate(plans) if wanted(plan)]
        if chosen:
            rows = _there(chosen, images)
            images[rows] = change(images[rows], [plans[i] for i in chosen])

    def move(pictures: torch.Tensor, theirs: list[Plan]) -> torch.Tensor:
        rows = _there([i for i, plan in enumerate(plans) if plan.moves], images)
        moved, masks[rows] = warp(pictures, masks[rows], theirs)
        return moved

    on(lambda p: p.moves, move)
    for name, change in TONES.items():
        on(lambda p: p.tone == name, lambda x, p: change(x, p).clamp_(0, 255))
    on(lambda p: p.gamma != 1, lambda x, p: 255 * (x / 255) ** _column(x, p, lambda plan: plan.gamma))
    on(lambda p: p.contrast != 1, lambda x, p: acquisition.contrasted(x, _column(x, p, lambda plan: plan.contrast)).clamp_(0, 255))
    on(lambda p: p.brightness != 1, lambda x, p: (x * _column(x, p, lambda plan: plan.brightness)).clamp_(0, 255))
    on(lambda p: p.blur, lambda x, p: smooth(x, [plan.blur for plan in p], 2, mode="reflect"))
    on(lambda p: p.noise, lambda x, p: (x + _normal(x, p) * _column(x, p, lambda plan: plan.noise)).clamp_(0, 255))
    return images.round_(), masks


def warp(images: torch.Tensor, masks: torch.Tensor, plans: list[Plan]) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn, scale and shift about the centre, filled with 0: pictures bilinear, masks where at least half is lesion.

    float32 (B, 1 or 2, H, W) with H = W to the same. One warp of all as channels: they can't get out of step.
    """
    size = images.shape[-1]
    place = (2 * torch.arange(size, device=images.device) + 1) / size - 1  # of the pixels' centres, from -1 to 1
    right, down = _column(images, plans, lambda p: p.shift[0]), _column(images, plans, lambda p: p.shift[1])
    angle, scale = _column(images, plans, lambda p: math.radians(p.turn)), _column(images, plans, lambda p: p.scale)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    x, y = place - 2 * right, place[:, None] - 2 * down
    grid = torch.cat([cos * x + sin * y, cos * y - sin * x], dim=1).movedim(1, -1)  # where each pixel comes from, (B, H, W, 2)
    both = F.grid_sample(torch.cat([images, masks], dim=1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return both[:, :1], torch.cat([(both[:, 1:2] >= 0.5).float(), both[:, 2:].round()], dim=1)


def smooth(images: torch.Tensor, sigmas: list[float], radius: int, mode: str = "replicate") -> torch.Tensor:
    """Gaussian blur (B, 1, H, W), each picture with its own sigma in pixels, cut off at `radius`; `mode` as in `F.pad`."""
    away = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (away / torch.tensor(sigmas)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(images.device, non_blocking=True)
    padded = F.pad(images, [radius] * 4, mode=mode).transpose(0, 1)  # (1, B, H, W): pictures as the groups of a convolution
    across = F.conv2d(padded, kernels[:, None, None, :], groups=len(sigmas))
    return F.conv2d(across, kernels[:, None, :, None], groups=len(sigmas)).transpose(0, 1)


def _column(images: torch.Tensor, plans: list[Plan], value: Callable[[Plan], float]) -> torch.Tensor:
    """One number a picture, (B, 1, 1, 1), float32, where the pictures are."""
    return _there([value(plan) for plan in plans], images).view(-1, 1, 1, 1)


def _there(values: list, images: torch.Tensor) -> torch.Tensor:
    """Numbers where the pictures are; without waiting for a GPU that still computes the step before."""
    return torch.tensor(values).to(images.device, non_blocking=True)


def _normal(images: torch.Tensor, plans: list[Plan]) -> torch.Tensor:
    """Standard normal noise, each picture's from its own seed."""
    generator = torch.Generator(images.device)
    return torch.stack([torch.randn(images.shape[1:], generator=generator.manual_seed(p.seed), device=images.device) for p in plans])


def _signed(images: torch.Tensor, plans: list[Plan]) -> torch.Tensor:
    return _column(images, plans, lambda plan: plan.amount if plan.odd else -plan.amount)


def _grain(images: torch.Tensor, plans: list[Plan]) -> torch.Tensor:
    grain = smooth(_normal(images, plans), [acquisition.GRAIN * images.shape[-1] / 224] * len(plans), 2)
    return acquisition.grained(images, grain, _column(images, plans, lambda plan: plan.amount))


def _unsharp(images: torch.Tensor, plans: list[Plan]) -> torch.Tensor:
    size = images.shape[-1]
    radius = math.ceil(4 * acquisition.LEVELS["blur"][-1] * size)  # the same for each, whoever else is in the batch
    return smooth(images, [max(plan.amount * size, 0.01) for plan in plans], radius)


#: the edits of `acquisition` that change tones, as they are there, for batches
TONES = {
    "exposure": lambda x, plans: acquisition.exposed(x, _signed(x, plans)),
    "contrast": lambda x, plans: acquisition.contrasted(x, (1 - _column(x, plans, lambda plan: plan.amount)) ** -_signed(x, plans).sign()),
    "noise": _grain,
    "blur": _unsharp,
}
