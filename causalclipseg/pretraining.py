"""Pre-trained encoders without a download: a small CLIP, trained to tell which sentence belongs to which X-ray.

    L = 1/2 [ ce(s v t^T, diag) + ce(s t v^T, diag) ]        (open_clip's ClipLoss)

v and t are the normalised features of B pictures and B sentences, s the learned scale. The sentences of this field
repeat (a few hundred different ones for thousands of pictures), and the same sentence twice in a batch would be its own wrong answer;
so a batch holds each sentence once. No mask is looked at; but the sentences were written from masks.

It makes the paper's switch "CLIP pre-trained" one that can be thrown without a network. It is not CLIP: the pictures
are those that segmentation trains on, so what it adds is another task, not other data.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch

from ._files import check_folder, write_text
from .baselines import best_device
from .config import ModelConfig
from .data import DataError, ReferringDataset, TrainTransform, collate, data_digest, find_samples
from .data import split_rule as in_words
from .encoders import build_clip, check_length, standardized, tokenize, two_sources
from .model import save_weights
from .pretrained import PRETRAINED_FILE
from .schedule import rate_at

ABOUT_FILE = "pretraining.json"


def pretrain(
    data: list[str], out: str | Path, config: ModelConfig, *, steps: int = 1000, batch_size: int = 64, lr: float = 1e-3, weight_decay: float = 0.1,
    warmup: float = 0.05, precision: str = "no", seed: int = 0, limit: int | None = None, split_rule: str = "published",
    progress: Callable | None = None,
) -> dict:  # fmt: skip
    """Train a CLIP of `config`'s shape on the training splits; write `clip.safetensors` and `pretraining.json`.

    `train --set weights=OUT` starts from it, and so does `benchmark table2 --weights OUT`.

    Args:
        data: folders in any of the layouts. out: a folder; one that already holds such a CLIP is refused.
        config: its `encoder`, `clip`, `context_length`, `image_size` and `standardize`; the rest is not read.
        steps, batch_size (largest; a batch holds each sentence once), lr (AdamW, warm-up, cosine): the training.
        precision: "no" or "bf16". limit: only the first pictures of each split.
        split_rule: how train and val are told apart (data/splits.py); a run that starts from the weights needs the same (`check_rule`).
        progress: wraps the iterable of steps.
    Returns:
        what `pretraining.json` holds: settings, data, the loss at a hundred places, and on the validation split the share
        of pictures whose own sentence is found among 32 different ones (chance: 1/32), before and after.
    """
    out = Path(out)
    if (out / PRETRAINED_FILE).exists():
        raise ValueError(f"{out} already holds pre-trained encoders; choose another folder.")
    if steps < 1 or batch_size < 2:
        raise ValueError(f"steps must be at least 1 and batch_size at least 2, not {steps} and {batch_size}.")
    if precision not in ("no", "bf16"):
        raise ValueError(f'precision must be "no" or "bf16", not "{precision}".')
    training, validation = ([s for root in data for s in find_samples(root, split, rule=split_rule)[:limit]] for split in ("train", "val"))
    if len({s.report for s in training}) < 2:
        raise DataError("Contrastive training needs at least two different sentences.")
    check_folder(out)
    torch.manual_seed(seed)
    device = best_device()
    clip = build_clip(config).to(device)
    check_length(clip, config.context_length)
    # No paraphrases: other words for what another sentence of the batch says would be a wrong answer, too.
    transform = TrainTransform(config.image_size, refer=0.0, generic=0.0, none=0.0, paraphrase=0.0)
    dataset = ReferringDataset(training, transform, size=config.image_size, seed=seed)
    held_out = ReferringDataset(validation, size=config.image_size) if validation else None
    decays = lambda p: p.ndim > 1  # noqa: E731
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in clip.parameters() if decays(p)], "weight_decay": weight_decay},
         {"params": [p for p in clip.parameters() if not decays(p)], "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps, warmup))
    contrast = open_clip.ClipLoss()
    before = matching(clip, held_out, config, seed)
    losses = []
    batches = _batches(dataset, batch_size, steps, seed)
    for batch in progress(batches, total=steps) if progress else batches:
        clip.train()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            pictures, sentences = _embedded(clip, batch, config)
        loss = contrast(pictures.float(), sentences.float(), clip.logit_scale.float().exp())
        if not torch.isfinite(loss):
            raise ValueError(f"The contrastive loss became {loss.item()} at step {len(losses) + 1}; lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))  # as CLIP does
        losses.append((loss.item(), len(batch["reports"])))
    every = max(1, len(losses) // 100)
    about = {
        "model": dataclasses.asdict(config), "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "precision": precision, "limit": limit, "split_rule": split_rule, "pictures": len(training), "sentences": len({s.report for s in training}),
        "pictures_seen": sum(n for _, n in losses), "normalised": "each by its own mean and spread" if config.standardize else "by CLIP's mean and spread",
        "data": [{"name": Path(root).resolve().name, "split_rule": in_words(root, split_rule)} for root in data], "data_digest": data_digest(training),
        "loss": [round(float(np.mean([v for v, _ in losses[k : k + every]])), 4) for k in range(0, len(losses), every)], "loss_every": every,
        "matching_before": before, "matching_after": matching(clip, held_out, config, seed),
        "note": "matching: share of validation pictures whose own sentence scores highest among 32 different ones (or fewer, see 'of').",
    }  # fmt: skip
    save_weights(out / PRETRAINED_FILE, {k: v.detach().cpu().contiguous() for k, v in clip.state_dict().items()})
    text = json.dumps(about, indent=2)
    write_text(out / ABOUT_FILE, text + "\n")
    return json.loads(text)


def check_rule(weights: str, split_rule: str) -> str:
    """See that pre-trained encoders don't know validation pictures of a run because they told train and val apart by another rule.

    Args:
        weights, split_rule: of a `TrainingConfig`. Only what `pretrain` wrote says anything; other weights pass.
    Returns:
        a warning where the folder is of a time when there was no choice, and the run's rule is another than "published"; else "".
    Raises:
        ValueError: the folder names another rule.
    """
    for source in filter(None, two_sources(weights)):
        folder = Path(source).parent if Path(source).name == PRETRAINED_FILE else Path(source)
        try:
            own = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8")).get("split_rule")
        except (OSError, ValueError, AttributeError):  # not of `pretrain`, or torn
            continue
        if own is None and split_rule != "published":
            return (
                f"{folder} does not say by which split_rule it was pre-trained, so it may know some of the validation pictures of "
                f"{split_rule}; pre-train anew to be sure."
            )
        if own not in (None, split_rule):
            raise ValueError(
                f"{folder} was pre-trained with split_rule={own}, so it knows some of the validation pictures of {split_rule}; "
                f"pre-train with --split-rule {split_rule}, or train with split_rule={own}."
            )
    return ""


def _batches(dataset: ReferringDataset, size: int, steps: int, seed: int) -> Iterator[dict]:
    """`steps` batches in which no sentence comes twice; the more frequent a sentence, the more often it is drawn."""
    places: dict[str, list[int]] = {}
    for i, sample in enumerate(dataset.samples):
        places.setdefault(sample.report, []).append(i)
    reports = list(places)
    share = np.array([len(places[r]) for r in reports]) / len(dataset)
    generator = np.random.default_rng([seed, 1])
    for step in range(steps):
        dataset.set_epoch(step)  # else a picture would be augmented in the same way each time
        chosen = generator.choice(len(reports), min(size, len(reports)), replace=False, p=share)
        items = [dataset[int(generator.choice(places[reports[k]]))] for k in chosen]
        # A mirrored picture's sentence changes sides, and may meet its double.
        yield collate(list({item["report"]: item for item in items}.values()))


@torch.inference_mode()
def matching(clip: open_clip.CLIP, dataset: ReferringDataset | None, config: ModelConfig, seed: int = 0, choices: int = 32) -> dict | None:
    """Share of pictures whose own sentence is the nearest of `choices` different ones: {"share", "chance", "of", "n"}.

    Pictures are taken in a random order that `seed` fixes, in groups whose sentences all differ; None without data.
    """
    if dataset is None:
        return None
    clip.eval()
    groups: list[dict[str, int]] = []
    for i in np.random.default_rng(seed).permutation(len(dataset)).tolist():
        report = dataset.samples[i].report
        home = next((g for g in groups if len(g) < choices and report not in g), None)
        if home is None:
            groups.append(home := {})
        home[report] = i
    largest = max(map(len, groups))
    right, n = 0, 0
    for group in (g for g in groups if len(g) == largest):
        batch = collate([dataset[i] for i in group.values()])
        pictures, sentences = _embedded(clip, batch, config)
        right += int(((pictures @ sentences.T).argmax(1).cpu() == torch.arange(largest)).sum())
        n += largest
    return {"share": right / n, "chance": 1 / largest, "of": largest, "n": n}


def _embedded(clip: torch.nn.Module, batch: dict, config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and sentences of a batch as unit vectors, (B, E) each."""
    device = clip.logit_scale.device
    tokens, _ = tokenize(batch["reports"], config.context_length, config.encoder)
    return clip.encode_image(_normalised(batch["images"].to(device), config), normalize=True), clip.encode_text(tokens.to(device), normalize=True)


def _normalised(images: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """As the network that starts from these weights will see them."""
    if config.standardize:
        return standardized(images)
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return (images - mean) / std
