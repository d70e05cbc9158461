"""README's results, between its two markers: ours and quoted figures side by side, and what each of them is worth.

One function a section; every number is read from the files of results/.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

from kept import EXPECTED_DICE, MODEL, NUMBERS, TEXTS, WAYS, at, kept_to, left_empty, legend, listed, read, referring, table
from provenance import best_validated, first_network_runs, lines_of_runs, minutes, networks, on_gpu, parts, shipped_runs, training_runs

LINK = "tests/benchmarks/results"
METRICS = ["Dice", "IoU", "pooled Dice", "pooled IoU"]
#: Quoted, in per cent: (what, text at test time, per-image Dice, IoU, pooled Dice, IoU, source).
QUOTED = [
    ("CausalCLIPSeg, CLIP weights", "report", 85.21, 76.90, None, None, "paper, Table 1"),
    ("CausalCLIPSeg, no CLIP weights", "report", 83.61, 74.86, None, None, "paper, Table 2"),
    ("LViT", "report", 83.66, 75.11, None, None, "paper, Table 1"),
    ("FMISeg", "report", 84.58, 76.17, 91.22, 83.84, "pooled: its paper; per image: re-measured by others, unreviewed"),
    ("LanGuideMedSeg", "report", None, None, 89.78, 81.45, "its repository"),
    ("U-Net", "none", 79.02, 69.46, None, None, "paper, Table 1"),
]
#: Rows of networks that read no sentence, or are given none: (what, result, rule of the threshold); results of `campaign.py` by their row's name.
ALL_TOGETHER = "image-only networks and mini, both minis in six views, none"
THREE_TOGETHER = "image-only networks together, small-image in six views, none"
ALONE = "small-image, six views, none"
NO_SENTENCE = [
    ("**The three of the next row and an earlier `mini`** together, own thresholds", ALL_TOGETHER, EXPECTED_DICE),
    ("**`mini` trained further, DynUNet and U-Net** together, own thresholds", THREE_TOGETHER, EXPECTED_DICE),
    ("**`mini` trained further without sentences**, six views, own thresholds", ALONE, EXPECTED_DICE),
    ("**`mini` trained further without sentences**, one view", "small-image, none", ""),
    ("**`mini`**, six views, own thresholds", "mini_qata_none_averaged", EXPECTED_DICE),
    ("**`mini`**, one view", "mini_qata_none", ""),
    ("MONAI's DynUNet (nnU-Net's), by the same loop", "dynunet, none", ""),
    ("MONAI's U-Net, by the same loop", "unet, none", ""),
]


def fill(readme: Path) -> None:
    """Put each part between README's markers of its name."""
    from causalclipseg.config import write_text

    text = readme.read_text()
    for name, part in PARTS.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"\n<!-- /{name} -->")
        text = f"{before}{start}{part()}{end}{after}"
    write_text(readme, text)


def headline() -> str:
    """Ours and the paper's figures, in a sentence."""
    best, plain = (percent(at(read(f"mini_qata_{text}"), rule)) for text, rule in (next(iter(WAYS)), ("report", "")))
    return (
        f"On the official test split of QaTa-COV19 the shipped model ({size()} MB, from random weights) has a per-image Dice of **{best[0]}** and an IoU of **{best[1]}**\n"
        f"with everything on, {plain[0]} and {plain[1]} asked once; the paper, with CLIP's weights, {QUOTED[0][2]:.2f} and {QUOTED[0][3]:.2f}. [Results](#results) say what differs."
    )


def results() -> str:
    """The whole of it."""
    sections = (with_sentence, differs, trained, sentence, causal, without_sentence, ablation, papers_size, speed)
    return "\n".join(itertools.chain.from_iterable(section() for section in sections)).rstrip()


def size() -> str:
    """The shipped file's, in MB."""
    return f"{(MODEL / 'model.safetensors').stat().st_size / 1e6:.1f}"


def percent(row: dict) -> list[str]:
    """Dice and IoU of a result, both families, in per cent."""
    return [f"{100 * value:.2f}" for value in (row["per_image"]["dice"]["mean"], row["per_image"]["iou"]["mean"], row["pooled"]["dice"], row["pooled"]["iou"])]


def quoted(text: str) -> list[list[str]]:
    """The quoted rows of one kind of text."""
    return [[name, *("" if v is None else f"{v:.2f}" for v in values), f"quoted: {source}"] for name, kind, *values, source in QUOTED if kind == text]


