"""The paper's tables as commands: each row is trained by the same loop, on the same data, for the same stated budget.

    table 2   with and without pre-trained encoders, with and without the intervention
    table 1   image-only networks (MONAI), a plain text-guided one, and ours; what only the paper measured is quoted

A row is a network and its settings; it is trained once for each seed, in `OUT/runs/NAME-seedK`, and measured on the
test split. A finished run is not run again and an interrupted one goes on; both tables in one folder share their
runs. Each row of the result is "measured", "quoted" (from the paper) or "not run" (with the reason).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ._files import write_text
from .baselines import best_device, load_model
from .checkpoints import SETTINGS, read_log
from .config import BASELINES, ModelConfig, TrainingConfig, preset
from .data import find_samples
from .encoders import two_sources
from .evaluation import TEXT_NOTE, evaluate, predictor, save_result
from .feeding import find_data, versions
from .pretrained import file_digest
from .pretraining import check_rule
from .training import train

QUOTED = "quoted: paper, Table {}"
#: Settings that are the budget's or the rows' own, and how each is chosen instead.
OURS = {
    "epochs": "--steps", "patience": "--steps", "batch_size": "--batch-size", "image_size": "--image-size", "sizes": "--image-size", "seed": "--seeds",
    "weights": "--weights", "width": "--width", "start": "no option", "intervention": "the rows", "network": "the rows", "preset": "--preset",
}  # fmt: skip
SCORES = ("dice", "iou", "pooled_dice", "pooled_iou")


@dataclass(frozen=True)
class Budget:
    """What every row of a table has in common; rows of another budget are never mixed with these."""

    steps: int  #: optimiser steps that were asked for; rounded to whole epochs
    batch_size: int
    image_size: int
    limit: int | None  #: first pictures of each split that are used; None: all

    def epochs(self, pictures: int) -> int:
        """Whole epochs nearest to `steps`; at least one."""
        return max(1, round(self.steps / math.ceil(pictures / self.batch_size)))


@dataclass(frozen=True)
class Row:
    """One row: how it is named, what is trained for it, and with which sentence it is measured."""

    name: str
    run: str  #: name of its runs; rows with the same one share them
    preset: str
    model: dict = field(default_factory=dict)  #: changes to the preset's `ModelConfig`
    training: dict = field(default_factory=dict)  #: and to its `TrainingConfig`
    text: str = "report"
    columns: dict = field(default_factory=dict)  #: what the table says of it beside the name
    missing: str = ""  #: why it can't be run; empty: it can


def table2(
    data: str, out: str | Path, *, steps: int = 600, seeds: int = 3, limit: int | None = None, preset: str = "mini",
    weights: str | None = None, batch_size: int = 16, image_size: int = 160, rows: Iterable[str] | None = None,
    settings: dict | None = None, torchscript: bool = False, progress: Callable | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:  # fmt: skip
    """Table 2: the two switches of the paper's ablation, each row with the same budget and the same seeds.

    Args:
        data: a folder in one of the layouts. out: where runs, `table2.json` and `table2.md` go.
        steps, batch_size, image_size, limit: see `Budget`. seeds: how many, from 0 up.
        preset: "mini" or "paper". weights: pre-trained encoders (`causalclipseg pretrain`'s folder, "openai", a
            file); None: the rows with them are not run, and say so.
        rows: names of the runs to do (see the result's "run"); None: all.
        settings: further changes to every row, of its training or of its model, e.g. {"precision": "bf16"}. Rows without
            intervention keep the objective "none".
        torchscript: `weights` is a TorchScript archive (see `pretrained.load_weights`), its digest in `settings` as `weights_sha256`.
        progress: wraps the batches of a measurement. say: gets a line when something begins or ends.
    Returns:
        the table: "rows", "budget", "data", ...; every row has "status", and where it was measured "scores" with
        mean, spread (standard deviation over seeds, None for one seed) and each seed's value.
    """
    lacking = "" if weights else "no pre-trained encoders were given (--weights)"
    table = [
        Row(
            " and ".join([*(["pre-trained"] if pretrained else []), *(["intervention"] if intervention else [])]) or "without both",
            run_name(preset, intervention, pretrained), preset,
            {} if intervention else {"intervention": False},
            {"weights": (weights or "none") if pretrained else "none", **({} if intervention else {"objective": "none"})},
            columns={"pre-trained": pretrained, "intervention": intervention}, missing=lacking if pretrained else "",
        )
        for pretrained in (False, True) for intervention in (False, True)
    ]  # fmt: skip
    quoted = [
        {"name": f"paper: {name}", "pre-trained": pre, "intervention": yes, "dice": d, "iou": i}
        for name, pre, yes, d, i in (
            ("without both", False, False, 82.50, 73.24), ("intervention", False, True, 83.61, 74.86),
            ("pre-trained", True, False, 83.71, 74.69), ("pre-trained and intervention", True, True, 85.21, 76.90),
        )
    ]  # fmt: skip
    budget = Budget(steps, batch_size, image_size, limit)
    return _table(2, table, quoted, data, out, budget, seeds, rows, settings or {}, torchscript, progress, say)


def table1(
    data: str, out: str | Path, *, steps: int = 600, seeds: int = 3, limit: int | None = None, preset: str = "mini",
    weights: str | None = None, width: int = 32, batch_size: int = 16, image_size: int = 160, rows: Iterable[str] | None = None,
    settings: dict | None = None, torchscript: bool = False, progress: Callable | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:  # fmt: skip
    """Table 1: image-only networks, a plain text-guided one, and ours with and without a sentence.

    Args:
        weights: pre-trained encoders for ours, and for nothing else; None: none. width: channels of a baseline's first
            stage. The others: as for `table2`.
    Returns:
        as `table2`.
    """
    names = dict(zip(BASELINES, ("U-Net", "UNet++", "Attention U-Net", "nnU-Net's DynUNet", "Swin UNETR", "text concatenated (plain)")))
    table = [
        Row(title, f"{name.removeprefix('monai:')}-{width}", name, model={"width": width}, training={"objective": "none"},
            text="report" if name == "concat" else "none", columns={"reads a sentence": name == "concat"})
        for name, title in names.items()
    ]  # fmt: skip
    table += [
        Row(f"ours, {preset}{shown}", run_name(preset, True, bool(weights)), preset, training={"weights": weights or "none"}, text=text,
            columns={"reads a sentence": True})
        for text, shown in (("none", ", no sentence shown"), ("report", ""))
    ]  # fmt: skip
    quoted = [
        {"name": f"paper: {name}", "reads a sentence": text, "dice": d, "iou": i}
        for name, text, d, i in (
            ("U-Net", False, 79.02, 69.46), ("UNet++", False, 79.62, 70.25), ("AttUNet", False, 79.31, 70.04),
            ("nnUNet", False, 80.42, 70.81), ("TransUnet", False, 78.63, 69.13), ("Swin-Unet", False, 78.07, 68.34),
            ("UCTransNet", False, 79.15, 69.60), ("ConVIRT", True, 79.72, 70.58), ("TGANet", True, 79.87, 70.75),
            ("GLoRIA", True, 79.94, 70.68), ("ViLT", True, 79.63, 70.12), ("LAVT", True, 79.28, 69.89),
            ("LViT", True, 83.66, 75.11), ("CausalCLIPSeg", True, 85.21, 76.90),
        )
    ]  # fmt: skip
    budget = Budget(steps, batch_size, image_size, limit)
    return _table(1, table, quoted, data, out, budget, seeds, rows, settings or {}, torchscript, progress, say)


def run_name(preset: str, intervention: bool, pretrained: bool) -> str:
    """How a row's runs are called, the same in both tables."""
    return preset + ("" if intervention else "-plain") + ("-pretrained" if pretrained else "")


# ---------------------------------------------------------------- running


def _table(number, rows, quoted, data, out, budget, seeds, wanted, settings, torchscript, progress, say) -> dict:
    out, wanted = Path(out), None if wanted is None else set(wanted)
    if unknown := (wanted or set()) - {row.run for row in rows}:
        raise ValueError(f"There is no row {', '.join(sorted(unknown))}; this table has {', '.join(dict.fromkeys(r.run for r in rows))}.")
    if budget.steps < 1 or seeds < 1:
        raise ValueError(f"steps and seeds must be at least 1, not {budget.steps} and {seeds}.")
    if taken := [f"{key} ({OURS[key]})" for key in settings if key in OURS]:
        raise ValueError(f"These settings are the same in all rows, or what tells rows apart, so --set cannot change them: {', '.join(taken)}.")
    (folder,), description = find_data([str(data)], settings_of(rows[-1], 0, budget, 1, settings)[1], budget.limit)
    training, digest = folder.train, description["data_digest"]
    find_samples(data, "test")  # what is measured on; better missed now than after the training
    epochs = budget.epochs(len(training))
    settings_of(rows[-1], 0, budget, epochs, settings)
    result = {
        "table": number, "data": Path(data).resolve().name, "data_digest": digest, "split_rule": folder.rule, "seeds": list(range(seeds)),
        "budget": {
            **dataclasses.asdict(budget), "epochs": epochs, "training_pictures": len(training),
            "steps_of_each_run": epochs * math.ceil(len(training) / budget.batch_size), "settings": _plain(settings),
        },
        "note": "Per cent, official test split" + (f", at most its first {budget.limit} pictures" if budget.limit else "") + ", threshold 0.5, at the masks' "
                f"own size; per image, and pooled over the set. Every row had the same budget, far below the paper's. {TEXT_NOTE}",
        "versions": versions(), "rows": [],
    }  # fmt: skip
    measured = [{"name": row.name, "run": row.run, "status": "not run", "reason": "not yet", **row.columns} for row in rows]
    result["rows"] = measured + [{**row, "status": QUOTED.format(number)} for row in quoted]
    for row, line in zip(rows, measured):
        if row.missing or (wanted is not None and row.run not in wanted):
            line["reason"] = row.missing or "it was not asked for"
        else:
            try:
                _, config = settings_of(row, 0, budget, epochs, settings)
                if (doubt := check_rule(config.weights, config.split_rule)) and doubt not in result["note"]:
                    result["note"] += f" {doubt}"
                    say(doubt)
                scores = [
                    _scores(row, seed, data, digest, out, budget, epochs, settings, torchscript, progress, say) for seed in range(seeds)
                ]
                line |= {
                    "status": "measured", "text": row.text, "objective": config.objective, "lr": config.lr, "scores": _summary(scores),
                    "minutes": round(sum(s["minutes"] for s in scores), 1), "parameters": scores[0]["parameters"],
                }  # fmt: skip
                del line["reason"]
            except ValueError as error:  # what a row can't be run for (MONAI is missing, weights don't fit) is no end of the table
                line["reason"] = " ".join(str(error).split())
                say(f"{row.name}: not run: {line['reason']}")
        save_result(result, out / f"table{number}.json")
        write_text(out / f"table{number}.md", markdown(result))
    return result


def settings_of(row: Row, seed: int, budget: Budget, epochs: int, settings: dict) -> tuple[ModelConfig, TrainingConfig]:
    """The settings of one run: the preset's, the row's, and those that all rows share.

    No early stop, no growing pictures and no averaged weights: none of them means the same in a short run, and all rows
    shall take the same steps. Validation at a tenth of the epochs picks the weights, as in `train`.
    """
    model, training = preset(row.preset)
    common = dict(
        epochs=epochs, patience=epochs, evaluate_every=max(1, epochs // 10), sizes=(), ema=0.0, samples_every=0, batch_size=budget.batch_size,
        seed=seed,
    )  # fmt: skip
    own = {f.name for f in dataclasses.fields(ModelConfig)}
    of_model = {key: value for key, value in settings.items() if key in own}
    of_training = {key: value for key, value in settings.items() if key not in own}
    return replace(model, **{"image_size": budget.image_size, **of_model, **row.model}), replace(
        training, **{**common, **of_training, **row.training}
    )


def _scores(
    row: Row, seed: int, data, digest: str, out: Path, budget: Budget, epochs: int, settings: dict, torchscript: bool, progress, say,
) -> dict:  # fmt: skip
    """The scores of one run of a row: read where it is finished, else trained and measured."""
    model_config, config = settings_of(row, seed, budget, epochs, settings)
    folder = out / "runs" / f"{row.run}-seed{seed}"
    asked = _plain({
        "model": model_config, "training": config, "limit": budget.limit, "data": Path(data).resolve().name, "data_digest": digest, "weights_digest": "+".join(filter(None, map(file_digest, two_sources(config.weights)))),
    })  # fmt: skip
    scores_file, asked_file = folder / f"scores_{row.text}.json", folder / "asked.json"
    if asked_file.exists() and json.loads(asked_file.read_text(encoding="utf-8")) != asked:
        raise ValueError(f"{folder} holds a run of another budget, other settings, data or pre-trained weights; choose another folder for this table.")
    if scores_file.exists():
        return json.loads(scores_file.read_text(encoding="utf-8"))
    write_text(asked_file, json.dumps(asked, indent=2) + "\n")
    if len(read_log(folder)) < epochs:
        say(f"{row.name}, seed {seed}: training")
        begun = (folder / SETTINGS).exists()  # also where it was killed before its first state
        train([str(data)], folder, model_config, config, resume=begun, limit=budget.limit, quiet=True, torchscript=torchscript)
    network = load_model(folder, device=best_device())
    found = evaluate(
        predictor(network), data, model=folder.name, image_size=model_config.image_size, text=row.text, limit=budget.limit, progress=progress,
        surface=False,
    )  # fmt: skip
    per_image = found["per_image"]
    scores = {
        "dice": per_image["dice"]["mean"], "iou": per_image["iou"]["mean"], "pooled_dice": found["pooled"]["dice"], "pooled_iou": found["pooled"]["iou"],
        "interval": [per_image["dice"]["low"], per_image["dice"]["high"]], "minutes": read_log(folder)[-1]["seconds"] / 60, "n": found["n"],
        "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip
    save_result(scores, scores_file)
    say(f"{row.name}, seed {seed}: Dice {scores['dice']:.4f}, IoU {scores['iou']:.4f} ({scores['minutes']:.1f} min)")
    return scores


def _plain(value):
    """As JSON gives it back: dataclasses as dictionaries, tuples as lists."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def _summary(scores: list[dict]) -> dict:
    """Mean over seeds, spread (standard deviation, None for one seed), and each seed's value, in per cent."""
    summary = {}
    for name in SCORES:
        values = 100 * np.array([s[name] for s in scores])
        summary[name] = {
            "mean": round(float(values.mean()), 2), "spread": round(float(values.std(ddof=1)), 2) if len(values) > 1 else None,
            "seeds": [round(float(v), 2) for v in values],
        }  # fmt: skip
    return summary


# ---------------------------------------------------------------- the table in words


def markdown(result: dict) -> str:
    """A table as Markdown, with its budget above it; nothing that was not run is left out."""
    b, seeds = result["budget"], len(result["seeds"])
    columns = [key for key in result["rows"][0] if key in ("pre-trained", "intervention", "reads a sentence")]
    lines = [
        f"Table {result['table']} on {result['data']} (splits: {result['split_rule']}): {b['steps_of_each_run']} steps of {b['batch_size']} pictures at "
        f"{b['image_size']} px ({b['epochs']} epochs of {b['training_pictures']} pictures) for each of our rows; "
        f"{seeds} seed{'s' if seeds > 1 else ''}. A short budget: our rows compare with each other, not with the paper's.",
        "",
        f"| row | {' | '.join(columns)} | Dice | IoU | pooled Dice | pooled IoU | source |",
        "|" + "---|" * (len(columns) + 6),
    ]
    for row in result["rows"]:
        if row["status"] == "measured":
            cells = [_cell(row["scores"][name]) for name in SCORES]
            shown = "no sentence" if row["text"] == "none" else "own sentence"
            source = f"measured, {shown}; objective {row['objective']}, rate {row['lr']:g}, {row['parameters'] / 1e6:.1f} M weights"
        elif row["status"] == "not run":
            cells, source = ["–"] * 4, f"not run: {row['reason']}"
        else:
            cells, source = [f"{row['dice']:.2f}", f"{row['iou']:.2f}", "–", "–"], row["status"]
        yes = [("yes" if row[c] else "no") for c in columns]
        lines.append(f"| {' | '.join([row['name'], *yes, *cells, source])} |")
    return "\n".join([*lines, "", result["note"]]) + "\n"


def _cell(score: dict) -> str:
    return f"{score['mean']:.2f}" + (f" ± {score['spread']:.2f}" if score["spread"] is not None else "")
