"""The exercises of notebooks 04 to 07 let right answers pass and tell typical mistakes apart."""
import math

import pytest
import torch
from torch.nn import functional as F

from causalclipseg import carafe, decoder, exercises, masking, schedule


def coordinates(x):
    return masking.coordinates(x)


def masked(features, first, norm, second):
    mask = torch.sigmoid(second(torch.relu(norm(first(torch.cat([features, masking.coordinates(features)], 1))))))
    return mask, mask * features, (1 - mask) * features


def no_sigmoid(features, first, norm, second):
    mask = second(torch.relu(norm(first(torch.cat([features, masking.coordinates(features)], 1)))))
    return mask, mask * features, (1 - mask) * features


def exchanged(*arguments):
    mask, causal, confounding = masked(*arguments)
    return 1 - mask, confounding, causal


def reassembled(features, kernels, k, s):
    return carafe.carafe(features, kernels, k, 1, s)


def transposed(features, kernels, k, s):
    b, _, h, w = kernels.shape
    return reassembled(features, kernels.view(b, k, k, h, w).transpose(1, 2).reshape(b, k * k, h, w), k, s)


def kernel(d, channels, size):
    return d[:, :-1].reshape(-1, channels, size, size), d[:, -1]


def bias_first(d, channels, size):
    return d[:, 1:].reshape(-1, channels, size, size), d[:, 0]


def naive(features, kernels, bias, size, padding_before=False, flip=False):
    b, _, k, _ = kernels.shape
    kernels = kernels.flip(2, 3) if flip else kernels
    if padding_before:  # the frame is interpolated, too
        features = F.pad(features, (1,) * 4, mode="replicate")
        up = F.interpolate(features, scale_factor=(size[0] / (features.shape[2] - 2), size[1] / (features.shape[3] - 2)), mode="bilinear", align_corners=False)
        pad = k // 2
        top, left = (up.shape[2] - size[0]) // 2 - pad, (up.shape[3] - size[1]) // 2 - pad
        up = up[:, :, top : top + size[0] + 2 * pad, left : left + size[1] + 2 * pad]
        return F.conv2d(up.reshape(1, -1, *up.shape[2:]), kernels, groups=b).view(b, 1, *size) + bias.view(b, 1, 1, 1)
    up = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    return F.conv2d(up.reshape(1, -1, *size), kernels, padding=k // 2, groups=b).view(b, 1, *size) + bias.view(b, 1, 1, 1)


def losses(c, s, y, lam, sign=-1):
    one, other = ((F.softplus(z) - y * z).mean() for z in (c, s))
    return one + sign * lam * other, one, other


def overflowing(c, s, y, lam):
    one, other = ((torch.log(1 + torch.exp(z)) - y * z).mean() for z in (c, s))
    return one - lam * other, one, other


def constant(z, p):
    return F.softplus(z) - p * z


def bounded(c, s, lam, cap):
    return c - lam * s.clamp(max=cap)


def reverse(x, lam):
    return masking.reverse_gradient(x, lam)


def last_epoch(dice, patience, equal=False, first=-1.0):
    best, at = first, 0
    for epoch, value in enumerate(dice, 1):
        if value > best or (equal and value == best):
            best, at = value, epoch
        if epoch - at >= patience:
            return epoch
    return len(dice)


def state(model, optimizer, scheduler):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "random": torch.get_rng_state()}


def restore(*parts):
    def put_back(kept, model, optimizer, scheduler):
        for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
            if name in parts:
                part.load_state_dict(kept[name])
        if "random" in parts:
            torch.set_rng_state(kept["random"])

    return put_back


RIGHT = {
    "n04.coordinates": [coordinates], "n04.masker": [masked], "n04.hide": [lambda f: 1 - 1e-4 / f], "n04.carafe": [reassembled],
    "n05.kernel": [kernel], "n05.correlate": [naive], "n05.merge": [decoder.correlate],
    "n06.losses": [losses], "n06.constant": [constant], "n06.bounded": [bounded], "n06.reverse": [reverse],
    "n07.rate": [lambda step, steps: schedule.rate_at(step, steps, 0)], "n07.stop": [last_epoch],
    "n07.share": [lambda order, process, processes: order[process::processes]],
    "n07.resume": [state, restore("model", "optimizer", "scheduler", "random")],
}  # fmt: skip

