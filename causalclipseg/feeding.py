"""From data folders to the batches of a training: the same ones in the same order, wherever and whenever it goes on."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader

from . import __version__
from .config import ModelConfig, TrainingConfig
from .data import DataError, ReferringDataset, Sample, TrainTransform, data_digest, find_samples, split_rule, stack


@dataclass
class Folder:
    """One data folder of a run."""

    name: str
    rule: str  #: how train and val are told apart
    train: list[Sample]  #: what is trained on (`train_splits`, without `leave_out`)
    val: list[Sample]
    counts: dict[str, int]  #: pictures of "train" and "val", before anything was left out


def find_data(data: list[str], config: TrainingConfig, limit: int | None = None) -> tuple[list[Folder], dict]:
    """The samples of a run, without opening a picture, and what its folder says of them.

    Args:
        data: folders in any of the layouts. limit: only the first pictures of each split.
    Raises:
        DataError: a folder without training or validation pictures.
    """
    folders, samples, digests, names, sources = [], [], [], set(), set()
    for number, root in enumerate(data):
        parts = {split: find_samples(root, split, rule=config.split_rule) for split in ("train", "val")}
        sources |= {s.source for part in parts.values() for s in part}
        parts = {split: part[:limit] for split, part in parts.items()}
        if not parts["train"] or not parts["val"]:
            raise DataError(f"{root} has {len(parts['train'])} training and {len(parts['val'])} validation pictures; both are needed.")
        chosen = [s for split in config.train_splits for s in parts[split] if s.source not in config.leave_out]
        if not chosen:
            raise DataError(f"leave_out={list(config.leave_out)} leaves no training picture of {root}.")
        name = Path(root).resolve().name or str(number)
        name = name if name not in names else f"{name}-{number}"
        names.add(name)
        folders.append(Folder(name, split_rule(root, config.split_rule), chosen, parts["val"], {s: len(p) for s, p in parts.items()}))
        samples += parts["train"] + parts["val"]
        digests.append(data_digest(parts["train"] + parts["val"]))
    if unknown := sorted(set(config.leave_out) - sources):
        raise DataError(f"leave_out: no picture has the source {', '.join(unknown)}; there are {', '.join(sorted(sources))}.")
    description = {
        "data": [{"name": f.name, "split_rule": f.rule, **f.counts, "digest": digest} for f, digest in zip(folders, digests)],
        "data_digest": data_digest(samples), "limit": limit,
        "device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip
    return folders, description


def training_sets(folders: list[Folder], model_config: ModelConfig, config: TrainingConfig) -> list[ReferringDataset]:
    """Decoded and augmented: one data set a folder."""
    transform = TrainTransform(
        model_config.image_size, flip=config.flip, refer=config.refer, healthy=config.healthy, restate=config.restate,
        paraphrase=config.paraphrase, generic=config.generic, none=config.no_text, edit=config.edit, tones=config.tones,
        rotate=config.rotate, scale=config.scale, shift=config.shift, join=config.join, exposure=config.exposure, noise=config.noise, blur=config.blur,
    )  # fmt: skip
    return [
        ReferringDataset(folder.train, transform, size=model_config.image_size, seed=config.seed * 1000 + number)
        for number, folder in enumerate(folders)
    ]


def validation_sets(folders: list[Folder], model_config: ModelConfig) -> dict[str, ReferringDataset]:
    """Decoded, as they are: name of the folder -> data set."""
    return {folder.name: ReferringDataset(folder.val, size=model_config.image_size) for folder in folders}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    names = ("torch", "torchvision", "open_clip_torch", "numpy", "accelerate")
    return {"causalclipseg": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}


class Feed:
    """The batches of one process. Their order and augmentation depend on seed, epoch and place alone.

    Workers do what is done picture by picture; what changes every pixel is done by `data.finish`, for a whole batch on
    the device it is for: on a GPU inside the step, and not on the cores that feed it.

    Every batch of `batch_size` is dealt out to the processes in turn, so that all of them together see the batches
    that one process would see. An epoch's last batch is filled up from its start: all are of one size.

    Args:
        data_sets: see `training_sets`. process, processes: which one this is, and of how many.
    """

    def __init__(self, data_sets: list[ReferringDataset], config: TrainingConfig, process: int = 0, processes: int = 1):
        self.data_sets, self.config, self.process, self.processes = data_sets, config, process, processes
        self.joined = ConcatDataset(data_sets)
        self.steps = math.ceil(len(self.joined) / config.batch_size)  #: batches an epoch
        self.part = config.batch_size // processes // config.accumulate  #: pictures of one pass
        self._order: list[int] = []  # what the loader takes next; its workers live through all epochs
        self._loader, self._size = None, 0

    def epoch(self, epoch: int, size: int, start: int = 0) -> Iterator[list[dict]]:
        """The batches of an epoch from step `start` on, each as its `accumulate` parts, at `size` pixels; for `data.finish`."""
        if self._loader is None or size != self._size:
            self._size = size
            for data_set in self.data_sets:
                data_set.transform.size = size  # workers hold a copy, so they start anew
            workers = self.config.workers
            self._loader = DataLoader(
                self.joined, batch_size=self.part, sampler=self._order, collate_fn=stack, num_workers=workers,
                persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(), prefetch_factor=4 if workers else None,
            )  # fmt: skip
        for data_set in self.data_sets:
            data_set.set_epoch(epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.joined))
        order = np.resize(order, self.steps * self.config.batch_size)[start * self.config.batch_size :]
        self._order[:] = order[self.process :: self.processes].tolist()
        parts = iter(self._loader)
        for _ in range(start, self.steps):
            yield [next(parts) for _ in range(self.config.accumulate)]
