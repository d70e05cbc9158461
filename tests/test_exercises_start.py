"""The exercises of notebooks 00 to 02 let right answers pass and tell typical mistakes apart."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from causalclipseg import exercises, reports


def leaks(splits, pattern=r"(?:mask_)?sub-(S[0-9A-Za-z]+)", names=False):
    where = {}
    for split, members in splits.items():
        for name in members:
            if names:
                where.setdefault(name.split("_")[0], set()).add(split)
            elif found := re.match(pattern, name):
                where.setdefault(found[1], set()).add(split)
    return {subject for subject, places in where.items() if len(places) > 1}


def exchanged_anywhere(report):
    """Left and right exchanged within longer words, too."""
    return report.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right").replace("Left", "LEFT").replace("Right", "Left").replace("LEFT", "Right")


def two_dice_where(predictions, masks, perfect):
    """Both, with 1 for the pictures that `perfect` (N,) says."""
    tp, fp, fn = ((a & b).sum((1, 2)) for a, b in ((predictions, masks), (predictions, ~masks), (~predictions, masks)))
    below = 2 * tp + fp + fn
    return np.where(perfect, 1.0, 2 * tp / np.maximum(below, 1)).mean(), 2 * tp.sum() / below.sum()


def two_dice(predictions, masks, empty=1.0):
    tp = (predictions & masks).sum((1, 2))
    below = predictions.sum((1, 2)) + masks.sum((1, 2))
    with np.errstate(invalid="ignore"):
        each = 2 * tp / below if empty is None else np.where(below > 0, 2 * tp / np.maximum(below, 1), empty)
    return each.mean(), 2 * tp.sum() / below.sum()


def bracketed(ids, length):
    tokens = [49406, *ids[: length - 2], 49407]
    return tokens + [0] * (length - len(tokens))


def causal(length):
    return torch.full((length, length), float("-inf")).triu(1)


def tau(encoder, tokens, mask=True, norm=True, pool="eot"):
    x = encoder.token_embedding(tokens) + encoder.positional_embedding[: tokens.shape[1]]
    x = encoder.transformer(x, attn_mask=causal(tokens.shape[1]) if mask else None)
    x = encoder.ln_final(x) if norm else x
    x = {"eot": x[torch.arange(len(x)), tokens.argmax(1)], "last": x[:, -1], "mean": x.mean(1)}[pool]
    return x @ encoder.text_projection


RIGHT = {
    "n00.threshold": lambda p, t: p >= t,
    "n00.attention": lambda masks, lesion: (np.mean(masks, 0)[lesion].mean(), np.mean(masks, 0)[~lesion].mean()),
    "n00.sentence": "One infected area in the right lung.",
    "n01.mirror": lambda i, m, r: (i[:, ::-1], m[:, ::-1], reports.swap_sides(r)),
    "n01.iou": lambda d: d / (2 - d),
    "n01.leaks": leaks,
    "n01.two_dice": two_dice,
    "n02.shapes": lambda h, w, c: [(4 * c * 2 ** (i - 1), h // 2 ** (i + 1), w // 2 ** (i + 1)) for i in (2, 3, 4)],
    "n02.tokens": bracketed,
    "n02.causal_mask": causal,
    "n02.tau": tau,
}
WRONG = [
    ("n00.threshold", lambda p, t: p > t, "equals the threshold belongs"),
    ("n00.threshold", lambda p, t: (p >= t) * 255, "True and False"),
    ("n00.attention", lambda masks, lesion: (np.mean(masks, 0)[~lesion].mean(), np.mean(masks, 0)[lesion].mean()), "exchanged"),
    ("n00.attention", lambda masks, lesion: np.mean(masks, 0)[lesion].mean(), "two numbers"),
    ("n00.sentence", "", "empty"),
    ("n00.sentence", "Unilateral pulmonary infection, one infected area, upper right lung.", "hardly anything"),
    ("n00.sentence", "Infection of the left lung.", "names the left half"),
    ("n00.sentence", "Bilateral pulmonary infection, all left lung and all right lung.", "of the mask lie in the right half"),
    ("n01.mirror", lambda i, m, r: (i[:, ::-1], m[:, ::-1], r), "names the wrong half"),
    ("n01.mirror", lambda i, m, r: (i[:, ::-1], m, reports.swap_sides(r)), "the mask is not mirrored"),
    ("n01.mirror", lambda i, m, r: (i[::-1], m[::-1], reports.swap_sides(r)), "upside down"),
    ("n01.mirror", lambda i, m, r: (i[:, ::-1], m[:, ::-1], r.replace("left", "right").replace("right", "left")), "names the wrong half|should become"),
    ("n01.mirror", lambda i, m, r: (i[:, ::-1], m[:, ::-1], exchanged_anywhere(r)), "upright"),
    ("n01.iou", lambda d: d / 2, "the IoU that belongs"),
    ("n01.iou", lambda d: 1 / (1 + (2 - 2 * d) / d), "divide by zero"),
    ("n01.two_dice", lambda p, m: two_dice_where(p, m, ~m.any((1, 2))), "per-image mean"),
    ("n01.two_dice", lambda p, m: two_dice_where(p, m, ~p.any((1, 2))), "per-image mean"),
    ("n01.two_dice", lambda p, m: two_dice_where(p, m, ~(p & m).any((1, 2))), "per-image mean"),
    ("n01.leaks", lambda s: leaks(s, r"sub-(S[0-9A-Za-z]+)"), "SC3"),
    ("n01.leaks", lambda s: {m[1] for names in s.values() for m in map(re.compile(r"(?:mask_)?sub-(S[0-9A-Za-z]+)").match, names) if m
                             and sum(m[1] in n for names in s.values() for n in names) > 1}, "SB2 is in one split only"),
    ("n01.leaks", lambda s: leaks(s, names=True), "says nothing of the patient|SC3|expected"),
    ("n01.two_dice", lambda p, m: two_dice(p, m, empty=0.0), "scores 1, not 0"),
    ("n01.two_dice", lambda p, m: two_dice(p, m, empty=None), "not a number"),
    ("n01.two_dice", lambda p, m: two_dice(p, m)[::-1], "the per-image mean"),
    ("n02.shapes", lambda h, w, c: [(4 * c * 2 ** (i - 1), w // 2 ** (i + 1), h // 2 ** (i + 1)) for i in (2, 3, 4)], "picture is"),
    ("n02.shapes", lambda h, w, c: [(c * 2 ** (i - 1), h // 2 ** (i + 1), w // 2 ** (i + 1)) for i in (2, 3, 4)], "channels"),
    ("n02.tokens", lambda ids, n: ([49406, *ids, 49407] + [0] * n)[:n], "EOT is missing"),
    ("n02.tokens", lambda ids, n: [49406, *ids[: n - 2], 49407], "should always be"),
    ("n02.causal_mask", lambda n: causal(n).T, "turned round"),
    ("n02.causal_mask", lambda n: torch.full((n, n), float("-inf")) * torch.ones(n, n).triu(1), "not a number"),
    ("n02.causal_mask", lambda n: torch.ones(n, n).triu(1).bool(), "True and False"),
    ("n02.causal_mask", lambda n: torch.full((n, n), float("-inf")).triu(0), "may see itself|not a number|turned round"),
    ("n02.tau", lambda e, t: tau(e, t, mask=False), "causal mask is missing"),
    ("n02.tau", lambda e, t: tau(e, t, norm=False), "ln_final"),
    ("n02.tau", lambda e, t: tau(e, t, pool="last"), "padding"),
    ("n02.tau", lambda e, t: tau(e, t, pool="mean"), "not a mean"),
    ("n02.tau", lambda e, t: tau(e, t)[0], "shape"),
]


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_a_right_answer_passes(name, capsys):
    exercises.check(name, RIGHT[name])
    assert capsys.readouterr().out.startswith("✓ ")


@pytest.mark.parametrize("name, answer, message", WRONG, ids=[f"{name}-{n}" for n, (name, _, _) in enumerate(WRONG)])
def test_a_typical_mistake_hears_what_it_is(name, answer, message):
    with pytest.raises(exercises.NotYet, match=message):
        exercises.check(name, answer)


def test_every_exercise_of_these_notebooks_is_tried():
    asked = {name for name in exercises.everything() if name[:3] in ("n00", "n01", "n02")}
    assert asked == set(RIGHT) == {name for name, _, _ in WRONG}


def test_the_package_s_own_functions_pass():
    exercises.check("n02.tau", lambda encoder, tokens: encoder(tokens))
