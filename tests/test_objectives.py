"""Eq. 3-4 against loops, and what the bound changes."""
import math

import pytest
import torch

from causalclipseg import scm
from causalclipseg.objectives import ADVERSARIAL, OBJECTIVES, adjustment, cross_entropy, objective, soft_dice_loss


@pytest.fixture
def maps():
    """S_c, S_s and Y of three pictures, 4 x 5; the last mask is empty."""
    generator = torch.Generator().manual_seed(0)
    logits, confounder = (torch.randn(3, 1, 4, 5, generator=generator, dtype=torch.double) for _ in range(2))
    masks = (torch.rand(3, 1, 4, 5, generator=generator) > 0.6).double()
    masks[2] = 0
    return logits, confounder, masks


def entropy_by_loops(logits, masks):
    total, pixels = 0.0, 0
    for s, y in zip(logits.flatten().tolist(), masks.flatten().tolist()):
        p = 1 / (1 + math.exp(-s))
        total -= math.log(p) if y else math.log(1 - p)
        pixels += 1
    return total / pixels


def test_cross_entropy_is_the_mean_over_all_pixels_in_nats(maps):
    logits, _, masks = maps
    assert cross_entropy(logits, masks.float()).item() == pytest.approx(entropy_by_loops(logits, masks), rel=1e-5)
    assert cross_entropy(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("lam", [0.05, 1.0])
def test_causal_is_equations_3_and_4_as_printed(maps, lam):
    logits, confounder, masks = maps
    loss = objective("causal", logits, confounder, masks.float(), lam=lam)
    loss_c, loss_s = entropy_by_loops(logits, masks), entropy_by_loops(confounder, masks)
    assert loss.causal.item() == pytest.approx(loss_c, rel=1e-5)
    assert loss.confounder.item() == pytest.approx(loss_s, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss_c - lam * loss_s, rel=1e-5)


def test_none_is_the_causal_loss_alone_and_reads_no_confounder(maps):
    logits, confounder, masks = maps
    for given in (None, confounder):
        loss = objective("none", logits, given, masks.float())
        assert loss.total.item() == pytest.approx(entropy_by_loops(logits, masks), rel=1e-5)
        assert loss.confounder.item() == 0


def test_descending_the_printed_loss_makes_the_confounder_decoder_wrong(maps):
    logits, confounder, masks = maps
    confounder = confounder.float().requires_grad_()
    objective("causal", logits, confounder, masks.float(), lam=0.05).total.backward()
    # dL/dS_s = -lambda * (sigmoid(S_s) - Y) / pixels: a step down raises L_s
    expected = -0.05 * (confounder.detach().sigmoid() - masks.float()) / masks.numel()
    torch.testing.assert_close(confounder.grad, expected)
    before = cross_entropy(confounder.detach(), masks.float())
    assert cross_entropy(confounder.detach() - 5 * confounder.grad, masks.float()) > before


@pytest.mark.parametrize("cap", [0.2, 0.37, 5.0])
def test_bounded_counts_the_confounder_loss_up_to_its_cap_in_value_and_gradient(maps, cap):
    logits, confounder, masks = (t.float() for t in maps)
    grads = []
    for compute in (
        lambda c, s: objective("bounded", c, s, masks, lam=0.3, cap=cap).total,
        lambda c, s: cross_entropy(c, masks) - 0.3 * cross_entropy(s, masks).clamp(max=cap),
    ):
        c, s = logits.clone().requires_grad_(), confounder.clone().requires_grad_()
        total = compute(c, s)
        total.backward()
        grads.append((total.detach(), c.grad, s.grad if s.grad is not None else torch.zeros_like(s)))
    torch.testing.assert_close(grads[0], grads[1])
    above = cross_entropy(confounder, masks).item() > cap
    assert (grads[0][2].abs().max() == 0) == above


def test_minimax_adds_the_confounder_loss_so_that_its_decoder_descends_it(maps):
    logits, confounder, masks = (t.float() for t in maps)
    confounder.requires_grad_()
    loss = objective("minimax", logits, confounder, masks, lam=0.05)
    loss_c, loss_s = entropy_by_loops(logits, masks), entropy_by_loops(confounder.detach(), masks)
    assert loss.total.item() == pytest.approx(loss_c + loss_s, rel=1e-5)
    assert (loss.causal.item(), loss.confounder.item()) == (pytest.approx(loss_c, rel=1e-5), pytest.approx(loss_s, rel=1e-5))
    loss.total.backward()
    torch.testing.assert_close(confounder.grad, (confounder.detach().sigmoid() - masks) / masks.numel())


def test_the_printed_loss_has_no_floor_and_the_bounded_one_has():
    """Two free logit maps, thirty steps of gradient descent with a growing rate: as printed, any bound is passed."""
    masks = (torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    lowest = {}
    for name in ("causal", "bounded"):
        c, s = (torch.zeros(1, 1, 6, 6, requires_grad=True) for _ in range(2))
        values = []
        for step in range(30):
            loss = objective(name, c, s, masks, lam=0.05, cap=0.9)
            values.append(loss.total.item())
            for tensor, grad in zip((c, s), torch.autograd.grad(loss.total, (c, s), allow_unused=True)):
                if grad is not None:
                    tensor.data -= 100 * 2**step * grad
        lowest[name] = min(values)
    for bound in (-1, -100, -10_000):
        assert lowest["causal"] < bound
    assert lowest["bounded"] >= -0.05 * 0.9


def test_soft_dice_equals_loops_over_pictures(maps):
    logits, _, masks = maps
    losses = []
    for s, y in zip(logits, masks):
        p = [1 / (1 + math.exp(-v)) for v in s.flatten().tolist()]
        y = y.flatten().tolist()
        losses.append(1 - (2 * sum(a * b for a, b in zip(p, y)) + 1) / (sum(p) + sum(y) + 1))
    assert soft_dice_loss(logits, masks.float()).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_soft_dice_is_well_defined_for_an_empty_mask():
    empty = torch.zeros(1, 1, 4, 4)
    assert soft_dice_loss(torch.full_like(empty, -50), empty).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(torch.full_like(empty, 50), empty).item() == pytest.approx(1 - 1 / 17)
    assert soft_dice_loss(torch.full_like(empty, 50), empty + 1).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_dice_term_belongs_to_the_causal_loss_alone(maps, name):
    logits, confounder, masks = maps
    masks = masks.float()
    confounder = confounder.float().requires_grad_()
    wanted = dict(cap=5.0, edited_logits=logits, weights=torch.ones(3))
    plain = objective(name, logits, confounder, masks, **wanted)
    more = objective(name, logits, confounder, masks, dice_weight=0.7, **wanted)
    torch.testing.assert_close(more.total - plain.total, 0.7 * soft_dice_loss(logits, masks))
    assert more.causal == plain.causal and more.confounder == plain.confounder
    if name in ADVERSARIAL:
        gradients = [torch.autograd.grad(loss.total, confounder)[0] for loss in (plain, more)]
        torch.testing.assert_close(*gradients)


def test_half_precision_logits_are_scored_in_single_precision():
    logits, masks = torch.full((1, 1, 64, 64), -12.0), torch.ones(1, 1, 64, 64)
    assert cross_entropy(logits.bfloat16(), masks).item() == pytest.approx(12.0, abs=1e-4)
    assert objective("causal", logits.half(), logits.half(), masks).total.dtype == torch.float32


@pytest.mark.parametrize("name", ["causal", "bounded", "minimax"])
def test_a_missing_confounder_prediction_is_refused(maps, name):
    with pytest.raises(ValueError, match=f'"{name}" needs the confounder'):
        objective(name, maps[0], None, maps[2].float())


def test_an_unknown_objective_is_refused_by_name(maps):
    with pytest.raises(ValueError, match='"adverse"; choose one of none, causal, bounded'):
        objective("adverse", *maps)


def dice_loss_by_loops(logits, masks):
    losses = []
    for s, y in zip(logits, masks):
        p, y = [1 / (1 + math.exp(-v)) for v in s.flatten().tolist()], y.flatten().tolist()
        losses.append(1 - (2 * sum(a * b for a, b in zip(p, y)) + 1) / (sum(p) + sum(y) + 1))
    return losses


@pytest.mark.parametrize("mu", [0.0, 2.5])
def test_interventional_is_both_losses_and_what_the_predictions_differ_by(maps, mu):
    logits, edited, masks = maps
    loss = objective("interventional", logits, None, masks.float(), edited_logits=edited, mu=mu, dice_weight=0.5)
    differences = [(1 / (1 + math.exp(-a)) - 1 / (1 + math.exp(-b))) ** 2 for a, b in zip(logits.flatten().tolist(), edited.flatten().tolist())]
    each = [entropy_by_loops(s, masks) + 0.5 * sum(dice_loss_by_loops(s, masks)) / 3 for s in (logits, edited)]
    assert loss.total.item() == pytest.approx(sum(each) / 2 + mu * sum(differences) / len(differences), rel=1e-5)
    assert loss.causal.item() == pytest.approx(entropy_by_loops(logits, masks), rel=1e-5) and loss.confounder.item() == 0


def test_interventional_on_an_edit_that_does_nothing_is_the_plain_loss(maps):
    logits, _, masks = (t.float() for t in maps)
    same = objective("interventional", logits, None, masks, edited_logits=logits, mu=9.0, dice_weight=1.0)
    torch.testing.assert_close(same.total, objective("none", logits, None, masks, dice_weight=1.0).total)


def test_interventional_mixes_a_teachers_answers_into_both_views(maps):
    logits, edited, masks = (t.float() for t in maps)
    q, given = torch.rand_like(masks), dict(dice_weight=0.5, distill=0.3)
    both = objective("interventional", logits, None, masks, edited_logits=edited, mu=0.0, answers=q, **given).total
    torch.testing.assert_close(both, sum(objective("none", s, None, masks, answers=q, **given).total for s in (logits, edited)) / 2)


def test_a_teachers_answers_are_mixed_into_the_causal_loss(maps):
    logits, _, masks = maps
    q = torch.rand(masks.shape, generator=torch.Generator().manual_seed(3), dtype=masks.dtype)
    loss = objective("none", logits, None, masks, dice_weight=2.0, answers=q, distill=0.3)
    target = 0.7 * masks + 0.3 * q  # cross-entropy is linear in its target, soft Dice is not
    expected = cross_entropy(logits, target) + 2 * (0.7 * soft_dice_loss(logits, masks) + 0.3 * soft_dice_loss(logits, q))
    torch.testing.assert_close(loss.total, expected.to(loss.total.dtype))
    torch.testing.assert_close(loss.causal, cross_entropy(logits, masks))
    assert torch.equal(objective("none", logits, None, masks, answers=q, distill=0.0).total, objective("none", logits, None, masks).total)


def test_adjusted_weighs_each_picture(maps):
    logits, _, masks = maps
    weights = [0.5, 3.0, 1.25]
    loss = objective("adjusted", logits, None, masks.float(), weights=torch.tensor(weights), dice_weight=0.5)
    dices = dice_loss_by_loops(logits, masks)
    expected = sum(w * (entropy_by_loops(s, y) + 0.5 * d) for w, s, y, d in zip(weights, logits, masks, dices)) / 3
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_adjustment_weights_are_those_of_the_backdoor_formula():
    """P(c) / P(c | l), and the same as scm's weights for do(L); under them C and L are independent."""
    generator = torch.Generator().manual_seed(1)
    c = torch.randint(3, (300,), generator=generator)
    l = torch.where(torch.rand(300, generator=generator) < 0.8, c % 2, 1 - c % 2)  # noqa: E741
    weights = adjustment(c.tolist(), l.tolist())
    for k in (0, 1, 2):
        for side in (0, 1):
            here = (c == k) & (l == side)
            expected = (c == k).float().mean() / (here.sum() / (l == side).sum())
            torch.testing.assert_close(weights[here], expected.expand(int(here.sum())))
            torch.testing.assert_close(weights[here].sum() / 300, (c == k).float().mean() * (l == side).float().mean())
    data = {"C": c.numpy(), "L": l.numpy()}
    theirs = sum(scm.adjustment_weights(data, {"L": side}, "C") * (data["L"] == side).sum() for side in (0, 1))
    torch.testing.assert_close(weights, torch.from_numpy(theirs).float())
    assert weights.mean().item() == pytest.approx(1)


def test_what_the_remedies_lack_is_named(maps):
    logits, _, masks = maps
    with pytest.raises(ValueError, match="edited batch"):
        objective("interventional", logits, None, masks.float())
    with pytest.raises(ValueError, match="weights"):
        objective("adjusted", logits, None, masks.float())
    with pytest.raises(ValueError, match="'sub' has lesion 'both'"):
        adjustment(["covid", "covid", "sub"], ["both", "left", "left"])
