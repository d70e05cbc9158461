"""An evaluation in words: a Markdown table, and one HTML page with the best, median and worst cases (no script, nothing loaded)."""

from __future__ import annotations

from html import escape
from pathlib import Path

from PIL import Image

from . import plots
from ._audit_page import _STYLE, _encoded, _interval, _table
from ._files import write_text
from .data import ReferringDataset, Sample, find_samples
from .evaluation import RULES, TEXTS, Predictor, answers, slice_of

_KINDS = {"best": "Highest Dice", "median": "Around the median", "worst": "Lowest Dice"}


def summary_rows(result: dict) -> tuple[list[str], list[list[str]]]:
    """The main table: heads, and a row for each threshold, each sentence and the second model, in per cent."""
    heads = ["measured", "Dice", "95 % interval", "IoU", "pooled Dice", "pooled IoU"]
    sources = [(f"threshold {name}{_used(row['threshold']) if name in RULES else ''}", row) for name, row in result["thresholds"].items()]
    sources += [(TEXTS[t], row) for t, row in result.get("texts", {}).items() if t != result["text"]]
    if "against" in result:
        sources.append((f"the other model, {result['against']['model']}", result["against"]))
    return heads, [[name, *_cells(row)] for name, row in sources]


def _used(threshold: dict) -> str:
    if threshold["low"] == threshold["high"]:
        return f" ({threshold['mean']:g})"
    return f" ({threshold['low']:.2f} to {threshold['high']:.2f}, mean {threshold['mean']:.2f})"


def _cells(row: dict) -> list[str]:
    dice, iou = row["per_image"]["dice"], row["per_image"]["iou"]
    numbers = (dice["mean"], None, iou["mean"], row["pooled"]["dice"], row["pooled"]["iou"])
    return [f"{100 * dice['low']:.2f} to {100 * dice['high']:.2f}" if x is None else f"{100 * x:.2f}" for x in numbers]


def remarks(result: dict) -> list[str]:
    """Whatever of a result is better said than put into the table."""
    per_image, lines = result["per_image"], []
    lines.append(
        f"Precision {100 * per_image['precision']['mean']:.2f}, recall {100 * per_image['recall']['mean']:.2f} (per image, threshold {result['threshold']:g})."
    )
    if "surface" in result:
        s = result["surface"]
        lines.append(
            f"HD95 {s['hd95']['mean']:.2f} pixels (median {s['hd95']['median']:.2f}), surface Dice {100 * s['surface_dice']['mean']:.2f} at "
            f"{s['tolerance_pixels']:g} pixels; {s['rule']}; empty predictions: {s['empty_predictions']}."
        )
    c = result["calibration"]
    lines.append(
        f"Expected calibration error {c['ece']:.4f} over all pixels, {c['ece_inner']:.4f} over those with a probability from 0.1 to 0.9."
    )
    if "against" in result:
        p = result["against"]["paired"]["dice"]
        lines.append(
            f"Dice minus that of {result['against']['model']}: {100 * p['difference']:+.2f} ({100 * p['low']:+.2f} to {100 * p['high']:+.2f}); paired bootstrap "
            f"p = {p['p_bootstrap']:.4f}, Wilcoxon p = {p['p_wilcoxon']:.4g}; better on {p['better']} pictures, worse on {p['worse']}."
        )
    lines.append(result["note"])
    return lines


def markdown_of(result: dict) -> str:
    """The result as Markdown: the main table, the groups, and remarks."""
    heads, rows = summary_rows(result)
    lines = [_title(result), "", _line(heads), "|" + "---|" * len(heads), *map(_line, rows), ""]
    lines += ["| group | pictures | Dice | 95 % interval | IoU | pooled Dice |", "|---|---|---|---|---|---|"]
    for name, values in result["subgroups"].items():
        for value, g in values.items():
            lines.append(
                f"| {name}: {value} | {g['n']} | {100 * g['dice']:.2f} | {100 * g['low']:.2f} to {100 * g['high']:.2f} "
                f"| {100 * g['iou']:.2f} | {100 * g['pooled_dice']:.2f} |"
            )
    return "\n".join([*lines, "", *(f"{remark}\n" for remark in remarks(result))])


