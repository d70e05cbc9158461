"""A run's model card, written from the run's own files alone, and its way to the hub and back.

Every number in a card is one that stands in a file beside it: `training.json`, `metrics.jsonl`, `config.json`, and
what `causalclipseg evaluate --out RUN/NAME.json` wrote.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from ._files import check_new_folder, put_in_place, write_text
from .checkpoints import LOG, SETTINGS, TrainingError, kept_settings, load_run, read_log
from .config import TrainingConfig, preset

CARD, WEIGHTS = "README.md", "model.safetensors"
PUBLISHED = [CARD, WEIGHTS, SETTINGS, LOG, "*.json"]  #: what of a run goes to the hub: no picture, no state
IGNORED = ["*/*"]

HEAD = """---
license: mit
library_name: causalclipseg
pipeline_tag: image-segmentation
tags: [medical, chest-x-ray, referring-segmentation]
---

# {title}

Segments lesions in a picture from {reads}. Made for teaching and research.
**Not for clinical use**: not tested on patients of any clinic, not a medical device.

```python
{load}
mask = segment(model, "xray.png", "Unilateral pulmonary infection, one infected area, lower left lung.").mask
```
"""


OURS = """from causalclipseg import CausalCLIPSeg, segment

model = CausalCLIPSeg.from_pretrained("{where}")"""
COMPARED = """from causalclipseg import segment
from causalclipseg.baselines import load_model

model = load_model("{where}")"""  #: a network that CausalCLIPSeg is compared with


def write_card(run: str | Path, where: str = "") -> Path:
    """Write `README.md` into a run's folder, or write it anew after an evaluation.

    Args:
        run: the folder. where: the hub id that the card's example names; the folder's name without one.
    Raises:
        TrainingError: the folder holds no run.
    """
    run = Path(run)
    facts, log = kept_settings(run), read_log(run)
    if "data" not in facts:
        raise TrainingError(f"{run} holds no run of `train` (its {SETTINGS} is not there, or not whole), so no card can be written from it.")
    model, config = load_run(run)
    ours = model.network == "causalclipseg"
    head = HEAD.format(
        title=f"CausalCLIPSeg `{model.preset}`" if ours else f"`{model.network}`, a network that CausalCLIPSeg is compared with",
        reads="the picture and a sentence" if _reads(model) else "the picture alone; the sentence is not read",
        load=(OURS if ours else COMPARED).format(where=where or run.name),
    )
    parts = [head, "## How it was made\n", _made(model, config, facts, log)]
    parts += [f"```\n{_command(model, config, facts)}\n```\n", "## Validation while training\n", _validation(log)]
    if results := _results(run):
        parts += ["## Measured\n", results]
    write_text(run / CARD, "\n".join(parts))
    return run / CARD


def push_to_hub(run: str | Path, repo_id: str, *, private: bool = False, token: str | None = None, endpoint: str | None = None) -> str:
    """Upload a run: card, weights, settings, log and results; returns the page's address.

    Args:
        run: the run's folder. repo_id: "org/name"; made if it is not there.
        token: of Hugging Face; None: the one of `hf auth login` or of HF_TOKEN. endpoint: another hub.
    Raises:
        TrainingError: no run, no weights, or the hub refuses; with what to do.
    """
    run = Path(run)
    if not (run / WEIGHTS).is_file():
        raise TrainingError(f"{run} holds no {WEIGHTS} yet: nothing has been validated. Train it further first.")
    write_card(run, where=repo_id)
    try:
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:  # the hub leaves one that is there as it is
            raise TrainingError(f"{repo_id} is there already and public; make it private on the hub first, or choose another name.")
        api.upload_folder(repo_id=repo_id, folder_path=run, allow_patterns=PUBLISHED, ignore_patterns=IGNORED, commit_message=f"Run {run.name}")
    except TrainingError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"{repo_id} could not be uploaded ({reason}); log in with `hf auth login` or set HF_TOKEN, and check the name.") from error
    return f"{(endpoint or api.endpoint).rstrip('/')}/{repo_id}"


def pull_run(repo_id: str, out: str | Path, **hub) -> Path:
    """Fetch a run's published files into a folder, to predict, to evaluate or to `start` from.

    Args:
        repo_id: "org/name". out: a folder that is missing or empty. hub: `revision`, `token`, ... of huggingface_hub.
    Raises:
        TrainingError: the folder is in use, or the hub refuses.
    """
    try:
        out = check_new_folder(out)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    beside = out.with_name(f".{out.name}.partial")  # what was fetched before a call was cut short is not fetched again
    try:
        snapshot_download(repo_id, local_dir=beside, allow_patterns=PUBLISHED, ignore_patterns=IGNORED, **hub)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"{repo_id} could not be fetched from the hub ({reason}).") from error
    shutil.rmtree(beside / ".cache", ignore_errors=True)
    put_in_place(beside, out)
    return out


def _reads(model) -> bool:
    """Whether a network has CLIP's encoders, and so a sentence."""
    return not model.network.startswith("monai:")


