"""The state of a run on disk: written whole or not at all, and read back so that the run goes on as if it had not stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from ._files import write_text, written_beside
from .config import ModelConfig, TrainingConfig, load_json

STATE, LOG, SETTINGS = Path("state") / "last.pt", "metrics.jsonl", "training.json"
NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS)  #: more room is no help


class TrainingError(ValueError):
    """A run that cannot start or go on; the message says what to do."""


@dataclass
class Progress:
    """How far a run has come. Order, augmentation, rates and random numbers follow from `epoch` and `step`."""

    epoch: int = 0  #: epochs done
    step: int = 0  #: optimiser steps done of the next one
    sums: list[float] = field(default_factory=list)  #: of that epoch's numbers so far
    epoch_seconds: float = 0.0  #: spent on that epoch's steps so far
    seconds: float = 0.0  #: spent on the epochs that are done
    best: float = -1.0  #: best validation Dice
    best_epoch: int = 0


def save_state(out: Path, progress: Progress, parts: dict, **facts) -> None:
    """Replace the run's state.

    Args:
        parts: name -> what has a `state_dict`, or None. facts: plain values that must hold when it is read again.
    Raises:
        TrainingError: the file cannot be written, as on a full disk; the one before is whole.
    """
    state = {name: part.state_dict() if part is not None else {} for name, part in parts.items()}
    at = f"epoch {progress.epoch + 1}, step {progress.step}"
    kept = f"the state before {at} is whole" if (out / STATE).exists() else "no state was written yet"
    with writing(out / STATE, kept), written_beside(out / STATE) as beside, open(beside, "wb") as file:
        torch.save({**state, **dataclasses.asdict(progress), **facts}, file)


def read_state(out: Path, parts: dict, **facts) -> Progress:
    """Fill `parts` from the run's state.

    Raises:
        TrainingError: a file that cannot be read, or facts that differ from those it was written with.
    """
    path = out / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{path} cannot be read ({_reason(error)}); move the run's folder away to train it anew.") from error
    if state["digest"] != facts["digest"]:
        raise TrainingError("The data are not those this run was started with (names, sentences or files differ).")
    if state["epochs"] != facts["epochs"]:
        raise TrainingError(f"This run was started for {state['epochs']} epochs, which shape its schedule; {facts['epochs']} were asked for.")
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(state[name])
    return Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress) if f.name in state})


def load_run(out: str | Path) -> tuple[ModelConfig, TrainingConfig]:
    """The settings a run was started with, for resuming it; those that are younger than the run at their defaults."""
    out = Path(out)
    data = run_file(out)
    names = {f.name for f in dataclasses.fields(TrainingConfig)}
    return load_json(ModelConfig, out / "config.json"), TrainingConfig(**{k: v for k, v in data.items() if k in names})


def refuse_changes(out: Path, model_config: ModelConfig, config: TrainingConfig) -> None:
    """A run goes on with the settings it was started with. `weights_sha256` may differ: it checks a file, and decides no number.

    Raises:
        TrainingError: names every setting that differs, with both values; or `out` holds no run.
    """
    changed = [
        f"{f.name} ({getattr(old, f.name)!r}, not {getattr(new, f.name)!r})"
        for old, new in zip(load_run(out), (model_config, config))
        for f in dataclasses.fields(old)
        if f.name != "weights_sha256" and getattr(old, f.name) != getattr(new, f.name)
    ]
    if changed:
        raise TrainingError(f"A run is resumed with the settings it was started with: {', '.join(changed)}.")


def refuse_other_data(out: Path, now: dict, begun: bool) -> None:
    """A run goes on with the data it was started with, its folders in the same order, and, once there is a state, on as many processes.

    Args:
        now: what `training.json` would say of data and processes. begun: whether there is a state.
    Raises:
        TrainingError: what differs, and how to give it.
    """
    earlier = run_file(out)
    said = lambda limit: f"--limit {limit}" if limit else "no --limit"  # noqa: E731
    if earlier.get("limit") != now["limit"]:
        raise TrainingError(f"This run was started with {said(earlier.get('limit'))}, which decides the pictures; resume it with the same, not {said(now['limit'])}.")
    if begun and earlier.get("processes", 1) != now["processes"]:
        raise TrainingError(f"This run was started on {earlier.get('processes', 1)} processes, and the batches are dealt out to them; resume it on as many, not {now['processes']}.")
    if earlier.get("data_digest") != now["data_digest"]:
        raise TrainingError("The data are not those this run was started with (names, sentences or files differ).")
    first, second = ([about.get("digest") for about in facts["data"]] for facts in (earlier, now))
    if None not in first and first != second:  # a run on record may not have them
        raise TrainingError(
            f"This run was started with its folders in another order ({', '.join(about['name'] for about in earlier['data'])}), "
            "which decides order and augmentation of the pictures; give --data in that order."
        )


def not_begun(out: Path) -> bool:
    """Whether a run's folder is not there, is empty, or holds only what a process wrote that was killed before its settings were there."""
    return not out.exists() or (out.is_dir() and all(path.name in ("config.json", LOG) or path.name.endswith(".tmp") for path in out.iterdir()))