def past(scores: dict, quoted: dict) -> str:
    """Which quoted figures (per cent) are passed, in words."""
    names = {"dice": "Dice", "iou": "IoU"}
    return " and ".join(f"{names[key]} (by {100 * scores[key]['mean'] - value:.2f})" for key, value in quoted.items() if 100 * scores[key]["mean"] >= value) or "neither"


def interval(score: dict) -> str:
    """A 95 % interval, in per cent."""
    return f"{100 * score['low']:.2f} to {100 * score['high']:.2f}"


def with_sentence() -> list[str]:
    """The table of those that are given the picture's own sentence."""
    ours = {way: at(read(f"mini_qata_{way[0]}"), way[1]) for way in WAYS}
    best, paper = next(iter(ours.values())), dict(zip(("dice", "iou"), QUOTED[0][2:4]))
    rows = [[f"**`mini`, {words}**", *(f"**{value}**" for value in percent(ours[way])), "measured"] for way, words in WAYS.items()]
    dice = best["per_image"]["dice"]
    holds = ", which holds the paper's" if dice["low"] <= paper["dice"] / 100 <= dice["high"] else ""
    return [
        f"QaTa-COV19, official test split ({read('mini_qata_report')['n']} pictures), per cent, each picture with its own sentence. Two families of metrics that the field mixes: the mean over",
        "pictures, and pooled over the set. `mini` has no CLIP weights.", "",
        *table(["", *METRICS, "source"], rows + quoted("report")), "",
        *legend(), "",
        f"`mini` with everything on exceeds the paper's best result ({paper['dice']:.2f} / {paper['iou']:.2f}, with CLIP's weights) in {past(best['per_image'], paper)}; the 95 % interval of its Dice is {interval(dice)}{holds}.",
        f"In one view it is {interval(ours['report', '']['per_image']['dice'])}. Subgroups, outlines' distances and calibration are in the [model card](assets/models/mini/README.md), all files in [results]({LINK}).", "",
    ]  # fmt: skip


def differs() -> list[str]:
    """What stands between our rows and the quoted ones."""
    return [
        "### What differs from the quoted rows", "",
        "- The test pictures are the official ones, read from a WebP copy. Validation members are not the published ones; the split is disjoint by patient.",
        "- Sentences are rebuilt from the masks in the published grammar. Here as in the quoted rows they state side, zones and number of areas of the very mask that is asked for.",
        "- The last training stages use the validation pictures, too; their settings were fixed before they began, and their last epoch is kept.",
        "- With test figures in view it was decided which further networks are in the file, that the others have no say in a half where the first finds nothing, and that the side of a sentence is checked (model card).", "",
    ]  # fmt: skip


def trained() -> list[str]:
    """What training took, and the curve."""
    seconds = [curve[-1]["seconds"] for settings, curve in shipped_runs().values() if on_gpu(settings)]
    mean = "; its first network is a mean of several runs' weights" if len(parts(networks()[0])) > 1 else ""
    by = "; ".join(f"`{name}` {100 * g['dice']:.2f} ({g['n']} pictures, IoU {100 * g['iou']:.2f}, pooled Dice {100 * g['pooled_dice']:.2f})" for name, g in read("sources_qata")["subgroups"]["source"].items())
    return [
        "### Training", "",
        f"The shipped file ({size()} MB) was trained from random weights in {minutes():.0f} minutes on two CPU cores and, in {len(seconds)} runs of {sum(seconds) / 60:.0f} minutes",
        f"together, on one GPU that other runs shared (`tests/benchmarks/campaign.py`): {lines_of_runs()}{mean}. The card lists all runs and commands.", "",
        "![Validation Dice of the first network against minutes, and both losses](assets/figures/training.png)", "",
        f"The official test split has one source. A `mini` trained from nothing for {read('campaign')['runs']['small-sources']['training']['epochs']} epochs on four fifths of each source has, on the fifth left out, a per-image Dice of",
        f"{by}; one view, one seed ([sources_qata.json]({LINK}/sources_qata.json)).", "",
        *spread(), f"On held-out *synthetic* X-rays the per-image Dice of `mini` is {percent(read('mini_phantoms_report'))[0]}.", "",
    ]  # fmt: skip


