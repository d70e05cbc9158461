"""results/README.md between its markers: what was measured beside the main figures, each with its table, seeds and files.

One function a section; every number is read from the files of results/.
"""

from __future__ import annotations

import itertools
import statistics

from kept import (
    EXPECTED_DICE, METRICS, NUMBERS, TEXTS, at, interval, kept_to, left_empty, listed, past, percent, quoted, quoted_scores, read, referring, table,
)  # fmt: skip
from provenance import best_validated, earlier_silent, first_network_runs, networks, parts, silent, training_runs

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
    ("its network that reads no sentence, six views, own thresholds", "that reads none", EXPECTED_DICE),
    ("its networks that read sentences, six views, own thresholds", "that read sentences", EXPECTED_DICE),
    ("**`mini`**, one view", "mini_qata_none", ""),
    ("MONAI's DynUNet (nnU-Net's), by the same loop", "dynunet, none", ""),
    ("MONAI's U-Net, by the same loop", "unet, none", ""),
]


def measured() -> str:
    """The whole of it."""
    sections = (sentence, without_sentence, causal, ablation, papers_size, seeds, sources, speed)
    return "\n".join(itertools.chain.from_iterable(section() for section in sections)).rstrip()


def sentence() -> list[str]:
    """What other sentences give, and whether the sentence steers the mask."""
    found = read("steering")
    wanted = ("mini", "mini, six views", "mini, plain mean of six views", read("mini_before")["networks"][0])
    ours, together, plain, earlier = (found["models"][name] for name in wanted)
    said = found["sentences"]
    named, before = read("mini_qata_report")["referring"], read("mini_before")["referring"]
    return [
        "## What the sentence does", "",
        *table(["`mini`, one view, given", *METRICS], [[words, *percent(read(f"mini_qata_{text}"))] for text, words in TEXTS.items()]), "",
        referring(named), "",
        f"Whether it keeps to a sentence that the picture contradicts, asked of {found['pictures']} test pictures each ([steering.json](steering.json)):", "",
        *table(
            ["", "one view", "all networks, six views", "their plain mean"],
            [
                [f"lesions in both halves, \"{said['unilateral'].format('left')}\": answers on that half", *map(kept_to, (ours, together, plain))],
                [f"lesions in one half, \"{said['refer'].format('left')}\" where it is healthy: answers with nothing", *map(left_empty, (ours, together, plain))],
            ],
        ), "",
        f"The wording matters: a healthy half is left empty by one view in {left_empty(ours, wording='opacity')} for \"{said['opacity'].format('left')}\", in {left_empty(ours, wording='one area')} for \"{said['one area'].format('left')}\" and in {left_empty(ours, wording='unilateral')} for \"{said['unilateral'].format('left')}\".", "",
        f"Before it was trained on sentences that name a healthy half (`healthy`), one view answered them with nothing in {left_empty(earlier)}; the price is that {named['empty']} of the {named['n']} halves with lesions above are left empty, too, before {before['empty']}. "
        "The further networks were trained without sentences of either kind, so in a half where the first network finds nothing they have no say (`causalclipseg/views.py`); the last column is without that rule.", "",
    ]  # fmt: skip


