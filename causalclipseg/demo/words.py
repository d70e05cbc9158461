"""Answers in words, as HTML: the written equivalent of every picture on the page. All text of visitors is escaped."""

from __future__ import annotations

import base64
import html
import io
import json
import re

import numpy as np
from PIL import Image

from .. import plots, reports

ZONES_NOTE = "The finding names an upper or lower zone from one pixel on. "
SIDES_NOTE = "Left and right are the halves of the picture, as in QaTa-COV19; the picture’s left is usually the patient’s right."


def finding_html(result) -> str:
    """The finding in words: everything that the picture with the mask shows, for those who don't see it."""
    found, highest = bool(result.mask.any()), float(result.probability.max())
    if found:
        says = html.escape(result.finding)
        many = f"{result.components} separate area{'s' * (result.components != 1)}"
        inside = result.probability[result.mask].mean()
        rows = [("Area", f"{percent(result.area_fraction)} of the picture, in {many}"),
                ("Confidence", f"probability {inside:.2f} on average inside the mask, at most {highest:.2f}")]  # fmt: skip
    else:
        says = f"No lesion found at threshold {result.threshold:.2f}."
        rows = [("Confidence", f"probability at most {highest:.2f} in the whole picture")]
    claim = reports.parse(result.report)
    unclear = "not every word of the sentence was read" if claim.unread else "the sentence contradicts itself" if claim.contradictions else ""
    claims = f'<p class="claims">Your sentence: {html.escape(result.report.strip()[:300]) or "(none)"}</p>'
    if result.disagreements:
        either = "Either may be wrong." + f" But {unclear}, so this may not be what it means." * bool(unclear)
        verdict = f'<div class="note"><strong>⚠ Sentence and mask disagree</strong>{bullets(result.disagreements)}<p>{either}</p></div>'
    elif unclear:  # "Left lung not infected." names a side, too
        verdict = f"<p><strong>Sentence and mask could not be compared:</strong> {unclear}.</p>"
    elif claim.side or claim.extent or claim.count is not None:
        verdict = '<p class="good"><strong>✓ Sentence and mask agree.</strong> That alone does not show that a lesion is there.</p>'
    else:
        verdict = "<p>The sentence names no side, zone or number that could be compared with the mask.</p>"
    verdict += notes(result.warnings)
    table = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return (
        f'<section class="card" id="finding"><h2>What the mask shows</h2>'
        f'<p class="says">{says}</p>{claims}{verdict}<dl>{table}</dl>{zones_html(result) if found else ""}'
        f"<small>Model {html.escape(result.model)}. {ZONES_NOTE * found}{SIDES_NOTE} Not for clinical use.</small></section>"
    )