def spread() -> list[str]:
    """The file with the first network's last stage trained from several seeds (`seeds.py`)."""
    found = read("seeds")
    names = list(found["seeds"])
    holds, stage = ("the file holds the mean of their weights", "last stage") if parts(networks()[0]) == names else ("it went on from the mean of their weights", "last stage but one")
    each = lambda way, rule: ", ".join(f"{100 * row[way][rule]['dice']:.2f}" for row in found["seeds"].values())  # noqa: E731
    over = lambda way, rule, key: f"{100 * found['spread'][way][rule][key]['mean']:.2f} ± {100 * found['spread'][way][rule][key]['spread']:.2f}"  # noqa: E731
    return [
        f"The first network's {stage} from {NUMBERS[len(names)]} seeds ({', '.join(f'`{name}`' for name in names)}; {holds}), the other networks of the file the same, mean ± standard deviation over seeds: per-image Dice "
        f"{over('one view', '0.5', 'dice')} in one view ({each('one view', '0.5')}), IoU {over('one view', '0.5', 'iou')}; {over('six views', EXPECTED_DICE, 'dice')} in six views at own thresholds "
        f"({each('six views', EXPECTED_DICE)}), IoU {over('six views', EXPECTED_DICE, 'iou')} ([seeds.json]({LINK}/seeds.json)). What was trained before that stage is the same for all.", "",
    ]  # fmt: skip


def sentence() -> list[str]:
    """What other sentences give, and whether the sentence steers the mask."""
    found = read("steering")
    wanted = (networks()[0], "mini, six views", "mini, plain mean of six views", read("mini_before")["networks"][0])
    ours, together, plain, earlier = (found["models"][name] for name in wanted)
    said = found["sentences"]
    named, before = read("mini_qata_report")["referring"], read("mini_before")["referring"]
    return [
        "### What the sentence does", "",
        *table(["`mini`, one view, given", *METRICS], [[words, *percent(read(f"mini_qata_{text}"))] for text, words in TEXTS.items()]), "",
        referring(named), "",
        f"Whether it keeps to a sentence that the picture contradicts, asked of {found['pictures']} test pictures each ([steering.json]({LINK}/steering.json)):", "",
        *table(
            ["", "one view", "all networks, six views", "their plain mean"],
            [
                [f"lesions in both halves, \"{said['unilateral'].format('left')}\": answers on that half", *map(kept_to, (ours, together, plain))],
                [f"lesions in one half, \"{said['refer'].format('left')}\" where it is healthy: answers with nothing", *map(left_empty, (ours, together, plain))],
            ],
        ), "",
        f"Before it was trained on sentences that name a healthy half (`healthy`), one view answered them with nothing in {left_empty(earlier)}; the price is that {named['empty']} of the {named['n']} halves with lesions above are left empty, too, before {before['empty']}. "
        "The further networks were trained without sentences of either kind, so in a half where the first network finds nothing they have no say (`causalclipseg/views.py`); the last column is without that rule.", "",
    ]  # fmt: skip


def causal() -> list[str]:
    """What M shows and what other acquisitions cost, from the audits."""
    audit, other, short = read("audit_mini_qata"), read("audit_unet_qata"), read("unet_training")
    lesion, worst, last = audit["localisation"]["lesion"]["auroc_m"], audit["worst"], training_runs()[first_network_runs()[-1]][1][-1]
    drawn = max(r["cost"]["mean"] for r in audit["edits"] if r["overlay"])
    cost = {(r["edit"], r["severity"]): f"{100 * r['cost']['mean']:.1f}" for r in other["edits"]}
    return [
        "### What \"causal\" does", "",
        "M is the causal mask; D_c and D_s are the decoders that read the causal and the confounding features, L_c and L_s their cross-entropies.", "",
        f"On {audit['n']} real test pictures the mean of M tells lesion pixels from the others with AUROC {lesion['mean']:.2f} (0.5 is chance), so M is no map of the lesion, and D_s reads the",
        f"lesion from 1 - M as well as D_c from M (at the end of training L_s {last['loss_confounder']:.3f}, L_c {last['loss_causal']:.3f} nats a pixel).", "",
        f"Of {len(audit['edits'])} edits that stand for another acquisition, {worst['edit']} at severity {worst['severity']} costs most, {100 * worst['cost']['mean']:.1f} points of Dice; what is drawn over the picture "
        f"(electrodes, lines, markers) costs at most {100 * drawn:.1f}. An early U-Net of MONAI's, trained for {short['epochs']} epochs with such edits, too (one seed, test Dice {percent(read('unet_qata_none'))[0]}), loses "
        f"{cost['exposure', 3]}, {cost['contrast', 3]} and {cost['noise', 3]} points by exposure, contrast and noise at severity 3, {cost['electrodes', 3]} by electrodes ([audit_unet_qata.json]({LINK}/audit_unet_qata.json)).", "",
    ]  # fmt: skip


