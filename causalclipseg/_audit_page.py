"""The audit as one HTML page: no script, no link, nothing loaded; readable for a clinician and when printed.

Colours are Okabe and Ito's; nothing is said by colour alone.
"""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from .evaluation import TEXTS

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.6rem}h2{margin-top:2.2rem;font-size:1.25rem;border-bottom:1px solid #bbb}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:.6rem 0}
caption{text-align:left;color:#444;padding-bottom:.3rem}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}
td.n,th.n{text-align:right}tr.flag th{font-weight:700}
.say{background:#f2f6fa;border-left:5px solid #0072B2;padding:.7rem 1rem}
.small{color:#444;font-size:.9rem}.bar{display:block}
.pictures{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;width:11.5rem}
figure img{width:100%;height:auto}figcaption{font-size:.85rem}
"""
_REGIONS = {"lesion": "the lesion", "acquisition": "what the acquisition drew (markers, leads, tubes, borders)"}


def page(result: dict, pictures: list[tuple[str, str, Image.Image]]) -> str:
    """The whole page.

    Args:
        result: `Audit.result`. pictures: (caption, alt text, picture), shown in this order.
    Returns:
        HTML, UTF-8, with every style and picture inside.
    """
    parts = [_summary(result), _edits(result), _sentences(result), _groups(result), _localisation(result), _pictures(pictures), _method(result)]
    title = f"Audit of {result['model']} on {result['data']}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>\n"
        + "\n".join(filter(None, parts)) + "\n</main></body></html>\n"
    )  # fmt: skip


def _summary(r: dict) -> str:
    plain, worst = r["plain"]["per_image"]["dice"], r["worst"]
    costly = r["over_costly"]
    lines = [
        f"Shown each picture with its own sentence, the model's outline agrees with the expert's by a Dice of "
        f"<strong>{_interval(plain)}</strong> (1 is perfect, 0 is no overlap; mean of {r['n']} pictures).",
        f"Of the changes of acquisition that were tried, <strong>{escape(worst['edit'])}</strong> at severity {worst['severity']} "
        f"costs most: Dice falls by {_interval(worst['cost'])}. Taking for each picture the edit that hurts it most, "
        f"Dice is {_interval(worst['lowest_of_all_edits'])}.",
        (f"More than {r['costly']:g} is lost with: {escape(', '.join(costly))}." if costly else f"No edit costs more than {r['costly']:g} on average."),
        f"Without a sentence Dice changes by {_signed(r['sentences']['none']['cost'])}; with left and right exchanged in it by "
        f"{_signed(r['sentences']['swapped']['cost'])}.",
    ]  # fmt: skip
    kind = "synthetic X-rays (phantoms)" if r["phantoms"] else "the pictures of the folder"
    sample = f"a sample of {r['n']} of the {r['of']}" if r["n"] < r["of"] else f"all {r['n']}"
    return (f'<p class="small">{sample} pictures of the split “{escape(r["split"])}”; {kind}. A teaching tool, not a medical device.</p>'
            '<div class="say">' + "".join(f"<p>{line}</p>" for line in lines) + "</div>")  # fmt: skip


def _edits(r: dict) -> str:
    rows, most = [], max(0.1, *(abs(e["cost"]["mean"]) for e in r["edits"]))
    for e in r["edits"]:
        flag = e["cost"]["mean"] > r["costly"]
        cells = [_bar(e["cost"]["mean"], most, flag), _signed(e["cost"], minus=True) + (" ▲" if flag else ""), _interval(e["dice"]), _interval(e["change"])]
        rows.append(f'<tr{" class=flag" if flag else ""}><th scope="row">{escape(e["edit"])}</th><td class="n">{e["severity"]}</td>'
                    + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")  # fmt: skip
    meanings = "".join(f"<li><strong>{escape(name)}</strong>: {escape(text)}</li>" for name, text in r["descriptions"].items())
    return (
        "<h2>The same patients, taken otherwise</h2><p>The lesion stays as it is, so the answer should, too. Severity 1 is mild, 2 clear, "
        "3 strong; all are seen in practice. Nothing is drawn over a lesion.</p>" + _table(
            f"Loss of Dice (▲: more than {r['costly']:g}), Dice after the edit, and the share of the answer that moved, with 95 % intervals",
            ["edit", "severity", "loss", "loss of Dice", "Dice", "moved"], rows)
        + f"<details><summary>What the edits mean</summary><ul>{meanings}</ul></details>"
    )  # fmt: skip


def _sentences(r: dict) -> str:
    rows = [f'<tr><th scope="row">{TEXTS[t]}</th><td>{_interval(row["dice"])}</td><td>{_signed(row["cost"], minus=True)}</td><td>{_interval(row["change"])}</td></tr>'
            for t, row in r["sentences"].items()]  # fmt: skip
    return ("<h2>The same pictures, described otherwise</h2><p>The sentences of this data state where the mask lies, so a model may read the answer "
            "off the sentence. What is lost with a wrong sentence shows how much it leans on it.</p>"
            + _table("Dice by sentence, with 95 % intervals", ["sentence", "Dice", "loss of Dice", "moved"], rows))  # fmt: skip


def _groups(r: dict) -> str:
    rows = [f'<tr><th scope="row">{escape(name)}: {escape(value)}</th><td class="n">{g["n"]}</td><td>{_interval({**g, "mean": g["dice"]})}</td><td class="n">{g["pooled_dice"]:.3f}</td></tr>'
            for name, values in r["groups"].items() for value, g in values.items()]  # fmt: skip
    return "<h2>Groups of patients</h2>" + _table("Dice by known group; small groups have wide intervals", ["group", "pictures", "Dice (mean)", "Dice (pooled)"], rows)


def _localisation(r: dict) -> str:
    if not r["localisation"]:
        return ""
    rows = []
    for region, v in r["localisation"].items():
        for name, key in (("causal mask M", "m"), ("confounder mask 1 − M", "one_minus_m")):
            rows.append(f'<tr><th scope="row">{name} on {_REGIONS[region]}</th><td class="n">{v["n"]}</td><td>{_interval(v[f"auroc_{key}"])}</td>'
                        f'<td>{_interval(v[f"mass_{key}"])}</td><td class="n">{v["share"]:.3f}</td></tr>')  # fmt: skip
    return ("<h2>Where the two masks look</h2><p>If M held the causal part and 1 − M the confounders, M would lie on the lesion (AUROC near 1) and "
            "1 − M on what the acquisition drew. 0.5 is chance; the share of attention should be compared with the share of the picture.</p>"
            + _table("Means over pictures, with 95 % intervals over patients", ["map", "pictures", "AUROC", "share of attention", "share of picture"], rows))  # fmt: skip


def _pictures(pictures) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{_encoded(picture)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, alt, picture in pictures
    )
    return f'<h2>Examples</h2><p>Green: the true outline. Blue: the model\'s answer.</p><div class="pictures">{figures}</div>'


def _method(r: dict) -> str:
    return (f'<h2>How this was measured</h2><p class="small">{escape(r["note"])} Threshold {r["threshold"]:g}; pictures resized to {r["image_size"]} for '
            f'the model; seed {r["seed"]}; digest of the data {escape(str(r["data_digest"])[:16])}.</p>')  # fmt: skip


def _table(caption: str, heads: list[str], rows: list[str]) -> str:
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _interval(v: dict) -> str:
    return "–" if v["mean"] is None else f"{v['mean']:.3f} ({v['low']:.3f} to {v['high']:.3f})"


def _signed(v: dict, minus: bool = False) -> str:
    """A cost as a change of Dice (its negative), or, with `minus`, as the loss that it is."""
    if v["mean"] is None:
        return "–"
    s, low, high = (1, v["low"], v["high"]) if minus else (-1, -v["high"], -v["low"])
    return f"{s * v['mean'] + 0.0:+.3f} ({low + 0.0:+.3f} to {high + 0.0:+.3f})".replace("-", "−")


def _bar(value: float, most: float, flag: bool) -> str:
    """A bar from 0 to the right for a loss; decoration only, the number stands beside it."""
    width = max(0.0, value) / most * 100
    return f'<svg class="bar" width="104" height="14" aria-hidden="true"><rect x="0" y="2" width="{width:.1f}" height="10" fill="{"#D55E00" if flag else "#56B4E9"}"/><line x1="0.5" x2="0.5" y1="0" y2="14" stroke="#444"/></svg>'


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
