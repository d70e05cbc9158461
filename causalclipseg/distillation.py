"""Distillation: trained models' answers to the training pictures, to be mixed into their masks.

    q(i, t) = mean over f of 1/2 [ f(i, t) + flip f(flip i, swap t) ]

f is a teacher on the unedited picture with its own sentence, flip mirrors left and right, swap exchanges the two words in the
sentence. The student sees the picture edited, and q moved and cut as the mask is. `objectives.py` has the loss.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from .baselines import load_model
from .data import ReferringDataset
from .evaluation import predictor
from .views import mirrored

BATCH = 16


def teachers(teacher: str) -> list[str]:
    """The folders and hub ids that a `teacher` setting names; a folder whose name holds a comma is one. Empty: none."""
    if not teacher:
        return []
    return [teacher] if Path(teacher).exists() else [name.strip() for name in teacher.split(",")]


def teach(data_sets: list[ReferringDataset], teacher: str, accelerator: Accelerator) -> None:
    """Put q into the `answers` of each data set, rounded to 1/255.

    Args:
        data_sets: with a fixed `size`, a multiple of 32; their transform is not used.
        teacher: a folder or a hub id, or several with a comma between two.
        accelerator: the teachers answer on its device, in bf16 where its precision is bf16, else in fp32; its processes share the pictures.
    Raises:
        ValueError: a teacher that cannot be loaded.
    """
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    models = [load_model(name).to(device, memory_format=torch.channels_last) for name in teachers(teacher)]
    predictors = [predictor(model, "bf16" if accelerator.mixed_precision == "bf16" else "no") for model in models]
    for data_set in data_sets:
        answers = torch.zeros(len(data_set), data_set.size, data_set.size, dtype=torch.uint8)
        for start in range(rank * BATCH, len(data_set), processes * BATCH):
            rows = range(start, min(start + BATCH, len(data_set)))
            grey = torch.from_numpy(np.stack([data_set.arrays(i)[0] for i in rows]))[:, None].to(device).float().div(255)
            images = grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            sentences = [data_set.samples[i].report for i in rows]
            q = sum((f(images, sentences) + mirrored(f, images, sentences)) / 2 for f in predictors) / len(predictors)
            answers[start : start + len(q)] = (255 * q[:, 0]).round().byte().cpu()
        data_set.answers = accelerator.reduce(answers.to(device)).cpu().numpy()  # the others' rows are zero, so the sum joins them