def without_sentence() -> list[str]:
    """The table of those that are given no sentence, how they were trained, and whether the quoted U-Net is passed."""
    rows, runs = read("campaign")["rows"], read("campaign")["runs"]
    whole = read("mini_qata_none_averaged")
    kept = rows | {part: {"thresholds": rules} for part, rules in whole["networks alone"].items()}
    measured = [[who, *percent(at(kept.get(name) or read(name), rule)), "measured"] for who, name, rule in NO_SENTENCE]
    ours, (wordless,) = at(whole, EXPECTED_DICE)["per_image"], silent()
    unet = quoted_scores("U-Net")
    nnunet = quoted_scores("nnU-Net")["dice"]
    alone, everyone = (rows[name]["thresholds"][EXPECTED_DICE]["per_image"] for name in (ALONE, ALL_TOGETHER))
    epochs, pilot = {name: run["training"]["epochs"] for name, run in runs.items()}, read("pilot_silent")
    validated = {name: 100 * best_validated(runs[name]["curve"])["val_dice"] for name in ("unet", "dynunet")}
    return [
        "## Without a sentence", "",
        *table(["", *METRICS, "source"], measured + quoted("none")), "",
        f"`mini`: half of its answer is that of a network which reads no sentence (`{wordless}`: from `run12`, one of the three at the end of the next paragraph, {' and '.join(str(training_runs()[name][0]['epochs']) for name in (*earlier_silent(), wordless))} epochs with an empty sentence alone, on training and validation pictures without the `covid_N` ones), "
        f"the other half that of the networks which read sentences. It {'exceeds' if past(ours, unet) != 'neither' else 'does not exceed'} the quoted U-Net{f' in {past(ours, unet)}' if past(ours, unet) != 'neither' else ''} (95 % interval of Dice over patients {interval(ours['dice'])}, of IoU {interval(ours['iou'])}, so the two can't be told apart).", "",
        f"\"Trained further\": from an earlier first network (`mean_of_run10_run11`), {epochs['small-image']} epochs with an empty sentence alone, on training and validation pictures without the `covid_N` ones. Alone, in six views, it exceeds the quoted U-Net in {past(alone, unet)} "
        f"(95 % interval of Dice {interval(alone['dice'])}, pictures of one patient taken as independent here, so too narrow); all together exceed it in {past(everyone, unet)} ({interval(everyone['dice'])}). {'None reaches' if 100 * max(everyone['dice']['mean'], ours['dice']['mean']) < nnunet else 'Beside it stands'} the paper's nnU-Net. \"Together\" is the mean of the answers, made after each network had been measured on the test split. "
        f"Three networks that went on from those of `mini` with more pictures without a sentence did not better what it was then ({' / '.join(percent(pilot['the file it was compared with, without a sentence']['six views, own thresholds'])[:2])}): {' / '.join(percent(pilot['without a sentence']['six views, own thresholds'])[:2])} ([pilot_silent.json](pilot_silent.json), not shipped).", "",
        f"MONAI's networks were trained from random weights for {epochs['unet']} epochs on the training split alone, a half of which is another source than the test split's (one seed, best validation Dice kept, one view; "
        f"validation Dice {validated['unet']:.1f} and {validated['dynunet']:.1f}), on one GPU, side by side with other runs ([campaign.json](campaign.json)).", "",
    ]  # fmt: skip


def causal() -> list[str]:
    """What M shows and what other acquisitions cost, from the audits."""
    audit, other, short = read("audit_mini_qata"), read("audit_unet_qata"), read("unet_training")
    lesion, worst, last = audit["localisation"]["lesion"]["auroc_m"], audit["worst"], training_runs()[first_network_runs()[-1]][1][-1]
    synthetic = read("audit_mini_phantoms")["localisation"]["lesion"]["auroc_m"]["mean"]
    drawn = max(r["cost"]["mean"] for r in audit["edits"] if r["overlay"])
    cost = {(r["edit"], r["severity"]): f"{100 * r['cost']['mean']:.1f}" for r in other["edits"]}
    return [
        "## What \"causal\" does", "",
        "M is the causal mask; D_c and D_s are the decoders that read the causal and the confounding features, L_c and L_s their cross-entropies.", "",
        f"On {audit['n']} real test pictures the mean of M tells lesion pixels from the others with AUROC {lesion['mean']:.2f} ({synthetic:.2f} on synthetic ones; 0.5 is chance), so M is no map of the lesion, and D_s reads the",
        f"lesion from F^s as well as D_c from F^c, both with the sentence (at the end of training L_s {last['loss_confounder']:.3f}, L_c {last['loss_causal']:.3f} nats a pixel, on training pictures).", "",
        f"Of {len(audit['edits'])} edits that stand for another acquisition, {worst['edit']} at severity {worst['severity']} costs most, {100 * worst['cost']['mean']:.1f} points of Dice; what is drawn over the picture "
        f"(electrodes, lines, markers) costs at most {100 * drawn:.1f}. A U-Net of MONAI's, trained for {short['epochs']} epochs with such edits, too (one seed, test Dice {percent(read('unet_qata_none'))[0]}), loses "
        f"{cost['exposure', 3]}, {cost['contrast', 3]} and {cost['noise', 3]} points by exposure, contrast and noise at severity 3, {cost['electrodes', 3]} by electrodes ([audit_unet_qata.json](audit_unet_qata.json)).", "",
    ]  # fmt: skip


def ablation_gains() -> dict[str, tuple[list[float], list[float]]]:
    """What each switch of Table 2 adds to Dice, without and with the other one: ours, and the paper's."""
    ours, theirs = {}, {}
    for row in read("table2_qata")["rows"]:
        key = row["pre-trained"], row["intervention"]
        if row["status"] == "measured":
            ours[key] = row["scores"]["dice"]["mean"]
        else:
            theirs[key] = row["dice"]
    gains = {
        "intervention": lambda dice: [dice[other, True] - dice[other, False] for other in (False, True)],
        "pre-training": lambda dice: [dice[True, other] - dice[False, other] for other in (False, True)],
    }
    return {name: (gain(ours), gain(theirs)) for name, gain in gains.items()}


