"""The checks of notebooks 03, 08, 09 and 10 turn wrong answers down, with words that help."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causalclipseg import exercises, plots, segment
from causalclipseg.audit import auroc
from causalclipseg.exercises import n03, n10
from causalclipseg.metrics import Scores, bootstrap_interval, dice
from causalclipseg.scm import Graph, backdoor_adjustment

RIGHT_SETS = {"paper, I on Y": {"C"}, "ours, A on Y": {"W"}, "ours, L on I": {"A"}}


def frozen_mean(logits_of, frozen):
    return lambda pictures: logits_of(pictures)[:, 0, frozen].mean(1)


def deletion(score, features, steps, whole=round):
    keep = torch.ones(steps + 1, len(features))
    for row, share in zip(keep, np.linspace(0, 1, steps + 1)):
        row[features.argsort(descending=True)[: whole(share * len(features))]] = 0
    return score(keep)


def resampled(values, rounds, seed, lowest, above):
    rng = np.random.default_rng(seed)
    return tuple(np.quantile([values[rng.integers(lowest, above, len(values))].mean() for _ in range(rounds)], [0.025, 0.975]))


def paired(a, b, rounds, seed):
    return (a - b).mean(), *bootstrap_interval(a - b, rounds=rounds, seed=seed)


RIGHT = {
    "n03.sets": lambda: RIGHT_SETS,
    "n03.is_open": Graph.is_open,
    "n03.do": lambda data, a: backdoor_adjustment(data, {"A": a}, "Y", "W")[1],
    "n03.which_world": lambda box: "device" if box.do(400, A=0)["Y"].mean() < 0.34 else "ward",
    "n08.families": lambda table: (Scores(table).dice.mean(), Scores(table).pooled()["dice"]),
    "n08.empty_rule": lambda table: dice(*table.T),
    "n08.bootstrap": lambda values, rounds, seed: bootstrap_interval(values, rounds=rounds, seed=seed),
    "n08.paired": paired,
    "n09.target": frozen_mean,
    "n09.deletion": deletion,
    "n09.auroc": auroc,
}
WRONG = [
    ("n03.sets", lambda: RIGHT_SETS | {"ours, A on Y": {"T"}}, "is open"),
    ("n03.sets", lambda: RIGHT_SETS | {"ours, A on Y": {"I"}}, "descendant"),
    ("n03.sets", lambda: RIGHT_SETS | {"ours, A on Y": {"W", "L"}}, "smaller"),
    ("n03.sets", lambda: RIGHT_SETS | {"ours, A on Y": {"C"}}, "no variable"),
    ("n03.sets", lambda: {"paper, I on Y": {"C"}}, "no answer yet"),
    ("n03.is_open", lambda graph, path, given: not set(path[1:-1]) & given, "you say open, it is closed"),
    ("n03.is_open", lambda graph, path, given: None, "True or False"),
    ("n03.do", lambda data, a: data["Y"][data["A"] == a].mean(), "That is seeing"),
    ("n03.do", lambda data, a: 0.5, "you return 0.5000"),
    ("n03.which_world", lambda box: "ward" if np.mean(np.equal(*box.see(300).values())) > 0.82 else "device", "Seeing is the same"),
    ("n03.which_world", lambda box: "left", "ward"),
    ("n08.families", lambda table: (Scores(table).pooled()["dice"], Scores(table).dice.mean()), "other order"),
    ("n08.families", lambda table: Scores(table).dice.mean(), "two numbers"),
    ("n08.empty_rule", lambda table: 2 * table[:, 0] / (2 * table[:, 0] + table[:, 1] + table[:, 2]), "both empty"),
    ("n08.bootstrap", lambda values, rounds, seed: np.quantile(values, [0.025, 0.975]), "of the means"),
    ("n08.bootstrap", lambda values, rounds, seed: bootstrap_interval(values, rounds=rounds, level=0.5), "expected"),
    ("n08.paired", lambda a, b, rounds, seed: (
        (a - b).mean(), bootstrap_interval(a)[0] - b.mean() - 0.02, bootstrap_interval(a)[1] - b.mean() + 0.02), "different pictures"),
    ("n08.bootstrap", lambda values, rounds, seed: tuple(values.mean() + s * 1.96 * values.std() / len(values) ** 0.5 for s in (-1, 1)), "drawn by chance"),
    ("n08.bootstrap", lambda values, rounds, seed: tuple(values.mean() + s * (1.96 + seed / 100) * values.std() / len(values) ** 0.5 for s in (-1, 1)), "below the lowest"),
    ("n08.paired", lambda a, b, rounds, seed: tuple((a - b).mean() + s * 1.96 * (a - b).std() / len(a) ** 0.5 for s in (0, -1, 1)), "resample"),
    ("n08.paired", lambda a, b, rounds, seed: paired(b, a, rounds, seed), "mean of a - b"),
    ("n08.bootstrap", lambda values, rounds, seed: resampled(values, rounds, seed, 0, len(values) - 1), "never drawn"),
    ("n08.bootstrap", lambda values, rounds, seed: resampled(values, rounds, seed, 1, len(values)), "never drawn"),
    ("n08.paired", lambda a, b, rounds, seed: ((a - b).mean(), *resampled(a - b, rounds, seed, 0, len(a) - 1)), "never drawn"),
    ("n09.target", lambda logits_of, frozen: 1.0, "function"),
    ("n09.target", lambda logits_of, frozen: lambda x: logits_of(x)[:, 0, frozen].sum(1), "This is the sum"),
    ("n09.target", lambda logits_of, frozen: lambda x: logits_of(x).sigmoid()[:, 0, frozen].mean(1), "probabilities"),
    ("n09.target", lambda logits_of, frozen: lambda x: logits_of(x).mean((1, 2, 3)), "whole picture"),
    ("n09.target", lambda logits_of, frozen: lambda x: logits_of(x)[:, 0, frozen].mean(1).detach(), "gradient"),
    ("n09.target", lambda logits_of, frozen: lambda x: (logits_of(x) * (logits_of(x) > 0)).sum((1, 2, 3)) / (logits_of(x) > 0).sum((1, 2, 3)).clamp(min=1), "anew"),
    ("n09.deletion", lambda score, features, steps: deletion(score, -features, steps), "first step"),
    ("n09.deletion", lambda score, features, steps: deletion(score, features, steps).flip(0), "starts at"),
    ("n09.deletion", lambda score, features, steps: deletion(score, features.abs(), steps), "first step|should be"),
    ("n09.deletion", lambda score, features, steps: deletion(score, features, steps, int), "should be|too little"),
    ("n09.deletion", lambda score, features, steps: deletion(score, features, 10), "Return 8 values"),
    ("n09.auroc", lambda values, region: max(auroc(values, region), 1 - auroc(values, region)), "other way round"),
    ("n09.auroc", lambda values, region: 1 - auroc(values, region), "other way round"),
    ("n09.auroc", lambda values, region: float((values[region][:, None] > values[~region]).mean()), "count half"),
]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes(name, capsys):
    exercises.check(name, RIGHT[name])
    assert "✓" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(WRONG)])
def test_a_wrong_answer_is_told_what_is_wrong(name, answer, words):
    with pytest.raises(exercises.NotYet, match=words):
        exercises.check(name, answer)


def test_the_boxes_agree_in_what_can_be_seen_and_differ_under_do():
    ward, device = (n03._world(kind) for kind in n03.KINDS)
    for a in (0, 1):
        assert ward.worlds().probability(A=a, Y=1) == pytest.approx(device.worlds().probability(A=a, Y=1), abs=1e-12)
    assert ward.worlds(do={"A": 1}).probability(Y=1) == pytest.approx(0.5)
    assert device.worlds(do={"A": 1}).probability(Y=1) == pytest.approx(0.82)


def test_a_boxs_pictures_follow_its_story():
    boxes = {n03.Box(number)._kind: n03.Box(number) for number in range(8)}
    assert set(boxes) == set(n03.KINDS)
    for box in boxes.values():
        for row in box.pictures(3, A=1):
            half = row["outline"].shape[1] // 2
            assert row["A"] == 1 and row["image"].shape == (n03.SIZE, n03.SIZE) and row["outline"].any()
            assert row["Y"] == (row["outline"][:, half:].sum() > row["outline"][:, :half].sum())


def test_the_demo_is_asked_for_real(capsys):
    """The checks of notebook 10, with a right and a few wrong answers, on a page that this process serves."""
    from gradio_client import handle_file
    from PIL import Image

    def ask(client, picture, report, threshold=0.5):
        path, answer = client.predict(handle_file(picture), report, threshold, api_name="/segment")
        return np.asarray(Image.open(path)) > 127, answer["finding"]

    def submitted(client, picture, report):
        path, answer = client.submit(handle_file(picture), report, 0.5, api_name="/segment").result()
        return np.asarray(Image.open(path)) > 127, answer["finding"]

    exercises.check("n10.ask", ask)
    exercises.check("n10.ask", submitted)
    with pytest.raises(exercises.NotYet, match="lies elsewhere"):
        exercises.check("n10.ask", lambda *a: (ask(*a)[0][:, ::-1], ask(*a)[1]))
    assert "✓" in capsys.readouterr().out
    with pytest.raises(exercises.NotYet, match="covers"):
        exercises.check("n10.ask", lambda *a: (~ask(*a)[0], ask(*a)[1]))
    with pytest.raises(exercises.NotYet, match="make it bool"):
        exercises.check("n10.ask", lambda *a: (255 * ask(*a)[0], ask(*a)[1]))
    with pytest.raises(exercises.NotYet, match="was not asked"):
        exercises.check("n10.ask", lambda *a: (np.zeros((224, 224), bool), ""))
    with pytest.raises(exercises.NotYet, match="one area a threshold"):
        exercises.check("n10.sweep", lambda client, picture, report, thresholds: [0.1])


def test_a_page_of_ones_own_is_called_by_a_program():
    import gradio as gr

    def compare(image: str, first: str, second: str):
        return image, image, 1.0

    def page(model, name="compare"):
        return gr.Interface(compare, [gr.Image(type="filepath"), "text", "text"], [gr.Image(), gr.Image(), gr.Number()], api_name=name)

    with pytest.raises(exercises.NotYet, match="Dice of the two masks"):
        exercises.check("n10.page", page)
    def compared(score, swap=False, drawn=True):
        def answer(image, first, second):
            a, b = (segment(n10._model(), image, sentence) for sentence in (first, second))
            shown = [plots.overlay(x.image, x.mask if drawn else np.zeros_like(x.mask)) for x in (a, b)]
            return *(shown[::-1] if swap else shown), score(a.mask, b.mask)

        return gr.Interface(answer, [gr.Image(type="filepath"), "text", "text"], [gr.Image(format="png"), gr.Image(format="png"), gr.Number()], api_name="compare")

    dice = lambda a, b: float(2 * (a & b).sum() / (a.sum() + b.sum()))  # noqa: E731
    exercises.check("n10.page", lambda model: compared(dice))
    with pytest.raises(exercises.NotYet, match="Dice of the two masks"):
        exercises.check("n10.page", lambda model: compared(lambda a, b: float((a & b).sum() / (a | b).sum())))
    with pytest.raises(exercises.NotYet, match="The first picture should show"):
        exercises.check("n10.page", lambda model: compared(dice, swap=True))
    with pytest.raises(exercises.NotYet, match="does not show its mask"):
        exercises.check("n10.page", lambda model: compared(dice, drawn=False))
    with pytest.raises(exercises.NotYet, match="no endpoint /compare"):
        exercises.check("n10.page", lambda model: page(model, "other"))
    assert n10._model() is n10._model()
