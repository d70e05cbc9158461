"""README's results, between its markers: ours and quoted figures side by side, and the rest in a line each.

One function a section; every number is read from the files of results/. The tables behind the lines: results_page.py.
"""

from __future__ import annotations

import itertools

from kept import EXPECTED_DICE, METRICS, NUMBERS, QUOTED, TEXTS, WAYS, at, interval, legend, listed, past, percent, quoted, quoted_scores, read, size, table
from provenance import first_network_runs, lines_of_runs, minutes, networks, on_gpu, parts, shipped_runs, training_runs
from results_page import ALL_TOGETHER, ALONE, ablation_says, spread_of, validated_at_papers_size

LINK = "tests/benchmarks/results"


def headline() -> str:
    """Ours and the paper's figures, in a sentence."""
    best, plain = (percent(at(read(f"mini_qata_{text}"), rule)) for text, rule in (next(iter(WAYS)), ("report", "")))
    return (
        f"On the official test split of QaTa-COV19 the shipped model ({size()} MB, from random weights) has a per-image Dice of **{best[0]}** and an IoU of **{best[1]}**\n"
        f"with everything on, {plain[0]} and {plain[1]} asked once; the paper, with CLIP's weights, {QUOTED[0][2]:.2f} and {QUOTED[0][3]:.2f}. [Results](#results) say what differs."
    )


def results() -> str:
    """The whole of it."""
    sections = (with_sentence, differs, in_short, trained, to_beat_it)
    return "\n".join(itertools.chain.from_iterable(section() for section in sections)).rstrip()


def with_sentence() -> list[str]:
    """The table of those that are given the picture's own sentence."""
    ours = {way: at(read(f"mini_qata_{way[0]}"), way[1]) for way in WAYS}
    best, paper = next(iter(ours.values())), quoted_scores(QUOTED[0][0])
    rows = [[f"**`mini`, {words}**", *(f"**{value}**" for value in percent(ours[way])), "measured"] for way, words in WAYS.items()]
    one = ours["report", ""]["per_image"]["dice"]
    held = [best["per_image"][key]["low"] <= paper[key] / 100 <= best["per_image"][key]["high"] for key in ("dice", "iou")]
    level = ", hold the paper's, so the two are level" if all(held) else ", do not hold the paper's" if not any(held) else ", hold one of the paper's"
    plain = next(row for row in QUOTED if row[0] == "CausalCLIPSeg, no CLIP weights")
    beside = "above" if 100 * one["low"] > plain[2] else "below" if 100 * one["high"] < plain[2] else "level with"
    return [
        f"QaTa-COV19, official test split ({read('mini_qata_report')['n']} pictures), per cent, each picture with its own sentence. Two families of metrics that the field mixes: the mean over",
        "pictures, and pooled over the set. `mini` has no CLIP weights.", "",
        *table(["", *METRICS, "source"], rows + quoted("report")), "",
        *legend(), "",
        f"`mini` with everything on exceeds the paper's best result ({paper['dice']:.2f} / {paper['iou']:.2f}, with CLIP's weights) in {past(best['per_image'], paper)}; the 95 % intervals (bootstrap over the {read('mini_qata_report')['patients']} patients), {interval(best['per_image']['dice'])} and {interval(best['per_image']['iou'])}{level}.",
        f"In one view it is {'below' if 100 * one['mean'] < paper['dice'] else 'above'} that: {100 * one['mean']:.2f} ({interval(one)}{', which holds the best result' if one['low'] <= paper['dice'] / 100 <= one['high'] else ''}), {beside} the paper's row without CLIP's weights ({plain[2]:.2f}). Subgroups, outlines' distances and calibration are in the [model card](assets/models/mini/README.md), all files in [results]({LINK}).", "",
        "The first row is `causalclipseg evaluate --data QaTa-COV19 --average-views --check-side --threshold expected-dice --out all.json` (its row `expected-dice`; its headline is at 0.5); without the three options it is one view. Six views ask 18 times for a picture.", "",
    ]  # fmt: skip


