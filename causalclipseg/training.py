"""Training: one loop on accelerate for a CPU, a GPU or several, under `accelerate launch`, `torchrun` or `notebook_launcher`.

What a run draws depends on its seed and on how far it is, never on what happened before: the order and the
augmentation of its pictures (`feeding.py`), its rates (`schedule.py`), and its random numbers, which are seeded anew at
each step. So its state (`checkpoints.py`) is the weights, the optimiser's moments, the scaler and a place.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Subset

from ._files import write_text
from .baselines import build_model, load_model
from .card import CARD, write_card
from .checkpoints import (
    SETTINGS, STATE, Progress, TrainingError, inherited, kept_settings, load_run, read_log, read_state, refuse_changes, refuse_other_data, save_state,
    tidy, writing,
)  # fmt: skip
from .config import ModelConfig, TrainingConfig, save_json
from .data import finish
from .distillation import teach, teachers
from .evaluation import not_held_out, predictor, score
from .feeding import Feed, find_data, training_sets, validation_sets, versions
from .growth import grown, grows
from .losses import batch_loss, picture_weights
from .metrics import Scores, counts
from .model import Segmenter
from .objectives import ADVERSARIAL, OBJECTIVES
from .pretraining import check_rule
from .recording import Recording
from .runs import RunLog, means
from .schedule import freeze, make_optimizer, normalisations, rate_at, set_rate, size_at, train_mode, update_average

__all__ = ["TrainingError", "load_run", "train", "versions"]
READ_EVERY = 8  # steps between two readings of the losses: each makes a GPU wait


def train(
    data: list[str], out: str | Path, model_config: ModelConfig, config: TrainingConfig, *, resume: bool = False,
    limit: int | None = None, quiet: bool = False, torchscript: bool = False,
) -> Path:  # fmt: skip
    """Train a model and keep the weights that validate best.

    Args:
        data: folders in any of the three layouts; their training splits are joined, and so are their
            validation splits.
        out: the run's folder: `config.json`, `model.safetensors` (best), `last/` (last), `training.json`,
            `metrics.jsonl` (one line an epoch), TensorBoard events, `samples/`, `state/` for resuming, and at the
            end `README.md`, a model card. Several machines need a folder that all of them can read.
        resume: go on from `state/`, with the same settings; the curve continues as if the run had not been stopped.
        limit: use only the first pictures of each split of each folder (for trials).
    Returns:
        `out`.
    Raises:
        TrainingError, DataError, ValueError: with one sentence on what to change.
    Warns:
        where the weights that it begins with, or its teachers, may know validation pictures (not where `quiet`).
    """
    out = Path(out)
    if (out / STATE).exists() and not resume:
        raise TrainingError(f"{out} already holds a run; add --resume to go on with it, or choose another folder.")
    fresh = not (out / STATE).exists()  # also where a run is resumed that was killed before its first state
    if fresh and (out / "model.safetensors").exists():
        anew = len(read_log(out)) <= 1 and "data_digest" in kept_settings(out)  # a run of an epoch at most may begin again
        if not (resume and anew):
            advice = "add --resume to train it anew, or " if anew else ""
            raise TrainingError(f"{out} holds a trained model and no state to go on from; {advice}choose another folder, and --set start={out} to begin with its weights.")
    if resume:
        refuse_changes(out, model_config, config)
    check_settings(model_config, config)
    accelerator = _accelerator(config)
    folders, description = find_data(data, config, limit)
    description |= {"device": accelerator.device.type, "processes": accelerator.num_processes, "torchscript": torchscript}
    if resume:
        refuse_other_data(out, description, begun=not fresh)
    main = accelerator.is_main_process
    if fresh:
        description |= _origins(config, say=main and not quiet)
    set_seed(config.seed)
    model = starting_model(model_config, config, start=fresh, torchscript=torchscript)
    freeze(model, config)
    weights = picture_weights([s for folder in folders for s in folder.train]) if config.objective == "adjusted" else None
    update = _Update(model, config, accelerator, weights)
    facts = {"digest": description["data_digest"], "epochs": config.epochs}
    progress = Progress() if fresh else read_state(out, update.parts, **facts)
    update.speed_up()
    if main:
        with writing(out, "nothing was trained yet"):
            tidy(out, progress.epoch)
            if fresh:
                save_json(model_config, out / "config.json")
                write_text(out / SETTINGS, json.dumps({**dataclasses.asdict(config), **description}, indent=2) + "\n")
    sets = training_sets(folders, model_config, config)
    if config.teacher:
        teach(sets, config.teacher, accelerator)
    feed = Feed(sets, config, accelerator.process_index, accelerator.num_processes)
    validation = validation_sets(folders, model_config)
    predict = predictor(update.kept, config.precision if config.precision == "bf16" else "no")

    log = RunLog(out, config, progress.epoch, main=main, quiet=quiet)
    clock = _Clock(config)
    while not _over(progress.epoch, progress.best_epoch, config):
        epoch = progress.epoch
        size, began = size_at(epoch / config.epochs, config, model_config), time.monotonic() - progress.epoch_seconds
        sums, pending = np.array(progress.sums or [0.0] * 6), []
        train_mode(model, config)
        log.begin(epoch, feed.steps, progress.step)
        for step, batches in enumerate(feed.epoch(epoch, size, progress.step), start=progress.step):
            place = epoch * feed.steps + step
            set_seed((config.seed * 1_000_003 + place * accelerator.num_processes + accelerator.process_index) % 2**32)
            rate = set_rate(update.optimizer, rate_at(place, feed.steps * config.epochs, config.warmup))
            skipped = config.objective in ADVERSARIAL and step % config.confounder_every
            pending.append(update(batches, "none" if skipped else config.objective))
            due = clock.due() and step + 1 < feed.steps
            if due or len(pending) == READ_EVERY or step + 1 == feed.steps:
                for row in torch.stack(pending).tolist():
                    sums += row
                _check_finite(sums, epoch)
                pending = []
            log.step(sums if not pending else None, rate)
            if due:
                clock = _Clock(config, clock.cost)
                if main:
                    progress.step, progress.sums, progress.epoch_seconds = step + 1, sums.tolist(), time.monotonic() - began
                    save_state(out, progress, update.parts, **facts)
        log.end()
        trained = time.monotonic() - began
        line = {
            "epoch": epoch + 1, **means(sums.tolist()), "lr": rate, "size": size, "images": feed.steps * config.batch_size,
            "images_per_second": feed.steps * config.batch_size / trained,
        }  # fmt: skip
        if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
            overall, by_folder = _validate(predict, validation, model_config, accelerator)
            line |= {"val_dice": overall, **{f"val_dice/{name}": dice for name, dice in by_folder.items()}}
            _keep_weights(update.kept, out, overall, epoch + 1, progress, main)
        last = _over(epoch + 1, progress.best_epoch, config)
        if config.samples_every and ((epoch + 1) % config.samples_every == 0 or last):
            log.samples(predict, validation, epoch + 1)
        line["seconds"] = progress.seconds + time.monotonic() - began
        log.line(line)
        progress = Progress(epoch + 1, best=progress.best, best_epoch=progress.best_epoch, seconds=line["seconds"])
        if main and (last or clock.worth_it()):
            before = time.monotonic()
            save_state(out, progress, update.parts, **facts)
            clock = _Clock(config, time.monotonic() - before)
    log.close()
    if main:
        with writing(out / CARD):
            write_card(out)
    accelerator.wait_for_everyone()  # none goes on to read what the first one is still writing
    return out


def _over(epoch: int, best_epoch: int, config: TrainingConfig) -> bool:
    """Whether a run ends after so many epochs. Patience is asked where an epoch was validated alone, so that the end is validated, too."""
    return epoch >= config.epochs or (epoch % config.evaluate_every == 0 and epoch - best_epoch >= config.patience)


def _origins(config: TrainingConfig, say: bool) -> dict:
    """{"inherited": ...} for `training.json`: what `start` and the teachers were trained on; {} where nothing says it.

    Args:
        say: warn where they, or pre-trained encoders, may know validation pictures of this run.
    Raises:
        ValueError: encoders that were pre-trained with another split rule.
    """
    doubts = [check_rule(config.weights, config.split_rule)]
    earlier = inherited([*([config.start] if config.start else []), *teachers(config.teacher)])
    if "val" not in config.train_splits:
        doubts.append(not_held_out({"split_rule": config.split_rule, "inherited": earlier}, "val", (), config.split_rule))
    for doubt in filter(None, doubts if say else []):
        warnings.warn(doubt, stacklevel=3)
    return {"inherited": earlier} if earlier else {}


def _keep_weights(kept, out: Path, dice: float, epoch: int, progress: Progress, main: bool) -> None:
    """Write the weights of an epoch that was validated, and beside them the best ones so far; every process remembers which."""
    better = dice > progress.best
    if better:
        progress.best, progress.best_epoch = dice, epoch
    if main and better:
        with writing(out / "model.safetensors"):
            kept.save_pretrained(out)
    if main:
        with writing(out / "last"):
            kept.save_pretrained(out / "last")


def check_settings(model_config: ModelConfig, config: TrainingConfig) -> None:
    """Refuse, in one sentence each, what cannot run together.

    Raises:
        TrainingError.
    """
    if config.objective not in OBJECTIVES:
        raise TrainingError(f'There is no objective "{config.objective}"; choose one of {", ".join(OBJECTIVES)}.')
    if model_config.further:
        raise TrainingError("Further networks of a file answer, and are not trained; train networks one by one and join them with `causalclipseg ensemble`.")
    if config.objective in ADVERSARIAL and not model_config.intervention:
        raise TrainingError(f'The objective "{config.objective}" needs the intervention; use objective=none without it.')
    if config.objective == "adjusted" and config.join:
        raise TrainingError("A picture joined of two patients has no one source to adjust for; set join=0.")
    if config.graphs and not torch.cuda.is_available():
        raise TrainingError("graphs=true needs a GPU.")
    if config.graphs and (config.compile or config.accumulate > 1 or config.objective in ("interventional", "bounded")):
        raise TrainingError("graphs=true records one pass a step as it is: leave compile out, set accumulate=1, and take another objective than interventional and bounded.")
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError("precision=fp16 needs a GPU; on a CPU choose bf16, or no for fp32.")
    if config.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainingError(f"{torch.cuda.get_device_name()} has no bf16; choose precision=fp16.")


def starting_model(model_config: ModelConfig, config: TrainingConfig, *, start: bool = True, torchscript: bool = False) -> Segmenter:
    """The network as a run begins with it.

    Args:
        start: fill it from `config.start` or `config.weights`; False where a state follows.
        torchscript: see `pretrained.load_weights`.
    """
    weights = config.weights if start else "none"
    model = build_model(model_config, weights=weights, torchscript=torchscript, sha256=config.weights_sha256)
    if config.start and start:
        earlier = load_model(config.start)
        if not grows(earlier.config, model_config):
            raise TrainingError(f"{config.start} holds a model of other settings; start from one of the same preset, or a smaller one (growth.py).")
        model.load_state_dict(grown(earlier.state_dict(), model.state_dict()))
    return model


def _accelerator(config: TrainingConfig) -> Accelerator:
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != config.deterministic:  # of an earlier run in one session; setting it imports a compiler
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    AcceleratorState._reset_state()  # it may have another precision, too
    started, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if started > gpus > 0 and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise TrainingError(f"{started} processes were started beside {gpus} GPU(s), and each needs one of its own: start {gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= .")
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    if accelerator.device.type != "cuda" and (config.graphs or config.precision == "fp16"):
        raise TrainingError("graphs=true and precision=fp16 need a GPU, and accelerate was told to leave it alone.")
    parts = accelerator.num_processes * config.accumulate
    least = 1 if config.freeze_statistics else 2  # a normalisation over one picture learns nothing
    if config.batch_size % parts or config.batch_size // parts < least:
        of = f"{accelerator.num_processes} processes" + (f" of {config.accumulate} parts" if config.accumulate > 1 else "")
        raise TrainingError(f"A batch of {config.batch_size} cannot be dealt out to {of}: raise batch_size to a multiple of {parts}, at least {least * parts}.")
    return accelerator


def _compile(model: nn.Module, backend: str = "inductor") -> None:
    """In place, part by part: the text encoder's number of sentences changes at every step, so it stays as it is."""
    for name in ("vision_encoder", "causal", "confounder"):
        if hasattr(model, name):
            getattr(model, name).compile(backend=backend)


