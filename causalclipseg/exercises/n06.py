"""Checks of notebook 06: the losses of Eq. 3-4, the constant decoder, the cap, the reversed gradient."""

from __future__ import annotations

import math

import torch

from .. import objectives
from . import close, expect


def losses(answer) -> None:
    """L, L_c and L_s are those of the package, also for huge logits."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 8, 8)
    masks = (torch.rand(shape, generator=generator) < 0.2).float()
    for scale in (1.0, 1000.0):
        logits_c, logits_s = (scale * torch.randn(shape, generator=generator) for _ in range(2))
        want = objectives.objective("causal", logits_c, logits_s, masks, lam=0.3)
        got = answer(logits_c, logits_s, masks, 0.3)
        expect(isinstance(got, tuple) and len(got) == 3, "return three numbers: L, L_c and L_s.")
        expect(all(bool(torch.isfinite(torch.as_tensor(x)).all()) for x in got), f"for logits around {scale:g} a loss is infinite or not a number.")
        for name, one, other in zip(("L", "L_c", "L_s"), (got[0], got[1], got[2]), want):
            if name == "L" and abs(float(one) - float(want.causal + 0.3 * want.confounder)) < 1e-3:
                expect(False, "L has the wrong sign before λ.")
            close(torch.as_tensor(one), other, name, tolerance=1e-4 * scale)


def constant(answer) -> None:
    """L_s of a constant logit is right, and lowest at ln(p / (1 - p)), where it is H(p)."""
    z = torch.linspace(-30, 30, 61, dtype=torch.float64)
    for p in (0.1, 0.5):
        got = answer(z, p)
        want = torch.nn.functional.softplus(z) - p * z
        if isinstance(got, torch.Tensor) and got.shape == want.shape and got.dtype == want.dtype:
            near = z.abs() < 10
            expect(p == 0.5 or not torch.allclose(got, want.flip(0), atol=1e-6), "lesion and background are exchanged: a share p of the pixels has y = 1.")
            expect(
                torch.allclose(got, want, rtol=0, atol=1e-4) or not torch.allclose(got[near], want[near], atol=1e-6),
                "right for small logits, but for large ones 1 - σ(z) loses its digits (in float32 it is 0 from about z = 17). Use softplus.",
            )
        close(got, want, f"L_s for p = {p}")
        best = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
        close(answer(best, p), torch.tensor([-p * math.log(p) - (1 - p) * math.log(1 - p)], dtype=torch.float64), "L_s at ln(p / (1 - p))")


def bounded(answer) -> None:
    """below the cap it is Eq. 3, above it L_s has neither value nor gradient."""
    for loss_s, slope in ((0.2, -0.1), (0.9, 0.0)):
        c, s = (torch.tensor(x, requires_grad=True) for x in (0.5, loss_s))
        total = answer(c, s, 0.1, 0.37)
        close(total, torch.tensor(0.5 - 0.1 * min(loss_s, 0.37)), f"L for L_s = {loss_s} and cap = 0.37")
        expect(total.requires_grad, "L has lost its gradient; keep to tensors (no .item(), no float()).")
        gradients = torch.autograd.grad(total, (c, s), allow_unused=True)
        expect(gradients[0] is not None and float(gradients[0]) == 1, "the gradient of L with respect to L_c should be 1.")
        got = 0.0 if gradients[1] is None else float(gradients[1])
        expect(abs(got - slope) < 1e-6, f"for L_s = {loss_s} the gradient with respect to L_s is {got:.3g}; it should be {slope:g}.")


def reverse(answer) -> None:
    """the value stays, and the gradient comes back multiplied by -λ."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for lam in (0.05, 1.0):
        got = answer(x, lam)
        close(got, x, "the value")
        expect(got.requires_grad, "no gradient flows back at all.")
        (gradient,) = torch.autograd.grad((got * torch.arange(20.0).view(4, 5)).sum(), x)
        want = -lam * torch.arange(20.0).view(4, 5)
        expect(not torch.allclose(gradient, -want, atol=1e-4), "the gradient has the right size and the wrong sign.")
        close(gradient, want, f"the gradient for λ = {lam}")
