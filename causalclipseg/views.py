"""Test-time augmentation: the mean answer to several views of one picture; and the one way to ask for it.

    p(i, t) = 1/6 sum over s in {S - 32, S, S + 32} of [ f_s(i, t) + flip f_s(flip i, swap t) ]

f_s is the model on the picture resized to s x s, flip mirrors left and right, swap exchanges the two words in the
sentence. Six times the work, nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import doubt
from .doubt import mirrored
from .evaluation import fit, predictor, resize_probability

STRIDE = 32  #: of the encoder's last stage: picture sizes are multiples of it


def averaged(predict: Callable[[torch.Tensor, list[str]], torch.Tensor]) -> Callable[[torch.Tensor, list[str]], torch.Tensor]:
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


def answering(
    model, average_views: bool = False, check_side: bool = False
) -> Callable[[torch.Tensor, list[str]], torch.Tensor]:
    """A model's predictor with what was asked for.

    Args:
        model: a `CausalCLIPSeg`, or a network it is compared with.
        average_views: six views (`averaged`), each the mean of the network and its companions.
        check_side: the side that a sentence names is checked (`doubt.believed`), on the plain view of the same networks.
    """
    predict = predictor(model, companions=average_views)
    answer = averaged(predict) if average_views else predict
    if not check_side:
        return answer
    return lambda images, reports: answer(images, doubt.believed(predict, images, reports))