def page_of(result: dict, pictures: dict[int, tuple[Image.Image, Image.Image]] | None = None) -> str:
    """The whole page, HTML with every style inside.

    Args:
        pictures: by the "index" of a case, (truth, answer) as pictures; None or missing ones: the page shows words alone.
    """
    heads, rows = summary_rows(result)
    parts = [_table("Per cent; per image with a 95 % bootstrap interval, and pooled over the set", heads, [_row(r) for r in rows])]
    parts += [f"<p>{escape(remark)}</p>" for remark in remarks(result)]
    groups = [
        _row([f"{name}: {value}", str(g["n"]), _interval({"mean": g["dice"], "low": g["low"], "high": g["high"]}), f"{g['pooled_dice']:.3f}"])
        for name, values in result["subgroups"].items() for value, g in values.items()
    ]  # fmt: skip
    parts.append(
        "<h2>Groups</h2>"
        + _table(
            "Dice by what is known of a picture; small groups have wide intervals", ["group", "pictures", "Dice", "pooled Dice"], groups
        )
    )
    bins = [
        _row(
            [
                f"{b['from']:.1f} to {b['to']:.1f}",
                str(b["pixels"]),
                *("–" if b[k] is None else f"{b[k]:.3f}" for k in ("mean_probability", "lesion_share")),
            ]
        )
        for b in result["calibration"]["bins"]
    ]
    parts.append(
        "<h2>Calibration</h2>"
        + _table("Of the pixels with such a probability, how many are lesion", ["probability", "pixels", "mean", "lesion"], bins)
    )
    legend = (
        "Left, green: the true outline. Right, blue: the model's answer."
        if pictures
        else "Pictures of patients are not shown; --pictures shows them."
    )
    parts.append(f"<p>{legend}</p>")
    for kind, title in _KINDS.items():
        figures = [_case(case, (pictures or {}).get(case["index"])) for case in result["cases"][kind]]
        parts.append(f'<h2>{title}</h2><div class="pictures">{"".join(figures)}</div>')
    title = escape(_title(result))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}th[scope=col]:not(:first-child){{text-align:right}}figure.case{{width:19.5rem}}figure.case img{{width:50%}}</style></head><body><main><h1>{title}</h1>\n"
        + "\n".join(parts) + "\n</main></body></html>\n"
    )  # fmt: skip


def _case(case: dict, pair) -> str:
    words = f"Dice {case['dice']:.3f}, IoU {case['iou']:.3f}. {case['name']}: “{case['shown'] or 'no sentence'}”"
    if case["shown"] != case["report"]:
        words += f" (its own: “{case['report']}”)"
    images = ""
    if pair is not None:
        alts = (
            f"{case['name']}: X-ray with the true outline in green",
            f"{case['name']}: X-ray with the answer in blue, Dice {case['dice']:.2f}",
        )
        images = "".join(f'<img alt="{escape(alt)}" src="data:image/png;base64,{_encoded(picture)}">' for alt, picture in zip(alts, pair))
    return f'<figure class="case">{images}<figcaption>{escape(words)}</figcaption></figure>'


def _title(result: dict) -> str:
    part = f"{result['split']}, {result['only']}" if "only" in result else result["split"]
    return f"{result['model']} on {result['data']} ({part}; {result['n']} pictures; shown: {TEXTS[result['text']]})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(cells: list[str]) -> str:
    first, *rest = map(escape, cells)
    return f'<tr><th scope="row">{first}</th>' + "".join(f'<td class="n">{cell}</td>' for cell in rest) + "</tr>"


def save(
    result: dict, out: str | Path, *, markdown: bool = True, page: bool = True, predict: Predictor | None = None, data: str = "", image_size: int = 224,
    pictures: bool = False, splits: str = "published",
) -> None:  # fmt: skip
    """Write a result as Markdown and as an HTML page, beside its JSON file `out` and named after it.

    Args:
        predict, data, image_size, splits: as for `evaluate`; for pictures.
        pictures: draw the cases' X-rays on the page. Without it they are drawn only where all are phantoms, never a
            patient unasked.
    """
    if markdown:
        write_text(beside(out, ".md"), markdown_of(result))
    if page:
        samples = slice_of(find_samples(data, result["split"], rule=splits), result.get("only", ""))
        show = predict is not None and (pictures or all(s.source == "phantom" for s in samples))
        write_text(beside(out, ".html"), page_of(result, _draw(result, predict, samples, image_size) if show else None))


def beside(out: str | Path, suffix: str) -> Path:
    """A file beside the result's, of the same name: scores.json and scores.md, mini-0.35 and mini-0.35.md."""
    return Path(out).with_name(Path(out).name.removesuffix(".json") + suffix)


def _draw(result: dict, predict: Predictor, samples: list[Sample], image_size: int) -> dict:
    """By index of a case: its X-ray with the true outline, and with the answer."""
    chosen = {case["index"]: case for kind in result["cases"].values() for case in kind}
    dataset = ReferringDataset([samples[i] for i in chosen], size=None, cache=False)
    found = answers(predict, dataset, image_size, reports=[case["shown"] for case in chosen.values()])
    return {
        i: (plots.overlay(item["image"][0].numpy(), item["mask"][0].numpy() > 0, colour=plots.GREEN),
            plots.overlay(item["image"][0].numpy(), (probability[0] >= result["threshold"]).numpy()))
        for i, (item, probability) in zip(chosen, found)
    }  # fmt: skip