class _Update:
    """One step of a run: the losses of its pictures, their gradients, the optimiser, and the average of the weights.

    Args:
        model: put onto the accelerator's device. weights: name of a picture -> its weight in the loss; None: equal ones.
    """

    def __init__(self, model: Segmenter, config: TrainingConfig, accelerator: Accelerator, weights: dict | None):
        self.config, self.accelerator, self.weights = config, accelerator, weights
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = self.called = model.to(accelerator.device, memory_format=self.layout)
        self.optimizer = make_optimizer(model, config)
        self.average = AveragedModel(model, use_buffers=True) if config.ema else None
        self.stepper = accelerator.prepare(self.optimizer)

    @property
    def kept(self) -> Segmenter:
        """The network that is validated and kept."""
        return self.average.module if self.average is not None else self.model

    @property
    def parts(self) -> dict:
        """What a state holds."""
        return {"model": self.model, "optimizer": self.optimizer, "average": self.average, "scaler": self.accelerator.scaler}

    def speed_up(self) -> None:
        """`compile` and `graphs`, for a model that holds its weights."""
        if self.config.compile:
            _compile(self.model)
        if self.config.graphs:
            self.called = Recording(self.model)

    def __call__(self, batches: list[dict], name: str) -> torch.Tensor:
        """Take one step on a batch's parts, under the objective `name`; its numbers, see `_backward`."""
        numbers = _average(self.model, self._backward(batches, name), self.accelerator)
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.config.clip_grad)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.average is not None:
            update_average(self.average, self.model, self.config.ema)
        return numbers

    def _backward(self, batches: list[dict], name: str) -> torch.Tensor:
        """Gradients of one step's parts; its numbers (loss, L_c, L_s, Dice, 1, 1 or 0), float32 on the device."""
        numbers = 0
        for batch in batches:
            batch = finish(batch, self.accelerator.device)
            batch["images"] = batch["images"].contiguous(memory_format=self.layout)
            if self.weights is not None:
                batch["weights"] = torch.tensor([self.weights[n] for n in batch["names"]], device=self.accelerator.device)
            with self.accelerator.autocast():
                loss, logits = batch_loss(self.called, batch, name, self.config)
            self.accelerator.backward(loss.total / len(batches))
            tp, fp, fn = counts(logits > 0, batch["masks"] > 0).float().T
            dice = torch.where(tp + fp + fn > 0, 2 * tp / (2 * tp + fp + fn).clamp(min=1), 1.0).mean()
            numbers = numbers + torch.stack([loss.total.detach(), loss.causal, loss.confounder, dice]) / len(batches)
        step = torch.tensor([1.0, float(name in ADVERSARIAL)]).to(numbers.device, non_blocking=True)  # without waiting for the GPU
        return torch.cat([numbers, step])


