"""The table and the figure of the experiment in `confounding.py`, from its runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from scipy import stats

from ._files import write_text, written_beside

SETS = {"same": "same coupling", "none": "no coupling", "reversed": "reversed", "rerendered": "same patients, other scanner"}
COLOURS = {"same": "#0072B2", "none": "#009E73", "reversed": "#D55E00"}  # Okabe-Ito
SHORT = {"none": "L_c alone", "causal": "Eq. 3-4 as printed", "surroundings": "lungs in another picture", "matched": "the scanner drawn anew"}  #: where a method's name says too little
MARKERS = {"same": "o", "none": "s", "reversed": "^"}
BAR = "\\|"  # a bar inside a cell
ADVERSARIES = {"causal": ("#D55E00", "-"), "bounded": ("#0072B2", "--"), "minimax": ("#009E73", ":")}


def write_report(out: Path, rows: list[dict], setting, methods: dict, on: str, lam: float) -> dict:
    """Write `confounding.json`, `confounding.md` and `confounding.png` into `out`; returns what the JSON holds."""
    result = {"setting": dataclasses.asdict(setting), "on": on, "lambda": lam, "summary": {}, "verdict": {}, "runs": rows}
    for strength in sorted({row["strength"] for row in rows}):
        part = [row for row in rows if row["strength"] == strength]
        result["summary"][f"{strength:g}"] = summary = summarise(part, methods)
        result["verdict"][f"{strength:g}"] = verdict(part, summary)
    write_text(out / "confounding.json", json.dumps(result) + "\n")
    write_text(out / "confounding.md", markdown(result, methods))
    draw(out / "confounding.png", rows, result["summary"], methods)
    return result


def interval(values) -> dict:
    """Mean over seeds and its 95 % t interval; None where a single run (or none) leaves it open."""
    values = np.array([v for v in values if v is not None and np.isfinite(v)], float)
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0}
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    mean = float(values.mean())
    return {"mean": mean, "low": None if half is None else mean - half, "high": None if half is None else mean + half, "n": len(values)}


def summarise(rows: list[dict], methods: dict) -> dict:
    """What the table shows of one strength: {method: {quantity: interval over seeds}}; differences are paired by seed."""
    runs = {(row["method"], row["seed"]): row for row in rows}
    found = {}
    for name in methods:
        mine = [row for row in rows if row["method"] == name]
        if not mine:
            continue
        entry = {f"dice {key}": interval([row["dice"][key] for row in mine]) for key in SETS}
        drops, closed, gaps = [], [], []
        for row in mine:
            oracle, plain = (runs.get((other, row["seed"])) for other in ("oracle", "none"))
            d = row["dice"]
            if oracle:
                drops.append((d["same"] - d["reversed"]) - (oracle["dice"]["same"] - oracle["dice"]["reversed"]))
                gaps.append(d["none"] - oracle["dice"]["none"])
            if oracle and plain:
                lost = oracle["dice"]["reversed"] - plain["dice"]["reversed"]
                closed.append((d["reversed"] - plain["dice"]["reversed"]) / lost if lost > 0 else np.nan)
        entry |= {"drop": interval(drops), "closed": interval(closed), "to the oracle": interval(gaps)}
        entry["change"] = interval([row["change"] for row in mine])
        for kind in ("trained", "untrained", "location prior"):
            for region in ("lesion", "device"):
                for key in ("auroc_m", "auroc_one_minus_m", "mass_m", "mass_one_minus_m", "area"):
                    entry[f"{kind} {region} {key}"] = interval([row["looks"][kind][region][key] for row in mine])
        for kind in ("trained", "untrained"):
            for key in mine[0]["probes"][kind]:
                entry[f"{kind} {key}"] = interval([row["probes"][kind][key] for row in mine])
        found[name] = entry
    return found


def verdict(rows: list[dict], summary: dict) -> dict:
    """The objective as printed less L_c alone, paired by seed: on the reversed set, and in the drop (more is worse)."""
    runs = {(row["method"], row["seed"]): row["dice"] for row in rows}
    pairs = [(runs["causal", seed], runs["none", seed]) for name, seed in runs if name == "causal" and ("none", seed) in runs]
    return {
        **{f"dice {key}": interval([c[key] - n[key] for c, n in pairs]) for key in SETS},
        "drop": interval([(c["same"] - c["reversed"]) - (n["same"] - n["reversed"]) for c, n in pairs]),
        "closed": summary.get("causal", {}).get("closed"),
    }  # fmt: skip


def _text(value: dict | None, digits: int = 3, percent: bool = False) -> str:
    if not value or value["mean"] is None:
        return "–"
    scale, end = (100, " %") if percent else (1, "")
    digits = 0 if percent else digits
    spread = "" if value["low"] is None else f" ± {scale * (value['high'] - value['mean']):.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}{end}"


def markdown(result: dict, methods: dict) -> str:
    """The tables, one set for each strength."""
    setting, lines = result["setting"], ["# Is it causal? Every objective in a world with a known confounder", ""]
    lines += [
        f"Phantoms of {setting['size']}×{setting['size']} pixels, {setting['train']} for training, {setting['test']} in each {result['on']} set, {setting['steps']} steps of "
        f"{setting['batch']} pictures (views counted: half as many patients where each is seen twice), sentences \"{setting['precision']}\". A run's seed decides weights, batches, and who is on which scanner. "
        "Mean ± half of the 95 % t interval over seeds; differences (drop, closed, to the oracle) are paired by seed, over "
        "the seeds whose oracle and `none` are there; where these are fewer than the runs, the table says so.", "",
    ]  # fmt: skip
    for strength, summary in result["summary"].items():
        lines += [f"## Correlation {strength} of scanner and lesion's side in training", "",
                  "| method | runs | Dice, same | none | reversed | other scanner | drop | closed | to the oracle, none | change under do(A) |",
                  "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, e in summary.items():
            closed = "–" if name in ("oracle", "none") else _text(e["closed"], percent=True)
            lines.append(
                f"| {name}: {methods[name].says.replace('|', BAR)} | {_runs(e)} | " + " | ".join(_text(e[f"dice {key}"]) for key in SETS)
                + f" | {'–' if name == 'oracle' else _text(e['drop'])} | {closed} | {'–' if name == 'oracle' else _text(e['to the oracle'])} | {_text(e['change'])} |"
            )  # fmt: skip
        v = result["verdict"][strength]
        lines += ["", f"The objective as printed less L_c alone, paired: reversed {_interval(v['dice reversed'])}, none {_interval(v['dice none'])}, "
                  f"drop {_interval(v['drop'])}.", "",
                  "### Where M and 1 − M look", "",
                  "AUROC of M (of 1 − M it is one less that, so exchanging the two mirrors it) and share of the map's mass, on the lesion and on the scanner's "
                  "device.", "",
                  "| method | M on lesion, AUROC | 1 − M on device, AUROC | mass of M on lesion | of 1 − M on lesion | of M on device | of 1 − M on device |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        looks = [(name, e, "trained") for name, e in summary.items()]
        first = next(iter(summary.values()))
        looks += [("untrained masker", first, "untrained"), ("location prior as M", first, "location prior")]
        for name, e, kind in looks:
            g = lambda region, key: _text(e[f"{kind} {region} {key}"])
            lines.append(f"| {name} | {g('lesion', 'auroc_m')} | {g('device', 'auroc_one_minus_m')} | {g('lesion', 'mass_m')} | {g('lesion', 'mass_one_minus_m')} | "
                         f"{g('device', 'mass_m')} | {g('device', 'mass_one_minus_m')} |")  # fmt: skip
        area = (first["trained lesion area"]["mean"], first["trained device area"]["mean"])
        lines += [f"| a map without any preference | 0.500 | 0.500 | {area[0]:.3f} | {area[0]:.3f} | {area[1]:.3f} | {area[1]:.3f} |", "",
                  "### Fresh linear probes on frozen features (AUROC on new patients)", "",
                  "| method | Y from F^s | Y from F^c | A from F^c | A from F^s |", "|---|---|---|---|---|"]  # fmt: skip
        keys = ("Y from F^s", "Y from F^c", "A from F^c", "A from F^s")
        for name, e, kind in [(n, e, "trained") for n, e in summary.items()] + [("untrained network", first, "untrained")]:
            lines.append(f"| {name} | " + " | ".join(_text(e[f"{kind} {key}"]) for key in keys) + " |")
        lines.append("")
    return "\n".join(lines)


def _runs(entry: dict) -> str:
    runs, paired = entry["change"]["n"], entry["closed"]["n"]
    return str(runs) if runs == paired else f"{runs} ({paired} paired)"


def _interval(value: dict) -> str:
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:+.3f}" + ("" if value["low"] is None else f" ({value['low']:+.3f} to {value['high']:+.3f})")


def draw(path: Path, rows: list[dict], summary: dict, methods: dict) -> None:
    """Dice on the sets, share closed, and L_s and D_s over training, at the strongest coupling."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not summary:
        return
    strength = max(summary, key=float)
    found = summary[strength]
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, top, bottom = (*figure.subplot_mosaic([["a", "a", "b", "c"], ["a", "a", "b", "d"]]).values(),)
    names = [name for name in methods if name in found][::-1]
    for k, key in enumerate(COLOURS):
        values = [found[name][f"dice {key}"] for name in names]
        left.errorbar([v["mean"] for v in values], np.arange(len(names)) + 0.22 * (1 - k), xerr=[(v["high"] or v["mean"]) - v["mean"] for v in values],
                      fmt=MARKERS[key], color=COLOURS[key], label=SETS[key], capsize=2, markersize=5, linewidth=1)  # fmt: skip
    left.set_yticks(range(len(names)), [SHORT.get(name, name) for name in names])
    left.set_xlabel("Dice per image, mean over seeds and 95 % interval")
    left.set_title(f"Trained at correlation {strength}", fontsize=10)
    left.set_xlim(0, 1)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=len(COLOURS), frameon=False)
    left.grid(axis="x", alpha=0.3)
    remedies = [name for name in names if name not in ("oracle", "none", "sentence only") and found[name]["closed"]["mean"] is not None]
    values = [found[name]["closed"] for name in remedies]
    middle.barh([SHORT.get(name, name) for name in remedies], [100 * v["mean"] for v in values], xerr=[100 * ((v["high"] or v["mean"]) - v["mean"]) for v in values], color="#56B4E9",
                edgecolor="black", linewidth=0.6, capsize=2)  # fmt: skip
    middle.set_xlim(min(-50, 105 * min((v["low"] or v["mean"] for v in values), default=0)), 130)
    middle.axvline(0, color="black", linewidth=0.8)
    middle.axvline(80, color="black", linestyle=":", linewidth=0.8)
    middle.set_xlabel("of the reversed loss regained, % (dotted: 80)")
    for name, (colour, style) in ADVERSARIES.items():
        histories = [row["history"] for row in rows if row["method"] == name and f"{row['strength']:g}" == strength]
        for panel, key in ((top, "L_s"), (bottom, "D_s")):
            for number, history in enumerate(histories):
                points = [(line["step"], line[key]) for line in history if key in line]
                panel.plot(*zip(*points), color=colour, linestyle=style, linewidth=1, alpha=0.8, label=name if number == 0 else None)
    top.set_yscale("log")
    top.set_ylabel("L_s, nats a pixel")
    bottom.set_ylabel("Dice of D_s")
    bottom.set_ylim(0, 1)
    bottom.set_xlabel("step")
    if top.lines:
        top.legend(fontsize=8)
    for panel in (top, bottom):
        panel.grid(alpha=0.3)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