def run_file(out: Path) -> dict:
    """`training.json` of a run: its settings, data, machine and versions."""
    try:
        return json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{out} holds no run that could be resumed; leave --resume out to start one.") from None
    except (OSError, ValueError) as error:
        raise TrainingError(f"{out} holds no run that could be resumed ({error}).") from None


def kept_settings(model: str | Path) -> dict:
    """`training.json` of a model's run, of its `last/` and of a hub id, too; empty where there is none."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(model), allow_patterns=[SETTINGS]))
        except Exception:  # not published, or the hub can't be reached: nothing is known then
            return {}
    for place in (folder, folder.parent) if folder.name == "last" else (folder,):
        with contextlib.suppress(TrainingError):
            return run_file(place)
    return {}


def inherited(models: Iterable[str | Path]) -> dict:
    """What the models that a run starts or learns from were trained on, and those that they themselves came from.

    Returns:
        {"train_splits", "split_rules"}, each a sorted list, for the key "inherited" of `training.json`; {} where no model says it.
    """
    each = [settings for settings in map(kept_settings, models) if settings]
    own = [{"train_splits": s.get("train_splits", ["train"]), "split_rules": [s.get("split_rule", "published")]} for s in each]
    return _together([*own, *(s.get("inherited", {}) for s in each)])


def _together(each: list[dict]) -> dict:
    found = {key: sorted({value for one in each for value in one.get(key, ())}) for key in ("train_splits", "split_rules")}
    return found if any(found.values()) else {}


def joined_settings(models: Iterable[str | Path]) -> dict:
    """What `evaluation.not_held_out` asks of the runs behind several models; {} where one doesn't say, or rules differ.

    Returns:
        {"train_splits", "split_rule"}, and "inherited" (see `inherited`) where one of them has it.
    """
    each = [kept_settings(model) for model in models]
    rules = {settings.get("split_rule") for settings in each}
    if len(rules) != 1 or None in rules:
        return {}
    joined = {"train_splits": sorted({split for settings in each for split in settings.get("train_splits", ["train"])}), "split_rule": rules.pop()}
    earlier = _together([settings.get("inherited", {}) for settings in each])
    return {**joined, "inherited": earlier} if earlier else joined


def read_log(out: Path) -> list[dict]:
    """The whole lines of `metrics.jsonl`; the last one may be torn where a process died while it wrote it."""
    lines = []
    for text in (out / LOG).read_text(encoding="utf-8").splitlines() if (out / LOG).exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def tidy(out: Path, epochs: int) -> None:
    """Drop what a killed process left: half-written files, and lines of epochs that are run again."""
    for folder in (out, out / STATE.parent, out / "last", out / "samples"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
    write_text(out / LOG, "".join(json.dumps(line) + "\n" for line in read_log(out) if line["epoch"] <= epochs))


@contextlib.contextmanager
def writing(path: Path, kept: str = "the last state is whole"):
    """Turn what writing can raise into one sentence. torch and safetensors report a full disk in types of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        place = isinstance(error, OSError) and error.errno in NO_PLACE
        advice = "choose another folder" if place else f"{kept}: make room, then go on with --resume"
        raise TrainingError(f"{path} could not be written ({_reason(error)}); {advice}.") from error


def _reason(error: BaseException) -> str:
    """In a few words; torch raises an error of its own while it closes a file that the system would not take."""
    first = error
    while first.__context__ is not None and not isinstance(first, OSError):
        first = first.__context__
    text = getattr(first, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]