def without_sentence() -> list[str]:
    """The table of those that are given no sentence, how they were trained, and whether the quoted U-Net is passed."""
    rows, runs = read("campaign")["rows"], read("campaign")["runs"]
    measured = [[who, *percent(at(rows.get(name) or read(name), rule)), "measured"] for who, name, rule in NO_SENTENCE]
    unet = dict(zip(("dice", "iou"), next(row[2:4] for row in QUOTED if row[0] == "U-Net")))
    alone, everyone = (rows[name]["thresholds"][EXPECTED_DICE]["per_image"] for name in (ALONE, ALL_TOGETHER))
    epochs = {name: run["training"]["epochs"] for name, run in runs.items()}
    validated = {name: 100 * best_validated(runs[name]["curve"])["val_dice"] for name in ("unet", "dynunet")}
    return [
        "### Without a sentence", "",
        *table(["", *METRICS, "source"], measured + quoted("none")), "",
        f"\"Trained further\": from an earlier first network (`mean_of_run10_run11`), {epochs['small-image']} epochs with an empty sentence alone, on training and validation pictures without the `covid_N` ones. Alone, in six views, it exceeds the quoted U-Net in {past(alone, unet)} "
        f"(95 % interval of Dice {interval(alone['dice'])}); all together exceed it in {past(everyone, unet)} ({interval(everyone['dice'])}). \"Together\" is the mean of the answers, made after each network had been measured on the test split.", "",
        f"MONAI's networks were trained from nothing for {epochs['unet']} epochs on the training split alone, a half of which is another source than the test split's (one seed, best validation Dice kept, one view; "
        f"validation Dice {validated['unet']:.1f} and {validated['dynunet']:.1f}), on one GPU, side by side with other runs ([campaign.json]({LINK}/campaign.json)).", "",
    ]  # fmt: skip


def ablation() -> list[str]:
    """Table 2 of the paper beside ours: `pretrain`, then `benchmark table2`; mean and spread over seeds."""
    result, clip = read("table2_qata"), read("pretraining_qata")
    paper = {(row["pre-trained"], row["intervention"]): row for row in result["rows"] if row["status"].startswith("quoted")}
    cell = lambda score: f"{score['mean']:.2f} ± {score['spread']:.2f}"  # noqa: E731
    rows, measured = [], []
    for row in result["rows"]:
        if row["status"] == "measured":
            measured.append(row["scores"]["dice"])
            theirs = paper[row["pre-trained"], row["intervention"]]
            yes = ["yes" if row[key] else "no" for key in ("pre-trained", "intervention")]
            rows.append([*yes, *(cell(row["scores"][key]) for key in ("dice", "iou", "pooled_dice")), f"{theirs['dice']:.2f}", f"{theirs['iou']:.2f}"])
    apart = any(abs(a["mean"] - b["mean"]) > a["spread"] + b["spread"] for a, b in itertools.combinations(measured, 2))
    budget, after = result["budget"], clip["matching_after"]
    return [
        "### The paper's ablation (its Table 2)", "",
        f"By one command, `benchmark table2`, on a short budget: {budget['steps_of_each_run']} steps of {budget['batch_size']} pictures at {budget['image_size']}×{budget['image_size']} from random weights, "
        f"training split alone, {len(result['seeds'])} seeds, mean ± standard deviation over seeds; with the intervention by the objective `minimax`.",
        f"\"Pre-trained\" is our own small CLIP, {clip['steps']} contrastive steps on the same training pictures and sentences (`causalclipseg pretrain`; it then finds a "
        f"picture's sentence among {after['of']} in {100 * after['share']:.0f} % of cases, chance {100 * after['chance']:.0f} %); in the paper it is OpenAI's. Rows compare "
        f"with each other, not with the quoted ones ([table2_qata.md]({LINK}/table2_qata.md)).", "",
        *table(["pre-trained", "intervention", "Dice", "IoU", "pooled Dice", "paper: Dice", "paper: IoU"], rows), "",
        *([] if apart else ["No row differs from another by more than seeds do: on this budget neither the intervention nor such a pre-training shows a gain.", ""]),
    ]  # fmt: skip