def _made(model, config: TrainingConfig, facts: dict, log: list[dict]) -> str:
    best = max((line for line in log if "val_dice" in line), key=lambda line: line["val_dice"], default=None)
    data = "; ".join(f"{d['name']} ({d['train']} training, {d['val']} validation pictures; split: {d.get('split_rule', 'unknown')})" for d in facts["data"])
    earlier = facts.get("inherited", {})
    encoders = model.encoder + (f", sentences by {model.text_encoder}" if model.text_encoder else "")
    splits, rules = (" and ".join(earlier.get(key, ())) for key in ("train_splits", "split_rules"))
    rows = [
        ("data", data + ("; the validation pictures are trained on, too" if "val" in config.train_splits else "")),
        *([("what it started from, or learned from, was trained on", f"{splits} of its data; split_rule {rules}")] if earlier else []),
        ("left out of training", ", ".join(config.leave_out) or "nothing"),
        *([] if model.network == "causalclipseg" else [("network", f"{model.network}, width {model.width}")]),
        ("encoders", encoders if _reads(model) else "none of CLIP's"),
        ("pre-trained weights", f"a run, `{config.start}`" if config.start else f"`{config.weights}`" if config.weights not in ("", "none") else "none: from random weights"),
        ("intervention", "on" if model.intervention else "off"),
        ("objective", f"`{config.objective}`, λ = {config.lam:g}; soft Dice in L_c with weight {config.dice_weight:g}"),
        ("epochs", f"{len(log)} of {config.epochs} planned, {log[-1]['seconds'] / 60:.0f} minutes" if log else "none"),
        ("kept", f"{'the averaged weights' if config.ema else 'the weights'} of epoch {best['epoch']}" if best else "nothing"),
        ("optimiser", f"{config.optimizer}, learning rate {config.lr:g}, batch {config.batch_size}"),
        ("machine", f"{facts.get('device', 'unknown')}, processes: {facts.get('processes', 1)}, precision {config.precision}"),
        ("seed", str(config.seed)),
        ("data digest", f"`{facts['data_digest'][:16]}…`"),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())),
    ]
    return "|  |  |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _command(model, config: TrainingConfig, facts: dict) -> str:
    """The command that makes this run again: the preset, and every setting that differs from it."""
    try:
        name, usual = model.preset, preset(model.preset)
    except ValueError:  # a name of one's own, given in Python: the network's usual settings, and what differs from them
        name = "mini" if model.network == "causalclipseg" else model.network
        usual = preset(name)
    words = ["causalclipseg", "train", *(word for d in facts["data"] for word in ("--data", d["name"])), "--preset", name]
    for own, others in zip((model, config), usual):
        words += [word for change in _changes(vars(own), vars(others)) for word in ("--set", change)]
    words += ["--limit", str(facts["limit"])] if facts.get("limit") else []
    words += ["--torchscript"] if facts.get("torchscript") else []
    return shlex.join([*words, "--out", "run"])


def _changes(own: dict, usual: dict, prefix: str = "") -> list[str]:
    changes = []
    for key, value in own.items():
        if key == "preset":  # --preset says it
            continue
        if hasattr(value, "__dataclass_fields__"):
            changes += _changes(vars(value), vars(usual[key]), f"{key}.")
        elif value != usual[key]:
            changes.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return changes


def _validation(log: list[dict]) -> str:
    lines = [line for line in log if "val_dice" in line]
    if not lines:
        return "No epoch has been validated yet.\n"
    shown = sorted({0, len(lines) - 1, max(range(len(lines)), key=lambda i: lines[i]["val_dice"])} | set(range(0, len(lines), max(1, len(lines) // 8))))
    rows = "".join(f"| {lines[i]['epoch']} | {lines[i]['seconds'] / 60:.0f} | {lines[i]['loss_causal']:.4f} | {lines[i]['loss_confounder']:.4f} | {lines[i]['val_dice']:.4f} |\n" for i in shown)
    return "Per-image Dice with the right sentence, at the size of training.\n\n| epoch | minutes | L_c | L_s | Dice |\n|---|---|---|---|---|\n" + rows


def _results(run: Path) -> str:
    rows = ""
    for path in sorted(run.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            dice, iou, pooled = result["per_image"]["dice"], result["per_image"]["iou"], result["pooled"]
        except (ValueError, KeyError, TypeError):
            continue
        rows += (
            f"| {result['data']}, {result['split']} | {result['n']} | {result['text']} | {result['threshold']:g} | {dice['mean']:.4f} ({dice['low']:.4f} to "
            f"{dice['high']:.4f}) | {iou['mean']:.4f} | {pooled['dice']:.4f} | {pooled['iou']:.4f} |\n"
        )
    if not rows:
        return ""
    note = "Sentences of this kind state side, zones and number of areas of the very mask that is asked for; 95 % bootstrap intervals.\n\n"
    return note + "| data | pictures | sentence | threshold | per-image Dice | per-image IoU | pooled Dice | pooled IoU |\n|---|---|---|---|---|---|---|---|\n" + rows