def _average(model: nn.Module, numbers: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Means over the processes of gradients, running statistics and the step's numbers, in one message.

    By hand instead of by DistributedDataParallel, which expects every weight to get a gradient at each step; under
    `bounded` the confounder branch gets none while its loss is above the cap. With the statistics averaged as well, all
    processes hold the same model after every step: each may validate a share, and one state stands for all.
    """
    if accelerator.num_processes == 1:
        return numbers
    parameters = [p for p in model.parameters() if p.requires_grad]
    statistics = [s for layer in normalisations(model) for s in (layer.running_mean, layer.running_var)]
    used = numbers.new_tensor([p.grad is not None for p in parameters])  # a weight that no process used keeps no gradient
    tensors = [used, numbers, *statistics, *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)]
    flat = accelerator.reduce(torch.cat([t.flatten() for t in tensors]), reduction="mean")
    used, numbers, *rest = flat.split([t.numel() for t in tensors])
    for statistic, mean in zip(statistics, rest):
        statistic.copy_(mean.view_as(statistic))
    for parameter, mean, share in zip(parameters, rest[len(statistics) :], used.tolist()):
        # Laid out in memory as its weight, channels last or not: a GPU's fused Adam refuses any other.
        parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter)) if share else None
    return numbers


def _check_finite(sums: np.ndarray, epoch: int) -> None:
    if not np.isfinite(sums).all():
        m = means(sums.tolist())
        raise TrainingError(
            f"The loss became {m['loss']} in epoch {epoch + 1} (L_c {m['loss_causal']:.3g}, L_s {m['loss_confounder']:.3g}); "
            "lower the learning rate, or choose objective=bounded."
        )


def _validate(predict, validation: dict, model_config: ModelConfig, accelerator: Accelerator) -> tuple[float, dict[str, float]]:
    """Mean per-image Dice with the right sentence: over all pictures, and for each folder."""
    parts = {}
    for name, data in validation.items():
        share = range(accelerator.process_index, len(data), accelerator.num_processes)
        table = score(predict, Subset(data, share), model_config.image_size).table.tolist() if share else []
        parts[name] = Scores(np.array(gather_object(table)))
    everything = Scores(np.concatenate([part.table for part in parts.values()]))
    return float(everything.dice.mean()), {name: float(part.dice.mean()) for name, part in parts.items()}


class _Clock:
    """When a state is due, counted from the last one.

    Args:
        cost: seconds that writing the last state took.
    """

    def __init__(self, config: TrainingConfig, cost: float = 0.0):
        self.unit, self.every = config.interval()
        self.cost, self.steps, self.since = cost, 0, time.monotonic()

    def due(self) -> bool:
        """Within an epoch; call once a step. It stays due until a state is written, which starts a new clock."""
        self.steps += 1
        return (self.steps if self.unit == "steps" else (time.monotonic() - self.since) / 60) >= self.every

    def worth_it(self) -> bool:
        """At an epoch's end: unless a state takes seconds to write, and that were more than a tenth of the time since the last one.

        A GPU ends an epoch of `paper` in a few seconds, and its state has two gigabytes.
        """
        return self.cost < 1 or 10 * self.cost < time.monotonic() - self.since