def percent(share: float) -> str:
    """A share in [0, 1] in per cent; little is not nothing."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def zones_html(result) -> str:
    """Area of each half and zone, in per cent of the picture, beside what the sentence claimed; ⚠ where the two differ."""
    claim, body, differ = reports.parse(result.report), "", False
    for zone in (*reports.ZONES, None):
        cells = ""
        for side in reports.SIDES:
            rows, columns = reports.part_slices(*result.mask.shape, side, zone)
            share = result.mask[rows, columns].sum() / result.mask.size
            said = " ◆" if zone in getattr(claim, side) else ""
            if zone and reports.differ(claim, result.seen, side, zone):
                said, differ = said + " ⚠", True
            cells += f"<td>{percent(share)}{said}</td>" if share else f"<td>–{said}</td>"
        body += f"<tr><th scope='row'>{zone or 'whole half'}</th>{cells}</tr>"
    return (
        f"<table class='zones'><caption>Share of the picture in each zone (◆ named by the sentence{', ⚠ sentence and mask differ' * differ})</caption><thead><tr><td></td>"
        f"<th scope='col'>left</th><th scope='col'>right</th></tr></thead><tbody>{body}</tbody></table>"
    )


def map_html(title: str, meaning: str, values: np.ndarray | None, mask: np.ndarray, colour) -> str:
    """Title, meaning, colour scale and figures of one map of values in [0, 1]: its written equivalent."""
    if values is None:
        return f'<div class="tile"><h3>{title}</h3><p>Not there: this model was built without causal intervention.</p></div>'
    ramp = f"background: linear-gradient(90deg, #808080, rgb{tuple(colour)})"
    return _tile(title, meaning, values, mask, "0", "1", ramp)


def signed_html(title: str, meaning: str, values: np.ndarray, mask: np.ndarray, limit: float, unit: str) -> str:
    """The same for a map of signed values, drawn from -limit (purple) to limit (green)."""
    ramp = f"background: linear-gradient(90deg, rgb{plots.PURPLE}, #808080, rgb{plots.GREEN})"
    return _tile(title, meaning, values, mask, f"−{limit:g}", f"+{limit:g} {unit}", ramp)


def _tile(title, meaning, values, mask, low, high, ramp) -> str:
    parts = [("inside the mask", mask), ("outside", ~mask)]
    figures = ", ".join(f"{name} {values[where].mean():.2f}" for name, where in parts if where.any())
    return (
        f'<div class="tile"><h3>{title}</h3><p>{meaning}</p><p><small>On average {figures}; lowest {values.min():.2f}, '
        f'highest {values.max():.2f}.</small></p><p class="legend"><span>{low} <i class="ramp" style="{ramp}"></i> {high}</span></p></div>'
    )


def intervention_html(found) -> str:
    """Verdict and figures of one intervention."""
    rows = [("Edit", html.escape(f"{found.edit}: {found.to_dict()['what']}")), ("Sentence", html.escape(found.before.report.strip()[:300]) or "(none)"), ("Dice before/after", f"{found.dice:.3f}"),
            ("Area before", f"{percent(found.before.area_fraction)} of the picture"), ("Area after", f"{percent(found.after.area_fraction)} of the picture"),
            ("Change of probability", f"{np.abs(found.difference).mean():.3f} on average, at most {np.abs(found.difference).max():.2f}"),
            ("Finding before", html.escape(found.before.finding)), ("Finding after", html.escape(found.after.finding))]  # fmt: skip
    if found.on_sentence:
        rows.insert(2, ("Sentence after", html.escape(found.after.report) or "(none)"))
    table = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    new = [f"After the edit: {line}" for line in found.after.warnings if line not in found.before.warnings]
    return (
        f'<section class="card" id="verdict"><h2>Before and after</h2><p class="says">'
        f"{html.escape(found.verdict)}</p>{notes([*found.before.warnings, *new])}<dl>{table}</dl><small>Model {html.escape(found.before.model)}, threshold {found.before.threshold:.2f}. This is one "
        "picture; the audit in the model card counts many. Not for clinical use.</small></section>"
    )


def explanation_html(found) -> str:
    """What an attribution shows, and how faithful it is."""
    from ..explain import METHODS, RANDOM_ORDERS

    body, measures = f'<p class="method">{html.escape(METHODS[found.method])}</p>', found.faithfulness
    body += f'<p class="claims">Your sentence: {html.escape(found.result.report.strip()[:300]) or "(none)"}</p>'
    if found.attribution is not None and not found.empty:
        ramp = f"background: linear-gradient(90deg, rgb{plots.PURPLE}, #808080, rgb{plots.GREEN})"
        body += (
            '<p>Green speaks for the mask, purple against it; the white outline is the mask. Each method has a unit of its own, so the strongest '
            f'hundredth of the map has full colour.</p><p class="legend"><span>against <i class="ramp" style="{ramp}"></i> for</span></p>'
        )
    if found.words and not found.empty:
        largest = max(map(abs, found.scores)) or 1
        bars = "".join(
            f"<tr><th scope='row'>{html.escape(word)}</th><td>{score:+.2f}</td><td class='bar'><i class='{'for' if score > 0 else 'against'}' "
            f"style='width: {abs(score) / largest:.0%}'></i></td></tr>" for word, score in zip(found.words, found.scores)
        )  # fmt: skip
        body += f"<table class='words'><caption>What each word adds to the mask’s mean logit (green, +: for the mask; purple, −: against it)</caption>{bars}</table>"
    if found.inside is not None:
        body += f"<p>{found.inside:.0%} of what speaks for the mask lies inside it.</p>"
    if measures is not None:
        good = measures.better_than_random
        verdict = (f"✓ On this picture it does better than the mean of {RANDOM_ORDERS} random orders." if good
                   else f"⚠ On this picture it does no better than the mean of {RANDOM_ORDERS} random orders; do not read anything into it.")  # fmt: skip
        body += (
            f'<p class="{"good" if good else "bad"}"><strong>{verdict}</strong></p><p>The most important patches or words are taken away first (deletion), or put back first (insertion): how much of the '
            'answer is left on average (1: all of it; 0 or less: no more than with all of them gone)? Fit: how well the map foretells what random removals do, beside a map that is the same everywhere.</p>'
            '<table class="zones"><caption>Faithfulness</caption><thead><tr><td></td>'
            "<th scope='col'>this map</th><th scope='col'>random orders, flat map</th></tr></thead><tbody>"
            f"<tr><th scope='row'>deletion (low is good)</th><td>{measures.deletion:.2f}</td><td>{measures.random_deletion:.2f}</td></tr>"
            f"<tr><th scope='row'>insertion (high is good)</th><td>{measures.insertion:.2f}</td><td>{measures.random_insertion:.2f}</td></tr>"
            f"<tr><th scope='row'>fit (0 to 1)</th><td>{measures.fit:.2f}</td><td>{measures.flat_fit:.2f}</td></tr></tbody></table>"
        )
    body += notes(found.warnings)
    return (
        f'<section class="card" id="explanation"><h2>Why this mask?</h2>{body}'
        f"<small>Model {html.escape(found.result.model)}, threshold {found.result.threshold:.2f}. The mask is frozen while pixels or words change. An attribution shows what this model used, not what is wrong with a patient.</small></section>"
    )


def downloads_html(result, overlay: Image.Image) -> str:
    """Links that hold their files: mask (0 or 255, input size), overlay (as drawn) and the numbers as JSON."""
    def link(name: str, kind: str, content: bytes) -> str:
        return f'<a download="{name}" href="data:{kind};base64,{base64.b64encode(content).decode()}">{name}</a>'

    links = [
        link("mask.png", "image/png", _png(Image.fromarray(result.mask * np.uint8(255)))), link("overlay.png", "image/png", _png(overlay)),
        link("result.json", "application/json", json.dumps(result.to_dict(), indent=2, ensure_ascii=False).encode()),
    ]  # fmt: skip
    return f'<p class="downloads"><strong>Download</strong> {" ".join(links)}</p>'


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def legend_html() -> str:
    """What the colours of the large picture mean."""
    style = f"border-color: rgb{plots.SKY}; background: rgba{(*plots.SKY, 0.4)}"
    swatch = f'<span><i class="swatch" style="{style}"></i>mask: outline and tint</span>'
    return f'<div class="legend"><strong>Mask over the X-ray</strong>{swatch}</div>'


def about_model(name: str, card: str) -> str:
    """One line on the model: its name, and the first sentence of its card where it has one."""
    paragraphs = [p.strip() for p in card.split("\n\n") if p.strip() and not p.strip().startswith(("#", "|", "<", "!", "```"))]
    line = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split())) if paragraphs else ""
    line = line if len(line) < 320 else line[:320].rsplit(" ", 1)[0] + " …"
    return f"Model <strong>{html.escape(name)}</strong>: " + (html.escape(line) or "its folder has no model card.")


def notes(warnings) -> str:
    """What makes an answer doubtful, or was done to the picture; empty where there is nothing."""
    return '<div class="note"><strong>⚠ Please note</strong>' + bullets(warnings) + "</div>" if warnings else ""


def bullets(lines) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
