"""Test-time augmentation: the mean answer to several views of one picture, and of several networks; and the one way to ask for it.

    p_k(i, t) = 1/6 sum over s in {S - 32, S, S + 32} of [ f_k,s(i, t) + flip f_k,s(flip i, swap t) ]

f_k,s is network k on the picture resized to s x s, flip mirrors left and right, swap exchanges the two words in the
sentence. Six times the work for each network, nothing is trained. `together` makes one answer of p_1, ..., p_K;
`with_silent` asks one more network where there is no sentence.
"""

from __future__ import annotations

import torch

from . import doubt
from .doubt import mirrored
from .evaluation import Predictor, fit, networks_of, predictor, resize_probability
from .reports import SIDES, part_slices

STRIDE = 32  #: of the encoder's last stage: picture sizes are multiples of it


def averaged(predict: Predictor) -> Predictor:
    """The predictor that answers with the mean over six views.

    Args:
        predict: f(images (B, 3, S, S) in [0, 1], reports) -> probability (B, 1, S, S), for any multiple S of 32, e.g.
            `evaluation.predictor(model)`.
    Returns:
        a callable of the same kind; its images are of one size S, at least 64, else it raises ValueError.
    """

    def mean(images: torch.Tensor, reports: list[str]) -> torch.Tensor:
        size = images.shape[-1]
        if size < 2 * STRIDE:
            raise ValueError(f"Six views need pictures of at least {2 * STRIDE} pixels, not {size}.")
        total = 0
        for edge in (size - STRIDE, size, size + STRIDE):
            view = fit(images, edge)
            for answer in (predict(view, reports), mirrored(predict, view, reports)):
                total = total + resize_probability(answer, (size, size))
        return total / 6

    return mean


def together(answers: list[torch.Tensor]) -> torch.Tensor:
    """One answer of several networks: their mean, but in a half where the first finds nothing its answer alone.

        p = 1/K sum_k p_k  on a half of the picture, left or right, where max p_1 >= 1/2;    p = p_1  on any other

    The first network finds nothing in a half where it stays below 0.5, whatever threshold the answer is read at later. Averaging
    makes outlines better. What a sentence refers to is the first network's decision, since in the shipped file it alone was
    trained on sentences that the picture contradicts (`refer`, `restate`, `healthy` of `TrainingConfig`).

    Args:
        answers: p_1, ..., p_K, each (B, 1, H, W) in [0, 1].
    Returns:
        (B, 1, H, W) in [0, 1].
    """
    first, found = answers[0], sum(answers) / len(answers)
    for side in SIDES:
        half = (..., *part_slices(*first.shape[-2:], side))
        empty = first[half].amax((-2, -1), keepdim=True) < 0.5
        found[half] = torch.where(empty, first[half], found[half])
    return found


def with_silent(spoken: Predictor, silent: Predictor) -> Predictor:
    """The predictor that also asks a network which knows no sentences, where there is none.

        p(i, t) = spoken(i, t)   for a sentence t;     p(i, "") = 1/2 [ spoken(i, "") + silent(i, "") ]
    """

    def answer(images: torch.Tensor, reports: list[str]) -> torch.Tensor:
        found, without = spoken(images, reports), [k for k, report in enumerate(reports) if not report.strip()]
        if without:
            found[without] = (found[without] + silent(images[without], [""] * len(without))) / 2
        return found

    return answer


def answering(model, average_views: bool = False, check_side: bool = False) -> Predictor:
    """A model's predictor with what was asked for.

    Args:
        model: a `CausalCLIPSeg`, or a network it is compared with.
        average_views: six views (`averaged`) of the network and its companions, `together`; where there is no sentence, the mean
            of that and of six views of the network for pictures without one, if the file has such a network (`ModelConfig.silent`).
        check_side: the side that a sentence names is checked (`doubt.believed`), on the plain view of the same networks.
    """
    predict = answer = predictor(model, companions=average_views)
    if average_views:
        each = [averaged(predictor(network)) for network in networks_of(model)]
        answer = lambda images, reports: together([f(images, reports) for f in each])
        if getattr(model, "silent", None) is not None:
            answer = with_silent(answer, averaged(predictor(model.silent)))
    if not check_side:
        return answer
    return lambda images, reports: answer(images, doubt.believed(predict, images, reports))
