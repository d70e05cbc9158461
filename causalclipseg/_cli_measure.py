"""The commands that measure: evaluate, benchmark, and pretrain for its sake. `cli.py` adds them to the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

DataOption = Annotated[str, typer.Option(help="Folder of a data set (Kaggle, LViT or CSV layout).")]
TableFolder = Annotated[Path, typer.Option(file_okay=False, help="Folder for the runs and the table; what is finished there is not run again.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps of each row, rounded to whole epochs.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each row; the table gives mean and spread.")]
Limit = Annotated[Optional[int], typer.Option(min=1, help="Use only the first pictures of each split (for trials).")]
BatchSize = Annotated[int, typer.Option(min=2, help="Pictures of a step.")]
ImageSize = Annotated[int, typer.Option(help="Edge of the pictures; a multiple of 32.")]
Weights = Annotated[
    Optional[str], typer.Option(help="Pre-trained encoders for ours: the folder of `pretrain`, openai, or a file.", show_default="none")
]
TorchScript = Annotated[
    bool, typer.Option("--torchscript", help="The file in --weights is a TorchScript archive, which may run code: only with --set weights_sha256=….")
]
Rows = Annotated[Optional[list[str]], typer.Option("--row", help="Only this row's runs, e.g. UNet-32 or mini; may be repeated.")]
Settings = Annotated[Optional[list[str]], typer.Option("--set", help="key=value of a setting, for every row; may be repeated.")]
SplitRuleOption = Annotated[
    Optional[str], typer.Option(help="How train and val are told apart: published, first80, patients or sources.", show_default="the model's, else published")
]
AverageOption = Annotated[bool, typer.Option("--average-views", help="Mean of six views of the picture and of all the model's networks, but in a half where the first stays below 0.5 its answer alone (without a sentence, half is that of a network which reads none, if the file has one): more exact, six times the work for each.")]
CheckOption = Annotated[
    bool, typer.Option("--check-side", help="Where a sentence names one half alone and the picture speaks against it, answer for the other.")
]


def add_commands(app: typer.Typer, load: Callable, tqdm: Callable, shipped: Path) -> None:
    """Add this module's commands to the command line.

    Args:
        load: a model's folder, hub id or None -> (network, name). tqdm: the progress bar. shipped: the folder that None stands for.
    """
    tables = typer.Typer(no_args_is_help=True, help="The paper's tables, and whether it is causal: every row trained for the same budget.")
    app.add_typer(tables, name="benchmark")

    def bar(batches):
        return tqdm(batches, desc="batches")

    @app.command()
    def evaluate(
        data: DataOption,
        out: Annotated[Path, typer.Option(help="JSON file for the scores.")],
        model: Annotated[
            Optional[str],
            typer.Option("--model", help="Folder with config.json and model.safetensors, or a hub id.", show_default="the shipped mini"),
        ] = None,
        split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
        split_rule: SplitRuleOption = None,
        text: Annotated[
            str, typer.Option(help="Sentences shown: report, none, generic, shuffled or swapped; all: each in turn.")
        ] = "report",
        threshold: Annotated[
            Optional[list[str]],
            typer.Option(
                help="A pixel is lesion where its probability is at least this; in (0, 1). Also expected-dice or validation-best, which stand "
                "beside the number; may be repeated.",
                show_default="0.5",
            ),
        ] = None,  
        only: Annotated[
            str, typer.Option(help="A slice of the split: source=covid, view=ap, side=left, count=2, …", show_default=False)
        ] = "",
        limit: Limit = None,
        average_views: AverageOption = False,
        check_side: CheckOption = False,
        referring: Annotated[
            bool, typer.Option("--referring", help="Also name one half of each bilateral case, and see where the mask goes.")
        ] = False,
        surface: Annotated[bool, typer.Option(help="Surface distances, by MONAI (about 20 ms a picture).")] = True,
        against: Annotated[
            Optional[str], typer.Option(help="A second model, for a paired test on the same pictures.", show_default=False)
        ] = None,
        markdown: Annotated[bool, typer.Option("--markdown", help="Also a table, beside --out, ending in .md.")] = False,
        page: Annotated[bool, typer.Option("--page", help="Also a page with the best, median and worst cases, ending in .html.")] = False,
        pictures: Annotated[
            bool, typer.Option("--pictures", help="Show pictures of patients on the page, too (phantoms are always shown).")
        ] = False,
    ):
        """Measure a model on a data set: Dice and IoU, per image and pooled, surfaces, groups, calibration."""
        if (markdown and out.suffix == ".md") or (page and out.suffix == ".html"):
            raise ValueError(f"--out is for the JSON; the file ending in {out.suffix} is written beside it.")
        if pictures and not page:
            raise ValueError("--pictures chooses what the page shows; add --page, or leave it out.")
        from . import evaluation
        from .baselines import best_device
        from .checkpoints import kept_settings
        from ._files import check_writable
        from .views import answering

        number, rules = evaluation.read_thresholds(threshold or [])
        network, name = load(model)
        trained = kept_settings(model or shipped)
        split_rule = split_rule or trained.get("split_rule", "published")
        check_writable(out)
        asked = dict(average_views=average_views, check_side=check_side)
        predict = answering(network.to(best_device()), **asked)
        rival = None
        if against is not None:
            other, other_name = load(against)
            rival = (other_name, answering(other.to(best_device()), **asked), other.config.image_size)
        common = dict(image_size=network.config.image_size, split=split, threshold=number, progress=bar)
        result = evaluation.evaluate(
            predict, data, model=name, text=text, rules=rules, only=only, limit=limit, surface=surface, against=rival, splits=split_rule, **common
        )
        result |= asked
        for about, run in (("", trained), *([(f"{against}: ", kept_settings(against))] if against is not None else [])):
            if warning := evaluation.not_held_out(run, split, rules, split_rule):
                result["note"] += f" {about}{warning}"
                typer.echo(f"warning: {about}{warning}", err=True)
        if referring:
            result["referring"] = evaluation.evaluate_referring(predict, data, only=only, limit=limit, splits=split_rule, **common)
        evaluation.save_result(result, out)
        if markdown or page:
            from ._evaluation_page import save

            save(
                result,
                out,
                markdown=markdown,
                page=page,
                predict=predict,
                data=data,
                image_size=network.config.image_size,
                pictures=pictures,
                splits=split_rule,
            )
        for line in _lines(result):
            typer.echo(line)
        typer.echo(f"Written to {out}.")

    def changes(settings: list[str] | None) -> dict:
        """`--set` pairs as the settings that they change, of the model or of its training."""
        from .config import ModelConfig, TrainingConfig, apply_settings

        configs = apply_settings(list(settings or []), ModelConfig(), TrainingConfig())
        names = {setting.partition("=")[0].strip().split(".")[0] for setting in settings or []}
        return {name: getattr(config, name) for config in configs for name in names if hasattr(config, name)}

    def show(result: dict, out: Path) -> None:
        from .benchmark import markdown

        typer.echo(markdown(result))
        typer.echo(f"Written to {out}.")
        if not any(row["status"] == "measured" for row in result["rows"]):
            raise typer.Exit(1)

    @tables.command()
    def table1(
        data: DataOption, out: TableFolder, steps: Steps = 600, seeds: Seeds = 3, limit: Limit = None, batch_size: BatchSize = 16, image_size: ImageSize = 160,
        preset: Annotated[str, typer.Option(help="Ours: mini or paper.")] = "mini",
        weights: Weights = None,
        width: Annotated[int, typer.Option(min=4, help="Channels of a baseline's first stage.")] = 32, row: Rows = None, settings: Settings = None, torchscript: TorchScript = False,
    ):  # fmt: skip
        """Table 1: image-only networks (MONAI), a plain text-guided one, and ours."""
        from .benchmark import table1

        show(table1(data, out, steps=steps, seeds=seeds, limit=limit, batch_size=batch_size, image_size=image_size, preset=preset, weights=weights, width=width, rows=row or None,
                    settings=changes(settings), torchscript=torchscript, progress=bar, say=typer.echo), out)  # fmt: skip

    @tables.command()
    def table2(
        data: DataOption, out: TableFolder, steps: Steps = 600, seeds: Seeds = 3, limit: Limit = None, batch_size: BatchSize = 16, image_size: ImageSize = 160,
        preset: Annotated[str, typer.Option(help="mini or paper.")] = "mini",
        weights: Weights = None, row: Rows = None, settings: Settings = None, torchscript: TorchScript = False,
    ):  # fmt: skip
        """Table 2: with and without pre-trained encoders, with and without the intervention."""
        from .benchmark import table2

        show(table2(data, out, steps=steps, seeds=seeds, limit=limit, batch_size=batch_size, image_size=image_size, preset=preset, weights=weights, rows=row or None,
                    settings=changes(settings), torchscript=torchscript, progress=bar, say=typer.echo), out)  # fmt: skip

    @app.command()
    def pretrain(
        data: Annotated[list[str], typer.Option(help="Folder of a data set; may be repeated.")],
        out: Annotated[Path, typer.Option(file_okay=False, help="Folder for clip.safetensors and pretraining.json.")],
        steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
        batch_size: Annotated[int, typer.Option(min=2, help="Pictures of a step, each with another sentence.")] = 64,
        lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
        seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
        limit: Limit = None,
        precision: Annotated[str, typer.Option(help='"no" or "bf16".')] = "no",
        split_rule: Annotated[
            str, typer.Option(help="How train and val are told apart: published, first80, patients or sources; as in the runs that start from it.")
        ] = "published",
        settings: Annotated[
            Optional[list[str]], typer.Option("--set", help="key=value of a model's setting, e.g. clip.text_layers=2.")
        ] = None,
    ):
        """Train the small CLIP on X-rays and sentences, so that `train --set weights=FOLDER` can start from it."""
        from .config import ModelConfig, apply_settings

        (config,) = apply_settings(list(settings or []), ModelConfig())
        from .pretraining import pretrain

        about = pretrain(
            data, out, config, steps=steps, batch_size=batch_size, lr=lr, seed=seed, limit=limit, precision=precision,
            split_rule=split_rule, progress=tqdm,
        )  # fmt: skip
        if about["matching_after"]:
            m, b = about["matching_after"], about["matching_before"]
            typer.echo(
                f"own sentence found among {m['of']}: {m['share']:.1%} of {m['n']} validation pictures (before {b['share']:.1%}, chance {m['chance']:.1%})"
            )
        typer.echo(f"Pre-trained: {out}.")

    @tables.command()
    def confounding(
        out: Annotated[Path, typer.Option(file_okay=False, help="Folder for pictures, runs, table and figure; what is finished there is not run again.")],
        seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 5,
        strengths: Annotated[
            Optional[str], typer.Option(help="Correlations of scanner and lesion in training, e.g. 0.3,0.6,0.9.", show_default="the setting's")
        ] = None,
        methods: Annotated[Optional[str], typer.Option(help="Only these, e.g. oracle,none,causal.", show_default="all")] = None,
        small: Annotated[bool, typer.Option("--small", help="Small pictures, one strength, short runs: about 40 minutes of one core.")] = False,
        train: Annotated[Optional[int], typer.Option(min=100, help="Pictures of a training set.", show_default="the setting's")] = None,
        validation: Annotated[bool, typer.Option("--validation", help="Measure on patients set apart for choosing, not on the test's.")] = False,
    ):
        """Is it causal? Every objective in a world whose confounder is known, with a table and a figure."""
        try:
            wanted = [float(s) for s in strengths.split(",")] if strengths else None
        except ValueError:
            raise ValueError(f"--strengths takes numbers with commas between them, not {strengths!r}.") from None
        from .confounding import FULL, SMALL, run

        names = [name.strip() for name in methods.split(",")] if methods else None
        setting = SMALL if small else FULL
        setting = setting if train is None else replace(setting, train=train)
        run(out, setting=setting, seeds=seeds, strengths=wanted, methods=names, on="validation" if validation else "test", say=typer.echo)
        typer.echo(f"Written to {out}: confounding.json, confounding.md, confounding.png.")


def _lines(result: dict) -> list[str]:
    """What `evaluate` says of a result, a line each."""
    from .evaluation import RULES

    mean = lambda row: f"Dice {row['per_image']['dice']['mean']:.4f}  IoU {row['per_image']['iou']['mean']:.4f}"  # noqa: E731
    dice, only = result["per_image"]["dice"], result.get("only", "")
    lines = [
        f"{result['n']} pictures ({result['split']}{', ' + only if only else ''}), sentences: {result['text']}, threshold {result['threshold']:g}",
        f"per image  Dice {dice['mean']:.4f} ({dice['low']:.4f} to {dice['high']:.4f})  IoU {result['per_image']['iou']['mean']:.4f}",
        f"pooled     Dice {result['pooled']['dice']:.4f}  IoU {result['pooled']['iou']:.4f}",
    ]
    if "surface" in result:
        s = result["surface"]
        lines.append(f"surface    HD95 {s['hd95']['mean']:.2f} pixels, surface Dice {s['surface_dice']['mean']:.4f} at {s['tolerance_pixels']:g} pixels")
    lines += [f"{rule} ({row['threshold']['mean']:.3f})  {mean(row)}" for rule, row in result["thresholds"].items() if rule in RULES]
    lines += [f"sentence: {shown}  {mean(row)}" for shown, row in result.get("texts", {}).items()]
    if "against" in result:
        p = result["against"]["paired"]["dice"]
        lines.append(f"minus {result['against']['model']}  Dice {p['difference']:+.4f} ({p['low']:+.4f} to {p['high']:+.4f}), Wilcoxon p {p['p_wilcoxon']:.2g}")
    if "referring" in result:
        r = result["referring"]
        lines.append(f"one half named  {r['success']:.1%} of {r['n']} stay on it, Dice {r['dice']:.4f}, {r['empty']} empty" if r["n"] else "one half named  no picture has lesions in both halves")
    return lines
