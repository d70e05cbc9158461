"""Training: one loop on accelerate for CPU and GPU, one process or several, resumed at the last epoch."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader, Subset
from tqdm import tqdm

from .baselines import build_model, load_model
from .config import ModelConfig, TrainingConfig, load_json, save_json, write_text, written_beside
from .data import DataError, ReferringDataset, TrainTransform, collate, data_digest, find_samples, split_rule
from .evaluation import predictor, score
from .metrics import Scores
from .model import Segmenter
from .objectives import OBJECTIVES, objective


class TrainingError(ValueError):
    """A run that cannot start or go on; the message says what to do."""


def train(
    data: list[str], out: str | Path, model_config: ModelConfig, config: TrainingConfig, *, resume: bool = False,
    limit: int | None = None, quiet: bool = False, torchscript: bool = False,
) -> Path:  # fmt: skip
    """Train a model and keep the weights that validate best.

    Args:
        data: folders in any of the three layouts; their training splits are joined, and so are their
            validation splits.
        out: the run's folder: `config.json`, `model.safetensors` (best), `training.json`, `metrics.jsonl` (one
            line an epoch), TensorBoard events, `state/` for resuming.
        resume: go on from `state/`; the curve continues as if the run had not been stopped.
        limit: use only the first pictures of each split of each folder (for trials).
    Returns:
        `out`.
    Raises:
        TrainingError, DataError, ValueError: with one sentence on what to change.
    """
    out = Path(out)
    state_file = out / "state" / "last.pt"
    if state_file.exists() and not resume:
        raise TrainingError(f"{out} already holds a run; add --resume to go on with it, or choose another folder.")
    if config.objective not in OBJECTIVES:
        raise TrainingError(f'There is no objective "{config.objective}"; choose one of {", ".join(OBJECTIVES)}.')
    if config.objective != "none" and not model_config.intervention:
        raise TrainingError(f'The objective "{config.objective}" needs the intervention; use objective=none without it.')
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    data_sets, validation, description = _load_data(data, model_config, config, limit)

    model = build_model(model_config, weights=config.weights, torchscript=torchscript, sha256=config.weights_sha256)
    if config.start and not resume:
        earlier = load_model(config.start)
        if earlier.config != model_config:
            raise TrainingError(f"{config.start} holds a model of other settings; start from one of the same preset.")
        model.load_state_dict(earlier.state_dict())
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)
    average = AveragedModel(model, multi_avg_fn=_moving_average(config.ema), use_buffers=True) if config.ema else None
    per_process = config.batch_size // accelerator.num_processes
    if per_process < 2:
        raise TrainingError(f"A batch of {config.batch_size} is too small for {accelerator.num_processes} processes; raise batch_size.")
    steps = math.ceil(sum(map(len, data_sets)) / config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps * config.epochs, config.warmup))
    prepared = accelerator.prepare(optimizer)
    main = accelerator.is_main_process

    start, best, best_epoch, seconds = 0, -1.0, 0, 0.0
    if resume:
        state = _read_state(state_file, description, config)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if average is not None:
            average.load_state_dict(state["average"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        start, best, best_epoch, seconds = state["epoch"], state["best"], state["best_epoch"], state["seconds"]
        torch.set_rng_state(state["rng"])
        if main:
            _cut_log(out / "metrics.jsonl", start)
    else:
        if main:
            save_json(model_config, out / "config.json")
            description["processes"] = accelerator.num_processes
            write_text(out / "training.json", json.dumps({**dataclasses.asdict(config), **description}, indent=2) + "\n")
            (out / "metrics.jsonl").unlink(missing_ok=True)

    events = _events(out) if main else None
    for epoch in range(start, config.epochs):
        if epoch - best_epoch >= config.patience:
            break
        began = time.monotonic()
        size = _size_at(epoch / config.epochs, config, model_config)
        batches = _batches(data_sets, config, epoch, size, accelerator.process_index, accelerator.num_processes)
        hidden = True if quiet or not main else None  # None: shown on a terminal only
        bar = tqdm(batches, total=steps, desc=f"epoch {epoch + 1}/{config.epochs}", disable=hidden, leave=False)
        sums, seen, seen_s = np.zeros(3), 0, 0
        model.train()
        for number, batch in enumerate(bar):
            images = batch["images"].to(accelerator.device, memory_format=torch.channels_last)
            masks = batch["masks"].to(accelerator.device)
            tokens, _ = model.tokenize(batch["reports"])
            name = config.objective if number % config.confounder_every == 0 else "none"
            with accelerator.autocast():
                output = model(
                    images, tokens, confounder=name != "none", reversal=config.lam if name == "minimax" else None
                )
            loss = objective(
                name, output.logits, output.confounder_logits, masks,
                lam=config.lam, cap=config.cap, dice_weight=config.dice_weight,
            )  # fmt: skip
            if not torch.isfinite(loss.total):
                raise TrainingError(
                    f"The loss became {loss.total.item()} in epoch {epoch + 1} (L_c {loss.causal.item():.3g}, "
                    f"L_s {loss.confounder.item():.3g}); lower the learning rate, or choose objective=bounded."
                )
            accelerator.backward(loss.total)
            _average_gradients(model, accelerator)
            if config.clip_grad:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            prepared.step()
            prepared.zero_grad()
            scheduler.step()
            if average is not None:
                average.update_parameters(model)
            sums += [loss.total.item() * len(images), loss.causal.item() * len(images), loss.confounder.item() * len(images)]
            seen += len(images)
            seen_s += len(images) if name != "none" else 0
            total, causal, confounder = sums / (seen, seen, max(seen_s, 1))
            bar.set_postfix_str(f"loss {total:.3f} L_c {causal:.3f} L_s {confounder:.3f} lr {scheduler.get_last_lr()[0]:.1e}")
        trained = time.monotonic() - began
        seen, seen_s, *sums = accelerator.reduce(torch.tensor([seen, seen_s, *sums], dtype=torch.float64)).tolist()
        seen, (total, causal, confounder) = int(seen), np.array(sums) / (seen, seen, max(seen_s, 1))
        line = {
            "epoch": epoch + 1, "loss": total, "loss_causal": causal, "loss_confounder": confounder,
            "lr": scheduler.get_last_lr()[0], "size": size, "images": seen, "images_per_second": seen / trained,
        }  # fmt: skip
        kept = average.module if average is not None else model
        last = epoch + 1 == config.epochs
        if (epoch + 1) % config.evaluate_every == 0 or last:
            scores = _validate(kept, validation, model_config, config, accelerator)
            line |= {"val_dice": scores["all"], **{f"val_dice/{name}": s for name, s in scores.items() if name != "all"}}
            if scores["all"] > best:
                best, best_epoch = scores["all"], epoch + 1
                if main:
                    kept.save_pretrained(out)
        seconds += time.monotonic() - began
        line["seconds"] = seconds
        if main:
            with open(out / "metrics.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            for name, value in line.items():
                if events is not None and isinstance(value, float):
                    events.add_scalar(name, value, epoch + 1)
            if not quiet:
                tqdm.write(_summary(line, config))
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
            "average": average.state_dict() if average is not None else {}, "epoch": epoch + 1, "best": best,
            "best_epoch": best_epoch, "seconds": seconds, "rng": torch.get_rng_state(), "digest": description["data_digest"],
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
            "epochs": config.epochs,
        }  # fmt: skip
        if main:
            _write_state(state, state_file)
    if events is not None:
        events.close()
    return out


def _load_data(data: list[str], model_config: ModelConfig, config: TrainingConfig, limit: int | None):
    """Training sets with augmentation, validation sets by name, and what a run's folder says of them."""
    transform = TrainTransform(
        model_config.image_size, flip=config.flip, refer=config.refer, paraphrase=config.paraphrase,
        generic=config.generic, none=config.no_text, edit=config.edit, tones=config.tones,
        rotate=config.rotate, scale=config.scale, shift=config.shift,
    )  # fmt: skip
    training, validation, folders, samples = [], {}, [], []
    for number, root in enumerate(data):
        parts = {split: find_samples(root, split)[:limit] for split in ("train", "val")}
        if not parts["train"] or not parts["val"]:
            raise DataError(f"{root} has {len(parts['train'])} training and {len(parts['val'])} validation pictures; both are needed.")
        chosen = [s for split in config.train_splits for s in parts[split] if s.source not in config.leave_out]
        if not chosen:
            raise DataError(f"leave_out={list(config.leave_out)} leaves no training picture of {root}.")
        training.append(
            ReferringDataset(chosen, transform, size=model_config.image_size, seed=config.seed * 1000 + number)
        )
        name = Path(root).name or str(number)
        validation[name if name not in validation else f"{name}-{number}"] = ReferringDataset(
            parts["val"], size=model_config.image_size
        )
        samples += parts["train"] + parts["val"]
        folders.append({"name": name, "split_rule": split_rule(root), "train": len(parts["train"]), "val": len(parts["val"])})
    description = {
        "data": folders, "data_digest": data_digest(samples), "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip
    return training, validation, description


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    from importlib.metadata import version

    from . import __version__

    names = ("torch", "torchvision", "open_clip_torch", "numpy", "accelerate")
    return {"causalclipseg": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}


def _batches(data_sets, config: TrainingConfig, epoch: int, size: int, process: int, processes: int) -> Iterator[dict]:
    """This process's share of the batches of one epoch; order and augmentation depend on seed and epoch alone.

    Every batch of `batch_size` is dealt out to the processes in turn. The last batch is filled up from the
    epoch's start, so that all processes take the same number of steps.
    """
    for data_set in data_sets:
        data_set.set_epoch(epoch)
        data_set.transform.size = size
    joined = ConcatDataset(data_sets)
    order = np.random.default_rng([config.seed, epoch]).permutation(len(joined))
    order = np.resize(order, math.ceil(len(order) / config.batch_size) * config.batch_size)
    share = order[process::processes].tolist()
    return iter(
        DataLoader(
            joined, batch_size=config.batch_size // processes, sampler=share, collate_fn=collate, num_workers=config.workers
        )
    )


def _average_gradients(model: Segmenter, accelerator: Accelerator) -> None:
    """Mean of the gradients over the processes.

    By hand instead of by DistributedDataParallel, which expects every weight to get a gradient at each step;
    under `bounded` the confounder branch gets none while its loss is above the cap.
    """
    if accelerator.num_processes == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    flat = accelerator.reduce(flat, reduction="mean")
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)