def ablation_says() -> str:
    """One sentence on `ablation_gains`."""
    (our_masks, their_masks), (our_clip, their_clip) = ablation_gains().values()
    told = lambda gains: " and ".join(f"{gain:+.2f}".replace("-", "−") for gain in gains)  # noqa: E731
    spread = max(row["scores"]["dice"]["spread"] for row in read("table2_qata")["rows"] if row["status"] == "measured")
    both = [name for name, gains in (("the intervention", our_masks), ("the pre-training", our_clip)) if min(gains) > 0]
    verdict = f"a gain in both by {listed(both)}" if both else "neither gains in both"
    return (
        f"the intervention changes Dice by {told(our_masks)} (without and with the pre-training; in the paper {told(their_masks)}), the pre-training by {told(our_clip)} "
        f"(without and with the intervention; {told(their_clip)}): {verdict}, and a row's seeds spread by up to {spread:.2f}"
    )


def ablation() -> list[str]:
    """Table 2 of the paper beside ours: `pretrain`, then `benchmark table2`; mean and spread over seeds."""
    result, clip = read("table2_qata"), read("pretraining_qata")
    paper = {(row["pre-trained"], row["intervention"]): row for row in result["rows"] if row["status"].startswith("quoted")}
    cell = lambda score: f"{score['mean']:.2f} ± {score['spread']:.2f}"  # noqa: E731
    rows = []
    for row in result["rows"]:
        if row["status"] == "measured":
            theirs = paper[row["pre-trained"], row["intervention"]]
            yes = ["yes" if row[key] else "no" for key in ("pre-trained", "intervention")]
            rows.append([*yes, *(cell(row["scores"][key]) for key in ("dice", "iou", "pooled_dice")), f"{theirs['dice']:.2f}", f"{theirs['iou']:.2f}"])
    budget, after = result["budget"], clip["matching_after"]
    return [
        "## The paper's ablation (its Table 2)", "",
        f"By one command, `benchmark table2`, on a short budget: {budget['steps_of_each_run']} steps of {budget['batch_size']} pictures at {budget['image_size']}×{budget['image_size']} from random weights, "
        f"training split alone, {len(result['seeds'])} seeds, mean ± standard deviation over seeds; with the intervention by the objective `minimax`.",
        f"\"Pre-trained\" is our own small CLIP, {clip['steps']} contrastive steps on the same training pictures and sentences (`causalclipseg pretrain`; it then finds a "
        f"picture's sentence among {after['of']} in {100 * after['share']:.0f} % of cases, chance {100 * after['chance']:.0f} %); in the paper it is OpenAI's. Rows compare "
        f"with each other, not with the quoted ones ([table2_qata.md](table2_qata.md)).", "",
        *table(["pre-trained", "intervention", "Dice", "IoU", "pooled Dice", "paper: Dice", "paper: IoU"], rows), "",
        f"So {ablation_says()}.", "",
    ]  # fmt: skip


def validated_at_papers_size() -> tuple[list[float], list[float]]:
    """The best validation Dice of each run of the paper's size, in per cent: with the intervention, and without."""
    runs = {name: run for name, run in read("paper_size")["runs"].items() if run["ended"]}
    with_it, without_it = ([100 * best_validated(run["curve"])["val_dice"] for name, run in runs.items() if name.startswith(kind)] for kind in ("full", "plain"))
    return with_it, without_it


def papers_size() -> list[str]:
    """The network of the paper's size, with and without the intervention, on the validation split."""
    runs, dice = read("paper_size")["runs"], dict(zip(("full", "plain"), validated_at_papers_size()))
    figures = {kind: listed([f"{value:.2f}" for value in values]) for kind, values in dice.items()}
    full = [run for name, run in runs.items() if name.startswith("full") and run["ended"]]
    settings, minutes_each = full[0]["training"], [run["curve"][-1]["seconds"] / 60 for run in full]
    apart = abs(statistics.mean(dice["full"]) - statistics.mean(dice["plain"])) > statistics.stdev(dice["full"]) + statistics.stdev(dice["plain"])
    return [
        "## The paper's size", "",
        f"`paper` (RN101, 224 pixels) from random weights, with `mini`'s decoder and objective, in bf16: {settings['epochs']} epochs of the training split alone, batches of {settings['batch_size']}, took {NUMBERS[len(dice['full'])]} seeds side by side on one H100 "
        f"{max(minutes_each):.1f} minutes each. Validation Dice: {figures['full']}; {NUMBERS[len(dice['plain'])]} seeds without the intervention, all else the same, {figures['plain']}. "
        f"{'The two differ by more than seeds do.' if apart else 'The two do not differ by more than seeds do.'} **Not measured on the test split**, and trained for a fraction of the epochs behind `mini` "
        f"([paper_size.json](paper_size.json); `tests/benchmarks/campaign.py` is the whole experiment).", "",
    ]  # fmt: skip