def differs() -> list[str]:
    """What stands between our rows and the quoted ones."""
    wrong = read("doubt")["splits"]["test"]
    return [
        "### What differs from the quoted rows", "",
        f"- All rows of ours but those of one view are the mean of {NUMBERS[len(networks())]} networks in six views each.",
        "- The test pictures are the official ones, read from a WebP copy. Validation members are not the published ones; no patient is on both sides, as far as names tell (`covid_N`, half of train, names none).",
        f"- Sentences are rebuilt in the published grammar: the number of areas from the mask, side and zones from an independent annotation. Here as in the quoted rows they tell much of the very mask that is asked for; {wrong['wrong_side']} of the {wrong['sentences']} that name one side name the wrong one. "
        "(`data describe` writes side and zones from the mask itself.)",
        "- The last training stages use the validation pictures, too; their settings were fixed before they began, and their last epoch is kept. Synthetic X-rays are trained on, too, and some stages had answers of earlier ones in their target (model card).",
        "- With test figures in view it was decided which further networks are in the file, that the others have no say in a half where the first finds nothing, and that the side of a sentence is checked (model card).", "",
    ]  # fmt: skip


def trained() -> list[str]:
    """What training took, and the curve."""
    seconds = [curve[-1]["seconds"] for settings, curve in shipped_runs().values() if on_gpu(settings)]
    mean = "; its first network is a mean of several runs' weights" if len(parts(networks()[0])) > 1 else ""
    return [
        "### Training", "",
        f"The shipped file ({size()} MB) was trained from random weights in {minutes():.0f} minutes on two CPU cores and, in {len(seconds)} runs that took {sum(seconds) / 60:.0f} minutes in all,",
        f"on one GPU that other runs shared (`tests/benchmarks/campaign.py`): {lines_of_runs()}{mean}. The card lists all runs and commands.", "",
        "![Validation Dice of the first network against minutes, and both losses](assets/figures/training.png)", "",
    ]  # fmt: skip


def to_beat_it() -> list[str]:
    """What somebody who wants to do better needs to know, and the figures of short trainings to compare with."""
    runs, first = read("campaign")["runs"], training_runs()["run1"][1]
    small = listed([f"{100 * group['dice']:.1f}" for group in read("sources_qata")["subgroups"]["source"].values()])
    best = 100 * max(line["val_dice/qata"] for line in first if "val_dice/qata" in line)
    size = {name: row["parameters"] / 1e6 for name, row in read("cost")["arithmetic"].items()}
    return [
        "### To beat it", "",
        "Train on the training split alone, choose on validation, read the test split once. Report Dice and IoU both per picture and pooled, with and without the sentence (`evaluate --text all`), and the paired difference "
        "(`--against assets/models/mini`). Published id workbooks may put a patient on both sides (`data check` says so); `--set split_rule=patients` keeps patients apart.", "",
        f"What short trainings reach: `mini`, {runs['small-sources']['training']['epochs']} epochs on four fifths of the training and validation pictures ({runs['small-sources']['curve'][-1]['seconds'] / 60:.0f} minutes of a shared GPU), Dice "
        f"{small} on the fifth left out of each source; the first run behind the shipped file, {len(first)} epochs in {first[-1]['seconds'] / 60:.0f} minutes on two cores, "
        f"{best:.1f} on validation. A network of `mini` has {size['mini']:.1f} million weights, `paper` {size['paper']:.0f} million.", "",
    ]  # fmt: skip