WRONG = [
    ("n04.coordinates", [lambda x: coordinates(x).flip(1)], "x comes first"),
    ("n04.coordinates", [lambda x: coordinates(x)[:1]], "shape"),
    ("n04.coordinates", [lambda x: coordinates(x).float()], "features' type"),
    ("n04.masker", [no_sigmoid], "where is the sigmoid"),
    ("n04.masker", [exchanged], "exchanged"),
    ("n04.masker", [lambda *a: masked(*a)[0]], "three things"),
    ("n04.hide", [lambda f: torch.full_like(f, 0.5)], "still differs"),
    ("n04.coordinates", [lambda x: coordinates(x.double())], "features' type"),
    ("n04.hide", [lambda f: 1 - 1 / f], r"inside \(0, 1\)"),
    ("n04.hide", [lambda f: 1 - 2 / f], r"inside \(0, 1\)"),
    ("n04.hide", [lambda f: 1 - 0.5 * f.min() / f], "another constant"),
    ("n04.carafe", [transposed], "off by"),
    ("n04.carafe", [lambda f, k, size, s: reassembled(f, k, size, s)[..., ::2]], "shape"),
    ("n05.kernel", [bias_first], "W_tau is off"),
    ("n05.kernel", [lambda d, c, k: (kernel(d, c, k)[0].transpose(2, 3), d[:, -1])], "W_tau is off"),
    ("n05.correlate", [lambda *a: naive(*a, flip=True)], "flipped"),
    ("n05.correlate", [lambda *a: naive(*a, padding_before=True)], "wrong along the frame"),
    ("n05.correlate", [lambda f, w, b, size: naive(f, w[:1].expand_as(w), b, size)], "off by"),
    ("n05.merge", [naive], "64 channels at full resolution"),
    ("n06.losses", [lambda *a: losses(*a, sign=1)], "wrong sign"),
    ("n06.losses", [overflowing], "infinite or not a number"),
    ("n06.constant", [lambda z, p: -p * torch.log(torch.sigmoid(z)) - (1 - p) * torch.log(1 - torch.sigmoid(z))], "loses its digits"),
    ("n06.constant", [lambda z, p: F.softplus(z) - (1 - p) * z], "exchanged"),
    ("n06.bounded", [lambda c, s, lam, cap: c - lam * s], "L for L_s = 0.9"),
    ("n06.bounded", [lambda c, s, lam, cap: c - lam * min(s.item(), cap)], "gradient with respect to L_s"),
    ("n06.reverse", [lambda x, lam: x], "the gradient for λ"),
    ("n06.reverse", [lambda x, lam: (1 - lam) * x.detach() + lam * x], "wrong sign"),
    ("n06.reverse", [lambda x, lam: x.detach()], "no gradient"),
    ("n06.reverse", [lambda x, lam: -lam * x], "the value is off"),
    ("n07.rate", [lambda step, steps: math.cos(math.pi * step / steps)], "off by"),
    ("n07.rate", [lambda step, steps: 1 - step / steps], "off by"),
    ("n07.stop", [lambda dice, patience: last_epoch(dice, patience, equal=True)], "equal value"),
    ("n07.stop", [lambda dice, patience: last_epoch(dice, patience, first=0.0)], "even 0"),
    ("n07.stop", [lambda dice, patience: min(len(dice), patience)], "should be"),
    ("n07.share", [lambda o, p, n: o[p * len(o) // n : (p + 1) * len(o) // n]], "other pictures"),
    ("n07.share", [lambda o, p, n: o], "should be equal"),
    ("n07.resume", [state, restore("optimizer", "scheduler", "random")], "weights are not"),
    ("n07.resume", [state, restore("model", "scheduler", "random")], "moments are missing"),
    ("n07.resume", [state, restore("model", "optimizer", "random")], "stands at step 0"),
    ("n07.resume", [state, restore("model", "optimizer", "scheduler")], "random numbers"),
]


def summed(f, w, b, size):
    """Eq. 1 with kernels merged by a weighted sum over channels, written down as it stands."""
    k = w.shape[-1]
    taps = F.interpolate((f[:, :, None, None] * w[..., None, None]).sum(1).flatten(1, 2), size=size, mode="bilinear", align_corners=False)
    padded = F.pad(taps, [k // 2] * 4)
    shifted = [padded[:, n, n // k : n // k + size[0], n % k : n % k + size[1]] for n in range(k * k)]
    return sum(shifted)[:, None] + b.view(-1, 1, 1, 1)


def test_kernels_may_be_merged_by_a_sum_at_low_resolution(capsys):
    exercises.check("n05.merge", summed)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes(name, capsys):
    exercises.check(name, *RIGHT[name])
    assert capsys.readouterr().out.startswith("✓ ")


@pytest.mark.parametrize("name, answer, message", WRONG, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(WRONG)])
def test_a_mistake_is_named(name, answer, message):
    with pytest.raises(exercises.NotYet, match=message):
        exercises.check(name, *answer)