def spread_of(way: str, rule: str, key: str = "dice") -> str:
    """Mean and standard deviation over the seeds of `seeds.py`, in per cent."""
    found = read("seeds")["spread"][way][rule][key]
    return f"{100 * found['mean']:.2f} ± {100 * found['spread']:.2f}"


def seeds() -> list[str]:
    """The file with the first network's last stage trained from several seeds (`seeds.py`)."""
    found = read("seeds")
    names = list(found["seeds"])
    holds, stage = ("the file holds the mean of their weights", "last stage") if parts(networks()[0]) == names else ("it went on from the mean of their weights", "last stage but one")
    each = lambda way, rule: ", ".join(f"{100 * row[way][rule]['dice']:.2f}" for row in found["seeds"].values())  # noqa: E731
    return [
        "## Seeds", "",
        f"The first network's {stage} from {NUMBERS[len(names)]} seeds ({', '.join(f'`{name}`' for name in names)}; {holds}), the other networks of the file the same, mean ± standard deviation over seeds: per-image Dice "
        f"{spread_of('one view', '0.5', 'dice')} in one view ({each('one view', '0.5')}), IoU {spread_of('one view', '0.5', 'iou')}; {spread_of('six views', EXPECTED_DICE, 'dice')} in six views at own thresholds "
        f"({each('six views', EXPECTED_DICE)}), IoU {spread_of('six views', EXPECTED_DICE, 'iou')} ([seeds.json](seeds.json)). What was trained before that stage is the same for all.", "",
    ]  # fmt: skip


def sources() -> list[str]:
    """Held-out pictures of either source, and synthetic ones."""
    by = "; ".join(f"`{name}` {100 * g['dice']:.2f} ({g['n']} pictures, IoU {100 * g['iou']:.2f}, pooled Dice {100 * g['pooled_dice']:.2f})" for name, g in read("sources_qata")["subgroups"]["source"].items())
    return [
        "## By source", "",
        f"The official test split has one source. A `mini` trained from random weights for {read('campaign')['runs']['small-sources']['training']['epochs']} epochs on four fifths of each source has, on the fifth left out, a per-image Dice of",
        f"{by}; one view, one seed ([sources_qata.json](sources_qata.json)).", "",
        f"On held-out *synthetic* X-rays the per-image Dice of `mini` is {percent(read('mini_phantoms_report'))[0]}.", "",
    ]  # fmt: skip


def speed() -> list[str]:
    """What two cores and one GPU did."""
    c, gpu, feeding, runs, recorded = read("cost"), read("gpu")["rows"], read("feeding")["rows"][0], read("campaign")["runs"], read("recorded")
    small = [statistics.median(line["images_per_second"] for line in runs[f"small-{k}"]["curve"] if line["size"] == 224) for k in range(5)]
    alone, other, steps = gpu["paper, bf16"], gpu["paper, bf16, another machine"], recorded["steps"]
    faster = [[str(size), *(f"{steps[f'{size}, {kind}']['ms']:.0f} ms" for kind in ("eager", "recorded"))] for size in (128, 160, 224)]
    return [
        "## Speed", "",
        f"On {c['cores']} CPU cores an answer takes {c['answer_seconds']['median']:.2f} s and the first one comes {c['demo']['first_answer']:.0f} s after `python app.py`; training `mini` at batch {c['memory']['batch']} needs "
        f"{c['memory']['peak_gb']:.1f} GB. The causal path costs {c['arithmetic']['mini']['gflops_causal_path']:.1f} GFLOPs a picture (`paper`: {c['arithmetic']['paper']['gflops_causal_path']:.0f}; [cost.json](cost.json)).", "",
        f"Training `paper` on an H100 (bf16, batches of {alone['batch_size']}, {alone['size']} pixels, two workers) goes at {alone['images_per_second']:.0f} pictures a second, {other['images_per_second']:.0f} beside a faster CPU, and needs {alone['peak_gb']:.1f} GB. "
        f"It waits for batches {100 * alone['waiting_share']:.1f} and {100 * other['waiting_share']:.1f} % of the time ([gpu.json](gpu.json)), so data are not the limit: starting the GPU's kernels is, one by one. With `graphs=true` a pass is recorded once and started as a whole "
        f"([recorded.json](recorded.json)). A step of {recorded['batch_size']} pictures:", "",
        *table(["pixels", "kernel by kernel", "`graphs=true`"], faster), "",
        f"One core feeds {feeding['images_per_second']:,.0f} pictures a second ([feeding.json](feeding.json)). Five runs of `mini` side by side, without `graphs`, took {min(small):.0f} to {max(small):.0f} pictures of 224 pixels a second each.", "",
    ]  # fmt: skip


PARTS = {"measured": measured}  #: between the page's markers of these names
