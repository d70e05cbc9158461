"""Notebook 09: a frozen target for captum, the deletion curve, and AUROC of a map with a region."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..audit import auroc as right_auroc
from ..explain import CURVE


class _Toy(nn.Module):
    """Logits (B, 1, H, W) = 3 x - 1 of a grey picture (B, 1, H, W)."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return 3 * pictures - 1


def target(answer) -> None:
    """The mean logit over the frozen mask, and gradients come through it.

    answer(logits_of, frozen (H, W) bool) -> s, a function (B, 1, H, W) -> (B,): the mean logit over the frozen mask.
    """
    toy, generator = _Toy(), torch.Generator().manual_seed(0)
    picture = torch.rand(1, 1, 12, 12, generator=generator)
    frozen = toy(picture)[0, 0] > 0
    s = answer(toy, frozen)
    assert callable(s), "Return a function of the pictures, not a number: captum will call it again and again."
    batch = torch.cat([picture, picture.flip(-1), 0.1 * picture])
    said = s(batch)
    assert isinstance(said, torch.Tensor) and said.shape == (3,), f"s must give one number a picture, shape (3,), not {getattr(said, 'shape', said)}."
    right = toy(batch)[:, 0, frozen].mean(1)
    whole = toy(batch).mean((1, 2, 3))
    assert not torch.allclose(said, whole), "This is the mean over the whole picture; take it over the frozen mask."
    assert not torch.allclose(said, torch.sigmoid(toy(batch))[:, 0, frozen].mean(1)), "These are probabilities; take logits, which do not saturate."
    assert not torch.allclose(said * frozen.sum(), right), "Divide by the number of pixels just once: the mean, not less."
    assert not torch.allclose(said, right * frozen.sum()), "This is the sum; divide by the number of pixels in the mask."
    assert not torch.allclose(said * frozen.numel() / frozen.sum(), right), "Divide by the pixels of the mask, not of the picture."
    assert torch.allclose(said[2], right[2], atol=1e-5), (
        f"On a darker picture s is {float(said[2]):.3f}, but {float(right[2]):.3f} over the frozen mask. Is the mask thresholded anew?"
    )
    assert torch.allclose(said, right, atol=1e-5), f"s is {said.detach().tolist()}; it should be {right.detach().tolist()}."
    probe = picture.clone().requires_grad_()
    total = s(probe).sum()
    assert total.requires_grad, "No gradient comes back through s: leave out no_grad, detach, numpy and thresholds."


def deletion(answer) -> None:
    """The most important go first, step by step, until nothing is left.

    answer(score, features (D,), steps) -> (steps + 1,): s while the most important features are taken away first.
    """
    for seed, steps in enumerate((CURVE, 7, CURVE)):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(23, generator=generator) - 0.4  # some speak against: the largest value goes first, not the largest size
        score = lambda keep: torch.as_tensor(keep).float() @ weights  # noqa: B023, E731
        features = weights + 0.01 * torch.rand(23, generator=generator)
        said = np.asarray(answer(score, features, steps), float).ravel()
        assert said.shape == (steps + 1,), f"Return {steps + 1} values (nothing taken away yet, then {steps} steps), not {said.shape}."
        order = features.argsort(descending=True)
        right = []
        for share in np.linspace(0, 1, steps + 1):
            keep = torch.ones(1, 23)
            keep[0, order[: round(share * 23)]] = 0
            right.append(float(score(keep)))
        right = np.array(right)
        assert np.isclose(said[0], right[0]), f"The curve starts at {said[0]:.3f}; with all features kept s is {right[0]:.3f}."
        assert not np.allclose(said, right[::-1]), "This curve runs backwards: start with everything, end with nothing."
        assert said[1] <= right[1] + 1e-6, "The first step takes away too little: the most important features go first."
        assert np.allclose(said, right, atol=1e-5), f"Your curve is {np.round(said, 2).tolist()}; it should be {np.round(right, 2).tolist()}."


def auroc(answer) -> None:
    """The same as the package's, with and without ties.

    answer(values (H, W), region (H, W) bool) -> P(value inside > value outside), ties count half.
    """
    for seed in range(4):
        rng = np.random.default_rng(seed)
        region = rng.random((9, 9)) < 0.3
        noise, shift = rng.normal(0, 1, (9, 9)), abs(rng.uniform(-1, 1))
        # Above chance and below it, with many ties and with none.
        values = np.round(noise + (1, 1, -1, -1)[seed] * shift * region, seed % 2 * 9)
        right, said = right_auroc(values, region), answer(values, region)
        assert np.ndim(said) == 0 and said is not None, "Return one number."
        assert 0 <= said <= 1, f"A probability lies between 0 and 1, unlike {said}."
        assert abs(said - (1 - right)) > 1e-6 or abs(right - 0.5) < 1e-6, "This is the other way round: count where the value INSIDE is higher."
        ties = " Here many values are equal; do they count half?" if seed % 2 == 0 else ""
        assert abs(said - right) < 1e-6, f"You return {said:.4f}; it should be {right:.4f}.{ties}"