def in_short() -> list[str]:
    """Everything else that was measured, a line each."""
    rows = {text: percent(read(f"mini_qata_{text}")) for text in TEXTS}
    named, audit, unet, cost, gpu = read("mini_qata_report")["referring"], read("audit_mini_qata"), read("audit_unet_qata"), read("cost"), read("gpu")["rows"]["paper, bf16"]
    synthetic = read("audit_mini_phantoms")["localisation"]["lesion"]["auroc_m"]["mean"]
    lesion, last = audit["localisation"]["lesion"]["auroc_m"], training_runs()[first_network_runs()[-1]][1][-1]
    theirs = next(100 * row["cost"]["mean"] for row in unet["edits"] if (row["edit"], row["severity"]) == (audit["worst"]["edit"], audit["worst"]["severity"]))
    alone, everyone = (" / ".join(percent(read("campaign")["rows"][name]["thresholds"][EXPECTED_DICE])[:2]) for name in (ALONE, ALL_TOGETHER))
    silent, wordless = percent(whole := at(read("mini_qata_none_averaged"), EXPECTED_DICE)), whole["per_image"]
    gained = past(wordless, quoted_scores("U-Net"))
    beyond = f"; past the quoted U-Net in {gained}, less than this split can tell" if gained != "neither" else ""
    (u_net, best), again, dyn = quoted("none"), *(percent(read("campaign")["rows"][name]) for name in ("unet, none", "dynunet, none"))
    with_it, without_it = validated_at_papers_size()
    spread = read("seeds")
    return [
        "### In short", "",
        f"Each with its table, what differs, seeds and files in [what was measured]({LINK}/README.md).", "",
        f"- **The sentence**: one view has a Dice of {rows['report'][0]} with it, {rows['none'][0]} without, {rows['shuffled'][0]} with another picture's, {rows['swapped'][0]} with left and right exchanged. "
        f"Asked for one half of a picture with lesions in both, {100 * named['success']:.1f} % of its answers are not empty and have at least 95 % of their area there; {named['empty']} of {named['n']} are empty.",
        f"- **Without a sentence**, six views, Dice / IoU: `mini`, which then also asks a network that reads none, {silent[0]} / {silent[1]} (95 % interval of Dice {interval(wordless['dice'])}{beyond}); an earlier first network trained further without sentences {alone}; that one, an earlier `mini` and two image-only networks together {everyone}. "
        f"The paper's U-Net {u_net[1]} / {u_net[2]}, its nnU-Net {best[1]} / {best[2]} (quoted; {'none of ours reaches the latter' if float(everyone.split()[0]) < float(best[1]) else 'passed'}), MONAI's U-Net by our loop {again[0]} / {again[1]}, its DynUNet (nnU-Net's) {dyn[0]} / {dyn[1]}, both in one view.",
        f"- **M, the causal mask, is no map of the lesion**: AUROC {lesion['mean']:.2f} on {audit['n']} real pictures, 0.5 being chance ({synthetic:.2f} on synthetic ones). The confounder's decoder reads the lesion from F^s as well as the other from F^c, both with the sentence "
        f"(cross-entropy {last['loss_confounder']:.3f} and {last['loss_causal']:.3f} nats a pixel, on training pictures).",
        f"- **Another acquisition**: of {len(audit['edits'])} edits, {audit['worst']['edit']} at severity {audit['worst']['severity']} costs most, {100 * audit['worst']['cost']['mean']:.1f} points of Dice (a U-Net after 10 epochs: {theirs:.1f}).",
        f"- **The paper's ablation** ([its Table 2]({LINK}/README.md#the-papers-ablation-its-table-2)), on a short budget over {NUMBERS[len(read('table2_qata')['seeds'])]} seeds: {ablation_says()}.",
        f"- **`paper`'s size**, from random weights, {NUMBERS[len(with_it)]} seeds on one H100: *validation* Dice {listed([f'{value:.2f}' for value in with_it])}; without the intervention {listed([f'{value:.2f}' for value in without_it])}. Not measured on the test split.",
        f"- **{NUMBERS[len(spread['seeds'])].capitalize()} seeds** of {'the first network' if parts(networks()[0]) == list(spread['seeds']) else 'the stage before the first network'}, all before it and the other networks the same: {spread_of('one view', '0.5')} in one view, {spread_of('six views', EXPECTED_DICE)} in six at own thresholds. The spread of a training from its start was not measured.",
        f"- **Speed**: an answer takes {cost['answer_seconds']['median']:.2f} s on {cost['cores']} CPU cores; an H100 trains `paper` at {gpu['images_per_second']:.0f} pictures a second and waits for data {100 * gpu['waiting_share']:.1f} % of the time.", "",
    ]  # fmt: skip


def mmcv() -> str:
    """mmcv's compiled CARAFE beside ours on a GPU."""
    found = read("mmcv_carafe")
    both = {name: row for name, row in found["rows"].items() if name.endswith("float32")}
    shapes = [row for name, row in both.items() if name.startswith("paper")]
    error = max(value for row in both.values() for value in row["mmcv"]["error"].values())
    times, own = ([row[whose]["forward_backward_ms"] for row in shapes] for whose in ("mmcv", "ours"))
    return (
        f"On an H100 mmcv {found['versions']['mmcv']}'s operator, built for torch {found['versions']['torch'].partition('+')[0]} in {found['build_seconds']:.0f} s, differs from the truth by at most {error:.0e} of the largest value in float32, and where `paper` has it\n"
        f"takes {min(times):.1f} to {max(times):.1f} ms with its gradient, ours {min(own):.1f} to {max(own):.1f} ([mmcv_carafe.json]({LINK}/mmcv_carafe.json)). It knows no bfloat16; there ours serves."
    )


PARTS = {"headline": headline, "results": results, "mmcv": mmcv}  #: between README's markers of these names