def _size_at(progress: float, config: TrainingConfig, model_config: ModelConfig) -> int:
    """The picture size at a share of the epochs in [0, 1): small pictures first cost less."""
    for share, size in config.sizes:
        if progress < share:
            return min(size, model_config.image_size)
    return model_config.image_size


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    rise = max(1, int(warmup * steps))
    if step < rise:
        return (step + 1) / rise if warmup else 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def _optimizer(model: Segmenter, config: TrainingConfig) -> torch.optim.Optimizer:
    """Encoders at their own rate; no weight decay on vectors (norms, biases) and on embeddings."""
    groups = {}
    for name, parameter in model.named_parameters():
        encoder = name.startswith(("text_encoder", "vision_encoder"))
        decays = parameter.ndim > 1 and "embedding" not in name
        groups.setdefault((encoder, decays), []).append(parameter)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer](
        [
            {
                "params": parameters,
                "lr": config.lr * (config.encoder_lr_factor if encoder else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (encoder, decays), parameters in groups.items()
        ]
    )


def _moving_average(decay: float):
    """Exponential moving average whose decay rises to `decay`, so that random first weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged, current, count):
        d = min(decay, (1 + int(count)) / (10 + int(count)))
        for old, new in zip(averaged, current):
            old.lerp_(new, 1 - d) if old.is_floating_point() else old.copy_(new)

    return update


def _validate(model, validation: dict, model_config: ModelConfig, config: TrainingConfig, accelerator: Accelerator) -> dict:
    """Mean per-image Dice with the right sentence: over all pictures, and for each folder."""
    predict = predictor(model, config.precision if config.precision == "bf16" else "no")
    parts = {}
    for name, data in validation.items():
        share = Subset(data, range(accelerator.process_index, len(data), accelerator.num_processes))
        table = score(predict, share, model_config.image_size).table.tolist()
        parts[name] = Scores(np.array(gather_object(table)))
    everything = Scores(np.concatenate([part.table for part in parts.values()]))
    return {"all": float(everything.dice.mean()), **{name: float(part.dice.mean()) for name, part in parts.items()}}


def _write_state(state: dict, path: Path) -> None:
    try:
        with written_beside(path) as beside:
            torch.save(state, beside)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise TrainingError(f"{path} could not be written ({error}); the state of the epoch before is kept.") from error


def _read_state(path: Path, description: dict, config: TrainingConfig) -> dict:
    if not path.exists():
        raise TrainingError(f"{path} does not exist, so there is nothing to resume; leave --resume out to start.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["digest"] != description["data_digest"]:
        raise TrainingError("The data are not those this run was started with (names, sentences or files differ).")
    if state["epochs"] != config.epochs:
        raise TrainingError(f"This run was started for {state['epochs']} epochs, which shape its schedule; {config.epochs} were asked for.")
    return state


def load_run(out: str | Path) -> tuple[ModelConfig, TrainingConfig]:
    """The settings a run was started with, for resuming it."""
    out = Path(out)
    try:
        data = json.loads((out / "training.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{out} holds no run that could be resumed ({error}).") from None
    names = {f.name for f in dataclasses.fields(TrainingConfig)}
    return load_json(ModelConfig, out / "config.json"), TrainingConfig(**{k: v for k, v in data.items() if k in names})


def _cut_log(path: Path, epochs: int) -> None:
    """Drop lines of epochs after the state that is resumed (the process may have died between the two)."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["epoch"] <= epochs:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # the process died while it wrote this line
    write_text(path, "".join(line + "\n" for line in kept))


def _events(out: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the curves are in metrics.jsonl, too
        return None
    return SummaryWriter(out)


def _summary(line: dict, config: TrainingConfig) -> str:
    text = f"epoch {line['epoch']}/{config.epochs}  loss {line['loss']:.4f}  L_c {line['loss_causal']:.4f}  L_s {line['loss_confounder']:.4f}"
    if "val_dice" in line:
        text += f"  val Dice {line['val_dice']:.4f}"
    return text + f"  {line['images_per_second']:.1f} images/s  {line['seconds'] / 60:.1f} min"