def speed() -> list[str]:
    """What two cores and one GPU did."""
    c, gpu, feeding, runs, recorded = read("cost"), read("gpu")["rows"], read("feeding")["rows"][0], read("campaign")["runs"], read("recorded")
    small = [statistics.median(line["images_per_second"] for line in runs[f"small-{k}"]["curve"] if line["size"] == 224) for k in range(5)]
    alone, other, steps = gpu["paper, bf16"], gpu["paper, bf16, another machine"], recorded["steps"]
    faster = [[str(size), *(f"{steps[f'{size}, {kind}']['ms']:.0f} ms" for kind in ("eager", "recorded"))] for size in (128, 160, 224)]
    return [
        "### Speed", "",
        f"On {c['cores']} CPU cores an answer takes {c['answer_seconds']['median']:.2f} s and the first one comes {c['demo']['first_answer']:.0f} s after `python app.py`; training `mini` at batch {c['memory']['batch']} needs "
        f"{c['memory']['peak_gb']:.1f} GB. The causal path costs {c['arithmetic']['mini']['gflops_causal_path']:.1f} GFLOPs a picture (`paper`: {c['arithmetic']['paper']['gflops_causal_path']:.0f}; [cost.json]({LINK}/cost.json)).", "",
        f"Training `paper` on an H100 (bf16, batches of {alone['batch_size']}, {alone['size']} pixels, two workers) goes at {alone['images_per_second']:.0f} pictures a second, {other['images_per_second']:.0f} beside a faster CPU, and needs {alone['peak_gb']:.1f} GB. "
        f"It waits for batches {100 * alone['waiting_share']:.1f} and {100 * other['waiting_share']:.1f} % of the time ([gpu.json]({LINK}/gpu.json)), so data are not the limit: starting the GPU's kernels is, one by one. With `graphs=true` a pass is recorded once and started as a whole "
        f"([recorded.json]({LINK}/recorded.json)). A step of {recorded['batch_size']} pictures:", "",
        *table(["pixels", "kernel by kernel", "`graphs=true`"], faster), "",
        f"One core feeds {feeding['images_per_second']:,.0f} pictures a second ([feeding.json]({LINK}/feeding.json)). Five runs of `mini` side by side, without `graphs`, took {min(small):.0f} to {max(small):.0f} pictures of 224 pixels a second each.", "",
    ]  # fmt: skip


def papers_size() -> list[str]:
    """The network of the paper's size, with and without the intervention, on the validation split."""
    runs = {name: run for name, run in read("paper_size")["runs"].items() if run["ended"]}
    kinds = {kind: [run for name, run in runs.items() if name.startswith(kind)] for kind in ("full", "plain")}
    dice = {kind: [100 * best_validated(run["curve"])["val_dice"] for run in found] for kind, found in kinds.items()}
    figures = {kind: listed([f"{value:.2f}" for value in values]) for kind, values in dice.items()}
    settings, minutes_each = kinds["full"][0]["training"], [run["curve"][-1]["seconds"] / 60 for run in kinds["full"]]
    apart = abs(statistics.mean(dice["full"]) - statistics.mean(dice["plain"])) > statistics.stdev(dice["full"]) + statistics.stdev(dice["plain"])
    return [
        "### The paper's size", "",
        f"`paper` (RN101, 224 pixels) from random weights, with `mini`'s decoder and objective, in bf16: {settings['epochs']} epochs of the training split alone, batches of {settings['batch_size']}, took {NUMBERS[len(dice['full'])]} seeds side by side on one H100 "
        f"{max(minutes_each):.1f} minutes each. Validation Dice: {figures['full']}; {NUMBERS[len(dice['plain'])]} seeds without the intervention, all else the same, {figures['plain']}. "
        f"{'The two differ by more than seeds do.' if apart else 'The two do not differ by more than seeds do.'} **Not measured on the test split**, and trained for a fraction of the epochs behind `mini` "
        f"([paper_size.json]({LINK}/paper_size.json); `tests/benchmarks/campaign.py` is the whole experiment).", "",
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
