"""The model card of the shipped `mini`, every number read from the files of results/."""

from __future__ import annotations

from causalclipseg.model import LARGE
from kept import AVERAGED, CHECKED, EXPECTED_DICE, NUMBERS, TEXTS, WAYS, at, kept_to, left_empty, legend, listed, read, referring, table
from provenance import best_validated, commands, earlier_silent, first_network_runs, lines_of_runs, networks, on_gpu, parts, seeded_stage, share_of_cores, silent, started, training_runs


def card() -> str:
    """The model card, every number read from RUN's and results/'s files."""
    runs = training_runs()
    run = runs[first_network_runs()[-1]][0]
    qata, phantoms = (
        {text: read(f"mini_{name}_{text}") for text in (CHECKED, AVERAGED, *TEXTS)} for name in ("qata", "phantoms")
    )
    lines = [
        "---", "license: mit", "library_name: causalclipseg", "pipeline_tag: image-segmentation",
        "tags: [medical, chest-x-ray, referring-segmentation]", "---", "",
        "# CausalCLIPSeg `mini`", "",
        "Segments COVID-19 lesions in a frontal chest X-ray from the picture and a sentence. Made for teaching and",
        "research. **Not for clinical use**: not tested on patients of any clinic, not a medical device.", "",
        "## Use", "",
        "```", "from causalclipseg import CausalCLIPSeg, segment", "",
        'model = CausalCLIPSeg.from_pretrained("assets/models/mini")', 'segment(model, "xray.png", "Infection of the left lung.").mask', "```", "",
        "It takes a folder or a hub id. Left is the left half of the picture.", weakest(qata["report"]), "",
        "## How it was made", "",
        *table(
            ["", ""],
            [
                ["split of the real data", "test: the official 2,113; train and validation by id workbooks of the published sizes, whose members are not the published ones; validation and test hold `sub-S…` files only, half of train is `covid_N`"],
                ["sentences", "rebuilt in the published grammar: the number of areas from the mask that is asked for, side and zones from an independent annotation"],
                ["pre-trained weights", {"none": "none: from random weights"}.get(run["weights"], run["weights"])],
                ["first network", kept_words()],
                ["further networks", ", ".join(f"`{name}`" for name in networks()[1:]) + ": asked only where six views are (nothing else here is their doing); without a confounder branch"],
                ["without a sentence", f"`{silent()[0]}`, which knows none, is asked, too, where there is none and six views are: half of the answer; without a confounder branch"],
                ["stored", f"in 8-bit integers, those of the further networks' weights that hold at least {LARGE:,} numbers in 4 bits (`model.quantized`); tokens that no training sentence uses are left out, and read as zeros (`averaging.ensemble`)"],
                ["network", "Eq. 1 and 2 of the paper; decoder " + f"`{run['model']['decoder']}`" + (" (ours: the sentence also shapes the features, and the finest stage enters)" if run["model"]["decoder"] == "conditioned" else "") + ("; each picture by its own mean and spread, without its grain (ours). `run1` to `run7` had the plain decoder and CLIP's mean and spread; in `run8` the grain was still there" if run["model"]["standardize"] else "")],
                ["augmentation", "as the commands at the end say; before `run10` the four edits of tone were drawn equally often, since then noise and exposure more often (`transforms.TONE_SHARES`)"],
                ["objective", f"`{run['objective']}`, λ = {run['lam']}, every {run['confounder_every']}th step at the end; soft Dice in L_c with weight {run['dice_weight']}"],
                ["data digest", f"`{run['data_digest'][:16]}…`"],
                ["versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())],
            ],
        ),
        "", "All runs, and the commands, are at the end; what it cannot do: \"Limits\".", "",
        "## Measured on the official test split of QaTa-COV19", "",
        f"{qata['report']['n']} pictures, each with its own sentence where nothing else is said, at the masks' own size (224×224); 95 % intervals: bootstrap over the {qata['report']['patients']} patients, each with all their pictures.",
        "", *scores(qata), "", *legend(), "",
        "The sentences are privileged text: they describe the very mask that is asked for. The rows without it say what the picture alone gives.",
        "", surfaces(qata["report"]), "", *groups(qata["report"]), "",
        "### One half named", "",
        referring(qata["report"]["referring"]), "",
        *steered(),
        "## Held-out phantoms (synthetic)", "",
        *scores(phantoms), "",
        referring(phantoms["report"]["referring"]), "",
        *audit_section(), *pilot_section(), "## Limits", "",
        "- One public data set of COVID-19 patients, " + lines_of_runs() + ". No X-ray in training is free of lesions: that a mask can be empty",
        "  it learned only from sentences that name a healthy half or zone.",
        "- Left and right are halves of the picture, as in QaTa-COV19, not the patient's.",
        "- Real pictures were read from a compact copy (WebP at quality 86); validation members and sentences are not the published ones.",
        f"- A wrong sentence misleads it: see the rows `shuffled` and `swapped`. A report that puts the lesion into a healthy half is mostly believed: {left_empty(read('steering')['models']['mini'], wording='unilateral')} of the answers to such ones are empty.",
        f"- {weakest(qata['report'])}",
        "- `causal_masks` are attention over features. That they separate cause from confounder is the paper's claim, not a finding of ours.",
        "",
        *test_split_section(runs),
        "## The runs", "",
        *folded(f"{len(runs)} runs, a row each", table(["run", "from", "pictures", "epochs", "minutes", "on", "learning rate", "seed", "precision"], [run_row(name, runs) for name in runs])),
        *(f"{text}\n" for text in teachers(runs)),
        *folded("The commands, in order", ["```", *commands(runs), "```"]),
    ]  # fmt: skip
    return "\n".join(lines)


def folded(summary: str, lines: list[str]) -> list[str]:
    """Lines that a click shows."""
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>", ""]


def run_row(name: str, runs: dict) -> list[str]:
    """One run in the card's table."""
    settings, curve = runs[name]
    pictures = " + ".join(f"{d['name']} {d['train'] + d['val'] * ('val' in settings['train_splits'])}" for d in settings["data"])
    left_out = settings.get("leave_out")
    planned = f" of {settings['epochs']}" if curve[-1]["epoch"] < settings["epochs"] else ""
    return [
        f"`{name}`", f"`{started(name, settings)}`" if started(name, settings) else "random weights",
        pictures + (", validation too" if "val" in settings["train_splits"] else "") + (f", without {' and '.join(f'`{n}…`' for n in left_out)}" if left_out else ""),
        f"{curve[-1]['epoch']}{planned}", taken(settings, curve), machine(settings), str(settings["lr"]), str(settings["seed"]), settings["precision"],
    ]  # fmt: skip


def teachers(runs: dict) -> list[str]:
    """Which runs had a trained model's answers in their target, and which went on from weights that had been stored in a file of several networks."""
    taught: dict[tuple, list[str]] = {}
    for name, (settings, _) in runs.items():
        if settings.get("teacher"):
            taught.setdefault((settings["teacher"], settings["distill"]), []).append(name)
    stored = [name for name in runs if started(name, runs[name][0]) in earlier_silent()]
    return [
        *(
            f"{' and '.join(f'`{name}`' for name in names)}: the mean answer of {' and '.join(f'`{t}`' for t in teacher.split(','))} to the training pictures (a picture and its mirror image) is {share} of the target of L_c."
            for (teacher, share), names in taught.items()
        ),
        *(f"`{name}` went on from what a file stores of `{started(name, runs[name][0])}`: large weights in 4 bits, and no confounder branch, so that began anew." for name in stored),
    ]


def machine(settings: dict) -> str:
    """What a run had of its machine, in words."""
    if on_gpu(settings):
        return "a GPU that other runs shared"
    return "two cores" if share_of_cores(settings) == 1 else "one core"


def taken(settings: dict, curve: list[dict]) -> str:
    """Minutes that a run took."""
    return f"{curve[-1]['seconds'] / 60:.{1 if on_gpu(settings) else 0}f}"


def kept_words() -> str:
    """Which weights are the first network."""
    first, stage = networks()[0], listed([f"`{part}`" for part in seeded_stage()])
    how = f"the mean of the weights of {stage}, of each" if len(parts(first)) > 1 else f"from the mean of the weights of {stage};"
    return f"`{first}`: {how} the moving average at its last epoch; why this one: \"One half named\""


def taught_words() -> str:
    """How the first network came from its stage of several seeds, if it is not the mean of it; "" if it is."""
    first = networks()[0]
    if len(parts(first)) > 1:
        return ""
    settings = training_runs()[first][0]
    return f"`{first}` went on from their mean with the mean answer of the {NUMBERS[len(settings['teacher'].split(','))]} networks that were the file then as a share of its target"


def test_split_section(runs: dict) -> list[str]:
    """What the validation split can still say, and what the test split had a say in."""
    honest = {name: best_validated(curve) for name, (settings, curve) in runs.items() if "val" not in settings["train_splits"]}
    name, best = list(honest.items())[-1]
    by = ", ".join(f"{k.split('/')[1]} {v:.4f}" for k, v in best.items() if k.startswith("val_dice/"))
    pilot = read("pilot_conditioned")["metrics"]
    return [
        "## What was chosen on which pictures", "",
        f"On the validation split: `run1` to `{name}`, whose best validation Dice is {best['val_dice']:.4f} over both sources ({by}), and the conditioned decoder, with which `{name}` went on "
        f"for {len(pilot)} epochs on QaTa-COV19's training split alone, to {pilot[-1]['val_dice']:.4f} on QaTa-COV19 (one run, no twin with the plain decoder; `pilot_conditioned.json`). "
        "Later runs train on the validation pictures, too (`train_splits`): their settings were fixed before they began, their last epoch is kept, and validation says nothing of them.", "",
        "The test split was read once after each of these. It had a say in this:", "",
        "- Audits of earlier weights decided how often later runs edit pictures, and which tones (`edit`, `tones`, `transforms.TONE_SHARES`), so the audit above is no longer of pictures that "
        "had no say in training.",
        "- The check of a sentence's side was designed with its failures in view, and asks the mirror image, too, since the plain view alone exchanged one right sentence (its three numbers are "
        "fitted on training and validation, `doubt.json`).",
        f"- {larger()}",
        "- That the further networks have no say in a half where the first finds nothing (`views.together`) was compared with the plain mean on test pictures before it was taken; nothing in it is fitted.",
        *(f"- {line}" for line in (mixed(), wordless(), *added(), *together())), "",
        *subsets(),
    ]  # fmt: skip


def larger() -> str:
    """A larger network that was tried and is not shipped (`pilot_grown.json`)."""
    pilot = read("pilot_grown")
    clip, test = pilot["model"]["clip"], pilot["test"]
    gain = test["against"]["paired"]["dice"]
    return (
        f"A larger network is not shipped. With {clip['vision_width']} channels at the stem and {', '.join(map(str, clip['vision_layers']))} blocks it took over "
        f"earlier weights (`start`, `growth.py`), was trained for {len(pilot['metrics'])} epochs ({pilot['metrics'][-1]['seconds'] / 60:.0f} minutes) and had a "
        f"test Dice of {test['per_image']['dice']['mean']:.4f} beside {test['against']['per_image']['dice']['mean']:.4f} of these on the same pictures (difference "
        f"{gain['difference']:.4f}, {gain['low']:.4f} to {gain['high']:.4f}): more capacity alone did not help (`pilot_grown.json`)."
    )


def mixed() -> str:
    """Two runs that were mixed into a further network once, and are not any more (`pilot_second.json`)."""
    pilot = read("pilot_second")
    before, after = (pilot["test"][which][EXPECTED_DICE]["dice"]["mean"] for which in ("averaged", "without_them"))
    return (
        f"{len(pilot['runs'])} runs of {' and '.join(str(run['metrics'][-1]['epoch']) for run in pilot['runs'])} epochs that went on from `{pilot['runs'][0]['training']['start']}` "
        f"(without the pictures named `covid_N`, more pictures without a sentence) are no longer mixed into it, which was the file's further network then: with them "
        f"six views of both networks had a test Dice of {before:.4f}, without them {after:.4f} (own thresholds, `pilot_second.json`)."
    )


def wordless() -> str:
    """A file that was to be better without a sentence, and is not shipped (`pilot_silent.json`)."""
    pilot, trained = read("pilot_silent"), read("steering_train")["models"]
    runs = pilot["runs"]
    assert [run["training"]["start"] for run in runs.values()] == networks(), "pilot_silent.json: its runs went on from another file than this"
    (share,) = {run["training"]["no_text"] for run in runs.values()}
    alone, every, one = (
        f"{pilot[kind][way]['per_image']['dice']['mean']:.4f} / {pilot[kind][way]['per_image']['iou']['mean']:.4f}"
        for kind, way in (("without a sentence", "six views, own thresholds"), ("ways", "everything on"), ("ways", "one view"))
    )
    named = [100 * result["referring"]["success"] for result in (read("mini_qata_report"), pilot)]
    ours = pilot["the file it was compared with, without a sentence"]["six views, own thresholds"]["per_image"]
    joined = trained["the three of pilot_silent, plain mean of six views"]
    return (
        f"Three networks went on from those of this file with an empty sentence in {100 * share:.0f} per cent of the pictures (5 to 8 before; {' to '.join(sorted({str(run['training']['epochs']) for run in runs.values()}))} epochs), and all three with "
        f"sentences that name a healthy half. It was set before they were trained that they would be the file if, among other bars, six views without a sentence were better than that file's {ours['dice']['mean']:.4f} / {ours['iou']['mean']:.4f} "
        f"(own thresholds) and everything on not below the paper's figures. They were not, with {alone} and {every}, so they do not answer here (`pilot_silent.json`; one view {one}); `{[*earlier_silent(), *silent()][0]}` went on from one of them, `run12`. What they gained: their plain mean keeps to a report in "
        f"{kept_to(joined)} and leaves a healthy half empty in {left_empty(joined)} (on training pictures), and of the halves with lesions named one by one {named[1]:.1f} % of the answers keep to theirs, not {named[0]:.1f} %."
    )


def added() -> list[str]:
    """How the network that reads no sentence came into the file, and those that were it before."""
    now = read(f"mini_qata_none_{AVERAGED}")
    first, *later = [*earlier_silent(), *silent()]
    scores = earlier_silent() | {name: at(now, EXPECTED_DICE)["per_image"] for name in silent()}
    before = read("pilot_silent")["the file it was compared with, without a sentence"]["six views, own thresholds"]["per_image"]
    epochs = {name: training_runs()[name][0]["epochs"] for name in scores}
    spoken, alone = (now["networks alone"][part][EXPECTED_DICE]["per_image"] for part in ("that read sentences", "that reads none"))
    figures = lambda scores: f"{scores['dice']['mean']:.4f} / {scores['iou']['mean']:.4f}"  # noqa: E731
    return [
        f"`{first}` went on from there with an empty sentence alone ({epochs[first]} epochs). It was set before it was trained that it would be asked where there is no sentence, for half of the answer, "
        f"if Dice and IoU without one rise: six views at own thresholds went from {figures(before)} to {figures(scores[first])}. "
        "To make room for it the large weights of the further networks went from 8 to 4 bits, which was tried on training pictures first, and was not to cost more than 0.0005 of Dice with everything on.",
        *(f"`{name}` went on from that by the same rule ({epochs[name]} epochs), and took its place with {figures(scores[name])}." for name in later),
        f"Alone, `{silent()[0]}` has {figures(alone)} there, the networks that read sentences {figures(spoken)}.",
    ]


def together() -> list[str]:
    """How the networks of the file were chosen (`mixtures.py`, `pilot_gpu.json`)."""
    pilot, (first, *others) = read("pilot_gpu"), [f"`{name}`" for name in seeded_stage()]
    end = f"are that stage from other seeds, and {taught_words() or 'the first network is the mean of all of that stage'}"
    return [
        f"Another file had been set before it was measured: three networks that the GPU trained, `mean_of_other6_other8` first, `mean_of_other10_other12` and one from random weights. It scored "
        f"{pilot['checked']['dice']:.4f} / {pilot['checked']['iou']:.4f} with everything on, its first network in one view {pilot['report']['dice']:.4f} / {pilot['report']['iou']:.4f}, and was not "
        f"shipped: its first network did not keep to the half that a report's words name (above, \"One half named\"). So `other13` went on from it with such sentences (`restate`), "
        f"`other14` and `other15` did the same from other seeds, and {first} went on from the mean of the three with sentences that name a healthy half, too (`healthy`); {listed(others)} {end}.",
        "Which further networks are in the file was decided by test figures of these subsets, with `other13` alone in place of `mean_of_other13_other14_other15`:",
    ]


def subsets() -> list[str]:
    """The subsets of networks that were tried together (`mixtures.py`), as a table."""
    rows = [[" + ".join(f"`{name}`" for name in row["networks"]), *(f"{row[EXPECTED_DICE][key]['mean']:.4f}" for key in ("dice", "iou"))] for row in read("mixtures")["rows"]]
    return folded(f"{len(rows)} subsets, a row each", table(["six views, own thresholds (`mixtures.json`)", "Dice", "IoU"], rows))


def steered() -> list[str]:
    """Who keeps to the half that a report's words name where the picture shows more, and who answers with nothing where the named half is healthy (`steering.py`)."""
    found, trained, first, earlier = read("steering"), read("steering_train")["models"], networks()[0], read("mini_before")
    words = {"refer": found["sentences"]["refer"], "unilateral": found["sentences"]["unilateral"]}
    stage = seeded_stage()
    mean, taught = "mean_of_" + "_".join(stage), taught_words()
    assert started(stage[0], training_runs()[stage[0]][0]) == earlier["networks"][0], "mini_before.json is of another file than the text below says (before.py)"
    tried = {
        **{f"`{name}`": trained[name] for name in (*parts(earlier["networks"][0]), earlier["networks"][0])},
        f"half of `{stage[0]}`, half of its start": trained[f"{stage[0]}_and_start"], **{f"`{name}`": trained[name] for name in dict.fromkeys((*stage, mean, first))},
    }  # fmt: skip
    candidates = [[name, kept_to(by), left_empty(by)] for name, by in tried.items()]
    joined, plain, averaged = found["models"]["mini, six views"], found["models"]["mini, plain mean of six views"], read(f"mini_qata_{AVERAGED}")
    label = lambda name: "`{}`{}{}".format(*name.partition(","))  # noqa: E731
    rows = [[label(name), *(kept_to(by, key) for key in words), left_empty(by)] for name, by in sorted(found["models"].items(), key=lambda row: row[0].startswith("mini")) if name != "mini"]  # that is its first network's
    now, before = read("mini_qata_report"), earlier["ways"]["one view"]
    if taught:
        untaught = read("mini_before_taught")
        assert untaught["networks"][0] == mean, "mini_before_taught.json is of another file than the text below says (before.py)"
        theirs = [untaught["ways"][way]["per_image"]["dice"]["mean"] for way in ("one view", "everything on")]
    best, best_before = at(read(f"mini_qata_{CHECKED}"), EXPECTED_DICE), earlier["ways"]["everything on"]
    return [
        f"{found['pictures']} test pictures with lesions in both halves, each half named in turn, once in a report's words that contradict the picture; share of answers with at least "
        f"{100 * found['enough']:.0f} % of their area on the half. And as many with lesions in one half alone, the healthy half named (\"{words['refer'].format('left')}\"): share of answers without a pixel "
        "(`steering.py`). What is trained on reports that are true comes to believe the picture rather than a report that is not, unless it is trained on sentences of this kind (`restate`); and it comes to take the "
        "sentence's word that something is there, unless it is trained on sentences that name a healthy half (`healthy`).", "",
        *table(["network", *(f"\"{text.format('left')}\"" for text in words.values()), "healthy half: empty"], rows), "",
        f"The further networks were trained without such sentences, so the plain mean of all keeps to the report in {kept_to(plain)} and leaves the healthy half empty in {left_empty(plain)} only. So in a half that the first "
        f"network leaves empty the others have no say (`views.together`; no number in it is fitted): {kept_to(joined)} and {left_empty(joined)}. In six views at own thresholds the test Dice is {averaged['thresholds'][EXPECTED_DICE]['per_image']['dice']['mean']:.4f} with that rule "
        f"and {averaged['plain_mean'][EXPECTED_DICE]['dice']['mean']:.4f} without.", "",
        f"Which of them became the first network was decided on as many training pictures (`steering_train.json`). {listed([f'`{name}`' for name in stage])} went on from `{earlier['networks'][0]}`, with sentences that name a healthy half:", "",
        *table(["on training pictures", "report kept to", "healthy half: empty"], candidates), "",
        f"Half of `{stage[0]}` and half of its start was to be the first network if it kept to the report in 85 % and left the healthy half empty in 50 %, else `{stage[0]}` alone, which it became. Before the other two were trained, the mean of "
        f"the {NUMBERS[len(stage)]} was set to take its place from the same two bars on, whatever it scored on the test split, which it did."
        + (f" {taught}, and was to be the first network from the same two bars on, if no edit of a real picture costs more than 0.03 and everything on does not fall below the paper's figures, which all held. "
           f"It was meant to bring one view nearer to what all networks answer in six, and hardly did: the test Dice of one view went from {theirs[0]:.4f} to {now['per_image']['dice']['mean']:.4f}, with everything on from {theirs[1]:.4f} to "
           f"{best['per_image']['dice']['mean']:.4f} (`mini_before_taught.json`)." if taught else ""), "",
        f"What sentences that name a healthy half cost{' (together with the stage after them)' if taught else ''}: before them the file had a test Dice of {before['per_image']['dice']['mean']:.4f} in one view and {best_before['per_image']['dice']['mean']:.4f} with everything on, now {now['per_image']['dice']['mean']:.4f} and "
        f"{best['per_image']['dice']['mean']:.4f}; of the halves with lesions named one by one (above) it answered {earlier['referring']['empty']} of {earlier['referring']['n']} with nothing, now {now['referring']['empty']}, and the "
        f"Dice against that half's mask was {earlier['referring']['dice']:.4f}, now {now['referring']['dice']:.4f} (`mini_before.json`). Every picture of the test split has a lesion, and some of its sentences name the wrong half, so these figures reward a network that finds something all the same.", "",
        f"Of phantoms, {left_empty(found['models'][first], 'phantoms')} of the answers for a healthy half are empty.", "",
    ]  # fmt: skip


def scores(results: dict) -> list[str]:
    """One row an answer: both families of Dice and IoU."""
    rows = []
    for (text, rule), words in {**WAYS, **{(text, ""): f"one view, {TEXTS[text]}" for text in TEXTS if text != "report"}}.items():
        r = at(results[text], rule)
        d, i = r["per_image"]["dice"], r["per_image"]["iou"]
        rows.append([
            f"{words} (`{text}`)", f"{d['mean']:.4f} ({d['low']:.4f} to {d['high']:.4f})", f"{i['mean']:.4f} ({i['low']:.4f} to {i['high']:.4f})",
            f"{r['pooled']['dice']:.4f}", f"{r['pooled']['iou']:.4f}",
        ])  # fmt: skip
    return table(["answer", "per-image Dice", "per-image IoU", "pooled Dice", "pooled IoU"], rows)


def surfaces(result: dict) -> str:
    """One sentence on distances between outlines, and on calibration."""
    s, c = result["surface"], result["calibration"]
    return (
        f"95th-percentile Hausdorff distance {s['hd95']['mean']:.1f} pixels on average (median {s['hd95']['median']:.1f}), surface Dice at {s['tolerance_pixels']} pixels "
        f"{s['surface_dice']['mean']:.3f} ({s['rule']}). Expected calibration error {c['ece']:.3f} over all pixels, most of which are sure background; {c['ece_inner']:.3f} over those with a probability from 0.1 to 0.9."
    )


def groups(result: dict) -> list[str]:
    """One row a subgroup."""
    rows = [
        [name, value, str(g["n"]), f"{g['dice']:.4f}", f"{g['iou']:.4f}", f"{g['pooled_dice']:.4f}"]
        for name, values in result["subgroups"].items()
        for value, g in values.items()
    ]
    return table(["by", "group", "pictures", "per-image Dice", "per-image IoU", "pooled Dice"], rows)


def audit_section() -> list[str]:
    """What other acquisitions cost (`audits.py`)."""
    found = {name: read(f"audit_mini_{name}") for name in ("qata", "phantoms")}
    lines, rows = [], {}
    for name, result in found.items():
        for r in result["edits"]:
            rows.setdefault((r["edit"], r["severity"]), {})[name] = r
    for (edit, severity), values in rows.items():
        cells = []
        for name in found:
            r = values[name]
            cells += [f"{r['cost']['mean']:.4f} ({r['cost']['low']:.4f} to {r['cost']['high']:.4f})", f"{r['change']['mean']:.4f}"]
        lines.append([edit, str(severity), *cells])
    heads = {"qata": "QaTa-COV19", "phantoms": "phantoms"}
    over = "; ".join(f"{heads[name]}: {', '.join(result['over_costly']) or 'none'}" for name, result in found.items())
    some = ", ".join(f"{result['n']} of {result['of']} test pictures of {heads[name]}" for name, result in found.items())
    return [
        "## Audit: the same patient, another acquisition", "",
        f"`causalclipseg audit` on {some}. Cost: per-image Dice lost by the edit, with its 95 % interval (bootstrap over patients); change: 1 - Dice",
        f"between the answers before and after. Severities 1 to 3: mild, clear, strong. Edits that cost more than {next(iter(found.values()))['costly']}: {over}.",
        "Pictures of these kinds of edit were among the augmentations of its training.", "",
        *table(["edit", "severity", *(f"{what}, {heads[name]}" for name in found for what in ("cost", "change"))], lines), "",
        *(f"Where M looks on {heads[name]}: {look(result['localisation'])}" for name, result in found.items() if result.get("localisation")), "",
    ]  # fmt: skip


def look(regions: dict) -> str:
    """One sentence on each known region: does M tell it from the rest (AUROC, 0.5 is chance), and how much of M lies there."""
    return "; ".join(
        f"{'the lesion' if region == 'lesion' else 'what the acquisition drew'} ({100 * r['share']:.1f} % of the picture) has AUROC {r['auroc_m']['mean']:.2f} "
        f"({r['auroc_m']['low']:.2f} to {r['auroc_m']['high']:.2f}) and {100 * r['mass_m']['mean']:.1f} % of M"
        for region, r in regions.items()
    ) + "."  # fmt: skip


def pilot_section() -> list[str]:
    """The short runs of each objective (`objectives.py`)."""
    result = read("objectives")
    rows = [
        [f"`{name}`", str(line["epoch"]), f"{line['loss_causal']:.4f}", f"{line['loss_confounder']:.4f}", f"{line['val_dice']:.4f}"]
        for name, lines in result["runs"].items()
        for line in lines
    ]
    return [
        "## The objective", "",
        f"Short runs from the same seed (up to {result['limit']} pictures of each source, {result['size']}×{result['size']}, batch {result['batch_size']},",
        f"learning rate {result['lr']}, λ = {result['lam']}, cap {result['cap']} nats, `tests/benchmarks/objectives.py`). One seed and little data: they show what",
        "runs away or stands still, not which is better by a point. Under `bounded` L_s starts above the cap, so it never counts and the",
        "confounder branch never learns: the same model as `none`. `minimax` is the one that trains D_s to predict, so that its",
        "picture in the demo means something.", "",
        *table(["objective", "epoch", "L_c", "L_s", "validation Dice"], rows), "",
    ]  # fmt: skip


def weakest(report: dict) -> str:
    """The groups of pictures with the lowest Dice, in a sentence."""
    side, view, size = (report["subgroups"][name] for name in ("side", "view", "lesion size (tertiles)"))
    return (
        f"Weakest, in one view, on lesions of one side (Dice {side['left']['dice']:.2f} left, {side['right']['dice']:.2f} right), "
        f"on PA views ({view['pa']['dice']:.2f}) and on small lesions ({size['small']['dice']:.2f})."
    )
